//! What a template may make while it is rendered, counted by the filters that [`super::metered`] puts into it.
//!
//! Every text and every container that an operator, a call or a filter makes is charged to one budget per rendering,
//! whether it is kept or not: so what is alive at once is below it. And every container knows how deep it is and what
//! it would be if it were written out, so that printing, comparing, hashing and dropping it are bounded too: thirty
//! times `x = [x, x]` is small in memory, and a billion items to whoever goes through it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use minijinja::value::{DynObject, Enumerator, Object, ObjectRepr, Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State};

use super::json_text;
use super::values::{self, Arguments, Cycler, Items};

/// Bytes of a text that a template makes, the prompt included.
pub const MAX_BYTES: usize = 64 << 20;
/// Bytes of all texts and containers that a template makes for one prompt.
pub const MAX_MADE: usize = 512 << 20;
/// Items of a container, and of all that is in it.
pub const MAX_ITEMS: usize = 1 << 20;
/// Containers in containers; what a request brings is no deeper.
const MAX_DEPTH: usize = 128;
/// Items that are counted for one prompt.
const MAX_VISITS: usize = 20_000_000;
/// Bytes of an item, and of a container beside its items.
const ITEM: usize = size_of::<Value>();
const CONTAINER: usize = 96;

/// Something is above a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    #[error("the template makes too much")]
    Made,
    #[error("containers are nested too deeply")]
    Depth,
}

impl From<Exceeded> for Error {
    fn from(exceeded: Exceeded) -> Self {
        Error::new(ErrorKind::InvalidOperation, "above a bound").with_source(exceeded)
    }
}

/// The budget of one rendering.
#[derive(Debug, Default)]
struct Budget {
    made: AtomicUsize,
    visits: AtomicUsize,
}

impl Object for Budget {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
}

fn add_up(counter: &AtomicUsize, more: usize, most: usize) -> Result<(), Exceeded> {
    let sum = counter.load(Relaxed).saturating_add(more);
    counter.store(sum, Relaxed);
    if sum > most { Err(Exceeded::Made) } else { Ok(()) }
}

fn budget(state: &State) -> Arc<Budget> {
    state.get_or_set_temp_object("__budget", Budget::default)
}

/// Charges bytes to the rendering's budget.
pub fn charge(state: &State, bytes: usize) -> Result<(), Error> {
    Ok(add_up(&budget(state).made, bytes, MAX_MADE)?)
}

/// Refuses a text above [`MAX_BYTES`].
pub fn check_bytes(bytes: usize) -> Result<(), Error> {
    if bytes > MAX_BYTES { Err(Exceeded::Made.into()) } else { Ok(()) }
}

/// What a value would be if it were written out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weight {
    depth: usize,
    items: usize,
    bytes: usize,
}

/// A container that knows its weight. Else it is what it holds.
pub struct Weighed {
    inner: DynObject,
    weight: Weight,
}

impl Weighed {
    pub fn inner(&self) -> &DynObject {
        &self.inner
    }
}

impl fmt::Debug for Weighed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Weighed")
    }
}

impl Object for Weighed {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        self.inner.repr()
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.inner.get_value(key)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.inner.get_value_by_str(key)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.inner.enumerate()
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        self.inner.enumerator_len()
    }

    fn is_true(self: &Arc<Self>) -> bool {
        self.inner.is_true()
    }
}

/// Whether it is an object that holds others without a weight: a namespace, which can be changed after it was made, a
/// macro, which sees what is around it, a loop; a method, a cycler.
fn holds_others(value: &Value) -> bool {
    if values::is_method(value) || value.downcast_object_ref::<Cycler>().is_some() {
        return true;
    }
    let name = value.as_object().map_or("", DynObject::type_name);
    name.starts_with("minijinja::vm::") || name.ends_with("::Namespace")
}

fn is_container(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable)
}

/// The weight of a value; goes through what is not weighed yet.
///
/// # Errors
/// It is above a bound, or holds a namespace, a macro or a loop.
pub fn weight(state: &State, value: &Value) -> Result<Weight, Error> {
    let budget = budget(state);
    Ok(weigh(&budget, value, 0)?)
}

fn weigh(budget: &Budget, value: &Value, depth: usize) -> Result<Weight, Exceeded> {
    if let Some(text) = value.as_str() {
        return Ok(Weight { depth: 0, items: 1, bytes: text.len() });
    }
    if let Some(weighed) = value.downcast_object_ref::<Weighed>() {
        return Ok(weighed.weight);
    }
    if depth > MAX_DEPTH || holds_others(value) {
        return Err(Exceeded::Depth);
    }
    if !is_container(value) {
        return Ok(Weight { depth: 0, items: 1, bytes: 0 });
    }
    let mut sum = Weight { depth: 0, items: 1, bytes: 0 };
    let mut add = |value: &Value| {
        add_up(&budget.visits, 1, MAX_VISITS)?;
        let one = weigh(budget, value, depth + 1)?;
        sum.depth = sum.depth.max(one.depth);
        sum.items = sum.items.saturating_add(one.items);
        sum.bytes = sum.bytes.saturating_add(one.bytes);
        if sum.items > MAX_ITEMS || sum.bytes > MAX_BYTES { Err(Exceeded::Made) } else { Ok(()) }
    };
    let Some(object) = value.as_object() else { return Ok(sum) };
    match object.repr() {
        _ if let Some(row) = value.downcast_object_ref::<Items>() => row.items.iter().try_for_each(add)?,
        ObjectRepr::Map => {
            for (key, value) in object.try_iter_pairs().into_iter().flatten() {
                add(&key)?;
                add(&value)?;
            }
        }
        _ => object.try_iter().into_iter().flatten().try_for_each(|item| add(&item))?,
    }
    sum.depth += 1;
    if sum.depth > MAX_DEPTH { Err(Exceeded::Depth) } else { Ok(sum) }
}

