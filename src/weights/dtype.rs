//! Element types of weights and of the KV cache.

use half::{bf16, f16};

/// Columns that share a scale in the quantized types.
pub const GROUP: usize = 32;

/// An element type that backends take in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of a single.
    Bf16,
    /// For each 32 columns a scale of f16 and as many signed bytes; value = scale * number. GGUF's `Q8_0`.
    Q8,
    /// For each 32 columns a scale of f16 and 16 bytes: column i plus 8 in the low four bits of byte i, column i + 16
    /// plus 8 in the high ones. GGUF's `Q4_0`.
    Q4,
}

impl Dtype {
    /// Bytes of a row. The quantized types pad it to whole groups.
    pub fn row_bytes(self, cols: usize) -> usize {
        match self {
            Self::F32 => 4 * cols,
            Self::F16 | Self::Bf16 => 2 * cols,
            Self::Q8 => 34 * cols.div_ceil(GROUP),
            Self::Q4 => 18 * cols.div_ceil(GROUP),
        }
    }

    /// Whether it has scales and whole numbers.
    pub fn is_quantized(self) -> bool {
        matches!(self, Self::Q8 | Self::Q4)
    }

    /// What holds its values once they are not quantized any more.
    pub fn dequantized(self) -> Self {
        if self.is_quantized() { Self::Bf16 } else { self }
    }

    /// Of a row of `cols` columns the bytes of those from `first`, a multiple of 32, to the next such.
    pub fn group(self, row: &[u8], first: usize, cols: usize) -> &[u8] {
        &row[self.row_bytes(first)..self.row_bytes(cols.min(first + GROUP))]
    }

