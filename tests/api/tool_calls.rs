//! Calls of tools as they come, in the formats that checkpoints teach; reasoning before a structured reply; the channels of
//! gpt-oss. Replies are forced, so that a small model writes what large ones do.

use std::path::Path;

use amnesic::forensics::Gate;
use amnesic::{
    ConstrainFrom, Error, FinishReason, PieceKind, Reply, Request, ResponseFormat, Session, Speculation,
    Tool, ToolCallParser, ToolChoice, tool, user,
};
use serde_json::{Value, json};

use crate::common::default_model;

/// The default model with a chat template, and with `marks` as tokens in the place of its last ones.
fn folder(template: &str, marks: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(default_model()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    add_tokens(folder.path(), marks);
    folder
}

fn add_tokens(folder: &Path, marks: &[&str]) {
    let file = folder.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let first = 4096 - marks.len() as u64;
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    vocab.retain(|_, id| id.as_u64().unwrap() < first);
    let known = vocab.clone();
    let text = |part: &Value| part.as_str().unwrap().to_owned();
    let parts = |merge: &Value| match merge {
        Value::String(pair) => pair.split(' ').map(str::to_owned).collect(),
        pair => pair.as_array().unwrap().iter().map(text).collect::<Vec<_>>(),
    };
    let merges = tokenizer["model"]["merges"].as_array_mut().unwrap();
    merges.retain(|merge| {
        let parts = parts(merge);
        known.contains_key(&parts.concat()) && parts.iter().all(|part| known.contains_key(part))
    });
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    for (id, mark) in (first..).zip(marks) {
        added.push(json!({"id": id, "content": mark, "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}));
    }
    std::fs::write(file, tokenizer.to_string()).unwrap();
}

fn weather() -> Tool {
    let properties = json!({ "city": { "type": "string" }, "days": { "type": "integer" } });
    Tool::new("weather", "the weather", json!({ "type": "object", "properties": properties }))
}

const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n\
                      {% endfor %}<|im_start|>assistant\n";

/// What a stream gave: text, reasoning, and `id name arguments` of each call, in the order of its parts.
fn stream(session: &Session, request: Request) -> (String, String, Vec<String>, Reply) {
    let (mut text, mut reasoning, mut calls) = (String::new(), String::new(), Vec::new());
    let mut tokens = 0;
    let mut stream = session.stream(request).unwrap();
    for piece in stream.by_ref() {
        let piece = piece.unwrap();
        tokens += piece.tokens().len();
        assert_eq!(piece.tool_call().is_some(), piece.kind == PieceKind::ToolCall);
        match piece.kind {
            PieceKind::Reasoning => reasoning.push_str(piece.text()),
            PieceKind::ToolCall => {
                let delta = piece.tool_call().unwrap();
                assert!(piece.text().is_empty() && !delta.is_retracted());
                if let (Some(id), Some(name)) = (delta.id(), delta.name()) {
                    assert_eq!(delta.index(), calls.len());
                    calls.push(format!("{id} {name} "));
                }
                calls[delta.index()].push_str(delta.arguments());
            }
            _ => text.push_str(piece.text()),
        }
    }
    let reply = stream.finish().unwrap();
    assert_eq!(tokens, reply.tokens().len());
    (text, reasoning, calls, reply)
}

fn calls(reply: &Reply) -> Vec<String> {
    let calls = reply.choices()[0].tool_calls().iter();
    calls.map(|call| format!("{} {} {}", call.id(), call.name(), call.arguments())).collect()
}

/// Each with what a template that teaches it has in it, the reply as an expression, and the arguments.
const FORMATS: [(&str, &str, &str); 8] = [
    (
        "<tool_call></tool_call>",
        r#"Ok <tool_call>\n\{"name": "weather", "arguments": \{"days": 7\}\}\n</tool_call>"#,
        "{\"days\": 7}",
    ),
    (
        "<tool_call><function=f><parameter=p>",
        r"Ok <tool_call>\n<function=weather>\n<parameter=city>\n7\n</parameter>\n<parameter=days>\n7\n</parameter>\n</function>\n</tool_call>",
        "{\"city\": \"7\", \"days\": 7}",
    ),
    (
        "<tool_call><arg_key>",
        r"Ok <tool_call>weather\n<arg_key>days</arg_key>\n<arg_value>7</arg_value>\n</tool_call>",
        "{\"days\": 7}",
    ),
    ("<|python_tag|>", r#"Ok \{"name": "weather", "parameters": "\{\\"days\\": 7\}"\}"#, "{\"days\": 7}"),
    (
        "<｜tool▁calls▁begin｜><｜tool▁sep｜>```json",
        "Ok <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\\n```json\\n\\{\"days\": 7\\}\\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "{\"days\": 7}",
    ),
    ("functools", r#"Ok functools\[\{"name": "weather", "arguments": \{"days": 7\}\}\]"#, "{\"days\": 7}"),
    (
        "<start_function_call>",
        r"Ok <start_function_call>call:weather\{city:<escape>a, b<escape>,days:7\}<end_function_call>",
        "{\"city\": \"a, b\", \"days\": 7}",
    ),
    (
        "<|START_ACTION|>",
        r#"Ok <\|START_ACTION\|>\[\{"tool_call_id": "0", "tool_name": "weather", "parameters": \{"days": 7\}\}\]<\|END_ACTION\|>"#,
        "{\"days\": 7}",
    ),
];

#[test]
fn calls_come_as_deltas_in_the_format_that_the_template_teaches() {
    for (taught, form, arguments) in FORMATS {
        let folder = folder(&format!("{{# {taught} #}}{CHATML}"), &[]);
        let session = Session::open(folder.path()).unwrap();
        let ask = || {
            let chat = Request::chat([user("Rain?")]).tools([weather()]).max_tokens(300);
            chat.response_format(ResponseFormat::regex(form))
        };
        let (text, _, streamed, reply) = stream(&session, ask());
        let id = if taught.contains("ACTION") { "0" } else { "call_0" };
        assert_eq!(streamed, [format!("{id} weather {arguments}")], "{taught}");
        assert_eq!((calls(&reply), reply.finish_reason()), (streamed, FinishReason::ToolCalls), "{taught}");
        assert_eq!((text.as_str(), reply.text()), ("Ok", "Ok"), "{taught}");
        assert_eq!(calls(&session.generate(ask()).unwrap()), calls(&reply), "{taught}");
    }
}

#[test]
fn a_name_comes_before_its_arguments_are_complete() {
    let folder = folder(&format!("{{# <tool_call> #}}{CHATML}"), &[]);
    let session = Session::open(folder.path()).unwrap();
    let form = r#"<tool_call>\{"name": "weather", "arguments": \{"city": "[a-z]{40}"\}\}</tool_call>"#;
    let ask = || {
        let chat = Request::chat([user("Rain?")]).tools([weather()]).max_tokens(200);
        chat.response_format(ResponseFormat::regex(form))
    };
    // a reader that is late would get several deltas as one: so the session waits for it, three times within the arguments
    let tokens = session.generate(ask()).unwrap().usage.completion_tokens;
    let gates: [Gate; 3] = Default::default();
    let stops = gates.iter().zip([20, 16, 12]);
    let request = stops.fold(ask(), |request, (gate, before)| request.stop_at(tokens - before, gate));
    let mut gates = gates.iter();
    let mut pieces = Vec::new();
    for piece in session.stream(request).unwrap() {
        let piece = piece.unwrap();
        if piece.tool_call().is_some() {
            gates.next().into_iter().for_each(Gate::open);
        }
        pieces.push(piece);
    }
    let deltas: Vec<_> = pieces.iter().filter_map(|piece| piece.tool_call()).collect();
    assert!(deltas.len() > 3 && deltas[0].name() == Some("weather"), "{deltas:?}");
    assert!(!deltas[0].is_complete() && deltas[1..].iter().all(|delta| delta.name().is_none()));
    assert!(deltas.last().unwrap().is_complete());
    assert!(!format!("{pieces:?}").contains("weather"));
}

#[test]
fn a_call_that_is_cut_off_is_text() {
    let folder = folder(&format!("{{# <tool_call> #}}{CHATML}"), &[]);
    let session = Session::open(folder.path()).unwrap();
    let form = r#"<tool_call>\{"name": "weather", "arguments": \{"city": "[a-z]{200}"\}\}</tool_call>"#;
    let ask = || {
        let chat = Request::chat([user("Rain?")]).tools([weather()]).max_tokens(40);
        chat.response_format(ResponseFormat::regex(form))
    };
    let reply = session.generate(ask()).unwrap();
    assert_eq!((calls(&reply).len(), reply.finish_reason()), (0, FinishReason::Length));
    assert!(reply.text().starts_with("<tool_call>{\"name\": \"weather\""));
    let pieces: Vec<_> = session.stream(ask()).unwrap().map(Result::unwrap).collect();
    let text: String = pieces.iter().map(|piece| piece.text()).collect();
    assert_eq!(text, reply.text());
    assert!(pieces.iter().filter_map(|piece| piece.tool_call()).any(|delta| delta.is_retracted()));
}

#[test]
fn the_application_or_the_vocabulary_names_the_format() {
    let plain = folder(CHATML, &[]);
    let form = r#"\[TOOL_CALLS\]weather\[ARGS\]\{"days": 7\}"#;
    let ask = || {
        let chat = Request::chat([user("Rain?")]).tools([weather()]).max_tokens(100);
        chat.response_format(ResponseFormat::regex(form))
    };
    let session = Session::open(plain.path()).unwrap();
    assert!(calls(&session.generate(ask()).unwrap()).is_empty());
    let named = session.generate(ask().tool_call_parser(ToolCallParser::Mistral)).unwrap();
    assert_eq!(calls(&named), ["call00000 weather {\"days\": 7}"]);
    let session = Session::builder(plain.path()).tool_call_parser(ToolCallParser::Mistral).open().unwrap();
    assert_eq!(calls(&session.generate(ask()).unwrap()), calls(&named));
    // special tokens stay in the text for calls to be found
    let tokens = folder(CHATML, &["[TOOL_CALLS]", "[ARGS]"]);
    let session = Session::open(tokens.path()).unwrap();
    let form = "start: <[4094]> \"weather\" <[4095]> \"{\\\"days\\\": 7}\"";
    let ask = Request::chat([user("Rain?")]).tools([weather()]).response_format(ResponseFormat::lark(form));
    assert_eq!(calls(&session.generate(ask.max_tokens(100)).unwrap()), calls(&named));
}

const THINKS: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n\
                      {% endfor %}<|im_start|>assistant\n{% if off %}<think>\n\n</think>\n\n{% elif open %}<think>\n\
                      {% endif %}";
const THINK: u32 = 4094;
const END_THINK: u32 = 4095;

fn value(seed: u64, open: bool) -> Request {
    let chat = Request::chat([user("Why?")]).template_variable("open", open);
    let chat = chat.response_format(ResponseFormat::regex("[0-9]{3}")).max_tokens(200);
    chat.temperature(0.9).seed(seed)
}

#[test]
fn a_value_is_the_text_where_the_marks_are_no_tokens() {
    let folder = folder(THINKS, &[]);
    let session = Session::open(folder.path()).unwrap();
    for open in [true, false] {
        let (text, reasoning, _, reply) = stream(&session, value(1, open));
        assert!(text.len() == 3 && text.parse::<u32>().is_ok(), "{text}");
        assert_eq!((reply.text(), reasoning.as_str()), (text.as_str(), ""));
        assert_eq!(reply.choices()[0].reasoning(), None);
    }
    let refused = session.generate(value(1, true).constrain_from(ConstrainFrom::EndOfReasoning)).unwrap_err();
    assert!(matches!(refused, Error::Request { field: "constrain_from", .. }), "{refused}");
    let whole = value(1, true).response_format(ResponseFormat::regex("[a-z]{5}</think>[0-9]{3}"));
    let whole = session.generate(whole.constrain_from(ConstrainFrom::WholeReply)).unwrap();
    assert_eq!((whole.text().len(), whole.choices()[0].reasoning().map(str::len)), (3, Some(5)));
}

#[test]
fn a_model_thinks_before_its_value() {
    let folder = folder(THINKS, &["<think>", "</think>"]);
    let session = Session::open(folder.path()).unwrap();
    let mut thoughts = 0;
    for seed in 0..8 {
        // the model has not learned to end, so it is made likely
        let ask = || value(seed, true).logit_bias(END_THINK, 12.0);
        let (text, reasoning, _, reply) = stream(&session, ask());
        assert_eq!(reply.finish_reason(), FinishReason::Stop, "{seed}");
        assert!(text.len() == 3 && text.parse::<u32>().is_ok(), "{seed}: {text}");
        assert_eq!(reply.text(), text);
        assert_eq!(reply.choices()[0].reasoning().unwrap_or_default(), reasoning);
        let ends = reply.tokens().iter().filter(|token| **token == END_THINK).count();
        assert_eq!(ends, 1, "{seed}");
        thoughts += usize::from(!reasoning.is_empty());
        // neither guesses nor company change a token
        let guess = Speculation::PromptLookup { ngram: 2, tokens: 4 };
        let guessed = session.generate(ask().speculate(guess)).unwrap();
        assert_eq!(guessed.tokens(), reply.tokens(), "{seed}");
        let choices = session.generate(ask().n(2)).unwrap();
        assert_eq!(choices.choices()[0].tokens(), reply.tokens(), "{seed}");
        assert!(choices.choices()[1].text().parse::<u32>().is_ok(), "{seed}");
    }
    assert!(thoughts > 0, "all replies ended their reasoning at once");
    let quick = session.generate(value(3, true).constrain_from(ConstrainFrom::FirstToken)).unwrap();
    assert!(quick.text().parse::<u32>().is_ok() && quick.choices()[0].reasoning().is_none());
    // switched off in the prompt
    let off = session.generate(value(3, true).template_variable("off", true)).unwrap();
    assert!(off.text().parse::<u32>().is_ok() && off.choices()[0].reasoning().is_none());
    // a reply that never stops thinking has no value, and says why
    let endless = session.generate(value(3, true).logit_bias(END_THINK, -100.0)).unwrap();
    assert_eq!((endless.text(), endless.finish_reason()), ("", FinishReason::Length));
}

#[test]
fn a_model_may_begin_to_think() {
    let folder = folder(THINKS, &["<think>", "</think>"]);
    let session = Session::open(folder.path()).unwrap();
    let direct = session.generate(value(3, false).logit_bias(THINK, -100.0)).unwrap();
    assert!(direct.text().parse::<u32>().is_ok() && direct.choices()[0].reasoning().is_none());
    let mut began = 0;
    for seed in 0..8 {
        // the likelier mark is the end's, which cannot come first
        let ask = value(seed, false).logit_bias(THINK, 30.0).logit_bias(END_THINK, 60.0);
        let reply = session.generate(ask).unwrap();
        assert!(reply.text().parse::<u32>().is_ok(), "{seed}: {}", reply.text());
        began += usize::from(reply.tokens()[..2] == [THINK, END_THINK]);
    }
    assert_eq!(began, 8, "the mask of the first token allows the mark of reasoning");
}

const HARMONY: &str = "{% for message in messages %}<|start|>{{ message.role }}<|message|>{{ message.content }}<|end|>\
                       {% endfor %}<|start|>assistant{# <|channel|> #}";
const MARKS: [&str; 6] = ["<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>"];

#[test]
fn channels_are_taken_apart() {
    let folder = folder(HARMONY, &MARKS);
    let session = Session::open(folder.path()).unwrap();
    let [start, channel, message, constrain, end, call] = [4090, 4091, 4092, 4093, 4094, 4095];
    let ask = |form: String| {
        let chat =
            Request::chat([user("Rain?")]).tools([weather()]).response_format(ResponseFormat::lark(form));
        chat.constrain_from(ConstrainFrom::WholeReply).max_tokens(200)
    };
    let analysis =
        format!("<[{channel}]> \"analysis\" <[{message}]> \"Hm.\" <[{end}]> <[{start}]> \"assistant\"");
    let answer = format!("start: {analysis} <[{channel}]> \"final\" <[{message}]> \"Sun.\"");
    let (text, reasoning, _, reply) = stream(&session, ask(answer));
    assert_eq!((text.as_str(), reasoning.as_str()), ("Sun.", "Hm."));
    assert_eq!((reply.text(), reply.choices()[0].reasoning()), ("Sun.", Some("Hm.")));
    let called = format!(
        "start: {analysis} <[{channel}]> \"commentary to=functions.weather \" <[{constrain}]> \"json\" <[{message}]> \
         \"{{\\\"days\\\": 7}}\" <[{call}]>"
    );
    let (text, reasoning, streamed, reply) = stream(&session, ask(called));
    assert_eq!((text.as_str(), reasoning.as_str()), ("", "Hm."));
    assert_eq!(streamed, ["call_0 weather {\"days\": 7}"]);
    assert_eq!((calls(&reply), reply.finish_reason()), (streamed, FinishReason::ToolCalls));
    // a value comes on the channel for answers, at once or behind reasoning
    let ask =
        || Request::chat([user("Rain?")]).response_format(ResponseFormat::regex("[0-9]{3}")).max_tokens(30);
    let quick = session.generate(ask().constrain_from(ConstrainFrom::FirstToken)).unwrap();
    assert!(quick.text().len() == 3 && quick.text().parse::<u32>().is_ok(), "{}", quick.text());
    let header = "<|start|>user<|message|>Rain?<|end|><|start|>assistant<|channel|>final<|message|>";
    let plain = Request::prompt(header).response_format(ResponseFormat::regex("[0-9]{3}")).max_tokens(30);
    assert_eq!(session.generate(plain).unwrap().tokens(), quick.tokens());
    let thought = session.generate(ask().logit_bias(message, -100.0)).unwrap();
    assert_eq!(thought.finish_reason(), FinishReason::Length);
    assert!(!thought.text().chars().all(|char| char.is_ascii_digit()) || thought.text().is_empty());
}

/// Arguments of which each is one of few.
fn forecast() -> Tool {
    let properties = json!({
        "city": { "enum": ["Delft", "Zürich"] }, "days": { "type": "integer", "minimum": 1, "maximum": 9 },
        "wet": { "type": "boolean" }
    });
    let parameters = json!({ "type": "object", "properties": properties, "required": ["city", "days"],
        "additionalProperties": false });
    Tool::new("forecast", "the weather to come", parameters)
}

/// Checks the one call of a reply that says nothing else.
fn check_forecast(reply: &Reply, about: &str) {
    let [call] = reply.choices()[0].tool_calls() else { panic!("{about}: {:?}", reply.text()) };
    assert_eq!((call.name(), reply.finish_reason()), ("forecast", FinishReason::ToolCalls), "{about}");
    assert_eq!(reply.text(), "", "{about}");
    let arguments: Value = serde_json::from_str(call.arguments()).unwrap();
    assert!(["Delft", "Zürich"].contains(&arguments["city"].as_str().unwrap()), "{about}: {arguments}");
    assert!((1..=9).contains(&arguments["days"].as_u64().unwrap()), "{about}: {arguments}");
    assert!(arguments.get("wet").is_none_or(Value::is_boolean), "{about}: {arguments}");
}

/// What a template that teaches a format has in it, and its marks that are tokens.
const HELD: [(&str, &[&str]); 8] = [
    ("<tool_call><function=f><parameter=p>", &[]),
    ("<tool_call><arg_key>", &["<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>"]),
    ("<|python_tag|>", &["<|python_tag|>"]),
    (
        "<｜tool▁calls▁begin｜><｜tool▁sep｜>```json",
        &[
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁call▁begin｜>",
            "<｜tool▁sep｜>",
            "<｜tool▁call▁end｜>",
            "<｜tool▁calls▁end｜>",
        ],
    ),
    ("[TOOL_CALLS]", &["[TOOL_CALLS]", "[ARGS]"]),
    ("<|tool_call_start|>", &["<|tool_call_start|>", "<|tool_call_end|>"]),
    ("<|tool_call>call:", &["<|tool_call>", "<tool_call|>", "<|\"|>"]),
    ("<|open|><|sep|>", &["<|open|>", "<|close|>", "<|sep|>"]),
];

#[test]
fn a_call_is_demanded_in_the_format_that_the_template_teaches() {
    for (taught, marks) in HELD {
        let folder = folder(&format!("{{# {taught} #}}{CHATML}"), marks);
        let session = Session::open(folder.path()).unwrap();
        for seed in 0..2 {
            let ask = || {
                let chat = Request::chat([user("Rain?")]).tools([forecast(), weather()]).max_tokens(300);
                chat.temperature(1.0).seed(seed).parallel_tool_calls(false)
            };
            let named = || {
                let named = ask().tool_choice(ToolChoice::function("forecast"));
                named.constrain_from(ConstrainFrom::FirstToken)
            };
            let (text, _, streamed, reply) = stream(&session, named().strict_tools(true));
            check_forecast(&reply, taught);
            assert_eq!((calls(&reply), text.as_str()), (streamed, ""), "{taught}");
            check_forecast(&session.generate(named()).unwrap(), taught);
            let may = session.generate(ask().strict_tools(true)).unwrap();
            for call in may.choices()[0].tool_calls() {
                assert!(["forecast", "weather"].contains(&call.name()), "{taught}");
            }
        }
    }
}

#[test]
fn a_model_thinks_before_the_call_that_is_demanded() {
    let template = format!("{{# <tool_call><function=f><parameter=p> #}}{THINKS}");
    let session_folder = folder(&template, &["<think>", "</think>"]);
    let session = Session::open(session_folder.path()).unwrap();
    let mut thoughts = 0;
    for seed in 0..8 {
        let chat = Request::chat([user("Rain?")]).template_variable("open", true).tools([forecast()]);
        let chat = chat.tool_choice(ToolChoice::Required).parallel_tool_calls(false).max_tokens(400);
        let reply = session.generate(chat.temperature(0.9).seed(seed).logit_bias(END_THINK, 12.0)).unwrap();
        check_forecast(&reply, "thinking");
        thoughts += usize::from(reply.choices()[0].reasoning().is_some());
    }
    assert!(thoughts > 0, "all replies ended their reasoning at once");
    // gpt-oss thinks in messages of its own, which the grammar has
    let folder = folder(HARMONY, &MARKS);
    let session = Session::open(folder.path()).unwrap();
    let ask = || {
        let chat = Request::chat([user("Rain?")]).tools([forecast()]).tool_choice(ToolChoice::Required);
        chat.temperature(0.9).max_tokens(300).logit_bias(4094, 12.0)
    };
    check_forecast(&session.generate(ask().constrain_from(ConstrainFrom::FirstToken)).unwrap(), "channels");
    let replies: Vec<Reply> = (0..6).map(|seed| session.generate(ask().seed(seed)).unwrap()).collect();
    let called: Vec<&Reply> = replies.iter().filter(|reply| !calls(reply).is_empty()).collect();
    assert!(!called.is_empty(), "no reply came to its call");
    for reply in called {
        assert_eq!(reply.choices()[0].tool_calls().len(), 1);
    }
}

/// The template of `tools/make_chat_fixtures.py` that does with past turns what the template of gpt-oss does. Prompts are
/// those that jinja2 makes of it.
#[test]
fn replies_of_gpt_oss_go_back_into_its_template() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat/cases.json");
    let cases: Value = serde_json::from_slice(&std::fs::read(cases).unwrap()).unwrap();
    let template = format!("{}{{# <|channel|> #}}", cases["templates"]["harmony"].as_str().unwrap());
    let folder = folder(&template, &MARKS);
    let session = Session::open(folder.path()).unwrap();
    let [start, channel, message, constrain, end, call] = [4090, 4091, 4092, 4093, 4094, 4095];
    let analysis =
        format!("<[{channel}]> \"analysis\" <[{message}]> \"Hm.\" <[{end}]> <[{start}]> \"assistant\"");
    let aside =
        format!("<[{channel}]> \"commentary\" <[{message}]> \"I look.\" <[{end}]> <[{start}]> \"assistant\"");
    let calling = format!(
        "<[{channel}]> \"commentary to=functions.weather \" <[{constrain}]> \"json\" <[{message}]> \
         \"{{\\\"days\\\": 7}}\" <[{call}]>"
    );
    let ask = |form: String| {
        let chat = Request::chat([user("Rain?")]).tools([weather()]);
        chat.response_format(ResponseFormat::lark(format!("start: {form}")))
            .constrain_from(ConstrainFrom::WholeReply)
            .max_tokens(200)
    };
    let past = |reply: &Reply| reply.choices()[0].message();
    let prompt = |messages: Vec<amnesic::Message>| {
        session.apply_chat_template(Request::chat(messages)).unwrap().text().to_owned()
    };
    let asked = "<|start|>user<|message|>Rain?<|end|>";
    let thought = |text: &str| format!("<|start|>assistant<|channel|>analysis<|message|>{text}<|end|>");
    let called = "<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{\"days\": 7}<|call|>\
                  <|start|>functions.weather to=assistant<|channel|>commentary<|message|>\"Dry.\"<|end|>";
    let result = || tool("call_0", "Dry.");
    let reply = session.generate(ask(format!("{analysis} {calling}"))).unwrap();
    let found = prompt(vec![user("Rain?"), past(&reply), result()]);
    assert_eq!(found, format!("{asked}{}{called}<|start|>assistant", thought("Hm.")));
    // what was said beside the call is a thought as well: the template takes one of the two
    let both = session.generate(ask(format!("{analysis} {aside} {calling}"))).unwrap();
    let found = prompt(vec![user("Rain?"), past(&both), result()]);
    assert_eq!(found, format!("{asked}{}{called}<|start|>assistant", thought("Hm.\nI look.")));
    // an answer ends the turn, and its thoughts are gone
    let answer = format!("{analysis} <[{channel}]> \"final\" <[{message}]> \"No rain.\"");
    let answer = session.generate(ask(answer)).unwrap();
    let found = prompt(vec![user("Rain?"), past(&reply), result(), past(&answer), user("Sure?")]);
    let said = "<|start|>assistant<|channel|>final<|message|>No rain.<|end|>";
    let again = "<|start|>user<|message|>Sure?<|end|><|start|>assistant";
    assert_eq!(found, format!("{asked}{called}{said}{again}"));
}
