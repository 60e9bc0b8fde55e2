//! The handle: a session on a checkpoint.

#[cfg(feature = "schema")]
use std::panic::resume_unwind;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;

use crate::backend::Counters;
use crate::client::Client;
use crate::conversation::{Conversation, Public};
use crate::embed::{EmbedRequest, Embeddings, Ranking, RerankRequest};
use crate::engine::encode::job::{Done, Wanted};
use crate::engine::inspect::{self};
use crate::engine::intake::IntakeMessage;
use crate::engine::message::Message;
use crate::engine::status::Load;
use crate::error::{Error, Result};
use crate::hidden_states::HiddenStates;
use crate::memory::Secret;
use crate::memory::seal::SealingKey;
#[cfg(feature = "schema")]
use crate::memory::thread::{self, Depth, confined};
use crate::memory_plan::MemoryPlan;
use crate::model_info::ModelInfo;
use crate::note::Note;
use crate::privacy::{Evidence, Operation, ScrubReceipt};
use crate::request::Request;
use crate::response::Reply;
use crate::stream::{Reader, Stream};
use crate::text::Text;
use crate::tokens::{SecretText, TokenIds};

/// A loaded model that serves requests and forgets them.
///
/// `Send + Sync`: any thread may call it; requests that run at the same time share steps, and join and leave between
/// them. Threads of its own read requests and compute, and all that is derived from a request lives in memory that is
/// overwritten before a call returns: on success, error, cancellation and panic. [`Session::close`] reports it;
/// dropping does the same silently, and returns when all is scrubbed.
#[derive(Debug)]
pub struct Session {
    pub(crate) client: Client,
    pub(crate) worker: Option<JoinHandle<ScrubReceipt>>,
    pub(crate) memory: MemoryPlan,
    pub(crate) context: usize,
    pub(crate) vocab: usize,
    pub(crate) text: Option<Arc<Text>>,
    pub(crate) device: String,
    pub(crate) fell_back: Option<Error>,
    pub(crate) notes: Vec<Note>,
    pub(crate) evidence: Arc<Evidence>,
    pub(crate) model: ModelInfo,
    pub(crate) adapters: Vec<String>,
}

impl Session {
    /// Runs one request to its end.
    ///
    /// ```
    /// # use amnesic::Request;
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// let reply = session.generate(Request::prompt("A slice is").max_tokens(4))?;
    /// println!("{} ({})", reply.text(), reply.finish_reason());
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// The request is wrong, the session is full ([`Error::Busy`]), or it is poisoned.
    pub fn generate(&self, request: Request) -> Result<Reply> {
        self.client.submit(vec![request], false).map_err(|(_, error)| error)?.remove(0).reply()
    }

    /// Runs one request, and hands its pieces to `take` as they come, on the caller's thread. [`ControlFlow::Break`]
    /// ends it, with what was produced so far.
    ///
    /// [`ControlFlow::Break`]: std::ops::ControlFlow::Break
    ///
    /// ```
    /// # use amnesic::Request;
    /// use std::ops::ControlFlow;
    ///
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// let reply = session.generate_with(Request::prompt("A slice is").max_tokens(4), |piece| {
    ///     print!("{}", piece.text());
    ///     ControlFlow::Continue(())
    /// })?;
    /// assert!(reply.usage.completion_tokens <= 4);
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// Returns the errors of [`Session::generate`].
    pub fn generate_with(
        &self,
        request: Request,
        mut take: impl FnMut(&crate::Piece) -> std::ops::ControlFlow<()>,
    ) -> Result<Reply> {
        let mut stream = self.stream(request)?;
        while let Some(piece) = stream.next() {
            if take(&piece?).is_break() {
                stream.interrupt();
                break;
            }
        }
        stream.finish()
    }

