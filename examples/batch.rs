//! Runs many prompts together, then one after another: the replies are the same, the batch is faster.
//!
//! `cargo run --release --example batch -- --help`

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use amnesic::{Reply, Request, Session};

amnesic::install_scrubbing_allocator!();

const HELP: &str = "\
Runs prompts as one batch, and again one by one.

Usage: cargo run --release --example batch -- [OPTIONS]

  --model DIR        folder of the checkpoint [default: models/default]
  --file FILE        prompts, one a line [default: eight about Rust]
  --max-tokens N     most tokens of each reply [default: 64]
  --help             print this
";

const PROMPTS: [&str; 8] = [
    "Ownership is Rust's most unique feature, and",
    "A trait defines the functionality that a type has, and",
    "The borrow checker compares scopes to determine whether",
    "When a value goes out of scope, Rust calls",
    "The `match` expression takes a value and",
    "Closures are anonymous functions that",
    "To share a value between threads, we",
    "Unsafe code is allowed to",
];

/// Columns of a line that shows text.
const WIDTH: usize = 100;

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

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let prompts = options.prompts()?;
    let session = Session::open(&options.model)?;
    let requests = || prompts.iter().zip(1..).map(|(prompt, seed)| request(prompt, seed, options.max_tokens));

    session.generate(request(&prompts[0], 1, 1))?; // so that neither way pays for the first touch
    let start = Instant::now();
    let together = session.generate_batch(requests())?;
    let batch_secs = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let alone = requests().map(|request| session.generate(request)).collect::<Result<Vec<Reply>, _>>()?;
    let alone_secs = start.elapsed().as_secs_f64();

    for (prompt, reply) in prompts.iter().zip(&together) {
        let usage = reply.usage;
        println!("> {}", one_line(prompt));
        println!("  {}", one_line(reply.text()));
        println!(
            "  {}, {} + {} tokens\n",
            reply.finish_reason(),
            usage.prompt_tokens,
            usage.completion_tokens
        );
    }
    for (number, (batched, single)) in together.iter().zip(&alone).enumerate() {
        assert_eq!(batched.tokens(), single.tokens(), "reply {number} differs in the batch");
    }
    let tokens: usize = together.iter().map(|reply| reply.usage.completion_tokens).sum();
    let (fast, slow) = (tokens as f64 / batch_secs, tokens as f64 / alone_secs);
    println!("{}: {} prompts, {tokens} tokens", session.device(), prompts.len());
    println!("together {fast:.0} tokens/s, one by one {slow:.0} tokens/s: {:.1} times as fast", fast / slow);
    println!("the replies are identical\n\n{}", session.close()?);
    Ok(())
}

fn request(prompt: &str, seed: u64, max_tokens: usize) -> Request {
    Request::prompt(prompt).max_tokens(max_tokens).temperature(0.7).top_p(0.95).seed(seed)
}

/// The text on one line, cut to the width.
fn one_line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

struct Options {
    model: PathBuf,
    file: Option<PathBuf>,
    max_tokens: usize,
}

impl Options {
    /// None when help was asked for.
    fn parse() -> Result<Option<Self>, lexopt::Error> {
        use lexopt::prelude::*;
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default");
        let mut options = Self { model, file: None, max_tokens: 64 };
        let mut args = lexopt::Parser::from_env();
        while let Some(arg) = args.next()? {
            match arg {
                Long("model") => options.model = args.value()?.into(),
                Long("file") => options.file = Some(args.value()?.into()),
                Long("max-tokens") => {
                    let value = args.value()?.string()?;
                    let wrong = |error| format!("--max-tokens: {value:?}: {error}");
                    options.max_tokens =
                        value.parse().map_err(|error: std::num::ParseIntError| wrong(error))?;
                }
                Long("help") | Short('h') => return Ok(None),
                _ => return Err(arg.unexpected()),
            }
        }
        Ok(Some(options))
    }

    fn prompts(&self) -> Result<Vec<String>, Box<dyn Error>> {
        let Some(file) = &self.file else {
            return Ok(PROMPTS.map(str::to_owned).to_vec());
        };
        let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let prompts: Vec<_> =
            text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
        if prompts.is_empty() {
            return Err(format!("{}: no prompts", file.display()).into());
        }
        Ok(prompts)
    }
}
