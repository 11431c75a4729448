//! Downloading one file: its metadata from the Hub, and its bytes to a blob.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use crate::cache::{RepoCache, create_parent};
use crate::checksum::Checksum;
use crate::error::shown;
use crate::http::{
    Attempts, Client, FetchError, HttpResponse, Method, Subject, connection_failed, escaped, invalid_response,
};
use crate::{HubError, HubId, Progress, Result};

const BUFFER: usize = 1 << 18;

/// A file of a repository at a commit.
#[derive(Clone, Copy)]
pub(crate) struct RemoteFile<'a> {
    pub id: &'a HubId,
    pub commit: &'a str,
    pub name: &'a str,
}

/// The Hub's metadata of a file.
struct Metadata {
    url: String,
    etag: String,
    size: u64,
}

impl<'a> RemoteFile<'a> {
    /// Downloads the file's blob, if it is missing, and links it into the snapshot.
    pub fn fetch(self, client: &Client, cache: &RepoCache, progress: &mut dyn Progress) -> Result<()> {
        let metadata = client.attempts().run(progress, || self.metadata(client, cache))?;
        let lock = cache.lock(&metadata.etag, self.name, progress)?;
        let blob = cache.blob(&metadata.etag);
        create_parent(&blob)?;
        if self.has_blob(&blob, metadata.size, progress)? {
            progress.started(self.name, metadata.size, metadata.size);
        } else {
            let incomplete = cache.incomplete(&metadata.etag, &lock);
            self.download(client, &metadata, &incomplete, progress)?;
            fs::rename(&incomplete, &blob).map_err(HubError::io("rename", &incomplete))?;
        }
        cache.link(&metadata.etag, self.commit, self.name, progress)?;
        progress.finished(self.name);
        Ok(())
    }

    fn subject(self) -> Subject<'a> {
        Subject { id: self.id, file: Some(self.name) }
    }

    fn metadata(self, client: &Client, cache: &RepoCache) -> Result<Metadata, FetchError> {
        let url =
            format!("{}/{}/resolve/{}/{}", client.endpoint(), cache.repo().url(), self.commit, escaped(self.name));
        let response = client.request(Method::Head, &url, self.subject())?;
        let etag = etag(&response)?;
        let size = match size(&response)? {
            Some(size) => size,
            None => self.size_of_download(client, &url)?,
        };
        Ok(Metadata { url, etag, size })
    }

    /// The length that a download response has, for servers that do not send it in response to HEAD.
    fn size_of_download(self, client: &Client, url: &str) -> Result<u64, FetchError> {
        let response = client.request(Method::Get(0), url, self.subject())?;
        let length = number(&response, "content-length", response.header("content-length"))?;
        length.ok_or_else(|| invalid_response(&response.url, "Content-Length", "the length of the file", "none").into())
    }

    /// Whether the blob exists. A blob of the wrong length is from an interrupted program, and will be replaced.
    fn has_blob(self, blob: &Path, size: u64, progress: &mut dyn Progress) -> Result<bool> {
        match fs::metadata(blob) {
            Ok(found) if found.len() == size => Ok(true),
            Ok(found) => {
                let text = format!("{}: {} of {size} bytes in the cache; fetching it again", self.name, found.len());
                progress.note(&text);
                Ok(false)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(HubError::io("read", blob)(error)),
        }
    }

    fn download(self, client: &Client, metadata: &Metadata, path: &Path, progress: &mut dyn Progress) -> Result<()> {
        let mut download = Download::open(self, metadata, path, progress)?;
        let inherited = download.position > 0;
        download.receive(client, progress)?;
        if inherited && download.verify().is_err() {
            progress.note(&format!("{}: the part that was here is damaged; beginning again", self.name));
            download.restart()?;
            download.receive(client, progress)?;
        }
        download.verify().inspect_err(|_| drop(fs::remove_file(path)))?;
        if matches!(download.checksum, Checksum::Unknown) {
            let text = format!("{}: the server sends no checksum; only the length was checked", self.name);
            progress.note(&text);
        }
        // The data must be on disk before the blob gets its name.
        download.file.sync_all().map_err(|error| download.write_error(error))
    }
}

