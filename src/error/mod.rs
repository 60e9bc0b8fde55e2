//! One error type. The variant says who must act; none carries request content.

mod grammar;
mod privacy;

use std::any::Any;
use std::path::{Path, PathBuf};

pub use self::grammar::GrammarReason;
pub use self::privacy::{AliasReason, AttestError, DisclosureReason, LockdownError, Restriction};
pub(crate) use self::privacy::{MAX_ALIASES, listed};
use crate::memory::poison::PoisonReason;
use crate::outcome::FinishReason;

/// A result with this crate's [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, and who must act: the caller ([`Error::Request`] to [`Error::ModelAlias`]), whoever made the
/// checkpoint ([`Error::Read`] to [`Error::Tokenizer`]), whoever runs the machine ([`Error::Memory`] to
/// [`Error::Attestation`]), or nobody, because a guarantee is in doubt ([`Error::Poisoned`]).
///
/// Names files, tensors, fields and numbers; never text, token ids or tensor values.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of the request is out of bounds.
    #[error("request: `{field}` must be {expected}")]
    Request {
        /// The field's name.
        field: &'static str,
        /// What it must be.
        expected: String,
    },
    /// The prompt, with what may follow it, does not fit the session's context.
    #[error(
        "request: {prompt_tokens} prompt tokens and max_tokens {max_tokens} exceed the context of {context} tokens"
    )]
    ContextLength {
        /// Tokens in the prompt.
        prompt_tokens: usize,
        /// Tokens asked for at most (1 when left to the default).
        max_tokens: usize,
        /// Tokens that the session can hold for one request.
        context: usize,
    },
    /// One request of a batch is wrong; none of the batch has run.
    #[error("request {index} of the batch: {source}")]
    InBatch {
        /// Its place in the batch, from 0.
        index: usize,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// A text was given, but the checkpoint has no `tokenizer.json`; token ids still work.
    #[error("{file}: {}; without a tokenizer a request takes token ids only", no_tokenizer(.file))]
    NoTokenizer {
        /// Where it was looked for; or what has a tokenizer in another form, as `tokenizer.model` of SentencePiece.
        file: PathBuf,
    },

    /// A chat was given, but the checkpoint has no template for one; prompts still work.
    #[error("{folder}: neither chat_template.jinja nor tokenizer_config.json has a chat template")]
    NoChatTemplate {
        /// The checkpoint's folder.
        folder: PathBuf,
    },
    /// A logger of this process takes what the `tokenizers` crate writes at level `trace`, each character of the text, and
    /// this checkpoint's tokenizer is one of the rare ones that are left to that crate. So the text was not read. With
    /// that target filtered out (`debug` and above harm nobody) it is.
    #[error("a logger takes `{target}` at level trace, where it would find the text: filter that out")]
    Logged {
        /// The target of those records.
        target: &'static str,
    },
    /// As many requests as the session takes at once wait or run. It hands back what it did not take, so that the caller
    /// can wait and try again: see [`Error::into_requests`].
    #[error("the session is full: {waiting} requests wait or run, and it takes {limit}")]
    Busy {
        /// Requests in the session.
        waiting: usize,
        /// How many it takes.
        limit: usize,
        /// What was not taken in, unread.
        requests: Returned,
    },
    /// The reply ended before its JSON text was complete.
    #[error("the reply ended ({finish_reason}) before its JSON text was complete")]
    Incomplete {
        /// Why it ended.
        finish_reason: FinishReason,
    },
    /// The policy that the user was shown is not the one that the data would go under.
    #[error("disclosure: {0}")]
    Disclosure(DisclosureReason),
    /// The name of a model cannot be set or used.
    #[error("model alias: {0}")]
    ModelAlias(AliasReason),
    /// A conversation cannot be sealed, or what was given is no conversation for this session.
    #[error("sealed conversation: {0}")]
    Sealed(SealedReason),
    /// A setting of the debug sampler is out of bounds.
    #[cfg(feature = "debug-sampler")]
    #[error("debug sampler: `{field}` must be {expected}")]
    DebugSampler {
        /// The setting's name.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
    },

    /// A file of the checkpoint cannot be read.
    #[error("{file}: {source}")]
    Read {
        /// The file.
        file: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// A field of a JSON file is missing or wrong.
    #[error("{file}: {}must be {expected}", in_backticks(.field))]
    Config {
        /// The file.
        file: PathBuf,
        /// The field, with dots for nesting; empty for the file as a whole.
        field: String,
        /// What it must be.
        expected: String,
    },
    /// The architecture is not one of those that the library runs.
    #[error("{file}: `model_type` {found:?} is not one of the {known} known; the nearest are {nearest}")]
    UnknownModelType {
        /// The config file.
        file: PathBuf,
        /// What it says.
        found: String,
        /// How many are known.
        known: usize,
        /// The known names most like it, joined by commas.
        nearest: String,
    },
    /// A weights file is malformed as a whole.
    #[error("{file}: {reason}")]
    WeightsFile {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor is missing, or of another shape, type or content than expected.
    #[error("{file}: tensor `{tensor}` must {expected}")]
    Tensor {
        /// The file that holds it, or the folder when it is missing.
        file: PathBuf,
        /// Its name.
        tensor: String,
        /// What it must be.
        expected: String,
    },
    /// Several tensors are missing, of another shape or type than expected, or not expected at all.
    #[error("{folder}: {count} tensors are not as config.json says; the first: {first}")]
    Tensors {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// How many were found (the search ends with the layer in which it passes 10,000).
        count: usize,
        /// The first few, each with what it must be, joined by semicolons.
        first: String,
    },
    /// The tokenizer file cannot be used.
    #[error("{file}: {reason}")]
    Tokenizer {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A checkpoint could not be had from its hub.
    #[cfg(feature = "hub")]
    #[error("{id}: {}{reason}", in_backticks(.file))]
    Hub {
        /// Its id and revision.
        id: String,
        /// The file concerned; empty for the whole.
        file: String,
        /// What is wrong.
        reason: String,
    },

    /// The session's memory does not fit its budget or the machine.
    #[error("memory: the session needs {needed} bytes ({what}); {limit}")]
    Memory {
        /// Bytes needed.
        needed: u64,
        /// What for.
        what: &'static str,
        /// What stands against it.
        limit: String,
    },
    /// The program's allocator does not overwrite what it frees, so that copies of text which libraries make on the heap
    /// would stay there. [`crate::install_scrubbing_allocator!`] mends that in one line;
    /// [`Builder::accept_unscrubbed_heap`](crate::Builder::accept_unscrubbed_heap) opens a session all the same.
    #[error(
        "heap: freed memory is not overwritten; add the line `amnesic::install_scrubbing_allocator!();` to the \
         program's main file, or open with `Builder::accept_unscrubbed_heap()`"
    )]
    UnscrubbedHeap,
    /// The device is not to be had.
    #[error("device {device}: {reason}")]
    DeviceUnavailable {
        /// Its number.
        device: usize,
        /// Why.
        reason: DeviceReason,
    },
    /// A thread could not be started.
    #[error("thread: {0}")]
    Thread(std::io::Error),
    /// The process cannot be confined, or a setting of [`crate::privacy::process`] cannot be made.
    #[error("lockdown: {0}")]
    Lockdown(LockdownError),
    /// There is no quote over the key that signs receipts.
    #[error("attestation: {0}")]
    Attestation(AttestError),

    /// The session's guarantee is in doubt: it serves no more requests. Everything it held was overwritten.
    #[error("the session is poisoned: {0}")]
    Poisoned(PoisonReason),
    /// The request ended before there was a result: it was cancelled, or its deadline passed. It was scrubbed.
    #[error("the request ended ({finish_reason}) before there was a result")]
    Interrupted {
        /// [`FinishReason::Cancelled`] or [`FinishReason::Deadline`].
        finish_reason: FinishReason,
    },
    /// The checkpoint is for something else.
    #[error("the checkpoint cannot {asked}: it can {can}")]
    WrongTask {
        /// What was asked: `generate`, `embed` or `rerank`.
        asked: &'static str,
        /// What the session can.
        can: &'static str,
    },
    /// The session was closed before the request ended; the request was scrubbed.
    #[error("the session is closed")]
    Closed,
    /// The model computed a value that is not a number for this request (the weights are finite).
    #[error("the logits are not finite")]
    NotFinite,
    /// Grammar, `logit_bias` and `min_tokens` together leave the request no token to go on with.
    #[error("no token is allowed: grammar, `logit_bias` and `min_tokens` rule out all of them")]
    NoToken,
    /// The reply cannot go on under its response format.
    #[error("response_format: {0}")]
    Grammar(GrammarReason),
}

/// Requests that a full session handed back: with [`Error::Busy`]. Texts to be embedded or scored are not among them.
/// Overwritten when it drops; `Debug` prints their number.
#[derive(Default)]
pub struct Returned {
    count: usize,
    /// What they are, this floor of the crate does not know: [`crate::Request`] takes them out.
    requests: Option<Box<dyn Any + Send + Sync>>,
}

impl Returned {
    /// These `count` requests.
    pub(crate) fn new(requests: impl Any + Send + Sync, count: usize) -> Self {
        Self { count, requests: Some(Box::new(requests)) }
    }

    /// The requests as they were given to [`Returned::new`].
    pub(crate) fn take<T: Any>(self) -> Option<T> {
        self.requests?.downcast().ok().map(|requests| *requests)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl std::fmt::Debug for Returned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Returned").field("requests", &self.len()).finish()
    }
}

/// Why a device is not to be had.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceReason {
    /// NVIDIA's driver is not installed here.
    NoDriver,
    /// The driver has no device of that number.
    NoSuchDevice {
        /// How many it has.
        found: usize,
    },
    /// Its compute capability is below 8.0: no bf16 in tensor cores.
    TooOld {
        /// The capability's first number.
        major: u32,
        /// The capability's second number.
        minor: u32,
    },
    /// The driver refused: the number is its `CUresult`.
    Driver {
        /// What it said.
        code: u32,
    },
}

