//! What a thread tries under a lockdown, and what it is answered.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use libc::{EACCES, ENOSYS, EPERM, c_int, c_long};

/// What was open before the lockdown.
pub struct Open {
    pub listener: TcpListener,
    pub stream: TcpStream,
    pub unconnected: UdpSocket,
    pub file: File,
    pub read_only: File,
    pub parent: c_int,
}

impl Open {
    pub fn new(folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let file = File::create(folder.join("open before")).unwrap();
        let read_only = File::open(folder.join("open before")).unwrap();
        let unconnected = UdpSocket::bind("127.0.0.1:0").unwrap();
        // SAFETY: takes nothing and cannot fail.
        let parent = unsafe { libc::getppid() };
        Self { listener, stream, unconnected, file, read_only, parent }
    }
}

/// A folder for the acts of one thread at one time: none of them gets in another's way.
pub fn prepare(root: &Path, name: &str) -> PathBuf {
    let folder = root.join(name);
    for file in
        ["written", "truncated", "cut", "linked", "renamed", "removed", "secret/file", "allowed/file", "rm/x"]
    {
        let path = folder.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "text").unwrap();
    }
    fs::create_dir(folder.join("empty")).unwrap();
    folder
}

/// An act, its errno (0 if it succeeded), and what it must be under the lockdown.
pub type Act = (&'static str, c_int, c_int);

pub fn files(at: &Path) -> Vec<Act> {
    let path = |name: &str| c_path(&at.join(name));
    let (written, cut, fifo) = (path("written"), path("cut"), path("fifo"));
    // SAFETY (all below): paths end with zero and live until the call returns; the rest are numbers.
    let calls: [(&str, c_int, c_int); 5] = unsafe {
        [
            ("truncate", answer(libc::truncate(cut.as_ptr(), 1)), EPERM),
            ("make a pipe", answer(libc::mkfifo(fifo.as_ptr(), 0o600)), EPERM),
            ("change a mode", answer(libc::chmod(written.as_ptr(), 0o600)), EPERM),
            ("creat", answer(libc::creat(path("created").as_ptr(), 0o600)), EPERM),
            ("openat2", openat2(&written), ENOSYS),
        ]
    };
    let mut acts = vec![
        ("create", errno(File::create(at.join("new"))), EPERM),
        ("open to write", errno(OpenOptions::new().write(true).open(at.join("written"))), EPERM),
        ("open to append", errno(OpenOptions::new().append(true).open(at.join("written"))), EPERM),
        ("open to truncate", errno(File::create(at.join("truncated"))), EPERM),
        ("make a folder", errno(fs::create_dir(at.join("folder"))), EPERM),
        ("make a symbolic link", errno(std::os::unix::fs::symlink("written", at.join("symlink"))), EPERM),
        ("make a hard link", errno(fs::hard_link(at.join("linked"), at.join("hard link"))), EPERM),
        ("rename", errno(fs::rename(at.join("renamed"), at.join("renamed 2"))), EPERM),
        ("remove a file", errno(fs::remove_file(at.join("removed"))), EPERM),
        ("remove a folder", errno(fs::remove_dir(at.join("empty"))), EPERM),
        ("read", errno(fs::read(at.join("secret/file"))), EACCES),
        ("list", errno(fs::read_dir(at.join("secret"))), EACCES),
        ("read of /proc", errno(fs::read("/proc/self/maps")), EACCES),
        ("read where it is allowed", errno(fs::read(at.join("allowed/file"))), 0),
        ("list where it is allowed", errno(fs::read_dir(at.join("allowed"))), 0),
    ];
    acts.extend(calls);
    acts
}

pub fn sockets(open: &Open) -> Vec<Act> {
    let address = open.listener.local_addr().unwrap();
    let datagrams = open.unconnected.as_raw_fd();
    let socket = |family, kind| {
        // SAFETY: takes numbers only; the descriptor, if any, is this closure's to close.
        unsafe {
            let socket = libc::socket(family, kind, 0);
            let errno = answer(socket);
            libc::close(socket);
            errno
        }
    };
    let mut ends = [0; 2];
    // SAFETY: a place for two descriptors, which are left open: a handful in a short process.
    let pair = answer(unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, ends.as_mut_ptr()) });
    // SAFETY: an address that says no family ends a connection: it needs no more than that field.
    let connect = unsafe {
        let mut nowhere: libc::sockaddr = std::mem::zeroed();
        nowhere.sa_family = libc::AF_UNSPEC as u16;
        answer(libc::connect(datagrams, &nowhere, size_of::<libc::sockaddr>() as u32))
    };
    // SAFETY: takes numbers only. The socket listens already.
    let listen = answer(unsafe { libc::listen(open.listener.as_raw_fd(), 16) });
    vec![
        ("socket inet", socket(libc::AF_INET, libc::SOCK_STREAM), EPERM),
        ("socket inet6", socket(libc::AF_INET6, libc::SOCK_DGRAM), EPERM),
        ("socket unix", socket(libc::AF_UNIX, libc::SOCK_STREAM), EPERM),
        ("socket netlink", socket(libc::AF_NETLINK, libc::SOCK_RAW), EPERM),
        ("socketpair", pair, EPERM),
        ("connect", connect, EPERM),
        ("listen", listen, EPERM),
        ("sendmsg to an address", message(datagrams, Some(address)), EPERM),
        ("sendmsg", message(open.stream.as_raw_fd(), None), EPERM),
        ("sendmmsg", messages(datagrams, address), EPERM),
        ("join a group", join(datagrams), EPERM),
        ("set an option", errno(open.stream.set_nodelay(true)), 0),
        ("send to an address", errno(open.unconnected.send_to(b"x", address)), EPERM),
        ("a new connection", errno(TcpStream::connect(address)), EPERM),
        ("send on what is open", errno(io::Write::write(&mut &open.stream, b"x")), 0),
        ("write to what is open", errno(io::Write::write(&mut &open.file, b"x")), 0),
    ]
}

