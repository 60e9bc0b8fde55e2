//! Replies as models write them. Right values are those of vLLM's tool parsers and their tests, and of the formats'
//! own templates; every reply is also read in pieces.

mod channels;
mod elements;
mod json;
mod words;

use super::ToolCallParser as P;
use crate::chat::parsed::Parts;
use crate::chat::reply::Style;
use crate::chat::{Event, Tool};
use crate::memory::Secret;

fn tools() -> [Tool; 2] {
    let weather = serde_json::json!({
        "type": "object",
        "properties": {
            "city": {"type": "string"}, "days": {"type": "integer"}, "metric": {"type": "boolean"},
            "ids": {"type": "array", "items": {"type": "integer"}}, "more": {"type": "object"}
        }
    });
    [Tool::new("get_weather", "", weather), Tool::new("now", "", serde_json::json!({"type": "object"}))]
}

fn style(parser: P) -> Style {
    Style::of("", true).with_tools(&tools(), Some(parser), |_| false)
}

/// Content, and `id name arguments` of each call.
fn parts(parts: Parts) -> (String, Vec<String>) {
    let parsed = parts.into_parsed();
    let call = |call: &crate::ToolCall| format!("{} {} {}", call.id(), call.name(), call.arguments());
    let calls = parsed.tool_calls.iter().map(call).collect();
    let reasoning = parsed.reasoning.map(Secret::<str>::into_exposed);
    let content = parsed.content.into_exposed();
    (reasoning.map_or_else(|| content.clone(), |reasoning| format!("({reasoning}){content}")), calls)
}

/// Reads a reply whole, and cut into pieces of each of several sizes.
fn check_style(style: &Style, reply: &str, content: &str, calls: &[&str]) {
    for size in [usize::MAX, 1, 2, 3, 7] {
        let (mut splitter, mut found) = (style.splitter(), Parts::default());
        let mut rest = reply;
        while !rest.is_empty() {
            let at = rest.char_indices().nth(size).map_or(rest.len(), |(at, _)| at);
            splitter.push(&rest[..at], &mut |event| found.take(event));
            rest = &rest[at..];
        }
        splitter.finish(&mut |event| found.take(event));
        let (text, called) = parts(found);
        assert_eq!(text, content, "{reply:?} in pieces of {size}");
        assert_eq!(called, calls, "{reply:?} in pieces of {size}");
    }
}

fn check(parser: P, reply: &str, content: &str, calls: &[&str]) {
    check_style(&style(parser), reply, content, calls);
}

const TOKYO: &str = "{\"city\": \"Tokyo\"}";

#[test]
fn parsers_have_the_names_that_vllm_has() {
    for (name, parser) in [
        ("hermes", P::Hermes),
        ("qwen3_coder", P::Qwen3Coder),
        ("qwen3_xml", P::Qwen3Coder),
        ("glm45", P::Glm45),
        ("deepseek_v3", P::DeepSeekV3),
        ("deepseek_v31", P::DeepSeekV31),
        ("kimi_k2", P::KimiK2),
        ("llama4_pythonic", P::Llama4Pythonic),
        ("phi4_mini_json", P::Phi4MiniJson),
        ("granite", P::Granite),
        ("functiongemma", P::FunctionGemma),
        ("openai", P::OpenAi),
        ("deepseek_v4", P::DeepSeekV4),
        ("kimi_k3", P::KimiK3),
        ("step3", P::Step3),
        ("minimax_m3", P::MinimaxM3),
        ("apertus", P::Apertus),
        ("inkling", P::Inkling),
    ] {
        assert_eq!(name.parse(), Ok(parser));
    }
    assert_eq!(P::Qwen3Coder.to_string(), "qwen3_coder");
    assert!("nothing".parse::<P>().unwrap_err().to_string().contains("kimi_k2"));
}

