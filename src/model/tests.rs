//! What a step leaves in memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::decoder::{Decoder, blocks_for};
use super::encoder::Encoder;
use crate::backend::cpu::Cpu;
use crate::backend::cuda::Cuda;
use crate::backend::cuda::emulated::{self, Emulated};
use crate::backend::{Backend, Batch, Mask, Pooling, Span};
use crate::memory::BufferLimits;
use crate::{Builder, Quantize, Session};

/// A backend whose memory can be looked at.
trait Seen: Backend {
    fn is_zero(&mut self) -> bool;
}

impl Seen for Cpu {
    fn is_zero(&mut self) -> bool {
        Cpu::is_zero(self)
    }
}

impl Seen for Cuda<Emulated> {
    fn is_zero(&mut self) -> bool {
        Cuda::is_zero(self)
    }
}

fn cpu(builder: &Builder) -> Cpu {
    Cpu::new(2, builder.instruction_set().unwrap()).unwrap()
}

fn cuda(_: &Builder) -> Cuda<Emulated> {
    Cuda::new(Arc::new(Emulated::default()))
}

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
    nothing_stays_in_any_family(checkpoints(), cpu, &[None, Some(Quantize::Q8)]);
}

#[test]
fn nothing_of_a_step_stays_on_a_device_in_any_family() {
    let mut folders = checkpoints();
    if !emulated::does_all() {
        emulated::skipped("two of three checkpoints");
        folders = folders.into_iter().step_by(3).collect();
    }
    nothing_stays_in_any_family(folders, cuda, &[None]);
}

fn nothing_stays_in_any_family<B: Seen>(
    folders: Vec<PathBuf>,
    open: fn(&Builder) -> B,
    quantize: &[Option<Quantize>],
) {
    for folder in folders {
        for &quantize in quantize {
            let builder = Session::builder(&folder).max_sequences(5).step_tokens(23).kv_tokens(64);
            let parts = builder.parts().unwrap();
            let mut backend = open(&builder);
            let plan = parts.plan::<B>(BufferLimits::default()).unwrap();
            let decoder =
                Decoder::new(parts.arch, &parts.weights, plan, quantize, &mut backend, |_| ()).unwrap();
            let ids: Vec<u32> = (0..23).map(|i| 3 + i * 7 % 97).collect();
            let positions: Vec<u32> = (0..23).collect();
            let blocks: Vec<u32> = (0..blocks_for(23) as u32).collect();
            let spans = [Span { row: 0, rows: 23, position: 0, table: 0, adapter: None, mask: Mask::Causal }];
            let batch = Batch {
                ids: &ids,
                positions: &positions,
                slots: &positions,
                spans: &spans,
                blocks: &blocks,
                outputs: &[4, 22],
                position_types: &[],
            };
            let _ = decoder.forward(&mut backend, &batch);
            assert!(!backend.is_zero(), "{}: nothing was computed", folder.display());
            let _ = backend.scrub_steps(decoder.used(23, 2));
            assert!(!backend.is_zero(), "{}: nothing was cached", folder.display());
            let _ = backend.scrub_blocks(&blocks);
            assert!(backend.is_zero(), "{}: something stays behind", folder.display());
        }
    }
}

/// Nothing stays of requests with adapters either, nor of one without beside them.
#[test]
fn nothing_of_a_step_stays_with_adapters() {
    nothing_stays_with_adapters(cpu);
    nothing_stays_with_adapters(cuda);
}

