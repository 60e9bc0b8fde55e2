//! The filters of jinja2 that are about sequences and dictionaries.

use std::cmp::Ordering;

use minijinja::value::Value;
use minijinja::{Error, ErrorKind, State};

use super::budget::{self, Charge};
use super::filters::Filter;
use super::operators;
use super::texts;
use super::values::{self, Items, Row, bind, index, items, text, wrong};

pub const FILTERS: &[(&str, Filter)] = &[
    ("batch", batch),
    ("dictsort", dict_sort),
    ("first", first),
    ("groupby", group_by),
    ("items", map_items),
    ("join", join),
    ("last", last),
    ("list", |_, value, _| items(value).map(Value::from)),
    ("map", map),
    ("max", |_, value, args| extreme(value, args, Ordering::Greater)),
    ("min", |_, value, args| extreme(value, args, Ordering::Less)),
    ("reject", |state, value, args| select(state, value, args, false, false)),
    ("rejectattr", |state, value, args| select(state, value, args, true, false)),
    ("reverse", reverse),
    ("select", |state, value, args| select(state, value, args, false, true)),
    ("selectattr", |state, value, args| select(state, value, args, true, true)),
    ("slice", slice),
    ("sort", sort),
    ("sum", sum),
    ("unique", unique),
];

fn generator(items: Vec<Value>) -> Value {
    Items::value(Row::Generator, items)
}

/// What `attribute` says of an item: a path with dots, or a position.
fn attribute_of(item: &Value, attribute: &Value, default: Option<&Value>) -> Result<Value, Error> {
    let Some(path) = attribute.as_str() else { return operators::item(item, attribute) };
    let mut value = item.clone();
    for part in path.split('.') {
        let key = part.parse::<u32>().map_or_else(|_| Value::from(part), Value::from);
        value = operators::item(&value, &key)?;
        if let Some(default) = default.filter(|_| value.is_undefined()) {
            value = default.clone();
        }
    }
    Ok(value)
}

/// What an item is sorted by; texts in lower case unless case counts.
fn key_of(item: &Value, attribute: Option<&Value>, case: bool) -> Result<Value, Error> {
    let value = match attribute.filter(|attribute| !attribute.is_none()) {
        Some(attribute) => attribute_of(item, attribute, None)?,
        None => item.clone(),
    };
    Ok(match value.as_str() {
        Some(text) if !case => Value::from(text.to_lowercase()),
        _ => value,
    })
}

fn is_set(flag: Option<Value>) -> bool {
    flag.is_some_and(|flag| flag.is_true())
}

/// Sorts stably by keys; the first pair without an order is the error.
fn sorted(mut keyed: Vec<(Value, Value)>, reverse: bool) -> Result<Vec<(Value, Value)>, Error> {
    let mut failed = None;
    keyed.sort_by(|(a, _), (b, _)| {
        let order = values::order(a, b).unwrap_or_else(|error| {
            failed.get_or_insert(error);
            Ordering::Equal
        });
        if reverse { order.reverse() } else { order }
    });
    failed.map_or(Ok(keyed), Err)
}

fn sort(_: &State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [reverse, case, attribute] = bind(args, ["reverse", "case_sensitive", "attribute"])?;
    let (reverse, case) = (is_set(reverse), is_set(case));
    let paths: Vec<Value> = match attribute.as_ref().and_then(Value::as_str) {
        Some(paths) => paths.split(',').map(Value::from).collect(),
        None => attribute.into_iter().collect(),
    };
    let mut keyed = Vec::new();
    for item in items(value)? {
        let key = match &paths[..] {
            [] => key_of(&item, None, case)?,
            [path] => key_of(&item, Some(path), case)?,
            paths => paths
                .iter()
                .map(|path| key_of(&item, Some(path), case))
                .collect::<Result<Vec<_>, _>>()?
                .into(),
        };
        keyed.push((key, item));
    }
    Ok(sorted(keyed, reverse)?.into_iter().map(|(_, item)| item).collect())
}

fn dict_sort(_: &State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [case, by, reverse] = bind(args, ["case_sensitive", "by", "reverse"])?;
    let (case, reverse) = (is_set(case), is_set(reverse));
    let by = by.map_or_else(|| Ok("key".to_owned()), |by| text(Some(&by)))?;
    let mut keyed = Vec::new();
    for (key, value) in pairs(value)? {
        let by = match by.as_str() {
            "key" => key_of(&key, None, case)?,
            "value" => key_of(&value, None, case)?,
            _ => return Err(wrong("sorted by key or value")),
        };
        keyed.push((by, Items::value(Row::Tuple, vec![key, value])));
    }
    Ok(sorted(keyed, reverse)?.into_iter().map(|(_, pair)| pair).collect())
}

