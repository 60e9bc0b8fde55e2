//! The deterministic automaton of an expression, over classes of characters.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, Hir, HirKind, Look};

use super::with_ascii_classes;

/// Nodes of the automaton with choices: a repetition has a copy of its body for each time.
const MAX_NODES: usize = 1000;
/// Ranges of characters that the expression tells apart.
const MAX_RANGES: usize = 256;
/// States of the deterministic automaton.
const MAX_STATES: usize = 48;

/// States and what leads from one to the next. State 0 is the first.
pub struct Automaton {
    /// What the expression tells apart: together, all characters.
    pub classes: Vec<ClassUnicode>,
    /// The next state for each state and class.
    pub next: Vec<Vec<usize>>,
    pub accepting: Vec<bool>,
}

impl Automaton {
    /// The automaton of the texts in which `pattern` matches somewhere.
    pub fn search(pattern: &str) -> Option<Self> {
        let hir = regex_syntax::Parser::new().parse(&with_ascii_classes(pattern)).ok()?;
        let mut nodes = Nodes::default();
        let accept = nodes.push(Node::Accept)?;
        let start = nodes.expression(&hir, accept)?;
        Some(nodes.determine(start, accept)?.minimal())
    }

    /// Accepts what this one does not.
    pub fn complement(mut self) -> Self {
        self.accepting.iter_mut().for_each(|accepting| *accepting = !*accepting);
        self
    }

    /// With the fewest states (Moore's refinement).
    fn minimal(self) -> Self {
        let mut group: Vec<usize> = self.accepting.iter().map(|&accepting| accepting.into()).collect();
        loop {
            let mut known = HashMap::new();
            let refined: Vec<usize> = (0..group.len())
                .map(|state| {
                    let row: Vec<usize> = self.next[state].iter().map(|&next| group[next]).collect();
                    let count = known.len();
                    *known.entry((group[state], row)).or_insert(count)
                })
                .collect();
            let before = group.iter().collect::<BTreeSet<_>>().len();
            let done = known.len() == before;
            group = refined;
            if done {
                break;
            }
        }
        // Groups are numbered as they are met, so the first state's is 0.
        let count = group.iter().max().map_or(0, |last| last + 1);
        let first = |wanted: usize| group.iter().position(|&found| found == wanted).unwrap_or(0);
        let members: Vec<usize> = (0..count).map(first).collect();
        let next = members.iter().map(|&state| self.next[state].iter().map(|&next| group[next]).collect());
        Self {
            next: next.collect(),
            accepting: members.iter().map(|&state| self.accepting[state]).collect(),
            classes: self.classes,
        }
    }
}

enum Node {
    Accept,
    /// Goes on at any of these.
    Split(Vec<usize>),
    /// Takes a character of a class and goes on.
    Take(ClassUnicode, usize),
    /// Goes on at the text's start, or at its end, only.
    Start(usize),
    End(usize),
}

/// An automaton with choices (Thompson's construction), built from its end.
#[derive(Default)]
struct Nodes(Vec<Node>);

impl Nodes {
    fn push(&mut self, node: Node) -> Option<usize> {
        self.0.push(node);
        (self.0.len() <= MAX_NODES).then(|| self.0.len() - 1)
    }

    /// The node at which a match of `hir` begins that goes on at `next`.
    fn expression(&mut self, hir: &Hir, next: usize) -> Option<usize> {
        match hir.kind() {
            HirKind::Empty => Some(next),
            HirKind::Literal(literal) => {
                let text = std::str::from_utf8(&literal.0).ok()?;
                text.chars().rev().try_fold(next, |next, c| {
                    self.push(Node::Take(ClassUnicode::new([ClassUnicodeRange::new(c, c)]), next))
                })
            }
            HirKind::Class(Class::Unicode(class)) => self.push(Node::Take(class.clone(), next)),
            HirKind::Class(Class::Bytes(_)) => None,
            HirKind::Look(Look::Start) => self.push(Node::Start(next)),
            HirKind::Look(Look::End) => self.push(Node::End(next)),
            HirKind::Look(_) => None,
            HirKind::Capture(capture) => self.expression(&capture.sub, next),
            HirKind::Concat(parts) => {
                parts.iter().rev().try_fold(next, |next, part| self.expression(part, next))
            }
            HirKind::Alternation(parts) => {
                let starts = parts.iter().map(|part| self.expression(part, next)).collect::<Option<_>>()?;
                self.push(Node::Split(starts))
            }
            HirKind::Repetition(repetition) => {
                let body = &repetition.sub;
                let mut next = match repetition.max {
                    None => {
                        let again = self.push(Node::Split(vec![next]))?;
                        let body = self.expression(body, again)?;
                        if let Node::Split(ways) = &mut self.0[again] {
                            ways.push(body);
                        }
                        again
                    }
                    Some(max) => (repetition.min..max).try_fold(next, |inner, _| {
                        let body = self.expression(body, inner)?;
                        self.push(Node::Split(vec![next, body]))
                    })?,
                };
                for _ in 0..repetition.min {
                    next = self.expression(body, next)?;
                }
                Some(next)
            }
        }
    }