/// How a result is charged.
#[derive(Clone, Copy)]
pub enum Charge {
    /// Its texts were made.
    Made,
    /// A text was made; a container shares its texts with another.
    Cut,
    /// It shares all texts.
    Shared,
}

/// Charges what was made, and gives containers their weight.
///
/// # Errors
/// It is above a bound.
pub fn checked(state: &State, value: Value, how: Charge) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        if text.len() > MAX_BYTES {
            return Err(Exceeded::Made.into());
        }
        charge(state, if matches!(how, Charge::Shared) { 0 } else { text.len() })?;
        return Ok(value);
    }
    let is_known = value.downcast_object_ref::<Weighed>().is_some()
        || value.downcast_object_ref::<Arguments>().is_some()
        || value.is_kwargs();
    if !is_container(&value) || is_known {
        return Ok(value);
    }
    if holds_others(&value) {
        // A namespace that was made just now may not hold one either.
        let inner = value.as_object().and_then(DynObject::try_iter_pairs);
        match inner.into_iter().flatten().any(|(_, value)| holds_others(&value)) {
            true => return Err(Exceeded::Depth.into()),
            false => return Ok(value),
        }
    }
    // What is computed item by item is computed once.
    let value = match value.kind() {
        ValueKind::Iterable if values::row(&value).is_none() => Value::from(listed(state, &value)?),
        _ => value,
    };
    let weight = weight(state, &value)?;
    let bytes = if matches!(how, Charge::Made) { weight.bytes } else { 0 };
    let items = value.len().unwrap_or(weight.items).min(MAX_ITEMS);
    charge(state, bytes + items * ITEM + CONTAINER)?;
    match value.as_object() {
        Some(inner) => Ok(Value::from_object(Weighed { inner: inner.clone(), weight })),
        None => Ok(value),
    }
}

/// The items of a container, which are charged.
///
/// # Errors
/// There are too many, or it has none.
pub fn listed(state: &State, value: &Value) -> Result<Vec<Value>, Error> {
    if value.len().is_some_and(|items| items > MAX_ITEMS) {
        return Err(Exceeded::Made.into());
    }
    let mut items = Vec::new();
    for item in value.try_iter()? {
        if items.len() == MAX_ITEMS {
            return Err(Exceeded::Made.into());
        }
        charge(state, ITEM)?;
        items.push(item);
    }
    Ok(items)
}

/// Refuses to keep in a namespace what could hold that namespace.
///
/// # Errors
/// It could.
pub fn kept(value: Value) -> Result<Value, Error> {
    let plain = matches!(
        value.kind(),
        ValueKind::Undefined | ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::String
    );
    if plain || is_container(&value) && !holds_others(&value) {
        Ok(value)
    } else {
        Err(Exceeded::Depth.into())
    }
}

/// `a + b + c`.
fn add(state: &State, first: Value, others: Rest<Value>) -> Result<Value, Error> {
    let is_text = |value: &Value| value.as_str().is_some() || values::sent_text(value).is_some();
    if is_text(&first) && others.iter().all(is_text) {
        let all = std::iter::once(&first).chain(others.iter());
        return if all.clone().any(Value::is_safe) { escaped(state, all) } else { joined(state, all) };
    }
    if values::is_sequence(&first) && others.iter().all(values::is_sequence) {
        let mut items = listed(state, &first)?;
        for other in others.iter() {
            if values::row(&first).is_some() != values::row(other).is_some() {
                return Err(impossible());
            }
            items.extend(listed(state, other)?);
            if items.len() > MAX_ITEMS {
                return Err(Exceeded::Made.into());
            }
        }
        return checked(state, same_row(&first, items), Charge::Shared);
    }
    others.iter().try_fold(first, |sum, next| match is_text(&sum) && is_text(next) {
        true => joined(state, [&sum, next].into_iter()),
        false => arithmetic(&sum, next, i128::checked_add, |a, b| a + b),
    })
}

