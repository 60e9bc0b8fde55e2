//! Parameters between tags: texts as they are, other values as JSON.

use serde_json::{Map, Value};

use super::function::Function;
use super::raw::{Text, allows, refers, texts, unspellable};
use super::writer::{RESOURCE, Writer, escaped, json, quoted, resource, somewhere, write};
use crate::chat::{Parameter, Type};
use crate::error::{Error, Result};
use crate::memory::Secret;

/// How a format writes a parameter.
pub struct Tags {
    /// Before its name, between name and value, and behind a value, as [`Writer::fixed`] takes it. `{}` stands for what
    /// [`Told`] says, and `{name}` for the name.
    pub before: &'static str,
    pub between: &'static str,
    pub behind: &'static str,
    /// Texts that would end a value, or be read as more of the call.
    pub ends: &'static [&'static str],
    /// A value of a parameter without a type is JSON; elsewhere it is text.
    pub untyped_is_json: bool,
    /// Characters that readers take off both sides of a text, and the format does not write there.
    pub edges: Option<&'static str>,
    pub told: Told,
    /// Whether lists and objects are JSON; elsewhere they are elements.
    pub containers: bool,
}

/// What a format says of a parameter's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Nothing,
    /// Whether it is text.
    IsText,
    /// Its type.
    Type,
}

pub const QWEN3_CODER: Tags = Tags {
    before: "<parameter=",
    between: ">\n",
    behind: "\n</parameter>\n",
    ends: &["</parameter>", "<parameter=", "</function>"],
    untyped_is_json: false,
    edges: None,
    told: Told::Nothing,
    containers: true,
};
pub const MINIMAX_M2: Tags = Tags {
    before: "<parameter name=\"",
    between: "\">",
    behind: "</parameter>\n",
    ends: &["</parameter>", "<parameter name=", "</invoke>"],
    edges: Some("\\n"),
    ..QWEN3_CODER
};
pub const DEEPSEEK_V32: Tags = Tags {
    before: "<｜DSML｜parameter name=\"",
    between: "\" string=\"{}\">",
    behind: "</｜DSML｜parameter>\n",
    ends: &["</｜DSML｜parameter>", "<｜DSML｜parameter name=", "</｜DSML｜invoke>"],
    untyped_is_json: true,
    told: Told::IsText,
    ..QWEN3_CODER
};
pub const STEP3: Tags = Tags {
    before: "<steptml:parameter name=\"",
    between: "\">",
    behind: "</steptml:parameter>",
    ends: &["</steptml:parameter>", "<steptml:parameter name=", "</steptml:invoke>"],
    edges: Some("\\s"),
    ..QWEN3_CODER
};
pub const KIMI_K3: Tags = Tags {
    before: "<|open|>argument key=\"",
    between: "\" type=\"{}\"<|sep|>",
    behind: "<|close|>argument<|sep|>",
    ends: &["<|close|>argument<|sep|>"],
    told: Told::Type,
    ..QWEN3_CODER
};
pub const MINIMAX_M3: Tags = Tags {
    before: "]<]minimax[>[<",
    between: ">",
    behind: "]<]minimax[>[</{name}>",
    ends: &["]<]minimax[>["],
    containers: false,
    ..QWEN3_CODER
};
pub const GLM: Tags = Tags {
    before: "<arg_key>",
    between: "</arg_key>\u{1}<arg_value>",
    behind: "</arg_value>\u{1}",
    ends: &["</arg_value>"],
    untyped_is_json: true,
    ..QWEN3_CODER
};

/// Appends the parameters of a function, in the order of its schema; those that it does not require may be missing.
///
/// # Errors
/// One of them has a name that the format cannot spell, or a schema that cannot hold.
pub fn parameters(
    writer: &mut Writer,
    out: &mut Secret<[u8]>,
    function: &Function<'_>,
    tags: &Tags,
) -> Result<()> {
    function.check_root(writer)?;
    for (name, schema, required) in function.parameters() {
        if name.is_empty()
            || name.trim() != name
            || name.contains(['<', '>', '"'])
            || name.contains(char::is_control)
        {
            return Err(unspellable("parameters with names"));
        }
        let kind = function.kind(name);
        let is_json = match kind {
            Some(Parameter { kind: Type::Text, .. }) => false,
            Some(Parameter { kind: Type::Untyped, .. }) | None => tags.untyped_is_json,
            Some(_) => true,
        };
        if !tags.containers && kind.is_some_and(|kind| matches!(kind.kind, Type::Container | Type::Any)) {
            let expected = "functions without parameters that are lists or objects: calls of this checkpoint write \
                            those as elements";
            return Err(Error::request("tools", expected));
        }
        let one = Parameters { writer: &mut *writer, function, tags, name, schema, kind };
        let rule = if is_json { one.json()? } else { one.text()? };
        out.extend(rule.as_bytes());
        out.extend(if required { b" " } else { b"? " });
    }
    Ok(())
}

/// A parameter, as it is written.
struct Parameters<'a, 'v> {
    writer: &'a mut Writer,
    function: &'a Function<'v>,
    tags: &'a Tags,
    name: &'v str,
    schema: &'v Value,
    kind: Option<Parameter>,
}

