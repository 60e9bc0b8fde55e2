//! Regular expressions as automata that are complete when a session opens.
//!
//! The engines of the `regex` crates build their automata while they search, and keep them: their state tells what was
//! searched. Here every state exists before the first text. What makes that cheap is that the automaton reads
//! *classes* of characters, not bytes: all characters that the expression never tells apart are one class, of which a
//! published pattern has some ten, and then its automaton has some dozens of states. Syntax and Unicode tables are
//! `regex-syntax`'s, the construction `regex-automata`'s; a table over code points stands between.

use std::collections::{HashMap, HashSet};

use regex_automata::dfa::{Automaton as _, StartKind, dense};
use regex_automata::nfa::thompson::{self, WhichCaptures};
use regex_automata::util::primitives::StateID;
use regex_automata::{Anchored, MatchKind};
use regex_syntax::hir::Hir;

use super::classes::{Classes, Sets};

/// How the published patterns end: whitespace, of which the last character goes to the word behind it. The only place
/// where they look ahead, so it is taken off, and `\s+` put there; see [`Automaton::end_of`].
const WHITESPACE_TAILS: [&str; 2] = [r"|\s+(?!\S)|\s+", r"|\s+(?!\S)|\s"];

/// Patterns that are published with possessive quantifiers, and equal ones without: what follows each of them matches
/// no character that it does.
const WITHOUT_POSSESSIVES: [(&str, &str); 1] = [(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
)];

/// States at most: no pattern that splits text comes near.
const MAX_STATES: usize = 1024;
/// Pairs of states that are looked at to see whether searches are linear.
const MAX_PAIRS: usize = 1 << 14;
/// Bytes of the construction's intermediate automata.
const MAX_BYTES: usize = 8 << 20;

/// The state without a way on.
const DEAD: u16 = 0;
const START: usize = 1;

/// A compiled pattern.
pub struct Automaton {
    classes: Classes,
    /// The next state for each state and class.
    next: Vec<u16>,
    /// For each state, which alternative's match ends there: none, the pattern's own, or the tail's.
    accepts: Vec<Accepts>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Accepts {
    Nothing,
    Pattern,
    Whitespace,
}

impl Automaton {
    /// Compiles an expression in the syntax of `fancy-regex`.
    ///
    /// # Errors
    /// It looks around, can match nothing at all, has parts that are searched in more than linear time, or is too
    /// large; says which.
    pub fn new(pattern: &str) -> Result<Self, &'static str> {
        let pattern = WITHOUT_POSSESSIVES
            .iter()
            .find(|(published, _)| *published == pattern)
            .map_or(pattern, |(_, equal)| equal);
        let tail = WHITESPACE_TAILS.iter().find_map(|tail| pattern.strip_suffix(tail));
        let mut parts = vec![parse(tail.unwrap_or(pattern))?];
        if tail.is_some() {
            parts.push(parse(r"\s+")?);
        }
        let mut sets = Sets::default();
        parts.iter().try_for_each(|part| sets.collect(part))?;
        let (classes, members) = sets.partition()?;
        let parts: Vec<Hir> = parts.iter().map(|part| sets.over_classes(part, &members)).collect();
        let this = Self::build(&parts, classes)?;
        if this.runs_for_nothing() {
            return Err("a pattern that is searched in more than linear time");
        }
        Ok(this)
    }

    /// Determinizes, and copies the states out into one small table.
    fn build(parts: &[Hir], classes: Classes) -> Result<Self, &'static str> {
        const TOO_LARGE: &str = "a pattern that is too large";
        let config = thompson::Config::new()
            .utf8(false)
            .which_captures(WhichCaptures::None)
            .nfa_size_limit(Some(MAX_BYTES));
        let nfa =
            thompson::Compiler::new().configure(config).build_many_from_hir(parts).map_err(|_| TOO_LARGE)?;
        let config = dense::Config::new()
            .start_kind(StartKind::Anchored)
            .match_kind(MatchKind::LeftmostFirst)
            .accelerate(false)
            .dfa_size_limit(Some(MAX_BYTES))
            .determinize_size_limit(Some(MAX_BYTES));
        let dfa = dense::Builder::new().configure(config).build_from_nfa(&nfa).map_err(|_| TOO_LARGE)?;
        let start = dfa.universal_start_state(Anchored::Yes).ok_or("a pattern that looks around")?;

