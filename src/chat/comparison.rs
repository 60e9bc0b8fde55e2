//! Published templates against transformers: what `tools/compare_templates.py` wrote is rendered and counted.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;

use super::*;
use crate::error::Result;
use crate::weights::json::Json;

/// A message as a request would bring it; none where no request can.
pub fn message(json: &Value) -> Option<Message> {
    let text = |name: &str| json[name].as_str();
    let role = match text("role")? {
        "system" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        "developer" => Role::Developer,
        _ => return None,
    };
    let mut message = match json.get("content")? {
        Value::String(content) => Message::new(role, content.as_str()),
        Value::Null => Message::new(role, "").without_content(),
        _ => return None,
    };
    if let Some(reasoning) = text("reasoning_content") {
        message = message.with_reasoning(reasoning);
    }
    if let Some(calls) = json["tool_calls"].as_array() {
        message = message.with_tool_calls(calls.iter().map(tool_call).collect());
    }
    if let Some(id) = text("tool_call_id") {
        message = message.with_tool_call_id(id);
    }
    if let Some(name) = text("name") {
        message = message.with_name(name);
    }
    Some(message)
}

fn tool_call(json: &Value) -> ToolCall {
    let function = &json["function"];
    let (id, name) = (json["id"].as_str().unwrap(), function["name"].as_str().unwrap());
    match function["arguments"].as_str() {
        Some(text) => ToolCall::new(id, name, text),
        None => ToolCall::new(id, name, function["arguments"].to_string()).with_object_arguments(),
    }
}

fn render(templates: &Templates, chat: &Value, now: u64) -> Result<String> {
    let once = |objects: bool| {
        let messages = chat["messages"].as_array().unwrap().iter().map(|json| match message(json) {
            Some(message) => message.to_value(objects),
            None => Ok(minijinja::Value::from_serialize(json)),
        });
        let messages = minijinja::Value::from(messages.collect::<Result<Vec<_>>>()?);
        let mut variables = vec![("documents", minijinja::Value::from(()))];
        let given = chat["variables"].as_object().unwrap();
        variables.extend(
            given.iter().map(|(name, value)| (name.as_str(), minijinja::Value::from_serialize(value))),
        );
        variables.push(("messages", messages));
        for name in ["tools", "add_generation_prompt"] {
            variables.push((name, minijinja::Value::from_serialize(&chat[name])));
        }
        templates.render_variables(&variables, UNIX_EPOCH + Duration::from_secs(now))
    };
    once(false).or_else(|error| once(true).map_err(|_| error)).map(|prompt| prompt.into_exposed())
}

fn templates(source: &str) -> Templates {
    let folder = tempfile::tempdir().unwrap();
    let mut config = serde_json::json!({ "chat_template": source });
    for name in ["bos", "eos", "unk"] {
        let token = if name == "bos" {
            "<s>"
        } else if name == "eos" {
            "</s>"
        } else {
            "<unk>"
        };
        config[format!("{name}_token")] = token.into();
    }
    let file = folder.path().join("tokenizer_config.json");
    std::fs::write(&file, config.to_string()).unwrap();
    Templates::of(&Json::open_if_there(&file).unwrap()).unwrap().unwrap()
}

/// Each line of `tools/chat_constructs.py`.
#[test]
fn constructs_mean_what_they_mean_in_jinja2() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat/constructs.json");
    let all: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let given = all["variables"].as_object().unwrap();
    let variables: Vec<_> =
        given.iter().map(|(name, value)| (name.as_str(), minijinja::Value::from_serialize(value))).collect();
    let now = UNIX_EPOCH + Duration::from_secs(all["now"].as_u64().unwrap());
    let constructs = all["constructs"].as_array().unwrap();
    let mut wrong = 0;
    for construct in constructs {
        let source = construct["template"].as_str().unwrap();
        let rendered = templates(source).render_variables(&variables, now);
        let rendered = rendered.map(|prompt| prompt.into_exposed());
        if rendered.as_ref().ok().map(String::as_str) != construct["text"].as_str() {
            wrong += 1;
            println!("{source}");
            match (&rendered, construct["text"].as_str()) {
                (Ok(text), Some(expected)) => println!("    {}", first_difference(text, expected)),
                (rendered, _) => println!("    {rendered:?}"),
            }
        }
    }
    assert!(constructs.len() > 150);
    assert_eq!(wrong, 0, "of {}", constructs.len());
}

/// Where `AMNESIC_TEMPLATES` names the file. At least 98 of 100 prompts are equal, and nearly none is another.
#[test]
fn published_templates_render_as_in_transformers() {
    let Some(file) = std::env::var_os("AMNESIC_TEMPLATES") else {
        println!("SKIPPED: 1 test, since AMNESIC_TEMPLATES names no file of tools/compare_templates.py");
        return;
    };
    let all: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let sources = all["templates"].as_object().unwrap();
    let opened: BTreeMap<_, _> =
        sources.iter().map(|(name, source)| (name.as_str(), templates(source.as_str().unwrap()))).collect();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let show = std::env::var("AMNESIC_TEMPLATES_SHOW").unwrap_or_default();
    let cases = all["cases"].as_array().unwrap();
    for case in cases {
        let (name, about) = (case["template"].as_str().unwrap(), case["chat"].as_str().unwrap());
        let rendered = render(&opened[name], &all["chats"][about], all["now"].as_u64().unwrap());
        let references = [case["text"].as_str(), case["objects"]["text"].as_str()];
        let (outcome, detail) = match &rendered {
            Ok(text) if references.contains(&Some(text.as_str())) => ("equal", String::new()),
            Ok(text) => match references.into_iter().flatten().next() {
                Some(expected) => ("different", first_difference(text, expected)),
                None => ("rendered by us alone", case["error"].to_string()),
            },
            Err(error) if references == [None, None] => ("refused by both", error.to_string()),
            Err(error) => ("refused by us alone", error.to_string()),
        };
        *counts.entry(outcome).or_default() += 1;
        if matches!(outcome, "different" | "refused by us alone") || show == outcome {
            println!("{outcome}: {name}, {about}: {detail}");
        }
    }
    println!("{} templates, {} cases: {counts:?}", opened.len(), cases.len());
    let count = |name: &str| counts.get(name).copied().unwrap_or(0);
    let expected = count("equal") + count("different") + count("refused by us alone");
    assert!(count("equal") * 100 >= expected * 98, "{} of {expected} equal", count("equal"));
}

fn first_difference(text: &str, expected: &str) -> String {
    let at = text.bytes().zip(expected.bytes()).take_while(|(a, b)| a == b).count();
    let around = |text: &str| {
        let bytes = text.as_bytes();
        let part = &bytes[at.saturating_sub(30).min(bytes.len())..(at + 50).min(bytes.len())];
        String::from_utf8_lossy(part).into_owned()
    };
    format!("{:?} instead of {:?}", around(text), around(expected))
}
