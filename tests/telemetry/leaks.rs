//! A process of its own sends canaries through every field of a request, every error, a panic and every public type's
//! `Debug` and `Display`; its parent searches all that it printed, logged or told.

#[path = "leaks/asked.rs"]
mod asked;
#[path = "leaks/child.rs"]
mod child;
#[path = "leaks/heard.rs"]
mod heard;

use std::path::Path;
use std::process::Command;

use crate::common::Recipe;
use crate::needles::{self, word};
use crate::types;

/// So large that ids have six digits, which no count, size or time here happens to have.
const VOCAB: usize = 150_000;
/// How many words `word` has given out.
const WORDS: usize = 40;
const FOLDER: &str = "AMNESIC_TELEMETRY_CHILD";
const CONTROL: &str = "AMNESIC_TELEMETRY_CONTROL";

/// Ids of the fields that take ids.
fn ids(field: u32) -> Vec<u32> {
    (0..6).map(|index| 100_003 + 7919 * field + 641 * index).collect()
}

const PROMPT_IDS: u32 = 0;
const BIAS_IDS: u32 = 1;
const STOP_IDS: u32 = 2;

const TEMPLATE: &str = "\
{%- for message in messages %}
{%- if message.role == 'developer' %}{{ raise_exception('no ' ~ message.content ~ mood) }}{% endif %}
{%- if message.role == 'system' and message.name %}{{ message.content.nothing(message.name) }}{% endif %}
{{- message.role }}: {{ message.content }}{{ message.tool_calls }}{{ mood }}\n
{%- endfor %}{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}";

fn write_checkpoint(folder: &Path) {
    let mut recipe = Recipe::small(VOCAB);
    recipe.config["num_hidden_layers"] = 1.into();
    recipe.config["max_position_embeddings"] = 4096.into();
    recipe.write(folder, Some("byte_level"));
    std::fs::write(folder.join("chat_template.jinja"), TEMPLATE).unwrap();
}

/// What the child printed and told, and what it must not have.
fn run(folder: &Path, control: bool) -> (String, Vec<(String, Vec<String>)>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "leaks::child::child", "--nocapture"])
        .env(FOLDER, folder)
        .env("RUST_BACKTRACE", "0");
    if control {
        command.env(CONTROL, "1");
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "the child failed: {}", String::from_utf8_lossy(&output.stderr));
    let told = std::fs::read(folder.join("told")).unwrap();
    let (ids, texts): (Vec<u32>, Vec<String>) =
        serde_json::from_slice(&std::fs::read(folder.join("replies")).unwrap()).unwrap();
    (
        [told, output.stdout, output.stderr]
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .join("\n"),
        needles(&ids, &texts),
    )
}

fn needles(reply_ids: &[u32], texts: &[String]) -> Vec<(String, Vec<String>)> {
    let mut all = Vec::new();
    for field in 0..WORDS {
        all.push((format!("word {field}"), needles::of_text(&word(field))));
    }
    for field in [PROMPT_IDS, BIAS_IDS, STOP_IDS] {
        all.push((format!("ids {field} as bytes"), needles::of_ids(&ids(field)[..3])));
        for id in ids(field) {
            all.push((format!("id {id} of {field}"), needles::of_id(id)));
        }
    }
    let long: Vec<u32> = reply_ids.iter().copied().filter(|&id| id >= 100_000).collect();
    assert!(long.len() > 5, "replies have too few long ids to look for: {}", long.len());
    all.extend(long.iter().map(|&id| (format!("id {id} of a reply"), needles::of_id(id))));
    let known = [22, 25].map(word);
    assert!(known.iter().all(|word| texts.contains(word)), "replies that were asked for");
    let texts = texts.iter().filter(|text| text.len() > 8);
    all.extend(texts.map(|text| ("a reply's text".into(), needles::of_text(text))));
    all
}

