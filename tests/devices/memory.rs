//! What sessions leave in a CUDA device: all of its free memory and the shared memory of its processors are searched for
//! what requests were made of, here and in a second process. Each scene ends its session in another way.
//!
//! On machines without a device the scenes run on the emulated one, where nothing is searched: what it frees is unmapped,
//! and its shared memory ends with each kernel. What steps leave in its memory is looked at in `src/model/tests.rs`.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use amnesic::forensics::Gate;
use amnesic::testing::device::{self, Leaks};
use amnesic::testing::{LogitsTap, Tokenizer};
use amnesic::{CancelToken, Device, EmbedRequest, FinishReason, Request, Session};

use crate::alone;
use crate::common::fixture;

const CHILD: &str = "AMNESIC_SEARCH";

/// A device, and how long requests are.
struct Place {
    device: fn() -> Device,
    prompt: usize,
    reply: usize,
}

const GPU: Place = Place { device: || Device::Cuda(0), prompt: 150, reply: 40 };
const EMULATED: Place = Place { device: || Device::CudaEmulated, prompt: 20, reply: 6 };

/// What a session does, which has ended when it returns; and what is to be looked for then.
type Scene = fn(&Place) -> Vec<Vec<u8>>;

const SCENES: [(&str, Scene); 5] = [
    ("closed", closed),
    ("dropped in the middle of a stream", dropped),
    ("cancelled", cancelled),
    ("embeddings", embedded),
    ("two sessions in turn", in_turn),
];

fn open(place: &Place) -> Session {
    Session::builder(fixture("llama3_bf16")).device((place.device)()).open().unwrap()
}

fn ids(place: &Place, first: u32) -> Vec<u32> {
    (0..place.prompt as u32).map(|i| 5 + (first + i * 37) % 150).collect()
}

/// A request, and what its logits will be in.
fn request(place: &Place, first: u32) -> (Request, LogitsTap) {
    let tap = LogitsTap::default();
    (Request::tokens(ids(place, first)).max_tokens(place.reply).tap_logits(&tap), tap)
}

fn closed(place: &Place) -> Vec<Vec<u8>> {
    let session = open(place);
    let (request, tap) = request(place, 1);
    session.generate(request).unwrap();
    let vocab = session.vocab_size();
    let receipt = session.close().unwrap();
    assert!(receipt.verified_bytes() > 0, "{receipt}");
    patterns(&ids(place, 1), &tap.values(), vocab)
}

fn dropped(place: &Place) -> Vec<Vec<u8>> {
    let session = open(place);
    let (request, tap) = request(place, 2);
    let mut stream = session.stream(request.max_tokens(100)).unwrap();
    stream.by_ref().take(3).for_each(|piece| _ = piece.unwrap());
    let vocab = session.vocab_size();
    drop(stream);
    drop(session);
    patterns(&ids(place, 2), &tap.values(), vocab)
}

fn cancelled(place: &Place) -> Vec<Vec<u8>> {
    let session = open(place);
    let (request, tap) = request(place, 3);
    let (gate, token) = (Gate::default(), CancelToken::new());
    let request = request.stop_at(2, &gate).cancel_token(&token);
    let reply = std::thread::scope(|scope| {
        let reply = scope.spawn(|| session.generate(request));
        let reached = gate.wait(Duration::from_secs(300));
        token.cancel();
        gate.open();
        assert!(reached, "the third token is never chosen");
        reply.join().unwrap().unwrap()
    });
    assert_eq!(reply.finish_reason(), FinishReason::Cancelled);
    let vocab = session.vocab_size();
    session.close().unwrap();
    patterns(&ids(place, 3), &tap.values(), vocab)
}

fn embedded(place: &Place) -> Vec<Vec<u8>> {
    let folder = fixture("encoders/roberta");
    let text =
        "Ownership is Rust's most unique feature, and it has deep implications for the rest of the language.";
    let session = Session::builder(&folder).device((place.device)()).open().unwrap();
    // as the device gives them: they are scaled on the host
    let embeddings = session.embed_with(EmbedRequest::new([text]).normalize(false)).unwrap();
    session.close().unwrap();
    let ids = Tokenizer::open(&folder, 1 << 16).unwrap().encode(text, true);
    patterns(&ids, embeddings.values(), embeddings.dimensions())
}

/// The second one is given the memory of the first.
fn in_turn(place: &Place) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for first in [4, 5] {
        let session = open(place);
        let (request, tap) = request(place, first);
        session.generate(request).unwrap();
        let vocab = session.vocab_size();
        drop(session);
        all.extend(patterns(&ids(place, first), &tap.values(), vocab));
    }
    all
}

/// The ids as they go over, and a piece of the first and of the last row of logits or embeddings, in every form in which
/// kernels write numbers.
fn patterns(ids: &[u32], rows: &[f32], cols: usize) -> Vec<Vec<u8>> {
    let mut all = vec![ids[..12].iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>()];
    for at in [4, rows.len() - cols + 4] {
        let part = &rows[at..at + 16];
        all.push(part.iter().flat_map(|value| value.to_le_bytes()).collect());
        all.push(part.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect());
        all.push(part.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect());
    }
    for pattern in &all {
        let mut words: Vec<_> = pattern.as_chunks::<4>().0.to_vec();
        words.sort_unstable();
        words.dedup();
        assert!(words.len() >= 6, "{pattern:?} may be found by chance");
    }
    all
}

