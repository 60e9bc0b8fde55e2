//! `Lockdown`: after loading, the process gives up what it no longer needs.
//!
//! Two walls, both in the kernel: Landlock (`linux/files.rs`), which acts on one thread and is therefore carried to
//! every thread by a signal (`linux/threads.rs`), and a filter of system calls (`linux/calls.rs`), which the kernel
//! itself puts on all threads at once.
//!
//! Never lives here: a way back. What is enforced stays until the process ends.

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod linux;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};

use serde::Serialize;

use crate::error::{Error, Result, listed};
pub use crate::error::{LockdownError, Restriction};
use crate::privacy::receipt::environment::LockdownState;

/// Confines the whole process, once the application has loaded and opened what it needs.
///
/// # What is no longer possible afterwards
///
/// - **Files** (Landlock): to open a path that was not open before, but for reading beneath [`Lockdown::allow_read`];
///   to create, write, truncate, remove, rename or link anything; to control devices that were not open.
/// - **System calls** (seccomp; they answer `EPERM`): new sockets, `connect`, `bind`, `listen`, sending to an address,
///   `sendmsg` and `sendmmsg` ([`Lockdown::allow_sendmsg`]), joining groups of multicast, `exec`, ptrace and the like,
///   `io_uring`, namespaces, mounts, keys, kernel modules, `bpf`, `fanotify`, all of System V's shared memory, queues and
///   semaphores, new message queues of POSIX, extended attributes, owners, modes, times and flags of files, the ioctls of
///   file systems and of network configuration, setting clocks and host names, typing into a terminal; to open a path for
///   writing, once more; and to undo what [`super::process`] does. `openat2` and `clone3`, whose flags no filter can see,
///   answer `ENOSYS`, as on a kernel that does not have them: libraries fall back to `openat` and `clone`.
/// - **Other processes** (Landlock): TCP `bind` and `connect`, abstract unix sockets, and signals to processes outside.
///
/// # What is open stays usable
///
/// A lockdown takes away new ways, not those that the application opened itself:
///
/// - a file that is open for writing can be written, extended and cut, also through a shared mapping of it, by `splice`,
///   `sendfile` or `copy_file_range`; a file that is open for reading cannot become one that is written;
/// - a pipe, a terminal, a device or a message queue that is open takes data, and its other end passes them on;
/// - a connected socket sends to its peer (`write`, `send`), a listening one accepts new peers unless
///   [`Lockdown::deny_accept`] is set, and an open unix socket can receive further descriptors from its peer;
/// - a shared mapping, or a `memfd` that another process holds too, shows it what is written there.
///
/// So close before what content must never reach. Not denied either is what every process shows of itself: thread names,
/// its load, its times. What an inference session needs goes on: memory, `memfd_create`, threads, clocks, random numbers.
///
/// # What callers must know
///
/// - It is **irreversible**, and children and later threads inherit it. Processes that run already are not confined.
/// - It reaches **all threads of the process**, whoever started them: each one, but for the caller's, is interrupted by
///   a real-time signal that nobody uses. Calls that no handler restarts (`poll`, `epoll_wait`, `nanosleep`) may return
///   `EINTR` once. The signal's handler is gone when [`Lockdown::enforce`] returns.
/// - `no_new_privs` is set: programs with set-user-id bits would no longer gain rights.
/// - A system call of another architecture (a 32-bit call in a 64-bit process) **ends the process** with `SIGSYS`. If
///   core dumps are possible, that writes one: see [`super::process::forbid_core_dumps`].
/// - Warm up before: whatever reads a file late (time zones, host names, `dlopen`, symbols for a backtrace) finds it
///   closed. Settings of [`super::process`] and [`super::doctor()`] come before too.
///
/// ```no_run
/// use amnesic::privacy::{Lockdown, process};
///
/// # fn main() -> amnesic::Result<()> {
/// let session = amnesic::Session::builder("models/default").open()?;
/// process::undumpable()?;
/// let enforced = Lockdown::new().enforce()?;
/// println!("{enforced}");
/// # drop(session);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "nothing is confined before `enforce`"]
pub struct Lockdown {
    requirement: Requirement,
    readable: Vec<PathBuf>,
    deny_accept: bool,
    allow_sendmsg: bool,
}

/// What to do about a restriction that the kernel cannot enforce.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Requirement {
    /// An error that names it; nothing is enforced then, but for what [`LockdownError::Partial`] says.
    #[default]
    Hard,
    /// The rest is enforced, and [`Enforced::missing`] names it.
    BestEffort,
}

/// What the kernel enforces from now on. Numbers and names of restrictions only.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Enforced {
    /// The kernel's Landlock ABI; 0 if it has none.
    pub landlock_abi: u32,
    /// Whether the filter of system calls is in force, on all threads.
    pub system_calls: bool,
    /// Threads that Landlock confines, the caller's among them.
    pub threads: usize,
    /// Threads that did not answer, because they block every signal: Landlock does not confine these.
    pub threads_unconfined: usize,
    /// Paths beneath which files may still be opened for reading.
    pub readable_paths: usize,
    /// What was asked for and is not enforced; empty unless [`Requirement::BestEffort`] was asked for.
    pub missing: Vec<Restriction>,
}

