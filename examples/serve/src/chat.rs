//! `POST /v1/chat/completions`.

use std::sync::Arc;

use amnesic::{Piece, PieceKind, Reply, Request, ToolCall, ToolCallDelta};
use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;

use crate::app::{App, read};
use crate::error::{ApiError, Result};
use crate::fields::Fields;
use crate::log::Record;
use crate::logprobs::ChatLogprobs;
use crate::messages::{messages, response_format};
use crate::reply::{Envelope, Events, Shape, reply};
use crate::running::{Running, finish_reason, usage};
use crate::settings::{HARMLESS, Settings, Streaming, limit, streaming};
use crate::tools::tools;

const REFUSED: [(&str, &str); 9] = [
    ("audio", "the engine writes text"),
    ("functions", "use `tools`"),
    ("function_call", "use `tool_choice`"),
    ("verbosity", "tell the model"),
    ("web_search_options", "the server opens no connections"),
    ("chat_template", "the model's own template is used"),
    ("continue_final_message", "use /v1/completions"),
    ("add_generation_prompt", "the model always answers"),
    ("echo", "use /v1/completions"),
];

pub async fn chat_completions(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: axum::extract::Request,
) -> Result<Response> {
    let (request, choices, streaming) = read(&app, request, take).await?;
    let id = format!("chatcmpl-{}", record.id);
    let object = if streaming.is_some() { "chat.completion.chunk" } else { "chat.completion" };
    let envelope = Envelope::new(id, object, &app.model, streaming);
    let shape = Chat { app: app.clone(), envelope, choices };
    reply(Running::start(app, vec![request], true, record).await?, shape, streaming.is_some()).await
}

/// The request, the count of its choices, and how to send them.
fn take(app: &App, mut fields: Fields) -> Result<(Request, usize, Option<Streaming>)> {
    app.check_model(&mut fields)?;
    let mut settings = Settings::take(&mut fields)?;
    if settings.prompt_logprobs.is_some() {
        return Err(ApiError::unsupported("prompt_logprobs", "use /v1/completions"));
    }
    settings.max_tokens = limit(&mut fields, "max_completion_tokens")?.or(settings.max_tokens);
    let mut request = settings.apply(Request::chat(messages(&mut fields)?)).literal_text(app.literal_text);
    request = tools(&mut fields, request)?.response_format(response_format(&mut fields)?);
    if let Some(effort) = fields.string("reasoning_effort")? {
        request = reasoning_effort(request, effort)?;
    }
    let logprobs = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs")?;
    if top.is_some() && !logprobs {
        return Err(ApiError::field("top_logprobs", "left out unless `logprobs` is true"));
    }
    if logprobs {
        request = request.logprobs(top.unwrap_or(0));
    }
    request = template_variables(&mut fields, request)?;
    if fields.array("modalities")?.is_some_and(|kinds| kinds != ["text"]) {
        return Err(ApiError::unsupported("modalities", "the engine writes text"));
    }
    let streaming = streaming(&mut fields)?;
    fields.done(&HARMLESS, &REFUSED)?;
    Ok((request, settings.n.unwrap_or(1), streaming))
}

/// What the client gives to the template.
pub fn template_variables(fields: &mut Fields, request: Request) -> Result<Request> {
    match fields.take("chat_template_kwargs") {
        None => Ok(request),
        Some(Value::Object(variables)) => {
            let set =
                |request: Request, (name, value): (String, Value)| request.template_variable(name, value);
            Ok(variables.into_iter().fold(request, set))
        }
        Some(_) => Err(ApiError::field("chat_template_kwargs", "an object")),
    }
}

/// Sets the variables that templates know: `reasoning_effort` of gpt-oss, and `enable_thinking` of Qwen and others. A template
/// that knows neither thinks as it always does.
fn reasoning_effort(request: Request, effort: String) -> Result<Request> {
    match effort.as_str() {
        "none" => Ok(request.template_variable("enable_thinking", false)),
        "minimal" | "low" | "medium" | "high" | "xhigh" => {
            Ok(request.template_variable("reasoning_effort", effort))
        }
        _ => Err(ApiError::field("reasoning_effort", "none, minimal, low, medium, high or xhigh")),
    }
}

