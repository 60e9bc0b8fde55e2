//! Good checkpoints taken apart, to be written with one thing wrong.

use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use super::common::Recipe;
use super::{CONFIG, INDEX, SHARDS, WEIGHTS};

/// A good checkpoint taken apart, to be written with one thing wrong.
#[derive(Clone)]
pub(super) struct Parts {
    pub(super) config: Value,
    /// By name: dtype, shape, data_offsets.
    pub(super) header: serde_json::Map<String, Value>,
    pub(super) data: Vec<u8>,
}

impl Parts {
    pub(super) fn new(recipe: &Recipe) -> Self {
        let folder = tempdir().unwrap();
        recipe.write(folder.path(), None);
        Self::read(&recipe.config, &folder.path().join(WEIGHTS))
    }

    pub(super) fn read(config: &Value, file: &Path) -> Self {
        let bytes = std::fs::read(file).unwrap();
        let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = serde_json::from_slice(&bytes[8..end]).unwrap();
        Self { config: config.clone(), header, data: bytes[end..].to_vec() }
    }

    pub(super) fn small() -> Self {
        Self::new(&Recipe::small(64))
    }

    pub(super) fn weights(&self) -> Vec<u8> {
        joined(Value::Object(self.header.clone()).to_string().as_bytes(), &self.data)
    }

    pub(super) fn write(&self) -> TempDir {
        self.write_with(&self.weights())
    }

    pub(super) fn write_with(&self, weights: &[u8]) -> TempDir {
        let folder = tempdir().unwrap();
        std::fs::write(folder.path().join(CONFIG), self.config.to_string()).unwrap();
        std::fs::write(folder.path().join(WEIGHTS), weights).unwrap();
        folder
    }

    pub(super) fn range(&self, name: &str) -> Range<usize> {
        let offset = |i: usize| self.header[name]["data_offsets"][i].as_u64().unwrap() as usize;
        offset(0)..offset(1)
    }

    /// Only the tensors that `keep` says.
    pub(super) fn only(&self, keep: impl Fn(&str) -> bool) -> Self {
        let mut only = Self { config: self.config.clone(), header: Default::default(), data: Vec::new() };
        for (name, info) in self.header.iter().filter(|(name, _)| keep(name)) {
            let start = only.data.len();
            only.data.extend(&self.data[self.range(name)]);
            let mut info = info.clone();
            info["data_offsets"] = json!([start, only.data.len()]);
            only.header.insert(name.clone(), info);
        }
        only
    }

    /// All values in another type.
    pub(super) fn stored_as(&self, dtype: &str) -> Self {
        let mut other = Self { config: self.config.clone(), header: self.header.clone(), data: Vec::new() };
        for name in self.header.keys() {
            let start = other.data.len();
            for bytes in self.data[self.range(name)].as_chunks::<2>().0 {
                other.data.extend(stored(dtype, bf16::from_le_bytes(*bytes).to_f32()));
            }
            other.header[name]["dtype"] = dtype.into();
            other.header[name]["data_offsets"] = json!([start, other.data.len()]);
        }
        other
    }

    /// Two shards, layer 1 in the second, and the index.
    pub(super) fn shards(&self) -> Shards {
        let second = |name: &str| name.starts_with("model.layers.1.");
        let map = self.header.keys().map(|name| (name.clone(), SHARDS[usize::from(second(name))].into()));
        Shards {
            config: self.config.clone(),
            index: json!({"metadata": {"total_size": self.data.len()}, "weight_map": Value::Object(map.collect())}),
            shards: [self.only(|name| !second(name)), self.only(second)],
        }
    }
}

pub(super) struct Shards {
    pub(super) config: Value,
    pub(super) index: Value,
    pub(super) shards: [Parts; 2],
}

impl Shards {
    pub(super) fn write(&self) -> TempDir {
        let folder = tempdir().unwrap();
        std::fs::write(folder.path().join(CONFIG), self.config.to_string()).unwrap();
        std::fs::write(folder.path().join(INDEX), self.index.to_string()).unwrap();
        for (name, shard) in SHARDS.iter().zip(&self.shards) {
            std::fs::write(folder.path().join(name), shard.weights()).unwrap();
        }
        folder
    }
}

pub(super) fn joined(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

pub(super) fn stored(dtype: &str, value: f32) -> Vec<u8> {
    match dtype {
        "F32" => value.to_le_bytes().to_vec(),
        "F16" => f16::from_f32(value).to_le_bytes().to_vec(),
        _ => bf16::from_f32(value).to_le_bytes().to_vec(),
    }
}

/// A checkpoint with the byte-level tokenizer, 701 tokens.
pub(super) fn with_tokenizer() -> TempDir {
    let folder = tempdir().unwrap();
    Recipe::small(704).write(folder.path(), Some("byte_level"));
    folder
}

pub(super) fn change_json(file: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(file, value.to_string()).unwrap();
}