    /// Runs one request whose reply is a JSON text for `T`, and parses it on a thread of its own, whose stack is
    /// overwritten before this returns, as are, by the scrubbing allocator, the parts and messages that parsing made and
    /// dropped. What is in the value is the caller's.
    ///
    /// ```no_run
    /// #[derive(serde::Deserialize, schemars::JsonSchema)]
    /// struct City {
    ///     name: String,
    ///     people: u32,
    /// }
    ///
    /// let session = amnesic::Session::open("models/default")?;
    /// let city: City = session.generate_as(amnesic::Request::prompt("Oslo as JSON: ").max_tokens(100))?;
    /// println!("{}: {}", city.name, city.people);
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// Returns the errors of [`Session::generate`]; [`Error::Incomplete`] if the reply ended before the JSON text did;
    /// [`Error::Thread`].
    ///
    /// # Panics
    /// If `T` panics while it is parsed.
    #[cfg(feature = "schema")]
    pub fn generate_as<T>(&self, request: Request) -> Result<T>
    where
        T: serde::de::DeserializeOwned + schemars::JsonSchema + Send,
    {
        let reply = self.generate(request.response_format(crate::ResponseFormat::schema_of::<T>()))?;
        let finish_reason = reply.finish_reason();
        let parse = || confined(Depth::Parsers, || serde_json::from_str(reply.text()).ok());
        let parsed = std::thread::scope(|scope| {
            let thread = thread::builder("amnesic-parse", Depth::Parsers).spawn_scoped(scope, parse);
            thread
                .map_err(Error::Thread)
                .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
        });
        parsed?.ok_or(Error::Incomplete { finish_reason })
    }

    /// Runs requests together; replies come in the same order. Each reply is the one that its request gets alone.
    ///
    /// ```
    /// # use amnesic::Request;
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// let requests = ["A trait", "A crate"].map(|text| Request::prompt(text).max_tokens(4));
    /// let replies = session.generate_batch(requests)?;
    /// assert_eq!(replies.len(), 2);
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InBatch`] if a request is wrong, before any has run; or the session is full or poisoned.
    pub fn generate_batch(&self, requests: impl IntoIterator<Item = Request>) -> Result<Vec<Reply>> {
        let requests: Vec<Request> = requests.into_iter().collect();
        let readers = self.client.submit(requests, false).map_err(|(index, error)| match error {
            Error::Poisoned(_) | Error::Closed | Error::Busy { .. } => error,
            error => Error::InBatch { index, source: Box::new(error) },
        })?;
        readers.into_iter().map(Reader::reply).collect()
    }

    /// Runs one request and gives its text as it comes. Dropping the stream cancels the request: it ends within one
    /// step, and the drop returns when it is scrubbed where the stream was read as an iterator, and at once where it was not. A
    /// stream whose reader is slow stands still, and no other.
    ///
    /// Returns once the request is accepted: encoded and checked, on a thread of its own.
    ///
    /// ```
    /// # use amnesic::Request;
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// for piece in session.stream(Request::prompt("A slice is").max_tokens(4))? {
    ///     print!("{}", piece?.text());
    /// }
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// Returns the errors of [`Session::generate`], at once for a wrong request.
    pub fn stream(&self, request: Request) -> Result<Stream> {
        let mut readers = self.client.submit(vec![request], true).map_err(|(_, error)| error)?;
        Ok(Stream::new(readers.remove(0)))
    }

    /// A chat or a text of several turns, whose keys and values stay in the cache between them.
    ///
    /// ```
    /// # use amnesic::Request;
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// let mut conversation = session.conversation();
    /// conversation.generate(Request::prompt("A string is").max_tokens(4))?;
    /// let reply = conversation.generate(Request::prompt(" A vector is").max_tokens(4))?;
    /// assert!(reply.usage.cached_tokens > 0);
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn conversation(&self) -> Conversation {
        Conversation::new(self.client.clone())
    }

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
    /// The checkpoint is for something else ([`Error::WrongTask`]); the request is wrong, in [`Error::InBatch`] where that
    /// is one of the texts; it was cancelled or late ([`Error::Interrupted`]); the session is full or poisoned.
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

