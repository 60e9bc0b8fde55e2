//! What a thread tries under a lockdown, and what it is answered.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use libc::{EACCES, ENOSYS, EPERM, c_int, c_long};

/// What was open before the lockdown.
pub struct Open {
    pub listener: TcpListener,
    pub stream: TcpStream,
    pub unconnected: UdpSocket,
    pub file: File,
    pub parent: c_int,
}

impl Open {
    pub fn new(folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let file = File::create(folder.join("open before")).unwrap();
        let unconnected = UdpSocket::bind("127.0.0.1:0").unwrap();
        // SAFETY: takes nothing and cannot fail.
        let parent = unsafe { libc::getppid() };
        Self { listener, stream, unconnected, file, parent }
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
        ("send to an address", errno(open.unconnected.send_to(b"x", address)), EPERM),
        ("a new connection", errno(TcpStream::connect(address)), EPERM),
        ("send on what is open", errno(io::Write::write(&mut &open.stream, b"x")), 0),
        ("write to what is open", errno(io::Write::write(&mut &open.file, b"x")), 0),
    ]
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
        ("shmget", syscall(libc::SYS_shmget), EPERM),
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
