//! The folder of packed weights: names, locks and bounds.

use std::io::Write;

use tempfile::TempDir;

use super::*;

fn cache(most_bytes: u64) -> (TempDir, PackedCache) {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let cache = PackedCache { most_bytes: Some(most_bytes), ..PackedCache::new(folder.path().join("packed")) };
    (folder, cache)
}

/// Makes a file of 100 bytes that was last used this many seconds after others.
fn make(cache: &PackedCache, name: &str, seconds: u64) {
    let unfinished = cache.begin(name, false).expect("it can be made").expect("nobody else makes it");
    unfinished.file().write_all(&[1; 100]).expect("it can be written");
    let used = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000 + seconds);
    unfinished.file().set_modified(used).expect("it is ours");
    unfinished.publish().expect("it can be renamed");
}

fn names(files: Vec<KeptWeights>) -> Vec<String> {
    files.iter().map(|file| file.path.file_name().expect("it has a name").to_string_lossy().into_owned()).collect()
}

fn kept(cache: &PackedCache) -> Vec<String> {
    names(cache.list().expect("it can be listed"))
}

#[test]
fn a_file_has_its_name_only_when_it_is_whole() {
    let (_folder, cache) = cache(1000);
    assert!(cache.list().expect("no folder is no failure").is_empty());
    let unfinished = cache.begin("a", false).expect("it can be made").expect("nobody else makes it");
    assert_eq!(kept(&cache), ["a.making"]);
    assert!(cache.list().expect("it can be listed")[0].in_use);
    assert!(cache.begin("a", false).expect("it can be tried").is_none(), "one makes it");
    assert!(cache.begin("b", false).expect("it can be tried").is_some(), "another file is another matter");
    drop(unfinished);
    assert!(kept(&cache).is_empty(), "what was not published is gone");
    make(&cache, "a", 0);
    assert_eq!(kept(&cache), ["a.packed"]);
    let file = fs::metadata(cache.path("a")).expect("it is there");
    assert!(file.permissions().readonly());
    let before = fs::metadata(cache.path("a")).and_then(|file| file.modified()).expect("it is known");
    open_used(&cache.path("a")).expect("it can be opened").expect("it is there");
    let after = fs::metadata(cache.path("a")).and_then(|file| file.modified()).expect("it is known");
    assert!(after > before, "using it is noted");
}

#[cfg(unix)]
#[test]
fn the_folder_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let (_folder, cache) = cache(1000);
    make(&cache, "a", 0);
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!((mode(&cache.folder), mode(&cache.path("a"))), (0o700, 0o400));
}

#[test]
fn what_was_not_used_for_longest_goes_first() {
    let (_folder, cache) = cache(350);
    for (name, used) in [("b", 2), ("a", 3), ("c", 1)] {
        make(&cache, name, used);
    }
    assert_eq!(kept(&cache), ["a.packed", "b.packed", "c.packed"]);
    cache.make_room(50, &cache.path("d")).expect("it fits");
    assert_eq!(kept(&cache).len(), 3, "it fits beside them");
    open_used(&cache.path("c")).expect("it can be opened").expect("it is there");
    cache.make_room(100, &cache.path("d")).expect("there is room without one");
    assert_eq!(kept(&cache), ["c.packed", "a.packed"]);
    // The file that will be replaced does not count.
    cache.make_room(250, &cache.path("a")).expect("there is room without it");
    assert_eq!(kept(&cache), ["c.packed"]);
    let refused = cache.make_room(351, &cache.path("d")).expect_err("it is larger than the bound");
    assert!(refused.contains("351 B") && refused.contains("350 B"), "{refused}");
    assert_eq!(kept(&cache), ["c.packed"], "nothing is removed in vain");
}

