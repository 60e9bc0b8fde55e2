//! Looks for what was left in a device's memory, and in the shared memory of its processors: for tests.
//!
//! Patterns are at least 16 bytes long, and multiples of 4. What a search brings to the device it overwrites before it gives
//! the memory back, so that the next search does not find it.
#![expect(unsafe_code, reason = "reads memory of the device")]

use std::collections::BTreeSet;
use std::sync::Arc;

use super::args::Args;
use super::driver::{Address, DeviceAllocation, Driver, Host, Shape};
use super::{Cuda, shape};
use crate::error::Result;

/// Bytes that are taken at once.
const CHUNK: usize = 256 << 20;
/// So often is every processor listened to.
const ROUNDS: usize = 4;
/// Threads of a block of each kernel here.
const THREADS: usize = 256;

/// The struct of this name in `find_leaks.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct FindLeaksArgs {
    out: Address,
    processors: Address,
    words: u32,
}

/// The struct of this name in `find_leaks.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct LeakProbeArgs {
    pattern: Address,
    length: u32,
    words: u32,
}

/// The struct of this name in `find_leaks.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct SearchArgs {
    at: Address,
    patterns: Address,
    ends: Address,
    found: Address,
    words: u64,
    count: u32,
}

// SAFETY: `repr(C)`, and numbers alone.
unsafe impl Args for FindLeaksArgs {}
// SAFETY: as above.
unsafe impl Args for LeakProbeArgs {}
// SAFETY: as above.
unsafe impl Args for SearchArgs {}

/// What was in shared memory.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Leaks {
    /// How often each pattern was.
    pub found: Vec<usize>,
    /// Bytes that were listened to, of all processors and rounds.
    pub bytes: u64,
    /// How many words of them were not zero.
    pub words_not_zero: u64,
    /// How many different processors they were of.
    pub processors: usize,
    /// How many the device has.
    pub processors_in_all: usize,
}

/// See [`crate::testing::device::search_free_memory`].
pub fn free_memory<D: Driver>(driver: &Arc<D>, patterns: &[Vec<u8>]) -> Result<(Vec<usize>, u64)> {
    let search = MemorySearch::new(driver, patterns)?;
    let (mut searched, mut taken) = (0, Vec::new());
    // smaller pieces where larger ones do not fit any more; all are held until the end, so that none is taken twice
    for bytes in [CHUNK, CHUNK / 16, CHUNK / 128] {
        while taken.len() < 1 << 14 {
            let Ok(memory) = DeviceAllocation::new(driver, bytes, "a search") else { break };
            search.search(memory.at(), bytes);
            searched += bytes as u64;
            taken.push(memory);
        }
    }
    driver.synchronize();
    drop(taken); // what follows takes some
    Ok((search.found()?, searched))
}

/// Counts patterns in memory of a device, on the device: hundreds of gigabytes would take the host minutes.
struct MemorySearch<D: Driver> {
    driver: Arc<D>,
    patterns: Wiped<D>,
    ends: Wiped<D>,
    found: Wiped<D>,
    count: usize,
    blocks: usize,
}

impl<D: Driver> MemorySearch<D> {
    fn new(driver: &Arc<D>, patterns: &[Vec<u8>]) -> Result<Self> {
        assert!(patterns.iter().all(|pattern| pattern.len() >= 16 && pattern.len().is_multiple_of(4)));
        let mut end = 0;
        let ends = patterns.iter().flat_map(|pattern| {
            end += pattern.len() as u32 / 4;
            end.to_le_bytes()
        });
        let (blocks, count) = (16 * driver.processors() as usize, patterns.len());
        Ok(Self {
            driver: driver.clone(),
            ends: Wiped::with(driver, &ends.collect::<Vec<u8>>())?,
            patterns: Wiped::with(driver, &patterns.concat())?,
            found: Wiped::with(driver, &vec![0; blocks * THREADS * count * 4])?,
            count,
            blocks,
        })
    }

    /// Looks at all of it.
    fn search(&self, at: Address, bytes: usize) {
        let [patterns, ends, found] = [&self.patterns, &self.ends, &self.found].map(|of| of.0.at());
        let count = self.count as u32;
        let args = SearchArgs { at, patterns, ends, found, words: bytes as u64 / 4, count };
        launch(&*self.driver, "search_memory", shape([self.blocks, 1, 1], THREADS, 0), &args);
    }

    /// How often each pattern was found so far.
    fn found(&self) -> Result<Vec<usize>> {
        let mut sums = vec![0; self.count];
        self.found.read(|bytes| {
            for (at, word) in
                bytes.as_chunks::<4>().0.iter().take(self.blocks * THREADS * self.count).enumerate()
            {
                sums[at % self.count] += u32::from_le_bytes(*word) as usize;
            }
        })?;
        assert!(!self.driver.failed(), "the device failed");
        Ok(sums)
    }
}

