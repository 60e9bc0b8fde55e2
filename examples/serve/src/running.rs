//! The engine's side of one HTTP request: a stream for each prompt.
//!
//! A reply that is sent whole is read as a stream too: so no thread waits for it, and a client that leaves ends it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use amnesic::{FinishReason, Piece, Reply, Request, Stream, Usage};
use futures_core::Stream as _;

use crate::app::{App, work};
use crate::error::Result;
use crate::log::{DISCONNECTED, Record};

/// Requests that were accepted. Dropping it ends them.
pub struct Running {
    app: Arc<App>,
    streams: Vec<Stream>,
    /// The stream to ask first for the next piece.
    next: usize,
    record: Arc<Record>,
    /// Whether the requests are a chat, whose errors have other names.
    chat: bool,
}

impl Running {
    /// Sends requests in; returns once all are accepted. If one is wrong, none goes on.
    ///
    /// # Errors
    /// A request is wrong, or the session is full, closed or poisoned.
    pub async fn start(
        app: Arc<App>,
        requests: Vec<Request>,
        chat: bool,
        record: Arc<Record>,
    ) -> Result<Self> {
        let with_limits = |request: Request| request.cancel_token(&app.stop).timeout(app.timeout);
        let requests: Vec<Request> = requests.into_iter().map(with_limits).collect();
        let session = app.clone();
        // waits for the tokenizer; on an error the streams before it are dropped here too, which waits for a scrub
        let accept = move || {
            let streams = requests.into_iter().map(|request| session.session.stream(request));
            streams.collect::<amnesic::Result<Vec<Stream>>>()
        };
        let streams = work(accept).await?.map_err(|error| app.engine_error(error, chat))?;
        record.not_enforced(streams.first().map_or_else(Vec::new, Stream::not_enforced));
        Ok(Self { app, streams, next: 0, record, chat })
    }

    /// The next piece of any stream, with the stream's number; none when all have ended.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<(usize, Piece)>>> {
        let count = self.streams.len();
        let mut pending = false;
        for index in (0..count).map(|step| (self.next + step) % count) {
            match Pin::new(&mut self.streams[index]).poll_next(context) {
                Poll::Ready(Some(Ok(piece))) => {
                    self.next = (index + 1) % count;
                    return Poll::Ready(Some(Ok((index, piece))));
                }
                Poll::Ready(Some(Err(error))) => {
                    self.record.broken("error");
                    return Poll::Ready(Some(Err(self.app.engine_error(error, self.chat))));
                }
                Poll::Ready(None) => {}
                Poll::Pending => pending = true,
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(None) }
    }

    /// Waits for the end of all.
    pub async fn replies(mut self) -> Result<Vec<Reply>> {
        while let Some(piece) = std::future::poll_fn(|context| self.poll_next(context)).await {
            piece?;
        }
        self.finish()
    }

    /// The whole replies of streams that have ended: does not wait.
    pub fn finish(&mut self) -> Result<Vec<Reply>> {
        let finish =
            |stream: Stream| stream.finish().map_err(|error| self.app.engine_error(error, self.chat));
        let replies =
            std::mem::take(&mut self.streams).into_iter().map(finish).collect::<Result<Vec<_>>>()?;
        let mut reasons: Vec<&str> = Vec::new();
        for choice in replies.iter().flat_map(Reply::choices) {
            let reason = finish_reason(choice.finish_reason);
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
        self.record.finished(usage(&replies), reasons.join(","));
        Ok(replies)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.streams.is_empty() {
            return;
        }
        self.record.broken(DISCONNECTED);
        self.streams.iter().for_each(Stream::interrupt);
        self.streams.clear(); // they are polled, so that waits for nothing
    }
}

/// OpenAI has no word for a deadline or for a server that shuts down: the reply is cut off, as by `max_tokens`.
pub fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::ToolCalls => "tool_calls",
        _ => "length",
    }
}

/// The sum over all prompts.
pub fn usage(replies: &[Reply]) -> Usage {
    let mut sum = Usage::default();
    for Usage { prompt_tokens, completion_tokens, cached_tokens, .. } in
        replies.iter().map(|reply| reply.usage)
    {
        sum.prompt_tokens += prompt_tokens;
        sum.completion_tokens += completion_tokens;
        sum.cached_tokens += cached_tokens;
    }
    sum
}