    /// All nodes that can be reached from `from` without a character.
    fn closure(
        &self,
        from: impl IntoIterator<Item = usize>,
        at_start: bool,
        at_end: bool,
    ) -> BTreeSet<usize> {
        let (mut reached, mut left) = (BTreeSet::new(), Vec::from_iter(from));
        while let Some(node) = left.pop() {
            if !reached.insert(node) {
                continue;
            }
            match &self.0[node] {
                Node::Split(ways) => left.extend(ways),
                Node::Start(next) if at_start => left.push(*next),
                Node::End(next) if at_end => left.push(*next),
                _ => {}
            }
        }
        reached
    }

    /// The automaton without choices, of searches that begin anywhere and go on after a match.
    fn determine(&self, start: usize, accept: usize) -> Option<Automaton> {
        let (classes, members) = self.classes()?;
        let matched = BTreeSet::from([accept]);
        let accepted = |set: BTreeSet<usize>| if set.contains(&accept) { matched.clone() } else { set };
        let first = accepted(self.closure([start], true, false));
        let mut numbers = BTreeMap::from([(first.clone(), 0)]);
        let (mut sets, mut next) = (vec![first], Vec::new());
        while let Some(set) = sets.get(next.len()).cloned() {
            let mut row = Vec::with_capacity(classes.len());
            for taken in &members {
                let moved = set.iter().filter_map(|&node| match &self.0[node] {
                    Node::Take(_, next) if taken[node] => Some(*next),
                    _ => None,
                });
                let reached = match set.contains(&accept) {
                    true => matched.clone(),
                    false => accepted(self.closure(moved.chain([start]), false, false)),
                };
                let count = numbers.len();
                row.push(*numbers.entry(reached.clone()).or_insert(count));
                if numbers.len() > sets.len() {
                    sets.push(reached);
                }
                if sets.len() > MAX_STATES {
                    return None;
                }
            }
            next.push(row);
        }
        let accepting = sets
            .iter()
            .enumerate()
            .map(|(number, set)| self.closure(set.iter().copied(), number == 0, true).contains(&accept));
        Some(Automaton { classes, next, accepting: accepting.collect() })
    }

    /// Parts of all characters that no class of the expression divides further, and for each the nodes that take it.
    fn classes(&self) -> Option<(Vec<ClassUnicode>, Vec<Vec<bool>>)> {
        let taken =
            self.0.iter().map(|node| if let Node::Take(class, _) = node { Some(class) } else { None });
        let taken: Vec<Option<&ClassUnicode>> = taken.collect();
        // Where a range begins.
        let mut edges = BTreeSet::from([0]);
        for range in taken.iter().flatten().flat_map(|class| class.ranges()) {
            edges.extend([u32::from(range.start()), u32::from(range.end()) + 1]);
            if edges.len() > MAX_RANGES {
                return None;
            }
        }
        // Surrogates are no characters, and a class that ends beside them has no complement that `regex-syntax` could tell.
        if edges.contains(&0xD800) || edges.contains(&0xE000) {
            return None;
        }
        let edges: Vec<u32> = edges.into_iter().filter(|&edge| edge <= char::MAX.into()).collect();
        let mut parts: BTreeMap<Vec<bool>, Vec<ClassUnicodeRange>> = BTreeMap::new();
        for (place, &edge) in edges.iter().enumerate() {
            let last = edges.get(place + 1).map_or(char::MAX.into(), |next| next - 1);
            let (start, end) = (char::from_u32(edge)?, char::from_u32(last)?);
            let key = taken.iter().map(|class| class.is_some_and(|class| holds(class, start))).collect();
            parts.entry(key).or_default().push(ClassUnicodeRange::new(start, end));
        }
        Some(parts.into_iter().map(|(members, ranges)| (ClassUnicode::new(ranges), members)).unzip())
    }
}

fn holds(class: &ClassUnicode, c: char) -> bool {
    class.ranges().iter().any(|range| (range.start()..=range.end()).contains(&c))
}
