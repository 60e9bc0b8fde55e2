//! Whole replies, and replies in pieces, in the formats of Hermes, Llama and Mistral; reasoning.

use super::*;
use crate::chat::ToolCall;
use crate::chat::splitter::Event;
use crate::chat::tool_calls::CallPart;
use crate::memory::Secret;

const HERMES: &str = "<tool_call> <think> </think>";
const LLAMA: &str = "<|python_tag|>";
const MISTRAL: &str = "[TOOL_CALLS]";
const R1: &str = "{{ content.split('</think>')[-1] }}{{ '<|Assistant|><think>\\n' }}";

/// Content, reasoning (`-` where there is none), and `id name arguments` of each call.
fn parse(template: &str, reply: &str) -> (String, String, Vec<String>) {
    let parsed = Style::of(template, true).parse(reply);
    let call = |call: &ToolCall| format!("{} {} {}", call.id(), call.name(), call.arguments());
    let calls = parsed.tool_calls.iter().map(call).collect();
    let reasoning = parsed.reasoning.map_or_else(|| "-".to_owned(), Secret::<str>::into_exposed);
    (parsed.content.into_exposed(), reasoning, calls)
}

fn check(template: &str, reply: &str, content: &str, reasoning: &str, calls: &[&str]) {
    let (found, thought, called) = parse(template, reply);
    assert_eq!((found.as_str(), thought.as_str()), (content, reasoning), "{reply}");
    assert_eq!(called, calls, "{reply}");
}

#[test]
fn hermes_calls() {
    let one = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1.50}}\n</tool_call>";
    check(HERMES, one, "", "-", &["call_0 f {\"a\": 1.50}"]);
    check(
        HERMES,
        &format!("Sure.\n{one}\n{one}\n"),
        "Sure.",
        "-",
        &["call_0 f {\"a\": 1.50}", "call_1 f {\"a\": 1.50}"],
    );
    check(HERMES, &format!("A\n{one}\n\nB "), "A\nB ", "-", &["call_0 f {\"a\": 1.50}"]);
    check(HERMES, &format!("<think>\nhm\n</think>\n\n{one}"), "", "hm", &["call_0 f {\"a\": 1.50}"]);
    check(HERMES, "<tool_call>{\"name\": \"f\"}", "", "-", &["call_0 f {}"]);
    let inner = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"</tool_call>\"}}</tool_call>";
    check(HERMES, inner, "", "-", &["call_0 f {\"a\": \"</tool_call>\"}"]);
    for malformed in [
        "a <tool_call>no</tool_call> b",
        "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>",
        "<tool_call>{\"name\": \"\"}</tool_call>",
        "a\n<tool_call>{\"name\": \"f\", \"arg",
        "</tool_call> <tool",
        "  ",
    ] {
        check(HERMES, malformed, malformed, "-", &[]);
    }
    check(
        HERMES,
        &format!("<tool_call>no</tool_call>\n{one}"),
        "<tool_call>no</tool_call>",
        "-",
        &["call_0 f {\"a\": 1.50}"],
    );
    assert_eq!(Style::of(HERMES, false).parse(one).content.expose(), one);
}

#[test]
fn llama_calls() {
    let one = "{\"name\": \"f\", \"parameters\": {\"a\": \"x\"}}";
    check(LLAMA, one, "", "-", &["call_0 f {\"a\": \"x\"}"]);
    check(
        LLAMA,
        &format!(" <|python_tag|>{one}; {one} ;"),
        "",
        "-",
        &["call_0 f {\"a\": \"x\"}", "call_1 f {\"a\": \"x\"}"],
    );
    check(LLAMA, &format!("Sure.\n<|python_tag|>{one}"), "Sure.", "-", &["call_0 f {\"a\": \"x\"}"]);
    // vLLM's tests have calls within text
    check(LLAMA, &format!("{one} and"), "and", "-", &["call_0 f {\"a\": \"x\"}"]);
    check(LLAMA, &format!("See {one}"), "See", "-", &["call_0 f {\"a\": \"x\"}"]);
    for content in ["{\"name\": \"f\"}", "{}", "{", "See {this} or {\"that\": 1}", "<|python"] {
        check(LLAMA, content, content, "-", &[]);
    }
}

