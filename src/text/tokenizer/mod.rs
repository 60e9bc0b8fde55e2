//! `tokenizer.json`: texts into token ids, over `Secret`s alone.
//!
//! The `tokenizers` crate parses the file, and is then let go: what it parsed becomes a [`pipeline`] of our own, one file
//! for each family of components. Why not call the crate: it leaves copies of the text on the heap, and automata that
//! it builds while it searches keep state of what was searched until the session ends.
//!
//! - [`added`]: special and other added tokens, found first, and what [`config`] changes of them;
//! - [`normalizers`], with [`unicode`] (NFC and its kin) and [`charsmap`] (SentencePiece's own map);
//! - [`pretokenizers`], which [`split`] texts by patterns compiled to an [`automaton`];
//! - what users typed, in which no control token is found: [`literal`];
//! - models: [`bpe`] with its [`characters`], [`borders`] and [`merges`], [`unigram`], and [`words`] (WordPiece, WordLevel).
//!
//! **Invariants.** Nothing of a pipeline changes after it was read: no cache, no automaton that grows. All working memory
//! is in a [`scratch`] of `Secret`s that goes with the call, or on the stack, which the calling thread overwrites. Any
//! text takes time in proportion to its length, but for a logarithm in what one word's merges take.
//!
//! What is rarer is left to the crate ([`fallback`]) by name: [`Text::fallback`], and on receipts. Special tokens around a
//! text are read off the crate's post-processor once, at loading, with a text of our own.

mod added;
mod automaton;
mod borders;
mod bpe;
mod characters;
mod charsmap;
mod classes;
mod config;
mod fallback;
mod file;
mod literal;
mod merges;
mod normalizers;
mod pipeline;
mod pretokenizers;
mod rewritten;
mod scratch;
mod split;
mod tables;
mod unicode;
mod unigram;
mod words;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use tokenizers::{AddedToken, Model as _, ModelWrapper, Tokenizer};

use self::config::{change_added_tokens, special_token};
use self::fallback::Fallback;
use self::literal::{Controls, Literal};
use self::pipeline::Pipeline;
use super::detokenizer::Pieces;
use super::size;
use crate::error::{Error, Result};
use crate::memory::Secret;
use crate::memory::ledger::NotCovered;
use crate::weights::json::{self, Json};

/// Encoded at loading to see what the post-processor puts around it. Public, and in any vocabulary.
const PROBE: &str = "a";

/// A checkpoint's tokenizer.
pub struct Text {
    engine: Engine,
    /// Special tokens by their text.
    specials: HashMap<String, u32>,
    /// Other added tokens.
    added: Vec<(u32, String)>,
    /// What literal text never becomes.
    controls: Controls,
    /// `eos_token` of `tokenizer_config.json`.
    end: Option<u32>,
    /// Ids before a sequence: usually the BOS token.
    prefix: Vec<u32>,
    /// Ids behind it: usually none.
    suffix: Vec<u32>,
    /// Ids between two texts of a pair, and behind the second; before the first there is `prefix`.
    pair: [Vec<u32>; 2],
    /// How many of those between are of the first part; none where all of a pair is one part.
    first_part: Option<usize>,
    pieces: Pieces,
}

/// Who encodes.
enum Engine {
    Own(Box<Pipeline>),
    Crate(Box<Fallback>),
}

impl Text {
    /// Reads `tokenizer.json`, and `tokenizer_config.json` if it is there, for a model of `vocab` tokens. It may have
    /// tokens whose ids are above those: who encodes a prompt looks for them.
    ///
    /// # Errors
    /// A file is malformed, holds ids far outside the model's vocabulary, or asks for a decoder that this library does
    /// not do.
    pub fn open(folder: &Path, vocab: usize) -> Result<Self> {
        Self::open_as(folder, vocab, true)
    }

    /// Opens it like [`Text::open`], for a model that only reads: nothing is decoded, so the decoder may be of any kind.
    pub fn open_to_read(folder: &Path, vocab: usize) -> Result<Self> {
        Self::open_as(folder, vocab, false)
    }