impl std::fmt::Display for DeviceReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoDriver => f.write_str("NVIDIA's driver (libcuda) is not installed here"),
            Self::NoSuchDevice { found } => write!(f, "there is none of that number; the driver has {found}"),
            Self::TooOld { major, minor } => {
                write!(
                    f,
                    "its compute capability is {major}.{minor}; 8.0 (Ampere) is the oldest that will do"
                )
            }
            Self::Driver { code } => write!(f, "the driver refused (CUDA error {code})"),
        }
    }
}

/// Which [`enum@Error`] it is, and nothing else of it: what telemetry says as `error.type`.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the variant of `Error` that has its name")]
pub enum ErrorKind {
    Request,
    ContextLength,
    InBatch,
    NoTokenizer,
    NoChatTemplate,
    Logged,
    Busy,
    Incomplete,
    Read,
    Config,
    UnknownModelType,
    WeightsFile,
    Tensor,
    Tensors,
    Tokenizer,
    Memory,
    UnscrubbedHeap,
    DeviceUnavailable,
    Thread,
    Poisoned,
    Interrupted,
    WrongTask,
    Closed,
    NotFinite,
    NoToken,
    Grammar,
    Lockdown,
    Attestation,
    Disclosure,
    ModelAlias,
    Sealed,
    DebugSampler,
    Hub,
}

