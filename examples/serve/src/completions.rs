//! `POST /v1/completions`.

use std::borrow::Cow;
use std::sync::Arc;

use amnesic::{Piece, Reply, Request};
use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;

use crate::app::{App, read};
use crate::error::{ApiError, Result};
use crate::fields::Fields;
use crate::log::Record;
use crate::logprobs::{PromptLogprobs, TextLogprobs, prompt_logprobs};
use crate::reply::{Envelope, Events, Shape, reply};
use crate::running::{Running, finish_reason, usage};
use crate::settings::{HARMLESS, Limit, MAX_CHOICES, Settings, Streaming, streaming, token_id};

/// OpenAI's `max_tokens` when it is not given.
const DEFAULT_MAX_TOKENS: Limit = Limit::Tokens(16);

const REFUSED: [(&str, &str); 4] = [
    ("suffix", "the engine continues texts, and does not fill them in"),
    ("best_of", "ask for `n` and choose"),
    ("response_format", "use /v1/chat/completions"),
    ("use_beam_search", "ask for `n` and choose"),
];

pub async fn completions(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: axum::extract::Request,
) -> Result<Response> {
    let asked = read(&app, request, Asked::take).await?;
    let requests = asked.requests();
    let streams = asked.streaming.is_some();
    let shape = Completion::new(app.clone(), asked, &record);
    reply(Running::start(app, requests, false, record).await?, shape, streams).await
}

enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// What the body says.
struct Asked {
    prompts: Vec<Prompt>,
    settings: Settings,
    streaming: Option<Streaming>,
    echo: bool,
    logprobs: Option<usize>,
    prompt_logprobs: Option<usize>,
    /// `max_tokens` is 0: only the prompt is wanted. The engine draws one token at least, which is thrown away.
    prompt_only: bool,
}

impl Asked {
    fn take(app: &App, mut fields: Fields) -> Result<Self> {
        app.check_model(&mut fields)?;
        let mut settings = Settings::take(&mut fields)?;
        let best_of = fields.count("best_of")?;
        if best_of.is_some_and(|best_of| best_of != settings.n.unwrap_or(1)) {
            return Err(ApiError::unsupported("best_of", "ask for `n` and choose"));
        }
        let prompts = prompts(&mut fields)?;
        if prompts.len().saturating_mul(settings.n.unwrap_or(1)) > MAX_CHOICES {
            return Err(ApiError::field("n", format!("at most {MAX_CHOICES} over all prompts")));
        }
        let echo = fields.flag("echo")?.unwrap_or(false);
        let logprobs = fields.count("logprobs")?;
        let streaming = streaming(&mut fields)?;
        if streaming.is_some() && (settings.prompt_logprobs.is_some() || echo && logprobs.is_some()) {
            return Err(ApiError::field(
                "stream",
                "false where log probabilities of the prompt are asked for",
            ));
        }
        fields.done(&HARMLESS, &REFUSED)?;
        let prompt_only = echo && settings.max_tokens == Some(Limit::Tokens(0));
        settings.max_tokens = if prompt_only {
            Some(Limit::Tokens(1))
        } else {
            settings.max_tokens.or(Some(DEFAULT_MAX_TOKENS))
        };
        let prompt_logprobs = settings.prompt_logprobs;
        if echo {
            settings.prompt_logprobs = prompt_logprobs.max(logprobs);
        }
        Ok(Self { prompts, settings, streaming, echo, logprobs, prompt_logprobs, prompt_only })
    }

    fn requests(&self) -> Vec<Request> {
        let request = |prompt: &Prompt| {
            let request = match prompt {
                Prompt::Text(text) => Request::prompt(text.as_str()),
                Prompt::Tokens(ids) => Request::tokens(ids.as_slice()),
            };
            let request = self.settings.apply(request);
            self.logprobs.into_iter().fold(request, Request::logprobs)
        };
        self.prompts.iter().map(request).collect()
    }
}

/// A text, texts, token ids, or arrays of them.
fn prompts(fields: &mut Fields) -> Result<Vec<Prompt>> {
    let wrong = || ApiError::field("prompt", "a string, token ids, or an array of these");
    let ids = |values: &[Value]| -> Result<Vec<u32>> {
        values.iter().map(|id| token_id(id).ok_or_else(wrong)).collect()
    };
    let values = match fields.take("prompt") {
        Some(Value::String(text)) => return Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(values)) => values,
        _ => return Err(wrong()),
    };
    if matches!(values.first(), Some(Value::Number(_))) {
        return Ok(vec![Prompt::Tokens(ids(&values)?)]);
    }
    if values.is_empty() || values.len() > MAX_CHOICES {
        return Err(ApiError::field("prompt", format!("from 1 to {MAX_CHOICES} prompts")));
    }
    let prompt = |value| match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(values) => Ok(Prompt::Tokens(ids(&values)?)),
        _ => Err(wrong()),
    };
    values.into_iter().map(prompt).collect()
}

/// OpenAI's `text_completion`.
struct Completion {
    app: Arc<App>,
    envelope: Envelope,
    asked: Asked,
    /// Characters of each choice's text that were sent.
    offsets: Vec<usize>,
}

