//! Errors in OpenAI's shape. Messages name fields, places and bounds; never content.

use amnesic::Error;
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::fields::Place;

pub type Result<T> = std::result::Result<T, ApiError>;

/// What is told to a client whose request was not served.
#[derive(Debug)]
pub struct ApiError {
    pub status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), param: None, code: None }
    }

    /// The client must change its request.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// A field is not what it must be.
    pub fn field(place: impl Into<Place>, expected: impl AsRef<str>) -> Self {
        let place = place.into().0;
        let mut error = Self::invalid(format!("`{place}` must be {}", expected.as_ref()));
        error.param = Some(place);
        error
    }

    /// A field asks for something that this server does not do; `why` ends the sentence.
    pub fn unsupported(place: impl Into<Place>, why: &str) -> Self {
        let place = place.into().0;
        let mut error = Self::invalid(format!("`{place}` is not supported: {why}"));
        (error.param, error.code) = (Some(place), Some("unsupported_parameter"));
        error
    }

    /// As [`ApiError::invalid`], with another status and a code.
    pub fn refused(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { code: Some(code), ..Self::new(status, "invalid_request_error", message) }
    }

    /// There is no such model here.
    pub fn no_model() -> Self {
        let message = "this server has no model of that name: GET /v1/models tells the one it has";
        Self {
            param: Some("model".into()),
            ..Self::refused(StatusCode::NOT_FOUND, "model_not_found", message)
        }
    }

    /// Not the client's fault, and another attempt may do better.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
    }

    /// The client's, and another attempt may do better once others of its own have ended.
    pub fn too_many(message: impl Into<String>) -> Self {
        Self {
            code: Some("rate_limit_exceeded"),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
        }
    }

    /// The engine's word; a chat's prompt is its `messages`, and the count of its likeliest tokens `top_logprobs`.
    pub fn engine(error: Error, chat: bool) -> Self {
        match error {
            Error::InBatch { source, .. } => Self::engine(*source, chat),
            Error::Request { field, expected } => {
                let field = match field {
                    "prompt" if chat => "messages",
                    "logprobs" if chat => "top_logprobs",
                    "stop_token" => "stop_token_ids",
                    "strict_tools" => "tools",
                    "text" => "input",
                    field => field,
                };
                Self::field(field, expected)
            }
            Error::ContextLength { .. } => Self {
                param: Some(if chat { "messages" } else { "prompt" }.into()),
                code: Some("context_length_exceeded"),
                ..Self::invalid(error.to_string())
            },
            Error::Busy { .. } => Self::too_many(error.to_string()),
            Error::WrongTask { .. } => Self {
                param: Some("model".into()),
                code: Some("unsupported_task"),
                ..Self::invalid(error.to_string())
            },
            // the engine's own messages name the checkpoint's folder, which is nobody's business
            Error::NoTokenizer { .. } => Self {
                param: Some("prompt".into()),
                ..Self::invalid("the model has no tokenizer: `prompt` must be token ids")
            },
            Error::NoChatTemplate { .. } => Self {
                param: Some("messages".into()),
                code: Some("no_chat_template"),
                ..Self::invalid("the model has no chat template: use /v1/completions")
            },
            Error::NoToken | Error::Grammar(_) => Self::invalid(error.to_string()),
            Error::Closed => Self::unavailable("the server is shutting down"),
            Error::NotFinite | Error::Poisoned(_) => Self::internal(error.to_string()),
            _ => Self::internal("the request failed"),
        }
    }

    /// Nobody but who runs the server can help.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// The whole response as bytes, for a connection whose request was never one.
    pub fn http(&self) -> Vec<u8> {
        let (json, reason) = (self.json(), self.status.canonical_reason().unwrap_or_default());
        let head = format!(
            "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\ncache-control: no-store\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n",
            self.status.as_u16(),
            json.len()
        );
        [head.as_bytes(), &json].concat()
    }

    /// `{"error": {...}}`
    pub fn json(&self) -> Vec<u8> {
        let Self { kind, message, param, code, .. } = self;
        to_json(&Shape { error: Inner { message, kind, param: param.as_deref(), code: *code } })
    }
}

#[derive(Serialize)]
struct Shape<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, self.json());
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// A response with a JSON text.
pub fn json_response(status: StatusCode, json: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(json));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The JSON text of one of our shapes.
pub fn to_json(shape: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(shape).expect("our shapes have string keys, and a buffer takes all")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Status, type, param and code of what the engine says.
    #[test]
    fn the_engines_errors_keep_their_meaning() {
        let request = |field| Error::Request { field, expected: "from 0 to 2".into() };
        let folder = std::path::PathBuf::from("/secret/folder");
        let poisoned = Error::Poisoned(amnesic::PoisonReason::Panic);
        let context = Error::ContextLength { prompt_tokens: 9, max_tokens: 1, context: 8 };
        let inner = Error::InBatch { index: 1, source: Box::new(request("seed")) };
        let cases = [
            (
                request("temperature"),
                false,
                400,
                r#""invalid_request_error","param":"temperature","code":null"#,
            ),
            (
                request("stop_token"),
                false,
                400,
                r#""invalid_request_error","param":"stop_token_ids","code":null"#,
            ),
            (request("prompt"), true, 400, r#""invalid_request_error","param":"messages","code":null"#),
            (request("logprobs"), true, 400, r#""invalid_request_error","param":"top_logprobs","code":null"#),
            (inner, false, 400, r#""invalid_request_error","param":"seed","code":null"#),
            (
                context,
                false,
                400,
                r#""invalid_request_error","param":"prompt","code":"context_length_exceeded""#,
            ),
            (Error::NoToken, false, 400, r#""invalid_request_error","param":null,"code":null"#),
            (
                Error::NoChatTemplate { folder },
                true,
                400,
                r#""invalid_request_error","param":"messages","code":"no_chat_template""#,
            ),
            (
                Error::Busy { waiting: 1, limit: 1, requests: amnesic::Returned::default() },
                false,
                429,
                r#""rate_limit_error","param":null,"code":"rate_limit_exceeded""#,
            ),
            (Error::Closed, false, 503, r#""server_error","param":null,"code":null"#),
            (poisoned, false, 500, r#""server_error","param":null,"code":null"#),
            (Error::NotFinite, true, 500, r#""server_error","param":null,"code":null"#),
        ];
        for (error, chat, status, tail) in cases {
            let error = ApiError::engine(error, chat);
            let json = String::from_utf8(error.json()).unwrap();
            assert_eq!(error.status.as_u16(), status, "{json}");
            assert!(json.starts_with(r#"{"error":{"message":""#), "{json}");
            assert!(json.ends_with(&format!("\"type\":{tail}}}}}")), "{json}");
            assert!(!json.contains("/secret"), "{json}");
        }
    }
}
