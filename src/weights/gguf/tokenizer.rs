//! The tokenizer in a GGUF file, as the `tokenizer.json` that it was made from.
//!
//! Byte-level BPE (`gpt2`) has its merges; what cuts a text into words goes by a name (`tokenizer.ggml.pre`, see
//! [`super::pre`]). SentencePiece's BPE (`llama`) has scores instead: of two neighbours the pair whose token has the best
//! score is merged first, which is what merges in that order do. Gemma 4's has merges, over the same text. WordPiece (`bert`)
//! has a vocabulary, whose first pieces of words are marked instead of the others.

use std::collections::HashMap;

use serde_json::{Value as Json, json};

use super::pre::{self, Pre};
use super::specials::is_end;
use super::{Gguf, List, Value};
use crate::error::Result;

/// Kinds of tokens.
const UNKNOWN: i128 = 2;
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;

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
    pub(super) fn texts(&self, key: &str) -> Result<Option<(usize, impl Iterator<Item = Result<&str>>)>> {
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
        // Asked before any of them is read. Who uses the tokenizer asks again, by its ids: some vocabularies have tokens
        // that the embedding has no row for.
        let rows = self.tensors.get("token_embd.weight").map(|embed| embed.shape[0]);
        // Some have more tokens than the embedding has rows: those are refused where a prompt has one.
        if let Some(rows) = rows.filter(|rows| count > rows.saturating_add(MAX_ADDED)) {
            let expected = format!("a list of at most {MAX_ADDED} more than the embedding's {rows} rows");
            return Err(self.wrong(key, &expected));
        }
        let tokens = tokens.collect::<Result<Vec<&str>>>()?;
        let added = self.added(&tokens)?;
        let (mut json, bos) = match self.text("tokenizer.ggml.model")? {
            Some(model @ ("gpt2" | "gemma4")) => {
                let pre = self.pre(model)?;
                (self.with_merges(&tokens, pre)?, pre.bos)
            }
            Some("llama") => (self.sentence_piece(&tokens)?, true),
            Some("bert") => (self.word_piece(&tokens)?, true),
            _ => return Err(self.wrong("tokenizer.ggml.model", "gpt2, llama, gemma4 or bert")),
        };
        json["version"] = "1.0".into();
        json["added_tokens"] = added.into();
        json["post_processor"] = self.specials(&tokens, bos)?;
        Ok(Some(json))
    }

    /// The tokens that are found in texts before any word is cut: those of the file's types for that, and those that are
    /// known to end replies, whose type some files have wrong.
    fn added(&self, tokens: &[&str]) -> Result<Vec<Json>> {
        let mut kinds = self.list("tokenizer.ggml.token_type")?.map(|list| self.elements(list));
        let added = tokens.iter().enumerate().filter_map(|(id, token)| {
            let special = match kinds.as_mut().and_then(Iterator::next) {
                Some(Value::Whole(CONTROL | UNKNOWN)) => true,
                _ if is_end(token) => true,
                Some(Value::Whole(USER_DEFINED)) => false,
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
        Ok(added)
    }

    /// What cuts texts into words.
    fn pre(&self, model: &str) -> Result<Pre> {
        let key = "tokenizer.ggml.pre";
        let name = if model == "gemma4" { Some(model) } else { self.text(key)? };
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(pre::DEFAULT) };
        pre::find(name).ok_or_else(|| {
            let names: Vec<&str> = pre::names().collect();
            self.wrong(key, &format!("one of {}", names.join(", ")))
        })
    }

    /// Tokens with their ids.
    fn vocab(tokens: &[&str]) -> serde_json::Map<String, Json> {
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), id.into())).collect()
    }

    /// BPE with merges, over bytes in GPT-2's alphabet or over text.
    fn with_merges(&self, tokens: &[&str], pre: Pre) -> Result<Json> {
        let key = "tokenizer.ggml.merges";
        let (count, merges) =
            self.texts(key)?.ok_or_else(|| self.wrong(key, "there, for a tokenizer of this kind"))?;
        if count > MAX_MERGES {
            return Err(self.wrong(key, &format!("a list of at most {MAX_MERGES}")));
        }
        // a token of text may begin with a space itself
        let split = |merge: Result<&str>| {
            let merge = merge?;
            let second = merge.chars().next().map_or(0, char::len_utf8);
            match merge[second..].find(' ') {
                Some(at) => Ok(json!([merge[..second + at], merge[second + at + 1..]])),
                None => Err(self.wrong(key, "a list of pairs of tokens")),
            }
        };
        let merges = merges.map(split).collect::<Result<Vec<Json>>>()?;
        let vocab = Self::vocab(tokens);
        if pre.is_text {
            let (normalizers, decoders) = spaces(false);
            return Ok(json!({
                "normalizer": { "type": "Sequence", "normalizers": normalizers },
                "pre_tokenizer": null,
                "decoder": { "type": "Sequence", "decoders": decoders },
                "model": {
                    "type": "BPE", "vocab": vocab, "merges": merges, "unk_token": self.unknown(tokens)?,
                    "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                },
            }));
        }
        let mut steps: Vec<Json> = pre
            .splits
            .iter()
            .map(|words| {
                json!({
                    "type": "Split", "pattern": { "Regex": words }, "behavior": "Isolated", "invert": false,
                })
            })
            .collect();
        steps.push(json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false,
        }));
        Ok(json!({
            "normalizer": null,
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": steps },
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "model": {
                "type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": false, "fuse_unk": false,
                "ignore_merges": pre.ignores_merges,
            },
        }))
    }

    /// The token that stands for what no token spells.
    fn unknown<'a>(&self, tokens: &[&'a str]) -> Result<Option<&'a str>> {
        Ok(self.token_id("unknown", tokens.len())?.map(|id| tokens[id]))
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
        let (normalizers, decoders) = spaces(prefix);
        let unknown = self.unknown(tokens)?;
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

    /// WordPiece. In the file the first piece of a word begins with `▁` and the others are as they are; in tokenizer.json those
    /// begin with `##`. Special tokens have neither.
    fn word_piece(&self, tokens: &[&str]) -> Result<Json> {
        let mut kinds = self.list("tokenizer.ggml.token_type")?.map(|list| self.elements(list));
        let piece = |token: &&str| match kinds.as_mut().and_then(Iterator::next) {
            Some(Value::Whole(CONTROL)) => (*token).to_owned(),
            _ => token.strip_prefix('▁').map_or_else(|| format!("##{token}"), str::to_owned),
        };
        let pieces: Vec<String> = tokens.iter().map(piece).collect();
        let vocab: serde_json::Map<String, Json> =
            pieces.iter().enumerate().map(|(id, piece)| (piece.clone(), id.into())).collect();
        let unknown = self.token_id("unknown", tokens.len())?.or(Some(100)).filter(|id| *id < tokens.len());
        let unknown = unknown.map(|id| pieces[id].as_str()).unwrap_or("[UNK]");
        let lower = self.flag("tokenizer.ggml.normalizer.lowercase")?.unwrap_or(true);
        let strips = self.flag("tokenizer.ggml.normalizer.strip_accents")?.unwrap_or(lower);
        Ok(json!({
            "normalizer": {
                "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": strips,
                "lowercase": lower,
            },
            "pre_tokenizer": { "type": "BertPreTokenizer" },
            "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
            "model": {
                "type": "WordPiece", "vocab": vocab, "unk_token": unknown, "continuing_subword_prefix": "##",
                // as the model's own tokenizer has it: a longer word is unknown, and takes no time
                "max_input_chars_per_word": 100,
            },
        }))
    }

    /// What goes before and behind a text. `bos`: whether a BOS token does where the file does not say.
    fn specials(&self, tokens: &[&str], bos: bool) -> Result<Json> {
        let model = self.text("tokenizer.ggml.model")?;
        let special = |name: &str, by_default: bool| -> Result<Option<(usize, &str)>> {
            // BERT's, where it is `[CLS]` and `[SEP]`, are always there
            let flag = match model {
                Some("bert") => None,
                _ => self.flag(&format!("tokenizer.ggml.add_{name}_token"))?,
            };
            // llama.cpp holds files of Gemma 4 that say otherwise to be wrong
            let forced = name == "bos" && model == Some("gemma4");
            if !(forced || flag.unwrap_or(by_default)) {
                return Ok(None);
            }
            let id = match (self.token_id(name, tokens.len())?, model, name) {
                // SentencePiece's own numbers
                (None, Some("llama"), "bos") => Some(1).filter(|id| *id < tokens.len()),
                (None, Some("llama"), "eos") => Some(2).filter(|id| *id < tokens.len()),
                // BERT's own
                (id, Some("bert"), "bos") => {
                    id.or(self.token_id("cls", tokens.len())?).or(Some(101)).filter(|id| *id < tokens.len())
                }
                (_, Some("bert"), "eos") => {
                    let id = self.token_id("seperator", tokens.len())?; // the key is spelled so
                    id.or(Some(102)).filter(|id| *id < tokens.len())
                }
                (id, ..) => id,
            };
            let key = format!("tokenizer.ggml.{name}_token_id");
            let expected = "a token's number: that token is put around texts";
            id.map(|id| Some((id, tokens[id]))).ok_or_else(|| self.wrong(&key, expected))
        };
        let (bos, eos) = (special("bos", bos)?, special("eos", model == Some("bert"))?);
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
        // as BERT has them; others are not asked for
        let mut pair = single.clone();
        pair.push(json!({ "Sequence": { "id": "B", "type_id": 1 } }));
        if let Some((_, eos)) = eos {
            pair.push(json!({ "SpecialToken": { "id": eos, "type_id": 1 } }));
        }
        Ok(json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": known }))
    }

    /// The chat templates with their names: that of `tokenizer.chat_template` is the default.
    fn templates(&self) -> Result<Vec<Json>> {
        const KEY: &str = "tokenizer.chat_template";
        let mut templates = Vec::new();
        for key in self.metadata.keys().filter(|key| key.starts_with(KEY)) {
            let name = match key[KEY.len()..].strip_prefix('.') {
                None if key.len() == KEY.len() => "default",
                Some(name) => name,
                None => continue, // `tokenizer.chat_templates` lists their names
            };
            if let Some(template) = self.text(key)? {
                templates.push(json!({ "name": name, "template": template }));
            }
        }
        Ok(templates)
    }

    /// What is in `tokenizer_config.json` elsewhere, as far as chat templates need it.
    ///
    /// # Errors
    /// A value is of another type than it must be.
    pub fn tokenizer_config(&self) -> Result<Json> {
        let mut fields = serde_json::Map::new();
        let templates = self.templates()?;
        if !templates.is_empty() {
            fields.insert("chat_template".into(), templates.into());
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

/// Normalizers and decoders of tokens that have `▁` for spaces; `prefix`: one goes before each text.
fn spaces(prefix: bool) -> (Vec<Json>, Vec<Json>) {
    let mut normalizers = vec![json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" })];
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    (normalizers, decoders)
}
