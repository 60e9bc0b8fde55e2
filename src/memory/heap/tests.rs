//! Blocks, faults, forks, threads.

use super::slabs::CLASSES;
use super::*;
use crate::memory::scrub::is_zero;

fn bytes<'a>(block: NonNull<u8>, len: usize) -> &'a mut [u8] {
    // SAFETY: tests ask for what they allocated.
    unsafe { std::slice::from_raw_parts_mut(block.as_ptr(), len) }
}

#[test]
fn classes_hold_what_is_asked_and_waste_a_quarter_at_most() {
    let mut last = 0;
    for size in 1..=LARGEST_SMALL {
        let (class, held) = class(size);
        assert!(held >= size && class < CLASSES && class >= last, "{size}");
        assert!(size <= ALIGN || held <= size + size / 4 + 4, "{size} in {held}");
        last = class;
    }
    assert_eq!(last, CLASSES - 1);
}

#[test]
fn blocks_are_zero_aligned_and_apart() {
    let mut blocks = Vec::new();
    for round in 0..3 {
        for (size, align) in
            [(1, 1), (8, 8), (24, 8), (72, 16), (100, 64), (5000, 8), (20_000, 4096), (300_000, 16)]
        {
            let block = allocate(size, align).unwrap();
            assert!(contains(block.as_ptr()) && block.as_ptr().addr().is_multiple_of(align));
            assert!(is_zero(bytes(block, size)), "{size} bytes in round {round}");
            bytes(block, size).fill(0xa5);
            blocks.push((block, size, align));
        }
        if round == 1 {
            for (block, size, align) in blocks.drain(..) {
                assert!(bytes(block, size).iter().all(|&byte| byte == 0xa5), "somebody else wrote to it");
                // SAFETY: allocated above.
                let scrubbed = unsafe { free(block, size, align) };
                assert!(scrubbed.bytes() == size as u64 && !scrubbed.is_dirty());
            }
        }
    }
}

#[test]
fn what_is_freed_is_overwritten() {
    let first = allocate(3000, 8).unwrap();
    bytes(first, 3000).fill(1);
    // SAFETY: allocated above.
    let _ = unsafe { free(first, 3000, 8) };
    // another test may have it by now, and then it is zero or that test's 0xa5
    assert!(bytes(first, 3000).iter().all(|&byte| byte != 1));
}

#[test]
fn a_run_is_used_again_and_is_zero() {
    for size in [20_000, 70_000, 300_000, 3 << 20] {
        for _ in 0..40 {
            let block = allocate(size, 16).unwrap();
            assert!(is_zero(bytes(block, size)));
            bytes(block, size).fill(0x5a);
            // SAFETY: allocated above.
            let _ = unsafe { free(block, size, 16) };
        }
    }
}

/// The kernel's flags of the mapping that holds a block.
#[cfg(target_os = "linux")]
fn flags_of(block: NonNull<u8>) -> Vec<String> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in smaps.lines() {
        if let Some((from, to)) = line.split(' ').next().and_then(|range| range.split_once('-')) {
            let [from, to] = [from, to].map(|edge| usize::from_str_radix(edge, 16).unwrap_or(0));
            inside = (from..to).contains(&block.as_ptr().addr());
        } else if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| inside) {
            return flags.split_whitespace().map(str::to_owned).collect();
        }
    }
    panic!("the block is not mapped");
}

#[cfg(target_os = "linux")]
#[test]
fn the_kernel_knows_the_protections() {
    let check = || {
        for size in [100, 100_000] {
            let block = allocate(size, 16).unwrap();
            let flags = flags_of(block);
            // `dc`: no child has it at all; then `wf` could not be
            let in_children = if secretmem::is_known_missing() { "wf" } else { "dc" };
            for flag in ["dd", in_children].into_iter().chain((status().unlocked == 0).then_some("lo")) {
                assert!(flags.iter().any(|word| word == flag), "{flag} is missing in {flags:?}");
            }
            // SAFETY: allocated above.
            let _ = unsafe { free(block, size, 16) };
        }
    };
    with_and_without("the_kernel_knows_the_protections", &check);
}

