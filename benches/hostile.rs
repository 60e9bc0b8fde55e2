//! How long plain requests wait for their tokens while somebody sends requests that are made to cost time.
//!
//! `cargo bench -p amnesic-benches --bench hostile`; `--help` lists the options. For each kind of hostile request, two clients send short plain
//! ones, one after another, and note the longest time to a first token and between two tokens, while a third sends the hostile
//! ones. Times are told in full steps: what a step takes that is filled with tokens of prompts, on this machine, now. The
//! first line is without anybody hostile.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use amnesic::{Request, ResponseFormat, Session, Speculation};
use serde_json::{Value, json};

amnesic::install_scrubbing_allocator!();

const HELP: &str = "\
Measures how long plain requests wait beside hostile ones.

Usage: cargo bench -p amnesic-benches --bench hostile -- [OPTIONS]

  --model DIR        folder of the checkpoint, with a tokenizer [default: models/default]
  --sequences N      choices that run at once [default: 160]
  --step-tokens N    the chunk budget: tokens of one step [default: 512]
  --seconds N        how long each kind is sent [default: 3]
  --only WORD        kinds whose names have this in them [default: all]
  --limit N          fail if somebody waits longer than this many full steps [default: none]
  --help             print this
";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    match Options::parse().map(|options| options.map(|options| run(&options))) {
        Ok(None) => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Ok(Some(Ok(true))) => ExitCode::SUCCESS,
        Ok(Some(Ok(false))) => ExitCode::FAILURE,
        Ok(Some(Err(error))) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error} (see --help)");
            ExitCode::from(2)
        }
    }
}

/// A request that is made to cost time.
type Kind = (&'static str, fn(u64) -> Request);

/// Of a reply's length that would show.
fn ask(seed: u64) -> Request {
    Request::prompt("The").max_tokens(24).temperature(1.0).seed(seed).ignore_eos(true)
}

fn with_regex(seed: u64, expression: impl Into<String>) -> Request {
    ask(seed).response_format(ResponseFormat::regex(expression))
}

fn with_schema(seed: u64, schema: Value) -> Request {
    ask(seed).response_format(ResponseFormat::json_schema(schema))
}

fn kinds() -> Vec<Kind> {
    let list: Vec<Kind> = vec![
        ("nobody", |seed| ask(seed).max_tokens(1)),
        ("regex, n = 128", |seed| with_regex(seed, "(.*a.{300}){20}").n(128)),
        ("regex that grows, n = 128", |seed| with_regex(seed, "(a|b|.)*a(.){14}c.*").n(128)),
        ("8,000 enum values", |seed| {
            let values: Value = (0..8000).map(|i| Value::from(format!("value-{i}"))).collect();
            with_schema(seed, json!({ "type": "string", "enum": values }))
        }),
        ("patternProperties", |seed| {
            let keys: serde_json::Map<_, _> =
                (0..31).map(|i| (format!("^{i:02}(a|b)*a(a|b){{12}}$"), json!({}))).collect();
            with_schema(seed, json!({ "type": "object", "patternProperties": keys }))
        }),
        ("nested schema", |seed| {
            let mut schema = json!({ "type": "string" });
            for _ in 0..31 {
                schema = json!({ "type": "object", "properties": { "x": schema }, "required": ["x"] });
            }
            with_schema(seed, schema)
        }),
        ("circle of $ref", |seed| {
            let twins = json!({ "type": "object",
                "properties": { "x": { "$ref": "#/$defs/b" }, "y": { "$ref": "#/$defs/a" } } });
            let other = json!({ "type": "object",
                "properties": { "x": { "$ref": "#/$defs/a" }, "z": { "$ref": "#/$defs/b" } } });
            let both = json!([{ "$ref": "#/$defs/a" }, { "$ref": "#/$defs/b" }]);
            with_schema(seed, json!({ "allOf": both, "$defs": { "a": twins, "b": other } }))
        }),
        ("large counts", |seed| {
            let string = |i: usize| json!({ "type": "string", "minLength": i, "maxLength": 1_000_000 });
            let array = |i: usize| json!({ "type": "array", "minItems": i * 7, "maxItems": 1_000_000 });
            let items: Value = (0..900).flat_map(|i| [string(i), array(i)]).collect();
            with_schema(seed, json!({ "type": "array", "prefixItems": items }))
        }),
        ("ambiguous Lark grammar, n = 64", |seed| {
            ask(seed).response_format(ResponseFormat::lark("start: x\nx: x x | \"a\" | x x x")).n(64)
        }),
        ("expressions in Lark, n = 64", |seed| {
            let all: Vec<String> = (0..400).map(|i| format!("/(a|b)*a(a|b){{{i}}}/")).collect();
            ask(seed).response_format(ResponseFormat::lark(format!("start: {}", all.join("\n  | ")))).n(64)
        }),
        ("guesses and a grammar, n = 64", |seed| {
            let lark = "start: x\nx: x x | /[a-z ]/ | x x x";
            let guess = Speculation::PromptLookup { ngram: 1, tokens: 8 };
            ask(seed).response_format(ResponseFormat::lark(lark)).speculate(guess).n(64)
        }),
        ("long prompt", |seed| {
            let text: String =
                (0..40_000u64).map(|i| char::from(b'a' + ((i * i + seed) % 26) as u8)).collect();
            Request::prompt(text)
        }),
        ("one long word", |seed| Request::prompt("a".repeat(60_000 + seed as usize % 7))),
        ("stop strings, n = 64", |seed| {
            (0..16).fold(ask(seed), |request, i| request.stop(format!("{}{i}", "e".repeat(1000)))).n(64)
        }),
        ("logit_bias of every token, n = 64", |seed| {
            (0..4096).fold(ask(seed), |request, id| request.logit_bias(id, 0.5)).n(64)
        }),
        ("log probabilities of a long prompt", |seed| {
            let ids: Vec<u32> = (0..900).map(|i| (i * 7 + seed as u32) % 4096).collect();
            Request::tokens(ids).max_tokens(1).prompt_logprobs(Request::MAX_LOGPROBS)
        }),
        ("DRY with breakers, n = 64", |seed| {
            let breakers: Vec<String> = (0..32).map(|i| format!("{}{i}", "x".repeat(900))).collect();
            ask(seed).dry(amnesic::Dry::default()).dry_breakers(breakers).n(64)
        }),
    ];
    list
}

fn run(options: &Options) -> Result<bool> {
    let session = Session::builder(&options.model)
        .max_sequences(options.sequences)
        .step_tokens(options.step_tokens)
        .open()?;
    println!("{}: {}", options.model.display(), session.device());
    let full = full_step(&session, options.step_tokens)?;
    println!("a step of {} tokens takes {:.1} ms", options.step_tokens, 1e3 * full.as_secs_f64());
    println!("{:<36} {:>8} {:>12} {:>12} {:>8}", "beside", "hostile", "first token", "next token", "steps");
    let mut holds = true;
    for (name, hostile) in kinds() {
        if !options.only.as_ref().is_none_or(|only| name.contains(only.as_str())) {
            continue;
        }
        let (sent, first, next) = beside(&session, hostile, Duration::from_secs(options.seconds));
        let steps = first.max(next).as_secs_f64() / full.as_secs_f64();
        println!(
            "{name:<36} {sent:>8} {:>9.1} ms {:>9.1} ms {steps:>8.1}",
            1e3 * first.as_secs_f64(),
            1e3 * next.as_secs_f64()
        );
        holds &= options.limit.is_none_or(|limit| steps <= limit);
    }
    Ok(holds)
}

/// What a full step takes: the median of prompts that fill one.
fn full_step(session: &Session, tokens: usize) -> Result<Duration> {
    let vocab = session.vocab_size() as u32;
    let mut times = Vec::new();
    for round in 0..9 {
        let ids: Vec<u32> = (0..tokens as u32).map(|i| (i * 31 + round) % vocab).collect();
        times.push(session.generate(Request::tokens(ids).max_tokens(1))?.timing.first_token);
    }
    times.sort();
    Ok(times[times.len() / 2])
}

/// Hostile requests that ended meanwhile; and of plain ones the longest times to a first token and between two.
fn beside(session: &Session, hostile: fn(u64) -> Request, time: Duration) -> (u64, Duration, Duration) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let attacker = scope.spawn(|| {
            let mut sent = 0;
            while !done.load(Ordering::Relaxed) {
                // refused, perhaps, or late: that must not take others' time either
                let _ = session.generate(hostile(sent).timeout(time));
                sent += 1;
            }
            sent
        });
        let victims: Vec<_> =
            (0..2).map(|seed| scope.spawn(move || wait_times(session, seed, time))).collect();
        let times: Vec<_> = victims.into_iter().map(|victim| victim.join().expect("it ran")).collect();
        done.store(true, Ordering::Relaxed);
        let first = times.iter().map(|(first, _)| *first).max().unwrap_or_default();
        let next = times.iter().map(|(_, next)| *next).max().unwrap_or_default();
        (attacker.join().expect("it ran"), first, next)
    })
}

