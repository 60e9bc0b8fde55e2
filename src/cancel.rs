//! `CancelToken`: ends requests from another thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// What a token can end.
pub(crate) trait Interrupt: std::fmt::Debug + Send + Sync {
    /// Asks for the end, and does not wait for it.
    fn interrupt(&self);
}

/// Ends every request that was given a clone of it ([`crate::Request::cancel_token`]): within one step, with what was
/// produced so far in the reply, whose finish reason is [`crate::FinishReason::Cancelled`].
///
/// It stays cancelled: requests that are given it later end before their first token.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    cancelled: AtomicBool,
    watched: Mutex<Vec<Weak<dyn Interrupt>>>,
}

impl CancelToken {
    /// A token that nobody has cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the requests. Does not wait for them.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::SeqCst);
        let watched = std::mem::take(&mut *self.watched());
        watched.iter().filter_map(Weak::upgrade).for_each(|request| request.interrupt());
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }

    /// From now on `request` is interrupted with the token.
    pub(crate) fn watch<R: Interrupt + 'static>(&self, request: &Arc<R>) {
        {
            let mut watched = self.watched();
            // one token for many requests, one after another: forget those that are over whenever the list doubles
            if watched.len() == watched.capacity() {
                watched.retain(|request| request.strong_count() > 0);
            }
            let request: Weak<R> = Arc::downgrade(request);
            watched.push(request);
        }
        // after the push: a cancellation in between either finds it in the list or is seen here
        if self.is_cancelled() {
            request.interrupt();
        }
    }

    fn watched(&self) -> std::sync::MutexGuard<'_, Vec<Weak<dyn Interrupt>>> {
        self.0.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
