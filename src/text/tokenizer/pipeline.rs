//! What a `tokenizer.json` does to a text, read once when it is opened, and run over `Secret`s.
//!
//! ```text
//! text -> added tokens -> normalizers -> added tokens in normalized form -> pre-tokenizers -> model -> ids
//! ```
//!
//! Each step is the crate's of the same name: the same ids for every text. What is not done here is named by
//! [`Pipeline::read`], and the crate does it.

use serde_json::Value;
use tokenizers::{ModelWrapper, Tokenizer};

use super::added::{Added, Part};
use super::bpe::{Bpe, Unencodable};
use super::file::File;
use super::literal::{self, Literal};
use super::normalizers::{self, Normalizer};
use super::pretokenizers::{self, Prepend, Rewrite, Step};
use super::rewritten::Rewritten;
use super::scratch::{ModelScratch, Scratch};
use super::unigram::Unigram;
use super::words::{WordLevel, WordPiece};
use crate::memory::Secret;

/// The steps, none of which ever changes.
pub struct Pipeline {
    added: Added,
    normalizers: Vec<Normalizer>,
    added_normalized: Added,
    steps: Vec<Step>,
    /// One of the steps asks whether a piece begins the text.
    follows_first: bool,
    model: Model,
    /// `unk_id` of a Unigram model, which the crate does not tell.
    pub unk_id: Option<u32>,
}

enum Model {
    Bpe(Bpe),
    Unigram(Unigram),
    WordPiece(WordPiece),
    WordLevel(WordLevel),
}

impl Pipeline {
    /// Reads the steps of `tokenizer`, which the crate made of `json`.
    ///
    /// # Errors
    /// One of them is not done here; names it.
    pub fn read(tokenizer: &Tokenizer, json: &str) -> Result<Self, String> {
        let value =
            |value: serde_json::Result<Value>| value.map_err(|_| String::from("what cannot be written"));
        let normalizers = normalizers::read(&value(serde_json::to_value(tokenizer.get_normalizer()))?)?;
        let mut steps = pretokenizers::read(&value(serde_json::to_value(tokenizer.get_pre_tokenizer()))?)?;
        let malformed = |_| String::from("a model that is written in another way");
        let file = serde_json::from_str::<File>(json).map_err(malformed)?.model;
        let unk_id = file.unk_id;
        let model = match tokenizer.get_model() {
            ModelWrapper::BPE(model) => {
                let pairs = file.pairs().ok_or("BPE without merges")?;
                // GPT-2's alphabet is left away where nothing would look at it but the model
                let spelled =
                    matches!(steps.last(), Some(Step::Rewrite(Rewrite::Bytes))) && Bpe::can_take_bytes(model);
                if spelled {
                    steps.pop();
                }
                Model::Bpe(Bpe::new(model, pairs, spelled)?)
            }
            ModelWrapper::Unigram(model) => Model::Unigram(Unigram::new(model, unk_id)?),
            ModelWrapper::WordPiece(model) => Model::WordPiece(WordPiece::new(model)),
            ModelWrapper::WordLevel(model) => Model::WordLevel(WordLevel::new(model)?),
        };
        let first =
            |step: &Step| matches!(step, Step::Rewrite(Rewrite::Metaspace { prepend: Prepend::First, .. }));
        Ok(Self {
            added: Added::new(tokenizer, false)?,
            normalizers,
            added_normalized: Added::new(tokenizer, true)?,
            follows_first: steps.iter().any(first),
            steps,
            model,
            unk_id,
        })
    }

    /// Appends the ids of `text`, in which `literal` parts are text alone.
    ///
    /// # Errors
    /// The model has no token for a part of it.
    pub fn encode(
        &self,
        text: &str,
        literal: Option<Literal<'_>>,
        ids: &mut Secret<[u32]>,
    ) -> Result<(), Unencodable> {
        if u32::try_from(text.len()).is_err() {
            return Err(Unencodable);
        }
        let mut scratch = Scratch::default();
        self.added.split(text, literal, |part| match part {
            Part::Token(id) => {
                ids.push(id);
                Ok(())
            }
            Part::Text(start, end) => match literal.filter(|literal| literal.touched(start, end).is_some()) {
                None => self.normalize(&text[start..end], start == 0, None, &mut scratch, ids),
                Some(literal) => self.partly_literal(text, (start, end), literal, &mut scratch, ids),
            },
        })
    }

