//! Which requests are captured: few, drawn in advance, never more than the caps.
//!
//! Requests are counted, those that begin a conversation, in windows of w, the least whole number with
//! w · fraction >= 1. In each window but the first one request is drawn, uniformly, before the window begins; nothing that a
//! requester does changes which. If the hour's cap is used up when its turn comes, it is passed over: not made up for by a
//! later one, which could be told.
//!
//! **The caps hold for every sequence of times and draws.**
//!
//! - *Fraction.* A window gives one capture at most and the first gives none. So the k-th capture is no earlier than
//!   in window k (from 0), when more than k · w >= k / fraction requests were seen: k < fraction · seen.
//! - *Hour.* Captures are the same as dealt out to `per_hour` rows in turn. One is made only more than 3600 s after
//!   the one before it in its row. So no 3600 s, both ends included, hold two of a row, or more than `per_hour` in
//!   all; also where the clock stands still, or goes back.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

const HOUR: Duration = Duration::from_secs(3600);

/// The share of requests that may be captured: above 0, at most [`Fraction::MAX`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fraction {
    fraction: f64,
    window: u64,
}

impl Fraction {
    /// One in a hundred.
    pub const MAX: f64 = 0.01;

    /// The fraction, if it is within bounds.
    ///
    /// # Errors
    /// [`Error::DebugSampler`] with the field `fraction`: it is not above 0, above [`Fraction::MAX`], or no number.
    pub fn new(fraction: f64) -> Result<Self> {
        if !(fraction > 0.0 && fraction <= Self::MAX) {
            return Err(Error::DebugSampler { field: "fraction", expected: "above 0 and at most 0.01" });
        }
        Ok(Self { fraction, window: window(fraction) })
    }

    /// The fraction.
    pub fn get(self) -> f64 {
        self.fraction
    }
}

/// The least w with w · fraction >= 1, exactly; or more requests than anybody lives to see.
fn window(fraction: f64) -> u64 {
    const EXACT: f64 = (1_u64 << 53) as f64;
    let mut window = (1.0 / fraction).floor();
    if window >= EXACT {
        return u64::MAX;
    }
    // The quotient is rounded; the fused product is rounded once, so that its sign is exact.
    while fraction.mul_add(window, -1.0) < 0.0 {
        window += 1.0;
    }
    window as u64
}

/// The caps, and what was used of them.
#[derive(Debug)]
pub(super) struct Budget {
    window: u64,
    /// Requests of this window that were seen.
    seen: u64,
    /// Which request of this window is captured, from 0; none in the first, nor where no number could be drawn.
    drawn: Option<u64>,
    /// When the last captures were made, in order: `per_hour` at most.
    captures: VecDeque<Instant>,
    per_hour: usize,
}

impl Budget {
    pub fn new(fraction: Fraction, per_hour: usize) -> Self {
        let captures = VecDeque::with_capacity(per_hour);
        Self { window: fraction.window, seen: 0, drawn: None, captures, per_hour }
    }

    /// Counts a request that ends at `now`; whether it is captured. `draw` gives 64 random bits, or none.
    pub fn spend(&mut self, now: Instant, draw: impl FnOnce() -> Option<u64>) -> bool {
        let chosen = self.drawn == Some(self.seen);
        self.seen += 1;
        if self.seen == self.window {
            self.seen = 0;
            self.drawn = draw().map(|bits| below(self.window, bits));
        }
        chosen && self.hour_has_room(now)
    }

    fn hour_has_room(&mut self, now: Instant) -> bool {
        if self.captures.len() == self.per_hour {
            // Zero where the clock went back.
            if self.captures.front().is_some_and(|before| now.duration_since(*before) <= HOUR) {
                return false;
            }
            self.captures.pop_front();
        }
        self.captures.push_back(now);
        true
    }
}

