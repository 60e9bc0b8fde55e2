//! The checkpoint's vocabulary as llguidance wants it: a trie of token bytes.
//!
//! Special tokens and end tokens stand in it with the byte 0xff before their name, which no text has: text never
//! spells them, and a Lark grammar can ask for them by name. Holds nothing of a request.

use llguidance::toktrie::{INVALID_TOKEN, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use super::calls::Mark;
use crate::text::detokenizer::Pieces;

/// Longer tokens are never allowed: the trie's builder recurses once per byte. Those of today's vocabularies end at
/// some 130 bytes, runs of spaces mostly.
const MAX_TOKEN_BYTES: usize = 512;

/// The trie, and what may be drawn from it.
pub struct Vocabulary {
    trie: TokTrie,
    /// Bit id % 32 of word id / 32: the token has bytes. Not those that pad the model's vocabulary.
    drawable: Vec<u32>,
    /// Special tokens that end nothing.
    specials: Vec<TokenId>,
    /// All end tokens, as bits.
    ends: Vec<u32>,
    end_tokens: Vec<TokenId>,
}

impl Vocabulary {
    /// For the `vocab` tokens of a model; takes some 0.1 s for 150,000.
    ///
    /// # Panics
    /// With more than 4 million nodes; the caller catches it.
    pub fn new(pieces: &Pieces, vocab: usize, end_tokens: &[TokenId]) -> Self {
        let end_tokens: Vec<TokenId> =
            end_tokens.iter().copied().filter(|&id| (id as usize) < vocab).collect();
        let words: Vec<Vec<u8>> =
            (0..vocab as TokenId).map(|id| word(pieces, id, end_tokens.contains(&id))).collect();
        let eos = end_tokens.first().copied().unwrap_or(INVALID_TOKEN);
        let mut trie = TokTrie::from(&TokRxInfo::new(vocab as u32, eos), &words);
        if end_tokens.len() > 1 {
            trie = trie.with_eos_tokens(&end_tokens);
        }
        let drawable = bits(vocab, (0..vocab as TokenId).filter(|&id| !words[id as usize].is_empty()));
        let is_special = |id: &TokenId| words[*id as usize].first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER);
        let specials =
            (0..vocab as TokenId).filter(|id| is_special(id) && !end_tokens.contains(id)).collect();
        let ends = bits(vocab, end_tokens.iter().copied());
        Self { trie, drawable, specials, ends, end_tokens }
    }

    /// How many words a mask has.
    pub fn mask_words(&self) -> usize {
        self.drawable.len()
    }

    /// Whether the token ends a reply.
    pub fn is_end(&self, id: TokenId) -> bool {
        self.end_tokens.contains(&id)
    }

    /// Whether the token has bytes, or is special.
    pub fn is_drawable(&self, id: TokenId) -> bool {
        self.drawable.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// What a mark of calls is: a text, or the name of a special token or of one that ends replies.
    pub fn mark(&self, text: &str) -> Mark {
        match self.trie.get_special_token(text) {
            Some(id) if self.is_end(id) => Mark::End,
            Some(id) if self.specials.contains(&id) => Mark::Special(id),
            _ => Mark::Text,
        }
    }

    /// The special tokens, but for those that end a reply.
    pub fn specials(&self) -> &[TokenId] {
        &self.specials
    }

    /// The mask in which only end tokens are allowed, if any.
    pub fn only_ends(&self) -> &[u32] {
        &self.ends
    }

    /// llguidance's mask, without padding; with all end tokens or with none.
    pub fn mask<'a>(&'a self, raw: &'a [u32], ends: bool) -> impl ExactSizeIterator<Item = u32> + 'a {
        (0..self.mask_words()).map(move |i| {
            let text = raw[i] & self.drawable[i] & !self.ends[i];
            if ends { text | self.ends[i] } else { text }
        })
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// Longest match. Nothing is forced through it ([`Self::tokenize_is_canonical`]): the model spells as it likes.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.greedy_tokenize(bytes)
    }

    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

/// What stands in the trie for a token; empty for one that is never allowed.
fn word(pieces: &Pieces, id: TokenId, end: bool) -> Vec<u8> {
    let bytes = pieces.bytes(id);
    if bytes.is_empty() || bytes.len() > MAX_TOKEN_BYTES {
        return Vec::new();
    }
    if end || pieces.is_special(id) {
        return [&[TokTrie::SPECIAL_TOKEN_MARKER], pieces.name(id)].concat();
    }
    // No UTF-8 text has this byte, and the trie would take it for a special token.
    if bytes[0] == TokTrie::SPECIAL_TOKEN_MARKER { Vec::new() } else { bytes.to_vec() }
}

fn bits(vocab: usize, ids: impl Iterator<Item = TokenId>) -> Vec<u32> {
    let mut words = vec![0; vocab.div_ceil(32)];
    ids.for_each(|id| words[id as usize / 32] |= 1 << (id % 32));
    words
}
