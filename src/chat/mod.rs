//! Chat at both ends of a request: messages into the text of a prompt ([`template`]), the text of a reply into
//! content, reasoning and calls of tools ([`reply`], [`splitter`], [`tool_calls`]).
//!
//! What never lives here: token ids, the session, and running a tool.
//!
//! **Invariant:** messages, prompts and replies live in `Secret`s. While a template renders, minijinja copies texts
//! into heap values of its own and frees them; [`crate::alloc::Scrubbing`] overwrites those, as it does the
//! temporaries of serde_json.

mod budget;
mod harmony;
mod json_text;
mod marks;
mod message;
mod metered;
mod python;
mod reply;
mod splitter;
mod strftime;
mod template;
mod tool_calls;

#[cfg(test)]
mod tests;

pub use message::{Message, Role, Tool, ToolCall, assistant, system, tool, user};
pub use reply::{PieceKind, ReasoningEnd, Style};
pub use splitter::{Event, Splitter};
pub use template::{ChatInput, Templates};
pub use tool_calls::{CallPart, ToolCallParser, UnknownParser};
