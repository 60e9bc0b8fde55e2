//! What a chat is asked with: messages, and the form of the reply.

use amnesic::{Message, ResponseFormat, Role};
use serde_json::Value;

use crate::error::{ApiError, Result};
use crate::fields::{Fields, Place};
use crate::tools::tool_call;

/// Takes `messages`.
///
/// # Errors
/// One of them is not what it must be, or has a part that is no text.
pub fn messages(fields: &mut Fields) -> Result<Vec<Message>> {
    let place = fields.place("messages");
    let values = fields.array("messages")?.ok_or_else(|| fields.wrong("messages", "given"))?;
    values
        .into_iter()
        .enumerate()
        .map(|(index, value)| message(Fields::of(place.element(index), value)?))
        .collect()
}

fn message(mut fields: Fields) -> Result<Message> {
    let role = match fields.required("role")?.as_str() {
        "system" => Role::System,
        "developer" => Role::Developer,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        _ => return Err(fields.wrong("role", "system, developer, user, assistant or tool")),
    };
    let calls = match fields.array("tool_calls")? {
        Some(_) if role != Role::Assistant => return Err(fields.wrong("tool_calls", "of role assistant")),
        calls => calls.unwrap_or_default(),
    };
    let mut message = match content(&mut fields)? {
        Some(text) => Message::new(role, text),
        None if role == Role::Assistant && !calls.is_empty() => Message::new(role, "").without_content(),
        None => return Err(fields.wrong("content", "given")),
    };
    if let Some(name) = fields.string("name")? {
        message = message.with_name(name);
    }
    if let Some(reasoning) = fields.string("reasoning_content")? {
        message = message.with_reasoning(reasoning);
    }
    match fields.string("tool_call_id")? {
        Some(id) if role == Role::Tool => message = message.with_tool_call_id(id),
        Some(_) => return Err(fields.wrong("tool_call_id", "of role tool")),
        None if role == Role::Tool => return Err(fields.wrong("tool_call_id", "given")),
        None => {}
    }
    let place = fields.place("tool_calls");
    let calls =
        calls.into_iter().enumerate().map(|(index, call)| tool_call(Fields::of(place.element(index), call)?));
    message = message.with_tool_calls(calls.collect::<Result<_>>()?);
    fields.done(
        &["annotations"],
        &[
            ("refusal", "say it as `content`"),
            ("audio", "the engine reads text"),
            ("function_call", "use `tool_calls`"),
        ],
    )?;
    Ok(message)
}

/// A text, or parts that are texts: lines of one.
fn content(fields: &mut Fields) -> Result<Option<String>> {
    let place = fields.place("content");
    let parts = match fields.take("content") {
        None => return Ok(None),
        Some(Value::String(text)) => return Ok(Some(text)),
        Some(Value::Array(parts)) => parts,
        Some(_) => return Err(ApiError::field(place, "a string or an array of parts")),
    };
    let text = |(index, part)| {
        let mut part = Fields::of(place.element(index), part)?;
        if part.required("type")? != "text" {
            return Err(ApiError::unsupported(part.place("type"), "the engine reads text"));
        }
        let text = part.required("text")?;
        part.done(&[], &[]).map(|()| text)
    };
    let texts = parts.into_iter().enumerate().map(text).collect::<Result<Vec<_>>>()?;
    Ok(Some(texts.join("\n")))
}

/// Takes `response_format`, or vLLM's `structured_outputs` with a `regex` or a `grammar` in Lark's syntax.
///
/// # Errors
/// It is none of `text`, `json_object` and `json_schema`. The schema itself is checked by the engine.
pub fn response_format(fields: &mut Fields) -> Result<ResponseFormat> {
    let structured = fields.object("structured_outputs")?.map(structured_outputs).transpose()?;
    let Some(mut format) = fields.object("response_format")? else {
        return Ok(structured.unwrap_or_default());
    };
    if structured.is_some() {
        return Err(fields.wrong("structured_outputs", "left out beside `response_format`"));
    }
    let kind = format.required("type")?;
    let schema = format.object("json_schema")?;
    format.done(&[], &[])?;
    match (kind.as_str(), schema) {
        ("text", None) => Ok(ResponseFormat::text()),
        ("json_object", None) => Ok(ResponseFormat::json_object()),
        ("json_schema", Some(mut named)) => {
            let schema = named.take("schema").ok_or_else(|| named.wrong("schema", "given"))?;
            // what cannot be enforced is refused, unless the client says that it can do without
            let lenient = named.flag("strict")? == Some(false);
            // a name and a description are labels
            named.done(&["name", "description"], &[])?;
            let format = ResponseFormat::json_schema(schema);
            Ok(if lenient { format.lenient() } else { format })
        }
        ("text" | "json_object" | "json_schema", _) => Err(ApiError::field(
            Place::from("response_format.json_schema"),
            "given for type json_schema alone",
        )),
        _ => Err(ApiError::field("response_format.type", "text, json_object or json_schema")),
    }
}

