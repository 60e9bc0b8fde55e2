//! Arrays: the spellings of `items`, `contains`, `uniqueItems`, `unevaluatedItems`.

use serde_json::{Map, Value, json};

use super::super::values::list;
use super::write::{alone, any_of, other_types};
use super::{Lowering, numbers};
use crate::error::Result;

/// In how many places the first item may stand of which an array has to contain one, unless it is shorter.
const PLACES: u64 = 8;
/// Arrays that are written out for `uniqueItems`.
const MAX_ARRAYS: usize = 400;

impl<'a> Lowering<'a, '_> {
    /// In the spelling of 2020-12: an array of `items` is `prefixItems`, and what follows it is `items`.
    pub fn items(
        &mut self,
        keyword: &str,
        value: &'a Value,
        map: &'a Map<String, Value>,
        out: &mut Map<String, Value>,
    ) -> Result<()> {
        let old = matches!(map.get("items"), Some(Value::Array(_)));
        match keyword {
            "items" if old => {
                let items = self.schemas(value, "items")?;
                out.insert("prefixItems".into(), items);
            }
            "additionalItems" if old => {
                let rest = self.schema(value)?;
                out.insert("items".into(), rest);
            }
            "prefixItems" if !old => {
                let items = self.schemas(value, "prefixItems")?;
                out.insert("prefixItems".into(), items);
            }
            "items" => {
                let items = self.schema(value)?;
                out.insert("items".into(), items);
            }
            _ => {}
        }
        Ok(())
    }

    pub fn more_of_arrays(
        &mut self,
        map: &'a Map<String, Value>,
        out: &mut Map<String, Value>,
        also: &mut Vec<Value>,
    ) -> Result<()> {
        if let Some(rest) =
            map.get("unevaluatedItems").filter(|rest| **rest != true && !out.contains_key("items"))
        {
            let elsewhere =
                ["$ref", "$dynamicRef", "$recursiveRef", "allOf", "anyOf", "oneOf", "if", "contains"];
            if elsewhere.iter().any(|keyword| map.contains_key(*keyword)) {
                self.unenforced("unevaluatedItems")?;
            } else {
                let rest = self.schema(rest)?;
                out.insert("items".into(), rest);
            }
        }
        if let Some(schema) = map.get("contains") {
            match self.contained(schema, map)? {
                Some(contains) => also.extend((contains != true).then_some(contains)),
                None => self.unenforced("contains")?,
            }
        }
        if map.get("uniqueItems") == Some(&Value::Bool(true)) && max_items(map).is_none_or(|max| max > 1) {
            match self.unique(map) {
                Some(arrays) => also.push(any_of([other_types(map, "array"), json!({ "enum": arrays })])),
                None => self.unenforced("uniqueItems")?,
            }
        }
        Ok(())
    }

    /// Arrays with the least number of such items, next to each other and near the beginning. None where `maxContains`
    /// needs a negation that has no form.
    fn contained(&mut self, schema: &'a Value, map: &'a Map<String, Value>) -> Result<Option<Value>> {
        let count = |keyword: &str| map.get(keyword).and_then(|count| numbers::count(count).as_u64());
        let least = count("minContains").unwrap_or(1);
        let most = map.get("maxContains").map(|_| count("maxContains").unwrap_or(0));
        let others: Value = match most {
            None if least == 0 => return Ok(Some(true.into())),
            None => true.into(),
            Some(most) if most < least => return Ok(Some(other_types(map, "array"))),
            Some(_) => match self.negation(schema)? {
                Some(others) => others,
                None => return Ok(None),
            },
        };
        let item = self.schema(schema)?;
        let longest = max_items(map).unwrap_or(u64::MAX);
        let places = PLACES.min(longest.saturating_sub(least).saturating_add(1));
        let mut any = vec![other_types(map, "array")];
        if least > longest || least > 64 {
            return Ok((least > longest).then(|| any_of(any)));
        }
        for place in 0..if least == 0 { 1 } else { places } {
            let before = (0..place).map(|_| others.clone());
            let items: Vec<Value> = before.chain((0..least).map(|_| item.clone())).collect();
            let mut array = json!({ "type": "array", "items": others, "minItems": items.len() });
            if !items.is_empty() {
                array["prefixItems"] = items.into();
            }
            any.push(array);
        }
        Ok(Some(any_of(any)))
    }

    /// All arrays of items that differ, where those can be counted: in any order where that is few, else in the order
    /// of the schema.
    fn unique(&mut self, map: &'a Map<String, Value>) -> Option<Vec<Value>> {
        if map.contains_key("prefixItems") || matches!(map.get("items"), Some(Value::Array(_))) {
            return None;
        }
        let values = self.finite(map.get("items")?, 0)?;
        let min = map.get("minItems").map_or(Some(0), |count| numbers::count(count).as_u64())?;
        let longest = max_items(map).unwrap_or(u64::MAX).min(values.len() as u64);
        let wanted = |array: &Vec<usize>| array.len() as u64 >= min;
        [false, true].into_iter().find_map(|sorted| {
            let arrays = arrangements(values.len(), longest as usize, sorted)?;
            let written = arrays
                .into_iter()
                .filter(wanted)
                .map(|array| array.into_iter().map(|place| values[place].clone()).collect::<Value>());
            Some(written.collect())
        })
    }

    /// The values that a schema allows, each once, if it says so itself.
    fn finite(&mut self, schema: &'a Value, depth: usize) -> Option<Vec<Value>> {
        if let Some(name) = alone(schema).filter(|_| depth < 8) {
            let target = self.index.resolve(name.as_str()?, schema)?;
            return self.finite(target, depth + 1);
        }
        let map = schema.as_object()?;
        let mut values: Vec<Value> = Vec::new();
        let given = match (map.get("enum"), map.get("const"), map.get("type").and_then(Value::as_str)) {
            (Some(several), ..) => list(several, "enum").ok()?.clone(),
            (_, Some(one), _) => vec![one.clone()],
            (.., Some("boolean")) => vec![true.into(), false.into()],
            (.., Some("null")) => vec![Value::Null],
            _ => return None,
        };
        let same = |a: &Value, b: &Value| a == b || a.as_f64().is_some_and(|a| b.as_f64() == Some(a));
        for value in given {
            if value.is_array() || value.is_object() {
                return None;
            }
            if !values.iter().any(|known| same(known, &value)) {
                values.push(value);
            }
        }
        Some(values)
    }
}

fn max_items(map: &Map<String, Value>) -> Option<u64> {
    map.get("maxItems").and_then(|count| numbers::count(count).as_u64())
}

/// All sequences of different numbers below `count`, up to a length, or all that rise; none if they are too many.
fn arrangements(count: usize, longest: usize, rising: bool) -> Option<Vec<Vec<usize>>> {
    let (mut all, mut from) = (vec![Vec::new()], 0);
    for _ in 0..longest {
        let until = all.len();
        for place in from..until {
            for next in 0..count {
                let fits = match rising {
                    true => all[place].last().is_none_or(|&last: &usize| last < next),
                    false => !all[place].contains(&next),
                };
                if fits {
                    let longer = all[place].iter().copied().chain([next]).collect();
                    all.push(longer);
                }
                if all.len() > MAX_ARRAYS {
                    return None;
                }
            }
        }
        from = until;
    }
    Some(all)
}
