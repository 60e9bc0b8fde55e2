//! Embeddings of texts, and scores of documents: what goes in and what comes out.

use std::ops::Index;
use std::time::{Duration, Instant};

use sealed::Sealed;

use crate::cancel::CancelToken;
use crate::memory::Secret;
use crate::outcome::{RequestId, Timing, Usage};
use crate::privacy::{Nonce, ScrubReceipt};

/// Texts to be embedded, for [`crate::Session::embed_with`] and [`crate::Session::hidden_states`].
///
/// The texts are overwritten when the request ends. `Debug` prints counts only.
pub struct EmbedRequest {
    pub(crate) texts: Vec<Secret<str>>,
    pub(crate) prompt: TextPrompt,
    pub(crate) dimensions: Option<usize>,
    pub(crate) normalize: Option<bool>,
    /// What is wanted are the rows of tokens, and no embeddings.
    pub(crate) hidden_states: bool,
    pub(crate) common: Common,
}

/// A query and documents to be scored against it, for [`crate::Session::rerank_with`].
///
/// The texts are overwritten when the request ends. `Debug` prints counts only.
pub struct RerankRequest {
    pub(crate) query: Secret<str>,
    pub(crate) documents: Vec<Secret<str>>,
    pub(crate) raw: bool,
    pub(crate) common: Common,
}

/// What both have.
#[derive(Default)]
pub(crate) struct Common {
    pub refuse_long: bool,
    pub deadline: Option<Instant>,
    pub timeout: Option<Duration>,
    pub cancel: Option<CancelToken>,
    pub nonce: Option<Nonce>,
}

/// What is put before each text.
#[derive(Default)]
pub(crate) enum TextPrompt {
    /// The checkpoint's default, if it has one.
    #[default]
    Default,
    /// One that the checkpoint has.
    Named(Secret<str>),
    /// This.
    Text(Secret<str>),
}

/// What a text comes in. Owned text (`String`, `Cow::Owned`) is overwritten as it is taken over; borrowed text (`&str`,
/// `&String`, a reference to either) is copied, and stays its owner's.
pub trait IntoText: Sealed {}

impl<T: Sealed> IntoText for T {}

mod sealed {
    use std::borrow::Cow;

    use crate::memory::Secret;

    pub trait Sealed {
        fn into_secret(self) -> Secret<str>;
    }

    impl<T: AsRef<str> + ?Sized> Sealed for &T {
        fn into_secret(self) -> Secret<str> {
            Secret::copy(self.as_ref())
        }
    }

    impl Sealed for String {
        fn into_secret(self) -> Secret<str> {
            Secret::new(self)
        }
    }

    impl Sealed for Cow<'_, str> {
        fn into_secret(self) -> Secret<str> {
            Secret::take(self)
        }
    }
}

macro_rules! common {
    ($request:ident) => {
        impl $request {
            /// Refuses texts that are longer than the model takes ([`crate::Session::context_length`]). By default they are
            /// cut, as sentence-transformers does; how many were is in the reply.
            ///
            /// ```
            /// use amnesic::{CancelToken, EmbedRequest, privacy::Nonce};
            ///
            /// let token = CancelToken::new();
            /// let request = EmbedRequest::new(["A slice is a view."]).refuse_long_texts().nonce(Nonce::new([7; 32]));
            /// let request = request.timeout(std::time::Duration::from_secs(5)).cancel_token(&token);
            /// # drop(request);
            /// ```
            pub fn refuse_long_texts(mut self) -> Self {
                self.common.refuse_long = true;
                self
            }

            /// Ends the request at this time with [`crate::Error::Interrupted`].
            /// [`Request::deadline`](crate::Request::deadline) has an example.
            pub fn deadline(mut self, at: Instant) -> Self {
                self.common.deadline = Some(at);
                self
            }

            /// Ends the request so long after it was taken in with [`crate::Error::Interrupted`].
            /// [`EmbedRequest::refuse_long_texts`] has an example.
            pub fn timeout(mut self, after: Duration) -> Self {
                self.common.timeout = Some(after);
                self
            }

            /// A number of the caller's that the request's receipt will have, whether or not it is accepted. **It stands in
            /// logs: never derive it from content.** [`EmbedRequest::refuse_long_texts`] has an example.
            pub fn nonce(mut self, nonce: Nonce) -> Self {
                self.common.nonce = Some(nonce);
                self
            }

            /// Ends the request with [`crate::Error::Interrupted`] when the token is cancelled.
            /// [`EmbedRequest::refuse_long_texts`] has an example.
            pub fn cancel_token(mut self, token: &CancelToken) -> Self {
                self.common.cancel = Some(token.clone());
                self
            }
        }
    };
}

common!(EmbedRequest);
common!(RerankRequest);

impl EmbedRequest {
    /// Takes the texts over. Those that are borrowed are copied, and stay their owner's; a `String` is overwritten.
    ///
    /// ```
    /// let note: String = "was seen again on Tuesday".into();
    /// let request = amnesic::EmbedRequest::new([note]); // nothing of it is left when this drops
    /// # drop((request, amnesic::EmbedRequest::new(["borrowed", "texts"])));
    /// ```
    pub fn new<T: IntoText>(texts: impl IntoIterator<Item = T>) -> Self {
        Self {
            texts: texts.into_iter().map(Sealed::into_secret).collect(),
            prompt: TextPrompt::Default,
            dimensions: None,
            normalize: None,
            hidden_states: false,
            common: Common::default(),
        }
    }

