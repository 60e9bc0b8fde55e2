//! Templates against transformers, on cases that `tools/make_chat_fixtures.py` wrote, and against those who mean harm.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::*;
use crate::error::{Error, Result};

fn checkpoint(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let file = folder.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }
    folder
}

fn templates(source: &str) -> Templates {
    Templates::open(checkpoint(&[("chat_template.jinja", source)]).path()).unwrap().unwrap()
}

fn render_with(templates: &Templates, messages: &[Message], tools: &[Tool]) -> Result<String> {
    let variables = Map::new();
    let input =
        ChatInput { messages, tools, template: None, add_generation_prompt: true, variables: &variables };
    templates.render(&input, UNIX_EPOCH).map(|prompt| prompt.into_exposed())
}

fn render(source: &str, messages: &[Message]) -> Result<String> {
    render_with(&templates(source), messages, &[])
}

fn message(fields: &Value) -> Message {
    comparison::message(fields).expect("what a request can bring")
}

#[test]
fn prompts_are_those_of_transformers() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat/cases.json");
    let fixture: Value = serde_json::from_str(&std::fs::read_to_string(fixture).unwrap()).unwrap();
    let now = UNIX_EPOCH + Duration::from_secs(fixture["now"].as_u64().unwrap());
    let tool = |tool: &Value| {
        let function = &tool["function"];
        let text = |name: &str| function[name].as_str().unwrap();
        Tool::new(text("name"), text("description"), function["parameters"].clone())
    };
    let tools: Vec<_> = fixture["tools"].as_array().unwrap().iter().map(tool).collect();
    let mut wrong = 0;
    let cases = fixture["cases"].as_array().unwrap();
    for (index, case) in cases.iter().enumerate() {
        let name = case["template"].as_str().unwrap();
        let mut config = fixture["special"].clone();
        config["chat_template"] = fixture["templates"][name].clone();
        let folder = checkpoint(&[("tokenizer_config.json", &config.to_string())]);
        let templates = Templates::open(folder.path()).unwrap().unwrap();
        let messages: Vec<_> = case["messages"].as_array().unwrap().iter().map(message).collect();
        let input = ChatInput {
            messages: &messages,
            tools: if case["tools"] == true { &tools } else { &[] },
            template: None,
            add_generation_prompt: case["add_generation_prompt"] == true,
            variables: case["variables"].as_object().unwrap(),
        };
        let rendered = templates.render(&input, now);
        let same = match (&rendered, case["text"].as_str()) {
            (Ok(prompt), Some(expected)) => prompt.expose() == expected,
            (Err(Error::Request { field: "messages", .. }), None) => true,
            _ => false,
        };
        if !same {
            wrong += 1;
            let rendered = rendered.map(|prompt| prompt.into_exposed());
            println!("case {index}, {name}:\n{rendered:#?}\n{:#?}", case["text"]);
        }
    }
    assert!(cases.len() > 150);
    assert_eq!(wrong, 0, "of {} cases", cases.len());
}

#[test]
fn templates_are_found_where_transformers_looks() {
    let show = |files: &[(&str, &str)], tools: &[Tool]| {
        let templates = Templates::open(checkpoint(files).path()).unwrap().unwrap();
        render_with(&templates, &[user("")], tools)
    };
    let tool = [Tool::new("f", "", json!({}))];
    let named = r#"{"chat_template": [{"name": "default", "template": "D{{ bos_token }}"},
        {"name": "tool_use", "template": "T"}], "bos_token": {"content": "<b>"}, "eos_token": null}"#;
    let config = ("tokenizer_config.json", named);
    assert_eq!(show(&[config], &[]).unwrap(), "D<b>");
    assert_eq!(show(&[config], &tool).unwrap(), "T");
    let map = ("special_tokens_map.json", r#"{"bos_token": "no", "eos_token": {"content": "<e>"}}"#);
    let file = ("chat_template.jinja", "F{{ bos_token }}{{ eos_token }}");
    assert_eq!(show(&[config, map, file], &tool).unwrap(), "F<b><e>");
    let further = ("additional_chat_templates/tool_use.jinja", "A");
    assert_eq!(show(&[file, further], &tool).unwrap(), "A");
    assert_eq!(show(&[file, further], &[]).unwrap(), "F");

    assert!(Templates::open(checkpoint(&[]).path()).unwrap().is_none());
    assert!(Templates::open(checkpoint(&[("tokenizer_config.json", "{}")]).path()).unwrap().is_none());
    let nameless = show(&[further], &[]).unwrap_err().to_string();
    assert!(nameless.contains("must be a template named `default`"), "{nameless}");
    for wrong in ["{\"chat_template\": 1}", "{\"chat_template\": [{\"name\": \"a\"}]}", "[]", "{"] {
        let error = Templates::open(checkpoint(&[("tokenizer_config.json", wrong)]).path()).unwrap_err();
        assert!(error.to_string().contains("tokenizer_config.json: "), "{error}");
    }
    let long = " ".repeat((256 << 10) + 1);
    let error = Templates::open(checkpoint(&[("chat_template.jinja", &long)]).path()).unwrap_err();
    assert!(error.to_string().ends_with("must be at most 262144 bytes long"), "{error}");
}