/// See [`crate::testing::device::leave_behind`].
pub fn leave_behind<D: Driver>(driver: &Arc<D>, pattern: &[u8]) -> Result<usize> {
    let bytes = 64 << 20;
    let (memory, host) = (DeviceAllocation::new(driver, bytes, "a pattern")?, Host::new(driver, bytes)?);
    // SAFETY: ours alone.
    let to = unsafe { std::slice::from_raw_parts_mut(host.at(), bytes) };
    to.chunks_mut(pattern.len()).for_each(|place| place.copy_from_slice(&pattern[..place.len()]));
    // SAFETY: both have the bytes.
    unsafe { driver.write(memory.at(), host.at(), bytes) };
    let search = MemorySearch::new(driver, &[pattern.to_vec()])?;
    search.search(memory.at(), bytes);
    Ok(search.found()?[0])
}

/// See [`crate::testing::device::leak_probe`].
pub fn leak_probe<D: Driver>(driver: &Arc<D>, pattern: &[u8]) -> Result<()> {
    let memory = Wiped::with(driver, pattern)?;
    let shared = shared_bytes(&**driver);
    let args =
        LeakProbeArgs { pattern: memory.0.at(), length: pattern.len() as u32 / 4, words: shared as u32 / 4 };
    let blocks = driver.processors() as usize;
    launch(&**driver, "leak_probe", shape([blocks, 1, 1], THREADS, shared), &args);
    driver.synchronize();
    assert!(!driver.failed(), "the device failed");
    Ok(())
}

/// See [`crate::testing::device::find_leaks`].
pub fn find_leaks<D: Driver>(driver: &Arc<D>, patterns: &[Vec<u8>]) -> Result<Leaks> {
    let (blocks, shared) = (driver.processors() as usize, shared_bytes(&**driver));
    let out = Wiped::new(driver, blocks * shared)?;
    let numbers = Wiped::new(driver, blocks * 4)?;
    let mut heard = Leaks {
        found: vec![0; patterns.len()],
        bytes: 0,
        words_not_zero: 0,
        processors: 0,
        processors_in_all: blocks,
    };
    let mut processors = BTreeSet::new();
    let args = FindLeaksArgs { out: out.0.at(), processors: numbers.0.at(), words: shared as u32 / 4 };
    for _ in 0..ROUNDS {
        launch(&**driver, "find_leaks", shape([blocks, 1, 1], THREADS, shared), &args);
        out.read(|bytes| {
            for block in bytes[..blocks * shared].chunks(shared) {
                for (found, pattern) in heard.found.iter_mut().zip(patterns) {
                    *found += occurrences(block, pattern);
                }
                heard.bytes += block.len() as u64;
                heard.words_not_zero +=
                    block.as_chunks::<4>().0.iter().filter(|word| **word != [0; 4]).count() as u64;
            }
        })?;
        numbers.read(|bytes| processors.extend(bytes[..blocks * 4].as_chunks::<4>().0.iter().copied()))?;
    }
    heard.processors = processors.len();
    assert!(!driver.failed(), "the device failed");
    Ok(heard)
}

/// See [`crate::testing::device::probe_and_find_leaks`].
pub fn probe_and_find_leaks<D: Driver>(driver: &Arc<D>, pattern: &[u8], clean: bool) -> Result<Leaks> {
    leak_probe(driver, pattern)?;
    if clean {
        Cuda::new(driver.clone()).clean();
    }
    find_leaks(driver, &[pattern.to_vec()])
}

/// Shared memory of a block, a multiple of 16.
fn shared_bytes<D: Driver>(driver: &D) -> usize {
    driver.shared_bytes() as usize / 16 * 16
}

fn launch<D: Driver, A: Args>(driver: &D, kernel: &'static str, shape: Shape, args: &A) {
    // SAFETY: each caller above names the kernel that takes its struct, and took the memory that it names in that size.
    unsafe { driver.launch(kernel, shape, std::ptr::from_ref(args).cast(), size_of::<A>()) };
}

/// How often `pattern` begins at a multiple of 4.
fn occurrences(bytes: &[u8], pattern: &[u8]) -> usize {
    let first = &pattern[..4];
    let at_words = bytes.chunks_exact(4).enumerate().filter(|(_, word)| *word == first);
    at_words.filter(|(word, _)| bytes[4 * word..].starts_with(pattern)).count()
}

/// Memory of a device that is overwritten before it is given back.
struct Wiped<D: Driver>(DeviceAllocation<D>, Arc<D>);

impl<D: Driver> Wiped<D> {
    fn new(driver: &Arc<D>, bytes: usize) -> Result<Self> {
        Ok(Self(DeviceAllocation::new(driver, bytes, "a search")?, driver.clone()))
    }

    fn with(driver: &Arc<D>, content: &[u8]) -> Result<Self> {
        let this = Self::new(driver, content.len())?;
        this.write(content)?;
        Ok(this)
    }

