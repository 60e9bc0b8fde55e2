//! Byte pair encoding: the pair of neighbours with the lowest rank is merged, until no pair has one.
//!
//! Three things make it fast, and none changes an id:
//! - a piece that the merges make into one token is looked up whole. Which tokens are so is found out at loading, by
//!   encoding each;
//! - no merge reaches over a border that no merged token has inside: a long piece is cut there first;
//! - few symbols are searched through for the lowest rank, many are in a queue ([`super::merges`]).

use std::collections::HashMap;

use tokenizers::Model as _;
use tokenizers::models::bpe::BPE;

use super::merges::{self, Merges};
use super::normalizers::byte_character;
use super::scratch::ModelScratch;
use super::tables::{NONE, Numbers, Strings, pair};
use crate::memory::Secret;

/// Pieces of more bytes than this are cut at borders.
const LONG: usize = 24;

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
enum Symbols {
    /// Each byte of the text is a symbol: the vocabulary was spelled back from GPT-2's alphabet.
    Bytes(Box<[u32; 256]>),
    Characters(Box<Characters>),
}

struct Characters {
    /// The ids of ASCII, where nothing goes before or behind a character.
    ascii: [u32; 0x80],
    /// The id of a character: alone, behind others, last, and both.
    ids: [Numbers; 4],
    affixes: [String; 2],
    unknown: Unknown,
    /// What becomes of a character without a token depends on nothing around it.
    simple: bool,
}

struct Unknown {
    bytes: Option<Box<[u32; 256]>>,
    /// An id, or none where the token is missing.
    token: Option<Option<u32>>,
    fuse: bool,
}

/// Where a text may be cut before merging.
enum Borders {
    /// Nowhere.
    None,
    /// Not between these bytes.
    Bytes(Box<[[bool; 256]; 256]>),
    /// Not between these characters.
    Characters(Box<Joined>),
}

/// The pairs of characters that a merged token has side by side.
struct Joined {
    /// Those of ASCII, by both.
    ascii: [[bool; 0x80]; 0x80],
    all: Numbers,
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

impl Characters {
    fn new(model: &BPE, vocab: &HashMap<String, u32>, affixes: [String; 2]) -> Self {
        let [prefix, suffix] = &affixes;
        // which tokens are one character between `before` and `behind`
        let ids = [("", ""), (prefix, ""), ("", suffix), (prefix, suffix)].map(|(before, behind)| {
            let inside = |text: &str| {
                let mut inside = text.strip_prefix(before)?.strip_suffix(behind)?.chars();
                inside.next().filter(|_| inside.next().is_none())
            };
            let found =
                vocab.iter().filter_map(|(text, &id)| Some((u64::from(u32::from(inside(text)?)), id, 0)));
            Numbers::new(found.collect())
        });
        let bytes = match model.byte_fallback {
            true => Some(Box::new(std::array::from_fn(|byte| {
                vocab.get(&format!("<0x{byte:02X}>")).copied().unwrap_or(NONE)
            }))),
            false => None,
        };
        let token = model.unk_token.as_ref().map(|token| vocab.get(token).copied());
        // a byte below 0x80 is a character, which may have a token of its own
        let has = |(byte, &id): (usize, &u32)| id != NONE || byte < 0x80 && ids[0].get(byte as u64).is_some();
        let simple = affixes.iter().all(String::is_empty)
            && bytes.as_ref().is_some_and(|bytes: &Box<[u32; 256]>| bytes.iter().enumerate().all(has));
        let ascii = |code| if simple { ids[0].get(code as u64).map_or(NONE, |(id, _)| id) } else { NONE };
        let unknown = Unknown { bytes, token, fuse: model.fuse_unk };
        Self { ascii: std::array::from_fn(ascii), ids, affixes, unknown, simple }
    }

    /// The id of a character, at the start of a piece or not, and at its end or not.
    #[inline]
    fn id(&self, character: char, first: bool, last: bool) -> Option<u32> {
        if let Some(&id) = self.ascii.get(character as usize)
            && id != NONE
        {
            return Some(id);
        }
        let key = u64::from(u32::from(character));
        self.ids[usize::from(!first) + 2 * usize::from(last)].get(key).map(|(id, _)| id)
    }

