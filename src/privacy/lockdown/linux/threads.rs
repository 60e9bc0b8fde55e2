//! Landlock confines the thread that asks for it, so every thread of the process is made to ask: a signal, whose
//! handler makes the two system calls, is sent to each thread in turn. It is what libpsx and glibc's `setuid` do.
#![expect(unsafe_code, reason = "installs a signal handler and makes system calls that libc does not wrap")]

use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};
use std::time::{Duration, Instant};

use libc::c_int;

use super::super::LockdownError;

/// Between two looks at the answers.
const PAUSE: Duration = Duration::from_micros(200);
/// Threads that are signalled at once.
const WAVE: usize = 512;
/// Waves that may wait their whole time for a thread that does not answer, which is then not asked again.
const WAITS: u32 = 4;
/// A slot's answer before its thread has answered; else an errno, 0 for done, or [`BEFORE`].
const PENDING: c_int = -1;
/// The answer of a thread that was confined already: it was started by one that is.
const BEFORE: c_int = -2;
/// No ruleset: the handler answers and does nothing.
const NO_RULESET: c_int = -1;

/// What the handler shall do. Static, as are the slots: a handler that comes late finds them still there.
static RULESET: AtomicI32 = AtomicI32::new(NO_RULESET);
/// A folder, by its path, that only a thread which is not confined can open; null if there is none.
static TOUCHSTONE: AtomicPtr<libc::c_char> = AtomicPtr::new(std::ptr::null_mut());
static SLOTS: [Slot; WAVE] =
    [const { Slot { tid: AtomicI32::new(0), answer: AtomicI32::new(PENDING) } }; WAVE];

/// A thread that was signalled, and its answer.
struct Slot {
    tid: AtomicI32,
    answer: AtomicI32,
}

/// What every thread is to do.
pub enum Act {
    /// Nothing but answer.
    Answer,
    /// Confine itself.
    Confine(Ruleset),
}

/// A ruleset that has been tried on a thread.
pub struct Ruleset {
    descriptor: OwnedFd,
    touchstone: Option<&'static CStr>,
}

impl Ruleset {
    /// Tries the ruleset on a thread that is started for it and ends: the kernel may refuse one more layer.
    ///
    /// A folder that this thread cannot open, but the caller can, tells confined threads from others later on.
    pub fn tried(descriptor: OwnedFd) -> Result<Self, LockdownError> {
        const FOLDERS: [&CStr; 6] = [c"/", c"/proc", c"/sys", c"/dev", c"/etc", c"/tmp"];
        let before: Vec<&'static CStr> =
            FOLDERS.into_iter().filter(|path| can_open(path.as_ptr()) == 0).collect();
        let number = descriptor.as_raw_fd();
        let trial = std::thread::Builder::new().spawn(move || match confine(number) {
            0 => Ok(before.into_iter().find(|path| can_open(path.as_ptr()) == libc::EACCES)),
            errno => Err(std::io::Error::from_raw_os_error(errno)),
        });
        let result = trial.map_err(|source| refused("clone", source))?.join();
        let result = result.expect("what the thread does cannot panic");
        let touchstone = result.map_err(|source| refused("landlock_restrict_self", source))?;
        Ok(Self { descriptor, touchstone })
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// Threads that did it.
    pub done: usize,
    /// Threads that did not answer in time, or could not do it.
    pub unreached: usize,
}

/// A real-time signal that nobody uses, with our handler for as long as this lives. One at a time: the caller sees to it.
pub struct Broadcast {
    signal: c_int,
    before: libc::sigaction,
    time_limit: Duration,
}

impl Broadcast {
    /// Picks a signal and installs the handler. Threads have `time_limit` to answer, those of a wave together.
    pub fn new(time_limit: Duration) -> Result<Self, LockdownError> {
        let blocked = listing()?.into_iter().fold(0, |union, tid| union | blocked_signals(tid));
        let is_blocked = |signal: c_int| blocked >> (signal - 1) & 1 == 1;
        let mut unused: Vec<c_int> = (libc::SIGRTMIN()..=libc::SIGRTMAX()).rev().filter(is_unused).collect();
        unused.sort_by_key(|&signal| is_blocked(signal)); // stable: those that no thread blocks come first
        let nothing_free = || refused("sigaction", std::io::Error::from_raw_os_error(libc::EBUSY));
        let signal = *unused.first().ok_or_else(nothing_free)?;
        let handler = action(on_signal as extern "C" fn(c_int) as libc::sighandler_t);
        let before = exchange(signal, Some(&handler)).map_err(|source| refused("sigaction", source))?;
        Ok(Self { signal, before, time_limit })
    }

