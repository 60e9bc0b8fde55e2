//! Structured output.

mod compile;
mod format;
mod matcher;
mod schema;
mod vocabulary;

pub use compile::Grammars;
pub use format::ResponseFormat;
pub use matcher::Matcher;

use crate::error::Error;

/// Why a reply cannot go on under its [`ResponseFormat`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GrammarReason {
    /// The state of the grammar grew beyond its limits.
    TooComplex,
    /// No token of the vocabulary can follow.
    DeadEnd,
    /// A token was given that cannot follow. Nothing has changed.
    Rejected,
    /// The library that matches the grammar failed, or had failed before.
    Failed,
}

impl std::fmt::Display for GrammarReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TooComplex => "the state of the grammar grew beyond its limits",
            Self::DeadEnd => "no token of the vocabulary can follow",
            Self::Rejected => "the grammar does not allow the token",
            Self::Failed => "the grammar cannot be matched any further",
        })
    }
}

impl From<GrammarReason> for Error {
    fn from(reason: GrammarReason) -> Self {
        Self::Grammar(reason)
    }
}

#[cfg(test)]
mod tests;
