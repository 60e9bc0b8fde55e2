//! GPTQ, as AutoGPTQ and GPTQModel write it: `qweight` (words of cols, rows) has numbers of consecutive columns one behind
//! another in words, `qzeros` (groups, words of rows) those of consecutive rows, `scales` (groups, rows), `g_idx` (cols)
//! each column's group. `weight = scale * (number - zero)`. Numbers of three bits go on in the next word.
//!
//! In the first version of the format zeros are stored less one. Two writers do that: AutoGPTQ and its kin number by
//! number, so that 0 wraps to the largest number; GPTQModel takes a constant off each whole word, so that 0 borrows from the
//! number behind it (and, of three bits, by a constant that is another than one for each number). A checkpoint seldom
//! says who wrote it, so where the two readings differ, that with fewer different zeros is taken: a wrong reading scatters
//! them.

use std::sync::Arc;

use super::{Found, QuantizedMatrix, Row};
use crate::error::Result;
use crate::weights::Dtype;
use crate::weights::checkpoint::{Checkpoint, Raw};
use crate::weights::json::Json;

/// The scheme.
#[derive(Debug)]
pub struct Gptq {
    bits: usize,
    group: Option<usize>,
    symmetric: bool,
    /// Columns may be in any group.
    ordered: bool,
    /// How zeros are stored; none: number by number or by words, as they show.
    zeros: Option<Zeros>,
}

/// How zeros are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Zeros {
    /// They are stored as they are.
    Plain,
    /// Less one, each wrapping for itself.
    LessOne,
    /// In words that a constant was taken off.
    Words,
}

#[derive(Debug)]
struct Matrix {
    numbers: Raw,
    zeros: Raw,
    scales: Raw,
    groups: Option<Raw>,
    group: usize,
    bits: usize,
    stored: Zeros,
}

impl Gptq {
    pub fn of(json: &Json) -> Result<Self> {
        let bits = json.required_size("bits", 8)?;
        if ![2, 3, 4, 8].contains(&bits) {
            return Err(json.wrong("bits", "2, 3, 4 or 8"));
        }
        let group = match json.field("group_size").and_then(serde_json::Value::as_i64) {
            Some(-1) => None,
            _ => Some(json.required_size("group_size", 1 << 20)?),
        };
        let by_gptqmodel = match json.object("meta")?.as_ref().and_then(|meta| meta.field("quantizer")) {
            Some(serde_json::Value::Array(names)) => names.iter().any(is_gptqmodel),
            Some(name) => is_gptqmodel(name),
            None => false,
        };
        let format = if json.field("checkpoint_format").is_some() { "checkpoint_format" } else { "format" };
        let zeros = match json.text(format)? {
            None | Some("gptq") if by_gptqmodel => Some(Zeros::Words),
            None | Some("gptq") => None,
            Some("gptq_v2") => Some(Zeros::Plain),
            Some(_) => return Err(json.wrong(format, "gptq or gptq_v2")),
        };
        Ok(Self {
            bits,
            group,
            symmetric: json.flag("sym", true)?,
            ordered: json.flag("desc_act", false)?,
            zeros,
        })
    }

    pub fn find(&self, checkpoint: &Checkpoint, name: &str, rows: usize, cols: usize) -> Found {
        if !checkpoint.has(&format!("{name}.qweight")) {
            return Ok(None);
        }
        let bits = self.bits;
        let group = self.group.unwrap_or(cols);
        let groups = cols.div_ceil(group);
        let raw = |suffix: &str, shape: &[usize], dtype| {
            checkpoint.raw(&format!("{name}.{suffix}"), shape, &[dtype])
        };
        let words = |count: usize| (count * bits).div_ceil(32);
        let mut matrix = Matrix {
            numbers: raw("qweight", &[words(cols), rows], safetensors::Dtype::I32)?,
            zeros: raw("qzeros", &[groups, words(rows)], safetensors::Dtype::I32)?,
            scales: checkpoint.raw_floats(&format!("{name}.scales"), &[groups, rows])?,
            groups: match checkpoint.has(&format!("{name}.g_idx")) {
                true => Some(raw("g_idx", &[cols], safetensors::Dtype::I32)?),
                false => None,
            },
            group,
            bits,
            stored: Zeros::LessOne,
        };
        matrix.stored = self.zeros.unwrap_or_else(|| matrix.as_it_shows());
        if let Some(index) = &matrix.groups {
            for col in 0..cols {
                if index.u32(col) as usize >= groups {
                    return Err(index.wrong(format!("hold numbers below {groups}, the number of groups")));
                }
                if !self.ordered && index.u32(col) as usize != col / group {
                    return Err(index.wrong("name groups of neighbours: desc_act is false"));
                }
            }
        }
        // with columns of any group, no 32 neighbours share a scale; four bits less their zeros may need five
        let four = bits < 4 || bits == 4 && self.symmetric;
        let fits = four && !self.ordered && group.is_multiple_of(super::GROUP);
        Ok(Some((Arc::new(matrix), if fits { Dtype::Q4 } else { Dtype::Q8 })))
    }
}

