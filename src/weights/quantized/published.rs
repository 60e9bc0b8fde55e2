//! Published formats against the arithmetic that their authors' code does, written here from its formulas.

use std::collections::HashMap;
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype as D;
use safetensors::tensor::TensorView;

use crate::weights::Checkpoint;
use crate::weights::dtype::f8_e4m3;

pub(super) const ROWS: usize = 16;
pub(super) const COLS: usize = 64;

/// A checkpoint of a few tensors.
pub(super) struct Files {
    folder: tempfile::TempDir,
    tensors: Vec<(String, D, Vec<usize>, Vec<u8>)>,
    metadata: Option<HashMap<String, String>>,
}

impl Files {
    pub(super) fn new(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = format!(r#"{{"quantization_config":{config}}}"#);
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        Self { folder, tensors: Vec::new(), metadata: None }
    }

    /// In the metadata of the header.
    pub(super) fn say(&mut self, name: &str, what: &str) -> &mut Self {
        self.metadata.get_or_insert_default().insert(name.to_owned(), what.to_owned());
        self
    }

    pub(super) fn put(&mut self, name: &str, dtype: D, shape: &[usize], bytes: Vec<u8>) -> &mut Self {
        self.tensors.push((name.to_owned(), dtype, shape.to_vec(), bytes));
        self
    }

    pub(super) fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) -> &mut Self {
        self.put(name, D::F32, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    pub(super) fn open(&self) -> Checkpoint {
        let views = self.tensors.iter().map(|(name, dtype, shape, bytes)| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let path = self.folder.path().join("model.safetensors");
        safetensors::serialize_to_file(views, self.metadata.clone(), &path).unwrap();
        Checkpoint::open(self.folder.path()).unwrap()
    }
}

/// Bytes without pattern.
pub(super) fn draw(count: usize, salt: usize) -> Vec<u8> {
    (0..count).map(|i| ((i + salt) * 7919 % 10_007 % 256) as u8).collect()
}

/// Codes of e4m3 that are numbers.
pub(super) fn floats_of_eight_bits(count: usize) -> Vec<u8> {
    draw(count, 5).into_iter().map(|code| if code & 0x7f == 0x7f { 0x30 } else { code }).collect()
}

/// Each value within `allowed` of the largest of its 32.
pub(super) fn hold(checkpoint: &Checkpoint, name: &str, expected: &[f32], allowed: f32) {
    let found = checkpoint.matrix(name, ROWS, COLS).unwrap().values();
    near(name, &found, expected, allowed);
    let unread = checkpoint.unread();
    assert!(unread.is_empty(), "{unread:?}");
}

pub(super) fn near(name: &str, found: &[f32], expected: &[f32], allowed: f32) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (at, (found, expected)) in found.chunks(32).zip(expected.chunks(32)).enumerate() {
        let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= allowed * largest, "{name}, {at}: {found}, {expected}");
        }
    }
}

const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

fn e2m1(code: u8) -> f32 {
    if code & 8 == 0 { E2M1[usize::from(code & 7)] } else { -E2M1[usize::from(code & 7)] }
}