/// A message by `sendmsg`, to an address or on what is connected.
fn message(socket: c_int, to: Option<SocketAddr>) -> c_int {
    let mut address = to.map(ipv4);
    // SAFETY: header, address and text live until the call returns.
    answer(unsafe { libc::sendmsg(socket, &header(&mut address, &mut iovec()), 0) } as i64)
}

fn messages(socket: c_int, to: SocketAddr) -> c_int {
    let (mut address, mut text) = (Some(ipv4(to)), iovec());
    let mut one = libc::mmsghdr { msg_hdr: header(&mut address, &mut text), msg_len: 0 };
    // SAFETY: as above; one header is there.
    answer(unsafe { libc::sendmmsg(socket, &mut one, 1, 0) })
}

fn header(address: &mut Option<libc::sockaddr_in>, text: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: all fields may be zero.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    if let Some(address) = address {
        header.msg_name = (&raw mut *address).cast();
        header.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
    }
    (header.msg_iov, header.msg_iovlen) = (text, 1);
    header
}

fn iovec() -> libc::iovec {
    libc::iovec { iov_base: c"x".as_ptr().cast_mut().cast(), iov_len: 1 }
}

fn ipv4(address: SocketAddr) -> libc::sockaddr_in {
    // SAFETY: all fields may be zero.
    let mut raw: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    raw.sin_family = libc::AF_INET as u16;
    raw.sin_port = address.port().to_be();
    raw.sin_addr.s_addr = u32::from(std::net::Ipv4Addr::LOCALHOST).to_be();
    raw
}

/// Joining a group of multicast, with an option too short for one: refused as that, unless it is denied.
fn join(socket: c_int) -> c_int {
    // SAFETY: an option of no bytes.
    answer(unsafe {
        libc::setsockopt(socket, libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, std::ptr::null(), 0)
    })
}

