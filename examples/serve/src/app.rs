//! What all requests share, the routes, and what every request passes before it reaches one.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use amnesic::{CancelToken, Error, Session};
use axum::Router;
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http_body_util::{BodyExt, LengthLimitError};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::chat::chat_completions;
use crate::completions::completions;
use crate::error::{ApiError, Result};
use crate::fields::Fields;
use crate::log::Record;
use crate::models::{health, model, models};
use crate::tokens::Tokens;

/// Most bytes of a request's body.
pub const MAX_BODY_BYTES: usize = 8 << 20;
/// Bytes of bodies that are read at the same time; more wait.
const MAX_BODIES_BYTES: usize = 64 << 20;
/// How long a client may take to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long, and how much, a client may go on sending that was refused already.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
const DRAIN_BYTES: usize = 64 << 20;

/// What all requests share.
pub struct App {
    pub session: Session,
    pub model: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Ends all requests.
    pub stop: CancelToken,
    /// Ends one.
    pub timeout: Duration,
    key: Option<String>,
    /// Whether only this machine can reach the server.
    loopback: bool,
    bodies: Semaphore,
    poisoned: AtomicBool,
}

impl App {
    pub fn new(session: Session, model: String, created: u64, timeout: Duration) -> Self {
        let bodies = Semaphore::new(MAX_BODIES_BYTES);
        let (stop, poisoned) = (CancelToken::new(), AtomicBool::new(false));
        Self { session, model, created, stop, timeout, key: None, loopback: true, bodies, poisoned }
    }

    /// The tokens of the model.
    pub fn tokens(&self) -> Tokens<'_> {
        Tokens(&self.session)
    }

    /// Only clients that know `key` are served.
    pub fn key(mut self, key: Option<String>) -> Self {
        self.key = key;
        self
    }

    /// Others than this machine may reach the server, under names that it does not know.
    pub fn remote(mut self, remote: bool) -> Self {
        self.loopback = !remote;
        self
    }

    /// Takes `model`, which must name the one that there is.
    pub fn check_model(&self, fields: &mut Fields) -> Result<()> {
        match fields.required("model")? == self.model {
            true => Ok(()),
            false => Err(ApiError::no_model()),
        }
    }

    /// The engine's error for the client; remembers if the session is lost.
    pub fn engine_error(&self, error: Error, chat: bool) -> ApiError {
        if matches!(error, Error::Poisoned(_)) {
            self.poisoned.store(true, Ordering::Relaxed);
        }
        ApiError::engine(error, chat)
    }

    /// Whether the session serves no more.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Relaxed)
    }

    /// A page in the user's browser can make any name mean 127.0.0.1, but not change the name that the browser sends.
    fn check_host(&self, headers: &HeaderMap) -> Result<()> {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        if !self.loopback || host.is_some_and(names_this_machine) {
            return Ok(());
        }
        let message = "the Host header must be localhost or a loopback address";
        Err(ApiError::refused(StatusCode::FORBIDDEN, "host_not_allowed", message))
    }

    fn check_key(&self, headers: &HeaderMap) -> Result<()> {
        let Some(key) = &self.key else { return Ok(()) };
        let given = headers.get(header::AUTHORIZATION).map_or(&b""[..], HeaderValue::as_bytes);
        let given = given.strip_prefix(b"Bearer ").unwrap_or_default();
        // the time that it takes tells the key's length at most
        match bool::from(given.ct_eq(key.as_bytes())) {
            true => Ok(()),
            false => {
                let message = "the Authorization header must be `Bearer` and the server's API key";
                Err(ApiError::refused(StatusCode::UNAUTHORIZED, "invalid_api_key", message))
            }
        }
    }
}

/// `localhost:8080`, `127.0.0.1`, `[::1]:8080`
fn names_this_machine(host: &str) -> bool {
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let name = match host.rsplit_once(':') {
        Some((name, port)) if is_port(port) && !name.ends_with(':') => name,
        _ => host,
    };
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat_completions))
        .route_layer(from_fn_with_state(app.clone(), check_key))
        .route("/health", get(health))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(app.clone(), check_host))
        .layer(from_fn(log))
        .with_state(app)
}

