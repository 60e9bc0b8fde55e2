//! The lanes of every instruction set of this machine: each operation gives the same bits on all of them. What is made of the lanes
//! is held against the reference in `backend/conformance`.

use half::bf16;

use super::Isa;
#[cfg(target_arch = "aarch64")]
use super::aarch64::neon::Neon;
use super::generic::Generic;
use super::vector::{LANES, LINE, Vector};
#[cfg(target_arch = "x86_64")]
use super::x86_64::{avx2::Avx2, avx512::Avx512};
use crate::sample::rng::uniform;

/// Every operation of a `Vector` on three operands, in bits.
#[expect(unsafe_code, reason = "calls lanes directly; the caller has the instruction set")]
fn operations<V: Vector>(operands: [[f32; LANES]; 3]) -> Vec<[u32; LANES]> {
    let bytes: Vec<u8> = operands.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    let small = operands[1].map(|value| (value.to_bits() >> 8) as i8 as f32);
    let mut stored = [0_u8; 2 * LINE];
    // SAFETY: the arrays have the lanes, the bytes are three lines.
    unsafe {
        let [a, b, c] = operands.map(|lanes| V::load(lanes.as_ptr()));
        // a denormal may be stored as zero: leave them out
        let normal = operands[0].map(|value| if value.is_subnormal() { 0.0 } else { value });
        V::load(normal.as_ptr()).store_bf16(stored.as_mut_ptr());
        let bounded = V::load(small.as_ptr()).max(V::splat(-127.0));
        let sum = V::store_bytes([bounded, V::splat(0.0).sub(bounded)], stored.as_mut_ptr().add(LINE));
        let falling = V::splat(0.0).sub(a.max(V::splat(0.0).sub(a))).exp2_falling();
        let (line, x) = (bytes.as_ptr(), V::line(bytes.as_ptr().add(LINE)));
        let spread = V::spread(bytes.as_ptr().add(2 * LINE));
        let [even, odd] = V::pairs(V::line(line));
        let [q0, q1, q2, q3] = V::quads(V::line(line));
        let [low, high] = V::nibbles(line);
        let dot = V::from_ints(V::dot_bytes(V::ints(7), low, x));
        let dot_high = V::from_ints(V::dot_bytes(V::ints(-7), high, spread));
        // the stored zero is taken off, whoever takes it off
        let byte_sum = |x: V::Line| {
            let one = [1_u8; LINE];
            V::from_ints(V::dot_bytes(V::ints(0), V::line(one.as_ptr()), x))
        };
        let bias = V::splat(V::ZERO as f32).mul(byte_sum(x));
        let dot_weights = V::from_ints(V::dot_bytes(V::ints(0), V::weights(line), x)).sub(bias);
        let results = [
            a.add(b),
            a.sub(b),
            a.mul(b),
            a.div(b),
            a.max(b),
            a.min(b),
            a.fma(b, c),
            a.round(),
            a.exp(),
            V::splat(a.sum()),
            V::splat(a.max_lane()),
            V::splat(V::magnitude([a, b])),
            falling,
            V::load_f16(line),
            even,
            odd,
            q0,
            q1,
            q2,
            q3,
            dot,
            dot_high,
            dot_weights,
            V::splat(sum as f32),
        ];
        let store = |result: V| {
            let mut lanes = [0.0_f32; LANES];
            result.store(lanes.as_mut_ptr());
            // one bit pattern for all that is not a number: sign and payload are the processor's
            lanes.map(|lane| if lane.is_nan() { f32::NAN.to_bits() } else { lane.to_bits() })
        };
        let halves = stored[..2 * LANES].chunks(2).map(|half| {
            let half = bf16::from_le_bytes([half[0], half[1]]);
            if half.is_nan() { u32::MAX } else { u32::from(half.to_bits()) }
        });
        let halves: Vec<u32> = halves.collect();
        let [small, opposite] =
            [0, LANES].map(|at| std::array::from_fn(|i| u32::from(stored[LINE + at + i])));
        let stored = [std::array::from_fn(|i| halves[i]), small, opposite];
        results.map(store).into_iter().chain(stored).collect()
    }
}

