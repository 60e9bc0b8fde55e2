//! torchao, as transformers saves it. A matrix is a tensor of a class of its own, taken apart into the tensors
//! `{module}._weight_{part}` (torchao 0.14: `{module}.weight:{part}`); the metadata of the header tells, under the name of
//! the parameter, what class that was: `{"_type": "Int4Tensor", "_data": {"block_size": [1, 128], ...}}`.
//!
//! - `Int8Tensor`, `IntxUnpackedToInt8Tensor`: `qdata` (rows, cols) of signed bytes, `scale` one for all, for each row, or
//!   for blocks of columns, and `zero_point` likewise. `weight = scale * (number - zero)`.
//! - `Int4Tensor`: `qdata` (rows, cols / 2) has two signed numbers in a byte, the first in the low bits; `scale` and
//!   `zero_point` (groups, rows). `weight = scale * number + zero`.
//! - `Int4TilePackedTo4dTensor`: the same for NVIDIA's tensor cores, see [`Tiles`]; rows are padded to 8 and columns to 1024.
//! - `Float8Tensor`: `qdata` (rows, cols) of e4m3 or e5m2, `scale` as that of eight bits.
//! - `MXTensor`: `qdata` as that, or (rows, cols / 2) of e2m1, with a power of two for each 32 columns; `NVFP4Tensor`: the
//!   latter with a `scale` of e4m3 for each 16 columns, and `per_tensor_scale`. Scales may be in tensor cores' layout,
//!   [`fp4::blocked`].
//!
//! Activations that a class quantizes are not quantized here: that is not what the weights say. What it multiplies them by
//! before (`act_pre_scale`) is multiplied into the columns. Whole numbers with zeros that are whole stay exact as far as
//! eight bits hold the difference; what has zeros in floating point is rounded to eight bits.

use std::sync::Arc;

use safetensors::Dtype as D;
use serde_json::Value;

use super::{Found, GROUP, QuantizedMatrix, Row, fp4, fp8, one_of};
use crate::error::{Error, Result};
use crate::weights::Dtype;
use crate::weights::checkpoint::{Checkpoint, Raw};

/// The classes that are read.
const CLASSES: &str = "Int8Tensor, IntxUnpackedToInt8Tensor, Int4Tensor, Int4TilePackedTo4dTensor, Float8Tensor, MXTensor or \
                       NVFP4Tensor of torchao";

#[derive(Debug)]
struct Matrix {
    numbers: Raw,
    layout: Layout,
    scales: Raw,
    zeros: Zeros,
    /// What activations are multiplied by before.
    before: Option<Raw>,
    /// Whether no 32 columns have two scales, and values are whole numbers times those.
    exact: bool,
}

/// Where numbers and scales are.
#[derive(Debug)]
enum Layout {
    /// A byte each; a scale for each block of so many rows and columns, `across` of which are in a row of them.
    Bytes {
        block: [usize; 2],
        across: usize,
    },
    /// Two in a byte; a scale for each group of columns, of all rows one behind another.
    Pairs {
        group: usize,
        rows: usize,
    },
    Tiles(Tiles),
}

/// tinygemm's layout: (rows / 8, cols / 16 / `inner`, 32, `inner` / 2) words. A word has a row's columns of two neighbouring
/// tiles of 16: of the first tile's columns 2i, 2i + 8 and the second's the same in its low half, and those behind them in the
/// high half. Threads, of which there are 32, go along i first, then along rows. Scales and zeros are pairs: (groups, rows, 2).
#[derive(Debug)]
struct Tiles {
    /// Tiles of 16 columns that a thread has one behind another.
    inner: usize,
    group: usize,
    /// Rows with those that fill up the last tile.
    rows: usize,
}

#[derive(Debug)]
enum Zeros {
    None,
    /// Taken off numbers; as scales are.
    Whole(Raw),
    /// Added to values; as scales are.
    Added(Raw),
    /// Added to values; behind each scale.
    Behind,
}

/// What is looked for.
struct Finder<'a> {
    checkpoint: &'a Checkpoint,
    name: &'a str,
    rows: usize,
    cols: usize,
    /// The attributes of the class.
    data: &'a Value,
}