impl Lockdown {
    /// A lockdown that must be enforced in full, after which no path can be opened.
    pub fn new() -> Self {
        Self::default()
    }

    /// What to do about what the kernel cannot enforce. [`Requirement::Hard`] unless set.
    ///
    /// A full lockdown takes Linux 6.15, or a kernel from 6.12 on that has Landlock's erratum 2 fixed, with Landlock and
    /// seccomp switched on.
    pub fn requirement(mut self, requirement: Requirement) -> Self {
        self.requirement = requirement;
        self
    }

    /// Lets `path`, or what lies beneath it, be opened for reading later on. It must exist when the lockdown is enforced;
    /// a symbolic link is followed then.
    pub fn allow_read(mut self, path: impl AsRef<Path>) -> Self {
        self.readable.push(path.as_ref().to_owned());
        self
    }

    /// Denies `accept` too: no new connections on sockets that listen already.
    pub fn deny_accept(mut self) -> Self {
        self.deny_accept = true;
        self
    }

    /// Leaves `sendmsg` and `sendmmsg` usable, which are denied otherwise: the address that they send to and the
    /// descriptors that they hand over lie in memory where no filter sees them. So with this an open datagram socket can
    /// send to any address, and an open unix socket can hand over whatever is open.
    ///
    /// For applications whose open sockets need these calls: QUIC (`quinn`, `s2n-quic`), logs that go out by datagrams,
    /// Wayland, CUDA's Multi-Process Service. TCP by `std`, `tokio`, `hyper` and `tonic` does not: it writes by `write`,
    /// `writev` and `send`.
    ///
    /// ```no_run
    /// # fn main() -> amnesic::Result<()> {
    /// amnesic::privacy::Lockdown::new().allow_sendmsg().enforce()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn allow_sendmsg(mut self) -> Self {
        self.allow_sendmsg = true;
        self
    }

    /// Confines the process, all of its threads included. Irreversible.
    ///
    /// Everything is tried before anything is enforced: what the kernel has, the paths, and whether every thread answers.
    ///
    /// # Errors
    ///
    /// [`Error::Lockdown`]: see [`LockdownError`], whose variants say whether anything was enforced.
    pub fn enforce(self) -> Result<Enforced> {
        #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
        return remembered(linux::enforce(&self)).map_err(Error::Lockdown);
        #[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
        Err(Error::Lockdown(LockdownError::NotSupported))
    }
}

/// What was enforced in this process so far: a [`LockdownState`] as a number. There is no way back.
static STATE: AtomicU8 = AtomicU8::new(0);

/// Whether this process is locked down by now.
pub(crate) fn state() -> LockdownState {
    match STATE.load(Ordering::SeqCst) {
        0 => LockdownState::None,
        1 => LockdownState::Partial,
        _ => LockdownState::Full,
    }
}

/// Remembers what was enforced, for receipts.
#[cfg_attr(
    not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))),
    expect(dead_code, reason = "nothing can be enforced here")
)]
fn remembered(
    outcome: std::result::Result<Enforced, LockdownError>,
) -> std::result::Result<Enforced, LockdownError> {
    let state = match &outcome {
        Ok(enforced) if enforced.missing.is_empty() => 2,
        Ok(_) | Err(LockdownError::Partial { .. }) => 1,
        Err(_) => 0,
    };
    STATE.fetch_max(state, Ordering::SeqCst);
    outcome
}

impl fmt::Display for Enforced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { landlock_abi, system_calls, threads, threads_unconfined, readable_paths, missing } = self;
        let filter = if *system_calls { "on" } else { "off" };
        write!(
            f,
            "Landlock (ABI {landlock_abi}) confines {threads} threads, {threads_unconfined} are not confined; filter of \
             system calls: {filter}; {readable_paths} readable paths"
        )?;
        if !missing.is_empty() {
            write!(f, "; not restricted: {}", listed(missing))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_enforced_is_told_to_people_and_programs() {
        let mut enforced = Enforced {
            landlock_abi: 7,
            system_calls: true,
            threads: 3,
            threads_unconfined: 0,
            readable_paths: 1,
            missing: vec![],
        };
        assert_eq!(
            enforced.to_string(),
            "Landlock (ABI 7) confines 3 threads, 0 are not confined; filter of system calls: on; 1 readable paths"
        );
        enforced.missing = vec![Restriction::Tcp, Restriction::AllThreads];
        assert!(enforced.to_string().ends_with("; not restricted: TCP, all threads"));
        assert_eq!(
            serde_json::to_value(&enforced).unwrap(),
            serde_json::json!({
                "landlock_abi": 7, "system_calls": true, "threads": 3, "threads_unconfined": 0,
                "readable_paths": 1, "missing": ["tcp", "all_threads"],
            })
        );
    }

    #[test]
    fn an_error_says_whether_anything_was_enforced() {
        let missing = LockdownError::Missing(vec![Restriction::Truncate, Restriction::Tcp]);
        assert_eq!(
            missing.to_string(),
            "this kernel cannot restrict truncation of files, TCP; nothing was enforced"
        );
        let partial = LockdownError::Partial { confined: 4, unconfined: 1 };
        assert_eq!(partial.to_string(), "4 threads are confined, 1 are not: end this process");
    }
}
