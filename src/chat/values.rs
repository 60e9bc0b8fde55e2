//! Python's view of all values: what they are, how they compare, and the arguments of calls.

use std::cmp::Ordering;
use std::sync::atomic::Ordering::Relaxed;

use minijinja::value::{DynObject, Kwargs, Object, Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::budget::{Exceeded, Weighed};
pub use super::objects::{Arguments, Cycler, Items, Joiner, Method, NoObject, Row};

/// The value where a text is wanted or possible, and from now on.
pub fn as_text(value: &Value) -> Value {
    match Arguments::of(value) {
        None => value.clone(),
        Some(arguments) => {
            arguments.told.store(true, Relaxed);
            arguments.text.clone()
        }
    }
}

/// The text of arguments that came as one, and that is not told.
pub fn sent_text(value: &Value) -> Option<&Value> {
    Arguments::of(value).map(|arguments| &arguments.text)
}

/// The value where an object is wanted, unless the template was told that it is a text.
///
/// # Errors
/// It is the text of no object.
pub fn as_object(value: &Value) -> Result<Value, Error> {
    match Arguments::of(value) {
        None => Ok(value.clone()),
        Some(arguments) if arguments.told.load(Relaxed) => Ok(arguments.text.clone()),
        Some(arguments) => match &arguments.object {
            Some(object) => Ok(Value::from_dyn_object(object.clone())),
            None => Err(Error::new(ErrorKind::InvalidOperation, "arguments").with_source(NoObject)),
        },
    }
}

/// The value inside a container that is written out: there arguments are the object, where they are one.
pub fn sent_object(value: &Value) -> Value {
    as_object(value).unwrap_or_else(|_| sent_text(value).cloned().unwrap_or_default())
}

/// The object of that type, weighed or not.
fn object<T: Object + 'static>(value: &Value) -> Option<&T> {
    match value.downcast_object_ref::<Weighed>() {
        Some(weighed) => weighed.inner().downcast_ref(),
        None => value.downcast_object_ref(),
    }
}

/// What kind of row it is, where it is one.
pub fn row(value: &Value) -> Option<Row> {
    object::<Items>(value).map(|items| items.row)
}

/// Whether it is a method that is not called.
pub fn is_method(value: &Value) -> bool {
    value.downcast_object_ref::<Method>().is_some()
}

/// A dictionary.
pub fn is_map(value: &Value) -> bool {
    value.kind() == ValueKind::Map && !is_own(value)
}

/// An object of minijinja's: a namespace, a macro, a loop.
fn is_own(value: &Value) -> bool {
    let name = value.as_object().map_or("", DynObject::type_name);
    name.starts_with("minijinja::vm::") || name.ends_with("::Namespace")
}

/// A list or a tuple.
pub fn is_sequence(value: &Value) -> bool {
    match row(value) {
        Some(row) => matches!(row, Row::Tuple | Row::Group),
        None => matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) && !is_own(value),
    }
}

/// Whether a loop can go through it.
pub fn is_iterable(value: &Value) -> bool {
    value.is_undefined()
        || value.as_str().is_some()
        || matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
        || is_map(value)
}

/// The items that a loop goes through.
///
/// # Errors
/// It has none.
pub fn items(value: &Value) -> Result<Vec<Value>, Error> {
    let value = &as_object(value)?;
    if !is_iterable(value) {
        return Err(wrong("not iterable"));
    }
    if value.len().is_some_and(|items| items > super::budget::MAX_ITEMS) {
        return Err(Exceeded::Made.into());
    }
    let mut items = Vec::new();
    for item in value.try_iter()? {
        if items.len() == super::budget::MAX_ITEMS {
            return Err(Exceeded::Made.into());
        }
        items.push(item);
    }
    Ok(items)
}

/// `len(value)`.
///
/// # Errors
/// It has none.
pub fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    let value = &as_object(value)?;
    let counted = value.as_str().is_some() || is_iterable(value) && row(value) != Some(Row::Generator);
    value.len().filter(|_| counted).ok_or_else(|| wrong("no length"))
}

