//! Byte pair encoding: the pair of neighbours with the lowest rank is merged, until no pair has one.
//!
//! Three things make it fast, and none changes an id:
//! - a piece that the merges make into one token is looked up whole. Which tokens are so is found out at loading, by
//!   encoding each;
//! - a long piece is cut first where no merge reaches over ([`super::borders`]);
//! - few symbols are searched through for the lowest rank, many are in a queue ([`super::merges`]).

use tokenizers::Model as _;
use tokenizers::models::bpe::BPE;

use super::borders::{Borders, alphabet};
use super::characters::Characters;
use super::merges::{self, Merges};
use super::normalizers::byte_character;
use super::scratch::ModelScratch;
use super::tables::{NONE, Strings};
use crate::memory::Secret;

/// The model.
pub struct Bpe {
    /// All tokens.
    tokens: Strings,
    /// For each id, whether the merges make its text into it alone.
    whole: Vec<bool>,
    /// Any token that is a whole piece stands for it, without merges.
    ignore_merges: bool,
    merges: Merges,
    symbols: Symbols,
    borders: Borders,
}

/// What a piece is before any merge.
pub enum Symbols {
    /// Each byte of the text is a symbol: the vocabulary was spelled back from GPT-2's alphabet.
    Bytes(Box<[u32; 256]>),
    Characters(Box<Characters>),
}

impl Bpe {
    /// Reads the model; `spelled` tells that pieces come as bytes, of which the tokens are spelled in GPT-2's alphabet.
    ///
    /// # Errors
    /// It has dropout, or is malformed; says which.
    pub fn new(model: &BPE, pairs: Vec<(String, String)>, spelled: bool) -> Result<Self, String> {
        if model.dropout.is_some_and(|dropout| dropout > 0.0) {
            return Err("BPE with dropout".into());
        }
        let vocab = model.get_vocab();
        let prefix = model.continuing_subword_prefix.clone().unwrap_or_default();
        let suffix = model.end_of_word_suffix.clone().unwrap_or_default();
        let list = merges::read(&vocab, &pairs, prefix.len())?;
        let merges = Merges::new(&list, !prefix.is_empty());

        let texts: Vec<(Vec<u8>, u32)> = match spelled {
            true => {
                let alphabet = alphabet();
                let spell = |text: &str| {
                    text.chars().map(|character| alphabet.get(&character).copied()).collect::<Option<_>>()
                };
                vocab.iter().filter_map(|(text, &id)| Some((spell(text)?, id))).collect()
            }
            false => vocab.iter().map(|(text, &id)| (text.clone().into_bytes(), id)).collect(),
        };
        let tokens =
            Strings::new(&texts.iter().map(|(text, id)| (text.as_slice(), *id)).collect::<Vec<_>>())?;
        let symbols = match spelled {
            true => Symbols::Bytes(all_bytes(|byte| tokens.get(&[byte])).ok_or("BPE without all bytes")?),
            false => Symbols::Characters(Box::new(Characters::new(model, &vocab, [prefix, suffix]))),
        };
        let borders = Borders::new(&symbols, &pairs);
        let ids = vocab.values().copied().max().map_or(0, |last| last as usize + 1);
        let mut this = Self {
            tokens,
            whole: vec![false; ids],
            ignore_merges: model.ignore_merges,
            merges,
            symbols,
            borders,
        };
        this.find_whole();
        Ok(this)
    }

    /// Whether pieces may come as bytes: every byte is a token, and nothing is put before or behind characters.
    pub fn can_take_bytes(model: &BPE) -> bool {
        let plain = |affix: &Option<String>| affix.as_ref().is_none_or(String::is_empty);
        plain(&model.continuing_subword_prefix)
            && plain(&model.end_of_word_suffix)
            && (0..=255)
                .all(|byte| model.token_to_id(byte_character(byte).encode_utf8(&mut [0; 4])).is_some())
    }

    /// Encodes every token's text, by merges alone.
    fn find_whole(&mut self) {
        let mut scratch = ModelScratch::default();
        let mut whole = vec![false; self.whole.len()];
        for (text, id) in self.tokens.iter() {
            let made = match &self.symbols {
                Symbols::Bytes(table) => {
                    scratch.symbols.refill(text.iter().map(|&byte| table[usize::from(byte)]));
                    Ok(())
                }
                Symbols::Characters(characters) => {
                    let text = str::from_utf8(text).expect("the vocabulary is text");
                    characters.symbols(text, &mut scratch.symbols)
                }
            };
            whole[id as usize] = made.is_ok() && scratch.merged(&self.merges) == [id];
        }
        self.whole = whole;
    }

    /// Appends the ids of a piece, which is not empty.
    ///
    /// # Errors
    /// A character has no token, and there is no token for such.
    #[inline]
    pub fn encode(
        &self,
        piece: &str,
        scratch: &mut ModelScratch,
        ids: &mut Secret<[u32]>,
    ) -> Result<(), Unencodable> {
        if let Some(id) = self.tokens.get(piece.as_bytes())
            && (self.ignore_merges || self.whole[id as usize])
        {
            ids.push(id);
            return Ok(());
        }
        self.borders.parts(piece, &self.symbols, |part| {
            if part.len() < piece.len()
                && let Some(id) = self.tokens.get(part).filter(|&id| self.whole[id as usize])
            {
                ids.push(id);
                return Ok(());
            }
            match &self.symbols {
                Symbols::Bytes(table) => {
                    scratch.symbols.refill(part.iter().map(|&byte| table[usize::from(byte)]));
                }
                Symbols::Characters(characters) => {
                    let part = str::from_utf8(part).map_err(|_| Unencodable)?;
                    characters.symbols(part, &mut scratch.symbols)?;
                }
            }
            ids.extend(scratch.merged(&self.merges));
            Ok(())
        })
    }
}

/// For each byte its id; none if one has none.
fn all_bytes(id: impl Fn(u8) -> Option<u32>) -> Option<Box<[u32; 256]>> {
    let mut ids = Box::new([NONE; 256]);
    for (byte, place) in (0..=255).zip(ids.iter_mut()) {
        *place = id(byte)?;
    }
    Some(ids)
}

/// A text that the model has no tokens for.
#[derive(Debug, PartialEq, Eq)]
pub struct Unencodable;
