//! Tokens chosen where the logits are: the launchers of `sample.cu`. Only its answers are copied to the host.
#![expect(unsafe_code, reason = "reads pinned memory")]

use std::sync::Arc;

use super::args::SampleArgs;
use super::driver::{Driver, Host};
use super::inputs::Input;
use super::scrub::PendingScrub;
use super::{Cuda, shape, small};
use crate::backend::Buf;
use crate::backend::sample_batch::{ANSWER, QUERY_WORDS, SampleBatch};
use crate::error::{Error, Result};
use crate::memory::{Layout, Region, scrub};

/// Threads of a block, as in `sample.cu`.
const THREADS: usize = 512;
/// Bytes of shared memory of a block there.
const SHARED: usize = 52 * 1024;
/// SampleBatch of a launch, at most.
const AT_ONCE: usize = 64;
/// The scratch is no larger than this, but for one question.
const SCRATCH_BYTES: usize = 128 << 20;
const ANSWER_BYTES: usize = ANSWER * size_of::<u32>();

/// The scratch, and where answers arrive.
#[derive(Debug)]
pub struct Sampling<D: Driver> {
    /// SampleBatch of a launch.
    at_once: usize,
    /// Logits that were changed: (questions, vocab).
    rows: Region,
    /// Keys of 64 bits: (questions, vocab).
    keys: Region,
    answers: Region,
    told: Host<D>,
    /// How many questions may have left something in the scratch.
    used: usize,
    /// How many questions have answers.
    answered: usize,
}

/// SampleBatch of a launch about `rows` rows of so many bytes.
fn at_once(rows: usize, row: usize) -> usize {
    (SCRATCH_BYTES / (3 * row.max(1))).clamp(1, rows.clamp(1, AT_ONCE))
}

/// Bytes that are planned for (rows, cols) of logits.
pub fn scratch_bytes((rows, cols): (usize, usize)) -> usize {
    let row = cols * size_of::<f32>();
    at_once(rows, row) * (3 * row + ANSWER_BYTES)
}

impl<D: Driver> Sampling<D> {
    /// Plans it for rows of those logits.
    ///
    /// # Errors
    /// The sizes overflow; there is no pinned memory.
    pub fn plan(driver: &Arc<D>, layout: &mut Layout, logits: Buf) -> Result<Self> {
        let what = "the sampler's scratch";
        let too_large =
            || Error::Memory { needed: u64::MAX, what, limit: "that does not fit the address space".into() };
        let row = logits.cols * size_of::<f32>();
        let at_once = at_once(logits.region.bytes() / row, row);
        let mut region = |bytes| layout.region(bytes).ok_or_else(too_large);
        Ok(Self {
            at_once,
            rows: region(at_once * row)?,
            keys: region(at_once * 2 * row)?,
            answers: region(at_once * ANSWER_BYTES)?,
            told: Host::new(driver, at_once * ANSWER_BYTES)?,
            used: at_once,
            answered: at_once,
        })
    }

    /// The answers that arrived last.
    #[cfg(test)]
    pub fn told(&self) -> &[u8] {
        // SAFETY: ours alone, and the device is done with it.
        unsafe { std::slice::from_raw_parts(self.told.at(), self.told.bytes()) }
    }
}

impl<D: Driver> Cuda<D> {
    /// Answers questions about rows of logits, so many at once.
    pub(super) fn answer(&mut self, logits: Buf, queries: &mut SampleBatch) {
        let count = queries.len();
        let Some(sampling) = self.arena().sampling.as_ref().filter(|_| count > 0) else { return };
        let (at_once, rows, keys, answers) =
            (sampling.at_once, sampling.rows, sampling.keys, sampling.answers);
        let vocab = logits.cols;
        assert!(at_once * vocab * size_of::<f32>() <= rows.bytes(), "sample: columns differ");
        assert!(queries.words().iter().skip(2).step_by(QUERY_WORDS).all(|&given| (given as usize) < vocab));
        let rows_asked = queries.words().iter().step_by(QUERY_WORDS).map(|&row| row as usize + 1);
        let args = SampleArgs {
            logits: self.at(logits, rows_asked.max().unwrap_or(0)),
            queries: self.input(Input::SampleBatch, queries.words().iter().copied()),
            lists: self.input(Input::Lists, queries.lists.expose().iter().copied()),
            answers: self.address(answers),
            rows: self.address(rows),
            keys: self.address(keys),
            vocab: small(vocab),
            stride: small(logits.stride()),
        };
        let threads = vocab.next_multiple_of(32).min(THREADS);
        let mut first = 0;
        for count in std::iter::repeat_n(at_once, count.div_ceil(at_once)) {
            let now = count.min(queries.len() - first);
            let needs = queries.needs(first..first + now);
            let sampling = self.arena.as_mut().and_then(|arena| arena.sampling.as_mut());
            let sampling = sampling.expect("looked at above");
            sampling.used = sampling.used.max(if needs.scratch { now } else { 0 });
            sampling.answered = sampling.answered.max(now);
            let args = SampleArgs {
                queries: args.queries + (first * QUERY_WORDS * size_of::<u32>()) as u64,
                ..args
            };
            if needs.changes {
                self.launch("adjust", shape([now, 1, 1], threads, 0), &args);
            }
            self.launch("sample_tokens", shape([now, 1, 1], threads, SHARED), &args);
            if needs.logprobs {
                self.launch("rate", shape([now, 1, 1], threads, SHARED), &args);
            }
            self.copy_answers(&mut queries.answers()[first * ANSWER..][..now * ANSWER]);
            first += now;
        }
    }

    /// Copies answers to the host; zeros if the device failed.
    fn copy_answers(&self, told: &mut [u32]) {
        let Some(sampling) = &self.arena().sampling else { return };
        let bytes = size_of_val(told);
        assert!(bytes <= sampling.told.bytes(), "more answers than were asked for");
        // SAFETY: all have the bytes, and the device has written them when `synchronize` returns.
        unsafe {
            self.driver.read(self.address(sampling.answers), sampling.told.at(), bytes);
            self.driver.synchronize();
            if !self.driver.failed() {
                std::ptr::copy_nonoverlapping(sampling.told.at(), told.as_mut_ptr().cast(), bytes);
            }
        }
    }

    /// Overwrites what questions and answers left here; the inputs are overwritten with all inputs.
    pub(super) fn forget_sampling(&mut self) -> PendingScrub {
        let sampling = self.arena.as_mut().and_then(|arena| arena.sampling.as_mut());
        let Some(sampling) = sampling else { return PendingScrub::default() };
        let (used, answered) = (std::mem::take(&mut sampling.used), std::mem::take(&mut sampling.answered));
        let parts = [
            (sampling.rows, sampling.rows.bytes() / sampling.at_once * used),
            (sampling.keys, sampling.keys.bytes() / sampling.at_once * used),
            (sampling.answers, ANSWER_BYTES * answered),
        ];
        let (told, bytes) = (sampling.told.at(), ANSWER_BYTES * answered);
        self.driver.synchronize();
        // SAFETY: ours alone, and the device is done with it.
        let sum = scrub(unsafe { std::slice::from_raw_parts_mut(told, bytes) });
        parts.into_iter().fold(PendingScrub::from(sum), |sum, (region, bytes)| {
            sum.and(self.forget(self.address(region), bytes))
        })
    }
}
