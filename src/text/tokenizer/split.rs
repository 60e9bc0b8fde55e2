//! Cutting a text where a pattern matches, with the crate's five ways to treat what matched.

use serde_json::Value;

use super::automaton::Automaton;

/// What is looked for.
pub enum Pattern {
    /// An expression.
    Expression(Box<Automaton>),
    /// Single characters of a kind.
    Characters(fn(char) -> bool),
    /// One character.
    Character(char),
    /// Whitespace at the end: `\s+$`, which DeepSeek's first models split by.
    LastSpace,
}

/// What becomes of a match.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Behavior {
    Removed,
    Isolated,
    MergedWithPrevious,
    MergedWithNext,
    Contiguous,
}

/// A pattern, and what to do with it.
pub struct Split {
    pub pattern: Pattern,
    pub behavior: Behavior,
    /// What does not match counts as the match.
    pub invert: bool,
}

impl Pattern {
    /// Reads one as the crate writes it: `{"String": ...}` or `{"Regex": ...}`.
    ///
    /// # Errors
    /// It is not done here; says what it is.
    pub fn read(value: &Value) -> Result<Self, &'static str> {
        let expression = |pattern: &str| Ok(Self::Expression(Box::new(Automaton::new(pattern)?)));
        match (value["String"].as_str(), value["Regex"].as_str()) {
            (Some(text), _) => {
                let mut characters = text.chars();
                match (characters.next(), characters.next()) {
                    (Some(one), None) => Ok(Self::Character(one)),
                    _ => expression(&regex_syntax::escape(text)),
                }
            }
            (_, Some(r"\s+$")) => Ok(Self::LastSpace),
            (_, Some(pattern)) => expression(pattern),
            _ => Err("a pattern of another kind"),
        }
    }

    /// The first match that begins at `from` or later.
    #[inline]
    pub fn find(&self, text: &str, from: usize) -> Option<(usize, usize)> {
        let whole = |(at, character): (usize, char)| (from + at, from + at + character.len_utf8());
        match self {
            Self::Expression(automaton) => automaton.find(text, from),
            Self::Characters(is) => {
                text[from..].char_indices().find(|(_, character)| is(*character)).map(whole)
            }
            Self::Character(one) => text[from..].find(*one).map(|at| whole((at, *one))),
            Self::LastSpace => {
                let start = text.trim_end().len().max(from);
                (start < text.len()).then_some((start, text.len()))
            }
        }
    }
}

impl Split {
    /// Gives the pieces of `text` one after another to `take`, as ranges. None is empty.
    ///
    /// # Errors
    /// Those of `take`.
    #[inline]
    pub fn run<E>(&self, text: &str, take: impl FnMut(usize, usize) -> Result<(), E>) -> Result<(), E> {
        let mut cuts = Cuts { behavior: self.behavior, held: None, matched: false, take };
        let mut done = 0;
        while let Some((start, end)) = self.pattern.find(text, done) {
            if done < start {
                cuts.put(done, start, self.invert)?;
            }
            cuts.put(start, end, !self.invert)?;
            done = end;
        }
        if done < text.len() {
            cuts.put(done, text.len(), self.invert)?;
        }
        cuts.finish()
    }
}

/// Makes pieces of stretches that match and stretches that do not.
struct Cuts<F> {
    behavior: Behavior,
    /// A piece that may yet grow.
    held: Option<(usize, usize)>,
    /// Whether the last stretch matched.
    matched: bool,
    take: F,
}

impl<E, F: FnMut(usize, usize) -> Result<(), E>> Cuts<F> {
    #[inline]
    fn put(&mut self, start: usize, end: usize, matches: bool) -> Result<(), E> {
        let grows = match self.behavior {
            Behavior::Isolated => return (self.take)(start, end),
            Behavior::Removed if matches => return Ok(()),
            Behavior::Removed => return (self.take)(start, end),
            Behavior::Contiguous => matches == self.matched,
            Behavior::MergedWithPrevious => matches && !self.matched,
            Behavior::MergedWithNext => !matches && self.matched,
        };
        self.matched = matches;
        match &mut self.held {
            Some((_, held)) if grows => {
                *held = end;
                Ok(())
            }
            held => match held.replace((start, end)) {
                Some((start, end)) => (self.take)(start, end),
                None => Ok(()),
            },
        }
    }

    fn finish(mut self) -> Result<(), E> {
        match self.held.take() {
            Some((start, end)) => (self.take)(start, end),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(text: &str, behavior: Behavior, invert: bool) -> Vec<String> {
        let split = Split { pattern: Pattern::Character('-'), behavior, invert };
        let mut pieces = Vec::new();
        let take = |start, end| {
            pieces.push(text[start..end].to_owned());
            Ok::<_, ()>(())
        };
        split.run(text, take).unwrap();
        pieces
    }

    /// The examples in the crate's own documentation.
    #[test]
    fn behaviors_are_the_crates() {
        const TEXT: &str = "the-final--countdown";
        for (behavior, expected) in [
            (Behavior::Removed, &["the", "final", "countdown"][..]),
            (Behavior::Isolated, &["the", "-", "final", "-", "-", "countdown"]),
            (Behavior::MergedWithPrevious, &["the-", "final-", "-", "countdown"]),
            (Behavior::MergedWithNext, &["the", "-final", "-", "-countdown"]),
            (Behavior::Contiguous, &["the", "-", "final", "--", "countdown"]),
        ] {
            assert_eq!(pieces(TEXT, behavior, false), expected);
        }
        assert_eq!(pieces("--a-", Behavior::Removed, true), ["-", "-", "-"]);
        assert_eq!(pieces("--a-", Behavior::MergedWithNext, false), ["-", "-a", "-"]);
        assert_eq!(pieces("--a-", Behavior::MergedWithPrevious, false), ["-", "-", "a-"]);
    }
}
