//! `braidinfer pull`.

use crate::args::PullArgs;
use crate::{hub, output};

pub fn run(args: PullArgs) -> anyhow::Result<()> {
    output::print_path(&hub::fetch(&args.id)?)
}