    fn read_texts(&self, request: EmbedRequest) -> Result<Box<Done>> {
        let trace = self.client.telemetry.trace_texts(Operation::Embeddings);
        let cancel = request.common.cancel.clone();
        self.client.read(Wanted::Embeddings(request), trace, cancel)
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

    /// Declares the request's prompt public: what others that name it ([`Request::shares`]) have in common with it is
    /// computed once and shared. Who is first, and how soon others follow, can be told from how long a request takes;
    /// so nothing private belongs into it. Only the prompt of `request`, its tools, template and adapter count; a
    /// request with another adapter shares nothing.
    ///
    /// ```
    /// # use amnesic::Request;
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// let rules = "Answer in one sentence, and in words that a child knows. ";
    /// let public = session.publish(Request::prompt(rules))?;
    /// let request = Request::prompt(format!("{rules}What is a slice?")).shares(&public);
    /// let reply = session.generate(request.max_tokens(4))?;
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// The prompt is wrong.
    pub fn publish(&self, request: Request) -> Result<Public> {
        let (began, nonce) = (self.client.telemetry.clock.wall(), request.nonce);
        let adapter = request.adapter.clone();
        let (answer, answered) = sync_channel(1);
        let closed = || self.client.closed();
        let sent = request.check().and_then(|()| {
            self.client
                .readers
                .take(IntakeMessage::Encode(Box::new(request), answer))
                .map_err(|_| closed())?;
            answered.recv().map_err(|_| closed())
        });
        let ids = sent.inspect_err(|error| self.client.publish_refused(nonce, began, error)).flatten()?;
        Ok(Public::new(&self.client, ids, adapter))
    }

    /// The token ids of a request's prompt: those that [`Session::generate`] would compute, special tokens included. A text
    /// is a prompt as it is; [`Request::add_special_tokens`], [`Request::literal_text`] and, of a chat, its template, tools
    /// and variables count, and nothing else does. Nothing is computed, so there is no receipt, and no limit of the context.
    ///
    /// ```no_run
    /// use amnesic::{Request, Session};
    ///
    /// let session = Session::open("models/default")?;
    /// let ids = session.tokenize("Once upon a time")?;
    /// let bare = session.tokenize(Request::prompt("Once upon a time").add_special_tokens(false))?;
    /// assert!(ids.ids().ends_with(bare.ids()));
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// The request is wrong; there is no tokenizer or no chat template; the session is poisoned.
    pub fn tokenize(&self, request: impl Into<Request>) -> Result<TokenIds> {
        self.client.ids(request.into()).map(TokenIds)
    }

    /// How many token ids [`Session::tokenize`] gives: whether a chat fits into [`Session::context_length`].
    ///
    /// ```no_run
    /// use amnesic::{Request, Session, user};
    ///
    /// let session = Session::open("path/to/checkpoint")?;
    /// let tokens = session.count_tokens(Request::chat([user("What is a slice?")]))?;
    /// assert!(tokens < session.context_length());
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// Returns the errors of [`Session::tokenize`].
    pub fn count_tokens(&self, request: impl Into<Request>) -> Result<usize> {
        self.client.ids(request.into()).map(|ids| ids.expose().len())
    }

    /// The text of token ids, from its start, as the checkpoint's decoder gives it; bytes that are no characters give
    /// U+FFFD.
    ///
    /// ```no_run
    /// let session = amnesic::Session::open("models/default")?;
    /// let ids = session.tokenize("Once upon a time")?;
    /// assert_eq!(session.detokenize(ids.ids(), true)?.text(), "Once upon a time");
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// An id is outside the vocabulary; there is no tokenizer; the session does not generate, or is poisoned.
    pub fn detokenize(&self, ids: &[u32], skip_special_tokens: bool) -> Result<SecretText> {
        self.client.text(inspect::Question::Text { ids: Secret::<[u32]>::copy(ids), skip_special_tokens })
    }

    /// The prompt that a chat's template writes: what [`Session::generate`] would encode. Which of it is literal
    /// ([`Request::literal_text`]) a text does not tell, so hand in the request itself where that matters.
    ///
    /// ```no_run
    /// use amnesic::{Request, Session, user};
    ///
    /// let session = Session::open("path/to/checkpoint")?;
    /// let prompt = session.apply_chat_template(Request::chat([user("What is a slice?")]))?;
    /// println!("{}", prompt.text());
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// The request is wrong or no chat; there is no chat template, or it refuses the messages; the session does not
    /// generate, or is poisoned.
    pub fn apply_chat_template(&self, request: Request) -> Result<SecretText> {
        request.check()?;
        self.client.text(inspect::Question::Prompt(Box::new(request)))
    }

    /// Ends the session: overwrites all its memory, reads it back, and reports. Holds no content. Requests that still
    /// run end with [`Error::Closed`].
    ///
    /// ```
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// session.generate(amnesic::Request::prompt("A slice is").max_tokens(4))?;
    /// println!("{}", session.close()?); // what was overwritten, what was read back as zero, what is not covered
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Poisoned`] if memory was not zero when read back.
    pub fn close(mut self) -> Result<ScrubReceipt> {
        let report = self.join()?;
        match self.client.shared.poison.reason() {
            Some(reason) if reason.is_unscrubbed() => Err(Error::Poisoned(reason)),
            _ => Ok(report),
        }
    }

    /// Where it computes, for people. [`Session::open`] has an example.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Why [`Device::Auto`](crate::Device::Auto) took the CPU: there is no driver or no device
    /// ([`Error::DeviceUnavailable`]), or the model does not fit ([`Error::Memory`]). None where another device was
    /// asked for or found.
    ///
    /// ```no_run
    /// let session = amnesic::Session::open("models/default")?;
    /// if let Some(why) = session.fell_back() {
    ///     eprintln!("computing on {}: {why}", session.device());
    /// }
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn fell_back(&self) -> Option<&Error> {
        self.fell_back.as_ref()
    }

    /// Values in the checkpoint's files that are out of bounds, and what is used in their place: of sampling, in
    /// `generation_config.json`. [`Note`] has an example.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// The hashes of the files that it was opened from, and the quote over the key that signs its receipts: what the hashes
    /// in every receipt's [`Environment`](crate::privacy::Environment) are of.
    ///
    /// ```
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// for file in &session.evidence().files {
    ///     println!("{}: {} bytes", file.name, file.bytes);
    /// }
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// Tokens, prompt and reply together, that one request may have; or a text to be embedded, special ones included.
    /// [`Session::count_tokens`] has an example.
    pub fn context_length(&self) -> usize {
        self.context
    }

    /// Tokens in the model's vocabulary: the ids of [`Request::tokens`] are below it. A tokenizer may have more, which
    /// replies never have, and which are refused where a prompt has one.
    ///
    /// ```
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// let longest = (0..session.vocab_size() as u32).filter_map(|id| session.token_bytes(id)).map(<[u8]>::len).max();
    /// assert!(longest > Some(1));
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn vocab_size(&self) -> usize {
        self.vocab
    }

    /// The bytes that a token stands for, special or not; they need not be whole characters. None outside the
    /// vocabulary, or without a tokenizer. [`Session::vocab_size`] has an example.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        let text = self.text.as_ref().filter(|_| (id as usize) < self.vocab)?;
        Some(text.pieces().bytes(id))
    }

