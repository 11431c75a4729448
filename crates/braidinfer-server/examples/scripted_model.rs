//! Writes a tiny model that answers what a script says, to try clients with.
//!
//! `cargo run --example scripted_model -- SCRIPT.json FOLDER`; the fields of a script are in `tests/support/scripted_model.rs`.

#[path = "../tests/support/scripted_model.rs"]
mod scripted_model;

use std::path::PathBuf;

fn main() {
    let mut arguments = std::env::args().skip(1).map(PathBuf::from);
    let (Some(script), Some(folder)) = (arguments.next(), arguments.next()) else {
        eprintln!("expected the path of a script and that of a folder");
        std::process::exit(2);
    };
    let script = std::fs::read_to_string(script).expect("the script can be read");
    let script: scripted_model::Script = serde_json::from_str(&script).expect("it is a script");
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    script.write(&folder);
}
