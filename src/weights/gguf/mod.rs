//! GGUF files, as llama.cpp writes them (`docs/gguf.md` of ggml): metadata, a tokenizer among it, and tensors.
//!
//! A file is one checkpoint: [`Gguf::config`] says what config.json would, and tensors go by the names that the same
//! model has as safetensors. `Q8_0` and `Q4_0` are packed as they are; other blocks are decoded row by row and rounded to
//! eight bits.

mod blocks;
mod grids;
mod pre;
mod specials;
mod split;
mod tokenizer;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::blocks::Kind;
use self::blocks::MOST;
use super::checkpoint::{Checkpoint, Raw, Tensor};
use super::dtype::{Dtype, GROUP};
use super::map::Map;
use super::quantized::{QuantizedMatrix, Row};
use crate::error::{Error, Result};

/// Parts of the two tensors that the newer files have in the place of MLA's `kv_b_proj`: from the latent to keys, transposed
/// (heads, rank, key), and to values (heads, value, rank).
pub const LATENT_PARTS: [&str; 2] = [".keys", ".values"];

/// No file has more tensors, or more metadata: the largest published ones have some thousands.
const MAX_COUNT: u64 = 1 << 16;
/// Bytes of one name of a tensor or of metadata, as llama.cpp limits the latter.
const MAX_NAME: u64 = u16::MAX as u64;
/// Bytes of all names: as a configuration of a folder may have.
const MAX_NAMES: u64 = super::json::MAX_BYTES;
/// Texts of a list. Finding the end of such a list touches each of them.
const MAX_TEXTS: usize = 1 << 24;

/// Bytes of a list that are gone past before their pages are given back.
const SEEN: usize = 4 << 20;

/// A value of the metadata. Texts and lists stay where they are, in the mapped file, and are decoded by who reads them:
/// what nobody reads takes no memory.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Whole(i128),
    Float(f64),
    Flag(bool),
    /// Bytes of the file, not known to be UTF-8 yet.
    Text(Range<usize>),
    List(List),
}

/// A list of the metadata: its elements are of one type.
#[derive(Clone, Debug, PartialEq)]
pub struct List {
    kind: u32,
    pub count: usize,
    /// Bytes of the file.
    range: Range<usize>,
}

impl List {
    /// Whether its elements are texts.
    pub fn is_of_texts(&self) -> bool {
        self.kind == TEXT
    }
}

/// Types of metadata.
const TEXT: u32 = 8;
const LIST: u32 = 9;

/// A tensor of the file.
#[derive(Clone, Debug)]
pub struct Info {
    /// Row-major: GGUF counts from the last dimension.
    pub shape: Vec<usize>,
    pub kind: Kind,
    /// The file that holds it.
    pub map: Arc<Map>,
    /// Bytes from the start of that.
    pub start: usize,
    pub bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Gguf {
    pub file: PathBuf,
    pub metadata: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, Info>,
    /// Names of tensors of any layer, without the layer's own.
    pub parts: BTreeSet<String>,
    map: Arc<Map>,
}

/// Reads numbers and texts one after another.
struct Cursor<'a> {
    file: &'a Path,
    map: &'a Map,
    bytes: &'a [u8],
    at: usize,
    /// Bytes of names so far.
    names: u64,
}

