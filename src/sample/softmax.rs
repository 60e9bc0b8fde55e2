//! Logits as weights of a draw.
//!
//! A token's weight is e^((logit - max) / temperature): 1 for the most likely, never above. Probabilities are weights
//! over their sum, and are never written down. The exponential is this file's own, so that a draw does not depend on
//! the platform's.

use super::BANNED;
use crate::memory::Secret;

/// Values that are looked at together.
pub const BLOCK: usize = 64;

const LANES: usize = 16;

/// How logits become weights.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// The largest logit.
    pub max: f32,
    /// Above 0.
    pub temperature: f64,
}

impl Scale {
    /// The weight's logarithm.
    pub fn exponent(self, logit: f32) -> f64 {
        f64::from(logit - self.max) / self.temperature
    }

    /// 0 to 1.
    pub fn weight(self, logit: f32) -> f64 {
        exp(self.exponent(logit))
    }

    /// A logit that is surely not above those with a weight of e^`exponent`: 0.001 is more than rounding takes.
    pub fn floor(self, exponent: f64) -> f32 {
        let exact = f64::from(self.max) + self.temperature * (exponent - 1e-3);
        (exact as f32).next_down().max(f32::MIN)
    }

    /// The sum of all weights.
    pub fn total(self, logits: &[f32]) -> f64 {
        logits.chunks(BLOCK).map(|block| self.sum(block)).sum()
    }

    /// The sum of up to [`BLOCK`] weights.
    fn sum(self, block: &[f32]) -> f64 {
        let mut weights = [0.0; BLOCK];
        for (weight, &logit) in weights.iter_mut().zip(block) {
            *weight = self.weight(logit);
        }
        let mut lanes = [0.0; LANES];
        for row in weights.as_chunks::<LANES>().0 {
            lanes.iter_mut().zip(row).for_each(|(lane, weight)| *lane += weight);
        }
        lanes.iter().sum()
    }

    /// The token at `draw`, 0 to 1, of all: tokens by rising id, each as wide as its weight. `sums` is a scratch.
    pub fn draw(self, logits: &[f32], sums: &mut Secret<[u64]>, draw: f64) -> u32 {
        let sums = sums.refill(logits.chunks(BLOCK).map(|block| self.sum(block).to_bits()));
        let mut left = draw * sums.iter().map(|&sum| f64::from_bits(sum)).sum::<f64>();
        for (at, &sum) in sums.iter().enumerate() {
            let sum = f64::from_bits(sum);
            if left < sum {
                let block = &logits[at * BLOCK..logits.len().min((at + 1) * BLOCK)];
                return (at * BLOCK + self.within(block, left)) as u32;
            }
            left -= sum;
        }
        // Rounding may leave a trace of the sum: it belongs to the last token that has any weight.
        logits.iter().rposition(|&logit| self.weight(logit) > 0.0).unwrap_or(0) as u32
    }

    /// The place at `left` of a block's weights, or the last with any weight.
    fn within(self, block: &[f32], mut left: f64) -> usize {
        let mut last = 0;
        for (at, &logit) in block.iter().enumerate() {
            let weight = self.weight(logit);
            left -= weight;
            if weight > 0.0 {
                last = at;
            }
            if left < 0.0 {
                break;
            }
        }
        last
    }
}

/// The largest logit of each block of [`BLOCK`].
pub fn peaks(logits: &[f32]) -> impl ExactSizeIterator<Item = f32> {
    logits.chunks(BLOCK).map(largest)
}