/// Whether GPTQModel wrote a checkpoint.
fn is_gptqmodel(name: &serde_json::Value) -> bool {
    name.as_str().is_some_and(|name| name.to_ascii_lowercase().starts_with("gptqmodel"))
}

/// Number `index` of a row of words.
fn number(bits: usize, index: usize, word: impl Fn(usize) -> u32) -> i32 {
    let (at, shift) = (index * bits / 32, index * bits % 32);
    let low = word(at) >> shift;
    let high = if shift + bits > 32 { word(at + 1) << (32 - shift) } else { 0 };
    ((low | high) & ((1 << bits) - 1)) as i32
}

/// What GPTQModel takes off word `index` of a row.
fn taken_off(bits: usize, index: usize) -> u32 {
    match (bits, index % 3) {
        (2, _) => 0x5555_5555,
        (3, 0) => 0x2492_4924,
        (3, 1) => 0x9249_2492,
        (3, _) => 0x4924_9249,
        (4, _) => 0x1111_1111,
        _ => 0x0101_0101,
    }
}

impl Matrix {
    fn of(&self, row: usize, col: usize, group: usize) -> i32 {
        let rows = self.numbers.shape[1];
        let stored = number(self.bits, col, |word| self.numbers.u32(word * rows + row));
        stored - self.zero(self.stored, row, group)
    }

    fn zero(&self, stored: Zeros, row: usize, group: usize) -> i32 {
        let word = |at: usize| self.zeros.u32(group * self.zeros.shape[1] + at);
        match stored {
            Zeros::Plain => number(self.bits, row, word),
            Zeros::LessOne => (number(self.bits, row, word) + 1) & ((1 << self.bits) - 1),
            Zeros::Words => number(self.bits, row, |at| word(at).wrapping_add(taken_off(self.bits, at))),
        }
    }

    /// How zeros less one are stored: in the way in which there are fewer different ones.
    fn as_it_shows(&self) -> Zeros {
        let (groups, rows) = (self.scales.shape[0], self.scales.shape[1]);
        let (mut alone, mut in_words) = ([0_u64; 256], [0_u64; 256]);
        for group in 0..groups {
            for row in 0..rows {
                let zero = self.zero(Zeros::LessOne, row, group);
                // where the first of several is 0, some writers spoil those behind it in its word
                if zero != 0 {
                    alone[zero as usize] += 1;
                    in_words[self.zero(Zeros::Words, row, group) as usize] += 1;
                }
            }
        }
        let gathered =
            |counts: &[u64; 256]| counts.iter().map(|count| u128::from(*count).pow(2)).sum::<u128>();
        if gathered(&in_words) > gathered(&alone) { Zeros::Words } else { Zeros::LessOne }
    }
}

impl QuantizedMatrix for Matrix {
    fn row(&self, row: usize, out: &mut Row<'_>) {
        let rows = self.numbers.shape[1];
        let group_of = |col: usize| match &self.groups {
            Some(groups) => groups.u32(col) as usize,
            None => col / self.group,
        };
        let cols = out.cols();
        let last = |first: usize| (first + super::GROUP).min(cols) - 1;
        let neighbours =
            (0..cols).step_by(super::GROUP).all(|first| group_of(first) == group_of(last(first)))
                && (1..cols).all(|col| group_of(col) >= group_of(col - 1));
        if neighbours {
            out.numbers(|first, numbers| {
                let group = group_of(first);
                numbers.iter_mut().enumerate().for_each(|(i, n)| *n = self.of(row, first + i, group));
                self.scales.float(group * rows + row)
            });
        } else {
            out.values(|first, values| {
                for (i, value) in values.iter_mut().enumerate() {
                    let group = group_of(first + i);
                    *value = self.scales.float(group * rows + row) * self.of(row, first + i, group) as f32;
                }
            });
        }
    }

