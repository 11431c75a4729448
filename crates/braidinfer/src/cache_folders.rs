//! Where what can be made again is kept, such as verdicts of checks and packed weights, and where settings are.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

/// The variable that names another folder for what can be made again.
const CACHE: &str = "BRAIDINFER_CACHE";

/// The variable that names another folder for settings.
const SETTINGS: &str = "BRAIDINFER_CONFIG";

/// The folder for settings of a user, such as aliases: the one that the environment variable `BRAIDINFER_CONFIG` names, else
/// `braidinfer` in the system's folder for settings. `None` if the system has no such folder. The folder need not exist.
pub fn settings_folder() -> Option<PathBuf> {
    let named = env::var_os(SETTINGS).filter(|folder| !folder.is_empty()).map(PathBuf::from);
    named.or_else(|| Some(dirs::config_dir()?.join("braidinfer")))
}

/// The folder that programs keep verdicts of checks in, for [`LoadOptions::verdicts`](crate::LoadOptions::verdicts):
/// `verdicts` in the folder that the environment variable `BRAIDINFER_CACHE` names, else in `braidinfer` in the system's
/// folder for caches. `None` if the system has no such folder. The folder need not exist.
pub fn default_verdict_folder() -> Option<PathBuf> {
    folder("verdicts")
}

/// The folder that programs keep packed weights in, for [`PackedCache`](crate::PackedCache): `packed`, beside that of
/// verdicts.
pub fn default_packed_folder() -> Option<PathBuf> {
    folder("packed")
}

/// The folder that programs keep prefixes of prompts in, for [`SavedPrefixes`](crate::SavedPrefixes): `prefixes`, beside that of
/// verdicts.
pub fn default_prefix_folder() -> Option<PathBuf> {
    folder("prefixes")
}

/// The folder in which running servers note themselves: `servers`, beside that of verdicts.
pub fn default_server_folder() -> Option<PathBuf> {
    folder("servers")
}

fn folder(name: &str) -> Option<PathBuf> {
    Some(cache(env::var_os(CACHE), dirs::cache_dir())?.join(name))
}

fn cache(named: Option<OsString>, system: Option<PathBuf>) -> Option<PathBuf> {
    let named = named.filter(|folder| !folder.is_empty()).map(PathBuf::from);
    named.or_else(|| Some(system?.join("braidinfer")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_goes_before_the_system() {
        let system = || Some(PathBuf::from("/home/u/.cache"));
        let path = |path: &str| Some(PathBuf::from(path));
        assert_eq!(cache(Some("/c".into()), system()), path("/c"));
        assert_eq!(cache(Some("/c".into()), None), path("/c"));
        assert_eq!(cache(None, system()), path("/home/u/.cache/braidinfer"));
        assert_eq!(cache(Some("".into()), system()), path("/home/u/.cache/braidinfer"));
        assert_eq!(cache(None, None), None);
    }
}