    /// Encodes a part of `text` of which some is literal. It is encoded as a whole, as it would be were none of it, unless
    /// that makes control tokens of what is literal.
    fn partly_literal(
        &self,
        text: &str,
        (start, end): (usize, usize),
        literal: Literal<'_>,
        scratch: &mut Scratch,
        ids: &mut Secret<[u32]>,
    ) -> Result<(), Unencodable> {
        let before = ids.expose().len();
        self.normalize(&text[start..end], start == 0, None, scratch, ids)?;
        let found = literal.count(&ids.expose()[before..]);
        if found == 0 {
            return Ok(());
        }
        // from here on only where a template's own control tokens are looked for in normalized text, or a user typed one
        let (mut written, mut typed) = (0, 0);
        let mut alone = Secret::<[u32]>::default();
        for (from, to, is_literal) in literal.runs(start, end) {
            alone.truncate(0);
            self.normalize(&text[from..to], from == 0, None, scratch, &mut alone)?;
            *(if is_literal { &mut typed } else { &mut written }) += literal.count(alone.expose());
        }
        if typed == 0 && written == found {
            return Ok(());
        }
        ids.truncate(before);
        literal.runs(start, end).try_for_each(|(from, to, is_literal)| {
            let guard = is_literal.then_some(literal);
            self.normalize(&text[from..to], from == 0, guard, scratch, ids)
        })
    }

    /// `begins`: the whole text begins with this part. With `guard` all of it is literal.
    fn normalize(
        &self,
        text: &str,
        begins: bool,
        guard: Option<Literal<'_>>,
        scratch: &mut Scratch,
        ids: &mut Secret<[u32]>,
    ) -> Result<(), Unencodable> {
        // bytes that come from the whole text's first character
        let mut first = match self.follows_first && begins {
            true => text.chars().next().map_or(0, char::len_utf8),
            false => 0,
        };
        let [mut old, mut new] = std::mem::take(&mut scratch.normalized);
        for (at, normalizer) in self.normalizers.iter().enumerate() {
            new.truncate(0);
            let from = if at == 0 { text } else { utf8(&old)? };
            let mut to = Rewritten::new(from, first, &mut new);
            normalizer.write(from, &mut scratch.pending, &mut to);
            first = to.first();
            std::mem::swap(&mut old, &mut new);
        }
        let normalized = if self.normalizers.is_empty() { text } else { utf8(&old)? };
        let whole = [[0, u32::try_from(normalized.len()).map_err(|_| Unencodable)?]];
        let guarded = guard.map(|guard| guard.all(&whole));
        self.added_normalized.split(normalized, guarded, |part| match part {
            Part::Token(id) => {
                ids.push(id);
                Ok(())
            }
            Part::Text(start, end) => {
                self.cut(&normalized[start..end], first.saturating_sub(start), guard, scratch, ids)
            }
        })?;
        scratch.normalized = [old, new];
        Ok(())
    }

