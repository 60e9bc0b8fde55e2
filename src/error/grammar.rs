//! Why a reply cannot go on under its format.

use super::Error;

/// Why a reply cannot go on under its [`crate::ResponseFormat`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GrammarReason {
    /// A mask, or all of them together, cost more lexer fuel, lexer states or parser items than a reply may have.
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
            Self::TooComplex => {
                "the grammar needs more lexer fuel, lexer states or parser items than a reply may have"
            }
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
