//! One file: what the Hub says about it, and its bytes into a blob.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use crate::cache::{RepoCache, create_parent};
use crate::checksum::Checksum;
use crate::error::shown;
use crate::http::{Answer, Attempts, Client, Fault, Method, Subject, escaped, no_answer, wrong};
use crate::{HubError, HubId, Progress, Result};

const BUFFER: usize = 1 << 18;

/// A file of a repository at a commit.
#[derive(Clone, Copy)]
pub(crate) struct RemoteFile<'a> {
    pub id: &'a HubId,
    pub commit: &'a str,
    pub name: &'a str,
}

/// What the Hub says about a file.
struct Metadata {
    url: String,
    etag: String,
    size: u64,
}

impl<'a> RemoteFile<'a> {
    /// Brings the file into the cache: its blob if that is missing, and its name in the snapshot.
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

    fn metadata(self, client: &Client, cache: &RepoCache) -> Result<Metadata, Fault> {
        let url =
            format!("{}/{}/resolve/{}/{}", client.endpoint(), cache.repo().url(), self.commit, escaped(self.name));
        let answer = client.ask(Method::Head, &url, self.subject())?;
        let etag = etag(&answer)?;
        let size = match size(&answer)? {
            Some(size) => size,
            None => self.size_of_download(client, &url)?,
        };
        Ok(Metadata { url, etag, size })
    }

    /// The length that a download announces, for servers that do not tell it before.
    fn size_of_download(self, client: &Client, url: &str) -> Result<u64, Fault> {
        let answer = client.ask(Method::Get(0), url, self.subject())?;
        let length = number(&answer, "content-length", answer.header("content-length"))?;
        length.ok_or_else(|| wrong(&answer.url, "Content-Length", "the length of the file", "none").into())
    }

    /// Whether the blob is there. One of the wrong length came from something that broke off; a whole one will take its
    /// place.
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
        // The blob's name must not outlive its bytes.
        download.file.sync_all().map_err(|error| download.write_error(error))
    }
}

/// A download into an `.incomplete` file.
struct Download<'a> {
    remote: RemoteFile<'a>,
    metadata: &'a Metadata,
    path: &'a Path,
    file: File,
    /// Of the first `position` bytes, which are in the file.
    checksum: Checksum,
    position: u64,
}

impl<'a> Download<'a> {
    /// Opens the file and takes up what is in it.
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

    /// Gets all bytes that are missing, with as many requests as it takes.
    fn receive(&mut self, client: &Client, progress: &mut dyn Progress) -> Result<()> {
        let mut attempts: Attempts = client.attempts();
        let mut furthest = self.position;
        while self.position < self.metadata.size {
            let fault = match self.receive_some(client, progress) {
                Ok(()) => continue,
                Err(fault) => fault,
            };
            // A server that begins anew each time gets nowhere, however much it sends.
            if self.position > furthest {
                furthest = self.position;
                attempts.reset();
            }
            attempts.after(fault, progress).map_err(|error| self.broken_off(error))?;
        }
        Ok(())
    }

    /// One request. Success means that the file is whole.
    fn receive_some(&mut self, client: &Client, progress: &mut dyn Progress) -> Result<(), Fault> {
        let answer = client.ask(Method::Get(self.position), &self.metadata.url, self.remote.subject())?;
        match answer.status() {
            206 if self.position > 0 => self.check_range(&answer)?,
            416 => return Err(self.wrong_range(&answer, "status", "206", "416")),
            _ if self.position > 0 => {
                progress.note(&format!("{}: the server cannot go on in the middle; beginning again", self.remote.name));
                self.restart()?;
                progress.advanced(0);
            }
            _ => {}
        }
        self.check_length(&answer)?;
        self.copy(answer, progress)
    }

    /// `Content-Range: bytes 100-199/200` must fit what is here.
    fn check_range(&mut self, answer: &Answer) -> Result<(), Fault> {
        let range = answer.header("content-range").unwrap_or("none");
        let expected = format!("bytes {}-{}/{}", self.position, self.metadata.size - 1, self.metadata.size);
        match range.strip_suffix('*') {
            _ if range == expected => Ok(()),
            Some(known) if expected.starts_with(known) => Ok(()),
            _ => Err(self.wrong_range(answer, "Content-Range", &expected, range)),
        }
    }

    /// The server has something else behind the part that is here. The next try asks for everything.
    fn wrong_range(&mut self, answer: &Answer, field: &str, expected: &str, found: &str) -> Fault {
        match self.restart() {
            Ok(()) => Fault::passing(wrong(&answer.url, field, expected, found)),
            Err(error) => error.into(),
        }
    }

    /// An announced length must be that of the missing bytes. A cut connection is something else.
    fn check_length(&self, answer: &Answer) -> Result<()> {
        let length = number(answer, "content-length", answer.header("content-length"))?;
        match length.filter(|length| *length != self.metadata.size - self.position) {
            Some(length) => Err(self.wrong_size(format!("{} announced", length.saturating_add(self.position)))),
            None => Ok(()),
        }
    }

    fn copy(&mut self, answer: Answer, progress: &mut dyn Progress) -> Result<(), Fault> {
        let mut body = answer.response.into_body().into_reader();
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = match body.read(&mut buffer) {
                Ok(0) if self.position == self.metadata.size => return Ok(()),
                Ok(0) => return Err(Fault::passing(no_answer(&answer.url, &"the connection was closed"))),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // All bytes are here, however the connection ended.
                Err(_) if self.position == self.metadata.size => return Ok(()),
                Err(error) => return Err(Fault::passing(no_answer(&answer.url, &error))),
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

    /// Compares the checksum of all bytes.
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

    /// What a failed write means. The part that is here stays for the next run.
    fn write_error(&self, source: io::Error) -> HubError {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::FileTooLarge];
        if !full.contains(&source.kind()) {
            return HubError::io("write", self.path)(source);
        }
        // The last write may have succeeded in part.
        let present = self.file.metadata().map_or(self.position, |metadata| metadata.len());
        let missing = self.metadata.size.saturating_sub(present);
        HubError::DiskFull { path: self.path.display().to_string(), file: self.remote.name.into(), missing, source }
    }

    /// The last of too many failures, with what there is to know about the download.
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

/// The entity tag, fit for a file name.
fn etag(answer: &Answer) -> Result<String> {
    const LONGEST: usize = 128;
    let header = answer.last_header("x-linked-etag").or_else(|| answer.header("etag"));
    let header = header.ok_or_else(|| wrong(&answer.url, "ETag", "one that identifies the file", "none"))?;
    let etag = header.strip_prefix("W/").unwrap_or(header).trim_matches('"');
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if etag.is_empty() || etag.len() > LONGEST || etag.starts_with('.') || !etag.bytes().all(plain) {
        return Err(wrong(&answer.url, "ETag", "up to 128 letters, digits and any of -_.", header));
    }
    Ok(etag.to_owned())
}

/// The length of the file. That of a redirect's own body says nothing.
fn size(answer: &Answer) -> Result<Option<u64>> {
    let linked = answer.last_header("x-linked-size");
    let own = answer.header("content-length").filter(|_| answer.status() == 200);
    number(answer, "X-Linked-Size or Content-Length", linked.or(own))
}

fn number(answer: &Answer, field: &str, text: Option<&str>) -> Result<Option<u64>> {
    let Some(text) = text else { return Ok(None) };
    text.trim().parse().map(Some).map_err(|_| wrong(&answer.url, field, "a number of bytes", text))
}
