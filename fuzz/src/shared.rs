//! What the targets share: how a session is opened on files that libFuzzer makes, and what must hold whatever they say.
//!
//! No panic in the library, on any thread; no error but one that names who must act; no more memory than is said here. That
//! nothing hangs is libFuzzer's own check (`-timeout`).

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use amnesic::{Builder, Device, Error, Files, Session};
use serde_json::json;

/// Most bytes of the heap that may be in use at once. The largest input is far below a hundredth of it.
const MOST_HEAP_BYTES: usize = 512 << 20;
/// Most bytes that a session may plan.
const BUDGET_BYTES: u64 = 256 << 20;

/// The system's allocator, which ends the process where more is in use than the limit: that is then a finding.
struct Bounded;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all calls go to the system's allocator as they are.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if IN_USE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size() > MOST_HEAP_BYTES {
            over(layout.size());
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }
}

#[cold]
fn over(size: usize) -> ! {
    IN_USE.store(0, Ordering::Relaxed); // what prints allocates
    eprintln!("an allocation of {size} bytes exceeds {MOST_HEAP_BYTES} bytes of heap");
    std::process::abort();
}

/// Called once, before the first input. A panic of the library's ends the process, also where it would be caught. Panics of
/// the crates that it calls are caught by design in some places; where they are not, the session is poisoned, which
/// [`typed`] notices.
pub fn start() {
    std::panic::set_hook(Box::new(|panic| {
        let foreign = |file: &str| file.contains("/registry/src/");
        if !panic.location().is_some_and(|location| foreign(location.file())) {
            eprintln!("{panic}");
            std::process::abort();
        }
    }));
}

/// The folder of a fixture.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// The bytes of a fixture's file.
pub fn read(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A fixture's files that a session reads, those of its subfolders included.
pub fn files(name: &str) -> Files {
    fn below(folder: &Path, prefix: &str, mut files: Files) -> Files {
        for entry in std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().into_string().unwrap());
            match entry.path().is_dir() {
                true => files = below(&entry.path(), &format!("{name}/"), files),
                false if name.starts_with("expected") => {}
                false => files = files.file(name, std::fs::read(entry.path()).unwrap()),
            }
        }
        files
    }
    below(&fixture(name), "", Files::new())
}

/// The tensors behind a safetensors file's header.
pub fn data_of(file: &[u8]) -> &[u8] {
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    &file[8 + header..]
}

/// A safetensors file with this header.
pub fn safetensors(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// A model of one layer whose weights are zero, for a tokenizer of up to `vocab` tokens: opening it costs little.
pub fn tiny(vocab: usize) -> Files {
    const WIDTH: usize = 16;
    let config = format!(
        r#"{{"model_type": "llama", "hidden_size": {WIDTH}, "intermediate_size": {WIDTH}, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": {vocab}, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true, "eos_token_id": 2}}"#
    );
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, WIDTH])];
    tensors.push(("model.norm.weight".to_owned(), vec![WIDTH]));
    for norm in ["input_layernorm", "post_attention_layernorm"] {
        tensors.push((format!("model.layers.0.{norm}.weight"), vec![WIDTH]));
    }
    for matrix in
        ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"]
    {
        tensors.push((format!("model.layers.0.{matrix}_proj.weight"), vec![WIDTH, WIDTH]));
    }
    let mut end = 0;
    let entries: Vec<_> = tensors
        .iter()
        .map(|(name, shape)| {
            let start = end;
            end += 2 * shape.iter().product::<usize>();
            format!(r#""{name}": {{"dtype": "BF16", "shape": {shape:?}, "data_offsets": [{start}, {end}]}}"#)
        })
        .collect();
    let header = format!("{{{}}}", entries.join(", "));
    Files::new()
        .file("config.json", config)
        .file("model.safetensors", safetensors(header.as_bytes(), &vec![0; end]))
}

/// `tokenizer.json` with a token for each byte, and no pattern: it opens at once. Its vocabulary is of [`BYTES`] tokens.
pub fn byte_tokenizer() -> String {
    // GPT-2's characters for bytes: printable ones are themselves, the others follow from 256 on
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 256..;
    let mut vocab = serde_json::Map::from_iter([("<|eot_id|>".to_owned(), 0.into())]);
    for byte in 0..256 {
        let code = if printable(byte) { byte } else { others.next().expect("endless") };
        vocab.insert(char::from_u32(code).expect("a character").to_string(), (byte + 1).into());
    }
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let end = json!({"id": 0, "content": "<|eot_id|>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true});
    json!({"added_tokens": [end], "normalizer": null, "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []}})
    .to_string()
}

/// Tokens of [`byte_tokenizer`].
pub const BYTES: usize = 257;

/// A session as small as one can be, on the CPU.
pub fn small(files: Files) -> Builder {
    settings(Session::from_files(files))
}

fn settings(builder: Builder) -> Builder {
    let builder = builder.device(Device::Cpu).threads(1).kv_tokens(256).max_sequences(2).step_tokens(64);
    builder.memory_budget(BUDGET_BYTES).without_file_hashes().accept_unscrubbed_heap()
}

/// Whether errors are printed: for one input that is run again.
fn prints() -> bool {
    std::env::var_os("AMNESIC_FUZZ_PRINT").is_some()
}

/// Ends the process where an error puts the blame on nobody who made the input: the library failed.
pub fn typed<T>(result: amnesic::Result<T>) -> Option<T> {
    let error = match result {
        Ok(value) => return Some(value),
        Err(error) => error,
    };
    let text = error.to_string();
    let blames_us =
        matches!(error, Error::Poisoned(_) | Error::Closed | Error::Thread(_) | Error::Busy { .. });
    // a message quotes names of the file, cut to what a log line takes
    if blames_us || text.is_empty() || text.len() > 64 << 10 {
        eprintln!("{} bytes of an error: {:.1000}", text.len(), text);
        std::process::abort();
    }
    if prints() {
        eprintln!("{text}");
    }
    None
}

/// Opens a session, has it compute a token, and closes it.
pub fn open(builder: Builder) {
    let Some(session) = typed(builder.open()) else { return };
    let answer = session.generate(amnesic::Request::tokens([0]).max_tokens(1));
    match answer {
        Err(Error::WrongTask { .. }) => {
            typed(session.embed(&["a"]));
            typed(session.rerank("a", &["b"]));
        }
        answer => drop(typed(answer)),
    }
    typed(session.close());
}