/// An operation that Python refuses; `what` is a sentence of ours.
pub fn wrong(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// `a == b`.
pub fn equal(a: &Value, b: &Value) -> bool {
    let (a, b) = match (sent_text(a), sent_text(b)) {
        (Some(text), _) if b.as_str().is_some() => (text, b),
        (_, Some(text)) if a.as_str().is_some() => (a, text),
        _ => (a, b),
    };
    let is_list = |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
    if is_list(a) && is_list(b) {
        let kind = |value: &Value| match row(value) {
            Some(Row::Group) => Some(Row::Tuple),
            other => other,
        };
        return kind(a) == kind(b) && kind(a) != Some(Row::Generator) && a == b;
    }
    a == b
}

/// The order of two values.
///
/// # Errors
/// They have none.
pub fn order(a: &Value, b: &Value) -> Result<Ordering, Error> {
    order_within(a, b, 0)
}

fn order_within(a: &Value, b: &Value, depth: usize) -> Result<Ordering, Error> {
    if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
        return Ok(a.cmp(b));
    }
    let is_number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    if is_number(a) && is_number(b) {
        if let (Some(a), Some(b)) = (whole(a), whole(b)) {
            return Ok(a.cmp(&b));
        }
        return float(a)?.partial_cmp(&float(b)?).ok_or_else(|| wrong("no order"));
    }
    let same_rows = is_sequence(a) && is_sequence(b) && row(a).is_some() == row(b).is_some();
    if !same_rows || depth > 100 {
        return Err(wrong("no order"));
    }
    for (a, b) in a.try_iter()?.zip(b.try_iter()?) {
        if !equal(&a, &b) {
            return order_within(&a, &b, depth + 1);
        }
    }
    Ok(a.len().cmp(&b.len()))
}

/// `item in container`.
///
/// # Errors
/// The container is none.
pub fn contains(container: &Value, item: &Value) -> Result<bool, Error> {
    let container = &as_object(container)?;
    if container.is_undefined() {
        return Ok(false);
    }
    if let Some(text) = container.as_str() {
        let item = as_text(item);
        return item.as_str().map(|item| text.contains(item)).ok_or_else(|| wrong("`in` wants a text"));
    }
    if is_map(container) {
        return Ok(container.as_object().is_some_and(|object| object.get_value(item).is_some()));
    }
    if !is_iterable(container) {
        return Err(wrong("`in` wants a container"));
    }
    Ok(container.try_iter()?.any(|one| equal(&one, item)))
}

/// A whole number or a flag.
pub fn whole(value: &Value) -> Option<i128> {
    match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    }
}

/// A number or a flag, as a float.
///
/// # Errors
/// It is none.
pub fn float(value: &Value) -> Result<f64, Error> {
    match value.kind() {
        ValueKind::Bool => Ok(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()),
        _ => Err(wrong("not a number")),
    }
}

/// A whole number as a value.
pub fn number(value: i128) -> Value {
    i64::try_from(value).map_or_else(|_| Value::from(value), Value::from)
}

/// A whole number that an argument is; `None` where it is absent or none.
///
/// # Errors
/// It is something else.
pub fn index(value: Option<&Value>) -> Result<Option<i64>, Error> {
    let Some(value) = value.filter(|value| !value.is_none()) else { return Ok(None) };
    let whole = whole(value).ok_or_else(|| wrong("not a whole number"))?;
    // No sequence is longer than this.
    Ok(Some(whole.clamp(i128::from(i64::MIN / 2), i128::from(i64::MAX / 2)) as i64))
}

/// The arguments of a call by the names of its parameters.
///
/// # Errors
/// There are too many, or one has another name.
pub fn bind<const N: usize>(args: &[Value], names: [&str; N]) -> Result<[Option<Value>; N], Error> {
    let (args, named) = split(args)?;
    let mut bound = [const { None }; N];
    if args.len() > N {
        return Err(Error::new(ErrorKind::TooManyArguments, "too many arguments"));
    }
    for (place, value) in bound.iter_mut().zip(args) {
        *place = Some(value.clone());
    }
    for (name, value) in named {
        let at = names.iter().position(|known| *known == name);
        let place = at.and_then(|at| bound.get_mut(at)).filter(|place| place.is_none());
        *place.ok_or_else(|| Error::new(ErrorKind::TooManyArguments, "an argument of another name"))? =
            Some(value);
    }
    Ok(bound)
}

/// Arguments with names, in their order.
pub type Named = Vec<(String, Value)>;

/// Positional arguments, and those with names.
///
/// # Errors
/// A name is no text.
pub fn split(args: &[Value]) -> Result<(&[Value], Named), Error> {
    let Some((last, others)) = args.split_last().filter(|(last, _)| last.is_kwargs()) else {
        return Ok((args, Vec::new()));
    };
    let named = Kwargs::try_from(last.clone())?;
    let pairs = named.args().map(|name| Ok((name.to_owned(), named.peek::<Value>(name)?)));
    Ok((others, pairs.collect::<Result<_, Error>>()?))
}

/// An argument that must be a text.
///
/// # Errors
/// It is absent, or something else.
pub fn text(value: Option<&Value>) -> Result<String, Error> {
    let value = value.map(as_text).ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
    value.as_str().map(str::to_owned).ok_or_else(|| wrong("not a text"))
}
