//! Methods of Python's `str`, `dict`, `list` and `tuple`, as far as a sandbox of jinja2 lets templates call them.

use minijinja::value::Value;
use minijinja::{Error, ErrorKind, State};

use super::budget::{self, MAX_ITEMS, check_bytes};
use super::format;
use super::texts::{self, is_space};
use super::values::{self, Items, Row, bind, index, text, wrong};

const OF_TEXT: [&str; 45] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
    "encode",
];
const OF_MAP: [&str; 11] =
    ["clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem", "setdefault", "update", "values"];
const OF_LIST: [&str; 11] =
    ["append", "clear", "copy", "count", "extend", "index", "insert", "pop", "remove", "reverse", "sort"];

/// Whether the value has a method of that name.
pub fn has(value: &Value, name: &str) -> bool {
    if value.as_str().is_some() {
        return OF_TEXT.contains(&name);
    }
    if values::is_map(value) {
        return OF_MAP.contains(&name);
    }
    match values::row(value) {
        Some(Row::Tuple | Row::Group) => matches!(name, "count" | "index"),
        Some(_) => false,
        None => values::is_sequence(value) && OF_LIST.contains(&name),
    }
}

/// Calls a method of a value that is no object of minijinja's.
///
/// # Errors
/// There is none, or it refuses its arguments.
pub fn call(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    let value = &match has(&Value::from(""), name) && !OF_MAP.contains(&name) {
        true => values::as_text(value),
        false => values::as_object(value)?,
    };
    if !has(value, name) {
        return Err(Error::from(ErrorKind::UnknownMethod));
    }
    match value.as_str() {
        Some(this) => of_text(state, this, name, args),
        None if values::is_map(value) => of_map(value, name, args),
        None => of_sequence(value, name, args),
    }
}