#[derive(Default, Serialize)]
struct Choice<'a> {
    index: usize,
    text: Cow<'a, str>,
    logprobs: Option<TextLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs>,
}

impl Completion {
    fn new(app: Arc<App>, asked: Asked, record: &Record) -> Self {
        let id = format!("cmpl-{}", record.id);
        let envelope = Envelope::new(id, "text_completion", &app.model, asked.streaming);
        let offsets = vec![0; asked.prompts.len() * asked.settings.n.unwrap_or(1)];
        Self { app, envelope, asked, offsets }
    }

    /// OpenAI's order: all choices of the first prompt, then those of the second.
    fn index(&self, prompt: usize, choice: usize) -> usize {
        prompt * self.asked.settings.n.unwrap_or(1) + choice
    }

    /// The prompt as text, if it is to be told.
    fn echo(&self, prompt: usize) -> String {
        match &self.asked.prompts[prompt] {
            _ if !self.asked.echo => String::new(),
            Prompt::Text(text) => text.clone(),
            Prompt::Tokens(ids) => {
                String::from_utf8_lossy(&self.app.tokens().join(ids.iter().copied())).into_owned()
            }
        }
    }

    /// Of one choice of a whole reply, the echoed prompt's in front.
    fn logprobs(&self, prompt: usize, reply: &Reply, choice: &amnesic::Choice) -> Option<TextLogprobs> {
        let (top, tokens) = (self.asked.logprobs?, self.app.tokens());
        let (mut columns, mut offset) = (TextLogprobs::default(), 0);
        if self.asked.echo {
            let rest = tokens.join(reply.prompt_logprobs().iter().map(|record| record.token));
            match &self.asked.prompts[prompt] {
                // the engine does not tell its id: it is what the others leave of the text; nothing, if it is a BOS
                Prompt::Text(text) => {
                    let first = text.as_bytes().strip_suffix(rest.as_slice()).unwrap_or_default();
                    columns.begin(first, first, &mut offset);
                }
                Prompt::Tokens(ids) => {
                    let first = ids.first().copied().unwrap_or_default();
                    columns.begin(tokens.bytes(first), tokens.visible(first), &mut offset);
                }
            }
            columns.extend(tokens, reply.prompt_logprobs(), top, &mut offset);
        }
        if !self.asked.prompt_only {
            columns.extend(tokens, choice.logprobs(), top, &mut offset);
        }
        Some(columns)
    }

    fn usage(&self, replies: &[Reply]) -> amnesic::Usage {
        let mut usage = usage(replies);
        if self.asked.prompt_only {
            usage.completion_tokens = 0;
        }
        usage
    }

    /// What the client gets of a choice.
    fn reason(&self, choice: &amnesic::Choice) -> &'static str {
        if self.asked.prompt_only { "length" } else { finish_reason(choice.finish_reason) }
    }
}

impl Shape for Completion {
    fn whole(&self, replies: &[Reply]) -> Vec<u8> {
        let tokens = self.app.tokens();
        let mut choices = Vec::with_capacity(self.offsets.len());
        for (prompt, reply) in replies.iter().enumerate() {
            for (number, choice) in reply.choices().iter().enumerate() {
                let text = if self.asked.prompt_only { "" } else { choice.text() };
                let of_prompt = |top| prompt_logprobs(tokens, reply.prompt_logprobs(), top);
                choices.push(Choice {
                    index: self.index(prompt, number),
                    text: (self.echo(prompt) + text).into(),
                    logprobs: self.logprobs(prompt, reply, choice),
                    finish_reason: Some(self.reason(choice)),
                    prompt_logprobs: self.asked.prompt_logprobs.map(of_prompt),
                });
            }
        }
        self.envelope.whole(&choices, self.usage(replies))
    }

    fn first(&mut self, events: &mut Events) {
        if !self.asked.echo {
            return;
        }
        for index in 0..self.offsets.len() {
            let text = self.echo(index / self.asked.settings.n.unwrap_or(1));
            self.offsets[index] = text.chars().count();
            self.envelope.event(Choice { index, text: text.into(), ..Choice::default() }, events);
        }
    }

    fn piece(&mut self, stream: usize, piece: &Piece, events: &mut Events) {
        if self.asked.prompt_only {
            return;
        }
        let index = self.index(stream, piece.choice);
        let logprobs = self.asked.logprobs.map(|top| {
            let mut columns = TextLogprobs::default();
            columns.extend(self.app.tokens(), piece.logprobs(), top, &mut self.offsets[index]);
            columns
        });
        if piece.text().is_empty() && logprobs.is_none() && !self.envelope.obfuscates() {
            return;
        }
        self.envelope
            .event(Choice { index, text: piece.text().into(), logprobs, ..Choice::default() }, events);
    }

    fn last(&mut self, replies: &[Reply], events: &mut Events) {
        for (prompt, reply) in replies.iter().enumerate() {
            for (number, choice) in reply.choices().iter().enumerate() {
                let index = self.index(prompt, number);
                let finish_reason = Some(self.reason(choice));
                self.envelope.event(Choice { index, finish_reason, ..Choice::default() }, events);
            }
        }
        self.envelope.usage_event(self.usage(replies), events);
    }
}
