//! Leaves out one call of the library's scrub after another, and demands that the matrix notices each.
//!
//! First every job runs once in each mode, to list the calls that happen in it. Then, for each call, jobs in which it
//! happens run with that call left out, until one fails. With the system's allocator most are noticed: freed memory
//! stays as it is. With `amnesic::alloc::Scrubbing` copies of text are looked for too, which are overwritten by calls that
//! only then matter. So the allocator of this program is the one or the other, as its arguments say. Arguments that are
//! no flags choose calls by parts of `file:line`.
//!
//! Needs a build with faults: `AMNESIC_FAULTS=1 cargo test --release --all-features --test forensics_mutants`.

mod common;
#[path = "forensics/mod.rs"]
#[allow(dead_code, reason = "`main` is that of the other tests")]
mod search;

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use amnesic::alloc::Scrubbing;
use amnesic::forensics::Needles;
use search::{Job, Verdict, two_at_a_time};

/// The system's allocator, or the scrubbing one where a child was asked to.
struct Either;

static WITH_SCRUBBING: AtomicBool = AtomicBool::new(false);

#[global_allocator]
static ALLOCATOR: Either = Either;

// SAFETY: both allocate from the system, or give back what they have from elsewhere by its address; so a block may be
// freed by either.
unsafe impl GlobalAlloc for Either {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is the same, here and below.
        match WITH_SCRUBBING.load(Ordering::Relaxed) {
            true => unsafe { Scrubbing.alloc(layout) },
            false => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match WITH_SCRUBBING.load(Ordering::Relaxed) {
            // SAFETY: as above.
            true => unsafe { Scrubbing.dealloc(block, layout) },
            // SAFETY: as above.
            false => unsafe { System.dealloc(block, layout) },
        }
    }
}

/// A call that leaves nothing for a search of the process to find.
struct Unseen {
    file: &'static str,
    call: &'static str,
    /// A test of the library's own that fails without it: file and name.
    test: (&'static str, &'static str),
    why: &'static str,
}

impl Unseen {
    /// Whether its text stands there, and the test that it names in its file.
    fn is(&self, place: &Place<'_>) -> bool {
        let found = place.text.find(self.call).map(|start| start..start + self.call.len());
        let is = self.file == place.file && found.is_some_and(|text| text.contains(&place.column));
        let tests = source(self.test.0);
        assert!(!is || tests.contains(&format!("fn {}(", self.test.1)), "there is no test {}", self.test.1);
        is
    }
}

const UNSEEN: [Unseen; 10] = [
    Unseen {
        file: "src/backend/cpu/reference/mod.rs",
        call: "stack::scrub_below()",
        test: ("src/backend/cpu/reference/mod.rs", "the_stack_is_cleaned"),
        why: "it has no thread but the worker's, which cleans its stack once more behind the receipts that it writes",
    },
    Unseen {
        file: "src/engine/masks/queue.rs",
        call: "Some(stack::scrub_below())",
        test: ("src/memory/stack.rs", "a_dead_frame_is_overwritten"),
        why: "the masks of these grammars leave less than what is tidied before the thread waits",
    },
    Unseen {
        file: "src/memory/arena.rs",
        call: "let _ = self.scrub_all();",
        test: ("tests/forensics_mutants.rs", "both_ends_of_an_arena_overwrite"),
        why: "right before the pages go back to the system, which gives zeros to whoever gets them next",
    },
    Unseen {
        file: "src/memory/thread.rs",
        call: "Depth::Kernels => stack::scrub_below(),",
        test: ("src/memory/thread.rs", "a_stack_is_clean_when_its_thread_is_done"),
        why: "right before the thread ends; then the C library gives the pages of its stack back",
    },
    Unseen {
        file: "src/memory/thread.rs",
        call: "Depth::Parsers => stack::scrub_deep(),",
        test: ("src/memory/thread.rs", "a_stack_is_clean_when_its_thread_is_done"),
        why: "as above",
    },
    Unseen {
        file: "src/memory/secret.rs",
        call: "let _ = scrub(rest);",
        test: ("src/memory/secret.rs", "what_is_cut_off_is_overwritten"),
        why: "behind the end of a secret that is still in use: its whole block is overwritten when it is freed",
    },
    Unseen {
        file: "src/memory/seal.rs",
        call: "let _ = stack::scrub_shallow();",
        test: ("src/memory/seal.rs", "what_a_cipher_leaves_is_overwritten"),
        why: "key streams: random to who does not know the key",
    },
    Unseen {
        file: "src/sample/penalties.rs",
        call: "self.0.wipe()",
        test: ("src/sample/tests/hostile.rs", "the_scratch_is_planned_once_and_scrubbed_whole"),
        why: "all zeros between calls, unless one of them has panicked",
    },
    Unseen {
        file: "src/sample/filters.rs",
        call: "self.peaks.wipe()",
        test: ("src/sample/tests/hostile.rs", "the_scratch_is_planned_once_and_scrubbed_whole"),
        why: "one number of many logits: too few to be told from chance",
    },
    Unseen {
        file: "src/sample/mod.rs",
        call: "self.matches.wipe()",
        test: ("src/sample/tests/hostile.rs", "the_scratch_is_planned_once_and_scrubbed_whole"),
        why: "lengths of repetitions: small numbers that could be anything",
    },
];

