//! Normalizers: each writes a new form of the whole text.

use serde_json::Value;
use unicode_categories::UnicodeCategories;
use unicode_normalization_alignments::char::is_combining_mark;

use super::charsmap::Charsmap;
use super::rewritten::Rewritten;
use super::split::Pattern;
use super::unicode::Form;
use crate::memory::Secret;

/// One step.
pub enum Normalizer {
    Form(Form),
    /// Leaves characters out.
    Filter(fn(char) -> bool),
    /// Puts another character in the place of each.
    Map(fn(char) -> char),
    Lowercase,
    /// Takes whitespace off the ends.
    Strip {
        left: bool,
        right: bool,
    },
    /// Spaces around Chinese characters.
    SpaceChinese,
    Replace {
        pattern: Pattern,
        content: String,
    },
    Prepend(String),
    Charsmap(Charsmap),
    /// GPT-2's alphabet.
    Bytes,
}

/// The steps of `normalizer`, as the crate writes it.
///
/// # Errors
/// One of them is not done here; says which.
pub fn read(normalizer: &Value) -> Result<Vec<Normalizer>, String> {
    let mut steps = Vec::new();
    add(normalizer, &mut steps)?;
    Ok(steps)
}

fn add(value: &Value, steps: &mut Vec<Normalizer>) -> Result<(), String> {
    let form = |compatible, composes| Normalizer::Form(Form { compatible, composes });
    let flag = |name: &str| value[name].as_bool().unwrap_or(false);
    let kind = match value {
        Value::Null => return Ok(()),
        value => value["type"].as_str().unwrap_or("without a type"),
    };
    match kind {
        "Sequence" => {
            value["normalizers"].as_array().into_iter().flatten().try_for_each(|value| add(value, steps))?;
        }
        "NFC" => steps.push(form(false, true)),
        "NFD" => steps.push(form(false, false)),
        "NFKC" => steps.push(form(true, true)),
        "NFKD" => steps.push(form(true, false)),
        "Lowercase" => steps.push(Normalizer::Lowercase),
        "Strip" => steps.push(Normalizer::Strip { left: flag("strip_left"), right: flag("strip_right") }),
        "StripAccents" => steps.push(Normalizer::Filter(|character| !is_combining_mark(character))),
        "Nmt" => steps.extend([Normalizer::Filter(nmt_keeps), Normalizer::Map(nmt_space)]),
        "ByteLevel" => steps.push(Normalizer::Bytes),
        "Prepend" => {
            let text = value["prepend"].as_str().filter(|text| !text.is_empty());
            steps.push(Normalizer::Prepend(text.ok_or("Prepend of nothing")?.to_owned()));
        }
        "Replace" => {
            let pattern = &value["pattern"];
            let pattern = Pattern::read(pattern).map_err(|reason| format!("Replace with {reason}"))?;
            let content = value["content"].as_str().unwrap_or_default().to_owned();
            steps.push(Normalizer::Replace { pattern, content });
        }
        "BertNormalizer" => {
            if flag("clean_text") {
                steps.extend([Normalizer::Filter(bert_keeps), Normalizer::Map(bert_space)]);
            }
            if flag("handle_chinese_chars") {
                steps.push(Normalizer::SpaceChinese);
            }
            if value["strip_accents"].as_bool().unwrap_or(flag("lowercase")) {
                steps.push(form(false, false));
                steps.push(Normalizer::Filter(|character| {
                    character.is_ascii() || !character.is_mark_nonspacing()
                }));
            }
            if flag("lowercase") {
                steps.push(Normalizer::Lowercase);
            }
        }
        "Precompiled" => {
            let charsmap = value["precompiled_charsmap"].as_str().unwrap_or_default();
            steps.push(Normalizer::Charsmap(Charsmap::new(charsmap)?));
        }
        other => return Err(format!("the normalizer {other}")),
    }
    Ok(())
}