fn pairs(value: &Value) -> Result<Vec<(Value, Value)>, Error> {
    let value = values::as_object(value)?;
    match value.as_object().filter(|_| values::is_map(&value)) {
        Some(map) => Ok(map.try_iter_pairs().into_iter().flatten().collect()),
        None => Err(wrong("a dictionary wanted")),
    }
}

fn map_items(_: &State, value: &Value, _: &[Value]) -> Result<Value, Error> {
    if value.is_undefined() {
        return Ok(generator(Vec::new()));
    }
    let pair = |(key, value)| Items::value(Row::Tuple, vec![key, value]);
    Ok(generator(pairs(value)?.into_iter().map(pair).collect()))
}

fn first(_: &State, value: &Value, _: &[Value]) -> Result<Value, Error> {
    Ok(items(value)?.into_iter().next().unwrap_or(Value::UNDEFINED))
}

fn last(_: &State, value: &Value, _: &[Value]) -> Result<Value, Error> {
    match values::row(value) {
        Some(Row::Generator) => Err(wrong("a generator has no last item")),
        _ => Ok(items(value)?.pop().unwrap_or(Value::UNDEFINED)),
    }
}

fn reverse(_: &State, value: &Value, _: &[Value]) -> Result<Value, Error> {
    if let Some(text) = values::as_object(value)?.as_str() {
        return Ok(Value::from(text.chars().rev().collect::<String>()));
    }
    let is_generator = values::row(value) == Some(Row::Generator);
    let mut items = items(value)?;
    items.reverse();
    Ok(if is_generator { Value::from(items) } else { generator(items) })
}

fn join(state: &State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [separator, attribute] = bind(args, ["d", "attribute"])?;
    let attribute = attribute.filter(|attribute| !attribute.is_none());
    let mut parts = items(value)?;
    if let Some(attribute) = attribute {
        for part in &mut parts {
            *part = attribute_of(part, &attribute, None)?;
        }
    }
    let separator = separator.unwrap_or_else(|| Value::from(""));
    texts::join(state, &parts, &separator)
}

/// `map` with a filter, whose results are charged one by one, or with an attribute.
fn map(state: &State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    // What is false has no items, even none.
    if !value.is_true() {
        return Ok(generator(Vec::new()));
    }
    let mut results = Vec::new();
    let (positional, _) = values::split(args)?;
    if positional.is_empty() {
        let [attribute, default] = bind(args, ["attribute", "default"])?;
        let attribute = attribute.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
        let default = default.filter(|default| !default.is_none());
        for item in budget::listed(state, &values::as_object(value)?)? {
            results.push(attribute_of(&item, &attribute, default.as_ref())?);
        }
        return Ok(generator(results));
    }
    let name = text(args.first())?;
    for item in budget::listed(state, &values::as_object(value)?)? {
        let mut item = vec![item];
        item.extend_from_slice(&args[1..]);
        results.push(budget::checked(state, state.apply_filter(&name, &item)?, Charge::Made)?);
    }
    Ok(generator(results))
}

/// `select`, `reject`, and what they do with an attribute.
fn select(
    state: &State,
    value: &Value,
    args: &[Value],
    by_attribute: bool,
    wanted: bool,
) -> Result<Value, Error> {
    let (attribute, args) = match (by_attribute, args.split_first()) {
        (false, _) => (None, args),
        (true, Some((attribute, args))) => (Some(attribute), args),
        (true, None) => return Err(Error::from(ErrorKind::MissingArgument)),
    };
    if !value.is_true() {
        return Ok(generator(Vec::new()));
    }
    let test = args.first().map(|name| text(Some(name))).transpose()?;
    let mut kept = Vec::new();
    for item in items(value)? {
        let tested = match attribute {
            Some(attribute) => attribute_of(&item, attribute, None)?,
            None => item.clone(),
        };
        let passes = match &test {
            None => tested.is_true(),
            Some(test) => {
                let mut all = vec![tested];
                all.extend_from_slice(&args[1..]);
                state.perform_test(test, &all)?
            }
        };
        if passes == wanted {
            kept.push(item);
        }
    }
    Ok(generator(kept))
}

