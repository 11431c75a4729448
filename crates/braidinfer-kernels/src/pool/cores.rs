//! How many cores are fast, on machines that have fast and slow ones.

#[cfg(target_os = "macos")]
#[allow(unsafe_code, reason = "the home of `unsafe`: a setting of the system kernel")]
mod macos;
#[cfg(target_os = "linux")]
mod sysfs;

/// The fast cores that this process may use, if there are slow ones in the machine.
///
/// Linux lists them: on hybrid x86 the performance cores by name, elsewhere (ARM) a capacity for each processor. Those with at
/// least half of the largest capacity are fast. A phase of a step ends when its last piece has ended. Threads take pieces as
/// they become free, so a core of half the speed adds half a core, and delays the end of a phase by one piece more than a
/// fast one would; a core of a quarter of the speed, which is what the smallest cores of phones have, adds less and delays it by
/// three. On macOS they are the cores of the first performance level.
pub(super) fn performance_cores() -> Option<usize> {
    #[cfg(target_os = "linux")]
    return sysfs::performance_cores();
    #[cfg(target_os = "macos")]
    return macos::performance_cores();
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    None
}