impl Normalizer {
    /// Writes the new form of `text`. `pending` is working memory.
    pub fn write(&self, text: &str, pending: &mut Secret<[u64]>, to: &mut Rewritten) {
        match self {
            Self::Form(form) => form.write(text, pending, to),
            Self::Filter(keeps) => text.chars().for_each(|character| match keeps(character) {
                true => to.put(character, 0),
                false => to.skip(),
            }),
            Self::Map(map) => text.chars().for_each(|character| to.put(map(character), 0)),
            Self::Lowercase => text.chars().for_each(|character| {
                let lower = character.to_lowercase().enumerate();
                lower.for_each(|(at, character)| to.put(character, isize::from(at > 0)));
            }),
            Self::Strip { left, right } => {
                let kept = if *left { text.trim_start() } else { text };
                text[..text.len() - kept.len()].chars().for_each(|_| to.skip());
                to.keep(if *right { kept.trim_end() } else { kept });
            }
            Self::SpaceChinese => text.chars().for_each(|character| match is_chinese(character) {
                true => [(' ', 0), (character, 1), (' ', 1)]
                    .iter()
                    .for_each(|&(part, change)| to.put(part, change)),
                false => to.put(character, 0),
            }),
            Self::Replace { pattern, content } => {
                let mut done = 0;
                while let Some((start, end)) = pattern.find(text, done) {
                    to.keep(&text[done..start]);
                    text[start..end].chars().for_each(|_| to.skip());
                    content.chars().for_each(|character| to.put(character, 1));
                    done = end;
                }
                to.keep(&text[done..]);
            }
            Self::Prepend(prefix) => prepend(text, prefix, to),
            Self::Charsmap(charsmap) => charsmap.write(text, to),
            Self::Bytes => text.chars().for_each(|character| {
                let mut bytes = [0; 4];
                let bytes = character.encode_utf8(&mut bytes).bytes().enumerate();
                bytes.for_each(|(at, byte)| to.put(byte_character(byte), isize::from(at > 0)));
            }),
        }
    }
}

/// Puts `prefix` before `text`, unless that is empty.
pub fn prepend(text: &str, prefix: &str, to: &mut Rewritten) {
    let Some(next) = text.chars().next() else { return };
    // in the crate the prefix takes the place of the first character, which is then new
    prefix.chars().enumerate().for_each(|(at, character)| to.put(character, isize::from(at > 0)));
    to.put(next, 1);
    to.keep(&text[next.len_utf8()..]);
}

/// GPT-2's alphabet: printable bytes stand for themselves, the others for characters from U+0100 on.
pub fn byte_character(byte: u8) -> char {
    let code = match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => u32::from(byte),
        0..=b' ' => 0x100 + u32::from(byte),
        0x7f..=0xa0 => 0x100 + 33 + u32::from(byte - 0x7f),
        0xad => 0x143,
    };
    char::from_u32(code).expect("below U+0144 are characters")
}

fn nmt_keeps(character: char) -> bool {
    !matches!(u32::from(character), 0x1..=0x8 | 0xb | 0xe..=0x1f | 0x7f | 0x8f | 0x9f)
}

fn nmt_space(character: char) -> char {
    match u32::from(character) {
        0x9 | 0xa | 0xc | 0xd | 0x1680 | 0x200b..=0x200f | 0x2028 | 0x2029 | 0x2581 | 0xfeff | 0xfffd => ' ',
        _ => character,
    }
}

fn bert_keeps(character: char) -> bool {
    match character {
        '\t' | '\n' | '\r' | ' '..='~' => true,
        '\0' | '\u{fffd}' => false,
        _ => !character.is_other(),
    }
}

fn bert_space(character: char) -> char {
    if character.is_whitespace() { ' ' } else { character }
}

fn is_chinese(character: char) -> bool {
    matches!(u32::from(character),
        0x4e00..=0x9fff | 0x3400..=0x4dbf | 0x2_0000..=0x2_a6df | 0x2_a700..=0x2_b73f | 0x2_b740..=0x2_b81f
        | 0x2_b920..=0x2_ceaf | 0xf900..=0xfaff | 0x2_f800..=0x2_fa1f)
}
