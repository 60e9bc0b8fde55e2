//! One program for all targets, so that they are linked once: the environment variable `AMNESIC_FUZZ_TARGET` names the one that
//! runs. `fuzz/run` builds it and sets that.

#![no_main]

mod shared;

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

macro_rules! targets {
    ($($name:ident: $path:literal),* $(,)?) => {
        $(#[path = $path] mod $name;)*
        const TARGETS: &[(&str, fn(&[u8]))] = &[$((stringify!($name), $name::run)),*];
    };
}

targets! {
    adapter: "../fuzz_targets/adapter.rs",
    config: "../fuzz_targets/config.rs",
    gguf: "../fuzz_targets/gguf.rs",
    grammar: "../fuzz_targets/grammar.rs",
    safetensors: "../fuzz_targets/safetensors.rs",
    template: "../fuzz_targets/template.rs",
    tokenize: "../fuzz_targets/tokenize.rs",
    tokenizer_json: "../fuzz_targets/tokenizer_json.rs",
}

static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();

fn start() {
    let name = std::env::var("AMNESIC_FUZZ_TARGET").expect("AMNESIC_FUZZ_TARGET names a target");
    let (_, run) = TARGETS.iter().find(|(known, _)| *known == name).expect("a target of fuzz/fuzz_targets");
    TARGET.set(*run).expect("started once");
    match name.as_str() {
        // The `tokenizers` crate panics on some texts, which is caught; so are ours, and compared.
        "tokenize" => std::panic::set_hook(Box::new(|_| {})),
        _ => shared::start(),
    }
}

fuzz_target!(init: start(), |input: &[u8]| TARGET.get().expect("started")(input));
