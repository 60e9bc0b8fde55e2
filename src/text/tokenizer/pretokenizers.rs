//! Pre-tokenizers: each cuts pieces into smaller ones, or writes them anew.

use serde_json::Value;
use unicode_categories::UnicodeCategories;

use super::automaton::Automaton;
use super::normalizers::byte_character;
use super::split::{Behavior, Pattern, Split};
use crate::memory::Secret;

/// What a `ByteLevel` splits by: GPT-2's pattern.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// One step.
pub enum Step {
    Split(Split),
    Rewrite(Rewrite),
}

/// A step after which the text is another one. Every piece stays one.
pub enum Rewrite {
    /// A space before pieces without one.
    PrefixSpace,
    /// GPT-2's alphabet.
    Bytes,
    /// A mark for each space, and one before the piece.
    Metaspace { mark: char, prepend: Prepend },
}

/// Before which pieces `Metaspace` puts its mark, where they have none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Prepend {
    Never,
    /// That with which the text begins.
    First,
    Always,
}

/// The steps of `pre_tokenizer`, as the crate writes it.
///
/// # Errors
/// One of them is not done here; says which.
pub fn read(pre_tokenizer: &Value) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    add(pre_tokenizer, &mut steps)?;
    // Whether a piece is the text's first is known as long as nothing was written anew.
    let follows =
        |step: &Step| matches!(step, Step::Rewrite(Rewrite::Metaspace { prepend: Prepend::First, .. }));
    let rewrites = steps.iter().position(|step| matches!(step, Step::Rewrite(_))).unwrap_or(steps.len());
    if steps.iter().skip(rewrites + 1).any(follows) {
        return Err("Metaspace with the scheme first behind another step that changes the text".into());
    }
    Ok(steps)
}

fn add(value: &Value, steps: &mut Vec<Step>) -> Result<(), String> {
    let flag = |name: &str, default| value[name].as_bool().unwrap_or(default);
    let split = |pattern, behavior, invert| Step::Split(Split { pattern, behavior, invert });
    let characters = |is, behavior| split(Pattern::Characters(is), behavior, false);
    let expression = |pattern: &str| match Automaton::new(pattern) {
        Ok(automaton) => Ok(Pattern::Expression(Box::new(automaton))),
        Err(reason) => Err(format!("a split by {reason}")),
    };
    let kind = match value {
        Value::Null => return Ok(()),
        value => value["type"].as_str().unwrap_or("without a type"),
    };
    match kind {
        "Sequence" => {
            value["pretokenizers"]
                .as_array()
                .into_iter()
                .flatten()
                .try_for_each(|value| add(value, steps))?;
        }
        "ByteLevel" => {
            if flag("add_prefix_space", true) {
                steps.push(Step::Rewrite(Rewrite::PrefixSpace));
            }
            if flag("use_regex", true) {
                steps.push(split(expression(GPT2)?, Behavior::Isolated, false));
            }
            steps.push(Step::Rewrite(Rewrite::Bytes));
        }
        "Split" => {
            let pattern =
                Pattern::read(&value["pattern"]).map_err(|reason| format!("a split by {reason}"))?;
            steps.push(split(pattern, behavior(&value["behavior"])?, flag("invert", false)));
        }
        "Metaspace" => {
            let mark = character(&value["replacement"])?;
            let prepend = match value["prepend_scheme"].as_str() {
                Some("always") => Prepend::Always,
                Some("first") => Prepend::First,
                Some("never") => Prepend::Never,
                _ => return Err("Metaspace with another scheme".into()),
            };
            steps.push(Step::Rewrite(Rewrite::Metaspace { mark, prepend }));
            if flag("split", true) {
                steps.push(split(Pattern::Character(mark), Behavior::MergedWithNext, false));
            }
        }
        "Whitespace" => steps.push(split(expression(r"\w+|[^\w\s]+")?, Behavior::Removed, true)),
        "WhitespaceSplit" => steps.push(characters(char::is_whitespace, Behavior::Removed)),
        "BertPreTokenizer" => {
            steps.push(characters(char::is_whitespace, Behavior::Removed));
            steps.push(characters(is_punctuation, Behavior::Isolated));
        }
        "Digits" => {
            let alone = flag("individual_digits", false);
            let behavior = if alone { Behavior::Isolated } else { Behavior::Contiguous };
            steps.push(characters(char::is_numeric, behavior));
        }
        "Punctuation" => steps.push(characters(is_punctuation, behavior(&value["behavior"])?)),
        "CharDelimiterSplit" | "Delimiter" => {
            let delimiter = character(&value["delimiter"])?;
            steps.push(split(Pattern::Character(delimiter), Behavior::Removed, false));
        }
        other => return Err(format!("the pre-tokenizer {other}")),
    }
    Ok(())
}

fn behavior(value: &Value) -> Result<Behavior, String> {
    Ok(match value.as_str() {
        Some("Removed") => Behavior::Removed,
        Some("Isolated") => Behavior::Isolated,
        Some("MergedWithPrevious") => Behavior::MergedWithPrevious,
        Some("MergedWithNext") => Behavior::MergedWithNext,
        Some("Contiguous") => Behavior::Contiguous,
        _ => return Err("a split with another behavior".into()),
    })
}

fn character(value: &Value) -> Result<char, String> {
    let mut characters = value.as_str().unwrap_or_default().chars();
    let one = characters.next().filter(|_| characters.next().is_none());
    one.ok_or_else(|| "a pre-tokenizer with a mark that is no character".into())
}

fn is_punctuation(character: char) -> bool {
    character.is_ascii_punctuation() || !character.is_ascii() && character.is_punctuation()
}

impl Rewrite {
    /// Writes the piece's new form behind what is in `to`. `first` tells whether the text begins with it.
    pub fn write(&self, piece: &str, first: bool, to: &mut Secret<[u8]>) {
        let mut bytes = [0; 4];
        match self {
            Self::PrefixSpace => {
                if !piece.starts_with(' ') {
                    to.push(b' ');
                }
                to.extend(piece.as_bytes());
            }
            Self::Bytes => piece.bytes().for_each(|byte| {
                to.extend(byte_character(byte).encode_utf8(&mut bytes).as_bytes());
            }),
            Self::Metaspace { mark, prepend } => {
                let mark_bytes = mark.encode_utf8(&mut bytes).as_bytes();
                let begins = piece.starts_with([*mark, ' ']);
                if !begins && (*prepend == Prepend::Always || *prepend == Prepend::First && first) {
                    to.extend(mark_bytes);
                }
                for (at, part) in piece.split(' ').enumerate() {
                    if at > 0 {
                        to.extend(mark_bytes);
                    }
                    to.extend(part.as_bytes());
                }
            }
        }
    }
}
