//! How replies are sent: whole, or as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use amnesic::{Piece, Reply, Usage};
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use serde::Serialize;

use crate::app::work;
use crate::error::{ApiError, Result, json_response, to_json};
use crate::log::unix_secs;
use crate::obfuscation::Obfuscation;
use crate::running::Running;
use crate::settings::Streaming;

/// What an endpoint makes of replies. Streams are numbered as their prompts are.
pub trait Shape: Send + Unpin + 'static {
    /// All of them as one JSON text.
    fn whole(&self, replies: &[Reply]) -> Vec<u8>;
    /// What comes before the first piece.
    fn first(&mut self, events: &mut Events);
    /// What comes of a piece.
    fn piece(&mut self, stream: usize, piece: &Piece, events: &mut Events);
    /// What comes behind the last piece.
    fn last(&mut self, replies: &[Reply], events: &mut Events);
}

/// Events that wait to be sent.
#[derive(Default)]
pub struct Events {
    waiting: VecDeque<Bytes>,
    /// Since the first event that was filled up.
    obfuscation: Option<Obfuscation>,
}

impl Events {
    /// Appends an event with a JSON text.
    pub fn push(&mut self, json: &[u8]) {
        self.waiting.push_back([b"data: ", json, b"\n\n"].concat().into());
    }
}

/// Sends what `running` gives, in `shape`.
pub async fn reply(running: Running, mut shape: impl Shape, streaming: bool) -> Result<Response> {
    if !streaming {
        let replies = running.replies().await?;
        return Ok(json_response(StatusCode::OK, work(move || shape.whole(&replies)).await?));
    }
    let mut events = Events::default();
    shape.first(&mut events);
    let body = EventStream { running: Some(running), shape, events };
    let mut response = Response::new(Body::from_stream(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    Ok(response)
}

/// A response's body. Dropping it ends the requests.
struct EventStream<S> {
    /// None once all is in `events`.
    running: Option<Running>,
    shape: S,
    events: Events,
}

impl<S: Shape> EventStream<S> {
    /// Takes in what came of the streams.
    fn take(&mut self, next: Option<Result<(usize, Piece)>>) {
        match next {
            Some(Ok((stream, piece))) => self.shape.piece(stream, &piece, &mut self.events),
            Some(Err(error)) => self.fail(&error),
            None => match self.running.take().map(|mut running| running.finish()) {
                Some(Ok(replies)) => {
                    self.shape.last(&replies, &mut self.events);
                    self.events.push(b"[DONE]");
                }
                Some(Err(error)) => self.fail(&error),
                None => {}
            },
        }
    }

    /// The status was sent long ago: the error comes as the last event.
    fn fail(&mut self, error: &ApiError) {
        self.events.push(&error.json());
        self.running = None;
    }
}

impl<S: Shape> futures_core::Stream for EventStream<S> {
    type Item = std::result::Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(event) = this.events.waiting.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            let Some(running) = &mut this.running else { return Poll::Ready(None) };
            let next = ready!(running.poll_next(context));
            this.take(next);
        }
    }
}

/// What all responses and events of one request have in common.
pub struct Envelope {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    /// Set if events tell the usage.
    usage: bool,
    /// Set if events are filled up.
    obfuscates: bool,
    /// Bytes that all events have.
    fixed: usize,
}

#[derive(Serialize)]
struct Sealed<'a, C> {
    id: &'a str,
    object: &'a str,
    created: u64,
    model: &'a str,
    choices: &'a [C],
    /// Absent, null, or there.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Tokens>>,
    /// Comes last, where it is filled up.
    #[serde(skip_serializing_if = "Option::is_none")]
    obfuscation: Option<&'static str>,
}

#[derive(Serialize)]
struct Tokens {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptTokens,
}

#[derive(Serialize)]
struct PromptTokens {
    cached_tokens: usize,
}

impl Envelope {
    pub fn new(id: String, object: &'static str, model: &str, streaming: Option<Streaming>) -> Self {
        let usage = streaming.is_some_and(|streaming| streaming.usage);
        let obfuscates = streaming.is_some_and(|streaming| streaming.obfuscation);
        let created = unix_secs() as u64;
        let envelope = Self { id, object, created, model: model.to_owned(), usage, obfuscates, fixed: 0 };
        Self { fixed: envelope.seal::<()>(&[], usage.then_some(None)).len(), ..envelope }
    }

    /// Whether events are filled up: then each token has one, also where it ends no character and so gives no text.
    pub fn obfuscates(&self) -> bool {
        self.obfuscates
    }

    /// A whole response.
    pub fn whole<C: Serialize>(&self, choices: &[C], usage: Usage) -> Vec<u8> {
        self.seal(choices, Some(Some(tokens(usage))))
    }

    /// An event.
    pub fn event<C: Serialize>(&self, choice: C, events: &mut Events) {
        self.push(self.seal(&[choice], self.usage.then_some(None)), events);
    }

    /// The event that tells the usage, if it is wanted.
    pub fn usage_event(&self, usage: Usage, events: &mut Events) {
        if self.usage {
            self.push(self.seal::<()>(&[], Some(Some(tokens(usage)))), events);
        }
    }

    fn push(&self, mut json: Vec<u8>, events: &mut Events) {
        if self.obfuscates {
            events.obfuscation.get_or_insert_with(Obfuscation::new).fill(&mut json, self.fixed);
        }
        events.push(&json);
    }

    fn seal<C: Serialize>(&self, choices: &[C], usage: Option<Option<Tokens>>) -> Vec<u8> {
        let Self { id, object, created, model, .. } = self;
        let obfuscation = self.obfuscates.then_some("");
        to_json(&Sealed { id, object, created: *created, model, choices, usage, obfuscation })
    }
}

fn tokens(usage: Usage) -> Tokens {
    Tokens {
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        total_tokens: usage.total_tokens(),
        prompt_tokens_details: PromptTokens { cached_tokens: usage.cached_tokens },
    }
}