/// What shared memory is filled with: nothing else looks like it.
fn canary(number: u8) -> Vec<u8> {
    (0..64_u8).map(|i| i.wrapping_mul(37).wrapping_add(number) ^ 0x5a).collect()
}

#[test]
fn nothing_of_a_request_is_found_on_a_device() {
    let _alone = alone();
    if device::count() == 0 {
        for (name, scene) in SCENES {
            println!("{name}: {} patterns", scene(&EMULATED).len());
        }
        return eprintln!(
            "skipped: no CUDA device; {} scenes ran on the emulated one, 0 searched",
            SCENES.len()
        );
    }
    for (number, (name, scene)) in SCENES.into_iter().enumerate() {
        // in a context of its own, before the session's: what the session does has to clear it too
        let canary = canary(number as u8);
        device::leak_probe(0, &canary).unwrap();
        let patterns = scene(&GPU);
        let all = [patterns.clone(), vec![canary]].concat();
        let nothing = vec![0; all.len()];
        let heard = device::find_leaks(0, &all).unwrap();
        assert_eq!(heard.found, nothing, "{name}: something stays in shared memory");
        let (found, searched) = device::search_free_memory(0, &patterns).unwrap();
        assert_eq!(found, nothing[1..], "{name}: something stays in the device's memory");
        assert!(searched > 1 << 30, "{searched} bytes are not much");
        println!("{name}: nothing in {} MiB of free memory; {}", searched >> 20, told(&heard));
        let elsewhere = in_another_process(&all);
        assert_eq!(elsewhere, (nothing.clone(), nothing), "{name}: another process finds something");
    }
    let left = [canary(100)];
    let held = device::leave_behind(0, &left[0]).unwrap();
    assert_eq!(held, (64 << 20) / left[0].len(), "the search does not find what is there");
    let (found, _) = device::search_free_memory(0, &left).unwrap();
    let (elsewhere, _) = in_another_process(&left);
    println!(
        "report: of {held} patterns in memory that nobody overwrote, {} found after it was given back, {} by another process",
        found[0], elsewhere[0]
    );
}

/// What the hardware does by itself is reported; that our kernel clears it is held.
#[test]
fn shared_memory_is_cleared() {
    let _alone = alone();
    if device::count() == 0 {
        return eprintln!(
            "skipped: no CUDA device; the kernels that find_leaks are tested in src/backend/cuda/search.rs"
        );
    }
    let own = device::probe_and_find_leaks(0, &canary(101), false).unwrap();
    assert_eq!(own.processors, own.processors_in_all, "some processors were never listened to");
    println!("report: without clearing, in one context: heard {} times; {}", own.found[0], told(&own));
    device::leak_probe(0, &canary(102)).unwrap();
    let other = device::find_leaks(0, &[canary(102)]).unwrap();
    println!(
        "report: without clearing, from another context: heard {} times; {}",
        other.found[0],
        told(&other)
    );
    device::leak_probe(0, &canary(103)).unwrap();
    let (_, heard) = in_another_process(&[canary(103)]);
    println!("report: without clearing, from another process: heard {} times", heard[0]);
    let cleared = device::probe_and_find_leaks(0, &canary(104), true).unwrap();
    assert_eq!(cleared.found, [0], "the kernel that clears shared memory leaves something");
    println!("cleared, in one context: heard {} times; {}", cleared.found[0], told(&cleared));
}

fn told(heard: &Leaks) -> String {
    let Leaks { bytes, words_not_zero, processors, processors_in_all, .. } = heard;
    let kib = bytes >> 10;
    format!(
        "{words_not_zero} words not zero in {kib} KiB of shared memory of {processors} of {processors_in_all} processors"
    )
}

/// How often each pattern is found in free memory, and heard in shared memory, by another process.
fn in_another_process(patterns: &[Vec<u8>]) -> (Vec<usize>, Vec<usize>) {
    let this = std::env::current_exe().unwrap();
    let mut child = Command::new(this)
        .args(["--exact", "memory::searches_for_its_parent", "--nocapture"])
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&serde_json::to_vec(patterns).unwrap()).unwrap();
    let out = child.wait_with_output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("found "));
    let line = line.unwrap_or_else(|| panic!("the other process says {text}"));
    serde_json::from_str(line).unwrap()
}

#[test]
fn searches_for_its_parent() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let mut patterns = Vec::new();
    std::io::stdin().read_to_end(&mut patterns).unwrap();
    let patterns: Vec<Vec<u8>> = serde_json::from_slice(&patterns).unwrap();
    let heard = device::find_leaks(0, &patterns).unwrap().found; // first: the search would run over it
    let (found, _) = device::search_free_memory(0, &patterns).unwrap();
    println!("\nfound {}", serde_json::to_string(&(found, heard)).unwrap());
}
