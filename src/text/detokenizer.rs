//! Token ids back to text, token by token.
//!
//! The bytes of every token of the vocabulary are worked out once, at loading, as the checkpoint's decoder would;
//! after that a reply is bytes behind one another, given out as soon as they are whole UTF-8. So decoding makes no
//! strings of its own, which the `tokenizers` decoders do for every call.
//!
//! Added tokens go through the decoder like all others, as they do in the `tokenizers` crate, which decodes one that is
//! looked for in normalized text from its normalized form: Gemma's added token `▁▁▁` is three spaces.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;
use tokenizers::{Model as _, Tokenizer};

use crate::memory::Secret;

/// The bytes of each token.
#[derive(Debug)]
pub struct Pieces {
    bytes: Vec<u8>,
    /// Piece `id` is `bytes[ends[id - 1]..ends[id]]`.
    ends: Vec<u32>,
    kinds: Vec<Kind>,
    start: Start,
    /// What a token gives at the start of a text, where that is not its bytes without their spaces: spaces that are no
    /// marks, such as the token `<0x20>`.
    firsts: HashMap<u32, Box<[u8]>>,
    /// The content of special tokens whose bytes are something else.
    names: HashMap<u32, Box<[u8]>>,
}

/// What an id stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// No token: it pads the model's vocabulary.
    Nothing,
    Text,
    /// A special token, which gives no text unless it is asked for.
    Special,
    /// A special token that the crate's decoder shows nonetheless: it knows special tokens by their content, and this one
    /// is decoded from another form of it.
    ShownSpecial,
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
    /// Reads the vocabulary and the decoder, for ids below `size`.
    ///
    /// # Errors
    /// The decoder is of a kind that this library does not do; says which.
    pub fn new(tokenizer: &Tokenizer, size: usize) -> Result<Self, String> {
        let decoder = serde_json::to_value(tokenizer.get_decoder()).map_err(|error| error.to_string())?;
        let (spelling, start) = spelling(&decoder)?;
        let mut this = Self { ends: Vec::with_capacity(size), start, ..Self::none() };
        let vocabulary = tokenizer.get_added_vocabulary();
        let added = tokenizer.get_added_tokens_decoder();
        for id in 0..size as u32 {
            let token = vocabulary.simple_id_to_token(id).or_else(|| tokenizer.get_model().id_to_token(id));
            let from = this.bytes.len();
            let Some(token) = token else {
                this.end_with(Kind::Nothing)?;
                continue;
            };
            spelling.bytes(&token, &mut this.bytes);
            if let Some(first) = spelling.first_bytes(&token) {
                this.firsts.insert(id, first.into());
            }
            let hidden = vocabulary.is_special_token(&token);
            let special = added.get(&id).filter(|token| token.special);
            if let Some(special) = special.filter(|special| special.content.as_bytes() != &this.bytes[from..])
            {
                this.names.insert(id, special.content.as_bytes().into());
            }
            this.end_with(match special {
                _ if hidden => Kind::Special,
                Some(_) => Kind::ShownSpecial,
                None => Kind::Text,
            })?;
        }
        Ok(this)
    }

    fn end_with(&mut self, kind: Kind) -> Result<(), String> {
        let end = u32::try_from(self.bytes.len()).map_err(|_| "its tokens must have less than 4 GB")?;
        self.ends.push(end);
        self.kinds.push(kind);
        Ok(())
    }

    /// The pieces of no vocabulary, for a model that only reads.
    pub fn none() -> Self {
        Self {
            bytes: Vec::new(),
            ends: Vec::new(),
            kinds: Vec::new(),
            start: Start::Nothing,
            firsts: HashMap::new(),
            names: HashMap::new(),
        }
    }

    /// Ids from here on stand for nothing.
    pub fn size(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of a token; none for one outside the vocabulary.
    pub fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start as usize..end as usize]
    }

    /// What a special token is called: its content, which need not be the bytes that its decoder makes of it. The bytes
    /// of any other token.
    pub fn name(&self, id: u32) -> &[u8] {
        self.names.get(&id).map_or_else(|| self.bytes(id), |name| &name[..])
    }

    /// Bytes of the longest token.
    pub fn longest(&self) -> usize {
        (0..self.ends.len() as u32).map(|id| self.bytes(id).len()).max().unwrap_or(0)
    }

    /// Whether a token is special.
    pub fn is_special(&self, id: u32) -> bool {
        matches!(self.kind(id), Kind::Special | Kind::ShownSpecial)
    }

    fn kind(&self, id: u32) -> Kind {
        self.kinds.get(id as usize).copied().unwrap_or(Kind::Nothing)
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

    /// What a token gives where all marks are dropped, if it has spaces that are no marks.
    fn first_bytes(&self, token: &str) -> Option<Vec<u8>> {
        let Self::Marked { mark, byte_fallback } = self else { return None };
        if let Some(byte) = fallback_byte(token).filter(|_| *byte_fallback) {
            return (byte == b' ').then(|| vec![byte]);
        }
        token.contains(' ').then(|| token.replace(mark.as_str(), "").into_bytes())
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
    let (mut start, mut fused) = (Start::Nothing, false);
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
            ("Fuse", _) => fused = true,
            // before `Fuse` it would strip every token
            ("Strip", _) if fused && step["content"] == " " && step["start"] == 1 && step["stop"] == 0 => {
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
    /// Whether all special tokens are.
    shows_all: bool,
}

impl Detokenizer {
    /// For a reply; `at_start` if no text precedes it (then decoders of the SentencePiece kind drop a space). Special
    /// tokens give no text, but for those in `visible`.
    pub fn new(pieces: &Pieces, at_start: bool, visible: Arc<Vec<u32>>) -> Self {
        let start = if at_start { pieces.start } else { Start::Nothing };
        Self { pending: Secret::<[u8]>::with_capacity(64), start, visible, shows_all: false }
    }

    /// The text of `ids` from its start, with or without special tokens, as the crate's `decode` gives it.
    pub fn decode(pieces: &Pieces, ids: &[u32], skip_special_tokens: bool) -> Secret<[u8]> {
        let mut this = Self::new(pieces, true, Arc::default());
        this.shows_all = !skip_special_tokens;
        let mut text = Secret::<[u8]>::with_capacity(ids.len().saturating_mul(4));
        ids.iter().for_each(|&id| this.push(pieces, id, &mut text));
        this.finish(&mut text);
        text
    }

    /// Takes a token and appends what is now whole to `text`, which stays UTF-8. Bytes that can never become a
    /// character give U+FFFD.
    pub fn push(&mut self, pieces: &Pieces, id: u32, text: &mut Secret<[u8]>) {
        let bytes = match pieces.kind(id) {
            Kind::Nothing => return,
            Kind::Special if self.shows_all => pieces.bytes(id),
            // replies are taken apart by the names of such tokens
            Kind::Special if self.visible.contains(&id) => pieces.name(id),
            Kind::Special => return,
            Kind::Text | Kind::ShownSpecial => pieces.bytes(id),
        };
        match std::mem::replace(&mut self.start, Start::Nothing) {
            // the text's first character, which an empty token is not
            Start::OneSpace if bytes.is_empty() => self.start = Start::OneSpace,
            Start::OneSpace => self.pending.extend(bytes.strip_prefix(b" ").unwrap_or(bytes)),
            Start::Marks => match pieces.firsts.get(&id) {
                Some(first) => self.pending.extend(first),
                None => {
                    bytes.iter().filter(|&&byte| byte != b' ').for_each(|&byte| self.pending.push(byte));
                }
            },
            Start::Nothing => self.pending.extend(bytes),
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
        let mut this = Pieces { start: Start::OneSpace, ..Pieces::none() };
        for token in tokens {
            this.bytes.extend(*token);
            this.end_with(Kind::Text).unwrap();
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
