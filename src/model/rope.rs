//! Rotary position embedding: the table of angles.
//!
//! Formulas: RoFormer (Su et al. 2021) in the half-split layout of Hugging Face checkpoints, and Llama 3.1's
//! frequency scaling as in transformers' `modeling_rope_utils.py`. Angles are single-precision products, as there.

/// How frequencies are scaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeKind {
    /// `theta^(-2i/d)`.
    Default,
    /// Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between interpolated.
    Llama3 {
        /// Stretch of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Context length before the stretch.
        original: f64,
    },
}

/// The parameters of a checkpoint's rope.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Scaling.
    pub kind: RopeKind,
}

impl Rope {
    /// The frequencies of a head of `head_dim` values: head_dim / 2 of them.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        let unscaled = (0..head_dim / 2).map(|i| 1.0 / self.theta.powf(2.0 * i as f64 / head_dim as f64));
        unscaled.map(|frequency| self.scaled(frequency) as f32).collect()
    }

    fn scaled(&self, frequency: f64) -> f64 {
        let RopeKind::Llama3 { factor, low_freq_factor, high_freq_factor, original } = self.kind else {
            return frequency;
        };
        let wavelength = std::f64::consts::TAU / frequency;
        if wavelength < original / high_freq_factor {
            return frequency;
        }
        if wavelength > original / low_freq_factor {
            return frequency / factor;
        }
        let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }

    /// Cosines and sines for positions `0..context`: (context, 2, head_dim / 2), cosines first.
    pub fn table(&self, head_dim: usize, context: usize) -> Vec<f32> {
        let frequencies = self.frequencies(head_dim);
        let mut table = Vec::with_capacity(context * head_dim);
        for position in 0..context {
            let angle = |frequency: &f32| position as f32 * frequency;
            table.extend(frequencies.iter().map(|frequency| angle(frequency).cos()));
            table.extend(frequencies.iter().map(|frequency| angle(frequency).sin()));
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_short_wavelengths_and_stretches_long_ones() {
        let kind =
            RopeKind::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original: 8192.0 };
        let plain = Rope { theta: 5e5, kind: RopeKind::Default }.frequencies(128);
        let scaled = Rope { theta: 5e5, kind }.frequencies(128);
        assert_eq!(plain[0], scaled[0]);
        assert_eq!(plain[63] / 8.0, scaled[63]);
        let between = (0..64).filter(|&i| scaled[i] < plain[i] && scaled[i] > plain[i] / 8.0).count();
        assert!(between > 0, "no frequency is interpolated");
    }

    #[test]
    fn position_zero_turns_nothing() {
        let table = Rope { theta: 1e4, kind: RopeKind::Default }.table(6, 2);
        assert_eq!(table[..6], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!((table[6], table[9]), (1_f32.cos(), 1_f32.sin()));
    }
}
