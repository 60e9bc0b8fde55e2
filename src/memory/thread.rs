//! The session's own threads: what they allocate and what is on their stacks may be content.
#![cfg_attr(
    unix,
    expect(unsafe_code, reason = "advises the system about this thread's own stack and priority")
)]

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::{heap, stack};

/// How large a thread's stack is, and how far down it is cleaned when the thread ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// [`stack::THREAD_STACK_BYTES`].
    Kernels,
    /// [`stack::DEEP_STACK_BYTES`]: for parsers, which recurse.
    Parsers,
}

impl Depth {
    /// Bytes of the whole stack.
    fn bytes(self) -> usize {
        match self {
            Self::Kernels => stack::THREAD_STACK_BYTES,
            Self::Parsers => stack::DEEP_STACK_BYTES,
        }
    }
}

/// Starts a thread of the session.
///
/// # Errors
/// The system refuses.
pub fn spawn<T: Send + 'static>(
    name: &str,
    depth: Depth,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    builder(name, depth).spawn(move || confined(depth, run))
}

/// For threads that are started in a scope: they run [`confined`].
pub fn builder(name: &str, depth: Depth) -> Builder {
    Builder::new().name(name.into()).stack_size(depth.bytes())
}

/// From now on this thread gives way to threads of the usual priority wherever there are too few processors for all: it
/// does work that a request alone waits for, and that no limit keeps short. On Linux only; elsewhere nothing changes.
pub fn give_way() {
    /// Ten steps of "nice": about a tenth of what a thread of the usual priority gets beside it.
    #[cfg(target_os = "linux")]
    const STEPS: libc::c_int = 10;
    #[cfg(target_os = "linux")]
    // SAFETY: takes and returns integers. Linux counts priorities by thread, and 0 names the calling one. A refusal leaves
    // the thread as it was, which costs others time and nobody content.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, STEPS);
    }
}

/// The time that processors gave to this thread so far; where the system does not tell, the time that passed since some
/// moment.
pub fn cpu_time() -> Duration {
    #[cfg(unix)]
    {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: writes to a variable of the type that it is made for.
        if unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) } == 0 {
            return Duration::new(time.tv_sec as u64, time.tv_nsec as u32);
        }
    }
    static SINCE: OnceLock<Instant> = OnceLock::new();
    SINCE.get_or_init(Instant::now).elapsed()
}

/// Runs a thread whose stack is locked where the system allows, stays out of core dumps, reads as zeros in forked
/// children, and is cleaned in the end; what it allocates is treated alike ([`heap::enter`]).
pub fn confined<T>(depth: Depth, run: impl FnOnce() -> T) -> T {
    heap::enter();
    let _stack = Stack::protect(depth);
    lower(run)
}

/// Runs `run` more than a page below the caller's frame, so that all of its frames are on pages that are protected.
#[inline(never)]
fn lower<T>(run: impl FnOnce() -> T) -> T {
    let gap = [0_u8; 2 * PAGE];
    std::hint::black_box(&gap);
    let result = below(run);
    std::hint::black_box(&gap);
    result
}

/// A frame of its own: inlined into the one with the gap, it could lie above that.
#[inline(never)]
fn below<T>(run: impl FnOnce() -> T) -> T {
    run()
}

/// The largest page of Linux on x86-64; on machines with larger ones the first frames are not protected.
const PAGE: usize = 4096;

/// Bytes of stacks that lack a protection.
struct Lack {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Lack {
    const fn new() -> Self {
        Self { now: AtomicUsize::new(0), most: AtomicUsize::new(0) }
    }

    fn add(&self, bytes: usize) {
        let now = self.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.most.fetch_max(now, Ordering::Relaxed);
    }

