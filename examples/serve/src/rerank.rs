//! `POST /v1/rerank`, in the shape that Jina, Cohere, vLLM and llama.cpp share.

use std::sync::Arc;

use amnesic::{Ranking, RerankRequest};
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

const MAX_DOCUMENTS: usize = 2048;

pub async fn rerank(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: axum::extract::Request,
) -> Result<Response> {
    let mut asked = read(&app, request, Asked::take).await?;
    let request = RerankRequest::new(std::mem::take(&mut asked.query), &asked.documents);
    let run = texts::run(&app, &record, |app, token| {
        app.session.rerank_with(request.cancel_token(token).timeout(app.timeout))
    });
    let ranking = run.await?;
    record.finished(ranking.usage, "stop".into());
    let (id, model) = (format!("rerank-{}", record.id), app.model.clone());
    Ok(json_response(StatusCode::OK, work(move || asked.whole(&ranking, &id, &model)).await?))
}

struct Asked {
    query: String,
    documents: Vec<String>,
    /// How many documents the reply names, the best first.
    top: Option<usize>,
    returns_documents: bool,
}

#[derive(Serialize)]
struct Whole<'a> {
    id: &'a str,
    model: &'a str,
    usage: Tokens,
    results: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Document<'a>>,
    relevance_score: f32,
}

#[derive(Serialize)]
struct Document<'a> {
    text: &'a str,
}

impl Asked {
    fn take(app: &App, mut fields: Fields) -> Result<Self> {
        app.check_model(&mut fields)?;
        let query = fields.required("query")?;
        let place = fields.place("documents");
        let values = fields.array("documents")?.unwrap_or_default();
        if values.is_empty() || values.len() > MAX_DOCUMENTS {
            return Err(ApiError::field("documents", format!("from 1 to {MAX_DOCUMENTS} documents")));
        }
        let text = |(index, value)| match value {
            Value::String(text) => Ok(text),
            value => {
                let mut document = Fields::of(place.element(index), value)?;
                let text = document.required("text")?;
                document.done(&[], &[]).map(|()| text)
            }
        };
        let documents = values.into_iter().enumerate().map(text).collect::<Result<_>>()?;
        let top = fields.count("top_n")?;
        let returns_documents = fields.flag("return_documents")?.unwrap_or(false);
        fields.done(&["user"], &[])?;
        Ok(Self { query, documents, top, returns_documents })
    }

    /// The best document first.
    fn whole(&self, ranking: &Ranking, id: &str, model: &str) -> Vec<u8> {
        let entry = |(index, relevance_score)| Entry {
            index,
            document: self.returns_documents.then(|| Document { text: &self.documents[index] }),
            relevance_score,
        };
        let results =
            ranking.best_first().into_iter().take(self.top.unwrap_or(usize::MAX)).map(entry).collect();
        to_json(&Whole { id, model, usage: ranking.usage.into(), results })
    }
}
