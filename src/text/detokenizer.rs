//! Token ids back to text, token by token.
//!
//! The bytes of every token of the vocabulary are worked out once, at loading, as the checkpoint's decoder would;
//! after that a reply is bytes behind one another, given out as soon as they are whole UTF-8. So decoding makes no
//! strings of its own, which the `tokenizers` decoders do for every call.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;
use tokenizers::Tokenizer;

use crate::memory::Secret;

/// The bytes of each token.
#[derive(Debug)]
pub struct Pieces {
    bytes: Vec<u8>,
    /// Piece `id` is `bytes[ends[id - 1]..ends[id]]`.
    ends: Vec<u32>,
    special: Vec<bool>,
    start: Start,
    /// The token `<0x20>`: a space that is no mark.
    space_byte: Option<u32>,
}

/// What the decoder drops of a text's first token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    Nothing,
    /// One space: the `Strip` step of Llama 2.
    OneSpace,
    /// Every mark that stands for a space: `Metaspace`.
    Marks,
}

/// How token strings stand for bytes.
enum Spelling {
    /// GPT-2's alphabet: one printable character for each byte.
    ByteLevel(HashMap<char, u8>),
    /// SentencePiece: a mark for the space, `<0x0A>` for a byte.
    Marked { mark: String, byte_fallback: bool },
}

impl Pieces {
    /// Reads the vocabulary and the decoder.
    ///
    /// # Errors
    /// The decoder is of a kind that this library does not do; says which.
    pub fn new(tokenizer: &Tokenizer, vocab: usize) -> Result<Self, String> {
        let decoder = serde_json::to_value(tokenizer.get_decoder()).map_err(|error| error.to_string())?;
        let (spelling, start) = spelling(&decoder)?;
        let mut this = Self {
            bytes: Vec::new(),
            ends: Vec::with_capacity(vocab),
            special: vec![false; vocab],
            start,
            space_byte: tokenizer.token_to_id("<0x20>"),
        };
        let added = tokenizer.get_added_tokens_decoder();
        for id in 0..vocab as u32 {
            if let Some(token) = added.get(&id) {
                this.special[id as usize] = token.special;
                this.bytes.extend(token.content.as_bytes());
            } else if let Some(token) = tokenizer.id_to_token(id) {
                spelling.bytes(&token, &mut this.bytes);
            }
            this.ends
                .push(u32::try_from(this.bytes.len()).map_err(|_| "its tokens must have less than 4 GB")?);
        }
        Ok(this)
    }

    /// Of no vocabulary: for a model that only reads.
    pub fn none() -> Self {
        Self {
            bytes: Vec::new(),
            ends: Vec::new(),
            special: Vec::new(),
            start: Start::Nothing,
            space_byte: None,
        }
    }

    /// The bytes of a token; none for one outside the vocabulary.
    pub fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start as usize..end as usize]
    }

    /// Bytes of the longest token.
    pub fn longest(&self) -> usize {
        (0..self.ends.len() as u32).map(|id| self.bytes(id).len()).max().unwrap_or(0)
    }

    /// Whether a token is special: it is never part of the text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).is_some_and(|&special| special)
    }
}

impl Spelling {
    fn bytes(&self, token: &str, to: &mut Vec<u8>) {
        match self {
            Self::ByteLevel(alphabet) => {
                // A token that is not in the alphabet stands for itself, as in the decoder.
                let start = to.len();
                for character in token.chars() {
                    let Some(&byte) = alphabet.get(&character) else {
                        to.truncate(start);
                        return to.extend(token.as_bytes());
                    };
                    to.push(byte);
                }
            }
            Self::Marked { byte_fallback: true, .. } if fallback_byte(token).is_some() => {
                to.extend(fallback_byte(token))
            }
            Self::Marked { mark, .. } => to.extend(token.replace(mark.as_str(), " ").as_bytes()),
        }
    }
}

/// `<0x0A>` is the byte 10.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// The decoder's spelling, and what it drops at the very start.
fn spelling(decoder: &Value) -> Result<(Spelling, Start), String> {
    let mut spelling = Spelling::Marked { mark: String::new(), byte_fallback: false };
    let mut start = Start::Nothing;
    let steps = match decoder["type"].as_str() {
        Some("Sequence") => decoder["decoders"].as_array().map_or(&[][..], Vec::as_slice),
        _ => std::slice::from_ref(decoder),
    };
    for step in steps {
        match (step["type"].as_str().unwrap_or("none"), &mut spelling) {
            ("ByteLevel", _) => spelling = Spelling::ByteLevel(byte_level_alphabet()),
            ("Metaspace", Spelling::Marked { mark, .. }) => {
                *mark = step["replacement"].as_str().unwrap_or("▁").to_owned();
                start = if step["prepend_scheme"] == "never" { Start::Nothing } else { Start::Marks };
            }
            ("Replace", Spelling::Marked { mark, .. }) if step["content"] == " " => {
                *mark = step["pattern"]["String"].as_str().unwrap_or_default().to_owned();
            }
            ("ByteFallback", Spelling::Marked { byte_fallback, .. }) => *byte_fallback = true,
            ("Fuse", _) => {}
            ("Strip", _) if step["content"] == " " && step["start"] == 1 && step["stop"] == 0 => {
                start = Start::OneSpace
            }
            (other, _) => {
                return Err(format!("its decoder must be byte-level or SentencePiece-like; it has {other}"));
            }
        }
    }
    if let Spelling::Marked { mark, .. } = &spelling
        && mark.is_empty()
    {
        return Err("its decoder must say which character stands for a space".into());
    }
    Ok((spelling, start))
}

