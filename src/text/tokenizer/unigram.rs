//! Unigram: of all ways to cut a piece into tokens the one with the highest sum of scores.

use tokenizers::Model as _;
use tokenizers::models::unigram::Unigram as Crates;

use super::bpe::Unencodable;
use super::scratch::ModelScratch;
use super::tables::{NONE, Strings, Trie};
use crate::memory::Secret;

/// What an unknown character costs more than the worst token.
const UNKNOWN_PENALTY: f64 = 10.0;

/// The model.
pub struct Unigram {
    tokens: Strings,
    trie: Trie,
    scores: Vec<f64>,
    unknown_score: f64,
    unknown: Option<u32>,
    /// The tokens of bytes, where unknown characters are written with them.
    bytes: Option<Box<[u32; 256]>>,
}

impl Unigram {
    /// Reads the model; `unknown` is its `unk_id`, which the crate does not tell.
    ///
    /// # Errors
    /// It draws at random, or is malformed; says which.
    pub fn new(model: &Crates, unknown: Option<u32>) -> Result<Self, String> {
        if model.alpha.is_some() || model.nbest_size.is_some() {
            return Err("Unigram that draws at random".into());
        }
        let vocab: Vec<&(String, f64)> = model.iter().collect();
        let texts: Vec<(&[u8], u32)> = vocab.iter().map(|(text, _)| text.as_bytes()).zip(0..).collect();
        let id = |byte| model.token_to_id(&format!("<0x{byte:02X}>")).unwrap_or(NONE);
        Ok(Self {
            tokens: Strings::new(&texts)?,
            trie: Trie::new(texts.iter().copied().filter(|(text, _)| !text.is_empty())),
            scores: vocab.iter().map(|(_, score)| *score).collect(),
            unknown_score: model.min_score - UNKNOWN_PENALTY,
            unknown,
            bytes: model.byte_fallback().then(|| Box::new(std::array::from_fn(id))),
        })
    }

    /// Appends the ids of a piece, which is not empty.
    ///
    /// # Errors
    /// A character has no token, and there is no token for such.
    pub fn encode(
        &self,
        piece: &str,
        scratch: &mut ModelScratch,
        ids: &mut Secret<[u32]>,
    ) -> Result<(), Unencodable> {
        let len = piece.len();
        let scores = scratch.scores.refill((0..len + 1).map(|_| 0.0));
        let links = scratch.links.refill((0..2 * (len + 1)).map(|_| NONE));
        let (starts, tokens) = links.split_at_mut(len + 1);
        for (start, character) in piece.char_indices() {
            let mut reach = |end: usize, score: f64, token: u32| {
                let score = score + scores[start];
                let better = starts[end] == NONE || score > scores[end];
                if better {
                    (scores[end], starts[end], tokens[end]) = (score, start as u32, token);
                }
                better
            };
            let mut alone = false;
            for (long, token) in self.trie.prefixes(&piece.as_bytes()[start..]) {
                reach(start + long, self.scores[token as usize], token);
                alone |= long == character.len_utf8();
            }
            let end = start + character.len_utf8();
            if !alone && reach(end, self.unknown_score, self.unknown.unwrap_or(NONE)) {
                self.unknown.ok_or(Unencodable)?;
            }
        }
        // back from the end; unknown tokens behind one another are one
        scratch.symbols.truncate(0);
        let mut end = len;
        while end > 0 {
            let is_unknown = |end: usize| self.unknown == Some(tokens[end]);
            let mut start = starts[end] as usize;
            while is_unknown(end) && start > 0 && is_unknown(start) {
                start = starts[start] as usize;
            }
            scratch.symbols.extend(&[start as u32, end as u32]);
            end = start;
        }
        let spans = scratch.symbols.expose().as_chunks::<2>().0;
        spans
            .iter()
            .rev()
            .try_for_each(|&[start, end]| self.put(&piece.as_bytes()[start as usize..end as usize], ids))
    }

    fn put(&self, part: &[u8], ids: &mut Secret<[u32]>) -> Result<(), Unencodable> {
        if let Some(id) = self.tokens.get(part) {
            ids.push(id);
        } else if let Some(table) = &self.bytes
            && part.iter().all(|&byte| table[usize::from(byte)] != NONE)
        {
            part.iter().for_each(|&byte| ids.push(table[usize::from(byte)]));
        } else {
            ids.push(self.unknown.ok_or(Unencodable)?);
        }
        Ok(())
    }
}