    /// The name that checkpoints use.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
            Self::Q8 => "eight bits in groups",
            Self::Q4 => "four bits in groups",
        }
    }

    /// The value of the element stored in `bytes` (little-endian, as safetensors stores it).
    ///
    /// # Panics
    /// If `bytes` is not one element long, or the type is quantized.
    pub fn read(self, bytes: &[u8]) -> f32 {
        match (self, bytes) {
            (Self::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Self::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            (Self::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            _ => panic!("{} bytes are not one {}", bytes.len(), self.name()),
        }
    }

    /// Widens the elements stored in `bytes`.
    ///
    /// # Panics
    /// If there are not as many as in `values`.
    pub fn read_all(self, bytes: &[u8], values: &mut [f32]) {
        assert_eq!(bytes.len(), self.row_bytes(values.len()), "as many elements as values");
        match self {
            Self::F32 => {
                values
                    .iter_mut()
                    .zip(bytes.as_chunks().0)
                    .for_each(|(value, &b)| *value = f32::from_le_bytes(b));
            }
            Self::F16 => values
                .iter_mut()
                .zip(bytes.as_chunks().0)
                .for_each(|(value, &b)| *value = f16::from_le_bytes(b).to_f32()),
            Self::Bf16 => values
                .iter_mut()
                .zip(bytes.as_chunks().0)
                .for_each(|(value, &b)| *value = bf16::from_le_bytes(b).to_f32()),
            Self::Q8 => {
                for (group, values) in bytes.as_chunks::<34>().0.iter().zip(values.chunks_mut(GROUP)) {
                    let scale = f16::from_le_bytes([group[0], group[1]]).to_f32();
                    let numbers = group[2..].iter().map(|&byte| f32::from(byte as i8));
                    values.iter_mut().zip(numbers).for_each(|(value, number)| *value = scale * number);
                }
            }
            Self::Q4 => {
                for (group, values) in bytes.as_chunks::<18>().0.iter().zip(values.chunks_mut(GROUP)) {
                    let scale = f16::from_le_bytes([group[0], group[1]]).to_f32();
                    let numbers = q4_numbers(&group[2..]);
                    values.iter_mut().zip(numbers).for_each(|(value, n)| *value = scale * f32::from(n));
                }
            }
        }
    }

    /// Writes values, rounded to nearest.
    ///
    /// # Panics
    /// If there are not as many as in `bytes`, or the type is quantized.
    pub fn write_all(self, values: &[f32], bytes: &mut [u8]) {
        assert_eq!(bytes.len(), self.row_bytes(values.len()), "as many elements as values");
        let half = |value: f32| match self {
            Self::F16 => f16::from_f32(value).to_le_bytes(),
            Self::Bf16 => bf16::from_f32(value).to_le_bytes(),
            _ => panic!("{self} is not written value by value"),
        };
        match self {
            Self::F32 => {
                bytes.as_chunks_mut().0.iter_mut().zip(values).for_each(|(b, v)| *b = v.to_le_bytes())
            }
            _ => bytes.as_chunks_mut().0.iter_mut().zip(values).for_each(|(b, v)| *b = half(*v)),
        }
    }

    /// The bytes of a value, rounded to nearest.
    #[cfg(test)]
    pub fn write(self, value: f32) -> Vec<u8> {
        let mut bytes = vec![0; self.row_bytes(1)];
        self.write_all(&[value], &mut bytes);
        bytes
    }

    /// Whether all elements in `bytes` are finite.
    pub fn all_finite(self, bytes: &[u8]) -> bool {
        // Not short-circuiting inside a chunk: these loops become wide integer compares, at memory speed.
        match self {
            Self::F32 => bytes.chunks(1 << 16).all(|chunk| {
                let (words, _) = chunk.as_chunks::<4>();
                !words
                    .iter()
                    .fold(false, |bad, &w| bad | (u32::from_le_bytes(w) & 0x7f80_0000 == 0x7f80_0000))
            }),
            Self::F16 => half_finite::<0x7c00>(bytes),
            Self::Bf16 => half_finite::<0x7f80>(bytes),
            Self::Q8 => bytes.as_chunks::<34>().0.iter().all(|group| half_finite::<0x7c00>(&group[..2])),
            Self::Q4 => bytes.as_chunks::<18>().0.iter().all(|group| half_finite::<0x7c00>(&group[..2])),
        }
    }
}

/// The numbers of 16 bytes of [`Dtype::Q4`].
pub fn q4_numbers(bytes: &[u8]) -> [i8; GROUP] {
    std::array::from_fn(|i| {
        let byte = bytes[i % (GROUP / 2)];
        (if i < GROUP / 2 { byte & 15 } else { byte >> 4 }) as i8 - 8
    })
}

/// Sixteen-bit floats are infinite or not numbers when all exponent bits are set.
fn half_finite<const EXPONENT: u16>(bytes: &[u8]) -> bool {
    bytes.chunks(1 << 16).all(|chunk| {
        let (words, _) = chunk.as_chunks::<2>();
        !words.iter().fold(false, |bad, &w| bad | (u16::from_le_bytes(w) & EXPONENT == EXPONENT))
    })
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_stored() {
        assert_eq!(Dtype::F32.read(&1.5_f32.to_le_bytes()), 1.5);
        assert_eq!(Dtype::F16.read(&f16::from_f32(-0.25).to_le_bytes()), -0.25);
        assert_eq!(Dtype::Bf16.read(&bf16::from_f32(3.0).to_le_bytes()), 3.0);
    }

    #[test]
    fn infinities_and_nans_are_found_anywhere() {
        for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            for at in [0, 1, 40_000, 70_000] {
                let mut values = vec![f32::MAX; 70_001];
                let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
                let halves = |v: &[f32]| {
                    v.iter().flat_map(|&x| f16::from_f32(x / 1e34).to_le_bytes()).collect::<Vec<_>>()
                };
                let brains = |v: &[f32]| {
                    v.iter().flat_map(|&x| bf16::from_f32(x / 2.0).to_le_bytes()).collect::<Vec<_>>()
                };
                assert!(Dtype::F32.all_finite(&bytes(&values)));
                assert!(Dtype::F16.all_finite(&halves(&values)) && Dtype::Bf16.all_finite(&brains(&values)));
                values[at] = bad;
                assert!(!Dtype::F32.all_finite(&bytes(&values)));
                assert!(
                    !Dtype::F16.all_finite(&halves(&values)) && !Dtype::Bf16.all_finite(&brains(&values))
                );
            }
        }
    }
}
