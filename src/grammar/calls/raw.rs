//! Texts that stand between marks as they are, not as JSON: what a schema says of strings, as bodies of terminals.

use regex_syntax::hir::{Hir, HirKind, Look};
use serde_json::{Map, Value};

use super::super::schema::{constrains, with_ascii_classes};
use super::writer::{Writer, quoted};
use crate::error::{Error, Result};
use crate::memory::Secret;

/// References in references are followed no further.
const MAX_REFERENCES: usize = 16;
/// Alternatives of one text.
const MAX_ALTERNATIVES: usize = 64;

/// Formats that hold, and expressions for some of their texts: days that every month has, for one.
const FORMATS: [(&str, &str); 5] = [
    ("date", "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"),
    ("time", "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"),
    (
        "date-time",
        "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?\
         (Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
    ),
    ("uuid", "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    (
        "email",
        "[A-Za-z0-9_+-]+(\\.[A-Za-z0-9_+-]+)*@([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\\.){1,8}[A-Za-z]{2,24}",
    ),
];
/// Formats that are no annotation, but have no expression here.
const OTHER_FORMATS: [&str; 5] = ["duration", "hostname", "ipv4", "ipv6", "uri"];

/// What a schema says of a text, one of its alternatives.
#[derive(Clone, Debug, Default)]
pub struct Text<'v> {
    /// These texts alone.
    only: Option<Vec<&'v str>>,
    least: u64,
    most: Option<u64>,
    patterns: Vec<&'v str>,
    formats: Vec<&'static str>,
}

impl<'v> Text<'v> {
    fn and(&self, other: &Self) -> Self {
        let only = match (&self.only, &other.only) {
            (Some(these), Some(those)) => {
                Some(these.iter().copied().filter(|text| those.contains(text)).collect())
            }
            (these, those) => these.clone().or_else(|| those.clone()),
        };
        Self {
            only,
            least: self.least.max(other.least),
            most: [self.most, other.most].into_iter().flatten().min(),
            patterns: [&self.patterns[..], &other.patterns].concat(),
            formats: [&self.formats[..], &other.formats].concat(),
        }
    }

    /// Whether any text will do.
    pub fn is_free(&self) -> bool {
        let Self { only, least, most, patterns, formats } = self;
        only.is_none() && *least == 0 && most.is_none() && patterns.is_empty() && formats.is_empty()
    }

    /// Bodies of terminals that all match it; none where no text does, which shows.
    pub fn forms(&self, writer: &mut Writer) -> Result<Option<Vec<Secret<[u8]>>>> {
        let mut forms = Vec::new();
        if let Some(only) = &self.only {
            let fits = |text: &&&str| {
                let count = text.chars().count() as u64;
                count >= self.least && self.most.is_none_or(|most| count <= most)
            };
            let mut body = Secret::<[u8]>::default();
            for text in only.iter().filter(fits) {
                body.extend(if body.expose().is_empty() { b"(" } else { b"| " });
                quoted(&mut body, text);
            }
            if body.expose().is_empty() {
                return Ok(None);
            }
            body.extend(b")");
            forms.push(body);
        } else if self.least > 0 || self.most.is_some() {
            let most = self.most.map_or_else(String::new, |most| most.to_string());
            forms.push(Secret::new(format!("/(?s:.{{{},{most}}})/", self.least).into_bytes()));
        }
        for pattern in &self.patterns {
            match anchored(pattern) {
                Some(pattern) => forms.push(Secret::new(format!("/{pattern}/").into_bytes())),
                None => writer.unenforced("pattern")?,
            }
        }
        for format in &self.formats {
            match FORMATS.iter().find(|(known, _)| known == format) {
                Some((_, expression)) => forms.push(Secret::new(format!("/{expression}/").into_bytes())),
                None => writer.unenforced("format")?,
            }
        }
        Ok(Some(forms))
    }
}

