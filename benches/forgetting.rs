//! What forgetting costs: the share of a generation that goes into overwriting, the rate of overwriting, and the price of
//! the scrubbing allocator.
//!
//! `cargo bench -p amnesic-benches --features testing --bench forgetting -- [--model DIR] [--rounds N]`

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use amnesic::alloc::Scrubbing;
use amnesic::{Request, Session};

/// The one allocator or the other: what `main` chooses before anything else happens.
struct Chosen;

static SCRUBS: AtomicBool = AtomicBool::new(false);

#[global_allocator]
static ALLOCATOR: Chosen = Chosen;

// SAFETY: both are allocators for the same blocks: `Scrubbing` frees what the system's allocated before it was chosen.
unsafe impl GlobalAlloc for Chosen {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is the same.
        unsafe { if SCRUBS.load(Ordering::Relaxed) { Scrubbing.alloc(layout) } else { System.alloc(layout) } }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe {
            match SCRUBS.load(Ordering::Relaxed) {
                true => Scrubbing.dealloc(block, layout),
                false => System.dealloc(block, layout),
            }
        }
    }
}

struct Options {
    model: PathBuf,
    rounds: usize,
    /// In a child: whether with the scrubbing allocator.
    child: Option<bool>,
}

fn main() {
    let options = options();
    if let Some(scrubs) = options.child {
        SCRUBS.store(scrubs, Ordering::Relaxed);
        return println!("{}", generation(&options.model).as_secs_f64());
    }
    rate();
    allocations();
    shares(&options);
    end_to_end(&options);
}

