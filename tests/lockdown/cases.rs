//! The cases, and the program that runs each in a child.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use amnesic::privacy::{Enforced, Lockdown, LockdownError, Requirement, Restriction, process};
use amnesic::{Error, Request, ResponseFormat, Session};
use libc::{EACCES, EPERM, c_int};

use crate::acts::{self, Act, Open, c_path, errno, prepare};
use crate::common::default_model;

type Case = (&'static str, fn(&Path));

const CASES: &[Case] = &[
    ("every thread is confined", every_thread_is_confined),
    ("threads that are born meanwhile", threads_that_are_born_meanwhile),
    ("children inherit it", children_inherit_it),
    ("a 32-bit call ends the process", a_call_of_another_architecture_ends_the_process),
    ("a thread that blocks signals: hard", a_thread_that_blocks_signals_is_an_error),
    ("a thread that blocks signals: best effort", a_thread_that_blocks_signals_is_counted),
    ("options change what is denied", options_change_what_is_denied),
    ("settings of the process", settings_of_the_process),
    ("a session goes on", a_session_goes_on),
];

pub fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, name, folder] = &arguments[..]
        && flag == "--child"
    {
        if name == "probe" {
            return probe();
        }
        // SAFETY: takes a number. A case that hangs ends by a signal, as a failure.
        unsafe { libc::alarm(120) };
        let case = CASES.iter().find(|(other, _)| other == name).unwrap();
        return (case.1)(Path::new(folder));
    }
    let root = tempfile::tempdir().unwrap();
    // A kernel that cannot do it at all is no failure of ours, but said aloud.
    let (can, why) = run("probe", root.path());
    println!("\nrunning {} tests", CASES.len());
    if !can {
        println!("test lockdown ... SKIPPED: {why}");
        return;
    }
    let mut failed = 0;
    for (index, (name, _)) in CASES.iter().enumerate() {
        let folder = root.path().join(index.to_string());
        fs::create_dir(&folder).unwrap();
        let (passed, printed) = run(name, &folder);
        println!("test lockdown: {name} ... {}", if passed { "ok" } else { "FAILED" });
        if !passed {
            failed += 1;
            println!("{printed}");
        }
    }
    let (passed, verdict) = (CASES.len() - failed, if failed == 0 { "ok" } else { "FAILED" });
    println!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out\n"
    );
    std::process::exit(i32::from(failed > 0));
}

fn run(name: &str, folder: &Path) -> (bool, String) {
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program).args(["--child", name]).arg(folder).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), format!("{}: {printed}", output.status))
}

/// Fails with what is missing here. No failure but that is a reason to skip.
fn probe() {
    if let Err(Error::Lockdown(missing @ LockdownError::Missing(_))) = Lockdown::new().enforce() {
        println!("{missing}");
        std::process::exit(1);
    }
}

/// A thread that does what it is sent.
struct Hand {
    tasks: Sender<Box<dyn FnOnce() + Send>>,
    thread: JoinHandle<()>,
}

impl Hand {
    fn start() -> Self {
        let (tasks, received) = channel::<Box<dyn FnOnce() + Send>>();
        Self { tasks, thread: std::thread::spawn(move || received.into_iter().for_each(|task| task())) }
    }

    fn run<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> T {
        let (give, take) = channel();
        self.tasks.send(Box::new(move || give.send(task()).unwrap())).unwrap();
        take.recv().unwrap()
    }

    fn join(self) {
        drop(self.tasks);
        self.thread.join().unwrap();
    }
}

fn all_acts(folder: &Path, open: &Open) -> Vec<Act> {
    let [files, sockets] = [acts::files(folder), acts::sockets(open)];
    [files, sockets, acts::attributes(open), acts::calls(false), acts::processes(open)].concat()
}

