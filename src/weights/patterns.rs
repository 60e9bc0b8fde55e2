//! Names of modules as PEFT matches them: `re.match(rf"(.*\.)?({pattern})$", name)`.

use std::fmt;

use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_automata::{Anchored, Input, MatchKind};
use regex_syntax::ParserBuilder;

/// No pattern in a file is longer.
const MAX_CHARS: usize = 512;
/// Nesting of groups.
const MAX_DEPTH: u32 = 64;
/// Bytes of an automaton, and of what makes it.
const MAX_BYTES: usize = 1 << 20;

/// A pattern: an automaton that is complete, so that matching takes no more than a step for each byte.
pub struct Pattern(dense::DFA<Vec<u32>>);

impl Pattern {
    /// Compiles a regular expression for the end of a name, behind a dot; with `^`, for all of it.
    ///
    /// # Errors
    /// What it must be.
    pub fn new(pattern: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "regular expressions of modules' names, without looking around and references";
        if pattern.chars().count() > MAX_CHARS {
            return Err("regular expressions of at most 512 characters");
        }
        let config = dense::Config::new()
            .match_kind(MatchKind::All)
            .start_kind(StartKind::Anchored)
            .dfa_size_limit(Some(MAX_BYTES))
            .determinize_size_limit(Some(MAX_BYTES));
        let whole = format!(r"(.*\.)?({pattern})$");
        let parsed =
            ParserBuilder::new().nest_limit(MAX_DEPTH).build().parse(&whole).map_err(|_| EXPECTED)?;
        let limited = thompson::Config::new().nfa_size_limit(Some(MAX_BYTES));
        let nfa =
            thompson::Compiler::new().configure(limited).build_from_hir(&parsed).map_err(|_| EXPECTED)?;
        dense::Builder::new().configure(config).build_from_nfa(&nfa).map(Self).map_err(|_| EXPECTED)
    }

    /// Whether a name is one of its.
    pub fn matches(&self, name: &str) -> bool {
        let input = Input::new(name).anchored(Anchored::Yes);
        matches!(self.0.try_search_fwd(&input), Ok(Some(_)))
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pattern").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answers are those of `peft.utils.other.get_pattern_key` of PEFT 0.21.
    #[test]
    fn patterns_match_as_peft_matches_them() {
        let name = "model.layers.1.self_attn.q_proj";
        for (pattern, expected) in [
            ("q_proj", true),
            ("self_attn.q_proj", true),
            ("_proj", false),
            (".*_proj", true),
            ("^model.layers.1.self_attn.q_proj", true),
            ("^self_attn.q_proj", false),
            (r"model\.layers\.(0|1)\.self_attn\..*", true),
            (r"layers\.[02]\..*", false),
            (r".*\.1\..*(q|k)_proj", true),
            ("q_pro", false),
            ("k_proj|q_proj", true),
            ("(?:q|v)_proj$", true),
        ] {
            assert_eq!(Pattern::new(pattern).unwrap().matches(name), expected, "{pattern}");
        }
        for wrong in ["(", "(?=a)b", r"(a)\1", &"a".repeat(600), "(a{1000}){1000}"] {
            assert!(Pattern::new(wrong).is_err(), "{wrong}");
        }
    }
}
