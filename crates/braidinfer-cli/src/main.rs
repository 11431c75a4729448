//! The `braidinfer` command line.

mod args;
mod commands;
mod demo;
mod hub;
mod interrupt;
mod model;
mod output;
mod report;
mod sampling_args;
mod side;
mod stderr;
mod stdout_at_start;
mod temporary_file;
mod wording;

#[cfg(test)]
#[path = "../../braidinfer-model/tests/support/mutations.rs"]
mod mutations;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};

/// Exit code of every failure.
const FAILURE: u8 = 3;
/// Exit code after a second signal to a server, as shells have it after Ctrl-C.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    stderr::tell_panics();
    let code = match Cli::try_parse() {
        Ok(cli) => code(interrupt::outlive_file_limit().and_then(|()| run(cli.command))),
        Err(error) => code(output::usage(&error).map(|()| usage_code(&error))),
    };
    stderr::flush();
    code
}

fn code(result: anyhow::Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => interrupt::requested_code().map_or(code, ExitCode::from),
        // The reader of our output closed the pipe, as `head` does; that is not a failure.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            ExitCode::from(FAILURE)
        }
    }
}

fn usage_code(error: &clap::Error) -> ExitCode {
    if error.use_stderr() { ExitCode::from(FAILURE) } else { ExitCode::SUCCESS }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => commands::run::run(args)?,
        Command::Chat(args) => commands::chat::run(args)?,
        Command::Logits(args) => commands::logits::run(args)?,
        Command::Inspect(args) => commands::inspect::run(args)?,
        Command::Tokenize(args) => commands::tokenize::run(args)?,
        Command::Pull(args) => commands::pull::run(args)?,
        Command::Imatrix(args) => commands::imatrix::run(args)?,
        Command::Quantize(args) => commands::quantize::run(args)?,
        Command::Check(args) => return commands::check::run(args),
        Command::Validate(args) => return commands::validate::run(args),
        Command::Compare(args) => return commands::compare::run(args),
        Command::Serve(args) => commands::serve::run(*args)?,
        Command::Diff(args) => return commands::diff::run(args),
        Command::Perplexity(args) => commands::perplexity::run(args)?,
        Command::Bench(args) => return commands::bench::run(args),
        Command::Models(args) => commands::models::run(args)?,
        Command::Cache(args) => commands::cache::run(&args)?,
        Command::Worker => braidinfer::run_worker()?,
        Command::Completions { shell } => commands::completions::run(shell)?,
    }
    Ok(ExitCode::SUCCESS)
}
