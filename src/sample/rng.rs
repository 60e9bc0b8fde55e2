//! Random numbers by counter: draw `index` of seed `seed` is the same whenever and wherever it is asked for.
//!
//! SplitMix64 (Steele, Lea, Flood 2014) over the counter, started from the mixed seed. Not for cryptography.

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// A number from 0 (included) to 1 (excluded), with 53 random bits.
pub fn uniform(seed: u64, index: u64) -> f64 {
    let bits = mix(mix(seed ^ GAMMA).wrapping_add(index.wrapping_add(1).wrapping_mul(GAMMA)));
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// SplitMix64's finalizer.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mixer_is_splitmix64() {
        // First outputs for seed 1234567 of the reference implementation.
        let outputs: Vec<u64> =
            (1..=3).map(|i| mix(1_234_567_u64.wrapping_add(GAMMA.wrapping_mul(i)))).collect();
        assert_eq!(
            outputs,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn draws_fill_the_unit_interval_evenly() {
        let mut bins = [0_u32; 10];
        for index in 0..100_000 {
            bins[(uniform(42, index) * 10.0) as usize] += 1;
        }
        assert!(bins.iter().all(|&count| (9_600..10_400).contains(&count)), "{bins:?}");
    }
}