/// A download into an `.incomplete` file.
struct Download<'a> {
    remote: RemoteFile<'a>,
    metadata: &'a Metadata,
    path: &'a Path,
    file: File,
    /// Checksum of the first `position` bytes, which are in the file.
    checksum: Checksum,
    position: u64,
}

impl<'a> Download<'a> {
    /// Opens the file, and resumes after the bytes that it already has.
    fn open(
        remote: RemoteFile<'a>,
        metadata: &'a Metadata,
        path: &'a Path,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(HubError::io("open", path))?;
        let checksum = Checksum::new(&metadata.etag, metadata.size);
        let mut download = Self { remote, metadata, path, file, checksum, position: 0 };
        let present = download.file.metadata().map_err(HubError::io("read", path))?.len();
        if present > metadata.size {
            progress.note(&format!("{}: more is here than belongs to the file; beginning again", remote.name));
            download.restart()?;
        } else if present > 0 {
            progress.note(&format!("{}: going on after {present} bytes that are here", remote.name));
            download.take_up(present)?;
        }
        progress.started(remote.name, metadata.size, download.position);
        Ok(download)
    }

    fn take_up(&mut self, present: u64) -> Result<()> {
        let mut buffer = vec![0; BUFFER];
        while self.position < present {
            let wanted = buffer.len().min(usize::try_from(present - self.position).unwrap_or(usize::MAX));
            let read = self.file.read(&mut buffer[..wanted]).map_err(HubError::io("read", self.path))?;
            if read == 0 {
                break;
            }
            self.checksum.update(&buffer[..read]);
            self.position += read as u64;
        }
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).and_then(|()| self.file.rewind()).map_err(HubError::io("empty", self.path))?;
        self.checksum = Checksum::new(&self.metadata.etag, self.metadata.size);
        self.position = 0;
        Ok(())
    }

    /// Downloads all missing bytes, with as many requests as needed.
    fn receive(&mut self, client: &Client, progress: &mut dyn Progress) -> Result<()> {
        let mut attempts: Attempts = client.attempts();
        let mut furthest = self.position;
        while self.position < self.metadata.size {
            let failure = match self.receive_some(client, progress) {
                Ok(()) => continue,
                Err(failure) => failure,
            };
            // Compared with the furthest position, because a server that restarts each time makes no progress.
            if self.position > furthest {
                furthest = self.position;
                attempts.reset();
            }
            attempts.after(failure, progress).map_err(|error| self.broken_off(error))?;
        }
        Ok(())
    }

    /// Sends one request. Success means that the file is complete.
    fn receive_some(&mut self, client: &Client, progress: &mut dyn Progress) -> Result<(), FetchError> {
        let response = client.request(Method::Get(self.position), &self.metadata.url, self.remote.subject())?;
        match response.status() {
            206 if self.position > 0 => self.check_range(&response)?,
            416 => return Err(self.wrong_range(&response, "status", "206", "416")),
            _ if self.position > 0 => {
                progress.note(&format!("{}: the server cannot go on in the middle; beginning again", self.remote.name));
                self.restart()?;
                progress.advanced(0);
            }
            _ => {}
        }
        self.check_length(&response)?;
        self.copy(response, progress)
    }

    /// Checks that `Content-Range: bytes 100-199/200` continues the bytes on disk.
    fn check_range(&mut self, response: &HttpResponse) -> Result<(), FetchError> {
        let range = response.header("content-range").unwrap_or("none");
        let expected = format!("bytes {}-{}/{}", self.position, self.metadata.size - 1, self.metadata.size);
        match range.strip_suffix('*') {
            _ if range == expected => Ok(()),
            Some(known) if expected.starts_with(known) => Ok(()),
            _ => Err(self.wrong_range(response, "Content-Range", &expected, range)),
        }
    }

    /// The server's range does not continue the bytes on disk. The next attempt downloads everything.
    fn wrong_range(&mut self, response: &HttpResponse, field: &str, expected: &str, found: &str) -> FetchError {
        match self.restart() {
            Ok(()) => FetchError::transient(invalid_response(&response.url, field, expected, found)),
            Err(error) => error.into(),
        }
    }

    /// Checks that a `Content-Length` is that of the missing bytes. Interrupted connections are detected elsewhere.
    fn check_length(&self, response: &HttpResponse) -> Result<()> {
        let length = number(response, "content-length", response.header("content-length"))?;
        match length.filter(|length| *length != self.metadata.size - self.position) {
            Some(length) => Err(self.wrong_size(format!("{} announced", length.saturating_add(self.position)))),
            None => Ok(()),
        }
    }

    fn copy(&mut self, response: HttpResponse, progress: &mut dyn Progress) -> Result<(), FetchError> {
        let mut body = response.inner.into_body().into_reader();
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = match body.read(&mut buffer) {
                Ok(0) if self.position == self.metadata.size => return Ok(()),
                Ok(0) => {
                    return Err(FetchError::transient(connection_failed(&response.url, &"the connection was closed")));
                }
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // All bytes have arrived, so an error at the end of the connection does not matter.
                Err(_) if self.position == self.metadata.size => return Ok(()),
                Err(error) => return Err(FetchError::transient(connection_failed(&response.url, &error))),
            };
            if read as u64 > self.metadata.size - self.position {
                let _ = fs::remove_file(self.path);
                return Err(self.wrong_size("more".into()).into());
            }
            self.file.write_all(&buffer[..read]).map_err(|error| self.write_error(error))?;
            self.checksum.update(&buffer[..read]);
            self.position += read as u64;
            progress.advanced(self.position);
        }
    }

    /// Compares the checksum of the whole file.
    fn verify(&self) -> Result<()> {
        let algorithm = self.checksum.algorithm();
        match self.checksum.clone().finish().filter(|found| !found.eq_ignore_ascii_case(&self.metadata.etag)) {
            None => Ok(()),
            Some(found) => {
                let (file, expected) = (self.remote.subject_name(), self.metadata.etag.clone());
                Err(HubError::Checksum { file, algorithm, expected, found })
            }
        }
    }

    fn wrong_size(&self, found: String) -> HubError {
        HubError::Size { file: self.remote.subject_name(), expected: self.metadata.size, found }
    }

    /// The error for a failed write. The bytes on disk stay for the next run.
    fn write_error(&self, source: io::Error) -> HubError {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::FileTooLarge];
        if !full.contains(&source.kind()) {
            return HubError::io("write", self.path)(source);
        }
        // Part of the last write may have succeeded.
        let present = self.file.metadata().map_or(self.position, |metadata| metadata.len());
        let missing = self.metadata.size.saturating_sub(present);
        HubError::DiskFull { path: self.path.display().to_string(), file: self.remote.name.into(), missing, source }
    }

    /// Adds the state of the download to the last error.
    fn broken_off(&self, error: HubError) -> HubError {
        let HubError::Unreachable { reason, .. } = error else { return error };
        let advice =
            if self.position > 0 { "Run again: it goes on from there" } else { "Check the network, and run again" };
        HubError::BrokenOff {
            file: self.remote.subject_name(),
            got: self.position,
            size: self.metadata.size,
            reason,
            advice: advice.into(),
        }
    }
}

