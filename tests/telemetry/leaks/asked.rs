//! Requests through whose every field goes something that must not come out.

use amnesic::{
    Dry, Message, Priority, Request, ResponseFormat, Role, Speculation, Tool, ToolCall, assistant, system,
    tool, user,
};

use super::{BIAS_IDS, PROMPT_IDS, STOP_IDS, ids};
use crate::needles::word;

/// A request through whose every field goes something that must not come out.
pub(super) type Ask = Box<dyn Fn() -> Request>;

/// Requests that are right. `seed` is a number that may be told, so it is the same everywhere.
pub(super) fn right() -> Vec<Ask> {
    let short = |request: Request| request.max_tokens(2).seed(7);
    let weather = || {
        let parameters = serde_json::json!({
            "type": "object", "properties": { word(3): { "enum": [word(4)] } }, "description": word(5),
        });
        Tool::new(word(6), word(7), parameters)
    };
    let messages = || {
        let call = || ToolCall::new(word(8), word(9), format!("{{\"{}\": \"{}\"}}", word(10), word(11)));
        [
            system(word(12)),
            user(word(13)).with_name(word(14)),
            assistant(word(15)).with_reasoning(word(16)).with_tool_calls(vec![call()]),
            tool(word(8), word(17)),
            user(word(18)),
        ]
    };
    vec![
        Box::new(move || short(Request::prompt(word(0)).stop(word(1)).stop(word(2)))),
        Box::new(move || {
            let biased = ids(BIAS_IDS)
                .into_iter()
                .fold(Request::tokens(ids(PROMPT_IDS)), |request, id| request.logit_bias(id, 1.25));
            let stops = ids(STOP_IDS).into_iter().fold(biased, Request::stop_token);
            short(stops.temperature(1.0).logprobs(3).prompt_logprobs(3))
        }),
        Box::new(move || short(Request::chat(messages()).tools([weather()]))),
        Box::new(move || {
            let chat = Request::chat([user(word(18))]);
            short(chat.template_variable("mood", word(19)).template_variable(word(20), 1))
        }),
        Box::new(move || short(Request::prompt(word(0)).dry(Dry::default()).dry_breakers([word(21)]))),
        Box::new(move || {
            let guessing = Speculation::PromptLookup { ngram: 2, tokens: 2 };
            short(Request::tokens(ids(PROMPT_IDS)).speculate(guessing).priority(Priority::High).n(2))
        }),
        // replies that are known
        Box::new(move || {
            short(Request::prompt("x")).max_tokens(99).response_format(ResponseFormat::regex(word(22)))
        }),
        Box::new(move || {
            let schema = serde_json::json!({ "enum": [word(23)], "description": word(24) });
            short(Request::prompt("x")).max_tokens(99).response_format(ResponseFormat::json_schema(schema))
        }),
        Box::new(move || {
            let grammar = ResponseFormat::lark(format!("start: \"{}\"", word(25)));
            short(Request::prompt("x")).max_tokens(99).response_format(grammar)
        }),
    ]
}

/// Requests that are wrong, each with the kind of its error.
pub(super) fn wrong() -> Vec<(&'static str, Ask)> {
    let ask = || Request::prompt(word(0)).max_tokens(2).seed(7);
    let with =
        move |format: fn() -> ResponseFormat| -> Ask { Box::new(move || ask().response_format(format())) };
    let chat = |message: fn() -> Message| -> Ask {
        Box::new(move || Request::chat([message()]).max_tokens(2).seed(7).template_variable("mood", word(19)))
    };
    vec![
        ("request", Box::new(move || ask().temperature(9.0))),
        ("request", Box::new(move || ask().stop(word(1).repeat(99)))),
        ("request", Box::new(move || ask().dry_breakers([""]).stop(word(1)))),
        ("request", Box::new(move || ask().tools([Tool::new(word(6), word(7), serde_json::json!({}))]))),
        ("request", Box::new(move || ask().logit_bias(ids(BIAS_IDS)[0], 777.0))),
        ("request", Box::new(move || ask().logit_bias(u32::MAX - 123_456, 1.0))),
        ("request", Box::new(move || Request::tokens([ids(PROMPT_IDS)[0], 999_983]).seed(7))),
        ("request", Box::new(move || ask().speculate(Speculation::Draft { tokens: 2 }))),
        ("request", Box::new(move || Request::prompt("").stop(word(1)))),
        ("context_length", Box::new(move || Request::prompt(word(0).repeat(900)).seed(7))),
        ("context_length", Box::new(move || Request::tokens(ids(PROMPT_IDS).repeat(900)).seed(7))),
        ("request", Box::new(move || Request::prompt(word(0).repeat(90_000)).seed(7))),
        ("request", Box::new(move || Request::chat([user(word(18))]).chat_template(word(26)).seed(7))),
        ("request", chat(|| Message::new(Role::Developer, word(27)))),
        ("request", chat(|| Message::new(Role::System, word(27)).with_name(word(14)))),
        (
            "request",
            chat(|| {
                assistant("")
                    .with_tool_calls(vec![ToolCall::new(word(8), word(9), word(28)).with_object_arguments()])
            }),
        ),
        ("request", with(|| ResponseFormat::regex(format!("({}", word(29))))),
        ("request", with(|| ResponseFormat::regex(format!("{}(?=x)", word(29))))),
        ("request", with(|| ResponseFormat::lark(format!("start: {} nowhere", word(30))))),
        ("request", with(|| ResponseFormat::lark(format!("begin: \"{}\"", word(30))))),
        ("request", with(|| ResponseFormat::json_schema(serde_json::json!({ "type": word(31) })))),
        (
            "request",
            with(|| ResponseFormat::json_schema(serde_json::json!({ word(31): 1, "$ref": word(32) }))),
        ),
        (
            "request",
            with(|| ResponseFormat::json_schema(serde_json::json!({ "pattern": format!("({}", word(33)) }))),
        ),
        (
            "no_token",
            Box::new(move || {
                let one = ResponseFormat::regex("a");
                (0..704).fold(ask().response_format(one).stop(word(1)), |request, id| {
                    request.logit_bias(id, -100.0)
                })
            }),
        ),
    ]
}
