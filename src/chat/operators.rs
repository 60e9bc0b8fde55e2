//! Operators, subscripts and attributes of Python, as the filters that [`super::metered`] writes into a template.

use std::cmp::Ordering;

use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

use super::budget::{self, Charge};
use super::methods;
use super::printf;
use super::values::{self, Items, Method, Row, wrong};

/// Arguments that `*` and `**` unpack.
const MAX_UNPACKED: usize = 1000;

pub fn install(environment: &mut Environment<'static>) {
    environment.add_filter("__sub", |a: Value, others: Rest<Value>| fold(a, &others, subtract));
    environment.add_filter("__div", |a: Value, others: Rest<Value>| fold(a, &others, divide));
    environment.add_filter("__floordiv", |a: Value, others: Rest<Value>| fold(a, &others, floor_divide));
    environment.add_filter("__pow", |a: Value, others: Rest<Value>| fold(a, &others, power));
    environment.add_filter("__mod", |state: &State, a: Value, others: Rest<Value>| {
        fold(a, &others, |a, b| remainder(state, a, b))
    });
    environment.add_filter("__neg", negative);
    environment.add_filter("__pos", |value: Value| negative(negative(value)?));
    environment.add_filter("__compare", compare);
    environment.add_filter("__attr", |value: Value, name: &str| attribute(&value, name));
    environment.add_filter("__item", |value: Value, key: Value| item(&value, &key));
    environment.add_filter("__slice", slice);
    environment.add_filter("__iter", |value: Value| {
        let value = values::as_object(&value)?;
        if values::is_iterable(&value) { Ok(value) } else { Err(wrong("not iterable")) }
    });
    environment.add_filter("__few", |value: Value| {
        let few = value.len().is_some_and(|items| items <= MAX_UNPACKED);
        if few { Ok(value) } else { Err(Error::from(budget::Exceeded::Made)) }
    });
    environment.add_filter("__spread", |state: &State, parts: Value| {
        let mut all = Vec::new();
        for part in values::items(&parts)? {
            all.extend(values::items(&part)?);
            if all.len() > MAX_UNPACKED {
                return Err(Error::from(budget::Exceeded::Made));
            }
        }
        budget::checked(state, Items::value(Row::Tuple, all), Charge::Shared)
    });
    environment.add_filter("__named", |state: &State, map: Value, names: Value, inside: bool| {
        let names = values::items(&names)?;
        let kept = pairs(&map)?.into_iter().filter(|(key, _)| names.contains(key) == inside);
        budget::checked(state, Value::from_iter(kept), Charge::Shared)
    });
    environment.add_filter("__merged", |state: &State, maps: Value| {
        let mut all = Vec::new();
        for map in values::items(&maps)? {
            all.extend(pairs(&map)?);
        }
        budget::checked(state, Value::from_iter(all), Charge::Shared)
    });
    environment.add_filter("__tuple", |state: &State, value: Value| {
        budget::checked(state, Items::value(Row::Tuple, values::items(&value)?), Charge::Shared)
    });
}

/// The keys and values of a mapping, few as they must be to be unpacked.
fn pairs(map: &Value) -> Result<Vec<(Value, Value)>, Error> {
    let pairs = map.as_object().and_then(|map| map.try_iter_pairs()).ok_or_else(|| wrong("no mapping"))?;
    Ok(pairs.take(MAX_UNPACKED + 1).collect())
}

fn fold(
    first: Value,
    others: &[Value],
    operator: impl Fn(&Value, &Value) -> Result<Value, Error>,
) -> Result<Value, Error> {
    others.iter().try_fold(first, |sum, next| operator(&sum, next))
}

fn subtract(a: &Value, b: &Value) -> Result<Value, Error> {
    budget::arithmetic(a, b, i128::checked_sub, |a, b| a - b)
}

fn divide(a: &Value, b: &Value) -> Result<Value, Error> {
    let (a, b) = (values::float(a)?, values::float(b)?);
    if b == 0.0 { Err(wrong("division by zero")) } else { Ok(Value::from(a / b)) }
}

fn floor_divide(a: &Value, b: &Value) -> Result<Value, Error> {
    if values::float(b)? == 0.0 {
        return Err(wrong("division by zero"));
    }
    let whole = |a: i128, b: i128| {
        let quotient = a.checked_div(b)?;
        Some(if a % b != 0 && (a < 0) != (b < 0) { quotient - 1 } else { quotient })
    };
    budget::arithmetic(a, b, whole, |a, b| (a / b).floor())
}

fn remainder(state: &State, a: &Value, b: &Value) -> Result<Value, Error> {
    if let Some(format) = values::as_text(a).as_str() {
        return printf::percent(state, format, b);
    }
    if values::float(b)? == 0.0 {
        return Err(wrong("division by zero"));
    }
    let whole = |a: i128, b: i128| {
        let rest = a.checked_rem(b)?;
        Some(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest })
    };
    budget::arithmetic(a, b, whole, |a, b| {
        let rest = a % b;
        if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
    })
}

