//! Each wall on its own, on a thread of its own: both act on the thread that asks for them. The whole of it, on all
//! threads of a process, is in tests/lockdown.rs.
#![expect(unsafe_code, reason = "calls the system, to see what it answers")]

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier, Mutex};

use libc::{EACCES, ENOSYS, EPERM, c_int, c_long};
use seccompiler::sock_filter;

use super::*;

const FULL: Kernel = Kernel { landlock_abi: 6, threads_may_signal: true, filters_calls: true };

#[test]
fn what_a_kernel_lacks_is_named() {
    use Restriction::{AbstractSockets, Devices, Files, Signals, SystemCalls, Tcp, Truncate};
    let missing = |landlock_abi| Kernel { landlock_abi, ..FULL }.missing();
    assert_eq!(missing(0), [Files, Truncate, Tcp, Devices, AbstractSockets, Signals]);
    assert_eq!(missing(1), [Truncate, Tcp, Devices, AbstractSockets, Signals]);
    assert_eq!(missing(2), missing(1));
    assert_eq!(missing(3), [Tcp, Devices, AbstractSockets, Signals]);
    assert_eq!(missing(4), [Devices, AbstractSockets, Signals]);
    assert_eq!(missing(5), [AbstractSockets, Signals]);
    assert_eq!((missing(6), missing(7), missing(99)), (vec![], vec![], vec![]));
    assert_eq!(Kernel { threads_may_signal: false, ..FULL }.missing(), [Signals]);
    assert_eq!(Kernel { filters_calls: false, ..FULL }.missing(), [SystemCalls]);
}

#[test]
fn a_hard_requirement_that_cannot_be_met_enforces_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for kernel in [Kernel { landlock_abi: 5, ..FULL }, Kernel { filters_calls: false, ..FULL }] {
        let error = enforce_on(kernel, &Lockdown::new()).unwrap_err();
        assert!(matches!(error, LockdownError::Missing(missing) if missing == kernel.missing()));
    }
    let missing = folder.path().join("missing");
    for requirement in [Requirement::Hard, Requirement::BestEffort] {
        let lockdown = Lockdown::new().requirement(requirement).allow_read(&missing);
        let error = enforce_on(FULL, &lockdown).unwrap_err();
        assert!(matches!(error, LockdownError::Path { path, .. } if path == missing));
    }
    fs::write(folder.path().join("still possible"), "").unwrap();
}

#[test]
fn best_effort_says_what_is_missing() {
    let nothing = Kernel { landlock_abi: 0, threads_may_signal: false, filters_calls: false };
    for _ in 0..2 {
        // twice: what enforced nothing does not count as a lockdown
        let enforced =
            enforce_on(nothing, &Lockdown::new().requirement(Requirement::BestEffort).allow_read("/proc"))
                .unwrap();
        let expected = Enforced {
            landlock_abi: 0,
            system_calls: false,
            threads: 0,
            threads_unconfined: 0,
            readable_paths: 0,
            missing: nothing.missing(),
        };
        assert_eq!(enforced, expected);
    }
}

/// One broadcast at a time.
static BROADCAST: Mutex<()> = Mutex::new(());

#[test]
fn every_thread_answers_and_one_that_blocks_signals_is_counted() {
    let _one = BROADCAST.lock().unwrap();
    let (waiting, done) = (Arc::new(Barrier::new(601)), Arc::new(Barrier::new(601)));
    let threads: Vec<_> = (0..600)
        .map(|index| {
            let (waiting, done) = (waiting.clone(), done.clone());
            std::thread::spawn(move || {
                let blocks = index == 400;
                let mask = |how| {
                    // SAFETY: a set that this closure owns, filled before it is used.
                    unsafe {
                        let mut all: libc::sigset_t = std::mem::zeroed();
                        libc::sigfillset(&mut all);
                        libc::pthread_sigmask(how, &all, std::ptr::null_mut())
                    }
                };
                assert!(!blocks || mask(libc::SIG_BLOCK) == 0);
                waiting.wait();
                done.wait();
                // a signal that were still pending would end the process here
                assert!(!blocks || mask(libc::SIG_UNBLOCK) == 0);
            })
        })
        .collect();
    waiting.wait();
    let broadcast = Broadcast::new(Duration::from_millis(300)).unwrap();
    let reached = broadcast.to_all(Act::Answer);
    drop(broadcast);
    done.wait();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(reached.done >= 600 && reached.unreached == 1, "{reached:?}");
    for signal in libc::SIGRTMIN()..=libc::SIGRTMAX() {
        // SAFETY: reads the setting into a structure that lives on.
        let current = unsafe {
            let mut current: libc::sigaction = std::mem::zeroed();
            assert_eq!(libc::sigaction(signal, std::ptr::null(), &mut current), 0);
            current
        };
        assert_eq!(current.sa_sigaction, libc::SIG_DFL, "signal {signal} keeps its handler");
    }
}

