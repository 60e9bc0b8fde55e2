//! Where a request stands still, so that somebody can look while it holds what it holds.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Where a request stands still in the middle of a step, all of its session with it, until somebody has looked.
///
/// ```
/// use amnesic::{Request, forensics::Gate};
///
/// let gate = Gate::default();
/// let request = Request::prompt("...").stop_at(12, &gate);
/// // another thread generates; this one would then call gate.wait(), look, and gate.open()
/// # drop(request);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<(Mutex<State>, Condvar)>);

#[derive(Debug, Default)]
struct State {
    reached: bool,
    open: bool,
}

impl Gate {
    /// Waits until the request has come; false if it has not after `patience`.
    pub fn wait(&self, patience: Duration) -> bool {
        let (_, changed) = &*self.0;
        let waited = changed.wait_timeout_while(self.lock(), patience, |state| !state.reached);
        waited.unwrap_or_else(PoisonError::into_inner).0.reached
    }

    /// Lets it go on, and all that come later.
    pub fn open(&self) {
        self.lock().open = true;
        self.0.1.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn pass(&self) {
        let mut state = self.lock();
        state.reached = true;
        self.0.1.notify_all();
        drop(self.0.1.wait_while(state, |state| !state.open));
    }
}

/// The gates of a request, each with the token, counted from 0, at which it stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gates(Vec<(usize, Gate)>);

impl Gates {
    pub fn add(&mut self, token: usize, gate: &Gate) {
        self.0.push((token, gate.clone()));
    }

    /// The logits of token `token` are there, and nothing was made of them yet.
    pub fn pass(&self, token: usize) {
        self.0.iter().filter(|(at, _)| *at == token).for_each(|(_, gate)| gate.pass());
    }
}