    /// Whether a token is special: it is never part of a reply's text, unless a chat's format needs it.
    ///
    /// ```
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// let ids = session.tokenize("A slice")?;
    /// let special = ids.ids().iter().filter(|id| session.is_special_token(**id)).count();
    /// assert!(special < ids.len());
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn is_special_token(&self, id: u32) -> bool {
        self.text.as_ref().is_some_and(|text| text.pieces().is_special(id))
    }

    /// What the checkpoint says of itself: its family, size, quantization and license.
    ///
    /// ```no_run
    /// let session = amnesic::Session::open("models/default")?;
    /// assert_eq!(session.model().family, "llama");
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn model(&self) -> &ModelInfo {
        &self.model
    }

    /// The names of its adapters, as [`crate::Builder::adapter`] was given them.
    ///
    /// ```no_run
    /// let session = amnesic::Session::builder("models/default").adapter("polite", "adapters/polite").open()?;
    /// assert_eq!(session.adapters(), ["polite"]);
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn adapters(&self) -> &[String] {
        &self.adapters
    }

    /// What its memory goes to.
    ///
    /// ```
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// println!("{} MiB, {} of them weights", session.memory().total_bytes() >> 20, session.memory().weights_bytes >> 20);
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn memory(&self) -> MemoryPlan {
        self.memory
    }

    /// What it has computed so far. Metadata: no content. [`Session::load`] has an example.
    pub fn counters(&self) -> Counters {
        *self.client.shared.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it has to do at the moment. Metadata: no content.
    ///
    /// ```
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// let (load, counters) = (session.load(), session.counters());
    /// println!("{} run, {} wait; {} tokens in {} steps", load.running, load.waiting, counters.tokens, counters.steps);
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn load(&self) -> Load {
        *self.client.shared.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&mut self) -> Result<ScrubReceipt> {
        let worker = self.worker.take().ok_or(Error::Closed)?;
        let Client { readers, worker: to_worker, shared, telemetry, .. } = &self.client;
        let close = || {
            readers.close();
            let _ = to_worker.send(Message::Close); // one that has ended with a panic is joined all the same
            worker.join().ok().map(|report| (report, shared.poison.reason().is_some()))
        };
        telemetry.closing(close).ok_or(Error::Closed)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.join(); // after `close` there is nothing left to join
    }
}

impl Conversation {
    /// Goes on with a conversation that [`Conversation::export`] sealed. Its next turn computes what is in no cache any more,
    /// and gives the tokens that it would have given, bit for bit. [`Conversation::export`] has an example.
    ///
    /// # Errors
    /// [`Error::Sealed`] with the reason: another key, changed bytes, another checkpoint, types or device, an adapter that
    /// this session lacks. Nothing says more of the content.
    pub fn import(session: &Session, sealed: &[u8], key: &SealingKey) -> Result<Self> {
        Self::open_sealed(&session.client, sealed, key)
    }
}
