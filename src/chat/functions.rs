//! Functions that a model may call, and its calls of them.

use std::fmt;

use minijinja::Value;

use super::values::Arguments;
use crate::error::{Error, Result};
use crate::memory::json;
use crate::memory::secret::{Growing, Secret};

/// Parameters of a tool are nested no deeper.
const MAX_DEPTH: usize = 120;

/// A function that the model may ask for. `Debug` prints lengths.
pub struct Tool {
    /// `{"type": "function", "function": {...}}` as text: a `serde_json::Value` cannot be overwritten in place. Empty
    /// where the parameters are nested too deep to be written out.
    definition: Secret<str>,
}

impl Tool {
    /// A function `name` whose `parameters` are described by a JSON schema. All that it takes is overwritten.
    pub fn new(
        name: impl Into<String>,
        description: impl Into<String>,
        parameters: serde_json::Value,
    ) -> Self {
        // Written part by part: `json!` would copy each into a value of its own and free that as it is.
        let mut definition = Secret::<[u8]>::with_capacity(1024);
        let (name, description) = (Secret::new(name.into()), Secret::new(description.into()));
        if json::depth(&parameters) <= MAX_DEPTH {
            definition.extend(br#"{"type":"function","function":{"name":"#);
            write(&mut definition, name.expose());
            definition.extend(br#","description":"#);
            write(&mut definition, description.expose());
            definition.extend(br#","parameters":"#);
            write(&mut definition, &parameters);
            definition.extend(b"}}");
        }
        json::wipe(parameters);
        Self { definition: Secret::from_utf8(definition).expect("JSON is UTF-8") }
    }

    /// Bytes of the definition as JSON.
    pub(crate) fn bytes(&self) -> usize {
        self.definition.expose().len()
    }

    /// The definition as JSON; empty where it is nested too deep.
    pub(crate) fn definition(&self) -> &str {
        self.definition.expose()
    }

    pub(super) fn to_value(&self) -> Result<Value> {
        parse(self.definition.expose())
            .ok_or_else(|| Error::request("tools", format!("nested at most {MAX_DEPTH} deep")))
    }
}

impl fmt::Debug for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tool").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

/// A call that the model asks for. `Debug` prints lengths.
pub struct ToolCall {
    id: Secret<str>,
    name: Secret<str>,
    arguments: Secret<str>,
    is_object: bool,
}

impl ToolCall {
    /// A call of `name`; `arguments_json` is the text of a JSON object, as clients and models write it. A template that
    /// tests what it is given, or concatenates it, sees the text; any other the object.
    pub fn new(id: impl Into<String>, name: impl Into<String>, arguments_json: impl Into<String>) -> Self {
        Self {
            id: Secret::new(id.into()),
            name: Secret::new(name.into()),
            arguments: Secret::new(arguments_json.into()),
            is_object: false,
        }
    }

    /// The arguments came as an object, and every template sees one.
    ///
    /// ```
    /// use amnesic::ToolCall;
    ///
    /// let call = ToolCall::new("1", "weather", r#"{"city": "Oslo"}"#).with_object_arguments();
    /// assert_eq!(call.arguments(), r#"{"city": "Oslo"}"#);
    /// ```
    pub fn with_object_arguments(mut self) -> Self {
        self.is_object = true;
        self
    }

    /// Another call with the texts that `text` makes of this one's, and `json` of its arguments.
    pub(super) fn changed(
        &self,
        text: &dyn Fn(&str) -> Secret<str>,
        json: &dyn Fn(&str) -> Secret<str>,
    ) -> Self {
        Self {
            id: text(self.id()),
            name: text(self.name()),
            arguments: json(self.arguments()),
            is_object: self.is_object,
        }
    }

    /// Whether the arguments came as an object.
    pub(super) fn is_object(&self) -> bool {
        self.is_object
    }

    /// One of its id, name and arguments.
    pub(crate) fn of([id, name, arguments]: [Secret<str>; 3]) -> Self {
        Self { id, name, arguments, is_object: false }
    }

    /// What the answer must name (see [`super::tool`]); unique within a reply.
    pub fn id(&self) -> &str {
        self.id.expose()
    }

    /// The function's name, as the model wrote it: perhaps none of the tools.
    pub fn name(&self) -> &str {
        self.name.expose()
    }

    /// The text of a JSON object, as the model wrote it: not checked against the tool's schema.
    pub fn arguments(&self) -> &str {
        self.arguments.expose()
    }

    /// A second owner of the same call; what `Clone` would be if secrets had one.
    pub(crate) fn copy(&self) -> Self {
        Self { is_object: self.is_object, ..Self::new(self.id(), self.name(), self.arguments()) }
    }

    pub(super) fn to_value(&self, objects: bool) -> Result<Value> {
        // Models call functions without parameters with nothing at all.
        let json = if matches!(self.arguments().trim(), "" | "null") { "{}" } else { self.arguments() };
        let object = parse(json).filter(|arguments| arguments.kind() == minijinja::value::ValueKind::Map);
        let arguments = match object {
            Some(object) if objects || self.is_object => object,
            None if objects || self.is_object => return Err(no_object()),
            object => Arguments::value(self.arguments(), object.as_ref()),
        };
        let function = Value::from_iter([("name", Value::from(self.name())), ("arguments", arguments)]);
        let (id, kind) = (Value::from(self.id()), Value::from("function"));
        Ok(Value::from_iter([("id", id), ("type", kind), ("function", function)]))
    }
}

impl fmt::Debug for ToolCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ToolCall")
            .field("name_bytes", &self.name().len())
            .field("arguments_bytes", &self.arguments().len())
            .finish_non_exhaustive()
    }
}

/// The error for a template that wants the object of arguments that are none.
pub(super) fn no_object() -> Error {
    Error::request("messages", "with tool calls whose arguments are a JSON object")
}

fn write(out: &mut Secret<[u8]>, value: &(impl serde::Serialize + ?Sized)) {
    serde_json::to_writer(Growing(out), value).expect("a value's keys are strings, and a buffer takes all");
}

/// JSON text as a template sees it; none where it is no JSON or too deep for serde_json.
fn parse(json: &str) -> Option<Value> {
    let value: serde_json::Value = serde_json::from_str(json).ok()?;
    let seen = Value::from_serialize(&value);
    json::wipe(value);
    Some(seen)
}
