//! Fetching from a server that plays the Hub: what ends up in the cache, and what happens when things go wrong.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::support::{
    FOLDER, FakeHub, Fault, NEEDED, REPO, RepoFile, TOKEN, WEIGHTS, commit, fetch, large, sharded, single, small,
};
use braidinfer_hub::{HubError, Settings};

fn file(files: &[(&str, RepoFile)], name: &str) -> RepoFile {
    files.iter().find(|(other, _)| *other == name).expect("in the list").1.clone()
}

fn weights() -> RepoFile {
    file(&single(), WEIGHTS)
}

/// The error of a fetch, and its message.
fn failure(hub: &FakeHub, id: &str) -> (HubError, String) {
    let error = hub.fetch(id).0.expect_err("a failure");
    let message = error.to_string();
    (error, message)
}

fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

// --- What goes right ---

#[test]
fn a_fresh_model_is_in_the_standard_layout_with_what_it_needs_and_no_more() {
    let hub = FakeHub::serving(sharded());
    let (path, log) = hub.fetch(REPO);
    let path = path.expect("fetched");
    assert_eq!(path, hub.folder().join("snapshots").join(commit(1)));
    for name in NEEDED {
        hub.assert_whole(&commit(1), name, &file(&sharded(), name));
    }
    assert_eq!(fs::read_dir(&path).expect("listed").count(), NEEDED.len());
    assert_eq!(fs::read_dir(hub.folder().join("blobs")).expect("listed").count(), NEEDED.len());
    assert_eq!(fs::read_to_string(hub.folder().join("refs/main")).expect("a file"), commit(1));
    let mut finished = log.finished.clone();
    finished.sort();
    assert_eq!(finished, NEEDED);
    assert!(log.notes.is_empty(), "{:?}", log.notes);
    assert_eq!(log.advanced.last(), Some(&300_000));
    let asked_for_others =
        |path: &str| ["onnx", "original", "pytorch", "tokenizer.model", "other-"].iter().any(|x| path.contains(x));
    assert!(hub.requests().iter().all(|request| !asked_for_others(&request.path)));
}

#[test]
fn a_whole_model_costs_one_request_and_offline_none() {
    let hub = FakeHub::serving(sharded());
    let path = hub.fetch(REPO).0.expect("fetched");
    hub.requests();
    let (again, log) = hub.fetch(REPO);
    assert_eq!(again.expect("cached"), path);
    assert_eq!(hub.requests().len(), 1);
    assert!(log.started.iter().all(|(_, size, present)| size == present));
    let (offline, log) = hub.fetch_offline(REPO);
    assert_eq!(offline.expect("cached"), path);
    assert!(log.notes.is_empty());
    let settings = Settings { offline: true, ..hub.settings() };
    assert_eq!(fetch(settings, REPO).0.expect("cached"), path);
    assert!(hub.requests().is_empty());
}

#[test]
fn a_commit_that_is_whole_costs_no_request() {
    let with_tokenizer = [single(), vec![("tokenizer.json", small("{}"))]].concat();
    let hub = FakeHub::serving(with_tokenizer);
    let id = format!("{REPO}@{}", commit(1));
    hub.fetch(&id).0.expect("fetched");
    assert!(!hub.folder().join("refs").exists());
    hub.requests();
    hub.fetch(&id).0.expect("cached");
    assert!(hub.requests().is_empty());
}

#[test]
fn a_commit_that_another_tool_fetched_in_part_is_completed() {
    let hub = FakeHub::serving(single());
    let id = format!("{REPO}@{}", commit(1));
    hub.fetch(&id).0.expect("fetched");
    hub.publish("main", &commit(1), [single(), vec![("tokenizer.json", small("{}"))]].concat());
    let path = hub.fetch(&id).0.expect("fetched");
    assert!(path.join("tokenizer.json").is_file());
}

#[test]
fn another_commit_than_the_one_asked_for_is_refused() {
    let hub = FakeHub::serving(single());
    hub.publish(&commit(3), &commit(1), single());
    let error = hub.fetch(&format!("{REPO}@{}", commit(3))).0.expect_err("another commit").to_string();
    assert_contains(&error, &["sha: expected the commit that was asked for", &commit(3), &commit(1)]);
}