/// OpenAI's `chat.completion`, whole or in chunks.
struct Chat {
    app: Arc<App>,
    envelope: Envelope,
    choices: usize,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    message: Whole<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Whole<'a> {
    role: &'static str,
    /// None beside calls, if the model said nothing else.
    content: Option<&'a str>,
    refusal: Option<()>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call<'a>>,
}

#[derive(Default, Serialize)]
struct Chunk<'a> {
    index: usize,
    delta: Delta<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call<'a>>,
}

/// A call, or a part of one: then it has a number, and only the first part has an id, a type and a name.
#[derive(Serialize)]
struct Call<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}

impl<'a> Call<'a> {
    fn whole(call: &'a ToolCall) -> Self {
        let function = Function { name: Some(call.name()), arguments: call.arguments() };
        Self { index: None, id: Some(call.id()), kind: Some("function"), function }
    }

    /// None where the part says nothing that OpenAI has a field for.
    fn part(delta: &'a ToolCallDelta) -> Option<Self> {
        let function = Function { name: delta.name(), arguments: delta.arguments() };
        let kind = delta.id().map(|_| "function");
        let says = kind.is_some() || !delta.arguments().is_empty();
        says.then(|| Self { index: Some(delta.index()), id: delta.id(), kind, function })
    }
}

impl Chat {
    fn logprobs(&self, logprobs: &amnesic::Logprobs) -> Option<ChatLogprobs> {
        (!logprobs.is_empty()).then(|| ChatLogprobs::new(self.app.tokens(), logprobs))
    }

    fn send(&self, index: usize, delta: Delta<'_>, events: &mut Events) {
        self.envelope.event(Chunk { index, delta, ..Chunk::default() }, events);
    }
}

impl Shape for Chat {
    fn whole(&self, replies: &[Reply]) -> Vec<u8> {
        let choice = |(index, choice)| {
            let choice: &amnesic::Choice = choice;
            let silent = choice.text().is_empty() && !choice.tool_calls().is_empty();
            let message = Whole {
                role: "assistant",
                content: (!silent).then_some(choice.text()),
                refusal: None,
                reasoning_content: choice.reasoning(),
                tool_calls: choice.tool_calls().iter().map(Call::whole).collect(),
            };
            let finish_reason = finish_reason(choice.finish_reason);
            Choice { index, message, logprobs: self.logprobs(choice.logprobs()), finish_reason }
        };
        let choices: Vec<_> = replies.iter().flat_map(Reply::choices).enumerate().map(choice).collect();
        self.envelope.whole(&choices, usage(replies))
    }

    fn first(&mut self, events: &mut Events) {
        for index in 0..self.choices {
            let delta = Delta { role: Some("assistant"), content: Some(""), ..Delta::default() };
            self.send(index, delta, events);
        }
    }

    fn piece(&mut self, _stream: usize, piece: &Piece, events: &mut Events) {
        let text = Some(piece.text()).filter(|text| !text.is_empty());
        let part = piece.tool_call().and_then(Call::part);
        let says = text.is_some() || part.is_some();
        let delta = match piece.kind {
            PieceKind::Reasoning => Delta { reasoning_content: text, ..Delta::default() },
            _ => Delta { content: text, tool_calls: part.into_iter().collect(), ..Delta::default() },
        };
        let logprobs = self.logprobs(piece.logprobs());
        if says || logprobs.is_some() || self.envelope.obfuscates() {
            self.envelope.event(Chunk { index: piece.choice, delta, logprobs, finish_reason: None }, events);
        }
    }

    fn last(&mut self, replies: &[Reply], events: &mut Events) {
        for (index, choice) in replies.iter().flat_map(Reply::choices).enumerate() {
            let finish_reason = Some(finish_reason(choice.finish_reason));
            self.envelope.event(Chunk { index, finish_reason, ..Chunk::default() }, events);
        }
        self.envelope.usage_event(usage(replies), events);
    }
}
