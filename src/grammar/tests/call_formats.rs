//! Calls in every format: what a grammar allows, the format's reader reads back as a call with arguments that are valid
//! under the schema; what is no such call, the grammar refuses. Marks are special tokens, or text.

use serde_json::{Value, json};

use super::super::calls::Mark;
use super::super::{Calls, Matcher, ReplyForm, ToolChoice};
use super::validator::valid;
use super::{Draws, Fixture, allowed};
use crate::chat::{Style, Tool, ToolCallParser as P};
use crate::error::{Error, Result};

/// A parameter of each kind.
fn clock() -> Value {
    json!({
        "type": "object",
        "properties": {
            "zone": { "$ref": "#/$defs/Zone" },
            "note": { "type": "string", "maxLength": 12 },
            "free": { "anyOf": [{ "type": "string" }, { "type": "null" }], "default": null },
            "code": { "type": "string", "pattern": "^[a-c]{2}-[0-9]$" },
            "day": { "type": "string", "format": "date" },
            "count": { "type": "integer", "minimum": 1, "maximum": 90 },
            "ratio": { "type": "number", "minimum": 0, "maximum": 2.5 },
            "flag": { "type": "boolean" },
            "maybe": { "type": ["integer", "null"], "minimum": 0, "maximum": 9 },
            "ids": { "type": "array", "items": { "type": "integer", "minimum": 0, "maximum": 9 }, "maxItems": 3 },
            "more": {
                "type": "object",
                "properties": {
                    "k": { "type": "boolean" },
                    "l": { "type": "array", "items": { "enum": ["x", "y z"] }, "minItems": 1, "maxItems": 2 },
                    "m": { "$ref": "#/$defs/Zone" }
                },
                "required": ["k"],
                "additionalProperties": false
            }
        },
        "required": ["zone", "count"],
        "additionalProperties": false,
        "$defs": { "Zone": { "type": "string", "enum": ["UTC", "CET"] } }
    })
}

/// Without lists and objects for formats that cannot hold them.
fn tools(parser: P) -> Vec<(Tool, Value)> {
    let mut clock = clock();
    if matches!(parser, P::FunctionGemma | P::MinimaxM3) {
        let properties = clock["properties"].as_object_mut().unwrap();
        properties.remove("ids");
        properties.remove("more");
    }
    let none = json!({ "type": "object", "properties": {}, "additionalProperties": false });
    [("clock", clock), ("now", none)]
        .into_iter()
        .map(|(name, parameters)| (Tool::new(name, "", parameters.clone()), parameters))
        .collect()
}

struct Format {
    parser: P,
    fixture: Fixture,
    special: Vec<&'static str>,
    style: Style,
}

impl Format {
    fn new(parser: P, special: bool) -> Self {
        let special = if special { parser.markers().to_vec() } else { Vec::new() };
        let ends = ["<|over|>"];
        let fixture = Fixture::with_specials(&[&special[..], &ends].concat(), |id| vec![id("<|over|>")]);
        let tools: Vec<Tool> = tools(parser).into_iter().map(|(tool, _)| tool).collect();
        let style = Style::of("", true).with_tools(&tools, Some(parser), |_| false);
        Self { parser, fixture, special, style }
    }

    fn start(&self, calls: &Calls) -> Result<Matcher> {
        let tools = tools(self.parser);
        self.start_with(calls, tools.iter().map(|(tool, _)| tool.definition()))
    }