fn every_thread_is_confined(root: &Path) {
    let [free, caller, earlier, later] =
        ["free", "caller", "earlier", "later"].map(|name| prepare(root, name));
    let open = Arc::new(Open::new(root));
    let hand = Hand::start();
    // A read that lasts through the lockdown: the signal must not end it.
    let (mut reads, mut writes) = std::io::pipe().unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = [0; 4];
        reads.read(&mut bytes).map(|_| bytes) // which, unlike `read_exact`, tells of an interruption
    });
    let can_fail = ["x32", "io_uring", "bpf", "open_by", "mount", "setxattr", "pidfd", "ptrace", "inet6"];
    for (act, errno, expected) in acts::calls(true).into_iter().chain(acts::attributes(&open)) {
        assert!(errno != expected || expected == 0, "{act} fails with {errno} before the lockdown too");
    }
    let [files, sockets] = [acts::files(&free), acts::sockets(&open)];
    for (act, errno, expected) in [files, sockets, acts::processes(&open)].concat() {
        assert!(errno != expected || expected == 0, "{act} fails with {errno} before the lockdown too");
        let works = errno == 0 || act == "join a group" || can_fail.iter().any(|name| act.contains(name));
        assert!(works, "{act} does not work: {errno}");
    }

    let mut lockdown = Lockdown::new();
    for folder in [&caller, &earlier, &later] {
        lockdown = lockdown.allow_read(folder.join("allowed"));
    }
    let enforced = lockdown.enforce().unwrap();
    let Enforced { system_calls, threads, threads_unconfined, readable_paths, missing, .. } = &enforced;
    assert_eq!((system_calls, threads, threads_unconfined, readable_paths), (&true, &3, &0, &3));
    assert!(missing.is_empty() && enforced.landlock_abi >= 6, "{enforced}");

    let judge = |whose: &str, acts: Vec<Act>| {
        let wrong: Vec<_> = acts.into_iter().filter(|(_, errno, expected)| errno != expected).collect();
        assert!(wrong.is_empty(), "{whose} (act, errno, expected): {wrong:?}");
    };
    judge("the caller's thread", all_acts(&caller, &open));
    let shared = open.clone();
    judge("a thread started before", hand.run(move || all_acts(&earlier, &shared)));
    let shared = open.clone();
    judge("a thread started after", std::thread::spawn(move || all_acts(&later, &shared)).join().unwrap());

    // threads still signal each other, sockets still accept, and the pipe is still read
    let thread = std::os::unix::thread::JoinHandleExt::as_pthread_t(&hand.thread);
    // SAFETY: a thread that runs until it is joined below; signal 0 only asks.
    assert_eq!(unsafe { libc::pthread_kill(thread, 0) }, 0);
    assert!(open.listener.accept().is_ok());
    writes.write_all(b"live").unwrap();
    assert_eq!(&reader.join().unwrap().unwrap(), b"live");
    hand.join();
    let again = Lockdown::new().enforce();
    assert!(matches!(again, Err(Error::Lockdown(LockdownError::Already))), "{again:?}");
}

/// Lines of threads in which each starts the next one and ends.
struct Lines {
    secret: std::path::PathBuf,
    enforced: AtomicBool,
    stop: AtomicBool,
    born: AtomicUsize,
    /// Threads that could read the secret although the lockdown was enforced before they tried.
    free: AtomicUsize,
    ended: AtomicUsize,
}

fn next(lines: Arc<Lines>) {
    std::thread::spawn(move || {
        let enforced = lines.enforced.load(Ordering::SeqCst);
        let read = errno(fs::read(&lines.secret));
        lines.free.fetch_add(usize::from(enforced && read != EACCES), Ordering::SeqCst);
        lines.born.fetch_add(1, Ordering::SeqCst);
        match lines.stop.load(Ordering::SeqCst) {
            true => drop(lines.ended.fetch_add(1, Ordering::SeqCst)),
            false => next(lines),
        }
    });
}

fn threads_that_are_born_meanwhile(root: &Path) {
    const LINES: usize = 4;
    let secret = prepare(root, "x").join("secret/file");
    let (enforced, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let [born, free, ended] = [const { AtomicUsize::new(0) }; 3];
    let lines = Arc::new(Lines { secret, enforced, stop, born, free, ended });
    (0..LINES).for_each(|_| next(lines.clone()));
    let wait_for = |born| {
        while lines.born.load(Ordering::SeqCst) < born {
            std::thread::yield_now();
        }
    };
    wait_for(100);
    let outcome = Lockdown::new().enforce().unwrap();
    lines.enforced.store(true, Ordering::SeqCst);
    wait_for(lines.born.load(Ordering::SeqCst) + 200);
    lines.stop.store(true, Ordering::SeqCst);
    while lines.ended.load(Ordering::SeqCst) < LINES {
        std::thread::yield_now();
    }
    assert!(outcome.threads > 1 && outcome.threads_unconfined == 0, "{outcome}");
    assert_eq!(lines.free.load(Ordering::SeqCst), 0, "threads are not confined");
}

/// How a forked child ends that does nothing but `act`.
fn forked(act: impl FnOnce() -> c_int) -> c_int {
    // SAFETY: between fork and _exit the child does what `act` does: system calls only, no lock and no allocation.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::_exit(act());
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        status
    }
}

