//! What a conversation is made of: messages, tools, calls of tools.

use std::fmt;

use minijinja::Value;

use crate::error::{Error, Result};
use crate::memory::json;
use crate::memory::secret::{Growing, Secret};

/// Who speaks.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions that hold for the whole conversation.
    System,
    /// The person, or the program, that asks.
    User,
    /// The model.
    Assistant,
    /// The result of a call that the model made.
    Tool,
    /// Instructions by whoever builds the application; few templates know it.
    Developer,
}

impl Role {
    /// The name that templates use.
    pub fn name(&self) -> &str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
            Self::Developer => "developer",
        }
    }
}

/// One message of a conversation. `Debug` prints its role and lengths.
pub struct Message {
    role: Role,
    content: Secret<str>,
    reasoning: Option<Secret<str>>,
    tool_calls: Vec<ToolCall>,
    tool_call_id: Option<Secret<str>>,
    name: Option<Secret<str>>,
}

/// A message of [`Role::System`].
pub fn system(text: impl Into<String>) -> Message {
    Message::new(Role::System, text)
}

/// A message of [`Role::User`].
pub fn user(text: impl Into<String>) -> Message {
    Message::new(Role::User, text)
}

/// A message of [`Role::Assistant`].
pub fn assistant(text: impl Into<String>) -> Message {
    Message::new(Role::Assistant, text)
}

/// A message of [`Role::Tool`]: what the call `call_id` gave.
pub fn tool(call_id: impl Into<String>, text: impl Into<String>) -> Message {
    Message::new(Role::Tool, text).with_tool_call_id(call_id)
}

impl Message {
    /// A message with nothing but text.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: Secret::new(content.into()),
            reasoning: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            name: None,
        }
    }

    /// One of all its parts; the optional ones are reasoning, the id of the call that it answers, and the name.
    pub(crate) fn of(
        role: Role,
        content: Secret<str>,
        [reasoning, tool_call_id, name]: [Option<Secret<str>>; 3],
        tool_calls: Vec<ToolCall>,
    ) -> Self {
        Self { role, content, reasoning, tool_calls, tool_call_id, name }
    }

    /// What the model thought before it answered; templates call it `reasoning_content`, and many leave it out.
    pub fn with_reasoning(mut self, reasoning: impl Into<String>) -> Self {
        self.reasoning = Some(Secret::new(reasoning.into()));
        self
    }

    /// The calls that the model made in this message.
    pub fn with_tool_calls(mut self, tool_calls: Vec<ToolCall>) -> Self {
        self.tool_calls = tool_calls;
        self
    }

    /// Which call this message answers.
    pub fn with_tool_call_id(mut self, id: impl Into<String>) -> Self {
        self.tool_call_id = Some(Secret::new(id.into()));
        self
    }

    /// The speaker's name; for [`Role::Tool`] the tool's.
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(Secret::new(name.into()));
        self
    }

    /// Who speaks.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The text.
    pub fn content(&self) -> &str {
        self.content.expose()
    }

    /// See [`Message::with_reasoning`].
    pub fn reasoning(&self) -> Option<&str> {
        self.reasoning.as_ref().map(|text| text.expose())
    }

    /// See [`Message::with_tool_calls`].
    pub fn tool_calls(&self) -> &[ToolCall] {
        &self.tool_calls
    }

    /// See [`Message::with_tool_call_id`].
    pub(crate) fn tool_call_id(&self) -> Option<&str> {
        self.tool_call_id.as_ref().map(|text| text.expose())
    }

    /// See [`Message::with_name`].
    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_ref().map(|text| text.expose())
    }

    /// Bytes of content in all fields.
    pub(crate) fn bytes(&self) -> usize {
        let optional = [&self.reasoning, &self.tool_call_id, &self.name];
        let optional: usize = optional.into_iter().flatten().map(|text| text.expose().len()).sum();
        let calls: usize = self
            .tool_calls
            .iter()
            .map(|call| call.id().len() + call.name().len() + call.arguments().len())
            .sum();
        self.content().len() + optional + calls
    }

    /// The dictionary that templates expect.
    ///
    /// # Errors
    /// A call's arguments are not a JSON object.
    pub(super) fn to_value(&self) -> Result<Value> {
        // Under both names, as in transformers; gpt-oss reads `thinking`.
        let mut fields = Vec::from_iter(self.reasoning().map(|text| ("thinking", Value::from(text))));
        fields.push(("role", Value::from(self.role.name())));
        fields.push(("content", Value::from(self.content())));
        if let Some(reasoning) = self.reasoning() {
            fields.push(("reasoning_content", Value::from(reasoning)));
        }
        if !self.tool_calls.is_empty() {
            let calls = self.tool_calls.iter().map(ToolCall::to_value).collect::<Result<Vec<_>>>()?;
            fields.push(("tool_calls", Value::from(calls)));
        }
        if let Some(id) = &self.tool_call_id {
            fields.push(("tool_call_id", Value::from(id.expose())));
        }
        if let Some(name) = &self.name {
            fields.push(("name", Value::from(name.expose())));
        }
        Ok(Value::from_iter(fields))
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("role", &self.role)
            .field("content_bytes", &self.content().len())
            .field("reasoning_bytes", &self.reasoning().map(str::len))
            .field("tool_calls", &self.tool_calls)
            .finish_non_exhaustive()
    }
}

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
}

