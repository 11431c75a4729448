//! Fetching a model from the Hub or the cache.

use std::fs;
use std::path::PathBuf;

use serde::Deserialize;

use crate::cache::RepoCache;
use crate::choice::{Choice, shards};
use crate::default_quant::{self, Candidate};
use crate::download::RemoteFile;
use crate::error::shown;
use crate::gguf_name::GgufSet;
use crate::http::{Client, FetchError, Subject, invalid_response};
use crate::id::is_commit;
use crate::{HubError, HubId, Progress, Result, Settings};

/// What the Hub says of a revision.
#[derive(Debug, Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

impl Listing {
    /// The names of the files.
    fn files(&self) -> Vec<String> {
        self.siblings.iter().map(|sibling| sibling.rfilename.clone()).collect()
    }
}

/// A file of a repository.
#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
    /// In bytes.
    size: Option<u64>,
}

/// The Hugging Face Hub or a compatible server, with the local cache.
#[derive(Debug)]
pub struct Hub {
    settings: Settings,
    client: Client,
}

impl Hub {
    /// Fails if the endpoint is not a valid URL.
    pub fn new(settings: Settings) -> Result<Self> {
        let client = Client::new(&settings)?;
        Ok(Self { settings, client })
    }

    /// A Hub with settings from the environment, see [`Settings::from_env`].
    pub fn from_env() -> Result<Self> {
        Self::new(Settings::from_env()?)
    }

    /// Downloads a model to the cache, unless it is already there. Returns the folder with its `config.json` and
    /// safetensors, or the path of the `.gguf` file; of a split file, the first part.
    ///
    /// Only required files are downloaded. If the cache has the complete model, a single request checks whether the
    /// revision has moved. No request is needed if the settings say offline, or if the revision is a commit and the
    /// cache has a tokenizer (other tools that share the cache may not have downloaded one). If the Hub cannot be
    /// reached, a complete model in the cache is used, with a note.
    ///
    /// After an error, partial downloads stay for the next run, under names that cannot be mistaken for complete files.
    pub fn fetch(&self, id: &HubId, progress: &mut dyn Progress) -> Result<PathBuf> {
        let cache = RepoCache::new(&self.settings.cache, id);
        let cached = find_cached(&cache, id);
        if self.settings.offline {
            let advice = "HF_HUB_OFFLINE is set; run once without it to fetch the model";
            return self.take_cached(id, cached, advice, progress);
        }
        let whole = cached.as_ref().is_ok_and(|cached| cached.choice.has_tokenizer());
        if id.revision().is_some_and(is_commit) && whole {
            return self.take_cached(id, cached, "", progress);
        }
        let listing = match self.listing(&cache, id, cached.is_ok(), progress) {
            Err(HubError::Unreachable { url, reason }) if cached.is_ok() => {
                progress.note(&format!("cannot reach {url} ({reason}): taking {id} from the cache as it is"));
                return self.take_cached(id, cached, "", progress);
            }
            listing => listing?,
        };
        self.fetch_listed(&cache, id, &listing, progress)
    }

    fn take_cached(
        &self,
        id: &HubId,
        cached: Result<Cached, Missing>,
        advice: &str,
        progress: &mut dyn Progress,
    ) -> Result<PathBuf> {
        let cached = match cached {
            Ok(cached) => cached,
            Err(Missing::File(missing)) => {
                return Err(HubError::NotCached { id: id.to_string(), missing, advice: advice.into() });
            }
            Err(Missing::Choice(error)) => return Err(error),
        };
        // With a network, a repository with more files might leave the choice to the user.
        if let (Choice::Gguf(set), None) = (&cached.choice, id.quant()) {
            progress.note(&format!("{id}: taking {}, the only GGUF model in the cache", set.handle()));
        }
        Ok(cached.path)
    }

    /// The repository's files at the revision. With `impatient`, an unreachable Hub is not retried.
    fn listing(&self, cache: &RepoCache, id: &HubId, impatient: bool, progress: &mut dyn Progress) -> Result<Listing> {
        const LARGEST: u64 = 64 << 20;
        let url = format!("{}/api/{}?blobs=true", self.client.endpoint(), cache.repo().api_url());
        let body = self.client.attempts().run(progress, || {
            match self.client.fetch(&url, LARGEST, Subject { id, file: None }) {
                Err(FetchError::Transient { error: error @ HubError::Unreachable { .. }, .. }) if impatient => {
                    Err(error.into())
                }
                body => body,
            }
        })?;
        let listing: Listing = serde_json::from_slice(&body).map_err(|error| {
            invalid_response(&url, "answer", "a listing with `sha` and `siblings`", &error.to_string())
        })?;
        if !is_commit(&listing.sha) {
            return Err(invalid_response(&url, "sha", "a commit of 40 hexadecimal digits", &listing.sha));
        }
        if let Some(commit) = id.revision().filter(|revision| is_commit(revision) && *revision != listing.sha) {
            return Err(invalid_response(
                &url,
                "sha",
                &format!("the commit that was asked for, {commit}"),
                &listing.sha,
            ));
        }
        Ok(listing)
    }

