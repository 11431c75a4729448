//! `braidinfer ps`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use comfy_table::{ContentArrangement, Table};
use serde::{Deserialize, Serialize};
use ureq::Agent;

use super::serve::API_KEY;
use super::serve::running::RunningServer;
use crate::args::PsArgs;
use crate::output::{self, counted, size};

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Serialize)]
struct Row {
    url: String,
    pid: u32,
    /// `ready`, or why nothing is known of its models.
    state: String,
    models: Vec<Model>,
}

#[derive(Serialize)]
struct Model {
    name: String,
    state: String,
    /// Memory that it may take, in bytes; `null` if it is not loaded.
    memory: Option<u64>,
}

#[derive(Deserialize)]
struct Listing {
    data: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    id: String,
    status: Status,
}

#[derive(Deserialize)]
struct Status {
    value: String,
    memory: Option<u64>,
}

pub fn run(args: &PsArgs) -> anyhow::Result<()> {
    let config = Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE));
    let agent: Agent = config.build().into();
    let mut rows = Vec::new();
    for (note, server) in RunningServer::all() {
        match row(&agent, server) {
            Some(row) => rows.push(row),
            // It ended without a word.
            None => drop(fs::remove_file(note)),
        }
    }
    if args.json {
        return output::print_json(&rows);
    }
    if !rows.is_empty() {
        output::print_line(table(&rows))?;
    }
    output::print_line(format!("{} of this user on this machine", counted(rows.len(), "server")))
}

/// What a server says; `None` if there is none.
fn row(agent: &Agent, RunningServer { url, pid }: RunningServer) -> Option<Row> {
    // Another program may listen at the address of a server that was killed, and is to learn no key.
    if !may_run(pid) {
        return None;
    }
    let mut request = agent.get(format!("{url}/v1/models"));
    if let Some(key) = std::env::var(API_KEY).ok().filter(|key| !key.is_empty()) {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let unknown = |state: String| Some(Row { url: url.clone(), pid, state, models: Vec::new() });
    let mut response = match request.call() {
        Ok(response) => response,
        Err(ureq::Error::Io(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => return None,
        Err(error) => return unknown(format!("does not answer: {error}")),
    };
    match response.status().as_u16() {
        200 => {}
        401 => return unknown(format!("has a key: set {API_KEY}")),
        503 => return unknown("not ready".into()),
        status => return unknown(format!("answers with {status}")),
    }
    let Ok(Listing { data }) = response.body_mut().read_json() else { return unknown("answers in another way".into()) };
    let model = |Listed { id, status }| Model { name: id, state: status.value, memory: status.memory };
    Some(Row { url, pid, state: "ready".into(), models: data.into_iter().map(model).collect() })
}

/// Whether there may be a process with this number: where that is not known, there may.
fn may_run(pid: u32) -> bool {
    let processes = Path::new("/proc");
    !processes.join("self").exists() || processes.join(pid.to_string()).exists()
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(output::TABLE).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["server", "process", "model", "state", "memory"]);
    for row in rows {
        let mut server = (row.url.as_str(), row.pid.to_string());
        if row.models.is_empty() {
            table.add_row([server.0, &server.1, "", &*output::one_line(&row.state), ""]);
        }
        for model in &row.models {
            let memory = model.memory.map_or(String::new(), size);
            let name = output::one_line(&model.name);
            table.add_row([server.0, &server.1, &*name, &*output::one_line(&model.state), &memory]);
            // Once is enough.
            server = ("", String::new());
        }
    }
    table
}
