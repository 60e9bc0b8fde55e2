//! What requests for embeddings and scores leave in memory: nothing, with `amnesic::alloc::Scrubbing` installed; and the same
//! search finds what the application holds. That it notices each call of the scrub that is left out:
//! `tests/forensics_embed_mutants.rs`.

mod common;
#[path = "forensics_embed/mod.rs"]
#[allow(dead_code, reason = "the other test takes more")]
mod scenes;

use std::process::ExitCode;

use scenes::{HELD, SCENES, Told};

amnesic::install_scrubbing_allocator!();

fn main() -> ExitCode {
    if scenes::is_child() {
        return ExitCode::SUCCESS;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut failed = 0;
    for scene in SCENES.into_iter().chain([HELD]) {
        let Told { findings, dirty, .. } = scenes::run(scene, None, folder.path());
        let good = match scene {
            HELD => findings.has("text") && findings.has("embedding"),
            _ => findings.is_empty() && dirty.is_empty(),
        };
        println!("{} {scene}: {findings}, {dirty:?}", if good { "ok    " } else { "FAILED" });
        failed += usize::from(!good);
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
