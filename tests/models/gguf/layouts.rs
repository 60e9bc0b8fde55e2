//! The files that llama.cpp's converter makes of checkpoints, made again from its descriptions of them
//! (`tools/gguf_layouts.py`).

use std::collections::HashMap;

use serde_json::Value as Json;

use super::file::{File, Value};
use crate::common::fixture;

/// Names of the decoders with a description.
pub fn all() -> Vec<(String, Json)> {
    of("layouts")
}

/// Those in a file.
pub fn of(name: &str) -> Vec<(String, Json)> {
    let text = std::fs::read_to_string(fixture(&format!("gguf/{name}.json"))).unwrap();
    let layouts: serde_json::Map<String, Json> = serde_json::from_str(&text).unwrap();
    layouts.into_iter().collect()
}

/// A tensor of the checkpoint, widened.
struct Source {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Source {
    /// Row `index` of all that it consists of, or of its matrices transposed, or every second value of it.
    fn row(&self, index: usize, how: &str) -> Vec<f32> {
        let cols = *self.shape.last().unwrap();
        let plain = |index: usize| &self.values[index * cols..][..cols];
        match how {
            "plain" => plain(index).to_vec(),
            "even" => plain(index).iter().copied().step_by(2).collect(),
            "odd" => plain(index).iter().copied().skip(1).step_by(2).collect(),
            _ => {
                let rows = self.shape[self.shape.len() - 2];
                let (matrix, col) = (index / cols, index % cols);
                (0..rows).map(|row| self.values[(matrix * rows + row) * cols + col]).collect()
            }
        }
    }
}

/// The tensors of a checkpoint, and of the matrices behind it.
fn sources(folder: &str) -> HashMap<String, Source> {
    let mut all = tensors(&format!("{folder}/model.safetensors"));
    for dense in ["2_Dense", "3_Dense"] {
        let file = format!("{folder}/{dense}/model.safetensors");
        if fixture(&file).exists() {
            all.extend(tensors(&file).into_iter().map(|(name, source)| (format!("{dense}/{name}"), source)));
        }
    }
    all
}

fn tensors(file: &str) -> HashMap<String, Source> {
    let bytes = std::fs::read(fixture(file)).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let read = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        let halves = || view.data().as_chunks::<2>().0.iter();
        let values = match view.dtype() {
            safetensors::Dtype::BF16 => halves().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
            safetensors::Dtype::F16 => halves().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
            safetensors::Dtype::F32 => {
                view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
            }
            other => panic!("{name}: {other:?}"),
        };
        (name, Source { shape: view.shape().to_vec(), values })
    };
    tensors.tensors().into_iter().map(read).collect()
}

fn size(json: &Json) -> usize {
    json.as_u64().unwrap() as usize
}

/// The numbers of stretches.
fn runs(json: &Json) -> Vec<usize> {
    let one = |run: &Json| {
        let (first, count, step) = (run[0].as_i64().unwrap(), size(&run[1]), run[2].as_i64().unwrap());
        (0..count).map(move |i| (first + i as i64 * step) as usize)
    };
    json.as_array().unwrap().iter().flat_map(one).collect()
}

fn values(shape: &[usize], from: &Json, sources: &HashMap<String, Source>) -> Vec<f32> {
    let source = |name: &Json| &sources[name.as_str().unwrap()];
    let (kind, from) = from.as_object().unwrap().iter().next().unwrap();
    match kind.as_str() {
        "whole" => source(from).values.clone(),
        "plus_one" => source(from).values.iter().map(|value| value + 1.0).collect(),
        "numbers" => from.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect(),
        "values" => {
            let all = &source(&from[0]).values;
            runs(&from[1]).into_iter().map(|at| all[at]).collect()
        }
        "rows" => {
            let part = |part: &Json| {
                let rows = runs(&part[2]).into_iter();
                rows.flat_map(|row| source(&part[0]).row(row, part[1].as_str().unwrap())).collect::<Vec<_>>()
            };
            from.as_array().unwrap().iter().flat_map(part).collect()
        }
        "keys" => {
            let (up, stride, key) = (source(&from[0]), size(&from[1]), size(&from[2]));
            let (heads, rank) = (shape[0], shape[1]);
            let value = |head, r, k| up.values[(head * stride + k) * rank + r];
            (0..heads)
                .flat_map(|head| (0..rank).flat_map(move |r| (0..key).map(move |k| (head, r, k))))
                .map(|(head, r, k)| value(head, r, k))
                .collect()
        }
        other => panic!("{other}"),
    }
}

fn value(types: &Json, json: &Json) -> Value {
    let of_list = size(&types[0]) == 9;
    let kind = size(&types[usize::from(of_list)]);
    let list = || json.as_array().unwrap().iter();
    match (of_list, kind) {
        (false, 4) => Value::U32(json.as_u64().unwrap() as u32),
        (false, 5) => Value::I32(json.as_i64().unwrap() as i32),
        (false, 6) => Value::F32(json.as_f64().unwrap() as f32),
        (false, 7) => Value::Flag(json.as_bool().unwrap()),
        (false, 8) => Value::Text(json.as_str().unwrap().to_owned()),
        (true, 4 | 5) => Value::I32s(list().map(|one| one.as_i64().unwrap() as i32).collect()),
        (true, 6) => Value::F32s(list().map(|one| one.as_f64().unwrap() as f32).collect()),
        (true, 7) => Value::Flags(list().map(|one| one.as_bool().unwrap()).collect()),
        (true, 8) => Value::Texts(list().map(|one| one.as_str().unwrap().to_owned()).collect()),
        other => panic!("{other:?}"),
    }
}

/// The file that the converter wrote of a decoder.
pub fn file(name: &str, layout: &Json) -> File {
    file_of(&format!("families/{name}"), layout)
}

/// The file that the converter wrote of the checkpoint in a folder.
pub fn file_of(folder: &str, layout: &Json) -> File {
    let sources = sources(folder);
    let mut file = File::default();
    for entry in layout["metadata"].as_array().unwrap() {
        file.put(entry[0].as_str().unwrap(), value(&entry[1], &entry[2]));
    }
    for entry in layout["tensors"].as_array().unwrap() {
        let shape: Vec<usize> = entry[1].as_array().unwrap().iter().map(size).collect();
        file.put_floats(entry[0].as_str().unwrap(), shape.clone(), &values(&shape, &entry[2], &sources));
    }
    file
}
