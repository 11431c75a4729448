//! `braidinfer pull`.

use crate::args::PullArgs;
use crate::{hub, output};

pub fn run(args: PullArgs) -> anyhow::Result<()> {
    output::print_line(hub::fetch(&args.id)?.display())
}