/// A run that is kept for later is inaccessible, and a search reads it all the same: what somebody forgot to overwrite in it, too.
#[cfg(all(feature = "forensics", target_os = "linux"))]
#[test]
fn a_search_reads_what_is_kept() {
    const BYTES: usize = 300_000;
    let check = || {
        let block = allocate(BYTES, 16).unwrap();
        // SAFETY: allocated above.
        let _ = unsafe { free(block, BYTES, 16) };
        let mut kept = std::iter::successors(kept_behind(0), |range| kept_behind(range.end));
        let range = kept.find(|range| range.contains(&block.as_ptr().addr())).expect("it is kept");
        let is_accessible = || flags_of(block).iter().any(|flag| flag == "rd" || flag == "wr");
        assert!(!is_accessible());
        let mut copy = [1_u8; 64];
        assert_eq!(read_kept(range.end, &mut copy), None, "a guard is kept");
        assert_eq!(read_kept(range.end - 10, &mut copy), Some(10));
        assert!(is_zero(&copy[..10]) && copy[10..] == [1; 54]);
        let (pages, bytes) = (range.start as *mut libc::c_void, range.len());
        // SAFETY: pages of a run that nobody has, in a process in which nobody else asks for one of this size.
        unsafe {
            assert_eq!(libc::mprotect(pages, bytes, libc::PROT_READ | libc::PROT_WRITE), 0);
            block.as_ptr().write_bytes(0x5a, BYTES);
            assert_eq!(libc::mprotect(pages, bytes, libc::PROT_NONE), 0);
        }
        assert_eq!(read_kept(block.as_ptr().addr(), &mut copy), Some(64));
        assert!(copy == [0x5a; 64] && !is_accessible());
    };
    in_child_process("a_search_reads_what_is_kept", "kept", &check);
    in_child_process("a_search_reads_what_is_kept", "kept, without memfd_secret", &|| {
        secretmem::do_without();
        check();
    });
}

/// Runs `act` here, and in a process of its own whose kernel is as if it had no `memfd_secret`.
fn with_and_without(test: &str, act: &dyn Fn()) {
    if std::env::var_os("AMNESIC_HEAP").is_none() {
        act();
        if secretmem::is_known_missing() {
            println!("skipped: this kernel has no memfd_secret");
        }
    }
    in_child_process(test, "without", &|| {
        secretmem::do_without();
        act();
        assert_eq!(status().secret, 0);
    });
}

/// Runs `act` in a process of its own, which is this test program with this test alone, and passes.
fn in_child_process(test: &str, what: &str, act: &dyn Fn()) {
    if std::env::var("AMNESIC_HEAP").is_ok_and(|wanted| wanted == what) {
        act();
        std::process::exit(0);
    }
    if std::env::var_os("AMNESIC_HEAP").is_some() {
        return; // another one's
    }
    let output = child(test, what);
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{what}: {}: {printed}", output.status);
}

fn child(test: &str, what: &str) -> std::process::Output {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("memory::heap::tests::{test}"), "--nocapture"])
        .env("AMNESIC_HEAP", what)
        .output()
        .unwrap()
}

/// A block of 16 KiB that ends where its slab ends, and three that do not.
fn last_of_a_slab() -> NonNull<u8> {
    let blocks = std::iter::repeat_with(|| allocate(LARGEST_SMALL, 16).unwrap());
    let mut last =
        blocks.take(64).filter(|block| (block.as_ptr().addr() + LARGEST_SMALL).is_multiple_of(SLAB));
    last.next().expect("a slab has four")
}

/// Each fault, and how its process ends: by a message, or by a signal where a guard is hit.
#[cfg(target_os = "linux")]
const FAULTS: [(&str, Result<Fault, libc::c_int>); 17] = [
    ("free twice", Ok(Fault::FreedTwice)),
    ("free twice, large", Ok(Fault::FreedTwice)),
    ("free twice, very large", Ok(Fault::FreedTwice)),
    ("inside", Ok(Fault::NotABlock)),
    ("inside, large", Ok(Fault::NotABlock)),
    ("no block", Ok(Fault::NotABlock)),
    ("wrong size", Ok(Fault::WrongSize)),
    ("wrong size, large", Ok(Fault::WrongSize)),
    ("small as large", Ok(Fault::WrongSize)),
    ("large as small", Ok(Fault::WrongSize)),
    ("write after free", Ok(Fault::WrittenAfterFree)),
    ("write after free, large", Err(libc::SIGSEGV)),
    ("beside", Ok(Fault::WrittenOutside)),
    ("past the end, large", Err(libc::SIGSEGV)),
    ("past the end of a slab", Err(libc::SIGSEGV)),
    ("before a slab", Err(libc::SIGSEGV)),
    ("in a bare clone", Err(libc::SIGSEGV)),
];

