//! The filters of jinja2 that are about texts and numbers, and where all filters are listed.

use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

use super::budget::{self, check_bytes};
use super::json_text;
use super::methods;
use super::operators;
use super::printf;
use super::sequences;
use super::texts;
use super::values::{self, bind, index, text, wrong};

pub type Filter = fn(&State, &Value, &[Value]) -> Result<Value, Error>;

/// Filters of this file. jinja2 also has `pprint`, `random`, `urlize` and `wordwrap`, which no template of a chat uses.
const FILTERS: &[(&str, Filter)] = &[
    ("abs", abs),
    ("attr", attr),
    ("capitalize", |state, value, _| cased(state, value, "capitalize")),
    ("center", center),
    ("count", length),
    ("d", default),
    ("default", default),
    ("e", escape),
    ("escape", escape),
    ("filesizeformat", file_size),
    ("float", float),
    ("forceescape", escape),
    ("format", format),
    ("indent", indent),
    ("int", int),
    ("length", length),
    ("lower", |state, value, _| cased(state, value, "lower")),
    ("replace", replace),
    ("round", round),
    ("safe", |state, value, _| Ok(Value::from_safe_string(texts::string(state, value)?.into_owned()))),
    ("string", string),
    ("striptags", |state, value, _| Ok(Value::from(texts::without_tags(&texts::string(state, value)?)))),
    ("title", |state, value, _| Ok(Value::from(texts::titled(&texts::string(state, value)?)))),
    ("tojson", |_, value, args| json_text::tojson(value, args).map(Value::from)),
    ("trim", trim),
    ("truncate", truncate),
    ("upper", |state, value, _| cased(state, value, "upper")),
    ("urlencode", urlencode),
    ("wordcount", word_count),
    ("xmlattr", xml_attributes),
];

/// Adds all filters.
pub fn install(environment: &mut Environment<'static>) {
    for &(name, filter) in FILTERS.iter().chain(sequences::FILTERS) {
        environment.add_filter(name, move |state: &State, args: Rest<Value>| match args.split_first() {
            Some((value, args)) => filter(state, value, args),
            None => Err(Error::from(ErrorKind::MissingArgument)),
        });
    }
}

fn string(state: &State, value: &Value, _: &[Value]) -> Result<Value, Error> {
    if value.as_str().is_some() {
        return Ok(value.clone());
    }
    budget::joined(state, std::iter::once(value))
}

fn cased(state: &State, value: &Value, name: &str) -> Result<Value, Error> {
    Ok(Value::from(texts::cased(&texts::string(state, value)?, name)))
}

fn length(_: &State, value: &Value, _: &[Value]) -> Result<Value, Error> {
    values::length(value).map(Value::from)
}

fn default(_: &State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [default, boolean] = bind(args, ["default_value", "boolean"])?;
    let wanted = value.is_undefined() || boolean.is_some_and(|boolean| boolean.is_true()) && !value.is_true();
    Ok(if wanted { default.unwrap_or_else(|| Value::from("")) } else { value.clone() })
}

/// `getattr`: methods and what is no item of a dictionary.
fn attr(_: &State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [name] = bind(args, ["name"])?;
    let name = text(name.as_ref())?;
    match values::is_map(&values::as_object(value)?) && !methods::has(&values::as_object(value)?, &name) {
        true => Ok(Value::UNDEFINED),
        false => operators::attribute(value, &name),
    }
}

fn abs(_: &State, value: &Value, _: &[Value]) -> Result<Value, Error> {
    match values::whole(value) {
        Some(whole) => whole.checked_abs().map(values::number).ok_or_else(|| wrong("a number too large")),
        None => Ok(Value::from(values::float(value)?.abs())),
    }
}

fn center(state: &State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [width] = bind(args, ["width"])?;
    let text = Value::from(texts::string(state, value)?);
    methods::call(state, &text, "center", &[width.unwrap_or_else(|| Value::from(80))])
}

fn escape(state: &State, value: &Value, _: &[Value]) -> Result<Value, Error> {
    if value.is_safe() {
        return Ok(value.clone());
    }
    let text = texts::string(state, value)?;
    check_bytes(text.len().saturating_mul(5))?;
    Ok(Value::from_safe_string(texts::escaped(&text)))
}

