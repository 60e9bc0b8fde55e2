//! A validator of JSON Schema, of the keywords that these tests use; not of `pattern` and `format`.

use serde_json::{Map, Value};

/// Whether the value is valid.
pub fn valid(document: &Value, schema: &Value, value: &Value) -> bool {
    let Some(map) = schema.as_object() else { return schema == true };
    let number = |keyword: &str| map.get(keyword).and_then(Value::as_f64);
    let size = |len: usize, min: &str, max: &str| {
        number(min).is_none_or(|min| len as f64 >= min) && number(max).is_none_or(|max| len as f64 <= max)
    };
    let schemas = |keyword: &str| map.get(keyword).and_then(Value::as_array);
    let matching = |list: &Vec<Value>| list.iter().filter(|schema| valid(document, schema, value)).count();
    let reference = map.get("$ref").and_then(Value::as_str);
    let by_type = match value {
        Value::Number(found) => {
            let found = found.as_f64().unwrap();
            number("minimum").is_none_or(|min| found >= min)
                && number("maximum").is_none_or(|max| found <= max)
                && number("exclusiveMinimum").is_none_or(|min| found > min)
                && number("exclusiveMaximum").is_none_or(|max| found < max)
                && number("multipleOf")
                    .is_none_or(|step| (found / step - (found / step).round()).abs() < 1e-9)
        }
        Value::String(text) => size(text.chars().count(), "minLength", "maxLength"),
        Value::Array(items) => {
            let prefix = schemas("prefixItems").map_or(0, Vec::len);
            size(items.len(), "minItems", "maxItems")
                && items.iter().enumerate().all(|(i, item)| {
                    let schema = if i < prefix {
                        &map["prefixItems"][i]
                    } else {
                        map.get("items").unwrap_or(&Value::Bool(true))
                    };
                    valid(document, schema, item)
                })
        }
        Value::Object(members) => {
            let none = Map::new();
            let properties = map.get("properties").and_then(Value::as_object).unwrap_or(&none);
            size(members.len(), "minProperties", "maxProperties")
                && schemas("required")
                    .is_none_or(|keys| keys.iter().all(|key| members.contains_key(key.as_str().unwrap())))
                && members.iter().all(|(key, member)| {
                    let more = map.get("additionalProperties").unwrap_or(&Value::Bool(true));
                    valid(document, properties.get(key).unwrap_or(more), member)
                })
        }
        Value::Null | Value::Bool(_) => true,
    };
    let types =
        map.get("type").map(|types| types.as_array().map_or(std::slice::from_ref(types), Vec::as_slice));
    by_type
        && types.is_none_or(|types| types.iter().any(|name| has_type(value, name.as_str().unwrap())))
        && map.get("const").is_none_or(|only| same(only, value))
        && schemas("enum").is_none_or(|list| list.iter().any(|one| same(one, value)))
        && schemas("anyOf").is_none_or(|list| matching(list) > 0)
        && schemas("oneOf").is_none_or(|list| matching(list) == 1)
        && schemas("allOf").is_none_or(|list| matching(list) == list.len())
        && reference.is_none_or(|path| valid(document, document.pointer(&path[1..]).unwrap(), value))
}

fn has_type(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{other}"),
    }
}

/// Equality of JSON values: 1 is 1.0.
fn same(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().is_some_and(|a| b.as_f64() == Some(a))
}
