//! The `braidinfer` command line, as a library: a program of its own and the Python package run it.

mod args;
mod commands;
mod demo;
mod hub;
mod interrupt;
mod model;
mod output;
mod report;
mod side;
mod stderr;
mod stdout_at_start;
mod temporary_file;
mod wording;

#[cfg(test)]
#[path = "../../braidinfer-model/tests/support/mutations.rs"]
mod mutations;

use std::ffi::OsString;
use std::thread;

use braidinfer::WorkerProgram;
use clap::Parser;

use crate::args::{Cli, Command};

pub use crate::demo::SOURCE as DEMO_MODEL;

/// Exit code of a success.
const SUCCESS: u8 = 0;
/// Exit code of every failure.
const FAILURE: u8 = 3;
/// Exit code after a second signal to a server, as shells have it after Ctrl-C.
const INTERRUPTED: u8 = 130;

/// Runs the command that is typed as `arguments`, of which the first is the program's name, and returns its exit code.
///
/// `worker` starts the processes for untrusted input; if `None`, they are the running program with the argument `worker`. Takes
/// over the signals and the panics of the process, so it is called once, by its main thread, and the process ends after it.
pub fn run_program(arguments: impl IntoIterator<Item = OsString>, worker: Option<WorkerProgram>) -> u8 {
    count_threads_once();
    stderr::tell_panics();
    model::set_worker(worker);
    let code = match Cli::try_parse_from(arguments) {
        Ok(cli) => code(interrupt::outlive_file_limit().and_then(|()| run(cli.command))),
        Err(error) => code(output::usage(&error).map(|()| usage_code(&error))),
    };
    stderr::flush();
    code
}

/// Unless this is set, Candle 0.11 counts the processors anew before every product, in a file that is long where there are many.
fn count_threads_once() {
    if let Ok(threads) = thread::available_parallelism() {
        braidinfer::kernels::set_default_variable("RAYON_NUM_THREADS", threads.to_string());
    }
}

fn code(result: anyhow::Result<u8>) -> u8 {
    match result {
        Ok(code) => interrupt::requested_code().unwrap_or(code),
        // The reader of our output closed the pipe, as `head` does; that is not a failure.
        Err(error) if output::is_broken_pipe(&error) => SUCCESS,
        Err(error) => {
            output::error(&error);
            FAILURE
        }
    }
}

fn usage_code(error: &clap::Error) -> u8 {
    if error.use_stderr() { FAILURE } else { SUCCESS }
}

fn run(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Run(args) => commands::run::run(args)?,
        Command::Chat(args) => commands::chat::run(args)?,
        Command::Logits(args) => commands::logits::run(args)?,
        Command::Inspect(args) => commands::inspect::run(args)?,
        Command::Tokenize(args) => commands::tokenize::run(args)?,
        Command::Pull(args) => commands::pull::run(args)?,
        Command::List(args) => commands::list::run(&args)?,
        Command::Show(args) => commands::show::run(&args)?,
        Command::Remove(args) => commands::remove::run(&args)?,
        Command::Ps(args) => commands::ps::run(&args)?,
        Command::Alias(args) => commands::alias::run(&args)?,
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
        Command::Devices(args) => commands::devices::run(args)?,
        Command::Cache(args) => commands::cache::run(&args)?,
        Command::Worker => braidinfer::run_worker()?,
        Command::Health(args) => commands::health::run(&args)?,
        Command::Completions { shell } => commands::completions::run(shell)?,
        Command::Man { of } => commands::man::run(of.as_deref())?,
    }
    Ok(SUCCESS)
}