/// GPT-2's table: printable bytes stand for themselves, the others for characters from U+0100 on.
fn byte_level_alphabet() -> HashMap<char, u8> {
    let mut next = 0x100;
    (0..=255_u8)
        .map(|byte| {
            if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
                return (char::from(byte), byte);
            }
            next += 1;
            (char::from_u32(next - 1).expect("U+0100 to U+0143 are characters"), byte)
        })
        .collect()
}

/// The end of a reply that is not yet whole: bytes of a character that later tokens complete.
#[derive(Debug)]
pub struct Detokenizer {
    pending: Secret<[u8]>,
    start: Start,
    /// Special tokens that are part of the text.
    visible: Arc<Vec<u32>>,
}

impl Detokenizer {
    /// For a reply; `at_start` if no text precedes it (then decoders of the SentencePiece kind drop a space). Special
    /// tokens give no text, but for those in `visible`.
    pub fn new(pieces: &Pieces, at_start: bool, visible: Arc<Vec<u32>>) -> Self {
        let start = if at_start { pieces.start } else { Start::Nothing };
        Self { pending: Secret::<[u8]>::with_capacity(64), start, visible }
    }

    /// Takes a token and appends what is now whole to `text`, which stays UTF-8. Bytes that can never become a
    /// character give U+FFFD.
    pub fn push(&mut self, pieces: &Pieces, id: u32, text: &mut Secret<[u8]>) {
        if pieces.is_special(id) && !self.visible.contains(&id) {
            return;
        }
        let bytes = pieces.bytes(id);
        match std::mem::replace(&mut self.start, Start::Nothing) {
            Start::OneSpace => self.pending.extend(bytes.strip_prefix(b" ").unwrap_or(bytes)),
            Start::Marks if pieces.space_byte != Some(id) => {
                bytes.iter().filter(|&&byte| byte != b' ').for_each(|&byte| self.pending.push(byte));
            }
            _ => self.pending.extend(bytes),
        }
        self.give(text, false);
    }

    /// Gives the rest: an incomplete character becomes U+FFFD.
    pub fn finish(&mut self, text: &mut Secret<[u8]>) {
        self.give(text, true);
    }

    fn give(&mut self, text: &mut Secret<[u8]>, all: bool) {
        loop {
            let pending = self.pending.expose();
            let (whole, skip) = match std::str::from_utf8(pending) {
                Ok(_) => (pending.len(), 0),
                Err(error) => match (error.valid_up_to(), error.error_len()) {
                    (whole, Some(bad)) => (whole, bad),
                    (whole, None) if all => (whole, pending.len() - whole),
                    (whole, None) => (whole, 0),
                },
            };
            text.extend(&pending[..whole]);
            self.pending.drain_front(whole + skip);
            if skip == 0 {
                return;
            }
            text.extend("\u{fffd}".as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(tokens: &[&[u8]]) -> Pieces {
        let mut this = Pieces {
            bytes: vec![],
            ends: vec![],
            special: vec![false; tokens.len()],
            start: Start::OneSpace,
            space_byte: None,
        };
        for token in tokens {
            this.bytes.extend(*token);
            this.ends.push(this.bytes.len() as u32);
        }
        this
    }

    fn decode(pieces: &Pieces, ids: &[u32], at_start: bool) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(pieces, at_start, Arc::default());
        let mut text = Secret::<[u8]>::default();
        let mut states = Vec::new();
        for &id in ids {
            detokenizer.push(pieces, id, &mut text);
            states.push(String::from_utf8(text.expose().to_vec()).unwrap());
        }
        detokenizer.finish(&mut text);
        states.push(String::from_utf8(text.expose().to_vec()).unwrap());
        states
    }

    #[test]
    fn characters_appear_when_they_are_whole() {
        let pieces =
            pieces(&[b"a", "\u{1f600}".as_bytes().split_at(2).0, "\u{1f600}".as_bytes().split_at(2).1]);
        assert_eq!(
            decode(&pieces, &[0, 1, 2, 0], false),
            ["a", "a", "a\u{1f600}", "a\u{1f600}a", "a\u{1f600}a"]
        );
    }

    #[test]
    fn broken_bytes_become_replacement_characters() {
        let pieces = pieces(&[b"a", b"\xf0\x9f", b"\xff"]);
        assert_eq!(decode(&pieces, &[1, 0], false).last().unwrap(), "\u{fffd}a");
        assert_eq!(decode(&pieces, &[2, 2, 0], false).last().unwrap(), "\u{fffd}\u{fffd}a");
        assert_eq!(decode(&pieces, &[0, 1], false).last().unwrap(), "a\u{fffd}");
    }

    #[test]
    fn one_space_is_dropped_at_the_start_only() {
        let pieces = pieces(&[b" hi"]);
        assert_eq!(decode(&pieces, &[0, 0], true).last().unwrap(), "hi hi");
        assert_eq!(decode(&pieces, &[0, 0], false).last().unwrap(), " hi hi");
    }

    #[test]
    fn the_byte_alphabet_is_gpt2s() {
        let alphabet = byte_level_alphabet();
        assert_eq!(alphabet.len(), 256);
        assert_eq!(
            (alphabet[&'Ġ'], alphabet[&'Ċ'], alphabet[&'A'], alphabet[&'ÿ']),
            (b' ', b'\n', b'A', 0xff)
        );
        assert_eq!(alphabet[&'\u{143}'], 0xad);
    }
}
