//! What callers hand over is overwritten: every public function that takes content by value is given a canary in an
//! allocation of its own, in a process that does not scrub what it frees, and afterwards that process's memory is
//! searched.
//!
//! Which functions there are is read from the source (`public_items`): one that neither takes a canary here nor has a
//! reason beside it why what it takes is no content fails the test.

mod public_items;

use std::collections::BTreeSet;
use std::hint::black_box;
use std::process::{Command, ExitCode};

use amnesic::forensics::{Findings, Needles};
use amnesic::{
    EmbedRequest, Message, Request, RerankRequest, ResponseFormat, Role, Tool, ToolCall, ToolChoice,
    assistant, system, tool, user,
};
use serde_json::{Map, Value};

/// Characters of a canary text, ids of a canary prompt: much more than the blocks that a search itself takes.
const TEXT: usize = 3000;
const IDS: usize = 1500;
/// Canaries of each kind.
const COUNT: u64 = 4;
/// Numbers in a canary value.
const NUMBERS: u64 = 16;

/// A seeded hash (SplitMix64): canaries are computed, so that no copy of them is in the program.
fn hash(seed: u64, index: u64) -> u64 {
    let mut z =
        seed.wrapping_mul(0xd1b5_4a32_d192_ed03).wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Text `which`, in an allocation that does not move and has room behind it.
fn text(which: u64) -> String {
    let mut text = String::with_capacity(TEXT + 200);
    (0..TEXT as u64).for_each(|index| text.push(char::from(b'a' + (hash(which, index) % 26) as u8)));
    text
}

fn ids(which: u64) -> Vec<u32> {
    let mut ids = Vec::with_capacity(IDS + 50);
    ids.extend((0..IDS as u64).map(|index| (hash(100 + which, index) % 50_000) as u32));
    ids
}

fn number(which: u64, index: u64) -> u64 {
    hash(200 + which, index)
}

/// Text `which` as a text and as a key, and numbers, in lists and maps.
fn value(which: u64) -> Value {
    let mut numbers = Vec::with_capacity(40);
    numbers.extend((0..NUMBERS / 2).map(|index| Value::from(number(which, index))));
    let mut inner = Map::with_capacity(40);
    inner.insert(text(which), Value::Array(numbers));
    for index in NUMBERS / 2..NUMBERS {
        inner.insert(format!("n{index}"), number(which, index).into());
    }
    let mut outer = Map::with_capacity(40);
    outer.insert("properties".into(), Value::Object(inner));
    outer.insert("const".into(), Value::String(text(which)));
    Value::Object(outer)
}

fn needles() -> Needles {
    (0..COUNT).fold(Needles::new(), |needles, which| {
        let needles =
            needles.text(&format!("text {which}"), &text(which)).ids(&format!("ids {which}"), &ids(which));
        (0..NUMBERS).fold(needles, |needles, index| {
            needles.bytes(&format!("numbers {which}"), &number(which, index).to_le_bytes())
        })
    })
}

type Act = fn();

/// Each function that takes content, given canaries; what it makes is dropped.
const TAKE: &[(&str, Act)] = &[
    ("Request::prompt", || drop(Request::prompt(text(0)))),
    ("Request::tokens", || drop(Request::tokens(ids(0)))),
    ("Request::chat", || drop(Request::chat([user(text(0)), assistant(text(1))]))),
    ("impl From<String> for Request (Request)", || drop(Request::from(text(0)))),
    ("ToolChoice::function", || drop(ToolChoice::function(text(0)))),
    ("Request::stop", || drop(Request::default().stop(text(0)).stop(text(1)))),
    ("Request::dry_breakers", || drop(Request::default().dry_breakers([text(0), text(1)]))),
    ("Request::tools", || drop(Request::default().tools([Tool::new(text(0), text(1), value(2))]))),
    ("Request::chat_template", || drop(Request::default().chat_template(text(0)))),
    ("Request::template_variable", || {
        let request = Request::default().template_variable(text(0), value(1));
        drop(request.template_variable(text(0), value(2)).template_variable("b", text(3)));
    }),
    ("system", || drop(system(text(0)))),
    ("user", || drop(user(text(0)))),
    ("assistant", || drop(assistant(text(0)))),
    ("tool", || drop(tool(text(0), text(1)))),
    ("Message::new", || drop(Message::new(Role::Developer, text(0)))),
    ("Message::with_reasoning", || drop(user("").with_reasoning(text(0)).with_reasoning(text(1)))),
    ("Message::with_tool_calls", || {
        drop(assistant("").with_tool_calls(vec![ToolCall::new(text(0), text(1), text(2))]));
    }),
    ("Message::with_tool_call_id", || drop(user("").with_tool_call_id(text(0)).with_tool_call_id(text(1)))),
    ("Message::with_name", || drop(user("").with_name(text(0)).with_name(text(1)))),
    ("Tool::new", || drop(Tool::new(text(0), text(1), value(2)))),
    ("ToolCall::new", || drop(ToolCall::new(text(0), text(1), text(2)))),
    ("ResponseFormat::json_schema", || {
        // one that is written out, and one that is nested too deep for that
        let deep = (0..100).fold(value(1), |inner, _| Value::Array(vec![inner]));
        drop((ResponseFormat::json_schema(value(0)), ResponseFormat::json_schema(deep)));
    }),
    ("ResponseFormat::regex", || drop(ResponseFormat::regex(text(0)))),
    ("ResponseFormat::lark", || drop(ResponseFormat::lark(text(0)))),
    ("EmbedRequest::new", || drop(EmbedRequest::new([text(0), text(1)]))),
    ("EmbedRequest::prompt", || drop(EmbedRequest::new([""]).prompt(text(0)).prompt(text(1)))),
    ("EmbedRequest::prompt_name", || drop(EmbedRequest::new([""]).prompt_name(text(0)))),
    ("RerankRequest::new", || drop(RerankRequest::new(text(0), [text(1), text(2)]))),
    #[cfg(feature = "hub")]
    ("Hub::token", || drop(amnesic::Hub::new().token(text(0)))),
];

/// Functions that take texts or lists by value which are no content, each with its reason.
const NO_CONTENT: &[(&str, &str)] = &[
    ("Request::adapter", "the name of one of the session's adapters, which the application gave it"),
    ("Request::tenant", "a number that names whose request it is"),
    ("impl From<String> for Tenant (Tenant)", "a name that the application gave"),
    ("PublicKey::new", "a public key"),
    ("Quote::new", "what a device signed: it stands in receipts"),
    ("BlockPool::let_go", "numbers of blocks"),
    ("BlockPool::take", "numbers of blocks"),
    ("Builder::adapter", "a setting of the session"),
    ("Builder::adapter_files", "a setting of the session"),
    ("Files::file", "a file of a checkpoint"),
    ("Files::read", "a file of a checkpoint"),
    ("Files::tensors", "a file of a checkpoint"),
    ("Files::var_builder", "a file of a checkpoint"),
    ("Files::var_map", "a file of a checkpoint"),
    ("Hub::endpoint", "an address"),
    ("Session::tokenize", "a request, which holds secrets already"),
    ("Session::count_tokens", "a request, which holds secrets already"),
    ("Session::generate_batch", "requests, which hold secrets already"),
    ("Session::embed", "borrowed: the texts stay their owner's"),
    ("Session::rerank", "borrowed: the texts stay their owner's"),
    ("verify_receipts", "receipts"),
    ("search_free_memory", "patterns that a test looks for"),
    ("find_leaks", "patterns that a test looks for"),
];

/// Whether a signature takes by value something that can own text, ids or JSON.
fn takes_content(signature: &str) -> bool {
    const OWNERS: [&str; 10] = [
        "String",
        "IntoText",
        "Cow<",
        "Value",
        "Vec<",
        "Box<",
        "IntoIterator",
        "impl Into<",
        "AsRef<str>",
        "FromIterator<",
    ];
    let result = signature.rfind(") -> ").map_or(signature.len(), |at| at + 1);
    let (taken, bounds) = signature.split_at(result);
    let bounds = bounds.split_once(" where ").map_or("", |(_, bounds)| bounds);
    OWNERS.iter().any(|owner| taken.contains(owner) || bounds.contains(owner))
}

/// Is told of each function that is in neither table, or only there.
fn check_tables(wrong: &mut Vec<String>) {
    let in_source: BTreeSet<String> = public_items::signatures()
        .into_iter()
        .filter(|signature| takes_content(&signature.text) && !is_of_the_kit(&signature.name))
        .map(|signature| signature.name)
        .collect();
    let known = |name: &str| {
        TAKE.iter()
            .map(|(known, _)| known)
            .chain(NO_CONTENT.iter().map(|(known, _)| known))
            .any(|of| *of == name)
    };
    assert!(in_source.len() > 25, "the source is not understood: {in_source:?}");
    for name in in_source.iter().filter(|name| !known(name)) {
        wrong.push(format!("{name} takes something by value, and no canary was given to it"));
    }
    let named = TAKE.iter().map(|(name, _)| name).chain(NO_CONTENT.iter().map(|(name, _)| name));
    for name in named.filter(|name| !in_source.contains(**name)) {
        wrong.push(format!("{name} is no public function that takes content"));
    }
}

/// Functions of the kit for tests, which take what tests look for.
fn is_of_the_kit(name: &str) -> bool {
    ["Needles::", "Findings::", "Snapshots::", "Tokenizer::", "Scorer::", "Telling::", "learn"]
        .iter()
        .any(|kit| name.starts_with(kit))
}

/// What frames of this program's own held of a canary is no fault of who took it.
#[inline(never)]
fn clean_stack() {
    black_box(&mut [0_u8; 256 << 10]);
}

fn child(name: &str, needles: &str) {
    let needles: Needles = serde_json::from_slice(&std::fs::read(needles).unwrap()).unwrap();
    let needles = needles.prepare();
    match TAKE.iter().find(|(known, _)| *known == name) {
        Some((_, act)) => act(),
        // what nobody overwrites
        None => drop((black_box(text(0)), black_box(ids(1)), black_box(value(2)))),
    }
    clean_stack();
    println!("{}", serde_json::to_string(&needles.search_self().unwrap()).unwrap());
}

fn run(name: &str, needles: &std::path::Path) -> Findings {
    let child =
        Command::new(std::env::current_exe().unwrap()).args(["--take", name]).arg(needles).output().unwrap();
    assert!(child.status.success(), "{name}: {}", String::from_utf8_lossy(&child.stderr));
    serde_json::from_slice(&child.stdout).unwrap()
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name, needles] = &arguments[..]
        && flag == "--take"
    {
        child(name, needles);
        return ExitCode::SUCCESS;
    }
    let mut wrong = Vec::new();
    check_tables(&mut wrong);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), serde_json::to_vec(&needles()).unwrap()).unwrap();
    let control = run("nothing that overwrites", file.path());
    for kind in ["text 0", "ids 1", "text 2", "numbers 2"] {
        if !control.has(kind) {
            wrong.push(format!("the search misses what is there: {kind}"));
        }
    }
    for (name, _) in TAKE {
        let found = run(name, file.path());
        println!("test constructors: {name} ... {}", if found.is_empty() { "ok" } else { "FAILED" });
        if !found.is_empty() {
            wrong.push(format!("{name} leaves {found}"));
        }
    }
    wrong.iter().for_each(|wrong| println!("{wrong}"));
    ExitCode::from(u8::from(!wrong.is_empty()))
}