impl ErrorKind {
    /// Its name, in snake case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::ContextLength => "context_length",
            Self::InBatch => "in_batch",
            Self::NoTokenizer => "no_tokenizer",
            Self::NoChatTemplate => "no_chat_template",
            Self::Logged => "logged",
            Self::Busy => "busy",
            Self::Incomplete => "incomplete",
            Self::Read => "read",
            Self::Config => "config",
            Self::UnknownModelType => "unknown_model_type",
            Self::WeightsFile => "weights_file",
            Self::Tensor => "tensor",
            Self::Tensors => "tensors",
            Self::Tokenizer => "tokenizer",
            Self::Memory => "memory",
            Self::UnscrubbedHeap => "unscrubbed_heap",
            Self::DeviceUnavailable => "device_unavailable",
            Self::Thread => "thread",
            Self::Poisoned => "poisoned",
            Self::Interrupted => "interrupted",
            Self::WrongTask => "wrong_task",
            Self::Closed => "closed",
            Self::NotFinite => "not_finite",
            Self::NoToken => "no_token",
            Self::Grammar => "grammar",
            Self::DebugSampler => "debug_sampler",
            Self::ModelAlias => "model_alias",
            Self::Sealed => "sealed",
            Self::Disclosure => "disclosure",
            Self::Lockdown => "lockdown",
            Self::Attestation => "attestation",
            Self::Hub => "hub",
        }
    }
}

impl std::fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// What is wrong with a sealed conversation. See [`crate::Conversation::import`].
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealedReason {
    /// It does not begin or end as one does.
    #[error("these bytes are none")]
    NotOne,
    /// Another version of the library wrote it.
    #[error("its format has version {found}, and this library reads {known}")]
    Version {
        /// The version that it names.
        found: u16,
        /// The version that this library reads.
        known: u16,
    },
    /// The key is another one, or a byte was changed or cut off.
    #[error("it was sealed with another key, or was changed since")]
    KeyOrContent,
    /// The session's checkpoint differs from the one it was exported from.
    #[error("it is of another model: the checkpoints' files differ")]
    OtherModel,
    /// Weights or cache are of another type, or the device rounds otherwise: it would not go on with the same bits.
    #[error("its session computed in other types, or on another kind of device")]
    OtherArithmetic,
    /// The session lacks the adapter that its last turn ran with, or has another under its name.
    #[error("this session does not have the adapter that it was computed with")]
    OtherAdapter,
    /// It was sealed with this key, but not by this library.
    #[error("its content is not a conversation of this vocabulary")]
    Malformed,
    /// More than 256 GiB.
    #[error("it is too long")]
    TooLong,
    /// The system gave no random numbers for a key or a nonce.
    #[error("the system has no random numbers")]
    NoRandomNumbers,
}

