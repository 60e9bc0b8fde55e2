//! The negation of a schema: one that allows just what the schema does not.

use serde_json::{Map, Number, Value, json};

use super::super::keywords::constrains;
use super::super::pattern::{self, Complement, lookaround};
use super::super::values::{TYPES, list, object};
use super::write::{all_of, any_of};
use super::{Lowering, too_much};
use crate::error::Result;

impl<'a> Lowering<'a, '_> {
    /// None where the negation has no form.
    ///
    /// # Errors
    /// The schema is malformed, or too much would be written.
    pub fn negation(&mut self, schema: &'a Value) -> Result<Option<Value>> {
        self.written += 1;
        self.nesting += 1;
        if self.written > super::MAX_WRITTEN || self.nesting > super::MAX_NESTING {
            return Err(too_much());
        }
        let negated = match schema {
            Value::Bool(truth) => Some(Value::Bool(!truth)),
            Value::Object(map) => self.negated(schema, map)?,
            _ => None,
        };
        self.nesting -= 1;
        Ok(negated)
    }

    /// A value is not valid if it fails one of the keywords.
    fn negated(&mut self, whole: &'a Value, map: &'a Map<String, Value>) -> Result<Option<Value>> {
        let mut any = Vec::new();
        for (keyword, value) in map.iter().filter(|(keyword, _)| constrains(keyword)) {
            let negation = match keyword.as_str() {
                "type" => negated_types(value),
                "const" => self.negated_values(std::slice::from_ref(value))?,
                "enum" => self.negated_values(list(value, "enum")?)?,
                "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => {
                    negated_bound(keyword, value)?
                }
                "minLength" | "maxLength" => negated_count("string", keyword, value),
                "minItems" | "maxItems" => negated_count("array", keyword, value),
                "minProperties" | "maxProperties" => negated_count("object", keyword, value),
                "pattern" => match value.as_str() {
                    Some(pattern) => self.negated_pattern(pattern)?,
                    None => None,
                },
                "required" => {
                    let absent = |name: &Value| {
                        Some(json!({ "type": "object", "properties": { name.as_str()?: false } }))
                    };
                    list(value, "required")?.iter().map(absent).collect::<Option<Vec<_>>>().map(any_of)
                }
                "properties" => self.negated_properties(value)?,
                "allOf" => self.negations(value, "allOf")?.map(any_of),
                "anyOf" => self.negations(value, "anyOf")?.map(all_of),
                "oneOf" => self.negated_one_of(value)?,
                "not" => Some(self.schema(value)?),
                "if" => self.negated_condition(value, map)?,
                "then" | "else" => Some(false.into()),
                "$ref" => match value.as_str().and_then(|name| self.index.resolve(name, whole)) {
                    Some(target) if !self.inlined.contains(&std::ptr::from_ref(target)) => {
                        self.inlined.push(target);
                        let negation = self.negation(target);
                        self.inlined.pop();
                        negation?
                    }
                    _ => None,
                },
                _ => None,
            };
            match negation {
                Some(negation) => any.push(negation),
                None => return Ok(None),
            }
        }
        Ok(Some(any_of(any)))
    }

    fn negations(&mut self, value: &'a Value, keyword: &str) -> Result<Option<Vec<Value>>> {
        list(value, keyword)?.iter().map(|schema| self.negation(schema)).collect()
    }

    /// An object with a property that its schema does not allow.
    fn negated_properties(&mut self, value: &'a Value) -> Result<Option<Value>> {
        let mut any = Vec::new();
        for (name, schema) in object(value, "properties")? {
            match self.negation(schema)? {
                None => return Ok(None),
                Some(Value::Bool(false)) => {}
                Some(negation) => {
                    any.push(
                        json!({ "type": "object", "properties": { name: negation }, "required": [name] }),
                    );
                }
            }
        }
        Ok(Some(any_of(any)))
    }

    /// None of two, or both.
    fn negated_one_of(&mut self, value: &'a Value) -> Result<Option<Value>> {
        let [first, second] = &list(value, "oneOf")?[..] else { return Ok(None) };
        let (Some(not_first), Some(not_second)) = (self.negation(first)?, self.negation(second)?) else {
            return Ok(None);
        };
        let both = [self.schema(first)?, self.schema(second)?];
        Ok(Some(any_of([all_of([not_first, not_second]), all_of(both)])))
    }

    fn negated_condition(
        &mut self,
        condition: &'a Value,
        map: &'a Map<String, Value>,
    ) -> Result<Option<Value>> {
        let Some(otherwise) = self.negation(condition)? else { return Ok(None) };
        let condition = self.schema(condition)?;
        let mut any = Vec::new();
        for (keyword, holds) in [("then", condition), ("else", otherwise)] {
            let Some(branch) = map.get(keyword) else { continue };
            let Some(negation) = self.negation(branch)? else { return Ok(None) };
            any.push(all_of([holds, negation]));
        }
        Ok(Some(any_of(any)))
    }

    /// None where a list or an object is among the values.
    fn negated_values(&mut self, values: &[Value]) -> Result<Option<Value>> {
        if values.iter().any(|value| value.is_array() || value.is_object()) {
            return Ok(None);
        }
        let (mut others, mut any) = (vec!["array", "object"], Vec::new());
        if !values.contains(&Value::Null) {
            others.push("null");
        }
        let truths = [true, false].map(Value::Bool).into_iter().filter(|truth| !values.contains(truth));
        any.extend(truths.map(|truth| json!({ "const": truth })));
        let texts: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
        if texts.is_empty() {
            others.push("string");
        } else if let Some(strings) = self.without(&literal(&texts))? {
            any.push(strings);
        } else {
            return Ok(None);
        }
        let mut numbers: Vec<&Number> = values.iter().filter_map(Value::as_number).collect();
        numbers.sort_by(|a, b| a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(std::cmp::Ordering::Equal));
        match (numbers.first(), numbers.last()) {
            (Some(first), Some(last)) => {
                any.push(bounded(&[("exclusiveMaximum", first)])?);
                for pair in numbers.windows(2).filter(|pair| pair[0].as_f64() < pair[1].as_f64()) {
                    any.push(bounded(&[("exclusiveMinimum", pair[0]), ("exclusiveMaximum", pair[1])])?);
                }
                any.push(bounded(&[("exclusiveMinimum", last)])?);
            }
            _ => others.push("number"),
        }
        any.push(json!({ "type": others }));
        Ok(Some(any_of(any)))
    }

    /// Strings in which the expression matches nowhere.
    fn negated_pattern(&mut self, pattern: &str) -> Result<Option<Value>> {
        // What stands for an expression that looks around may allow less than it: not what it fails on.
        if lookaround::looks_around(pattern) { Ok(None) } else { self.without(pattern) }
    }

    /// Strings in which an expression without look-around matches nowhere; none where they have no expression.
    ///
    /// # Errors
    /// Too many were asked for.
    pub fn without(&mut self, pattern: &str) -> Result<Option<Value>> {
        self.complements += 1;
        if self.complements > super::MAX_COMPLEMENTS {
            return Err(too_much());
        }
        Ok(pattern::complement(pattern).map(|complement| match complement {
            Complement::Nothing => false.into(),
            Complement::Pattern(pattern) => json!({ "type": "string", "pattern": pattern }),
        }))
    }
}

