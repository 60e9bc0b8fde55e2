//! How models write the calls that they ask for, and reading them.
//!
//! | syntax | a call |
//! |---|---|
//! | Hermes, Qwen | `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` |
//! | Llama 3 | a reply of nothing but `{"name": ..., "parameters": {...}}`, more behind `;`, perhaps `<\|python_tag\|>` |
//! | Mistral | `[TOOL_CALLS][{...}, ...]`, or `[TOOL_CALLS]name[CALL_ID]id[ARGS]{...}` where the id may be missing |

use std::borrow::Cow;
use std::collections::HashSet;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::message::ToolCall;

pub const OPEN: &str = "<tool_call>";
pub const CLOSE: &str = "</tool_call>";
pub const PYTHON: &str = "<|python_tag|>";
pub const MISTRAL: &str = "[TOOL_CALLS]";
pub const MISTRAL_ID: &str = "[CALL_ID]";
pub const MISTRAL_ARGUMENTS: &str = "[ARGS]";

/// The syntax that a template teaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    None,
    Tagged,
    Bare,
    Mistral,
}

impl Syntax {
    pub fn of(template: &str) -> Self {
        // Llama's templates name the tag, or describe the object in the words of Meta's prompts.
        let described = template.contains("function name") && template.contains("parameters");
        if template.contains(OPEN) {
            Self::Tagged
        } else if template.contains(MISTRAL) {
            Self::Mistral
        } else if template.contains(PYTHON) || described {
            Self::Bare
        } else {
            Self::None
        }
    }

    /// What begins a call wherever it stands.
    pub fn opening(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Tagged => Some(OPEN),
            Self::Bare => Some(PYTHON),
            Self::Mistral => Some(MISTRAL),
        }
    }

    pub fn markers(self) -> &'static [&'static str] {
        match self {
            Self::None => &[],
            Self::Tagged => &[OPEN, CLOSE],
            Self::Bare => &[PYTHON],
            Self::Mistral => &[MISTRAL, MISTRAL_ID, MISTRAL_ARGUMENTS],
        }
    }

    /// All calls of `text`, which begins with the first one's opening; none unless all of it can be read.
    pub fn read_all(self, text: &str) -> Option<Vec<ToolCall>> {
        match self {
            Self::None => None,
            Self::Tagged => match read_tagged(text.strip_prefix(OPEN)?) {
                Tagged::Call(call) => Some(vec![call]),
                Tagged::Incomplete | Tagged::Malformed => None,
            },
            Self::Bare => read_bare(text),
            Self::Mistral => read_mistral(text),
        }
    }
}

/// A call as JSON. The arguments stay the text that the model wrote.
#[derive(Deserialize)]
struct Call<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, alias = "parameters")]
    arguments: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
}

impl Call<'_> {
    /// The call; its id is empty where the model gave none.
    fn read(self) -> Option<ToolCall> {
        let arguments = self.arguments.map_or("{}", RawValue::get);
        let named = !self.name.is_empty() && arguments.starts_with('{');
        named.then(|| ToolCall::new(self.id.unwrap_or_default(), self.name, arguments))
    }
}

/// What stands between two tags.
pub enum Tagged {
    Call(ToolCall),
    /// JSON that ends too early: the closing tag stands within a text of it.
    Incomplete,
    Malformed,
}

pub fn read_tagged(body: &str) -> Tagged {
    match serde_json::from_str::<Call<'_>>(body) {
        Ok(call) => call.read().map_or(Tagged::Malformed, Tagged::Call),
        Err(error) if error.is_eof() => Tagged::Incomplete,
        Err(_) => Tagged::Malformed,
    }
}

/// The JSON value that `text` begins with, and what follows it.
fn leading<'a, T: Deserialize<'a>>(text: &'a str) -> Option<(T, &'a str)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<T>();
    let value = values.next()?.ok()?;
    Some((value, text[values.byte_offset()..].trim_start()))
}

fn read_bare(text: &str) -> Option<Vec<ToolCall>> {
    let mut calls = Vec::new();
    let mut rest = text.trim();
    loop {
        rest = rest.strip_prefix(PYTHON).unwrap_or(rest).trim_start();
        let (call, after) = leading::<Call<'_>>(rest)?;
        // Without a tag around it, an object is only a call if it says so in full.
        calls.push(call.arguments.is_some().then_some(call)?.read()?);
        rest = match after.strip_prefix(';') {
            _ if after.is_empty() => return Some(calls),
            Some(after) if after.trim().is_empty() => return Some(calls),
            Some(after) => after.trim_start(),
            None => after.strip_prefix(PYTHON)?,
        };
    }
}

fn read_mistral(text: &str) -> Option<Vec<ToolCall>> {
    let mut calls = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        rest = rest.strip_prefix(MISTRAL).unwrap_or(rest).trim_start();
        if rest.starts_with('[') {
            let (list, after) = leading::<Vec<Call<'_>>>(rest)?;
            for call in list {
                calls.push(call.read()?);
            }
            rest = after;
        } else {
            let (head, after) = rest.split_once(MISTRAL_ARGUMENTS)?;
            let (name, id) = head.split_once(MISTRAL_ID).unwrap_or((head, ""));
            let (arguments, after) = leading::<&RawValue>(after)?;
            let (name, arguments) = (name.trim(), arguments.get());
            if name.is_empty() || !arguments.starts_with('{') {
                return None;
            }
            calls.push(ToolCall::new(id.trim(), name, arguments));
            rest = after;
        }
    }
    (!calls.is_empty()).then_some(calls)
}

/// Gives an id to each call without one, and a new one to each that repeats another's. Ids are compared where they are: a
/// model writes them, so that a plain copy would stay.
pub fn number(calls: Vec<ToolCall>) -> Vec<ToolCall> {
    let mut next = 0;
    let ids: HashSet<&str> = calls.iter().map(ToolCall::id).collect();
    let mut seen = HashSet::new();
    let mut new_id = |call: &ToolCall| loop {
        let id = format!("call_{next}");
        next += 1;
        if !ids.contains(id.as_str()) {
            return ToolCall::new(id, call.name(), call.arguments());
        }
    };
    calls
        .iter()
        .map(|call| match !call.id().is_empty() && seen.insert(call.id()) {
            true => call.copy(),
            false => new_id(call),
        })
        .collect()
}