impl Error {
    /// Which error it is.
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Request { .. } => ErrorKind::Request,
            Self::ContextLength { .. } => ErrorKind::ContextLength,
            Self::InBatch { .. } => ErrorKind::InBatch,
            Self::NoTokenizer { .. } => ErrorKind::NoTokenizer,
            Self::NoChatTemplate { .. } => ErrorKind::NoChatTemplate,
            Self::Logged { .. } => ErrorKind::Logged,
            Self::Busy { .. } => ErrorKind::Busy,
            Self::Incomplete { .. } => ErrorKind::Incomplete,
            Self::Read { .. } => ErrorKind::Read,
            Self::Config { .. } => ErrorKind::Config,
            Self::UnknownModelType { .. } => ErrorKind::UnknownModelType,
            Self::WeightsFile { .. } => ErrorKind::WeightsFile,
            Self::Tensor { .. } => ErrorKind::Tensor,
            Self::Tensors { .. } => ErrorKind::Tensors,
            Self::Tokenizer { .. } => ErrorKind::Tokenizer,
            Self::Memory { .. } => ErrorKind::Memory,
            Self::UnscrubbedHeap => ErrorKind::UnscrubbedHeap,
            Self::DeviceUnavailable { .. } => ErrorKind::DeviceUnavailable,
            Self::Thread(_) => ErrorKind::Thread,
            Self::Poisoned(_) => ErrorKind::Poisoned,
            Self::Interrupted { .. } => ErrorKind::Interrupted,
            Self::WrongTask { .. } => ErrorKind::WrongTask,
            Self::Closed => ErrorKind::Closed,
            Self::NotFinite => ErrorKind::NotFinite,
            Self::NoToken => ErrorKind::NoToken,
            Self::Grammar(_) => ErrorKind::Grammar,
            #[cfg(feature = "debug-sampler")]
            Self::DebugSampler { .. } => ErrorKind::DebugSampler,
            Self::ModelAlias(_) => ErrorKind::ModelAlias,
            Self::Sealed(_) => ErrorKind::Sealed,
            Self::Disclosure(_) => ErrorKind::Disclosure,
            Self::Lockdown(_) => ErrorKind::Lockdown,
            Self::Attestation(_) => ErrorKind::Attestation,
            #[cfg(feature = "hub")]
            Self::Hub { .. } => ErrorKind::Hub,
        }
    }

    /// No `model_type` of ours; the name comes from the file.
    pub(crate) fn unknown_model_type(file: &Path, found: &str, known: &[&str]) -> Self {
        let found = printable(found);
        let mut nearest: Vec<_> =
            known.iter().map(|name| (strsim::jaro_winkler(&found, name), *name)).collect();
        nearest.sort_by(|a, b| b.0.total_cmp(&a.0)); // stable: of equals the table's first
        let nearest: Vec<&str> = nearest.into_iter().take(4).map(|(_, name)| name).collect();
        Self::UnknownModelType {
            file: file.to_owned(),
            found,
            known: known.len(),
            nearest: nearest.join(", "),
        }
    }

    pub(crate) fn request(field: &'static str, expected: impl Into<String>) -> Self {
        Self::Request { field, expected: expected.into() }
    }

    pub(crate) fn read(file: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Read { file: file.to_owned(), source }
    }

    pub(crate) fn config(file: &Path, field: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::Config { file: file.to_owned(), field: field.into(), expected: expected.into() }
    }

    pub(crate) fn tensor(file: &Path, tensor: &str, expected: impl Into<String>) -> Self {
        Self::Tensor { file: file.to_owned(), tensor: printable(tensor), expected: expected.into() }
    }

    pub(crate) fn tokenizer(file: &Path, reason: impl AsRef<str>) -> Self {
        Self::Tokenizer { file: file.to_owned(), reason: printable(reason.as_ref()) }
    }
}

/// Text from a checkpoint's files, made fit for one line of a log: no control characters, not too long.
fn printable(text: &str) -> String {
    const MAX_CHARS: usize = 160;
    let mut printed: String = text.chars().take(MAX_CHARS).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        printed.push('…');
    }
    printed
}

/// Why a file is no tokenizer, and what to do.
fn no_tokenizer(file: &Path) -> &'static str {
    if file.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf")) {
        return "has no tokenizer";
    }
    match file.file_name().is_some_and(|name| name == "tokenizer.json") {
        true => "not found",
        false => {
            "has the tokenizer in a form that is not read; transformers' \
             `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)` writes tokenizer.json"
        }
    }
}

fn in_backticks(field: &str) -> String {
    if field.is_empty() { String::new() } else { format!("`{field}` ") }
}
