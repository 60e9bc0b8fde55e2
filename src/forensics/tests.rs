use super::*;

fn rows() -> Vec<f32> {
    (0..32).map(|i| (i as f32 * 0.7 + 1.0).sin() * 3.0).collect()
}

fn bf16(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect()
}

/// The forms of a text, each with its name.
fn encodings(text: &str) -> [(Vec<u8>, &'static str); 5] {
    [
        (text.bytes().collect(), "prompt (UTF-8)"),
        (text.encode_utf16().flat_map(u16::to_le_bytes).collect(), "prompt (UTF-16LE)"),
        (text.encode_utf16().flat_map(u16::to_be_bytes).collect(), "prompt (UTF-16BE)"),
        (text.chars().flat_map(|char| u32::from(char).to_le_bytes()).collect(), "prompt (UTF-32LE)"),
        (text.chars().flat_map(|char| u32::from(char).to_be_bytes()).collect(), "prompt (UTF-32BE)"),
    ]
}

#[test]
fn text_is_found_in_every_encoding_and_by_its_parts() {
    // with a character outside the first plane, which is two units in UTF-16
    for text in
        ["Zebulon Quartzwick of Krähwinkel", "Ζεβουλων ο Κβαρτζβικ της Θεσσαλιας", "квартцвик 魁北克 𝒵ебулон"]
    {
        let needles = Needles::new().text("prompt", text);
        for (bytes, name) in encodings(text) {
            for shift in [0, 1, 4095, 4096, 5000] {
                let mut memory = vec![0; shift];
                memory.extend(&bytes);
                let findings = needles.search_bytes(&memory);
                let found = findings.iter().find(|found| found.name == name).expect(name);
                assert_eq!((found.offset, findings.bytes()), (shift as u64, memory.len() as u64));
                // Latin text in one order of bytes is text in the other one, a byte further
                if !text.starts_with('Z') {
                    assert_eq!(findings.names().collect::<Vec<_>>(), [name], "at {shift}");
                }
            }
            let parts = &bytes[bytes.len() / 32..];
            assert!(
                text.starts_with('Z') || needles.search_bytes(parts).has(name),
                "a part of {name} is enough"
            );
        }
    }
    let text = "Zebulon Quartzwick of Krähwinkel";
    let needles = Needles::new().text("prompt", text);
    assert!(needles.search_bytes(&text.as_bytes()[5..28]).has("prompt"), "a part is enough");
    assert!(needles.search_bytes(b"Zebulon is a name; Quartzwick is, too").is_empty());
}

#[test]
fn ids_are_found_in_every_width() {
    let ids = [455_u32, 542, 72, 326, 220, 57, 68, 65];
    let needles = Needles::new().ids("prompt", &ids);
    let u16s: Vec<u8> = ids.iter().flat_map(|&id| (id as u16).to_le_bytes()).collect();
    let u32s: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let i64s: Vec<u8> = ids.iter().flat_map(|&id| i64::from(id).to_le_bytes()).collect();
    for (memory, name) in [(u16s, "u16"), (u32s, "u32"), (i64s, "u64")] {
        let findings = needles.search_bytes(&memory);
        assert_eq!(findings.names().collect::<Vec<_>>(), [format!("prompt ({name})")]);
        assert_eq!(findings.iter().next().unwrap().count, 2, "two parts, which overlap");
    }
    assert!(
        !Needles::new().ids("large", &ids.map(|id| id + 70_000)).names().any(|name| name.contains("u16"))
    );
}

#[test]
fn rows_are_found_within_their_tolerance_only() {
    let row = rows();
    let needles = |tolerance| Needles::new().row("row", &row, tolerance);
    let moved = |by: f32| row.iter().map(|value| value + by).collect::<Vec<f32>>();
    let f32s = |values: Vec<f32>| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    assert!(needles(Tolerance::Exact).search_bytes(&f32s(moved(0.0))).has("row (f32)"));
    assert!(needles(Tolerance::Exact).search_bytes(&f32s(moved(0.001))).is_empty());
    assert!(needles(Tolerance::Share(0.01)).search_bytes(&f32s(moved(0.02))).has("row (f32)"));
    assert!(needles(Tolerance::Share(0.01)).search_bytes(&f32s(moved(0.05))).is_empty());
    let ulps =
        |by: u32| row.iter().flat_map(|value| (value.to_bits() + by).to_le_bytes()).collect::<Vec<u8>>();
    assert!(needles(Tolerance::Ulps(3)).search_bytes(&ulps(3)).has("row (f32)"));
    assert!(needles(Tolerance::Ulps(3)).search_bytes(&ulps(4)).is_empty());
    assert!(needles(Tolerance::Exact).search_bytes(&bf16(&row)).has("row (bf16)"));
    let f16s: Vec<u8> = row.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect();
    assert!(needles(Tolerance::Exact).search_bytes(&f16s).has("row (f16)"));
}

/// Every layout is that of the cache itself, whatever stands between.
#[test]
fn rows_are_found_in_a_packed_cache() {
    use crate::backend::packed::PackedKv;
    use crate::backend::{Kv, KvShape, KvType, Side, cpu::Cpu};
    let row = rows();
    for cache in [KvType::F32, KvType::F16, KvType::Bf16, KvType::Int8] {
        let mut layout = crate::memory::Layout::default();
        let dim = row.len();
        let shape = KvShape { cache, layers: 1, kv_heads: 1, head_dim: dim, value_dim: dim };
        let kv = PackedKv::of(Kv::plan::<Cpu>(&mut layout, shape, 1).unwrap());
        let bytes = layout.bytes();
        for side in [Side::K, Side::V] {
            let mut memory: Vec<u8> = (0..bytes).map(|at| ((at * 7919) >> 3) as u8).collect();
            for (dim, &value) in row.iter().enumerate() {
                let raw = match cache {
                    KvType::F32 => value.to_le_bytes().to_vec(),
                    KvType::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
                    KvType::Bf16 => bf16(&[value]),
                    KvType::Int8 => vec![(value * 127.0 / 3.0).round_ties_even() as i8 as u8],
                };
                let at = kv.plane(0, 0, side, 0) + kv.element(side, 37, dim);
                memory[at..at + raw.len()].copy_from_slice(&raw);
            }
            let needles = match side {
                Side::K => Needles::new().keys("row", &row, Cache::of(cache), Tolerance::Share(0.01)),
                Side::V => Needles::new().values("row", &row, Cache::of(cache), Tolerance::Share(0.01)),
            };
            assert!(needles.search_bytes(&memory).has("row (cached)"), "{cache:?} {side:?}");
            memory[kv.plane(0, 0, side, 0) + kv.element(side, 37, 3) + cache.bytes() - 1] ^= 0x50;
            assert!(
                !needles.search_bytes(&memory).has("row (cached)"),
                "{cache:?} {side:?}: one value changed"
            );
        }
    }
}

#[test]
fn a_needle_that_straddles_windows_is_found_once() {
    let text = "spectrophobia!!!";
    let needles = Needles::new().text("word", text);
    let file = tempfile::NamedTempFile::new().unwrap();
    for at in [0, (256 << 10) - 5, (256 << 10) + 3, (512 << 10) + 20] {
        let mut bytes = vec![b'.'; 700 << 10];
        bytes[at..at + text.len()].copy_from_slice(text.as_bytes());
        std::fs::write(file.path(), &bytes).unwrap();
        let findings = needles.search_file(file.path()).unwrap();
        let found = findings.iter().next().expect("it is there");
        assert_eq!((found.offset, found.count, findings.bytes()), (at as u64, 2, bytes.len() as u64));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_process_finds_what_it_holds_and_not_its_needles() {
    let inverted = *b"\xa5\x9a\x9d\x8a\x93\x90\x91\xdf\xbe\x9d\x9c\x9b"; // not "Zebulon Abcd"
    let mut text = String::with_capacity(inverted.len());
    inverted.iter().for_each(|byte| text.push(char::from(!byte)));
    let needles = Needles::new().text("word", &text);
    assert!(needles.search_self().unwrap().has("word (UTF-8)"));
    assert!(needles.search_process(std::process::id()).unwrap().has("word (UTF-8)"));
    let secret = crate::memory::Secret::new(text);
    assert!(needles.search_self().unwrap().has("word (UTF-8)"), "where secrets are, it is not looked");
    let from_outside = needles.search_process(std::process::id()).unwrap();
    if crate::memory::heap::status().secret > 0 {
        assert!(from_outside.is_empty() && from_outside.unread() >= 64 << 10, "{from_outside}");
    } else {
        assert!(from_outside.has("word (UTF-8)"));
        println!("skipped: this kernel has no memfd_secret");
    }
    drop(secret);
    for _ in 0..2 {
        let findings = needles.search_self().unwrap();
        assert!(findings.is_empty() && findings.bytes() > 1 << 20, "{findings}");
    }
}

#[test]
fn serialized_and_printed_needles_hold_no_content() {
    let needles =
        Needles::new().text("prompt", "Zebulon Quartzwick").ids("ids", &[455, 542, 72, 326, 220, 57]);
    let json = serde_json::to_string(&needles).unwrap();
    let read: Needles = serde_json::from_str(&json).unwrap();
    assert!(read.search_bytes(b"Zebulon Quartzwick").has("prompt"));
    for printed in [json, format!("{needles:?}"), read.search_bytes(b"Zebulon Quartzwick").to_string()] {
        assert!(needles.search_bytes(printed.as_bytes()).is_empty() && !printed.contains("542"), "{printed}");
    }
}

#[test]
fn what_could_be_found_by_chance_is_refused() {
    let refused = |make: fn() -> Needles| std::panic::catch_unwind(make).is_err();
    assert!(refused(|| Needles::new().text("x", "short")));
    assert!(refused(|| Needles::new().text("x", "aaaaaaaaaaaaaaaaaaaaa")));
    assert!(refused(|| Needles::new().ids("x", &[1, 9, 4, 7, 5])));
    assert!(refused(|| Needles::new().ids("x", &[3, 4, 5, 6, 7, 8, 9])));
    assert!(refused(|| Needles::new().bytes("x", &[1, 2, 3, 4])));
    assert!(refused(|| Needles::new().row("x", &[0.0; 64], Tolerance::Exact)));
    assert!(refused(|| Needles::new().row("x", &[1.0, 2.0, 3.0], Tolerance::Share(0.1))));
    assert!(refused(|| Needles::new().row("x", &[f32::NAN; 32], Tolerance::Exact)));
}