    /// Runs the pre-tokenizers, and the model on each piece. Pieces that begin in the first `first` bytes are first.
    fn cut(
        &self,
        text: &str,
        first: usize,
        guard: Option<Literal<'_>>,
        scratch: &mut Scratch,
        ids: &mut Secret<[u32]>,
    ) -> Result<(), Unencodable> {
        let [mut old, mut new] = std::mem::take(&mut scratch.rewritten);
        let [mut pieces, mut next] = std::mem::take(&mut scratch.pieces);
        let mut rewritten = false;
        pieces.truncate(0);
        pieces.extend(&[0, text.len() as u32]);
        // the last split gives its pieces to the model at once
        let (last, steps) = match self.steps.split_last() {
            Some((Step::Split(split), steps)) => (Some(split), steps),
            _ => (None, &self.steps[..]),
        };
        for step in steps {
            let from = if rewritten { utf8(&old)? } else { text };
            next.truncate(0);
            match step {
                Step::Split(split) => {
                    for (start, end) in ranges(&pieces) {
                        split.run(&from[start..end], |from, to| {
                            next.extend(&[(start + from) as u32, (start + to) as u32]);
                            Ok(())
                        })?;
                    }
                }
                Step::Rewrite(rewrite) => {
                    new.truncate(0);
                    for (start, end) in ranges(&pieces) {
                        let place = new.expose().len();
                        rewrite.write(&from[start..end], start < first, &mut new);
                        next.extend(&[place as u32, new.expose().len() as u32]);
                    }
                    u32::try_from(new.expose().len()).map_err(|_| Unencodable)?;
                    std::mem::swap(&mut old, &mut new);
                    rewritten = true;
                }
            }
            std::mem::swap(&mut pieces, &mut next);
        }
        let from = if rewritten { utf8(&old)? } else { text };
        for (start, end) in ranges(&pieces) {
            let piece = &from[start..end];
            match last {
                Some(split) => split.run(piece, |from, to| {
                    self.model.encode_guarded(&piece[from..to], guard, &mut scratch.model, ids)
                })?,
                None => self.model.encode_guarded(piece, guard, &mut scratch.model, ids)?,
            }
        }
        scratch.rewritten = [old, new];
        scratch.pieces = [pieces, next];
        Ok(())
    }
}

impl Model {
    /// With `guard` the piece is literal, and gives no control token.
    #[inline]
    fn encode_guarded(
        &self,
        piece: &str,
        guard: Option<Literal<'_>>,
        scratch: &mut ModelScratch,
        ids: &mut Secret<[u32]>,
    ) -> Result<(), Unencodable> {
        match guard {
            None => self.encode(piece, scratch, ids),
            Some(guard) => self.encode_literal(piece, guard, scratch, ids),
        }
    }

    /// Encodes a piece; where that gives a control token, in parts that do not spell it; where these do, in characters.
    fn encode_literal(
        &self,
        piece: &str,
        guard: Literal<'_>,
        scratch: &mut ModelScratch,
        ids: &mut Secret<[u32]>,
    ) -> Result<(), Unencodable> {
        let before = ids.expose().len();
        self.encode(piece, scratch, ids)?;
        let found = ids.expose()[before..].iter().find_map(|&id| guard.content(id));
        let Some(content) = found else { return Ok(()) };
        ids.truncate(before);
        for part in literal::parts(piece, content) {
            let before = ids.expose().len();
            self.encode(part, scratch, ids)?;
            if guard.count(&ids.expose()[before..]) == 0 {
                continue;
            }
            ids.truncate(before);
            let mut bytes = [0; 4];
            part.chars()
                .try_for_each(|character| self.encode(character.encode_utf8(&mut bytes), scratch, ids))?;
            if guard.count(&ids.expose()[before..]) > 0 {
                return Err(Unencodable);
            }
        }
        Ok(())
    }

    #[inline]
    fn encode(
        &self,
        piece: &str,
        scratch: &mut ModelScratch,
        ids: &mut Secret<[u32]>,
    ) -> Result<(), Unencodable> {
        match self {
            _ if piece.is_empty() => Ok(()),
            Self::Bpe(model) => model.encode(piece, scratch, ids),
            Self::Unigram(model) => model.encode(piece, scratch, ids),
            Self::WordPiece(model) => model.encode(piece, ids),
            Self::WordLevel(model) => model.encode(piece, ids),
        }
    }
}

/// What steps wrote is text.
fn utf8(bytes: &Secret<[u8]>) -> Result<&str, Unencodable> {
    str::from_utf8(bytes.expose()).map_err(|_| Unencodable)
}

fn ranges(pieces: &Secret<[u32]>) -> impl Iterator<Item = (usize, usize)> {
    pieces.expose().as_chunks::<2>().0.iter().map(|&[start, end]| (start as usize, end as usize))
}