fn options() -> Options {
    let mut parser = lexopt::Parser::from_env();
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/default");
    let mut options = Options { model: default, rounds: 5, child: None };
    while let Some(argument) = parser.next().expect("arguments are UTF-8") {
        use lexopt::prelude::*;
        match argument {
            Long("model") => options.model = parser.value().expect("a folder").into(),
            Long("rounds") => {
                options.rounds = parser.value().and_then(|value| value.parse()).expect("a number")
            }
            Long("child") => options.child = Some(parser.value().is_ok_and(|value| value == "scrubbing")),
            Long("bench") => {} // cargo's own
            other => panic!("{}", other.unexpected()),
        }
    }
    options
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Overwriting against the C library's memset, in turn.
fn rate() {
    println!("overwriting, GB/s (medians of 41 turns):");
    for (name, len) in
        [("4 KiB", 4 << 10), ("64 KiB", 64 << 10), ("4 MiB", 4 << 20), ("256 MiB", 256 << 20_usize)]
    {
        let mut bytes = vec![0xa5_u8; len];
        assert_eq!(amnesic::testing::scrub(&mut bytes), len as u64);
        assert!(bytes.iter().all(|&byte| byte == 0), "scrub left something");
        let times = ((64 << 20) / len).clamp(1, 4096);
        let mut timed = |act: &mut dyn FnMut(&mut [u8])| {
            let start = Instant::now();
            (0..times).for_each(|_| act(black_box(&mut bytes)));
            (times * len) as f64 / start.elapsed().as_secs_f64() / 1e9
        };
        let (mut scrubs, mut fills) = (Vec::new(), Vec::new());
        for _ in 0..if len > 1 << 26 { 11 } else { 41 } {
            scrubs.push(timed(&mut |bytes| assert!(amnesic::testing::scrub(bytes) > 0)));
            fills.push(timed(&mut |bytes| {
                bytes.fill(0);
                black_box(bytes);
            }));
        }
        let (scrub, fill) = (median(scrubs), median(fills));
        println!("  {name:>8}: scrub {scrub:6.1}, memset {fill:6.1}, {:.0} %", 100.0 * scrub / fill);
    }
}

/// A pair of allocation and release.
fn allocations() {
    println!("allocate and free, ns (medians of 41 turns): system, scrubbing");
    for size in [16, 256, 4096, 65_536] {
        let layout = Layout::from_size_align(size, 8).expect("a size and an alignment");
        let pair = |allocator: &dyn GlobalAlloc| {
            let count = 4000;
            let start = Instant::now();
            for _ in 0..count {
                // SAFETY: the layout has a size; the block is freed by the allocator that gave it, and once.
                unsafe {
                    let block = allocator.alloc(layout);
                    block.write_volatile(1);
                    allocator.dealloc(black_box(block), layout);
                }
            }
            start.elapsed().as_secs_f64() * 1e9 / f64::from(count)
        };
        let turns: Vec<_> = (0..41).map(|_| (pair(&System), pair(&Scrubbing))).collect();
        let system = median(turns.iter().map(|turn| turn.0).collect());
        let scrubbing = median(turns.iter().map(|turn| turn.1).collect());
        println!("  {size:>6} bytes: {system:7.1} {scrubbing:7.1}");
    }
}

fn prompt(session: &Session, tokens: usize, seed: u32) -> Vec<u32> {
    let vocab = session.vocab_size() as u32;
    (0..tokens as u32).map(|i| (i + seed).wrapping_mul(7919) % vocab).collect()
}

/// What share of a request's time overwriting takes, as its reply tells it.
fn shares(options: &Options) {
    let session =
        Session::builder(&options.model).accept_unscrubbed_heap().open().expect("the checkpoint opens");
    println!("{}: {}", options.model.display(), session.device());
    println!("overwriting at a request's end (medians of {} rounds):", options.rounds);
    for (batch, prompt_tokens, reply_tokens) in [(1, 16, 16), (1, 128, 64), (1, 512, 128), (8, 128, 64)] {
        let ask = |at: usize| {
            Request::tokens(prompt(&session, prompt_tokens, at as u32))
                .max_tokens(reply_tokens)
                .ignore_eos(true)
                .temperature(0.0)
        };
        let mut found = Vec::new();
        for _ in 0..options.rounds {
            let replies = session.generate_batch((0..batch).map(ask)).expect("the requests are valid");
            assert!(replies.iter().all(|reply| reply.tokens().len() == reply_tokens));
            let last = replies.iter().max_by_key(|reply| reply.timing.total).expect("a batch is not empty");
            let scrub = replies.iter().map(|reply| reply.timing.scrub).max().expect("as above");
            let bytes = replies.iter().map(|reply| reply.receipt.bytes()).max().expect("as above");
            found.push((scrub, last.timing.total, bytes));
        }
        let share =
            median(found.iter().map(|(scrub, total, _)| scrub.as_secs_f64() / total.as_secs_f64()).collect());
        let (scrub, total, bytes) = found[found.len() / 2];
        println!(
            "  batch {batch}, {prompt_tokens} + {reply_tokens} tokens: {:.3} % ({:.0} us of {:.0} ms, {:.1} MB)",
            100.0 * share,
            scrub.as_secs_f64() * 1e6,
            total.as_secs_f64() * 1e3,
            bytes as f64 / 1e6
        );
    }
}

/// What a child does, and how long it takes.
fn generation(model: &Path) -> Duration {
    let session = Session::builder(model).accept_unscrubbed_heap().open().expect("the checkpoint opens");
    let ask = |at: u32| Request::tokens(prompt(&session, 64, at)).max_tokens(48).ignore_eos(true);
    session.generate(ask(0)).expect("the request is valid");
    let start = Instant::now();
    for at in 1..5 {
        let reply = session.generate(ask(at)).expect("the request is valid");
        assert_eq!(reply.tokens().len(), 48);
    }
    start.elapsed()
}

/// Whole programs with the one allocator and the other, in turn.
fn end_to_end(options: &Options) {
    let program = std::env::current_exe().expect("this program has a path");
    let run = |allocator: &str| {
        let mut child = Command::new(&program);
        child.args(["--child", allocator, "--model"]).arg(&options.model);
        let output = child.output().expect("this program starts again");
        String::from_utf8_lossy(&output.stdout).trim().parse::<f64>().expect("a child prints its seconds")
    };
    let turns: Vec<(f64, f64)> = (0..options.rounds).map(|_| (run("system"), run("scrubbing"))).collect();
    let ratio = median(turns.iter().map(|(system, scrubbing)| scrubbing / system).collect());
    println!(
        "four requests of 64 + 48 tokens: {:.3} s with the system's allocator, {:.3} s with the scrubbing one; ratio {ratio:.3}",
        median(turns.iter().map(|turn| turn.0).collect()),
        median(turns.iter().map(|turn| turn.1).collect()),
    );
}