    /// Has every thread of the process do `act`, the caller's last, because it reads /proc until then.
    ///
    /// [`Act::Answer`] goes to the threads of one list. [`Act::Confine`] goes on until in a complete list every thread
    /// has answered before the list was made, or answers that it was confined already. Then no other is left: a thread
    /// that is not confined has been started by one that was not, so one of them was there when the list was made, and it
    /// would have answered that it was confined only now, or have ended without an answer.
    pub fn to_all(&self, act: Act) -> Reached {
        let (ruleset, touchstone) = match &act {
            Act::Answer => (NO_RULESET, None),
            Act::Confine(ruleset) => (ruleset.descriptor.as_raw_fd(), ruleset.touchstone),
        };
        TOUCHSTONE.store(
            touchstone.map_or(std::ptr::null_mut(), |path| path.as_ptr().cast_mut()),
            Ordering::Release,
        );
        RULESET.store(ruleset, Ordering::Release);
        let mut reached = self.ask_others(matches!(act, Act::Answer));
        let own = if act_here() <= 0 { &mut reached.done } else { &mut reached.unreached };
        *own += 1;
        RULESET.store(NO_RULESET, Ordering::Release);
        if let Act::Confine(ruleset) = act
            && reached.unreached > 0
        {
            // A handler may have started and not be done: the descriptor must not become another file's.
            let _ = ruleset.descriptor.into_raw_fd();
        }
        reached
    }

    fn ask_others(&self, once: bool) -> Reached {
        let deadline = Instant::now() + WAITS * self.time_limit;
        let (mut asked, mut failed) = (HashSet::from([gettid()]), HashSet::new());
        while let Some(tids) = complete_listing(deadline) {
            // The number of a thread that has ended may come back as another's.
            asked.retain(|tid| tids.contains(tid));
            failed.retain(|tid| tids.contains(tid));
            let new: Vec<c_int> = tids.difference(&asked).copied().collect();
            let mut settled = true;
            for wave in new.chunks(WAVE) {
                let answers = self.ask(wave);
                settled &= answers.settled;
                failed.extend(answers.failed);
            }
            asked.extend(new);
            if settled || once {
                return Reached { done: asked.len() - failed.len() - 1, unreached: failed.len() };
            }
        }
        // Without a complete list at least one more thread may have been missed.
        Reached { done: asked.len() - failed.len() - 1, unreached: failed.len() + 1 }
    }

    /// Signals these threads and waits for them.
    fn ask(&self, tids: &[c_int]) -> Answers {
        let deadline = Instant::now() + self.time_limit;
        for (slot, &tid) in SLOTS.iter().zip(tids) {
            slot.answer.store(PENDING, Ordering::Relaxed);
            slot.tid.store(tid, Ordering::Release);
        }
        let slots = &SLOTS[..tids.len()];
        let mut unsent: Vec<c_int> = tids.to_vec();
        let mut gone = HashSet::new();
        loop {
            // The queue of signals may be full for a while (RLIMIT_SIGPENDING), and a thread may be gone. After any
            // other error it stays pending until the time is up.
            unsent.retain(|&tid| match tgkill(tid, self.signal) {
                libc::ESRCH => !gone.insert(tid),
                errno => errno == libc::EAGAIN,
            });
            let pending = slots.iter().filter(|slot| slot.answer.load(Ordering::Acquire) == PENDING);
            let pending =
                pending.map(|slot| slot.tid.load(Ordering::Relaxed)).filter(|tid| !gone.contains(tid));
            let pending: Vec<c_int> = pending.collect();
            if pending.is_empty() || Instant::now() >= deadline {
                break;
            }
            std::thread::sleep(PAUSE);
            gone.extend(pending.into_iter().filter(|&tid| has_ended(tid)));
        }
        let mut answers = Answers { settled: gone.is_empty(), failed: vec![] };
        for slot in slots {
            let tid = slot.tid.swap(0, Ordering::AcqRel);
            let answer = slot.answer.load(Ordering::Acquire);
            answers.settled &= answer != 0;
            if answer != 0 && answer != BEFORE && !gone.contains(&tid) {
                answers.failed.push(tid);
            }
        }
        answers
    }
}

/// What the threads of a wave have answered.
struct Answers {
    /// None was confined only now, and none ended without an answer.
    settled: bool,
    /// Those that did not answer, or could not act.
    failed: Vec<c_int>,
}

impl Drop for Broadcast {
    fn drop(&mut self) {
        // A thread that blocks the signal has it pending still, and would die of it under the default action. To ignore
        // it first makes the kernel discard what is pending, on all threads.
        let _ = exchange(self.signal, Some(&action(libc::SIG_IGN)));
        let _ = exchange(self.signal, Some(&self.before));
    }
}

/// The handler: atomics and system calls only, and errno as it was.
extern "C" fn on_signal(_: c_int) {
    // SAFETY: the address of this thread's errno, valid as long as the thread runs.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above; nobody else writes to it while this thread is here.
    let before = unsafe { *errno };
    let tid = gettid();
    let mine = |slot: &&Slot| slot.tid.load(Ordering::Acquire) == tid;
    if let Some(slot) = SLOTS.iter().find(mine)
        && slot.answer.load(Ordering::Acquire) == PENDING
    {
        slot.answer.store(act_here(), Ordering::Release);
    }
    // SAFETY: as above.
    unsafe { *errno = before };
}

/// Does on this thread what the handler shall do: 0, [`BEFORE`], or the errno of a call that failed. Async-signal-safe.
fn act_here() -> c_int {
    let (ruleset, touchstone) = (RULESET.load(Ordering::Acquire), TOUCHSTONE.load(Ordering::Acquire));
    if ruleset == NO_RULESET {
        0
    } else if !touchstone.is_null() && can_open(touchstone) == libc::EACCES {
        BEFORE // once more would be one more layer, of which the kernel takes sixteen
    } else {
        confine(ruleset)
    }
}

/// Confines the calling thread for good; 0, or the errno of the call that failed. Async-signal-safe.
pub fn confine(ruleset: c_int) -> c_int {
    // SAFETY: takes numbers only. The variadic arguments are as wide as the kernel reads them.
    let failed = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1_u64, 0_u64, 0_u64, 0_u64) } != 0
        // SAFETY: as above; a descriptor that is no ruleset is refused.
        || unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0_u32) } != 0;
    if failed { errno() } else { 0 }
}

