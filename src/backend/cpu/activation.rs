//! The activations of an MLP, and the hyperbolic tangent.
#![expect(unsafe_code, reason = "lanes need their instruction set, proven by the caller")]

use super::vector::Vector;
use crate::backend::Activation;

/// # Safety
/// The instruction set is there.
#[inline(always)]
pub unsafe fn activate<V: Vector>(activation: Activation, x: V) -> V {
    // SAFETY: the caller's contract is ours, here and below.
    unsafe {
        match activation {
            Activation::Silu => x.div(minus_exp(x).add(V::splat(1.0))),
            Activation::Gelu => gelu(x),
            Activation::GeluTanh => {
                // (1 + tanh(u)) / 2 = 1 / (1 + e^-2u)
                let cubic = x.mul(x).fma(V::splat(2.0 * ROOT * 0.044_715), V::splat(2.0 * ROOT));
                x.div(minus_exp(x.mul(cubic)).add(V::splat(1.0)))
            }
            Activation::Relu => V::splat(0.0).max(x),
            Activation::ReluSquared => {
                let x = V::splat(0.0).max(x);
                x.mul(x)
            }
            Activation::Tanh => tanh(x),
            Activation::Clamped { alpha, limit } => {
                let x = V::splat(limit).min(x);
                x.div(minus_exp(x.mul(V::splat(alpha))).add(V::splat(1.0)))
            }
        }
    }
}

/// What the gate is multiplied by.
///
/// # Safety
/// The instruction set is there.
#[inline(always)]
pub unsafe fn gated_by<V: Vector>(activation: Activation, up: V) -> V {
    // SAFETY: as above.
    unsafe {
        match activation {
            Activation::Clamped { limit, .. } => {
                V::splat(-limit).max(V::splat(limit).min(up)).add(V::splat(1.0))
            }
            _ => up,
        }
    }
}

/// sqrt(2 / pi).
const ROOT: f32 = 0.797_884_6;

#[inline(always)]
unsafe fn minus_exp<V: Vector>(x: V) -> V {
    // SAFETY: as above.
    unsafe { V::splat(0.0).sub(x).exp() }
}

/// `x * (1 + erf(x / sqrt(2))) / 2`. The complement of the error function by Abramowitz and Stegun 7.1.26, which is off
/// by 1.5e-7 at most; so for falling x the result goes to zero and keeps its sign.
#[inline(always)]
unsafe fn gelu<V: Vector>(x: V) -> V {
    // SAFETY: as above.
    unsafe {
        let minus = V::splat(0.0).sub(x);
        let size = x.max(minus).mul(V::splat(std::f32::consts::FRAC_1_SQRT_2));
        let one = V::splat(1.0);
        let t = one.div(size.fma(V::splat(0.327_591_1), one));
        let mut poly = V::splat(1.061_405_4);
        for coefficient in [-1.453_152_1, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
            poly = poly.fma(t, V::splat(coefficient));
        }
        // erfc(|x| / sqrt(2)) / 2: what is missing from x above zero, and what there is of it below
        let tail = poly.mul(t).mul(minus_exp(size.mul(size))).mul(V::splat(0.5));
        let rest = x.max(minus).mul(tail);
        V::splat(0.0).max(x).sub(rest)
    }
}

/// `1 - 2 / (e^2x + 1)`.
///
/// # Safety
/// The instruction set is there.
#[inline(always)]
pub unsafe fn tanh<V: Vector>(x: V) -> V {
    // SAFETY: the caller's contract is ours.
    unsafe {
        let one = V::splat(1.0);
        one.sub(V::splat(2.0).div(x.add(x).exp().add(one)))
    }
}
