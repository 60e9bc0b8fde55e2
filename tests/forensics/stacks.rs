//! Whether the session's threads, while they wait, have clean stacks below their frames, whatever it is that is there.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// How far below a thread's frames its stack is looked at.
const DEPTH: u64 = 400 << 10;

/// What a thread writes below its frames after its stack was cleaned: it waits, for the lock of its queue too where several
/// compute masks, and the worker looks at messages that bring nothing.
fn written_since(thread: &str) -> u64 {
    match thread {
        "amnesic-masks" => 2 << 10,
        "amnesic-worker" => 5 << 10,
        _ => 1 << 10,
    }
}

/// The threads of the session whose stacks are not clean, each with the number of bytes in use.
pub fn dirty() -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let memory = File::open("/proc/self/mem").unwrap();
    let mut dirty = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        let Ok(name) = std::fs::read_to_string(task.join("comm")) else { continue }; // it has ended
        let name = name.trim();
        if !name.starts_with("amnesic-") {
            continue;
        }
        let Some(frames) = end_of_frames(&task) else { continue }; // it has ended meanwhile
        let end = frames - written_since(name);
        let start = start_of_mapping(&maps, end).max(frames - DEPTH);
        let mut stack = vec![0; (end - start) as usize];
        memory.read_exact_at(&mut stack, start).unwrap();
        if let Some(lowest) = stack.iter().position(|&byte| byte != 0) {
            dirty.push(format!("{name}, {} bytes below its frames", frames - start - lowest as u64));
        }
    }
    dirty
}

/// Where the frames of a thread end, once it waits in the kernel; none if it ends instead.
fn end_of_frames(task: &Path) -> Option<u64> {
    loop {
        let call = std::fs::read_to_string(task.join("syscall")).ok()?;
        let words: Vec<&str> = call.split_whitespace().collect();
        if let [.., pointer, _] = words[..] {
            return Some(u64::from_str_radix(pointer.trim_start_matches("0x"), 16).unwrap());
        }
        std::thread::yield_now(); // "running"
    }
}

/// The first byte of the mapping that holds an address.
fn start_of_mapping(maps: &str, address: u64) -> u64 {
    let ranges = maps.lines().filter_map(|line| line.split(' ').next()?.split_once('-'));
    let mut ranges =
        ranges.map(|(start, end)| [start, end].map(|edge| u64::from_str_radix(edge, 16).unwrap()));
    ranges.find(|[start, end]| (*start..*end).contains(&address)).unwrap()[0]
}
