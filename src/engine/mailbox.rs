//! What a request has produced, between the worker and the caller who waits for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::memory::Secret;
use crate::response::{FinishReason, Piece, Reply, RequestId, Timing, Usage};

/// The caller's end.
#[derive(Debug, Default)]
pub struct Mailbox {
    state: Mutex<State>,
    changed: Condvar,
    cancelled: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// UTF-8, whole characters.
    text: Secret<Vec<u8>>,
    tokens: Secret<Vec<u32>>,
    ended: bool,
    /// Set when it ended; taken by the caller.
    end: Option<Result<End>>,
}

/// How a request ended well.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub finish_reason: FinishReason,
    pub usage: Usage,
    pub timing: Timing,
    pub request_id: RequestId,
    pub seed: u64,
}

impl Mailbox {
    /// Waits for more text than the first `taken` bytes; none when the request has ended and all is taken.
    pub fn next_piece(&self, taken: &mut usize) -> Option<Result<Piece>> {
        let mut state = self.lock();
        while state.text.expose().len() == *taken && !state.ended {
            state = self.wait(state);
        }
        let fresh = state.text.expose().get(*taken..).filter(|fresh| !fresh.is_empty());
        if let Some(fresh) = fresh {
            *taken += fresh.len();
            return Some(Ok(Piece(Secret::new(text(fresh.to_vec())))));
        }
        match state.end.take() {
            Some(Err(error)) => Some(Err(error)),
            end => {
                state.end = end;
                None
            }
        }
    }

    /// Waits for the end and takes the reply out.
    pub fn reply(&self) -> Result<Reply> {
        let mut state = self.lock();
        while !state.ended {
            state = self.wait(state);
        }
        let End { finish_reason, usage, timing, request_id, seed } =
            state.end.take().unwrap_or(Err(Error::Closed))?;
        let tokens = std::mem::take(&mut state.tokens);
        let bytes = std::mem::take(&mut state.text).into_exposed();
        Ok(Reply { text: Secret::new(text(bytes)), tokens, finish_reason, usage, timing, request_id, seed })
    }

    /// Asks the worker to end the request, and waits until it is scrubbed: at most one step.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        let mut state = self.lock();
        while !state.ended {
            state = self.wait(state);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("the detokenizer gives whole characters")
}

/// The worker's end. If it drops before the request ended, the caller learns that the session closed.
#[derive(Debug)]
pub struct Outbox(Arc<Mailbox>);

impl Outbox {
    /// The two ends of a new mailbox.
    pub fn pair() -> (Outbox, Arc<Mailbox>) {
        let mailbox = Arc::new(Mailbox::default());
        (Outbox(mailbox.clone()), mailbox)
    }

    /// Whether the caller has gone.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }

    /// Makes room for `tokens` tokens.
    pub fn reserve(&self, tokens: usize) {
        self.0.lock().tokens.reserve(tokens);
    }

    /// Adds one token.
    pub fn token(&self, id: u32) {
        self.0.lock().tokens.push(id);
    }

    /// Adds text through `give`, and wakes the caller if there was any.
    pub fn text<R>(&self, give: impl FnOnce(&mut Secret<Vec<u8>>) -> R) -> R {
        let mut state = self.0.lock();
        let before = state.text.expose().len();
        let result = give(&mut state.text);
        if state.text.expose().len() > before {
            self.0.changed.notify_all();
        }
        result
    }

    /// Ends the request. After an error nothing of the reply is kept.
    pub fn end(&self, end: Result<End>) {
        let mut state = self.0.lock();
        if state.ended {
            return;
        }
        if end.is_err() {
            let _ = state.text.wipe().and(state.tokens.wipe());
        }
        state.end = Some(end);
        state.ended = true;
        self.0.changed.notify_all();
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.end(Err(Error::Closed));
    }
}