/// A job, with the one allocator or the other.
type Trial = (Job, bool);

/// A call of the scrub: `file:line:column`.
type Call = String;

fn run((job, scrubbing): Trial, more: &[&str], folder: &Path, needles: &Needles) -> Verdict {
    let more = [if scrubbing { &["--scrubbing"][..] } else { &[] }, more].concat();
    job.run(&more, folder, needles, scrubbing)
}

fn main() {
    if !cfg!(amnesic_faults) {
        return common::without_faults("forensics_mutants");
    }
    WITH_SCRUBBING.store(std::env::args().any(|argument| argument == "--scrubbing"), Ordering::Relaxed);
    if search::child() {
        return;
    }
    let began = Instant::now();
    let (folder, needles) = search::prepare();
    let trials: Vec<Trial> =
        [false, true].iter().flat_map(|&mode| Job::all().into_iter().map(move |job| (job, mode))).collect();
    let (calls, mut failures) = watch(&trials, folder.path(), &needles);
    failures.extend(both_ends_of_an_arena_overwrite(&calls));
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |call: &&Call| wanted.is_empty() || wanted.iter().any(|wanted| call.contains(wanted));
    let mutants: Vec<&Call> = calls.keys().filter(is_wanted).collect();
    println!("\nrunning {} tests", mutants.len());
    let found = Mutex::new(Vec::new());
    two_at_a_time(&mutants, |call| {
        let killer = kill(call, &calls[call], folder.path(), &needles);
        let place = Place::of(call);
        let unseen = UNSEEN.iter().find(|unseen| unseen.is(&place));
        let (passed, word) = match (&killer, unseen) {
            (Some(killer), None) => (true, format!("noticed by {killer}")),
            (None, Some(Unseen { test, why, .. })) => {
                (true, format!("not to be seen: {why}. {} has the test {}", test.0, test.1))
            }
            (None, None) => {
                (false, format!("NOT NOTICED by any of {} trials: {}", calls[call].len(), place.text.trim()))
            }
            (Some(killer), Some(_)) => {
                (false, format!("noticed by {killer}, though listed as not to be seen"))
            }
        };
        println!("test without the scrub at {call} ... {}", if passed { "ok" } else { "FAILED" });
        println!("    {word}");
        found.lock().unwrap().extend((!passed).then(|| format!("{call}: {word}")));
    });
    failures.extend(found.into_inner().unwrap());
    failures.iter().for_each(|failure| println!("\n{failure}"));
    let verdict = if failures.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {} calls; {} failures; finished in {:.1}s\n",
        mutants.len(),
        failures.len(),
        began.elapsed().as_secs_f32()
    );
    std::process::exit(i32::from(!failures.is_empty()));
}

