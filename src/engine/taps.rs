//! Where tests look into the worker, and break it (feature `testing`).

use std::sync::{Arc, Mutex, PoisonError};

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

/// A fault to come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Steps until a panic.
    pub(crate) panic_in: Option<usize>,
}

impl Faults {
    pub(crate) fn after_forward(&mut self) {
        if let Some(steps) = &mut self.panic_in {
            *steps -= 1;
            assert!(*steps > 0, "a fault that a test asked for");
        }
    }
}
