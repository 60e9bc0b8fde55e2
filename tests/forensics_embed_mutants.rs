//! Leaves out one call of the library's scrub after another in a request for embeddings, and demands that the search of
//! `tests/forensics_embed.rs` notices each; and with no scrub at all, that it finds what is there.
//!
//! Needs a build with faults: `AMNESIC_FAULTS=1 cargo test --release --all-features --test forensics_embed_mutants`.

mod common;
#[path = "forensics_embed/mod.rs"]
#[allow(dead_code, reason = "the other test takes more")]
mod scenes;

use std::path::Path;
use std::process::ExitCode;

use scenes::{NO_OP_SCRUB, Told};

amnesic::install_scrubbing_allocator!();

/// Calls that leave nothing to find here: file, text of the line, and who notices.
const UNSEEN: [(&str, &str, &str); 10] = [
    // texts are tokenized in secrets: what other crates allocate holds none
    (
        "src/alloc.rs",
        "heap::free(block, layout.size(), layout.align())",
        "the matrix: templates and grammars",
    ),
    // seen where the team took part, which it does not always in a step as small as this one
    ("src/backend/cpu/device.rs", "let scrubbed = stack::scrub_below();", "the matrix"),
    // found as long as nobody takes the memory, so not always
    ("src/alloc.rs", "crate::memory::scrub::overwrite(bytes);", "the matrix"),
    ("src/backend/cpu/device.rs", "self.memory.arena().scrub(scratch)", "src/model/tests.rs, and the matrix"),
    ("src/backend/cpu/memory.rs", "arena.scrub(kv.block(block))", "src/model/tests.rs, and the matrix"),
    ("src/memory/arena.rs", "self.scrub_all()", "as in tests/forensics_mutants.rs"),
    ("src/memory/secret.rs", "let _ = scrub(rest);", "as there"),
    ("src/memory/thread.rs", "Depth::Kernels => stack::scrub_below(),", "as there"),
    ("src/memory/thread.rs", "Depth::Parsers => stack::scrub_deep(),", "as there"),
    ("src/forensics/search.rs", "let _ = scrub(&mut self.0);", "the search's own"),
];

/// Whether a call, `file:line:column`, is one of those.
fn is_unseen(call: &str) -> bool {
    let mut parts = call.split(':');
    let (file, line) = (parts.next().unwrap(), parts.next().unwrap().parse::<usize>().unwrap());
    let source = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let text = source.lines().nth(line - 1).unwrap();
    UNSEEN.iter().any(|(of, what, _)| *of == file && text.contains(what))
}

fn main() -> ExitCode {
    if !cfg!(amnesic_faults) {
        common::without_faults("forensics_embed_mutants");
        return ExitCode::SUCCESS;
    }
    if scenes::is_child() {
        return ExitCode::SUCCESS;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut failed = 0;
    let Told { findings, .. } = scenes::run(NO_OP_SCRUB, None, folder.path());
    let found = findings.has("ids") && findings.has("embedding");
    println!("{} {NO_OP_SCRUB}: {findings}", if found { "ok    " } else { "FAILED" });
    failed += usize::from(!found);
    let calls = scenes::run("embed", Some("list"), folder.path()).calls;
    assert!(calls.len() > 9, "calls of the scrub: {calls:?}");
    for call in &calls {
        let Told { findings, dirty, .. } = scenes::run("embed", Some(call), folder.path());
        let noticed = !findings.is_empty() || !dirty.is_empty();
        println!("{} without {call}: {findings}, {dirty:?}", if noticed { "ok    " } else { "unseen" });
        failed += usize::from(!noticed && !is_unseen(call));
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
