//! Settings of the whole process that keep its memory from others. Each is the application's own decision, and none is
//! made by opening a session or by a [`super::Lockdown`], which denies to undo them: make them first.
//!
//! Each one reads back from the kernel what it has set.
#![cfg_attr(target_os = "linux", expect(unsafe_code, reason = "sets limits and flags through system calls"))]

use serde::Serialize;

use super::LockdownError;
use crate::error::{Error, Result};
use crate::memory::heap;

/// What [`forbid_core_dumps`] has achieved.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[must_use = "a handler of core dumps may still be started"]
pub enum CoreDumps {
    /// The kernel writes no core file, and starts no handler for one.
    Forbidden,
    /// The kernel writes no core file. If `core_pattern` names a handler (`|program`), it is started still, and gets the
    /// memory through a pipe; most handlers then store nothing, but that is up to them. [`undumpable`] stops it.
    OnlyFiles,
}

/// The heap for secrets of this process, as [`secret_memory`] found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SecretMemory {
    /// Bytes in use, or kept for use.
    pub bytes: u64,
    /// How many of them are `memfd_secret`: out of the kernel's own map, so that no system call reads them for another
    /// process, whoever asks, and never swapped. All, where the kernel has it and `RLIMIT_MEMLOCK` allows; else 0 or a part.
    pub hidden_bytes: u64,
    /// Bytes that may be swapped out, at the most at once so far.
    pub unlocked_bytes: u64,
}

/// What the system granted the heap where texts and token ids live. Changes nothing.
///
/// ```
/// let secrets = amnesic::privacy::process::secret_memory();
/// assert!(secrets.hidden_bytes <= secrets.bytes);
/// ```
pub fn secret_memory() -> SecretMemory {
    let heap::Status { bytes, secret, unlocked, .. } = heap::status();
    SecretMemory { bytes, hidden_bytes: secret, unlocked_bytes: unlocked }
}

/// Forbids core dumps by `RLIMIT_CORE`, of this process and of those that it starts; irreversible but for root.
///
/// The limit becomes 1, soft and hard, and not 0. A core file is not written under either: it takes a page at least.
/// But where `core_pattern` pipes it to a handler, the kernel does not look at the limit at all, except for the value 1,
/// with which it starts none. If the hard limit is 0 already it stays, for it cannot be raised.
///
/// A handler behind a socket (`core_pattern` with `@`, since Linux 6.16) is not covered: see [`undumpable`].
///
/// # Errors
///
/// [`Error::Lockdown`] if the system refuses, and on other systems than Linux.
pub fn forbid_core_dumps() -> Result<CoreDumps> {
    #[cfg(target_os = "linux")]
    return linux::forbid_core_dumps().map_err(Error::Lockdown);
    #[cfg(not(target_os = "linux"))]
    Err(Error::Lockdown(LockdownError::NotSupported))
}

/// Makes the process undumpable (`PR_SET_DUMPABLE` 0): no core dump of it in any way, whatever `core_pattern` is, and
/// processes of the same user can neither trace it nor open its `/proc/PID/mem`, `maps`, `environ` and `fd`. Those with
/// `CAP_SYS_PTRACE`, such as root, still can.
///
/// Not inherited by programs that it starts with `exec`. Debuggers and profilers of the same user stop working.
///
/// # Errors
///
/// [`Error::Lockdown`] if the system refuses, and on other systems than Linux.
pub fn undumpable() -> Result<()> {
    #[cfg(target_os = "linux")]
    return linux::undumpable().map_err(Error::Lockdown);
    #[cfg(not(target_os = "linux"))]
    Err(Error::Lockdown(LockdownError::NotSupported))
}

/// Takes the process out of kernel samepage merging, if a parent or a service manager has put it in
/// (`PR_SET_MEMORY_MERGE` 0): equal pages are then not shared with other processes, which could tell from the time of a
/// write that a page was equal. Pages merged so far are separated. Regions that were offered one by one with
/// `madvise(MADV_MERGEABLE)` stay; the library offers none.
///
/// # Errors
///
/// [`Error::Lockdown`] if the system refuses: with `EINVAL` before Linux 6.4 and on kernels without the feature, where no
/// process is in as a whole. And on other systems than Linux.
pub fn opt_out_of_ksm() -> Result<()> {
    #[cfg(target_os = "linux")]
    return linux::opt_out_of_ksm().map_err(Error::Lockdown);
    #[cfg(not(target_os = "linux"))]
    Err(Error::Lockdown(LockdownError::NotSupported))
}

/// Whether the process is undumpable, by [`undumpable`] or for another reason.
pub(super) fn is_undumpable() -> bool {
    #[cfg(target_os = "linux")]
    return linux::is_undumpable();
    #[cfg(not(target_os = "linux"))]
    false
}

#[cfg(target_os = "linux")]
mod linux {
    use super::{CoreDumps, LockdownError};

    const PR_SET_MEMORY_MERGE: libc::c_int = 67;
    const PR_GET_MEMORY_MERGE: libc::c_int = 68;

    pub fn forbid_core_dumps() -> Result<CoreDumps, LockdownError> {
        let wanted = core_limit()?.rlim_max.min(1);
        let limit = libc::rlimit { rlim_cur: wanted, rlim_max: wanted };
        // SAFETY: the kernel reads the structure, which lives until the call returns.
        if unsafe { libc::setrlimit(libc::RLIMIT_CORE, &limit) } != 0 {
            return Err(refused("setrlimit"));
        }
        let kept = core_limit()?;
        match (kept.rlim_cur, kept.rlim_max) {
            (1, 1) => Ok(CoreDumps::Forbidden),
            (0, 0) => Ok(CoreDumps::OnlyFiles),
            _ => Err(LockdownError::NotKept { call: "setrlimit" }),
        }
    }

    pub fn undumpable() -> Result<(), LockdownError> {
        set_to_zero("prctl(PR_SET_DUMPABLE)", libc::PR_SET_DUMPABLE, libc::PR_GET_DUMPABLE)
    }

    pub fn is_undumpable() -> bool {
        flag(libc::PR_GET_DUMPABLE) == 0
    }

    pub fn opt_out_of_ksm() -> Result<(), LockdownError> {
        set_to_zero("prctl(PR_SET_MEMORY_MERGE)", PR_SET_MEMORY_MERGE, PR_GET_MEMORY_MERGE)
    }

    fn core_limit() -> Result<libc::rlimit, LockdownError> {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the kernel writes the structure, which lives until the call returns.
        match unsafe { libc::getrlimit(libc::RLIMIT_CORE, &mut limit) } {
            0 => Ok(limit),
            _ => Err(refused("getrlimit")),
        }
    }

    fn set_to_zero(call: &'static str, set: libc::c_int, get: libc::c_int) -> Result<(), LockdownError> {
        if flag(set) != 0 {
            return Err(refused(call));
        }
        match flag(get) {
            0 => Ok(()),
            1.. => Err(LockdownError::NotKept { call }),
            _ => Err(refused(call)),
        }
    }

    /// A `prctl` that takes no argument but zeros.
    fn flag(option: libc::c_int) -> libc::c_int {
        // SAFETY: takes numbers only, each as wide as the kernel reads it.
        unsafe { libc::prctl(option, 0_u64, 0_u64, 0_u64, 0_u64) }
    }

    fn refused(call: &'static str) -> LockdownError {
        LockdownError::Refused { call, source: std::io::Error::last_os_error() }
    }
}
