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
    /// For each 32 columns a scale of f32 and as many floating point numbers of eight bits, [`f8_e4m3`]; value = scale *
    /// number. Only of checkpoints that were published so: nothing is rounded to it.
    F8,
}

impl Dtype {
    /// Bytes of a row. The quantized types pad it to whole groups.
    pub fn row_bytes(self, cols: usize) -> usize {
        match self {
            Self::F32 => 4 * cols,
            Self::F16 | Self::Bf16 => 2 * cols,
            Self::Q8 => 34 * cols.div_ceil(GROUP),
            Self::Q4 => 18 * cols.div_ceil(GROUP),
            Self::F8 => 36 * cols.div_ceil(GROUP),
        }
    }

    /// Whether it has scales and whole numbers.
    pub fn is_quantized(self) -> bool {
        matches!(self, Self::Q8 | Self::Q4)
    }

    /// What holds its values once they are not quantized any more.
    pub fn dequantized(self) -> Self {
        if self.is_quantized() { Self::Bf16 } else { self.worked_out() }
    }

    /// What holds values that are worked out from those of this type.
    pub fn worked_out(self) -> Self {
        if self == Self::F8 { Self::Bf16 } else { self }
    }

    /// The bytes of a row of `cols` columns from column `first`, a multiple of 32, to the next such.
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
            Self::F8 => "float8 in groups",
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
            Self::F8 => {
                for (group, values) in bytes.as_chunks::<36>().0.iter().zip(values.chunks_mut(GROUP)) {
                    let (scale, codes) = f8_group(group);
                    values.iter_mut().zip(codes).for_each(|(value, code)| *value = scale * f8_e4m3(*code));
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
            Self::F8 => bytes.as_chunks::<36>().0.iter().all(|group| {
                let (scale, codes) = f8_group(group);
                scale.is_finite() && codes.iter().all(|code| code & 0x7f != 0x7f)
            }),
        }
    }
}

/// A value of the type that has no infinities: one bit of sign, four of exponent, three of mantissa (Micikevicius et al.
/// 2022, arXiv 2209.05433).
pub fn f8_e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * f32::powi(2.0, exponent - 7),
    };
    if code & 0x80 == 0 { size } else { -size }
}

/// A power of two, the scale of the Microscaling formats (Open Compute Project, MX 1.0): 127 stands for 1, 255 for no number.
pub fn f8_e8m0(code: u8) -> f32 {
    match code {
        0 => f32::MIN_POSITIVE / 2.0,
        255 => f32::NAN,
        code => f32::from_bits(u32::from(code) << 23),
    }
}

/// Scale and codes of a group of [`Dtype::F8`].
pub fn f8_group(group: &[u8; 36]) -> (f32, &[u8]) {
    let [a, b, c, d, codes @ ..] = group;
    (f32::from_le_bytes([*a, *b, *c, *d]), codes)
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
    fn all_codes_of_eight_bits() {
        assert_eq!(
            [0x00, 0x01, 0x08, 0x38, 0x7e, 0xb8].map(f8_e4m3),
            [0.0, 1.0 / 512.0, 1.0 / 64.0, 1.0, 448.0, -1.0]
        );
        assert!(f8_e4m3(0x7f).is_nan() && f8_e4m3(0xff).is_nan());
        for code in 0..0x7e {
            assert!(f8_e4m3(code) < f8_e4m3(code + 1), "{code}");
            assert_eq!(f8_e4m3(code), -f8_e4m3(code | 0x80));
        }
        assert_eq!(
            [0, 1, 126, 127, 254].map(|code| f8_e8m0(code).log2()),
            [-127.0, -126.0, -1.0, 0.0, 127.0]
        );
        assert!(f8_e8m0(255).is_nan());
        let mut group = [0x38; 36];
        group[..4].copy_from_slice(&0.3_f32.to_le_bytes());
        let mut values = [0.0; 32];
        Dtype::F8.read_all(&group, &mut values);
        assert!(values == [0.3; 32] && Dtype::F8.all_finite(&group));
        for (at, bad) in [(3, 0x7f), (4, 0x7f), (35, 0xff)] {
            let mut group = group;
            group[at] = bad;
            group[2] = if at == 3 { 0x80 } else { group[2] }; // an infinite scale
            assert!(!Dtype::F8.all_finite(&group), "{at}");
        }
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