    /// The id with the quantization that is taken where none was asked for, which `progress` is told of.
    fn default_quant(
        &self,
        cache: &RepoCache,
        id: &HubId,
        listing: &Listing,
        progress: &mut dyn Progress,
    ) -> Option<HubId> {
        let sets = GgufSet::all(&listing.files());
        let size = |file: &String| listing.siblings.iter().find(|sibling| sibling.rfilename == *file)?.size;
        let is_cached = |set: &GgufSet| set.files.iter().all(|file| cache.find(&listing.sha, file).is_some());
        let candidates: Vec<Candidate<'_>> = sets
            .iter()
            .filter_map(|set| {
                let bytes = set.files.iter().map(size).sum::<Option<u64>>()?;
                Some(Candidate { set, bytes, is_cached: is_cached(set) })
            })
            .collect();
        let chosen = default_quant::choose(&candidates, self.settings.memory?)?;
        let handle = chosen.set.handle();
        let others: Vec<&str> =
            candidates.iter().map(|other| other.set.handle()).filter(|other| *other != handle).collect();
        let why = if chosen.is_cached { "which is in the cache" } else { "as none was asked for" };
        progress.note(&format!(
            "{id}: taking {} of {:.1} GB, {why}; there are also {}, as in `{id}:{}`",
            shown(handle),
            chosen.bytes as f64 / 1e9,
            shown(&others.join(", ")),
            shown(others.first()?)
        ));
        with_quant(id, handle)
    }

    fn fetch_listed(
        &self,
        cache: &RepoCache,
        id: &HubId,
        listing: &Listing,
        progress: &mut dyn Progress,
    ) -> Result<PathBuf> {
        let files = listing.files();
        let commit = &listing.sha;
        let choice = match Choice::new(id, &files) {
            Err(error @ HubError::Quant { .. }) if id.quant().is_none() => {
                let chosen = self.default_quant(cache, id, listing, progress).ok_or(error)?;
                Choice::new(&chosen, &files)?
            }
            choice => choice?,
        };
        let mut bring = |name: &str| match cache.find(commit, name) {
            Some(path) => {
                let size = fs::metadata(&path).map_err(HubError::io("read", &path))?.len();
                progress.started(name, size, size);
                progress.finished(name);
                Ok(path)
            }
            None => {
                RemoteFile { id, commit, name }.fetch(&self.client, cache, progress)?;
                Ok(cache.snapshot(commit).join(name))
            }
        };
        for name in choice.named() {
            bring(name)?;
        }
        if let Some(index) = choice.index() {
            for shard in shards(id, &bring(index)?)? {
                check_listed(id, index, &shard, &files)?;
                bring(&shard)?;
            }
        }
        // Last, so that an offline run never finds an incomplete revision instead of a complete older one.
        cache.set_commit(commit)?;
        Ok(choice.path(cache, commit))
    }
}

/// `id` with a quantization.
fn with_quant(id: &HubId, quant: &str) -> Option<HubId> {
    format!("{id}:{quant}").parse().ok()
}

/// A model that is complete in the cache.
pub(crate) struct Cached {
    choice: Choice,
    pub(crate) path: PathBuf,
}

/// Why the cache cannot provide the model.
pub(crate) enum Missing {
    /// A file is missing.
    File(String),
    /// The cached files do not match the id.
    Choice(HubError),
}

/// Looks for `id` without any request, as if the files of the snapshot were all files of the repository.
pub(crate) fn find_cached(cache: &RepoCache, id: &HubId) -> Result<Cached, Missing> {
    let missing = |path: PathBuf| Missing::File(format!("{} is missing", path.display()));
    let commit = cache.commit().ok_or_else(|| missing(cache.reference()))?;
    let files = cache.files(&commit);
    if files.is_empty() {
        return Err(missing(cache.snapshot(&commit)));
    }
    let choice = Choice::new(id, &files).map_err(|error| match error {
        HubError::NoModel { expected, found, .. } => {
            Missing::File(format!("{}: expected {expected}, found {found}", cache.snapshot(&commit).display()))
        }
        other => Missing::Choice(other),
    })?;
    if let Some(index) = choice.index() {
        let named = shards(id, &cache.snapshot(&commit).join(index)).map_err(Missing::Choice)?;
        if let Some(shard) = named.iter().find(|shard| !files.contains(shard)) {
            return Err(missing(cache.snapshot(&commit).join(shard)));
        }
    }
    let path = choice.path(cache, &commit);
    Ok(Cached { choice, path })
}

/// Fails if the repository does not list a shard.
fn check_listed(id: &HubId, index: &str, shard: &str, files: &[String]) -> Result<()> {
    if files.iter().any(|file| file == shard) {
        return Ok(());
    }
    let (expected, found) = (format!("the shard `{shard}` that `{index}` names"), "no such file".to_owned());
    Err(HubError::NoModel { repo: id.repo().to_owned(), expected, found })
}
