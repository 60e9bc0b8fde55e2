//! Overwriting: what is put down is overwritten by the next launch at the latest, places of it are read back, and a proof is given
//! once the device says that all of it is done.
#![expect(unsafe_code, reason = "reads what the device wrote to memory of the host")]

use super::args::{CleanArgs, Place, ScrubArgs};
use super::driver::{Address, Driver};
use super::{Cuda, shape};
use crate::memory::scrub::SAMPLE_BYTES;
use crate::memory::{Scrubbed, scrub};

/// What was asked to be overwritten, or is already: no proof before the device has done it.
#[derive(Clone, Copy, Default)]
pub(super) struct PendingScrub {
    pub bytes: u64,
    pub samples: u64,
    pub dirty: bool,
}

impl PendingScrub {
    pub fn and(self, more: Self) -> Self {
        let Self { bytes, samples, dirty } = self;
        Self { bytes: bytes + more.bytes, samples: samples + more.samples, dirty: dirty | more.dirty }
    }
}

impl From<Scrubbed> for PendingScrub {
    fn from(done: Scrubbed) -> Self {
        Self { bytes: done.bytes(), samples: done.samples(), dirty: done.is_dirty() }
    }
}

impl<D: Driver> Cuda<D> {
    /// Overwrites what is pending, and looks at places of it.
    pub(super) fn flush(&mut self) {
        if let Some(arena) = &mut self.arena {
            arena.read = None;
        }
        if self.pending.is_empty() {
            return;
        }
        const NOTHING: Place = Place { at: 0, bytes: 0, middle: 0 };
        let dirty = self.address(self.arena().status);
        for places in std::mem::take(&mut self.pending).chunks(ScrubArgs::MOST) {
            let mut args =
                ScrubArgs { places: [NOTHING; ScrubArgs::MOST], dirty, count: places.len() as u32 };
            args.places[..places.len()].copy_from_slice(places);
            let most = places.iter().map(|place| place.bytes).max().unwrap_or(0);
            // 16 bytes a thread and turn, some turns each, and no more blocks than keep the device busy
            let blocks = (most / (16 * 256 * 4)).clamp(1, 16 * u64::from(self.driver.processors()));
            self.ask("scrub", shape([blocks as usize, places.len(), 1], 256, 0), &args);
            self.ask("sample", shape([places.len(), 1, 1], 32, 0), &args);
        }
    }

    /// Overwrites what processors keep between kernels, after what is pending.
    pub(super) fn clean(&mut self) {
        let shared_bytes = self.driver.shared_bytes() / 1024 * 1024;
        let args = CleanArgs { shared_bytes };
        let blocks = self.driver.processors() as usize;
        self.launch("clean", shape([blocks, 1, 1], 1024, shared_bytes as usize), &args);
    }

    /// Puts memory down to be overwritten.
    pub(super) fn forget(&mut self, at: Address, bytes: usize) -> PendingScrub {
        if bytes == 0 {
            return PendingScrub::default();
        }
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        self.place = self.place.wrapping_add(STEP);
        let spare = bytes.saturating_sub(SAMPLE_BYTES) as u128;
        let middle = ((u128::from(self.place) * (spare + 1)) >> 64) as u64 / 4 * 4;
        self.pending.push(Place { at, bytes: bytes as u64, middle });
        PendingScrub { bytes: bytes as u64, samples: 3, dirty: false }
    }

    /// Waits until all that was put down is overwritten: the proof of it.
    pub(super) fn prove(&mut self, asked: PendingScrub) -> Scrubbed {
        let dirty = self.arena.is_some() && self.finish_scrub();
        self.proof(asked.bytes, asked.samples, asked.dirty | dirty)
    }

    /// Puts down what steps leave besides their buffers: inputs, questions, scratch, what processors keep between kernels.
    pub(super) fn forget_threads(&mut self) -> PendingScrub {
        self.graphs.abandon(&*self.driver);
        let mut asked = self.inputs.forget(&mut self.pending).and(self.forget_sampling());
        if let Some(arena) = &mut self.arena {
            let used = std::mem::take(&mut arena.parts_used);
            let (host, bytes, parts) = (arena.host.at(), arena.host.bytes(), arena.parts);
            let at = self.address(parts);
            asked = asked.and(self.forget(at, used));
            self.clean();
            self.driver.synchronize();
            // SAFETY: ours alone, and the device is done with it.
            asked = asked.and(scrub(unsafe { std::slice::from_raw_parts_mut(host, bytes) }).into());
        }
        asked
    }

    /// A proof; of a device that failed, that there is none.
    pub(super) fn proof(&self, bytes: u64, samples: u64, dirty: bool) -> Scrubbed {
        match self.driver.failed() {
            true => Scrubbed::by_device(0, 0, true),
            false => Scrubbed::by_device(bytes, samples, dirty),
        }
    }

    /// Waits for all that was asked for; says whether something that was read back was not zero, or may not be.
    pub(super) fn finish_scrub(&mut self) -> bool {
        self.flush();
        let words = self.read_status();
        words[0] != 0 || self.driver.failed()
    }

    /// The first words of the status, once all is done.
    pub(super) fn read_status(&self) -> [u32; 4] {
        let Some(arena) = &self.arena else { return [0; 4] };
        let mut words = [0; 4];
        // SAFETY: both have 16 bytes; what is read is looked at once it is there.
        unsafe {
            self.driver.read(self.address(arena.status), arena.told.at(), 16);
            self.driver.synchronize();
            std::ptr::copy_nonoverlapping(arena.told.at(), words.as_mut_ptr().cast(), 16);
        }
        words
    }
}