    /// The symbols that a piece consists of. Unknown characters are their bytes' tokens, or the unknown token, which
    /// stands behind those bytes' tokens that follow it, as in the crate.
    fn symbols(&self, piece: &str, symbols: &mut Secret<[u32]>) -> Result<(), Unencodable> {
        symbols.truncate(0);
        let mut unknown = None;
        let mut characters = piece.chars().peekable();
        let mut first = true;
        while let Some(character) = characters.next() {
            let last = characters.peek().is_none();
            let id = self.id(character, first, last);
            let affixes = [!first, last];
            first = false;
            if let Some(id) = id {
                symbols.extend(unknown.take().as_slice());
                symbols.push(id);
            } else if !self.fall_back(character, affixes, symbols)
                && let Some(token) = self.unknown.token
            {
                match unknown {
                    Some(_) if self.unknown.fuse => {}
                    _ => {
                        symbols.extend(unknown.as_slice());
                        unknown = Some(token.ok_or(Unencodable)?);
                    }
                }
            }
        }
        symbols.extend(unknown.as_slice());
        Ok(())
    }

    /// The tokens of a character's bytes, and of those of what goes around it; false if one is missing.
    fn fall_back(
        &self,
        character: char,
        [prefixed, suffixed]: [bool; 2],
        symbols: &mut Secret<[u32]>,
    ) -> bool {
        let Some(table) = &self.unknown.bytes else { return false };
        let mut bytes = [0; 4];
        let [prefix, suffix] = &self.affixes;
        let before = if prefixed { prefix.as_bytes() } else { &[] };
        let behind = if suffixed { suffix.as_bytes() } else { &[] };
        let bytes = [before, character.encode_utf8(&mut bytes).as_bytes(), behind];
        let ids = || bytes.iter().copied().flatten().map(|&byte| table[usize::from(byte)]);
        let all = ids().all(|id| id != NONE);
        if all {
            ids().for_each(|id| symbols.push(id));
        }
        all
    }
}

impl Borders {
    /// From the merges: what stands on both sides of where they join.
    fn new(symbols: &Symbols, pairs: &[(String, String)]) -> Self {
        let ends =
            pairs.iter().filter_map(|(left, right)| Some((left.chars().next_back()?, right.chars().next()?)));
        match symbols {
            Symbols::Bytes(_) => {
                let mut joined = Box::new([[false; 256]; 256]);
                let alphabet = alphabet();
                for (left, right) in ends {
                    if let (Some(&left), Some(&right)) = (alphabet.get(&left), alphabet.get(&right)) {
                        joined[usize::from(left)][usize::from(right)] = true;
                    }
                }
                Self::Bytes(joined)
            }
            Symbols::Characters(characters) if characters.simple => {
                let mut keys: Vec<u64> = ends.map(|(left, right)| pair(left.into(), right.into())).collect();
                keys.sort_unstable();
                keys.dedup();
                let all = Numbers::new(keys.into_iter().map(|key| (key, 0, 0)).collect());
                let joined = |left, right| all.get(pair(left as u32, right as u32)).is_some();
                let ascii = std::array::from_fn(|left| std::array::from_fn(|right| joined(left, right)));
                Self::Characters(Box::new(Joined { ascii, all }))
            }
            Symbols::Characters(_) => Self::None,
        }
    }

    /// Gives the parts of a piece between borders to `take`; all of a short one.
    #[inline]
    fn parts(
        &self,
        piece: &str,
        symbols: &Symbols,
        mut take: impl FnMut(&[u8]) -> Result<(), Unencodable>,
    ) -> Result<(), Unencodable> {
        let bytes = piece.as_bytes();
        if bytes.len() <= LONG {
            return take(bytes);
        }
        let mut done = 0;
        match (self, symbols) {
            (Self::Bytes(joined), _) => {
                for (at, pair) in bytes.windows(2).enumerate() {
                    if !joined[usize::from(pair[0])][usize::from(pair[1])] {
                        take(&bytes[done..=at])?;
                        done = at + 1;
                    }
                }
            }
            (Self::Characters(joined), Symbols::Characters(characters)) => {
                // the right end of what is on the left; an unknown character is tokens like <0x0A>
                let mut left = None;
                for (at, character) in piece.char_indices() {
                    let known = characters.id(character, true, false).is_some();
                    let (begins, ends) = if known { (character, character) } else { ('<', '>') };
                    if left.is_some_and(|left| !joined.has(left, begins)) {
                        take(&bytes[done..at])?;
                        done = at;
                    }
                    left = Some(ends);
                }
            }
            _ => {}
        }
        take(&bytes[done..])
    }
}

/// The bytes of GPT-2's alphabet.
fn alphabet() -> HashMap<char, u8> {
    (0..=255).map(|byte| (byte_character(byte), byte)).collect()
}

impl Joined {
    #[inline]
    fn has(&self, left: char, right: char) -> bool {
        match left.is_ascii() && right.is_ascii() {
            true => self.ascii[left as usize][right as usize],
            false => self.all.get(pair(left.into(), right.into())).is_some(),
        }
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