        // A match shows in the state *after* the character behind it; here it shows in the state where it ends.
        let accepts_in = |state: StateID| {
            let end = dfa.next_eoi_state(state);
            match dfa.is_match_state(end) {
                false => Accepts::Nothing,
                true if dfa.match_pattern(end, 0).as_usize() == 1 => Accepts::Whitespace,
                true => Accepts::Pattern,
            }
        };
        let mut numbers = HashMap::from([(start, START as u16)]);
        let mut states = vec![start];
        let mut next = vec![DEAD; classes.count];
        let mut accepts = vec![Accepts::Nothing];
        let mut done = 0;
        while let Some(&state) = states.get(done) {
            done += 1;
            accepts.push(accepts_in(state));
            for class in 0..classes.count as u8 {
                let to = dfa.next_state(state, class);
                if dfa.is_dead_state(to) {
                    next.push(DEAD);
                    continue;
                }
                let number = *numbers.entry(to).or_insert_with(|| {
                    states.push(to);
                    states.len() as u16
                });
                next.push(number);
            }
            if states.len() > MAX_STATES {
                return Err(TOO_LARGE);
            }
        }
        if accepts[START] != Accepts::Nothing {
            return Err("a pattern that matches the empty text");
        }
        let mut this = Self { classes, next, accepts };
        this.prune();
        Ok(this)
    }

    /// Makes states dead from which no match can be reached: the delay of a match leaves some.
    fn prune(&mut self) {
        let mut lives: Vec<bool> = self.accepts.iter().map(|&accepts| accepts != Accepts::Nothing).collect();
        let mut changes = true;
        while std::mem::take(&mut changes) {
            // numbers rise on the way to a match, mostly
            for state in (START..lives.len()).rev() {
                if !lives[state] && self.row(state).iter().any(|&to| lives[usize::from(to)]) {
                    (lives[state], changes) = (true, true);
                }
            }
        }
        self.next.iter_mut().filter(|to| !lives[usize::from(**to)]).for_each(|to| *to = DEAD);
    }

    fn row(&self, state: usize) -> &[u16] {
        &self.next[state * self.classes.count..][..self.classes.count]
    }

    /// Whether it could read the same text from many places.
    ///
    /// A search reads on where a longer match may come, and for nothing if none does. That is harmless where it can read
    /// only so far; and where the next match, which begins where this one ended, keeps up with it: then it takes all
    /// that was read for nothing, and no character is read a third time.
    fn runs_for_nothing(&self) -> bool {
        let states = START..self.accepts.len();
        let waits = |state: u16| state != DEAD && self.accepts[usize::from(state)] == Accepts::Nothing;
        // states that wait are taken off as long as one has no way on to another; those that are left can run in circles
        let mut circles: Vec<bool> = (0..=states.len()).map(|state| waits(state as u16)).collect();
        let mut changes = true;
        while std::mem::take(&mut changes) {
            for state in states.clone().rev() {
                if circles[state] && !self.row(state).iter().any(|&to| circles[usize::from(to)]) {
                    (circles[state], changes) = (false, true);
                }
            }
        }
        if circles[START] {
            return true; // without any match, the next attempt is one character on
        }
        // pairs of a state that runs for nothing behind a match, and the state in which the next match is there
        let mut seen = HashSet::new();
        let mut left: Vec<(usize, usize)> = states
            .filter(|&state| self.accepts[state] != Accepts::Nothing)
            .map(|state| (state, START))
            .collect();
        while let Some((state, follower)) = left.pop() {
            for (&to, &follows) in self.row(state).iter().zip(self.row(follower)) {
                if !circles[usize::from(to)] {
                    continue;
                }
                if follows == DEAD || waits(follows) || seen.len() > MAX_PAIRS {
                    return true;
                }
                let next = (usize::from(to), usize::from(follows));
                if seen.insert(next) {
                    left.push(next);
                }
            }
        }
        false
    }

    /// The first match that begins at `from` or later, as `find_iter` gives them. Never an empty one.
    #[inline]
    pub fn find(&self, text: &str, mut from: usize) -> Option<(usize, usize)> {
        while from < text.len() {
            if let Some(end) = self.end_of(text, from) {
                return Some((from, end));
            }
            from += char_at(text, from).1;
        }
        None
    }

    /// The end of the match that begins at `start`.
    ///
    /// `\s+(?!\S)|\s+` takes a whole run of whitespace where nothing is behind it, and else leaves its last character,
    /// unless it has only one.
    #[inline]
    fn end_of(&self, text: &str, start: usize) -> Option<usize> {
        let bytes = text.as_bytes();
        let (mut state, mut at, mut last) = (START, start, start);
        let (mut end, mut which) = (start, Accepts::Nothing);
        while let Some(&byte) = bytes.get(at) {
            let here = at;
            let class = match byte < 0x80 {
                true => {
                    at += 1;
                    self.classes.ascii[usize::from(byte)]
                }
                false => {
                    let (character, len) = char_at(text, at);
                    at += len;
                    self.classes.of(character)
                }
            };
            let to = self.next[state * self.classes.count + usize::from(class)];
            if to == DEAD {
                break;
            }
            state = usize::from(to);
            if self.accepts[state] != Accepts::Nothing {
                (end, last, which) = (at, here, self.accepts[state]);
            }
        }
        match which {
            Accepts::Nothing => None,
            Accepts::Whitespace if end < text.len() && last > start => Some(last),
            _ => Some(end),
        }
    }
}