/// The matrix `name`, if the header says that torchao took it apart.
///
/// # Errors
/// It is of a class that is not known; a tensor of it is missing or of another shape or type.
pub fn find(checkpoint: &Checkpoint, name: &str, rows: usize, cols: usize) -> Found {
    let weight = format!("{name}.weight");
    let wrong = |expected: String| Error::tensor(checkpoint.folder(), &weight, expected);
    let Some(text) = checkpoint.metadata(&weight) else {
        return match checkpoint.has(&format!("{name}._weight_qdata")) {
            true => Err(wrong("be described in the metadata of the file's header, as torchao does".into())),
            false => Ok(None),
        };
    };
    let json: Value = serde_json::from_str(text).unwrap_or_default();
    let finder = Finder { checkpoint, name, rows, cols, data: &json["_data"] };
    for unused in ["act_quant_scale", "act_quant_zero_point", "act_per_tensor_scale"] {
        checkpoint.ask(&finder.part(unused));
    }
    match json["_type"].as_str() {
        Some("Tensor") => Ok(None),
        Some("Int8Tensor") => finder.bytes(8).map(Some),
        Some("IntxUnpackedToInt8Tensor") => finder.bytes(finder.bits()).map(Some),
        Some("Int4Tensor") => finder.pairs().map(Some),
        Some("Int4TilePackedTo4dTensor") => finder.tiles().map(Some),
        Some("Float8Tensor") => finder.floats().map(Some),
        Some("MXTensor") => finder.mx().map(Some),
        Some("NVFP4Tensor") => finder.nvfp4().map(Some),
        Some(class) if class.len() < 64 && class.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
            Err(wrong(format!("be an {CLASSES}; it is a {class}, which is not supported")))
        }
        _ => Err(wrong(format!("be an {CLASSES}: its metadata must say so"))),
    }
}

