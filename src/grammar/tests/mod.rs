//! Vocabularies to test with, and a reader of masks.

mod attacks;
mod call_formats;
mod calls;
#[cfg(feature = "schema")]
mod derived;
mod errors;
mod generation;
mod languages;
mod lowered;
mod masks;
mod numbers;
mod validator;

use std::path::Path;

use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::{Grammars, Matcher, ResponseFormat};
use crate::error::Result;
use crate::memory::Secret;
use crate::text::detokenizer::Pieces;

/// Beside the 256 single bytes; `▁` is a space. Some are spelled twice: a byte and a word.
const WORDS: &[&str] = &[
    "{\"", "\":", "\":▁", "\",", "\",▁\"", "\"}", "},", "]}", "[{", "[]", "{}", "true", "false", "null",
    "tr", "ue", "0", "1", "2", "9", "10", "-1", "0.", ".5", "e", "a", "b", "c", "an", "name", "▁", "▁▁",
    "▁the", "\n", "\n▁▁", "é", "日本", "日", "\\", "\\n", "\\u00", "\"", "+", "*", "(", ")", "2026", "-0",
    "@", "://", "item", "kind", "x", "y",
];
const SPECIALS: &[&str] = &["<|end|>", "<|stop|>", "<|tool|>", "<tool_call>", "</tool_call>"];
/// Ids that a model has and its tokenizer has not.
const PADDING: usize = 5;

/// A checkpoint in small.
struct Fixture {
    pieces: Pieces,
    vocab: usize,
    ends: Vec<u32>,
    grammars: Grammars,
}

impl Fixture {
    /// The vocabulary above, with `<|end|>` and `<|stop|>` as end tokens.
    fn by_hand() -> Self {
        Self::with(|id| vec![id("<|end|>"), id("<|stop|>")])
    }

    fn with(ends: impl FnOnce(&dyn Fn(&str) -> u32) -> Vec<u32>) -> Self {
        Self::with_specials(SPECIALS, ends)
    }

    /// With these special tokens.
    fn with_specials(specials: &[&str], ends: impl FnOnce(&dyn Fn(&str) -> u32) -> Vec<u32>) -> Self {
        let bytes: Vec<String> = (0..256).map(|byte| format!("<0x{byte:02X}>")).collect();
        let words = bytes.iter().map(String::as_str).chain(WORDS.iter().copied());
        let words: Vec<&str> = words.chain(specials.iter().copied()).collect();
        let ids: serde_json::Map<String, Value> =
            words.iter().enumerate().map(|(id, &word)| (word.to_owned(), id.into())).collect();
        let added: Vec<Value> = specials
            .iter()
            .map(|&word| {
                json!({ "id": ids[word], "content": word, "special": true, "single_word": false, "lstrip": false,
                        "rstrip": false, "normalized": false })
            })
            .collect();
        let decoder = json!([
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
        ]);
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "post_processor": null, "added_tokens": added,
            "decoder": { "type": "Sequence", "decoders": decoder },
            "model": { "type": "WordLevel", "vocab": ids, "unk_token": "<0x00>" },
        });
        let vocab = words.len() + PADDING;
        let tokenizer = Tokenizer::from_bytes(file.to_string()).unwrap();
        let ends = ends(&|word| tokenizer.token_to_id(word).unwrap());
        let pieces = Pieces::new(&tokenizer, vocab).unwrap();
        let grammars = Grammars::new(&pieces, vocab, &ends);
        Self { pieces, vocab, grammars, ends }
    }

    fn compile(&self, format: &ResponseFormat) -> Result<Matcher> {
        let begun = self.grammars.compile(format, 1);
        begun.map(|begun| begun.expect("no text format in this test").matcher)
    }

    fn schema(&self, schema: Value) -> Matcher {
        self.compile(&ResponseFormat::json_schema(schema)).unwrap()
    }

    /// Whether a whole text has the format, fed a byte at a time.
    fn accepts(&self, start: &Matcher, text: &str) -> bool {
        let mut matcher = start.fork();
        text.bytes().all(|byte| matcher.accept(self.byte(byte)).is_ok()) && matcher.is_complete().unwrap()
    }

    /// The token that is this byte.
    fn byte(&self, byte: u8) -> u32 {
        (0..self.vocab as u32).find(|&id| self.pieces.bytes(id) == [byte]).unwrap()
    }

    /// The longest tokens that spell a text.
    fn spell(&self, text: &str) -> Vec<u32> {
        let (mut ids, mut left) = (Vec::new(), text.as_bytes());
        while !left.is_empty() {
            let fits = |&id: &u32| {
                let bytes = self.pieces.bytes(id);
                !bytes.is_empty() && !self.pieces.is_special(id) && left.starts_with(bytes)
            };
            let id = (0..self.vocab as u32).filter(fits).max_by_key(|&id| self.pieces.bytes(id).len());
            ids.push(id.unwrap());
            left = &left[self.pieces.bytes(id.unwrap()).len()..];
        }
        ids
    }
}

/// The model and tokenizer that come with the repository.
fn default_model() -> Fixture {
    const VOCAB: usize = 4096;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default");
    let tokenizer = Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    let pieces = Pieces::new(&tokenizer, VOCAB).unwrap();
    let grammars = Grammars::new(&pieces, VOCAB, &[0]);
    Fixture { pieces, vocab: VOCAB, ends: vec![0], grammars }
}

/// The allowed ids.
fn allowed(matcher: &mut Matcher) -> Vec<u32> {
    let mut mask = Secret::default();
    matcher.mask(&mut mask).unwrap();
    let words = mask.expose();
    (0..words.len() as u32 * 32).filter(|id| words[*id as usize / 32] >> (id % 32) & 1 == 1).collect()
}

/// Numbers that are random enough (xorshift64).
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}