#[test]
fn a_revision_that_moved_is_fetched_again_beside_the_old_one() {
    let hub = FakeHub::serving(single());
    hub.fetch(REPO).0.expect("fetched");
    let mut files = single();
    files[0].1 = small(r#"{"new":1}"#);
    hub.publish("main", &commit(2), files.clone());
    hub.requests();
    let path = hub.fetch(REPO).0.expect("fetched");
    assert!(path.ends_with(commit(2)));
    hub.assert_whole(&commit(2), "config.json", &files[0].1);
    hub.assert_whole(&commit(2), WEIGHTS, &weights());
    hub.assert_whole(&commit(1), "config.json", &small("{}"));
    assert!(hub.requests().iter().all(|request| request.host == "hub"), "the weights came again");
    assert!(hub.fetch_offline(REPO).0.expect("cached").ends_with(commit(2)));
}

#[test]
fn a_failed_update_leaves_the_old_revision_usable() {
    let hub = FakeHub::serving(single());
    hub.fetch(REPO).0.expect("fetched");
    let files = vec![("config.json", small("{ }")), (WEIGHTS, large(8, 1000))];
    hub.publish("main", &commit(2), files);
    hub.fail("cdn GET", "/blob/", usize::MAX, Fault::Silence);
    hub.fetch(REPO).0.expect_err("cut");
    assert!(hub.fetch_offline(REPO).0.expect("cached").ends_with(commit(1)));
}

#[test]
fn branches_with_slashes() {
    let hub = FakeHub::serving(single());
    hub.publish("refs/pr/4", &commit(3), single());
    let path = hub.fetch("org/model@refs/pr/4").0.expect("fetched");
    assert!(path.ends_with(commit(3)));
    assert_eq!(fs::read_to_string(hub.folder().join("refs/refs/pr/4")).expect("a file"), commit(3));
    hub.fetch_offline("org/model@refs/pr/4").0.expect("cached");
    assert!(hub.fetch_offline(REPO).0.is_err());
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let hub = FakeHub::serving(single());
    hub.require_token();
    fetch(hub.settings_with_token(), REPO).0.expect("fetched");
    let (at_hub, at_cdn): (Vec<_>, Vec<_>) = hub.requests().into_iter().partition(|request| request.host == "hub");
    assert!(!at_cdn.is_empty());
    assert!(at_hub.iter().all(|request| request.token.as_deref() == Some(&format!("Bearer {TOKEN}"))));
    assert!(at_cdn.iter().all(|request| request.token.is_none()), "{at_cdn:?}");
}

#[test]
fn files_without_bytes_and_in_folders() {
    let mut files = single();
    files.push(("chat_template.jinja", small("")));
    files.push(("gguf/m-Q4_0.gguf", large(9, 10)));
    let hub = FakeHub::serving(files.clone());
    hub.fetch(REPO).0.expect("fetched");
    hub.assert_whole(&commit(1), "chat_template.jinja", &small(""));
    let path = hub.fetch("org/model:q4_0").0.expect("fetched");
    assert!(path.ends_with("gguf/m-Q4_0.gguf"));
    hub.assert_whole(&commit(1), "gguf/m-Q4_0.gguf", &file(&files, "gguf/m-Q4_0.gguf"));
}

#[test]
fn redirects_within_the_hub_are_followed() {
    let hub = FakeHub::serving(single());
    // As for a repository that was renamed, and for small files since 2025.
    let here = Fault::Status(307, vec![("location", format!("/{REPO}/resolve/{}/config.json?cache=1", commit(1)))]);
    hub.fail("hub HEAD", "resolve/", 1, here.clone());
    hub.fail("hub GET", "config.json", 1, here);
    hub.fetch(REPO).0.expect("fetched");
    hub.assert_whole(&commit(1), "config.json", &small("{}"));
}

// --- GGUF ---

fn quants() -> Vec<(&'static str, RepoFile)> {
    vec![
        ("README.md", small("")),
        ("Q8_0/m-Q8_0-00001-of-00002.gguf", large(21, 100)),
        ("Q8_0/m-Q8_0-00002-of-00002.gguf", large(22, 100)),
        ("m-Q4_K_M.gguf", large(23, 100)),
        ("m-Q4_K_S.gguf", large(24, 100)),
        ("mmproj-F16.gguf", large(25, 100)),
    ]
}

#[test]
fn one_quantization_is_fetched_and_found_offline() {
    let hub = FakeHub::serving(quants());
    let path = hub.fetch("org/model:q4_k_m").0.expect("fetched");
    assert_eq!(path, hub.folder().join("snapshots").join(commit(1)).join("m-Q4_K_M.gguf"));
    hub.assert_whole(&commit(1), "m-Q4_K_M.gguf", &file(&quants(), "m-Q4_K_M.gguf"));
    assert_eq!(fs::read_dir(hub.folder().join("blobs")).expect("listed").count(), 1);
    assert_eq!(hub.fetch_offline("org/model:Q4_K_M").0.expect("cached"), path);
    let (only, log) = hub.fetch_offline(REPO);
    assert_eq!(only.expect("cached"), path);
    assert!(log.has_note("Q4_K_M, the only GGUF"), "{:?}", log.notes);
    let error = hub.fetch_offline("org/model:Q8_0").0.expect_err("not there").to_string();
    assert_contains(&error, &["org/model:Q8_0", "Q8_0, found only Q4_K_M", "HF_HUB_OFFLINE"]);
}

#[test]
fn a_split_model_comes_whole_and_counts_only_whole() {
    let hub = FakeHub::serving(quants());
    hub.fail("cdn GET", &file(&quants(), "Q8_0/m-Q8_0-00002-of-00002.gguf").etag(), usize::MAX, Fault::Silence);
    hub.fetch("org/model:Q8_0").0.expect_err("cut");
    let error = hub.fetch_offline(&format!("org/model@{}:Q8_0", commit(1))).0.expect_err("half").to_string();
    assert_contains(&error, &["2 parts", "found 1"]);
    hub.heal();
    let path = hub.fetch("org/model:Q8_0").0.expect("fetched");
    assert!(path.ends_with("Q8_0/m-Q8_0-00001-of-00002.gguf"));
    for name in ["Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf"] {
        hub.assert_whole(&commit(1), name, &file(&quants(), name));
    }
    assert_eq!(hub.fetch_offline("org/model:Q8_0").0.expect("cached"), path);
}

#[test]
fn the_choice_is_left_to_the_user() {
    let hub = FakeHub::serving(quants());
    let (_, message) = failure(&hub, REPO);
    assert_contains(&message, &[REPO, "3 GGUF models", "Q4_K_M, Q4_K_S, Q8_0", "org/model:Q4_K_M"]);
    let (_, message) = failure(&hub, "org/model:Q5_0");
    assert_contains(&message, &["Q5_0", "found only Q4_K_M, Q4_K_S, Q8_0"]);
    assert!(!hub.folder().join("blobs").exists());
}

#[test]
fn a_repository_without_a_model_says_what_it_has() {
    let hub = FakeHub::serving(vec![("config.json", small("{}")), ("pytorch_model.bin", large(1, 10))]);
    let (_, message) = failure(&hub, REPO);
    assert_contains(&message, &[REPO, "`model.safetensors`", "GGUF", "found pytorch_model.bin"]);
    assert!(!hub.folder().exists());
}

// --- Connections that break ---

#[test]
fn a_cut_connection_is_taken_up_where_it_ended() {
    let hub = FakeHub::serving(single());
    hub.fail("cdn GET", "/blob/", 1, Fault::Cut(400_000));
    hub.fail("cdn GET", "/blob/", 1, Fault::Cut(100_000));
    let (path, log) = hub.fetch(REPO);
    path.expect("fetched");
    hub.assert_whole(&commit(1), WEIGHTS, &weights());
    let ranges: Vec<_> = hub.requests().into_iter().filter(|request| request.host == "cdn").map(|r| r.range).collect();
    assert_eq!(ranges, [None, Some("bytes=400000-".into()), Some("bytes=500000-".into())]);
    assert!(log.has_note("trying again") && log.advanced.is_sorted(), "{:?}", log.notes);
}

#[test]
fn the_next_run_takes_up_what_the_last_one_left() {
    let hub = FakeHub::serving(single());
    hub.fail("cdn GET", "/blob/", 1, Fault::Cut(400_000));
    hub.fail("cdn GET", "/blob/", usize::MAX, Fault::Silence);
    let (error, message) = failure(&hub, REPO);
    assert!(matches!(error, HubError::BrokenOff { got: 400_000, size: 1_000_000, .. }), "{error:?}");
    assert_contains(&message, &["org/model/model.safetensors", "400000 of 1000000", "Run again"]);
    hub.assert_nothing_looks_whole(WEIGHTS, &weights());
    assert_eq!(fs::metadata(hub.incomplete(&weights())).expect("a part").len(), 400_000);
    hub.heal();
    hub.requests();
    let (path, log) = hub.fetch(REPO);
    path.expect("fetched");
    hub.assert_whole(&commit(1), WEIGHTS, &weights());
    assert!(log.started.contains(&(WEIGHTS.into(), 1_000_000, 400_000)), "{:?}", log.started);
    assert!(hub.requests().iter().any(|request| request.range.as_deref() == Some("bytes=400000-")));
    hub.fetch_offline(REPO).0.expect("cached");
}

#[test]
fn a_server_without_ranges_begins_again() {
    let hub = FakeHub::serving(single());
    hub.leave_part(&weights(), &weights().content[..10_000]);
    hub.fail("cdn GET", "/blob/", 1, Fault::IgnoreRange);
    let (path, log) = hub.fetch(REPO);
    path.expect("fetched");
    hub.assert_whole(&commit(1), WEIGHTS, &weights());
    assert!(log.has_note("beginning again") && log.advanced.contains(&0));
}

#[test]
fn a_server_without_ranges_that_always_breaks_off_is_given_up() {
    let hub = FakeHub::serving(single());
    let without_range = Fault::Chunked(weights().content[..10_000].to_vec());
    hub.fail("cdn GET", "/blob/", usize::MAX, without_range);
    let (error, _) = failure(&hub, REPO);
    assert!(matches!(error, HubError::BrokenOff { got: 10_000, .. }), "{error:?}");
    hub.assert_nothing_looks_whole(WEIGHTS, &weights());
}

#[test]
fn refused_and_wrong_ranges_begin_again() {
    for fault in [Fault::Status(416, Vec::new()), Fault::WrongRange] {
        let hub = FakeHub::serving(single());
        hub.leave_part(&weights(), &weights().content[..10_000]);
        hub.fail("cdn GET", "/blob/", 1, fault);
        hub.fetch(REPO).0.expect("fetched");
        hub.assert_whole(&commit(1), WEIGHTS, &weights());
    }
}

#[test]
fn a_silent_connection_is_not_waited_for() {
    let hub = FakeHub::serving(single());
    hub.fail("cdn GET", "/blob/", 1, Fault::Stall(300_000));
    let mut settings = hub.settings();
    settings.timeouts.stall = Duration::from_millis(300);
    fetch(settings, REPO).0.expect("fetched");
    hub.assert_whole(&commit(1), WEIGHTS, &weights());
}

#[test]
fn a_damaged_part_is_thrown_away() {
    for part in [vec![7; 10_000], vec![7; 1_000_000], vec![7; 1_000_001]] {
        let hub = FakeHub::serving(single());
        hub.leave_part(&weights(), &part);
        let (path, log) = hub.fetch(REPO);
        path.expect("fetched");
        hub.assert_whole(&commit(1), WEIGHTS, &weights());
        assert!(log.has_note("beginning again"), "{:?}", log.notes);
    }
}

#[test]
fn a_part_that_is_the_whole_is_only_checked() {
    let hub = FakeHub::serving(single());
    hub.leave_part(&weights(), &weights().content);
    hub.fetch(REPO).0.expect("fetched");
    hub.assert_whole(&commit(1), WEIGHTS, &weights());
    assert!(hub.requests().iter().all(|request| request.host == "hub"));
}

#[test]
fn a_blob_of_the_wrong_length_is_replaced() {
    let hub = FakeHub::serving(single());
    fs::create_dir_all(hub.folder().join("blobs")).expect("created");
    fs::write(hub.blob(&weights()), "half").expect("written");
    let (path, log) = hub.fetch(REPO);
    path.expect("fetched");
    hub.assert_whole(&commit(1), WEIGHTS, &weights());
    assert!(log.has_note("4 of 1000000 bytes"), "{:?}", log.notes);
}

// --- No network ---

#[test]
fn offline_says_what_is_missing() {
    let hub = FakeHub::serving(sharded());
    let error = hub.fetch_offline(REPO).0.expect_err("nothing").to_string();
    assert_contains(&error, &[REPO, "refs/main is missing", "HF_HUB_OFFLINE"]);
    hub.fetch(REPO).0.expect("fetched");
    let shard = hub.folder().join("snapshots").join(commit(1)).join("model-00002-of-00002.safetensors");
    fs::remove_file(&shard).expect("removed");
    let error = hub.fetch_offline(REPO).0.expect_err("in pieces").to_string();
    assert_contains(&error, &["model-00002-of-00002.safetensors is missing"]);
    // The blob is still there: a request about it, but no download.
    hub.requests();
    hub.fetch(REPO).0.expect("linked again");
    assert!(hub.requests().iter().all(|request| request.host == "hub"));
    hub.fetch_offline(REPO).0.expect("cached");
}

#[test]
fn a_link_to_a_blob_that_is_gone_is_missing() {
    let hub = FakeHub::serving(single());
    hub.fetch(REPO).0.expect("fetched");
    fs::remove_file(hub.blob(&weights())).expect("removed");
    let error = hub.fetch_offline(REPO).0.expect_err("in pieces").to_string();
    assert_contains(&error, &["expected `model.safetensors`"]);
    hub.fetch(REPO).0.expect("fetched");
    hub.assert_whole(&commit(1), WEIGHTS, &weights());
}

#[test]
fn an_unreachable_hub_is_no_obstacle_to_a_whole_model() {
    let hub = FakeHub::serving(single());
    let path = hub.fetch(REPO).0.expect("fetched");
    let gone = || Settings { endpoint: "http://127.0.0.1:1".into(), ..hub.settings() };
    let (again, log) = fetch(gone(), REPO);
    assert_eq!(again.expect("cached"), path);
    assert!(log.notes.len() == 1 && log.has_note("from the cache"), "{:?}", log.notes);
    fs::remove_file(path.join(WEIGHTS)).expect("removed");
    let (result, log) = fetch(gone(), REPO);
    let error = result.expect_err("in pieces");
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    assert_contains(&error.to_string(), &["http://127.0.0.1:1/api/models/org/model"]);
    assert_eq!(log.notes.len(), 3, "{:?}", log.notes);
}

#[test]
fn an_answer_is_not_the_same_as_no_network() {
    let hub = FakeHub::serving(single());
    hub.fetch(REPO).0.expect("fetched");
    hub.fail("hub GET", "/api/", usize::MAX, Fault::Status(404, vec![("x-error-code", "RepoNotFound".into())]));
    let (error, _) = failure(&hub, REPO);
    assert!(matches!(error, HubError::NotFound { .. }), "{error}");
    assert!(hub.fetch_offline(REPO).0.is_ok());
}

// --- Refusals ---

#[test]
fn no_token_and_a_wrong_token() {
    let hub = FakeHub::serving(single());
    hub.require_token();
    let (error, message) = failure(&hub, REPO);
    assert!(matches!(error, HubError::Denied { status: 401, .. }));
    assert_contains(&message, &[REPO, "401", "Invalid username", "no repository", "private or gated", "set HF_TOKEN"]);
    let token = braidinfer_hub::Token::new("test", "hf_other").expect("a token");
    let (result, _) = fetch(Settings { token, ..hub.settings() }, REPO);
    let message = result.expect_err("refused").to_string();
    assert_contains(&message, &["the token is not valid", "HF_TOKEN"]);
    assert!(!message.contains("hf_other"));
    assert!(!hub.folder().exists());
}

#[test]
fn gated_repositories() {
    let hub = FakeHub::serving(single());
    let gated = Fault::Status(403, vec![("x-error-code", "GatedRepo".into())]);
    hub.fail("hub HEAD", "config.json", 2, gated);
    let (_, message) = failure(&hub, REPO);
    assert_contains(&message, &["config.json", "gated", &format!("{}/org/model", hub.endpoint), "set HF_TOKEN"]);
    let message = fetch(hub.settings_with_token(), REPO).0.expect_err("refused").to_string();
    assert_contains(&message, &["gated", "ask for access"]);
    assert!(!message.contains("set HF_TOKEN"));
    assert!(!hub.folder().exists());
}

#[test]
fn what_is_not_found() {
    let hub = FakeHub::serving(single());
    let (_, message) = failure(&hub, "org/other");
    assert_contains(&message, &["org/other", "404", "no such repository"]);
    let (_, message) = failure(&hub, "org/model@nowhere");
    assert_contains(&message, &["revision nowhere of org/model", "404"]);
    hub.fail("hub HEAD", "config.json", 1, Fault::Status(404, vec![("x-error-code", "EntryNotFound".into())]));
    let (_, message) = failure(&hub, REPO);
    assert_contains(&message, &["org/model/config.json", "404", "no such file"]);
    assert!(!hub.folder().exists());
}

#[test]
fn too_many_requests_pass() {
    let hub = FakeHub::serving(single());
    let busy = |wait: &str| Fault::Status(429, vec![("retry-after", wait.to_owned())]);
    hub.fail("hub GET", "/api/", 2, busy("0"));
    hub.fail("hub HEAD", WEIGHTS, 1, busy("0"));
    hub.fail("cdn GET", "/blob/", 1, busy("not a number"));
    let (path, log) = hub.fetch(REPO);
    path.expect("fetched");
    hub.assert_whole(&commit(1), WEIGHTS, &weights());
    assert_eq!(log.notes.iter().filter(|note| note.contains("429")).count(), 4, "{:?}", log.notes);
}

#[test]
fn too_many_requests_for_too_long() {
    let hub = FakeHub::serving(single());
    hub.fail("hub GET", "/api/", usize::MAX, Fault::Status(429, Vec::new()));
    let (error, message) = failure(&hub, REPO);
    assert!(matches!(error, HubError::RateLimited { .. }));
    assert_contains(&message, &["too many requests", "set HF_TOKEN"]);
    assert_eq!(hub.requests().len(), 4);
    hub.heal();
    hub.fail("hub GET", "/api/", 1, Fault::Status(429, vec![("retry-after", "3600".into())]));
    let (_, message) = failure(&hub, REPO);
    assert_contains(&message, &["429", "3600 s"]);
    assert_eq!(hub.requests().len(), 1);
}

#[test]
fn failures_of_the_server_pass_or_do_not() {
    let hub = FakeHub::serving(single());
    hub.fail("hub GET", "/api/", 1, Fault::Status(500, Vec::new()));
    hub.fail("hub HEAD", WEIGHTS, 1, Fault::Status(503, Vec::new()));
    hub.fail("cdn GET", "/blob/", 1, Fault::Status(502, Vec::new()));
    // What a CDN says when a signed address has expired.
    hub.fail("cdn GET", "/blob/", 1, Fault::Status(403, Vec::new()));
    hub.fetch(REPO).0.expect("fetched");
    hub.assert_whole(&commit(1), WEIGHTS, &weights());
    hub.fail("hub GET", "/api/", usize::MAX, Fault::Status(503, vec![("x-error-message", "mainte\tnance".into())]));
    let (error, message) = failure(&hub, REPO);
    assert!(matches!(error, HubError::Status { status: 503, .. }));
    assert_contains(&message, &["/api/models/org/model", "503", r"mainte\tnance"]);
}

// --- Wrong bytes ---

#[test]
fn wrong_contents_are_thrown_away() {
    let hub = FakeHub::serving(single());
    hub.fail("cdn GET", "/blob/", 1, Fault::Body(vec![1; 1_000_000]));
    let (error, message) = failure(&hub, REPO);
    assert!(matches!(error, HubError::Checksum { algorithm: "sha256", .. }));
    assert_contains(&message, &["org/model/model.safetensors", "sha256", &weights().etag(), "deleted"]);
    hub.assert_nothing_looks_whole(WEIGHTS, &weights());
    assert!(!hub.incomplete(&weights()).exists());
    hub.fail("hub GET", "config.json", 1, Fault::Body(b"[]".to_vec()));
    fs::remove_dir_all(hub.folder()).expect("removed");
    let (error, _) = failure(&hub, REPO);
    assert!(matches!(error, HubError::Checksum { algorithm: "git hash", .. }));
    hub.assert_nothing_looks_whole("config.json", &small("{}"));
    hub.fetch(REPO).0.expect("fetched");
}

#[test]
fn wrong_lengths_are_refused() {
    let content = weights().content;
    let too_long = [&content[..], b"x"].concat();
    for fault in [Fault::Body(content[..999_999].to_vec()), Fault::Body(too_long.clone()), Fault::Chunked(too_long)] {
        let hub = FakeHub::serving(single());
        hub.fail("cdn GET", "/blob/", 1, fault);
        let (error, message) = failure(&hub, REPO);
        assert!(matches!(error, HubError::Size { expected: 1_000_000, .. }), "{error:?}");
        assert_contains(&message, &["org/model/model.safetensors", "expected 1000000 bytes"]);
        hub.assert_nothing_looks_whole(WEIGHTS, &weights());
        hub.fetch(REPO).0.expect("fetched");
    }
}

#[test]
fn a_length_that_comes_late_or_never() {
    let hub = FakeHub::serving(single());
    let without_length = Fault::Headers(vec![("x-linked-size", String::new())]);
    hub.fail("hub HEAD", WEIGHTS, usize::MAX, without_length);
    // The CDN tells it neither when asked nor when it sends.
    hub.fail("cdn HEAD", "/blob/", 3, Fault::Chunked(Vec::new()));
    hub.fail("cdn GET", "/blob/", 1, Fault::Chunked(weights().content));
    let (error, message) = failure(&hub, REPO);
    assert!(matches!(error, HubError::InvalidResponse { .. }), "{error:?}");
    assert_contains(&message, &["/blob/", "Content-Length", "found none"]);
    assert!(!message.contains("signature"));
    hub.fail("cdn GET", "/blob/", 1, Fault::Headers(vec![("content-length", "x".into())]));
    hub.fetch(REPO).0.expect_err("no number");
    hub.assert_nothing_looks_whole(WEIGHTS, &weights());
    // Only when it sends.
    hub.fetch(REPO).0.expect("fetched");
    hub.assert_whole(&commit(1), WEIGHTS, &weights());
}

#[test]
fn a_length_that_is_never_told_again() {
    let hub = FakeHub::serving(single());
    hub.fail("cdn GET", "/blob/", 1, Fault::Chunked(weights().content));
    hub.fetch(REPO).0.expect("fetched");
    hub.assert_whole(&commit(1), WEIGHTS, &weights());
}

#[test]
fn without_a_checksum_the_length_is_all_there_is() {
    let hub = FakeHub::serving(single());
    hub.fail("hub HEAD", "config.json", 1, Fault::Headers(vec![("etag", "W/\"v-1\"".into())]));
    let (path, log) = hub.fetch(REPO);
    path.expect("fetched");
    assert!(hub.folder().join("blobs/v-1").is_file());
    assert!(log.has_note("config.json: the server sends no checksum"), "{:?}", log.notes);
}

// --- Disks ---

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named_and_the_download_goes_on_later() {
    let hub = FakeHub::serving(single());
    fs::create_dir_all(hub.folder().join("blobs")).expect("created");
    std::os::unix::fs::symlink("/dev/full", hub.incomplete(&weights())).expect("a link");
    let (error, message) = failure(&hub, REPO);
    assert!(matches!(error, HubError::DiskFull { missing: 1_000_000, .. }), "{error:?}");
    assert_contains(&message, &[".incomplete", "disk is full", "1000000 bytes of model.safetensors", "HF_HOME"]);
    hub.assert_nothing_looks_whole(WEIGHTS, &weights());
    fs::remove_file(hub.incomplete(&weights())).expect("removed");
    hub.leave_part(&weights(), &weights().content[..123]);
    hub.fetch(REPO).0.expect("fetched");
    hub.assert_whole(&commit(1), WEIGHTS, &weights());
}

#[test]
fn a_cache_that_cannot_be_written() {
    let hub = FakeHub::serving(single());
    fs::create_dir_all(hub.folder()).expect("created");
    fs::write(hub.folder().join("blobs"), "in the way").expect("written");
    let (error, message) = failure(&hub, REPO);
    assert!(matches!(error, HubError::Io { .. }), "{error:?}");
    assert_contains(&message, &["cannot create", "models--org--model/blobs", "HF_HOME"]);
    assert!(!hub.folder().join("snapshots").exists());
}

#[test]
fn two_at_once_download_once() {
    let hub = FakeHub::serving(sharded());
    let results = thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| hub.fetch(REPO).0)).collect();
        runs.into_iter().map(|run| run.join().expect("no panic")).collect::<Vec<_>>()
    });
    for result in results {
        assert!(result.expect("fetched").ends_with(commit(1)));
    }
    for name in ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
        hub.assert_whole(&commit(1), name, &file(&sharded(), name));
    }
    assert_eq!(hub.requests().iter().filter(|request| request.host == "cdn").count(), 2);
    let locks = hub.cache.path().join(".locks").join(FOLDER);
    assert!(locks.join(format!("{}.lock", file(&sharded(), "config.json").etag())).is_file());
}

