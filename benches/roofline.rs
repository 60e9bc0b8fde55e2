//! Decoding at batch 1 against what the memory can deliver: it reads every weight once a token, and little
//! else matters.
//!
//! `cargo bench -p amnesic-benches --features testing --bench roofline`; `AMNESIC_BENCH_MODEL=DIR` takes that checkpoint, else
//! random weights in the shape of a common model of half a billion parameters are written to a temporary
//! folder.

#[path = "support/bandwidth.rs"]
mod bandwidth;
#[path = "support/status.rs"]
mod status;

use std::borrow::Cow;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

use amnesic::{FinishReason, Reply, Request, Session};
use bandwidth::Buffer;
use half::bf16;
use safetensors::tensor::{Dtype, View, serialize_to_file};
use status::status_bytes;

amnesic::install_scrubbing_allocator!();

const NEW_TOKENS: usize = 64;
const ROUNDS: usize = 5;
/// Reads of the buffer in a round, of which the fastest counts: they take about as long as the round's decoding.
const READS: usize = 20;
/// What the process may use beside the session's plan.
const SLACK_BYTES: u64 = 64 << 20;
/// Weight bytes that a token may read, in copies of all weights.
const MOST_READS: f64 = 1.2;

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let folder = match std::env::var_os("AMNESIC_BENCH_MODEL") {
        Some(folder) => PathBuf::from(folder),
        None => {
            write_checkpoint(temporary.path())?;
            temporary.path().to_owned()
        }
    };
    let threads = std::thread::available_parallelism()?.get(); // the session's default
    reset_peak();
    let started = Instant::now();
    let session = Session::open(&folder)?;
    let open_secs = started.elapsed().as_secs_f64();
    let weights = session.memory().weights_bytes;
    println!("{}: {} of weights", session.device(), gib(weights as f64));
    println!("opened in                {open_secs:.2} s");

    let prompt = long_winded(&session)?;
    check_memory(&session)?;
    // only now: its pages would count as the session's
    let buffer = Buffer::new()?;
    let before = session.counters();
    // in turn, so that a machine whose speed drifts is compared with itself
    let (mut rates, mut bandwidths, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        bandwidths.push(buffer.read_rate(threads, READS));
        let reply = decode(&session, prompt)?;
        assert_eq!(reply.tokens().len(), NEW_TOKENS);
        rates.push(reply.timing.decode_rate(NEW_TOKENS).ok_or("no time passed")?);
    }
    let after = session.counters();
    let steps = (ROUNDS * NEW_TOKENS) as u64;
    assert_eq!(after.steps - before.steps, steps, "one step a token");
    let read = (after.weight_bytes - before.weight_bytes) as f64 / steps as f64;
    shares.extend(rates.iter().zip(&bandwidths).map(|(rate, bandwidth)| read * rate / bandwidth));
    let (rate, bandwidth, share) = (median(rates), median(bandwidths), median(shares));
    println!("decode, batch 1          {rate:.2} tokens/s");
    println!("weights read a token     {} ({:.3} of all)", gib(read), read / weights as f64);
    println!("achieved                 {}/s", gib(read * rate));
    println!("memory can be read at    {}/s ({threads} threads)", gib(bandwidth));
    println!("share of it              {:.1} % (medians of {ROUNDS} rounds)", 100.0 * share);
    assert!(read / weights as f64 <= MOST_READS, "a token reads weights more than once");

    println!("\n{}", session.close()?);
    Ok(())
}

/// What the process has needed so far is within the session's plan.
fn check_memory(session: &Session) -> Result<(), Box<dyn Error>> {
    let limit = session.memory().total_bytes() + SLACK_BYTES;
    println!("planned, with slack      {}", gib(limit as f64));
    for field in ["VmHWM", "RssAnon", "RssFile", "RssShmem"] {
        let Some(bytes) = status_bytes(field) else { continue }; // only Linux tells
        println!("{field:24} {}", gib(bytes as f64));
        assert!(field != "VmHWM" || bytes <= limit, "more memory than planned");
    }
    Ok(())
}

/// Decoding and nothing else: a prompt of one token makes its prefill a decode step.
fn decode(session: &Session, id: u32) -> amnesic::Result<Reply> {
    session.generate(Request::tokens([id]).max_tokens(NEW_TOKENS).temperature(0.0))
}

/// A prompt whose reply no end token cuts short.
fn long_winded(session: &Session) -> Result<u32, Box<dyn Error>> {
    for id in 3..100 {
        if decode(session, id)?.finish_reason() == FinishReason::Length {
            return Ok(id);
        }
    }
    Err("every reply ends early".into())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Lets the peak count from here: writing a checkpoint is not the session.
fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5"); // without it the peak is only higher
}

fn gib(bytes: f64) -> String {
    format!("{:.3} GiB", bytes / f64::from(1 << 30))
}

const HIDDEN: usize = 896;
const INTERMEDIATE: usize = 4864;
const LAYERS: usize = 24;
const HEADS: usize = 14;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const VOCAB: usize = 151_936;

/// Writes the shape with random weights: about 0.92 GiB of bf16.
fn write_checkpoint(folder: &Path) -> Result<(), Box<dyn Error>> {
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCAB,
        "max_position_embeddings": 32768,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": true,
        "bos_token_id": 1,
        "eos_token_id": 2,
    });
    std::fs::write(folder.join("config.json"), config.to_string())?;

    let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN])];
    for layer in 0..LAYERS {
        let shapes = [
            ("input_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![q, HIDDEN]),
            ("self_attn.k_proj", vec![kv, HIDDEN]),
            ("self_attn.v_proj", vec![kv, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, q]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
        ];
        tensors.extend(shapes.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
    }
    tensors.push(("model.norm.weight".to_owned(), vec![HIDDEN]));
    let views = tensors.into_iter().zip(0..).map(|((name, shape), seed)| (name, Random { shape, seed }));
    serialize_to_file(views, None, &folder.join("model.safetensors"))?;
    Ok(())
}

/// A tensor made only when it is written, so that the file never lies in memory as a whole: ones for a norm,
/// else uniform in ±0.05.
struct Random {
    shape: Vec<usize>,
    seed: u64,
}

impl View for Random {
    fn dtype(&self) -> Dtype {
        Dtype::BF16
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let len = self.shape.iter().product::<usize>() as u64;
        let value = |i| match self.shape.len() {
            1 => bf16::ONE,
            _ => {
                bf16::from_f32(0.1 * (splitmix((self.seed << 32) + i) >> 40) as f32 / (1 << 24) as f32 - 0.05)
            }
        };
        let mut bytes = Vec::with_capacity(self.data_len());
        (0..len).for_each(|i| bytes.extend(value(i).to_le_bytes()));
        bytes.into()
    }

    fn data_len(&self) -> usize {
        2 * self.shape.iter().product::<usize>()
    }
}

/// The i-th number of the splitmix64 sequence.
fn splitmix(i: u64) -> u64 {
    let mut x = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