/// A number below `bound`, each as likely as any other but for `bound` parts in 2^64. (Lemire 2019, arXiv:1805.10941,
/// without the loop that takes this bias away: it would not end under a generator that is stuck.)
fn below(bound: u64, bits: u64) -> u64 {
    ((u128::from(bits) * u128::from(bound)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::rng::mix;

    /// Whether `captures <= fraction * seen`, in whole numbers.
    fn within(captures: u64, fraction: f64, seen: u64) -> bool {
        let bits = fraction.to_bits();
        let (mantissa, shift) = ((bits & ((1 << 52) - 1)) | (1 << 52), 1075 - (bits >> 52));
        u128::from(captures) << shift <= u128::from(mantissa) * u128::from(seen)
    }

    #[test]
    fn fractions_out_of_bounds_are_refused() {
        let above = 0.01_f64.next_up();
        for wrong in [0.0, -0.0, -0.01, above, 0.5, 1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            match Fraction::new(wrong) {
                Err(Error::DebugSampler { field: "fraction", .. }) => {}
                other => panic!("{wrong}: {other:?}"),
            }
        }
        for right in [0.01, 1e-9, f64::MIN_POSITIVE, 5e-324] {
            assert_eq!(Fraction::new(right).unwrap().get(), right);
        }
    }

    #[test]
    fn a_window_is_the_least_whole_number_that_pays_for_a_capture() {
        for (fraction, expected) in [(0.01, 100), (0.001, 1000), (1.0 / 128.0, 128), (0.0099, 102)] {
            assert_eq!(window(fraction), expected, "{fraction}");
        }
        for fraction in (1..20_000).map(|i| 0.01 * f64::from(i) / 20_000.0) {
            let window = window(fraction);
            assert!(within(1, fraction, window), "{fraction}: one capture in {window} is too many");
            assert!(!within(1, fraction, window - 1), "{fraction}: {window} is more than need be");
        }
        assert_eq!(window(1e-300), u64::MAX);
        assert_eq!(window(5e-324), u64::MAX);
    }

    /// Generators, some of them stuck.
    fn bits(kind: u64, count: u64) -> Option<u64> {
        match kind % 6 {
            0 => Some(0),
            1 => Some(u64::MAX),
            2 => Some(if count.is_multiple_of(2) { u64::MAX } else { 0 }), // the last of a window, then the first
            3 if count.is_multiple_of(3) => None,
            _ => Some(mix(kind << 32 | count)),
        }
    }

    /// Time from one request to the next: hours, nothing, around an hour's end, or back.
    fn step(now: Instant, bits: u64) -> Instant {
        let millis = mix(bits);
        match bits % 16 {
            0..8 => now,
            8..12 => now + Duration::from_millis(millis % 40_000),
            12 => now + Duration::from_secs(3599) + Duration::from_millis(millis % 3 * 500),
            13 => now + HOUR,
            14 => now.checked_sub(Duration::from_millis(millis % 7_200_000)).unwrap_or(now),
            _ => now + Duration::from_millis(millis % 400),
        }
    }

    /// The hour's cap, looked at from outside: any `per_hour + 1` captures, in order of time, span more than an hour.
    fn hours_hold(mut captures: Vec<Instant>, per_hour: usize) -> bool {
        captures.sort();
        captures.windows(per_hour + 1).all(|row| row[per_hour] - row[0] > HOUR)
    }

    #[test]
    fn no_sequence_of_times_and_draws_exceeds_a_cap() {
        let origin = Instant::now() + 100_000 * HOUR;
        let (mut captured, mut full) = (0, 0);
        for seed in 0..2000_u64 {
            let fraction = 0.01 / (1.0 + (mix(seed) % 1000) as f64 / 500.0);
            let per_hour = 1 + (mix(!seed) % 5) as usize;
            let mut budget = Budget::new(Fraction::new(fraction).unwrap(), per_hour);
            let (mut now, mut captures) = (origin, Vec::new());
            // Every other sequence stands still for long, so that the hour's cap is what binds.
            let busy = seed % 2 == 0;
            for seen in 1..=3000_u64 {
                let bits_of_step = mix(seed << 20 ^ seen);
                if !busy || bits_of_step.is_multiple_of(97) {
                    now = step(now, bits_of_step / 97);
                }
                if budget.spend(now, || bits(seed, seen)) {
                    captures.push(now);
                    assert!(within(captures.len() as u64, fraction, seen), "{seed}: too many of {seen}");
                }
            }
            captured += captures.len();
            full += usize::from(captures.len() > per_hour);
            assert!(hours_hold(captures, per_hour), "{seed}: more than {per_hour} in an hour");
        }
        assert!(
            captured > 5000 && full > 500,
            "{captured} captures, {full} beyond one hour: too few to tell"
        );
    }

    #[test]
    fn the_hour_slides_and_both_its_ends_count() {
        let start = Instant::now();
        let mut budget = Budget::new(Fraction::new(0.01).unwrap(), 2);
        let mut at = |seconds: f64| budget.hour_has_room(start + Duration::from_secs_f64(seconds));
        assert!(at(0.0) && at(1800.0));
        assert!(!at(1800.0) && !at(3599.0) && !at(3600.0), "two are within the hour");
        assert!(at(3600.001), "the first is not any more");
        assert!(!at(5400.0), "a clock hour has begun, but the last 3600 s hold two");
        assert!(at(5400.001));
        assert!(!at(100.0), "a clock that goes back makes no room");
    }

    #[test]
    fn a_clock_that_stands_still_gives_the_hours_cap_and_no_more() {
        let now = Instant::now();
        let mut budget = Budget::new(Fraction::new(0.01).unwrap(), 3);
        let captures = (0..10_000).filter(|&i| budget.spend(now, || Some(mix(i)))).count();
        assert_eq!(captures, 3);
    }

    #[test]
    fn the_first_window_is_passed_over_and_then_one_of_each_is_taken() {
        let now = Instant::now();
        let mut budget = Budget::new(Fraction::new(0.01).unwrap(), 3600);
        let taken: Vec<u64> = (0..1000).filter(|&i| budget.spend(now, || Some(mix(i)))).collect();
        assert_eq!(taken.iter().map(|i| i / 100).collect::<Vec<_>>(), (1..10).collect::<Vec<_>>());
    }

    #[test]
    fn without_random_numbers_nothing_is_taken() {
        let now = Instant::now();
        let mut budget = Budget::new(Fraction::new(0.01).unwrap(), 3600);
        assert!(!(0..1000).any(|_| budget.spend(now, || None)));
    }

    #[test]
    fn every_place_of_a_window_is_as_likely_as_any_other() {
        const WINDOWS: u64 = 100_000;
        let start = Instant::now();
        let mut budget = Budget::new(Fraction::new(0.01).unwrap(), 3600);
        let (mut counts, mut next) = ([0_u64; 100], [[0_u64; 10]; 10]);
        let mut last = None;
        for i in 0..100 * (WINDOWS + 1) {
            // Spread out so that the hour's cap never binds.
            let now = start + Duration::from_millis(i * 20);
            if budget.spend(now, || Some(mix(i))) {
                let place = (i % 100) as usize;
                counts[place] += 1;
                if let Some(last) = last.replace(place) {
                    next[last / 10][place / 10] += 1;
                }
            }
        }
        assert_eq!(counts.iter().sum::<u64>(), WINDOWS);
        // Pearson's chi-squared over 99 degrees of freedom is above 170 once in 100,000 times.
        let square = |count: u64, expected: f64| (count as f64 - expected).powi(2) / expected;
        let places: f64 = counts.iter().map(|&count| square(count, WINDOWS as f64 / 100.0)).sum();
        assert!(places < 170.0, "places: {places}");
        let pairs: f64 = next.as_flattened().iter().map(|&count| square(count, WINDOWS as f64 / 100.0)).sum();
        assert!(pairs < 170.0, "a place tells something of the next: {pairs}");
    }
}
