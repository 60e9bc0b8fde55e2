//! The values of keywords: their types and ranges.

use serde_json::{Map, Number, Value};

use crate::error::{Error, Result};

/// The limit of `minItems`, `maxLength` and the like.
const MAX_COUNT: u64 = 1_000_000;
/// The limit of `multipleOf`, of all in the document together: their least common multiple, counted in units of the
/// last decimal. llguidance multiplies two such numbers in 32 bits, and its automaton has a state for each remainder.
const MAX_MULTIPLE: u64 = u16::MAX as u64;
/// Decimals of a `multipleOf`.
const MAX_DECIMALS: u32 = 6;

pub const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];

pub const FORMATS: [&str; 10] =
    ["date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// Keywords whose value is a count.
const COUNTS: [&str; 6] =
    ["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"];

/// Keywords whose value bounds a number; the exclusive ones were flags once.
const BOUNDS: [&str; 4] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"];

/// How many types are named, if any.
pub fn types(map: &Map<String, Value>) -> Result<Option<usize>> {
    let Some(value) = map.get("type") else { return Ok(None) };
    let types = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    if types.is_empty() || !types.iter().all(|found| TYPES.iter().any(|known| found == known)) {
        return Err(expected(format!("a JSON Schema whose `type`s are among {}", TYPES.join(", "))));
    }
    Ok(Some(types.len()))
}

pub fn check_numbers(map: &Map<String, Value>) -> Result<()> {
    for keyword in COUNTS {
        if map.get(keyword).is_some_and(|count| count.as_u64().is_none_or(|count| count > MAX_COUNT)) {
            let limit = format!("a JSON Schema whose `{keyword}` is a whole number from 0 to {MAX_COUNT}");
            return Err(expected(limit));
        }
    }
    for keyword in BOUNDS {
        let fits = |bound: &Value| bound.is_boolean() || bound.as_number().is_some_and(is_bound);
        if !map.get(keyword).is_none_or(fits) {
            let limit = format!(
                "a JSON Schema whose `{keyword}` is a number from -9.2e18 to below 9.3e18, 0 or at least 1e-12 in \
                 magnitude, and one that `f64` holds exactly if it is whole"
            );
            return Err(expected(limit));
        }
    }
    for keyword in ["const", "enum"] {
        if !map.get(keyword).is_none_or(numbers_are_exact) {
            let limit =
                format!("a JSON Schema whose whole numbers in `{keyword}` are ones that `f64` holds exactly");
            return Err(expected(limit));
        }
    }
    Ok(())
}

/// Whether llguidance computes with this bound: in 64-bit integers and plain decimals.
fn is_bound(bound: &Number) -> bool {
    let fits = |value: f64| value == 0.0 || (1e-12..9.3e18).contains(&value.abs()) && value >= -9.2e18;
    bound.as_f64().is_some_and(fits) && (is_exact(bound) || bound.as_i64() == Some(i64::MAX))
}

/// llguidance takes every number for an `f64`: one that is rounded would let in its neighbours.
fn is_exact(number: &Number) -> bool {
    number.as_i128().is_none_or(|whole| number.as_f64().is_some_and(|rounded| rounded as i128 == whole))
}

/// Whether llguidance, which takes numbers for `f64`, has all whole numbers of a value as they are.
pub fn numbers_are_exact(value: &Value) -> bool {
    match value {
        Value::Number(number) => is_exact(number),
        Value::Array(values) => values.iter().all(numbers_are_exact),
        Value::Object(map) => map.values().all(numbers_are_exact),
        _ => true,
    }
}

/// All `multipleOf` of a document: their least common multiple must stay small.
pub fn check_multiples(multiples: &[f64]) -> Result<()> {
    let refused = || {
        expected(format!(
            "a JSON Schema whose `multipleOf`s are above 0, with at most {MAX_DECIMALS} decimals, and have a common \
             multiple of at most {MAX_MULTIPLE} in units of the last decimal"
        ))
    };
    let scale = 10_f64.powi(MAX_DECIMALS as i32);
    let mut units = Vec::new();
    for multiple in multiples {
        let scaled = multiple * scale;
        if !(0.5..=9e15).contains(&scaled) || (scaled - scaled.round()).abs() > 1e-6 * scaled {
            return Err(refused());
        }
        units.push(scaled.round() as u64);
    }
    // Drop the decimals that none of them has.
    for _ in 0..MAX_DECIMALS {
        if units.iter().all(|unit| unit % 10 == 0) {
            units.iter_mut().for_each(|unit| *unit /= 10);
        }
    }
    let common = units.iter().try_fold(1_u64, |common, &unit| {
        let multiple = (common / gcd(common, unit)).checked_mul(unit)?;
        (multiple <= MAX_MULTIPLE).then_some(multiple)
    });
    common.map(|_| ()).ok_or_else(refused)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

pub fn list<'a>(value: &'a Value, keyword: &str) -> Result<&'a Vec<Value>> {
    value.as_array().ok_or_else(|| expected(format!("a JSON Schema whose `{keyword}` is an array")))
}

pub fn object<'a>(value: &'a Value, keyword: &str) -> Result<&'a Map<String, Value>> {
    value.as_object().ok_or_else(|| expected(format!("a JSON Schema whose `{keyword}` is an object")))
}

pub fn expected(what: impl Into<String>) -> Error {
    Error::request("response_format", what)
}