fn extreme(value: &Value, args: &[Value], wanted: Ordering) -> Result<Value, Error> {
    let [case, attribute] = bind(args, ["case_sensitive", "attribute"])?;
    let case = is_set(case);
    let mut best: Option<(Value, Value)> = None;
    for item in items(value)? {
        let key = key_of(&item, attribute.as_ref(), case)?;
        let better = match &best {
            None => true,
            Some((best, _)) => values::order(&key, best)? == wanted,
        };
        if better {
            best = Some((key, item));
        }
    }
    Ok(best.map_or(Value::UNDEFINED, |(_, item)| item))
}

fn unique(_: &State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [case, attribute] = bind(args, ["case_sensitive", "attribute"])?;
    let case = is_set(case);
    let mut seen = std::collections::BTreeSet::new();
    let mut kept = Vec::new();
    for item in items(value)? {
        if seen.insert(key_of(&item, attribute.as_ref(), case)?) {
            kept.push(item);
        }
    }
    Ok(generator(kept))
}

fn sum(state: &State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [attribute, start] = bind(args, ["attribute", "start"])?;
    let attribute = attribute.filter(|attribute| !attribute.is_none());
    let mut sum = start.unwrap_or_else(|| Value::from(0));
    for item in items(value)? {
        let item = match &attribute {
            Some(attribute) => attribute_of(&item, attribute, None)?,
            None => item,
        };
        if sum.as_str().is_some() {
            return Err(wrong("no sum of texts"));
        }
        sum = state.apply_filter("__add", &[sum, item])?;
    }
    Ok(sum)
}

fn group_by(_: &State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [attribute, default, case] = bind(args, ["attribute", "default", "case_sensitive"])?;
    let attribute = attribute.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
    let case = is_set(case);
    let mut keyed = Vec::new();
    for item in items(value)? {
        let grouper = attribute_of(&item, &attribute, default.as_ref())?;
        keyed.push((key_of(&grouper, None, case)?, item));
    }
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for (key, item) in sorted(keyed, false)? {
        match groups.last_mut() {
            Some((last, group)) if values::equal(last, &key) => group.push(item),
            _ => groups.push((key, vec![item])),
        }
    }
    let group = |(key, group): (Value, Vec<Value>)| {
        // Without regard to case the name is as the first item has it.
        let grouper = match case {
            true => key,
            false => attribute_of(&group[0], &attribute, default.as_ref())?,
        };
        Ok(Items::value(Row::Group, vec![grouper, Value::from(group)]))
    };
    groups.into_iter().map(group).collect::<Result<Vec<_>, Error>>().map(Value::from)
}

fn batch(state: &State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [size, fill] = bind(args, ["linecount", "fill_with"])?;
    let size =
        index(size.as_ref())?.filter(|size| *size > 0).ok_or_else(|| wrong("batches of a size"))? as usize;
    let mut batches: Vec<Vec<Value>> = items(value)?.chunks(size).map(<[Value]>::to_vec).collect();
    if let (Some(fill), Some(last)) = (fill.filter(|fill| !fill.is_none()), batches.last_mut()) {
        let missing = size - last.len();
        budget::charge(state, missing.saturating_mul(size_of::<Value>()))?;
        last.resize(size, fill);
    }
    Ok(generator(batches.into_iter().map(Value::from).collect()))
}

fn slice(_: &State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [slices, fill] = bind(args, ["slices", "fill_with"])?;
    let count =
        index(slices.as_ref())?.filter(|count| *count > 0).ok_or_else(|| wrong("a number of slices"))?;
    let fill = fill.filter(|fill| !fill.is_none());
    let items = items(value)?;
    let count = usize::try_from(count).ok().filter(|count| *count <= budget::MAX_ITEMS);
    let count = count.ok_or_else(|| Error::from(budget::Exceeded::Made))?;
    let (each, longer) = (items.len() / count, items.len() % count);
    let (mut slices, mut rest) = (Vec::new(), &items[..]);
    for at in 0..count {
        let (slice, further) = rest.split_at(each + usize::from(at < longer));
        let mut slice = slice.to_vec();
        if at >= longer
            && let Some(fill) = &fill
        {
            slice.push(fill.clone());
        }
        slices.push(Value::from(slice));
        rest = further;
    }
    Ok(generator(slices))
}
