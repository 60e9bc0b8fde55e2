//! Prefill and decode rates of one checkpoint, and the memory they took, to set beside those of other engines:
//! `benches/peers` runs it.
//!
//! `cargo bench -p amnesic-benches --bench throughput -- --model DIR`; `--help` lists the options. Prompts are token ids, so it needs no
//! tokenizer. No reply may end early: the checkpoint must have no end token, or random weights that never choose it.

#[path = "support/status.rs"]
mod status;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use amnesic::{Builder, Device, FinishReason, Request, Session};
use serde_json::{Value, json};
use status::status_bytes;

amnesic::install_scrubbing_allocator!();

const HELP: &str = "\
Measures prefill, decode and memory of one checkpoint.

Usage: cargo bench -p amnesic-benches --bench throughput -- --model DIR [OPTIONS]

  --model DIR        folder of the checkpoint
  --quantize KIND    none, q8 or q4 [default: none]
  --device NAME      auto, cpu or cuda [default: auto]
  --threads N        threads [default: one for each processor]
  --prefill LIST     prompts of these lengths, one at a time [default: 128,512,2048]
  --decode LIST      batches of these sizes [default: 1,4,8,16,32]
  --after N          tokens of each prompt before decoding [default: 128]
  --tokens N         steps that a decode test counts [default: 32]
  --kv-tokens N      tokens that the KV cache holds [default: 8192]
  --step-tokens N    tokens of one step: the chunks in which a prompt is computed [default: 512]
  --json             one JSON object a line
  --wait             measure all of it again for each line of the standard input, until it ends
  --help             print this
";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let options = match Options::parse() {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("error: {error} (see --help)");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let session = open(options)?;
    eprintln!("{}: {}", options.model.display(), session.device());
    prefill(&session, options.after)?; // touches every weight and starts the threads
    if !options.wait {
        return measure(&session, options);
    }
    options.report(&json!({ "test": "ready", "device": session.device() }));
    for line in std::io::stdin().lines() {
        line?;
        measure(&session, options)?;
    }
    Ok(())
}

fn measure(session: &Session, options: &Options) -> Result<()> {
    for &tokens in &options.prefill {
        let per_second = prefill(session, tokens)?;
        options.report(&json!({ "test": "prefill", "tokens": tokens, "per_second": per_second }));
    }
    for &batch in &options.decode {
        let per_second = decode(session, batch, options)?;
        options.report(&json!({ "test": "decode", "batch": batch, "per_second": per_second }));
    }
    options.report(&json!({
        "test": "memory",
        "peak_bytes": status_bytes("VmHWM"), // pages of the checkpoint's file included
        "planned_bytes": session.memory().total_bytes(),
        "weights_bytes": session.memory().weights_bytes,
    }));
    Ok(())
}

fn open(options: &Options) -> Result<Session> {
    let sequences = options.decode.iter().copied().max().unwrap_or(1);
    let mut builder = Session::builder(&options.model)
        .kv_tokens(options.kv_tokens)
        .max_sequences(sequences)
        .step_tokens(options.step_tokens)
        .device(options.device);
    if let Some(threads) = options.threads {
        builder = builder.threads(threads);
    }
    Ok(quantized(builder, &options.quantize)?.open()?)
}

/// The one place that knows how a session quantizes.
fn quantized(builder: Builder, kind: &str) -> Result<Builder> {
    match kind {
        "none" => Ok(builder),
        "q8" => Ok(builder.quantize(amnesic::Quantize::Q8)),
        "q4" => Ok(builder.quantize(amnesic::Quantize::Q4)),
        kind => Err(format!("--quantize {kind} is not supported").into()),
    }
}

/// Prompt tokens a second, with the choice of one token after them.
fn prefill(session: &Session, tokens: usize) -> Result<f64> {
    let request = Request::tokens(prompt(session, 0, tokens)).max_tokens(1).temperature(0.0);
    let started = Instant::now();
    let reply = session.generate(request)?;
    let rate = tokens as f64 / started.elapsed().as_secs_f64();
    assert_eq!(reply.usage.prompt_tokens, tokens);
    Ok(rate)
}