/// The pages of an arena are the system's afterwards: that they were overwritten, as it closes and as it drops, is seen by the calls
/// alone.
fn both_ends_of_an_arena_overwrite(calls: &BTreeMap<Call, Vec<Trial>>) -> Option<String> {
    let text = source("src/memory/arena.rs");
    let ends = ["let scrubbed = self.scrub_all();", "let _ = self.scrub_all();"];
    let missing = ends.iter().find(|end| {
        let line = text.lines().position(|line| line.contains(**end)).map(|line| line + 1);
        let place = format!("src/memory/arena.rs:{}:", line.expect("a call of the scrub"));
        !calls.keys().any(|call| call.starts_with(&place))
    });
    missing.map(|end| format!("no trial came to `{end}` of an arena"))
}

/// All calls of the library's scrub, with the trials in which each happens; and trials that fail as they are.
fn watch(trials: &[Trial], folder: &Path, needles: &Needles) -> (BTreeMap<Call, Vec<Trial>>, Vec<String>) {
    let (calls, failures) = (Mutex::new(BTreeMap::<Call, Vec<Trial>>::new()), Mutex::new(Vec::new()));
    two_at_a_time(trials, |trial| {
        let verdict = run(trial, &["--watch"], folder, needles);
        let again = verdict.complaint.and_then(|_| complaint(trial, &["--watch"], folder, needles));
        failures.lock().unwrap().extend(again.map(|complaint| format!("{}: {complaint}", name(trial))));
        let mut calls = calls.lock().unwrap();
        for call in verdict.scrubs.into_iter().filter(|call| !call.contains("src/forensics")) {
            calls.entry(call).or_default().push(trial);
        }
    });
    let (mut calls, failures) = (calls.into_inner().unwrap(), failures.into_inner().unwrap());
    // those with several requests, threads or errors first: they leave most; those with dumps last, for their time
    calls.values_mut().for_each(|trials| trials.sort_by_key(|trial| (cost(*trial), trial.1, name(*trial))));
    let files: BTreeSet<&str> = calls.keys().filter_map(|call| call.split(':').next()).collect();
    assert!(files.len() > 5, "calls in few files only: {files:?}");
    (calls, failures)
}

/// Less for what is likelier to notice something, and quicker.
fn cost((job, _): Trial) -> usize {
    let name = job.name();
    let first = [
        "Success x Generate",
        "Length x Generate",
        "one sampled token",
        "Cancel x Stream",
        "penalties",
        "open conversation",
        "drop",
    ];
    match first.iter().position(|first| *first == name) {
        Some(place) => place,
        None if name == "no-op scrub" => 1000, // which fails in any case
        None if name.starts_with("Core") => 100,
        None => first.len(),
    }
}

/// The first trial that notices that a call is left out.
fn kill(call: &Call, trials: &[Trial], folder: &Path, needles: &Needles) -> Option<String> {
    let noticed = |trial: &&Trial| complaint(**trial, &["--leave-out", call], folder, needles).is_some();
    trials.iter().filter(|trial| cost(**trial) < 1000).find(noticed).map(|trial| name(*trial))
}

/// What a trial complains of, if it does so twice: what is missing is missing each time, while a thread that has answered and
/// not yet cleaned its stack is seen once in a thousand runs.
fn complaint(trial: Trial, more: &[&str], folder: &Path, needles: &Needles) -> Option<String> {
    let first = run(trial, more, folder, needles).complaint?;
    let second = run(trial, more, folder, needles).complaint;
    if second.is_none() {
        println!("    only once, by {}: {first}", name(trial));
    }
    second
}

fn name((job, scrubbing): Trial) -> String {
    format!("{}{}", job.name(), if scrubbing { ", with the scrubbing allocator" } else { "" })
}

/// Where a call stands.
struct Place<'a> {
    file: &'a str,
    /// The line's text.
    text: String,
    /// Bytes of it before the call.
    column: usize,
}

impl<'a> Place<'a> {
    fn of(call: &'a Call) -> Self {
        let mut parts = call.rsplitn(3, ':');
        let mut number = || parts.next().and_then(|part| part.parse::<usize>().ok()).expect("a number") - 1;
        let (column, line) = (number(), number());
        let file = parts.next().expect("file:line:column");
        Self { file, text: source(file).lines().nth(line).unwrap_or_default().to_owned(), column }
    }
}

fn source(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file))
        .unwrap_or_else(|error| panic!("{file}: {error}"))
}
