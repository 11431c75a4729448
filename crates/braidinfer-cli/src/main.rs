//! The program `braidinfer`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(braidinfer_cli::run_program(std::env::args_os(), None))
}
