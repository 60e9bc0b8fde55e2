//! Chats through a session: templates, conversations, calls of tools, reasoning, streams.

use amnesic::{
    ConstrainFrom, Error, FinishReason, Message, PieceKind, Request, ResponseFormat, Role, Session, Tool,
    assistant, system, tool, user,
};

use crate::common::default_model;

const TEMPLATE: &str = "\
{%- if tools %}<|im_start|>system\nAnswer with <tool_call>{...}</tool_call>. Tools: {{ tools | tojson }}<|im_end|>\n{% endif %}
{%- for message in messages %}
{%- if message.role == 'developer' %}{{ raise_exception('No developers here') }}{% endif %}
{%- set content = message.content.split('</think>')[-1] %}
{{- '<|im_start|>' + message.role + '\n' + content }}
{%- for call in message.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if thinking %}{{ '<think>' }}{% endif %}{% endif %}";

/// The default model with a chat template.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(default_model()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    std::fs::write(folder.path().join("chat_template.jinja"), TEMPLATE).unwrap();
    folder
}

fn weather() -> Tool {
    Tool::new("weather", "the weather", serde_json::json!({ "type": "object", "properties": {} }))
}

#[test]
fn a_chat_is_its_rendered_prompt() {
    let folder = folder();
    let session = Session::open(folder.path()).unwrap();
    let messages = || [system("Be brief."), user("What is a slice?"), assistant("A view."), user("Of what?")];
    let written = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is a slice?<|im_end|>\n\
                   <|im_start|>assistant\nA view.<|im_end|>\n<|im_start|>user\nOf what?<|im_end|>\n\
                   <|im_start|>assistant\n";
    let chat = session.generate(Request::chat(messages()).max_tokens(20)).unwrap();
    let plain = session.generate(Request::prompt(written).max_tokens(20)).unwrap();
    assert_eq!((chat.tokens(), chat.usage.prompt_tokens), (plain.tokens(), plain.usage.prompt_tokens));
    assert_eq!(chat.text(), plain.text());
    assert!(chat.choices()[0].tool_calls().is_empty() && chat.choices()[0].reasoning().is_none());
}

#[test]
fn a_conversation_renders_all_and_computes_what_is_new() {
    let folder = folder();
    let session = Session::open(folder.path()).unwrap();
    let mut chat = session.conversation();
    let first = chat.generate(Request::chat([user("What is a slice?")]).max_tokens(16)).unwrap();
    assert_eq!((first.usage.cached_tokens, chat.messages().len()), (0, 2));
    assert_eq!((chat.messages()[1].role(), chat.messages()[1].content()), (Role::Assistant, first.text()));
    let second = chat.generate(Request::chat([user("And a string?")]).max_tokens(16)).unwrap();
    assert!(second.usage.cached_tokens >= first.usage.prompt_tokens, "{:?}", second.usage);
    let messages = [user("What is a slice?"), assistant(first.text()), user("And a string?")];
    let alone = session.generate(Request::chat(messages).max_tokens(16)).unwrap();
    assert_eq!((alone.tokens(), alone.usage.cached_tokens), (second.tokens(), 0));
    // a turn that fails, and one whose stream is dropped, have not been
    let wrong = chat.generate(Request::chat([Message::new(Role::Developer, "x")]).max_tokens(4)).unwrap_err();
    assert!(matches!(wrong, Error::Request { field: "messages", .. }), "{wrong}");
    drop(chat.stream(Request::chat([user("dropped")]).max_tokens(100)).unwrap());
    assert_eq!(chat.messages().len(), 4);
    let mut stream = chat.stream(Request::chat([user("streamed")]).max_tokens(9)).unwrap();
    let text: String = stream.by_ref().map(|piece| piece.unwrap().text().to_owned()).collect();
    let third = stream.finish().unwrap();
    assert_eq!((text.as_str(), chat.messages().len()), (third.text(), 6));
    drop(chat);
    assert_eq!(session.load().kv_blocks_used, 0);
}

