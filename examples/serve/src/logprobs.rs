//! Log probabilities in three shapes: of chats, of completions, and vLLM's of the prompt.

use amnesic::{Logprobs, TokenLogprobs};
use serde::{Serialize, Serializer};

use crate::tokens::Tokens;

/// `choices[].logprobs` of a chat: one entry for each token, also of reasoning and of calls of tools.
#[derive(Serialize)]
pub struct ChatLogprobs {
    content: Vec<Entry>,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct Entry {
    #[serde(flatten)]
    token: Likely,
    top_logprobs: Vec<Likely>,
}

#[derive(Serialize)]
struct Likely {
    /// What is no whole character stands as U+FFFD; `bytes` tells it.
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ChatLogprobs {
    pub fn new(tokens: Tokens<'_>, logprobs: &Logprobs) -> Self {
        let likely =
            |id, logprob| Likely { token: tokens.lossy(id), logprob, bytes: tokens.bytes(id).to_vec() };
        let entry = |record: TokenLogprobs<'_>| Entry {
            token: likely(record.token, record.logprob),
            top_logprobs: record.top().map(|(id, logprob)| likely(id, logprob)).collect(),
        };
        Self { content: logprobs.iter().map(entry).collect(), refusal: None }
    }
}

/// `choices[].logprobs` of a completion: columns.
#[derive(Default, Serialize)]
pub struct TextLogprobs {
    tokens: Vec<String>,
    /// None for the first token of a prompt.
    token_logprobs: Vec<Option<f32>>,
    /// The token itself among the likeliest ones.
    top_logprobs: Vec<Option<Likeliest<f32>>>,
    /// Characters of the choice's text before each token.
    text_offset: Vec<usize>,
}

/// A JSON object whose names are tokens, in this order.
pub struct Likeliest<T>(Vec<(String, T)>);

impl<T> Likeliest<T> {
    /// Of entries with the same name the first stays.
    fn new(entries: impl Iterator<Item = (String, T)>) -> Self {
        let mut kept: Vec<(String, T)> = Vec::new();
        for (name, value) in entries {
            if kept.iter().all(|(other, _)| *other != name) {
                kept.push((name, value));
            }
        }
        Self(kept)
    }
}

impl<T: Serialize> Serialize for Likeliest<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

impl TextLogprobs {
    /// Appends tokens that stand behind `offset` characters of text, and counts theirs.
    pub fn extend(&mut self, tokens: Tokens<'_>, logprobs: &Logprobs, top: usize, offset: &mut usize) {
        for record in logprobs.iter() {
            // of tokens with the same text the likeliest counts
            let pairs = record.top().take(top).chain([(record.token, record.logprob)]);
            let likeliest = Likeliest::new(pairs.map(|(id, logprob)| (spelled(tokens.bytes(id)), logprob)));
            self.tokens.push(spelled(tokens.bytes(record.token)));
            self.token_logprobs.push(Some(record.logprob));
            self.top_logprobs.push(Some(likeliest));
            self.text_offset.push(*offset);
            *offset += characters(tokens.visible(record.token));
        }
    }

    /// Appends the first token of a prompt, which nothing stands before.
    pub fn begin(&mut self, first: &[u8], visible: &[u8], offset: &mut usize) {
        self.tokens.push(spelled(first));
        self.token_logprobs.push(None);
        self.top_logprobs.push(None);
        self.text_offset.push(*offset);
        *offset += characters(visible);
    }
}

/// Characters that begin in `bytes`: a token may hold a part of one.
fn characters(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte & 0xc0 != 0x80).count()
}

/// A token as text, or as OpenAI spells those that are none: `bytes:\xe2\x96`.
fn spelled(bytes: &[u8]) -> String {
    match str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".into(), |text: String, byte| text + &format!("\\x{byte:02x}")),
    }
}

/// vLLM's `prompt_logprobs`: for each token of the prompt, by id, itself and the likeliest; null for the first.
pub type PromptLogprobs = Vec<Option<Likeliest<Told>>>;

#[derive(Serialize)]
pub struct Told {
    logprob: f32,
    rank: u32,
    decoded_token: String,
}

pub fn prompt_logprobs(tokens: Tokens<'_>, logprobs: &Logprobs, top: usize) -> PromptLogprobs {
    let told =
        |id: u32, logprob, rank| (id.to_string(), Told { logprob, rank, decoded_token: tokens.lossy(id) });
    let entry = |record: TokenLogprobs<'_>| {
        let own = told(record.token, record.logprob, record.rank);
        let top = record.top().take(top).zip(1..).map(|((id, logprob), rank)| told(id, logprob, rank));
        Some(Likeliest::new([own].into_iter().chain(top)))
    };
    [None].into_iter().chain(logprobs.iter().map(entry)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_are_no_text_are_spelled() {
        assert_eq!(spelled(" à".as_bytes()), " à");
        assert_eq!(spelled(&[0xe2, 0x96]), "bytes:\\xe2\\x96");
        assert_eq!(characters("aàb".as_bytes()), 3);
        assert_eq!(characters(&[0x80]), 0);
    }

    #[test]
    fn names_come_once_and_in_order() {
        let pairs = [("b", 1.5), ("a", -0.1), ("b", 3.0)].map(|(name, value)| (name.to_owned(), value));
        let json = serde_json::to_string(&Likeliest::<f32>::new(pairs.into_iter())).unwrap();
        assert_eq!(json, r#"{"b":1.5,"a":-0.1}"#);
    }
}