    fn start_with<'a>(&self, calls: &Calls, definitions: impl Iterator<Item = &'a str>) -> Result<Matcher> {
        let reply = ReplyForm {
            parser: self.parser,
            mark: &|mark| self.fixture.grammars.mark(mark),
            answer: &[],
            reasoning: None,
            thinks: false,
            inside: false,
            answers: false,
        };
        self.fixture.compile(&calls.format(definitions, &reply)?)
    }

    /// The tokens of a text: marks where they are special, and bytes.
    fn spell(&self, text: &str) -> Vec<u32> {
        let (mut ids, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            let marks = self.special.iter().filter(|mark| rest.starts_with(**mark));
            match marks.max_by_key(|mark| mark.len()) {
                Some(mark) => {
                    let Mark::Special(id) = self.fixture.grammars.mark(mark) else { panic!("{mark}") };
                    ids.push(id);
                    rest = &rest[mark.len()..];
                }
                None => {
                    let len = rest.chars().next().map_or(0, char::len_utf8);
                    ids.extend(rest[..len].bytes().map(|byte| self.fixture.byte(byte)));
                    rest = &rest[len..];
                }
            }
        }
        ids
    }

    fn allows(&self, start: &Matcher, text: &str) -> bool {
        let mut matcher = start.fork();
        self.spell(text).into_iter().all(|id| matcher.accept(id).is_ok()) && matcher.is_complete().unwrap()
    }

    /// Draws a reply. What ends a text is too long to be drawn by chance, so it is tried now and then.
    fn walk(&self, start: &Matcher, draws: &mut Draws) -> String {
        const ENDS: [&str; 12] = [
            "\n</parameter>\n",
            "</parameter>\n",
            "</｜DSML｜parameter>\n",
            "</arg_value>",
            "<|close|>argument<|sep|>",
            "</steptml:parameter>",
            "]<]minimax[>[",
            "<escape>",
            "<|\"|>",
            "\"",
            "}",
            "]",
        ];
        let (mut matcher, mut text) = (start.fork(), Vec::new());
        for step in 0..3000 {
            if draws.below(3) == 0 || step > 100 {
                let end = ENDS[draws.below(ENDS.len())];
                let ids = self.spell(end);
                if matcher.validate(&ids).unwrap() == ids.len() {
                    ids.iter().for_each(|&id| matcher.accept(id).unwrap());
                    text.extend(end.as_bytes());
                    continue;
                }
            }
            let ids = allowed(&mut matcher);
            let over = ids.iter().copied().find(|id| self.fixture.ends.contains(id));
            if over.is_some() && (step > 100 || draws.below(3) == 0) {
                return String::from_utf8(text).unwrap();
            }
            let id = ids[draws.below(ids.len())];
            matcher.accept(id).unwrap();
            if self.fixture.ends.contains(&id) {
                return String::from_utf8(text).unwrap();
            }
            text.extend(match self.fixture.pieces.is_special(id) {
                true => self.fixture.pieces.name(id),
                false => self.fixture.pieces.bytes(id),
            });
        }
        panic!("{}: no end: {}", self.parser, String::from_utf8_lossy(&text));
    }
}

const ALL: [P; 33] = [
    P::Hermes,
    P::Mistral,
    P::Llama3Json,
    P::Llama4Pythonic,
    P::Pythonic,
    P::Qwen3Coder,
    P::SeedOss,
    P::Glm45,
    P::DeepSeekV3,
    P::DeepSeekV31,
    P::DeepSeekV32,
    P::KimiK2,
    P::Granite,
    P::Granite20bFc,
    P::Phi4MiniJson,
    P::Cohere,
    P::FunctionGemma,
    P::Gemma4,
    P::Gemma3Pythonic,
    P::MinimaxM2,
    P::Olmo3,
    P::Lfm2,
    P::Jamba,
    P::NemotronJson,
    P::Internlm,
    P::Longcat,
    P::OpenAi,
    P::DeepSeekV4,
    P::KimiK3,
    P::Step3,
    P::MinimaxM3,
    P::Apertus,
    P::Inkling,
];

/// Reads the reply, and checks each call; how many there are.
fn check(format: &Format, text: &str) -> usize {
    let parser = format.parser;
    let parsed = format.style.parse(text);
    assert_eq!(parsed.content.expose().trim(), "", "{parser}: {text}");
    for call in &parsed.tool_calls {
        let found = tools(parser)
            .into_iter()
            .find(|(tool, _)| tool.definition().contains(&format!("\"{}\"", call.name())));
        let (_, schema) = found.unwrap_or_else(|| panic!("{parser}: {text}"));
        let arguments: Value = serde_json::from_str(call.arguments()).unwrap();
        assert!(valid(&schema, &schema, &arguments), "{parser}: {arguments} of {text}");
        let text_of = |key: &str| arguments[key].as_str().map(str::to_owned);
        if let Some(code) = text_of("code") {
            assert!(code.len() == 4 && code.as_bytes()[2] == b'-', "{parser}: {code}");
        }
        if let Some(day) = text_of("day") {
            assert!(day.len() == 10 && day.as_bytes()[4] == b'-', "{parser}: {day}");
        }
    }
    parsed.tool_calls.len()
}

