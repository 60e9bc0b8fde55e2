//! Python's newer way to format a text: `'{}'.format(x)`.

use minijinja::value::Value;
use minijinja::{Error, ErrorKind, State};

use super::operators;
use super::printf::{Out, repr};
use super::spec::{Spec, formatted_number, invalid};
use super::texts;
use super::values;

/// `format.format(arguments)`.
///
/// # Errors
/// The format is none, arguments are missing, or the result is too long.
pub fn format(state: &State, format: &str, args: &[Value]) -> Result<Value, Error> {
    let (args, named) = values::split(args)?;
    let named = Value::from_iter(named);
    fields(state, format, args, &named)
}

/// `format.format_map(map)`.
///
/// # Errors
/// The format is none, arguments are missing, or the result is too long.
pub fn format_map(state: &State, format: &str, map: &Value) -> Result<Value, Error> {
    fields(state, format, &[], map)
}

fn fields(state: &State, format: &str, args: &[Value], named: &Value) -> Result<Value, Error> {
    let mut fields = Fields { state, args, named, next: 0 };
    let mut out = Out::default();
    fields.write(&mut out, format, 0)?;
    Ok(Value::from(out.0))
}

struct Fields<'a, 'b> {
    state: &'a State<'a, 'b>,
    args: &'a [Value],
    named: &'a Value,
    next: usize,
}

impl Fields<'_, '_> {
    fn write(&mut self, out: &mut Out, format: &str, depth: usize) -> Result<(), Error> {
        let mut rest = format;
        while let Some(at) = rest.find(['{', '}']) {
            out.push(&rest[..at])?;
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(doubled) = rest.strip_prefix(brace).filter(|_| depth == 0) {
                out.push(brace)?;
                rest = doubled;
                continue;
            }
            if brace == "}" || depth > 1 {
                return Err(invalid());
            }
            let end = field_end(rest).ok_or_else(invalid)?;
            let text = self.field(&rest[..end], depth)?;
            out.push(&text)?;
            rest = &rest[end + 1..];
        }
        out.push(rest)
    }

    /// `name!conversion:spec`.
    fn field(&mut self, field: &str, depth: usize) -> Result<String, Error> {
        let split = field.find([':', '!']).unwrap_or(field.len());
        let (name, behind) = field.split_at(split);
        let (conversion, spec) = match behind.strip_prefix('!') {
            Some(behind) => {
                let (conversion, spec) = behind.split_once(':').unwrap_or((behind, ""));
                (Some(conversion), spec)
            }
            None => (None, behind.strip_prefix(':').unwrap_or("")),
        };
        let value = self.value(name)?;
        let mut expanded = Out::default();
        self.write(&mut expanded, spec, depth + 1)?;
        match conversion {
            None => formatted(self.state, &value, &expanded.0),
            Some("s") => formatted(self.state, &Value::from(texts::string(self.state, &value)?), &expanded.0),
            Some("r") => formatted(self.state, &Value::from(repr(self.state, &value)?), &expanded.0),
            Some(_) => Err(invalid()),
        }
    }

    /// A position or a name, and attributes and subscripts behind it.
    fn value(&mut self, path: &str) -> Result<Value, Error> {
        let end = path.find(['.', '[']).unwrap_or(path.len());
        let (first, mut rest) = path.split_at(end);
        let mut value = match first.parse::<usize>() {
            _ if first.is_empty() => {
                self.next += 1;
                self.args.get(self.next - 1).cloned()
            }
            Ok(at) => self.args.get(at).cloned(),
            Err(_) => {
                Some(operators::item(self.named, &Value::from(first))?).filter(|value| !value.is_undefined())
            }
        }
        .ok_or_else(|| Error::new(ErrorKind::MissingArgument, "a format wants more arguments"))?;
        while !rest.is_empty() {
            if let Some(subscript) = rest.strip_prefix('[') {
                let (key, behind) = subscript.split_once(']').ok_or_else(invalid)?;
                let key = key.parse::<i64>().map_or_else(|_| Value::from(key), Value::from);
                (value, rest) = (operators::item(&value, &key)?, behind);
            } else {
                let name = rest.strip_prefix('.').ok_or_else(invalid)?;
                let end = name.find(['.', '[']).unwrap_or(name.len());
                value = operators::attribute(&value, &name[..end])?;
                rest = &name[end..];
            }
        }
        Ok(value)
    }
}

/// Where the field ends whose opening brace is before `rest`.
fn field_end(rest: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, char) in rest.char_indices() {
        match char {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// `format(value, spec)`.
fn formatted(state: &State, value: &Value, spec: &str) -> Result<String, Error> {
    if spec.is_empty() {
        return Ok(texts::string(state, value)?.into_owned());
    }
    let parsed = Spec::parse(spec)?;
    let value = values::as_text(value);
    if value.as_str().is_some() || value.is_undefined() {
        if !matches!(parsed.kind, None | Some('s')) || parsed.sign.is_some() || parsed.align == Some('=') {
            return Err(invalid());
        }
        let text = value.as_str().unwrap_or_default();
        let text: String = text.chars().take(parsed.precision.unwrap_or(usize::MAX)).collect();
        return Ok(parsed.pad(&text, '<'));
    }
    let text = formatted_number(&value, &parsed)?;
    Ok(parsed.pad(&text, '>'))
}