#[test]
fn every_operation_gives_the_same_bits_on_every_instruction_set() {
    const SPECIAL: [f32; 14] = [
        0.0,
        -0.0,
        1.5,
        2.5,
        -0.5,
        1e-41,
        -1e-41,
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        88.37,
        -87.5,
    ];
    type Operations = fn([[f32; LANES]; 3]) -> Vec<[u32; LANES]>;
    let mut native: Vec<(&str, Operations)> = Vec::new();
    for isa in Isa::available() {
        match isa.name {
            #[cfg(target_arch = "x86_64")]
            "avx512bf16" => native.push((isa.name, operations::<Avx512<true, true>>)),
            #[cfg(target_arch = "x86_64")]
            "avx512vnni" => native.push((isa.name, operations::<Avx512<true, false>>)),
            #[cfg(target_arch = "x86_64")]
            "avx512" => native.push((isa.name, operations::<Avx512<false, false>>)),
            #[cfg(target_arch = "x86_64")]
            "avxvnni" => native.push((isa.name, operations::<Avx2<true>>)),
            #[cfg(target_arch = "x86_64")]
            "avx2" => native.push((isa.name, operations::<Avx2<false>>)),
            #[cfg(target_arch = "aarch64")]
            "neonbf16" => native.push((isa.name, operations::<Neon<true, true>>)),
            #[cfg(target_arch = "aarch64")]
            "neondot" => native.push((isa.name, operations::<Neon<true, false>>)),
            #[cfg(target_arch = "aarch64")]
            "neon" => native.push((isa.name, operations::<Neon<false, false>>)),
            _ => {}
        }
    }
    let lanes = Isa::available().into_iter().filter(|isa| isa.name != "amx").count();
    assert_eq!(native.len(), lanes - 1, "all but the portable one");
    let mut drawn = 0;
    let mut unit = || {
        drawn += 1;
        uniform(5, drawn)
    };
    for round in 0..4000 {
        let mut value = || match round % 3 {
            0 => (unit() * 200.0 - 100.0) as f32,
            1 => f32::from_bits((unit() * 4_294_967_296.0) as u32),
            _ => SPECIAL[(unit() * SPECIAL.len() as f64) as usize],
        };
        let operands = [(); 3].map(|()| [(); LANES].map(|()| value()));
        let expected = operations::<Generic>(operands);
        for (name, operations) in &native {
            for (number, (found, expected)) in operations(operands).iter().zip(&expected).enumerate() {
                assert_eq!(found, expected, "{name}, operation {number} on {operands:?}");
            }
        }
    }
}

#[test]
#[expect(unsafe_code, reason = "calls portable lanes directly")]
fn powers_are_within_two_units_in_the_last_place_and_keep_what_is_not_a_number() {
    let exp = |value: f32| {
        let mut lanes = [0.0_f32; LANES];
        // SAFETY: portable lanes need nothing; the array has them.
        unsafe { Generic::splat(value).exp().store(lanes.as_mut_ptr()) };
        lanes[0]
    };
    for i in -87_000..88_000 {
        let x = i as f32 / 1000.0;
        let (found, exact) = (f64::from(exp(x)), f64::from(x).exp());
        let unit = f64::from(exact as f32) * f64::from(f32::EPSILON);
        assert!((found - exact).abs() <= 2.0 * unit, "exp({x}) = {found}, exactly {exact}");
    }
    let exp2 = |value: f32| {
        let mut lanes = [0.0_f32; LANES];
        // SAFETY: as above.
        unsafe { Generic::splat(value).exp2_falling().store(lanes.as_mut_ptr()) };
        lanes[0]
    };
    for i in 0..126_000 {
        let x = -(i as f32) / 1000.0;
        let (found, exact) = (f64::from(exp2(x)), f64::from(x).exp2());
        let unit = f64::from(exact as f32) * f64::from(f32::EPSILON);
        assert!((found - exact).abs() <= 2.0 * unit, "exp2({x}) = {found}, exactly {exact}");
    }
    assert_eq!((exp2(0.0), exp2(-127.0), exp2(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
    assert!(exp2(f32::NAN).is_nan());
    assert_eq!((exp(0.0), exp(-200.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
    assert!(exp(f32::NAN).is_nan() && exp(f32::INFINITY).is_finite());
}
