//! What quantized weights and an int8 cache cost: perplexity, and the divergence of the predictions from those of the
//! checkpoint as it is.
//!
//! `cargo bench -p amnesic-benches --features testing --bench quality`: the default model on a text, `AMNESIC_QUALITY_TEXT=FILE` or else
//! this repository's documents. `AMNESIC_BENCH_MODEL=DIR` adds a checkpoint, which needs no tokenizer: it is scored on
//! tokens that it draws itself.

use std::error::Error;
use std::path::{Path, PathBuf};

use amnesic::testing::{Scorer, Tokenizer};
use amnesic::{Builder, KvCache, Quantize, Request, Session};

amnesic::install_scrubbing_allocator!();

/// Tokens of a sequence.
const WINDOW: usize = 512;
/// Sequences at most.
const WINDOWS: usize = 16;
/// Sequences that a checkpoint draws.
const DRAWN: usize = 4;

const PRECISIONS: [(&str, Option<Quantize>, KvCache); 6] = [
    ("as it is", None, KvCache::Checkpoint),
    ("as it is, int8 cache", None, KvCache::Int8),
    ("Q8", Some(Quantize::Q8), KvCache::Checkpoint),
    ("Q8, int8 cache", Some(Quantize::Q8), KvCache::Int8),
    ("Q4", Some(Quantize::Q4), KvCache::Checkpoint),
    ("Q4, int8 cache", Some(Quantize::Q4), KvCache::Int8),
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let default = root.join("models/default");
    let text = match std::env::var_os("AMNESIC_QUALITY_TEXT") {
        Some(file) => std::fs::read_to_string(PathBuf::from(file))?,
        None => ["README.md", "ARCHITECTURE.md", "SECURITY.md", "docs/performance.md"]
            .map(|name| std::fs::read_to_string(root.join(name)).unwrap_or_default())
            .concat(),
    };
    let vocab = Session::open(&default)?.vocab_size();
    let ids = Tokenizer::open(&default, vocab)?.encode(&text, false);
    table("default model", &default, ids.chunks_exact(WINDOW).take(WINDOWS).map(<[u32]>::to_vec).collect());
    if let Some(folder) = std::env::var_os("AMNESIC_BENCH_MODEL") {
        let folder = PathBuf::from(folder);
        let sequences = drawn(&folder)?;
        table(&folder.display().to_string(), &folder, sequences);
    }
    Ok(())
}

/// Sequences that the checkpoint draws at temperature 1, without a filter.
fn drawn(folder: &Path) -> amnesic::Result<Vec<Vec<u32>>> {
    let session = Session::open(folder)?;
    let requests = (0..DRAWN as u32).map(|i| {
        let request = Request::tokens([100 + i]).max_tokens(WINDOW - 1).temperature(1.0);
        request.top_k(0).top_p(1.0).seed(u64::from(i))
    });
    let replies = session.generate_batch(requests)?;
    Ok(replies.iter().zip(100..).map(|(reply, first)| [&[first], reply.tokens()].concat()).collect())
}

fn table(name: &str, folder: &Path, sequences: Vec<Vec<u32>>) {
    let tokens: usize = sequences.iter().map(Vec::len).sum();
    println!("\n{name}: {} sequences, {tokens} tokens\n", sequences.len());
    println!("| weights | perplexity | mean divergence, nats | same first choice | weights, MiB |");
    println!("|---|---|---|---|---|");
    let scorer = |precision| {
        let longest = sequences.iter().map(Vec::len).max().expect("there are sequences");
        Scorer::open(open(folder, precision), longest).expect("it opens")
    };
    let expected = score(&mut scorer(PRECISIONS[0]), &sequences, None).1;
    for precision in PRECISIONS {
        let mut scorer = scorer(precision);
        let (found, _) = score(&mut scorer, &sequences, Some(&expected));
        println!(
            "| {} | {:.3} | {:.6} | {:.2} % | {:.1} |",
            precision.0,
            (found.surprise / found.predicted as f64).exp(),
            found.divergence / found.positions as f64,
            100.0 * found.same as f64 / found.positions as f64,
            scorer.weights_bytes() as f64 / f64::from(1 << 20)
        );
    }
}

fn open(folder: &Path, (_, quantize, cache): (&str, Option<Quantize>, KvCache)) -> Builder {
    let builder = Session::builder(folder).kv_cache(cache);
    match quantize {
        Some(quantize) => builder.quantize(quantize),
        None => builder,
    }
}

#[derive(Default)]
struct Found {
    /// Nats, over `predicted` next tokens.
    surprise: f64,
    predicted: usize,
    /// Nats, over `positions`.
    divergence: f64,
    positions: usize,
    /// Positions with the same likeliest token.
    same: usize,
}

/// Scores all sequences; with the log-probabilities of `expected`, else gives its own.
fn score(scorer: &mut Scorer, sequences: &[Vec<u32>], expected: Option<&[f32]>) -> (Found, Vec<f32>) {
    let (mut found, mut own, mut at) = (Found::default(), Vec::new(), 0);
    for ids in sequences {
        scorer.score(ids, |row, logits| {
            let logs = log_softmax(logits);
            if let Some(&next) = ids.get(row + 1) {
                found.surprise -= f64::from(logs[next as usize]);
                found.predicted += 1;
            }
            match expected {
                None => own.extend(&logs),
                Some(expected) => {
                    let expected = &expected[at..at + logs.len()];
                    at += logs.len();
                    found.positions += 1;
                    found.same += usize::from(largest(expected) == largest(&logs));
                    let pairs = expected.iter().zip(&logs);
                    found.divergence +=
                        pairs.map(|(&p, &q)| f64::from(p).exp() * (f64::from(p) - f64::from(q))).sum::<f64>();
                }
            }
        });
    }
    (found, own)
}

fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - most).exp()).sum();
    logits.iter().map(|&logit| logit - most - sum.ln() as f32).collect()
}

fn largest(values: &[f32]) -> usize {
    (0..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}
