//! Writes Lark: fixed texts in which marks may be tokens, free text that stops at a mark, JSON by a schema.

use serde::Serialize;
use serde_json::{Map, Value};

use super::super::compile::json_options;
use crate::error::{Error, Result};
use crate::memory::Secret;
use crate::memory::secret::Growing;

/// What a mark of a format is in a vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Ordinary tokens spell it.
    Text,
    /// A special token, which text never spells.
    Special(u32),
    /// A token that ends the reply.
    End,
}

/// A grammar that is being written. Bodies of rules hold names and schemas, so they are secrets; the names of rules are
/// numbers.
pub struct Writer {
    /// The marks that are tokens.
    marks: Vec<(&'static str, Mark)>,
    lines: Secret<[u8]>,
    rules: usize,
    /// Terminals by their bodies, with where they are defined: the lexer has each once.
    terminals: Vec<(usize, Secret<[u8]>, String)>,
    /// Whether what a schema says must hold.
    pub strict: bool,
    /// Keywords of schemas that do not hold.
    pub not_enforced: Vec<&'static str>,
}

impl Writer {
    /// For a format with these marks.
    pub fn new(
        marks: impl IntoIterator<Item = &'static str>,
        is: impl Fn(&str) -> Mark,
        strict: bool,
    ) -> Self {
        let marks =
            marks.into_iter().map(|mark| (mark, is(mark))).filter(|(_, is)| *is != Mark::Text).collect();
        Self {
            marks,
            lines: Secret::with_capacity(4096),
            rules: 0,
            terminals: Vec::new(),
            strict,
            not_enforced: Vec::new(),
        }
    }

    /// Adds a line, which may be the definition of a name that is in use.
    pub fn line(&mut self, line: &str) {
        self.lines.extend(line.as_bytes());
        self.lines.extend(b"\n");
    }

    /// A rule with this body; its name.
    pub fn rule(&mut self, body: &Secret<[u8]>) -> String {
        let name = self.reserve();
        self.define(&name, body);
        name
    }

    /// The name of a rule that is defined later.
    pub fn reserve(&mut self) -> String {
        self.rules += 1;
        format!("r{}", self.rules)
    }

    pub fn define(&mut self, name: &str, body: &Secret<[u8]>) {
        self.lines.reserve(body.expose().len() + 16);
        self.lines.extend(name.as_bytes());
        self.lines.extend(b": ");
        self.lines.extend(body.expose());
        self.lines.extend(b"\n");
    }

    /// How much was written, and to forget what was written since.
    pub fn place(&self) -> usize {
        self.lines.expose().len()
    }

    pub fn back_to(&mut self, place: usize) {
        self.lines.truncate(place);
        self.terminals.retain(|(at, ..)| *at < place);
    }

    /// The grammar that begins with this rule.
    pub fn finish(self, start: &str) -> Secret<str> {
        let mut grammar = Secret::<[u8]>::with_capacity(self.lines.expose().len() + start.len() + 16);
        grammar.extend(b"start: ");
        grammar.extend(start.as_bytes());
        grammar.extend(b"\n");
        grammar.extend(self.lines.expose());
        Secret::from_utf8(grammar).expect("JSON and the words around it are UTF-8")
    }

    /// What a mark is.
    pub fn mark(&self, mark: &str) -> Mark {
        self.marks.iter().find(|(known, _)| *known == mark).map_or(Mark::Text, |(_, is)| *is)
    }

    /// `text` up to the first mark in it that is a token; that mark, and what is behind it.
    pub fn cut<'t>(&self, text: &'t str) -> (&'t str, Option<(Mark, &'t str)>) {
        let found =
            |(mark, is): &(&str, Mark)| text.find(mark).map(|at| (at, std::cmp::Reverse(mark.len()), *is));
        match self.marks.iter().filter_map(found).min_by_key(|(at, len, _)| (*at, *len)) {
            None => (text, None),
            Some((at, len, is)) => (&text[..at], Some((is, &text[at + len.0..]))),
        }
    }

    /// Appends a fixed text, in which marks are tokens where they are in the vocabulary, and [`LINE_END`] is a line's end
    /// that may be missing.
    ///
    /// # Errors
    /// One of them ends the reply.
    pub fn fixed(&self, out: &mut Secret<[u8]>, mut text: &str) -> Result<()> {
        loop {
            let (before, rest) = self.cut(text);
            for (index, part) in before.split(LINE_END).enumerate() {
                out.extend(if index == 0 { b"" } else { b"\"\\n\"? " });
                if !part.is_empty() {
                    quoted(out, part);
                }
            }
            match rest {
                None => return Ok(()),
                Some((Mark::Special(id), behind)) => {
                    out.extend(format!("<[{id}]> ").as_bytes());
                    text = behind;
                }
                Some(_) => {
                    let expected = "left to the model: marks of its calls are end tokens of the checkpoint";
                    return Err(Error::request("tool_choice", expected));
                }
            }
        }
    }

    /// Appends text that matches all of `forms`, which are bodies of terminals, and none of what `excluded` says, and
    /// `close` behind it. The text ends at the first place where `close` stands, so `excluded` must have that.
    pub fn text_until(
        &mut self,
        out: &mut Secret<[u8]>,
        forms: &[Secret<[u8]>],
        excluded: &[String],
        close: &str,
    ) -> Result<()> {
        let (ordinary, _) = self.cut(close);
        let ordinary = ordinary.split(LINE_END).next().unwrap_or(ordinary);
        let mut body = Secret::<[u8]>::with_capacity(256);
        body.extend(b"(");
        if forms.is_empty() {
            body.extend(ANY.as_bytes());
        }
        for (index, form) in forms.iter().enumerate() {
            body.extend(if index == 0 { b"" } else { b" & " });
            body.extend(form.expose());
        }
        for expression in excluded {
            body.extend(format!(" & ~{expression}").as_bytes());
        }
        body.extend(b") ");
        if !ordinary.is_empty() {
            quoted(&mut body, ordinary);
        }
        let known = self.terminals.iter().find(|(_, known, _)| known.expose() == body.expose());
        let name = match known {
            Some((.., name)) => name.clone(),
            None => {
                self.rules += 1;
                let name = format!("T{}", self.rules);
                self.terminals.push((self.place(), Secret::copy(body.expose()), name.clone()));
                self.define(&name, &body);
                name
            }
        };
        out.extend(name.as_bytes());
        out.extend(b" ");
        self.fixed(out, &close[ordinary.len()..])
    }

    /// A keyword of a tool's parameters that cannot hold: refused, or noted.
    pub fn unenforced(&mut self, keyword: &'static str) -> Result<()> {
        if self.strict {
            let expected = format!(
                "parameters without `{keyword}` where it stands: calls that are not written as JSON cannot be held to it"
            );
            return Err(Error::request("strict_tools", expected));
        }
        if !self.not_enforced.contains(&keyword) {
            self.not_enforced.push(keyword);
        }
        Ok(())
    }
}