    fn remove(&self, bytes: usize) {
        self.now.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn most(&self) -> u64 {
        self.most.load(Ordering::Relaxed) as u64
    }
}

static UNLOCKED: Lack = Lack::new();
static EXPOSED: Lack = Lack::new();

/// Bytes of stacks that the system refused to lock: most at once so far.
pub fn unlocked_bytes() -> u64 {
    UNLOCKED.most()
}

/// Bytes of stacks that are in core dumps and in forked children: most at once so far.
pub fn exposed_bytes() -> u64 {
    EXPOSED.most()
}

/// A thread's stack while it is protected. The C library keeps the stacks of threads that have ended for others, so all
/// is taken back: a thread of the application that forks must find its stack in the child.
struct Stack {
    depth: Depth,
    protection: Protection,
}

/// What the system did for a stack. By default: nothing.
#[derive(Default)]
struct Protection {
    /// Out of core dumps, zeros in forked children.
    #[cfg(target_os = "linux")]
    pages: Option<(*mut libc::c_void, usize)>,
    /// Bytes.
    exposed: usize,
    /// Bytes.
    unlocked: usize,
}

impl Stack {
    fn protect(depth: Depth) -> Self {
        let bytes = depth.bytes();
        #[cfg(target_os = "linux")]
        let protection = protect_pages();
        #[cfg(not(target_os = "linux"))]
        let protection = None;
        let protection: Protection =
            protection.unwrap_or(Protection { exposed: bytes, unlocked: bytes, ..Protection::default() });
        EXPOSED.add(protection.exposed);
        UNLOCKED.add(protection.unlocked);
        Self { depth, protection }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let _ = match self.depth {
            Depth::Kernels => stack::scrub_below(),
            Depth::Parsers => stack::scrub_deep(),
        };
        EXPOSED.remove(self.protection.exposed);
        UNLOCKED.remove(self.protection.unlocked);
        #[cfg(target_os = "linux")]
        if let Some((start, bytes)) = self.protection.pages {
            // SAFETY: this thread's own stack, as it was found when the thread began; none of it unmaps.
            unsafe {
                libc::madvise(start, bytes, libc::MADV_KEEPONFORK);
                libc::madvise(start, bytes, libc::MADV_DODUMP);
                libc::munlock(start, bytes);
            }
        }
    }
}

#[cfg(target_os = "linux")]
fn protect_pages() -> Option<Protection> {
    let (start, bytes) = below_here()?;
    // the upper end is what is used; a parser's spare room for hostile input is not worth a limit of the system's
    let lockable = bytes.min(stack::DEEP_STACK_BYTES);
    // SAFETY: this thread's own stack below the frames in use. Refusals leave it as it was, and are counted.
    let (hidden, locked) = unsafe {
        let hidden = libc::madvise(start, bytes, libc::MADV_DONTDUMP) == 0
            && libc::madvise(start, bytes, libc::MADV_WIPEONFORK) == 0;
        (hidden, libc::mlock2(start.byte_add(bytes - lockable), lockable, libc::MLOCK_ONFAULT) == 0)
    };
    let lacks = |granted: bool, bytes: usize| if granted { 0 } else { bytes };
    Some(Protection {
        pages: Some((start, bytes)),
        exposed: lacks(hidden, bytes),
        unlocked: lacks(locked, lockable),
    })
}

/// The pages of this thread's stack below the caller's frame; none where the C library cannot tell. What is above stays
/// as it is: at its upper end the C library keeps the thread's own record, which a forked child reads.
#[cfg(target_os = "linux")]
#[inline(never)]
fn below_here() -> Option<(*mut libc::c_void, usize)> {
    let (start, bytes) = bounds()?;
    let frame = 0_u8;
    let here = std::hint::black_box(&raw const frame).addr();
    let lower = (here & !(PAGE - 1)).checked_sub(start.addr())?;
    (lower > 0 && lower < bytes).then_some((start, lower))
}

/// Where this thread's stack lies; none where the C library cannot tell.
#[cfg(target_os = "linux")]
fn bounds() -> Option<(*mut libc::c_void, usize)> {
    let mut attributes = std::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut start, mut bytes) = (std::ptr::null_mut(), 0);
    // SAFETY: the attributes are filled in by the first call, read by the second, and given back by the third.
    unsafe {
        if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
            return None;
        }
        let known = libc::pthread_attr_getstack(attributes.as_ptr(), &mut start, &mut bytes) == 0;
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        (known && !start.is_null() && bytes > 0).then_some((start, bytes))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// The flags that the kernel has for the mapping of an address.
    fn flags_of(address: usize) -> Vec<String> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in smaps.lines() {
            if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| inside) {
                return flags.split_whitespace().map(str::to_owned).collect();
            }
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            if let Some((from, to)) = range {
                let edges = [from, to].map(|edge| usize::from_str_radix(edge, 16));
                if let [Ok(from), Ok(to)] = edges {
                    inside = (from..to).contains(&address);
                }
            }
        }
        panic!("the address is not mapped");
    }

    #[test]
    fn a_stack_is_protected_while_its_thread_runs_and_not_after() {
        let run = || {
            let here = 0_u8;
            flags_of(std::hint::black_box(&here) as *const u8 as usize)
        };
        let flags = spawn("confined", Depth::Kernels, run).unwrap().join().unwrap();
        assert!(flags.contains(&"dd".into()) && flags.contains(&"wf".into()), "{flags:?}");
        // the very stack may be used again
        let flags = builder("plain", Depth::Kernels).spawn(run).unwrap().join().unwrap();
        assert!(!flags.contains(&"wf".into()), "{flags:?}");
    }

    /// What stays on the stack while the thread goes on.
    #[test]
    fn a_stack_is_clean_when_its_thread_is_done() {
        /// Leaves a mark in a dead frame and returns its address.
        #[inline(never)]
        fn leave_mark() -> usize {
            let mut mark = [0x5ec2_e75e_c2e7_5ec2_u64; 64];
            std::hint::black_box(&mut mark).as_ptr() as usize
        }
        for depth in [Depth::Kernels, Depth::Parsers] {
            let run = move || {
                let at = confined(depth, leave_mark);
                // SAFETY: the address is in this thread's stack, which is mapped; nothing else writes it now.
                unsafe { (at as *const u64).read_volatile() }
            };
            assert_eq!(builder("confined", depth).spawn(run).unwrap().join().unwrap(), 0, "{depth:?}");
        }
    }

    #[test]
    fn a_fork_beside_a_protected_thread_lives() {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let (begin, begun) = std::sync::mpsc::channel();
        let thread = spawn("confined", Depth::Kernels, move || {
            let _ = begin.send(());
            let _ = ended.recv();
        });
        begun.recv().unwrap();
        // SAFETY: the child only exits; before that the C library goes through the records of all threads in it.
        let status = unsafe {
            let child = libc::fork();
            if child == 0 {
                libc::_exit(7);
            }
            let mut status = -1;
            libc::waitpid(child, &mut status, 0);
            status
        };
        drop(end);
        thread.unwrap().join().unwrap();
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7, "{status}");
    }

    #[test]
    fn an_ordinary_thread_that_gets_the_stack_can_fork() {
        for _ in 0..4 {
            spawn("confined", Depth::Kernels, || ()).unwrap().join().unwrap();
            let forks = || {
                // SAFETY: the child only exits.
                unsafe {
                    let child = libc::fork();
                    if child == 0 {
                        libc::_exit(7);
                    }
                    let mut status = -1;
                    libc::waitpid(child, &mut status, 0);
                    status
                }
            };
            let status = builder("plain", Depth::Kernels).spawn(forks).unwrap().join().unwrap();
            assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7, "{status}");
        }
    }
}
