//! What `$ref`s point to: places, `$anchor`s and `$id`s of the document. Nothing outside of it is ever asked for.

use std::borrow::Cow;
use std::collections::HashMap;
use std::rc::Rc;

use serde_json::Value;

use super::super::keywords::{LISTS_OF_SCHEMAS, MAPS_OF_SCHEMAS, SCHEMAS};

/// The names that the schemas of a document have.
pub struct Index<'a> {
    pub document: &'a Value,
    /// What references in a schema are relative to, by the schema's place in memory; none for the document's own.
    bases: HashMap<*const Value, Rc<str>>,
    /// Schemas with an `$id`, by that.
    resources: HashMap<Rc<str>, &'a Value>,
    /// Schemas with an anchor, by their resource and that.
    anchors: HashMap<(Rc<str>, &'a str), &'a Value>,
    /// How many dynamic anchors have a name; recursive ones have none.
    dynamic: HashMap<&'a str, usize>,
    /// Draft 4 says `id` where the others say `$id`.
    id: &'static str,
}

impl<'a> Index<'a> {
    pub fn new(document: &'a Value) -> Self {
        let draft = document.get("$schema").and_then(Value::as_str).unwrap_or_default();
        let id = if draft.contains("draft-04") { "id" } else { "$id" };
        let (none, base) = (HashMap::new(), Rc::from(""));
        let mut index = Self {
            document,
            bases: HashMap::new(),
            resources: HashMap::from([(Rc::clone(&base), document)]),
            anchors: HashMap::new(),
            dynamic: none,
            id,
        };
        index.walk(document, base);
        index
    }

    fn walk(&mut self, schema: &'a Value, mut base: Rc<str>) {
        let Value::Object(map) = schema else { return };
        let text = |keyword: &str| map.get(keyword).and_then(Value::as_str);
        if let Some(id) = text(self.id) {
            let (url, fragment) = id.split_once('#').unwrap_or((id, ""));
            if !url.is_empty() {
                base = resolve(&base, url).into();
                self.resources.entry(base.clone()).or_insert(schema);
            }
            if !fragment.is_empty() {
                self.anchors.entry((base.clone(), fragment)).or_insert(schema);
            }
        }
        for keyword in ["$anchor", "$dynamicAnchor"] {
            if let Some(anchor) = text(keyword) {
                self.anchors.entry((base.clone(), anchor)).or_insert(schema);
            }
        }
        if let Some(anchor) = text("$dynamicAnchor") {
            *self.dynamic.entry(anchor).or_default() += 1;
        }
        if map.get("$recursiveAnchor") == Some(&Value::Bool(true)) {
            *self.dynamic.entry("").or_default() += 1;
        }
        self.bases.insert(schema, base.clone());
        for (keyword, value) in map {
            let keyword = keyword.as_str();
            match value {
                Value::Object(_) if SCHEMAS.contains(&keyword) => self.walk(value, base.clone()),
                Value::Object(named) if MAPS_OF_SCHEMAS.contains(&keyword) => {
                    named.values().for_each(|schema| self.walk(schema, base.clone()));
                }
                Value::Array(schemas) if LISTS_OF_SCHEMAS.contains(&keyword) => {
                    schemas.iter().for_each(|schema| self.walk(schema, base.clone()));
                }
                _ => {}
            }
        }
    }

    /// What a reference in the schema `from` points to.
    pub fn resolve(&self, reference: &str, from: &Value) -> Option<&'a Value> {
        let own = Rc::from("");
        let base = self.bases.get(&std::ptr::from_ref(from)).unwrap_or(&own);
        let (url, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let url: Rc<str> = if url.is_empty() { base.clone() } else { resolve(base, url).into() };
        let fragment = percent_decoded(fragment)?;
        let resource = self.resources.get(&url)?;
        if fragment.is_empty() || fragment == "/" {
            return Some(resource);
        }
        if fragment.starts_with('/') {
            return resource.pointer(&fragment);
        }
        self.anchors
            .iter()
            .find(|((of, name), _)| **of == *url && *name == fragment)
            .map(|(_, schema)| *schema)
    }

    /// Whether a dynamic reference means the same wherever it is reached from: no second schema has its anchor.
    pub fn is_static(&self, reference: &str) -> bool {
        let anchor = reference.split_once('#').map_or("", |(_, fragment)| fragment);
        self.dynamic.get(anchor).is_none_or(|&count| count <= 1)
    }
}

/// A URL relative to another (RFC 3986, section 5.2).
fn resolve(base: &str, reference: &str) -> String {
    let scheme = |url: &str| {
        let end = url.find(':')?;
        url[..end]
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
            .then_some(end + 1)
    };
    if scheme(reference).is_some() || base.is_empty() {
        return reference.to_owned();
    }
    let behind_scheme = scheme(base).unwrap_or(0);
    if reference.starts_with("//") {
        return format!("{}{reference}", &base[..behind_scheme]);
    }
    let path_at = match base[behind_scheme..].strip_prefix("//") {
        Some(rest) => behind_scheme + 2 + rest.find('/').unwrap_or(rest.len()),
        None => behind_scheme,
    };
    let (root, path) = base.split_at(path_at);
    let path = path.split('?').next().unwrap_or_default();
    let folder = path.rfind('/').map_or("/", |end| &path[..=end]);
    let joined =
        if reference.starts_with('/') { reference.to_owned() } else { format!("{folder}{reference}") };
    let (path, query) =
        joined.split_once('?').map_or((joined.as_str(), None), |(path, query)| (path, Some(query)));
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    let query = query.map_or(String::new(), |query| format!("?{query}"));
    format!("{root}/{}{query}", segments.join("/").trim_start_matches('/'))
}

/// The text with its `%20`s as characters; none where that is no UTF-8.
fn percent_decoded(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(text.into());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        let code = || u8::from_str_radix(str::from_utf8(behind.get(..2)?).ok()?, 16).ok();
        match (byte == b'%').then(code).flatten() {
            Some(decoded) => {
                bytes.push(decoded);
                rest = &behind[2..];
            }
            None => {
                bytes.push(byte);
                rest = behind;
            }
        }
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values from Python's `urllib.parse.urljoin`.
    #[test]
    fn urls_are_joined_as_the_standard_says() {
        let cases = [
            ("https://example.com/a/b.json", "c.json", "https://example.com/a/c.json"),
            ("https://example.com/a/b.json", "/c.json", "https://example.com/c.json"),
            ("https://example.com/a/b.json", "../c.json", "https://example.com/c.json"),
            ("https://example.com/a/b.json", "./d/c.json", "https://example.com/a/d/c.json"),
            ("https://example.com", "c.json", "https://example.com/c.json"),
            ("https://example.com/a/b.json", "//other.org/c", "https://other.org/c"),
            ("https://example.com/a/b.json", "urn:example:x", "urn:example:x"),
        ];
        for (base, reference, joined) in cases {
            assert_eq!(resolve(base, reference), joined, "{base} {reference}");
        }
    }
}
