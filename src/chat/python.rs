//! The Jinja that chat templates are written in: jinja2's filters, tests and functions, Python's operators and methods,
//! transformers' functions.
//!
//! Nothing of minijinja's own is left in it but its statements: what it calls by the same names is often another thing.
//! Fuel counts instructions, not what one of them does: what goes through a sequence, or makes text from texts, checks
//! that first. What operators and calls make is counted in [`super::budget`].

use minijinja::value::{Rest, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};

use super::budget::{self, MAX_ITEMS};
use super::values::{self, Cycler, Joiner, bind, index, wrong};
use super::{checks, filters, methods, operators};
use crate::memory::secret::Secret;

/// Instructions of minijinja; a message takes some hundreds.
pub const FUEL: u64 = 20_000_000;
/// Frames in frames; a macro in a macro takes four, and one for each loop around the call.
const MAX_CALLS: usize = 250;
/// Items of `range`, as in jinja2's sandbox.
const MAX_RANGE: usize = 100_000;

/// What `raise_exception` was called with.
#[derive(thiserror::Error)]
#[error("raised by the template")]
pub struct Raised(pub Secret<str>);

impl std::fmt::Debug for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Raised")
    }
}

/// An environment that renders like transformers', within bounds.
pub fn environment() -> Environment<'static> {
    let mut environment = Environment::empty();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(MAX_CALLS);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(methods::call);
    budget::install(&mut environment);
    operators::install(&mut environment);
    filters::install(&mut environment);
    checks::install(&mut environment);
    environment.add_function("range", range);
    environment.add_function("dict", dict);
    environment.add_function("namespace", |args: Rest<Value>| -> Result<Value, Error> {
        let pairs = dict(args)?;
        pairs
            .as_object()
            .and_then(|map| map.try_iter_pairs())
            .into_iter()
            .flatten()
            .try_for_each(|(_, value)| budget::kept(value).map(drop))?;
        minijinja::functions::namespace(Some(pairs))
    });
    environment.add_function("cycler", |items: Rest<Value>| Cycler::value(&items));
    environment.add_function("joiner", |args: Rest<Value>| -> Result<Value, Error> {
        let [separator] = bind(&args, ["sep"])?;
        Ok(Joiner::value(separator.map_or_else(|| Ok(", ".to_owned()), |text| values::text(Some(&text)))?))
    });
    environment.add_function("raise_exception", |state: &State, args: Rest<Value>| -> Result<Value, Error> {
        let [message] = bind(&args, ["message"])?;
        let message = message.unwrap_or_default();
        let raised = Raised(Secret::new(super::texts::string(state, &message)?.into_owned()));
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(raised))
    });
    environment
}

fn range(args: Rest<Value>) -> Result<Value, Error> {
    let [first, stop, step] = bind(&args, ["start", "stop", "step"])?;
    let first = index(first.as_ref())?.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
    let (start, stop) = index(stop.as_ref())?.map_or((0, first), |stop| (first, stop));
    let step = index(step.as_ref())?.unwrap_or(1);
    if step == 0 {
        return Err(wrong("a step of zero"));
    }
    let (distance, step_size) = (if step > 0 { stop - start } else { start - stop }, step.unsigned_abs());
    let count = distance.max(0).unsigned_abs().div_ceil(step_size);
    if count > MAX_RANGE as u64 {
        return Err(budget::Exceeded::Made.into());
    }
    Ok((0..count as i64).map(|at| Value::from(start + at * step)).collect())
}

/// `dict(pairs or a dictionary, a=1, b=2)`.
fn dict(args: Rest<Value>) -> Result<Value, Error> {
    let (positional, named) = values::split(&args)?;
    let mut pairs = Vec::new();
    match positional {
        [] => {}
        [map] if values::is_map(map) => {
            pairs.extend(map.as_object().and_then(|map| map.try_iter_pairs()).into_iter().flatten());
        }
        [others] => {
            for pair in values::items(others)? {
                match &values::items(&pair)?[..] {
                    [key, value] => pairs.push((key.clone(), value.clone())),
                    _ => return Err(wrong("a pair wanted")),
                }
            }
        }
        _ => return Err(Error::new(ErrorKind::TooManyArguments, "too many arguments")),
    }
    pairs.extend(named.into_iter().map(|(name, value)| (Value::from(name), value)));
    if pairs.len() > MAX_ITEMS {
        return Err(budget::Exceeded::Made.into());
    }
    Ok(Value::from_iter(pairs))
}