impl<'a> Cursor<'a> {
    fn wrong(&self, reason: impl Into<String>) -> Error {
        Error::WeightsFile { file: self.file.to_owned(), reason: reason.into() }
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8]> {
        let end = usize::try_from(count).ok().and_then(|count| self.at.checked_add(count));
        let Some(end) = end.filter(|end| *end <= self.bytes.len()) else {
            return Err(self.wrong(format!("ends in its header, at byte {}", self.at)));
        };
        let start = std::mem::replace(&mut self.at, end);
        Ok(&self.bytes[start..end])
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N as u64)?.try_into().expect("so many bytes"))
    }

    fn u32(&mut self) -> Result<u32> {
        self.number().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.number().map(u64::from_le_bytes)
    }

    /// The bytes of a text.
    fn text(&mut self) -> Result<Range<usize>> {
        let count = self.u64()?;
        let bytes = self.take(count)?.len();
        Ok(self.at - bytes..self.at)
    }

    /// The name of a tensor or of metadata.
    fn name(&mut self) -> Result<String> {
        let range = self.text()?;
        self.names += range.len() as u64;
        if range.len() as u64 > MAX_NAME || self.names > MAX_NAMES {
            return Err(self.wrong(format!(
                "must have names of at most {MAX_NAME} bytes, {MAX_NAMES} bytes in all: at byte {}",
                range.start
            )));
        }
        let bytes = self.bytes[range.clone()].to_vec();
        String::from_utf8(bytes)
            .map_err(|_| self.wrong(format!("has a name at byte {} that is not UTF-8", range.start)))
    }

    fn value(&mut self, kind: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::Whole(u8::from_le_bytes(self.number()?).into()),
            1 => Value::Whole(i8::from_le_bytes(self.number()?).into()),
            2 => Value::Whole(u16::from_le_bytes(self.number()?).into()),
            3 => Value::Whole(i16::from_le_bytes(self.number()?).into()),
            4 => Value::Whole(u32::from_le_bytes(self.number()?).into()),
            5 => Value::Whole(i32::from_le_bytes(self.number()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.number()?).into()),
            7 => Value::Flag(u8::from_le_bytes(self.number()?) != 0),
            TEXT => Value::Text(self.text()?),
            LIST => Value::List(self.list()?),
            10 => Value::Whole(u64::from_le_bytes(self.number()?).into()),
            11 => Value::Whole(i64::from_le_bytes(self.number()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.number()?)),
            _ => return Err(self.wrong(format!("has a value of unknown type {kind} at byte {}", self.at))),
        })
    }

    /// Goes past a list. Of one whose elements have a fixed size no byte is touched.
    fn list(&mut self) -> Result<List> {
        let (kind, count) = (self.u32()?, self.u64()?);
        let start = self.at;
        let too_long = || format!("has a list at byte {start} that is longer than the file");
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            TEXT => 0,
            LIST => return Err(self.wrong(format!("has a list of lists at byte {start}"))),
            _ => return Err(self.wrong(format!("has a list of unknown type {kind} at byte {start}"))),
        };
        // each takes a byte at least: what is claimed is bounded by what is there
        let count = usize::try_from(count).ok().filter(|count| *count <= self.bytes.len() - start);
        let Some(count) = count else { return Err(self.wrong(too_long())) };
        if kind != TEXT {
            let bytes = count.checked_mul(size).filter(|bytes| *bytes <= self.bytes.len() - start);
            let Some(bytes) = bytes else { return Err(self.wrong(too_long())) };
            self.at += bytes;
        } else if count > MAX_TEXTS {
            return Err(self.wrong(format!("has a list at byte {start} of more than {MAX_TEXTS} texts")));
        } else {
            let mut seen = start;
            for _ in 0..count {
                self.text()?;
                if self.at - seen > SEEN {
                    self.map.forget(seen, self.at - seen);
                    seen = self.at;
                }
            }
        }
        Ok(List { kind, count, range: start..self.at })
    }
}

impl Gguf {
    /// Reads the header, and those of the files that the rest of it is in.
    ///
    /// # Errors
    /// A file cannot be read, is of another format or version, or is malformed; a tensor lies outside it or is of a type
    /// that is not known.
    pub fn open(file: &Path) -> Result<Self> {
        let mut this = Self::open_one(file)?;
        split::join(&mut this)?;
        this.parts = this
            .tensors
            .keys()
            .filter_map(|name| Some(name.strip_prefix("blk.")?.split_once('.')?.1.to_owned()))
            .collect();
        Ok(this)
    }

