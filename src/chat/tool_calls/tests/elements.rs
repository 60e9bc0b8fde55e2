//! Calls whose parameters are elements.

use super::{P, check, check_style, tools};
use crate::chat::Tool;
use crate::chat::reply::Style;

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
