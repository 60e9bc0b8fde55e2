//! Where tests look into the worker, stop it, and break it (feature `testing`).

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::forensics::gate::Gate;
use crate::memory::Secret;

/// Receives a copy of the logits from which each token of a request is chosen.
#[derive(Clone, Debug, Default)]
pub struct LogitsTap(Arc<Mutex<Secret<[f32]>>>);

impl LogitsTap {
    pub(crate) fn take(&self, logits: &[f32]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(logits);
    }

    /// All logits so far: (tokens, vocab).
    pub fn values(&self) -> Vec<f32> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).expose().to_vec()
    }
}

/// What happens to a request when the logits of one of its tokens are there.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    /// The step panics.
    Panic,
    /// They are taken for not finite.
    NotFinite,
}

/// What tests asked for in a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Taps {
    pub logits: Option<LogitsTap>,
    /// At which token, counted from 0, what happens.
    pub acts: Vec<(usize, Act)>,
    /// Where reading it stands still.
    pub reading: Option<Gate>,
    /// At which mask of its first choice, counted from 0, computing it stands still.
    pub mask: Option<(usize, Gate)>,
    /// Its grammar is taken for one that takes long.
    pub slow_grammar: bool,
}

impl Taps {
    /// A thread begins to read the request.
    pub fn read(&self) {
        self.reading.iter().for_each(Gate::pass);
    }

    /// The logits of token `generated` are there, and nothing was made of them yet. `logits` are read if a tap wants them.
    pub fn at<'a>(&self, generated: usize, logits: impl FnOnce() -> &'a [f32]) -> Result<()> {
        if let Some(tap) = &self.logits {
            tap.take(logits());
        }
        match self.acts.iter().find(|(at, _)| *at == generated) {
            Some((_, Act::Panic)) => panic!("a fault that a test asked for"),
            Some((_, Act::NotFinite)) => Err(Error::NotFinite),
            None => Ok(()),
        }
    }
}

/// A fault to come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Steps until a panic.
    pub(crate) panic_in: Option<usize>,
    /// Calls until an emulated device fails.
    pub(crate) device_fails_in: Option<i64>,
    /// An emulated device counts here the bytes that are copied to the host.
    pub(crate) read_bytes: Option<&'static AtomicU64>,
    /// Devices are not asked to choose tokens.
    pub(crate) sample_on_host: bool,
}

impl Faults {
    pub(crate) fn after_forward(&mut self) {
        if let Some(steps) = &mut self.panic_in {
            *steps -= 1;
            assert!(*steps > 0, "a fault that a test asked for");
        }
    }
}