// --- Hostile servers ---

#[test]
fn names_that_lead_out_of_the_cache() {
    let hub = FakeHub::serving(vec![("../../evil-Q4_0.gguf", large(1, 10))]);
    let (error, message) = failure(&hub, REPO);
    assert!(matches!(error, HubError::FileName { .. }));
    assert_contains(&message, &[REPO, "../../evil-Q4_0.gguf"]);
    for shard in ["../../evil.safetensors", "/evil.safetensors", "a/../../evil.safetensors", "..\\\\evil"] {
        let index = format!(r#"{{"weight_map":{{"a":"{shard}"}}}}"#);
        let hub = FakeHub::serving(vec![("config.json", small("{}")), ("model.safetensors.index.json", small(&index))]);
        let (error, message) = failure(&hub, REPO);
        assert!(matches!(error, HubError::FileName { .. }), "{message}");
    }
    let index = r#"{"weight_map":{"a":"unlisted.safetensors"}}"#;
    let hub = FakeHub::serving(vec![("config.json", small("{}")), ("model.safetensors.index.json", small(index))]);
    assert_contains(&failure(&hub, REPO).1, &["unlisted.safetensors", "no such file"]);
}

#[test]
fn entity_tags_and_commits_that_lead_out_of_the_cache() {
    for etag in ["\"../../../evil\"", "\"/evil\"", "\"..\"", "\"\"", "\"a:b\"", &format!("\"{}\"", "a".repeat(200))] {
        let hub = FakeHub::serving(single());
        hub.fail("hub HEAD", "config.json", 1, Fault::Headers(vec![("etag", etag.to_owned())]));
        let (error, message) = failure(&hub, REPO);
        assert!(matches!(error, HubError::InvalidResponse { .. }), "{error:?}");
        assert_contains(&message, &["ETag"]);
        assert!(!hub.folder().exists());
    }
    let hub = FakeHub::serving(single());
    hub.publish("main", "../../evil", single());
    assert_contains(&failure(&hub, REPO).1, &["sha", "../../evil", "40 hexadecimal digits"]);
}

#[test]
fn answers_that_are_none() {
    let hub = FakeHub::serving(single());
    for body in ["", "<html>", "[]", "{}", r#"{"sha":1,"siblings":[]}"#, r#"{"sha":"x","siblings":[{}]}"#] {
        hub.fail("hub GET", "/api/", 1, Fault::Body(body.as_bytes().to_vec()));
        let (error, message) = failure(&hub, REPO);
        assert!(matches!(error, HubError::InvalidResponse { .. }), "{error:?}");
        assert_contains(&message, &["/api/models/org/model", "HF_ENDPOINT"]);
    }
    for (name, location) in
        [("location", "file:///etc/passwd"), ("location", "/api/models/org/model/revision/main"), ("x", "y")]
    {
        hub.fail("hub GET", "/api/", 99, Fault::Status(302, vec![(name, location.into())]));
        assert_contains(&failure(&hub, REPO).1, &["Location"]);
        hub.heal();
    }
    let settings = Settings { endpoint: "not an address".into(), ..hub.settings() };
    assert_contains(&fetch(settings, REPO).0.expect_err("no address").to_string(), &["HF_ENDPOINT", "not an address"]);
}
