//! What embeddings and scores have in common: a call of the engine that ends when its client leaves.

use std::sync::Arc;

use amnesic::{CancelToken, Usage};
use serde::Serialize;

use crate::app::{App, work};
use crate::error::Result;
use crate::log::{DISCONNECTED, Record};

/// Runs `act`, which ends early once its token is cancelled: when the client has left.
///
/// # Errors
/// The engine's, or the machine starts no thread.
pub async fn run<T: Send + 'static>(
    app: &Arc<App>,
    record: &Record,
    act: impl FnOnce(&App, &CancelToken) -> amnesic::Result<T> + Send + 'static,
) -> Result<T> {
    let leaving = Leaving { token: CancelToken::new(), record: Some(record) };
    let (shared, token) = (app.clone(), leaving.token.clone());
    let done = work(move || act(&shared, &token)).await;
    leaving.stays();
    done?.map_err(|error| app.engine_error(error, false))
}

/// Cancels its token when it drops, unless the work was done.
struct Leaving<'a> {
    token: CancelToken,
    record: Option<&'a Record>,
}

impl Leaving<'_> {
    fn stays(mut self) {
        self.record = None;
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if let Some(record) = self.record {
            record.broken(DISCONNECTED);
            self.token.cancel();
        }
    }
}

#[derive(Serialize)]
pub struct Tokens {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl From<Usage> for Tokens {
    fn from(usage: Usage) -> Self {
        Self { prompt_tokens: usage.prompt_tokens, total_tokens: usage.prompt_tokens }
    }
}
