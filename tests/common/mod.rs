//! What several tests need.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use amnesic::clock::Clock;

/// The folder of a committed checkpoint.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The names of all checkpoints with an expectation.
pub fn fixtures() -> Vec<String> {
    let folders = std::fs::read_dir(fixture("")).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<String> = folders
        .filter(|folder| folder.join("expected.json").exists())
        .map(|folder| folder.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

/// What a program that leaves scrubs out says in a build that has no such faults: it is skipped, and says so.
pub fn without_faults(test: &str) {
    println!("skipped: {test} leaves scrubs out, which this build cannot. It runs with");
    println!("    AMNESIC_FAULTS=1 cargo test --release --all-features --test {test}");
    println!(
        "\ntest result: ok. 0 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n"
    );
}

/// The default model.
pub fn default_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default")
}

/// All files of a folder, and of those in it, with their names below it.
pub fn files_below(folder: &Path) -> Vec<(String, PathBuf)> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(inside) = folders.pop() {
        for path in std::fs::read_dir(inside).unwrap().map(|entry| entry.unwrap().path()) {
            match path.is_dir() {
                true => folders.push(path),
                false => files.push((path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned(), path)),
            }
        }
    }
    files
}

/// What the reference's own low-precision logits are off by.
#[derive(Clone, Copy, Debug)]
pub struct Low {
    pub max_abs: f64,
    pub rms: f64,
}

/// Holds logits to `times` the reference's own error; returns the largest one.
pub fn hold_logits(mine: &[f32], reference: &[f32], low: Low, times: f64, what: &str) -> f64 {
    assert_eq!(mine.len(), reference.len(), "{what}");
    let off = mine.iter().zip(reference).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs());
    let (max, squares) = off.fold((0.0_f64, 0.0), |(max, sum), d| (max.max(d), sum + d * d));
    let rms = (squares / mine.len() as f64).sqrt();
    assert!(max <= times * low.max_abs, "{what}: largest error {max}, allowed {times} * {}", low.max_abs);
    assert!(rms <= times * low.rms, "{what}: error {rms}, allowed {times} * {}", low.rms);
    max
}

/// An f32 tensor of a safetensors file.
pub fn read_f32s(file: &Path, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = tensors.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
    data.into_iter().map(f32::from_le_bytes).collect()
}

/// A seeded generator (SplitMix64), so that every run draws the same.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// From 0 to `end`, not included.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// Bytes of this process that are in memory.
pub fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