fn structured_outputs(mut fields: Fields) -> Result<ResponseFormat> {
    let format = match (fields.string("regex")?, fields.string("grammar")?) {
        (Some(expression), None) => ResponseFormat::regex(expression),
        (None, Some(grammar)) => ResponseFormat::lark(grammar),
        _ => return Err(ApiError::field("structured_outputs", "an object with either a regex or a grammar")),
    };
    fields.done(&[], &[("json", "use `response_format`"), ("choice", "use a regex")]).map(|()| format)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(body: &Value) -> Fields {
        Fields::parse(body.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn messages_keep_their_parts() {
        let body = json!({"messages": [
            {"role": "developer", "content": "be brief", "name": "boss"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "refusal": null, "reasoning_content": "hm",
             "annotations": [], "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}},
            ]},
            {"role": "tool", "content": "2", "tool_call_id": "c"},
        ]});
        let messages = messages(&mut fields(&body)).unwrap();
        let roles: Vec<_> = messages.iter().map(Message::role).collect();
        assert_eq!(roles, [Role::Developer, Role::User, Role::Assistant, Role::Tool]);
        assert_eq!((messages[0].content(), messages[1].content()), ("be brief", "a\nb"));
        let call = &messages[2].tool_calls()[0];
        assert_eq!((call.id(), call.name(), call.arguments()), ("c", "f", "{\"x\":1}"));
        assert_eq!((messages[2].content(), messages[2].reasoning()), ("", Some("hm")));
    }

    #[test]
    fn wrong_messages_are_told_by_place() {
        let cases = [
            ("messages", json!({})),
            ("messages[0]", json!({"messages": ["canary"]})),
            ("messages[0].role", json!({"messages": [{"role": "canary", "content": ""}]})),
            ("messages[0].content", json!({"messages": [{"role": "user"}]})),
            ("messages[0].content", json!({"messages": [{"role": "user", "content": 7}]})),
            (
                "messages[0].content[0].type",
                json!({"messages": [{"role": "user", "content": [{"type": "image_url", "url": "canary"}]}]}),
            ),
            ("messages[0].tool_call_id", json!({"messages": [{"role": "tool", "content": "x"}]})),
            (
                "messages[0].tool_call_id",
                json!({"messages": [{"role": "user", "content": "x", "tool_call_id": "c"}]}),
            ),
            (
                "messages[0].tool_calls",
                json!({"messages": [{"role": "user", "content": "x", "tool_calls": []}]}),
            ),
            (
                "messages[0].tool_calls[0].type",
                json!({"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "type": "canary"}]}]}),
            ),
            (
                "messages[0].refusal",
                json!({"messages": [{"role": "assistant", "content": "", "refusal": "canary"}]}),
            ),
        ];
        for (place, body) in cases {
            let json = String::from_utf8(messages(&mut fields(&body)).unwrap_err().json()).unwrap();
            assert!(
                json.contains(&format!(r#""param":"{place}""#)) && !json.contains("canary"),
                "{place}: {json}"
            );
        }
    }

    #[test]
    fn formats_are_told_by_type() {
        let printed = |format: Value| {
            response_format(&mut fields(&json!({"response_format": format})))
                .map(|format| format!("{format:?}"))
        };
        assert_eq!(printed(Value::Null).unwrap(), "Text");
        assert_eq!(printed(json!({"type": "text"})).unwrap(), "Text");
        assert!(printed(json!({"type": "json_object"})).unwrap().starts_with("JsonObject"));
        let named = json!({"name": "n", "strict": true, "schema": {"type": "object"}});
        assert!(
            printed(json!({"type": "json_schema", "json_schema": named})).unwrap().starts_with("JsonSchema")
        );
        for wrong in [
            json!({"type": "json_schema"}),
            json!({"type": "canary"}),
            json!({"type": "text", "json_schema": {}}),
        ] {
            let json = String::from_utf8(printed(wrong).unwrap_err().json()).unwrap();
            assert!(json.contains(r#""param":"response_format."#) && !json.contains("canary"), "{json}");
        }
    }
}
