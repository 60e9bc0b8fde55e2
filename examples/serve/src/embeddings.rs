//! `POST /v1/embeddings`.

use std::sync::Arc;

use amnesic::{EmbedRequest, Embeddings};
use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;

use crate::app::{App, read, work};
use crate::error::{ApiError, Result, json_response, to_json};
use crate::fields::Fields;
use crate::log::Record;
use crate::texts::{self, Tokens};

/// OpenAI's limit.
const MAX_INPUTS: usize = 2048;
/// Labels.
const HARMLESS: [&str; 3] = ["user", "metadata", "safety_identifier"];

pub async fn embeddings(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: axum::extract::Request,
) -> Result<Response> {
    let Asked { request, base64 } = read(&app, request, Asked::take).await?;
    let run = texts::run(&app, &record, |app, token| {
        app.session.embed_with(request.cancel_token(token).timeout(app.timeout))
    });
    let embeddings = run.await?;
    record.finished(embeddings.usage, "stop".into());
    let model = app.model.clone();
    Ok(json_response(StatusCode::OK, work(move || whole(&embeddings, base64, &model)).await?))
}

struct Asked {
    request: EmbedRequest,
    base64: bool,
}

impl Asked {
    fn take(app: &App, mut fields: Fields) -> Result<Self> {
        app.check_model(&mut fields)?;
        let mut request = EmbedRequest::new(inputs(&mut fields)?);
        if let Some(dimensions) = fields.count("dimensions")? {
            request = request.dimensions(dimensions);
        }
        if let Some(name) = fields.string("prompt_name")? {
            request = request.prompt_name(name);
        }
        let base64 = match fields.string("encoding_format")?.as_deref() {
            None | Some("float") => false,
            Some("base64") => true,
            Some(_) => return Err(ApiError::field("encoding_format", "float or base64")),
        };
        fields.done(&HARMLESS, &[("input_type", "use `prompt_name`")])?;
        Ok(Self { request, base64 })
    }
}

/// A text, or texts.
fn inputs(fields: &mut Fields) -> Result<Vec<String>> {
    let values = match fields.take("input") {
        Some(Value::String(text)) => return Ok(vec![text]),
        Some(Value::Array(values)) => values,
        _ => return Err(ApiError::field("input", "a string or an array of strings")),
    };
    if values.is_empty() || values.len() > MAX_INPUTS {
        return Err(ApiError::field("input", format!("from 1 to {MAX_INPUTS} strings")));
    }
    let text = |value| match value {
        Value::String(text) => Ok(text),
        Value::Number(_) | Value::Array(_) => {
            Err(ApiError::unsupported("input", "texts are embedded, and no token ids: send strings"))
        }
        _ => Err(ApiError::field("input", "a string or an array of strings")),
    };
    values.into_iter().map(text).collect()
}

#[derive(Serialize)]
struct Whole<'a> {
    object: &'static str,
    data: Vec<Entry<'a>>,
    model: &'a str,
    usage: Tokens,
}

#[derive(Serialize)]
struct Entry<'a> {
    object: &'static str,
    index: usize,
    embedding: Embedding<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Embedding<'a> {
    Numbers(&'a [f32]),
    /// Little-endian.
    Base64(String),
}

fn whole(embeddings: &Embeddings, base64: bool, model: &str) -> Vec<u8> {
    let entry = |index| {
        let values = &embeddings[index];
        let embedding = match base64 {
            true => Embedding::Base64(to_base64(values.iter().flat_map(|value| value.to_le_bytes()))),
            false => Embedding::Numbers(values),
        };
        Entry { object: "embedding", index, embedding }
    };
    let data = (0..embeddings.len()).map(entry).collect();
    to_json(&Whole { object: "list", data, model, usage: embeddings.usage.into() })
}

/// RFC 4648, with padding.
fn to_base64(bytes: impl Iterator<Item = u8>) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.size_hint().0.div_ceil(3) * 4);
    let mut bytes = bytes.fuse();
    while let Some(first) = bytes.next() {
        let (second, third) = (bytes.next(), bytes.next());
        let group =
            u32::from(first) << 16 | u32::from(second.unwrap_or(0)) << 8 | u32::from(third.unwrap_or(0));
        let digit = |place: u32| char::from(ALPHABET[(group >> (18 - 6 * place) & 63) as usize]);
        text.extend([digit(0), digit(1)]);
        text.push(second.map_or('=', |_| digit(2)));
        text.push(third.map_or('=', |_| digit(3)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4648, section 10.
    #[test]
    fn base64_is_the_standards() {
        let cases = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (text, coded) in cases {
            assert_eq!(to_base64(text.bytes()), coded);
        }
    }
}
