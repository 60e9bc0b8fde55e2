//! A folder of safetensors: one file, or shards with an index.
//!
//! The `safetensors` crate parses and validates each header. On top of it every tensor's bytes are checked here to
//! lie inside the file before anything is computed from them, and what it refuses is traced to a tensor's name
//! ([`header`]). [`tensor`] has what is found: the rows of a tensor, or its bytes.

mod header;
mod tensor;

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::SafeTensors;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;

use self::header::{MAX_TENSORS, check_entries, check_header, explain};
use self::tensor::{Rows, TensorSource};
use super::gguf::Stored;
use super::json::Json;
use super::quantized::{Mxfp4, Scheme, Transposed};
use super::{Dtype, map::Map, names, shards, store};
use crate::error::{Error, Result};

pub use self::tensor::{Raw, Tensor};

/// All tensors of a checkpoint, by name.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    /// How its matrices are quantized, if they are.
    scheme: Option<Scheme>,
    tensors: HashMap<String, Entry>,
    /// What torchao says of tensors in the headers, by their names.
    metadata: HashMap<String, Box<str>>,
}

/// A tensor that nobody asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unread<'a> {
    pub name: &'a str,
    /// Its name in the file.
    pub stored_name: &'a str,
    pub file: &'a Path,
}

#[derive(Debug)]
struct Entry {
    file: Arc<Path>,
    map: Arc<Map>,
    info: TensorInfo,
    start: usize,
    /// Whether somebody asked for it.
    asked: Cell<bool>,
    /// Its name in the file, where that is another: see [`names::plain`].
    stored_name: Option<Box<str>>,
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Checkpoint {
    /// Maps the weights of the checkpoint in `folder` and checks their headers: `model.safetensors`, or the shards of its
    /// index, or numbered ones. Reads no tensor yet.
    ///
    /// # Errors
    /// A file is missing, truncated or malformed; the index names a file outside the folder or a tensor that its
    /// file does not hold; two shards hold the same tensor.
    pub fn open(folder: &Path) -> Result<Self> {
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        let scheme = Scheme::of(&Json::open_if_there(&folder.join("config.json"))?)?;
        let mut this = Self::new(folder, scheme);
        this.add_all(&single, &index)?;
        if this.scheme.is_none() {
            this.scheme = Scheme::shown_by(&this);
        }
        Ok(this)
    }

    fn new(folder: &Path, scheme: Option<Scheme>) -> Self {
        Self { folder: folder.to_owned(), scheme, tensors: HashMap::new(), metadata: HashMap::new() }
    }

    /// The tensors of the file `single`, or of the shards of the `index`, or of numbered ones beside it.
    fn add_all(&mut self, single: &Path, index: &Path) -> Result<()> {
        let folder = self.folder.clone();
        if store::exists(single) {
            return self.add(single);
        }
        if !store::exists(index) {
            return match shards::numbered(&folder)? {
                Some(shards) => shards.iter().try_for_each(|shard| self.add(shard)),
                None => match shards::instead(&folder) {
                    Some(error) => Err(error),
                    None => self.add(single), // the system says that it is not there
                },
            };
        }
        let index_text = super::json::read_index(index)?;
        let parsed: Index = serde_json::from_str(&index_text)
            .map_err(|_| Error::config(index, "weight_map", "an object from tensor names to file names"))?;
        drop(index_text);
        let mut shards: Vec<&String> = parsed.weight_map.values().collect();
        shards.sort_unstable();
        shards.dedup();
        for shard in shards {
            let plain = Path::new(shard).file_name().is_some_and(|name| name == shard.as_str());
            if !plain || shard.len() > 255 || shard.chars().any(char::is_control) {
                return Err(Error::config(index, "weight_map", "plain file names, without folders"));
            }
            self.add(&folder.join(shard))?;
        }
        let mut names: Vec<_> = parsed.weight_map.iter().collect();
        names.sort_unstable();
        for (name, shard) in names {
            let file = folder.join(shard);
            if self.tensors.get(&*names::plain(name)).is_none_or(|entry| *entry.file != *file) {
                return Err(Error::tensor(&file, name, "be in this file: the index says so"));
            }
        }
        Ok(())
    }

    /// The tensors of a GGUF file, by the names that they have in safetensors: as `Gguf::stored` gives them.
    pub fn of_gguf(path: &Path, all: Vec<Stored>) -> Self {
        let mut tensors = HashMap::new();
        let mut kinds = HashMap::new();
        let file: Arc<Path> = path.into();
        for stored in all {
            kinds.insert(stored.name.clone(), stored.kind);
            let info = TensorInfo {
                dtype: stored.dtype,
                shape: stored.shape,
                data_offsets: (0, stored.range.len()),
            };
            let (map, start) = (stored.map, stored.range.start);
            let asked = Cell::new(false);
            let entry = Entry { file: file.clone(), map, info, start, asked, stored_name: None };
            tensors.insert(stored.name, entry);
        }
        Self { tensors, ..Self::new(path, Some(Scheme::Gguf(kinds))) }
    }

    /// A matrix whose rows are stored as we have them, in bytes: (rows, bytes of a row).
    ///
    /// # Errors
    /// It is missing, or of another shape.
    pub fn packed(&self, name: &str, dtype: Dtype, rows: usize, cols: usize) -> Result<Tensor> {
        let entry = self.entry(name, &[rows, dtype.row_bytes(cols)])?;
        Ok(entry.tensor(name, dtype, &[rows, cols]))
    }

    /// The tensors of one file in `folder`, under the names that `plain` makes of theirs.
    ///
    /// # Errors
    /// Returns the errors of [`Checkpoint::open`].
    pub fn open_file(folder: &Path, name: &str, plain: impl Fn(&str) -> Cow<'_, str>) -> Result<Self> {
        let mut this = Self::new(folder, None);
        this.add_as(&folder.join(name), plain)?;
        Ok(this)
    }

    fn add(&mut self, file: &Path) -> Result<()> {
        self.add_as(file, names::plain)
    }

    /// The tensors of a file, under the names that `plain` makes of theirs.
    fn add_as(&mut self, file: &Path, plain: impl Fn(&str) -> Cow<'_, str>) -> Result<()> {
        let map = Arc::new(Map::open(file)?);
        check_header(file, map.bytes())?;
        check_entries(file, map.bytes(), MAX_TENSORS - self.tensors.len())?;
        let (header_bytes, metadata) =
            SafeTensors::read_metadata(map.bytes()).map_err(|error| explain(file, map.bytes(), &error))?;
        let data_start = 8 + header_bytes;
        let data_bytes = map.bytes().len() - data_start;
        map.forget(0, data_start);
        if matches!(self.scheme, Some(Scheme::Torchao)) {
            let said = metadata.metadata().iter().flatten();
            self.metadata.extend(said.map(|(name, said)| (plain(name).into_owned(), said.as_str().into())));
        }
        let file: Arc<Path> = file.into();
        for (name, info) in metadata.tensors() {
            let (begin, end) = info.data_offsets;
            if begin > end || end > data_bytes {
                return Err(Error::tensor(
                    &file,
                    &name,
                    format!("lie inside the file's {data_bytes} bytes of data"),
                ));
            }
            let (map, start, info) = (map.clone(), data_start + begin, info.clone());
            let plain = plain(&name).into_owned();
            let stored_name = (plain != name).then(|| name.as_str().into());
            let asked = Cell::new(false);
            let entry = Entry { file: file.clone(), map, info, start, asked, stored_name };
            match self.tensors.entry(plain) {
                Slot::Vacant(slot) => {
                    slot.insert(entry);
                }
                Slot::Occupied(slot) if slot.get().file == file => {
                    let other = slot.get().stored_name.as_deref().unwrap_or(slot.key());
                    return Err(Error::tensor(&file, &name, format!("be there once: `{other}` is it too")));
                }
                Slot::Occupied(slot) => return Err(Error::tensor(&file, slot.key(), "be in one file only")),
            }
        }
        Ok(())
    }

    /// The tensor `name`, of exactly `shape`.
    ///
    /// # Errors
    /// It is missing, of another shape, or of a type other than float32, float16, bfloat16 and float64, which is rounded to
    /// float32.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let entry = self.entry(name, shape)?;
        let dtype = match entry.info.dtype {
            safetensors::Dtype::F32 | safetensors::Dtype::F64 => Dtype::F32,
            safetensors::Dtype::F16 => Dtype::F16,
            safetensors::Dtype::BF16 => Dtype::Bf16,
            other => {
                let expected = format!("be float32, float16, bfloat16 or float64; it is {other:?}");
                return Err(Error::tensor(&entry.file, name, expected));
            }
        };
        Ok(entry.tensor(name, dtype, shape))
    }

