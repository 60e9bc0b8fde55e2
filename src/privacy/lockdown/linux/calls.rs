//! The filter of system calls: which are denied, with which arguments, and what they answer.
//!
//! A deny list, because what else the application calls is not known here. Every other call is let through.
#![expect(unsafe_code, reason = "asks the kernel which answers of a filter it knows")]

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

use super::super::LockdownError;

/// Denied whatever the arguments are.
#[rustfmt::skip]
const DENIED: &[c_long] = &[
    // new sockets, and new ends of those that are open
    libc::SYS_socket, libc::SYS_socketpair, libc::SYS_connect, libc::SYS_bind, libc::SYS_listen,
    // other programs
    libc::SYS_execve, libc::SYS_execveat,
    // other processes' memory and descriptors, and theirs to ours
    libc::SYS_ptrace, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_pidfd_getfd, libc::SYS_kcmp,
    libc::SYS_userfaultfd, libc::SYS_fanotify_init,
    // memory, queues and counters that other processes share and that outlive this one: all of System V's, and new
    // queues of POSIX
    libc::SYS_shmget, libc::SYS_shmat, libc::SYS_shmdt, libc::SYS_shmctl, libc::SYS_msgget, libc::SYS_msgsnd,
    libc::SYS_msgrcv, libc::SYS_msgctl, libc::SYS_semget, libc::SYS_semop, libc::SYS_semtimedop, libc::SYS_semctl,
    libc::SYS_mq_open, libc::SYS_mq_unlink,
    // namespaces, in which a process gains rights and sees other files and networks
    libc::SYS_setns, libc::SYS_unshare,
    // what the machine keeps: clocks, names, quotas, labels. What `adjtimex` sets stands in memory where no filter sees
    // it, so that reading by it is denied too.
    libc::SYS_clock_settime, libc::SYS_settimeofday, libc::SYS_adjtimex, libc::SYS_clock_adjtime,
    libc::SYS_sethostname, libc::SYS_setdomainname, libc::SYS_quotactl, QUOTACTL_FD, LSM_SET_SELF_ATTR,
    // operations that no filter sees
    libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register,
    // programs in the kernel, and looks into it
    libc::SYS_bpf, libc::SYS_perf_event_open, libc::SYS_init_module, libc::SYS_finit_module, libc::SYS_delete_module,
    libc::SYS_kexec_load, KEXEC_FILE_LOAD, libc::SYS_reboot,
    // keys outlive the process
    libc::SYS_keyctl, libc::SYS_add_key, libc::SYS_request_key,
    // mounts, roots, swap, accounting
    libc::SYS_mount, libc::SYS_umount2, libc::SYS_move_mount, libc::SYS_open_tree, libc::SYS_fsopen,
    libc::SYS_fsconfig, libc::SYS_fsmount, libc::SYS_fspick, libc::SYS_mount_setattr, OPEN_TREE_ATTR,
    libc::SYS_pivot_root, libc::SYS_chroot, libc::SYS_swapon, libc::SYS_swapoff, libc::SYS_acct,
    // files and folders: made, linked, renamed, removed, cut; opened without a path
    libc::SYS_mkdirat, libc::SYS_mknodat, libc::SYS_linkat, libc::SYS_symlinkat, RENAMEAT, libc::SYS_renameat2,
    libc::SYS_unlinkat, libc::SYS_truncate, libc::SYS_open_by_handle_at,
    // what is written beside a file's content, of which Landlock knows nothing
    libc::SYS_setxattr, libc::SYS_lsetxattr, libc::SYS_fsetxattr, SETXATTRAT, libc::SYS_removexattr,
    libc::SYS_lremovexattr, libc::SYS_fremovexattr, REMOVEXATTRAT, FILE_SETATTR, libc::SYS_fchmod, libc::SYS_fchmodat,
    FCHMODAT2, libc::SYS_fchown, libc::SYS_fchownat, libc::SYS_utimensat,
];

/// Calls that only x86-64 has: older names, and ports.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const DENIED_X86: &[c_long] = &[
    libc::SYS_creat, libc::SYS_mkdir, libc::SYS_mknod, libc::SYS_link, libc::SYS_symlink, libc::SYS_rename,
    libc::SYS_unlink, libc::SYS_rmdir, libc::SYS_chmod, libc::SYS_chown, libc::SYS_lchown, libc::SYS_utime,
    libc::SYS_utimes, libc::SYS_futimesat, libc::SYS_uselib,
    // ports of devices
    libc::SYS_iopl, libc::SYS_ioperm,
];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_X86: &[c_long] = &[];

// The same numbers on all architectures of the kernel's common table; younger than the libc crate's lists.
const QUOTACTL_FD: c_long = 443;
const FCHMODAT2: c_long = 452;
const LSM_SET_SELF_ATTR: c_long = 460;
const SETXATTRAT: c_long = 463;
const REMOVEXATTRAT: c_long = 466;
const OPEN_TREE_ATTR: c_long = 467;
const FILE_SETATTR: c_long = 469;
#[cfg(target_arch = "x86_64")]
const KEXEC_FILE_LOAD: c_long = 320;
#[cfg(target_arch = "aarch64")]
const KEXEC_FILE_LOAD: c_long = 294;
#[cfg(target_arch = "x86_64")]
const RENAMEAT: c_long = 264;
#[cfg(target_arch = "aarch64")]
const RENAMEAT: c_long = 38;

