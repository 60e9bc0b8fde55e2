//! A folder of safetensors: one file, or shards with an index.
//!
//! The `safetensors` crate parses and validates each header. On top of it every tensor's bytes are checked here to
//! lie inside the file before anything is computed from them, and what it refuses is traced to a tensor's name.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::hash_map::Entry as Slot;
use std::collections::{HashMap, HashSet};
use std::marker::PhantomData;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::SafeTensors;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::coded::{Coded, Mxfp4, Row, Scheme, Transposed};
use super::dtype::f8_e8m0;
use super::gguf::Stored;
use super::json::{Json, values_at_most};
use super::{Dtype, map::Map, names, shards, store};
use crate::error::{Error, Result};

/// A tensor in a mapped file, or a matrix that is decoded from some, or some of the rows of one.
#[derive(Clone, Debug)]
pub struct Tensor {
    source: Source,
    rows: Rows,
    /// Its name in the checkpoint.
    pub name: String,
    /// The file that holds it.
    pub file: PathBuf,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
}

/// Where rows come from.
#[derive(Clone, Debug)]
enum Source {
    Stored {
        map: Arc<Map>,
        start: usize,
    },
    /// In double precision; rounded to single.
    Double {
        map: Arc<Map>,
        start: usize,
    },
    Coded(Arc<dyn Coded>),
}

/// Which of the stored rows are the tensor's: `group` of every `stride`, from `first` on.
#[derive(Clone, Copy, Debug)]
struct Rows {
    first: usize,
    group: usize,
    stride: usize,
}

impl Tensor {
    /// Rows; of a vector, values.
    pub fn rows(&self) -> usize {
        self.shape[0]
    }

    /// Values of a row.
    fn cols(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.dtype.row_bytes(self.cols())
    }

    /// Bytes of a row in the file, where it is not decoded.
    fn stored_row_bytes(&self) -> usize {
        match self.source {
            Source::Double { .. } => 2 * self.row_bytes(),
            _ => self.row_bytes(),
        }
    }

    /// Bytes of all rows.
    pub fn bytes(&self) -> u64 {
        (self.rows() * self.row_bytes()) as u64
    }

    /// One that only has a name and a shape: nobody reads its values.
    #[cfg(feature = "candle")]
    pub fn without_values(name: &str, shape: &[usize]) -> Self {
        let rows = shape.first().copied().unwrap_or(1);
        Self {
            source: Source::Stored { map: Arc::new(Map::empty()), start: 0 },
            rows: Rows { first: 0, group: rows, stride: rows },
            name: name.to_owned(),
            file: PathBuf::new(),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
        }
    }

    /// A matrix that is decoded.
    pub fn coded(matrix: Arc<dyn Coded>, dtype: Dtype, rows: usize, cols: usize) -> Self {
        let first = matrix.parts()[0];
        Self {
            name: first.name.clone(),
            file: first.file.clone(),
            source: Source::Coded(matrix),
            rows: Rows { first: 0, group: rows, stride: rows },
            dtype,
            shape: vec![rows, cols],
        }
    }

    /// A matrix whose rows are worked out: of the shape and with the name of another.
    pub fn made(matrix: Arc<dyn Coded>, like: &Self, dtype: Dtype) -> Self {
        let rows = like.rows();
        Self {
            source: Source::Coded(matrix),
            rows: Rows { first: 0, group: rows, stride: rows },
            dtype,
            ..like.clone()
        }
    }

    /// This tensor in bf16, if it is quantized to whole numbers.
    pub fn dequantized(mut self) -> Self {
        match self.source {
            Source::Coded(_) => self.dtype = self.dtype.dequantized(),
            Source::Double { .. } => {}
            Source::Stored { .. } if self.dtype.is_quantized() => {
                return super::adapter::rounded(&self, Dtype::Bf16);
            }
            _ => {}
        }
        self
    }

    /// This tensor for a reader that has no use for [`Dtype::F8`].
    pub fn in_sixteen_bits(self) -> Self {
        Self { dtype: self.dtype.worked_out(), ..self }
    }

    /// Whether its rows are decoded, or of groups.
    pub fn is_coded(&self) -> bool {
        !matches!(self.source, Source::Stored { .. }) || self.dtype.is_quantized()
    }