/// Runs a test in a process of its own, where no other test allocates, computes or is searched: the test calls this with its
/// `module_path!()` and its name. That process is this program once more with this test alone, which then does `act`. The
/// test fails if that process fails, or runs anything but this one test.
pub fn in_a_process_of_its_own(module: &str, name: &str, act: impl FnOnce()) {
    const CHILD: &str = "AMNESIC_TEST_ALONE";
    let (_, module) = module.split_once("::").expect("tests that do so are in modules");
    let test = format!("{module}::{name}");
    if std::env::var_os(CHILD).is_some_and(|chosen| chosen == *test) {
        return act();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", &test, "--nocapture"]).env(CHILD, &test).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    print!("{told}");
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the process of {test}: {}", output.status);
    assert!(told.contains("test result: ok. 1 passed; 0 failed"), "{test} did not run");
}

/// A clock that a test turns. Clones are the same clock.
#[derive(Clone, Debug)]
pub struct Hands(Arc<Mutex<Duration>>, Instant);

impl Hands {
    pub fn new() -> Self {
        Self(Arc::default(), Instant::now())
    }

    pub fn turn(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }
}

impl Clock for Hands {
    fn now(&self) -> Instant {
        self.1 + *self.0.lock().unwrap()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }
}

/// A random checkpoint to write: a small llama unless changed.
#[derive(Clone)]
pub struct Recipe {
    pub config: serde_json::Value,
    /// Values are drawn from a seeded generator, scaled so that logits are not flat.
    pub seed: u64,
}

impl Recipe {
    pub fn small(vocab: usize) -> Self {
        let config = serde_json::json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": vocab,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        });
        Self { config, seed: 7 }
    }

    pub fn size(&self, field: &str) -> usize {
        self.config[field].as_u64().unwrap() as usize
    }

    /// The names and shapes of its tensors.
    pub fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, inner, dim) =
            (self.size("hidden_size"), self.size("intermediate_size"), self.size("head_dim"));
        let (q, kv) = (self.size("num_attention_heads") * dim, self.size("num_key_value_heads") * dim);
        let mut shapes = vec![
            ("model.embed_tokens.weight".to_owned(), vec![self.size("vocab_size"), hidden]),
            ("model.norm.weight".to_owned(), vec![hidden]),
        ];
        if self.config["tie_word_embeddings"] == false {
            shapes.push(("lm_head.weight".to_owned(), vec![self.size("vocab_size"), hidden]));
        }
        for layer in 0..self.size("num_hidden_layers") {
            for (name, shape) in [
                ("input_layernorm", vec![hidden]),
                ("post_attention_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![q, hidden]),
                ("self_attn.k_proj", vec![kv, hidden]),
                ("self_attn.v_proj", vec![kv, hidden]),
                ("self_attn.o_proj", vec![hidden, q]),
                ("mlp.gate_proj", vec![inner, hidden]),
                ("mlp.up_proj", vec![inner, hidden]),
                ("mlp.down_proj", vec![hidden, inner]),
            ] {
                shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
            }
        }
        shapes
    }

    /// The bf16 values of a tensor, as the file holds them.
    pub fn values(&self, name: &str, shape: &[usize]) -> Vec<half::bf16> {
        let seed =
            name.bytes().fold(self.seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        let mut random = Random(seed);
        let mut uniform = || (random.next() >> 40) as f32 / (1 << 23) as f32 - 1.0;
        let count = shape.iter().product();
        let scale = if shape.len() == 1 { 0.3 } else { 1.7 / (*shape.last().unwrap() as f32).sqrt() };
        let base = if shape.len() == 1 { 1.0 } else { 0.0 };
        let scale = if name.contains("embed") { 1.0 } else { scale };
        (0..count).map(|_| half::bf16::from_f32(base + scale * uniform())).collect()
    }

    /// Writes config and weights to `folder`, with the tokenizer of a fixture if named.
    pub fn write(&self, folder: &Path, tokenizer: Option<&str>) {
        std::fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = self
            .shapes()
            .into_iter()
            .map(|(name, shape)| {
                let bytes = self.values(&name, &shape).iter().flat_map(|value| value.to_le_bytes()).collect();
                (name, shape, bytes)
            })
            .collect();
        let views = tensors.iter().map(|(name, shape, bytes)| {
            (
                name,
                safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.clone(), bytes).unwrap(),
            )
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
        if let Some(name) = tokenizer {
            for file in ["tokenizer.json", "tokenizer_config.json"] {
                std::fs::copy(fixture("tokenizers").join(name).join(file), folder.join(file)).unwrap();
            }
        }
    }
}

/// Every instruction set that kernels are written for; a machine has some of them.
pub const INSTRUCTION_SETS: [&str; 10] = [
    "amx",
    "avx512bf16",
    "avx512vnni",
    "avx512",
    "avxvnni",
    "avx2",
    "neonbf16",
    "neondot",
    "neon",
    "portable",
];

/// Those that this machine has; or the device that `AMNESIC_DEVICE` asks for: `cuda`, or `emulated`, which is its kernels
/// on the CPU.
pub fn instruction_sets() -> Vec<amnesic::Device> {
    match std::env::var("AMNESIC_DEVICE").as_deref() {
        Ok("cuda") => return vec![amnesic::Device::Cuda(0)],
        #[cfg(feature = "testing")]
        Ok("emulated") => return vec![amnesic::Device::CudaEmulated],
        Ok(other) => panic!("AMNESIC_DEVICE is `{other}`"),
        Err(_) => {}
    }
    let folder = fixture(&fixtures()[0]);
    let devices = INSTRUCTION_SETS.map(amnesic::Device::CpuWith).into_iter();
    let has = |device: &amnesic::Device| amnesic::Session::builder(&folder).device(*device).open().is_ok();
    let devices: Vec<_> = devices.filter(has).collect();
    assert!(devices.contains(&amnesic::Device::CpuWith("portable")), "the portable path is always there");
    devices
}
