//! How fast this machine reads memory.

use std::hint::black_box;
use std::time::Instant;

use memmap2::MmapMut;

/// Far more than any cache holds.
const BUFFER_BYTES: usize = 1 << 30;

/// Seconds of the fastest of some passes, in each of which every thread does `work(its number)`.
pub fn best_secs(threads: usize, passes: usize, work: impl Fn(usize) + Sync) -> f64 {
    let pass = || {
        let started = Instant::now();
        std::thread::scope(|scope| {
            let work = &work;
            (1..threads).for_each(|thread| _ = scope.spawn(move || work(thread)));
            work(0);
        });
        started.elapsed().as_secs_f64()
    };
    (0..passes).map(|_| pass()).fold(f64::INFINITY, f64::min)
}

/// Memory to read: written once, in large pages where the system gives them.
pub struct Buffer(MmapMut);

impl Buffer {
    /// Maps and fills it.
    pub fn new() -> std::io::Result<Self> {
        let mut buffer = MmapMut::map_anon(BUFFER_BYTES)?;
        #[cfg(target_os = "linux")]
        let _ = buffer.advise(memmap2::Advice::HugePage); // where refused, small pages do as well
        buffer.fill(1); // pages that were never written are all one page of zeros
        Ok(Self(buffer))
    }

    /// Bytes a second that `threads` threads read, each from its own part; the best of `passes`.
    pub fn read_rate(&self, threads: usize, passes: usize) -> f64 {
        let parts: Vec<&[u8]> = self.0.chunks(BUFFER_BYTES.div_ceil(threads)).collect();
        let sum = widest_sum();
        let secs = best_secs(threads, passes, |thread| _ = black_box(sum(black_box(parts[thread]))));
        BUFFER_BYTES as f64 / secs
    }
}

/// What reads every byte with the widest loads of this machine.
fn widest_sum() -> fn(&[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the feature was detected.
        return |bytes| unsafe { sum_avx512(bytes) };
    }
    sum
}

/// Sixteen independent sums, which the compiler keeps in vectors.
fn sum(bytes: &[u8]) -> u64 {
    let mut sums = [0_u64; 16];
    for block in bytes.as_chunks::<128>().0 {
        for (sum, word) in sums.iter_mut().zip(block.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
        }
    }
    sums.into_iter().fold(0, u64::wrapping_add)
}

/// The same by whole cache lines.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn sum_avx512(bytes: &[u8]) -> u64 {
    use std::arch::x86_64::*;
    let mut sums = [_mm512_setzero_si512(); 8];
    for block in bytes.as_chunks::<512>().0 {
        for (sum, line) in sums.iter_mut().zip(block.as_chunks::<64>().0) {
            // SAFETY: a line is as long as the vector.
            *sum = _mm512_add_epi64(*sum, unsafe { _mm512_loadu_si512(line.as_ptr().cast()) });
        }
    }
    _mm512_reduce_add_epi64(sums.into_iter().fold(_mm512_setzero_si512(), |a, b| _mm512_add_epi64(a, b)))
        as u64
}
