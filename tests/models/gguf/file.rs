//! Writing GGUF files, version 3.

use std::path::Path;

/// Element types that tests write.
pub const F32: u32 = 0;

/// A file to be written.
#[derive(Clone, Default)]
pub struct File {
    pub metadata: Vec<(String, Value)>,
    pub tensors: Vec<Tensor>,
}

#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    /// Row-major.
    pub shape: Vec<usize>,
    pub kind: u32,
    pub bytes: Vec<u8>,
}

#[derive(Clone, Debug)]
pub enum Value {
    U16(u16),
    U32(u32),
    I32(i32),
    F32(f32),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Flags(Vec<bool>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl Value {
    /// Its type and bytes.
    fn written(&self) -> (u32, Vec<u8>) {
        let list = |kind: u32, count: usize, elements: Vec<u8>| {
            let head = [&kind.to_le_bytes()[..], &(count as u64).to_le_bytes()].concat();
            (9, [head, elements].concat())
        };
        match self {
            Self::U16(number) => (2, number.to_le_bytes().into()),
            Self::U32(number) => (4, number.to_le_bytes().into()),
            Self::I32(number) => (5, number.to_le_bytes().into()),
            Self::F32(number) => (6, number.to_le_bytes().into()),
            Self::Flag(flag) => (7, vec![u8::from(*flag)]),
            Self::Text(text) => (8, written(text)),
            Self::Texts(texts) => list(8, texts.len(), texts.iter().flat_map(|text| written(text)).collect()),
            Self::I32s(all) => list(5, all.len(), all.iter().flat_map(|one| one.to_le_bytes()).collect()),
            Self::F32s(all) => list(6, all.len(), all.iter().flat_map(|one| one.to_le_bytes()).collect()),
            Self::Flags(all) => list(7, all.len(), all.iter().map(|flag| u8::from(*flag)).collect()),
        }
    }
}

fn written(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl File {
    pub fn put(&mut self, key: &str, value: impl Into<Value>) {
        self.metadata.retain(|(other, _)| other != key);
        self.metadata.push((key.to_owned(), value.into()));
    }

    pub fn put_floats(&mut self, name: &str, shape: Vec<usize>, values: &[f32]) {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensors.push(Tensor { name: name.to_owned(), shape, kind: F32, bytes });
    }

    pub fn write(&self, path: &Path) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            let (kind, value) = value.written();
            bytes.extend(written(key));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(value);
        }
        let mut offset = 0_u64;
        for tensor in &self.tensors {
            bytes.extend(written(&tensor.name));
            bytes.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|size| bytes.extend((*size as u64).to_le_bytes()));
            bytes.extend(tensor.kind.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
            offset += (tensor.bytes.len() as u64).next_multiple_of(32);
        }
        for tensor in &self.tensors {
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            bytes.extend(&tensor.bytes);
        }
        std::fs::write(path, bytes).unwrap();
    }
}
