//! Added tokens: found in the text before anything else looks at it, as the crate's `AddedVocabulary` does.

use aho_corasick::{AhoCorasick, AhoCorasickKind, Input, MatchKind};
use regex_syntax::hir::{Class, HirKind};
use tokenizers::{NormalizedString, Normalizer as _, Tokenizer};

use super::literal::Literal;

/// The added tokens that are looked for in the text as it comes, or in the normalized text.
pub struct Added {
    /// Complete when it is built, and without state between searches.
    automaton: Option<AhoCorasick>,
    tokens: Vec<Token>,
    words: Words,
}

struct Token {
    id: u32,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
}

/// A part of a text.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// An added token.
    Token(u32),
    /// Text from here to there.
    Text(usize, usize),
}

impl Added {
    /// Those whose `normalized` is as asked. They are looked for in their own normalized form.
    ///
    /// # Errors
    /// One of them has no normalized form; or there are too many.
    pub fn new(tokenizer: &Tokenizer, normalized: bool) -> Result<Self, &'static str> {
        let (mut texts, mut tokens) = (Vec::new(), Vec::new());
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            if token.normalized != normalized {
                continue;
            }
            let mut text = NormalizedString::from(token.content.as_str());
            if let Some(normalizer) = tokenizer.get_normalizer().filter(|_| normalized) {
                normalizer.normalize(&mut text).map_err(|_| "an added token that cannot be normalized")?;
            }
            if text.get().is_empty() {
                return Err("an added token without text");
            }
            texts.push(text.get().to_owned());
            let (single_word, lstrip, rstrip) = (token.single_word, token.lstrip, token.rstrip);
            tokens.push(Token { id, single_word, lstrip, rstrip });
        }
        let automaton = (!texts.is_empty()).then(|| {
            AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .kind(Some(AhoCorasickKind::ContiguousNFA))
                .build(&texts)
        });
        let automaton = automaton.transpose().map_err(|_| "too many added tokens")?;
        Ok(Self { automaton, tokens, words: Words::new()? })
    }

    /// Gives the parts of `text` one after another to `take`. A control token is passed over where a byte of it is
    /// literal.
    ///
    /// # Errors
    /// Those of `take`.
    pub fn split<E>(
        &self,
        text: &str,
        literal: Option<Literal<'_>>,
        mut take: impl FnMut(Part) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut done, mut from) = (0, 0);
        let find = |from: usize| self.automaton.as_ref()?.find(Input::new(text).range(from..));
        while let Some(found) = find(from) {
            let token = &self.tokens[found.pattern().as_usize()];
            let (mut start, mut end) = (found.start(), found.end());
            from = end;
            let control = literal.filter(|literal| literal.passes_over(token.id));
            if let Some(typed) = control.and_then(|literal| literal.touched(start, end)) {
                // behind what is literal the template may begin a token of its own
                from = typed.min(end);
                continue;
            }
            let (before, behind) = (&text[..start], &text[end..]);
            if token.single_word && (self.words.ends(before) || self.words.begins(behind)) {
                continue;
            }
            if token.lstrip {
                start = before.trim_end().len().max(done); // what an earlier token took is gone
            }
            if token.rstrip {
                end += behind.len() - behind.trim_start().len();
            }
            if done < start {
                take(Part::Text(done, start))?;
            }
            take(Part::Token(token.id))?;
            done = end;
        }
        if done != text.len() {
            take(Part::Text(done, text.len()))?;
        }
        Ok(())
    }
}

/// The characters of words: `\w`.
struct Words(Vec<(char, char)>);

impl Words {
    fn new() -> Result<Self, &'static str> {
        let word = regex_syntax::parse(r"\w").map_err(|_| "words")?;
        let HirKind::Class(Class::Unicode(class)) = word.kind() else { return Err("words") };
        Ok(Self(class.iter().map(|range| (range.start(), range.end())).collect()))
    }

    fn has(&self, character: char) -> bool {
        let behind = self.0.partition_point(|&(first, _)| first <= character);
        behind > 0 && character <= self.0[behind - 1].1
    }

    fn ends(&self, text: &str) -> bool {
        text.chars().next_back().is_some_and(|character| self.has(character))
    }

    fn begins(&self, text: &str) -> bool {
        text.chars().next().is_some_and(|character| self.has(character))
    }
}
