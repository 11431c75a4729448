//! Writes a tiny model that answers what a script says, to try clients with.
//!
//! `cargo run --example scripted_model -- SCRIPT.json FOLDER`; the fields of a script are in `tests/support/scripted_model.rs`.

#[path = "../tests/support/scripted_model.rs"]
mod scripted_model;

use std::path::PathBuf;

fn main() -> Result<(), String> {
    let mut arguments = std::env::args().skip(1).map(PathBuf::from);
    let (Some(script), Some(folder)) = (arguments.next(), arguments.next()) else {
        return Err("expected the path of a script and that of a folder".to_owned());
    };
    let failed = |path: &PathBuf, error: &dyn std::error::Error| format!("{}: {error}", path.display());
    let text = std::fs::read_to_string(&script).map_err(|error| failed(&script, &error))?;
    let parsed: scripted_model::Script = serde_json::from_str(&text).map_err(|error| failed(&script, &error))?;
    std::fs::create_dir_all(&folder).map_err(|error| failed(&folder, &error))?;
    parsed.write(&folder);
    Ok(())
}