fn power(a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(base), Some(exponent)) = (values::whole(a), values::whole(b))
        && exponent >= 0
    {
        let exponent = u32::try_from(exponent).ok();
        let result = exponent.and_then(|exponent| base.checked_pow(exponent));
        return result.map(values::number).ok_or_else(|| wrong("a number too large"));
    }
    Ok(Value::from(values::float(a)?.powf(values::float(b)?)))
}

fn negative(value: Value) -> Result<Value, Error> {
    if let Some(whole) = values::whole(&value) {
        return whole.checked_neg().map(values::number).ok_or_else(|| wrong("a number too large"));
    }
    Ok(Value::from(-values::float(&value)?))
}

/// `a < b == c`: operators and values in turns.
fn compare(first: Value, others: Rest<Value>) -> Result<bool, Error> {
    let mut left = &first;
    for pair in others.chunks(2) {
        let [operator, right] = pair else { return Err(wrong("a comparison")) };
        if !compare_two(left, operator.as_str().unwrap_or_default(), right)? {
            return Ok(false);
        }
        left = right;
    }
    Ok(true)
}

/// One comparison; `operator` is also the name of a test.
///
/// # Errors
/// The values have no order, or the container is none.
pub fn compare_two(left: &Value, operator: &str, right: &Value) -> Result<bool, Error> {
    Ok(match operator {
        "==" => values::equal(left, right),
        "!=" => !values::equal(left, right),
        "in" => values::contains(right, left)?,
        "not in" => !values::contains(right, left)?,
        "<" => values::order(left, right)? == Ordering::Less,
        "<=" => values::order(left, right)? != Ordering::Greater,
        ">" => values::order(left, right)? == Ordering::Greater,
        _ => values::order(left, right)? != Ordering::Less,
    })
}

fn undefined() -> Error {
    Error::from(ErrorKind::UndefinedError)
}

/// `value.name`: a method first, then an item.
///
/// # Errors
/// The value is undefined.
pub fn attribute(value: &Value, name: &str) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(undefined());
    }
    let value = values::as_object(value)?;
    if methods::has(&value, name) {
        return Ok(Value::from_object(Method { value, name: name.to_owned() }));
    }
    if matches!(value.kind(), ValueKind::Map | ValueKind::Plain) || values::row(&value).is_some() {
        return value.get_attr(name);
    }
    Ok(Value::UNDEFINED)
}

/// `value[key]`: an item first, then a method.
///
/// # Errors
/// The value is undefined.
pub fn item(value: &Value, key: &Value) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(undefined());
    }
    let value = values::as_object(value)?;
    if matches!(value.kind(), ValueKind::Map | ValueKind::Plain) {
        let found = value.get_item(key)?;
        return match key.as_str() {
            Some(name) if found.is_undefined() && methods::has(&value, name) => {
                Ok(Value::from_object(Method { value, name: name.to_owned() }))
            }
            _ => Ok(found),
        };
    }
    if let Some(name) = key.as_str() {
        return attribute(&value, name);
    }
    let indexed = value.as_str().is_some() || values::is_sequence(&value);
    match values::whole(key).filter(|_| indexed) {
        Some(at) => value.get_item(&values::number(at)),
        None => Ok(Value::UNDEFINED),
    }
}

/// `value[start:stop:step]`.
fn slice(state: &State, value: Value, start: Value, stop: Value, step: Value) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(undefined());
    }
    let value = values::as_object(&value)?;
    let step = values::index(Some(&step))?.unwrap_or(1);
    if step == 0 {
        return Err(wrong("a step of zero"));
    }
    let is_text = value.as_str().is_some();
    if !is_text && !values::is_sequence(&value) {
        // as a failed subscript of any other kind
        return Ok(Value::UNDEFINED);
    }
    let length = value.len().unwrap_or(0) as i64;
    let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let bound = |bound: &Value, default: i64| -> Result<i64, Error> {
        Ok(match values::index(Some(bound))? {
            None => default,
            Some(at) if at < 0 => (at + length).max(low),
            Some(at) => at.min(high),
        })
    };
    let (start, stop) = match step > 0 {
        true => (bound(&start, 0)?, bound(&stop, length)?),
        false => (bound(&start, length - 1)?, bound(&stop, -1)?),
    };
    let mut at = start;
    let places = std::iter::from_fn(move || {
        let place = at;
        at = at.saturating_add(step);
        (if step > 0 { place < stop } else { place > stop }).then_some(place as usize)
    });
    if let Some(text) = value.as_str() {
        if step == 1 {
            let taken = (stop - start).max(0) as usize;
            return Ok(Value::from(text.chars().skip(start as usize).take(taken).collect::<String>()));
        }
        budget::charge(state, text.len().saturating_mul(4))?;
        let chars: Vec<char> = text.chars().collect();
        return Ok(Value::from(places.map(|at| chars[at]).collect::<String>()));
    }
    let items: Vec<Value> = value.try_iter()?.collect();
    let taken: Vec<Value> = places.map(|at| items[at].clone()).collect();
    match values::row(&value) {
        Some(_) => Ok(Items::value(Row::Tuple, taken)),
        None => Ok(Value::from(taken)),
    }
}