async fn no_route(request: Request) -> ApiError {
    drain(request.into_body()).await;
    ApiError::refused(StatusCode::NOT_FOUND, "unknown_url", "there is no such route")
}

async fn no_method(request: Request) -> ApiError {
    drain(request.into_body()).await;
    ApiError::refused(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "the route has other methods")
}

/// Writes the request's line once its response is over.
async fn log(mut request: Request, next: Next) -> Response {
    let record = Arc::new(Record::new(request.extensions().get().map_or("-", MatchedPath::as_str)));
    request.extensions_mut().insert(record.clone());
    let mut response = next.run(request).await;
    record.status(response.status().as_u16());
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.extend(
        HeaderValue::try_from(&record.id).map(|id| (header::HeaderName::from_static("x-request-id"), id)),
    );
    response
}

async fn check_host(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    pass(app.check_host(request.headers()), request, next).await
}

async fn check_key(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    pass(app.check_key(request.headers()), request, next).await
}

async fn pass(checked: Result<()>, request: Request, next: Next) -> Response {
    match checked {
        Ok(()) => next.run(request).await,
        Err(error) => {
            drain(request.into_body()).await;
            error.into_response()
        }
    }
}

/// Reads the body: a JSON object.
///
/// # Errors
/// It is something else, too large, or too slow.
pub async fn read(app: &App, request: Request) -> Result<Fields> {
    let (head, body) = request.into_parts();
    if !is_json(&head.headers) {
        // which also keeps pages in a browser out: they cannot send this type without being asked for permission
        drain(body).await;
        let message = "the Content-Type header must be application/json";
        return Err(ApiError::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", message));
    }
    let length =
        head.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let bytes = length.unwrap_or(MAX_BODY_BYTES);
    if bytes > MAX_BODY_BYTES {
        drain(body).await;
        return Err(too_large());
    }
    let slow = |_| ApiError::refused(StatusCode::REQUEST_TIMEOUT, "timeout", "the body came too slowly");
    let permits = u32::try_from(bytes).expect("a body has less than 4 GiB");
    let full = |_| ApiError::unavailable("too many requests are read at the moment");
    let room = timeout(BODY_TIMEOUT, app.bodies.acquire_many(permits)).await.map_err(full)?;
    let body = timeout(BODY_TIMEOUT, axum::body::to_bytes(body, MAX_BODY_BYTES)).await.map_err(slow)?;
    let body = body.map_err(|error| match std::error::Error::source(&error) {
        Some(source) if source.is::<LengthLimitError>() => too_large(),
        _ => ApiError::invalid("the body could not be read"),
    })?;
    let fields = Fields::parse(&body);
    drop(room);
    fields
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

fn too_large() -> ApiError {
    let message = format!("the body must have at most {MAX_BODY_BYTES} bytes");
    ApiError::refused(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
}

/// Reads what a client sends that was refused, and throws it away: a connection that is closed on unread bytes is
/// reset, and the client never sees the error.
async fn drain(mut body: Body) {
    let read_all = async {
        let mut left = DRAIN_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.data_ref().map_or(0, bytes::Bytes::len);
            match left.checked_sub(bytes) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    };
    let _ = timeout(DRAIN_TIMEOUT, read_all).await; // what comes later meets a closed connection
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_this_machine() {
        for host in
            ["localhost", "LOCALHOST:80", "127.0.0.1", "127.0.0.1:8080", "127.8.8.8:1", "[::1]:8080", "[::1]"]
        {
            assert!(names_this_machine(host), "{host}");
        }
        for host in [
            "",
            "example.com",
            "localhost.example.com:80",
            "10.0.0.1:80",
            "[::2]:80",
            "127.0.0.1.example.com",
        ] {
            assert!(!names_this_machine(host), "{host}");
        }
    }

    #[test]
    fn json_comes_with_or_without_a_charset() {
        let with = |kind: &'static str| {
            HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))])
        };
        assert!(is_json(&with("application/json")) && is_json(&with("Application/JSON; charset=utf-8")));
        assert!(
            !is_json(&with("text/plain"))
                && !is_json(&with("application/jsonx"))
                && !is_json(&HeaderMap::new())
        );
    }
}
