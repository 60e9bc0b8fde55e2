//! Every committed checkpoint against what its reference implementation computed (`tools/make_fixtures.py`).
//!
//! Acceptance: greedy tokens equal; largest and root-mean-square error of the logits against the single-precision
//! reference at most twice that of the reference's own low-precision run.

use std::path::Path;

use amnesic::testing::LogitsTap;
use amnesic::{Device, KvCache, Quantize, Request, Session};

use crate::common::{fixture, fixtures, instruction_sets, read_f32s};
use crate::expected::Expected;

/// One body, every backend.
fn hold_all(device: Device, chunk: usize) {
    let mut held = 0;
    for name in fixtures() {
        let folder = fixture(&name);
        let expected: Expected =
            serde_json::from_str(&std::fs::read_to_string(folder.join("expected.json")).unwrap()).unwrap();
        let session = Session::builder(&folder)
            .device(device)
            .kv_tokens(512)
            .max_sequences(3)
            .step_tokens(chunk)
            .open()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let taps: Vec<LogitsTap> = expected.prompts.iter().map(|_| LogitsTap::default()).collect();
        let requests =
            expected.prompts.iter().zip(&expected.greedy).zip(&taps).map(|((prompt, greedy), tap)| {
                Request::tokens(prompt.clone()).max_tokens(greedy.len()).tap_logits(tap)
            });
        let replies = session.generate_batch(requests).unwrap();
        for (i, reply) in replies.iter().enumerate() {
            assert_eq!(reply.tokens(), expected.greedy[i], "{name}: greedy tokens of prompt {i}");
            let reference = read_f32s(&folder.join("expected.safetensors"), &format!("logits.{i}"));
            let (max, rms) = errors(&taps[i].values(), &reference);
            println!(
                "{device:?} {name} prompt {i}: max {max:.2e} (reference's own {:.2e}), rms {rms:.2e} ({:.2e})",
                expected.low_max_abs[i], expected.low_rms[i]
            );
            assert!(max <= 2.0 * expected.low_max_abs[i], "{name}: prompt {i}: largest error {max}");
            assert!(rms <= 2.0 * expected.low_rms[i], "{name}: prompt {i}: error {rms}");
            held += 1;
        }
    }
    assert_eq!(held, 7 * 3, "fixtures are missing");
}

fn errors(mine: &[f32], reference: &[f32]) -> (f64, f64) {
    assert_eq!(mine.len(), reference.len());
    let differences = mine.iter().zip(reference).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs());
    let (max, squares) = differences.fold((0.0_f64, 0.0), |(max, sum), d| (max.max(d), sum + d * d));
    (max, (squares / mine.len() as f64).sqrt())
}

#[test]
fn every_instruction_set_holds_every_fixture() {
    for device in instruction_sets() {
        hold_all(device, 512);
    }
}

#[test]
fn every_instruction_set_holds_every_fixture_in_chunks_of_five() {
    for device in instruction_sets() {
        hold_all(device, 5);
    }
}

#[test]
fn the_reference_backend_holds_every_fixture() {
    hold_all(Device::Reference, 16);
}

#[test]
fn the_kernels_of_cuda_devices_hold_every_fixture() {
    hold_all(Device::CudaEmulated, 512);
    hold_all(Device::CudaEmulated, 5);
}

/// With quantized weights, what differs from the reference is next to nothing beside what quantizing costs. Only where
/// norms are bf16 may it be as much: then activations of the first layer, whole numbers times eight-bit weights, come to
/// lie exactly between two steps, and the last bit of a sum decides which is taken. And on a CUDA device, which rounds
/// activations to bf16 and not to eight bits.
#[test]
fn quantized_sessions_agree_with_the_reference() {
    for name in fixtures() {
        let folder = fixture(&name);
        let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
        let expected: Expected = serde_json::from_str(&text).unwrap();
        let logits = |device, quantize: Option<Quantize>| {
            // an int8 cache, too: bf16 would round in the processor's own way
            let cache = if quantize.is_some() { KvCache::Int8 } else { KvCache::Checkpoint };
            let builder = Session::builder(&folder).device(device).kv_tokens(512).kv_cache(cache);
            let session = quantize.into_iter().fold(builder, |builder, kind| builder.quantize(kind)).open();
            let session = session.unwrap_or_else(|error| panic!("{name}: {error}"));
            let first = |prompt: &Vec<u32>| {
                let tap = LogitsTap::default();
                session.generate(Request::tokens(prompt.clone()).max_tokens(1).tap_logits(&tap)).unwrap();
                tap.values()
            };
            expected.prompts.iter().flat_map(first).collect::<Vec<f32>>()
        };
        let whole = logits(Device::Reference, None);
        let ties = weights_are_bf16(&folder);
        for quantize in [Quantize::Q8, Quantize::Q4] {
            let reference = logits(Device::Reference, Some(quantize));
            let cost = errors(&reference, &whole).1;
            for device in instruction_sets() {
                let off = errors(&logits(device, Some(quantize)), &reference).1;
                println!("{name} {quantize:?} {device:?}: off by {off:.2e}, quantizing costs {cost:.2e}");
                let rounds_otherwise = matches!(device, Device::Cuda(_) | Device::CudaEmulated);
                let allowed = if ties || rounds_otherwise { cost } else { cost / 1000.0 };
                assert!(off <= allowed, "{name}, {quantize:?}, {device:?}: off by {off}, it costs {cost}");
                assert!(cost > 0.0, "{name}: {quantize:?} changes nothing");
            }
        }
    }
}

fn weights_are_bf16(folder: &Path) -> bool {
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    config.contains("bfloat16")
}