fn children_inherit_it(root: &Path) {
    let secret = c_path(&prepare(root, "x").join("secret/file"));
    let read = || {
        // SAFETY: a path that ends with zero and lives until the call returns.
        let file = unsafe { libc::open(secret.as_ptr(), libc::O_RDONLY) };
        if file >= 0 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap() }
    };
    assert_eq!(forked(read), 0);
    Lockdown::new().enforce().unwrap();
    let status = forked(read);
    assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, EACCES));
}

#[cfg(target_arch = "x86_64")]
fn a_call_of_another_architecture_ends_the_process(_: &Path) {
    let getpid_of_i386 = || {
        let answer: c_int;
        // SAFETY: the 32-bit call 20, getpid, which takes nothing and writes its answer to eax.
        unsafe {
            std::arch::asm!("int 0x80", inlateout("eax") 20 => answer, out("r8") _, out("r9") _, out("r10") _, out("r11") _)
        };
        c_int::from(answer <= 0)
    };
    let before = forked(getpid_of_i386);
    assert!(
        before == 0 || libc::WIFSIGNALED(before) && libc::WTERMSIG(before) == libc::SIGSEGV,
        "{before:#x}"
    );
    Lockdown::new().enforce().unwrap();
    let status = forked(getpid_of_i386);
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS, "{status:#x}");
}

#[cfg(not(target_arch = "x86_64"))]
fn a_call_of_another_architecture_ends_the_process(_: &Path) {}

/// A thread that blocks every signal, and then does what it is told.
fn deaf() -> Hand {
    let hand = Hand::start();
    hand.run(|| mask(libc::SIG_BLOCK));
    hand
}

fn mask(how: c_int) {
    // SAFETY: a set that this function owns, filled before it is used.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        assert_eq!(libc::pthread_sigmask(how, &all, std::ptr::null_mut()), 0);
    }
}

fn a_thread_that_blocks_signals_is_an_error(root: &Path) {
    let folder = prepare(root, "x");
    let hand = deaf();
    let error = Lockdown::new().enforce().unwrap_err();
    assert!(matches!(error, Error::Lockdown(LockdownError::Threads { silent: 1 })), "{error}");
    let nothing_enforced = acts::files(&folder);
    assert!(nothing_enforced.iter().all(|(_, errno, _)| *errno == 0), "{nothing_enforced:?}");
    // A signal that were still pending would end the process here.
    hand.run(|| mask(libc::SIG_UNBLOCK));
    let enforced = Lockdown::new().enforce().unwrap();
    assert_eq!((enforced.threads, enforced.threads_unconfined), (2, 0));
    let secret = folder.join("secret/file");
    assert_eq!(hand.run(move || errno(fs::read(secret))), EACCES);
    hand.join();
}

fn a_thread_that_blocks_signals_is_counted(root: &Path) {
    let folder = prepare(root, "x");
    let (hand, other) = (deaf(), Hand::start());
    let enforced = Lockdown::new().requirement(Requirement::BestEffort).enforce().unwrap();
    assert_eq!((enforced.threads, enforced.threads_unconfined), (2, 1), "{enforced}");
    assert!(enforced.system_calls && enforced.missing == [Restriction::AllThreads], "{enforced}");
    let acts = move || {
        let read = errno(fs::read(folder.join("secret/file")));
        (read, errno(fs::File::create(folder.join("new"))))
    };
    assert_eq!(hand.run(acts.clone()), (0, EPERM), "Landlock does not reach it, the filter does");
    assert_eq!(other.run(acts.clone()), (EACCES, EPERM));
    assert_eq!(acts(), (EACCES, EPERM));
    hand.run(|| mask(libc::SIG_UNBLOCK));
    hand.join();
    other.join();
}

fn options_change_what_is_denied(root: &Path) {
    let open = Open::new(root);
    let sent = || {
        let acts = acts::sockets(&open).into_iter().filter(|(act, ..)| act.starts_with("send"));
        acts.map(|(act, errno, _)| (act, errno)).collect::<Vec<_>>()
    };
    let (accepted, _) = open.listener.accept().unwrap();
    open.listener.set_nonblocking(true).unwrap();
    Lockdown::new().deny_accept().allow_sendmsg().enforce().unwrap();
    assert_eq!(errno(open.listener.accept()), EPERM);
    let expected = [
        ("sendmsg to an address", 0),
        ("sendmsg", 0),
        ("sendmmsg", 0),
        ("send to an address", EPERM),
        ("send on what is open", 0),
    ];
    assert_eq!(sent(), expected);
    drop(accepted);
}