fn format(state: &State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let (positional, named) = values::split(args)?;
    let arguments = match (positional.is_empty(), named.is_empty()) {
        (false, false) => return Err(wrong("arguments with and without names")),
        (true, false) => Value::from_iter(named),
        _ => values::Items::value(values::Row::Tuple, positional.to_vec()),
    };
    printf::percent(state, &texts::string(state, value)?, &arguments)
}

fn indent(state: &State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [width, first, blank] = bind(args, ["width", "first", "blank"])?;
    let is_set = |flag: Option<Value>| flag.is_some_and(|flag| flag.is_true());
    let by = match width {
        Some(width) if width.as_str().is_some() => text(Some(&width))?,
        width => {
            let width = index(width.as_ref())?.unwrap_or(4).max(0) as usize;
            check_bytes(width)?;
            " ".repeat(width)
        }
    };
    texts::indent(&texts::string(state, value)?, &by, is_set(first), is_set(blank))
}

fn replace(state: &State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [old, new, count] = bind(args, ["old", "new", "count"])?;
    let missing = || Error::from(ErrorKind::MissingArgument);
    let (old, new) = (old.ok_or_else(missing)?, new.ok_or_else(missing)?);
    let (old, new) = (texts::string(state, &old)?, texts::string(state, &new)?);
    texts::replace(&texts::string(state, value)?, &old, &new, index(count.as_ref())?)
}

fn trim(state: &State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [chars] = bind(args, ["chars"])?;
    let text = Value::from(texts::string(state, value)?);
    methods::call(state, &text, "strip", &[chars.unwrap_or_else(|| Value::from(()))])
}

fn truncate(state: &State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [length, kill_words, end, leeway] = bind(args, ["length", "killwords", "end", "leeway"])?;
    let length = index(length.as_ref())?.unwrap_or(255);
    let end = end.map_or_else(|| Ok("...".to_owned()), |end| text(Some(&end)))?;
    let leeway = index(leeway.as_ref())?.unwrap_or(5);
    let kept = length - end.chars().count() as i64;
    if kept < 0 || leeway < 0 {
        return Err(wrong("a length below that of the end"));
    }
    let text = texts::string(state, value)?;
    if text.chars().count() as i64 <= length + leeway {
        return Ok(Value::from(text));
    }
    let cut: String = text.chars().take(kept as usize).collect();
    let words = match kill_words.is_some_and(|kill| kill.is_true()) {
        true => cut.as_str(),
        false => cut.rsplit_once(' ').map_or(cut.as_str(), |(words, _)| words),
    };
    Ok(Value::from(format!("{words}{end}")))
}

fn urlencode(state: &State, value: &Value, _: &[Value]) -> Result<Value, Error> {
    let quoted = |value: &Value, for_query: bool| -> Result<String, Error> {
        let text = texts::string(state, value)?;
        check_bytes(text.len().saturating_mul(3))?;
        Ok(texts::quoted(&text, for_query))
    };
    if value.as_str().is_some() || !values::is_iterable(value) {
        return quoted(value, false).map(Value::from);
    }
    let pairs = match value.as_object().filter(|_| values::is_map(value)) {
        Some(map) => map.try_iter_pairs().into_iter().flatten().collect(),
        None => {
            let pairs = values::items(value)?.into_iter().map(|pair| match &values::items(&pair)?[..] {
                [key, value] => Ok((key.clone(), value.clone())),
                _ => Err(wrong("a pair wanted")),
            });
            pairs.collect::<Result<Vec<_>, Error>>()?
        }
    };
    let mut out = Vec::new();
    for (key, value) in &pairs {
        out.push(Value::from(format!("{}={}", quoted(key, true)?, quoted(value, true)?)));
    }
    texts::join(state, &out, &Value::from("&"))
}

fn word_count(state: &State, value: &Value, _: &[Value]) -> Result<Value, Error> {
    let text = texts::string(state, value)?;
    let words = text.split(|char: char| !char.is_alphanumeric() && char != '_');
    Ok(Value::from(words.filter(|word| !word.is_empty()).count()))
}

fn xml_attributes(state: &State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [space] = bind(args, ["autospace"])?;
    let (mut pairs, mut bytes) = (Vec::new(), 0_usize);
    for (key, value) in value.as_object().and_then(|map| map.try_iter_pairs()).into_iter().flatten() {
        if !value.is_none() && !value.is_undefined() {
            let [key, value] = [&key, &value].map(|value| texts::string(state, value));
            let pair = format!("{}=\"{}\"", texts::escaped(&key?), texts::escaped(&value?));
            bytes += pair.len();
            check_bytes(bytes)?;
            pairs.push(pair);
        }
    }
    let before = if space.is_none_or(|space| space.is_true()) && !pairs.is_empty() { " " } else { "" };
    Ok(Value::from(format!("{before}{}", pairs.join(" "))))
}