    fn parts(&self) -> Vec<&Raw> {
        [&self.numbers, &self.zeros, &self.scales].into_iter().chain(&self.groups).collect()
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    const ROWS: usize = 32;
    const COLS: usize = 64;
    const GROUP: usize = 32;

    /// Packs numbers one behind another, as AutoGPTQ does.
    fn words(numbers: &[u32], bits: usize) -> Vec<u32> {
        let mut words = vec![0_u32; (numbers.len() * bits).div_ceil(32)];
        for (i, number) in numbers.iter().enumerate() {
            for bit in 0..bits {
                words[(i * bits + bit) / 32] |= (number >> bit & 1) << ((i * bits + bit) % 32);
            }
        }
        words
    }

    struct Numbers {
        bits: usize,
        /// (cols, rows)
        weights: Vec<u32>,
        /// (groups, rows)
        zeros: Vec<u32>,
    }

    impl Numbers {
        /// Zeros around the middle, and some of 0, also one behind another's.
        fn draw(bits: usize) -> Self {
            let most = (1_usize << bits) - 1;
            let draw = |i: usize, salt: usize| (i * 7919 + salt) % 10_007;
            let middle = most.div_ceil(2);
            let zero = |i: usize| match draw(i, 3) % 9 {
                0 => 0,
                _ => middle.min(most) as u32,
            };
            Self {
                bits,
                weights: (0..COLS * ROWS).map(|i| (draw(i, 1) % (most + 1)) as u32).collect(),
                zeros: (0..COLS / GROUP * ROWS).map(zero).collect(),
            }
        }

        /// Opens a checkpoint with these words of zeros, and takes all weights out of it.
        fn read(&self, zeros: &[u32], config: &str) -> Vec<f32> {
            let folder = tempfile::tempdir().unwrap();
            let quantization = format!(
                r#"{{"quantization_config":{{"quant_method":"gptq","bits":{},"group_size":{GROUP},"sym":false{config}}}}}"#,
                self.bits
            );
            std::fs::write(folder.path().join("config.json"), quantization).unwrap();
            let mut numbers = vec![0; COLS * self.bits / 32 * ROWS];
            for row in 0..ROWS {
                let column: Vec<u32> = (0..COLS).map(|col| self.weights[col * ROWS + row]).collect();
                for (at, word) in words(&column, self.bits).into_iter().enumerate() {
                    numbers[at * ROWS + row] = word;
                }
            }
            let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
            let scales = vec![0.5_f32.to_le_bytes(); COLS / GROUP * ROWS].concat();
            let (numbers, zeros) = (bytes(&numbers), bytes(zeros));
            let view = |dtype, shape: &[usize], data| TensorView::new(dtype, shape.to_vec(), data).unwrap();
            let (words, groups) = (COLS * self.bits / 32, COLS / GROUP);
            let tensors = [
                ("a.qweight", view(safetensors::Dtype::I32, &[words, ROWS], &numbers)),
                ("a.qzeros", view(safetensors::Dtype::I32, &[groups, ROWS * self.bits / 32], &zeros)),
                ("a.scales", view(safetensors::Dtype::F32, &[groups, ROWS], &scales)),
            ];
            safetensors::serialize_to_file(tensors, None, &folder.path().join("model.safetensors")).unwrap();
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            checkpoint.matrix("a", ROWS, COLS).unwrap().values()
        }

        fn packed_zeros(&self, stored: impl Fn(u32) -> u32) -> Vec<u32> {
            let rows = self.zeros.chunks(ROWS);
            rows.flat_map(|row| words(&row.iter().map(|zero| stored(*zero)).collect::<Vec<_>>(), self.bits))
                .collect()
        }
    }

    /// Both writers' forms of the first version, and the second, give `scale * (number - zero)`, of zeros of 0 too.
    #[test]
    fn zeros_are_those_that_were_written() {
        for bits in [2, 3, 4, 8] {
            let numbers = Numbers::draw(bits);
            let expected: Vec<f32> = (0..ROWS * COLS)
                .map(|i| {
                    let (row, col) = (i / COLS, i % COLS);
                    let zero = numbers.zeros[col / GROUP * ROWS + row] as f32;
                    0.5 * (numbers.weights[col * ROWS + row] as f32 - zero)
                })
                .collect();
            let near = |found: &[f32], what: &str| {
                for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    // eight bits less their zeros are rounded
                    let allowed = if bits == 8 { 0.6 } else { 0.0 };
                    assert!(
                        (found - expected).abs() <= allowed,
                        "{bits} bits, {what}: {i}: {found}, {expected}"
                    );
                }
            };
            let plain = numbers.packed_zeros(|zero| zero);
            near(&numbers.read(&plain, r#","checkpoint_format":"gptq_v2""#), "second version");
            let mask = (1_u32 << bits) - 1;
            let wrapped = numbers.packed_zeros(|zero| zero.wrapping_sub(1) & mask);
            near(&numbers.read(&wrapped, ""), "less one");
            let per_row = plain.len() / (COLS / GROUP);
            let by_words: Vec<u32> = plain
                .iter()
                .enumerate()
                .map(|(at, word)| word.wrapping_sub(taken_off(bits, at % per_row)))
                .collect();
            near(&numbers.read(&by_words, ""), "by words");
            near(&numbers.read(&by_words, r#","meta":{"quantizer":["gptqmodel:2.0.0"]}"#), "by words, said");
        }
    }
}
