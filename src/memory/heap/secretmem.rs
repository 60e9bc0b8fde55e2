//! Memory that the kernel itself cannot reach: `memfd_secret`, from Linux 5.14 on.
//!
//! Its pages are taken out of the kernel's map of all memory. No system call that looks into another process reads them,
//! `/proc/PID/mem` and ptrace among those, whoever asks; they are never swapped, and no core dump has them. The kernel
//! needs `CONFIG_SECRETMEM`, and before 6.5 `secretmem.enable` on its command line, and counts the pages against
//! `RLIMIT_MEMLOCK`. While there is any, a machine does not hibernate.
//!
//! Such a mapping is shared by its nature: `MADV_WIPEONFORK` is refused, and without more a forked child would read *and
//! write* its parent's pages. So a child gets none of them (`MADV_DONTFORK`), and `pages.rs` puts zeros of the child's own in
//! their place.
#![cfg_attr(target_os = "linux", expect(unsafe_code, reason = "maps memory"))]

use std::sync::atomic::{AtomicBool, Ordering};

/// Set when the kernel says that it has no such memory, or a test wants none: nobody asks again.
static MISSING: AtomicBool = AtomicBool::new(false);

/// Whether the kernel has such memory, as far as is known. True before anybody asked.
pub fn is_known_missing() -> bool {
    MISSING.load(Ordering::Relaxed)
}

/// From now on this process behaves as on a kernel without it.
#[cfg(any(test, feature = "testing"))]
pub fn do_without() {
    MISSING.store(true, Ordering::Relaxed);
}

/// The number of the system call: the same on all architectures that have it.
#[cfg(target_os = "linux")]
const MEMFD_SECRET: libc::c_long = 447;

/// Puts pages of zeros at `start`, in the place of what is mapped there; false, and all is as it was, where the kernel has no
/// such memory or none to spare (`RLIMIT_MEMLOCK`, descriptors).
///
/// # Safety
/// `start..start + bytes` are whole pages of the caller's own mapping, which nobody reads or writes.
#[cfg(target_os = "linux")]
pub unsafe fn map_over(start: *mut u8, bytes: usize) -> bool {
    if is_known_missing() {
        return false;
    }
    // SAFETY: a new descriptor that is closed below; a new mapping of it at an address of the kernel's choice, which is
    // moved to where the caller wants it. Mapped there at once, a refusal could leave a hole between the caller's pages.
    unsafe {
        let Ok(descriptor) = libc::c_int::try_from(libc::syscall(MEMFD_SECRET, libc::O_CLOEXEC)) else {
            return false;
        };
        if descriptor < 0 {
            let error = std::io::Error::last_os_error().raw_os_error(); // allocates nothing
            let gone = matches!(error, Some(libc::ENOSYS | libc::EPERM | libc::EACCES));
            MISSING.fetch_or(gone, Ordering::Relaxed);
            return false;
        }
        let mapped = mapped(descriptor, bytes);
        libc::close(descriptor); // the mapping keeps the pages; an open descriptor could be somebody else's tomorrow
        let Some(pages) = mapped else { return false };
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let moved = libc::mremap(pages, bytes, bytes, flags, start.cast::<libc::c_void>());
        if moved == libc::MAP_FAILED {
            libc::munmap(pages, bytes);
        }
        moved != libc::MAP_FAILED
    }
}

/// A mapping of a new descriptor, which no forked child will have.
#[cfg(target_os = "linux")]
fn mapped(descriptor: libc::c_int, bytes: usize) -> Option<*mut libc::c_void> {
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the descriptor is the caller's; the mapping is new.
    unsafe {
        if libc::ftruncate(descriptor, libc::off_t::try_from(bytes).ok()?) != 0 {
            return None;
        }
        let pages = libc::mmap(std::ptr::null_mut(), bytes, rights, libc::MAP_SHARED, descriptor, 0);
        if pages == libc::MAP_FAILED {
            return None;
        }
        if libc::madvise(pages, bytes, libc::MADV_DONTFORK) != 0 {
            libc::munmap(pages, bytes);
            return None;
        }
        Some(pages)
    }
}