/// Flags of `open` with which a file is written, cut or made.
const WRITES: u64 = (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC) as u64;
/// A connection made by the first data that is sent.
const FAST_OPEN: u64 = libc::MSG_FASTOPEN as u64;
const MEMORY_MERGE: u64 = 67; // PR_SET_MEMORY_MERGE
const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541c;
/// Types of file systems' own ioctls (the second byte of a request): flags, versions, encryption and verity of files
/// (`f`, `v`), attributes of XFS that all took over (`X`), and btrfs, which makes subvolumes and clones files by them.
/// Many of them write by a descriptor that was opened for reading, so that all of them are denied; with them go those
/// that only read, as lists of flags and extents.
const FILE_SYSTEMS: [u8; 4] = [b'f', b'v', b'X', 0x94];
/// Requests that set up networks, routes and interfaces by any open socket; below are those of sockets themselves.
const NETWORKS: std::ops::RangeInclusive<u64> = 0x890b..=0x89ff;
/// Flags of `clone` that make a namespace. `CLONE_NEWTIME` is none of them: `clone` reads a signal there.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;
/// Options of sockets that join a group, which tells the network its address, or set the system's packet filters.
const GROUPS_AND_FILTERS: [(libc::c_int, std::ops::RangeInclusive<u64>); 6] = [
    (libc::IPPROTO_IP, 35..=48),
    (libc::IPPROTO_IP, 64..=65),
    (libc::IPPROTO_IPV6, 20..=21),
    (libc::IPPROTO_IPV6, 27..=28),
    (libc::IPPROTO_IPV6, 42..=48),
    (libc::IPPROTO_IPV6, 64..=65),
];

/// Whether the kernel filters system calls, and knows an error as the answer.
pub fn available() -> bool {
    const GET_ACTION_AVAIL: u32 = 2;
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the kernel reads the action, four bytes that live until the call returns, and changes nothing.
    unsafe { libc::syscall(libc::SYS_seccomp, GET_ACTION_AVAIL, 0_u32, &raw const action) == 0 }
}

/// The program that the kernel runs at each system call.
pub fn filter(deny_accept: bool, allow_sendmsg: bool) -> Result<BpfProgram, LockdownError> {
    let refused = |error| LockdownError::Refused { call: "seccomp", source: std::io::Error::other(error) };
    let denied = rules(deny_accept, allow_sendmsg).map_err(refused)?;
    let eperm = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(denied, SeccompAction::Allow, eperm, ARCHITECTURE).map_err(refused)?;
    let mut program = first_checks();
    program.extend(BpfProgram::try_from(filter).map_err(refused)?);
    Ok(program)
}

/// Puts the filter on all threads of the process at once, or on none.
pub fn apply(filter: &BpfProgram) -> Result<(), LockdownError> {
    let source = |error| match error {
        seccompiler::Error::Prctl(source) | seccompiler::Error::Seccomp(source) => source,
        other => std::io::Error::other(other),
    };
    seccompiler::apply_filter_all_threads(filter)
        .map_err(|error| LockdownError::Refused { call: "seccomp", source: source(error) })
}

type Rules = Result<Vec<SeccompRule>, seccompiler::BackendError>;