    /// The matrix `{name}.weight`, or what the checkpoint's scheme has in its place.
    ///
    /// # Errors
    /// Returns the errors of [`Checkpoint::tensor`].
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Tensor> {
        let coded = match &self.scheme {
            Some(scheme) => scheme.matrix(self, name, rows, cols)?,
            None => None,
        };
        match coded {
            Some(tensor) => Ok(tensor),
            None => self.tensor(&format!("{name}.weight"), &[rows, cols]),
        }
    }

    /// The matrices of gpt-oss's experts: in MXFP4 as `{name}_blocks` and `{name}_scales`, or `name`, (experts, cols,
    /// rows).
    ///
    /// # Errors
    /// Returns the errors of [`Checkpoint::tensor`].
    pub fn gpt_oss(&self, name: &str, experts: usize, rows: usize, cols: usize) -> Result<Vec<Tensor>> {
        if !matches!(self.scheme, Some(Scheme::Mxfp4)) {
            let dtype = self.tensor(name, &[experts, cols, rows])?.dtype;
            let all = self.raw_any(name)?;
            let one = |expert| {
                Tensor::quantized(Arc::new(Transposed { all: all.clone(), expert }), dtype, rows, cols)
            };
            return Ok((0..experts).map(one).collect());
        }
        let groups = cols.div_ceil(super::dtype::GROUP);
        let raw = |suffix: &str, shape: &[usize]| {
            self.raw(&format!("{name}_{suffix}"), shape, &[safetensors::Dtype::U8])
        };
        let blocks = raw("blocks", &[experts, rows, groups, 16])?;
        let scales = raw("scales", &[experts, rows, groups])?;
        let one = |expert| {
            let matrix = Mxfp4 { blocks: blocks.clone(), scales: scales.clone(), expert };
            Tensor::quantized(Arc::new(matrix), Dtype::Q8, rows, cols)
        };
        Ok((0..experts).map(one).collect())
    }

