//! Texts of which something is computed, and nothing generated.

use super::Session;
use crate::embed::{EmbedRequest, Embeddings, Ranking, RerankRequest};
use crate::engine::encode::job::{Done, Wanted};
use crate::error::Result;
use crate::hidden_states::HiddenStates;
use crate::privacy::Operation;

impl Session {
    /// Embeds texts, with the checkpoint's own pooling and normalisation.
    ///
    /// For checkpoints of encoders (BERT and its like), and of decoders that have a `modules.json` of
    /// sentence-transformers; and for GGUF files of such encoders, and of decoders that name a `pooling_type`, whose embeddings
    /// have length one, as llama.cpp gives them by default.
    ///
    /// ```no_run
    /// let session = amnesic::Session::open("all-MiniLM-L6-v2")?;
    /// let embeddings = session.embed(&["Ownership is Rust's", "A slice is a view"])?;
    /// assert_eq!(embeddings.len(), 2);
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// Returns the errors of [`Session::embed_with`].
    pub fn embed<T: AsRef<str>>(&self, texts: &[T]) -> Result<Embeddings> {
        self.embed_with(EmbedRequest::new(texts.iter().map(AsRef::as_ref)))
    }

    /// Embeds texts. Each embedding is the one that its text gets alone; texts of requests that run at the same time share
    /// steps.
    ///
    /// ```no_run
    /// let session = amnesic::Session::open("Qwen3-Embedding-0.6B")?;
    /// let request = amnesic::EmbedRequest::new(["What is a slice?"]).prompt_name("query").dimensions(256);
    /// assert_eq!(session.embed_with(request)?.dimensions(), 256);
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// The checkpoint is for something else ([`Error::WrongTask`](crate::Error::WrongTask)); the request is wrong, in
    /// [`Error::InBatch`](crate::Error::InBatch) where that is one of the texts; it was cancelled or late
    /// ([`Error::Interrupted`](crate::Error::Interrupted)); the session is full or poisoned.
    pub fn embed_with(&self, request: EmbedRequest) -> Result<Embeddings> {
        let done = self.read_texts(request)?;
        Ok(Embeddings {
            count: done.tokens.len(),
            values: done.values,
            dimensions: done.width,
            truncated: done.truncated,
            usage: done.usage,
            timing: done.timing,
            request_id: done.request_id,
            receipt: done.receipt,
        })
    }

    /// What the layers give for each token of texts, where [`Session::embed_with`] makes one row of a text: for pooling of the
    /// application's own, and for models that compare tokens. The request's prompt counts; its
    /// [`dimensions`](EmbedRequest::dimensions) and [`normalize`](EmbedRequest::normalize) are of embeddings.
    ///
    /// ```no_run
    /// # fn main() -> amnesic::Result<()> {
    /// let session = amnesic::Session::open("all-MiniLM-L6-v2")?;
    /// let states = session.hidden_states(amnesic::EmbedRequest::new(["Ownership is Rust's", "A slice is a view"]))?;
    /// let tokens: usize = (0..states.len()).filter_map(|text| states.tokens(text)).sum();
    /// assert_eq!(tokens, states.usage.prompt_tokens);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Returns the errors of [`Session::embed_with`], or `dimensions` or `normalize` are set, or the texts have more than 2^28
    /// values together.
    pub fn hidden_states(&self, mut request: EmbedRequest) -> Result<HiddenStates> {
        request.hidden_states = true;
        let done = self.read_texts(request)?;
        Ok(HiddenStates {
            values: done.values,
            tokens: done.tokens,
            width: done.width,
            truncated: done.truncated,
            usage: done.usage,
            timing: done.timing,
            request_id: done.request_id,
            receipt: done.receipt,
        })
    }

    /// Scores documents against a query, with a cross-encoder: a checkpoint `ForSequenceClassification` with one label.
    ///
    /// ```no_run
    /// let session = amnesic::Session::open("ms-marco-MiniLM-L6-v2")?;
    /// let ranking = session.rerank("What is a slice?", &["A slice is a view", "A crate is a unit"])?;
    /// let (best, score) = ranking.best_first()[0];
    /// println!("document {best}: {score}");
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// Returns the errors of [`Session::embed_with`].
    pub fn rerank<T: AsRef<str>>(&self, query: &str, documents: &[T]) -> Result<Ranking> {
        self.rerank_with(RerankRequest::new(query, documents.iter().map(AsRef::as_ref)))
    }

    /// Scores documents against a query. Each score is the one that its document gets alone.
    ///
    /// ```no_run
    /// let session = amnesic::Session::open("ms-marco-MiniLM-L6-v2")?;
    /// let request = amnesic::RerankRequest::new("What is a slice?", ["A slice is a view", "A crate is a unit"]);
    /// assert_eq!(session.rerank_with(request.raw_scores())?.scores().len(), 2);
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// Returns the errors of [`Session::embed_with`].
    pub fn rerank_with(&self, request: RerankRequest) -> Result<Ranking> {
        let trace = self.client.telemetry.trace_texts(Operation::Rerank);
        let cancel = request.common.cancel.clone();
        let done = self.client.read(Wanted::Scores(request), trace, cancel)?;
        Ok(Ranking {
            scores: done.values,
            truncated: done.truncated,
            usage: done.usage,
            timing: done.timing,
            request_id: done.request_id,
            receipt: done.receipt,
        })
    }

    fn read_texts(&self, request: EmbedRequest) -> Result<Box<Done>> {
        let trace = self.client.telemetry.trace_texts(Operation::Embeddings);
        let cancel = request.common.cancel.clone();
        self.client.read(Wanted::Embeddings(request), trace, cancel)
    }
}
