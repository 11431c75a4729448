//! Limits of the process and of its control groups, on Linux.

use std::fs;
use std::path::{Path, PathBuf};

use procfs::ProcessCGroups;
use procfs::process::{LimitValue, Limits, MountInfo, Process, Status};

use super::Room;

/// What each limit that is set leaves to this process. Limits that cannot be read do not count.
pub(super) fn rooms() -> Vec<Room> {
    let Ok(process) = Process::myself() else { return Vec::new() };
    let mut rooms = of_process(&process);
    if let (Ok(groups), Ok(mounts)) = (process.cgroups(), process.mountinfo()) {
        rooms.extend(of_groups(&groups, &mounts.0));
    }
    rooms
}

/// What `ulimit -v` leaves in bytes, if it is set.
pub(super) fn of_addresses() -> Option<usize> {
    let process = Process::myself().ok()?;
    let (limits, status) = (process.limits().ok()?, process.status().ok()?);
    addresses(&limits, &status).map(|room| room.bytes)
}

/// What `ulimit -v` and `ulimit -d` leave.
fn of_process(process: &Process) -> Vec<Room> {
    let (Ok(limits), Ok(status)) = (process.limits(), process.status()) else { return Vec::new() };
    let data = left(limits.max_data_size.soft_limit, status.vmdata, "within the limit of the data size, ulimit -d");
    addresses(&limits, &status).into_iter().chain(data).collect()
}

fn addresses(limits: &Limits, status: &Status) -> Option<Room> {
    left(limits.max_address_space.soft_limit, status.vmsize, "within the limit of the address space, ulimit -v")
}

fn left(limit: LimitValue, kilobytes: Option<u64>, words: &'static str) -> Option<Room> {
    match limit {
        LimitValue::Unlimited => None,
        LimitValue::Value(most) => Some(room(most.saturating_sub(kilobytes.unwrap_or(0).saturating_mul(1024)), words)),
    }
}

fn room(bytes: u64, limit: &'static str) -> Room {
    Room { bytes: usize::try_from(bytes).unwrap_or(usize::MAX), limit }
}

/// The files of a memory controller.
struct Controller {
    limits: &'static [&'static str],
    usage: &'static str,
    /// Entries of `memory.stat` with the page cache of files, which is given up before anything is refused.
    cache: [&'static str; 2],
}

const VERSION_1: Controller = Controller {
    limits: &["memory.limit_in_bytes"],
    usage: "memory.usage_in_bytes",
    cache: ["total_inactive_file", "total_active_file"],
};
const VERSION_2: Controller = Controller {
    limits: &["memory.max", "memory.high"],
    usage: "memory.current",
    cache: ["inactive_file", "active_file"],
};

/// What the control groups of a process leave: those it is in, and the groups around them, whose limits hold as well.
fn of_groups(groups: &ProcessCGroups, mounts: &[MountInfo]) -> Vec<Room> {
    let mut rooms = Vec::new();
    for group in &groups.0 {
        let is_first = group.controllers.iter().any(|name| name == "memory");
        let controller = match (group.hierarchy, is_first) {
            (0, _) => &VERSION_2,
            (_, true) => &VERSION_1,
            _ => continue,
        };
        let holds = |mount: &&MountInfo| match group.hierarchy {
            0 => mount.fs_type == "cgroup2",
            _ => mount.fs_type == "cgroup" && mount.super_options.contains_key("memory"),
        };
        for mount in mounts.iter().filter(holds) {
            rooms.extend(folders(mount, &group.pathname).iter().filter_map(|folder| controller.left(folder)));
        }
    }
    rooms
}

/// The folder of a group and of every group around it, as far as the mount shows them.
fn folders(mount: &MountInfo, group: &str) -> Vec<PathBuf> {
    // In a container the mount often begins at the group itself, or the group is named from a place outside.
    let inside = Path::new(group).strip_prefix(&mount.root).unwrap_or(Path::new(""));
    inside.ancestors().map(|inside| mount.mount_point.join(inside)).collect()
}

impl Controller {
    /// What the group in `folder` leaves, if it has a limit.
    fn left(&self, folder: &Path) -> Option<Room> {
        let number = |file: &str| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
        let limit = self.limits.iter().filter_map(|file| number(file)).min()?;
        let usage = number(self.usage)?;
        let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let entry = |line: &str| {
            let (name, value) = line.split_once(' ')?;
            self.cache.contains(&name).then(|| value.trim().parse::<u64>().ok()).flatten()
        };
        let cache: u64 = stat.lines().filter_map(entry).sum();
        Some(room(limit.saturating_sub(usage.saturating_sub(cache)), "within the limit of the control group"))
    }
}

#[cfg(test)]
mod tests {
    use procfs::FromRead;

    use super::*;

    /// A tree of groups in a folder, with the files of one controller.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder can be made");
        for (path, contents) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder can be made");
            fs::write(path, contents).expect("a file can be written");
        }
        root
    }

    fn left(groups: &str, mount: &str) -> Vec<usize> {
        let groups = ProcessCGroups::from_read(groups.as_bytes()).expect("it is in the kernel's format");
        let mount = MountInfo::from_line(mount).expect("it is in the kernel's format");
        of_groups(&groups, &[mount]).into_iter().map(|room| room.bytes).collect()
    }

    #[test]
    fn the_limit_of_every_group_around_counts() {
        let root = tree(&[
            ("memory.max", "max\n"),
            ("a/memory.max", "1000\n"),
            ("a/memory.current", "700\n"),
            ("a/memory.stat", "anon 1\ninactive_file 100\nactive_file 50\n"),
            ("a/b/memory.max", "max\n"),
            ("a/b/memory.high", "900\n"),
            ("a/b/memory.current", "1\n"),
        ]);
        let at = root.path().display();
        assert_eq!(left("0::/a/b\n", &format!("1 2 0:1 / {at} rw - cgroup2 cgroup2 rw")), [899, 450]);
        // Seen from inside of a container, whose mount begins at its own group.
        assert_eq!(left("0::/a/b\n", &format!("1 2 0:1 /a {at}/a rw - cgroup2 cgroup2 rw")), [899, 450]);
        assert_eq!(left("0::/../elsewhere\n", &format!("1 2 0:1 / {at}/a rw - cgroup2 cgroup2 rw")), [450]);
    }

    #[test]
    fn the_first_version_has_other_files() {
        let root = tree(&[
            ("memory.limit_in_bytes", "9223372036854771712"),
            ("memory.usage_in_bytes", "5000"),
            ("job/memory.limit_in_bytes", "2000"),
            ("job/memory.usage_in_bytes", "3000"),
            ("job/memory.stat", "total_inactive_file 1500\n"),
        ]);
        let mount = format!("1 2 0:1 / {} rw - cgroup cgroup rw,memory", root.path().display());
        let rooms = left("4:memory:/job\n3:cpuset:/\n", &mount);
        assert_eq!((rooms[0], rooms.len()), (500, 2));
        assert_eq!(left("3:cpuset:/\n", &mount), [0; 0]);
    }
}