/// Does what must not be done.
///
/// # Safety
/// None: the process is to end.
#[cfg(target_os = "linux")]
unsafe fn commit(fault: &str) {
    let [small, large] = [(500, 8), (50_000, 8)];
    let make = |(size, align)| {
        let block = allocate(size, align).unwrap();
        bytes(block, size).fill(7);
        block
    };
    // SAFETY: as said.
    let free = |block: NonNull<u8>, (size, align)| drop(unsafe { super::free(block, size, align) });
    // SAFETY: as said.
    let write = |block: NonNull<u8>, at: isize| unsafe { block.as_ptr().offset(at).write_volatile(1) };
    // SAFETY: addresses only.
    let inside = |block: NonNull<u8>| unsafe { block.add(16) };
    let twice = |layout| {
        let block = make(layout);
        free(block, layout);
        free(block, layout);
    };
    match fault {
        "free twice" => twice(small),
        "free twice, large" => twice(large),
        "free twice, very large" => twice((9 << 20, 8)),
        "inside" => free(inside(make(small)), small),
        "inside, large" => free(inside(make(large)), large),
        // SAFETY: an address only: where the guard begins
        "no block" => free(unsafe { last_of_a_slab().add(LARGEST_SMALL) }, small),
        "wrong size" => free(make(small), (5000, 8)),
        "wrong size, large" => free(make(large), (50_001, 8)),
        "small as large" => free(make(small), large),
        "large as small" => free(make(large), small),
        "write after free" => {
            let block = make(small);
            free(block, small);
            write(block, 99);
            (0..SLAB / 500).for_each(|_| assert!(allocate(small.0, small.1).is_some()));
        }
        "write after free, large" => {
            let block = make(large);
            free(block, large);
            write(block, 99);
        }
        "beside" => {
            let block = make(small);
            write(block, 500);
            free(block, small);
        }
        "past the end, large" => write(make((50_000, 16)), 50_000),
        "past the end of a slab" => write(last_of_a_slab(), LARGEST_SMALL as isize),
        "before a slab" => write(last_of_a_slab(), LARGEST_SMALL as isize - SLAB as isize - 1),
        "in a bare clone" => {
            let block = make(small);
            // SAFETY: a child without the C library's handlers: it reads the block and exits.
            unsafe {
                let flags = libc::SIGCHLD as libc::c_long;
                let child = libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0);
                if child == 0 {
                    libc::_exit(i32::from(block.as_ptr().read_volatile()));
                }
                let mut status = 0;
                libc::waitpid(child as libc::pid_t, &mut status, 0);
                if libc::WIFSIGNALED(status) {
                    libc::signal(libc::WTERMSIG(status), libc::SIG_DFL);
                    libc::raise(libc::WTERMSIG(status));
                }
            }
        }
        _ => panic!("no such fault"),
    }
}

#[cfg(target_os = "linux")]
#[test]
fn each_fault_ends_the_process() {
    use std::os::unix::process::ExitStatusExt;
    if let Ok(what) = std::env::var("AMNESIC_HEAP") {
        let (memory, fault) = what.split_once(": ").unwrap();
        // SAFETY: no core file of a process that is to end.
        unsafe { libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_cur: 0, rlim_max: 0 }) };
        if memory == "private" {
            secretmem::do_without();
        }
        allocate(1, 1).unwrap();
        if memory == "secret" && status().secret == 0 {
            println!("skipped: this kernel has no memfd_secret");
            std::process::exit(0);
        }
        // SAFETY: the process is to end.
        unsafe { commit(fault) };
        std::process::exit(0);
    }
    let mut skipped = 0;
    for memory in ["secret", "private"] {
        for (fault, end) in FAULTS {
            let output = child("each_fault_ends_the_process", &format!("{memory}: {fault}"));
            let printed = String::from_utf8_lossy(&output.stderr);
            if memory == "private" && fault == "in a bare clone" {
                assert!(output.status.success(), "the child reads zeros");
                continue;
            }
            if String::from_utf8_lossy(&output.stdout).contains("skipped:") {
                skipped += 1;
                continue;
            }
            match end {
                Ok(fault) => {
                    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{memory}: {fault:?}: {printed}");
                    assert!(printed.contains(fault.message()), "{memory}: {fault:?}: {printed}");
                }
                Err(signal) => {
                    assert_eq!(output.status.signal(), Some(signal), "{memory}: {fault}: {printed}")
                }
            }
        }
    }
    if skipped > 0 {
        println!("skipped: {skipped} faults, since this kernel has no memfd_secret");
    }
}