/// The flags of a file, and what else stands beside its content, through a descriptor that was opened for reading.
pub fn attributes(open: &Open) -> Vec<Act> {
    let file = open.read_only.as_raw_fd();
    let request = |number: u64| {
        let mut argument = [0_u8; 256];
        argument[0] = 0x40; // FS_NODUMP_FL
        // SAFETY: each of these requests reads or writes at most so many bytes, which live until the call returns.
        answer(unsafe { libc::ioctl(file, number as _, argument.as_mut_ptr()) })
    };
    vec![
        ("FS_IOC_SETFLAGS", request(0x4008_6602), EPERM),
        ("FS_IOC32_SETFLAGS", request(0x4004_6602), EPERM),
        ("FS_IOC_FSSETXATTR", request(0x401c_5820), EPERM),
        ("FS_IOC_SETVERSION", request(0x4008_7602), EPERM),
        ("FS_IOC_ENABLE_VERITY", request(0x4080_6685), EPERM),
        ("FICLONE", request(0x4004_9409), EPERM),
        ("FIONREAD", request(0x541b), 0),
    ]
}

/// Bad pointers and descriptors: without a lockdown each of these calls fails, but for other reasons than `EPERM`,
/// unless it asks first whether the process has a privilege ([`Call::privileged`]).
const BAD: usize = usize::MAX;

struct Call {
    name: &'static str,
    number: c_long,
    arguments: [usize; 5],
    privileged: bool,
}

const fn call(name: &'static str, number: c_long, arguments: [usize; 5]) -> Call {
    Call { name, number, arguments, privileged: false }
}

const fn privileged(name: &'static str, number: c_long, arguments: [usize; 5]) -> Call {
    Call { name, number, arguments, privileged: true }
}

const THREAD: usize = libc::CLONE_THREAD as usize; // without CLONE_SIGHAND, which is refused

