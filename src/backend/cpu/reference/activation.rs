//! Activations in f64.

use crate::backend::Activation;

pub fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)) / 2.0,
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            x * (1.0 + inner.tanh()) / 2.0
        }
        Activation::Relu => x.max(0.0),
        Activation::ReluSquared => x.max(0.0).powi(2),
        Activation::Tanh => x.tanh(),
        Activation::Clamped { alpha, limit } => {
            let x = x.min(f64::from(limit));
            x / (1.0 + (-f64::from(alpha) * x).exp())
        }
    }
}

/// `activation(gate) * up`.
pub fn activate_gated(activation: Activation, [gate, up]: [f64; 2]) -> f64 {
    let up = match activation {
        Activation::Clamped { limit, .. } => up.clamp(f64::from(-limit), f64::from(limit)) + 1.0,
        _ => up,
    };
    activate(activation, gate) * up
}

/// The error function: Taylor's series near zero, where it loses no more than six digits; far out a continued fraction
/// of its complement (Abramowitz and Stegun 7.1.6, 7.1.14).
fn erf(x: f64) -> f64 {
    let size = x.abs();
    if size < 3.0 {
        let (mut term, mut sum) = (size, size);
        for n in 1..100 {
            term *= 2.0 * size * size / f64::from(2 * n + 1);
            sum += term;
        }
        return (2.0 / std::f64::consts::PI.sqrt() * (-size * size).exp() * sum).copysign(x);
    }
    let fraction = (1..60).rev().fold(size, |rest, n| size + f64::from(n) / 2.0 / rest);
    (1.0 - (-size * size).exp() / (std::f64::consts::PI.sqrt() * fraction)).copysign(x)
}
