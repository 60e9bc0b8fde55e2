//! `config.json`, beside the weights of a checkpoint that the first byte chooses; behind a zero byte
//! `generation_config.json`.

use std::sync::OnceLock;

use amnesic::Files;

use crate::shared::{files, open, small};

/// One is added at the end only: the first byte of what is in the corpus counts them.
const CHECKPOINTS: [&str; 24] = [
    "families/youtu",
    "families/phi",
    "families/phi3_longrope",
    "families/gemma3_text",
    "families/qwen3_moe",
    "families/deepseek_v3",
    "families/gpt_oss_other",
    "families/llama_yarn",
    "families/olmo3",
    "families/cohere2",
    "families/glm4_moe",
    "families/falcon_groups",
    "families/granitemoeshared",
    "quantized/gptq",
    "quantized/awq",
    "quantized/nf4",
    "quantized/fp8",
    "quantized/packed_4",
    "quantized/mxfp4",
    "encoders/bert_scores",
    "encoders/modernbert",
    "encoders/nomic",
    "encoders/qwen3_embedding",
    "encoders/gte",
];

fn checkpoints() -> &'static [Files] {
    static ALL: OnceLock<Vec<Files>> = OnceLock::new();
    ALL.get_or_init(|| CHECKPOINTS.into_iter().map(files).collect())
}

pub fn run(input: &[u8]) {
    let Some((&which, rest)) = input.split_first() else { return };
    let all = checkpoints();
    let mut files = all[usize::from(which) % all.len()].clone();
    let mut parts = rest.splitn(2, |byte| *byte == 0);
    files = files.file("config.json", parts.next().unwrap_or_default().to_vec());
    if let Some(generation) = parts.next() {
        files = files.file("generation_config.json", generation.to_vec());
    }
    open(small(files));
}