impl ToolCall {
    /// A call of `name`; `arguments_json` is the text of a JSON object.
    pub fn new(id: impl Into<String>, name: impl Into<String>, arguments_json: impl Into<String>) -> Self {
        Self {
            id: Secret::new(id.into()),
            name: Secret::new(name.into()),
            arguments: Secret::new(arguments_json.into()),
        }
    }

    /// One of its id, name and arguments.
    pub(crate) fn of([id, name, arguments]: [Secret<str>; 3]) -> Self {
        Self { id, name, arguments }
    }

    /// What the answer must name (see [`tool`]); unique within a reply.
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
        Self::new(self.id(), self.name(), self.arguments())
    }

    fn to_value(&self) -> Result<Value> {
        let arguments = parse(self.arguments())
            .filter(|arguments| arguments.kind() == minijinja::value::ValueKind::Map)
            .ok_or_else(|| Error::request("messages", "with tool calls whose arguments are a JSON object"))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_prints_lengths_only() {
        let call = ToolCall::new("canary", "canary", r#"{"canary": "canary"}"#);
        let message = Message::new(Role::Assistant, "canary")
            .with_reasoning("canary")
            .with_name("canary")
            .with_tool_calls(vec![call.copy()])
            .with_tool_call_id("canary");
        let tool = Tool::new("canary", "canary", serde_json::json!({"canary": 1}));
        let printed = format!("{message:?} {call:?} {tool:?}");
        assert!(!printed.contains("canary"), "{printed}");
        assert!(printed.contains("role: Assistant, content_bytes: 6, reasoning_bytes: Some(6)"), "{printed}");
        assert_eq!(message.bytes(), 4 * 6 + 6 + 6 + 20);
    }

    #[test]
    fn arguments_must_be_an_object() {
        for arguments in ["", "{", "[]", "1", "\"{}\"", "{} {}"] {
            let message = assistant("").with_tool_calls(vec![ToolCall::new("1", "f", arguments)]);
            assert!(message.to_value().is_err(), "{arguments}");
        }
    }

    #[test]
    fn tools_of_any_depth_end_in_an_error() {
        let mut deep = serde_json::Value::Null;
        for _ in 0..100_000 {
            // not by `json!`, which copies what it is given, level by level
            deep = serde_json::Value::Object([("items".to_owned(), deep)].into_iter().collect());
        }
        assert!(Tool::new("f", "", deep).to_value().is_err());
    }
}