fn group(weights: &str) -> String {
    format!(r#"{{"targets":["Linear"],"weights":{weights}}}"#)
}

fn compressed(groups: &[String]) -> String {
    let groups: Vec<String> =
        groups.iter().enumerate().map(|(at, group)| format!(r#""group_{at}":{group}"#)).collect();
    format!(r#"{{"quant_method":"compressed-tensors","config_groups":{{{}}}}}"#, groups.join(","))
}

const FLOAT_8: &str = r#"{"num_bits":8,"type":"float","strategy":"STRATEGY"}"#;

/// Scales have as many dimensions as their writer liked; those of the cache of keys and values are not used.
#[test]
fn scales_of_any_dimensions() {
    let codes = floats_of_eight_bits(ROWS * COLS);
    for (strategy, shape) in [
        ("tensor", &[][..]),
        ("tensor", &[1]),
        ("tensor", &[1, 1]),
        ("channel", &[ROWS]),
        ("channel", &[ROWS, 1]),
    ] {
        let count: usize = shape.iter().product();
        let scales: Vec<f32> = (0..count).map(|i| 0.25 + i as f32).collect();
        let mut files = Files::new(&compressed(&[group(&FLOAT_8.replace("STRATEGY", strategy))]));
        files.put("a.k_proj.weight", D::F8_E4M3, &[ROWS, COLS], codes.clone());
        files.floats("a.k_proj.weight_scale", shape, &scales);
        for beside in ["a.k_scale", "a.v_scale", "a.k_proj.input_scale", "a.k_proj.k_scale"] {
            files.floats(beside, &[], &[1.0]);
        }
        let expected: Vec<f32> = codes
            .iter()
            .enumerate()
            .map(|(i, code)| f8_e4m3(*code) * scales[i / COLS % scales.len()])
            .collect();
        hold(&files.open(), "a.k_proj", &expected, 0.0);
    }
}

/// Layers of several groups: what a matrix is shows in its tensors.
#[test]
fn several_groups() {
    let four = r#"{"num_bits":4,"type":"int","strategy":"group","group_size":32}"#;
    let mut files = Files::new(&compressed(&[group(four), group(&FLOAT_8.replace("STRATEGY", "channel"))]));
    let codes = floats_of_eight_bits(ROWS * COLS);
    files.put("a.weight", D::F8_E4M3, &[ROWS, COLS], codes.clone());
    files.floats("a.weight_scale", &[ROWS, 1], &[0.5; ROWS]);
    let words = draw(ROWS * COLS / 2, 1);
    files.put("b.weight_packed", D::I32, &[ROWS, COLS / 8], words.clone());
    files.floats("b.weight_scale", &[ROWS, COLS / 32], &[0.125; ROWS * COLS / 32]);
    let checkpoint = files.open();
    checkpoint.ask("b.weight_packed");
    checkpoint.ask("b.weight_scale");
    let expected: Vec<f32> = codes.iter().map(|code| f8_e4m3(*code) * 0.5).collect();
    hold(&checkpoint, "a", &expected, 0.0);
    let number = |i: usize| f32::from(words[i / 2] >> (i % 2 * 4) & 15) - 8.0;
    let expected: Vec<f32> = (0..ROWS * COLS).map(|i| 0.125 * number(i)).collect();
    hold(&checkpoint, "b", &expected, 0.0);
}

/// NVFP4 of compressed-tensors, whose scales are divided by one for all, and of ModelOpt, whose are multiplied by it.
#[test]
fn nvfp4() {
    let config =
        compressed(&[group(r#"{"num_bits":4,"type":"float","strategy":"tensor_group","group_size":16}"#)]);
    let codes = draw(ROWS * COLS / 2, 2);
    let scales: Vec<u8> =
        floats_of_eight_bits(ROWS * COLS / 16).into_iter().map(|code| code & 0x7f).collect();
    let expected = |factor: f32| -> Vec<f32> {
        let code = |i: usize| codes[i / 2] >> (i % 2 * 4) & 15;
        (0..ROWS * COLS).map(|i| e2m1(code(i)) * f8_e4m3(scales[i / 16]) * factor).collect()
    };
    let mut files = Files::new(&config);
    files.put("a.weight_packed", D::U8, &[ROWS, COLS / 2], codes.clone());
    files.put("a.weight_scale", D::F8_E4M3, &[ROWS, COLS / 16], scales.clone());
    files.floats("a.weight_global_scale", &[1], &[64.0]).floats("a.input_global_scale", &[1], &[3.0]);
    hold(&files.open(), "a", &expected(1.0 / 64.0), 0.51 / 127.0);
    let mut files = Files::new(r#"{"quant_method":"modelopt","quant_algo":"NVFP4"}"#);
    files.put("a.weight", D::U8, &[ROWS, COLS / 2], codes.clone());
    files.put("a.weight_scale", D::F8_E4M3, &[ROWS, COLS / 16], scales.clone());
    files.floats("a.weight_scale_2", &[], &[0.5]).floats("a.input_scale", &[], &[3.0]);
    hold(&files.open(), "a", &expected(0.5), 0.51 / 127.0);
}

/// MXFP4 in matrices of their own, as compressed-tensors and Quark write it, is kept without loss.
#[test]
fn mxfp4() {
    let group = group(r#"{"num_bits":4,"type":"float","strategy":"group","group_size":32}"#);
    let quark =
        r#"{"quant_method":"quark","global_quant_config":{"weight":{"dtype":"fp4","group_size":32}}}"#;
    let codes = draw(ROWS * COLS / 2, 2);
    let scales: Vec<u8> = draw(ROWS * COLS / 32, 3).into_iter().map(|code| 120 + code % 8).collect();
    let code = |i: usize| codes[i / 2] >> (i % 2 * 4) & 15;
    let expected: Vec<f32> =
        (0..ROWS * COLS).map(|i| e2m1(code(i)) * f32::powi(2.0, i32::from(scales[i / 32]) - 127)).collect();
    for (config, name) in [(compressed(&[group]), "a.weight_packed"), (quark.to_owned(), "a.weight")] {
        let mut files = Files::new(&config);
        files.put(name, D::U8, &[ROWS, COLS / 2], codes.clone());
        files.put("a.weight_scale", D::U8, &[ROWS, COLS / 32], scales.clone());
        hold(&files.open(), "a", &expected, 0.0);
    }
}

/// FP8 of ModelOpt and Quark, and e5m2.
#[test]
fn floats_of_eight_bits_by_others() {
    let quark = r#"{"quant_method":"quark","global_quant_config":{"weight":{"dtype":"fp8_e4m3"}}}"#;
    let codes = floats_of_eight_bits(ROWS * COLS);
    for config in [quark, r#"{"quant_method":"modelopt","quant_algo":"FP8","kv_cache_quant_algo":"FP8"}"#] {
        let mut files = Files::new(config);
        files.put("a.k_proj.weight", D::F8_E4M3, &[ROWS, COLS], codes.clone());
        files.floats("a.k_proj.weight_scale", &[], &[0.5]).floats("a.k_proj.input_scale", &[], &[3.0]);
        files.floats("a.k_proj.k_scale", &[], &[3.0]).floats("a.k_proj.output_scale", &[], &[3.0]);
        let expected: Vec<f32> = codes.iter().map(|code| f8_e4m3(*code) * 0.5).collect();
        hold(&files.open(), "a.k_proj", &expected, 0.0);
    }
    // e5m2 is the upper half of an f16
    let codes: Vec<u8> =
        draw(ROWS * COLS, 5).into_iter().map(|code| if code & 0x7c == 0x7c { 0x30 } else { code }).collect();
    let mut files = Files::new(r#"{"quant_method":"fp8","fmt":"e5m2"}"#);
    files.put("a.weight", D::F8_E5M2, &[ROWS, COLS], codes.clone());
    files.floats("a.weight_scale", &[ROWS, 1], &[0.5; ROWS]);
    let exact = |code: &u8| bf16::from_f32(f16::from_bits(u16::from(*code) << 8).to_f32() * 0.5).to_f32();
    hold(&files.open(), "a", &codes.iter().map(exact).collect::<Vec<_>>(), 0.0);
}

/// The layout of AutoAWQ's GEMV kernels: rows as they are, columns in order, zeros and scales of more groups than there are.
#[test]
fn awq_for_gemv() {
    let config = r#"{"quant_method":"awq","bits":4,"group_size":32,"zero_point":true,"version":"gemv"}"#;
    let (words, zeros) = (draw(ROWS * COLS / 2, 1), draw(ROWS * 16, 2));
    // two groups in words of eight, and those padded to four
    let width = 32;
    let scales: Vec<f32> = (0..ROWS * width).map(|i| if i % width < 2 { 0.25 } else { 9.0 }).collect();
    let mut files = Files::new(config);
    files.put("a.qweight", D::I32, &[ROWS, COLS / 8], words.clone());
    files.put("a.qzeros", D::I32, &[ROWS, 4], zeros.clone());
    files.floats("a.scales", &[ROWS, width], &scales);
    let four = |bytes: &[u8], i: usize| f32::from(bytes[i / 2] >> (i % 2 * 4) & 15);
    let expected: Vec<f32> = (0..ROWS * COLS)
        .map(|i| {
            let (row, col) = (i / COLS, i % COLS);
            0.25 * (four(&words, i) - four(&zeros[row * 16..], col / 32))
        })
        .collect();
    hold(&files.open(), "a", &expected, 0.0);
}

/// AutoRound says which of the other formats it wrote.
#[test]
fn auto_round() {
    let config = r#"{"quant_method":"auto-round","bits":4,"group_size":32,"sym":true,"packing_format":"auto_round:auto_gptq"}"#;
    let words = draw(ROWS * COLS / 2, 1);
    let mut files = Files::new(config);
    files.put("a.qweight", D::I32, &[COLS / 8, ROWS], words.clone());
    files.put("a.qzeros", D::I32, &[COLS / 32, ROWS / 8], vec![0x77; COLS / 32 * ROWS / 2]);
    files.floats("a.scales", &[COLS / 32, ROWS], &[0.5; COLS / 32 * ROWS]);
    let number = |row: usize, col: usize| {
        let at = (col / 8 * ROWS + row) * 4 + col % 8 / 2;
        f32::from(words[at] >> (col % 2 * 4) & 15) - 8.0
    };
    let expected: Vec<f32> = (0..ROWS * COLS).map(|i| 0.5 * number(i / COLS, i % COLS)).collect();
    hold(&files.open(), "a", &expected, 0.0);
}

#[test]
fn what_is_not_supported_is_named() {
    for (config, words) in [
        (r#"{"quant_method":"quanto"}"#, ["quant_method", "quanto is not supported"]),
        (r#"{"quant_method":"aqlm"}"#, ["quant_method", "aqlm is not supported"]),
        (r#"{"quant_method":"of tomorrow"}"#, ["quant_method", "compressed-tensors"]),
        (r#"{"quant_method":"modelopt","quant_algo":"W4A8_AWQ"}"#, ["quant_algo", "NVFP4"]),
        (
            r#"{"quant_method":"quark","global_quant_config":{"weight":{"dtype":"int3"}}}"#,
            ["weight.dtype", "fp4"],
        ),
        (
            r#"{"quant_method":"auto-round","packing_format":"auto_round:fp8"}"#,
            ["packing_format", "auto_gptq"],
        ),
        (r#"{"quant_method":"awq","bits":4,"group_size":32,"version":"gemv_fast"}"#, ["version", "gemv"]),
        (r#"{"quant_method":"gptq","bits":5,"group_size":32}"#, ["bits", "2, 3, 4 or 8"]),
    ] {
        let files = Files::new(config);
        let path: &Path = files.folder.path();
        let error = Checkpoint::open(path).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}
