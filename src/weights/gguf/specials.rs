//! Special tokens of a GGUF file: those that keys name, and those that are known by their text.
//!
//! Files often name one end token where a model has several. llama.cpp (`llama-vocab.cpp`) therefore looks for the others
//! by their text, in every vocabulary, and so does this.

use std::collections::BTreeSet;

use super::{Gguf, Value};
use crate::error::Result;

/// Texts of tokens that end a reply wherever a vocabulary has them.
const ENDS: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Further tokens that end a reply, of models that fill in the middle of a file: the part of the key that names one, and
/// the texts of which the first in the vocabulary is one where the key is absent.
const FILLING: [(&str, &[&str]); 3] = [
    ("fim_pad", &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"]),
    ("fim_rep", &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"]),
    ("fim_sep", &["<|file_sep|>"]),
];

/// Whether a token of this text is a control token, whatever type the file gives it.
pub fn is_end(text: &str) -> bool {
    ENDS.contains(&text)
}

impl Gguf {
    /// The token that a key names; none where the key is absent, or names no token of the `count` in the vocabulary.
    ///
    /// # Errors
    /// The value is not a whole number.
    pub fn token_id(&self, name: &str, count: usize) -> Result<Option<usize>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        match self.metadata.get(&key) {
            None => Ok(None),
            Some(&Value::Whole(id)) => Ok(usize::try_from(id).ok().filter(|id| *id < count)),
            Some(_) => Err(self.wrong(&key, "a token's number")),
        }
    }

    /// The tokens that end a reply, below `rows`.
    ///
    /// # Errors
    /// A value is of another type than it must be.
    pub fn ends(&self, rows: usize) -> Result<Vec<usize>> {
        let mut ends = BTreeSet::new();
        for name in ["eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"] {
            ends.extend(self.token_id(name, rows)?);
        }
        let mut missing = Vec::new();
        for (name, texts) in FILLING {
            if !self.metadata.contains_key(&format!("tokenizer.ggml.{name}_token_id")) {
                missing.push((texts, None));
            }
        }
        let (mut harmony, mut solar, mut gemma) = ([None; 3], [None; 3], [None; 2]);
        let Some((_, tokens)) = self.texts("tokenizer.ggml.tokens")? else {
            return Ok(ends.into_iter().collect());
        };
        let note = |found: &mut [Option<usize>], texts: &[&str], text: &str, id| {
            if let Some(at) = texts.iter().position(|one| *one == text) {
                found[at] = Some(id);
            }
        };
        for (id, text) in tokens.take(rows).enumerate() {
            let text = text?;
            if is_end(text) {
                ends.insert(id);
            }
            for (texts, found) in &mut missing {
                if found.is_none() && texts.contains(&text) {
                    *found = Some(id);
                }
            }
            note(&mut harmony, &["<|return|>", "<|call|>", "<|end|>"], text, id);
            note(&mut solar, &["<|calls|>", "<|flush|>", "<|end|>"], text, id);
            note(&mut gemma, &["<|tool_response>", "</s>"], text, id);
        }
        ends.extend(missing.into_iter().filter_map(|(_, found)| found));
        // there `<|end|>` ends a channel, not the reply; and Gemma 4's `</s>` is a word like others
        for found in [&harmony[..], &solar, &gemma] {
            if let (true, Some(Some(last))) = (found.iter().all(Option::is_some), found.last()) {
                ends.remove(last);
            }
        }
        Ok(ends.into_iter().collect())
    }
}
