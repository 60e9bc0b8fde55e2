//! Fields of requests that are not known here: most are ignored and named in a header, and those that would change the
//! reply are refused.

use std::cell::RefCell;

use serde_json::Value;

thread_local! {
    /// Fields that were ignored since [`ignored_by`] began on this thread.
    static IGNORED: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Most fields that are named, and the longest name: they are told in a header.
const MAX_IGNORED: usize = 32;
const MAX_NAME: usize = 64;

/// What `take` makes, and the places of the fields that it ignored. Their names may be anything: one that is no plain word
/// is told by its number.
pub fn ignored_by<T>(take: impl FnOnce() -> T) -> (T, Vec<String>) {
    IGNORED.take();
    let taken = take();
    (taken, IGNORED.take())
}

/// Notes that a field is ignored.
pub fn ignore(place: String) {
    IGNORED.with_borrow_mut(|ignored| {
        if ignored.len() < MAX_IGNORED {
            ignored.push(place);
        }
    });
}

/// Whether a name can stand in a header as it is.
pub fn is_plain(name: &str) -> bool {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    plain && !name.is_empty() && name.len() <= MAX_NAME
}

/// Whether a field asks for another reply than comes: it is one of those, and has another value than the one that changes
/// nothing.
pub fn changes_reply(name: &str, value: &Value) -> bool {
    let is_default = match name {
        "add_special_tokens" | "skip_special_tokens" | "spaces_between_special_tokens" => *value == true,
        "length_penalty" | "repeat_penalty" => value.as_f64() == Some(1.0),
        _ => *value == false || *value == 0 || value.as_array().is_some_and(Vec::is_empty),
    };
    CHANGING.contains(&name) && !is_default
}

/// Fields by which other servers let a client change the reply, and this one does not.
const CHANGING: &[&str] = &[
    "add_special_tokens",
    "allowed_token_ids",
    "bad_words",
    "continue_final_message",
    "do_sample",
    "documents",
    "dry_allowed_length",
    "dry_base",
    "dry_multiplier",
    "dry_penalty_last_n",
    "dry_sequence_breakers",
    "dynatemp_range",
    "early_stopping",
    "eta_cutoff",
    "grammar",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "images",
    "include_stop_str_in_output",
    "json_schema",
    "length_penalty",
    "logits_processors",
    "lora",
    "mirostat",
    "n_predict",
    "no_repeat_ngram_size",
    "penalize_nl",
    "repeat_last_n",
    "repeat_penalty",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "structural_tag",
    "thinking",
    "top_a",
    "tfs_z",
    "truncate_prompt_tokens",
    "xtc_probability",
    "use_beam_search",
];
