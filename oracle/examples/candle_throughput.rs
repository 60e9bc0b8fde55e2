//! Prefill and decode rates of candle's own Qwen2 in bf16, one request at a time, as `benches/throughput.rs` measures
//! them: `benches/peers` runs it.
//!
//! `cargo run --release -p amnesic-oracle --example candle_throughput -- --model DIR --prefill 512 --after 128
//! --tokens 8`; RAYON_NUM_THREADS sets its threads.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::qwen2::{Config, ModelForCausalLM};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    use lexopt::prelude::*;
    let (mut folder, mut prefill, mut after, mut tokens) = (PathBuf::new(), 512, 128, 8);
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("model") => folder = parser.value()?.into(),
            Long("prefill") => prefill = parser.value()?.parse::<usize>()?,
            Long("after") => after = parser.value()?.parse::<usize>()?,
            Long("tokens") => tokens = parser.value()?.parse::<usize>()?,
            _ => return Err(arg.unexpected().into()),
        }
    }
    let config = config(&folder)?;
    let file = folder.join("model.safetensors");
    // SAFETY: nobody changes a checkpoint while it is measured.
    let weights = unsafe { VarBuilder::from_mmaped_safetensors(&[file], DType::BF16, &Device::Cpu)? };
    let mut model = ModelForCausalLM::new(&config, weights)?;
    let ids = |len: usize| (0..len).map(|i| (i * 7919 % config.vocab_size) as u32).collect::<Vec<_>>();

    step(&mut model, &ids(2), 0)?; // touches every weight and starts the threads
    model.clear_kv_cache();
    let started = Instant::now();
    step(&mut model, &ids(prefill), 0)?;
    let per_second = prefill as f64 / started.elapsed().as_secs_f64();
    println!("{}", json!({ "test": "prefill", "tokens": prefill, "per_second": per_second }));

    model.clear_kv_cache();
    let mut next = step(&mut model, &ids(after), 0)?;
    let started = Instant::now();
    for position in after..after + tokens {
        next = step(&mut model, &[next], position)?;
    }
    let per_second = tokens as f64 / started.elapsed().as_secs_f64();
    println!("{}", json!({ "test": "decode", "batch": 1, "per_second": per_second }));
    Ok(())
}

/// Computes `ids` from `position` on, and gives the most likely next token.
fn step(model: &mut ModelForCausalLM, ids: &[u32], position: usize) -> candle_core::Result<u32> {
    let ids = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
    model.forward(&ids, position)?.flatten_all()?.argmax(0)?.to_scalar()
}

/// The config in the spelling of transformers 4, which is the one that candle reads.
fn config(folder: &Path) -> Result<Config, Box<dyn Error>> {
    let mut json: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json"))?)?;
    if let Some(theta) = json.pointer("/rope_parameters/rope_theta").cloned() {
        json["rope_theta"] = theta;
    }
    if json["sliding_window"].is_null() {
        json["sliding_window"] = json["max_position_embeddings"].clone(); // not used, but must be a number
    }
    Ok(serde_json::from_value(json)?)
}