#[test]
fn what_is_drawn_is_read_back_as_valid_calls() {
    for parser in ALL {
        for special in [true, false] {
            let format = Format::new(parser, special);
            let mut draws = Draws(41);
            let several = format.start(&Calls { choice: ToolChoice::Required, strict: true, single: false });
            let several = several.unwrap_or_else(|error| panic!("{parser} {special}: {error}"));
            let calls = Calls { choice: ToolChoice::function("clock"), strict: true, single: true };
            let one = format.start(&calls).unwrap();
            let mut most = 0;
            for _ in 0..8 {
                let text = format.walk(&several, &mut draws);
                let count = check(&format, &text);
                assert!(count > 0, "{parser} {special}: {text}");
                most = most.max(count);
                let text = format.walk(&one, &mut draws);
                assert_eq!(check(&format, &text), 1, "{parser} {special}: {text}");
                // another tool, and a value that the schema does not have
                assert!(format.allows(&one, &text), "{parser} {special}: {text}");
                let other = text.replacen("clock", "watch", 1);
                assert!(other != text && !format.allows(&several, &other), "{parser} {special}: {other}");
                let zone = if text.contains("UTC") { "UTC" } else { "CET" };
                let other = text.replacen(zone, "EST", 1);
                assert!(other != text && !format.allows(&one, &other), "{parser} {special}: {other}");
                let twice = format!("{text}{text}");
                assert!(!format.allows(&one, &twice), "{parser} {special}: {twice}");
            }
            // a second call is too long to be begun by chance where its marks are text
            for _ in 0..40 {
                if most > 1 || !special || parser == P::OpenAi {
                    break;
                }
                most = most.max(check(&format, &format.walk(&several, &mut draws)));
            }
            assert!(most > 1 || !special || parser == P::OpenAi, "{parser}: never more than {most}");
            for text in ["", "Hello there.", "<tool_call>", "{}", "[]"] {
                assert!(!format.allows(&several, text), "{parser} {special}: {text}");
            }
        }
    }
}

#[test]
fn a_reply_may_say_something_or_call() {
    for parser in ALL {
        for special in [true, false] {
            let format = Format::new(parser, special);
            let mut draws = Draws(43);
            let free = Calls { choice: ToolChoice::Auto, strict: true, single: false };
            let free = format.start(&free).unwrap_or_else(|error| panic!("{parser} {special}: {error}"));
            let once = format.start(&Calls { choice: ToolChoice::Auto, strict: true, single: true }).unwrap();
            let calls = Calls { choice: ToolChoice::function("clock"), strict: true, single: true };
            let one = format.start(&calls).unwrap();
            let bare =
                matches!(parser, P::Llama3Json | P::Llama4Pythonic | P::Pythonic | P::OpenAi | P::Inkling);
            let said = "Well: a < b, [1] and {\"a\": 1} or <tag>.";
            let answer = |text: &str| match parser {
                P::OpenAi => format!("<|channel|>final<|message|>{text}"),
                P::Inkling => format!("<|content_text|>{text}"),
                _ => text.to_owned(),
            };
            for start in [&free, &once] {
                assert!(format.allows(start, &answer(said)), "{parser} {special}");
                assert!(format.allows(start, &answer("")), "{parser} {special}");
            }
            for _ in 0..2 {
                let call = format.walk(&one, &mut draws);
                // marks of answers, which this reply does not have, may stand before calls that are demanded
                let call = call.strip_prefix("<|close|>response<|sep|>").unwrap_or(&call).to_owned();
                for start in [&free, &once] {
                    assert!(format.allows(start, &call), "{parser} {special}: {call}");
                    // behind text, brackets without a mark are no call
                    let text = matches!(parser, P::Llama4Pythonic | P::Pythonic);
                    let behind = format!("{said}\n{call}");
                    assert_eq!(format.allows(start, &behind), !bare || text, "{parser} {special}: {behind}");
                    let zone = if call.contains("UTC") { "UTC" } else { "CET" };
                    let wrong = call.replacen(zone, "EST", 1);
                    assert!(!format.allows(start, &wrong), "{parser} {special}: {wrong}");
                    let wrong = format!("{said}\n{wrong}");
                    assert_eq!(format.allows(start, &wrong), text, "{parser} {special}: {wrong}");
                    assert!(!text || format.style.parse(&wrong).tool_calls.is_empty(), "{parser}: {wrong}");
                }
                if !bare {
                    let parsed = format.style.parse(&format!("{said}\n{call}"));
                    assert_eq!(parsed.content.expose().trim(), said, "{parser} {special}: {call}");
                    assert_eq!(parsed.tool_calls.len(), 1, "{parser} {special}: {call}");
                }
            }
        }
    }
}