    /// The bytes of a row in its element type, little-endian.
    pub fn row(&self, row: usize) -> Cow<'_, [u8]> {
        let bytes = self.row_bytes();
        match &self.source {
            Source::Stored { map, start } => {
                Cow::Borrowed(&map.bytes()[start + self.rows.stored(row) * bytes..][..bytes])
            }
            Source::Double { map, start } => {
                let stored = &map.bytes()[start + self.rows.stored(row) * 2 * bytes..][..2 * bytes];
                let values = stored.as_chunks().0.iter().map(|value| f64::from_le_bytes(*value) as f32);
                Cow::Owned(values.flat_map(f32::to_le_bytes).collect())
            }
            Source::Coded(matrix) => {
                let mut decoded = vec![0; bytes];
                matrix.row(self.rows.stored(row), &mut Row::new(self.dtype, self.cols(), &mut decoded));
                Cow::Owned(decoded)
            }
        }
    }

    /// All values, row by row, widened.
    pub fn values(&self) -> Vec<f32> {
        let cols = self.cols();
        let mut values = vec![0.0; self.rows() * cols];
        for (row, values) in values.chunks_exact_mut(cols).enumerate() {
            self.dtype.read_all(&self.row(row), values);
        }
        values
    }

    /// The values of a row, widened.
    pub fn row_values(&self, row: usize) -> Vec<f32> {
        let mut values = vec![0.0; self.cols()];
        self.dtype.read_all(&self.row(row), &mut values);
        values
    }

    /// See [`Tensor::values`].
    ///
    /// # Errors
    /// One is not finite.
    pub fn finite_values(&self) -> Result<Vec<f32>> {
        if self.is_finite() { Ok(self.values()) } else { Err(self.not_finite()) }
    }

    /// The error that a value is infinite or not a number.
    pub fn not_finite(&self) -> Error {
        Error::tensor(&self.file, &self.name, "hold finite values only")
    }

    /// Whether all values are finite.
    pub fn is_finite(&self) -> bool {
        (0..self.rows()).all(|row| self.dtype.all_finite(&self.row(row)))
    }

    /// Takes the pages of some rows out of this process's memory; of a decoded matrix, all of its pages.
    pub fn forget(&self, rows: Range<usize>) {
        if rows.is_empty() {
            return;
        }
        match &self.source {
            Source::Stored { map, start } | Source::Double { map, start } => {
                let bytes = self.stored_row_bytes();
                let first = start + self.rows.stored(rows.start) * bytes;
                map.forget(first, start + (self.rows.stored(rows.end - 1) + 1) * bytes - first);
            }
            Source::Coded(matrix) => matrix.parts().iter().for_each(|part| part.forget()),
        }
    }

    /// The `rows` rows of this tensor that come first in each `stride`, after `first`.
    ///
    /// # Panics
    /// If there are no such rows, or this is itself a part.
    pub fn part(&self, first: usize, group: usize, stride: usize, rows: usize) -> Self {
        assert!(self.rows.group == self.rows(), "{}: a part of a part", self.name);
        let last = first + (rows - 1) / group * stride + (rows - 1) % group;
        assert!(last < self.rows() && group <= stride, "{}: rows outside the tensor", self.name);
        let mut shape = self.shape.clone();
        shape[0] = rows;
        Self { rows: Rows { first, group, stride }, shape, ..self.clone() }
    }

    /// The matrix `index` of a stored tensor of several.
    ///
    /// # Panics
    /// If there is no such matrix.
    pub fn slab(&self, index: usize) -> Self {
        assert!(index < self.rows(), "{}: no matrix {index}", self.name);
        let mut source = self.source.clone();
        match &mut source {
            Source::Stored { start, .. } | Source::Double { start, .. } => {
                *start += self.rows.stored(index) * self.stored_row_bytes();
            }
            Source::Coded(_) => panic!("{}: decoded", self.name),
        }
        let shape = self.shape[1..].to_vec();
        let rows = Rows { first: 0, group: shape[0], stride: shape[0] };
        Self { source, rows, shape, ..self.clone() }
    }
}