    /// Puts the checkpoint's prompt of this name before each text: `query` and `document` are common ones. By default that
    /// is the checkpoint's default prompt, if it has one.
    ///
    /// ```
    /// # use amnesic::EmbedRequest;
    /// let query = EmbedRequest::new(["What is a slice?"]).prompt_name("query");
    /// let passage = EmbedRequest::new(["A slice is a view."]).prompt("passage: ");
    /// # drop((query, passage));
    /// ```
    pub fn prompt_name(mut self, name: impl Into<String>) -> Self {
        self.prompt = TextPrompt::Named(Secret::new(name.into()));
        self
    }

    /// Puts this before each text: a model's instruction, or nothing. [`EmbedRequest::prompt_name`] has an example.
    pub fn prompt(mut self, text: impl IntoText) -> Self {
        self.prompt = TextPrompt::Text(text.into_secret());
        self
    }

    /// Keeps the first values of each embedding only, before it is normalised: for models that were made for that
    /// (Matryoshka: Kusupati et al. 2022).
    ///
    /// ```
    /// # use amnesic::EmbedRequest;
    /// let request = EmbedRequest::new(["A slice is a view."]).dimensions(256).normalize(true);
    /// # drop(request);
    /// ```
    pub fn dimensions(mut self, count: usize) -> Self {
        self.dimensions = Some(count);
        self
    }

    /// Whether embeddings have length one; by default as the checkpoint says.
    /// [`EmbedRequest::dimensions`] has an example.
    pub fn normalize(mut self, normalize: bool) -> Self {
        self.normalize = Some(normalize);
        self
    }
}

impl RerankRequest {
    /// Takes the texts over. Those that are borrowed are copied, and stay their owner's; a `String` is overwritten.
    ///
    /// ```
    /// let request = amnesic::RerankRequest::new("What is a slice?", ["A slice is a view", "A crate is a unit"]);
    /// # drop(request);
    /// ```
    pub fn new<T: IntoText>(query: impl IntoText, documents: impl IntoIterator<Item = T>) -> Self {
        Self {
            query: query.into_secret(),
            documents: documents.into_iter().map(Sealed::into_secret).collect(),
            raw: false,
            common: Common::default(),
        }
    }

    /// Gives the model's scores as they are. By default they go through the activation that the checkpoint names, or a
    /// sigmoid. [`Session::rerank_with`](crate::Session::rerank_with) has an example.
    pub fn raw_scores(mut self) -> Self {
        self.raw = true;
        self
    }
}

impl std::fmt::Debug for EmbedRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbedRequest")
            .field("texts", &self.texts.len())
            .field("dimensions", &self.dimensions)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for RerankRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RerankRequest").field("documents", &self.documents.len()).finish_non_exhaustive()
    }
}

/// Embeddings of texts, in their order. They are the caller's: the session holds nothing of them any more. Overwritten
/// when they drop; `Debug` prints counts only.
pub struct Embeddings {
    /// (texts, dimensions)
    pub(crate) values: Secret<[f32]>,
    pub(crate) count: usize,
    pub(crate) dimensions: usize,
    /// Texts that were cut: they were longer than the model takes.
    pub truncated: usize,
    /// Tokens used: of all texts, special ones included.
    pub usage: Usage,
    /// How long it took; the first token is none's.
    pub timing: Timing,
    /// The request's name in logs.
    pub request_id: RequestId,
    /// What was overwritten before these were handed over.
    pub receipt: ScrubReceipt,
}

impl Embeddings {
    /// How many there are: one for each text.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Values of each.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// That of the text at `index`: as many values as there are dimensions.
    pub fn get(&self, index: usize) -> Option<&[f32]> {
        (index < self.count).then(|| &self[index])
    }

    /// One after another.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        (0..self.count).map(|index| &self[index])
    }

    /// All values: (texts, dimensions), row-major.
    pub fn values(&self) -> &[f32] {
        self.values.expose()
    }
}

impl Index<usize> for Embeddings {
    type Output = [f32];

    /// # Panics
    /// If there are not so many.
    fn index(&self, index: usize) -> &[f32] {
        &self.values.expose()[index * self.dimensions..][..self.dimensions]
    }
}

impl std::fmt::Debug for Embeddings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embeddings")
            .field("len", &self.count)
            .field("dimensions", &self.dimensions)
            .field("request_id", &self.request_id)
            .finish_non_exhaustive()
    }
}

/// Scores of documents for a query. They are the caller's: the session holds nothing of them any more. Overwritten when
/// they drop; `Debug` prints counts only.
pub struct Ranking {
    pub(crate) scores: Secret<[f32]>,
    /// Documents that were cut, or met a query that was: together they were longer than the model takes.
    pub truncated: usize,
    /// Tokens used: of all pairs, special ones included.
    pub usage: Usage,
    /// How long it took; the first token is none's.
    pub timing: Timing,
    /// The request's name in logs.
    pub request_id: RequestId,
    /// What was overwritten before these were handed over.
    pub receipt: ScrubReceipt,
}

impl Ranking {
    /// One for each document, in their order.
    pub fn scores(&self) -> &[f32] {
        self.scores.expose()
    }

    /// The documents' places and scores, best first; of equals the earlier one.
    pub fn best_first(&self) -> Vec<(usize, f32)> {
        let mut all: Vec<_> = self.scores().iter().copied().enumerate().collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        all
    }
}

impl std::fmt::Debug for Ranking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ranking")
            .field("len", &self.scores().len())
            .field("request_id", &self.request_id)
            .finish_non_exhaustive()
    }
}
