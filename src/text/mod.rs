//! Text at the edges: into token ids ([`tokenizer`]) and back ([`detokenizer`]), until a stop string ([`stop`]).
//!
//! **Invariant:** what these three keep of a request lives in `Secret`s. Copies that the `tokenizers` crate makes on
//! the heap while it encodes are freed by it; [`crate::alloc::Scrubbing`] overwrites those.

pub mod detokenizer;
mod size;
pub mod stop;
pub mod tokenizer;

pub use detokenizer::{Detokenizer, Pieces};
pub use stop::Stops;
pub use tokenizer::Text;
