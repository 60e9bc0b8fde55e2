//! Adapters in PEFT's folders: the first byte chooses the checkpoint, and whether the adapter is merged; then come
//! `adapter_config.json`, a zero byte, and the header of `adapter_model.safetensors`.

use std::sync::OnceLock;

use amnesic::{Files, Request};

use crate::shared::{data_of, files, open, read, safetensors, small, typed};

/// Checkpoints and adapters. One is added at the end only: the first byte of what is in the corpus counts them.
const ADAPTERS: [(&str, &str); 4] = [
    ("families/qwen3", "adapters/qwen3/all"),
    ("families/starcoder2", "adapters/starcoder2/all"),
    ("families/gpt_neox", "adapters/gpt_neox/some"),
    ("families/deepseek_v3", "adapters/deepseek_v3/some"),
];

struct Pair {
    model: Files,
    config: Vec<u8>,
    file: Vec<u8>,
}

fn pairs() -> &'static [Pair] {
    static ALL: OnceLock<Vec<Pair>> = OnceLock::new();
    let one = |(model, adapter)| Pair {
        model: files(model),
        config: read(&format!("{adapter}/adapter_config.json")),
        file: read(&format!("{adapter}/adapter_model.safetensors")),
    };
    ALL.get_or_init(|| ADAPTERS.into_iter().map(one).collect())
}

pub fn run(input: &[u8]) {
    let Some((&which, rest)) = input.split_first() else { return };
    let all = pairs();
    let Pair { model, config, file } = &all[usize::from(which & 0x7f) % all.len()];
    let mut parts = rest.splitn(2, |byte| *byte == 0);
    // where one of the two is left out it is the fixture's own
    let given = parts.next().filter(|part| !part.is_empty()).unwrap_or(config);
    let weights = parts.next().map_or_else(|| file.clone(), |header| safetensors(header, data_of(file)));
    let adapter = Files::new().file("adapter_config.json", given.to_vec());
    let adapter = adapter.file("adapter_model.safetensors", weights);
    let builder = small(model.clone());
    if which & 0x80 != 0 {
        return open(builder.merge_adapter_files(adapter));
    }
    let Some(session) = typed(builder.adapter_files("a", adapter).open()) else { return };
    typed(session.generate(Request::tokens([0, 1]).adapter("a").max_tokens(1)));
    typed(session.close());
}
