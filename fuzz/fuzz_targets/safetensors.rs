//! Headers of safetensors files, and indices of shards.
//!
//! The first byte chooses the checkpoint whose tensors stand behind the header; with its highest bit the length before the
//! header is the input's too. Behind a zero byte stands `model.safetensors.index.json`: then the file is a shard.

use std::sync::OnceLock;

use amnesic::Files;

use crate::shared::{data_of, files, open, read, safetensors, small};

/// One is added at the end only: the first byte of what is in the corpus counts them.
const CHECKPOINTS: [&str; 8] = [
    "families/youtu",
    "quantized/gptq",
    "quantized/nf4",
    "quantized/float_8",
    "quantized/mxfp4",
    "quantized/packed_4_zeros",
    "encoders/bert_plain",
    "smollm_f16",
];

fn checkpoints() -> &'static [(Files, Vec<u8>)] {
    static ALL: OnceLock<Vec<(Files, Vec<u8>)>> = OnceLock::new();
    let one = |name| (files(name), data_of(&read(&format!("{name}/model.safetensors"))).to_vec());
    ALL.get_or_init(|| CHECKPOINTS.into_iter().map(one).collect())
}

pub fn run(input: &[u8]) {
    let Some((&which, rest)) = input.split_first() else { return };
    let all = checkpoints();
    let (files, data) = &all[usize::from(which & 0x7f) % all.len()];
    let mut parts = rest.splitn(2, |byte| *byte == 0);
    let (files, weights) = match which & 0x80 {
        0 => {
            let (header, index) = (parts.next().unwrap_or_default(), parts.next());
            let files = match index {
                Some(index) => files.clone().file("model.safetensors.index.json", index.to_vec()),
                None => files.clone(),
            };
            (files, safetensors(header, data))
        }
        _ => (files.clone(), [rest, data].concat()),
    };
    open(small(files.file("model.safetensors", weights)));
}