    fn write(&self, content: &[u8]) -> Result<()> {
        let host = Host::new(&self.1, content.len())?;
        // SAFETY: all three have the bytes, and the host's stay until they are there.
        unsafe {
            std::ptr::copy_nonoverlapping(content.as_ptr(), host.at(), content.len());
            self.1.write(self.0.at(), host.at(), content.len());
        }
        self.1.synchronize();
        Ok(())
    }

    /// Shows what is in it.
    fn read(&self, search: impl FnOnce(&[u8])) -> Result<()> {
        let host = Host::new(&self.1, self.0.bytes())?;
        // SAFETY: both have the bytes, and they are there when `synchronize` returns.
        search(unsafe {
            self.1.read(self.0.at(), host.at(), self.0.bytes());
            self.1.synchronize();
            std::slice::from_raw_parts(host.at(), self.0.bytes())
        });
        Ok(())
    }
}

impl<D: Driver> Wiped<D> {
    fn wipe(&self) {
        // where the host has no memory for zeros, a search finds what stays, and a test fails
        let _ = self.write(&vec![0; self.0.bytes()]);
    }
}

impl<D: Driver> Drop for Wiped<D> {
    fn drop(&mut self) {
        self.wipe();
    }
}

#[cfg(test)]
mod tests {
    use super::super::emulated::Emulated;
    use super::*;

    fn pattern(first: u8) -> Vec<u8> {
        (first..first + 64).collect()
    }

    #[test]
    fn patterns_are_found_at_words() {
        let mut bytes = vec![0; 100];
        let pattern: Vec<u8> = (1..=16).collect();
        for at in [0, 20, 37, 84] {
            bytes[at..at + 16].copy_from_slice(&pattern);
        }
        assert_eq!(occurrences(&bytes, &pattern), 3, "one begins in the middle of a word");
    }

    #[test]
    fn a_device_finds_what_the_host_finds() {
        let driver = Arc::new(Emulated::default());
        let patterns = [pattern(1), vec![7; 16], pattern(100), pattern(180)[..20].to_vec()];
        let mut bytes = vec![7_u8; 40_000]; // a run of one value holds its pattern at every word
        for (i, place) in bytes.chunks_mut(1000).enumerate().skip(3) {
            let pattern = &patterns[[0, 3][i % 2]];
            place[100..100 + pattern.len()].copy_from_slice(pattern);
        }
        bytes[39_990..].copy_from_slice(&patterns[0][..10]); // cut off at the end
        let memory = Wiped::with(&driver, &bytes).unwrap();
        let search = MemorySearch::new(&driver, &patterns).unwrap();
        search.search(memory.0.at(), bytes.len());
        let expected: Vec<usize> = patterns.iter().map(|pattern| occurrences(&bytes, pattern)).collect();
        assert_eq!(search.found().unwrap(), expected);
        assert!(
            expected[0] == 18 && expected[1] > 7000 && expected[2] == 0 && expected[3] == 19,
            "{expected:?}"
        );
        search.search(memory.0.at(), 8000);
        assert!(search.found().unwrap() > expected, "counts are added up");
    }

    #[test]
    fn what_is_left_behind_is_found_before_it_is_given_back() {
        let count = leave_behind(&Arc::new(Emulated::default()), &pattern(3)).unwrap();
        assert_eq!(count, (64 << 20) / 64);
    }

    /// The emulator fills shared memory with ones before each block, so nothing but them is there to be heard.
    #[test]
    fn all_of_shared_memory_is_listened_to() {
        let driver = Arc::new(Emulated::default());
        let bytes = driver.processors() as u64 * u64::from(driver.shared_bytes()) * ROUNDS as u64;
        let ones = vec![0xff; 16];
        let heard = find_leaks(&driver, &[ones, pattern(1)]).unwrap();
        assert_eq!((heard.bytes, heard.words_not_zero), (bytes, bytes / 4));
        let blocks = ROUNDS * driver.processors() as usize;
        assert_eq!(
            heard.found,
            [bytes as usize / 4 - 3 * blocks, 0],
            "at each word but the last three of a block"
        );
        assert_eq!((heard.processors, heard.processors_in_all), (2, 2));
        for clean in [false, true] {
            let heard = probe_and_find_leaks(&driver, &pattern(1), clean).unwrap();
            assert_eq!((heard.found, heard.words_not_zero), (vec![0], bytes / 4));
        }
    }

    /// What a search brings along must not be what the next one finds.
    #[test]
    fn what_a_search_brings_it_overwrites() {
        let memory = Wiped::with(&Arc::new(Emulated::default()), &pattern(1)).unwrap();
        memory.read(|bytes| assert_eq!(bytes, pattern(1))).unwrap();
        memory.wipe();
        memory.read(|bytes| assert_eq!(bytes, [0; 64])).unwrap();
    }
}