impl Finder<'_> {
    fn part(&self, part: &str) -> String {
        let old = format!("{}.weight:{part}", self.name);
        if self.checkpoint.has(&old) { old } else { format!("{}._weight_{part}", self.name) }
    }

    fn raw(&self, part: &str, shape: &[usize], dtypes: &[D]) -> Result<Raw> {
        self.checkpoint.raw(&self.part(part), shape, dtypes)
    }

    fn floating(&self, part: &str, shapes: &[&[usize]]) -> Result<Raw> {
        let name = self.part(part);
        self.checkpoint.raw_floats(&name, &one_of(self.checkpoint, &name, shapes))
    }

    /// Bits of the numbers of an `IntxUnpackedToInt8Tensor`.
    fn bits(&self) -> usize {
        let dtype = self.data["target_dtype"]["_data"].as_str();
        dtype.and_then(|dtype| dtype.strip_prefix("int")?.parse().ok()).unwrap_or(8)
    }

    /// Columns that share a scale.
    fn group(&self) -> Result<usize> {
        let sides = self.data["block_size"].as_array().map(Vec::as_slice);
        let group = match sides {
            Some([rows, group]) if rows.as_u64() == Some(1) => group.as_u64(),
            _ => None,
        };
        let group = group.and_then(|group| usize::try_from(group).ok()).filter(|group| *group > 0);
        group.ok_or_else(|| {
            let expected = "have a `block_size` of [1, columns] in its metadata";
            Error::tensor(self.checkpoint.folder(), &format!("{}.weight", self.name), expected)
        })
    }

    /// Rows and columns that share one of the scales, and the shape of those.
    fn block(&self) -> ([usize; 2], Vec<usize>) {
        let (rows, cols) = (self.rows, self.cols);
        let divides = |count: usize, all: usize| count > 0 && all.is_multiple_of(count);
        match self.checkpoint.shape(&self.part("scale")) {
            Some(shape) if shape.iter().product::<usize>() == 1 => ([rows, cols], shape.to_vec()),
            Some(&[down]) if down == rows => ([1, cols], vec![rows]),
            Some(&[down, across]) if divides(down, rows) && divides(across, cols) => {
                ([rows / down, cols / across], vec![down, across])
            }
            _ => ([1, cols], vec![rows, 1]),
        }
    }

    fn before(&self) -> Result<Option<Raw>> {
        match self.checkpoint.has(&self.part("act_pre_scale")) {
            true => self.floating("act_pre_scale", &[&[self.cols], &[1, self.cols]]).map(Some),
            false => Ok(None),
        }
    }

    fn bytes(&self, bits: usize) -> Result<(Arc<dyn QuantizedMatrix>, Dtype)> {
        let numbers = self.raw("qdata", &[self.rows, self.cols], &[D::I8])?;
        let (block, shape) = self.block();
        let scales = self.floating("scale", &[&shape])?;
        let zeros = match self.checkpoint.has(&self.part("zero_point")) {
            true => match self.raw("zero_point", &shape, &[D::I8])? {
                zeros if zeros.bytes().iter().all(|byte| *byte == 0) => Zeros::None,
                zeros => Zeros::Whole(zeros),
            },
            false => Zeros::None,
        };
        let layout = Layout::Bytes { block, across: self.cols / block[1] };
        self.matrix(numbers, layout, scales, zeros, bits)
    }

    fn pairs(&self) -> Result<(Arc<dyn QuantizedMatrix>, Dtype)> {
        let numbers = self.raw("qdata", &[self.rows, self.cols.div_ceil(2)], &[D::I8, D::U8])?;
        let group = self.group()?;
        let shape = [self.cols.div_ceil(group), self.rows];
        let scales = self.floating("scale", &[&shape])?;
        let zeros = self.floating("zero_point", &[&shape])?;
        let none = (0..shape[0] * shape[1]).all(|at| zeros.float(at) == 0.0);
        let zeros = if none { Zeros::None } else { Zeros::Added(zeros) };
        self.matrix(numbers, Layout::Pairs { group, rows: self.rows }, scales, zeros, 4)
    }

    fn tiles(&self) -> Result<(Arc<dyn QuantizedMatrix>, Dtype)> {
        let group = self.group()?;
        let shape = match self.checkpoint.shape(&self.part("qdata")) {
            Some(&[down, across, 32, half @ (1 | 2 | 4)])
                if down == self.rows.div_ceil(8)
                    && across.checked_mul(32 * half).is_some_and(|cols| cols >= self.cols) =>
            {
                [down, across, 32, half]
            }
            _ => [self.rows.div_ceil(8), self.cols.div_ceil(1024) * 8, 32, 4],
        };
        let numbers = self.raw("qdata", &shape, &[D::I32])?;
        let [rows, cols] = [shape[0] * 8, shape[1] * shape[3] * 32];
        let scales = self.floating("scale_and_zero", &[&[cols.div_ceil(group), rows, 2]])?;
        let none = (0..cols.div_ceil(group) * rows).all(|at| scales.float(2 * at + 1) == 0.0);
        let zeros = if none { Zeros::None } else { Zeros::Behind };
        let tiles = Tiles { inner: 2 * shape[3], group, rows };
        self.matrix(numbers, Layout::Tiles(tiles), scales, zeros, 4)
    }

    fn floats(&self) -> Result<(Arc<dyn QuantizedMatrix>, Dtype)> {
        let codes = self.raw("qdata", &[self.rows, self.cols], &fp8::TYPES)?;
        let (block, shape) = self.block();
        Ok(fp8::scaled(codes, self.floating("scale", &[&shape])?, block, false))
    }

    /// Scales of groups of columns in a type of eight bits, and whether they are in tensor cores' layout.
    fn scales(&self, group: usize, dtype: D) -> Result<(Raw, bool)> {
        let groups = self.cols.div_ceil(group);
        let blocked = self.data["is_swizzled_scales"] == true;
        let shape = if blocked { fp4::blocked_shape(self.rows, groups) } else { [self.rows, groups] };
        Ok((self.raw("scale", &shape, &[dtype])?, blocked))
    }

    fn codes(&self) -> Result<Raw> {
        self.raw("qdata", &[self.rows, self.cols.div_ceil(2)], &[D::U8])
    }

    fn mx(&self) -> Result<(Arc<dyn QuantizedMatrix>, Dtype)> {
        let group = self.data["block_size"].as_u64().and_then(|group| usize::try_from(group).ok());
        let group = group.filter(|group| *group > 0).unwrap_or(fp4::MX_GROUP);
        let (scales, blocked) = self.scales(group, D::F8_E8M0)?;
        if self.checkpoint.dtype(&self.part("qdata")).is_some_and(|dtype| fp8::TYPES.contains(&dtype)) {
            let codes = self.raw("qdata", &[self.rows, self.cols], &fp8::TYPES)?;
            return Ok(fp8::scaled(codes, scales, [1, group], blocked));
        }
        let (elem, float4) = (&self.data["elem_dtype"]["_data"], "float4_e2m1fn_x2");
        if elem != float4 || group != fp4::MX_GROUP {
            let expected =
                format!("be {float4} in blocks of {}, or float8_e4m3fn or float8_e5m2", fp4::MX_GROUP);
            return Err(self.codes()?.wrong(expected));
        }
        let blocked = blocked.then_some(self.cols.div_ceil(group));
        let matrix = fp4::Matrix { codes: self.codes()?, scales, factor: None, blocked };
        Ok((Arc::new(matrix), Dtype::Q8))
    }

    fn nvfp4(&self) -> Result<(Arc<dyn QuantizedMatrix>, Dtype)> {
        let (scales, blocked) = self.scales(fp4::NV_GROUP, D::F8_E4M3)?;
        let factor = match self.checkpoint.has(&self.part("per_tensor_scale")) {
            true => self.floating("per_tensor_scale", &[&[], &[1]])?.float(0),
            false => 1.0,
        };
        let blocked = blocked.then_some(self.cols.div_ceil(fp4::NV_GROUP));
        let matrix = fp4::Matrix { codes: self.codes()?, scales, factor: Some(factor), blocked };
        Ok((Arc::new(matrix), Dtype::Q8))
    }

    fn matrix(
        &self,
        numbers: Raw,
        layout: Layout,
        scales: Raw,
        zeros: Zeros,
        bits: usize,
    ) -> Result<(Arc<dyn QuantizedMatrix>, Dtype)> {
        let before = self.before()?;
        let width = layout.width();
        let exact = matches!(zeros, Zeros::None | Zeros::Whole(_))
            && before.is_none()
            && (width.is_multiple_of(GROUP) || width >= self.cols);
        // numbers less their zeros may need another bit
        let four = exact && bits <= 4 && matches!(zeros, Zeros::None);
        let matrix = Matrix { numbers, layout, scales, zeros, before, exact };
        Ok((Arc::new(matrix), if four { Dtype::Q4 } else { Dtype::Q8 }))
    }
}