/// The largest; [`BANNED`] of none.
pub fn largest(logits: &[f32]) -> f32 {
    let mut lanes = [BANNED; LANES];
    let rows = logits.chunks_exact(LANES);
    let rest = rows.remainder();
    for row in rows {
        for (lane, &logit) in lanes.iter_mut().zip(row) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(BANNED, |max, &logit| if logit > max { logit } else { max })
}

/// The first of the largest, which is `max`.
pub fn first_of(max: f32, logits: &[f32]) -> u32 {
    let has = |block: &[f32]| block.iter().fold(false, |any, &logit| any | (logit == max));
    let block = logits.chunks(BLOCK).position(has).unwrap_or(0);
    let within = logits[block * BLOCK..].iter().position(|&logit| logit == max).unwrap_or(0);
    (block * BLOCK + within) as u32
}

/// Whether no logit is infinite or not a number.
pub fn finite(logits: &[f32]) -> bool {
    logits.iter().fold(true, |finite, logit| finite & logit.is_finite())
}

/// e^x for x up to 0, to 1e-15 of it; 0 below -700 (e^-700 is 1e-304), and for what is not a number.
///
/// x = k ln 2 / 64 + r with |r| up to ln 2 / 128, ln 2 in two parts (Cody and Waite 1980); 2^(k / 64) from a table
/// (Tang 1989); and Taylor's series of e^r to the fifth power, whose next term is below 4e-17. A polynomial to the 13th
/// power without a table, and the C library's function, each took about half as long again over a vocabulary.
#[inline(always)]
pub fn exp(x: f64) -> f64 {
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52: adding it leaves a whole number in the low bits
    const LN_2_HIGH: f64 = 6.931_471_803_691_238e-1 / 64.0;
    const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10 / 64.0;
    let inside = x > -700.0;
    let x = if inside { x } else { 0.0 };
    let shifted = x * (64.0 * std::f64::consts::LOG2_E) + ROUND;
    let k = shifted - ROUND;
    let r = x - k * LN_2_HIGH - k * LN_2_LOW;
    let rest = r + r * r * ((0.5 + r * (1.0 / 6.0)) + r * r * (1.0 / 24.0 + r * (1.0 / 120.0)));
    let (whole, part) = (shifted.to_bits() >> 6, shifted.to_bits() & 63);
    let power = f64::from_bits(POWERS[part as usize].to_bits().wrapping_add(whole << 52));
    if inside { power + power * rest } else { 0.0 }
}

/// 2^(i / 64)
#[rustfmt::skip]
const POWERS: [f64; 64] = [
    1.0, 1.010_889_286_051_700_5, 1.021_897_148_654_116_6, 1.033_024_879_021_228_4,
    1.044_273_782_427_413_8, 1.055_645_178_360_557_2, 1.067_140_400_676_823_7, 1.078_760_797_757_119_9,
    1.090_507_732_665_257_7, 1.102_382_583_307_841, 1.114_386_742_595_892_4, 1.126_521_618_608_241_8,
    1.138_788_634_756_691_6, 1.151_189_229_952_982_7, 1.163_724_858_777_577_5, 1.176_396_991_650_281_2,
    1.189_207_115_002_721, 1.202_156_731_452_703, 1.215_247_359_980_469, 1.228_480_536_106_87,
    1.241_857_812_073_484, 1.255_380_757_024_691, 1.269_050_957_191_733_2, 1.282_870_016_078_778_3,
    1.296_839_554_651_009_6, 1.310_961_211_524_764_4, 1.325_236_643_159_741_3, 1.339_667_524_053_303,
    1.354_255_546_936_892_7, 1.369_002_422_974_590_5, 1.383_909_881_963_832, 1.398_979_672_538_311_2,
    std::f64::consts::SQRT_2, 1.429_613_338_391_97, 1.445_180_806_977_046_7, 1.460_917_794_180_647,
    1.476_826_145_939_499_3, 1.492_907_728_291_264_8, 1.509_164_427_593_422_8, 1.525_598_150_744_538_4,
    1.542_210_825_407_940_7, 1.559_004_400_237_837, 1.575_980_845_107_886_5, 1.593_142_151_342_267,
    1.610_490_331_949_254_3, 1.628_027_421_857_347_8, 1.645_755_478_153_965, 1.663_676_580_326_736_4,
    1.681_792_830_507_429, 1.700_106_353_718_523_5, 1.718_619_298_122_478, 1.737_333_835_273_706_2,
    1.756_252_160_373_299_5, 1.775_376_492_526_521_2, 1.794_709_075_003_107_2, 1.814_252_175_500_398_9,
    1.834_008_086_409_342_4, 1.853_979_125_083_385_5, 1.874_167_634_110_3, 1.894_575_981_586_965_6,
    1.915_206_561_397_147_4, 1.936_061_793_492_294_3, 1.957_144_124_175_400_2, 1.978_456_026_387_951,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::rng::uniform;

    #[test]
    fn exp_is_the_exponential() {
        for i in 0..200_000 {
            let x = -700.0 * uniform(1, i).powi(3);
            assert!((exp(x) / x.exp() - 1.0).abs() < 1e-15, "{x}");
        }
        for x in [-700.0, -1e6, f64::MIN, f64::NEG_INFINITY, f64::NAN] {
            assert_eq!(exp(x), 0.0);
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
    }

    #[test]
    fn block_passes_equal_plain_loops() {
        for len in [1, 15, 16, 17, 63, 64, 65, 200] {
            let logits: Vec<f32> = (0..len).map(|i| (uniform(len, i) * 9.0) as f32 - 20.0).collect();
            let max = logits.iter().copied().fold(BANNED, f32::max);
            assert_eq!(largest(&logits), max);
            assert_eq!(peaks(&logits).fold(BANNED, f32::max), max);
            assert_eq!(first_of(max, &logits) as usize, logits.iter().position(|&l| l == max).unwrap());
            let scale = Scale { max, temperature: 0.7 };
            let plain: f64 = logits.iter().map(|&l| (f64::from(l - max) / 0.7).exp()).sum();
            assert!((scale.total(&logits) / plain - 1.0).abs() < 1e-14);
        }
        assert_eq!(first_of(5.0, &[1.0, 5.0, 5.0]), 1);
        assert!(finite(&[0.0; 70]) && finite(&[]));
        for bad in [f32::NAN, f32::INFINITY, BANNED] {
            assert!(!finite(&[0.0, bad]));
        }
    }

    #[test]
    fn a_floor_is_never_too_high() {
        for i in 0..20_000 {
            let max = ((uniform(2, 2 * i) - 0.5) * 10_f64.powi((i % 30) as i32)) as f32;
            let scale = Scale { max, temperature: 0.001 + uniform(3, i) * 2.0 };
            let exponent = -60.0 * uniform(2, 2 * i + 1);
            let floor = scale.floor(exponent);
            assert!(scale.exponent(floor.next_down()) < exponent, "a token above the bound would be missed");
        }
        assert_eq!(Scale { max: f32::MIN, temperature: 2.0 }.floor(-60.0), f32::MIN);
    }

    #[test]
    fn a_draw_is_a_place_in_the_running_sum() {
        let logits: Vec<f32> =
            (0..150).map(|i| if i % 7 == 0 { BANNED } else { -(i as f32) / 50.0 }).collect();
        let scale = Scale { max: largest(&logits), temperature: 1.0 };
        let mut sums = Secret::default();
        let total = scale.total(&logits);
        let mut before = 0.0;
        for (id, &logit) in logits.iter().enumerate() {
            let weight = scale.weight(logit);
            if weight > 0.0 {
                let middle = (before + weight / 2.0) / total;
                assert_eq!(scale.draw(&logits, &mut sums, middle), id as u32);
            }
            before += weight;
        }
        assert_eq!(scale.draw(&logits, &mut sums, 0.0), 1, "never a banned token");
        assert_eq!(scale.draw(&logits, &mut sums, 1.0), 149, "rounding's trace belongs to the last");
    }
}
