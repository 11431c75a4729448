//! `braidinfer completions`.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;
use crate::output;

pub fn run(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "braidinfer", &mut script);
    output::print(&String::from_utf8(script)?)
}