impl Rows {
    /// Where a row is among the stored ones.
    fn stored(&self, row: usize) -> usize {
        self.first + row / self.group * self.stride + row % self.group
    }
}

/// A tensor of any type, as bytes.
#[derive(Clone, Debug)]
pub struct Raw {
    map: Arc<Map>,
    range: Range<usize>,
    dtype: safetensors::Dtype,
    pub shape: Vec<usize>,
    pub name: String,
    pub file: PathBuf,
}

impl Raw {
    /// All of them.
    pub fn bytes(&self) -> &[u8] {
        &self.map.bytes()[self.range.clone()]
    }

    /// Value `index` of a tensor of 32-bit whole numbers.
    pub fn u32(&self, index: usize) -> u32 {
        u32::from_le_bytes(self.bytes().as_chunks().0[index])
    }

    /// Value `index` of a tensor of floating point.
    pub fn float(&self, index: usize) -> f32 {
        match self.dtype {
            safetensors::Dtype::F32 => f32::from_le_bytes(self.bytes().as_chunks().0[index]),
            safetensors::Dtype::F64 => f64::from_le_bytes(self.bytes().as_chunks().0[index]) as f32,
            safetensors::Dtype::BF16 => Dtype::Bf16.read(&self.bytes()[2 * index..][..2]),
            safetensors::Dtype::F8_E8M0 => f8_e8m0(self.bytes()[index]),
            _ => Dtype::F16.read(&self.bytes()[2 * index..][..2]),
        }
    }

    /// Its element type.
    pub fn dtype(&self) -> safetensors::Dtype {
        self.dtype
    }

    /// The error that it must `expected`.
    pub fn wrong(&self, expected: impl Into<String>) -> Error {
        Error::tensor(&self.file, &self.name, expected)
    }

    fn forget(&self) {
        self.map.forget(self.range.start, self.range.len());
    }
}

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

/// Tensors of a checkpoint, and of one file. Kimi K2's experts in four bits are 207,360, in 62 files.
const MAX_TENSORS: usize = 1 << 19;
const MAX_TENSORS_OF_FILE: usize = 1 << 18;
/// Bytes of a header, and its values: a tensor has eight, the numbers of its shape and its ends among them.
const MAX_HEADER: usize = 64 << 20;
const MAX_HEADER_VALUES: usize = 8 * MAX_TENSORS_OF_FILE;

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
            let one =
                |expert| Tensor::coded(Arc::new(Transposed { all: all.clone(), expert }), dtype, rows, cols);
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
            Tensor::coded(Arc::new(matrix), Dtype::Q8, rows, cols)
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
                safetensors::Dtype::F64 => Source::Double { map, start },
                _ => Source::Stored { map, start },
            },
            rows: Rows { first: 0, group: rows, stride: rows },
            name: self.stored_name.as_deref().unwrap_or(name).to_owned(),
            file: self.file.to_path_buf(),
            dtype,
            shape: shape.to_vec(),
        }
    }
}

/// Refuses a header that would take much memory, before anything of it is parsed.
fn check_header(file: &Path, bytes: &[u8]) -> Result<()> {
    let Some(header) = header(bytes) else { return Ok(()) };
    let reason = if header.len() > MAX_HEADER {
        format!("the header must have at most {MAX_HEADER} bytes; it has {}", header.len())
    } else if !values_at_most(header, MAX_HEADER_VALUES) {
        format!("the header must be JSON of at most {MAX_HEADER_VALUES} values, lists and objects")
    } else {
        return Ok(());
    };
    Err(Error::WeightsFile { file: file.to_owned(), reason })
}

