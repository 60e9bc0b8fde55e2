//! The text of single tokens, for log probabilities and `echo`: read off `tokenizer.json`, which the engine has
//! checked before. Holds the vocabulary, nothing of a request.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

/// All tokens; none for a checkpoint without a tokenizer.
#[derive(Debug, Default)]
pub struct Tokens(HashMap<u32, Token>);

#[derive(Debug)]
struct Token {
    bytes: Box<[u8]>,
    /// Never part of a text.
    special: bool,
}

impl Tokens {
    /// Reads `tokenizer.json` in `folder`, if it is there.
    ///
    /// # Errors
    /// It cannot be read, or is no JSON.
    pub fn open(folder: &Path) -> std::io::Result<Self> {
        match std::fs::read(folder.join("tokenizer.json")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            bytes => Ok(Self::read(&serde_json::from_slice(&bytes?)?)),
        }
    }

    fn read(file: &Value) -> Self {
        let spelling = Spelling::of(&file["decoder"]);
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let mut tokens = HashMap::new();
        let mut add = |id, text: &str| {
            tokens.insert(id, Token { bytes: spelling.bytes(text).into(), special: false });
        };
        match &file["model"]["vocab"] {
            Value::Object(vocab) => {
                vocab
                    .iter()
                    .filter_map(|(text, value)| Some((id(value)?, text)))
                    .for_each(|(id, text)| add(id, text));
            }
            // unigram: pairs of text and score
            Value::Array(vocab) => {
                let pairs = (0..).zip(vocab).filter_map(|(id, pair)| Some((id, pair[0].as_str()?)));
                pairs.for_each(|(id, text)| add(id, text));
            }
            _ => {}
        }
        for token in file["added_tokens"].as_array().into_iter().flatten() {
            if let (Some(id), Some(text)) = (id(&token["id"]), token["content"].as_str()) {
                tokens.insert(id, Token { bytes: text.as_bytes().into(), special: token["special"] == true });
            }
        }
        Self(tokens)
    }

    /// A token's bytes, which need not be whole characters.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.0.get(&id).map_or(&[], |token| &token.bytes)
    }

    /// What a token adds to the text: nothing if it is special.
    pub fn visible(&self, id: u32) -> &[u8] {
        self.0.get(&id).filter(|token| !token.special).map_or(&[], |token| &token.bytes)
    }

    /// The bytes of a text's tokens, without special ones.
    pub fn join(&self, ids: impl IntoIterator<Item = u32>) -> Vec<u8> {
        ids.into_iter().flat_map(|id| self.visible(id)).copied().collect()
    }

    /// A token as text; what is no character stands as U+FFFD.
    pub fn lossy(&self, id: u32) -> String {
        String::from_utf8_lossy(self.bytes(id)).into_owned()
    }
}

/// How token strings stand for bytes.
enum Spelling {
    /// GPT-2's alphabet: one printable character for each byte.
    ByteLevel(HashMap<char, u8>),
    /// SentencePiece: a mark for the space, `<0x0A>` for a byte.
    Marked(String),
}

impl Spelling {
    fn of(decoder: &Value) -> Self {
        let steps = decoder["decoders"].as_array().map_or(std::slice::from_ref(decoder), Vec::as_slice);
        if steps.iter().any(|step| step["type"] == "ByteLevel") {
            return Self::ByteLevel(byte_level_alphabet());
        }
        let mark = |step: &Value| match step["type"].as_str() {
            Some("Metaspace") => step["replacement"].as_str().map(str::to_owned),
            Some("Replace") if step["content"] == " " => {
                step["pattern"]["String"].as_str().map(str::to_owned)
            }
            _ => None,
        };
        Self::Marked(steps.iter().find_map(mark).unwrap_or_else(|| "\u{2581}".into()))
    }

    fn bytes(&self, token: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel(alphabet) => {
                let bytes: Option<_> =
                    token.chars().map(|character| alphabet.get(&character).copied()).collect();
                bytes.unwrap_or_else(|| token.as_bytes().to_vec())
            }
            Self::Marked(mark) => match fallback_byte(token) {
                Some(byte) => vec![byte],
                None => token.replace(mark.as_str(), " ").into_bytes(),
            },
        }
    }
}

/// `<0x0A>` is the byte 10.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// GPT-2's table: printable bytes stand for themselves, the others for characters from U+0100 on.
fn byte_level_alphabet() -> HashMap<char, u8> {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let (plain, moved): (Vec<u8>, Vec<u8>) = (0..=255).partition(printable);
    let plain = plain.into_iter().map(|byte| (char::from(byte), byte));
    plain.chain(('\u{100}'..).zip(moved)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn byte_level() {
        let tokens = Tokens::read(&json!({
            "decoder": {"type": "ByteLevel"},
            "model": {"vocab": {"Ġthe": 1, "Ċ": 2, "Ã": 3, "ł": 4}},
            "added_tokens": [{"id": 0, "content": "<|endoftext|>", "special": true}],
        }));
        assert_eq!(tokens.bytes(0), b"<|endoftext|>");
        assert_eq!(tokens.bytes(1), b" the");
        assert_eq!(tokens.bytes(2), b"\n");
        assert_eq!(tokens.join([0, 3, 4, 9]), "à".as_bytes());
        assert_eq!(tokens.lossy(3), "\u{fffd}");
    }

    #[test]
    fn sentencepiece() {
        let tokens = Tokens::read(&json!({
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            ]},
            "model": {"vocab": [["▁the", -1.0], ["<0x0A>", -2.0], ["<0xZZ>", -2.0]]},
        }));
        assert_eq!(tokens.join([0, 1, 2]), b" the\n<0xZZ>");
    }
}
