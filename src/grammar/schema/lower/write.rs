//! Schemas made of others, and what a schema's own keywords say of its types.

use serde_json::{Map, Value, json};

use super::super::keywords::constrains;
use super::super::values::TYPES;

/// A schema of keywords, and of schemas that must hold beside them.
pub fn assemble(mut out: Map<String, Value>, mut also: Vec<Value>) -> Value {
    if also.contains(&Value::Bool(false)) {
        return false.into();
    }
    also.retain(|schema| *schema != true && *schema != json!({}));
    if out.is_empty() && also.len() == 1 {
        return also.remove(0);
    }
    match out.get_mut("allOf") {
        Some(Value::Array(all)) => all.append(&mut also),
        _ if also.is_empty() => {}
        _ => {
            out.insert("allOf".into(), also.into());
        }
    }
    out.into()
}

/// The `$ref` of a schema that has no other keyword but annotations.
pub fn alone(schema: &Value) -> Option<&Value> {
    let map = schema.as_object()?;
    let says_more = |keyword: &String| keyword != "$ref" && constrains(keyword);
    if map.keys().any(says_more) { None } else { map.get("$ref") }
}

/// The types that a schema names; all where it names none. `integer` is among them only by name.
pub fn types(map: &Map<String, Value>) -> Vec<&str> {
    match map.get("type") {
        Some(Value::String(one)) => vec![one.as_str()],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        _ => TYPES.into_iter().filter(|&name| name != "integer").collect(),
    }
}

/// A schema for values of any type but this one; `false` where the schema names this one alone.
pub fn other_types(map: &Map<String, Value>, but: &str) -> Value {
    let others: Vec<&str> = types(map).into_iter().filter(|&name| name != but).collect();
    if others.is_empty() { false.into() } else { json!({ "type": others }) }
}

/// Any of these; without those that no value can satisfy.
pub fn any_of(alternatives: impl IntoIterator<Item = Value>) -> Value {
    let mut any: Vec<Value> = alternatives.into_iter().filter(|schema| *schema != false).collect();
    match any.len() {
        0 => false.into(),
        1 => any.remove(0),
        _ => json!({ "anyOf": any }),
    }
}

/// All of these.
pub fn all_of(all: impl IntoIterator<Item = Value>) -> Value {
    let mut all: Vec<Value> = all.into_iter().filter(|schema| *schema != true).collect();
    match all.len() {
        0 => true.into(),
        1 => all.remove(0),
        _ if all.contains(&Value::Bool(false)) => false.into(),
        _ => json!({ "allOf": all }),
    }
}