/// Whether this thread may list a folder: 0, or the errno. `path` is one of a `'static` C string. Async-signal-safe.
fn can_open(path: *const libc::c_char) -> c_int {
    // SAFETY: the path ends with zero and lives forever, by the contract above.
    let folder = unsafe { libc::open(path, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC) };
    if folder < 0 {
        return errno();
    }
    // SAFETY: opened above, and known to nobody else.
    unsafe { libc::close(folder) };
    0
}

/// The last errno of this thread. Async-signal-safe.
fn errno() -> c_int {
    // SAFETY: the address of this thread's errno, valid as long as the thread runs.
    unsafe { *libc::__errno_location() }
}

/// All threads of this process, unless the time is up.
///
/// The kernel walks its list from one thread to the next, and may skip some if one that it has given ends meanwhile: so
/// a list counts only if all of its threads are still there when it is done.
fn complete_listing(deadline: Instant) -> Option<HashSet<c_int>> {
    while Instant::now() < deadline {
        let tids: HashSet<c_int> = listing().ok()?.into_iter().collect();
        if tids.iter().all(|&tid| tgkill(tid, 0) != libc::ESRCH) {
            return Some(tids);
        }
    }
    None
}

fn listing() -> Result<Vec<c_int>, LockdownError> {
    let entries =
        std::fs::read_dir("/proc/self/task").map_err(|source| refused("/proc/self/task", source))?;
    let tid = |entry: std::io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    Ok(entries.filter_map(tid).collect())
}

/// The mask of signals that a thread blocks; none if it has ended.
fn blocked_signals(tid: c_int) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/self/task/{tid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Whether a thread is gone, or a zombie: the main thread may end before the others.
fn has_ended(tid: c_int) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat")) else { return true };
    stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with(['Z', 'X']))
}

fn is_unused(signal: &c_int) -> bool {
    exchange(*signal, None).is_ok_and(|current| current.sa_sigaction == libc::SIG_DFL)
}

/// A handler's settings: calls are restarted where the kernel can, a thread's alternate stack is used, and no other
/// signal comes in between.
fn action(handler: libc::sighandler_t) -> libc::sigaction {
    // SAFETY: plain numbers and a set of bits, for which zeros are valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
    // SAFETY: a set that this function owns.
    unsafe { libc::sigfillset(&mut action.sa_mask) };
    action
}

/// What a signal did until now; from now on it does `new`, if given.
fn exchange(signal: c_int, new: Option<&libc::sigaction>) -> std::io::Result<libc::sigaction> {
    let new = new.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: plain numbers and a set of bits, for which zeros are valid.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: both point to whole structures, or `new` is null. The only handler that is ever new is `on_signal`, which
    // is async-signal-safe, or what was there before.
    match unsafe { libc::sigaction(signal, new, &mut old) } {
        0 => Ok(old),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Sends a signal to one thread of this process; 0 or the errno.
fn tgkill(tid: c_int, signal: c_int) -> c_int {
    // SAFETY: takes numbers only; it can reach this process's own threads only.
    match unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, signal) } {
        0 => 0,
        _ => std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL),
    }
}

fn gettid() -> c_int {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

fn refused(call: &'static str, source: std::io::Error) -> LockdownError {
    LockdownError::Refused { call, source }
}