#[test]
fn channels_hold_thoughts_before_calls() {
    let format = Format::new(P::OpenAi, true);
    let tools = tools(P::OpenAi);
    let start = |choice, thinks, inside, answers| {
        let calls = Calls { choice, strict: true, single: false };
        let mark = |mark: &str| format.fixture.grammars.mark(mark);
        let reply = ReplyForm {
            parser: P::OpenAi,
            mark: &mark,
            answer: &[],
            reasoning: None,
            thinks,
            inside,
            answers,
        };
        format.fixture.compile(&calls.format(tools.iter().map(|(tool, _)| tool.definition()), &reply)?)
    };
    let call = "<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}<|call|>";
    let thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant";
    let aside = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant";
    let said = "<|channel|>final<|message|>It is noon.";
    let must = start(ToolChoice::Required, true, false, false).unwrap();
    let may = start(ToolChoice::Auto, true, false, false).unwrap();
    let quick = start(ToolChoice::Required, false, false, false).unwrap();
    let inside = start(ToolChoice::Required, true, true, false).unwrap();
    let answers = start(ToolChoice::Auto, true, false, true).unwrap();
    for (text, in_must, in_may, in_quick, in_inside) in [
        (call.to_owned(), true, true, true, false),
        (format!("{thought}{call}"), true, true, false, false),
        (format!("{thought}{aside}{call}"), true, true, false, false),
        (format!("Hm.<|end|><|start|>assistant{call}"), false, false, false, true),
        (format!("{thought}{said}"), false, true, false, false),
        (said.to_owned(), false, true, false, false),
        (thought.to_owned(), false, false, false, false),
        (format!("{thought}{}", call.replace("now", "later")), false, false, false, false),
    ] {
        assert_eq!(format.allows(&must, &text), in_must, "{text}");
        assert_eq!(format.allows(&may, &text), in_may, "{text}");
        assert_eq!(format.allows(&quick, &text), in_quick, "{text}");
        assert_eq!(format.allows(&inside, &text), in_inside, "{text}");
    }
    assert!(format.allows(&answers, "It is noon.") && !format.allows(&answers, call));
    assert!(matches!(
        start(ToolChoice::Required, true, false, true),
        Err(Error::Request { field: "tool_choice", .. })
    ));
    // the token that ends a call ends the reply
    let names = format.special.clone();
    let fixture = Fixture::with_specials(&names, |id| vec![id("<|call|>")]);
    let format = Format { fixture, ..format };
    let calls = Calls { choice: ToolChoice::Required, strict: true, single: false };
    let ends = format.start(&calls).unwrap();
    let mut matcher = ends.fork();
    let without = call.strip_suffix("<|call|>").unwrap();
    assert!(format.spell(without).into_iter().all(|id| matcher.accept(id).is_ok()));
    assert!(matcher.is_complete().unwrap() && matcher.accept(format.fixture.ends[0]).is_ok());
}

