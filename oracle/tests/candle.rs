//! The same weights through candle's own Llama and through a session: the logits must agree.
//!
//! candle runs in f32 on the widened weights, so what differs is our rounding of keys and values to the checkpoint's
//! type, and the order of additions.

use std::path::{Path, PathBuf};

use amnesic::testing::LogitsTap;
use amnesic::{Request, Session};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};

amnesic::install_scrubbing_allocator!();

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The config in the spelling of transformers 4, which is the one that candle reads.
fn config(folder: &Path) -> LlamaConfig {
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    if let Some(rope) = json.get("rope_parameters").cloned() {
        json["rope_theta"] = rope["rope_theta"].clone();
        json["rope_scaling"] = if rope["rope_type"] == "default" { serde_json::Value::Null } else { rope };
    }
    serde_json::from_value(json).unwrap()
}

/// candle's logits of each next token along `tokens`, from the end of the prompt on.
fn candle(folder: &Path, prompt: &[u32], tokens: &[u32]) -> Vec<f32> {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let weights = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu).unwrap();
    let config = config(folder).into_config(false);
    let model = Llama::load(weights, &config).unwrap();
    let mut cache = Cache::new(true, DType::F32, &config, &Device::Cpu).unwrap();
    let mut logits = Vec::new();
    let mut step = |ids: &[u32], position| {
        let ids = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let row = model.forward(&ids, position, &mut cache).unwrap();
        logits.extend(row.squeeze(0).unwrap().to_vec1::<f32>().unwrap());
    };
    step(prompt, 0);
    for (i, &token) in tokens[..tokens.len() - 1].iter().enumerate() {
        step(&[token], prompt.len() + i);
    }
    logits
}

fn agree(folder: &Path, prompt: Vec<u32>, tolerance: f32) {
    let session = Session::open(folder).unwrap();
    let tap = LogitsTap::default();
    let reply = session
        .generate(Request::tokens(prompt.clone()).max_tokens(24).temperature(0.0).tap_logits(&tap))
        .unwrap();
    let (mine, theirs) = (tap.values(), candle(folder, &prompt, reply.tokens()));
    assert_eq!(mine.len(), theirs.len());
    let worst = mine.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("{}: largest difference {worst:.2e}", folder.display());
    assert!(worst <= tolerance, "{}: largest difference {worst}", folder.display());
}

#[test]
fn candle_agrees_in_single_precision() {
    agree(&root().join("tests/fixtures/llama2_f32"), (1..40).collect(), 5e-5);
}

#[test]
fn candle_agrees_on_llama3_rope_in_bf16() {
    agree(&root().join("tests/fixtures/llama_v4_spelling"), (1..40).collect(), 0.2);
}

#[test]
fn candle_agrees_on_the_default_model() {
    agree(&root().join("models/default"), (300..350).collect(), 0.2);
}
