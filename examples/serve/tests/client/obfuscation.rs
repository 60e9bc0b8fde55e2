//! The lengths of events, which whoever watches an encrypted connection sees.

use serde_json::{Value, json};

use crate::common::{Server, chat_model};
use crate::{CHAT, COMPLETIONS, body};

/// The lengths of a stream's events, and what each has beside `obfuscation`.
fn events(server: &Server, path: &str, ask: &Value) -> (Vec<usize>, Vec<Value>) {
    let response = server.post(path, ask);
    assert_eq!(response.status, 200, "{}", response.body);
    let mut events = response.events();
    assert_eq!(events.pop(), Some("[DONE]"));
    let values = events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    (events.iter().map(|event| event.len()).collect(), values)
}

#[test]
fn the_length_of_an_event_tells_no_tokens_length() {
    let server = Server::start(&[]);
    let settings = json!({
        "n": 3, "max_tokens": 40, "temperature": 1.3, "seed": 4, "stream": true,
        "stream_options": {"include_usage": true},
    });
    let mut ask = body(settings);
    let (lengths, values) = events(&server, COMPLETIONS, &ask);
    let texts: std::collections::HashSet<usize> =
        values.iter().filter_map(|event| Some(event["choices"][0]["text"].as_str()?.len())).collect();
    assert!(texts.len() > 4, "tokens of many lengths: {texts:?}");
    assert!(lengths.iter().all(|&length| length == lengths[0]), "{lengths:?}");
    assert!(values.iter().all(|event| event["obfuscation"].is_string()));

    // switched off, an event is as long as what is in it
    ask["stream_options"]["include_obfuscation"] = false.into();
    let (lengths, plain) = events(&server, COMPLETIONS, &ask);
    assert!(lengths.iter().any(|&length| length != lengths[0]), "{lengths:?}");
    assert!(plain.iter().all(|event| event.get("obfuscation").is_none()));
    let text = |events: &[Value]| {
        events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect::<String>()
    };
    let of_choice = |events: &[Value], index: u64| {
        let of_it = events.iter().filter(|event| event["choices"][0]["index"] == index);
        text(&of_it.cloned().collect::<Vec<_>>())
    };
    (0..3).for_each(|index| assert_eq!(of_choice(&values, index), of_choice(&plain, index)));

    // with log probabilities there is more in an event: its length is that of the next power of two
    ask["stream_options"] = Value::Null;
    ask["logprobs"] = 5.into();
    let (lengths, _) = events(&server, COMPLETIONS, &ask);
    let smallest = *lengths.iter().min().unwrap();
    let allowed = [0, 256, 768, 1792, 3840].map(|more| smallest + more);
    assert!(lengths.iter().all(|length| allowed.contains(length)), "{lengths:?}");
}

/// Roles, reasoning, texts, calls of tools and ends look alike.
#[test]
fn events_of_a_chat_are_of_one_length() {
    let model = chat_model();
    let server = Server::start(&["--model", model.path().to_str().unwrap(), "--name", "default"]);
    let tool = json!({"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}});
    let reply = r#"<think>[a-z]{5,30}</think>[a-z ]{20,40}<tool_call>\{"name": "weather", "arguments": \{"days": [1-9]{1,9}\}\}</tool_call>"#;
    let ask = json!({
        "model": "default", "messages": [{"role": "user", "content": "Rain?"}], "tools": [tool], "temperature": 1,
        "seed": 1, "max_tokens": 300, "stream": true, "stream_options": {"include_usage": true},
        "structured_outputs": {"regex": reply},
    });
    let (lengths, values) = events(&server, CHAT, &ask);
    let has = |field: &str| values.iter().any(|event| !event["choices"][0]["delta"][field].is_null());
    for field in ["role", "reasoning_content", "content", "tool_calls"] {
        assert!(has(field), "{field}: {values:#?}");
    }
    assert!(lengths.iter().all(|&length| length == lengths[0]), "{lengths:?}");
}