#[test]
fn files_in_use_stay() {
    let (_folder, cache) = cache(250);
    make(&cache, "a", 1);
    make(&cache, "b", 2);
    let used = open_used(&cache.path("a")).expect("it can be opened").expect("it is there");
    let used_again = open_used(&cache.path("a")).expect("readers share it").expect("it is there");
    cache.make_room(100, &cache.path("c")).expect("there is room without the other");
    assert_eq!(kept(&cache), ["a.packed"]);
    let refused = cache.make_room(200, &cache.path("c")).expect_err("the first cannot go");
    assert!(refused.contains("200 B") && refused.ends_with("; not removed: a.packed (100 B, in use)"), "{refused}");
    assert!(names(cache.clear().expect("it can be cleared")).is_empty());
    drop((used, used_again));
    assert_eq!(names(cache.clear().expect("it can be cleared")), ["a.packed"]);
    assert!(kept(&cache).is_empty());
}

#[test]
fn what_killed_makers_left_is_taken_over_or_removed() {
    let (_folder, cache) = cache(1000);
    make(&cache, "a", 1);
    let left = cache.path("a").with_extension(UNFINISHED);
    fs::write(&left, [2; 500]).expect("it can be written");
    fs::write(cache.path("b").with_extension(UNFINISHED), [2; 500]).expect("it can be written");
    fs::write(cache.folder.join("notes.txt"), "of somebody").expect("it can be written");
    let unfinished = cache.begin("a", false).expect("it can be made").expect("nobody else makes it");
    assert_eq!(unfinished.file().metadata().expect("it is open").len(), 0, "nothing of it is left");
    cache.make_room(100, &cache.path("a")).expect("it fits");
    assert_eq!(kept(&cache), ["a.making"], "the other is gone, and so is what will be replaced");
    drop(unfinished);
    assert!(cache.folder.join("notes.txt").exists(), "files of others are left alone");
}

#[test]
fn makers_that_wait_come_one_after_the_other() {
    let (_folder, cache) = cache(1000);
    make(&cache, "z", 0);
    let at_once = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for round in 0..20 {
                    let unfinished = cache.begin("a", true).expect("it can be made").expect("it was waited for");
                    assert_eq!(at_once.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0, "one makes it");
                    assert!(is_at(unfinished.file(), &unfinished.path));
                    at_once.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    if round % 2 == 0 {
                        unfinished.publish().expect("it can be renamed");
                    }
                }
            });
        }
    });
    let mut kept = kept(&cache);
    kept.sort();
    assert_eq!(kept, ["a.packed", "z.packed"]);
}

#[test]
fn the_usual_bound_is_a_quarter_of_the_disk() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    // Made when it is needed.
    let cache = PackedCache::new(folder.path().join("not/there/yet"));
    let bound = cache.bound().expect("the disk is known");
    assert!(bound > 0);
    let refused = cache.make_room(u64::MAX, &cache.path("a")).expect_err("nobody has that much");
    assert!(refused.contains("a quarter of"), "{refused}");
}

/// A link would be followed to a file of somebody else, and a pipe has no beginning to write to.
#[cfg(unix)]
#[test]
fn what_is_in_the_way_of_a_new_file_is_named() {
    let (folder, cache) = cache(1000);
    make(&cache, "z", 0);
    let (path, other) = (cache.path("a").with_extension(UNFINISHED), folder.path().join("other"));
    let link = || std::os::unix::fs::symlink(&other, &path).expect("a link can be made");
    let pipe = || {
        let made = std::process::Command::new("mkfifo").arg(&path).status().expect("the system has pipes");
        assert!(made.success());
    };
    let folder = || fs::create_dir(&path).expect("a folder can be made");
    for (put, found) in [(&link as &dyn Fn(), "a link"), (&pipe, "a pipe"), (&folder, "a folder")] {
        put();
        for wait in [false, true] {
            let refused = cache.begin("a", wait).expect_err(found).to_string();
            let expected = format!("{}: expected a plain file, found {found}; remove it", path.display());
            assert_eq!(refused, expected);
        }
        assert!(!other.exists(), "the link is not followed");
        fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)).expect("it is ours");
    }
    cache.begin("a", false).expect("it can be made").expect("nobody else makes it");
}