/// The texts that are valid under a schema of the document `root`, as alternatives.
///
/// # Errors
/// A keyword says something of texts that cannot hold.
pub fn texts<'v>(
    writer: &mut Writer,
    schema: &'v Value,
    root: &'v Value,
    depth: usize,
) -> Result<Vec<Text<'v>>> {
    let map = match schema {
        Value::Object(map) => map,
        Value::Bool(false) => return Ok(Vec::new()),
        _ => return Ok(vec![Text::default()]),
    };
    if depth > MAX_REFERENCES {
        writer.unenforced("$ref")?;
        return Ok(vec![Text::default()]);
    }
    if !allows(map, "string") {
        return Ok(Vec::new());
    }
    let mut found = vec![of_keywords(map)];
    if map.contains_key("$ref") {
        match target(map, root) {
            Some(target) => found = product(&found, &texts(writer, target, root, depth + 1)?),
            None => writer.unenforced("$ref")?,
        }
    }
    let parts = |keyword: &str| map.get(keyword).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    for part in parts("allOf") {
        found = product(&found, &texts(writer, part, root, depth + 1)?);
    }
    for keyword in ["anyOf", "oneOf"] {
        if !map.contains_key(keyword) {
            continue;
        }
        let (mut union, mut having) = (Vec::new(), 0);
        for part in parts(keyword) {
            let of_part = texts(writer, part, root, depth + 1)?;
            having += usize::from(!of_part.is_empty());
            union.extend(of_part);
        }
        let apart = union.iter().all(|text| text.only.is_some());
        if keyword == "oneOf" && having > 1 && !apart {
            writer.unenforced("oneOf")?;
        }
        found = product(&found, &union);
    }
    for keyword in ["not", "if", "$dynamicRef", "$recursiveRef", "extends"] {
        if map.contains_key(keyword) {
            writer.unenforced(keyword)?;
        }
    }
    if found.len() > MAX_ALTERNATIVES {
        writer.unenforced("anyOf")?;
        found.truncate(0);
        found.push(Text::default());
    }
    Ok(found)
}

fn of_keywords(map: &Map<String, Value>) -> Text<'_> {
    let count = |keyword: &str| map.get(keyword).and_then(Value::as_u64);
    let only = match (map.get("const"), map.get("enum").and_then(Value::as_array)) {
        (Some(only), _) => Some(only.as_str().into_iter().collect()),
        (None, Some(list)) => Some(list.iter().filter_map(Value::as_str).collect()),
        (None, None) => None,
    };
    let format = map.get("format").and_then(Value::as_str);
    let known = FORMATS.iter().map(|(name, _)| *name).chain(OTHER_FORMATS);
    Text {
        only,
        least: count("minLength").unwrap_or(0),
        most: count("maxLength"),
        patterns: map.get("pattern").and_then(Value::as_str).into_iter().collect(),
        formats: known.filter(|known| Some(*known) == format).collect(),
    }
}

