//! What is in `tokenizer.json` and the crate has parsed, but does not tell.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};

/// The file.
#[derive(Deserialize)]
pub struct File {
    pub model: Model,
}

/// Its model.
#[derive(Deserialize)]
pub struct Model {
    merges: Option<Vec<Merge>>,
    pub unk_id: Option<u32>,
}

/// A merge: `["a", "b"]`, or `"a b"` as in older files.
enum Merge {
    Pair(String, String),
    /// `#version: 0.2`, the first line of `merges.txt`.
    Version,
}

impl Model {
    /// The merges of BPE in the order of their ranks.
    pub fn pairs(self) -> Option<Vec<(String, String)>> {
        let pair = |merge| match merge {
            Merge::Pair(left, right) => Some((left, right)),
            Merge::Version => None,
        };
        Some(self.merges?.into_iter().filter_map(pair).collect())
    }
}

// By hand: what `serde` derives for either of two forms first copies all of it.
impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EitherForm)
    }
}

struct EitherForm;

impl<'de> Visitor<'de> for EitherForm {
    type Value = Merge;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a merge")
    }

    fn visit_str<E: Error>(self, line: &str) -> Result<Merge, E> {
        if line.starts_with("#version") {
            return Ok(Merge::Version);
        }
        let (left, right) = line.split_once(' ').ok_or_else(|| E::custom("a merge is of two tokens"))?;
        Ok(Merge::Pair(left.to_owned(), right.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Merge, A::Error> {
        let mut token =
            || sequence.next_element()?.ok_or_else(|| A::Error::custom("a merge is of two tokens"));
        let pair = Merge::Pair(token()?, token()?);
        match sequence.next_element::<String>()? {
            None => Ok(pair),
            Some(_) => Err(A::Error::custom("a merge is of two tokens")),
        }
    }
}
