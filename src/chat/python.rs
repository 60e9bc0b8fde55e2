//! The Jinja that chat templates are written in: jinja2's filters, Python's methods, transformers' functions.
//!
//! Fuel counts instructions, not what one of them does: what goes through a sequence, or makes text from texts, is
//! checked here first. What operators and calls make is counted in [`super::budget`].

use std::sync::Arc;

use minijinja::value::{Rest, Value, ValueKind, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::budget::{self, Exceeded, MAX_BYTES, MAX_ITEMS};
use super::json_text;
use crate::memory::secret::Secret;

/// Instructions of minijinja; a message takes some hundreds.
pub const FUEL: u64 = 20_000_000;
/// Frames in frames; a macro in a macro takes four, and one for each loop around the call.
const MAX_CALLS: usize = 250;

/// What `raise_exception` was called with.
#[derive(thiserror::Error)]
#[error("raised by the template")]
pub struct Raised(pub Secret<str>);

impl std::fmt::Debug for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Raised")
    }
}

/// Filters of jinja2 that go through a sequence or make text from it; each is run behind [`check_filter`].
const CHECKED: [&str; 18] = [
    "dictsort",
    "first",
    "indent",
    "items",
    "join",
    "last",
    "list",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "select",
    "selectattr",
    "sort",
    "split",
    "unique",
];
/// Filters of minijinja that no chat template needs, or that would have to be checked too.
const REMOVED: [&str; 9] = ["batch", "chain", "format", "groupby", "lines", "pprint", "slice", "sum", "zip"];

/// An environment that renders like transformers', within bounds.
pub fn environment() -> Environment<'static> {
    let mut plain = Environment::new();
    plain.add_filter("tojson", json_text::tojson);
    let plain = Arc::new(plain);
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(MAX_CALLS);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(method);
    for name in REMOVED {
        environment.remove_filter(name);
    }
    environment.remove_global("debug");
    for name in CHECKED {
        let plain = plain.clone();
        environment.add_filter(name, move |state: &State, args: Rest<Value>| {
            check_filter(state, name, &args)?;
            plain.empty_state().apply_filter(name, &args)
        });
    }
    environment.add_filter("tojson", json_text::tojson);
    budget::install(&mut environment, &plain);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        let raised = Raised(Secret::new(message));
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(raised))
    });
    environment
}

/// The error for anything above a bound.
fn too_much() -> Error {
    Exceeded::Made.into()
}

/// Refuses a text above [`MAX_BYTES`].
pub fn check_bytes(bytes: usize) -> Result<(), Error> {
    if bytes > MAX_BYTES { Err(too_much()) } else { Ok(()) }
}

fn check_filter(state: &State, name: &str, args: &[Value]) -> Result<(), Error> {
    let Some(value) = args.first() else { return Ok(()) };
    let makes_a_list = !matches!(name, "first" | "indent" | "last" | "replace" | "reverse" | "split");
    if value.len().is_some_and(|items| (value.as_str().is_none() || makes_a_list) && items > MAX_ITEMS) {
        return Err(too_much());
    }
    match (name, value.as_str()) {
        ("join", _) => check_join(state, value, args.get(1).and_then(Value::as_str).unwrap_or_default()),
        ("replace", _) => check_replace(value, args.get(1), args.get(2)),
        ("split", Some(text)) => check_split(text, args.get(1).and_then(Value::as_str)),
        ("indent", Some(text)) => {
            let width = args[1..].iter().filter_map(Value::as_usize).max().unwrap_or(4);
            let lines = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
            check_bytes(lines.saturating_mul(width).saturating_add(text.len()))
        }
        _ => Ok(()),
    }
}

fn check_join(state: &State, values: &Value, separator: &str) -> Result<(), Error> {
    let mut bytes = 0_usize;
    for (index, value) in values.try_iter()?.enumerate() {
        if index >= MAX_ITEMS {
            return Err(too_much());
        }
        // an escape takes four bytes for one, and a number some
        let written = match value.as_str() {
            Some(text) => text.len(),
            None => 64 + 4 * budget::weight(state, &value)?.written(),
        };
        bytes += separator.len() + written;
        check_bytes(bytes)?;
    }
    Ok(())
}