    fn open_one(file: &Path) -> Result<Self> {
        let map = Arc::new(Map::open(file)?);
        let mut cursor = Cursor { file, map: &map, bytes: map.bytes(), at: 0, names: 0 };
        let (tensors, values) = cursor.counts()?;
        let metadata = cursor.metadata(values)?;
        let mut infos = Vec::new();
        for _ in 0..tensors {
            let name = cursor.name()?;
            let dims = cursor.u32()?;
            if !(1..=4).contains(&dims) {
                return Err(Error::tensor(file, &name, "have from one to four dimensions"));
            }
            let mut shape = (0..dims).map(|_| cursor.u64()).collect::<Result<Vec<_>>>()?;
            shape.reverse();
            let (kind, offset) = (cursor.u32()?, cursor.u64()?);
            infos.push((name, shape, kind, offset));
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(&Value::Whole(alignment)) if (1..=1 << 20).contains(&alignment) => alignment as usize,
            Some(_) => return Err(cursor.wrong("`general.alignment` must be a whole number from 1")),
        };
        let Some(data) = cursor.at.checked_next_multiple_of(alignment) else {
            return Err(cursor.wrong("ends in its header"));
        };
        // pages of texts that were gone past
        map.forget(0, cursor.at);
        let mut tensors = BTreeMap::new();
        for (name, shape, kind, offset) in infos {
            let Some(kind) = Kind::of(kind) else {
                let expected = format!("be of a type that is known: it is {}", Kind::name_of(kind));
                return Err(Error::tensor(file, &name, expected));
            };
            let place = place(&shape, kind, data, offset)
                .filter(|(_, start, bytes)| start + bytes <= map.bytes().len());
            let Some((shape, start, bytes)) = place else {
                let expected = format!("lie inside the file, in whole blocks of {}", kind.name());
                return Err(Error::tensor(file, &name, expected));
            };
            let info = Info { shape, kind, map: map.clone(), start, bytes };
            if tensors.insert(name.clone(), info).is_some() {
                return Err(Error::tensor(file, &name, "be there once"));
            }
        }
        Ok(Self { file: file.to_owned(), metadata, tensors, parts: BTreeSet::new(), map })
    }
}

impl Cursor<'_> {
    /// The header's first part: how many tensors and values there are.
    fn counts(&mut self) -> Result<(u64, u64)> {
        if self.take(4)? != b"GGUF" {
            return Err(self.wrong("must be a GGUF file: it does not start as one"));
        }
        let version = self.u32()?;
        if !matches!(version, 2 | 3) {
            return Err(self.wrong(format!("must be of version 2 or 3, little-endian, not {version}")));
        }
        let (tensors, values) = (self.u64()?, self.u64()?);
        if tensors.max(values) > MAX_COUNT {
            return Err(self.wrong(format!("must have at most {MAX_COUNT} tensors and values")));
        }
        Ok((tensors, values))
    }

    fn metadata(&mut self, values: u64) -> Result<BTreeMap<String, Value>> {
        let mut metadata = BTreeMap::new();
        for _ in 0..values {
            let key = self.name()?;
            let kind = self.u32()?;
            let value = self.value(kind)?;
            if metadata.contains_key(&key) {
                return Err(Error::config(self.file, key, "in the metadata once"));
            }
            metadata.insert(key, value);
        }
        Ok(metadata)
    }
}

/// The elements of a list, decoded one after another.
pub struct Elements<'a> {
    cursor: Cursor<'a>,
    kind: u32,
    left: usize,
}

impl Iterator for Elements<'_> {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        self.left = self.left.checked_sub(1)?;
        // Opening the file went past them, so that they are there and of this type.
        self.cursor.value(self.kind).ok()
    }
}

/// A tensor as a checkpoint takes it.
pub struct Stored {
    /// That of safetensors.
    pub name: String,
    pub kind: Kind,
    /// The type of elements; of blocks, bytes.
    pub dtype: safetensors::Dtype,
    /// The shape; of blocks, (rows, bytes of a row).
    pub shape: Vec<usize>,
    /// Bytes of the file that holds it.
    pub range: Range<usize>,
    pub map: Arc<Map>,
}