/// Runs `acts` on a thread of its own once `confine` has confined it.
fn confined<T: Send>(confine: impl FnOnce() + Send, acts: impl FnOnce() -> T + Send) -> T {
    let run = || {
        confine();
        acts()
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap())
}

fn errno<T>(result: std::io::Result<T>) -> c_int {
    result.err().map_or(0, |error| error.raw_os_error().unwrap())
}

/// What each of the acts on files answers, in a folder with the files `old`, `allowed/file` and `other/file`.
fn acts_on_files(at: &Path) -> Vec<(&'static str, c_int)> {
    let old = at.join("old");
    let truncate = |path: &Path| {
        let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: a path that ends with zero and lives until the call returns.
        unsafe { libc::truncate(path.as_ptr(), 0) };
        std::io::Error::last_os_error()
    };
    vec![
        ("create", errno(File::create(at.join("new")))),
        ("write", errno(OpenOptions::new().write(true).open(&old))),
        ("append", errno(OpenOptions::new().append(true).open(&old))),
        ("read and write", errno(OpenOptions::new().read(true).write(true).open(&old))),
        ("truncate", errno::<()>(Err(truncate(&old)))),
        ("make a folder", errno(fs::create_dir(at.join("folder")))),
        ("symbolic link", errno(std::os::unix::fs::symlink(&old, at.join("link")))),
        ("hard link", errno(fs::hard_link(&old, at.join("allowed/hard")))),
        ("rename", errno(fs::rename(&old, at.join("renamed")))),
        ("remove", errno(fs::remove_file(&old))),
        ("read", errno(fs::read(at.join("other/file")))),
        ("list", errno(fs::read_dir(at.join("other")))),
        ("read where it is allowed", errno(fs::read(at.join("allowed/file")))),
        ("list where it is allowed", errno(fs::read_dir(at.join("allowed")))),
    ]
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["old", "allowed/file", "other/file"] {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "text").unwrap();
    }
    folder
}

