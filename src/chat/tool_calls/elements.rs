//! The calls of MiniMax M3: parameters are elements with their names, and elements in them are lists and objects. A mark
//! stands before every tag.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use super::emit::Calls;
use super::scan::{find_tag, match_any_tag, skip_blank};
use super::types::{Reading, Schemas, convert, parameter, quote};
use super::{CallParser, Outcome};
use crate::memory::secret::Secret;

pub const OPEN: &str = "]<]minimax[>[<tool_call>";
const CLOSE: &str = "]<]minimax[>[</tool_call>";
const INVOKE: &str = "]<]minimax[>[<invoke name=";
const END_INVOKE: &str = "]<]minimax[>[</invoke>";
/// What stands before a tag, and begins one.
const MARK: &str = "]<]minimax[>[";
const START: &str = "]<]minimax[>[<";
const END: &str = "]<]minimax[>[</";

/// Elements in elements.
const MAX_DEPTH: usize = 64;
/// The longest name.
const MAX_NAME: usize = 256;
/// The key of text beside elements.
const MIXED: &str = "$text";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// Between calls, or before the first.
    Between,
    Name,
    Body,
}

/// A block of calls.
pub struct Elements {
    schemas: Arc<Schemas>,
    state: State,
    at: usize,
    searched: usize,
    name: Secret<str>,
    any: bool,
}

impl Elements {
    pub fn new(schemas: Arc<Schemas>) -> Self {
        Self { schemas, state: State::Open, at: 0, searched: 0, name: Secret::default(), any: false }
    }

    fn enter(&mut self, state: State, at: usize) {
        (self.state, self.at, self.searched) = (state, at, at);
    }

    fn between(&mut self, text: &str, end: bool) -> Option<Outcome> {
        let blank = skip_blank(text, self.at);
        match match_any_tag(text, blank, &[INVOKE, CLOSE], end) {
            Some(Err(())) => return Some(Outcome::Wait),
            Some(Ok((0, after))) => self.enter(State::Name, after),
            Some(Ok((_, after))) if self.any => return Some(Outcome::Over(after)),
            None if self.any => return Some(Outcome::Over(self.at)),
            Some(Ok((_, after))) => return Some(Outcome::Not(after)),
            None => return Some(Outcome::Not(blank.max(1))),
        }
        None
    }

    fn name(&mut self, text: &str, calls: &mut Calls<'_, '_>) -> Option<Outcome> {
        let Some(to) = find_tag(text, &mut self.searched, ">") else {
            let long = text.len() - self.at > MAX_NAME;
            return Some(if long { Outcome::Not(self.at) } else { Outcome::Wait });
        };
        let name = text[self.at..to].trim();
        let bare = ['"', '\''].iter().find_map(|quote| name.strip_prefix(*quote)?.strip_suffix(*quote));
        let name = bare.unwrap_or(name);
        if name.is_empty() || name.contains('\n') || to - self.at > MAX_NAME {
            return Some(Outcome::Not(to + 1));
        }
        self.name = Secret::<str>::copy(name);
        calls.begin("", name);
        self.enter(State::Body, to + 1);
        None
    }

    /// Arguments are certain at the end of all: a name that comes again makes a list of what was a value.
    fn body(&mut self, text: &str, calls: &mut Calls<'_, '_>) -> Option<Outcome> {
        let Some(to) = find_tag(text, &mut self.searched, END_INVOKE) else { return Some(Outcome::Wait) };
        let mut out = Secret::<[u8]>::with_capacity(to - self.at + 64);
        let body = &text[self.at..to];
        self.schemas.with_schema(self.name.expose(), |root| {
            let (children, _) = elements(body);
            object(&children, root, root, &mut out);
        });
        calls.arguments(std::str::from_utf8(out.expose()).expect("JSON is UTF-8"));
        calls.end();
        self.any = true;
        self.enter(State::Between, 0);
        Some(Outcome::Part(to + END_INVOKE.len()))
    }
}