#[test]
fn a_template_that_does_not_compile_is_an_error_when_it_is_asked_for() {
    let error = render("\n{% for %}", &[user("canary")]).unwrap_err().to_string();
    assert!(
        error.ends_with("chat_template.jinja: must be a Jinja template that compiles (line 2)"),
        "{error}"
    );
}

#[test]
fn a_request_can_name_a_template_and_give_variables() {
    let named = r#"{"chat_template": [{"name": "default", "template": "D"},
        {"name": "rag", "template": "{{ name }}{{ messages[0].content }}"}]}"#;
    let templates = Templates::open(checkpoint(&[("tokenizer_config.json", named)]).path()).unwrap().unwrap();
    let variables = json!({"name": "x", "messages": "kept out"});
    let messages = [user("hello")];
    let mut input = ChatInput {
        messages: &messages,
        tools: &[],
        template: Some("rag"),
        add_generation_prompt: false,
        variables: variables.as_object().unwrap(),
    };
    assert_eq!(templates.render(&input, UNIX_EPOCH).unwrap().expose(), "xhello");
    input.template = Some("canary");
    let error = templates.render(&input, UNIX_EPOCH).unwrap_err().to_string();
    assert_eq!(error, "request: `chat_template` must be one of the checkpoint's: default, rag");
}

#[test]
fn errors_repeat_the_template_never_the_messages() {
    let says = |source: &str| render(source, &[user("canary")]).unwrap_err().to_string();
    let known = "request: `messages` must be what the chat template accepts; it says: No!";
    assert_eq!(says("{{ raise_exception('No!') }}"), known);
    let unknown = "request: `messages` must be what the chat template accepts";
    assert_eq!(says("{{ raise_exception('No: ' + messages[0].content) }}"), unknown);
    assert_eq!(says(&format!("{{{{ raise_exception('{}') }}}}", "long".repeat(60))), unknown);
    for source in [
        "{{ messages[0].content() }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[0].content.nothing() }}",
        "{{ [1] | map(messages[0].content) | list }}",
        "{{ [1] | select(messages[0].content) | list }}",
        "{{ messages[0].content | abs }}",
        "{{ {}[messages[0].content].x }}",
        "{% include messages[0].content %}",
    ] {
        let error = render(source, &[user("canary")]).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("canary"), "{error}");
    }
}

#[test]
fn what_is_not_there_is_named() {
    let says = |source: &str| render(source, &[user("")]).unwrap_err().to_string();
    for (source, expected) in [
        ("{{ 'x' | urlize }}", "(line 1: unknown filter `urlize`)"),
        ("\n{{ 'x' is odder }}", "(line 2: unknown test `odder`)"),
        ("{{ lipsum() }}", "(line 1: unknown function `lipsum`)"),
        ("{{ [].append(1) }}", "(line 1: unknown method `append`)"),
    ] {
        assert!(says(source).ends_with(expected), "{}", says(source));
    }
    for (source, expected) in [
        ("{% include 'x' %}", "a Jinja template without `include` (line 1)"),
        ("\n{% trans %}x{% endtrans %}", "a Jinja template without `trans` (line 2)"),
        ("{{ '\\N{DASH}' }}", "a Jinja template without `\\N` (line 1)"),
        (
            "{% for x in [1] %}{% with %}{% break %}{% endwith %}{% endfor %}",
            "a Jinja template without `break in with` (line 1)",
        ),
    ] {
        assert!(says(source).ends_with(expected), "{}", says(source));
    }
}