impl Gguf {
    /// The elements of one of its lists.
    pub fn elements(&self, list: &List) -> Elements<'_> {
        let bytes = &self.map.bytes()[..list.range.end];
        let cursor = Cursor { file: &self.file, map: &self.map, bytes, at: list.range.start, names: 0 };
        Elements { cursor, kind: list.kind, left: list.count }
    }

    /// The text that lies at `range`; `key` is named where it is not UTF-8.
    ///
    /// # Errors
    /// It is not UTF-8.
    pub fn text_at(&self, key: &str, range: &Range<usize>) -> Result<&str> {
        str::from_utf8(&self.map.bytes()[range.clone()]).map_err(|_| self.wrong(key, "UTF-8"))
    }
}

/// A matrix of blocks that are decoded.
#[derive(Debug)]
struct Blocks {
    raw: Raw,
    kind: Kind,
}

impl QuantizedMatrix for Blocks {
    fn row(&self, row: usize, out: &mut Row<'_>) {
        let (values, bytes) = self.kind.block();
        let row_bytes = out.cols() / values * bytes;
        let blocks = &self.raw.bytes()[row * row_bytes..][..row_bytes];
        let mut numbers = [0; GROUP];
        if values == GROUP && self.kind.numbers(&blocks[..bytes], &mut numbers).is_some() {
            return out.numbers(|first, group| {
                let block = &blocks[first / GROUP * bytes..][..bytes];
                let scale = self.kind.numbers(block, &mut numbers).expect("one of the kinds that have them");
                group.copy_from_slice(&numbers[..group.len()]);
                scale
            });
        }
        let (mut decoded, mut at) = ([0.0; MOST], usize::MAX);
        out.values(|first, group| {
            // a block has a whole number of groups
            if at != first / values {
                at = first / values;
                self.kind.decode(&blocks[at * bytes..][..bytes], &mut decoded[..values]);
            }
            group.copy_from_slice(&decoded[first % values..][..group.len()]);
        });
    }

    fn parts(&self) -> Vec<&Raw> {
        vec![&self.raw]
    }
}

/// The matrix `name` of a file whose tensors are of these types, if it is of blocks.
///
/// # Errors
/// It is of another shape.
pub fn find(
    kinds: &HashMap<String, Kind>,
    checkpoint: &Checkpoint,
    name: &str,
    rows: usize,
    cols: usize,
) -> Result<Option<Tensor>> {
    if let Some(latent) = latent(kinds, checkpoint, name, rows, cols)? {
        return Ok(Some(latent));
    }
    let name = format!("{name}.weight");
    let (values, bytes) = match kinds.get(&name) {
        None | Some(Kind::F32 | Kind::F16 | Kind::Bf16) => return Ok(None),
        Some(kind) => kind.block(),
    };
    if !cols.is_multiple_of(values) {
        return Err(Error::tensor(
            checkpoint.folder(),
            &name,
            format!("have columns in blocks of {values}, as {} has them; it has {cols}", kinds[&name].name()),
        ));
    }
    match kinds[&name] {
        Kind::Q8_0 => checkpoint.packed(&name, Dtype::Q8, rows, cols).map(Some),
        Kind::Q4_0 => checkpoint.packed(&name, Dtype::Q4, rows, cols).map(Some),
        kind => {
            let raw = checkpoint.raw(&name, &[rows, cols / values * bytes], &[safetensors::Dtype::U8])?;
            Ok(Some(Tensor::quantized(Arc::new(Blocks { raw, kind }), Dtype::Q8, rows, cols)))
        }
    }
}

/// MLA's matrix to keys and values of heads, from the two that newer files have: (heads * (key + value), rank).
#[derive(Debug)]
struct Latent {
    /// (heads, rank, key), as stored.
    keys: (Raw, Kind),
    /// (heads, value, rank), as stored.
    values: (Raw, Kind),
    rank: usize,
    /// Numbers in a head's key and value.
    sizes: [usize; 2],
}

