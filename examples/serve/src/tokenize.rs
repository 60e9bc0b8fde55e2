//! `POST /tokenize` and `POST /detokenize`, in vLLM's shape.

use std::sync::Arc;

use amnesic::{Request, Usage};
use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;

use crate::app::{App, read, work};
use crate::chat::template_variables;
use crate::error::{ApiError, Result, json_response, to_json};
use crate::fields::Fields;
use crate::log::Record;
use crate::messages::messages;
use crate::texts;
use crate::tools::tools;

#[derive(Serialize)]
struct Encoded<'a> {
    count: usize,
    max_model_len: usize,
    tokens: &'a [u32],
}

#[derive(Serialize)]
struct Decoded<'a> {
    prompt: &'a str,
}

pub async fn tokenize(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: axum::extract::Request,
) -> Result<Response> {
    let request = read(&app, request, prompt).await?;
    let ids = texts::run(&app, &record, |app, _| app.session.tokenize(request)).await?;
    record.finished(usage(ids.len()), "stop".into());
    let max_model_len = app.session.context_length();
    let body = work(move || to_json(&Encoded { count: ids.len(), max_model_len, tokens: ids.ids() })).await?;
    Ok(json_response(StatusCode::OK, body))
}

pub async fn detokenize(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: axum::extract::Request,
) -> Result<Response> {
    let ids = read(&app, request, tokens).await?;
    let count = ids.len();
    let text = texts::run(&app, &record, move |app, _| app.session.detokenize(&ids, false)).await?;
    record.finished(usage(count), "stop".into());
    Ok(json_response(StatusCode::OK, work(move || to_json(&Decoded { prompt: text.text() })).await?))
}

fn usage(tokens: usize) -> Usage {
    let mut usage = Usage::default();
    usage.prompt_tokens = tokens;
    usage
}

/// A text, or a chat.
fn prompt(app: &App, mut fields: Fields) -> Result<Request> {
    app.check_model(&mut fields)?;
    let special = fields.flag("add_special_tokens")?;
    let request = match fields.string("prompt")? {
        Some(text) => Request::prompt(text).add_special_tokens(special.unwrap_or(true)),
        None => {
            let mut request = Request::chat(messages(&mut fields)?).literal_text(app.literal_text);
            request = tools(&mut fields, request)?;
            let continues = fields.flag("continue_final_message")?.unwrap_or(false);
            let begins = fields.flag("add_generation_prompt")?.unwrap_or(!continues);
            request = request.add_generation_prompt(begins).continue_final_message(continues);
            template_variables(&mut fields, request)?
        }
    };
    fields.done(&["return_token_strs", "user"], &[])?;
    Ok(request)
}

fn tokens(app: &App, mut fields: Fields) -> Result<Vec<u32>> {
    app.check_model(&mut fields)?;
    let wrong = || ApiError::field("tokens", "a list of token ids");
    let values = fields.array("tokens")?.ok_or_else(wrong)?;
    let id = |value: Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong);
    let ids = values.into_iter().map(id).collect::<Result<_>>()?;
    fields.done(&["user"], &[])?;
    Ok(ids)
}