#[test]
fn templates_and_tokens_name_their_parser() {
    for (template, parser) in [
        ("For each function call, return a json object within <tool_call></tool_call>", P::Hermes),
        ("<tool_call>\\n<function=example>\\n<parameter=p>", P::Qwen3Coder),
        ("<tool_call>{function-name}\\n<arg_key>", P::Glm45),
        ("'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' '<｜tool▁sep｜>' '```json'", P::DeepSeekV3),
        ("'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' '<｜tool▁sep｜>'", P::DeepSeekV31),
        ("<|tool_calls_section_begin|>", P::KimiK2),
        ("[AVAILABLE_TOOLS] [TOOL_CALLS]", P::Mistral),
        ("Environment: ipython <|python_tag|>", P::Llama3Json),
        ("Respond in the format {\"name\": function name, \"parameters\": dictionary}", P::Llama3Json),
        ("<|START_ACTION|>", P::Cohere),
        ("<start_function_call>call:", P::FunctionGemma),
        ("<|start|>system<|message|> <|channel|>analysis", P::OpenAi),
        ("'functools[{...}]' <|tool|>", P::Phi4MiniJson),
        ("you SHOULD respond in <|tool_call|>", P::Granite),
        ("[func_name1(params_name1=params_value1)]", P::Pythonic),
        ("<｜DSML｜function_calls>", P::DeepSeekV32),
        ("<｜DSML｜tool_calls>", P::DeepSeekV4),
        ("'<|open|>' ~ name ~ '<|sep|>'", P::KimiK3),
        ("<steptml:invoke name=", P::Step3),
        ("set ns_token = ']<]minimax[>['", P::MinimaxM3),
        ("<|inner_prefix|> <|tools_prefix|>", P::Apertus),
        ("<|content_invoke_tool_json|>", P::Inkling),
    ] {
        assert_eq!(P::of_template(template), Some(parser), "{template}");
    }
    assert_eq!(P::of_template("{{ messages }}"), None);
    assert_eq!(P::of_tokens(|token| token == "<|tool_call_start|>"), Some(P::Lfm2));
    let by_token = Style::of("", true).with_tools(&tools(), None, |token| token == "[TOOL_CALLS]");
    check_style(&by_token, "[TOOL_CALLS]f[ARGS]{}", "", &["call00000 f {}"]);
}

/// Whatever a reply is made of and however it is cut, the same comes out, and no text is lost where there is no call.
#[test]
fn parts_do_not_depend_on_where_a_reply_is_cut() {
    const PARTS: [&str; 58] = [
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "{\"name\": \"f\", \"arguments\": {}}",
        "{\"name\": \"f\",",
        "\"parameters\": {\"a\": 1}}",
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "{}",
        "{",
        "[",
        "]",
        "}",
        "<|python_tag|>",
        ";",
        "\n",
        " ",
        "é",
        "text",
        "<",
        "\"",
        "'",
        "```json",
        "```",
        "f(a=1, b='x')",
        "f(",
        "a=",
        ")",
        ",",
        "<function=f>",
        "<parameter=a>",
        "\n</parameter>",
        "\n</function>",
        "<arg_key>a</arg_key>",
        "<arg_value>1</arg_value>",
        "call:f{a:1}",
        "<|tool_call>",
        "<tool_call|>",
        "<|channel|>final<|message|>",
        "<|channel|>commentary to=functions.f<|message|>",
        "<|end|>",
        "<|start|>assistant",
        "<|open|>tools<|sep|>",
        "<|close|>tools<|sep|>",
        "<|open|>call tool=\"f\"<|sep|>",
        "<|open|>argument key=\"a\" type=\"number\"<|sep|>",
        "<|close|>argument<|sep|>",
        "<|close|>call<|sep|>",
        "]<]minimax[>[<tool_call>",
        "]<]minimax[>[<invoke name=\"f\">",
        "]<]minimax[>[<a>1]<]minimax[>[</a>",
        "]<]minimax[>[</invoke>",
        "<|content_invoke_tool_json|>",
        "<|content_thinking|>",
        "<|end_message|>",
        "<|message_model|>",
    ];
    const PARSERS: [P; 13] = [
        P::Hermes,
        P::Llama3Json,
        P::Mistral,
        P::Qwen3Coder,
        P::Glm45,
        P::Pythonic,
        P::Gemma4,
        P::OpenAi,
        P::Phi4MiniJson,
        P::KimiK3,
        P::MinimaxM3,
        P::Inkling,
        P::Step3,
    ];
    // xorshift64: the same replies on every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for round in 0..30_000 {
        let reply: String = (0..random(10)).map(|_| PARTS[random(PARTS.len())]).collect();
        let template = ["", "<think>", "</think>", "<response>"][random(4)];
        let style =
            Style::of(template, true).with_tools(&tools(), Some(PARSERS[round % PARSERS.len()]), |_| false);
        let (mut splitter, mut found) = (style.splitter(), Parts::default());
        let mut take = |event: Event<'_>| {
            if let Event::Piece(_, text) = &event {
                assert!(!text.is_empty());
            }
            found.take(event);
        };
        let mut rest = reply.as_str();
        while !rest.is_empty() {
            let at = rest.char_indices().nth(1 + random(6)).map_or(rest.len(), |(at, _)| at);
            splitter.push(&rest[..at], &mut take);
            rest = &rest[at..];
        }
        splitter.finish(&mut take);
        let mut whole = Parts::default();
        style.splitter().take(&reply, true, &mut |event| whole.take(event));
        assert_eq!(parts(found), parts(whole), "{reply:?} as {:?}", PARSERS[round % PARSERS.len()]);
    }
}