impl QuantizedMatrix for Latent {
    fn row(&self, row: usize, out: &mut Row<'_>) {
        let [key, value] = self.sizes;
        let (head, at) = (row / (key + value), row % (key + value));
        let mut decoded = [0.0; MOST];
        let element = |(raw, kind): &(Raw, Kind), index: usize, decoded: &mut [f32; MOST]| {
            let (values, bytes) = kind.block();
            let block = &raw.bytes()[index / values * bytes..][..bytes];
            kind.decode(block, &mut decoded[..values]);
            decoded[index % values]
        };
        out.values(|first, group| {
            for (i, out) in group.iter_mut().enumerate() {
                *out = match at.checked_sub(key) {
                    None => element(&self.keys, (head * self.rank + first + i) * key + at, &mut decoded),
                    Some(at) => {
                        element(&self.values, (head * value + at) * self.rank + first + i, &mut decoded)
                    }
                };
            }
        });
    }

    fn parts(&self) -> Vec<&Raw> {
        vec![&self.keys.0, &self.values.0]
    }
}

fn latent(
    kinds: &HashMap<String, Kind>,
    checkpoint: &Checkpoint,
    name: &str,
    rows: usize,
    cols: usize,
) -> Result<Option<Tensor>> {
    let [keys, values] = LATENT_PARTS.map(|part| format!("{name}{part}.weight"));
    let (Some(&key_kind), Some(&value_kind)) = (kinds.get(&keys), kinds.get(&values)) else {
        return Ok(None);
    };
    let (keys, values) = (checkpoint.raw_any(&keys)?, checkpoint.raw_any(&values)?);
    // blocks are stored as bytes
    let width = |raw: &Raw, kind: Kind| {
        let (values, bytes) = kind.block();
        let last = raw.shape.last().copied().unwrap_or(0);
        if values == 1 { last } else { last / bytes * values }
    };
    let (key, rank) = (width(&keys, key_kind), width(&values, value_kind));
    let (&[heads, latent, _], &[heads_too, value, _]) = (&keys.shape[..], &values.shape[..]) else {
        return Err(keys.wrong("have three dimensions, and the one to values too"));
    };
    if rank != cols || latent != cols || heads != heads_too || heads * (key + value) != rows {
        return Err(keys.wrong(format!("have, with the one to values, {rows} rows from {cols} columns")));
    }
    let dtype = match (key_kind, value_kind) {
        (Kind::F32, _) | (_, Kind::F32) => Dtype::F32,
        (Kind::F16, Kind::F16) => Dtype::F16,
        (Kind::Bf16, Kind::Bf16) => Dtype::Bf16,
        _ => Dtype::Q8,
    };
    let sizes = [key, value];
    let matrix = Latent { keys: (keys, key_kind), values: (values, value_kind), rank, sizes };
    Ok(Some(Tensor::quantized(Arc::new(matrix), dtype, rows, cols)))
}

/// The shape in sizes of memory, where a tensor starts, and its bytes; none if that overflows or no rows of blocks fit.
fn place(shape: &[u64], kind: Kind, data: usize, offset: u64) -> Option<(Vec<usize>, usize, usize)> {
    let shape: Vec<usize> = shape.iter().map(|size| usize::try_from(*size).ok()).collect::<Option<_>>()?;
    let (values, bytes) = kind.block();
    let cols = *shape.last()?;
    if cols == 0 || !cols.is_multiple_of(values) {
        return None;
    }
    let rows = shape[..shape.len() - 1].iter().try_fold(1_usize, |rows, size| rows.checked_mul(*size))?;
    let bytes = rows.checked_mul(cols / values)?.checked_mul(bytes)?;
    let start = data.checked_add(usize::try_from(offset).ok()?)?;
    start.checked_add(bytes)?;
    (rows > 0).then_some((shape, start, bytes))
}
