//! Continuous batching against static batches of the same engine, on requests of mixed lengths; and the time between a
//! reply's tokens while other prompts are computed.
//!
//! `cargo bench -p amnesic-benches --bench serving -- --model DIR`; `--help` lists the options. Lengths are drawn as those of ShareGPT's
//! conversations are spread: log-normal, prompts of 161 tokens and replies of 338 on average before they are cut (Kwon
//! et al. 2023, figure 11a). Both ways serve the same requests with the same memory and places, one round after the
//! other.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use amnesic::{Request, Session};

amnesic::install_scrubbing_allocator!();

const HELP: &str = "\
Measures continuous against static batches, and the time between tokens.

Usage: cargo bench -p amnesic-benches --bench serving -- [OPTIONS]

  --model DIR        folder of the checkpoint [default: models/default]
  --requests N       requests [default: 96]
  --sequences N      requests that run at once [default: 32]
  --kv-tokens N      tokens that the KV cache holds [default: 16384]
  --step-tokens N    the chunk budget: tokens of one step [default: 256]
  --longest N        prompts and replies are cut at this length [default: 512]
  --rounds N         rounds of each way [default: 3]
  --help             print this
";

/// Requests arrive this much less often than the session serves them when all are there at once.
const LESS_OFTEN: f64 = 1.25;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    match Options::parse().map(|options| options.map(|options| run(&options))) {
        Ok(None) => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Ok(Some(Ok(()))) => ExitCode::SUCCESS,
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

/// Lengths of a prompt and of its reply, and what the prompt is made of.
#[derive(Clone, Copy)]
struct Work {
    prompt: usize,
    reply: usize,
    seed: u64,
}

impl Work {
    fn request(self, vocab: usize) -> Request {
        let mut random = Random(self.seed);
        let ids: Vec<u32> = (0..self.prompt).map(|_| (random.next() % vocab as u64) as u32).collect();
        Request::tokens(ids).max_tokens(self.reply).ignore_eos(true)
    }
}

fn run(options: &Options) -> Result<()> {
    let session = Session::builder(&options.model)
        .kv_tokens(options.kv_tokens)
        .context_length(2 * options.longest)
        .max_sequences(options.sequences)
        .step_tokens(options.step_tokens)
        .open()?;
    let work = work(options);
    let (prompts, replies): (usize, usize) =
        work.iter().fold((0, 0), |(prompts, replies), work| (prompts + work.prompt, replies + work.reply));
    println!("{}: {}", options.model.display(), session.device());
    println!("{} requests: {prompts} prompt tokens, {replies} reply tokens", work.len());
    session.generate(work[0].request(session.vocab_size()))?; // touches every weight and starts the threads

    let (mut fixed, mut continuous) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        let steps = session.counters().steps;
        fixed.push(replies as f64 / timed(|| in_static_batches(&session, &work, options.sequences))?);
        let between = session.counters().steps;
        continuous.push(replies as f64 / timed(|| all_at_once(&session, &work))?);
        println!(
            "round {round}: static {:.1} tokens/s in {} steps, continuous {:.1} in {}: {:.2} times",
            fixed[fixed.len() - 1],
            between - steps,
            continuous[continuous.len() - 1],
            session.counters().steps - between,
            continuous[continuous.len() - 1] / fixed[fixed.len() - 1]
        );
    }
    println!("median: {:.2} times", median(&mut continuous) / median(&mut fixed));

    let full = full_step(&session, options)?;
    let busy = replies as f64 / median(&mut continuous);
    let mut gaps = between_tokens(&session, &work, LESS_OFTEN * busy / work.len() as f64)?;
    gaps.sort();
    let at = |share: f64| 1e3 * gaps[(share * (gaps.len() - 1) as f64) as usize].as_secs_f64();
    println!(
        "time between tokens, requests arriving all the while: median {:.0} ms, p99 {:.0} ms, longest {:.0} ms; \
         a step of {} tokens of prompts and replies takes {:.0} ms",
        at(0.5),
        at(0.99),
        at(1.0),
        options.step_tokens,
        1e3 * full.as_secs_f64()
    );
    Ok(())
}

fn timed(act: impl FnOnce() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    act()?;
    Ok(started.elapsed().as_secs_f64())
}

/// As many requests as there are places; the next ones when all of them have ended.
fn in_static_batches(session: &Session, work: &[Work], places: usize) -> Result<()> {
    for batch in work.chunks(places) {
        serve(session, batch)?;
    }
    Ok(())
}

fn all_at_once(session: &Session, work: &[Work]) -> Result<()> {
    serve(session, work)
}

