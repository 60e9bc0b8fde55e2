//! What a session leaves in a CUDA device's memory, once it has gone: all that is free is taken and searched, here and in
//! a second process. On machines without a device nothing is looked at; `tools/gpu_check` says so. What steps leave in
//! the emulated device's memory is looked at in `src/model/tests.rs`.

mod common;

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use amnesic::testing::{LogitsTap, device};
use amnesic::{Device, Request, Session};
use common::fixture;

const CHILD: &str = "AMNESIC_SEARCH";

#[test]
fn nothing_of_a_request_is_found_in_free_memory() {
    if device::count() == 0 {
        return eprintln!("no CUDA device: nothing is searched");
    }
    let ids: Vec<u32> = (0..48).map(|i| 5 + i * 37 % 200).collect();
    let tap = LogitsTap::default();
    let patterns = {
        let session = Session::builder(fixture("llama3_bf16")).device(Device::Cuda(0)).open().unwrap();
        session.generate(Request::tokens(ids.clone()).max_tokens(40).tap_logits(&tap)).unwrap();
        let logits = tap.values();
        let vocab = session.vocab_size();
        let receipt = session.close().unwrap();
        assert!(receipt.verified_bytes() > 0, "{receipt}");
        // the ids as they went over, and a piece of the first and the last row of logits
        let words = ids[..16].iter().flat_map(|id| id.to_le_bytes()).collect();
        let row = |at: usize| logits[at..at + 16].iter().flat_map(|value| value.to_le_bytes()).collect();
        vec![words, row(3), row(logits.len() - vocab + 3)]
    };
    let (found, searched) = device::search_free_memory(0, &patterns).unwrap();
    println!("{} MiB searched", searched >> 20);
    assert!(searched > 1 << 30, "{searched} bytes are not much");
    assert_eq!(found, [0; 3], "something stays in the device's memory");
    assert_eq!(in_another_process(&patterns), "0 0 0", "another process finds something");

    // the search finds what is there
    device::leave_behind(0, &patterns[1]).unwrap();
    let (found, _) = device::search_free_memory(0, &patterns[1..2]).unwrap();
    println!("left behind and found: {}", found[0]);
}

fn in_another_process(patterns: &[Vec<u8>]) -> String {
    let this = std::env::current_exe().unwrap();
    let mut child = Command::new(this)
        .args(["--exact", "searches_for_its_parent", "--nocapture"])
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&patterns.concat()).unwrap();
    let out = child.wait_with_output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("found "));
    line.unwrap_or_else(|| panic!("the other process says {text}")).to_owned()
}

#[test]
fn searches_for_its_parent() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let mut patterns = Vec::new();
    std::io::stdin().read_to_end(&mut patterns).unwrap();
    let patterns: Vec<Vec<u8>> = patterns.chunks(64).map(<[u8]>::to_vec).collect();
    let (found, _) = device::search_free_memory(0, &patterns).unwrap();
    let found: Vec<String> = found.iter().map(usize::to_string).collect();
    println!("\nfound {}", found.join(" "));
}
