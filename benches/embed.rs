//! Texts embedded a second: `cargo bench -p amnesic-benches --bench embed -- MODEL TEXTS [--rounds N] [--threads N] [--step-tokens N] [--json]`,
//! where TEXTS is a file with one text a line. The first round is not counted.

use std::error::Error;
use std::time::Instant;

use amnesic::{Quantize, Session};
use serde_json::json;

amnesic::install_scrubbing_allocator!();

fn main() -> Result<(), Box<dyn Error>> {
    use lexopt::prelude::*;
    let (mut paths, mut rounds, mut as_json, mut threads, mut step, mut quantize) =
        (Vec::new(), 5_usize, false, None, None, false);
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Value(path) => paths.push(path),
            Long("rounds") => rounds = parser.value()?.parse()?,
            Long("threads") => threads = Some(parser.value()?.parse()?),
            Long("step-tokens") => step = Some(parser.value()?.parse()?),
            Long("q8") => quantize = true,
            Long("json") => as_json = true,
            Long("bench") => {} // from cargo
            _ => return Err(arg.unexpected().into()),
        }
    }
    let [model, texts] = &paths[..] else {
        println!("embed: a model and a file of texts are to be named; nothing was measured");
        return Ok(());
    };
    let texts = std::fs::read_to_string(texts)?;
    let texts: Vec<&str> = texts.lines().collect();
    let mut builder = Session::builder(model);
    if let Some(threads) = threads {
        builder = builder.threads(threads);
    }
    if let Some(step) = step {
        builder = builder.step_tokens(step);
    }
    if quantize {
        builder = builder.quantize(Quantize::Q8);
    }
    let session = builder.open()?;
    session.embed(&texts)?;
    let mut secs = Vec::new();
    let mut tokens = 0;
    for _ in 0..rounds.max(1) {
        let began = Instant::now();
        tokens = session.embed(&texts)?.usage.prompt_tokens;
        secs.push(began.elapsed().as_secs_f64());
    }
    secs.sort_by(f64::total_cmp);
    let median = secs[secs.len() / 2];
    let (texts_rate, tokens_rate) = (texts.len() as f64 / median, tokens as f64 / median);
    if as_json {
        println!(
            "{}",
            json!({ "seconds": median, "texts": texts.len(), "tokens": tokens, "device": session.device() })
        );
    } else {
        println!("{}: {texts_rate:.1} texts/s, {tokens_rate:.0} tokens/s, {median:.4} s", session.device());
    }
    Ok(())
}
