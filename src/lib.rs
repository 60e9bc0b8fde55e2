#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations)]
#![warn(clippy::undocumented_unsafe_blocks)]

#[cfg(not(unix))]
compile_error!("amnesic locks and guards its memory through POSIX calls: Linux and macOS are supported");
#[cfg(target_endian = "big")]
compile_error!("safetensors are little-endian, and the kernels read them in place");

pub mod alloc;
#[cfg(test)]
install_scrubbing_allocator!();
mod backend;
mod builder;
mod cancel;
#[cfg(feature = "candle")]
mod candle;
mod chat;
mod client;
pub mod clock;
mod conversation;
mod embed;
mod engine;
mod error;
#[cfg(amnesic_faults)]
pub mod faults;
#[cfg(feature = "forensics")]
pub mod forensics;
mod grammar;
mod hidden_states;
#[cfg(feature = "hub")]
mod hub;
mod identity;
mod lease;
mod memory;
mod memory_plan;
mod model;
mod model_info;
mod note;
mod outcome;
pub mod privacy;
mod request;
mod response;
mod sample;
mod session;
mod source;
mod stream;
mod tenant;
#[cfg(feature = "testing")]
pub mod testing;
mod text;
mod tokens;
mod weights;

pub use backend::{Counters, Quantize};
pub use builder::{Builder, Device, KvCache};
pub use cancel::CancelToken;
pub use chat::{
    Message, PieceKind, Role, Tool, ToolCall, ToolCallParser, UnknownParser, assistant, system, tool, user,
};
pub use conversation::{Conversation, ConversationStream, Messages, Public};
pub use embed::{EmbedRequest, Embeddings, IntoText, Ranking, RerankRequest};
pub use engine::status::Load;
pub use error::{DeviceReason, Error, ErrorKind, Result, Returned, SealedReason};
pub use grammar::{FunctionName, GrammarReason, ResponseFormat, ToolChoice};
pub use hidden_states::HiddenStates;
#[cfg(feature = "hub")]
pub use hub::{Download, Hub};
pub use memory::poison::PoisonReason;
pub use memory::seal::SealingKey;
pub use memory_plan::MemoryPlan;
pub use model_info::ModelInfo;
pub use note::Note;
pub use outcome::{FinishReason, RequestId, Timing, Usage};
pub use privacy::ScrubReceipt;
pub use request::{ConstrainFrom, Priority, Request, Speculation};
pub use response::{Choice, Piece, Reply, ToolCallDelta};
pub use sample::{Dry, Logprobs, SamplingParams, TokenLogprobs};
pub use session::Session;
#[cfg(feature = "async")]
pub use stream::Cancelled;
pub use stream::Stream;
pub use tenant::Tenant;
pub use tokens::{SecretText, TokenIds};
pub use weights::progress::Progress;
pub use weights::store::Files;