/// Stands for a line's end that may be missing.
pub const LINE_END: char = '\u{1}';

/// Any text, as the body of a terminal.
pub const ANY: &str = "/(?s:.*)/";

/// The terminal that matches texts in which this expression matches somewhere.
pub fn somewhere(expression: &str) -> String {
    format!("/(?s:.*)({expression})(?s:.*)/")
}

/// An expression that matches this text.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(2 * text.len());
    for char in text.chars() {
        match char {
            '\n' => out.push_str("\\n"),
            // `\<` and `\>` would be the edges of words
            '<' | '>' | '_' | ' ' | '=' | '"' | '\'' | ':' | ',' | ';' => out.push(char),
            _ if char.is_ascii_punctuation() => out.extend(['\\', char]),
            _ => out.push(char),
        }
    }
    out
}

/// Appends a string of Lark.
pub fn quoted(out: &mut Secret<[u8]>, text: &str) {
    let from = out.expose().len();
    write(out, text);
    // the one control character that JSON allows and Lark does not
    if out.expose()[from..].contains(&0x7f) {
        out.truncate(from);
        out.extend(b"\"");
        for part in text.split_inclusive('\u{7f}') {
            let (plain, ends) = part.strip_suffix('\u{7f}').map_or((part, false), |plain| (plain, true));
            let mut json = Secret::<[u8]>::default();
            write(&mut json, plain);
            let len = json.expose().len();
            out.extend(&json.expose()[1..len - 1]);
            out.extend(if ends { b"\\u007f" } else { b"" });
        }
        out.extend(b"\"");
    }
    out.extend(b" ");
}

/// Appends JSON that is valid under a schema, which `write` appends without its last bracket.
pub fn json(out: &mut Secret<[u8]>, schema: impl FnOnce(&mut Secret<[u8]>)) {
    out.extend(b"%json ");
    schema(out);
    out.extend(br#","x-guidance":"#);
    write(out, &json_options());
    out.extend(b"} ");
}

/// Appends a tool's parameters as a schema, without its last bracket. It has an id of its own, since its references are
/// relative to itself.
pub fn arguments(out: &mut Secret<[u8]>, parameters: &Value) {
    out.extend(br#"{"type":"object","allOf":["#);
    resource(out, parameters, parameters.as_object().is_some_and(names_all));
    out.extend(b"]");
}

/// The id of a tool's parameters.
pub const RESOURCE: &str = "urn:arguments";

/// Appends a tool's parameters as a schema that others can refer to.
pub fn resource(out: &mut Secret<[u8]>, parameters: &Value, closed: bool) {
    out.extend(format!("{{\"$id\":\"{RESOURCE}\"").as_bytes());
    let keywords = parameters.as_object().into_iter().flatten();
    for (keyword, value) in keywords.filter(|(keyword, _)| *keyword != "$id") {
        out.extend(b",");
        write(out, keyword);
        out.extend(b":");
        write(out, value);
    }
    out.extend(if closed { br#","additionalProperties":false}"# } else { b"}" });
}

/// Whether no parameters are wanted but those that are named. A schema that leaves others open means as a rule that its
/// author did not think of them: a model that thinks of some may never end, and functions take what they know.
fn names_all(parameters: &Map<String, Value>) -> bool {
    const OTHERS: [&str; 9] = [
        "$ref",
        "additionalProperties",
        "allOf",
        "anyOf",
        "dependentSchemas",
        "if",
        "oneOf",
        "patternProperties",
        "unevaluatedProperties",
    ];
    let named = parameters.get("properties").and_then(Value::as_object).is_some_and(|map| !map.is_empty());
    named && !OTHERS.iter().any(|keyword| parameters.contains_key(*keyword))
}

/// Appends JSON.
pub fn write(out: &mut Secret<[u8]>, value: &(impl Serialize + ?Sized)) {
    serde_json::to_writer(Growing(out), value).expect("a value's keys are strings, and a buffer takes all");
}
