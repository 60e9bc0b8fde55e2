//! What the decoder leaves in memory.

use std::path::{Path, PathBuf};

use super::decoder::{Decoder, blocks_for};
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, Batch, Span};
use crate::{Quantize, Session};

/// The checkpoints of all families, and some quantized ones.
fn checkpoints() -> Vec<PathBuf> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let inside = |folder: &str| {
        let entries = std::fs::read_dir(fixtures.join(folder)).unwrap();
        let mut all: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        all.retain(|path| path.join("expected.json").exists());
        all.sort();
        all
    };
    [inside("families"), inside("quantized")].concat()
}

/// A buffer that `scrub` forgets would keep what a request made of it.
#[test]
fn nothing_of_a_step_stays_in_any_family() {
    for folder in checkpoints() {
        for quantize in [None, Some(Quantize::Q8)] {
            let builder = Session::builder(&folder).max_sequences(5).step_tokens(23).kv_tokens(64);
            let parts = builder.parts().unwrap();
            let mut backend = Cpu::new(2, builder.instruction_set().unwrap()).unwrap();
            let decoder =
                Decoder::new(parts.arch, &parts.weights, parts.plan, quantize, &mut backend, |_| ()).unwrap();
            let ids: Vec<u32> = (0..23).map(|i| 3 + i * 7 % 97).collect();
            let positions: Vec<u32> = (0..23).collect();
            let blocks: Vec<u32> = (0..blocks_for(23) as u32).collect();
            let spans = [Span { row: 0, rows: 23, position: 0, table: 0 }];
            let batch = Batch {
                ids: &ids,
                positions: &positions,
                slots: &positions,
                spans: &spans,
                blocks: &blocks,
                outputs: &[4, 22],
            };
            decoder.forward(&mut backend, &batch);
            assert!(!backend.is_zero(), "{}: nothing was computed", folder.display());
            let _ = decoder.scrub(&mut backend, 23, 2);
            let _ = backend.scrub_threads();
            assert!(!backend.is_zero(), "{}: nothing was cached", folder.display());
            let _ = backend.scrub_blocks(&blocks);
            assert!(backend.is_zero(), "{}: something stays behind", folder.display());
        }
    }
}