fn file_size(_: &State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [binary] = bind(args, ["binary"])?;
    let binary = binary.is_some_and(|binary| binary.is_true());
    let bytes = values::float(value)?;
    let base = if binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return Ok(Value::from("1 Byte"));
    }
    if bytes < base {
        return Ok(Value::from(format!("{} Bytes", bytes as i64)));
    }
    let prefixes = ["k", "M", "G", "T", "P", "E", "Z", "Y"];
    let power = (1..=8).find(|power| bytes < base.powi(power + 1)).unwrap_or(8);
    let prefix = prefixes[power as usize - 1];
    let prefix = if binary { format!("{}i", prefix.to_uppercase()) } else { prefix.to_owned() };
    Ok(Value::from(format!("{:.1} {prefix}B", bytes / base.powi(power))))
}

/// The text of a number as Python reads it: white space around it, `_` between digits.
fn digits(text: &str) -> Option<String> {
    let text = text.trim_matches(texts::is_space);
    let stray = text.starts_with('_') || text.ends_with('_') || text.contains("__");
    (!stray && !text.is_empty()).then(|| text.replace('_', ""))
}

fn parse_float(text: &str) -> Option<f64> {
    let text = digits(text)?;
    text.parse().ok()
}

fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = digits(text)?;
    let (sign, rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(&text)),
    };
    let lower = rest.to_lowercase();
    let prefixed = [("0x", 16), ("0o", 8), ("0b", 2)].into_iter().find_map(|(prefix, of)| {
        lower.strip_prefix(prefix).filter(|_| base == of || base == 0).map(|rest| (rest, of))
    });
    let (rest, base) = prefixed.unwrap_or((&lower, if base == 0 { 10 } else { base }));
    if rest.starts_with(['+', '-']) || !(2..=36).contains(&base) {
        return None;
    }
    i128::from_str_radix(rest, base).ok().map(|number| sign * number)
}

fn int(_: &State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [default, base] = bind(args, ["default", "base"])?;
    let base = index(base.as_ref())?.unwrap_or(10).clamp(0, 99) as u32;
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    let value = values::as_text(value);
    let number = match (value.as_str(), value.kind()) {
        (Some(text), _) => parse_int(text, base)
            .or_else(|| parse_float(text).filter(|float| float.is_finite()).map(|float| float as i128)),
        (_, ValueKind::Number | ValueKind::Bool) => match values::whole(&value) {
            Some(whole) => Some(whole),
            None => Some(values::float(&value)?).filter(|float| float.is_finite()).map(|float| float as i128),
        },
        _ => None,
    };
    Ok(number.map_or_else(|| default.unwrap_or_else(|| Value::from(0)), values::number))
}

fn float(_: &State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [default] = bind(args, ["default"])?;
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    let value = values::as_text(value);
    let number = match value.as_str() {
        Some(text) => parse_float(text),
        None => values::float(&value).ok(),
    };
    Ok(number.map_or_else(|| default.unwrap_or_else(|| Value::from(0.0)), Value::from))
}

fn round(_: &State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [precision, method] = bind(args, ["precision", "method"])?;
    let precision = index(precision.as_ref())?.unwrap_or(0).clamp(-400, 400) as i32;
    let method = method.map_or_else(|| Ok("common".to_owned()), |method| text(Some(&method)))?;
    let number = values::float(value)?;
    let scale = 10_f64.powi(precision);
    Ok(match (method.as_str(), values::whole(value)) {
        ("common", Some(whole)) if precision >= 0 => values::number(whole),
        ("common", Some(_)) => values::number(((number * scale).round_ties_even() / scale) as i128),
        // Rust rounds decimal digits as Python does: by the exact value, half to even.
        ("common", None) if precision >= 0 => {
            let digits = format!("{number:.*}", precision as usize);
            Value::from(digits.parse::<f64>().unwrap_or(number))
        }
        ("common", None) => Value::from((number * scale).round_ties_even() / scale),
        ("ceil", _) => Value::from((number * scale).ceil() / scale),
        ("floor", _) => Value::from((number * scale).floor() / scale),
        _ => return Err(wrong("method must be common, ceil or floor")),
    })
}
