//! Regular expressions as automata that are complete when a session opens.
//!
//! The engines of the `regex` crates build their automata while they search, and keep them: their state tells what was
//! searched. Here every state exists before the first text. What makes that cheap is that the automaton reads
//! *classes* of characters, not bytes: all characters that the expression never tells apart are one class, of which a
//! published pattern has some ten, and then its automaton has some dozens of states. Syntax and Unicode tables are
//! `regex-syntax`'s, the construction `regex-automata`'s; a table over code points stands between.

use std::collections::HashMap;

use regex_automata::dfa::{Automaton as _, StartKind, dense};
use regex_automata::nfa::thompson::{self, WhichCaptures};
use regex_automata::util::primitives::StateID;
use regex_automata::{Anchored, MatchKind};
use regex_syntax::hir::{Class, ClassBytes, ClassBytesRange, Hir, HirKind, Repetition};

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
const MAX_STATES: usize = 4096;
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
        let pattern =
            WITHOUT_POSSESSIVES.iter().find(|(published, _)| *published == pattern).map_or(pattern, |(_, equal)| equal);
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
        let whitespace = match tail.is_some() {
            true => sets.classes_of(&parse(r"\s")?, &members)?,
            false => Vec::new(),
        };
        if this.runs_for_nothing(&whitespace) {
            return Err("a pattern that is searched in more than linear time");
        }
        Ok(this)
    }

    /// An expression that matches `text` and nothing else.
    ///
    /// # Errors
    /// The text is empty.
    pub fn literal(text: &str) -> Result<Self, &'static str> {
        Self::new(&regex_syntax::escape(text))
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
        let count = self.accepts.len();
        let mut lives: Vec<bool> = self.accepts.iter().map(|&accepts| accepts != Accepts::Nothing).collect();
        loop {
            let found = (START..count)
                .find(|&state| !lives[state] && self.row(state).iter().any(|&to| lives[usize::from(to)]));
            let Some(state) = found else { break };
            lives[state] = true;
        }
        self.next.iter_mut().filter(|to| !lives[usize::from(**to)]).for_each(|to| *to = DEAD);
    }

    fn row(&self, state: usize) -> &[u16] {
        &self.next[state * self.classes.count..][..self.classes.count]
    }

    /// Whether it can read on without end and without a match, and so read the same text from many places.
    ///
    /// Whitespace before the whitespace tail is let pass: what was read for nothing there is matched by the tail next.
    fn runs_for_nothing(&self, whitespace: &[u8]) -> bool {
        let count = self.accepts.len();
        let waits: Vec<bool> = self.accepts.iter().map(|&accepts| accepts == Accepts::Nothing).collect();
        let mut ways: Vec<Vec<usize>> = vec![Vec::new(); count];
        for state in START..count {
            let row = self.row(state).iter().enumerate();
            let on = row.filter(|(class, to)| **to != DEAD && !whitespace.contains(&(*class as u8)));
            ways[state] = on.map(|(_, &to)| usize::from(to)).filter(|&to| waits[to]).collect();
        }
        // states that wait are taken off as long as one has no way on to another; what remains runs in circles
        let mut left: Vec<usize> = (START..count).filter(|&state| waits[state]).collect();
        loop {
            let before = left.len();
            let still: Vec<bool> = (0..count).map(|state| left.contains(&state)).collect();
            left.retain(|&state| ways[state].iter().any(|&to| still[to]));
            if left.len() == before {
                return !left.is_empty();
            }
        }
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

/// A set of characters: ranges, both ends included.
type Set = Vec<(u32, u32)>;

/// All sets of characters that a pattern names.
#[derive(Default)]
struct Sets {
    numbers: HashMap<Set, usize>,
}

impl Sets {
    fn collect(&mut self, part: &Hir) -> Result<(), &'static str> {
        match part.kind() {
            HirKind::Empty => Ok(()),
            HirKind::Literal(literal) => {
                let text = str::from_utf8(&literal.0).map_err(|_| "a pattern of bytes")?;
                text.chars().for_each(|character| self.add(one(character)));
                Ok(())
            }
            HirKind::Class(class) => {
                self.add(set_of(class)?);
                Ok(())
            }
            HirKind::Look(_) => Err("a pattern that looks around"),
            HirKind::Repetition(repetition) => self.collect(&repetition.sub),
            HirKind::Capture(capture) => self.collect(&capture.sub),
            HirKind::Concat(parts) | HirKind::Alternation(parts) => {
                parts.iter().try_for_each(|part| self.collect(part))
            }
        }
    }

    fn add(&mut self, set: Set) {
        let number = self.numbers.len();
        self.numbers.entry(set).or_insert(number);
    }

    /// The classes: characters that are in the same sets; and for each set its classes.
    fn partition(&self) -> Result<(Classes, Vec<Vec<u8>>), &'static str> {
        const MANY: &str = "a pattern with too many classes of characters";
        if self.numbers.len() > 128 {
            return Err(MANY);
        }
        // where anything changes, and what: sets begin or end there
        let mut changes: Vec<(u32, usize)> = Vec::new();
        for (set, &number) in &self.numbers {
            changes.extend(set.iter().flat_map(|&(first, last)| [(first, number), (last + 1, number)]));
        }
        changes.sort_unstable();
        let mut numbers = HashMap::from([(0_u128, 0_u8)]);
        let mut of_all = vec![0_u8; 0x11_0000];
        let (mut sets, mut from) = (0_u128, 0);
        for (at, number) in changes {
            if from < at as usize {
                let count = numbers.len();
                let class = *numbers.entry(sets).or_insert(count.min(255) as u8);
                of_all[from..at as usize].fill(class);
                from = at as usize;
            }
            sets ^= 1 << number;
        }
        if numbers.len() > 250 {
            return Err(MANY);
        }
        let mut members = vec![Vec::new(); self.numbers.len()];
        for (sets, &class) in &numbers {
            let inside = (0..members.len()).filter(|number| sets >> number & 1 == 1);
            inside.for_each(|number| members[number].push(class));
        }
        Ok((Classes::new(&of_all, numbers.len()), members))
    }

    /// The pattern with classes in place of characters.
    fn over_classes(&self, part: &Hir, members: &[Vec<u8>]) -> Hir {
        let class = |set: &Set| {
            let classes = members[self.numbers[set]].iter().map(|&class| ClassBytesRange::new(class, class));
            Hir::class(Class::Bytes(ClassBytes::new(classes)))
        };
        let all = |parts: &[Hir]| parts.iter().map(|part| self.over_classes(part, members)).collect();
        match part.kind() {
            HirKind::Empty | HirKind::Look(_) => Hir::empty(),
            HirKind::Literal(literal) => {
                let text = String::from_utf8_lossy(&literal.0);
                Hir::concat(text.chars().map(|character| class(&one(character))).collect())
            }
            HirKind::Class(found) => set_of(found).map_or_else(|_| Hir::fail(), |set| class(&set)),
            HirKind::Repetition(repetition) => Hir::repetition(Repetition {
                sub: Box::new(self.over_classes(&repetition.sub, members)),
                ..*repetition
            }),
            HirKind::Capture(capture) => self.over_classes(&capture.sub, members),
            HirKind::Concat(parts) => Hir::concat(all(parts)),
            HirKind::Alternation(parts) => Hir::alternation(all(parts)),
        }
    }

    /// The classes of one that was collected.
    fn classes_of(&self, part: &Hir, members: &[Vec<u8>]) -> Result<Vec<u8>, &'static str> {
        let HirKind::Class(class) = part.kind() else { return Err("a class of characters") };
        Ok(members[self.numbers[&set_of(class)?]].clone())
    }
}

