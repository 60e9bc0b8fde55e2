//! The attack catalogue: what is wrong with a checkpoint, a setting or a request gives the error that says so. It
//! never panics, aborts, hangs or takes memory to match.

#[path = "../common/mod.rs"]
mod common;
mod config;
mod damaged;
mod errors;
mod parts;
mod requests;
mod settings;
mod tokenizer;
mod weights;

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use amnesic::alloc::Scrubbing;
use amnesic::{Builder, Error, Request, Session};
use parts::Parts;

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