    /// Takes a `tokenizer.json` that was read from `file` or made of what is in it; otherwise like [`Text::open`].
    ///
    /// # Errors
    /// Returns the errors of [`Text::open`].
    pub fn of(file: &Path, json: &str, vocab: usize) -> Result<Self> {
        Self::read(None, file, json, vocab, true)
    }

    /// Takes it like [`Text::of`], for a model that only reads.
    ///
    /// # Errors
    /// Returns the errors of [`Text::open`].
    pub fn of_to_read(file: &Path, json: &str, vocab: usize) -> Result<Self> {
        Self::read(None, file, json, vocab, false)
    }

    fn open_as(folder: &Path, vocab: usize, decodes: bool) -> Result<Self> {
        let file = folder.join("tokenizer.json");
        Self::read(Some(folder), &file, &json::read_tokenizer(&file)?, vocab, decodes)
    }

    fn read(folder: Option<&Path>, file: &Path, json: &str, vocab: usize, decodes: bool) -> Result<Self> {
        // The crate panics on some malformed files.
        let opened = catch_unwind(AssertUnwindSafe(|| Self::parse(folder, file, json, vocab, decodes)));
        opened.unwrap_or_else(|_| {
            Err(Error::tokenizer(file, "must be a Hugging Face tokenizer: its parser gave up"))
        })
    }

    fn parse(folder: Option<&Path>, file: &Path, bytes: &str, vocab: usize, decodes: bool) -> Result<Self> {
        size::check(bytes, vocab).map_err(|reason| Error::tokenizer(file, reason))?;
        let mut tokenizer = Tokenizer::from_bytes(bytes)
            .map_err(|error| Error::tokenizer(file, format!("must be a Hugging Face tokenizer: {error}")))?;
        // Ours are the session's limits; padding would make room for whatever the file says.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|_| Error::tokenizer(file, "must do without truncation"))?;
        let configs = match folder {
            None => None,
            Some(folder) => {
                let open = |name: &str| Json::open_if_there(&folder.join(name));
                Some([open("tokenizer_config.json")?, open("special_tokens_map.json")?])
            }
        };
        // what has no tokens is refused below
        if let Some([config, map]) = configs.as_ref().filter(|_| tokenizer.get_vocab_size(true) > 0) {
            change_added_tokens(&mut tokenizer, config, map)?;
        }
        let vocabulary = tokenizer.get_vocab(true);
        let most = vocab.saturating_add(size::EXTRA_TOKENS);
        let largest = vocabulary.values().max().map(|&id| id as usize).filter(|&id| id < most);
        let Some(largest) = largest else {
            let reason = format!("its ids must be below {most} for a model whose vocab_size is {vocab}");
            return Err(Error::tokenizer(file, reason));
        };
        let pieces = match decodes {
            true => Pieces::new(&tokenizer, vocab.max(largest + 1))
                .map_err(|reason| Error::tokenizer(file, reason))?,
            false => Pieces::none(),
        };
        let added = tokenizer.get_added_tokens_decoder().into_iter();
        let (special, added): (Vec<_>, Vec<_>) = added.partition(|(_, token)| token.special);
        let contents = |tokens: Vec<(u32, AddedToken)>| {
            tokens.into_iter().map(|(id, token)| (id, token.content)).collect::<Vec<_>>()
        };
        let engine = match Pipeline::read(&tokenizer, bytes) {
            Ok(pipeline) => Engine::Own(Box::new(pipeline)),
            Err(component) => Engine::Crate(Box::new(Fallback::new(tokenizer.clone(), component))),
        };
        let unknown = unknown(&tokenizer, &engine);
        let mut text = Self {
            engine,
            specials: vocabulary.into_iter().filter(|(_, id)| pieces.is_special(*id)).collect(),
            added: contents(added),
            controls: Controls::new(contents(special).into_iter().collect(), unknown),
            end: None,
            prefix: Vec::new(),
            suffix: Vec::new(),
            pair: Default::default(),
            first_part: None,
            pieces,
        };
        text.read_specials(&tokenizer, file)?;
        if !decodes {
            text.read_pair(&tokenizer, file)?;
        }
        if let Some(configs) = &configs {
            text.read_config(&tokenizer, configs, decodes)?;
        }
        let around = text.prefix.iter().chain(&text.suffix).chain(text.pair.iter().flatten());
        if around.copied().any(|id| id as usize >= most) {
            let reason = format!(
                "its post-processor's ids must be below {most} for a model whose vocab_size is {vocab}"
            );
            return Err(Error::tokenizer(file, reason));
        }
        Ok(text)
    }