fn of_map(value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let pairs = || value.as_object().and_then(|object| object.try_iter_pairs()).into_iter().flatten();
    match name {
        "get" => {
            let [key, default] = bind(args, ["key", "default"])?;
            let key = key.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
            let found = value.as_object().and_then(|object| object.get_value(&key));
            Ok(found.or(default).unwrap_or_else(|| Value::from(())))
        }
        "items" => {
            let [] = bind(args, [])?;
            let pair = |(key, value)| Items::value(Row::Tuple, vec![key, value]);
            Ok(Items::value(Row::Items, pairs().map(pair).collect()))
        }
        "keys" => {
            let [] = bind(args, [])?;
            Ok(Items::value(Row::Keys, pairs().map(|(key, _)| key).collect()))
        }
        "values" => {
            let [] = bind(args, [])?;
            Ok(Items::value(Row::Values, pairs().map(|(_, value)| value).collect()))
        }
        "copy" => Ok(value.clone()),
        // What changes a dictionary is refused in jinja2's sandbox, too.
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn of_sequence(value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match name {
        "copy" => Ok(value.clone()),
        "count" => {
            let [wanted] = bind(args, ["value"])?;
            let wanted = wanted.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
            Ok(Value::from(value.try_iter()?.filter(|item| values::equal(item, &wanted)).count()))
        }
        "index" => {
            let [wanted] = bind(args, ["value"])?;
            let wanted = wanted.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
            let at = value.try_iter()?.position(|item| values::equal(&item, &wanted));
            at.map(Value::from).ok_or_else(|| wrong("not in the list"))
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn of_text(state: &State, this: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(is) = property(this, name) {
        let [] = bind(args, [])?;
        return Ok(Value::from(is));
    }
    match name {
        "capitalize" | "casefold" | "lower" | "swapcase" | "title" | "upper" => {
            let [] = bind(args, [])?;
            Ok(Value::from(texts::cased(this, name)))
        }
        "center" | "ljust" | "rjust" | "zfill" => justified(this, name, args),
        "count" | "find" | "index" | "rfind" | "rindex" => found(this, name, args),
        "startswith" | "endswith" => affixed(this, name, args),
        "format" => format::format(state, this, args),
        "format_map" => {
            let [map] = bind(args, ["mapping"])?;
            format::format_map(state, this, &map.unwrap_or_default())
        }
        "join" => {
            let [items] = bind(args, ["iterable"])?;
            let items = values::items(&items.unwrap_or_default())?;
            if items.iter().any(|item| values::as_text(item).as_str().is_none()) {
                return Err(wrong("`join` wants texts"));
            }
            texts::join(state, &items, &Value::from(this))
        }
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = bind(args, ["chars"])?;
            Ok(Value::from(stripped(this, name, chars.as_ref())?))
        }
        "split" | "rsplit" => split(state, this, name, args),
        "splitlines" => {
            let [keep] = bind(args, ["keepends"])?;
            let lines = texts::lines(this, keep.is_some_and(|keep| keep.is_true()));
            let lines: Vec<_> = lines.take(MAX_ITEMS + 1).collect();
            if lines.len() > MAX_ITEMS {
                return Err(budget::Exceeded::Made.into());
            }
            Ok(Value::from_iter(lines))
        }
        _ => changed(this, name, args),
    }
}

/// Methods that cut a text or replace parts of it.
fn changed(this: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    match name {
        "partition" | "rpartition" => {
            let [separator] = bind(args, ["sep"])?;
            let separator = text(separator.as_ref())?;
            if separator.is_empty() {
                return Err(wrong("an empty separator"));
            }
            let (parts, missing) = match name {
                "partition" => (this.split_once(&separator), [this, "", ""]),
                _ => (this.rsplit_once(&separator), ["", "", this]),
            };
            let parts = parts.map_or(missing, |(before, after)| [before, &separator, after]);
            Ok(Items::value(Row::Tuple, parts.into_iter().map(Value::from).collect()))
        }
        "removeprefix" | "removesuffix" => {
            let [affix] = bind(args, ["affix"])?;
            let affix = text(affix.as_ref())?;
            let rest = match name {
                "removeprefix" => this.strip_prefix(&affix),
                _ => this.strip_suffix(&affix),
            };
            Ok(Value::from(rest.unwrap_or(this)))
        }
        "replace" => {
            let [old, new, count] = bind(args, ["old", "new", "count"])?;
            let (old, new) = (text(old.as_ref())?, text(new.as_ref())?);
            texts::replace(this, &old, &new, index(count.as_ref())?)
        }
        "expandtabs" => {
            let [size] = bind(args, ["tabsize"])?;
            let size = index(size.as_ref())?.unwrap_or(8).max(0) as usize;
            check_bytes(this.matches('\t').count().saturating_mul(size).saturating_add(this.len()))?;
            Ok(Value::from(expanded(this, size)))
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

/// `isalpha` and its like.
fn property(this: &str, name: &str) -> Option<bool> {
    let all = |is: fn(char) -> bool| !this.is_empty() && this.chars().all(is);
    let cased = |wanted: fn(char) -> bool, other: fn(char) -> bool| {
        this.chars().any(wanted) && !this.chars().any(other)
    };
    Some(match name {
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => this.is_ascii(),
        "isdecimal" | "isdigit" => all(|char| char.is_ascii_digit()),
        "isnumeric" => all(char::is_numeric),
        "isidentifier" => {
            let starts = this.chars().next().is_some_and(|char| char.is_alphabetic() || char == '_');
            starts && this.chars().all(|char| char.is_alphanumeric() || char == '_')
        }
        "islower" => cased(char::is_lowercase, char::is_uppercase),
        "isupper" => cased(char::is_uppercase, char::is_lowercase),
        "isprintable" => this.chars().all(super::json_text::is_printable),
        "isspace" => all(is_space),
        "istitle" => texts::cased(this, "title") == this && this.chars().any(char::is_alphabetic),
        _ => return None,
    })
}

fn justified(this: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let [width, fill] = bind(args, ["width", "fillchar"])?;
    let width =
        index(width.as_ref())?.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?.max(0) as usize;
    let fill = fill.map(|fill| text(Some(&fill))).transpose()?.unwrap_or_else(|| " ".to_owned());
    let mut chars = fill.chars();
    let (Some(fill), None) = (chars.next(), chars.next()) else { return Err(wrong("one character to fill")) };
    check_bytes(width.saturating_mul(4).saturating_add(this.len()))?;
    let missing = width.saturating_sub(this.chars().count());
    let repeat = |times: usize| fill.to_string().repeat(times);
    Ok(Value::from(match name {
        "ljust" => format!("{this}{}", repeat(missing)),
        "rjust" => format!("{}{this}", repeat(missing)),
        "center" => {
            let left = missing / 2 + (missing & width & 1);
            format!("{}{this}{}", repeat(left), repeat(missing - left))
        }
        _ => {
            let (sign, digits) = this.split_at(usize::from(this.starts_with(['+', '-'])));
            format!("{sign}{}{digits}", "0".repeat(missing))
        }
    }))
}

/// The part of a text between two positions, and the number of characters before it; none behind its end.
fn window<'a>(
    this: &'a str,
    start: Option<&Value>,
    end: Option<&Value>,
) -> Result<Option<(&'a str, usize)>, Error> {
    let (start, end) = (index(start)?, index(end)?);
    if start.is_none() && end.is_none() {
        return Ok(Some((this, 0)));
    }
    let length = this.chars().count() as i64;
    let place = |at: i64| if at < 0 { (at + length).max(0) } else { at };
    let (start, end) = (place(start.unwrap_or(0)), place(end.unwrap_or(length)).min(length));
    if start > length || start > end {
        return Ok(None);
    }
    let byte = |at: i64| this.char_indices().nth(at as usize).map_or(this.len(), |(byte, _)| byte);
    Ok(Some((&this[byte(start)..byte(end)], start as usize)))
}

fn found(this: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let [wanted, start, end] = bind(args, ["sub", "start", "end"])?;
    let wanted = text(wanted.as_ref())?;
    let window = window(this, start.as_ref(), end.as_ref())?;
    if name == "count" {
        return Ok(Value::from(window.map_or(0, |(part, _)| match wanted.is_empty() {
            true => part.chars().count() + 1,
            false => part.matches(&wanted).count(),
        })));
    }
    let at = window.and_then(|(part, before)| {
        let at = if name.starts_with('r') { part.rfind(&wanted) } else { part.find(&wanted) };
        at.map(|at| before + part[..at].chars().count())
    });
    match at {
        Some(at) => Ok(Value::from(at)),
        None if name.ends_with("find") => Ok(Value::from(-1)),
        None => Err(wrong("substring not found")),
    }
}

fn affixed(this: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let [wanted, start, end] = bind(args, ["affix", "start", "end"])?;
    let wanted = wanted.unwrap_or_default();
    let Some((part, _)) = window(this, start.as_ref(), end.as_ref())? else { return Ok(Value::from(false)) };
    let is = |affix: &str| if name == "startswith" { part.starts_with(affix) } else { part.ends_with(affix) };
    if let Some(Row::Tuple) = values::row(&wanted) {
        let affixes = values::items(&wanted)?;
        let texts = affixes.iter().map(|affix| text(Some(affix))).collect::<Result<Vec<_>, _>>()?;
        return Ok(Value::from(texts.iter().any(|affix| is(affix))));
    }
    Ok(Value::from(is(&text(Some(&wanted))?)))
}

fn stripped<'a>(this: &'a str, name: &str, chars: Option<&Value>) -> Result<&'a str, Error> {
    let chars = chars.filter(|chars| !chars.is_none()).map(|chars| text(Some(chars))).transpose()?;
    let is = |char: char| chars.as_ref().map_or_else(|| is_space(char), |chars| chars.contains(char));
    Ok(match name {
        "lstrip" => this.trim_start_matches(is),
        "rstrip" => this.trim_end_matches(is),
        _ => this.trim_matches(is),
    })
}

fn split(state: &State, this: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let [separator, most] = bind(args, ["sep", "maxsplit"])?;
    let most = index(most.as_ref())?.filter(|most| *most >= 0).map_or(MAX_ITEMS, |most| most as usize);
    let separator = separator.filter(|separator| !separator.is_none());
    let separator = separator.map(|separator| text(Some(&separator))).transpose()?;
    let from_behind = name == "rsplit";
    let parts: Vec<&str> = match separator.as_deref() {
        Some("") => return Err(wrong("an empty separator")),
        Some(separator) if from_behind => this.rsplitn(most.saturating_add(1), separator).collect(),
        Some(separator) => this.splitn(most.saturating_add(1), separator).collect(),
        None => words(this, most, from_behind),
    };
    if parts.len() > MAX_ITEMS {
        return Err(budget::Exceeded::Made.into());
    }
    budget::charge(state, parts.len().saturating_mul(24))?;
    let parts = parts.into_iter().map(Value::from);
    Ok(if from_behind { parts.rev().collect() } else { parts.collect() })
}

/// Words between white space, at most `most` and a rest; from behind, the last comes first. The rest keeps the white
/// space at its other end.
fn words(this: &str, most: usize, from_behind: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = this;
    loop {
        rest = if from_behind { rest.trim_end_matches(is_space) } else { rest.trim_start_matches(is_space) };
        if rest.is_empty() {
            return parts;
        }
        let at = if from_behind { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = at.filter(|_| parts.len() < most) else {
            parts.push(rest);
            return parts;
        };
        let (before, behind) = rest.split_at(at);
        let behind = &behind[behind.chars().next().map_or(0, char::len_utf8)..];
        let (part, further) = if from_behind { (behind, before) } else { (before, behind) };
        parts.push(part);
        rest = further;
    }
}

fn expanded(this: &str, size: usize) -> String {
    let (mut out, mut column) = (String::with_capacity(this.len()), 0);
    for char in this.chars() {
        match char {
            '\t' if size > 0 => {
                let width = size - column % size;
                out.push_str(&" ".repeat(width));
                column += width;
            }
            '\t' => {}
            _ => {
                out.push(char);
                column = if matches!(char, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    out
}
