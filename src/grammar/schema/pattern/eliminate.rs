//! The expression of an automaton, by eliminating its states one after another.

use std::collections::BTreeMap;
use std::fmt::Write;

use regex_syntax::hir::ClassUnicode;

use super::automaton::Automaton;

/// Bytes of the longest expression that is written.
const MAX_BYTES: usize = 4096;
/// Bytes of all expressions that are written at the same time.
const MAX_BYTES_AT_ONCE: usize = 64 << 10;

/// An expression, and how it binds.
#[derive(Clone)]
struct Expr {
    text: String,
    binds: Binds,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Binds {
    Alternatives,
    Sequence,
    Atom,
}

/// An expression for the texts that the automaton accepts, without `^` and `$`; none within if it accepts no text, none
/// at all if the expression would be too long.
pub fn expression(automaton: &Automaton) -> Option<Option<String>> {
    let count = automaton.next.len();
    // Two states more: one that leads to the first, one that all accepting ones lead to.
    let (first, last) = (count, count + 1);
    let mut edges: BTreeMap<(usize, usize), Expr> = BTreeMap::new();
    edges.insert((first, 0), Expr::empty());
    for state in 0..count {
        let mut by_target: BTreeMap<usize, ClassUnicode> = BTreeMap::new();
        for (class, &target) in automaton.classes.iter().zip(&automaton.next[state]) {
            by_target.entry(target).or_insert_with(ClassUnicode::empty).union(class);
        }
        edges.extend(by_target.into_iter().map(|(target, class)| ((state, target), Expr::class(&class))));
        if automaton.accepting[state] {
            edges.insert((state, last), Expr::empty());
        }
    }
    let mut left: Vec<usize> = (0..count).collect();
    while !left.is_empty() {
        let (place, _) = left.iter().enumerate().min_by_key(|&(_, &state)| weight(&edges, state))?;
        eliminate(&mut edges, left.swap_remove(place))?;
        if edges.values().map(|expr| expr.text.len()).sum::<usize>() > MAX_BYTES_AT_ONCE {
            return None;
        }
    }
    Some(edges.remove(&(first, last)).map(|expression| expression.text))
}

/// How much is written when the state goes.
fn weight(edges: &BTreeMap<(usize, usize), Expr>, state: usize) -> usize {
    let (mut into, mut out) = ((0, 0), (0, 0));
    for (&(from, to), expr) in edges {
        if to == state && from != state {
            into = (into.0 + 1, into.1 + expr.text.len());
        }
        if from == state && to != state {
            out = (out.0 + 1, out.1 + expr.text.len());
        }
    }
    into.0 * out.1 + out.0 * into.1
}

/// Joins what leads to the state with what leads from it.
fn eliminate(edges: &mut BTreeMap<(usize, usize), Expr>, state: usize) -> Option<()> {
    let again = edges.remove(&(state, state)).map(Expr::repeated);
    let take = |edges: &mut BTreeMap<(usize, usize), Expr>, of: &dyn Fn(&(usize, usize)) -> bool| {
        let keys: Vec<_> = edges.keys().copied().filter(|key| of(key)).collect();
        keys.into_iter().filter_map(|key| Some((key, edges.remove(&key)?))).collect::<Vec<_>>()
    };
    let into = take(edges, &|key| key.1 == state);
    let out = take(edges, &|key| key.0 == state);
    for ((from, _), before) in &into {
        for ((_, to), behind) in &out {
            let middle = again.iter().fold(before.clone(), |before, again| before.then(again));
            let joined = middle.then(behind);
            let joined = match edges.remove(&(*from, *to)) {
                Some(beside) => beside.or(joined),
                None => joined,
            };
            if joined.text.len() > MAX_BYTES {
                return None;
            }
            edges.insert((*from, *to), joined);
        }
    }
    Some(())
}

impl Expr {
    fn empty() -> Self {
        Self { text: String::new(), binds: Binds::Sequence }
    }

    /// Any character of the class.
    fn class(class: &ClassUnicode) -> Self {
        let mut others = class.clone();
        others.negate();
        let (ranges, sign) = match others.ranges().len() < class.ranges().len() {
            true => (others.ranges(), "^"),
            false => (class.ranges(), ""),
        };
        let mut text = String::new();
        if ranges.is_empty() {
            text.push_str("(?s:.)");
        } else {
            text.extend(["[", sign]);
            for range in ranges {
                push(&mut text, range.start());
                if range.start() != range.end() {
                    text.push('-');
                    push(&mut text, range.end());
                }
            }
            text.push(']');
        }
        Self { text, binds: Binds::Atom }
    }

    /// The text, in a group if it binds less than what is beside it.
    fn within(&self, binds: Binds) -> String {
        if self.binds < binds { format!("(?:{})", self.text) } else { self.text.clone() }
    }

    fn then(&self, next: &Self) -> Self {
        match (self.text.is_empty(), next.text.is_empty()) {
            (true, _) => next.clone(),
            (_, true) => self.clone(),
            _ => {
                let text = self.within(Binds::Sequence) + &next.within(Binds::Sequence);
                Self { text, binds: Binds::Sequence }
            }
        }
    }

    fn or(self, other: Self) -> Self {
        match (self.text.is_empty(), other.text.is_empty()) {
            (true, true) => self,
            (true, false) => other.optional(),
            (false, true) => self.optional(),
            _ => Self { text: format!("{}|{}", self.text, other.text), binds: Binds::Alternatives },
        }
    }

    fn optional(self) -> Self {
        Self { text: self.within(Binds::Atom) + "?", binds: Binds::Sequence }
    }

    fn repeated(self) -> Self {
        if self.text.is_empty() {
            return self;
        }
        Self { text: self.within(Binds::Atom) + "*", binds: Binds::Sequence }
    }
}

/// A character of a class; all but letters and digits by their number.
fn push(text: &mut String, c: char) {
    if c.is_ascii_alphanumeric() {
        text.push(c);
    } else {
        write!(text, "\\x{{{:X}}}", u32::from(c)).expect("a string takes all");
    }
}
