//! Where verdicts of checks are kept.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

/// The variable that names another folder for what can be made again.
const CACHE: &str = "BRAIDINFER_CACHE";

/// The folder that programs keep verdicts of checks in, for [`LoadOptions::verdicts`](crate::LoadOptions::verdicts):
/// `verdicts` in the folder that the environment variable `BRAIDINFER_CACHE` names, else in `braidinfer` in the system's
/// folder for caches. `None` if the system has no such folder. The folder need not exist.
pub fn default_verdict_folder() -> Option<PathBuf> {
    folder_in(env::var_os(CACHE), dirs::cache_dir())
}

fn folder_in(named: Option<OsString>, system: Option<PathBuf>) -> Option<PathBuf> {
    let named = named.filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let cache = named.or_else(|| Some(system?.join("braidinfer")))?;
    Some(cache.join("verdicts"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_goes_before_the_system() {
        let system = || Some(PathBuf::from("/home/u/.cache"));
        let verdicts = |path: &str| Some(PathBuf::from(path));
        assert_eq!(folder_in(Some("/c".into()), system()), verdicts("/c/verdicts"));
        assert_eq!(folder_in(Some("/c".into()), None), verdicts("/c/verdicts"));
        assert_eq!(folder_in(None, system()), verdicts("/home/u/.cache/braidinfer/verdicts"));
        assert_eq!(folder_in(Some("".into()), system()), verdicts("/home/u/.cache/braidinfer/verdicts"));
        assert_eq!(folder_in(None, None), None);
    }
}
