//! What all requests share, the routes, and what every request passes before it reaches one.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use amnesic::privacy::protected;
use amnesic::{CancelToken, Error, Session};
use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::body::{self, Bodies, drain};
use crate::chat::chat_completions;
use crate::completions::completions;
use crate::embeddings::embeddings;
use crate::error::{ApiError, Result};
use crate::fields::Fields;
use crate::ignored::ignored_by;
use crate::log::Record;
use crate::models::{health, model, models};
use crate::rerank::rerank;
use crate::tokenize::{detokenize, tokenize};
use crate::tokens::Tokens;

/// Bodies that are parsed at the same time: values take many times the bytes of their text.
const PARSERS: usize = 2;

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
    /// Whether names of control tokens in messages are text.
    pub literal_text: bool,
    key: Option<String>,
    /// Whether only this machine can reach the server.
    loopback: bool,
    bodies: Arc<Bodies>,
    parsers: Semaphore,
    poisoned: AtomicBool,
}

impl App {
    pub fn new(session: Session, model: String, created: u64, timeout: Duration) -> Self {
        let (bodies, parsers) = (Arc::default(), Semaphore::new(PARSERS));
        let (stop, poisoned) = (CancelToken::new(), AtomicBool::new(false));
        Self {
            session,
            model,
            created,
            stop,
            timeout,
            literal_text: false,
            key: None,
            loopback: true,
            bodies,
            parsers,
            poisoned,
        }
    }

    /// The tokens of the model.
    pub fn tokens(&self) -> Tokens<'_> {
        Tokens(&self.session)
    }

    /// Names of control tokens in messages are text.
    pub fn literal_text(mut self, literal: bool) -> Self {
        self.literal_text = literal;
        self
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
        .route("/v1/embeddings", post(embeddings))
        .route("/v1/rerank", post(rerank))
        .route("/rerank", post(rerank))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
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
    headers.extend(record.headers().into_iter().filter_map(|(name, value)| Some((name, value?))));
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

/// Runs what takes long, or waits, where it keeps nobody waiting; its memory is protected.
///
/// # Errors
/// It panics, or the machine starts no thread.
pub async fn work<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    match spawn_blocking(|| protected(act)).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(_)) => Err(ApiError::unavailable("the machine has no thread for the request")),
        Err(_) => Err(ApiError::internal("the request failed")),
    }
}

/// Reads the body, a JSON object, and makes of it what `take` makes of its fields.
///
/// # Errors
/// It is something else, too large, or too slow; or `take`'s.
pub async fn read<T: Send + 'static>(
    app: &Arc<App>,
    request: Request,
    take: impl FnOnce(&App, Fields) -> Result<T> + Send + 'static,
) -> Result<T> {
    let record = request.extensions().get::<Arc<Record>>().cloned();
    let body = body::read(&app.bodies, request).await?;
    let turn = app.parsers.acquire().await.map_err(|_| ApiError::internal("the request failed"))?;
    let shared = app.clone();
    let parse = move || {
        let fields = Fields::parse(body.bytes())?;
        drop(body);
        let (taken, ignored) = ignored_by(|| take(&shared, fields));
        record.iter().for_each(|record| record.ignored(ignored.clone()));
        taken
    };
    let taken = work(parse).await;
    drop(turn);
    taken?
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
}
