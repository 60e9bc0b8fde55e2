//! Looks for what was left in a device's memory: for tests.
#![expect(unsafe_code, reason = "reads memory of the device")]

use std::sync::Arc;

use super::driver::{Driver, Host, Memory};
use crate::error::Result;

/// Bytes that are taken at once.
const CHUNK: usize = 256 << 20;

/// See [`crate::testing::device::search_free_memory`].
pub fn free_memory<D: Driver>(driver: &Arc<D>, patterns: &[Vec<u8>]) -> (Vec<usize>, u64) {
    let (mut counts, mut searched, mut taken) = (vec![0; patterns.len()], 0, Vec::new());
    let Ok(host) = Host::new(driver, CHUNK) else { return (counts, 0) };
    // smaller pieces where larger ones do not fit any more; all are held until the end, so that none is taken twice
    for bytes in [CHUNK, CHUNK / 16, CHUNK / 128] {
        while let Ok(memory) = Memory::new(driver, bytes, "a search") {
            // SAFETY: both have the bytes, and they are there when `synchronize` returns.
            let found = unsafe {
                driver.read(memory.at(), host.at(), bytes);
                driver.synchronize();
                std::slice::from_raw_parts(host.at(), bytes)
            };
            for (count, pattern) in counts.iter_mut().zip(patterns) {
                *count += occurrences(found, pattern);
            }
            searched += bytes as u64;
            taken.push(memory);
            if driver.failed() || taken.len() > 1 << 14 {
                return (counts, searched);
            }
        }
    }
    (counts, searched)
}

/// How often `pattern` begins at a multiple of 4.
fn occurrences(bytes: &[u8], pattern: &[u8]) -> usize {
    let first = &pattern[..4];
    let at_words = bytes.chunks_exact(4).enumerate().filter(|(_, word)| *word == first);
    at_words.filter(|(word, _)| bytes[4 * word..].starts_with(pattern)).count()
}

/// See [`crate::testing::device::leave_behind`].
pub fn leave_behind<D: Driver>(driver: &Arc<D>, pattern: &[u8]) -> Result<()> {
    let bytes = 64 << 20;
    let (memory, host) = (Memory::new(driver, bytes, "a pattern")?, Host::new(driver, bytes)?);
    // SAFETY: ours alone.
    let to = unsafe { std::slice::from_raw_parts_mut(host.at(), bytes) };
    to.chunks_mut(pattern.len().next_multiple_of(4)).for_each(|place| {
        let count = place.len().min(pattern.len());
        place[..count].copy_from_slice(&pattern[..count]);
    });
    // SAFETY: both have the bytes.
    unsafe { driver.write(memory.at(), host.at(), bytes) };
    driver.synchronize();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::emulated::Emulated;
    use super::*;

    #[test]
    fn patterns_are_found_at_words() {
        let mut bytes = vec![0; 100];
        let pattern: Vec<u8> = (1..=16).collect();
        for at in [0, 20, 37, 84] {
            bytes[at..at + 16].copy_from_slice(&pattern);
        }
        assert_eq!(occurrences(&bytes, &pattern), 3, "one begins in the middle of a word");
        assert!(leave_behind(&Arc::new(Emulated::default()), &pattern).is_ok());
    }
}