impl Layout {
    /// Columns that share a scale.
    fn width(&self) -> usize {
        match self {
            Self::Bytes { block, .. } => block[1],
            Self::Pairs { group, .. } | Self::Tiles(Tiles { group, .. }) => *group,
        }
    }

    /// Which scale a column has.
    fn scale_at(&self, row: usize, col: usize) -> usize {
        match self {
            Self::Bytes { block, across } => row / block[0] * across + col / block[1],
            Self::Pairs { group, rows } => col / group * rows + row,
            Self::Tiles(Tiles { group, rows, .. }) => 2 * (col / group * rows + row),
        }
    }
}

impl Tiles {
    /// A number of `words`, whose first two sides are in tiles.
    fn number(&self, words: &Raw, row: usize, col: usize) -> i32 {
        let (tile, pair) = (col / 16, col % 16 / 2);
        let thread = row % 8 * 4 + pair % 4;
        let outer = row / 8 * words.shape[1] + tile / self.inner;
        let word = words.u32((outer * 32 + thread) * self.inner / 2 + tile % self.inner / 2);
        let place = tile % 2 * 2 + pair / 4 + col % 2 * 4;
        super::packed(word, 4, place) - 8
    }
}

impl Matrix {
    fn number(&self, row: usize, col: usize) -> i32 {
        let number = match &self.layout {
            Layout::Bytes { .. } => i32::from(self.numbers.bytes()[row * self.numbers.shape[1] + col] as i8),
            Layout::Pairs { .. } => {
                let byte = self.numbers.bytes()[row * self.numbers.shape[1] + col / 2];
                i32::from((byte << (4 - col % 2 * 4)) as i8 >> 4)
            }
            Layout::Tiles(tiles) => tiles.number(&self.numbers, row, col),
        };
        match &self.zeros {
            Zeros::Whole(zeros) => number - i32::from(zeros.bytes()[self.layout.scale_at(row, col)] as i8),
            _ => number,
        }
    }

    fn value(&self, row: usize, col: usize) -> f32 {
        let at = self.layout.scale_at(row, col);
        let zero = match &self.zeros {
            Zeros::None | Zeros::Whole(_) => 0.0,
            Zeros::Added(zeros) => zeros.float(at),
            Zeros::Behind => self.scales.float(at + 1),
        };
        let before = self.before.as_ref().map_or(1.0, |before| before.float(col));
        (self.scales.float(at) * self.number(row, col) as f32 + zero) * before
    }
}

impl QuantizedMatrix for Matrix {
    fn row(&self, row: usize, out: &mut Row<'_>) {
        if self.exact {
            out.numbers(|first, numbers| {
                numbers.iter_mut().enumerate().for_each(|(i, n)| *n = self.number(row, first + i));
                self.scales.float(self.layout.scale_at(row, first))
            });
        } else {
            out.values(|first, values| {
                values.iter_mut().enumerate().for_each(|(i, value)| *value = self.value(row, first + i));
            });
        }
    }

    fn parts(&self) -> Vec<&Raw> {
        let zeros = match &self.zeros {
            Zeros::Whole(zeros) | Zeros::Added(zeros) => Some(zeros),
            Zeros::None | Zeros::Behind => None,
        };
        [&self.numbers, &self.scales].into_iter().chain(zeros).chain(&self.before).collect()
    }
}
