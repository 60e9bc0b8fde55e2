//! Tools, how they are to be called, and the calls of earlier turns.

use amnesic::{Request, Tool, ToolCall, ToolChoice};
use serde_json::{Value, json};

use crate::error::{ApiError, Result};
use crate::fields::Fields;

/// A call of an earlier turn. Its arguments may be what clients make of them: a text, nothing, or the object itself.
pub fn tool_call(mut fields: Fields) -> Result<ToolCall> {
    let id = fields.required("id")?;
    let mut function = function(&mut fields)?;
    let name = function.required("name")?;
    let arguments = match function.take("arguments") {
        None => "{}".to_owned(),
        Some(Value::String(text)) if text.trim().is_empty() => "{}".to_owned(),
        Some(Value::String(text)) => text,
        Some(object @ Value::Object(_)) => object.to_string(),
        Some(_) => return Err(function.wrong("arguments", "an object, or the text of one")),
    };
    function.done(&[], &[])?;
    fields.done(&["index"], &[])?;
    Ok(ToolCall::new(id, name, arguments))
}

/// The function in a call or a tool, whose type it must be.
fn function(fields: &mut Fields) -> Result<Fields> {
    if fields.string("type")?.is_some_and(|kind| kind != "function") {
        return Err(fields.wrong("type", "function"));
    }
    fields.object("function")?.ok_or_else(|| fields.wrong("function", "given"))
}

/// `request` with the `tools`, and with what says how to use them. None are left if the model must not call any.
///
/// # Errors
/// One of them is not what it must be.
pub fn tools(fields: &mut Fields, mut request: Request) -> Result<Request> {
    let place = fields.place("tools");
    let values = fields.array("tools")?.unwrap_or_default();
    let (mut tools, mut names, mut any_strict) = (Vec::new(), Vec::new(), false);
    for (index, value) in values.into_iter().enumerate() {
        let (name, tool, strict) = tool(Fields::of(place.element(index), value)?)?;
        tools.push(tool);
        names.push(name);
        any_strict |= strict;
    }
    let parallel = fields.flag("parallel_tool_calls")?;
    let choice = choice(fields)?;
    if tools.is_empty() && !matches!(choice, Choice::Auto | Choice::None) {
        return Err(ApiError::field("tool_choice", "left out unless there are `tools`"));
    }
    match choice {
        Choice::None => return Ok(request),
        Choice::Auto => {}
        Choice::Required => request = request.tool_choice(ToolChoice::Required),
        Choice::Function(name) if names.contains(&name) => {
            request = request.tool_choice(ToolChoice::function(name));
        }
        Choice::Function(_) => {
            return Err(ApiError::field("tool_choice.function.name", "the name of one of the `tools`"));
        }
    }
    if parallel == Some(false) && !tools.is_empty() {
        request = request.parallel_tool_calls(false);
    }
    Ok(request.strict_tools(any_strict).tools(tools))
}

enum Choice {
    Auto,
    None,
    Required,
    Function(String),
}

fn choice(fields: &mut Fields) -> Result<Choice> {
    let wrong = || ApiError::field("tool_choice", "auto, none, required, or a function of the `tools`");
    let value = fields.take("tool_choice");
    let mut named = match value {
        None => return Ok(Choice::Auto),
        Some(Value::String(choice)) => {
            return match choice.as_str() {
                "auto" => Ok(Choice::Auto),
                "none" => Ok(Choice::None),
                "required" | "any" => Ok(Choice::Required),
                _ => Err(wrong()),
            };
        }
        Some(value) => Fields::of(fields.place("tool_choice"), value).map_err(|_| wrong())?,
    };
    if named.string("type")?.is_some_and(|kind| kind != "function") {
        return Err(ApiError::unsupported(
            "tool_choice.type",
            "it is `function`, or `tool_choice` is a word",
        ));
    }
    let mut function = named.object("function")?.ok_or_else(wrong)?;
    let name = function.required("name")?;
    function.done(&[], &[])?;
    named.done(&[], &[]).map(|()| Choice::Function(name))
}

/// A tool with its name, and whether its calls must keep to its schema.
fn tool(mut fields: Fields) -> Result<(String, Tool, bool)> {
    let mut function = function(&mut fields)?;
    let name = function.required("name")?;
    let description = function.string("description")?.unwrap_or_default();
    let parameters = match function.take("parameters") {
        None => json!({"type": "object", "properties": {}}),
        Some(parameters @ Value::Object(_)) => parameters,
        Some(_) => return Err(function.wrong("parameters", "a JSON schema")),
    };
    let strict = function.flag("strict")?.unwrap_or(false);
    function.done(&[], &[])?;
    fields.done(&[], &[])?;
    Ok((name.clone(), Tool::new(name, description, parameters), strict))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &Value) -> Result<Request> {
        tools(&mut Fields::parse(body.to_string().as_bytes()).unwrap(), Request::prompt("x"))
    }

    #[test]
    fn tools_may_be_left_to_the_model_forbidden_or_demanded() {
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
        let printed = |choice: Value| {
            parse(&json!({"tools": [tool], "tool_choice": choice})).map(|request| format!("{request:?}"))
        };
        for (choice, told) in [
            (Value::Null, "tools: 1"),
            (json!("auto"), "tools: 1"),
            (json!("none"), "tools: 0"),
            (json!("required"), "Required"),
            (json!({"type": "function", "function": {"name": "f"}}), "Function"),
        ] {
            let printed = printed(choice.clone()).unwrap();
            assert!(printed.contains(told), "{choice}: {printed}");
        }
        for wrong in [
            json!("canary"),
            json!(7),
            json!({"type": "function", "function": {"name": "canary"}}),
            json!({"type": "allowed_tools", "canary": []}),
            json!({"type": "function"}),
        ] {
            let json = String::from_utf8(printed(wrong).unwrap_err().json()).unwrap();
            assert!(json.contains(r#""param":"tool_choice"#) && !json.contains("canary"), "{json}");
        }
        assert!(parse(&json!({"tool_choice": "required"})).is_err());
        assert!(parse(&json!({"tool_choice": "auto", "parallel_tool_calls": false})).is_ok());
    }

    #[test]
    fn arguments_of_earlier_calls_come_in_many_forms() {
        let call = |arguments: Value| {
            let mut function = json!({"name": "f"});
            function["arguments"] = arguments;
            let call = json!({"id": "c", "type": "function", "function": function});
            tool_call(Fields::of("x".into(), call).unwrap()).map(|call| call.arguments().to_owned())
        };
        for (given, kept) in [
            (json!("{\"x\": 1}"), "{\"x\": 1}"),
            (json!(""), "{}"),
            (json!(" "), "{}"),
            (Value::Null, "{}"),
            (json!({"x": [1]}), "{\"x\":[1]}"),
        ] {
            assert_eq!(call(given.clone()).unwrap(), kept, "{given}");
        }
        assert!(call(json!(["canary"])).is_err() && call(json!(7)).is_err());
    }
}
