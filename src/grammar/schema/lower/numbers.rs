//! Bounds and counts, in numbers that llguidance computes with.

use serde_json::{Map, Number, Value};

use crate::error::Result;

/// The largest and the smallest bounds that llguidance computes with: in 64-bit integers, and with twelve decimals.
const HIGHEST: f64 = 9.2e18;
const FINEST: f64 = 1e-12;

/// A count; a whole number that is written as a decimal is one too.
pub fn count(value: &Value) -> Value {
    match value.as_f64() {
        Some(number)
            if value.as_u64().is_none() && number.fract() == 0.0 && (0.0..=1e15).contains(&number) =>
        {
            (number as u64).into()
        }
        _ => value.clone(),
    }
}

/// A bound, and whether it is excluded.
#[derive(Clone, Copy)]
struct Bound<'a> {
    number: &'a Number,
    excluded: bool,
}

/// Writes the bounds of a schema. One that llguidance does not compute with (of `u64` or `f64`, say) becomes the nearest
/// one within it that it does: numbers between the two are left out.
pub fn bounds(map: &Map<String, Value>, out: &mut Map<String, Value>) -> Result<()> {
    let sides = [("minimum", "exclusiveMinimum", true), ("maximum", "exclusiveMaximum", false)];
    for (inclusive, exclusive, low) in sides {
        let mut found = Vec::new();
        match map.get(inclusive) {
            // Draft 4: a truth value says whether the bound itself is excluded.
            Some(Value::Number(number)) => {
                let excluded = map.get(exclusive) == Some(&Value::Bool(true));
                found.push(Bound { number, excluded });
            }
            Some(other) => drop(out.insert(inclusive.into(), other.clone())),
            None => {}
        }
        match map.get(exclusive) {
            Some(Value::Number(number)) => found.push(Bound { number, excluded: true }),
            Some(Value::Bool(_)) | None => {}
            Some(other) => drop(out.insert(exclusive.into(), other.clone())),
        }
        for bound in found {
            let (number, excluded) = bound.within(low, map.get("type").is_some_and(|kind| kind == "integer"));
            let keyword = if excluded { exclusive } else { inclusive };
            let is_within = |other: &Value| (other.as_f64() < number.as_f64()) == low;
            if out.get(keyword).is_none_or(is_within) {
                out.insert(keyword.into(), number);
            }
        }
    }
    Ok(())
}

impl Bound<'_> {
    /// The nearest bound within this one with which llguidance computes. What has none stays, to be refused.
    fn within(self, low: bool, of_integers: bool) -> (Value, bool) {
        let own = (Value::Number(self.number.clone()), self.excluded);
        let Some(value) = self.number.as_f64() else { return own };
        // As if all were upper bounds.
        let sign = if low { -1.0 } else { 1.0 };
        let upper = value * sign;
        if of_integers && !low && value >= i64::MAX as f64 {
            return (i64::MAX.into(), false);
        }
        // An integer that `f64` does not hold is not excluded by the neighbour that lies within.
        if let Some(whole) = self.number.as_i128()
            && value as i128 != whole
        {
            let beyond = (value as i128 > whole) != low;
            let inner = if beyond { upper.next_down() } else { upper };
            return (written(inner.min(HIGHEST) * sign), false);
        }
        if upper < -HIGHEST {
            return own;
        }
        if upper > HIGHEST {
            return (written(HIGHEST * sign), false);
        }
        if value != 0.0 && value.abs() < FINEST {
            let inner = if upper > 0.0 { 0.0 } else { -FINEST };
            return (written(inner * sign), false);
        }
        own
    }
}

/// A number as JSON: a whole one without decimals.
fn written(number: f64) -> Value {
    if number.fract() == 0.0 { (number as i64).into() } else { number.into() }
}