/// None where integers are ruled out and numbers are not: there is no schema for those that are no integers.
fn negated_types(value: &Value) -> Option<Value> {
    let named =
        |name: &str| value == name || value.as_array().is_some_and(|names| names.iter().any(|n| n == name));
    if named("integer") && !named("number") {
        return None;
    }
    let others: Vec<&str> = TYPES.into_iter().filter(|&name| name != "integer" && !named(name)).collect();
    Some(if others.is_empty() { false.into() } else { json!({ "type": others }) })
}

/// An expression for these texts.
pub fn literal(texts: &[&str]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| regex_syntax::escape(text)).collect();
    format!("^(?:{})$", texts.join("|"))
}

fn negated_bound(keyword: &str, value: &Value) -> Result<Option<Value>> {
    // Draft 4 has truth values for the exclusive ones.
    let Some(bound) = value.as_number() else { return Ok(None) };
    let negation = match keyword {
        "minimum" => "exclusiveMaximum",
        "maximum" => "exclusiveMinimum",
        "exclusiveMinimum" => "maximum",
        _ => "minimum",
    };
    bounded(&[(negation, bound)]).map(Some)
}

/// Numbers within these bounds.
fn bounded(bounds: &[(&str, &Number)]) -> Result<Value> {
    let own: Map<String, Value> =
        bounds.iter().map(|&(keyword, number)| (keyword.to_owned(), Value::Number(number.clone()))).collect();
    let mut out = Map::from_iter([("type".to_owned(), "number".into())]);
    super::numbers::bounds(&own, &mut out)?;
    Ok(out.into())
}

fn negated_count(kind: &str, keyword: &str, value: &Value) -> Option<Value> {
    let count = super::numbers::count(value).as_u64()?;
    match keyword.strip_prefix("min") {
        Some(_) if count == 0 => Some(false.into()),
        Some(of) => Some(json!({ "type": kind, format!("max{of}"): count - 1 })),
        None => Some(
            json!({ "type": kind, format!("min{}", keyword.strip_prefix("max")?): count.checked_add(1)? }),
        ),
    }
}
