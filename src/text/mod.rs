//! Text at the edges: into token ids ([`tokenizer`]) and back ([`detokenizer`]), until a stop string ([`stop`]).
//!
//! **Invariant:** what these three keep of a request lives in `Secret`s, and goes with it. The `tokenizers` crate, to
//! which a rare component is left, frees copies of the text; [`crate::alloc::Scrubbing`] overwrites those.

pub mod detokenizer;
mod size;
pub mod stop;
pub mod tokenizer;

pub use detokenizer::{Detokenizer, Pieces};
pub use stop::Stops;
pub use tokenizer::Text;