fn wait_times(session: &Session, seed: u64, time: Duration) -> (Duration, Duration) {
    let (began, mut first, mut next) = (Instant::now(), Duration::ZERO, Duration::ZERO);
    let mut count = seed;
    while began.elapsed() < time {
        let mut last = Instant::now();
        let mut is_first = true;
        count += 2;
        let request = Request::prompt("It is a").max_tokens(16).temperature(0.8).seed(count).ignore_eos(true);
        for piece in session.stream(request).expect("a plain request is taken in") {
            piece.expect("a plain request is served");
            let took = last.elapsed();
            let longest = if std::mem::take(&mut is_first) { &mut first } else { &mut next };
            *longest = took.max(*longest);
            last = Instant::now();
        }
    }
    (first, next)
}

struct Options {
    model: PathBuf,
    sequences: usize,
    step_tokens: usize,
    seconds: u64,
    only: Option<String>,
    limit: Option<f64>,
}

impl Options {
    /// None when help was asked for.
    fn parse() -> std::result::Result<Option<Self>, lexopt::Error> {
        use lexopt::prelude::*;
        let mut options = Self {
            model: PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/default")),
            sequences: 160,
            step_tokens: 512,
            seconds: 3,
            only: None,
            limit: None,
        };
        let mut args = lexopt::Parser::from_env();
        while let Some(arg) = args.next()? {
            match arg {
                Long("model") => options.model = args.value()?.into(),
                Long("sequences") => options.sequences = args.value()?.parse()?,
                Long("step-tokens") => options.step_tokens = args.value()?.parse()?,
                Long("seconds") => options.seconds = args.value()?.parse()?,
                Long("only") => options.only = Some(args.value()?.string()?),
                Long("limit") => options.limit = Some(args.value()?.parse()?),
                Long("bench") => {} // what cargo passes
                Long("help") | Short('h') => return Ok(None),
                _ => return Err(arg.unexpected()),
            }
        }
        Ok(Some(options))
    }
}