/// The types that the attribute of a value names, and those of JSON Schema that they stand for.
const TYPES: [(&str, &[&str]); 5] = [
    ("number", &["number", "integer"]),
    ("boolean", &["boolean"]),
    ("object", &["object"]),
    ("array", &["array"]),
    ("null", &["null"]),
];

impl Parameters<'_, '_> {
    /// What stands before the value.
    fn head(&self, out: &mut Secret<[u8]>, told: &str) -> Result<()> {
        let mut head = Secret::<[u8]>::default();
        head.extend(self.tags.before.as_bytes());
        head.extend(self.name.as_bytes());
        head.extend(self.tags.between.replace("{}", told).as_bytes());
        self.writer.fixed(out, std::str::from_utf8(head.expose()).expect("names and tags are UTF-8"))
    }

    fn behind(&self) -> Secret<str> {
        Secret::new(self.tags.behind.replace("{name}", self.name))
    }

    /// A rule for a value that is JSON, without the strings that a reader would not take for such.
    fn json(mut self) -> Result<String> {
        let kinds: &[&str] = match self.kind.map(|parameter| parameter.kind) {
            Some(Type::Integer) => &["integer", "null"],
            Some(Type::Number) => &["number", "integer", "null"],
            Some(Type::Boolean) => &["boolean", "null"],
            Some(Type::Container) => &["object", "array", "null"],
            _ if self.tags.untyped_is_json => &[],
            _ => &["object", "array", "number", "integer", "boolean", "null"],
        };
        if self.tags.told != Told::Type {
            return self.of_types("false", kinds);
        }
        let schema = self.schema;
        let own =
            |kind: &&&str| schema.as_object().is_none_or(|map| allows(map, kind) || own_number(map, kind));
        let mut found = Vec::new();
        for (told, types) in TYPES {
            let types: Vec<&str> =
                types.iter().filter(|kind| kinds.contains(*kind)).filter(own).copied().collect();
            if !types.is_empty() {
                found.push(self.of_types(told, &types)?);
            }
        }
        if found.is_empty() {
            self.writer.unenforced("type")?;
            found.push(self.of_types("number", &["number"])?);
        }
        Ok(format!("({})", found.join(" | ")))
    }

    fn of_types(&mut self, told: &str, kinds: &[&str]) -> Result<String> {
        let (schema, root) = (self.schema, self.function.root());
        let one = self.tags.told != Told::Type && schema.get("type").is_some_and(Value::is_string);
        let mut body = Secret::<[u8]>::default();
        self.head(&mut body, told)?;
        json(&mut body, |out| {
            out.extend(b"{");
            let refers = refers(schema);
            if refers {
                out.extend(br#""$defs":{"arguments":"#);
                resource(out, root, false);
                out.extend(b"},");
            }
            out.extend(br#""allOf":["#);
            if refers {
                let path = self.name.replace('~', "~0").replace('/', "~1").replace('%', "%25");
                let path = Secret::new(format!("{RESOURCE}#/properties/{path}"));
                out.extend(br#"{"$ref":"#);
                write(out, path.expose());
                out.extend(b"}");
            } else {
                write(out, schema);
            }
            if !kinds.is_empty() && !one {
                out.extend(br#",{"type":"#);
                write(out, kinds);
                out.extend(b"}");
            }
            out.extend(b"]");
        });
        self.writer.fixed(&mut body, self.behind().expose())?;
        Ok(self.writer.rule(&body))
    }

    /// A rule for a text as it is.
    fn text(self) -> Result<String> {
        let mut excluded: Vec<String> = self.tags.ends.iter().map(|end| somewhere(&escaped(end))).collect();
        let alternatives = texts(self.writer, self.schema, self.function.root(), 0)?;
        let free = alternatives.iter().any(Text::is_free);
        if let Some(edges) = self.tags.edges.filter(|_| !free) {
            excluded.push(format!("/{edges}(?s:.*)|(?s:.*){edges}/"));
        }
        let (told, nullable) = match self.tags.told {
            Told::Type => ("string", false),
            _ => ("true", self.kind.is_some_and(|parameter| parameter.nullable)),
        };
        let behind = self.behind();
        let mut head = Secret::<[u8]>::default();
        self.head(&mut head, told)?;
        let mut found = Vec::new();
        for alternative in
            alternatives.iter().filter(|one| !free || one.is_free()).take(if free { 1 } else { usize::MAX })
        {
            let Some(forms) = alternative.forms(self.writer)? else { continue };
            let mut body = Secret::<[u8]>::copy(head.expose());
            self.writer.text_until(&mut body, &forms, &excluded, behind.expose())?;
            found.push(self.writer.rule(&body));
        }
        if nullable && !free {
            let mut body = Secret::<[u8]>::copy(head.expose());
            quoted(&mut body, "null");
            self.writer.fixed(&mut body, behind.expose())?;
            found.push(self.writer.rule(&body));
        }
        if found.is_empty() {
            // what is no text cannot be told from one here
            self.writer.unenforced("enum")?;
            let mut body = Secret::<[u8]>::copy(head.expose());
            self.writer.text_until(&mut body, &[], &excluded, behind.expose())?;
            found.push(self.writer.rule(&body));
        }
        Ok(format!("({})", found.join(" | ")))
    }
}

/// Whether a schema of numbers takes whole ones.
fn own_number(map: &Map<String, Value>, kind: &str) -> bool {
    kind == "integer" && allows(map, "number")
}