    fn read_specials(&mut self, tokenizer: &Tokenizer, file: &Path) -> Result<()> {
        let failed = |_| Error::tokenizer(file, "must encode a plain text");
        let with = tokenizer.encode_fast(PROBE, true).map_err(failed)?;
        let without = tokenizer.encode_fast(PROBE, false).map_err(failed)?;
        let (with, without) = (with.get_ids(), without.get_ids());
        let start = with.windows(without.len().max(1)).position(|window| window == without);
        let Some(start) = start else {
            return Err(Error::tokenizer(
                file,
                "the post-processor must only add tokens before and behind the text",
            ));
        };
        self.prefix = with[..start].to_vec();
        self.suffix = with[start + without.len()..].to_vec();
        Ok(())
    }

    /// What the post-processor puts between two texts and behind them.
    fn read_pair(&mut self, tokenizer: &Tokenizer, file: &Path) -> Result<()> {
        let failed = |_| Error::tokenizer(file, "must encode a pair of plain texts");
        let with = tokenizer.encode_fast((PROBE, PROBE), true).map_err(failed)?;
        let without = tokenizer.encode_fast(PROBE, false).map_err(failed)?;
        let (parts, with, one) = (with.get_type_ids(), with.get_ids(), without.get_ids());
        let mut at = with.windows(one.len().max(1)).enumerate().filter(|(_, window)| *window == one);
        // a text may be found in what is around it only where that overlaps
        let (first, second) = (at.next().map(|(at, _)| at), at.next_back().map(|(at, _)| at));
        let (Some(first), Some(second)) = (first, second.filter(|second| *second >= one.len())) else {
            return Err(Error::tokenizer(
                file,
                "the post-processor must leave the texts of a pair as they are",
            ));
        };
        if with[..first] != self.prefix {
            return Err(Error::tokenizer(file, "the post-processor must begin a pair as it begins a text"));
        }
        let between = first + one.len()..second;
        self.first_part = (parts[second] != parts[first])
            .then(|| parts[between.clone()].iter().filter(|part| **part == parts[first]).count());
        self.pair = [with[between].to_vec(), with[second + one.len()..].to_vec()];
        Ok(())
    }

    /// `eos_token` ends replies, whatever the model's own files say. Of a model that embeds, `add_eos_token` puts it behind
    /// texts: the end is the row that is pooled. Else what stands around a text is what the post-processor says alone:
    /// beside a `tokenizer.json`, transformers 5 reads neither `add_bos_token` nor `add_eos_token`.
    fn read_config(&mut self, tokenizer: &Tokenizer, [config, map]: &[Json; 2], decodes: bool) -> Result<()> {
        let end = special_token(config, "eos_token").or_else(|| special_token(map, "eos_token"));
        if let Some(id) = end.and_then(|end| tokenizer.token_to_id(&end)) {
            self.end = Some(id);
            if !decodes && self.suffix.last() != Some(&id) && config.flag("add_eos_token", false)? {
                self.suffix.push(id);
            }
        }
        Ok(())
    }

    /// Appends the ids of `text` to `ids`, with the checkpoint's special tokens around them if asked.
    ///
    /// # Errors
    /// The tokenizer cannot encode it; or the `tokenizers` crate does it, and a logger would take it. The error holds none
    /// of it.
    pub fn encode(&self, text: &str, specials: bool, ids: &mut Secret<[u32]>) -> Result<()> {
        self.encode_parts(text, None, specials, ids)
    }

