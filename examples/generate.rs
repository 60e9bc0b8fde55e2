//! Streams a continuation of a prompt to stdout; everything else goes to stderr.
//!
//! `cargo run --release --example generate -- --help`

use std::error::Error;
use std::ffi::OsString;
use std::io::{Write, stderr, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use amnesic::{Quantize, Request, Session};
use indicatif::{ProgressBar, ProgressStyle};

/// The tokenizer makes copies of the prompt on the heap: this overwrites them too when they are freed.
amnesic::install_scrubbing_allocator!();

const HELP: &str = "\
Continues a prompt, and forgets it.

Usage: cargo run --release --example generate -- [OPTIONS]

  --model DIR        folder of the checkpoint [default: models/default]
  --prompt TEXT      what to continue [default: a sentence about Rust]
  --max-tokens N     most tokens to generate [default: 200]
  --temperature T    0 is greedy, up to 2 [default: 0.7]
  --top-p P          draw among the most likely tokens that sum to P [default: 0.95]
  --top-k K          draw among the K most likely tokens; 0 for all
  --min-p P          draw among tokens at least P times as likely as the first
  --seed N           the same seed gives the same text [default: 1]
  --stop TEXT        end before this text; may be given several times
  --quantize KIND    load the weights as q8 or q4 [default: as they are]
  --threads N        threads of the CPU [default: all]
  --context N        most tokens of prompt and reply together
  --help             print this

Ctrl-C ends the reply, scrubs, and reports.
";

const PROMPT: &str = "Ownership is Rust's most unique feature, and";

/// The exit code of a wrong command line.
const USAGE: u8 = 2;
/// The exit code that shells expect after SIGINT: 128 + 2.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args_os()) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("error: {error} (see --help)");
            return ExitCode::from(USAGE);
        }
    };
    run(options).unwrap_or_else(|error| {
        eprintln!("error: {error}");
        match error.downcast_ref() {
            Some(amnesic::Error::Request { .. } | amnesic::Error::ContextLength { .. }) => {
                ExitCode::from(USAGE)
            }
            _ => ExitCode::FAILURE,
        }
    })
}

fn run(options: Options) -> Result<ExitCode, Box<dyn Error>> {
    let session = open(&options)?;
    // Only from here on is there something to scrub: while loading, Ctrl-C simply ends the process.
    let interrupted = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGINT, interrupted.clone())?;

    let prompt = options.prompt.clone();
    let mut stream = session.stream(options.into_request())?;
    let mut out = stdout().lock();
    write!(out, "{prompt}")?; // now that the request is accepted
    out.flush()?;
    while !interrupted.load(Ordering::Relaxed)
        && let Some(piece) = stream.next()
    {
        write!(out, "{}", piece?.text())?;
        out.flush()?;
    }
    writeln!(out)?;

    eprintln!("\n{}", session.device());
    let code = if interrupted.load(Ordering::Relaxed) {
        drop(stream); // cancels, and returns when the request is scrubbed
        eprintln!("interrupted");
        ExitCode::from(INTERRUPTED)
    } else {
        let reply = stream.finish()?;
        let (usage, timing) = (reply.usage, reply.timing);
        eprintln!("prompt: {} tokens, first token after {}", usage.prompt_tokens, millis(timing.first_token));
        let tokens = usage.completion_tokens;
        let rate = timing.decode_rate(tokens).map_or(String::new(), |rate| format!(", {rate:.1} tokens/s"));
        eprintln!("reply: {tokens} tokens{rate}, finish: {}", reply.finish_reason());
        ExitCode::SUCCESS
    };
    eprintln!("{}", session.close()?);
    Ok(code)
}

/// Opens the session under a progress bar, which hides itself when stderr is no terminal.
fn open(options: &Options) -> amnesic::Result<Session> {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("loading {wide_bar} {bytes} of {total_bytes}") {
        bar.set_style(style);
    }
    let mut builder = Session::builder(&options.model).on_progress({
        let bar = bar.clone();
        move |progress| {
            bar.set_length(progress.total_bytes);
            bar.set_position(progress.done_bytes);
        }
    });
    if let Some(quantize) = options.quantize {
        builder = builder.quantize(quantize);
    }
    if let Some(threads) = options.threads {
        builder = builder.threads(threads);
    }
    if let Some(context) = options.context {
        builder = builder.context_length(context);
    }
    let session = builder.open();
    bar.finish_and_clear();
    stderr().flush().ok(); // nothing to do about a stderr that is gone
    session
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", 1e3 * time.as_secs_f64())
}

struct Options {
    model: PathBuf,
    prompt: String,
    max_tokens: usize,
    temperature: f32,
    top_p: f32,
    top_k: Option<usize>,
    min_p: Option<f32>,
    seed: u64,
    stop: Vec<String>,
    quantize: Option<Quantize>,
    threads: Option<usize>,
    context: Option<usize>,
}

impl Options {
    /// None when help was asked for.
    fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Option<Self>, lexopt::Error> {
        use lexopt::prelude::*;
        let mut options = Self {
            model: Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default"),
            prompt: PROMPT.to_owned(),
            max_tokens: 200,
            temperature: 0.7,
            top_p: 0.95,
            top_k: None,
            min_p: None,
            seed: 1,
            stop: Vec::new(),
            quantize: None,
            threads: None,
            context: None,
        };
        let mut args = lexopt::Parser::from_iter(args);
        while let Some(arg) = args.next()? {
            match arg {
                Long("model") => options.model = args.value()?.into(),
                Long("prompt") => options.prompt = args.value()?.string()?,
                Long("max-tokens") => options.max_tokens = number(&mut args, "max-tokens")?,
                Long("temperature") => options.temperature = number(&mut args, "temperature")?,
                Long("top-p") => options.top_p = number(&mut args, "top-p")?,
                Long("top-k") => options.top_k = Some(number(&mut args, "top-k")?),
                Long("min-p") => options.min_p = Some(number(&mut args, "min-p")?),
                Long("seed") => options.seed = number(&mut args, "seed")?,
                Long("stop") => options.stop.push(args.value()?.string()?),
                Long("quantize") => options.quantize = Some(quantize(&args.value()?.string()?)?),
                Long("threads") => options.threads = Some(number(&mut args, "threads")?),
                Long("context") => options.context = Some(number(&mut args, "context")?),
                Long("help") | Short('h') => return Ok(None),
                _ => return Err(arg.unexpected()),
            }
        }
        Ok(Some(options))
    }

    fn into_request(self) -> Request {
        let mut request = Request::prompt(self.prompt)
            .max_tokens(self.max_tokens)
            .temperature(self.temperature)
            .top_p(self.top_p)
            .seed(self.seed);
        if let Some(count) = self.top_k {
            request = request.top_k(count);
        }
        if let Some(share) = self.min_p {
            request = request.min_p(share);
        }
        self.stop.into_iter().fold(request, Request::stop)
    }
}

fn quantize(kind: &str) -> Result<Quantize, lexopt::Error> {
    match kind {
        "q8" => Ok(Quantize::Q8),
        "q4" => Ok(Quantize::Q4),
        _ => Err(format!("--quantize: {kind:?}: must be q8 or q4").into()),
    }
}

/// The option's value; an error names the option, which lexopt's own does not.
fn number<T>(args: &mut lexopt::Parser, option: &str) -> Result<T, lexopt::Error>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    use lexopt::ValueExt;
    let value = args.value()?.string()?;
    value.parse().map_err(|error| format!("--{option}: {value:?}: {error}").into())
}
