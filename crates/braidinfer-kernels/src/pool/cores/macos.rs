//! Performance levels of macOS, the fastest of which is 0.

/// The cores of the fastest performance level, if there are several levels.
pub(super) fn performance_cores() -> Option<usize> {
    let levels = setting(c"hw.nperflevels")?;
    let cores = setting(c"hw.perflevel0.physicalcpu")?;
    usize::try_from(cores).ok().filter(|cores| levels > 1 && *cores > 0)
}

/// A setting of the system kernel that is an `int`; none if there is no such setting.
fn setting(name: &std::ffi::CStr) -> Option<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut size = size_of_val(&value);
    // SAFETY: the name ends with a zero, at most `size` bytes are written to `value`, and nothing is set.
    let failed = unsafe {
        let value = std::ptr::from_mut(&mut value).cast();
        libc::sysctlbyname(name.as_ptr(), value, &raw mut size, std::ptr::null_mut(), 0)
    };
    (failed == 0 && size == size_of_val(&value)).then_some(value)
}
