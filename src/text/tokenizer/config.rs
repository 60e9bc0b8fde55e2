//! What `tokenizer_config.json` and `special_tokens_map.json` say of added tokens.
//!
//! transformers opens `tokenizer.json` and changes it by these files: an entry of `added_tokens_decoder` replaces the
//! properties of the token with its content, a token that a field like `eos_token` names is special whatever else says
//! so, and what is not there yet is added with the next id. Published checkpoints need it: in `tokenizer.json` of
//! Command R+ the token that ends turns is not special, and would be shown in replies.

use std::collections::HashMap;

use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer};

use crate::error::Result;
use crate::text::size::EXTRA_TOKENS;
use crate::weights::json::Json;

/// The fields that name a special token.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Changes the added tokens of `tokenizer.json` as the files beside it say.
///
/// # Errors
/// `added_tokens_decoder` is not an object of tokens, or the crate cannot add one.
pub fn change_added_tokens(tokenizer: &mut Tokenizer, config: &Json, map: &Json) -> Result<()> {
    let present: HashMap<String, AddedToken> = tokenizer
        .get_added_tokens_decoder()
        .into_values()
        .map(|token| (token.content.clone(), token))
        .collect();
    let mut changed = listed(config)?;
    let mut places: HashMap<String, usize> =
        changed.iter().enumerate().map(|(place, token)| (token.content.clone(), place)).collect();
    for content in named(config, map) {
        let place = *places.entry(content).or_insert_with_key(|content| {
            changed.push(present.get(content).cloned().unwrap_or_else(|| AddedToken::from(&**content, true)));
            changed.len() - 1
        });
        changed[place].special = true;
    }
    changed.retain(|token| !token.content.is_empty() && present.get(&token.content) != Some(token));
    if changed.is_empty() {
        return Ok(());
    }
    let added = tokenizer.add_tokens(changed);
    added.map(drop).map_err(|_| config.wrong("added_tokens_decoder", "tokens that the normalizer can take"))
}

/// The entries of `added_tokens_decoder`, by rising id.
fn listed(config: &Json) -> Result<Vec<AddedToken>> {
    let wrong = || config.wrong("added_tokens_decoder", "an object of at most 65,536 ids with a token each");
    let Some(listed) = config.field("added_tokens_decoder") else { return Ok(Vec::new()) };
    let listed = listed.as_object().filter(|listed| listed.len() <= EXTRA_TOKENS).ok_or_else(wrong)?;
    let entry = |(id, token): (&String, &Value)| Some((id.parse::<u32>().ok()?, added_token(token)?));
    let mut tokens = listed.iter().map(entry).collect::<Option<Vec<_>>>().ok_or_else(wrong)?;
    tokens.sort_by_key(|(id, _)| *id);
    Ok(tokens.into_iter().map(|(_, token)| token).collect())
}

fn added_token(json: &Value) -> Option<AddedToken> {
    let flag = |name: &str, default| json.get(name).map_or(Some(default), Value::as_bool);
    let special = flag("special", false)?;
    Some(AddedToken {
        content: json.get("content")?.as_str()?.to_owned(),
        single_word: flag("single_word", false)?,
        lstrip: flag("lstrip", false)?,
        rstrip: flag("rstrip", false)?,
        normalized: flag("normalized", !special)?,
        special,
    })
}

/// The contents of the tokens that a field names.
fn named(config: &Json, map: &Json) -> Vec<String> {
    let mut contents: Vec<String> = NAMED
        .iter()
        .filter_map(|name| special_token(config, name).or_else(|| special_token(map, name)))
        .collect();
    let further = config.field("extra_special_tokens").and_then(Value::as_object);
    contents.extend(further.into_iter().flat_map(|further| further.values().filter_map(content)));
    // transformers' class for Gemma has a mask that its files do not name
    let class = config.field("tokenizer_class").and_then(Value::as_str);
    if class.is_some_and(|class| class.starts_with("GemmaTokenizer")) {
        contents.push("<mask>".to_owned());
    }
    contents
}

/// A special token in `tokenizer_config.json`: a string, or an object with `content`.
pub fn special_token(config: &Json, name: &str) -> Option<String> {
    config.field(name).and_then(content)
}

fn content(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}