/// A sum with a text that is marked as safe: the others are escaped, as by `Markup` of Python.
fn escaped<'a>(state: &State, texts: impl Iterator<Item = &'a Value>) -> Result<Value, Error> {
    let mut out = String::new();
    for text in texts {
        let text = values::as_text(text);
        let part = text.as_str().unwrap_or_default();
        check_bytes(out.len().saturating_add(part.len().saturating_mul(5)))?;
        match text.is_safe() {
            true => out.push_str(part),
            false => out.push_str(&super::texts::escaped(part)),
        }
    }
    charge(state, out.len())?;
    Ok(Value::from_safe_string(out))
}

/// Items as a list, or as a tuple where `like` is one.
fn same_row(like: &Value, items: Vec<Value>) -> Value {
    match values::row(like) {
        Some(_) => Items::value(values::Row::Tuple, items),
        None => Value::from(items),
    }
}

/// `a ~ b ~ c`.
fn concat(state: &State, first: Value, others: Rest<Value>) -> Result<Value, Error> {
    joined(state, std::iter::once(&first).chain(others.iter()))
}

/// Texts, and what is written as one, side by side.
///
/// # Errors
/// They are too long.
pub fn joined<'a>(state: &State, values: impl Iterator<Item = &'a Value> + Clone) -> Result<Value, Error> {
    let texts = values.clone().map(|value| value.as_str().map_or(0, str::len)).sum::<usize>();
    if texts > MAX_BYTES {
        return Err(Exceeded::Made.into());
    }
    charge(state, texts)?;
    let mut out = Bounded { out: String::with_capacity(texts) };
    for value in values {
        json_text::write_str(&mut out, value).map_err(|_| Error::from(Exceeded::Made))?;
    }
    charge(state, out.out.len() - texts)?;
    Ok(Value::from(out.out))
}

/// A text of at most [`MAX_BYTES`].
#[derive(Default)]
pub struct Bounded {
    pub out: String,
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.out.len() + text.len() > MAX_BYTES {
            return Err(fmt::Error);
        }
        self.out.push_str(text);
        Ok(())
    }
}

/// `a * b * c`.
fn mul(state: &State, first: Value, others: Rest<Value>) -> Result<Value, Error> {
    others.iter().try_fold(first, |product, next| {
        let repeats = |a: &Value| a.as_str().is_some() || is_container(a);
        let (value, times) = if repeats(&product) { (&product, next) } else { (next, &product) };
        if !repeats(value) {
            return arithmetic(&product, next, i128::checked_mul, |a, b| a * b);
        }
        // as in Python, a negative number is none
        let times = values::whole(times).ok_or_else(impossible)?.max(0) as u128;
        let times = usize::try_from(times).unwrap_or(usize::MAX);
        if let Some(text) = value.as_str() {
            let bytes = text.len().saturating_mul(times);
            if bytes > MAX_BYTES {
                return Err(Exceeded::Made.into());
            }
            charge(state, bytes)?;
            return Ok(Value::from(text.repeat(times)));
        }
        if !values::is_sequence(value) {
            return Err(impossible());
        }
        let items = listed(state, value)?;
        if items.len().saturating_mul(times) > MAX_ITEMS {
            return Err(Exceeded::Made.into());
        }
        let repeated: Vec<Value> = std::iter::repeat_n(items, times).flatten().collect();
        checked(state, same_row(value, repeated), Charge::Shared)
    })
}

fn impossible() -> Error {
    Error::new(ErrorKind::InvalidOperation, "not a pair of values for this operator")
}

/// Whole numbers and flags stay whole, as in Python; anything with a fraction is a float.
///
/// # Errors
/// One is no number, or the result is too large.
pub fn arithmetic(
    a: &Value,
    b: &Value,
    whole: impl Fn(i128, i128) -> Option<i128>,
    float: impl Fn(f64, f64) -> f64,
) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (values::whole(a), values::whole(b)) {
        return whole(a, b).map(values::number).ok_or_else(impossible);
    }
    Ok(Value::from(float(values::float(a)?, values::float(b)?)))
}

/// Adds the filters of [`super::metered`], and charges what is written.
pub fn install(environment: &mut Environment<'static>) {
    environment.add_filter("__add", add);
    environment.add_filter("__concat", concat);
    environment.add_filter("__mul", mul);
    environment.add_filter("__checked", |state: &State, value: Value| checked(state, value, Charge::Made));
    environment.add_filter("__sliced", |state: &State, value: Value| checked(state, value, Charge::Cut));
    environment.add_filter("__shared", |state: &State, value: Value| checked(state, value, Charge::Shared));
    environment.add_filter("__kept", kept);
    environment.add_filter("__write", |state: &State, bytes: usize| charge(state, bytes).map(|()| ""));
    environment.set_formatter(write);
}

/// Writes a value as Python's `str` does, into the prompt or a text of the template's.
fn write(out: &mut Output, state: &State, value: &Value) -> Result<(), Error> {
    let Some(text) = value.as_str() else {
        let mut bounded = Bounded { out: String::new() };
        json_text::write_str(&mut bounded, value).map_err(|_| Error::from(Exceeded::Made))?;
        charge(state, bounded.out.len())?;
        return Ok(out.write_str(&bounded.out)?);
    };
    charge(state, text.len())?;
    Ok(out.write_str(text)?)
}