#[test]
fn inputs_are_bounded() {
    let source = "{{ messages | length }} {{ (tools or []) | length }}";
    let count = |count: usize| render(source, &(0..count).map(|_| user("")).collect::<Vec<_>>());
    assert_eq!(count(10_000).unwrap(), "10000 0");
    for wrong in [0, 10_001] {
        let error = count(wrong).unwrap_err().to_string();
        assert_eq!(error, "request: `messages` must be 1 to 10000 messages");
    }
    let large = |bytes: usize| render(source, &[user("x".repeat(bytes - 5)), assistant("12345")]);
    assert!(large(8 << 20).is_ok());
    assert!(large((8 << 20) + 1).unwrap_err().to_string().contains("at most 8388608 bytes"));

    let templates = templates(source);
    let tools = |count: usize, bytes: usize| {
        let tools: Vec<_> = (0..count).map(|_| Tool::new("f", "x".repeat(bytes), json!({}))).collect();
        render_with(&templates, &[user("")], &tools)
    };
    assert_eq!(tools(128, 1).unwrap(), "1 128");
    assert!(tools(129, 1).unwrap_err().to_string().contains("`tools` must be at most 128 tools"));
    assert!(tools(2, 512 << 10).unwrap_err().to_string().contains("`tools` must be at most 1048576 bytes"));
}

#[test]
fn what_a_template_does_is_bounded() {
    let deep = format!("{}1{}", "(".repeat(100_000), ")".repeat(100_000));
    let lists = format!("{{{{ {}{} }}}}", "[".repeat(100_000), "]".repeat(100_000));
    let blocks = "{% if 1 %}".repeat(20_000);
    for source in [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{{ 'x' * 100000 }}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{{ range(1000000000) | list }}",
        "{{ 'x' * 1000000000000 }}",
        "{{ ([1] * 1000000000000) | list }}",
        "{{ [1] * 1000000000000 }}",
        "{{ ([1] * 1000000000000) | tojson }}",
        "{{ ([1] * 1000000000000) | join }}",
        "{{ ([1] * 1000000000000) | sort }}",
        "{{ ([1] * 1000000000000) | max }}",
        "{{ ([1] * 1000000000000) | unique }}",
        "{{ ([1] * 1000000000000) | map('string') | list }}",
        "{{ ','.join([1] * 1000000000000) }}",
        "{{ (['x' * 99999] * 9999) | join }}",
        "{{ 'x' * 99999 | replace('x', 'x' * 99999) }}",
        "{{ ('x' * 99999).replace('', 'x' * 99999) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, 999999999) }}",
        "{{ ('{0}' * 99999).format('x' * 99999) }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ '\\n' * 99999 | indent(99999) }}",
        "{{ strftime_now('%c' * 49999999) }}",
        "{{ 1 | tojson(indent=99999999999) }}",
        &format!("{{{{ {deep} }}}}"),
        &lists,
        &blocks,
    ] {
        let error = render(source, &[user("")]);
        assert!(error.is_err(), "{}", &source[..source.len().min(80)]);
    }
    assert_eq!(render("{{ 'aa'.count('') }}", &[user("")]).unwrap(), "3");
}

/// What minijinja makes of a template as it stands, and of what it is rewritten to.
fn both(source: &str) -> [std::result::Result<String, minijinja::ErrorKind>; 2] {
    let environment = python::environment();
    let render = |source: &str| {
        let variables =
            minijinja::context! { text => "a b", list => [3, 1, 2], map => json!({"k": [1], "z": "y"}) };
        environment.render_str(source, variables).map_err(|error| error.kind())
    };
    let rewritten = metered::rewrite(source).map(|metered| render(&metered.text));
    [render(source), rewritten.unwrap_or(Err(minijinja::ErrorKind::SyntaxError))]
}

/// White space is trimmed around tags, and announcements are put between: drawn at random, the prompts are equal.
#[test]
fn a_rewritten_template_keeps_its_white_space() {
    const PARTS: [&str; 23] = [
        "\n",
        "  ",
        "\t",
        "x",
        "{",
        "{ ",
        "}",
        "%",
        "é",
        "-",
        "some words that are longer than is short\n    ",
        "{{ 1 }}",
        "{{- 'a' -}}",
        "{{ text ~ 'b' }}",
        "{% if 1 %}",
        "{%- if 1 + 1 -%}",
        "{%+ if 1 +%}",
        "{# c #}",
        "{#- c -#}",
        "{% raw %} {{ {% endraw %}",
        "{%- raw -%}\n x\n{%- endraw -%}",
        "                                        ",
        "\n\n                                         é",
    ];
    let mut seed = 7_u64;
    let mut draw = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    let mut rendered = 0;
    for _ in 0..5000 {
        let mut source = String::new();
        let mut open = 0;
        for _ in 0..1 + draw(12) {
            let part = PARTS[draw(PARTS.len())];
            open += usize::from(part.contains("if 1"));
            source += part;
            if open > 0 && draw(3) == 0 {
                source += ["{% endif %}", "{%- endif -%}", "{%+ endif %}"][draw(3)];
                open -= 1;
            }
        }
        source += &"{% endif %}".repeat(open);
        let [expected, found] = both(&source);
        rendered += usize::from(expected.is_ok());
        assert_eq!(expected, found, "{source:?}");
    }
    assert!(rendered > 4000, "{rendered} of 5000 are templates");
}

