//! What BPE begins with where the text is spelled in characters: one symbol for each, and what stands for unknown ones.

use std::collections::HashMap;

use tokenizers::models::bpe::BPE;

use super::bpe::Unencodable;
use super::tables::{NONE, Numbers};
use crate::memory::Secret;

/// Characters as symbols.
pub struct Characters {
    /// The ids of ASCII, where nothing goes before or behind a character.
    ascii: [u32; 0x80],
    /// The id of a character: alone, behind others, last, and both.
    ids: [Numbers; 4],
    affixes: [String; 2],
    unknown: Unknown,
    /// What becomes of a character without a token depends on nothing around it.
    pub simple: bool,
}

struct Unknown {
    bytes: Option<Box<[u32; 256]>>,
    /// An id, or none where the token is missing.
    token: Option<Option<u32>>,
    fuse: bool,
}

impl Characters {
    /// Reads what the model says of characters; `affixes` go before those behind the first, and behind the last.
    pub fn new(model: &BPE, vocab: &HashMap<String, u32>, affixes: [String; 2]) -> Self {
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
        let bytes: Option<Box<[u32; 256]>> = match model.byte_fallback {
            true => Some(Box::new(std::array::from_fn(|byte| {
                vocab.get(&format!("<0x{byte:02X}>")).copied().unwrap_or(NONE)
            }))),
            false => None,
        };
        let token = model.unk_token.as_ref().map(|token| vocab.get(token).copied());
        // a byte below 0x80 is a character, which may have a token of its own
        let has = |(byte, &id): (usize, &u32)| id != NONE || byte < 0x80 && ids[0].get(byte as u64).is_some();
        let simple = affixes.iter().all(String::is_empty)
            && bytes.as_ref().is_some_and(|bytes| bytes.iter().enumerate().all(has));
        let ascii = |code| if simple { ids[0].get(code as u64).map_or(NONE, |(id, _)| id) } else { NONE };
        let unknown = Unknown { bytes, token, fuse: model.fuse_unk };
        Self { ascii: std::array::from_fn(ascii), ids, affixes, unknown, simple }
    }

    /// The id of a character, at the start of a piece or not, and at its end or not.
    #[inline]
    pub fn id(&self, character: char, first: bool, last: bool) -> Option<u32> {
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
    ///
    /// # Errors
    /// A character needs the unknown token, which is missing.
    pub fn symbols(&self, piece: &str, symbols: &mut Secret<[u32]>) -> Result<(), Unencodable> {
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