#[rustfmt::skip]
const CALLS: &[Call] = &[
    call("shmget", libc::SYS_shmget, [BAD, 0, 0, 0, 0]),
    call("shmat", libc::SYS_shmat, [BAD, 0, 0, 0, 0]),
    call("shmdt", libc::SYS_shmdt, [1, 0, 0, 0, 0]),
    call("shmctl", libc::SYS_shmctl, [BAD, 99, 0, 0, 0]),
    call("msgget", libc::SYS_msgget, [BAD, 0, 0, 0, 0]),
    call("msgsnd", libc::SYS_msgsnd, [BAD, BAD, BAD, 0, 0]),
    call("msgrcv", libc::SYS_msgrcv, [BAD, BAD, BAD, 0, 0]),
    call("msgctl", libc::SYS_msgctl, [BAD, 99, 0, 0, 0]),
    call("semget", libc::SYS_semget, [BAD, 0, 0, 0, 0]),
    call("semop", libc::SYS_semop, [BAD, BAD, 0, 0, 0]),
    call("semtimedop", libc::SYS_semtimedop, [BAD, BAD, 0, 0, 0]),
    call("semctl", libc::SYS_semctl, [BAD, 0, 99, 0, 0]),
    call("mq_open", libc::SYS_mq_open, [BAD, 0, 0, 0, 0]),
    call("mq_unlink", libc::SYS_mq_unlink, [BAD, 0, 0, 0, 0]),
    call("setns", libc::SYS_setns, [BAD, 0, 0, 0, 0]),
    call("unshare", libc::SYS_unshare, [1, 0, 0, 0, 0]),
    call("clone with a namespace of mounts", libc::SYS_clone, [libc::CLONE_NEWNS as usize | THREAD, 0, 0, 0, 0]),
    call("clone with a namespace of control groups", libc::SYS_clone, [libc::CLONE_NEWCGROUP as usize | THREAD, 0, 0, 0, 0]),
    call("clone with a namespace of names", libc::SYS_clone, [libc::CLONE_NEWUTS as usize | THREAD, 0, 0, 0, 0]),
    call("clone with a namespace of IPC", libc::SYS_clone, [libc::CLONE_NEWIPC as usize | THREAD, 0, 0, 0, 0]),
    call("clone with a namespace of users", libc::SYS_clone, [libc::CLONE_NEWUSER as usize | THREAD, 0, 0, 0, 0]),
    call("clone with a namespace of processes", libc::SYS_clone, [libc::CLONE_NEWPID as usize | THREAD, 0, 0, 0, 0]),
    call("clone with a namespace of networks", libc::SYS_clone, [libc::CLONE_NEWNET as usize | THREAD, 0, 0, 0, 0]),
    call("clock_settime", libc::SYS_clock_settime, [libc::CLOCK_MONOTONIC as usize, 0, 0, 0, 0]),
    call("settimeofday", libc::SYS_settimeofday, [BAD, 0, 0, 0, 0]),
    call("adjtimex", libc::SYS_adjtimex, [BAD, 0, 0, 0, 0]),
    call("clock_adjtime", libc::SYS_clock_adjtime, [libc::CLOCK_REALTIME as usize, BAD, 0, 0, 0]),
    privileged("sethostname", libc::SYS_sethostname, [BAD, BAD, 0, 0, 0]),
    privileged("setdomainname", libc::SYS_setdomainname, [BAD, BAD, 0, 0, 0]),
    call("quotactl", libc::SYS_quotactl, [BAD, BAD, BAD, BAD, 0]),
    call("quotactl_fd", 443, [BAD, BAD, BAD, BAD, 0]),
    call("lsm_set_self_attr", 460, [BAD, BAD, 0, BAD, 0]),
    privileged("fanotify_init", libc::SYS_fanotify_init, [BAD, 0, 0, 0, 0]),
    privileged("userfaultfd", libc::SYS_userfaultfd, [0x8000_0000, 0, 0, 0, 0]),
    privileged("perf_event_open", libc::SYS_perf_event_open, [BAD, 0, 0, BAD, 0]),
    call("process_vm_writev", libc::SYS_process_vm_writev, [0, BAD, 1, BAD, 1]),
    call("kcmp", libc::SYS_kcmp, [0, 0, 99, 0, 0]),
    call("io_uring_enter", libc::SYS_io_uring_enter, [BAD, 0, 0, 0, 0]),
    call("io_uring_register", libc::SYS_io_uring_register, [BAD, 0, 0, 0, 0]),
    call("keyctl", libc::SYS_keyctl, [BAD, 0, 0, 0, 0]),
    call("add_key", libc::SYS_add_key, [BAD, 0, 0, 0, 0]),
    call("request_key", libc::SYS_request_key, [BAD, 0, 0, 0, 0]),
    privileged("init_module", libc::SYS_init_module, [BAD, 0, 0, 0, 0]),
    privileged("finit_module", libc::SYS_finit_module, [BAD, 0, 0, 0, 0]),
    privileged("delete_module", libc::SYS_delete_module, [BAD, 0, 0, 0, 0]),
    privileged("kexec_load", libc::SYS_kexec_load, [0, BAD, BAD, BAD, 0]),
    privileged("reboot", libc::SYS_reboot, [0, 0, 0, 0, 0]),
    privileged("move_mount", libc::SYS_move_mount, [BAD, BAD, BAD, BAD, BAD]),
    privileged("open_tree", libc::SYS_open_tree, [BAD, BAD, BAD, 0, 0]),
    privileged("fsopen", libc::SYS_fsopen, [BAD, BAD, 0, 0, 0]),
    privileged("mount_setattr", libc::SYS_mount_setattr, [BAD, BAD, BAD, BAD, 0]),
    privileged("umount2", libc::SYS_umount2, [BAD, BAD, 0, 0, 0]),
    privileged("pivot_root", libc::SYS_pivot_root, [BAD, BAD, 0, 0, 0]),
    privileged("chroot", libc::SYS_chroot, [BAD, 0, 0, 0, 0]),
    privileged("swapon", libc::SYS_swapon, [BAD, 0, 0, 0, 0]),
    privileged("swapoff", libc::SYS_swapoff, [BAD, 0, 0, 0, 0]),
    privileged("acct", libc::SYS_acct, [BAD, 0, 0, 0, 0]),
];