impl CallParser for Elements {
    fn read(&mut self, text: &str, end: bool, calls: &mut Calls<'_, '_>) -> Outcome {
        loop {
            let outcome = match self.state {
                State::Open => match match_any_tag(text, self.at, &[OPEN], end) {
                    Some(Err(())) => Some(Outcome::Wait),
                    None => Some(Outcome::Not(1)),
                    Some(Ok((_, after))) => {
                        self.enter(State::Between, after);
                        None
                    }
                },
                State::Between => self.between(text, end),
                State::Name => self.name(text, calls),
                State::Body => self.body(text, calls),
            };
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
    }
}

/// What is in an element: text, of pieces between its children, and those.
enum Element<'t> {
    Text(&'t str),
    Children(Vec<(&'t str, Element<'t>)>, Secret<str>),
}

/// The elements that a text begins with, up to the first that is malformed, and where they end.
fn elements(text: &str) -> (Vec<(&str, Element<'_>)>, usize) {
    let (mut found, mut at) = (Vec::new(), 0);
    loop {
        at = skip_blank(text, at);
        let Some((name, element, behind)) = element(text, at, 0) else { return (found, at) };
        found.push((name, element));
        at = behind;
    }
}

/// The element at `at`: its name, what is in it, and where it ends.
fn element(text: &str, at: usize, depth: usize) -> Option<(&str, Element<'_>, usize)> {
    let rest = text[at..].strip_prefix(START).filter(|_| depth < MAX_DEPTH)?;
    let len = rest.find('>')?;
    let name = &rest[..len];
    if name.trim().is_empty() || name.starts_with('/') {
        return None;
    }
    let from = at + START.len() + len + 1;
    let (mut children, mut pieces, mut at) = (Vec::new(), Secret::<[u8]>::default(), from);
    loop {
        let mark = at + text[at..].find(MARK)?;
        pieces.extend(&text.as_bytes()[at..mark]);
        let ends = text[mark..].strip_prefix(END).and_then(|rest| rest.strip_prefix(name));
        if ends.is_some_and(|rest| rest.starts_with('>')) {
            let inner = if children.is_empty() {
                Element::Text(&text[from..mark])
            } else {
                Element::Children(children, Secret::from_utf8(pieces).expect("cut at marks"))
            };
            return Some((name, inner, mark + END.len() + name.len() + 1));
        }
        let (name, child, behind) = element(text, mark, depth + 1)?;
        children.push((name, child));
        at = behind;
    }
}

/// The first alternative of a schema that is a list or an object, and whether it is a list.
fn container(schema: &Value) -> Option<(bool, &Value)> {
    let is = |kind: &str| match schema.get("type") {
        Some(Value::String(name)) => name == kind,
        Some(Value::Array(names)) => names.iter().any(|name| name == kind),
        _ => false,
    };
    let untyped = schema.get("type").is_none();
    if is("array") || untyped && schema.get("items").is_some() {
        return Some((true, schema));
    }
    let named = ["properties", "additionalProperties"].iter().any(|key| schema.get(key).is_some());
    if is("object") || untyped && named {
        return Some((false, schema));
    }
    let parts = ["anyOf", "oneOf"].iter().filter_map(|keyword| schema.get(keyword)?.as_array());
    parts.flatten().find_map(container)
}

fn value(element: &Element<'_>, schema: &Value, root: &Value, out: &mut Secret<[u8]>) {
    let found = container(schema);
    match element {
        Element::Text(text) => {
            let kind = schema.is_object().then(|| parameter(schema, root));
            let is_text = kind.is_none_or(|kind| kind.kind == super::types::Type::Text);
            match found {
                Some((list, _)) if !is_text && text.trim().is_empty() => {
                    out.extend(if list { b"[]" } else { b"{}" });
                }
                _ => convert(text, kind, Reading::Text, out),
            }
        }
        Element::Children(children, _) if found.is_some_and(|(list, _)| list) => {
            let items = found.and_then(|(_, schema)| schema.get("items")).unwrap_or(&Value::Null);
            for (index, (_, child)) in children.iter().enumerate() {
                out.extend(if index == 0 { b"[" } else { b", " });
                value(child, items, root, out);
            }
            out.extend(b"]");
        }
        Element::Children(children, text) => {
            let schema = found.map_or(&Value::Null, |(_, schema)| schema);
            if text.expose().trim().is_empty() {
                return object(children, schema, root, out);
            }
            let mut mixed = Secret::<str>::copy(MIXED);
            while children.iter().any(|(name, _)| *name == mixed.expose()) {
                mixed = Secret::new(["$", mixed.expose()].concat());
            }
            object(children, schema, root, out);
            out.truncate(out.expose().len() - 1);
            out.extend(b", ");
            quote(mixed.expose(), out);
            out.extend(b": ");
            quote(text.expose(), out);
            out.extend(b"}");
        }
    }
}

/// Elements as an object; of those that have a name together, a list.
fn object(children: &[(&str, Element<'_>)], schema: &Value, root: &Value, out: &mut Secret<[u8]>) {
    let mut places = HashMap::new();
    let mut named: Vec<(&str, Vec<&Element<'_>>)> = Vec::new();
    for (name, child) in children {
        let place = *places.entry(*name).or_insert_with(|| {
            named.push((name, Vec::new()));
            named.len() - 1
        });
        named[place].1.push(child);
    }
    out.extend(b"{");
    for (index, (name, same)) in named.iter().enumerate() {
        out.extend(if index == 0 { &b""[..] } else { b", " });
        quote(name, out);
        out.extend(b": ");
        let of = schema.get("properties").and_then(|named| named.get(*name));
        let of = of.or_else(|| schema.get("additionalProperties")).unwrap_or(&Value::Null);
        match &same[..] {
            [one] => value(one, of, root, out),
            several => {
                for (index, one) in several.iter().enumerate() {
                    out.extend(if index == 0 { b"[" } else { b", " });
                    value(one, of, root, out);
                }
                out.extend(b"]");
            }
        }
    }
    out.extend(b"}");
}
