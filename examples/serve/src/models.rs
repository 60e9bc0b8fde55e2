//! `GET /v1/models`, `GET /v1/models/{id}` and `GET /health`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::{ApiError, Result, json_response, to_json};

pub async fn models(State(app): State<Arc<App>>) -> Response {
    json_response(StatusCode::OK, to_json(&json!({"object": "list", "data": [card(&app)]})))
}

pub async fn model(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response> {
    match id == app.model {
        true => Ok(json_response(StatusCode::OK, to_json(&card(&app)))),
        false => Err(ApiError::no_model()),
    }
}

/// `max_model_len` as vLLM tells it: tokens of prompt and reply together.
fn card(app: &App) -> Value {
    let context = app.session.context_length();
    json!({
        "id": app.model, "object": "model", "created": app.created, "owned_by": "amnesic",
        "max_model_len": context,
    })
}

/// Whether requests can be served.
pub async fn health(State(app): State<Arc<App>>) -> Response {
    match (app.is_poisoned(), app.stop.is_cancelled()) {
        (false, false) => json_response(StatusCode::OK, br#"{"status":"ok"}"#.to_vec()),
        (true, _) => json_response(StatusCode::SERVICE_UNAVAILABLE, br#"{"status":"poisoned"}"#.to_vec()),
        (_, true) => json_response(StatusCode::SERVICE_UNAVAILABLE, br#"{"status":"closing"}"#.to_vec()),
    }
}
