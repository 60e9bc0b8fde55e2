//! What CUDA devices hold and how fast they are: for tests and benches on machines that have one.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::emulated::Emulated;
use crate::backend::cuda::native::{self, Native};
use crate::backend::cuda::rates::Rates;
use crate::backend::cuda::search;
use crate::error::Result;

/// How many devices the driver has; 0 without a driver.
pub fn count() -> usize {
    native::count()
}

/// Takes all free memory of a device as it is, and counts how often each pattern is in it; patterns are at least 16 bytes
/// long and begin at multiples of 4. Returns the counts, and how many bytes were searched.
///
/// # Errors
/// The device is not to be had.
pub fn search_free_memory(device: usize, patterns: &[Vec<u8>]) -> Result<(Vec<usize>, u64)> {
    Ok(search::free_memory(&Arc::new(Native::open(device)?), patterns))
}

/// Puts a pattern into memory of a device many times, and gives the memory back as it is: a search has to find it.
///
/// # Errors
/// The device is not to be had.
pub fn leave_behind(device: usize, pattern: &[u8]) -> Result<()> {
    search::leave_behind(&Arc::new(Native::open(device)?), pattern)
}

/// One rate of a device.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Rate {
    /// Of what.
    pub what: String,
    /// The median time.
    pub time: Duration,
    /// Bytes moved each time.
    pub bytes: u64,
    /// Multiplications and additions each time.
    pub operations: u64,
}

/// Measures copying, overwriting, and products of one shape, (rows, cols) in bf16, for these counts of tokens.
///
/// # Errors
/// The device or its memory is not to be had.
pub fn rates(device: usize, shape: (usize, usize), tokens: &[usize], folder: &Path) -> Result<Vec<Rate>> {
    rates_on(Native::open(device)?, shape, tokens, (256 << 20, 20), folder)
}

/// The same on the emulated device, whose rates say nothing: to see that it works.
///
/// # Errors
/// The memory is not to be had.
pub fn emulated_rates(shape: (usize, usize), tokens: &[usize], folder: &Path) -> Result<Vec<Rate>> {
    rates_on(Emulated::default(), shape, tokens, (1 << 16, 2), folder)
}

fn rates_on<D: Driver>(
    driver: D,
    shape: (usize, usize),
    tokens: &[usize],
    (bytes, rounds): (usize, usize),
    folder: &Path,
) -> Result<Vec<Rate>> {
    let mut rates = Rates::new(Arc::new(driver), bytes, shape, tokens, folder)?;
    let mut all = Vec::new();
    for what in rates.all() {
        let mut times: Vec<Duration> = (0..rounds + 1)
            .map(|_| {
                let started = Instant::now();
                rates.run(&what);
                started.elapsed()
            })
            .collect();
        times.remove(0); // the first one is slower
        times.sort_unstable();
        let (bytes, operations) = rates.size(&what);
        let time = times[times.len() / 2] / Rates::<D>::AGAIN;
        all.push(Rate { what: what.to_string(), time, bytes, operations });
    }
    Ok(all)
}
