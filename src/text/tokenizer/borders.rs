//! Borders that no merge reaches over, so that what is on both sides can be merged by itself.
//!
//! Every token that a merge makes is two tokens side by side. So the characters (or bytes) that can come to be inside one
//! token at all are those at which some merge joins: between any others a piece can be cut.

use std::collections::HashMap;

use super::bpe::{Symbols, Unencodable};
use super::normalizers::byte_character;
use super::tables::{Numbers, pair};

/// Pieces of more bytes than this are cut at borders.
const LONG: usize = 24;

/// Where a text may be cut before merging.
pub enum Borders {
    /// Nowhere.
    None,
    /// Not between these bytes.
    Bytes(Box<[[bool; 256]; 256]>),
    /// Not between these characters.
    Characters(Box<Joined>),
}

/// The pairs of characters that a merged token has side by side.
pub struct Joined {
    /// Those of ASCII, by both.
    ascii: [[bool; 0x80]; 0x80],
    all: Numbers,
}

impl Borders {
    /// From the merges: what stands on both sides of where they join.
    pub fn new(symbols: &Symbols, pairs: &[(String, String)]) -> Self {
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
    ///
    /// # Errors
    /// Those of `take`.
    #[inline]
    pub fn parts(
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

impl Joined {
    #[inline]
    fn has(&self, left: char, right: char) -> bool {
        match left.is_ascii() && right.is_ascii() {
            true => self.ascii[left as usize][right as usize],
            false => self.all.get(pair(left.into(), right.into())).is_some(),
        }
    }
}

/// The bytes of GPT-2's alphabet.
pub fn alphabet() -> HashMap<char, u8> {
    (0..=255).map(|byte| (byte_character(byte), byte)).collect()
}
