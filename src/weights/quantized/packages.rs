//! torchao and HQQ against what their packages decode.

use std::path::Path;

use safetensors::{Dtype as D, SafeTensors};

use super::published::{COLS, Files, ROWS, draw, floats_of_eight_bits, hold, near};
use crate::weights::Checkpoint;
use crate::weights::dtype::f8_e4m3;

/// How far a matrix of the fixtures may be off, as a part of the largest of 32 values.
fn allowed(name: &str) -> f32 {
    match name {
        // whole numbers with scales that f16 holds, or floating point of eight bits as it is
        "intx_4" | "int4_symmetric" | "whole" | "float8" | "float8_all" | "float8_blocks" => 0.0,
        _ if name.starts_with("mx") => 0.0,
        // scales of f32 become f16; e5m2 becomes bf16
        "int8" | "int8_all" => 1.0 / 2048.0,
        "float8_wide" => 1.0 / 256.0,
        // to eight bits
        _ => 0.51 / 127.0,
    }
}

/// Each form that torchao and HQQ have for a matrix, against what their packages decode (`tools/fixture_matrices.py`).
#[test]
fn torchao_and_hqq_as_their_packages_decode_them() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantized_matrices");
    for (folder, forms) in [("torchao", 19), ("hqq", 11)] {
        let folder = fixtures.join(folder);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
        let expected = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(expected.len(), forms);
        for (name, view) in expected.tensors() {
            let &[rows, cols] = view.shape() else { panic!("{name}") };
            let values: Vec<f32> =
                view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            let found = checkpoint.matrix(&name, rows, cols).unwrap_or_else(|error| panic!("{error}"));
            for (at, expected) in values.chunks(cols).enumerate() {
                near(&format!("{name}, row {at}"), &found.row_values(at), expected, allowed(&name));
            }
        }
        let unread = checkpoint.unread();
        assert!(unread.is_empty(), "{unread:?}");
    }
}

/// The names of torchao 0.14, in a checkpoint whose text model is a part; and what its metadata must say.
#[test]
fn torchao_of_other_versions() {
    let config = r#"{"quant_method":"torchao","quant_type":{"default":{"_type":"Float8WeightOnlyConfig"}}}"#;
    let codes = floats_of_eight_bits(ROWS * COLS);
    let mut files = Files::new(config);
    let name = "model.language_model.layers.0.a.weight";
    files.put(&format!("{name}:qdata"), D::F8_E4M3, &[ROWS, COLS], codes.clone());
    files.floats(&format!("{name}:scale"), &[ROWS, 1], &[0.5; ROWS]);
    files.floats("model.language_model.norm.weight", &[1], &[1.0]).say("format", "pt");
    files.say(name, r#"{"_type":"Float8Tensor","_data":{},"_tensor_data_names":["qdata","scale"]}"#);
    files.say("model.language_model.norm.weight", r#"{"_type":"Tensor"}"#);
    let checkpoint = files.open();
    checkpoint.ask("norm.weight");
    let expected: Vec<f32> = codes.iter().map(|code| f8_e4m3(*code) * 0.5).collect();
    hold(&checkpoint, "layers.0.a", &expected, 0.0);

    let error = |said: Option<&str>| {
        let mut files = Files::new(config);
        files.put("a._weight_qdata", D::U8, &[ROWS, COLS / 2], draw(ROWS * COLS / 2, 1));
        if let Some(said) = said {
            files.say("a.weight", said);
        }
        files.open().matrix("a", ROWS, COLS).unwrap_err().to_string()
    };
    for (said, words) in [
        (None, ["a.weight", "metadata"]),
        (Some("not JSON"), ["a.weight", "Int4Tensor"]),
        (Some(r#"{"_type":"Int4PreshuffledTensor","_data":{}}"#), ["Int4PreshuffledTensor", "not supported"]),
        (Some(r#"{"_type":"Int4Tensor","_data":{"block_size":[2, 0]}}"#), ["a.weight", "block_size"]),
        (Some(r#"{"_type":"Int4Tensor","_data":{"block_size":[1, 32]}}"#), ["a._weight_scale", "be there"]),
        (Some(r#"{"_type":"Int8Tensor","_data":{}}"#), ["a._weight_qdata", "shape"]),
        (Some(r#"{"_type":"MXTensor","_data":{"elem_dtype":"fp6_e2m3"}}"#), ["a._weight_scale", "be there"]),
    ] {
        let error = error(said);
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}

/// A checkpoint of HQQ's own writer, whose config.json says nothing of it; and settings that are wrong or not known.
#[test]
fn hqq_of_its_own_writer() {
    let numbers = draw(ROWS * COLS / 2, 1);
    let groups = ROWS * COLS / 32;
    let files = |change: &str, value: &[u8]| {
        let mut files = Files::new("null");
        files.floats("a.scale", &[groups, 1], &vec![0.5; groups]);
        files.floats("a.zero", &[groups, 1], &vec![7.0; groups]);
        let shape = [ROWS as i64, COLS as i64].map(i64::to_le_bytes).concat();
        for (name, dtype, bytes) in [
            ("W_q", D::U8, numbers.clone()),
            ("packing", D::U8, b"4bit_u8".to_vec()),
            ("shape", D::I64, shape),
            ("axis", D::I32, vec![1, 0, 0, 0]),
            ("group_size", D::I32, vec![32, 0, 0, 0]),
            ("nbits", D::I32, vec![4, 0, 0, 0]),
            ("quant_zero", D::U8, vec![0]),
            ("view_as_float", D::U8, vec![0]),
        ] {
            let bytes = if name == change { value.to_vec() } else { bytes };
            let count = bytes.len() * 8 / dtype.bitsize();
            files.put(&format!("a.{name}"), dtype, &[count], bytes);
        }
        files
    };
    // of the first half of the groups in the high bits, of the second in the low ones
    let expected: Vec<f32> = (0..ROWS * COLS)
        .map(|i| {
            let half = ROWS * COLS / 2;
            let number = if i < half { numbers[i] >> 4 } else { numbers[i - half] & 15 };
            0.5 * (f32::from(number) - 7.0)
        })
        .collect();
    hold(&files("", &[]).open(), "a", &expected, 0.0);
    for (name, value, word) in [
        ("packing", &b"5bit_u8"[..], "8bit_u8"),
        ("axis", &[2, 0, 0, 0], "0 or 1"),
        ("group_size", &[0; 4], "divides"),
        ("group_size", &[255; 4], "divides"),
        ("shape", &[1; 16], "config.json"),
        ("quant_zero", &[1], "quantized scales and zeros"),
        ("W_q", &[0; 8], "bytes"),
    ] {
        let error = files(name, value).open().matrix("a", ROWS, COLS).unwrap_err().to_string();
        assert!(error.contains(&format!("a.{name}")) && error.contains(word), "{error}");
    }
}
