//! The tokenizer in a GGUF file, as the `tokenizer.json` that it was made from.
//!
//! Byte-level BPE (`gpt2`) has its merges; what cuts a text into words goes by a name (`tokenizer.ggml.pre`), whose
//! regular expressions are those of llama.cpp's `llama-vocab.cpp`. SentencePiece's BPE (`llama`) has scores instead: of
//! two neighbours the pair whose token has the best score is merged first, which is what merges in that order do.

use std::collections::HashMap;

use serde_json::{Value as Json, json};

use super::{Gguf, List, Value};
use crate::error::Result;

/// Kinds of tokens.
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Merges of a tokenizer; Gemma 3 has 514,906.
const MAX_MERGES: usize = 1 << 20;
/// Tokens that are no words; Gemma 3 has 6,415.
const MAX_ADDED: usize = 1 << 16;
/// Bytes of a token that is taken apart into merges, which takes time of their square. Published ones have tens.
const MAX_TOKEN: usize = 512;

impl Gguf {
    fn list(&self, key: &str) -> Result<Option<&List>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::List(list)) => Ok(Some(list)),
            Some(_) => Err(self.wrong(key, "a list")),
        }
    }

    /// A list of texts.
    fn texts(&self, key: &str) -> Result<Option<(usize, impl Iterator<Item = Result<&str>>)>> {
        let Some(list) = self.list(key)? else { return Ok(None) };
        if !list.is_of_texts() {
            return Err(self.wrong(key, "a list of texts"));
        }
        let key = key.to_owned();
        let text = move |element| match element {
            Value::Text(range) => self.text_at(&key, &range),
            _ => Err(self.wrong(&key, "a list of texts")),
        };
        Ok(Some((list.count, self.elements(list).map(text))))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Flag(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    /// The tokenizer; none where the file has none.
    ///
    /// # Errors
    /// It is malformed, or of a kind that is not known; the error names the key.
    pub fn tokenizer(&self) -> Result<Option<Json>> {
        let key = "tokenizer.ggml.tokens";
        let Some((count, tokens)) = self.texts(key)? else { return Ok(None) };
        // Asked before any of them is read. Who uses the tokenizer asks again, by its ids.
        let rows = self.tensors.get("token_embd.weight").map(|embed| embed.shape[0]);
        // Some have more tokens than the embedding has rows: those are refused where a prompt has one.
        if let Some(rows) = rows.filter(|rows| count > rows.saturating_add(MAX_ADDED)) {
            let expected = format!("a list of at most {MAX_ADDED} more than the embedding's {rows} rows");
            return Err(self.wrong(key, &expected));
        }
        let tokens = tokens.collect::<Result<Vec<&str>>>()?;
        let kinds = self.list("tokenizer.ggml.token_type")?.map(|list| self.elements(list));
        let added =
            tokens.iter().zip(kinds.into_iter().flatten()).enumerate().filter_map(|(id, (token, kind))| {
                let special = match kind {
                    Value::Whole(CONTROL) => true,
                    Value::Whole(USER_DEFINED) => false,
                    _ => return None,
                };
                Some(json!({
                    "id": id, "content": token, "special": special, "normalized": false,
                    "single_word": false, "lstrip": false, "rstrip": false,
                }))
            });
        let added: Vec<Json> = added.take(MAX_ADDED + 1).collect();
        if added.len() > MAX_ADDED {
            let expected = format!("of at most {MAX_ADDED} tokens that are no words");
            return Err(self.wrong("tokenizer.ggml.token_type", &expected));
        }
        let mut json = match self.text("tokenizer.ggml.model")? {
            Some("gpt2") => self.byte_level(&tokens)?,
            Some("llama") => self.sentence_piece(&tokens)?,
            _ => return Err(self.wrong("tokenizer.ggml.model", "gpt2 or llama")),
        };
        json["version"] = "1.0".into();
        json["added_tokens"] = added.into();
        json["post_processor"] = self.specials(&tokens)?;
        Ok(Some(json))
    }

    /// Tokens with their ids.
    fn vocab(tokens: &[&str]) -> serde_json::Map<String, Json> {
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), id.into())).collect()
    }

    fn byte_level(&self, tokens: &[&str]) -> Result<Json> {
        let key = "tokenizer.ggml.merges";
        let (count, merges) =
            self.texts(key)?.ok_or_else(|| self.wrong(key, "there, for a tokenizer of this kind"))?;
        if count > MAX_MERGES {
            return Err(self.wrong(key, &format!("a list of at most {MAX_MERGES}")));
        }
        let split = |merge: Result<&str>| match merge?.split_once(' ') {
            Some((a, b)) => Ok(json!([a, b])),
            None => Err(self.wrong(key, "a list of pairs of tokens")),
        };
        let merges = merges.map(split).collect::<Result<Vec<Json>>>()?;
        let key = "tokenizer.ggml.pre";
        let words = match self.text(key)? {
            Some("llama-bpe" | "llama3" | "llama-v3" | "smaug-bpe") => LLAMA3,
            Some("qwen2" | "deepseek-r1-qwen") => QWEN2,
            Some("gpt-2" | "gpt2" | "default") | None => GPT2,
            Some(_) => return Err(self.wrong(key, "llama-bpe, qwen2, gpt-2 or default")),
        };
        let vocab = Self::vocab(tokens);
        Ok(json!({
            "normalizer": null,
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": words }, "behavior": "Isolated", "invert": false },
                { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false },
            ]},
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "model": {
                "type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": false, "fuse_unk": false,
                "ignore_merges": words != GPT2 && words != QWEN2,
            },
        }))
    }

    fn sentence_piece(&self, tokens: &[&str]) -> Result<Json> {
        let key = "tokenizer.ggml.scores";
        let scores = self.list(key)?.filter(|scores| scores.count == tokens.len());
        let scores = scores.ok_or_else(|| self.wrong(key, "a list with a number for each token"))?;
        let score = |score| match score {
            Value::Float(score) => score,
            _ => f64::NEG_INFINITY,
        };
        let scores: Vec<f64> = self.elements(scores).map(score).collect();
        if tokens.iter().any(|token| token.len() > MAX_TOKEN) {
            return Err(self.wrong("tokenizer.ggml.tokens", &format!("of at most {MAX_TOKEN} bytes each")));
        }
        let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
        let mut merges: Vec<(f64, usize, usize, &str, &str)> = Vec::new();
        for (id, token) in tokens.iter().enumerate() {
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if let (Some(left_id), Some(_)) = (ids.get(left), ids.get(right)) {
                    merges.push((scores[id], id, *left_id, left, right));
                }
            }
            if merges.len() > MAX_MERGES {
                let expected = format!("tokens that are made of each other by at most {MAX_MERGES} merges");
                return Err(self.wrong("tokenizer.ggml.tokens", &expected));
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
        let merges: Vec<Json> = merges.iter().map(|(.., left, right)| json!([left, right])).collect();
        let vocab = Self::vocab(tokens);
        let prefix = self.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        let mut normalizers =
            vec![json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" })];
        let mut decoders = vec![
            json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if prefix {
            normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        let unknown = match self.metadata.get("tokenizer.ggml.unknown_token_id") {
            Some(&Value::Whole(id)) => usize::try_from(id).ok().and_then(|id| tokens.get(id)),
            _ => None,
        };
        Ok(json!({
            "normalizer": { "type": "Sequence", "normalizers": normalizers },
            "pre_tokenizer": null,
            "decoder": { "type": "Sequence", "decoders": decoders },
            "model": {
                "type": "BPE", "vocab": vocab, "merges": merges, "unk_token": unknown, "fuse_unk": true,
                "byte_fallback": true, "ignore_merges": false,
            },
        }))
    }

    /// What goes before and behind a text.
    fn specials(&self, tokens: &[&str]) -> Result<Json> {
        let llama = self.text("tokenizer.ggml.model")? == Some("llama");
        let special = |name: &str, by_default: bool| -> Result<Option<(usize, &str)>> {
            let key = format!("tokenizer.ggml.{name}_token_id");
            if !self.flag(&format!("tokenizer.ggml.add_{name}_token"))?.unwrap_or(by_default) {
                return Ok(None);
            }
            match self.metadata.get(&key) {
                None => Ok(None),
                Some(&Value::Whole(id)) => {
                    let id = usize::try_from(id).ok().filter(|id| *id < tokens.len());
                    id.map(|id| Some((id, tokens[id]))).ok_or_else(|| self.wrong(&key, "a token's number"))
                }
                Some(_) => Err(self.wrong(&key, "a token's number")),
            }
        };
        let (bos, eos) = (special("bos", llama)?, special("eos", false)?);
        let mut single = vec![json!({ "Sequence": { "id": "A", "type_id": 0 } })];
        let mut known = serde_json::Map::new();
        let mut put = |at: usize, (id, token): (usize, &str)| {
            single.insert(at, json!({ "SpecialToken": { "id": token, "type_id": 0 } }));
            known.insert(token.to_owned(), json!({ "id": token, "ids": [id], "tokens": [token] }));
        };
        if let Some(eos) = eos {
            put(1, eos);
        }
        if let Some(bos) = bos {
            put(0, bos);
        }
        if known.is_empty() {
            return Ok(Json::Null);
        }
        let pair = [
            json!({ "Sequence": { "id": "A", "type_id": 0 } }),
            json!({ "Sequence": { "id": "B", "type_id": 1 } }),
        ];
        Ok(json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": known }))
    }

    /// What is in `tokenizer_config.json` elsewhere, as far as chat templates need it.
    ///
    /// # Errors
    /// A value is of another type than it must be.
    pub fn tokenizer_config(&self) -> Result<Json> {
        let mut fields = serde_json::Map::new();
        if let Some(template) = self.text("tokenizer.chat_template")? {
            fields.insert("chat_template".into(), template.into());
        }
        let key = "tokenizer.ggml.tokens";
        for (ours, theirs) in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")] {
            let id = match self.metadata.get(&format!("tokenizer.ggml.{theirs}_token_id")) {
                Some(&Value::Whole(id)) => usize::try_from(id).ok(),
                _ => None,
            };
            let Some(id) = id else { continue };
            if let Some((_, mut tokens)) = self.texts(key)?
                && let Some(token) = tokens.nth(id)
            {
                fields.insert(format!("{ours}_token"), token?.into());
            }
        }
        Ok(Json::Object(fields))
    }
}