#[test]
fn reasoning_whose_marks_are_text_stands_before_calls() {
    let format = Format::new(P::Qwen3Coder, false);
    let tools = tools(P::Qwen3Coder);
    let start = |choice, inside| {
        let calls = Calls { choice, strict: true, single: false };
        let reply = ReplyForm {
            parser: P::Qwen3Coder,
            mark: &|_| Mark::Text,
            answer: &[],
            reasoning: Some((&["<think>"], "</think>")),
            thinks: true,
            inside,
            answers: false,
        };
        let definitions = tools.iter().map(|(tool, _)| tool.definition());
        format.fixture.compile(&calls.format(definitions, &reply).unwrap()).unwrap()
    };
    let call = "<tool_call>\n<function=now>\n</function>\n</tool_call>";
    let (must, inside) = (start(ToolChoice::Required, false), start(ToolChoice::Required, true));
    let may = start(ToolChoice::Auto, false);
    for (text, in_must, in_inside, in_may) in [
        (call.to_owned(), true, false, true),
        (format!("<think>\nHm <b>.\n</think>\n\n{call}"), true, true, true),
        (format!("Hm <b>.\n</think>\n\n{call}"), false, true, true),
        (format!("<think>Hm.</think>{}", call.replace("now", "later")), false, false, false),
        ("<think>Hm.</think>\n\nIt is noon.".to_owned(), false, false, true),
        ("<think>Hm.".to_owned(), false, false, true),
    ] {
        assert_eq!(format.allows(&must, &text), in_must, "{text}");
        assert_eq!(format.allows(&inside, &text), in_inside, "{text}");
        assert_eq!(format.allows(&may, &text), in_may, "{text}");
    }
}

#[test]
fn what_a_format_cannot_hold_is_refused_by_name() {
    let refused = |parser: P, name: &str, parameters: Value, strict| {
        let format = Format::new(parser, false);
        let tool = Tool::new(name, "", parameters);
        let calls = Calls { choice: ToolChoice::Required, strict, single: false };
        match format.start_with(&calls, [tool.definition()].into_iter()) {
            Ok(_) => None,
            Err(Error::Request { field, expected, .. }) => Some((field, expected.to_string())),
            Err(other) => panic!("{other}"),
        }
    };
    let with = |schema: Value| json!({ "type": "object", "properties": { "a": schema } });
    for (parser, parameters, keyword) in [
        (P::Qwen3Coder, with(json!({ "type": "string", "format": "uri" })), "format"),
        (P::Qwen3Coder, with(json!({ "type": "string", "not": { "const": "x" } })), "not"),
        (
            P::Glm45,
            json!({ "type": "object", "properties": { "a": {} }, "minProperties": 1 }),
            "minProperties",
        ),
        (P::FunctionGemma, with(json!({ "type": "array" })), "items"),
        (P::Step3, json!({ "type": "object", "properties": { "a": {} }, "anyOf": [{}] }), "anyOf"),
        (P::Gemma4, with(json!({ "type": "array", "uniqueItems": true })), "uniqueItems"),
    ] {
        let (field, expected) = refused(parser, "f", parameters.clone(), true).unwrap();
        assert_eq!(field, "strict_tools", "{parser} {parameters}");
        assert!(expected.contains(&format!("`{keyword}`")), "{parser} {parameters}: {expected}");
        assert_eq!(refused(parser, "f", parameters.clone(), false), None, "{parser} {parameters}");
    }
    for (parser, name) in
        [(P::Pythonic, "1f"), (P::KimiK2, "a.b"), (P::Qwen3Coder, "a>b"), (P::OpenAi, "a b")]
    {
        let (field, expected) = refused(parser, name, json!({ "type": "object" }), false).unwrap();
        assert_eq!(field, "tools", "{parser} {name}");
        assert!(!expected.contains(name), "{expected}");
    }
    let list = with(json!({ "type": "array" }));
    assert_eq!(refused(P::MinimaxM3, "f", list, false).unwrap().0, "tools");
    let key = json!({ "type": "object", "properties": { "a<b": { "type": "string" } } });
    assert_eq!(refused(P::Qwen3Coder, "f", key, true).unwrap().0, "tools");
    // what does not hold is named with the reply
    let format = Format::new(P::Qwen3Coder, false);
    let tool = Tool::new("f", "", with(json!({ "type": "string", "format": "uri" })));
    let calls = Calls { choice: ToolChoice::Required, strict: false, single: false };
    let reply = ReplyForm {
        parser: P::Qwen3Coder,
        mark: &|_| Mark::Text,
        answer: &[],
        reasoning: None,
        thinks: false,
        inside: false,
        answers: false,
    };
    let begun = format.fixture.grammars.compile(&calls.format([tool.definition()], &reply).unwrap(), 1);
    assert_eq!(begun.unwrap().unwrap().not_enforced, ["format"]);
}
