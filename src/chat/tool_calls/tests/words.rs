//! Calls in a language of a model's own.

use super::{P, check};

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
