//! Chat at both ends of a request: messages into the text of a prompt ([`template`]), and which of it is what users typed
//! ([`literal`]); the text of a reply into content, reasoning and calls of tools ([`reply`], [`splitter`],
//! [`tool_calls`]).
//!
//! What never lives here: token ids, the session, and running a tool.
//!
//! **Invariant:** messages, prompts and replies live in `Secret`s. While a template renders, minijinja copies texts
//! into heap values of its own and frees them; [`crate::alloc::Scrubbing`] overwrites those, as it does the
//! temporaries of serde_json.

mod budget;
mod checks;
mod citations;
mod filters;
mod format;
mod functions;
mod harmony;
mod inkling;
mod json_text;
mod literal;
mod marks;
mod message;
mod metered;
mod methods;
mod objects;
mod operators;
mod parsed;
mod printf;
mod python;
mod reply;
mod sequences;
mod spec;
mod splitter;
mod strftime;
mod template;
mod texts;
mod tool_calls;
mod values;

#[cfg(test)]
mod comparison;
#[cfg(test)]
mod tests;

pub use functions::{Tool, ToolCall};
pub use literal::{PromptOptions, Rendered, edges};
pub use message::{Message, Role, assistant, system, tool, user};
pub use parsed::PieceKind;
pub use reply::{ReasoningEnd, Style};
pub use splitter::{Event, Splitter};
pub use template::{ChatInput, Templates};
pub use tool_calls::{CallPart, Parameter, ToolCallParser, Type, UnknownParser, parameter};