fn nothing_stays_with_adapters<B: Seen>(open: fn(&Builder) -> B) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let of_linear_layers = std::fs::read_dir(fixtures.join("adapters")).unwrap().map(|entry| {
        let folder = entry.unwrap().path();
        (
            folder.file_name().unwrap().to_str().unwrap().to_owned(),
            ["all", "some"].map(|one| folder.join(one)),
        )
    });
    // with DoRA, and of embedding tables
    let merged = |name: &str| fixtures.join("adapters_merged").join(name);
    let others = [
        ("qwen3", ["dora", "dora_embedding"]),
        ("starcoder2", ["dora_biases"; 2]),
        ("deepseek_v3", ["dora_latent"; 2]),
    ];
    let others = others.map(|(base, adapters)| (base.to_owned(), adapters.map(merged)));
    for (base, folders) in of_linear_layers.chain(others) {
        let folder = &folders[0];
        let base = fixtures.join("families").join(base);
        let builder = Session::builder(base).max_sequences(5).step_tokens(20).kv_tokens(192);
        let builder = builder.adapter("all", &folders[0]).adapter("some", &folders[1]);
        let parts = builder.parts().unwrap();
        let mut backend = open(&builder);
        let plan = parts.plan::<B>(BufferLimits::default()).unwrap();
        let decoder = Decoder::new(parts.arch, &parts.weights, plan, None, &mut backend, |_| ()).unwrap();
        let ids: Vec<u32> = (0..20).map(|i| 3 + i * 7 % 97).collect();
        let positions: Vec<u32> = (0..7).chain(0..8).chain(0..5).collect();
        let slots: Vec<u32> = (0..7).chain(64..72).chain(128..133).collect();
        let span =
            |row, rows, table, adapter| Span { row, rows, position: 0, table, adapter, mask: Mask::Causal };
        let spans = [span(0, 7, 0, Some(1)), span(7, 8, 1, None), span(15, 5, 2, Some(0))];
        let batch = Batch {
            ids: &ids,
            positions: &positions,
            slots: &slots,
            spans: &spans,
            blocks: &[0, 1, 2],
            outputs: &[6, 14, 19],
            position_types: &[],
        };
        let _ = decoder.forward(&mut backend, &batch);
        assert!(!backend.is_zero(), "{}: nothing was computed", folder.display());
        let _ = backend.scrub_steps(decoder.used(20, 3));
        let _ = backend.scrub_blocks(&[0, 1, 2]);
        assert!(backend.is_zero(), "{}: something stays behind", folder.display());
    }
}

/// Nothing stays of a step that embeds or scores texts.
#[test]
fn nothing_of_a_step_stays_in_any_encoder() {
    nothing_stays_in_any_encoder(cpu);
    nothing_stays_in_any_encoder(cuda);
}

fn nothing_stays_in_any_encoder<B: Seen>(open: fn(&Builder) -> B) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/encoders");
    for entry in std::fs::read_dir(fixtures).unwrap() {
        let folder = entry.unwrap().path();
        let builder = Session::builder(&folder).context_length(20).step_tokens(40);
        let parts = builder.encoder_parts().unwrap().expect("an encoder");
        let mut backend = open(&builder);
        let weights = (&parts.weights, &parts.steps[..]);
        let plan = parts.plan::<B>(BufferLimits::default()).unwrap();
        let encoder = Encoder::new(parts.arch, weights, plan, None, &mut backend, |_| ()).unwrap();
        // two texts, each in a block of its own
        let ids: Vec<u32> = (0..25).map(|i| 5 + i * 7 % 60).collect();
        let positions: Vec<u32> = (0..15).chain(0..10).collect();
        let slots: Vec<u32> = (0..15).chain(64..74).collect();
        let spans = [
            Span { row: 0, rows: 15, position: 0, table: 0, adapter: None, mask: encoder.mask() },
            Span { row: 15, rows: 10, position: 0, table: 1, adapter: None, mask: encoder.mask() },
        ];
        let position_types: Vec<u32> =
            positions.iter().map(|&at| encoder.position_type(at as usize, 0)).collect();
        let batch = Batch {
            ids: &ids,
            positions: &positions,
            slots: &slots,
            spans: &spans,
            blocks: &[0, 1],
            outputs: &[],
            position_types: &position_types,
        };
        let _ = encoder.forward(&mut backend, &batch, &[0..15, 15..25], Pooling::Mean);
        assert!(!backend.is_zero(), "{}: nothing was computed", folder.display());
        let _ = backend.scrub_steps(encoder.used(25, 2));
        assert!(!backend.is_zero(), "{}: nothing was cached", folder.display());
        let _ = backend.scrub_blocks(&[0, 1]);
        assert!(backend.is_zero(), "{}: something stays behind", folder.display());
    }
}
