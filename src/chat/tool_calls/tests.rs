//! Replies as models write them. Right values are those of vLLM's tool parsers and their tests, and of the formats'
//! own templates; every reply is also read in pieces.

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
fn hermes_in_all_spellings() {
    let tag = |body: &str| format!("<tool_call>\n{body}\n</tool_call>");
    for (body, expected) in [
        (r#"{"name": "f", "arguments": {"a": 1}}"#, r#"call_0 f {"a": 1}"#),
        (r#"{"name": "f", "arguments": "{\"a\": 1}"}"#, r#"call_0 f {"a": 1}"#),
        (r#"{"name": "f", "arguments": ""}"#, "call_0 f {}"),
        (r#"{"name": "f", "arguments": null}"#, "call_0 f {}"),
        (r#"{"name": "f"}"#, "call_0 f {}"),
        (r#"{"id": 7, "name": "f", "arguments": {}}"#, "7 f {}"),
        (r#"{"name": "f", "arguments": {}, "id": 7}"#, "call_0 f {}"),
        (r#"{"arguments": {"a": 1}, "name": "f"}"#, r#"call_0 f {"a": 1}"#),
        (r#"{"name": "f", "parameters": {"a": 1}}"#, r#"call_0 f {"a": 1}"#),
        (r#"{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}"#, r#"call_0 f {"a": 1}"#),
        (r#"[{"name": "f", "arguments": {"a": 1}}]"#, r#"call_0 f {"a": 1}"#),
        ("```json\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n```", r#"call_0 f {"a": 1}"#),
        (r#"{"name": "f", "arguments": {"a": "</tool_call>{"}}"#, r#"call_0 f {"a": "</tool_call>{"}"#),
        (r#"{"name": "\u0066", "arguments": {"a": 1}}}"#, r#"call_0 f {"a": 1}"#),
    ] {
        check(P::Hermes, &tag(body), "", &[expected]);
    }
    let list = tag(r#"[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"a": [1]}}]"#);
    check(P::Hermes, &list, "", &["call_0 f {}", r#"call_1 g {"a": [1]}"#]);
    let two = tag("{\"name\": \"f\"}\n{\"name\": \"g\"}");
    check(P::Hermes, &format!("Sure.\n{two}\nDone."), "Sure.\nDone.", &["call_0 f {}", "call_1 g {}"]);
    for text in [
        tag(r#"{"name": "f", "arguments": "no object"}"#),
        tag(r#"{"name": "f", "arguments": [1]}"#),
        tag(r#"{"name": 1, "arguments": {}}"#),
        tag("no JSON"),
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"cut".to_owned(),
        "a < b and <tool".to_owned(),
    ] {
        check(P::Hermes, &text, &text, &[]);
    }
}

#[test]
fn llama_in_all_spellings() {
    // vLLM's test_llama3_json_tool_parser.py
    let (search, get) = (
        r#"{"name": "searchTool", "parameters": {"query": "test1"}}"#,
        r#"{"name": "getOpenIncidentsTool", "parameters": {}}"#,
    );
    let both = [r#"call_0 searchTool {"query": "test1"}"#, "call_1 getOpenIncidentsTool {}"];
    for separator in ["; ", ";", ";\n", "\n", " ; ", "<|python_tag|>"] {
        check(P::Llama3Json, &format!("{search}{separator}{get}"), "", &both);
    }
    let within = format!("Here are the results: {search}; {get} Would you like to know more?");
    check(P::Llama3Json, &within, "Here are the results: Would you like to know more?", &both);
    let braces = format!("{search} I used {{searchTool}} and {{\"query\": 1}} for this.");
    check(P::Llama3Json, &braces, "I used {searchTool} and {\"query\": 1} for this.", &both[..1]);
    check(P::Llama3Json, &format!("```json\n{search}\n```"), "", &both[..1]);
    check(P::Llama3Json, &format!("[{search}, {get}]"), "", &both);
    check(P::Llama3Json, "<|python_tag|>{\"name\": \"f\"}", "", &["call_0 f {}"]);
    check(
        P::Llama3Json,
        r#"{"type": "function", "function": "f", "parameters": "{}"}"#,
        "",
        &["call_0 f {}"],
    );
    for text in [
        r#"{"parameters": {}}"#,
        r#"{"name": "toolWithoutParams"}"#,
        r#"{"name": "invalidTool", "parameters": {invalid json}"#,
        "{\"answer\": [1, 2]}",
        "```python\nprint({})\n```",
        "[1] says so",
    ] {
        check(P::Llama3Json, text, text, &[]);
    }
}

#[test]
fn qwen3_coder() {
    let call = "<tool_call>\n<function=get_weather>\n<parameter=city>\nSan Francisco\n</parameter>\n<parameter=days>\n3\n\
                </parameter>\n<parameter=metric>\nTrue\n</parameter>\n<parameter=ids>\n[1, 2]\n</parameter>\n\
                <parameter=more>\n{'k': None}\n</parameter>\n</function>\n</tool_call>";
    let expected = "get_weather {\"city\": \"San Francisco\", \"days\": 3, \"metric\": true, \"ids\": [1, 2], \
                    \"more\": {\"k\": null}}";
    let (first, second) = (format!("call_0 {expected}"), format!("call_1 {expected}"));
    check(P::Qwen3Coder, call, "", &[&first]);
    check(P::Qwen3Coder, &format!("Let me see.\n{call}\n{call}"), "Let me see.", &[&first, &second]);
    // without the outer tags, which models forget, and without a parameter's end
    check(
        P::Qwen3Coder,
        "<function=get_weather>\n<parameter=city>\nTokyo\n<parameter=days>\n1\n</function>\n</tool_call>",
        "",
        &["call_0 get_weather {\"city\": \"Tokyo\", \"days\": 1}"],
    );
    check(P::Qwen3Coder, "<tool_call><function=now></function></tool_call>", "", &["call_0 now {}"]);
    // text that quotes tags, of several lines
    check(
        P::Qwen3Coder,
        "<tool_call>\n<function=get_weather>\n<parameter=city>\na\n  </function>\n<b>\n</parameter>\n</function>\n</tool_call>",
        "",
        &["call_0 get_weather {\"city\": \"a\\n  </function>\\n<b>\"}"],
    );
    for text in [
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nTok",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nTokyo\n</parameter>\n",
        "<tool_call>\nno function\n</tool_call>",
        "a <b> c",
    ] {
        check(P::Qwen3Coder, text, text, &[]);
    }
}

#[test]
fn formats_between_tags() {
    check(
        P::SeedOss,
        "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Tokyo</parameter>\n</function>\n</seed:tool_call>",
        "",
        &["call_0 get_weather {\"city\": \"Tokyo\"}"],
    );
    check(
        P::MinimaxM2,
        "<minimax:tool_call>\n<invoke name=\"get_weather\">\n<parameter name=\"city\">Tokyo</parameter>\n\
         <parameter name=\"days\">5</parameter>\n</invoke>\n<invoke name=\"now\">\n</invoke>\n</minimax:tool_call>",
        "",
        &["call_0 get_weather {\"city\": \"Tokyo\", \"days\": 5}", "call_1 now {}"],
    );
    check(
        P::DeepSeekV32,
        "Ok.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"a\" string=\"true\">5\
         </｜DSML｜parameter>\n<｜DSML｜parameter name=\"b\" string=\"false\">[5]</｜DSML｜parameter>\n</｜DSML｜invoke>\n\
         </｜DSML｜function_calls>",
        "Ok.",
        &["call_0 f {\"a\": \"5\", \"b\": [5]}"],
    );
    let glm = "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>12</arg_value>\n<arg_key>days</arg_key>\n\
               <arg_value>3</arg_value>\n<arg_key>other</arg_key>\n<arg_value>{\"a\": 1}</arg_value>\n</tool_call>";
    let arguments = "get_weather {\"city\": \"12\", \"days\": 3, \"other\": {\"a\": 1}}";
    check(P::Glm45, &format!("Hm.\n{glm}"), "Hm.", &[&format!("call_0 {arguments}")]);
    check(P::Glm45, "<tool_call>now</tool_call>", "", &["call_0 now {}"]);
    check(
        P::Glm45,
        "<tool_call>f<arg_key>a</arg_key><arg_value>x y</arg_value></tool_call>",
        "",
        &["call_0 f {\"a\": \"x y\"}"],
    );
    for text in [&glm[..glm.len() - 20], "<tool_call>f", "<tool_call>{\"name\": 1}</tool_call>"] {
        check(P::Glm45, text, text, &[]);
    }
}

#[test]
fn deepseek_and_kimi() {
    let v3 = |name: &str, json: &str| {
        format!("<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{json}\n```<｜tool▁call▁end｜>")
    };
    let section = |calls: &str| format!("<｜tool▁calls▁begin｜>{calls}<｜tool▁calls▁end｜>");
    let two = format!("{}\n{}", v3("get_weather", TOKYO), v3("now", "{}"));
    let expected = ["call_0 get_weather {\"city\": \"Tokyo\"}", "call_1 now {}"];
    check(P::DeepSeekV3, &format!("Hi {}", section(&two)), "Hi", &expected);
    let v31 = |name: &str, json: &str| {
        format!("<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{json}<｜tool▁call▁end｜>")
    };
    let two = format!("{}{}", v31("get_weather", TOKYO), v31("now", "{}"));
    for parser in [P::DeepSeekV31, P::DeepSeekV3] {
        check(parser, &section(&two), "", &expected);
    }
    // a reply that is cut off: what is complete is a call, the rest is text
    let cut = "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{\"a";
    check(
        P::DeepSeekV31,
        &format!("<｜tool▁calls▁begin｜>{}{cut}", v31("now", "{}")),
        cut,
        &["call_0 now {}"],
    );
    check(
        P::DeepSeekV31,
        &format!("<｜tool▁calls▁begin｜>{cut}"),
        &format!("<｜tool▁calls▁begin｜>{cut}"),
        &[],
    );

    let kimi = "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>\
                {\"city\": \"Tokyo\"}<|tool_call_end|><|tool_call_begin|>functions.now:1\
                <|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>";
    let expected = ["functions.get_weather:0 get_weather {\"city\": \"Tokyo\"}", "functions.now:1 now {}"];
    check(P::KimiK2, &format!("I'll look.  {kimi}"), "I'll look.", &expected);
}

#[test]
fn lists_between_marks() {
    let one = format!("[{{\"name\": \"get_weather\", \"arguments\": {TOKYO}}}]");
    let call = "call_0 get_weather {\"city\": \"Tokyo\"}";
    check(P::Granite, &format!("<|tool_call|> {one}"), "", &[call]);
    check(P::Granite, &format!("<tool_call>{one}"), "", &[call]);
    check(
        P::Granite,
        "<|tool_call|> [{\"arguments\": {\"x\": 42}, \"name\": \"f\"}]",
        "",
        &["call_0 f {\"x\": 42}"],
    );
    check(P::Granite20bFc, "<function_call> {\"name\": \"f\", \"arguments\": {}}", "", &["call_0 f {}"]);
    // vLLM's test_phi4mini_tool_parser.py
    let around = format!("Let me check.\nfunctools{one}\nWould you like more?");
    check(P::Phi4MiniJson, &around, "Let me check.\nWould you like more?", &[call]);
    check(P::Phi4MiniJson, &format!("<|tool_call|>{one}<|/tool_call|>"), "", &[call]);
    for text in [
        "functools[{\"name\": \"func\", \"arguments\": {",
        "functools[{\"name\": \"func\", \"arguments\": \"not a dict\"}]",
        "functools{\"name\": \"func\"}",
        "functools[{\"name\": \"func\"}]",
        "functools[] This is just text",
        "functools[ This is just text ]",
    ] {
        check(P::Phi4MiniJson, text, text, &[]);
    }
    check(
        P::Granite,
        "<|tool_call|> {\"name\": \"func\", \"arguments\": {}}",
        "<|tool_call|> {\"name\": \"func\", \"arguments\": {}}",
        &[],
    );
    // vLLM's test_cohere_command_tool_parser.py
    let cohere = "<|START_ACTION|>\n[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"foo\", \"parameters\": {\"query\": \
                  \"query1\"}},\n    {\"tool_call_id\": \"1\", \"tool_name\": \"bar\", \"parameters\": {\"x\": 42}}\n]\n<|END_ACTION|>";
    let thought = format!("<|START_THINKING|> i will call foo<|END_THINKING|>{cohere}");
    let template = "<|START_THINKING|><|START_ACTION|>";
    let calls = ["0 foo {\"query\": \"query1\"}", "1 bar {\"x\": 42}"];
    check_style(&Style::of(template, true), &thought, "(i will call foo)", &calls);
    let said = "<|START_THINKING|>hm<|END_THINKING|>\n<|START_RESPONSE|>foo bar<|END_RESPONSE|>";
    check_style(&Style::of(template, true), said, "(hm)foo bar", &[]);
    check(
        P::Cohere,
        "Action: ```json\n[{\"tool_name\": \"f\", \"parameters\": {}}]\n```",
        "",
        &["call_0 f {}"],
    );
    check(P::Jamba, &format!("<tool_calls>{one}</tool_calls>"), "", &[call]);
    // MiniMax M1 writes a line for each call
    let lines = "<tool_calls>\n{\"name\": \"f\", \"arguments\": {}}\n{\"name\": \"g\", \"arguments\": {}}\n</tool_calls>";
    check(P::Jamba, lines, "", &["call_0 f {}", "call_1 g {}"]);
    check(P::NemotronJson, &format!("<TOOLCALL>{one}</TOOLCALL>"), "", &[call]);
    check(
        P::Internlm,
        "Ok<|action_start|><|plugin|>\n{\"name\": \"f\", \"parameters\": {}}<|action_end|>",
        "Ok",
        &["call_0 f {}"],
    );
    check(
        P::Longcat,
        "<longcat_tool_call>{\"name\": \"f\", \"arguments\": {}}</longcat_tool_call>",
        "",
        &["call_0 f {}"],
    );
}

#[test]
fn python_calls() {
    let list =
        "[get_weather(city='San Francisco', days=2), now(), f(a=[1, {'b': None}], c=-1.5, d=\"it's, (ok)\")]";
    let expected = [
        "call_0 get_weather {\"city\": \"San Francisco\", \"days\": 2}",
        "call_1 now {}",
        "call_2 f {\"a\": [1, {\"b\": null}], \"c\": -1.5, \"d\": \"it's, (ok)\"}",
    ];
    check(P::Pythonic, list, "", &expected);
    check(P::Pythonic, &format!("\n{list}\n"), "", &expected);
    check(P::Llama4Pythonic, list, "", &expected);
    check(P::Llama4Pythonic, &format!("<|python_start|>{list}<|python_end|>"), "", &expected);
    check(P::Lfm2, &format!("Ok. <|tool_call_start|>{list}<|tool_call_end|>Wait."), "Ok. Wait.", &expected);
    check(
        P::Olmo3,
        "<function_calls>\nnow()\nf(a=1)\n</function_calls>",
        "",
        &["call_0 now {}", "call_1 f {\"a\": 1}"],
    );
    check(P::Gemma3Pythonic, "```tool_code\nf(a=\"x\")\n```", "", &["call_0 f {\"a\": \"x\"}"]);
    check(P::Gemma3Pythonic, "[f(a=\"\"\"x\"y\"\"\")]", "", &["call_0 f {\"a\": \"x\\\"y\"}"]);
    for text in ["[1, 2]", "[x]", "[f(1)]", "[f(a=g())]", "[f(a=1", "Sure [f(a=1)]", "[f(a=", "[]"] {
        check(P::Pythonic, text, text, &[]);
    }
}

#[test]
fn gemma_calls() {
    check(
        P::FunctionGemma,
        "<start_function_call>call:get_weather{city:<escape>San, {x}<escape>,days:3}<end_function_call>",
        "",
        &["call_0 get_weather {\"city\": \"San, {x}\", \"days\": 3}"],
    );
    check(P::FunctionGemma, "<start_function_call>call:now{}<end_function_call>", "", &["call_0 now {}"]);
    check(
        P::Gemma4,
        "Ok.<|tool_call>call:f{a:<|\"|>Tokyo<|\"|>,n:42,x:1.5,b:true,no:null,o:{k:<|\"|>v<|\"|>},l:[<|\"|>a<|\"|>,1]}<tool_call|>\
         <|tool_call>call:now{}<tool_call|>",
        "Ok.",
        &[
            "call_0 f {\"a\": \"Tokyo\", \"n\": 42, \"x\": 1.5, \"b\": true, \"no\": null, \"o\": {\"k\": \"v\"}, \"l\": [\"a\", 1]}",
            "call_1 now {}",
        ],
    );
    for text in ["<|tool_call>call:f{a:1", "<|tool_call>f{}", "<|tool_call>call:f{a}<tool_call|>"] {
        check(P::Gemma4, text, text, &[]);
    }
}

#[test]
fn citations_of_cohere() {
    // cohere-melody's filter, which vLLM's parser is
    let template = "<|START_THINKING|><|START_ACTION|>";
    let style = Style::of(template, true).after("");
    let said = "<|START_THINKING|>See <co>one</co: 0:[1,2]>.<|END_THINKING|><|START_RESPONSE|>The <co>tallest</co: 0:[0],1:[2]> of \
                <co: 0,1>all</co: 0,1> is <b>a < b</b> <cod> </co> <co: x><|END_RESPONSE|>";
    check_style(&style, said, "(See one.)The tallest of all is <b>a < b</b> <cod> </co> <co: x>", &[]);
    check_style(&style, "<|START_RESPONSE|>cut <co: 1", "cut <co: 1", &[]);
    let call = "<co: 0>So</co: 0> <|START_ACTION|>[{\"tool_name\": \"now\", \"parameters\": {\"a\": \"<co>\"}}]<|END_ACTION|>";
    check_style(&style, call, "So", &["call_0 now {\"a\": \"<co>\"}"]);
    let grounded = Style::of("write the answer with symbols <co: doc> and </co: doc>", false);
    check_style(&grounded, "Grounded answer: <co: 1>x</co: 1>", "Grounded answer: x", &[]);
    check_style(&Style::of("", true), "<co: 1>x</co: 1>", "<co: 1>x</co: 1>", &[]);
}

#[test]
fn elements_of_kimi_k3() {
    let call = "<|open|>call tool=\"python\" index=\"1\"<|sep|><|open|>argument key=\"code\" type=\"string\"<|sep|>\
                print(\"1\")\n<|close|>argument<|sep|><|open|>argument key=\"opts\" type=\"object\"<|sep|>{\"a\":1}\
                <|close|>argument<|sep|><|close|>call<|sep|>";
    let empty = "<|open|>call tool=\"say &quot;&amp;\"<|sep|><|close|>call<|sep|>";
    let tools = format!("<|open|>tools<|sep|>{call}{empty}<|close|>tools<|sep|>");
    let calls =
        ["call_0 python {\"code\": \"print(\\\"1\\\")\\n\", \"opts\": {\"a\":1}}", "call_1 say \"& {}"];
    check(P::KimiK3, &tools, "", &calls);
    let style = Style::of("<|open|>think<|sep|>", true).with_tools(&self::tools(), None, |_| false).after("");
    let said = "<|open|>response<|sep|>I look.<|close|>response<|sep|>";
    let thought = "<|open|>think<|sep|>Hm.<|close|>think<|sep|>";
    check_style(&style, &format!("{thought}{said}{tools}<|close|>message<|sep|>"), "(Hm.)I look.", &calls);
    check_style(&style, "Hello<|close|>message<|sep|>", "Hello", &[]);
    let inside = style.after("<|open|>think<|sep|>");
    check_style(&inside, &format!("Hm.<|close|>think<|sep|>{said}"), "(Hm.)I look.", &[]);
    // what is no JSON is text
    let broken = tools.replace("{\"a\":1}", "{a");
    check(
        P::KimiK3,
        &broken,
        "",
        &["call_0 python {\"code\": \"print(\\\"1\\\")\\n\", \"opts\": \"{a\"}", calls[1]],
    );
    for text in [
        "<|open|>tools<|sep|>none",
        "<|open|>tools<|sep|><|open|>call tool=\"f\"<|sep|><|open|>argu",
        "a <|open|>",
    ] {
        check(P::KimiK3, text, text, &[]);
    }
}

#[test]
fn elements_of_minimax_m3() {
    // vLLM's test_minimax_m3_tool_parser.py
    let item = serde_json::json!({"type": "object", "properties": {"sku": {"type": "string"}, "qty": {"type": "integer"}}});
    let order = serde_json::json!({
        "type": "object",
        "properties": {
            "user_id": {"type": "integer"}, "urgent": {"type": "boolean"}, "note": {"type": "string"},
            "shipping": {"type": "object", "properties": {"city": {"type": "string"}, "zip": {"type": "integer"}}},
            "items": {"type": "array", "items": item},
            "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
            "duplicate_demo": {"type": "object"}, "none": {"type": "array"}
        }
    });
    let tools = [Tool::new("create_order", "", order)];
    let style = Style::of("", true).with_tools(&tools, Some(P::MinimaxM3), |_| false);
    let call = "<tool_call>\n<invoke name=\"create_order\"><user_id>42</user_id><urgent>true</urgent>\
                <note>Please leave at front desk.</note><shipping><city>Singapore</city><zip>018956</zip></shipping>\
                <items><item><sku>book-001</sku><qty>2</qty></item><item><sku>pen-007</sku><qty>5</qty></item></items>\
                <metadata><source>mobile</source><campaign>may-launch</campaign></metadata>\
                <duplicate_demo><tag>a</tag><tag>b</tag></duplicate_demo><none></none></invoke>\n</tool_call>";
    let marked = |text: &str| text.replace('<', "]<]minimax[>[<");
    let expected = "call_0 create_order {\"user_id\": 42, \"urgent\": true, \"note\": \"Please leave at front desk.\", \
                    \"shipping\": {\"city\": \"Singapore\", \"zip\": 18956}, \"items\": [{\"sku\": \"book-001\", \"qty\": 2}, \
                    {\"sku\": \"pen-007\", \"qty\": 5}], \"metadata\": {\"source\": \"mobile\", \"campaign\": \
                    \"may-launch\"}, \"duplicate_demo\": {\"tag\": [\"a\", \"b\"]}, \"none\": []}";
    check_style(&style, &format!("I will create it.\n{}", marked(call)), "I will create it.", &[expected]);
    let two = "<tool_call>\n<invoke name=\"create_order\"><user_id>1</user_id></invoke>\n\
               <invoke name=\"create_order\"><user_id>2</user_id></invoke>\n</tool_call>";
    let calls = ["call_0 create_order {\"user_id\": 1}", "call_1 create_order {\"user_id\": 2}"];
    check_style(&style, &marked(two), "", &calls);
    // text beside elements, and an element that does not end
    let mixed = "<tool_call><invoke name=\"f\"><a>x<b>1</b></a><c>never</invoke></tool_call>";
    check_style(&style, &marked(mixed), "", &["call_0 f {\"a\": {\"b\": \"1\", \"$text\": \"x\"}}"]);
    for text in [marked("<tool_call><invoke name=\"f\"><a>1"), marked("<tool_call>no"), "]<]mini".to_owned()]
    {
        check_style(&style, &text, &text, &[]);
    }
}

#[test]
fn calls_of_step3_apertus_ernie_and_deepseek_v4() {
    let call = "<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name=\"get_weather\">\
                <steptml:parameter name=\"city\"> Tokyo </steptml:parameter><steptml:parameter name=\"days\">42\
                </steptml:parameter></steptml:invoke><｜tool_call_end｜>";
    // vLLM's test_step3_tool_parser.py has calls without their kind, and a separator between them
    let short = "<｜tool_sep｜><｜tool_call_begin｜><steptml:invoke name=\"now\"></steptml:invoke><｜tool_call_end｜>";
    let weather = "call_0 get_weather {\"city\": \"Tokyo\", \"days\": 42}";
    let section = |calls: &str| format!("<｜tool_calls_begin｜>{calls}<｜tool_calls_end｜>");
    check(P::Step3, &format!("Let me see.\n\n{}", section(call)), "Let me see.", &[weather]);
    check(P::Step3, &section(&format!("{call}{short}")), "", &[weather, "call_1 now {}"]);
    for text in [
        "<｜tool_calls_begin｜><｜tool_call_begin｜><steptml:invoke name=\"func\">",
        short.trim_start_matches("<｜tool_sep｜>"),
    ] {
        check(P::Step3, text, text, &[]);
    }
    let one = "<|tools_prefix|>[{\"get_weather\": {\"city\": \"Tokyo\"}}, {\"now\": {}}]<|tools_suffix|>";
    let calls = ["call_0 get_weather {\"city\": \"Tokyo\"}", "call_1 now {}"];
    check(P::Apertus, &format!("I will check. {one}"), "I will check.", &calls);
    check(P::Apertus, &format!("{one} Done."), "Done.", &calls);
    let none = "<|tools_prefix|>[{\"get_weather\": 1}]<|tools_suffix|>";
    check(P::Apertus, none, none, &[]);
    let ernie = Style::of("<response> <think> <tool_call>", true);
    let reply = "abc\n</think>\n\n\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\n";
    check_style(&ernie.after("<think>\n"), reply, "(abc)", &["call_0 now {}"]);
    assert_eq!("ernie45".parse(), Ok(P::Hermes));
    check(
        P::DeepSeekV4,
        "Ok.\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"a\" string=\"true\">\n杭州\n\
         </｜DSML｜parameter>\n<｜DSML｜parameter name=\"b\" string=\"false\">[5]</｜DSML｜parameter>\n</｜DSML｜invoke>\n\
         </｜DSML｜tool_calls>",
        "Ok.",
        &["call_0 f {\"a\": \"\\n杭州\\n\", \"b\": [5]}"],
    );
}

#[test]
fn messages_of_inkling() {
    let style = || style(P::Inkling);
    let think = "<|content_thinking|>Hm.\n<|end_message|>";
    let call =
        "<|content_invoke_tool_json|>{\"name\":\"get_weather\",\"args\":{\"city\":\"SF\"}}<|end_message|>";
    let said = "<|content_text|>Hi there. <|end_message|>";
    let weather = "call_0 get_weather {\"city\":\"SF\"}";
    let next = "<|message_model|>";
    check_style(&style(), &format!("{think}{next}{said}"), "(Hm.)Hi there. ", &[]);
    check_style(&style(), &format!("{next}{think}{next}get_weather{call}"), "(Hm.)", &[weather]);
    let two = call.replace("SF", "LA");
    check_style(
        &style(),
        &format!("{call}{next}{two}"),
        "",
        &[weather, "call_1 get_weather {\"city\":\"LA\"}"],
    );
    check_style(&style(), &format!("{call}{next}{said}"), "Hi there. ", &[weather]);
    check_style(&style(), &format!("{said}{next}{think}{next}{said}"), "(Hm.)Hi there. Hi there. ", &[]);
    check_style(&style(), "<|content_text|>Hi<|content_model_end_sampling|>", "Hi", &[]);
    check_style(&style().after("<|message_model|><|content_thinking|>"), "Hm.<|end_message|>", "(Hm.)", &[]);
    check_style(&style().after("<|message_model|><|content_text|>"), "Hi", "Hi", &[]);
    for text in ["No message at all", "<|content_invoke_tool_json|>no"] {
        check_style(&style(), text, text.trim_start_matches("<|content_invoke_tool_json|>"), &[]);
    }
    let none = Style::of("<|content_invoke_tool_json|>", false);
    check_style(&none, &format!("{think}{next}{said}"), "(Hm.)Hi there. ", &[]);
}

#[test]
fn channels_of_gpt_oss() {
    let harmony = || style(P::OpenAi);
    let analysis = "<|channel|>analysis<|message|>Think.<|end|>";
    let start = "<|start|>assistant";
    let said = format!("{analysis}{start}<|channel|>final<|message|>Hi there.");
    check_style(&harmony(), &said, "(Think.)Hi there.", &[]);
    check_style(&harmony(), "<|channel|>final <|constrain|>json<|message|>{\"a\": 1}", "{\"a\": 1}", &[]);
    let expected = ["call_0 get_weather {\"city\": \"Tokyo\"}"];
    for header in [
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.get_weather<|message|>",
        " to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>",
    ] {
        check_style(&harmony(), &format!("{analysis}{start}{header}{TOKYO}"), "(Think.)", &expected);
        check_style(&harmony(), &format!("{analysis}{start}{header}{TOKYO}<|call|>"), "(Think.)", &expected);
    }
    let preamble = "<|channel|>commentary<|message|>I will look.<|end|>";
    let two = "<|channel|>commentary to=functions.now<|message|><|call|>";
    let both = format!("{preamble}{start}{two}{start}{two}");
    check_style(&harmony(), &both, "I will look.", &["call_0 now {}", "call_1 now {}"]);
    let cut = "<|channel|>commentary to=functions.now<|message|>{\"a";
    check_style(&harmony(), cut, cut, &[]);
    check_style(&harmony(), "No channel at all", "No channel at all", &[]);
    let twice = format!("{analysis}{start}{analysis}{start}<|channel|>final<|message|>Hi");
    check_style(&harmony(), &twice, "(Think.\nThink.)Hi", &[]);
    let final_only = harmony().after("<|start|>assistant<|channel|>final<|message|>");
    check_style(&final_only, "{\"a\": 1}", "{\"a\": 1}", &[]);
    // without tools nothing is a call
    let none = Style::of("<|channel|> <|message|>", false);
    check_style(&none, &said, "(Think.)Hi there.", &[]);
}

#[test]
fn reasoning_of_every_family() {
    for (template, reply) in [
        ("<think>", "<think>\nhm\n</think>\n\nHi"),
        ("[THINK]", "[THINK]hm[/THINK]Hi"),
        ("<seed:think>", "<seed:think>hm</seed:think>Hi"),
        ("<|START_THINKING|>", "<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>Hi<|END_RESPONSE|>"),
        ("◁think▷", "◁think▷hm◁/think▷Hi"),
        ("<|channel>", "<|channel>thought\nhm\n<channel|>Hi"),
        ("Here is my thought process:", "Here is my thought process: hm\nHere is my response: Hi"),
        ("<think> <response>", "<think>hm</think><response>Hi</response>"),
    ] {
        check_style(&Style::of(template, true), reply, "(hm)Hi", &[]);
    }
}

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