/// Each call that is denied whatever its arguments are, and what answers otherwise; `telling` leaves out those that
/// answer who is not root with `EPERM` anyway.
pub fn calls(telling: bool) -> Vec<Act> {
    // SAFETY: takes nothing and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    let told = CALLS.iter().filter(|call| !telling || root || !call.privileged);
    let mut acts: Vec<Act> = told
        .map(|Call { name, number, arguments: [a, b, c, d, e], .. }| {
            // SAFETY: nothing lies at these addresses and no descriptor has these numbers: the calls fail, or are denied.
            (*name, answer(unsafe { libc::syscall(*number, *a, *b, *c, *d, *e) }), EPERM)
        })
        .collect();
    // SAFETY: a structure of no bytes, which is refused by its size.
    let clone3 = answer(unsafe { libc::syscall(libc::SYS_clone3, 0_usize, 0_usize) });
    // SAFETY: takes a name that ends with zero; the descriptor is closed at once.
    let memfd = unsafe {
        let file = libc::memfd_create(c"memory".as_ptr(), 0);
        let errno = answer(file);
        libc::close(file);
        errno
    };
    acts.extend([("clone3", clone3, ENOSYS), ("memfd_create", memfd, 0)]);
    acts
}

pub fn processes(open: &Open) -> Vec<Act> {
    let mut byte = 0_u8;
    let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut other = 7_u8;
    let remote = libc::iovec { iov_base: (&raw mut other).cast(), iov_len: 1 };
    let syscall = |number: c_long| {
        // SAFETY: with zeros for pointers and lengths these calls do nothing but fail.
        answer(unsafe { libc::syscall(number, 0_usize, 0_usize, 0_usize, 0_usize, 0_usize, 0_usize) })
    };
    // SAFETY: both describe one byte that lives until the call returns.
    let read = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
    let signal = |process| {
        // SAFETY: signal 0 only asks whether one could be sent.
        answer(unsafe { libc::kill(process, 0) })
    };
    // SAFETY: takes numbers only.
    let dumpable = answer(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1_u64, 0_u64, 0_u64, 0_u64) });
    // SAFETY: as above: no process has the number 0.
    let ptrace = answer(unsafe { libc::ptrace(libc::PTRACE_ATTACH, 0, 0_usize, 0_usize) });
    // SAFETY: takes nothing and cannot fail.
    let own = unsafe { libc::getpid() };
    let acts = [
        ("exec", errno(std::process::Command::new("/bin/true").status()), EPERM),
        ("process_vm_readv", answer(read as i64), EPERM),
        ("ptrace", ptrace, EPERM),
        ("io_uring_setup", syscall(libc::SYS_io_uring_setup), EPERM),
        ("bpf", syscall(libc::SYS_bpf), EPERM),
        ("open_by_handle_at", syscall(libc::SYS_open_by_handle_at), EPERM),
        ("mount", syscall(libc::SYS_mount), EPERM),
        ("setxattr", syscall(libc::SYS_setxattr), EPERM),
        ("pidfd_getfd", syscall(libc::SYS_pidfd_getfd), EPERM),
        ("dumpable", dumpable, EPERM),
        ("a signal to the parent", signal(open.parent), EPERM),
        ("a signal to itself", signal(own), 0),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let more = [];
    #[cfg(target_arch = "x86_64")]
    let more = [
        ("x32 getpid", syscall(0x4000_0000 | libc::SYS_getpid), EPERM),
        ("x32 execve", syscall(0x4000_0000 | 520), EPERM),
        ("x32 ptrace", syscall(0x4000_0000 | 521), EPERM),
        ("x32 execve without its bit", syscall(520), EPERM),
    ];
    acts.into_iter().chain(more).collect()
}

fn openat2(path: &std::ffi::CStr) -> c_int {
    let how = [0_u64; 3]; // struct open_how: flags, mode, resolve
    // SAFETY: the path ends with zero, the structure has the size that is given, and both live until the call returns.
    answer(unsafe {
        libc::syscall(libc::SYS_openat2, libc::AT_FDCWD, path.as_ptr(), how.as_ptr(), size_of_val(&how))
    })
}

pub fn c_path(path: &Path) -> std::ffi::CString {
    std::ffi::CString::new(path.to_str().unwrap()).unwrap()
}

pub fn errno<T>(result: io::Result<T>) -> c_int {
    result.err().map_or(0, |error| error.raw_os_error().unwrap_or(-1))
}

fn answer(returned: impl Into<i64>) -> c_int {
    if returned.into() < 0 { io::Error::last_os_error().raw_os_error().unwrap() } else { 0 }
}