fn check_split(text: &str, separator: Option<&str>) -> Result<(), Error> {
    let parts = match separator {
        Some(separator) if !separator.is_empty() => text.matches(separator).count(),
        _ => text.split_whitespace().count(),
    };
    if parts > MAX_ITEMS { Err(too_much()) } else { Ok(()) }
}

fn check_replace(value: &Value, old: Option<&Value>, new: Option<&Value>) -> Result<(), Error> {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned).unwrap_or_default();
    let (text_len, old, new) = (value.as_str().map_or(0, str::len), text(old), text(new));
    let places = if old.is_empty() {
        text_len + 1
    } else {
        value.as_str().map_or(0, |text| text.matches(&old).count())
    };
    check_bytes(places.saturating_mul(new.len()).saturating_add(text_len))
}

/// Python's methods: minijinja-contrib's, those that it lacks, and checks on those that make text.
fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else { return unknown_method_callback(state, value, name, args) };
    match name {
        // minijinja-contrib never returns from counting an empty text.
        "count" if args.first().and_then(Value::as_str) == Some("") => {
            Ok(Value::from(text.chars().count() + 1))
        }
        // Positions count characters, not bytes.
        "find" | "rfind" => {
            let (wanted,): (&str,) = from_args(args)?;
            let at = if name == "find" { text.find(wanted) } else { text.rfind(wanted) };
            Ok(Value::from(at.map_or(-1, |at| text[..at].chars().count() as i64)))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        "rsplit" | "partition" | "rpartition" => {
            check_split(text, args.first().and_then(Value::as_str))?;
            split_at(text, name, args)
        }
        "split" => {
            check_split(text, args.first().and_then(Value::as_str))?;
            unknown_method_callback(state, value, name, args)
        }
        "splitlines" => {
            check_split(text, Some("\n"))?;
            check_split(text, Some("\r"))?;
            unknown_method_callback(state, value, name, args)
        }
        "replace" => {
            check_replace(value, args.first(), args.get(1))?;
            unknown_method_callback(state, value, name, args)
        }
        "join" => {
            check_join(state, args.first().unwrap_or(&Value::UNDEFINED), text)?;
            unknown_method_callback(state, value, name, args)
        }
        "format" => {
            check_format(text, args)?;
            unknown_method_callback(state, value, name, args)
        }
        _ => unknown_method_callback(state, value, name, args),
    }
}

fn split_at(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, most): (&str, Option<usize>) = from_args(args)?;
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    if name == "rsplit" {
        let most = most.map_or(usize::MAX, |most| most.saturating_add(1));
        let mut parts: Vec<_> = text.rsplitn(most, separator).map(Value::from).collect();
        parts.reverse();
        return Ok(Value::from(parts));
    }
    let (parts, missing) = match name {
        "partition" => (text.split_once(separator), [text, "", ""]),
        _ => (text.rsplit_once(separator), ["", "", text]),
    };
    let parts = parts.map_or(missing, |(before, after)| [before, separator, after]);
    Ok(Value::from_iter(parts))
}

/// Widths of at most three digits, and no text that could be printed too often.
fn check_format(format: &str, args: &[Value]) -> Result<(), Error> {
    let wide = format.split(|char: char| !char.is_ascii_digit()).any(|digits| digits.len() > 3);
    let plain = |value: &Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Number | ValueKind::Bool | ValueKind::None)
    };
    if wide || format.contains(":{") || !args.iter().all(plain) {
        return Err(too_much());
    }
    let longest = args.iter().filter_map(Value::as_str).map(str::len).max().unwrap_or(0).max(1000);
    check_bytes(format.matches('{').count().saturating_mul(longest).saturating_add(format.len()))
}