fn settings_of_the_process(root: &Path) {
    std::env::set_current_dir(root).unwrap();
    let status = |line: &str| {
        let text = fs::read_to_string("/proc/self/limits").unwrap();
        let line = text.lines().find_map(|text| text.strip_prefix(line)).unwrap().to_owned();
        line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    // SAFETY (all below): numbers, and a structure that lives until the call returns.
    let get = |option: c_int| unsafe { libc::prctl(option, 0_u64, 0_u64, 0_u64, 0_u64) };
    let dumps = |status: c_int| {
        assert!(libc::WIFSIGNALED(status), "{status:#x}");
        libc::WCOREDUMP(status)
    };
    let crash = || unsafe { libc::abort() };
    let to_files = !fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap().starts_with(['|', '@']);
    let hard = status("Max core file size")[1].clone();
    if hard == "unlimited" {
        let all = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &all) }, 0);
        assert!(
            !to_files || dumps(forked(crash)),
            "a crash writes no core file anyway: the test below shows nothing"
        );
    }
    let forbidden = process::forbid_core_dumps().unwrap();
    let (expected, limit) = match &*hard {
        "0" => (process::CoreDumps::OnlyFiles, "0"),
        _ => (process::CoreDumps::Forbidden, "1"),
    };
    assert_eq!((forbidden, status("Max core file size")), (expected, vec![limit.to_owned(); 2]));
    assert!(!to_files || !dumps(forked(crash)));

    // what a parent or a service manager may have switched on
    const SET_MEMORY_MERGE: c_int = 67;
    let has_ksm = unsafe { libc::prctl(SET_MEMORY_MERGE, 1_u64, 0_u64, 0_u64, 0_u64) } == 0;
    assert!(!has_ksm || get(SET_MEMORY_MERGE + 1) == 1);
    assert_eq!(process::opt_out_of_ksm().is_ok(), has_ksm);
    assert!(!has_ksm || get(SET_MEMORY_MERGE + 1) == 0);

    assert_eq!(get(libc::PR_GET_DUMPABLE), 1);
    process::undumpable().unwrap();
    assert_eq!(get(libc::PR_GET_DUMPABLE), 0);

    Lockdown::new().enforce().unwrap();
    let undo = |option: c_int| errno_of(unsafe { libc::prctl(option, 1_u64, 0_u64, 0_u64, 0_u64) });
    let all = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    let raise = errno_of(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &all) });
    assert_eq!((undo(libc::PR_SET_DUMPABLE), undo(SET_MEMORY_MERGE), raise), (EPERM, EPERM, EPERM));
}

fn errno_of(returned: c_int) -> c_int {
    if returned < 0 { std::io::Error::last_os_error().raw_os_error().unwrap() } else { 0 }
}

/// What a session can do, as text.
fn uses(session: &Session) -> Vec<String> {
    let ask = || Request::prompt("Ownership is").max_tokens(24).temperature(0.8).seed(5);
    let mut texts = vec![session.generate(ask()).unwrap().into_text()];
    let mut stream = session.stream(ask()).unwrap();
    texts.push(stream.by_ref().map(|piece| piece.unwrap().text().to_owned()).collect());
    let chosen = ask().response_format(ResponseFormat::regex("(yes|no|maybe)!"));
    texts.push(session.generate(chosen).unwrap().into_text());
    let mut conversation = session.conversation();
    texts.extend((0..2).map(|_| conversation.generate(ask()).unwrap().into_text()));
    texts
}

fn a_session_goes_on(root: &Path) {
    let secret = prepare(root, "x").join("secret/file");
    let open = || Session::builder(default_model()).threads(2).open().unwrap();
    let expected = uses(&open());
    assert!(expected.iter().all(|text| !text.is_empty()));
    // A session of its own: its lazy threads and buffers come after the lockdown.
    let session = open();
    let enforced = Lockdown::new().enforce().unwrap();
    assert!(enforced.threads >= 3 && enforced.threads_unconfined == 0, "{enforced}");
    assert_eq!(uses(&session), expected);
    assert_eq!(errno(fs::read(secret)), EACCES);
    let reopened = Session::builder(default_model()).open();
    assert!(matches!(reopened, Err(Error::Read { .. })), "weights can still be opened");
    let report = session.close().unwrap();
    assert!(report.requests() == 5 && report.verified_bytes() > 0, "{report}");
}
