//! Regular expressions of schemas that llguidance cannot take as they are: those that look around, and the complements of
//! expressions, which `not` needs.
//!
//! [`lookaround`] takes an expression apart into expressions without look-around that have to match, or must not;
//! [`automaton`] makes the automaton of an expression, and [`eliminate`] writes the expression of an automaton.

mod automaton;
mod eliminate;
pub mod lookaround;

use automaton::Automaton;

/// The texts that an expression does not match anywhere.
#[derive(Debug, PartialEq, Eq)]
pub enum Complement {
    /// There are none: the expression matches every text.
    Nothing,
    /// This expression matches them, and only them.
    Pattern(String),
}

/// An expression for the texts in which `pattern` matches nowhere; none where the expression uses something other than
/// characters, classes, groups, repetitions, `^` and `$`, or where the result would be too long.
pub fn complement(pattern: &str) -> Option<Complement> {
    let automaton = Automaton::search(pattern)?.complement();
    match eliminate::expression(&automaton)? {
        Some(inner) => Some(Complement::Pattern(format!("^(?:{inner})$"))),
        None => Some(Complement::Nothing),
    }
}

/// `pattern` with the classes `\d` and `\w` as JSON Schema and llguidance have them: ASCII.
pub fn with_ascii_classes(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut characters = pattern.chars();
    while let Some(c) = characters.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match characters.next() {
            Some('d') => out.push_str("[0-9]"),
            Some('D') => out.push_str("[^0-9]"),
            Some('w') => out.push_str("[0-9a-zA-Z_]"),
            Some('W') => out.push_str("[^0-9a-zA-Z_]"),
            Some('/') => out.push('/'),
            Some(other) => out.extend(['\\', other]),
            None => out.push('\\'),
        }
    }
    out
}

/// Whether llguidance can take the expression: it parses, and looks around nowhere but with `^` and `$` at its ends.
pub fn is_plain(pattern: &str) -> bool {
    use regex_syntax::hir::Look;
    let Ok(hir) = regex_syntax::Parser::new().parse(&with_ascii_classes(pattern)) else { return false };
    hir.properties().look_set().iter().all(|look| matches!(look, Look::Start | Look::End))
}

/// Whether every match of the expression has the same length.
fn has_one_length(pattern: &str) -> bool {
    let Ok(hir) = regex_syntax::Parser::new().parse(&with_ascii_classes(pattern)) else { return false };
    let properties = hir.properties();
    properties.minimum_len().is_some() && properties.minimum_len() == properties.maximum_len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The complement by definition, with the `regex-automata` crate as the judge.
    #[test]
    fn a_complement_matches_what_the_expression_does_not() {
        let patterns = [
            "foo",
            "^foo",
            "foo$",
            "^foo$",
            "^(?:a|b)",
            r"\.\.",
            r"^\s*$",
            "^$",
            "^[A-Z]",
            "[0-9]{3}",
            "a|^b|c$",
            "^(?:abc|abd|x)$",
            r"\d",
            "^a*b",
            "é",
            "(?i)no",
            "^.*foo",
            "^(?:-|.*-$)",
        ];
        let texts = [
            "", "a", "b", "c", "foo", "a foo", "food", "fo", "..", "a..b", ".", " ", "  \t", "Az", "zA",
            "123", "12", "1a2", "abc", "abd", "abe", "x", "xx", "é", "NO", "No", "aab", "aac", "ba", "-",
            "a-", "-a", "日本", "\n",
        ];
        let judge = |pattern: &str, text: &str| {
            regex_automata::dfa::dense::DFA::new(&with_ascii_classes(pattern))
                .map(|dfa| {
                    use regex_automata::dfa::Automaton as _;
                    dfa.try_search_fwd(&regex_automata::Input::new(text)).unwrap().is_some()
                })
                .unwrap()
        };
        for pattern in patterns {
            let Some(Complement::Pattern(complement)) = complement(pattern) else { panic!("{pattern}") };
            for text in texts {
                assert_ne!(
                    judge(pattern, text),
                    judge(&complement, text),
                    "{text:?}: {pattern} and {complement}"
                );
            }
        }
        assert_eq!(complement("^"), Some(Complement::Nothing));
        assert_eq!(complement("a*"), Some(Complement::Nothing));
    }

    #[test]
    fn what_has_no_small_complement_is_said_to_have_none() {
        for pattern in [r"\bx", "(", "a(?=b)", "(?m)^a$", "a{5000}", "(a|b)*a(a|b){30}c"] {
            assert_eq!(complement(pattern), None, "{pattern}");
        }
    }
}
