//! What a step is told: ids, positions, block tables. Each goes to the device once a step, when it is first asked for,
//! through pinned memory; both are overwritten when requests end.
#![expect(unsafe_code, reason = "reads and writes pinned memory")]

use std::sync::Arc;

use super::args::Place;
use super::driver::{Address, DeviceAllocation, Driver, Host};
use super::scrub::PendingScrub;
use crate::memory::scrub;

/// What the words are.
#[derive(Clone, Copy, Debug)]
pub enum Input {
    /// Token ids.
    Ids,
    /// Rows of the table of positions and parts.
    PositionTypes,
    /// Positions.
    Positions,
    /// Where keys and values go.
    Slots,
    /// Requests: row, rows, position, table, mask.
    Spans,
    /// Block tables.
    Blocks,
    /// Rows whose logits are wanted.
    Outputs,
    /// Texts to be pooled: first row, and the one behind the last.
    Texts,
    /// Questions about logits.
    SampleBatch,
    /// Their lists.
    Lists,
}

const COUNT: usize = Input::Lists as usize + 1;

/// Words at both ends of the bus.
#[derive(Debug)]
struct Words<D: Driver> {
    host: Host<D>,
    device: DeviceAllocation<D>,
    /// How many are the same on both.
    count: usize,
    /// The most there were since they were overwritten.
    most: usize,
    /// Whether the device may still read the pinned memory.
    under_way: bool,
}

/// All of them.
#[derive(Debug)]
pub struct Inputs<D: Driver> {
    driver: Arc<D>,
    words: [Option<Words<D>>; COUNT],
    /// How often something moved that recorded steps read.
    generation: u64,
}

impl<D: Driver> Inputs<D> {
    /// None yet.
    pub fn new(driver: Arc<D>) -> Self {
        Self { driver, words: [const { None }; COUNT], generation: 0 }
    }

    /// Changes when an address did.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Where the device finds these words.
    pub fn put(&mut self, input: Input, words: impl ExactSizeIterator<Item = u32> + Clone) -> Address {
        let count = words.len();
        let slot = &self.words[input as usize];
        if let Some(there) = slot
            && there.count == count
        {
            // SAFETY: as many were written, and only this thread writes.
            let known = unsafe { std::slice::from_raw_parts(there.host.at().cast::<u32>(), count) };
            if known.iter().copied().eq(words.clone()) {
                return there.device.at();
            }
        }
        if slot.as_ref().is_some_and(|there| there.under_way) {
            self.wait();
        }
        let slot = &mut self.words[input as usize];
        if slot.as_ref().is_none_or(|there| there.device.bytes() < 4 * count) {
            if let Some(there) = slot.take() {
                self.overwrite(&there);
            }
            self.generation += u64::from(!matches!(input, Input::SampleBatch | Input::Lists));
            let bytes = (4 * count).next_power_of_two().max(4096);
            let both = Host::new(&self.driver, bytes).and_then(|host| {
                Ok((host, DeviceAllocation::new(&self.driver, bytes, "what a step is told")?))
            });
            match both {
                Ok((host, device)) => {
                    // SAFETY: both have the bytes; what is written next waits for it.
                    unsafe { self.driver.write(device.at(), host.at(), bytes) };
                    self.driver.synchronize();
                    self.words[input as usize] =
                        Some(Words { host, device, count: 0, most: 0, under_way: false });
                }
                Err(_) => {
                    self.driver.fail();
                    return 0;
                }
            }
        }
        let there = self.words[input as usize].as_mut().expect("just made");
        // SAFETY: the memory has so many words; the device is done with those that were there.
        let to = unsafe { std::slice::from_raw_parts_mut(there.host.at().cast::<u32>(), count) };
        to.iter_mut().zip(words).for_each(|(to, word)| *to = word);
        there.count = count;
        there.most = there.most.max(count);
        // SAFETY: both have the bytes; `under_way` keeps them as they are until they are waited for.
        unsafe { self.driver.write(there.device.at(), there.host.at(), 4 * count) };
        there.under_way = true;
        there.device.at()
    }

    /// Waits until the device has read all of it.
    fn wait(&mut self) {
        if self.words.iter().flatten().any(|words| words.under_way) {
            self.driver.synchronize();
        }
        self.words.iter_mut().flatten().for_each(|words| words.under_way = false);
    }

    /// Overwrites what grew too small: by a copy of zeros, since nothing may come between.
    fn overwrite(&self, words: &Words<D>) {
        // SAFETY: the device is done with it; both have the bytes.
        unsafe {
            let host = std::slice::from_raw_parts_mut(words.host.at(), words.host.bytes());
            let _ = scrub(host);
            self.driver.write(words.device.at(), words.host.at(), words.device.bytes());
        }
        self.driver.synchronize();
    }

    /// Whether both sides are zeros.
    #[cfg(test)]
    pub fn is_zero(&self) -> bool {
        self.words.iter().flatten().all(|words| {
            let bytes = words.host.bytes();
            let device = Host::new(&self.driver, bytes).unwrap();
            // SAFETY: both have the bytes; they are there when `synchronize` returns.
            let (host, device) = unsafe {
                self.driver.read(words.device.at(), device.at(), bytes);
                self.driver.synchronize();
                [words.host.at(), device.at()].map(|at| std::slice::from_raw_parts(at, bytes)).into()
            };
            host.iter().chain(device).all(|&byte| byte == 0)
        })
    }

    /// Overwrites the host's side, and puts the device's down to be.
    pub(super) fn forget(&mut self, pending: &mut Vec<Place>) -> PendingScrub {
        self.wait();
        let mut sum = PendingScrub::default();
        for words in self.words.iter_mut().flatten() {
            let bytes = 4 * std::mem::take(&mut words.most);
            words.count = 0;
            if bytes == 0 {
                continue;
            }
            // SAFETY: ours alone, and the device is done with it.
            sum = sum.and(scrub(unsafe { std::slice::from_raw_parts_mut(words.host.at(), bytes) }).into());
            pending.push(Place { at: words.device.at(), bytes: bytes as u64, middle: 0 });
            sum = sum.and(PendingScrub { bytes: bytes as u64, samples: 3, dirty: false });
        }
        sum
    }
}
