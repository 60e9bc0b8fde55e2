//! The tests of jinja2: what can stand behind `is`.

use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

use super::operators::compare_two;
use super::texts;
use super::values::{self, Row, bind};

type Check = fn(&State, &Value, &[Value]) -> Result<bool, Error>;

const CHECKS: &[(&str, Check)] = &[
    ("boolean", |_, value, _| Ok(value.kind() == ValueKind::Bool)),
    ("callable", |_, value, _| Ok(is_callable(value))),
    ("defined", |_, value, _| Ok(!value.is_undefined())),
    ("divisibleby", divisible_by),
    ("escaped", |_, _, _| Ok(false)),
    ("even", |_, value, _| Ok(whole(value)? % 2 == 0)),
    ("false", |_, value, _| Ok(value.kind() == ValueKind::Bool && !value.is_true())),
    ("filter", |state, value, _| is_known(state, value, true)),
    ("float", |_, value, _| Ok(value.kind() == ValueKind::Number && !value.is_integer())),
    ("integer", |_, value, _| Ok(value.is_integer())),
    ("iterable", |_, value, _| Ok(values::is_iterable(value))),
    ("lower", |state, value, _| is_cased(state, value, false)),
    // Whoever asks whether arguments are a text or an object is told what the client sent.
    ("mapping", |_, value, _| Ok(values::is_map(&values::as_text(value)))),
    ("none", |_, value, _| Ok(value.is_none())),
    ("number", |_, value, _| Ok(matches!(value.kind(), ValueKind::Number | ValueKind::Bool))),
    ("odd", |_, value, _| Ok(whole(value)? % 2 != 0)),
    ("sameas", |_, value, args| Ok(is_same(value, &other(args)?))),
    ("sequence", |_, value, _| Ok(is_sequence(value))),
    ("string", |_, value, _| Ok(values::as_text(value).as_str().is_some())),
    ("test", |state, value, _| is_known(state, value, false)),
    ("true", |_, value, _| Ok(value.kind() == ValueKind::Bool && value.is_true())),
    ("undefined", |_, value, _| Ok(value.is_undefined())),
    ("upper", |state, value, _| is_cased(state, value, true)),
];
/// Operators as tests, with all of their names.
const OPERATORS: [(&str, &[&str]); 7] = [
    ("==", &["==", "eq", "equalto"]),
    ("!=", &["!=", "ne"]),
    ("<", &["<", "lt", "lessthan"]),
    ("<=", &["<=", "le"]),
    (">", &[">", "gt", "greaterthan"]),
    (">=", &[">=", "ge"]),
    ("in", &["in"]),
];

/// Adds all tests.
pub fn install(environment: &mut Environment<'static>) {
    for &(name, check) in CHECKS {
        environment.add_test(name, move |state: &State, args: Rest<Value>| match args.split_first() {
            Some((value, args)) => check(state, value, args),
            None => Err(Error::from(ErrorKind::MissingArgument)),
        });
    }
    for (operator, names) in OPERATORS {
        for name in names {
            environment.add_test(*name, move |value: Value, args: Rest<Value>| {
                compare_two(&value, operator, &other(&args)?)
            });
        }
    }
}

fn other(args: &[Value]) -> Result<Value, Error> {
    let [other] = bind(args, ["other"])?;
    other.ok_or_else(|| Error::from(ErrorKind::MissingArgument))
}

fn whole(value: &Value) -> Result<i128, Error> {
    values::whole(value).ok_or_else(|| values::wrong("not a whole number"))
}

fn divisible_by(_: &State, value: &Value, args: &[Value]) -> Result<bool, Error> {
    let (value, by) = (whole(value)?, whole(&other(args)?)?);
    value.checked_rem(by).map(|rest| rest == 0).ok_or_else(|| values::wrong("division by zero"))
}

/// What has a length and subscripts; dictionaries and texts have.
fn is_sequence(value: &Value) -> bool {
    match values::row(value) {
        Some(row) => matches!(row, Row::Tuple | Row::Group),
        None => values::is_iterable(value),
    }
}

fn is_callable(value: &Value) -> bool {
    value.is_undefined() || value.kind() == ValueKind::Plain || {
        let name = value.as_object().map_or("", |object| object.type_name());
        name.starts_with("minijinja::vm::macro")
    }
}

fn is_cased(state: &State, value: &Value, upper: bool) -> Result<bool, Error> {
    let text = texts::string(state, value)?;
    let (wanted, other) = match upper {
        true => (text.chars().any(char::is_uppercase), text.chars().any(char::is_lowercase)),
        false => (text.chars().any(char::is_lowercase), text.chars().any(char::is_uppercase)),
    };
    Ok(wanted && !other)
}

fn is_same(a: &Value, b: &Value) -> bool {
    a.kind() == b.kind() && a.is_integer() == b.is_integer() && values::equal(a, b)
}

/// Whether a filter or test of that name exists.
fn is_known(state: &State, name: &Value, filter: bool) -> Result<bool, Error> {
    let name = values::text(Some(name))?;
    let error = match filter {
        true => state.apply_filter(&name, &[]).err(),
        false => state.perform_test(&name, &[]).err(),
    };
    let unknown = [ErrorKind::UnknownFilter, ErrorKind::UnknownTest];
    Ok(!name.starts_with("__") && !error.is_some_and(|error| unknown.contains(&error.kind())))
}