#[test]
fn mistral_calls() {
    check(
        MISTRAL,
        "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {}, \"id\": \"abcdefghi\"}]",
        "",
        "-",
        &["abcdefghi f {}"],
    );
    let same = "{\"name\": \"f\", \"arguments\": {}, \"id\": \"call_0\"}";
    check(
        MISTRAL,
        &format!("[TOOL_CALLS][{same},{same},{{\"name\": \"g\"}}]"),
        "",
        "-",
        &["call_0 f {}", "call00000 f {}", "call00001 g {}"],
    );
    check(
        MISTRAL,
        "Hi [TOOL_CALLS]f[ARGS]{\"a\": 1}[TOOL_CALLS]g[CALL_ID]123456789[ARGS]{}[TOOL_CALLS]h{}",
        "Hi",
        "-",
        &["call00000 f {\"a\": 1}", "123456789 g {}", "call00001 h {}"],
    );
    for content in ["[TOOL_CALLS]", "[TOOL_CALLS][]", "[TOOL_CALLS]f", "[TOOL_CALLS]f[ARGS]1", "x [TOOL"] {
        check(MISTRAL, content, content, "-", &[]);
    }
}

#[test]
fn reasoning() {
    check(HERMES, "<think>\n\n</think>\n\nHi", "Hi", "-", &[]);
    check(HERMES, "\n<think> a\n b </think>Hi <think>no</think>", "Hi <think>no</think>", "a\n b", &[]);
    check(HERMES, "<think>cut", "", "cut", &[]);
    check(HERMES, "Hi </think> there", "Hi </think> there", "-", &[]);
    check(R1, "hm\n</think>\n\nHi\n", "Hi\n", "hm", &[]);
    check(R1, "<think>\nhm</think>Hi", "Hi", "hm", &[]);
    check("", "<think>a</think>b", "<think>a</think>b", "-", &[]);
    assert!(Style::of(HERMES, true).after("<|im_start|>assistant\n<think>\n").inside);
    assert!(!Style::of(R1, true).after("<think>\n\n</think>\n\n").inside);
    assert!(!Style::of("", true).after("<think>").inside);
}

#[test]
fn pieces_come_as_soon_as_they_are_certain() {
    let mut splitter = Style::of(HERMES, true).splitter();
    let mut push = |text: &str| {
        let mut given = String::new();
        splitter.push(text, &mut |event| match event {
            Event::Piece(_, text) => given.push_str(text),
            Event::Call(_, CallPart::Begin { id, name }) => given.push_str(&format!("[{id} {name}]")),
            Event::Call(_, CallPart::Arguments(text)) => given.push_str(text),
            Event::Call(_, CallPart::End) => given.push_str("[end]"),
            Event::Call(_, CallPart::Retracted) => given.push_str("[none]"),
        });
        given
    };
    assert_eq!(push("<thi"), "");
    assert_eq!(push("nk>a b"), "a b");
    assert_eq!(push("c</th"), "c");
    assert_eq!(push("is"), "</this");
    assert_eq!(push("</think>d"), "d");
    assert_eq!(push(" <tool_call>"), "");
    assert_eq!(push("{\"name\": \"canary\", \"arguments\": "), "");
    assert_eq!(push("{\"a\": \"x"), "[call_0 canary]{\"a\": \"x");
    assert_eq!(push("y\"}"), "y\"}");
    assert_eq!(push("}"), "[end]");
    assert_eq!(
        push("</tool_call><tool_call>{\"name\": \"f\", \"arguments\": {\"a\": "),
        "[call_1 f]{\"a\": "
    );
    assert_eq!(
        push("1 2}}</tool_call>"),
        "1 2}[none] <tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1 2}}</tool_call>"
    );
    assert!(!format!("{splitter:?}").contains("canary"));
}

#[test]
fn hostile_replies_end() {
    let ends = format!("<tool_call>{{\"name\": \"{}", "</tool_call>".repeat(100_000));
    assert_eq!(Style::of(HERMES, true).parse(&ends).content.expose(), &ends);
    let deep = format!("<tool_call>{{\"name\": \"f\", \"arguments\": {}", "{\"a\":".repeat(100_000));
    assert_eq!(Style::of(HERMES, true).parse(&deep).content.expose(), &deep);
}