#[inline]
fn char_at(text: &str, at: usize) -> (char, usize) {
    let character = text[at..].chars().next().expect("a place within the text");
    (character, character.len_utf8())
}

fn parse(pattern: &str) -> Result<Hir, &'static str> {
    if has_possessive(pattern) {
        return Err("a pattern with possessive quantifiers");
    }
    regex_syntax::parse(pattern).map_err(|_| "a pattern that looks around, or has other extensions")
}

/// `a++`, which the plain syntax reads as another thing.
fn has_possessive(pattern: &str) -> bool {
    let (mut depth, mut quantified) = (0_usize, false);
    let mut characters = pattern.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\\' => {
                let named = characters.next().is_some_and(|kind| "pPxuU".contains(kind));
                if named && characters.peek() == Some(&'{') {
                    _ = characters.find(|&character| character == '}');
                }
            }
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            '+' if depth == 0 && quantified => return true,
            _ => {}
        }
        quantified = depth == 0 && matches!(character, '?' | '*' | '+' | '}');
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches<'a>(pattern: &str, text: &'a str) -> Vec<&'a str> {
        let automaton = Automaton::new(pattern).unwrap();
        let (mut found, mut from) = (Vec::new(), 0);
        while let Some((start, end)) = automaton.find(text, from) {
            found.push(&text[start..end]);
            from = end;
        }
        found
    }

    #[test]
    fn the_whitespace_tail_leaves_one_character_to_what_follows() {
        const PATTERN: &str = r" ?\p{L}+|\s*[\r\n]+|\s+(?!\S)|\s+";
        for (text, expected) in [
            ("a b", &["a", " b"][..]),
            ("a   b", &["a", "  ", " b"]),
            ("a \t", &["a", " \t"]),
            ("a\tb", &["a", "\t", "b"]),
            (" \n \n  b", &[" \n \n", " ", " b"]),
            ("\u{3000}\u{3000}b", &["\u{3000}", "\u{3000}", "b"]),
        ] {
            assert_eq!(matches(PATTERN, text), expected, "{text:?}");
        }
    }

    #[test]
    fn the_first_alternative_that_matches_wins() {
        assert_eq!(matches("a|ab|b", "abab"), ["a", "b", "a", "b"]);
        assert_eq!(matches("ab|a|b", "abab"), ["ab", "ab"]);
        assert_eq!(matches(r"\p{N}{1,3}", "x12345y6"), ["123", "45", "6"]);
        assert_eq!(matches("(?i:'s|'t)", "'S'\u{17f}'t"), ["'S", "'\u{17f}", "'t"]);
    }

    #[test]
    fn what_cannot_be_searched_in_linear_time_is_refused() {
        for pattern in ["a+b", r"\s+x", "a[bc]*d|ab", r"\s*[\r\n]+"] {
            let refused = Automaton::new(pattern).err();
            assert_eq!(refused, Some("a pattern that is searched in more than linear time"), "{pattern}");
        }
        // here the next match takes what was read for nothing
        for pattern in ["a[bc]*d|a|[bc]+", r"\s*[\r\n]+|\s+(?!\S)|\s+", r"[A-Z_]*[a-z_]+|[A-Z_]+"] {
            assert!(Automaton::new(pattern).is_ok(), "{pattern}");
        }
    }

    #[test]
    fn what_looks_around_or_matches_nothing_is_refused() {
        for pattern in [r"a(?=b)", r"(?<!a)b", r"\bword", "a$", "a*", "", r"(a)\1", "a++", "(?>a)"] {
            assert!(Automaton::new(pattern).is_err(), "{pattern}");
        }
        assert!(Automaton::new(r"[*+]+|\p{L}+|x{2}y").is_ok(), "these only look like possessive quantifiers");
    }
}