#[test]
fn errors_name_the_line_of_the_template_as_it_was_written() {
    let source =
        "{{ 'a'\n ~ 'b' }}\nsome words that are longer than is short\n{% set x = [1,\n 2] %}\n{{ x.y.z }}";
    let error = render(source, &[user("")]).unwrap_err().to_string();
    assert!(error.contains("(line 6: undefined value)"), "{error}");
    let error = render("\n\n{{ 1 + }}", &[user("")]).unwrap_err().to_string();
    assert!(error.ends_with("that compiles (line 3)"), "{error}");
    let error =
        render(&format!("\n{{{{ 1{} }}}}", " + 1".repeat(2000)), &[user("")]).unwrap_err().to_string();
    assert!(error.ends_with("must be a Jinja template without so long an expression (line 2)"), "{error}");
}

#[path = "../../tests/hostile_checkpoints/nests.rs"]
mod nests;

/// A template recurses no deeper than the stack of the thread that renders it is cleaned. It cannot be deeper than that
/// thread's stack then either, which would end the process.
#[test]
fn templates_fit_the_stack_that_is_cleaned() {
    let run = || {
        for (name, nest) in nests::NESTS {
            for depth in nests::depths(*nest) {
                let rendered = render(&(nest(depth) + "x"), &[user("text")]);
                assert!(depth > 10 || rendered.is_ok_and(|text| text.ends_with('x')), "{name}, {depth} deep");
            }
        }
        let recursive = [
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            "{% macro m() %}{% for a in [1] %}{% set b %}{{ m() }}{% endset %}{% endfor %}{% endmacro %}{{ m() }}",
            "{% macro m() %}{{ caller() if caller }}{% call m() %}1{% endcall %}{% endmacro %}{{ m() }}",
            "{% block a %}{{ self.a() }}{% endblock %}",
        ];
        assert!(recursive.iter().all(|source| render(source, &[user("text")]).is_err()));
    };
    let thread = std::thread::Builder::new().stack_size(crate::memory::stack::DEEP_BYTES).spawn(run);
    thread.unwrap().join().unwrap();
}

#[test]
fn macros_may_nest_as_schemas_of_tools_do() {
    let source = "{%- macro rec(n) -%}{%- if n > 0 -%}{{ n }}{% for x in [1] %}{{ rec(n-1) }}{% endfor %}{%- endif -%}{%- endmacro -%}{{ rec(20) }}";
    let expected: String = (1..=20).rev().map(|n| n.to_string()).collect();
    assert_eq!(render(source, &[user("")]).unwrap(), expected);
}

#[test]
fn prompts_may_be_long_but_not_too_long() {
    let source = "{% for i in range(count) %}{{ messages[0].content }}{% endfor %}";
    let templates = templates(source);
    let messages = [user("x".repeat(1 << 20))];
    let render = |count: usize| {
        let variables = json!({ "count": count });
        let variables = variables.as_object().unwrap();
        let input = ChatInput {
            messages: &messages,
            tools: &[],
            template: None,
            add_generation_prompt: true,
            variables,
        };
        templates.render(&input, UNIX_EPOCH).map(|prompt| prompt.expose().len())
    };
    assert_eq!(render(64).unwrap(), 64 << 20);
    let error = render(65).unwrap_err().to_string();
    assert_eq!(error, "request: `messages` must be rendered to at most 67108864 bytes");
}

#[test]
fn debug_prints_no_content() {
    let templates = templates("canary");
    let variables = json!({"canary": "canary"});
    let input = ChatInput {
        messages: &[user("canary")],
        tools: &[],
        template: Some("canary"),
        add_generation_prompt: true,
        variables: variables.as_object().unwrap(),
    };
    let printed = format!("{templates:?} {input:?}");
    assert!(!printed.contains("canary"), "{printed}");
}
