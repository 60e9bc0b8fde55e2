//! What stands beside calls: reasoning, channels, citations.

use super::{P, TOKYO, check_style, style};
use crate::chat::reply::Style;

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