/// The numbers of denied calls, with the arguments that are denied; none for all.
fn rules(
    deny_accept: bool,
    allow_sendmsg: bool,
) -> Result<BTreeMap<c_long, Vec<SeccompRule>>, seccompiler::BackendError> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> =
        DENIED.iter().chain(DENIED_X86).map(|&call| (call, vec![])).collect();
    let mut to_address = vec![SeccompRule::new(vec![not(4, 0)?])?];
    to_address.extend(any_bit(3, FAST_OPEN)?);
    rules.insert(libc::SYS_sendto, to_address);
    rules.insert(libc::SYS_sendmsg, if allow_sendmsg { any_bit(2, FAST_OPEN)? } else { vec![] });
    rules.insert(libc::SYS_sendmmsg, if allow_sendmsg { any_bit(3, FAST_OPEN)? } else { vec![] });
    if deny_accept {
        rules.insert(libc::SYS_accept, vec![]);
        rules.insert(libc::SYS_accept4, vec![]);
    }
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, any_bit(1, WRITES)?);
    rules.insert(libc::SYS_openat, any_bit(2, WRITES)?);
    rules.insert(libc::SYS_clone, any_bit(0, NAMESPACES)?);
    let mut requests =
        vec![when(1, TIOCSTI)?, when(1, TIOCLINUX)?, SeccompRule::new(within(1, &NETWORKS)?.to_vec())?];
    for kind in FILE_SYSTEMS {
        let byte = SeccompCmpOp::MaskedEq(0xff00);
        let of_kind = SeccompCondition::new(1, SeccompCmpArgLen::Dword, byte, u64::from(kind) << 8)?;
        requests.push(SeccompRule::new(vec![of_kind])?);
    }
    rules.insert(libc::SYS_ioctl, requests);
    let mut options = Vec::new();
    for (level, names) in GROUPS_AND_FILTERS {
        let [from, to] = within(2, &names)?;
        options.push(SeccompRule::new(vec![is(1, level as u64)?, from, to])?);
    }
    rules.insert(libc::SYS_setsockopt, options);
    // What `privacy::process` and the arena have set stays set.
    let undone = |option: u64| SeccompRule::new(vec![is(0, option)?, not(1, 0)?]);
    let (dumpable, ptracer) = (libc::PR_SET_DUMPABLE as u64, libc::PR_SET_PTRACER as u64);
    rules.insert(libc::SYS_prctl, vec![undone(dumpable)?, undone(MEMORY_MERGE)?, undone(ptracer)?]);
    let core = libc::RLIMIT_CORE as u64;
    rules.insert(libc::SYS_setrlimit, vec![when(0, core)?]);
    rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(vec![is(1, core)?, not(2, 0)?])?]);
    let advice = [libc::MADV_DODUMP, libc::MADV_MERGEABLE, libc::MADV_KEEPONFORK];
    let advice: Rules = advice.into_iter().map(|advice| when(2, advice as u64)).collect();
    rules.insert(libc::SYS_madvise, advice?);
    Ok(rules)
}

/// A rule for each of these bits: it is set in the argument, of which the kernel reads the lower half.
fn any_bit(argument: u8, bits: u64) -> Rules {
    let bits = (0..u64::BITS).map(|bit| 1 << bit).filter(|bit| bits & bit != 0);
    let set = |bit| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(bit), bit)
            .and_then(|condition| SeccompRule::new(vec![condition]))
    };
    bits.map(set).collect()
}

fn when(argument: u8, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![is(argument, value)?])
}

/// For arguments of which the kernel reads the lower half.
fn within(
    argument: u8,
    values: &std::ops::RangeInclusive<u64>,
) -> Result<[SeccompCondition; 2], seccompiler::BackendError> {
    let bound =
        |comparison, value| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, comparison, value);
    Ok([bound(SeccompCmpOp::Ge, *values.start())?, bound(SeccompCmpOp::Le, *values.end())?])
}

/// For arguments of which the kernel reads the lower half.
fn is(argument: u8, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

/// For pointers and other arguments that the kernel reads in full.
fn not(argument: u8, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Ne, value)
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: TargetArch = TargetArch::aarch64;
/// `AUDIT_ARCH_X86_64` and `AUDIT_ARCH_AARCH64`.
#[cfg(target_arch = "x86_64")]
const AUDIT_ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCHITECTURE: u32 = 0xc000_00b7;

/// Before the list, which has one answer and single numbers: what has another answer, or is a range.
///
/// - `openat2` and `clone3` have their flags in memory: `ENOSYS`, so that callers fall back to `openat` and `clone`, as
///   they do on kernels that have neither.
/// - x32, a second set of numbers on x86-64 that passes for the same architecture: all of it, `EPERM`. Its own calls are
///   512 to 547, which old kernels take without the bit of x32 too.
///
/// Calls of another architecture are left to the list, which ends the process.
fn first_checks() -> BpfProgram {
    const NUMBER: u32 = 0; // offsets in `struct seccomp_data`
    const ARCH: u32 = 4;
    let enosys = answer(libc::ENOSYS);
    let mut checks = vec![
        load(NUMBER),
        jump(libc::BPF_JEQ, libc::SYS_openat2 as u32, 1, 0),
        jump(libc::BPF_JEQ, libc::SYS_clone3 as u32, 0, 1),
        enosys,
    ];
    if cfg!(target_arch = "x86_64") {
        let (x32, own) = (0x4000_0000, 512..=547);
        checks.extend([
            jump(libc::BPF_JGE, 2 * x32, 5, 0), // -1 and the like, which a tracer sets: no call at all
            jump(libc::BPF_JGE, x32, 3, 0),
            jump(libc::BPF_JGT, *own.end(), 3, 0),
            jump(libc::BPF_JGE, *own.start(), 1, 0),
            statement(libc::BPF_JMP | libc::BPF_JA, 1),
            answer(libc::EPERM),
        ]);
    }
    let length = checks.len() as u8;
    let mut program = vec![load(ARCH), jump(libc::BPF_JEQ, AUDIT_ARCHITECTURE, 0, length)];
    program.extend(checks);
    program
}

fn load(offset: u32) -> sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn answer(errno: libc::c_int) -> sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32)
}

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn jump(comparison: u32, k: u32, if_true: u8, if_false: u8) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | comparison | libc::BPF_K) as u16, jt: if_true, jf: if_false, k }
}
