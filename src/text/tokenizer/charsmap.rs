//! SentencePiece's `precompiled_charsmap`: a double array over bytes that leads to replacements.
//!
//! Read as the `spm_precompiled` crate does, whose own lookup makes a vector of what it finds for each character.

use unicode_segmentation::UnicodeSegmentation;

use super::rewritten::Rewritten;

/// The map.
pub struct Charsmap {
    units: Vec<u32>,
    /// Replacements, each ended by a zero.
    texts: String,
}

impl Charsmap {
    /// Reads it as it is in a file: base64 of the size of the array in bytes, the array, the texts.
    ///
    /// # Errors
    /// It is malformed, or leads outside itself.
    pub fn new(base64: &str) -> Result<Self, String> {
        let malformed = || String::from("a malformed precompiled_charsmap");
        let bytes = decode(base64).ok_or_else(malformed)?;
        let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(malformed)?;
        let size = u32::from_le_bytes(*size) as usize / 4 * 4;
        let (array, texts) = rest.split_at_checked(size).ok_or_else(malformed)?;
        let units: Vec<u32> = array.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        let texts = String::from_utf8(texts.to_vec()).map_err(|_| malformed())?;
        if units.is_empty() {
            return Err(malformed());
        }
        Ok(Self { units, texts })
    }

    /// Writes the mapped text: whole graphemes of up to five bytes where the map has them, else their characters.
    pub fn write(&self, text: &str, to: &mut Rewritten) {
        let mut last = Held { last: None, to };
        for grapheme in text.graphemes(true) {
            if grapheme.len() < 6
                && let Some(mapped) = self.find(grapheme)
            {
                last.replace(grapheme, mapped);
                continue;
            }
            for (at, character) in grapheme.char_indices() {
                let part = &grapheme[at..at + character.len_utf8()];
                match self.find(part) {
                    Some(mapped) => last.replace(part, mapped),
                    None => last.put(character, 0),
                }
            }
        }
        last.flush();
    }

    /// The replacement of the shortest beginning of `part` that has one.
    fn find(&self, part: &str) -> Option<&str> {
        let unit = |at: usize| self.units.get(at).copied();
        let offset = |unit: u32| ((unit >> 10) << ((unit & 1 << 9) >> 6)) as usize;
        let mut at = offset(unit(0)?);
        for byte in part.bytes().take_while(|&byte| byte != 0) {
            at ^= usize::from(byte);
            let here = unit(at)?;
            if here & (1 << 31 | 0xff) != u32::from(byte) {
                return None;
            }
            at ^= offset(here);
            if here >> 8 & 1 == 1 {
                let text = self.texts.get((unit(at)? & !(1 << 31)) as usize..)?;
                return Some(text.split('\0').next().unwrap_or_default());
            }
        }
        None
    }
}

/// The last character is held back: a shorter replacement behind it counts what is gone on it.
struct Held<'a, 'b> {
    last: Option<(char, isize)>,
    to: &'a mut Rewritten<'b>,
}

impl Held<'_, '_> {
    fn put(&mut self, character: char, change: isize) {
        self.flush();
        self.last = Some((character, change));
    }

    fn replace(&mut self, old: &str, new: &str) {
        let (old, count) = (old.chars().count(), new.chars().count());
        let added = count.saturating_sub(old);
        for (at, character) in new.chars().enumerate() {
            self.put(character, isize::from(at >= count - added));
        }
        if let Some((_, change)) = &mut self.last {
            *change -= old.saturating_sub(count) as isize;
        }
    }

    fn flush(&mut self) {
        if let Some((character, change)) = self.last.take() {
            self.to.put(character, change);
        }
    }
}

/// Standard base64 with padding.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (groups, rest) = text.as_bytes().as_chunks::<4>();
    for group in groups {
        let padding = group.iter().rev().take_while(|&&byte| byte == b'=').count();
        let mut value = 0_u32;
        for &byte in &group[..4 - padding] {
            let digit = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            value = value << 6 | u32::from(digit);
        }
        value <<= 6 * padding;
        bytes.extend(value.to_be_bytes()[1..].iter().take(3_usize.checked_sub(padding)?));
    }
    rest.is_empty().then_some(bytes)
}