/// Tokens a second of `batch` requests, counted only while all of them decode.
///
/// Prompts are computed in order of arrival, so the last request is the last to get its first token. It also ends
/// first, because the others ask for as many more tokens as they can get before it starts: its own time is the window.
fn decode(session: &Session, batch: usize, options: &Options) -> Result<f64> {
    let room = options
        .step_tokens
        .checked_sub(batch)
        .filter(|&room| room > 0)
        .ok_or("the batch fills a whole step")?;
    let ahead = (batch * options.after).div_ceil(room) + 1; // steps until every prompt is computed, at most
    if batch * (options.after + options.tokens + 1 + ahead) > options.kv_tokens {
        return Err(
            format!("batch {batch} does not fit into {} tokens of KV cache", options.kv_tokens).into()
        );
    }
    let requests = (0..batch).map(|place| {
        let tokens = options.tokens + 1 + if place == batch - 1 { 0 } else { ahead };
        let prompt = prompt(session, place * options.after, options.after);
        Request::tokens(prompt).max_tokens(tokens).temperature(0.0)
    });
    let replies = session.generate_batch(requests)?;
    if replies.iter().any(|reply| reply.finish_reason() != FinishReason::Length) {
        return Err("a reply met an end token: give a checkpoint without one".into());
    }
    let (last, others) = replies.split_last().ok_or("an empty batch")?;
    let window = last.timing.total - last.timing.first_token;
    let slack = window / (2 * options.tokens as u32); // half a step: each counts from its own arrival
    let within = |other: &amnesic::Reply| {
        other.timing.first_token <= last.timing.first_token + slack && other.timing.total > last.timing.total
    };
    assert!(others.iter().all(within), "the window holds steps that are not of the whole batch");
    Ok((batch * options.tokens) as f64 / window.as_secs_f64())
}

/// Ids that differ from each other, and from those of other starts, as far as the vocabulary allows.
fn prompt(session: &Session, start: usize, len: usize) -> Vec<u32> {
    (start..start + len).map(|i| (i.wrapping_mul(7919) % session.vocab_size()) as u32).collect()
}

struct Options {
    model: PathBuf,
    quantize: String,
    device: Device,
    threads: Option<usize>,
    step_tokens: usize,
    prefill: Vec<usize>,
    decode: Vec<usize>,
    after: usize,
    tokens: usize,
    kv_tokens: usize,
    json: bool,
    wait: bool,
}

impl Options {
    /// None if help is asked for, or no model given: then `cargo bench` has started all there is.
    fn parse() -> Result<Option<Self>> {
        use lexopt::prelude::*;
        let mut model = None;
        let mut options = Self {
            model: PathBuf::new(),
            quantize: "none".into(),
            device: Device::Auto,
            threads: None,
            step_tokens: 512,
            prefill: vec![128, 512, 2048],
            decode: vec![1, 4, 8, 16, 32],
            after: 128,
            tokens: 32,
            kv_tokens: 8192,
            json: false,
            wait: false,
        };
        let mut parser = lexopt::Parser::from_env();
        while let Some(arg) = parser.next()? {
            match arg {
                Long("model") => model = Some(PathBuf::from(parser.value()?)),
                Long("quantize") => options.quantize = parser.value()?.string()?,
                Long("device") => {
                    options.device = match parser.value()?.string()?.as_str() {
                        "auto" => Device::Auto,
                        "cpu" => Device::Cpu,
                        "cuda" => Device::Cuda(0),
                        other => return Err(format!("--device {other} is not known").into()),
                    }
                }
                Long("step-tokens") => options.step_tokens = parser.value()?.parse()?,
                Long("threads") => options.threads = Some(parser.value()?.parse()?),
                Long("prefill") => options.prefill = list(&parser.value()?.string()?)?,
                Long("decode") => options.decode = list(&parser.value()?.string()?)?,
                Long("after") => options.after = parser.value()?.parse()?,
                Long("tokens") => options.tokens = parser.value()?.parse()?,
                Long("kv-tokens") => options.kv_tokens = parser.value()?.parse()?,
                Long("json") => options.json = true,
                Long("wait") => options.wait = true,
                Long("bench") => {} // from cargo
                Long("help") => return Ok(None),
                _ => return Err(arg.unexpected().into()),
            }
        }
        let counts = [&options.prefill, &options.decode, &vec![options.after, options.tokens]];
        if counts.into_iter().flatten().any(|&count| count == 0) {
            return Err("lengths, batches and counts are at least 1".into());
        }
        Ok(model.map(|model| Self { model, ..options }))
    }

    /// One measurement: as it is, or as `name value, name value`.
    fn report(&self, line: &Value) {
        match line.as_object() {
            Some(fields) if !self.json => {
                let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name} {value}")).collect();
                println!("{}", fields.join(", "));
            }
            _ => println!("{line}"),
        }
    }
}

/// `128,512` as numbers; an empty text is an empty list.
fn list(text: &str) -> Result<Vec<usize>> {
    text.split(',')
        .filter(|part| !part.is_empty())
        .map(|part| part.parse().map_err(|_| format!("{part:?} is not a count").into()))
        .collect()
}
