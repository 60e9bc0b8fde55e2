//! How much a `tokenizer.json` holds, counted before any of it is built.

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Tokens beyond the model's vocabulary: some are added for no row of the embedding.
pub const EXTRA_TOKENS: usize = 1 << 16;
/// Merges for each token of a vocabulary. Published tokenizers have up to 2.2.
const MERGES: usize = 4;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Sizes {
    added_tokens: Count,
    model: Model,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Model {
    vocab: Count,
    merges: Count,
}

/// The elements of a list or an object; of anything else, none.
#[derive(Default)]
struct Count(usize);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements;

        impl<'de> Visitor<'de> for Elements {
            type Value = Count;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list or an object")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Count, A::Error> {
                let mut count = 0;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Count(count))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Count, A::Error> {
                let mut count = 0;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Count(count))
            }
        }

        deserializer.deserialize_any(Elements)
    }
}

/// Refuses a `tokenizer.json` that holds far more than a model of `vocab` tokens has use for: what is built of it takes
/// hundreds of bytes for each token and merge. One that is malformed is left to who reads it.
///
/// # Errors
/// What it must be instead.
pub fn check(json: &str, vocab: usize) -> Result<(), String> {
    let Ok(Sizes { added_tokens, model }) = serde_json::from_str(json) else { return Ok(()) };
    let tokens = vocab.saturating_add(EXTRA_TOKENS);
    for (name, count, most) in [
        ("added_tokens", added_tokens, tokens),
        ("model.vocab", model.vocab, tokens),
        ("model.merges", model.merges, vocab.saturating_mul(MERGES).saturating_add(EXTRA_TOKENS)),
    ] {
        if count.0 > most {
            return Err(format!("must have at most {most} `{name}` for this model; it has {}", count.0));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_merges_are_counted() {
        let list = |count: usize| format!("[{}0]", "0,".repeat(count - 1));
        let json = |added: usize, merges: usize| {
            format!(
                r#"{{"x":[[1]],"added_tokens":{},"model":{{"vocab":{{"a":0}},"merges":{}}}}}"#,
                list(added),
                list(merges)
            )
        };
        assert_eq!(check(&json(EXTRA_TOKENS + 10, EXTRA_TOKENS + 40), 10), Ok(()));
        assert!(check(&json(EXTRA_TOKENS + 11, 1), 10).unwrap_err().contains("`added_tokens`"));
        assert!(check(&json(1, EXTRA_TOKENS + 41), 10).unwrap_err().contains("`model.merges`"));
        for malformed in ["", "{", "[]", r#"{"model":{"vocab":1}}"#, r#"{"added_tokens":null}"#] {
            assert_eq!(check(malformed, 0), Ok(()), "{malformed}");
        }
    }
}