#[test]
fn calls_of_tools_are_taken_out_of_the_text() {
    let folder = folder();
    let session = Session::open(folder.path()).unwrap();
    // the reply is forced, so that a small model calls a tool
    let reply = r#"Well\. <tool_call>\{"name": "weather", "arguments": \{"days": [1-9]\}\}</tool_call>"#;
    let ask = || Request::chat([user("Rain?")]).response_format(ResponseFormat::regex(reply)).max_tokens(200);
    let called = session.generate(ask().tools([weather()])).unwrap();
    assert_eq!(called.finish_reason(), FinishReason::ToolCalls);
    let calls = called.choices()[0].tool_calls();
    assert_eq!((calls.len(), calls[0].name(), called.text().trim_end()), (1, "weather", "Well."));
    let arguments: serde_json::Value = serde_json::from_str(calls[0].arguments()).unwrap();
    assert!((1..=9).contains(&arguments["days"].as_u64().unwrap()));
    // in a stream the call is no text, and every token is told
    let mut stream = session.stream(ask().tools([weather()])).unwrap();
    let (mut text, mut tokens) = (String::new(), 0);
    for piece in stream.by_ref() {
        let piece = piece.unwrap();
        text.push_str(piece.text());
        tokens += piece.tokens().len();
    }
    assert_eq!((text.as_str(), tokens), (called.text(), called.tokens().len()));
    assert_eq!(stream.finish().unwrap().choices()[0].tool_calls().len(), 1);
    // without tools it is text
    let plain = session.generate(ask()).unwrap();
    assert!(plain.text().contains("<tool_call>") && plain.finish_reason() == FinishReason::Stop);
    // the call and its answer go back to the model
    let mut chat = session.conversation();
    chat.generate(ask().tools([weather()])).unwrap();
    assert_eq!(chat.messages()[1].tool_calls().len(), 1);
    let answer = [tool(calls[0].id(), "sun")];
    let next = chat.generate(Request::chat(answer).tools([weather()]).max_tokens(5)).unwrap();
    assert!(next.usage.cached_tokens > 0);
}

#[test]
fn reasoning_is_told_apart() {
    let folder = folder();
    let session = Session::open(folder.path()).unwrap();
    let ask = |form: &str| {
        Request::chat([user("Why?")])
            .response_format(ResponseFormat::regex(form))
            .max_tokens(100)
            .temperature(0.8)
    };
    let inside = |request: Request| {
        request.template_variable("thinking", true).constrain_from(ConstrainFrom::WholeReply)
    };
    let requests = [ask("<think>[a-z]{5,9}</think>[a-z]{4,8}"), inside(ask("[a-z]{5,9}</think>[a-z]{4,8}"))];
    for (index, request) in requests.into_iter().enumerate() {
        let (mut content, mut reasoning) = (String::new(), String::new());
        let mut stream = session.stream(request.seed(1)).unwrap();
        for piece in stream.by_ref() {
            let piece = piece.unwrap();
            match piece.kind {
                PieceKind::Reasoning => reasoning.push_str(piece.text()),
                _ => content.push_str(piece.text()),
            }
        }
        let reply = stream.finish().unwrap();
        assert_eq!(
            (reply.text(), reply.choices()[0].reasoning()),
            (content.as_str(), Some(reasoning.as_str()))
        );
        assert!((5..=9).contains(&reasoning.len()) && (4..=8).contains(&content.len()), "{index}");
    }
}

#[test]
fn what_is_no_chat_is_refused_and_named() {
    let plain = Session::open(default_model()).unwrap();
    let error = plain.generate(Request::chat([user("x")])).unwrap_err();
    assert!(matches!(error, Error::NoChatTemplate { .. }), "{error}");
    let folder = folder();
    let session = Session::open(folder.path()).unwrap();
    let unknown = session.generate(Request::chat([user("x")]).chat_template("nowhere")).unwrap_err();
    assert!(matches!(unknown, Error::Request { .. }), "{unknown}");
    std::fs::write(folder.path().join("chat_template.jinja"), "{% for %}").unwrap();
    let session = Session::open(folder.path()).unwrap();
    assert!(session.generate(Request::prompt("still works").max_tokens(2)).is_ok());
    let broken = session.generate(Request::chat([user("secret words")])).unwrap_err();
    assert!(!broken.to_string().contains("secret"), "{broken}");
}