impl RemoteFile<'_> {
    fn subject_name(self) -> String {
        format!("{}/{}", self.id.repo(), shown(self.name))
    }
}

/// The entity tag, checked to be a safe file name.
fn etag(response: &HttpResponse) -> Result<String> {
    const LONGEST: usize = 128;
    let header = response.last_header("x-linked-etag").or_else(|| response.header("etag"));
    let header =
        header.ok_or_else(|| invalid_response(&response.url, "ETag", "one that identifies the file", "none"))?;
    let etag = header.strip_prefix("W/").unwrap_or(header).trim_matches('"');
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if etag.is_empty() || etag.len() > LONGEST || etag.starts_with('.') || !etag.bytes().all(plain) {
        return Err(invalid_response(&response.url, "ETag", "up to 128 letters, digits and any of -_.", header));
    }
    Ok(etag.to_owned())
}

/// The length of the file. The length of a redirect's own body is ignored.
fn size(response: &HttpResponse) -> Result<Option<u64>> {
    let linked = response.last_header("x-linked-size");
    let own = response.header("content-length").filter(|_| response.status() == 200);
    number(response, "X-Linked-Size or Content-Length", linked.or(own))
}

fn number(response: &HttpResponse, field: &str, text: Option<&str>) -> Result<Option<u64>> {
    let Some(text) = text else { return Ok(None) };
    text.trim().parse().map(Some).map_err(|_| invalid_response(&response.url, field, "a number of bytes", text))
}