    /// Encodes like [`Text::encode`] a text in which nothing is a control token: what stands there as `<|im_end|>` is
    /// encoded as these characters.
    ///
    /// # Errors
    /// Returns the errors of [`Text::encode`].
    pub fn encode_literal(&self, text: &str, specials: bool, ids: &mut Secret<[u32]>) -> Result<()> {
        let whole = [0, u32::try_from(text.len()).map_err(|_| unencodable())?];
        self.encode_parts(text, Some(Literal::new(&whole, &self.controls, false)), specials, ids)
    }

    /// [`Text::encode_literal`] of a text that is `literal`, else [`Text::encode`].
    ///
    /// # Errors
    /// Returns the errors of [`Text::encode`].
    pub fn encode_prompt(
        &self,
        text: &str,
        literal: bool,
        specials: bool,
        ids: &mut Secret<[u32]>,
    ) -> Result<()> {
        match literal {
            true => self.encode_literal(text, specials, ids),
            false => self.encode(text, specials, ids),
        }
    }

    /// Appends the ids of a chat's prompt, of which the bytes in `ranges` (pairs of start and end) are literal.
    ///
    /// # Errors
    /// Returns the errors of [`Text::encode`].
    pub fn encode_chat(&self, text: &str, ranges: &Secret<[u32]>, ids: &mut Secret<[u32]>) -> Result<()> {
        let literal = Literal::new(ranges.expose(), &self.controls, true);
        self.encode_parts(text, Some(literal), false, ids)
    }

    fn encode_parts(
        &self,
        text: &str,
        literal: Option<Literal<'_>>,
        specials: bool,
        ids: &mut Secret<[u32]>,
    ) -> Result<()> {
        if specials {
            ids.extend(&self.prefix);
        }
        match &self.engine {
            Engine::Own(pipeline) => pipeline.encode(text, literal, ids).map_err(|_| unencodable())?,
            Engine::Crate(fallback) => fallback.encode(text, literal, ids)?,
        }
        if specials {
            ids.extend(&self.suffix);
        }
        Ok(())
    }

    /// Tells what else literal text must not become: `ends`, the checkpoint's end tokens, and added tokens that its chat
    /// templates write.
    pub fn protect(&mut self, ends: &[u32], written: impl Fn(&str) -> bool) {
        for (id, content) in &self.added {
            if ends.contains(id) {
                self.controls.add_special(*id, content);
            } else if is_markup(content) && written(content) {
                self.controls.add_markup(*id, content);
            }
        }
    }

    /// The texts of tokens that literal text must not become.
    pub fn control_texts(&self) -> impl Iterator<Item = &str> {
        self.controls.contents()
    }

    /// The end token that `tokenizer_config.json` names.
    pub fn end_token(&self) -> Option<u32> {
        self.end
    }

    /// The component of `tokenizer.json` that is not done here, so that the `tokenizers` crate encodes all texts.
    pub fn fallback(&self) -> Option<&str> {
        match &self.engine {
            Engine::Own(_) => None,
            Engine::Crate(fallback) => Some(&fallback.component),
        }
    }

    /// What the guarantee does not cover: copies of texts that the `tokenizers` crate frees, where it is used and nothing
    /// overwrites them.
    pub fn not_covered(&self) -> Option<NotCovered> {
        let component = self.fallback().filter(|_| !crate::alloc::is_installed())?.to_owned();
        Some(NotCovered::TokenizerTemporaries { component })
    }

    /// Special tokens that go before a text.
    pub fn specials_before(&self) -> usize {
        self.prefix.len()
    }