/// Nobody else's system call reads what is in `memfd_secret`, not even this process's own through /proc.
#[cfg(target_os = "linux")]
#[test]
fn the_kernel_cannot_read_it_for_others() {
    use std::os::unix::fs::FileExt;
    let block = allocate(1000, 16).unwrap();
    bytes(block, 1000).fill(0xaa);
    if status().secret == 0 {
        println!("skipped: this kernel has no memfd_secret");
        return;
    }
    let memory = std::fs::File::open("/proc/self/mem").unwrap();
    let mut copy = [0; 16];
    assert!(memory.read_at(&mut copy, block.as_ptr().addr() as u64).is_err());
    let (to, from) = (
        libc::iovec { iov_base: copy.as_mut_ptr().cast(), iov_len: copy.len() },
        libc::iovec { iov_base: block.as_ptr().cast(), iov_len: copy.len() },
    );
    // SAFETY: both are 16 bytes of this process.
    let read = unsafe { libc::process_vm_readv(libc::getpid(), &to, 1, &from, 1, 0) };
    assert!(read <= 0 && copy == [0; 16], "{read} bytes");
    // SAFETY: allocated above.
    let _ = unsafe { free(block, 1000, 16) };
}

/// What a child sees, does and leaves, and its own child after it.
#[cfg(target_os = "linux")]
fn forks() {
    let (small, large) = (allocate(1000, 16).unwrap(), allocate(200_000, 16).unwrap());
    bytes(small, 1000).fill(0xaa);
    bytes(large, 200_000).fill(0xaa);
    /// A child that exits with what `act` says; whether that is 0.
    fn is_well(act: &dyn Fn() -> bool) -> bool {
        // SAFETY: the child makes system calls, reads and writes memory, and uses this heap, whose lock is free in it.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                libc::_exit(i32::from(!act()));
            }
            let mut status = -1;
            assert_eq!(libc::waitpid(child, &mut status, 0), child);
            status == 0
        }
    }
    let goes_on = || {
        let clean = is_zero(bytes(small, 1000)) && is_zero(bytes(large, 200_000));
        bytes(small, 1000).fill(0x55); // its own pages: the parent must not see it
        bytes(large, 200_000).fill(0x55);
        let grandchild = is_well(&|| is_zero(bytes(small, 1000)) && is_zero(bytes(large, 200_000)));
        let new = (0..300).all(|i| allocate(64 + i * 300, 8).is_some_and(|block| is_zero(bytes(block, 64))));
        // SAFETY: allocated by the parent, and so by the child.
        let freed = unsafe { [free(small, 1000, 16).bytes(), free(large, 200_000, 16).bytes()] };
        clean && grandchild && new && freed == [1000, 200_000]
    };
    assert!(is_well(&goes_on), "the child saw the parent's bytes, or could not go on");
    assert!(bytes(small, 1000).iter().all(|&byte| byte == 0xaa), "the parent keeps them");
    assert!(bytes(large, 200_000).iter().all(|&byte| byte == 0xaa), "the parent keeps them");
    // SAFETY: allocated above.
    unsafe { drop((free(small, 1000, 16), free(large, 200_000, 16))) };
}

#[cfg(target_os = "linux")]
#[test]
fn a_forked_child_has_zeros_and_a_heap_of_its_own() {
    with_and_without("a_forked_child_has_zeros_and_a_heap_of_its_own", &forks);
}

