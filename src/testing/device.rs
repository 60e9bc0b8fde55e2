//! What CUDA devices hold and how fast they are: for tests and benches on machines that have one.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::emulated::Emulated;
use crate::backend::cuda::native::{self, Native};
use crate::backend::cuda::rates::{FORMATS, Measured, Rates};
use crate::backend::cuda::search;
pub use crate::backend::cuda::search::Leaks;
use crate::backend::cuda::wgmma_agrees;
use crate::error::Result;

/// How many devices the driver has; 0 without a driver.
pub fn count() -> usize {
    native::count()
}

/// Whether a device's wgmma gives the same bits as its mma: only then do sessions use it. None where it has none.
///
/// # Errors
/// The device is not to be had.
pub fn wgmma(device: usize) -> Result<Option<bool>> {
    let driver = Native::open(device)?;
    Ok(driver.has_wgmma().then(|| driver.trusts_wgmma(wgmma_agrees)))
}

/// Takes all free memory of a device as it is, and counts on the device how often each pattern begins there at a multiple of
/// 4 bytes. Patterns are at least 16 bytes long, and multiples of 4. Returns the counts, and how many bytes were searched.
///
/// # Errors
/// The device is not to be had.
///
/// # Panics
/// If a pattern has another length, or the device fails.
pub fn search_free_memory(device: usize, patterns: &[Vec<u8>]) -> Result<(Vec<usize>, u64)> {
    search::free_memory(&Arc::new(Native::open(device)?), patterns)
}

/// Puts a pattern into memory of a device many times, and gives the memory back as it is. Returns how often a search found
/// it before that; whether it is found afterwards is the driver's business.
///
/// # Errors
/// The device is not to be had.
///
/// # Panics
/// Panics where [`search_free_memory`] does.
pub fn leave_behind(device: usize, pattern: &[u8]) -> Result<usize> {
    search::leave_behind(&Arc::new(Native::open(device)?), pattern)
}

/// Fills the shared memory of all processors with a pattern, and leaves it there.
///
/// # Errors
/// The device is not to be had.
///
/// # Panics
/// If the device fails.
pub fn leak_probe(device: usize, pattern: &[u8]) -> Result<()> {
    search::leak_probe(&Arc::new(Native::open(device)?), pattern)
}

/// What a kernel finds in the shared memory of all processors before it writes any (LeftoverLocals, CVE-2023-4969).
///
/// # Errors
/// The device is not to be had.
///
/// # Panics
/// If the device fails.
pub fn find_leaks(device: usize, patterns: &[Vec<u8>]) -> Result<Leaks> {
    search::find_leaks(&Arc::new(Native::open(device)?), patterns)
}

/// [`leak_probe`], what sessions run at a request's end to clear shared memory if `clean` says so, and [`find_leaks`], in one
/// context: what is heard without it is what the hardware leaves there by itself.
///
/// # Errors
/// The device is not to be had.
///
/// # Panics
/// If the device fails.
pub fn probe_and_find_leaks(device: usize, pattern: &[u8], clean: bool) -> Result<Leaks> {
    search::probe_and_find_leaks(&Arc::new(Native::open(device)?), pattern, clean)
}

/// One rate of a device.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Rate {
    /// What was measured.
    pub what: String,
    /// The median time.
    pub time: Duration,
    /// That of the same with cuBLASLt, where it is installed; of products in bf16 alone.
    pub library_time: Option<Duration>,
    /// Bytes moved each time.
    pub bytes: u64,
    /// Multiplications and additions each time.
    pub operations: u64,
}

/// Measures copying, overwriting by the driver and by us, and products of one shape, (rows, cols) in bf16, eight and four
/// bits, for these counts of tokens.
///
/// # Errors
/// The device or its memory is not to be had.
///
/// # Panics
/// If the device fails.
pub fn rates(device: usize, shape: (usize, usize), tokens: &[usize], folder: &Path) -> Result<Vec<Rate>> {
    rates_on(Native::open(device)?, shape, tokens, (256 << 20, 20), folder)
}

/// Measures on the emulated device, whose rates say nothing: to see that it works. In cuBLASLt's place are plain loops.
///
/// # Errors
/// The memory is not to be had.
///
/// # Panics
/// If the device fails.
pub fn emulated_rates(shape: (usize, usize), tokens: &[usize], folder: &Path) -> Result<Vec<Rate>> {
    rates_on(Emulated::default(), shape, tokens, (1 << 16, 2), folder)
}

/// How far our products in bf16 are at most from those of cuBLASLt for each count of tokens, in parts of their root mean
/// square; none where it is not installed.
///
/// # Errors
/// The device or its memory is not to be had.
///
/// # Panics
/// If the device fails.
pub fn library_differences(
    device: usize,
    shape: (usize, usize),
    tokens: &[usize],
    folder: &Path,
) -> Result<Option<Vec<f64>>> {
    let mut rates = Rates::new(Arc::new(Native::open(device)?), 16, shape, 1, tokens, folder)?;
    tokens.iter().map(|&tokens| rates.difference(tokens)).collect()
}

fn rates_on<D: Measured>(
    driver: D,
    shape: (usize, usize),
    tokens: &[usize],
    (bytes, rounds): (usize, usize),
    folder: &Path,
) -> Result<Vec<Rate>> {
    let mut rates = Rates::new(Arc::new(driver), bytes, shape, FORMATS.len(), tokens, folder)?;
    let mut all = Vec::new();
    for what in rates.all() {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..rounds + 1 {
            let started = Instant::now();
            rates.run(&what);
            ours.push(started.elapsed());
            let started = Instant::now();
            if rates.run_library(&what) {
                theirs.push(started.elapsed());
            }
        }
        let median = |mut times: Vec<Duration>| {
            times.drain(..times.len().min(1)); // the first one is slower
            times.sort_unstable();
            times.get(times.len() / 2).map(|&time| time / Rates::<D>::AGAIN)
        };
        let (bytes, operations) = rates.size(&what);
        let time = median(ours).expect("there are rounds");
        all.push(Rate { what: what.to_string(), time, library_time: median(theirs), bytes, operations });
    }
    assert!(!rates.failed(), "the device failed");
    Ok(all)
}
