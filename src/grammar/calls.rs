//! Whether and how a chat's reply calls tools, as a grammar.
//!
//! For the Hermes form alone, which Qwen's templates teach too: `<tool_call>`, a JSON object with a `name` and
//! `arguments`, `</tool_call>`. The marks are special tokens in some checkpoints and text in others.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};

use super::ResponseFormat;
use super::compile::json_options;
use super::format::Kind;
use crate::error::{Error, Result};
use crate::memory::secret::Growing;
use crate::memory::{Secret, json};

/// What opens a call, and what closes it.
const MARKS: [&str; 2] = ["<tool_call>", "</tool_call>"];

/// Whether a chat's reply calls a tool: [`crate::Request::tool_choice`]. `Debug` prints the kind alone.
///
/// ```
/// use amnesic::{Request, Tool, ToolChoice, user};
/// use serde_json::json;
///
/// let parameters = json!({ "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"] });
/// let request = Request::chat([user("Will it rain in Delft?")])
///     .tools([Tool::new("weather", "Tells the weather.", parameters)])
///     .tool_choice(ToolChoice::function("weather"));
/// # let _ = request;
/// ```
#[derive(Default)]
#[non_exhaustive]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// It calls one of the tools at least, and says nothing else.
    Required,
    /// It calls this one.
    #[non_exhaustive]
    Function {
        /// Its name.
        name: FunctionName,
    },
}

/// A function's name, which may be content.
pub struct FunctionName(Secret<str>);

impl ToolChoice {
    /// The reply calls the function `name`, which must be among the request's tools.
    pub fn function(name: impl Into<String>) -> Self {
        Self::Function { name: FunctionName(Secret::new(name.into())) }
    }
}

impl fmt::Debug for ToolChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "Auto",
            Self::Required => "Required",
            Self::Function { .. } => "Function",
        })
    }
}

impl fmt::Debug for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

/// What a request says of calls.
#[derive(Debug, Default)]
pub struct Calls {
    pub choice: ToolChoice,
    /// Arguments keep to the schemas of their tools, which are refused where that cannot be.
    pub strict: bool,
    /// One call at most.
    pub single: bool,
}

impl Calls {
    /// Whether the model's own way of calling will not do.
    pub fn need_grammar(&self) -> bool {
        self.strict || self.single || !matches!(self.choice, ToolChoice::Auto)
    }

    /// The form of replies that call as it says, of tools with these definitions. `is_special` tells whether a text is
    /// that of a special token.
    ///
    /// # Errors
    /// None of the tools has the name that is asked for, or one is nested too deep.
    pub fn format<'a>(
        &self,
        definitions: impl IntoIterator<Item = &'a str>,
        is_special: impl Fn(&str) -> bool,
    ) -> Result<ResponseFormat> {
        let mut grammar = Secret::<[u8]>::with_capacity(4096);
        let [open, close] = MARKS.map(|mark| match is_special(mark) {
            true => mark.to_owned(),
            false => format!("{mark:?}"),
        });
        let free = !is_special(MARKS[0]);
        let start = match (&self.choice, self.single, free) {
            (ToolChoice::Auto, true, false) => "start: TEXT (open call close SPACE)?\n",
            (ToolChoice::Auto, false, false) => "start: TEXT (open call close TEXT)*\n",
            // Where the mark is text, what stands before it is read up to it.
            (ToolChoice::Auto, true, true) => "start: head call close SPACE | REST\n",
            (ToolChoice::Auto, false, true) => "start: (head call close)* REST\n",
            (_, true, _) => "start: open call close\n",
            (_, false, _) => "start: open call close (SPACE open call close)*\n",
        };
        grammar.extend(start.as_bytes());
        let lines = format!("open: {open}\nclose: SPACE {close}\nSPACE: /[ \\n]{{0,2}}/\nTEXT: /(?s:.*)/\n");
        grammar.extend(lines.as_bytes());
        if free {
            grammar.extend(
                b"head[suffix=\"<tool_call>\"]: /(?s:.*)/\nREST: /(?s:.*)/ & ~/(?s:.*)<tool_call>(?s:.*)/\n",
            );
        }
        let mut count = 0;
        for definition in definitions {
            if let Some(schema) = self.schema(definition)? {
                grammar.extend(if count == 0 { b"call: SPACE %json " } else { b"    | SPACE %json " });
                grammar.extend(schema.expose());
                grammar.extend(b"\n");
                count += 1;
            }
        }
        if count == 0 {
            return Err(Error::request("tool_choice", "the name of one of the request's tools"));
        }
        let grammar = Secret::from_utf8(grammar).expect("JSON and the words around it are UTF-8");
        let mut format = ResponseFormat::from(Kind::Lark(grammar));
        format.lenient = !self.strict;
        Ok(format)
    }

    /// The schema of a call of this tool; none if it is not to be called.
    fn schema(&self, definition: &str) -> Result<Option<Secret<[u8]>>> {
        let nested = || Error::request("tools", "functions whose parameters are nested less deep");
        let value: Value = serde_json::from_str(definition).map_err(|_| nested())?;
        let function = value.get("function").unwrap_or(&value);
        let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
        let wanted = match &self.choice {
            ToolChoice::Function { name: wanted } => wanted.0.expose() == name,
            _ => true,
        };
        let schema = wanted.then(|| {
            let mut schema = Secret::<[u8]>::with_capacity(definition.len() + 256);
            schema.extend(br#"{"type":"object","properties":{"name":{"const":"#);
            write(&mut schema, name);
            // An id of its own: the tool's references are relative to its parameters.
            schema.extend(br#"},"arguments":{"type":"object","allOf":[{"$id":"urn:arguments""#);
            let parameters = function.get("parameters").and_then(Value::as_object);
            for (keyword, value) in parameters.into_iter().flatten().filter(|(keyword, _)| *keyword != "$id")
            {
                schema.extend(b",");
                write(&mut schema, keyword);
                schema.extend(b":");
                write(&mut schema, value);
            }
            if parameters.is_some_and(names_all) {
                schema.extend(br#","additionalProperties":false"#);
            }
            schema.extend(b"}");
            schema
                .extend(br#"]}},"required":["name","arguments"],"additionalProperties":false,"x-guidance":"#);
            write(&mut schema, &json_options());
            schema.extend(b"}");
            schema
        });
        json::wipe(value);
        Ok(schema)
    }
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

fn write(out: &mut Secret<[u8]>, value: &(impl Serialize + ?Sized)) {
    serde_json::to_writer(Growing(out), value).expect("a value's keys are strings, and a buffer takes all");
}
