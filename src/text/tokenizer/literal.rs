//! Which parts of a text are literal: what a user typed, in which `<|im_end|>` is ten characters and never the token.
//!
//! The `tokenizers` crate has this for whole texts (`encode_special_tokens`; `split_special_tokens` of transformers). A
//! chat's prompt is only partly literal: its template writes control tokens around what users typed. So a text comes with
//! the ranges of its literal bytes, and a control token is found only where none of its bytes is literal.
//!
//! That is not enough where a model knows its control tokens as words of its vocabulary (Unigram does, and BPE that was
//! made of scores): it may make one out of the plain text. What it makes of literal text is looked at, and a piece that
//! gave a control token is cut inside of it and encoded again.

use std::collections::HashMap;

/// Tokens that literal text never becomes.
#[derive(Debug, Default)]
pub struct Controls {
    /// Special tokens and end tokens, with their content.
    special: HashMap<u32, String>,
    /// Other added tokens that the checkpoint's chat templates write, such as `<tool_call>`.
    markup: HashMap<u32, String>,
    /// The token that the model gives for what it does not know: no control token, where it comes from the model.
    unknown: Option<u32>,
}

impl Controls {
    /// For special tokens with their content.
    pub fn new(special: HashMap<u32, String>, unknown: Option<u32>) -> Self {
        Self { special, markup: HashMap::new(), unknown }
    }

    /// Takes an end token in, special or not.
    pub fn add_special(&mut self, id: u32, content: &str) {
        self.special.insert(id, content.to_owned());
    }

    /// Takes a token in that templates write.
    pub fn add_markup(&mut self, id: u32, content: &str) {
        self.markup.insert(id, content.to_owned());
    }

    /// The contents of all of them.
    pub fn contents(&self) -> impl Iterator<Item = &str> {
        self.special.values().chain(self.markup.values()).map(String::as_str)
    }
}

/// The literal ranges of a text, and what they must not become.
#[derive(Clone, Copy, Debug)]
pub struct Literal<'a> {
    /// Pairs of start and end in bytes, rising, apart, and at borders of characters.
    ranges: &'a [[u32; 2]],
    controls: &'a Controls,
    /// Whether the text is a chat's, written by a template.
    chat: bool,
}

impl<'a> Literal<'a> {
    /// `ranges` are pairs of start and end; `chat` tells that a template wrote the text.
    pub fn new(ranges: &'a [u32], controls: &'a Controls, chat: bool) -> Self {
        Self { ranges: ranges.as_chunks::<2>().0, controls, chat }
    }

    /// All of a text that is literal.
    pub fn all(self, whole: &'a [[u32; 2]]) -> Self {
        Self { ranges: whole, ..self }
    }

    /// Whether an added token is passed over in literal text.
    pub fn passes_over(&self, id: u32) -> bool {
        self.controls.special.contains_key(&id) || self.chat && self.controls.markup.contains_key(&id)
    }

    /// The content of a token that the model must not make of literal text; none for any other.
    pub fn content(&self, id: u32) -> Option<&'a str> {
        let Controls { special, markup, unknown } = self.controls;
        let known = special.get(&id).or_else(|| markup.get(&id).filter(|_| self.chat));
        known.filter(|_| *unknown != Some(id)).map(String::as_str)
    }

    /// How many control tokens are among `ids`.
    pub fn count(&self, ids: &[u32]) -> usize {
        ids.iter().filter(|&&id| self.content(id).is_some()).count()
    }

    /// The end of the first literal range that shares a byte with `start..end`.
    pub fn touched(&self, start: usize, end: usize) -> Option<usize> {
        let behind = self.ranges.partition_point(|&[_, to]| to as usize <= start);
        let &[from, to] = self.ranges.get(behind)?;
        ((from as usize) < end).then_some(to as usize)
    }

    /// Literal and other parts of `start..end` in turn: their starts, ends, and whether they are literal.
    pub fn runs(self, start: usize, end: usize) -> impl Iterator<Item = (usize, usize, bool)> + 'a {
        let first = self.ranges.partition_point(|&[_, to]| to as usize <= start);
        let mut ranges =
            self.ranges[first..].iter().map(|&[from, to]| (from as usize, to as usize)).peekable();
        let mut at = start;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let from = at;
            let literal = ranges.next_if(|&(begin, _)| begin <= from);
            at = match literal {
                Some((_, to)) => to,
                None => ranges.peek().map_or(end, |&(begin, _)| begin),
            };
            at = at.min(end);
            Some((from, at, literal.is_some()))
        })
    }
}

/// The parts of a piece in which `content` does not stand: cut behind the first character of each occurrence.
pub fn parts<'a>(piece: &'a str, content: &'a str) -> impl Iterator<Item = &'a str> {
    let first = content.chars().next().map_or(0, char::len_utf8);
    let cuts = piece.match_indices(content).map(move |(at, _)| at + first);
    let mut done = 0;
    cuts.chain([piece.len()]).map(move |cut| &piece[std::mem::replace(&mut done, cut)..cut])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_a_part_of_the_text() {
        let controls = Controls::default();
        let literal = Literal::new(&[2, 5, 7, 9], &controls, false);
        let runs = |start, end| literal.runs(start, end).collect::<Vec<_>>();
        assert_eq!(runs(0, 10), [(0, 2, false), (2, 5, true), (5, 7, false), (7, 9, true), (9, 10, false)]);
        assert_eq!(runs(3, 8), [(3, 5, true), (5, 7, false), (7, 8, true)]);
        assert_eq!(runs(5, 7), [(5, 7, false)]);
        assert!(runs(4, 4).is_empty());
    }

    #[test]
    fn a_range_touches_what_shares_a_byte_with_it() {
        let controls = Controls::default();
        let literal = Literal::new(&[2, 5], &controls, false);
        assert_eq!(literal.touched(0, 2), None);
        assert_eq!(literal.touched(0, 3), Some(5));
        assert_eq!(literal.touched(4, 9), Some(5));
        assert_eq!(literal.touched(5, 9), None);
    }

    #[test]
    fn a_piece_is_cut_inside_of_every_occurrence() {
        let cut = |piece, content| parts(piece, content).collect::<Vec<_>>();
        assert_eq!(cut("a</s>b</s>", "</s>"), ["a<", "/s>b<", "/s>"]);
        assert_eq!(cut("ab", "</s>"), ["ab"]);
    }
}