fn product<'v>(these: &[Text<'v>], those: &[Text<'v>]) -> Vec<Text<'v>> {
    let pairs = these.iter().flat_map(|this| those.iter().map(move |that| this.and(that)));
    pairs.take(MAX_ALTERNATIVES + 1).collect()
}

/// Whether a schema's own `type` leaves room for this one.
pub fn allows(map: &Map<String, Value>, kind: &str) -> bool {
    match map.get("type") {
        Some(Value::String(name)) => name == kind,
        Some(Value::Array(names)) => names.iter().any(|name| name == kind),
        _ => true,
    }
}

/// What a reference to a place of the document points to.
pub fn target<'v>(map: &'v Map<String, Value>, root: &'v Value) -> Option<&'v Value> {
    root.pointer(map.get("$ref")?.as_str()?.strip_prefix('#')?)
}

/// Whether a value has one of these keywords somewhere, which mean something only within its document.
pub fn refers(value: &Value) -> bool {
    match value {
        Value::Object(map) => {
            ["$ref", "$dynamicRef", "$recursiveRef"].iter().any(|keyword| map.contains_key(*keyword))
                || map.values().any(refers)
        }
        Value::Array(list) => list.iter().any(refers),
        _ => false,
    }
}

/// Keywords of a schema that say which values are valid.
pub fn constraints(map: &Map<String, Value>) -> impl Iterator<Item = &str> {
    map.keys().map(String::as_str).filter(|keyword| constrains(keyword))
}

/// The expression of whole texts in which `pattern` matches somewhere, as it stands between the slashes of Lark; none
/// where it looks around other than with `^` and `$` at the ends of its alternatives.
fn anchored(pattern: &str) -> Option<String> {
    let hir = regex_syntax::Parser::new().parse(&with_ascii_classes(pattern)).ok()?;
    let whole = match hir.kind() {
        HirKind::Alternation(branches) => {
            let branches = branches.iter().map(branch).collect::<Option<Vec<_>>>()?;
            format!("({})", branches.join("|"))
        }
        _ => branch(&hir)?,
    };
    let mut out = String::with_capacity(whole.len());
    for char in whole.chars() {
        match char {
            '/' => out.push_str("\\/"),
            _ if char.is_control() => out.push_str(&format!("\\x{{{:x}}}", char as u32)),
            _ => out.push(char),
        }
    }
    Some(out)
}

fn branch(hir: &Hir) -> Option<String> {
    let hir = match hir.kind() {
        HirKind::Capture(capture) => &capture.sub,
        _ => hir,
    };
    let parts = match hir.kind() {
        HirKind::Concat(parts) => &parts[..],
        _ => std::slice::from_ref(hir),
    };
    let is = |part: Option<&Hir>, look| part.is_some_and(|part| *part.kind() == HirKind::Look(look));
    let (begins, ends) = (is(parts.first(), Look::Start), is(parts.last(), Look::End));
    let to = parts.len() - usize::from(ends && parts.len() > usize::from(begins));
    let inner = &parts[usize::from(begins).min(to)..to];
    if inner.iter().any(|part| !part.properties().look_set().is_empty()) {
        return None;
    }
    let inner: String = inner.iter().map(|part| format!("(?:{part})")).collect();
    let any = |at_edge| if at_edge { "" } else { "(?s:.*)" };
    let whole = format!("{}{inner}{}", any(begins), any(ends));
    Some(if whole.is_empty() { "(?:)".to_owned() } else { whole })
}

/// The error for a name that a format cannot spell.
pub fn unspellable(what: &str) -> Error {
    Error::request(
        "tools",
        format!("{what} of letters, digits, `_` and `-`, as calls of this checkpoint are written"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_searched_for() {
        for (pattern, expected) in [
            ("[ab]", Some("(?s:.*)(?:[ab])(?s:.*)")),
            ("^[ab]$", Some("(?:[ab])")),
            ("^[ab]/", Some("(?:[ab])(?:\\/)(?s:.*)")),
            ("^$", Some("(?:)")),
            (r"\bx", None),
            ("(", None),
        ] {
            assert_eq!(anchored(pattern).as_deref(), expected, "{pattern}");
        }
        assert!(anchored("^a|b$").is_some_and(|found| found.starts_with("((?:a)(?s:.*)|")));
    }

    #[test]
    fn texts_of_schemas() {
        let root = serde_json::json!({ "$defs": { "unit": { "enum": ["c", "f", 1] } } });
        let of = |schema: Value, strict| {
            let mut writer = Writer::new([], |_| super::super::Mark::Text, strict);
            let found = texts(&mut writer, &schema, &root, 0).map(|texts| texts.len());
            (found.ok(), writer.not_enforced)
        };
        for (schema, count) in [
            (serde_json::json!({ "type": "string" }), 1),
            (serde_json::json!({ "type": "integer" }), 0),
            (serde_json::json!({ "$ref": "#/$defs/unit" }), 1),
            (serde_json::json!({ "anyOf": [{ "type": "string", "maxLength": 3 }, { "type": "null" }] }), 1),
            (serde_json::json!({ "anyOf": [{ "const": "a" }, { "type": "string", "format": "date" }] }), 2),
        ] {
            assert_eq!(of(schema.clone(), true), (Some(count), vec![]), "{schema}");
        }
        let not = serde_json::json!({ "type": "string", "not": { "const": "a" } });
        assert_eq!(of(not.clone(), true).0, None);
        assert_eq!(of(not, false), (Some(1), vec!["not"]));
    }
}
