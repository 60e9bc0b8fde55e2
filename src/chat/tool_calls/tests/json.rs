//! Calls that are JSON, between marks or alone.

use super::{P, TOKYO, check, check_style, style};
use crate::chat::reply::Style;

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
