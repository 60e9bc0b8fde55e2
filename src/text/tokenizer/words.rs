//! WordPiece, which takes the longest token that a word begins with, and then the longest that goes on; and WordLevel, for
//! which a word is a token.

use tokenizers::Model as _;
use tokenizers::models::{wordlevel, wordpiece};

use super::bpe::Unencodable;
use super::tables::{Strings, Trie};
use crate::memory::Secret;

/// The model of BERT.
pub struct WordPiece {
    /// What words begin with, and what they go on with: tokens with the prefix, without it.
    tries: [Trie; 2],
    unknown: Option<u32>,
    max_characters: usize,
}

impl WordPiece {
    /// Reads the model.
    pub fn new(model: &wordpiece::WordPiece) -> Self {
        let vocab = model.get_vocab();
        let prefix = &model.continuing_subword_prefix;
        let trie = |prefix: &str| {
            let texts =
                vocab.iter().filter_map(|(text, &id)| Some((text.strip_prefix(prefix)?.as_bytes(), id)));
            Trie::new(texts.filter(|(text, _)| !text.is_empty()))
        };
        Self {
            tries: [trie(""), trie(prefix)],
            unknown: vocab.get(&model.unk_token).copied(),
            max_characters: model.max_input_chars_per_word,
        }
    }

    /// Appends the ids of a word, which is not empty.
    ///
    /// # Errors
    /// It has none, and there is no token for such.
    pub fn encode(&self, word: &str, ids: &mut Secret<[u32]>) -> Result<(), Unencodable> {
        let before = ids.expose().len();
        let mut done = match word.chars().count() > self.max_characters {
            true => None,
            false => Some(0),
        };
        while let Some(at) = done.filter(|&at| at < word.len()) {
            let trie = &self.tries[usize::from(at > 0)];
            let longest = trie.prefixes(&word.as_bytes()[at..]).last();
            done = longest.map(|(len, id)| {
                ids.push(id);
                at + len
            });
        }
        if done.is_none() {
            ids.truncate(before);
            ids.push(self.unknown.ok_or(Unencodable)?);
        }
        Ok(())
    }
}

/// A table of words.
pub struct WordLevel {
    words: Strings,
    unknown: Option<u32>,
}

impl WordLevel {
    /// Reads the model.
    ///
    /// # Errors
    /// It is too large.
    pub fn new(model: &wordlevel::WordLevel) -> Result<Self, &'static str> {
        let vocab = model.get_vocab();
        let words: Vec<(&[u8], u32)> = vocab.iter().map(|(word, &id)| (word.as_bytes(), id)).collect();
        Ok(Self { words: Strings::new(&words)?, unknown: vocab.get(&model.unk_token).copied() })
    }

    /// Appends the id of a word, which is not empty.
    ///
    /// # Errors
    /// It has none, and there is no token for such.
    pub fn encode(&self, word: &str, ids: &mut Secret<[u32]>) -> Result<(), Unencodable> {
        ids.push(self.words.get(word.as_bytes()).or(self.unknown).ok_or(Unencodable)?);
        Ok(())
    }
}