/// Where a limit of the system's is reached, all that is there can still be given back, and is there again.
#[cfg(target_os = "linux")]
#[test]
fn it_ends_and_begins_again() {
    in_child_process("it_ends_and_begins_again", "short of addresses", &|| {
        // SAFETY: limits this process, which ends here.
        unsafe {
            let bytes = 600 << 20;
            libc::setrlimit(libc::RLIMIT_AS, &libc::rlimit { rlim_cur: bytes, rlim_max: bytes });
        }
        let fill = || {
            let blocks = |size| std::iter::from_fn(move || allocate(size, 8).map(|block| (block, size)));
            let mut all = Vec::with_capacity(1 << 16);
            for size in [1 << 20, 40_000, 3000, 100] {
                all.extend(blocks(size));
            }
            let bytes: usize = all.iter().map(|(_, size)| size).sum();
            // SAFETY: allocated above.
            all.into_iter().for_each(|(block, size)| drop(unsafe { free(block, size, 8) }));
            bytes
        };
        let (first, second) = (fill(), fill());
        assert!(first > 4 << 20, "{first}");
        assert!(second > first / 10 * 9, "{second} of {first}");
    });
    in_child_process("it_ends_and_begins_again", "short of locked memory", &|| {
        // SAFETY: limits this process, which ends here; another user than root is bound by the limit.
        unsafe {
            let bytes = 256 << 10;
            libc::setrlimit(libc::RLIMIT_MEMLOCK, &libc::rlimit { rlim_cur: bytes, rlim_max: bytes });
            if libc::geteuid() == 0 {
                assert_eq!(libc::setresuid(65_534, 65_534, 65_534), 0);
            }
        }
        let blocks: Vec<_> = (0..40).map(|_| allocate(16_000, 8).expect("unlocked, but there")).collect();
        let status = status();
        assert!(status.secret <= 256 << 10 && status.unlocked > 0, "{status:?}");
        assert!(status.bytes <= status.secret + status.unlocked + (256 << 10), "{status:?}");
        // SAFETY: allocated above.
        blocks.into_iter().for_each(|block| drop(unsafe { free(block, 16_000, 8) }));
    });
}

#[test]
fn any_order_of_sizes_keeps_blocks_apart() {
    let (mut held, mut state) = (Vec::new(), 1_u64);
    for step in 0..6000_u64 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let draw = (state >> 33) as usize;
        let size = match draw % 50 {
            0 => 16_000 + draw % 200_000,
            1..10 => 1000 + draw % 20_000,
            _ => 1 + draw % 700,
        };
        let align = 1 << (draw % 13);
        let (block, mark) = (allocate(size, align).unwrap(), step as u8 | 1);
        assert!(is_zero(bytes(block, size)) && block.as_ptr().addr().is_multiple_of(align));
        bytes(block, size).fill(mark);
        held.push((block, size, align, mark));
        if held.len() > 100 {
            let (block, size, align, mark) = held.swap_remove(draw % 100);
            assert!(bytes(block, size).iter().all(|&byte| byte == mark), "somebody else wrote to it");
            // SAFETY: allocated above.
            let _ = unsafe { free(block, size, align) };
        }
    }
    // SAFETY: allocated above.
    held.into_iter().for_each(|(block, size, align, _)| drop(unsafe { free(block, size, align) }));
}

#[test]
fn many_threads_share_it() {
    let work = |seed: usize| {
        let mut held = Vec::new();
        for i in 0..2000_usize {
            let size = 1 + (i * 7919 + seed * 104_729) % 3000;
            let block = allocate(size, 8).unwrap();
            bytes(block, size).fill(seed as u8);
            held.push((block, size));
            if held.len() > 40 {
                let (block, size) = held.swap_remove(i % 40);
                assert!(bytes(block, size).iter().all(|&byte| byte == seed as u8));
                // SAFETY: allocated above.
                let _ = unsafe { free(block, size, 8) };
            }
        }
        // SAFETY: allocated above.
        held.into_iter().for_each(|(block, size)| drop(unsafe { free(block, size, 8) }));
    };
    std::thread::scope(|scope| (1..5).for_each(|seed| drop(scope.spawn(move || work(seed)))));
}
