//! `not`, `if`, and what depends on a property that is there: alternatives.

use serde_json::{Map, Value, json};

use super::super::values::{expected, object};
use super::Lowering;
use super::write::{any_of, other_types};
use crate::error::Result;

impl<'a> Lowering<'a, '_> {
    pub fn conditions(&mut self, map: &'a Map<String, Value>, also: &mut Vec<Value>) -> Result<()> {
        if let Some(schema) = map.get("not") {
            match self.negation(schema)? {
                Some(negation) => also.push(negation),
                None => self.unenforced("not")?,
            }
        }
        if let Some(condition) =
            map.get("if").filter(|_| map.contains_key("then") || map.contains_key("else"))
        {
            match self.negation(condition)? {
                Some(otherwise) => {
                    let both = |first: Value, second: Option<Value>| match (first, second) {
                        (Value::Bool(false), _) | (_, Some(Value::Bool(false))) => false.into(),
                        (first, None | Some(Value::Bool(true))) => first,
                        (first, Some(second)) => json!({ "allOf": [first, second] }),
                    };
                    let condition = self.schema(condition)?;
                    let then = map.get("then").map(|then| self.schema(then)).transpose()?;
                    let or_else = map.get("else").map(|or_else| self.schema(or_else)).transpose()?;
                    also.push(any_of([both(condition, then), both(otherwise, or_else)]));
                }
                None => self.unenforced("if")?,
            }
        }
        for keyword in ["dependentRequired", "dependentSchemas", "dependencies"] {
            let Some(value) = map.get(keyword) else { continue };
            for (name, dependency) in object(value, keyword)? {
                let holds = match dependency {
                    Value::Array(names) if keyword != "dependentSchemas" => required(name, names)?,
                    Value::Array(_) => {
                        return Err(expected("a JSON Schema whose `dependentSchemas` has schemas"));
                    }
                    schema if keyword != "dependentRequired" => {
                        let schema = self.schema(schema)?;
                        json!({ "allOf": [{ "type": "object", "required": [name] }, schema] })
                    }
                    _ => return Err(expected("a JSON Schema whose `dependentRequired` has arrays of names")),
                };
                let absent = json!({ "type": "object", "properties": { name: false } });
                also.push(any_of([other_types(map, "object"), absent, holds]));
            }
        }
        Ok(())
    }
}

/// An object that has the property and what it requires.
fn required(name: &str, others: &[Value]) -> Result<Value> {
    let mut names = vec![Value::from(name)];
    for other in others {
        if !other.is_string() {
            return Err(expected("a JSON Schema whose `dependentRequired` has arrays of names"));
        }
        if !names.contains(other) {
            names.push(other.clone());
        }
    }
    Ok(json!({ "type": "object", "required": names }))
}
