//! `braidinfer health`: for containers and services, which have no other client.

use std::time::Duration;

use anyhow::{Context, bail};
use ureq::Agent;

use crate::args::HealthArgs;
use crate::output;

pub fn run(args: &HealthArgs) -> anyhow::Result<()> {
    let url = format!("{}/ready", args.url.trim_end_matches('/'));
    let config = Agent::config_builder().http_status_as_error(false);
    let agent: Agent = config.timeout_global(Some(Duration::from_secs(args.timeout))).build().into();
    let mut response = agent.get(&url).call().with_context(|| url.clone())?;
    let status = response.status();
    if !status.is_success() {
        // A short answer says why.
        let reason = response.body_mut().with_config().limit(4096).read_to_string().unwrap_or_default();
        bail!("{url}: expected a server that is ready, found {status} {reason}");
    }
    output::print("ready\n")
}