    /// Encodes like [`Text::encode`], with special tokens and no more than `max` tokens in all: the text's last ones are left
    /// out. Returns whether there were any.
    ///
    /// # Errors
    /// Returns the errors of [`Text::encode`].
    pub fn encode_cut(&self, text: &str, max: usize, ids: &mut Secret<[u32]>) -> Result<bool> {
        ids.extend(&self.prefix);
        let start = ids.expose().len();
        self.encode(text, false, ids)?;
        let room = start + max.saturating_sub(self.prefix.len() + self.suffix.len());
        let cut = ids.expose().len() > room;
        ids.truncate(room);
        ids.extend(&self.suffix);
        Ok(cut)
    }

    /// Appends the ids of a pair of texts, no more than `max`. Returns how many are of the first part, and whether tokens
    /// were left out: of the longer text first, as the `tokenizers` crate does (`LongestFirst`).
    ///
    /// # Errors
    /// Returns the errors of [`Text::encode`].
    pub fn encode_pair(
        &self,
        first: &str,
        second: &str,
        max: usize,
        ids: &mut Secret<[u32]>,
    ) -> Result<(usize, bool)> {
        let [between, behind] = &self.pair;
        let start = ids.expose().len();
        let [mut a, mut b] = [Secret::<[u32]>::default(), Secret::default()];
        self.encode(first, false, &mut a)?;
        self.encode(second, false, &mut b)?;
        let room = max.saturating_sub(self.prefix.len() + between.len() + behind.len());
        let lens = [a.expose().len(), b.expose().len()];
        let kept = longest_first(lens, room);
        a.truncate(kept[0]);
        b.truncate(kept[1]);
        for part in [&self.prefix[..], a.expose(), between, b.expose(), behind] {
            ids.extend(part);
        }
        let of_first = match self.first_part {
            Some(between) => self.prefix.len() + kept[0] + between,
            None => ids.expose().len() - start,
        };
        Ok((of_first, kept != lens))
    }

    /// The id of a special token.
    pub fn special(&self, token: &str) -> Option<u32> {
        self.specials.get(token).copied()
    }

    /// The bytes of each token.
    pub fn pieces(&self) -> &Pieces {
        &self.pieces
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Text").finish_non_exhaustive()
    }
}

/// Whether an added token looks like a mark, and not like words or white space that are tokens of their own.
fn is_markup(content: &str) -> bool {
    let is_mark = |character: Option<char>| character.is_some_and(|character| !character.is_alphanumeric());
    let mut characters = content.chars();
    is_mark(characters.next())
        && is_mark(characters.next_back())
        && content.chars().any(char::is_alphanumeric)
        && !content.contains(char::is_whitespace)
}

/// The token that the model gives for what it does not know.
fn unknown(tokenizer: &Tokenizer, engine: &Engine) -> Option<u32> {
    let model = tokenizer.get_model();
    let token = match (model, engine) {
        (ModelWrapper::BPE(model), _) => model.unk_token.clone()?,
        (ModelWrapper::WordPiece(model), _) => model.unk_token.clone(),
        (ModelWrapper::WordLevel(model), _) => model.unk_token.clone(),
        (ModelWrapper::Unigram(_), Engine::Own(pipeline)) => return pipeline.unk_id,
        (ModelWrapper::Unigram(_), Engine::Crate(_)) => {
            // written out, since the crate does not tell it
            let written = serde_json::to_value(model).ok()?;
            return written["unk_id"].as_u64().and_then(|id| u32::try_from(id).ok());
        }
    };
    model.token_to_id(&token)
}

fn unencodable() -> Error {
    Error::request("prompt", "text that the checkpoint's tokenizer can encode")
}

/// How much of two texts is kept in `room`: `truncate_encodings` of the `tokenizers` crate.
fn longest_first([a, b]: [usize; 2], room: usize) -> [usize; 2] {
    if a + b <= room {
        return [a, b];
    }
    let short = a.min(b);
    let mut kept = [short, if short > room { short } else { short.max(room - short) }];
    if kept[0] + kept[1] > room {
        kept = [room / 2, room / 2 + room % 2];
    }
    if a > b { [kept[1], kept[0]] } else { kept }
}
