//! How models write the calls that they ask for, and reading them while they arrive.
//!
//! | file | calls |
//! |---|---|
//! | [`block`] | JSON objects, alone or in lists: Hermes, Llama, Granite, Phi-4, Command-R, Jamba, Nemotron, Apertus |
//! | [`headed`] | a name, then JSON: DeepSeek V3 and V3.1, Kimi-K2, Mistral |
//! | [`xml`], [`glm`] | parameters between tags: Qwen3-Coder, Seed-OSS, MiniMax M2, DeepSeek V3.2 and V4, Step 3, GLM 4.5 |
//! | [`xtml`], [`elements`] | parameters that are elements: Kimi K3, MiniMax M3 |
//! | [`python`] | `[name(key=value)]`: Llama 4, Llama 3.2, Olmo 3, LFM2, Gemma 3 |
//! | [`gemma`] | `call:name{key:value}`: FunctionGemma, Gemma 4 |
//!
//! [`detect`] has the formats by name, and finds the one that a checkpoint asks for; [`formats`] has what each is read by.
//! gpt-oss is read by [`super::harmony`], Inkling by [`super::inkling`]. What never lives here: running a tool, and checking arguments against a schema.
//!
//! **Invariant:** a reader looks at a place of the text as often, however the text is cut, so what it gives does not
//! depend on that; and what turns out to be no call is given as text, so nothing is lost.

mod block;
mod detect;
mod elements;
mod emit;
mod formats;
mod gemma;
mod glm;
mod headed;
mod object;
mod python;
mod scan;
mod types;
mod xml;
mod xtml;

#[cfg(test)]
mod tests;

pub use block::inkling_block;
pub use detect::{ToolCallParser, UnknownParser};
pub use emit::{CallPart, Calls, IdForm, Numbering};
pub use object::object;
pub use scan::{match_any_tag, partial};
pub use types::{Parameter, Schemas, Type, parameter};

/// What reading on gave.
#[derive(Debug)]
pub enum Outcome {
    /// More text is needed.
    Wait,
    /// The calls up to here are complete. Reading goes on behind it.
    Part(usize),
    /// The block ends here.
    Over(usize),
    /// The text up to here is content: no call, or none from the last complete one on.
    Not(usize),
}

/// Reads a block of calls.
pub trait CallParser: Send + Sync {
    /// Reads on in `text`, which begins with the block, or behind the last [`Outcome::Part`], and is what it was before
    /// with more behind it. At the `end` of the reply [`Outcome::Wait`] says that the block is cut off.
    fn read(&mut self, text: &str, end: bool, calls: &mut Calls<'_, '_>) -> Outcome;
}