#[test]
fn landlock_alone_denies_files_and_new_paths() {
    let kernel = Kernel::probe();
    if kernel.landlock_abi < 3 {
        eprintln!("SKIPPED: this kernel has no Landlock that knows truncation: {kernel:?}");
        return;
    }
    let folder = folder();
    let readable: [PathBuf; 2] = [folder.path().join("allowed"), folder.path().join("other/file")];
    let ruleset = files::ruleset(kernel, &readable[..1]).unwrap().unwrap();
    let denied =
        confined(|| assert_eq!(threads::confine(ruleset.as_raw_fd()), 0), || acts_on_files(folder.path()));
    for (act, errno) in denied {
        let expected = if act.ends_with("allowed") { 0 } else { EACCES };
        assert_eq!(errno, expected, "{act}");
    }
    let one_file = files::ruleset(kernel, &readable[1..]).unwrap().unwrap();
    let (file, list) = confined(
        || assert_eq!(threads::confine(one_file.as_raw_fd()), 0),
        || (errno(fs::read(&readable[1])), errno(fs::read_dir(folder.path().join("other")))),
    );
    assert_eq!((file, list), (0, EACCES));
    // the same acts, not confined
    let free = acts_on_files(folder.path());
    let failed: Vec<_> =
        free.iter().filter(|(act, errno)| *errno != 0 && *act != "truncate" && *act != "remove").collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn the_filter_alone_denies_writing() {
    let folder = folder();
    let filter = calls::filter(false, false).unwrap();
    let denied = confined(|| seccompiler::apply_filter(&filter).unwrap(), || acts_on_files(folder.path()));
    for (act, errno) in denied {
        let expected = if act.starts_with("read ") && act != "read and write"
            || act.starts_with("list")
            || act == "read"
        {
            0
        } else {
            EPERM
        };
        assert_eq!(errno, expected, "{act}");
    }
}

/// What the kernel's machine gives for a program, at a system call of this architecture.
fn verdict(program: &[sock_filter], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = [number.to_le_bytes(), arch.to_le_bytes()].concat();
    data.extend([0; 8]); // the instruction pointer
    data.extend(arguments.iter().flat_map(|argument| argument.to_le_bytes()));
    let (mut accumulator, mut at) = (0_u32, 0);
    loop {
        let sock_filter { code, jt, jf, k } = program[at].clone();
        let jump = |condition| usize::from(if condition { jt } else { jf });
        at += 1;
        match code {
            0x20 => accumulator = u32::from_le_bytes(data[k as usize..][..4].try_into().unwrap()),
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => at += jump(accumulator == k),
            0x25 => at += jump(accumulator > k),
            0x35 => at += jump(accumulator >= k),
            0x06 => return k,
            other => unreachable!("instruction {other:#x}"),
        }
    }
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const fn error(errno: c_int) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

fn answer_to(number: c_long, arguments: &[u64]) -> u32 {
    let mut six = [0; 6];
    six[..arguments.len()].copy_from_slice(arguments);
    verdict(&calls::filter(false, false).unwrap(), ARCH, number as u32, six)
}

#[test]
fn calls_are_denied_by_their_arguments() {
    let (deny, high) = (error(EPERM), 1_u64 << 32);
    let at = libc::AT_FDCWD as u64;
    let cases: &[(&str, c_long, &[u64], u32)] = &[
        ("openat read", libc::SYS_openat, &[at, 1, libc::O_CLOEXEC as u64], ALLOW),
        ("openat append", libc::SYS_openat, &[at, 1, (libc::O_APPEND | libc::O_RDONLY) as u64], ALLOW),
        ("openat write", libc::SYS_openat, &[at, 1, libc::O_WRONLY as u64], deny),
        ("openat read and write", libc::SYS_openat, &[at, 1, libc::O_RDWR as u64 | high], deny),
        ("openat access 3", libc::SYS_openat, &[at, 1, 3], deny),
        ("openat create", libc::SYS_openat, &[at, 1, libc::O_CREAT as u64], deny),
        ("openat truncate", libc::SYS_openat, &[at, 1, libc::O_TRUNC as u64], deny),
        ("openat nameless", libc::SYS_openat, &[at, 1, (libc::O_TMPFILE | libc::O_RDWR) as u64], deny),
        ("openat2", libc::SYS_openat2, &[], error(ENOSYS)),
        ("send", libc::SYS_sendto, &[3, 1, 8, 0, 0, 0], ALLOW),
        ("send to an address", libc::SYS_sendto, &[3, 1, 8, 0, 1, 16], deny),
        ("send to a high address", libc::SYS_sendto, &[3, 1, 8, 0, high, 16], deny),
        ("send and connect", libc::SYS_sendto, &[3, 1, 8, libc::MSG_FASTOPEN as u64], deny),
        ("sendmsg", libc::SYS_sendmsg, &[3, 1, libc::MSG_NOSIGNAL as u64], deny),
        ("sendmsg and connect", libc::SYS_sendmsg, &[3, 1, libc::MSG_FASTOPEN as u64], deny),
        ("sendmmsg", libc::SYS_sendmmsg, &[3, 1, 1, 0], deny),
        ("sendmmsg and connect", libc::SYS_sendmmsg, &[3, 1, 1, libc::MSG_FASTOPEN as u64], deny),
        ("accept", libc::SYS_accept4, &[3], ALLOW),
        ("a thread", libc::SYS_clone, &[0x3d_0f00], ALLOW),
        ("a fork", libc::SYS_clone, &[0x0120_0011], ALLOW),
        ("namespace of mounts", libc::SYS_clone, &[0x0002_0011], deny),
        ("namespace of control groups", libc::SYS_clone, &[0x0200_0011], deny),
        ("namespace of names", libc::SYS_clone, &[0x0400_0011], deny),
        ("namespace of IPC", libc::SYS_clone, &[0x0800_0011], deny),
        ("namespace of users", libc::SYS_clone, &[0x1000_0011], deny),
        ("namespace of processes", libc::SYS_clone, &[0x2000_0011 | high], deny),
        ("namespace of networks", libc::SYS_clone, &[0x4000_0011], deny),
        ("clone3", libc::SYS_clone3, &[1, 88], error(ENOSYS)),
        ("flags of a file", libc::SYS_ioctl, &[3, 0x4008_6602], deny),
        ("flags of a file, 32 bits", libc::SYS_ioctl, &[3, 0x4004_6602 | high], deny),
        ("attributes of a file", libc::SYS_ioctl, &[3, 0x401c_5820], deny),
        ("version of a file", libc::SYS_ioctl, &[3, 0x4008_7602], deny),
        ("clone of a file", libc::SYS_ioctl, &[3, 0x4004_9409], deny),
        ("subvolume of btrfs", libc::SYS_ioctl, &[3, 0x5000_940e], deny),
        ("name of an interface", libc::SYS_ioctl, &[3, 0x8923], deny),
        ("bytes to read", libc::SYS_ioctl, &[3, 0x541b], ALLOW),
        ("a GPU's ioctl", libc::SYS_ioctl, &[3, 0xc020_462a], ALLOW),
        ("a GPU's ioctl of DRM", libc::SYS_ioctl, &[3, 0xc010_6409], ALLOW),
        ("no delay", libc::SYS_setsockopt, &[3, 6, 1, 1, 4], ALLOW),
        ("time to live", libc::SYS_setsockopt, &[3, 0, 2, 1, 4], ALLOW),
        ("keep alive", libc::SYS_setsockopt, &[3, 1, 9, 1, 4], ALLOW),
        ("join a group", libc::SYS_setsockopt, &[3, 0, 35, 1, 8], deny),
        ("join a group of sources", libc::SYS_setsockopt, &[3, 0, 46, 1, 8], deny),
        ("join a group of IPv6", libc::SYS_setsockopt, &[3, 41 | high, 20, 1, 20], deny),
        ("packet filters", libc::SYS_setsockopt, &[3, 0, 64, 1, 8], deny),
        ("terminal size", libc::SYS_ioctl, &[0, 0x5413], ALLOW),
        ("type into a terminal", libc::SYS_ioctl, &[0, 0x5412], deny),
        ("type into a terminal, high bits", libc::SYS_ioctl, &[0, 0x5412 | high], deny),
        ("paste into a terminal", libc::SYS_ioctl, &[0, 0x541c], deny),
        ("dumpable", libc::SYS_prctl, &[libc::PR_SET_DUMPABLE as u64, 1], deny),
        ("undumpable", libc::SYS_prctl, &[libc::PR_SET_DUMPABLE as u64, 0], ALLOW),
        ("into samepage merging", libc::SYS_prctl, &[67, 1], deny),
        ("out of samepage merging", libc::SYS_prctl, &[67, 0], ALLOW),
        ("let a process trace", libc::SYS_prctl, &[libc::PR_SET_PTRACER as u64, u64::MAX], deny),
        ("name", libc::SYS_prctl, &[libc::PR_SET_NAME as u64, 1], ALLOW),
        ("core limit", libc::SYS_setrlimit, &[4, 1], deny),
        ("file limit", libc::SYS_setrlimit, &[7, 1], ALLOW),
        ("core limit of a process", libc::SYS_prlimit64, &[0, 4, 1, 0], deny),
        ("read core limit", libc::SYS_prlimit64, &[0, 4, 0, 1], ALLOW),
        ("into core dumps", libc::SYS_madvise, &[0, 0, libc::MADV_DODUMP as u64], deny),
        ("into forked children", libc::SYS_madvise, &[0, 0, libc::MADV_KEEPONFORK as u64], deny),
        ("offer for merging", libc::SYS_madvise, &[0, 0, libc::MADV_MERGEABLE as u64], deny),
        ("give pages back", libc::SYS_madvise, &[0, 0, libc::MADV_DONTNEED as u64], ALLOW),
    ];
    for (name, number, arguments, expected) in cases {
        assert_eq!(answer_to(*number, arguments), *expected, "{name}");
    }
    let with = |accept, message, number: c_long| {
        verdict(&calls::filter(accept, message).unwrap(), ARCH, number as u32, [0; 6])
    };
    for number in [libc::SYS_accept, libc::SYS_accept4] {
        assert_eq!((with(true, false, number), with(false, true, number)), (deny, ALLOW));
    }
    for (number, flags) in [(libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)] {
        assert_eq!((with(true, false, number), with(false, true, number)), (deny, ALLOW));
        let mut and_connect = [0; 6];
        and_connect[flags] = libc::MSG_FASTOPEN as u64;
        let filter = calls::filter(false, true).unwrap();
        assert_eq!(verdict(&filter, ARCH, number as u32, and_connect), deny);
    }
}

#[test]
fn what_a_session_needs_is_let_through() {
    for number in [
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mprotect,
        libc::SYS_mlock,
        libc::SYS_munlock,
        libc::SYS_brk,
        libc::SYS_futex,
        libc::SYS_clone,
        libc::SYS_memfd_create,
        libc::SYS_sendto,
        libc::SYS_clock_gettime,
        libc::SYS_getrandom,
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_close,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_tgkill,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_sigaltstack,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_clock_nanosleep,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_epoll_pwait,
        libc::SYS_ppoll,
        libc::SYS_fstat,
        libc::SYS_lseek,
    ] {
        assert_eq!(answer_to(number, &[]), ALLOW, "{number}");
    }
}

/// Another architecture's numbers mean other calls: the kernel ends the process.
#[test]
fn calls_of_another_architecture_end_the_process() {
    let filter = calls::filter(false, false).unwrap();
    for (arch, number) in [(0x4000_0003, 20), (0x4000_0028, 20), (0, 0)] {
        assert_eq!(verdict(&filter, arch, number, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn no_call_of_x32_is_let_through() {
    const X32: u32 = 0x4000_0000;
    for number in (0..600).chain([4000, X32 - 1]) {
        assert_eq!(answer_to(c_long::from(X32 | number), &[]), error(EPERM), "{number}");
    }
    let own = |number| answer_to(number, &[]) == error(EPERM);
    assert!((512..=547).all(own) && !own(511) && !own(548));
    // what a tracer sets to skip a call
    assert_eq!(answer_to(-1, &[]), ALLOW);
}