fn serve(session: &Session, work: &[Work]) -> Result<()> {
    let vocab = session.vocab_size();
    let replies = session.generate_batch(work.iter().map(|work| work.request(vocab)))?;
    let whole = replies.iter().zip(work).all(|(reply, work)| reply.tokens().len() == work.reply);
    if whole { Ok(()) } else { Err("a reply ended early".into()) }
}

/// The times between tokens of all replies, when a request arrives every `pause` seconds.
fn between_tokens(session: &Session, work: &[Work], pause: f64) -> Result<Vec<Duration>> {
    let vocab = session.vocab_size();
    let gaps = std::thread::scope(|scope| {
        let readers: Vec<_> = work
            .iter()
            .map(|work| {
                std::thread::sleep(Duration::from_secs_f64(pause));
                scope.spawn(move || -> amnesic::Result<Vec<Duration>> {
                    let stream = session.stream(work.request(vocab).stream_buffer(1 << 20))?;
                    let mut last: Option<Instant> = None;
                    let mut gaps = Vec::with_capacity(work.reply);
                    for piece in stream {
                        let tokens = piece?.tokens().len();
                        let now = Instant::now();
                        // of several tokens in a piece the first came after the gap
                        gaps.extend(last.map(|last| now - last));
                        gaps.extend((1..tokens).map(|_| Duration::ZERO));
                        last = Some(now);
                    }
                    Ok(gaps)
                })
            })
            .collect();
        let gaps: amnesic::Result<Vec<_>> =
            readers.into_iter().map(|reader| reader.join().expect("a reader does not panic")).collect();
        gaps
    })?;
    Ok(gaps.concat())
}

/// The time of a step that is as full as the chunk budget allows: one place computes a prompt, the others decode. The
/// median of ten, each with what is left of the step that it came in.
fn full_step(session: &Session, options: &Options) -> Result<Duration> {
    let vocab = session.vocab_size();
    let reply = options.longest;
    let mut busy: Vec<_> = (1..options.sequences as u64)
        .map(|seed| {
            session.stream(
                Work { prompt: options.longest / 4, reply, seed }.request(vocab).stream_buffer(1 << 20),
            )
        })
        .collect::<amnesic::Result<_>>()?;
    for stream in &mut busy {
        stream.next().transpose()?; // its prompt is computed
    }
    let mut times = Vec::new();
    for seed in 100..110 {
        let prompt = options.step_tokens + 1 - options.sequences;
        let reply = session.generate(Work { prompt, reply: 1, seed }.request(vocab))?;
        times.push(reply.timing.total);
    }
    drop(busy);
    times.sort();
    Ok(times[times.len() / 2])
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn work(options: &Options) -> Vec<Work> {
    let mut random = Random(2023);
    (0..options.requests as u64)
        .map(|seed| {
            let mut length = |mean: f64, sigma: f64| {
                let length = (mean.ln() - sigma * sigma / 2.0 + sigma * random.normal()).exp();
                (length as usize).clamp(4, options.longest)
            };
            Work { prompt: length(161.0, 1.2), reply: length(338.0, 1.1), seed }
        })
        .collect()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// Box and Muller's.
    fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

struct Options {
    model: PathBuf,
    requests: usize,
    sequences: usize,
    kv_tokens: usize,
    step_tokens: usize,
    longest: usize,
    rounds: usize,
}

impl Options {
    /// None when help was asked for.
    fn parse() -> std::result::Result<Option<Self>, lexopt::Error> {
        use lexopt::prelude::*;
        let mut options = Self {
            model: PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/default")),
            requests: 96,
            sequences: 32,
            kv_tokens: 16_384,
            step_tokens: 256,
            longest: 512,
            rounds: 3,
        };
        let mut args = lexopt::Parser::from_env();
        while let Some(arg) = args.next()? {
            match arg {
                Long("model") => options.model = args.value()?.into(),
                Long("requests") => options.requests = args.value()?.parse()?,
                Long("sequences") => options.sequences = args.value()?.parse()?,
                Long("kv-tokens") => options.kv_tokens = args.value()?.parse()?,
                Long("step-tokens") => options.step_tokens = args.value()?.parse()?,
                Long("longest") => options.longest = args.value()?.parse()?,
                Long("rounds") => options.rounds = args.value()?.parse()?,
                Long("bench") => {} // what cargo passes
                Long("help") | Short('h') => return Ok(None),
                _ => return Err(arg.unexpected()),
            }
        }
        if options.requests == 0 || options.rounds == 0 || options.longest < 8 {
            return Err("--requests and --rounds must be at least 1, --longest at least 8".into());
        }
        if options.step_tokens <= options.sequences {
            return Err("--step-tokens must be above --sequences".into());
        }
        Ok(Some(options))
    }
}