/// What the `safetensors` crate takes as it comes: more than `most` tensors, a name that stands twice, and offsets so
/// large that adding to them overflows. A header that does not parse here is left to the crate to refuse.
fn check_entries(file: &Path, bytes: &[u8], most: usize) -> Result<()> {
    let parsed = header(bytes).and_then(|header| serde_json::from_slice::<Entries<End>>(header).ok());
    let Some(Entries(entries)) = parsed else { return Ok(()) };
    let most = most.min(MAX_TENSORS_OF_FILE);
    if entries.len() > most + usize::from(entries.iter().any(|(name, _)| name == METADATA)) {
        let reason = format!("the header must name at most {most} tensors; it names {}", entries.len());
        return Err(Error::WeightsFile { file: file.to_owned(), reason });
    }
    let mut names = HashSet::with_capacity(entries.len());
    for (name, End { data_offsets: (_, end) }) in &entries {
        if !names.insert(name) {
            return Err(Error::tensor(file, name, "be in the header once"));
        }
        if end.checked_add(bytes.len() as u64).is_none() {
            return Err(Error::tensor(file, name, format!("lie inside the file's {} bytes", bytes.len())));
        }
    }
    Ok(())
}

/// The JSON header, if the file is long enough for it.
fn header(bytes: &[u8]) -> Option<&[u8]> {
    let length = usize::try_from(u64::from_le_bytes(*bytes.first_chunk()?)).ok()?;
    bytes.get(8..length.checked_add(8)?)
}

/// The one name of a header that is no tensor's.
const METADATA: &str = "__metadata__";

/// Every name of a header with what is read of its value, duplicates kept. One value is read at a time.
struct Entries<T>(Vec<(String, T)>);

/// The ends of a tensor's data.
#[derive(Deserialize)]
struct End {
    #[serde(default)]
    data_offsets: (u64, u64),
}

/// A tensor's entry, as far as it is one.
struct Judged {
    begin: Option<u64>,
    info: Option<TensorInfo>,
}

impl<'de> Deserialize<'de> for Judged {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let begin = value["data_offsets"][0].as_u64();
        Ok(Self { begin, info: serde_json::from_value(value).ok() })
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct All<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for All<T> {
            type Value = Entries<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Entries<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry::<String, T>()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(All(PhantomData))
    }
}

/// The parser's refusal in our terms, with the tensor's name where one tensor is at fault.
fn explain(file: &Path, bytes: &[u8], error: &safetensors::SafeTensorError) -> Error {
    use safetensors::SafeTensorError as E;
    let whole = |reason: &str| Error::WeightsFile { file: file.to_owned(), reason: reason.to_owned() };
    match error {
        E::HeaderTooSmall => whole("must start with the 8-byte length of a safetensors header"),
        E::HeaderTooLarge | E::InvalidHeaderLength => {
            whole("the header's length must fit the file (at most 100 MB): truncated, or no safetensors file")
        }
        E::InvalidHeader(_) | E::InvalidHeaderDeserialization(_) | E::JsonError(_) => {
            match first_bad(bytes) {
                Some((name, expected)) => Error::tensor(file, &name, expected),
                None => whole(
                    "the header must be a JSON object of tensors, each with dtype, shape and data_offsets",
                ),
            }
        }
        E::MetadataIncompleteBuffer => {
            whole("the data must end where the last tensor ends: the file is truncated or has extra bytes")
        }
        _ => match first_bad(bytes) {
            Some((name, expected)) => Error::tensor(file, &name, expected),
            None => whole("the header does not describe the data"),
        },
    }
}

/// The first tensor, by offset, whose header entry cannot be right, and what it should be.
fn first_bad(bytes: &[u8]) -> Option<(String, String)> {
    let Entries(mut entries) = serde_json::from_slice::<Entries<Judged>>(header(bytes)?).ok()?;
    entries.retain(|(name, _)| name != METADATA);
    entries.sort_by_key(|(_, entry)| entry.begin);
    let mut expected_start = 0_u64;
    for (name, Judged { info, .. }) in entries {
        let Some(info) = info else {
            return Some((name, "have a known dtype, a shape and two data_offsets".into()));
        };
        let (begin, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |bits, &size| bits.checked_mul(size));
        let Some(bits) = bits else {
            return Some((name, "have a shape whose size does not overflow".into()));
        };
        if begin != expected_start || begin > end {
            return Some((name, format!("start where the tensor before it ends, at {expected_start}")));
        }
        if end - begin != (bits / 8) as u64 || !bits.is_multiple_of(8) {
            return Some((name, format!("have {} bytes, as its dtype and shape say", bits / 8)));
        }
        expected_start = end;
    }
    None
}
