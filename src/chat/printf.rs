//! Python's older way to format a text: `'%s' % x`.

use minijinja::value::Value;
use minijinja::{Error, State};

use super::budget::{self, MAX_BYTES, check_bytes};
use super::json_text;
use super::operators;
use super::spec::{Cursor, Spec, formatted_number, invalid, number};
use super::texts;
use super::values::{self, Row, wrong};

/// `format % arguments`.
///
/// # Errors
/// The format is none, arguments are missing or left over, or the result is too long.
pub fn percent(state: &State, format: &str, arguments: &Value) -> Result<Value, Error> {
    let tuple = match values::row(arguments) {
        Some(Row::Tuple | Row::Group) => Some(values::items(arguments)?),
        _ => None,
    };
    let is_map = values::is_map(arguments);
    let mut left = tuple.unwrap_or_else(|| vec![arguments.clone()]).into_iter();
    let (mut out, mut rest, mut named) = (Out::default(), format, false);
    while let Some(at) = rest.find('%') {
        out.push(&rest[..at])?;
        let mut chars = Cursor(&rest[at + 1..]);
        let mut value = None;
        if chars.next_if(|char| char == '(').is_some() {
            let (key, behind) = chars.0.split_once(')').ok_or_else(invalid)?;
            chars = Cursor(behind);
            if !is_map {
                return Err(wrong("a format wants a dictionary"));
            }
            named = true;
            value = Some(operators::item(arguments, &Value::from(key))?);
        }
        let mut spec = Spec::default();
        while let Some(flag) = chars.next_if(|char| "#0- +".contains(char)) {
            match flag {
                '#' => spec.alternate = true,
                '0' => spec.zero = true,
                '-' => spec.align = Some('<'),
                '+' => spec.sign = Some('+'),
                _ => spec.sign = spec.sign.or(Some(' ')),
            }
        }
        let missing = || wrong("not enough arguments for format string");
        if chars.next_if(|char| char == '*').is_some() {
            let width = values::index(Some(&left.next().ok_or_else(missing)?))?.unwrap_or(0);
            check_bytes((width.unsigned_abs() as usize).saturating_mul(4))?;
            spec.align = if width < 0 { Some('<') } else { spec.align };
            spec.width = width.unsigned_abs() as usize;
        } else {
            spec.width = number(&mut chars)?.unwrap_or(0);
        }
        if chars.next_if(|char| char == '.').is_some() {
            spec.precision = Some(number(&mut chars)?.unwrap_or(0));
        }
        while chars.next_if(|char| "hlL".contains(char)).is_some() {}
        let kind = chars.next().ok_or_else(invalid)?;
        if kind == '%' {
            out.push("%")?;
        } else {
            let value = value.map_or_else(|| left.next().ok_or_else(missing), Ok)?;
            out.push(&converted(state, &value, kind, spec)?)?;
        }
        rest = chars.0;
    }
    out.push(rest)?;
    // One dictionary, list or other value that no `%` asks for is left alone where Python takes it for a mapping.
    let is_mapping = is_map || values::is_sequence(arguments) && values::row(arguments).is_none();
    if left.next().is_some() && !named && !is_mapping {
        return Err(wrong("not all arguments converted during string formatting"));
    }
    Ok(Value::from(out.0))
}

fn converted(state: &State, value: &Value, kind: char, mut spec: Spec) -> Result<String, Error> {
    let text = match kind {
        's' => texts::string(state, value)?.into_owned(),
        'r' | 'a' => repr(state, value)?,
        'c' if value.as_str().is_some() => values::text(Some(value))?,
        'd' | 'i' | 'u' => {
            let whole = match values::whole(value) {
                Some(whole) => whole,
                None => values::float(value)?.trunc() as i128,
            };
            spec.kind = Some('d');
            // A precision is the least number of digits.
            let digits = formatted_number(&values::number(whole), &spec)?;
            let width = spec.precision.unwrap_or(0);
            let digits = Spec { zero: true, width, ..Spec::default() }.pad(&digits, '>');
            return Ok(spec.pad(&digits, '>'));
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' | 'o' | 'x' | 'X' | 'c' => {
            spec.kind = Some(kind);
            return Ok(spec.pad(&formatted_number(value, &spec)?, '>'));
        }
        _ => return Err(invalid()),
    };
    let text: String = text.chars().take(spec.precision.unwrap_or(usize::MAX)).collect();
    spec.zero = false;
    Ok(spec.pad(&text, if spec.align.is_some() { '<' } else { '>' }))
}

/// `repr(value)`.
///
/// # Errors
/// It is too long.
pub fn repr(state: &State, value: &Value) -> Result<String, Error> {
    let mut out = budget::Bounded::default();
    json_text::write_repr(&mut out, value, 0).map_err(|_| Error::from(budget::Exceeded::Made))?;
    budget::charge(state, out.out.len())?;
    Ok(out.out)
}

/// A text that grows no further than [`MAX_BYTES`].
#[derive(Default)]
pub struct Out(pub String);

impl Out {
    pub fn push(&mut self, text: &str) -> Result<(), Error> {
        if self.0.len() + text.len() > MAX_BYTES {
            return Err(budget::Exceeded::Made.into());
        }
        self.0.push_str(text);
        Ok(())
    }
}
