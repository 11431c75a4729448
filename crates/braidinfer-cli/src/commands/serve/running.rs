//! Which servers run on this machine, as they note it themselves.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process;

use braidinfer::default_server_folder;
use serde::{Deserialize, Serialize};

use crate::{output, temporary_file};

/// Longest note.
const MOST_BYTES: u64 = 4096;

/// A server that runs, or has run and could not say that it ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RunningServer {
    /// Where this machine reaches it.
    pub url: String,
    /// Its process.
    pub pid: u32,
}

/// A note about a server, which is removed at its end.
pub struct Note(PathBuf);

impl Drop for Note {
    fn drop(&mut self) {
        // What stays is found to be nothing by who looks for the server.
        let _ = fs::remove_file(&self.0);
    }
}

impl RunningServer {
    /// Notes that this process serves at an address, as long as the note is kept.
    pub fn note(scheme: &str, address: SocketAddr) -> Option<Note> {
        let folder = default_server_folder()?;
        let server = Self { url: format!("{scheme}://{}", reachable(address)), pid: process::id() };
        let path = folder.join(format!("{}-{}.json", server.pid, address.port()));
        let written = server.write(&folder, &path);
        if let Err(error) = &written {
            output::note(format!("`braidinfer ps` will not show this server: {}: {error}", path.display()));
        }
        written.ok().map(|()| Note(path))
    }

    fn write(&self, folder: &Path, path: &Path) -> std::io::Result<()> {
        fs::create_dir_all(folder)?;
        let mut file = temporary_file::beside(path)?;
        file.write_all(serde_json::to_string(self)?.as_bytes())?;
        file.persist(path)?;
        Ok(())
    }

    /// All of them, with the paths of their notes. What cannot be read is left out.
    pub fn all() -> Vec<(PathBuf, Self)> {
        let Some(entries) = default_server_folder().and_then(|folder| fs::read_dir(folder).ok()) else {
            return Vec::new();
        };
        let paths = entries.flatten().map(|entry| entry.path());
        let notes = paths.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        let mut servers: Vec<(PathBuf, Self)> = notes.filter_map(|path| Some((path.clone(), read(&path)?))).collect();
        servers.sort_by(|(_, a), (_, b)| a.cmp(b));
        servers
    }
}

fn read(path: &Path) -> Option<RunningServer> {
    let mut text = String::new();
    fs::File::open(path).ok()?.take(MOST_BYTES).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

/// An address that means all addresses, as this machine reaches it.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