fn one(character: char) -> Set {
    vec![(character.into(), character.into())]
}

fn set_of(class: &Class) -> Result<Set, &'static str> {
    match class {
        Class::Unicode(class) => {
            Ok(class.iter().map(|range| (range.start().into(), range.end().into())).collect())
        }
        Class::Bytes(class) if class.is_ascii() => {
            Ok(class.iter().map(|range| (range.start().into(), range.end().into())).collect())
        }
        Class::Bytes(_) => Err("a pattern of bytes"),
    }
}

/// The class of every character, in two steps.
struct Classes {
    count: usize,
    ascii: [u8; 0x80],
    /// The block of each 256 code points, and the blocks.
    blocks: Vec<u16>,
    values: Vec<[u8; 256]>,
}

impl Classes {
    fn new(of_all: &[u8], count: usize) -> Self {
        let mut numbers = HashMap::new();
        let (mut blocks, mut values) = (Vec::new(), Vec::new());
        for block in of_all.as_chunks::<256>().0 {
            blocks.push(*numbers.entry(block).or_insert_with(|| {
                values.push(*block);
                values.len() as u16 - 1
            }));
        }
        Self { count, ascii: std::array::from_fn(|at| of_all[at]), blocks, values }
    }

    #[inline]
    fn of(&self, character: char) -> u8 {
        let code = character as usize;
        self.values[usize::from(self.blocks[code >> 8])][code & 0xff]
    }
}