    /// A tensor as bytes.
    ///
    /// # Errors
    /// It is missing, of another shape, or of none of the types.
    pub fn raw(&self, name: &str, shape: &[usize], dtypes: &[safetensors::Dtype]) -> Result<Raw> {
        let entry = self.entry(name, shape)?;
        if !dtypes.contains(&entry.info.dtype) {
            let names: Vec<_> = dtypes.iter().map(|dtype| format!("{dtype:?}")).collect();
            let expected = format!("be {}; it is {:?}", names.join(" or "), entry.info.dtype);
            return Err(Error::tensor(&entry.file, name, expected));
        }
        Ok(entry.raw(name))
    }

    /// A tensor of floating point.
    ///
    /// # Errors
    /// Returns the errors of [`Checkpoint::raw`].
    pub fn raw_floats(&self, name: &str, shape: &[usize]) -> Result<Raw> {
        use safetensors::Dtype as D;
        self.raw(name, shape, &[D::F32, D::F16, D::BF16])
    }

    /// What a header's metadata has under the name of a tensor. Kept of torchao's checkpoints only.
    pub fn metadata(&self, name: &str) -> Option<&str> {
        self.metadata.get(name).map(AsRef::as_ref)
    }

    /// A tensor of any shape and type.
    ///
    /// # Errors
    /// It is missing.
    pub fn raw_any(&self, name: &str) -> Result<Raw> {
        let missing = || Error::tensor(&self.folder, name, "be there");
        let entry = self.tensors.get(name).ok_or_else(missing)?;
        entry.asked.set(true);
        Ok(entry.raw(name))
    }

    /// Counts a tensor as read, if it is there.
    pub fn ask(&self, name: &str) {
        if let Some(entry) = self.tensors.get(name) {
            entry.asked.set(true);
        }
    }

    /// The shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.info.shape.as_slice())
    }

    /// The type of a tensor, if it is there.
    pub fn dtype(&self, name: &str) -> Option<safetensors::Dtype> {
        self.tensors.get(name).map(|entry| entry.info.dtype)
    }

    fn entry(&self, name: &str, shape: &[usize]) -> Result<&Entry> {
        let Some(entry) = self.tensors.get(name) else {
            return Err(Error::tensor(&self.folder, name, format!("be there, with shape {shape:?}")));
        };
        entry.asked.set(true);
        if entry.info.shape != shape {
            let found = &entry.info.shape[..entry.info.shape.len().min(8)];
            let expected = format!("have shape {shape:?}, as config.json says; it has {found:?}");
            return Err(Error::tensor(&entry.file, entry.stored_name.as_deref().unwrap_or(name), expected));
        }
        Ok(entry)
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of the module `name`, whatever it is called there.
    pub fn has_below(&self, name: &str) -> bool {
        self.tensors.keys().any(|key| key.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
    }

    /// Whether there is a tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor that stands for a missing one until all are looked for. Its values are of no tensor.
    ///
    /// # Panics
    /// If there is no tensor at all.
    pub fn stand_in(&self, name: &str, shape: &[usize]) -> Tensor {
        self.tensors.values().next().expect("a tensor").tensor(name, Dtype::F32, shape)
    }

    /// Whether there are any tensors.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The checkpoint's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Those that nobody asked for, sorted by their names.
    pub fn unread(&self) -> Vec<Unread<'_>> {
        let unread = self.tensors.iter().filter(|(_, entry)| !entry.asked.get());
        let unread = unread.map(|(name, entry)| Unread {
            name,
            stored_name: entry.stored_name.as_deref().unwrap_or(name),
            file: &entry.file,
        });
        let mut unread: Vec<_> = unread.collect();
        unread.sort_unstable();
        unread
    }
}

impl Entry {
    fn raw(&self, name: &str) -> Raw {
        let (begin, end) = self.info.data_offsets;
        Raw {
            map: self.map.clone(),
            range: self.start..self.start + (end - begin),
            dtype: self.info.dtype,
            shape: self.info.shape.clone(),
            name: self.stored_name.as_deref().unwrap_or(name).to_owned(),
            file: self.file.to_path_buf(),
        }
    }

    fn tensor(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Tensor {
        let rows = shape.first().copied().unwrap_or(1);
        let (map, start) = (self.map.clone(), self.start);
        Tensor {
            source: match self.info.dtype {
                safetensors::Dtype::F64 => TensorSource::Double { map, start },
                _ => TensorSource::Stored { map, start },
            },
            rows: Rows { first: 0, group: rows, stride: rows },
            name: self.stored_name.as_deref().unwrap_or(name).to_owned(),
            file: self.file.to_path_buf(),
            dtype,
            shape: shape.to_vec(),
        }
    }
}