/// No logger heard anything, and no listener a target or a field that is not in the schema: a text could come in pieces
/// that no needle finds.
fn only_what_is_declared(captured: &str) {
    let schema = include_str!("../../src/privacy/mod.rs");
    let table: String = schema.lines().filter(|line| line.starts_with("//! | `")).collect();
    let (mut told, mut logged) = (0, 0);
    for line in captured.lines() {
        logged += usize::from(line.starts_with("log "));
        let words: Vec<&str> = line.split(' ').collect();
        let fields = match words[..] {
            [
                "span",
                _,
                "below",
                _,
                "amnesic",
                "generate" | "open_session" | "close_session",
                ref fields @ ..,
            ]
            | ["event", "below", _, "amnesic" | "amnesic::metrics", "INFO", ref fields @ ..]
            | ["record", _, ref fields @ ..] => fields,
            ["span" | "event", ..] => panic!("{line}"),
            _ => continue,
        };
        told += 1;
        for field in fields.iter().filter_map(|word| word.split_once('=').map(|(name, _)| name)) {
            let name = ["histogram.", "monotonic_counter."].iter().find_map(|kind| field.strip_prefix(kind));
            let name = name.unwrap_or(field);
            // a row of the table may name several of one kind: `gen_ai.request.temperature`, `.top_p`
            let last = format!("`.{}`", name.rsplit('.').next().unwrap());
            let declared = table.contains(&format!("`{name}`")) || table.contains(&last) || name == "message";
            assert!(declared, "{name} is not in the table of src/privacy/mod.rs");
        }
    }
    assert_eq!(logged, 0);
    assert!(told > 500, "{told}");
}

fn found(captured: &str, needles: &[(String, Vec<String>)]) -> Vec<String> {
    let holds =
        |(_, forms): &&(String, Vec<String>)| forms.iter().any(|form| captured.contains(form.as_str()));
    needles.iter().filter(holds).map(|(name, _)| name.clone()).collect()
}

#[test]
fn nothing_of_a_request_is_printed_logged_or_told() {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path());
    let (captured, needles) = run(folder.path(), false);
    let leaked = found(&captured, &needles);
    assert!(leaked.is_empty(), "found in {} bytes: {leaked:?}", captured.len());
    types::all_are_shown(
        &serde_json::from_slice(&std::fs::read(folder.path().join("shown")).unwrap()).unwrap(),
    );
    only_what_is_declared(&captured);
    // what is allowed is there, so the listeners heard
    for expected in [
        "gen_ai.request.model=canary-model",
        "gen_ai.usage.input_tokens=6",
        "gen_ai.usage.output_tokens=2",
        "gen_ai.response.finish_reasons=[\"length\"]",
        "gen_ai.response.finish_reasons=[\"stop\"]",
        "gen_ai.response.finish_reasons=[\"cancelled\"]",
        "gen_ai.response.finish_reasons=[\"deadline\"]",
        "gen_ai.server.time_to_first_token=0.0",
        "amnesic.usage.cost_nano=23", // 5 + 6 * 2 + 2 * 3
        "histogram.gen_ai.server.request.duration=0.0",
        "\"event\":\"ended\"",
        "error.type=poisoned",
        "error.type=busy",
        "error.type=closed",
        "error.type=no_token",
        "error.type=no_tokenizer",
        "error.type=no_chat_template",
        "error.type=context_length",
        "error.type=in_batch",
        "error.type=logged",
        "panic panicked at",
        "a fault that a test asked for",
        "[REDACTED]",
        "content_bytes: ",
    ] {
        assert!(captured.contains(expected), "{expected} is not in {} bytes", captured.len());
    }

    // and what is said on purpose is found, in each way
    let (captured, needles) = run(folder.path(), true);
    let mut leaked = found(&captured, &needles);
    leaked.retain(|name| !name.contains("reply"));
    let mut expected: Vec<String> = (0..6).map(|field| format!("word {field}")).collect();
    expected.extend(ids(PROMPT_IDS).iter().map(|id| format!("id {id} of {PROMPT_IDS}")));
    expected.push(format!("id {} of {BIAS_IDS}", ids(BIAS_IDS)[5]));
    assert_eq!(leaked, expected);
}
