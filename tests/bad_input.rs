//! The attack catalogue: what is wrong with a checkpoint, a setting or a request gives the error that says so. It
//! never panics, aborts, hangs or takes memory to match.

mod common;

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use amnesic::alloc::Scrubbing;
use amnesic::{
    Builder, Device, DeviceReason, Error, FinishReason, GrammarReason, PoisonReason, Request, Session,
};
use common::{Random, Recipe};
use half::{bf16, f16};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

/// Remembers the largest block that each thread asked for. Gives none above twice what is allowed, so that a reader
/// without bounds ends soon.
struct Watching;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}
const MOST_AT_ONCE: usize = 64 << 20;

/// The largest block since the last time.
fn largest() -> usize {
    LARGEST.replace(0)
}

// SAFETY: goes on to the scrubbing allocator with the caller's layout, or fails.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.set(LARGEST.get().max(layout.size()));
        // SAFETY: the caller's contract is the same.
        if layout.size() > 2 * MOST_AT_ONCE {
            std::ptr::null_mut()
        } else {
            unsafe { Scrubbing.alloc(layout) }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above; the block came from the same allocator.
        unsafe { Scrubbing.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

const EMBED: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";
const Q: &str = "model.layers.0.self_attn.q_proj.weight";
const K: &str = "model.layers.1.self_attn.k_proj.weight";
const DOWN: &str = "model.layers.1.mlp.down_proj.weight";
const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const SHARDS: [&str; 2] = ["model-1.safetensors", "model-2.safetensors"];

/// A good checkpoint taken apart, to be written with one thing wrong.
#[derive(Clone)]
struct Parts {
    config: Value,
    /// By name: dtype, shape, data_offsets.
    header: serde_json::Map<String, Value>,
    data: Vec<u8>,
}

impl Parts {
    fn new(recipe: &Recipe) -> Self {
        let folder = tempdir().unwrap();
        recipe.write(folder.path(), None);
        Self::read(&recipe.config, &folder.path().join(WEIGHTS))
    }

    fn read(config: &Value, file: &Path) -> Self {
        let bytes = std::fs::read(file).unwrap();
        let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = serde_json::from_slice(&bytes[8..end]).unwrap();
        Self { config: config.clone(), header, data: bytes[end..].to_vec() }
    }

    fn small() -> Self {
        Self::new(&Recipe::small(64))
    }

    fn weights(&self) -> Vec<u8> {
        joined(Value::Object(self.header.clone()).to_string().as_bytes(), &self.data)
    }

    fn write(&self) -> TempDir {
        self.write_with(&self.weights())
    }

    fn write_with(&self, weights: &[u8]) -> TempDir {
        let folder = tempdir().unwrap();
        std::fs::write(folder.path().join(CONFIG), self.config.to_string()).unwrap();
        std::fs::write(folder.path().join(WEIGHTS), weights).unwrap();
        folder
    }

    fn range(&self, name: &str) -> Range<usize> {
        let offset = |i: usize| self.header[name]["data_offsets"][i].as_u64().unwrap() as usize;
        offset(0)..offset(1)
    }

    /// Only the tensors that `keep` says.
    fn only(&self, keep: impl Fn(&str) -> bool) -> Self {
        let mut only = Self { config: self.config.clone(), header: Default::default(), data: Vec::new() };
        for (name, info) in self.header.iter().filter(|(name, _)| keep(name)) {
            let start = only.data.len();
            only.data.extend(&self.data[self.range(name)]);
            let mut info = info.clone();
            info["data_offsets"] = json!([start, only.data.len()]);
            only.header.insert(name.clone(), info);
        }
        only
    }

    /// All values in another type.
    fn stored_as(&self, dtype: &str) -> Self {
        let mut other = Self { config: self.config.clone(), header: self.header.clone(), data: Vec::new() };
        for name in self.header.keys() {
            let start = other.data.len();
            for bytes in self.data[self.range(name)].as_chunks::<2>().0 {
                other.data.extend(stored(dtype, bf16::from_le_bytes(*bytes).to_f32()));
            }
            other.header[name]["dtype"] = dtype.into();
            other.header[name]["data_offsets"] = json!([start, other.data.len()]);
        }
        other
    }

    /// Two shards, layer 1 in the second, and the index.
    fn shards(&self) -> Shards {
        let second = |name: &str| name.starts_with("model.layers.1.");
        let map = self.header.keys().map(|name| (name.clone(), SHARDS[usize::from(second(name))].into()));
        Shards {
            config: self.config.clone(),
            index: json!({"metadata": {"total_size": self.data.len()}, "weight_map": Value::Object(map.collect())}),
            shards: [self.only(|name| !second(name)), self.only(second)],
        }
    }
}

struct Shards {
    config: Value,
    index: Value,
    shards: [Parts; 2],
}

impl Shards {
    fn write(&self) -> TempDir {
        let folder = tempdir().unwrap();
        std::fs::write(folder.path().join(CONFIG), self.config.to_string()).unwrap();
        std::fs::write(folder.path().join(INDEX), self.index.to_string()).unwrap();
        for (name, shard) in SHARDS.iter().zip(&self.shards) {
            std::fs::write(folder.path().join(name), shard.weights()).unwrap();
        }
        folder
    }
}

fn joined(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

fn stored(dtype: &str, value: f32) -> Vec<u8> {
    match dtype {
        "F32" => value.to_le_bytes().to_vec(),
        "F16" => f16::from_f32(value).to_le_bytes().to_vec(),
        _ => bf16::from_f32(value).to_le_bytes().to_vec(),
    }
}

fn builder(folder: &Path) -> Builder {
    Session::builder(folder).threads(1).kv_tokens(64).max_sequences(2).step_tokens(16)
}

/// What an error must be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Is<'a> {
    Config(&'a str),
    Family,
    Memory,
    Read,
    Setting(&'a str),
    Tensor(&'a str),
    Tokenizer,
    Weights,
}

fn is(error: &Error) -> Is<'_> {
    match error {
        Error::Config { field, .. } => Is::Config(field),
        Error::UnknownModelType { .. } => Is::Family,
        Error::Memory { .. } => Is::Memory,
        Error::Read { .. } => Is::Read,
        Error::Request { field, .. } => Is::Setting(field),
        Error::Tensor { tensor, .. } => Is::Tensor(tensor),
        Error::Tensors { first, .. } => Is::Tensor(first.split("`").nth(1).unwrap()),
        Error::Tokenizer { .. } => Is::Tokenizer,
        Error::WeightsFile { .. } => Is::Weights,
        other => panic!("no such error was expected: {other}"),
    }
}

/// Opening fails as it should: without a panic, soon, in little memory, with an error that names what is wrong.
fn refuses(what: &str, builder: Builder, expected: Is, words: &[&str]) {
    let start = Instant::now();
    let _ = largest();
    let result = catch_unwind(AssertUnwindSafe(|| builder.open()));
    let took = start.elapsed();
    let error = result.unwrap_or_else(|_| panic!("{what}: opening panicked"));
    let error = error.err().unwrap_or_else(|| panic!("{what}: it opened"));
    let shown = error.to_string();
    assert_eq!(is(&error), expected, "{what}: {shown}");
    for word in words {
        assert!(shown.contains(word), "{what}: {word:?} is not in: {shown}");
    }
    is_one_short_line(what, &shown);
    assert!(took < Duration::from_secs(2), "{what}: took {took:?}");
    let largest = largest();
    assert!(largest < MOST_AT_ONCE, "{what}: allocated {largest} bytes at once");
}

fn is_one_short_line(what: &str, shown: &str) {
    assert!(
        shown.len() <= 1024,
        "{what}: {} bytes: {}",
        shown.len(),
        shown.escape_debug().take(200).collect::<String>()
    );
    assert!(!shown.contains(char::is_control), "{what}: {}", shown.escape_debug());
}

/// Greedy tokens, to see that a session works.
fn greedy(session: &Session) -> Vec<u32> {
    session.generate(Request::tokens([1, 2, 3]).max_tokens(4)).unwrap().tokens().to_vec()
}

#[test]
fn the_checkpoint_that_all_cases_start_from_opens() {
    let parts = Parts::small();
    let whole = greedy(&builder(parts.write().path()).open().unwrap());
    assert_eq!(greedy(&builder(parts.shards().write().path()).open().unwrap()), whole);
    assert_eq!(greedy(&builder(parts.stored_as("F32").write().path()).open().unwrap()), whole);
}

#[test]
fn config_as_a_whole() {
    let parts = Parts::small();
    let nowhere = tempdir().unwrap().path().join("nowhere");
    refuses("no folder", builder(&nowhere), Is::Read, &["nowhere", CONFIG]);
    let nested = "[".repeat(100_000);
    let cases: [(&str, &[u8], Is); 8] = [
        ("empty", b"", Is::Config("")),
        ("not JSON", b"model_type = llama", Is::Config("")),
        ("an array", b"[]", Is::Config("")),
        ("a number", b"1", Is::Config("")),
        ("not UTF-8", b"{\"model_type\": \"\xff\"}", Is::Read),
        ("cut off", b"{\"model_type\": \"llama\",", Is::Config("")),
        ("a number out of range", b"{\"hidden_size\": 1e999}", Is::Config("")),
        ("deeply nested", nested.as_bytes(), Is::Config("")),
    ];
    for (what, text, expected) in cases {
        let folder = parts.write();
        std::fs::write(folder.path().join(CONFIG), text).unwrap();
        let words: &[&str] = if expected == Is::Read { &[CONFIG] } else { &[CONFIG, "a JSON object"] };
        refuses(what, builder(folder.path()), expected, words);
    }
    let folder = parts.write();
    std::fs::remove_file(folder.path().join(CONFIG)).unwrap();
    refuses("no config", builder(folder.path()), Is::Read, &[CONFIG]);
}

#[test]
fn sizes_in_config() {
    let required =
        ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"];
    let optional = ["num_key_value_heads", "head_dim", "max_position_embeddings"];
    let wrong = [
        json!(0),
        json!(-1),
        json!(64.5),
        json!("64"),
        json!(1_u64 << 63),
        json!(u64::MAX),
        json!(1e300),
        json!([64]),
        json!(true),
    ];
    for field in required.into_iter().chain(optional) {
        let missing = required.contains(&field).then_some(Value::Null);
        for value in wrong.iter().cloned().chain(missing) {
            let what = format!("{field}: {value}");
            let mut parts = Parts::small();
            parts.config[field] = value;
            refuses(
                &what,
                builder(parts.write().path()),
                Is::Config(field),
                &[CONFIG, field, "a whole number from 1"],
            );
        }
    }
}

/// Of a model whose keys and values come from a latent.
#[test]
fn fields_of_latents() {
    let folder = common::fixture("families/deepseek_v2_other");
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let kv_b = "model.layers.0.self_attn.kv_b_proj.weight";
    let cases: Vec<(&str, Value, Is, &[&str])> = vec![
        ("kv_lora_rank", json!(null), Is::Config("kv_lora_rank"), &["whole number"]),
        ("kv_lora_rank", json!(24), Is::Config("kv_lora_rank"), &["multiple of 16"]),
        ("kv_lora_rank", json!(528), Is::Config("kv_lora_rank"), &["512"]),
        ("v_head_dim", json!(17), Is::Config("v_head_dim"), &["multiple of 16"]),
        ("qk_nope_head_dim", json!("12"), Is::Config("qk_nope_head_dim"), &["whole number"]),
        ("qk_rope_head_dim", json!(7), Is::Config("qk_rope_head_dim"), &["even"]),
        ("qk_rope_head_dim", json!(0), Is::Config("qk_rope_head_dim"), &["whole number"]),
        ("num_attention_heads", json!(1 << 17), Is::Config("num_attention_heads"), &["values"]),
        ("topk_method", json!("noaux_tc"), Is::Config("topk_method"), &["group_limited_greedy"]),
        ("mlp_layer_types", json!(["dense"]), Is::Config("mlp_layer_types"), &["a list of 2"]),
        ("mlp_layer_types", json!(["dense", "thin"]), Is::Config("mlp_layer_types"), &["sparse"]),
        ("v_head_dim", json!(48), Is::Tensor(kv_b), &["[372, 16]", "[276, 16]"]),
    ];
    for (field, value, is, words) in cases {
        let changed = tempfile::tempdir().unwrap();
        let mut config = config.clone();
        config[field] = value;
        std::fs::write(changed.path().join("config.json"), config.to_string()).unwrap();
        std::fs::copy(folder.join("model.safetensors"), changed.path().join("model.safetensors")).unwrap();
        refuses(field, builder(changed.path()), is, words);
    }
}

#[test]
fn fields_of_config() {
    let llama3 = |field: &str, value: Value| {
        let mut rope = json!({"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
        rope[field] = value;
        rope
    };
    let rope = |field: &str, value: Value| json!({"rope_type": "default", "rope_theta": 1e4, field: value});
    let shape = |field| Is::Config(field);
    let cases: Vec<(&str, Value, Is, &[&str])> = vec![
        ("num_key_value_heads", json!(3), shape("num_key_value_heads"), &["divisor", "4"]),
        ("num_key_value_heads", json!(8), shape("num_key_value_heads"), &["divisor", "4"]),
        ("head_dim", json!(31), shape("head_dim"), &["even"]),
        ("head_dim", json!(514), shape("head_dim"), &["512"]),
        ("num_attention_heads", json!(1 << 20), shape("head_dim"), &["heads"]),
        ("model_type", json!("qwen4"), Is::Family, &["qwen4", "qwen2", "qwen3"]),
        ("model_type", json!("Gemma3ForCausalLM"), Is::Family, &["gemma3_text"]),
        ("model_type", json!(null), Is::Family, &["llama"]),
        ("model_type", json!(7), shape("model_type"), &["a string"]),
        ("dtype", json!("float8"), shape("dtype"), &["bfloat16"]),
        ("torch_dtype", json!("float8"), shape("torch_dtype"), &["bfloat16"]),
        ("torch_dtype", json!(16), shape("torch_dtype"), &["a string"]),
        ("hidden_act", json!("snake"), shape("hidden_act"), &["silu"]),
        (
            "quantization_config",
            json!({"quant_method": "eetq"}),
            shape("quantization_config.quant_method"),
            &["gptq", "mxfp4"],
        ),
        (
            "quantization_config",
            json!({"quant_method": "gptq", "bits": 5, "group_size": 32}),
            shape("quantization_config.bits"),
            &["2, 3, 4 or 8"],
        ),
        (
            "quantization_config",
            json!({"quant_method": "gptq", "bits": 4}),
            shape("quantization_config.group_size"),
            &["a whole number"],
        ),
        (
            "quantization_config",
            json!({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv_fast"}),
            shape("quantization_config.version"),
            &["gemm or gemv"],
        ),
        (
            "quantization_config",
            json!({"quant_method": "bitsandbytes"}),
            shape("quantization_config.load_in_4bit"),
            &["load_in_8bit"],
        ),
        (
            "quantization_config",
            json!({"quant_method": "fp8", "fmt": "e3m4"}),
            shape("quantization_config.fmt"),
            &["e4m3"],
        ),
        (
            "quantization_config",
            json!({"quant_method": "compressed-tensors", "config_groups": {"a": {}, "b": {}}}),
            shape("quantization_config.config_groups"),
            &["one with `weights`"],
        ),
        ("tie_word_embeddings", json!("yes"), shape("tie_word_embeddings"), &["true or false"]),
        ("attention_bias", json!(1), shape("attention_bias"), &["true or false"]),
        ("mlp_bias", json!([]), shape("mlp_bias"), &["true or false"]),
        ("rms_norm_eps", json!(0), shape("rms_norm_eps"), &["above 0"]),
        ("rms_norm_eps", json!(-1e-5), shape("rms_norm_eps"), &["above 0"]),
        ("rms_norm_eps", json!("1e-5"), shape("rms_norm_eps"), &["above 0"]),
        ("eos_token_id", json!("</s>"), shape("eos_token_id"), &["token id"]),
        ("eos_token_id", json!(1.5), shape("eos_token_id"), &["token id"]),
        ("eos_token_id", json!([1, "2"]), shape("eos_token_id"), &["token id"]),
        ("eos_token_id", json!(1_u64 << 32), shape("eos_token_id"), &["token id"]),
        ("rope_parameters", json!("default"), shape("rope_parameters"), &["an object"]),
        (
            "rope_parameters",
            rope("rope_type", json!("spiral")),
            shape("rope_parameters.rope_type"),
            &["llama3"],
        ),
        ("rope_parameters", rope("rope_type", json!(3)), shape("rope_parameters.rope_type"), &["a string"]),
        ("rope_parameters", json!({"type": "spiral"}), shape("rope_parameters.type"), &["llama3"]),
        ("rope_parameters", json!({"type": "linear"}), shape("rope_parameters.factor"), &["above 0"]),
        (
            "rope_parameters",
            json!({"rope_type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [1.0]}),
            shape("rope_parameters.short_factor"),
            &["a list of"],
        ),
        (
            "rope_parameters",
            json!({"rope_type": "yarn", "factor": 4.0, "beta_fast": 1e-9, "beta_slow": 1e9}),
            shape("rope_parameters.beta_fast"),
            &["above beta_slow"],
        ),
        ("partial_rotary_factor", json!(0.01), shape("partial_rotary_factor"), &["even number"]),
        ("partial_rotary_factor", json!(2.0), shape("partial_rotary_factor"), &["even number"]),
        (
            "rope_parameters",
            rope("rope_theta", json!(-1e4)),
            shape("rope_parameters.rope_theta"),
            &["above 0"],
        ),
        ("rope_parameters", rope("rope_theta", json!(0)), shape("rope_parameters.rope_theta"), &["above 0"]),
        (
            "rope_parameters",
            rope("rope_theta", json!("NaN")),
            shape("rope_parameters.rope_theta"),
            &["above 0"],
        ),
        ("rope_parameters", llama3("factor", json!(null)), shape("rope_parameters.factor"), &["above 0"]),
        ("rope_parameters", llama3("factor", json!("NaN")), shape("rope_parameters.factor"), &["above 0"]),
        (
            "rope_parameters",
            llama3("low_freq_factor", json!(null)),
            shape("rope_parameters.low_freq_factor"),
            &["above 0"],
        ),
        (
            "rope_parameters",
            llama3("high_freq_factor", json!(null)),
            shape("rope_parameters.high_freq_factor"),
            &["above 0"],
        ),
        (
            "rope_parameters",
            llama3("original_max_position_embeddings", json!(null)),
            shape("rope_parameters.original_max_position_embeddings"),
            &["above 0"],
        ),
        (
            "rope_parameters",
            llama3("low_freq_factor", json!(4.0)),
            shape("rope_parameters.high_freq_factor"),
            &["low_freq_factor"],
        ),
        (
            "rope_parameters",
            llama3("low_freq_factor", json!(5.0)),
            shape("rope_parameters.high_freq_factor"),
            &["low_freq_factor"],
        ),
        // sizes that the tensors do not have
        ("vocab_size", json!(65), Is::Tensor(EMBED), &[WEIGHTS, "[65, 64]", "[64, 64]"]),
        ("vocab_size", json!(1 << 24), Is::Tensor(EMBED), &["[16777216, 64]"]),
        ("hidden_size", json!(128), Is::Tensor(EMBED), &["[64, 128]"]),
        ("hidden_size", json!(1 << 20), Is::Tensor(EMBED), &["[64, 1048576]"]),
        (
            "intermediate_size",
            json!(1 << 20),
            Is::Tensor("model.layers.0.mlp.gate_proj.weight"),
            &["[1048576, 64]"],
        ),
        ("num_attention_heads", json!(2), Is::Tensor(Q), &["[64, 64]", "[128, 64]"]),
        (
            "num_hidden_layers",
            json!(3),
            Is::Tensor("model.layers.2.input_layernorm.weight"),
            &["be there", "[64]"],
        ),
        (
            "num_hidden_layers",
            json!(4096),
            Is::Tensor("model.layers.2.input_layernorm.weight"),
            &["be there"],
        ),
        ("tie_word_embeddings", json!(false), Is::Tensor("lm_head.weight"), &["be there", "[64, 64]"]),
        (
            "attention_bias",
            json!(true),
            Is::Tensor("model.layers.0.self_attn.q_proj.bias"),
            &["be there", "[128]"],
        ),
        ("model_type", json!("qwen2"), Is::Tensor("model.layers.0.self_attn.q_proj.bias"), &["be there"]),
    ];
    for (field, value, expected, words) in cases {
        let what = format!("{field}: {value}");
        let mut parts = Parts::small();
        parts.config[field] = value;
        if what.starts_with("num_attention_heads: 1048576") {
            parts.config["num_key_value_heads"] = json!(1);
        }
        refuses(&what, builder(parts.write().path()), expected, words);
    }
    let mut parts = Parts::small();
    parts.config["head_dim"] = json!(null);
    parts.config["num_attention_heads"] = json!(6);
    refuses(
        "heads that do not divide",
        builder(parts.write().path()),
        Is::Config("head_dim"),
        &["do not divide"],
    );
    for types in [
        json!(["full_attention"]),
        json!(["full_attention", "linear"]),
        json!("full_attention"),
        json!([1, 2]),
    ] {
        let mut parts = Parts::small();
        parts.config["model_type"] = json!("mistral");
        parts.config["sliding_window"] = json!(8);
        parts.config["layer_types"] = types;
        refuses("layer types", builder(parts.write().path()), Is::Config("layer_types"), &["a list of 2"]);
    }
}

#[test]
fn the_largest_context_just_opens() {
    let mut parts = Parts::small();
    let expected = greedy(&builder(parts.write().path()).open().unwrap());
    parts.config["max_position_embeddings"] = json!(1_u64 << 31);
    let session = builder(parts.write().path()).open().unwrap();
    assert_eq!(session.context_length(), 64);
    assert_eq!(greedy(&session), expected);
}

#[test]
fn epsilons_beyond_single_precision() {
    for epsilon in [1e300, 1e-300] {
        let mut parts = Parts::small();
        parts.config["rms_norm_eps"] = json!(epsilon);
        refuses(
            &format!("rms_norm_eps: {epsilon:e}"),
            builder(parts.write().path()),
            Is::Config("rms_norm_eps"),
            &["number"],
        );
    }
}

#[test]
fn weights_files_that_are_no_files() {
    let parts = Parts::small();
    let missing = parts.write();
    std::fs::remove_file(missing.path().join(WEIGHTS)).unwrap();
    refuses("missing", builder(missing.path()), Is::Read, &[WEIGHTS]);
    std::fs::create_dir(missing.path().join(WEIGHTS)).unwrap();
    refuses("a folder", builder(missing.path()), Is::Weights, &[WEIGHTS, "regular file"]);
    refuses("empty", builder(parts.write_with(&[]).path()), Is::Weights, &[WEIGHTS, "not empty"]);
}

/// The system's special files: opening must neither wait for a writer nor read without end.
#[test]
fn pipes_and_devices_in_a_checkpoint() {
    let files = [CONFIG, WEIGHTS, INDEX, "tokenizer.json", "tokenizer_config.json", "generation_config.json"];
    let mut wrong = Vec::new();
    for file in files {
        for kind in ["pipe", "device", "folder"] {
            let folder = tempdir().unwrap();
            Recipe::small(1024).write(folder.path(), Some("byte_level"));
            let path = folder.path().join(file);
            if file == INDEX {
                std::fs::remove_file(folder.path().join(WEIGHTS)).unwrap();
            }
            let _ = std::fs::remove_file(&path);
            match kind {
                "pipe" => {
                    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success())
                }
                "device" => std::os::unix::fs::symlink("/dev/zero", &path).unwrap(),
                _ => std::fs::create_dir(&path).unwrap(),
            }
            let (tell, told) = std::sync::mpsc::channel();
            let open = builder(folder.path());
            std::thread::spawn(move || {
                tell.send((open.open().err().map(|error| error.to_string()), largest()))
            });
            match told.recv_timeout(Duration::from_secs(2)) {
                Err(_) => wrong.push(format!("{file}, {kind}: waits for ever")),
                Ok((_, largest)) if largest >= MOST_AT_ONCE => {
                    wrong.push(format!("{file}, {kind}: allocated {largest} bytes at once"));
                }
                Ok((Some(shown), _)) if shown.contains(file) => {}
                Ok((shown, _)) => wrong.push(format!("{file}, {kind}: {shown:?}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn weights_cut_off_anywhere() {
    let parts = Parts::small();
    let whole = parts.weights();
    let header = whole.len() - parts.data.len();
    let mut places: Vec<usize> = (1..50).map(|i| whole.len() * i / 50).collect();
    places.extend((1..=10).chain((1..20).map(|i| header * i / 20)));
    places.extend([header - 1, header, header + 1, whole.len() - 2, whole.len() - 1]);
    for place in places {
        let folder = parts.write_with(&whole[..place]);
        refuses(&format!("cut off at {place}"), builder(folder.path()), Is::Weights, &[WEIGHTS]);
    }
    let longer = [&whole[..], &[0]].concat();
    refuses(
        "one byte more",
        builder(parts.write_with(&longer).path()),
        Is::Weights,
        &[WEIGHTS, "extra bytes"],
    );
}

#[test]
fn headers_of_weights_files() {
    let parts = Parts::small();
    let whole = parts.weights();
    for (length, words) in [
        (0, "JSON"),
        (7, "JSON"),
        (whole.len() as u64 - 7, "length"),
        (whole.len() as u64, "length"),
        (100_000_001, "length"),
        (1 << 40, "length"),
        (1 << 63, "length"),
        (u64::MAX - 8, "length"),
        (u64::MAX, "length"),
    ] {
        let mut bytes = whole.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        refuses(
            &format!("length {length}"),
            builder(parts.write_with(&bytes).path()),
            Is::Weights,
            &[WEIGHTS, words],
        );
    }
    let nested = [b"{\"a\":".repeat(100_000), b"1".to_vec()].concat();
    let headers: [(&str, &[u8]); 6] = [
        ("not UTF-8", b"{\"\xff\xfe\": 1}"),
        ("not JSON", b"tensors"),
        ("an array", b"[1, 2]"),
        ("a string", b"\"tensors\""),
        ("metadata that is none", b"{\"__metadata__\": 3}"),
        ("deeply nested", &nested),
    ];
    for (what, header) in headers {
        let folder = parts.write_with(&joined(header, &parts.data));
        refuses(what, builder(folder.path()), Is::Weights, &[WEIGHTS, "JSON object of tensors"]);
    }
    refuses(
        "no tensors",
        builder(parts.write_with(&joined(b"{}", &parts.data)).path()),
        Is::Weights,
        &[WEIGHTS],
    );
    refuses(
        "no tensors, no data",
        builder(parts.write_with(&joined(b"{}", &[])).path()),
        Is::Tensor(EMBED),
        &["be there"],
    );
}

#[test]
fn tensors_in_a_header() {
    type Change = fn(&mut Parts);
    let cases: [(&str, Change, Is, &[&str]); 29] = [
        ("dtype F99", |p| p.header[Q]["dtype"] = json!("F99"), Is::Tensor(Q), &["dtype"]),
        ("dtype 3", |p| p.header[Q]["dtype"] = json!(3), Is::Tensor(Q), &["dtype"]),
        (
            "no dtype",
            |p| drop(p.header[Q].as_object_mut().unwrap().remove("dtype")),
            Is::Tensor(Q),
            &["dtype"],
        ),
        ("dtype I16", |p| p.header[Q]["dtype"] = json!("I16"), Is::Tensor(Q), &["bfloat16", "I16"]),
        ("dtype I64", |p| retype(p, "I64", [128, 16]), Is::Tensor(Q), &["shape"]),
        ("dtype U8", |p| retype(p, "U8", [128, 128]), Is::Tensor(Q), &["shape"]),
        ("dtype F8_E4M3", |p| retype(p, "F8_E4M3", [256, 64]), Is::Tensor(Q), &["shape"]),
        ("dtype I64, shape kept", |p| p.header[Q]["dtype"] = json!("I64"), Is::Tensor(Q), &["65536 bytes"]),
        ("dtype F4, half bytes", |p| retype(p, "F4", [1, 3]), Is::Tensor(Q), &["bytes"]),
        (
            "shape 2^64 - 1",
            |p| p.header[Q]["shape"] = json!([u64::MAX, u64::MAX]),
            Is::Tensor(Q),
            &["overflow"],
        ),
        (
            "shape 2^32 x 2^32",
            |p| p.header[Q]["shape"] = json!([1_u64 << 32, 1_u64 << 32]),
            Is::Tensor(Q),
            &["overflow"],
        ),
        ("shape 2^61", |p| p.header[Q]["shape"] = json!([1_u64 << 61]), Is::Tensor(Q), &["overflow"]),
        ("shape too large", |p| p.header[Q]["shape"] = json!([u64::MAX]), Is::Tensor(Q), &["overflow"]),
        ("shape -1", |p| p.header[Q]["shape"] = json!([-1, 64]), Is::Tensor(Q), &["shape"]),
        ("shape 1.5", |p| p.header[Q]["shape"] = json!([1.5]), Is::Tensor(Q), &["shape"]),
        ("shape a string", |p| p.header[Q]["shape"] = json!("128x64"), Is::Tensor(Q), &["shape"]),
        (
            "transposed",
            |p| p.header[Q]["shape"] = json!([64, 128]),
            Is::Tensor(Q),
            &["[128, 64]", "[64, 128]"],
        ),
        (
            "fewer dimensions",
            |p| p.header[Q]["shape"] = json!([8192]),
            Is::Tensor(Q),
            &["[128, 64]", "[8192]"],
        ),
        ("more dimensions", |p| p.header[Q]["shape"] = json!([1, 128, 64]), Is::Tensor(Q), &["[1, 128, 64]"]),
        ("no dimensions", |p| p.header[Q]["shape"] = json!([]), Is::Tensor(Q), &["2 bytes"]),
        ("a dimension 0", |p| p.header[Q]["shape"] = json!([0, 64]), Is::Tensor(Q), &["0 bytes"]),
        ("shape too small", |p| p.header[Q]["shape"] = json!([127, 64]), Is::Tensor(Q), &["16256 bytes"]),
        ("not an object", |p| p.header[Q] = json!([1]), Is::Tensor(Q), &["dtype"]),
        (
            "three offsets",
            |p| p.header[Q]["data_offsets"] = json!([0, 1, 2]),
            Is::Tensor(Q),
            &["two data_offsets"],
        ),
        ("negative offsets", |p| move_by(p, Q, -1 << 40), Is::Tensor(Q), &["data_offsets"]),
        (
            "a sum past 2^64",
            |p| {
                let mut start = p.data.len() as u64;
                for i in 0..8 {
                    let end = if i == 7 { u64::MAX - 1 } else { start + (1 << 61) - 1 };
                    p.header.insert(
                        format!("huge.{i}"),
                        json!({"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}),
                    );
                    start = end;
                }
            },
            Is::Tensor("huge.7"),
            &["lie inside"],
        ),
        (
            "beyond the end",
            |p| {
                let name = last(p);
                let start = p.range(&name).start;
                p.header[&name] =
                    json!({"dtype": "U8", "shape": [1 << 30], "data_offsets": [start, start + (1 << 30)]});
            },
            Is::Weights,
            &["truncated"],
        ),
        ("missing", |p| *p = p.only(|name| name != K), Is::Tensor(K), &["be there", "[64, 64]"]),
        (
            "renamed",
            |p| {
                let info = p.header.remove(NORM).unwrap();
                p.header.insert("norm.weight".into(), info);
            },
            Is::Tensor(NORM),
            &["be there", "[64]"],
        ),
    ];
    for (what, change, expected, words) in cases {
        let mut parts = Parts::small();
        change(&mut parts);
        refuses(what, builder(parts.write().path()), expected, words);
    }
    // Which tensor is at fault when two claim the same bytes is a matter of taste: it must be one of them.
    let parts = Parts::small();
    let Range { start, end } = parts.range(Q);
    for (what, offsets) in [
        ("reversed", [end, start]),
        ("a gap before", [start + 2, end]),
        ("overlaps the one before", [start - 2, end]),
        ("ends early", [start, end - 2]),
        ("ends late", [start, end + 2]),
        ("moved", [start + 2, end + 2]),
        ("of another tensor", [0, end - start]),
        ("near 2^64", [usize::MAX - (end - start), usize::MAX]),
        ("past 2^64", [usize::MAX, end - start - 1]),
    ] {
        let mut parts = parts.clone();
        parts.header[Q]["data_offsets"] = json!(offsets);
        let folder = parts.write();
        let error = builder(folder.path()).open().err().unwrap_or_else(|| panic!("{what}: it opened"));
        let Is::Tensor(name) = is(&error) else { panic!("{what}: {error}") };
        assert!(parts.header.contains_key(name) && error.to_string().contains(WEIGHTS), "{what}: {error}");
        is_one_short_line(what, &error.to_string());
    }
}

#[test]
fn tensors_are_listed_by_name() {
    let layer = |part: &str| format!("model.layers.1.{part}.weight");
    let (up, down) = (layer("mlp.up_proj"), layer("mlp.down_proj"));
    let parts = Parts::small().only(|name| name != K && name != up && name != down);
    let error = builder(parts.write().path()).open().unwrap_err();
    let Error::Tensors { count, first, .. } = &error else { panic!("{error}") };
    assert_eq!(*count, 3, "{error}");
    for name in [K, &up, &down] {
        assert!(first.contains(&format!("`{name}` must be there")), "{name}: {error}");
    }
    assert!(error.to_string().contains("3 tensors"), "{error}");

    // one that nobody reads: a model of another kind, unless the application knows better
    let mut parts = Parts::small();
    let info = parts.header[NORM].clone();
    let bytes = parts.data[parts.range(NORM)].to_vec();
    let start = parts.data.len();
    parts.header.insert("model.layers.0.self_attn.q_norm.weight".into(), info);
    parts.header["model.layers.0.self_attn.q_norm.weight"]["data_offsets"] =
        json!([start, start + bytes.len()]);
    parts.data.extend(bytes);
    let folder = parts.write();
    refuses(
        "an extra tensor",
        builder(folder.path()),
        Is::Tensor("model.layers.0.self_attn.q_norm.weight"),
        &["not be there", WEIGHTS],
    );
    builder(folder.path()).allow_extra_tensors().open().unwrap();
    // what old versions of transformers stored is no surprise
    let name = "model.layers.0.self_attn.rotary_emb.inv_freq";
    let info = parts.header.remove("model.layers.0.self_attn.q_norm.weight").unwrap();
    parts.header.insert(name.into(), info);
    builder(parts.write().path()).open().unwrap();
}

fn retype(parts: &mut Parts, dtype: &str, shape: [usize; 2]) {
    parts.header[Q]["dtype"] = dtype.into();
    parts.header[Q]["shape"] = json!(shape);
}

fn move_by(parts: &mut Parts, name: &str, by: i64) {
    let Range { start, end } = parts.range(name);
    parts.header[name]["data_offsets"] = json!([start as i64 + by, end as i64 + by]);
}

/// The tensor whose data comes last.
fn last(parts: &Parts) -> String {
    parts.header.keys().max_by_key(|name| parts.range(name).end).unwrap().clone()
}

/// The format forbids it, since parsers differ in which of the two they take.
#[test]
fn a_tensor_twice_in_a_header() {
    let parts = Parts::small();
    let header = Value::Object(parts.header.clone()).to_string();
    let Range { start, end } = parts.range(Q);
    for (what, offsets) in
        [("with other offsets", [start + 2, end + 2]), ("with the same offsets", [start, end])]
    {
        let entry = json!({"dtype": "BF16", "shape": [128, 64], "data_offsets": offsets});
        let twice = format!("{{\"{Q}\":{entry},{}", &header[1..]);
        let folder = parts.write_with(&joined(twice.as_bytes(), &parts.data));
        refuses(what, builder(folder.path()), Is::Tensor(Q), &[WEIGHTS]);
    }
}

/// Nothing says that tensors are aligned: one space more in the header puts all of them at odd addresses.
#[test]
fn tensors_at_odd_addresses_compute_the_same() {
    for dtype in ["BF16", "F16", "F32"] {
        let parts = Parts::small().stored_as(dtype);
        let expected = greedy(&builder(parts.write().path()).open().unwrap());
        for spaces in 1..5 {
            let header = Value::Object(parts.header.clone()).to_string() + &" ".repeat(spaces);
            let folder = parts.write_with(&joined(header.as_bytes(), &parts.data));
            for device in [Device::Cpu, Device::CpuWith("portable"), Device::Reference] {
                let session = builder(folder.path()).device(device).open().unwrap();
                assert_eq!(greedy(&session), expected, "{dtype}, {spaces} spaces, {device:?}");
            }
        }
    }
}

#[test]
fn weights_that_are_not_finite() {
    for dtype in ["BF16", "F16", "F32"] {
        let good = Parts::small().stored_as(dtype);
        let bytes = stored(dtype, 0.0).len();
        for name in [EMBED, NORM, Q, DOWN] {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let Range { start, end } = good.range(name);
                for at in [start, end - bytes] {
                    let mut parts = good.clone();
                    parts.data[at..at + bytes].copy_from_slice(&stored(dtype, value));
                    let what = format!("{value} in {dtype} {name}, byte {at}");
                    refuses(&what, builder(parts.write().path()), Is::Tensor(name), &[WEIGHTS, "finite"]);
                }
            }
        }
    }
}

#[test]
fn shards_and_their_index() {
    type Change = fn(&mut Shards);
    let cases: [(&str, Change, Is, &[&str]); 12] = [
        ("no weight_map", |s| s.index = json!({}), Is::Config("weight_map"), &["an object"]),
        ("not an object", |s| s.index = json!([]), Is::Config("weight_map"), &["an object"]),
        (
            "weight_map a list",
            |s| s.index["weight_map"] = json!([SHARDS[0]]),
            Is::Config("weight_map"),
            &["an object"],
        ),
        ("numbers", |s| s.index["weight_map"][Q] = json!(1), Is::Config("weight_map"), &["file names"]),
        ("null", |s| s.index["weight_map"][Q] = json!(null), Is::Config("weight_map"), &["file names"]),
        ("empty", |s| s.index["weight_map"] = json!({}), Is::Tensor(EMBED), &["be there"]),
        (
            "an unknown tensor",
            |s| s.index["weight_map"]["ghost"] = json!(SHARDS[0]),
            Is::Tensor("ghost"),
            &[SHARDS[0], "index"],
        ),
        (
            "the wrong shard",
            |s| s.index["weight_map"][Q] = json!(SHARDS[1]),
            Is::Tensor(Q),
            &[SHARDS[1], "index"],
        ),
        (
            "both wrong",
            |s| {
                s.index["weight_map"][Q] = json!(SHARDS[1]);
                s.index["weight_map"][K] = json!(SHARDS[0]);
            },
            Is::Tensor(Q),
            &[SHARDS[1], "index"],
        ),
        (
            "in two shards",
            |s| {
                let (info, range) = (s.shards[0].header[NORM].clone(), s.shards[0].range(NORM));
                let data = s.shards[0].data[range].to_vec();
                let start = s.shards[1].data.len();
                s.shards[1].data.extend(data);
                s.shards[1].header.insert(NORM.into(), info);
                s.shards[1].header[NORM]["data_offsets"] = json!([start, s.shards[1].data.len()]);
            },
            Is::Tensor(NORM),
            &["one file only"],
        ),
        (
            "a shard missing",
            |s| s.index["weight_map"][Q] = json!("model-3.safetensors"),
            Is::Read,
            &["model-3"],
        ),
        ("another file", |s| s.index["weight_map"][Q] = json!(CONFIG), Is::Weights, &[CONFIG]),
    ];
    for (what, change, expected, words) in cases {
        let mut shards = Parts::small().shards();
        change(&mut shards);
        refuses(what, builder(shards.write().path()), expected, words);
    }
    for name in
        ["../x", "/etc/passwd", "a/b", "./model-1.safetensors", "model-1.safetensors/", "..", ".", "/", ""]
    {
        let mut shards = Parts::small().shards();
        shards.index["weight_map"][Q] = name.into();
        refuses(name, builder(shards.write().path()), Is::Config("weight_map"), &[INDEX, "without folders"]);
    }
    let folder = Parts::small().shards().write();
    for text in ["", "{", "{\"weight_map\": {\"a\": \"b\"", "\u{0}"] {
        std::fs::write(folder.path().join(INDEX), text).unwrap();
        refuses(text, builder(folder.path()), Is::Config("weight_map"), &[INDEX]);
    }
}

/// A checkpoint with the byte-level tokenizer, 701 tokens.
fn with_tokenizer() -> TempDir {
    let folder = tempdir().unwrap();
    Recipe::small(704).write(folder.path(), Some("byte_level"));
    folder
}

fn change_json(file: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(file, value.to_string()).unwrap();
}

#[test]
fn tokenizers_that_cannot_be_used() {
    type Change = fn(&mut Value);
    let mut wrong = Vec::new();
    let cases: [(&str, Change, &[&str]); 15] = [
        ("a list", |t| *t = json!([]), &["Hugging Face"]),
        ("no model", |t| drop(t.as_object_mut().unwrap().remove("model")), &["Hugging Face"]),
        ("an unknown model", |t| t["model"] = json!({"type": "Sorcery"}), &["Hugging Face"]),
        ("a vocabulary of strings", |t| t["model"]["vocab"] = json!({"a": "b"}), &["Hugging Face"]),
        ("merges of unknown tokens", |t| t["model"]["merges"] = json!([["zzz", "qqq"]]), &["Hugging Face"]),
        (
            "a broken regex",
            |t| {
                t["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false})
            },
            &["Hugging Face"],
        ),
        (
            "an id far above vocab_size",
            |t| t["model"]["vocab"]["zzz"] = json!(704 + (1 << 16)),
            &["below", "vocab_size", "704"],
        ),
        ("a huge id", |t| t["model"]["vocab"]["zzz"] = json!(u32::MAX), &["below", "704"]),
        (
            "no tokens",
            |t| {
                t["model"]["vocab"] = json!({});
                t["model"]["merges"] = json!([]);
                t["added_tokens"] = json!([]);
            },
            &["below"],
        ),
        (
            "a WordPiece decoder",
            |t| t["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
            &["decoder", "WordPiece"],
        ),
        (
            "a CTC decoder",
            |t| {
                t["decoder"] =
                    json!({"type": "CTC", "pad_token": "", "word_delimiter_token": "|", "cleanup": true})
            },
            &["decoder", "CTC"],
        ),
        ("no decoder", |t| t["decoder"] = json!(null), &["decoder"]),
        // these two panic inside the `tokenizers` crate
        ("a prefix longer than a token", |t| t["model"]["continuing_subword_prefix"] = json!("#####"), &[""]),
        (
            "a post-processor of unknown tokens",
            |t| {
                t["post_processor"] = template(1, 1);
                t["post_processor"]["special_tokens"] = json!({});
            },
            &[""],
        ),
        (
            "a special token beyond the vocabulary",
            |t| t["post_processor"] = template(1 << 20, 1),
            &["below", "704"],
        ),
    ];
    for (what, change, words) in cases {
        let folder = with_tokenizer();
        change_json(&folder.path().join("tokenizer.json"), change);
        let words: Vec<&str> = words.iter().copied().chain(["tokenizer.json"]).collect();
        let refused = || refuses(what, builder(folder.path()), Is::Tokenizer, &words);
        if catch_unwind(refused).is_err() {
            wrong.push(what);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for text in [&b""[..], b"tokens", b"{", b"\"\"", b"null"] {
        let folder = with_tokenizer();
        std::fs::write(folder.path().join("tokenizer.json"), text).unwrap();
        refuses("no JSON object", builder(folder.path()), Is::Tokenizer, &["tokenizer.json", "Hugging Face"]);
    }
}

/// A post-processor that puts `count` special tokens with this id before a text.
fn template(id: u32, count: usize) -> Value {
    json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"x": {"id": "x", "ids": vec![id; count], "tokens": vec!["x"; count]}}})
}

#[test]
fn configs_beside_the_weights() {
    let cases = [
        ("tokenizer_config.json", "[]", "", "a JSON object"),
        ("tokenizer_config.json", "{", "", "a JSON object"),
        ("tokenizer_config.json", r#"{"added_tokens_decoder": []}"#, "added_tokens_decoder", "an object"),
        (
            "tokenizer_config.json",
            r#"{"added_tokens_decoder": {"one": {"content": "x"}}}"#,
            "added_tokens_decoder",
            "an object",
        ),
        (
            "tokenizer_config.json",
            r#"{"added_tokens_decoder": {"1": {"content": 1}}}"#,
            "added_tokens_decoder",
            "an object",
        ),
        ("generation_config.json", "[]", "", "a JSON object"),
        ("generation_config.json", "{\"do_sample\": true,", "", "a JSON object"),
        ("generation_config.json", r#"{"do_sample": "yes"}"#, "do_sample", "true or false"),
        ("generation_config.json", r#"{"do_sample": true, "temperature": "hot"}"#, "temperature", "a number"),
        ("generation_config.json", r#"{"do_sample": true, "top_p": [1]}"#, "top_p", "a number"),
        ("generation_config.json", r#"{"do_sample": true, "min_p": "0.5"}"#, "min_p", "a number"),
        ("generation_config.json", r#"{"repetition_penalty": {}}"#, "repetition_penalty", "a number"),
        ("generation_config.json", r#"{"do_sample": true, "top_k": "many"}"#, "top_k", "whole number"),
        ("generation_config.json", r#"{"do_sample": true, "top_k": 1.5}"#, "top_k", "whole number"),
        ("generation_config.json", r#"{"eos_token_id": "</s>"}"#, "eos_token_id", "token id"),
        ("generation_config.json", r#"{"eos_token_id": [2, null]}"#, "eos_token_id", "token id"),
    ];
    let mut wrong = Vec::new();
    for (file, text, field, words) in cases {
        let folder = with_tokenizer();
        std::fs::write(folder.path().join(file), text).unwrap();
        let refused = || refuses(text, builder(folder.path()), Is::Config(field), &[file, words]);
        if catch_unwind(refused).is_err() {
            wrong.push(text);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Names in a checkpoint are a stranger's text: in messages they are cut short, and what would move a terminal's
/// cursor or forge a line of a log is escaped.
#[test]
fn errors_stay_one_short_line_whatever_a_checkpoint_calls_things() {
    let nasty =
        ["x".repeat(100_000), "a\nERROR forged line".to_owned(), "\u{1b}[2J\u{1b}[31mred\r\u{7}".to_owned()];
    let mut wrong = Vec::new();
    let mut check = |what: &str, folder: &TempDir| {
        let shown =
            builder(folder.path()).open().err().unwrap_or_else(|| panic!("{what}: it opened")).to_string();
        if catch_unwind(|| is_one_short_line(what, &shown)).is_err() {
            wrong.push(format!("{what}: {} bytes, {:?}", shown.len(), &shown[..shown.len().min(160)]));
        }
    };
    for name in &nasty {
        let mut parts = Parts::small();
        parts.config["model_type"] = json!(name);
        check("model_type", &parts.write());
        let mut parts = Parts::small();
        parts.header.insert(name.clone(), json!(1));
        check("a tensor's name in the header", &parts.write());
        let mut shards = Parts::small().shards();
        shards.index["weight_map"][name] = json!(SHARDS[0]);
        check("a tensor's name in the index", &shards.write());
        let mut shards = Parts::small().shards();
        shards.index["weight_map"][Q] = json!(name);
        check("a shard's name", &shards.write());
        let folder = with_tokenizer();
        change_json(&folder.path().join("tokenizer.json"), |tokenizer| {
            tokenizer["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": format!("({name}")},
                "behavior": "Isolated", "invert": false});
        });
        check("a regex", &folder);
        let folder = with_tokenizer();
        change_json(&folder.path().join("tokenizer.json"), |tokenizer| {
            tokenizer["model"]["merges"] = json!([[name, name]]);
        });
        check("a merge", &folder);
    }
    let mut parts = Parts::small();
    parts.header[Q]["shape"] = json!([vec![1; 50_000], vec![8192]].concat());
    check("a shape of 50,001 dimensions", &parts.write());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn settings_out_of_bounds() {
    let folder = Parts::small().write();
    type Change = fn(Builder) -> Builder;
    let cases: [(&str, Change, &str); 16] = [
        ("threads", |b| b.threads(0), "1 to 1024"),
        ("threads", |b| b.threads(1025), "1 to 1024"),
        ("threads", |b| b.threads(usize::MAX), "1 to 1024"),
        ("kv_tokens", |b| b.kv_tokens(0), "from 1"),
        ("kv_tokens", |b| b.kv_tokens(usize::MAX), "from 1"),
        ("kv_tokens", |b| b.kv_tokens((1 << 31) + 1), "2147483648"),
        ("context_length", |b| b.context_length(0), "1 to 512"),
        ("context_length", |b| b.context_length(513), "1 to 512"),
        ("context_length", |b| b.context_length(usize::MAX), "1 to 512"),
        ("context_length", |b| b.context_length(65).kv_tokens(64), "kv_tokens, 64"),
        ("max_sequences", |b| b.max_sequences(0), "1 to 65536"),
        ("max_sequences", |b| b.max_sequences(65537), "1 to 65536"),
        ("step_tokens", |b| b.step_tokens(0), "1 to 65536"),
        ("step_tokens", |b| b.step_tokens(usize::MAX), "1 to 65536"),
        ("device", |b| b.device(Device::CpuWith("sse9")), "portable"),
        ("device", |b| b.device(Device::CpuWith("")), "portable"),
    ];
    for (field, change, words) in cases {
        refuses(field, change(builder(folder.path())), Is::Setting(field), &[field, words]);
    }
    for (budget, number) in [(0, "is 0"), (1000, "is 1000")] {
        let words = [number, "weights, KV cache, workspace", "needs "];
        refuses("budget", builder(folder.path()).memory_budget(budget), Is::Memory, &words);
    }
    let needed = builder(folder.path()).open().unwrap().memory().total_bytes();
    let words = [&*format!("{needed} bytes"), &*format!("is {}", needed - 1)];
    refuses("a byte less", builder(folder.path()).memory_budget(needed - 1), Is::Memory, &words);
    assert!(builder(folder.path()).memory_budget(needed).open().is_ok());
}

/// 256 TiB of cache: more than a process can address, whatever the machine promises.
#[test]
fn a_cache_that_cannot_be_mapped() {
    let mut recipe = Recipe::small(8);
    for (field, value) in [
        ("hidden_size", 2),
        ("intermediate_size", 2),
        ("num_hidden_layers", 64),
        ("num_attention_heads", 1),
        ("num_key_value_heads", 1),
        ("head_dim", 512),
    ] {
        recipe.config[field] = value.into();
    }
    let folder = Parts::new(&recipe).write();
    let words = ["KV cache", "the system "];
    refuses("256 TiB", builder(folder.path()).kv_tokens(1 << 31), Is::Memory, &words);
}

/// Runs in a process of its own, since what it looks for is an abort.
#[test]
fn a_context_that_does_not_fit_the_machine() {
    const CHILD: &str = "AMNESIC_TEST_CHILD";
    let mut parts = Parts::small();
    parts.config["max_position_embeddings"] = json!(1_u64 << 31);
    if std::env::var_os(CHILD).is_some() {
        let folder = parts.write();
        let error = builder(folder.path()).kv_tokens(1 << 31).open().unwrap_err();
        assert_eq!(is(&error), Is::Memory, "{error}");
        return;
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["a_context_that_does_not_fit_the_machine", "--exact"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{}: {}{shown}", child.status, String::from_utf8_lossy(&child.stdout));
}

const CANARY: &str = "CANARY-7f3a";

/// What a wrong request gives.
#[derive(Clone, Copy, Debug)]
enum Gives {
    Field(&'static str),
    TooLong,
    NoTokenizer,
}

fn gives(expected: Gives, error: &Error) -> bool {
    match (expected, error) {
        (Gives::Field(name), Error::Request { field, .. }) => *field == name,
        (Gives::TooLong, Error::ContextLength { context: 64, .. }) => true,
        (Gives::NoTokenizer, Error::NoTokenizer { file }) => file.ends_with("tokenizer.json"),
        _ => false,
    }
}

fn wrong_requests(text: bool, vocab: u32) -> Vec<(Request, Gives)> {
    let good = || Request::tokens([1, 2]);
    let with = |request: Request| request.stop(CANARY);
    let mut wrong = vec![
        (Request::prompt(""), Gives::Field("prompt")),
        (Request::tokens([]), Gives::Field("prompt")),
        (Request::tokens([vocab]), Gives::Field("prompt")),
        (Request::tokens([1, u32::MAX]), Gives::Field("prompt")),
        (Request::tokens([1; 64]), Gives::TooLong),
        (Request::tokens([1; 65]), Gives::TooLong),
        (Request::tokens(vec![1; 100_000]), Gives::TooLong),
        (good().max_tokens(63), Gives::TooLong),
        (good().max_tokens(usize::MAX), Gives::TooLong),
        (good().max_tokens(usize::MAX - 1), Gives::TooLong),
        (with(good().max_tokens(0)), Gives::Field("max_tokens")),
        ((0..17).fold(good(), |request, i| request.stop(format!("{CANARY}{i}"))), Gives::Field("stop")),
        (with(good()).stop(""), Gives::Field("stop")),
    ];
    for value in [-0.1, 2.1, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        wrong.push((with(good().temperature(value)), Gives::Field("temperature")));
    }
    for value in [0.0, -0.0, -1.0, 1.1, f32::NAN, f32::INFINITY] {
        wrong.push((with(good().top_p(value)), Gives::Field("top_p")));
    }
    for value in [-0.1, 1.1, f32::NAN, f32::INFINITY] {
        wrong.push((with(good().min_p(value)), Gives::Field("min_p")));
    }
    if text {
        wrong.push((Request::prompt(CANARY.repeat(100)), Gives::TooLong));
        wrong.push((Request::prompt(CANARY).max_tokens(64), Gives::TooLong));
        wrong.push((Request::prompt(CANARY).temperature(3.0), Gives::Field("temperature")));
    } else {
        wrong.push((Request::prompt(CANARY).stop(CANARY), Gives::NoTokenizer));
    }
    wrong
}

fn tells_nothing(error: &Error) {
    let printed = format!("{error} {error:?} {error:#?}");
    assert!(!printed.contains(CANARY), "{printed}");
    is_one_short_line("a request", &error.to_string());
}

#[test]
fn wrong_requests_are_named_and_leave_the_session_working() {
    let (plain, text) = (Parts::small().write(), with_tokenizer());
    for (folder, has_text, vocab) in [(&plain, false, 64), (&text, true, 704)] {
        let session = builder(folder.path()).open().unwrap();
        let expected = greedy(&session);
        for (i, (request, gives_what)) in wrong_requests(has_text, vocab).into_iter().enumerate() {
            let what = format!("{i}: {request:?}");
            assert!(!what.contains(CANARY), "{what}");
            let before = session.counters();
            match session.generate(request) {
                Ok(reply) => panic!("{what}: it ran: {reply:?}"),
                Err(error) => {
                    assert!(gives(gives_what, &error), "{what}: {error}");
                    tells_nothing(&error);
                }
            }
            let after = session.counters();
            assert_eq!((after.steps, after.tokens), (before.steps, before.tokens), "{what}: something ran");
            assert_eq!(greedy(&session), expected, "{what}: the session no longer works");
        }
        for (request, gives_what) in wrong_requests(has_text, vocab) {
            let error = session.stream(request).map(|_| ()).unwrap_err();
            assert!(gives(gives_what, &error), "{error}");
        }
        session.close().unwrap();
    }
}

#[test]
fn one_wrong_request_stops_its_batch_before_anything_runs() {
    let folder = with_tokenizer();
    let session = builder(folder.path()).open().unwrap();
    let expected = greedy(&session);
    assert!(session.generate_batch([]).unwrap().is_empty());
    for index in 0..3 {
        for (wrong, gives_what) in wrong_requests(true, 704) {
            let before = session.counters();
            let mut batch: Vec<Request> = (0..2).map(|_| Request::prompt(CANARY).stop(CANARY)).collect();
            batch.insert(index, wrong);
            let error = session.generate_batch(batch).unwrap_err();
            tells_nothing(&error);
            match error {
                Error::InBatch { index: found, source } => {
                    assert_eq!(found, index, "{source}");
                    assert!(gives(gives_what, &source), "{source}");
                }
                other => panic!("{other}"),
            }
            let after = session.counters();
            assert_eq!((after.steps, after.tokens), (before.steps, before.tokens), "something ran");
        }
        assert_eq!(greedy(&session), expected);
    }
}

#[test]
fn every_error_is_one_readable_line() {
    let file = || PathBuf::from("models/tiny/config.json");
    let weights = || PathBuf::from("models/tiny/model.safetensors");
    let io = std::io::Error::from_raw_os_error;
    let expected = "a whole number from 1 to 4096".to_owned();
    let errors = [
        Error::Request { field: "temperature", expected: "from 0 to 2".into() },
        Error::ContextLength { prompt_tokens: 4000, max_tokens: 512, context: 4096 },
        Error::InBatch {
            index: 3,
            source: Box::new(Error::Request { field: "stop", expected: "at most 16 strings".into() }),
        },
        Error::NoTokenizer { file: PathBuf::from("models/tiny/tokenizer.json") },
        Error::Read { file: file(), source: io(2) },
        Error::Config { file: file(), field: "num_hidden_layers".into(), expected },
        Error::Config { file: file(), field: String::new(), expected: "a JSON object".into() },
        Error::UnknownModelType {
            file: file(),
            found: "gpt2".into(),
            known: 3,
            nearest: "llama, mistral, qwen2".into(),
        },
        Error::WeightsFile { file: weights(), reason: "must be a regular file that is not empty".into() },
        Error::Tensor { file: weights(), tensor: Q.into(), expected: "hold finite values only".into() },
        Error::Tokenizer { file: PathBuf::from("tokenizer.json"), reason: "must encode a plain text".into() },
        Error::Memory {
            needed: 9 << 30,
            what: "weights, KV cache, workspace",
            limit: "the budget is 1000".into(),
        },
        Error::Thread(io(11)),
        Error::Poisoned(PoisonReason::Panic),
        Error::Poisoned(PoisonReason::ScrubFailed),
        Error::Poisoned(PoisonReason::DeviceFailed),
        Error::DeviceUnavailable { device: 0, reason: DeviceReason::NoDriver },
        Error::Closed,
        Error::NotFinite,
        Error::NoToken,
        Error::Logged { target: "tokenizers::tokenizer::normalizer" },
        Error::NoChatTemplate { folder: PathBuf::from("models/tiny") },
        Error::Busy { waiting: 65_536, limit: 65_536, requests: Default::default() },
        Error::Incomplete { finish_reason: FinishReason::Length },
        Error::Grammar(GrammarReason::TooComplex),
        Error::Grammar(GrammarReason::DeadEnd),
        Error::Grammar(GrammarReason::Rejected),
        Error::Grammar(GrammarReason::Failed),
    ];
    for error in &errors {
        let shown = error.to_string();
        println!("{shown}");
        is_one_short_line("an error", &shown);
        assert!(shown.len() < 300 && !shown.contains("``") && !shown.ends_with('.'), "{shown}");
    }
}

impl Random {
    /// Flips bits, replaces, inserts, copies or cuts off bytes, once to three times.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len().max(1)).min(bytes.len().saturating_sub(1));
            match self.below(6) {
                _ if bytes.is_empty() => return,
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = self.below(256) as u8,
                2 => bytes[at] = b"0123456789-.eE\"{}[],:\\ntf"[self.below(25)],
                3 => bytes.insert(at, b"09-[{\"}]"[self.below(8)]),
                4 if self.below(4) == 0 => bytes.truncate(at),
                _ => drop(bytes.drain(at..(at + 1 + self.below(8)).min(bytes.len()))),
            }
        }
    }

    /// Replaces, removes, renames or doubles something somewhere in a JSON value.
    fn distort(&mut self, value: &mut Value) {
        let inner = match value {
            Value::Object(map) => map.len(),
            Value::Array(list) => list.len(),
            _ => 0,
        };
        if inner == 0 || self.below(8) == 0 {
            *value = self.odd();
            return;
        }
        let at = self.below(inner);
        let action = self.below(12);
        match value {
            Value::Object(map) => {
                let key = map.keys().nth(at).unwrap().clone();
                match action {
                    0 => drop(map.remove(&key)),
                    1 => drop(map.remove(&key).and_then(|inner| map.insert(key + "x", inner))),
                    2 => drop(map.insert("x".into(), map[&key].clone())),
                    _ => self.distort(&mut map[&key]),
                }
            }
            Value::Array(list) => match action {
                0 => drop(list.remove(at)),
                1 => list.push(list[at].clone()),
                _ => self.distort(&mut list[at]),
            },
            _ => {}
        }
    }

    fn odd(&mut self) -> Value {
        const ODD: &str = r#"[null, true, 0, 1, -1, 2, 255, 65536, 2147483648, 4294967295, 4294967296,
            9223372036854775808, 18446744073709551615, 0.5, 1e-300, 1e300, "", " ", "x", "BF16", "U8", "../x",
            "􏿿", [], [0], [[]], {}, {"type": "x"}]"#;
        let odd: Vec<Value> = serde_json::from_str(ODD).unwrap();
        odd[self.below(odd.len())].clone()
    }
}

/// Opens the folder over and over with `file` replaced by what `next` gives; runs a request where it opens.
fn fuzz(what: &str, folder: &Path, file: &str, rounds: usize, mut next: impl FnMut() -> Vec<u8>) {
    let start = Instant::now();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    for round in 0..rounds {
        let bytes = next();
        std::fs::write(folder.join(file), &bytes).unwrap();
        let attempt = || {
            let session =
                Session::builder(folder).threads(1).kv_tokens(16).max_sequences(1).step_tokens(16).open()?;
            let request = match folder.join("tokenizer.json").exists() {
                true => Request::prompt("of 12 a\u{e9}\n"),
                false => Request::tokens([1, 2]),
            };
            session.generate(request.max_tokens(1))
        };
        let result = catch_unwind(AssertUnwindSafe(attempt));
        let largest = largest();
        let kind = match &result {
            Err(_) => "panicked".to_owned(),
            _ if largest >= MOST_AT_ONCE => format!("allocated {largest} bytes at once"),
            Ok(Ok(_)) => "ran".to_owned(),
            Ok(Err(error)) => {
                is_one_short_line(&format!("{what} {round}"), &error.to_string());
                format!("{error:?}").split([' ', '(']).next().unwrap().to_owned()
            }
        };
        if result.is_err() || largest >= MOST_AT_ONCE || kind == "Poisoned" {
            wrong.push(format!("round {round}: {kind}: {}", without_vocabulary(&bytes)));
        }
        *seen.entry(kind).or_default() += 1;
    }
    println!("{what}: {rounds} in {:?}: {seen:?}", start.elapsed());
    assert!(wrong.is_empty(), "{what}: {} wrong\n{}", wrong.len(), wrong[..wrong.len().min(10)].join("\n"));
}

/// The input, short enough to read.
fn without_vocabulary(bytes: &[u8]) -> String {
    let mut value: Value = serde_json::from_slice(bytes).unwrap_or_default();
    if let Some(model) = value.get_mut("model").and_then(Value::as_object_mut) {
        model.remove("vocab");
        model.remove("merges");
    }
    let text = if value.is_null() { String::from_utf8_lossy(bytes).into_owned() } else { value.to_string() };
    text.chars().take(2000).collect()
}

/// The smallest checkpoint, so that a round is short.
fn tiny(vocab: usize) -> Recipe {
    let mut recipe = Recipe::small(vocab);
    for (field, value) in [
        ("hidden_size", 8),
        ("intermediate_size", 8),
        ("num_hidden_layers", 2),
        ("num_attention_heads", 2),
        ("num_key_value_heads", 1),
        ("head_dim", 4),
    ] {
        recipe.config[field] = value.into();
    }
    recipe
}

/// Damages a JSON text half of the time as bytes, half of the time as a value.
fn damaged(random: &mut Random, text: &str) -> Vec<u8> {
    if random.below(2) == 0 {
        let mut bytes = text.as_bytes().to_vec();
        random.damage(&mut bytes);
        return bytes;
    }
    let mut value = serde_json::from_str(text).unwrap();
    (0..=random.below(2)).for_each(|_| random.distort(&mut value));
    value.to_string().into_bytes()
}

#[test]
fn damaged_configs_never_panic() {
    let mut parts = Parts::new(&tiny(16));
    for (field, value) in [
        ("eos_token_id", json!([2, 3])),
        ("sliding_window", json!(8)),
        ("layer_types", json!(["full_attention", "sliding_attention"])),
        ("hidden_act", json!("silu")),
        ("model_type", json!("mistral")),
        (
            "rope_parameters",
            json!({"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}),
        ),
    ] {
        parts.config[field] = value;
    }
    let (folder, mut random) = (parts.write(), Random(1));
    let text = parts.config.to_string();
    fuzz("config.json", folder.path(), CONFIG, 1000, || damaged(&mut random, &text));
    let text = json!({"do_sample": true, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.1,
        "eos_token_id": [1, 2]});
    let (folder, text) = (parts.write(), text.to_string());
    fuzz("generation_config.json", folder.path(), "generation_config.json", 300, || {
        damaged(&mut random, &text)
    });
}

#[test]
fn damaged_weights_files_never_panic() {
    let parts = Parts::new(&tiny(16));
    let (folder, mut random) = (parts.write(), Random(2));
    let header = Value::Object(parts.header.clone()).to_string();
    fuzz("a header", folder.path(), WEIGHTS, 1000, || joined(&damaged(&mut random, &header), &parts.data));
    let whole = parts.weights();
    fuzz("a weights file", folder.path(), WEIGHTS, 500, || {
        let mut bytes = whole.clone();
        match random.below(3) {
            0 => bytes[random.below(8)] = random.below(256) as u8,
            1 => bytes.truncate(random.below(whole.len())),
            _ => random.damage(&mut bytes),
        }
        bytes
    });
}

#[test]
fn damaged_indexes_never_panic() {
    let shards = Parts::new(&tiny(16)).shards();
    let (folder, mut random) = (shards.write(), Random(3));
    let text = shards.index.to_string();
    fuzz("an index", folder.path(), INDEX, 500, || damaged(&mut random, &text));
}

#[test]
fn damaged_tokenizers_never_panic() {
    let mut wrong = Vec::new();
    for (name, seed) in [("byte_level", 4), ("llama2_style", 5), ("llama3_style", 6), ("metaspace", 7)] {
        let folder = tempdir().unwrap();
        tiny(1024).write(folder.path(), Some(name));
        let mut random = Random(seed);
        let text = std::fs::read_to_string(folder.path().join("tokenizer.json")).unwrap();
        let mut whole: Value = serde_json::from_str(&text).unwrap();
        whole["padding"] = json!(null);
        let next = || match random.below(3) {
            0 => damaged(&mut random, &text),
            // most of the file is the vocabulary: look for trouble in the rest
            _ => {
                let mut tokenizer = whole.clone();
                let fields =
                    ["added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model"];
                let field = fields[random.below(6)];
                random.distort(&mut tokenizer[field]);
                tokenizer.to_string().into_bytes()
            }
        };
        let fuzzing = || fuzz(name, folder.path(), "tokenizer.json", 300, next);
        if catch_unwind(AssertUnwindSafe(fuzzing)).is_err() {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}
