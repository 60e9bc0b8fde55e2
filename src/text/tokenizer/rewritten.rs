//! A text being rewritten: the new text, and how much of it comes from the original's first character.

use crate::memory::Secret;

/// Where a normalizer writes. Each character goes with a number as in the crate's `NormalizedString::transform`: 0 stands
/// in the place of the next character of the old text, 1 is new behind the last one, and `-n` is followed by `n`
/// characters of the old text that are gone.
///
/// Ids do not depend on offsets but in one place: `Metaspace` with the scheme `first` asks whether a piece begins where
/// the original does. So what is followed here is only the end of the part that does.
pub struct Rewritten<'a> {
    to: &'a mut Secret<[u8]>,
    /// The old text, from `at` on.
    rest: std::str::Chars<'a>,
    at: usize,
    /// Bytes of the old text that come from the original's first character.
    old_first: usize,
    /// Bytes of the new text that come from the original's first character.
    first: usize,
    /// Whether the next character may belong to them; from the first that does not nothing more is followed.
    follows: bool,
}

impl<'a> Rewritten<'a> {
    /// Writes a new form of `old` behind what is in `to`; `first` bytes of `old` come from the original's first
    /// character.
    pub fn new(old: &'a str, first: usize, to: &'a mut Secret<[u8]>) -> Self {
        Self { to, rest: old.chars(), at: 0, old_first: first, first: 0, follows: first > 0 }
    }

    /// Writes a character.
    #[inline]
    pub fn put(&mut self, character: char, change: isize) {
        let mut bytes = [0; 4];
        let bytes = character.encode_utf8(&mut bytes).as_bytes();
        if self.follows {
            self.follow(bytes.len(), change);
        }
        self.to.extend(bytes);
    }

    fn follow(&mut self, len: usize, change: isize) {
        // what is new is where the character before it is
        let place = if change > 0 { self.at.saturating_sub(1) } else { self.at };
        if place >= self.old_first {
            self.follows = false;
            return;
        }
        self.first += len;
        let gone = if change > 0 { 0 } else { change.unsigned_abs() + 1 };
        (0..gone).for_each(|_| self.skip());
    }

    /// The next character of the old text is gone.
    #[inline]
    pub fn skip(&mut self) {
        if self.follows {
            self.at += self.rest.next().map_or(0, char::len_utf8);
        }
    }

    /// Writes the old text's next part as it is.
    #[inline]
    pub fn keep(&mut self, part: &str) {
        let mut rest = part.chars();
        while self.follows
            && let Some(character) = rest.next()
        {
            self.put(character, 0);
        }
        self.to.extend(rest.as_str().as_bytes());
    }

    /// Bytes of the new text that come from the original's first character.
    pub fn first(&self) -> usize {
        self.first
    }
}
