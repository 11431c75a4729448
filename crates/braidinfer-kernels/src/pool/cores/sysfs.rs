//! Kinds of cores as Linux lists them under `/sys/devices`.

use std::fs;
use std::path::Path;

/// More processors than Linux can be built for.
const MOST_PROCESSORS: usize = 1 << 16;

/// The fast cores among those that the affinity of this thread allows.
pub(super) fn performance_cores() -> Option<usize> {
    let status = fs::read_to_string("/proc/thread-self/status").ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    fast_cores(Path::new("/sys/devices"), &processors(allowed)?)
}

/// The fast cores among `allowed` processors, or nothing if they are all of one kind, or if files are missing or wrong.
/// Processors that share a core are counted once.
fn fast_cores(devices: &Path, allowed: &[usize]) -> Option<usize> {
    let fast = named_fast(devices, allowed).or_else(|| fast_by_capacity(devices, allowed))?;
    let mut cores: Vec<String> = fast.iter().map(|processor| core(devices, *processor)).collect();
    cores.sort_unstable();
    cores.dedup();
    Some(cores.len())
}

/// The performance cores of hybrid x86.
fn named_fast(devices: &Path, allowed: &[usize]) -> Option<Vec<usize>> {
    let mut fast = processors(&fs::read_to_string(devices.join("cpu_core/cpus")).ok()?)?;
    fast.retain(|processor| allowed.contains(processor));
    (!fast.is_empty()).then_some(fast)
}

/// Those with at least half of the largest capacity. Processors that are off have no capacity.
fn fast_by_capacity(devices: &Path, allowed: &[usize]) -> Option<Vec<usize>> {
    let mut capacities = Vec::new();
    for processor in allowed {
        if let Ok(text) = fs::read_to_string(devices.join(format!("system/cpu/cpu{processor}/cpu_capacity"))) {
            capacities.push((*processor, text.trim().parse::<u32>().ok()?));
        }
    }
    let (_, largest) = *capacities.iter().max_by_key(|(_, capacity)| capacity)?;
    if capacities.iter().all(|(_, capacity)| *capacity == largest) {
        return None;
    }
    let is_fast = |capacity: u32| capacity >= largest.div_ceil(2);
    Some(capacities.into_iter().filter(|(_, capacity)| is_fast(*capacity)).map(|(processor, _)| processor).collect())
}

/// Names the core of a processor by all processors that share it; without such a list it has a core of its own.
fn core(devices: &Path, processor: usize) -> String {
    let topology = devices.join(format!("system/cpu/cpu{processor}/topology"));
    let list = ["core_cpus_list", "thread_siblings_list"].map(|name| fs::read_to_string(topology.join(name)));
    let list = list.into_iter().flatten().next().filter(|list| !list.trim().is_empty());
    list.map_or_else(|| processor.to_string(), |list| list.trim().to_owned())
}

/// Reads a list of processors, such as `0-3,8`.
fn processors(list: &str) -> Option<Vec<usize>> {
    let mut processors = Vec::new();
    for range in list.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.trim().parse::<usize>().ok()?, last.trim().parse::<usize>().ok()?);
        if first > last || last >= MOST_PROCESSORS {
            return None;
        }
        processors.extend(first..=last);
    }
    processors.sort_unstable();
    processors.dedup();
    Some(processors)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A folder with files, which is removed with the value.
    struct Devices(PathBuf);

    impl Devices {
        fn new(name: &str, files: &[(String, &str)]) -> Self {
            let folder = std::env::temp_dir().join(format!("braidinfer-cores-{}-{name}", std::process::id()));
            fs::create_dir(&folder).unwrap();
            let devices = Self(folder);
            for (path, text) in files {
                let path = devices.0.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            devices
        }

        /// Processors with these capacities.
        fn with_capacities(name: &str, capacities: &[&'static str]) -> Self {
            let file = |processor: usize| format!("system/cpu/cpu{processor}/cpu_capacity");
            let files: Vec<_> =
                capacities.iter().enumerate().map(|(processor, text)| (file(processor), *text)).collect();
            Self::new(name, &files)
        }
    }

    impl Drop for Devices {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn all(count: usize) -> Vec<usize> {
        (0..count).collect()
    }

    #[test]
    fn fast_cores_have_at_least_half_of_the_largest_capacity() {
        let cases: [(&str, &[&str], Option<usize>); 8] = [
            ("two-kinds", &["446\n", "446\n", "446\n", "446\n", "1024\n", "1024\n"], Some(2)),
            // One large, three middle and four small cores.
            ("three-kinds", &["280", "280", "280", "280", "780", "780", "780", "1024"], Some(4)),
            ("slow-middle", &["250", "500", "500", "1024"], Some(1)),
            ("exactly-half", &["511", "512", "1024"], Some(2)),
            ("odd", &["511", "510", "1021"], Some(2)),
            ("one-kind", &["1024", "1024"], None),
            ("wrong", &["446", "fast", "1024"], None),
            ("none", &[], None),
        ];
        for (name, capacities, expected) in cases {
            let devices = Devices::with_capacities(name, capacities);
            assert_eq!(fast_cores(&devices.0, &all(capacities.len())), expected, "{name}");
        }
        assert_eq!(fast_cores(Path::new("/does/not/exist"), &all(4)), None);
    }

    #[test]
    fn only_allowed_processors_count() {
        let devices = Devices::with_capacities("allowed", &["300", "300", "700", "700", "1024", "1024"]);
        assert_eq!(fast_cores(&devices.0, &[0, 1, 4]), Some(1));
        assert_eq!(fast_cores(&devices.0, &[0, 2, 3]), Some(2));
        assert_eq!(fast_cores(&devices.0, &[0, 1]), None);
        assert_eq!(fast_cores(&devices.0, &[]), None);
        // Processors that are off.
        assert_eq!(fast_cores(&devices.0, &[0, 1, 4, 6, 7]), Some(1));
    }

    #[test]
    fn performance_cores_of_hybrid_x86_are_counted_once() {
        let mut files = vec![("cpu_core/cpus".to_owned(), "0-3\n"), ("cpu_atom/cpus".to_owned(), "4-7\n")];
        for processor in 0..4 {
            let path = format!("system/cpu/cpu{processor}/topology/core_cpus_list");
            files.push((path, if processor < 2 { "0-1\n" } else { "2-3\n" }));
        }
        let devices = Devices::new("hybrid", &files);
        assert_eq!(fast_cores(&devices.0, &all(8)), Some(2));
        assert_eq!(fast_cores(&devices.0, &[1, 2, 3, 4]), Some(2));
        assert_eq!(fast_cores(&devices.0, &[0, 1]), Some(1));
        assert_eq!(fast_cores(&devices.0, &[4, 5, 6, 7]), None);
        // Without a list of processors that share a core, each has its own.
        let devices = Devices::new("no-topology", &files[..2]);
        assert_eq!(fast_cores(&devices.0, &all(8)), Some(4));
        let devices = Devices::new("wrong-list", &[("cpu_core/cpus".to_owned(), "0-x")]);
        assert_eq!(fast_cores(&devices.0, &all(8)), None);
    }

    #[test]
    fn lists_of_processors_are_read() {
        assert_eq!(processors("\t0-3,8,10-11\n"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(processors("5"), Some(vec![5]));
        assert_eq!(processors("1,0-2"), Some(vec![0, 1, 2]));
        assert_eq!(processors(""), Some(vec![]));
        for wrong in ["x", "3-1", "-1", "1-", "0-99999999999", "0-18446744073709551615", "1 2"] {
            assert_eq!(processors(wrong), None, "{wrong}");
        }
    }
}
