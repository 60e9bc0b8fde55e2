//! The functions that a reply may call, as their definitions say.

use serde_json::{Map, Value};

use super::super::schema::constrains;
use super::raw::unspellable;
use super::writer::Writer;
use crate::chat::{Parameter, parameter};
use crate::error::{Error, Result};

/// A function.
#[derive(Clone, Copy)]
pub struct Function<'v> {
    pub name: &'v str,
    parameters: &'v Value,
}

impl<'v> Function<'v> {
    /// Reads a tool's definition, in the form of OpenAI's or without what is around it.
    pub fn of(definition: &'v Value) -> Self {
        let function = definition.get("function").unwrap_or(definition);
        let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
        Self { name, parameters: function.get("parameters").unwrap_or(&Value::Null) }
    }

    /// The schema of all arguments.
    pub fn root(&self) -> &'v Value {
        self.parameters
    }

    /// Each parameter's name and schema, and whether it is required. Those that are required and not described come last.
    pub fn parameters(&self) -> Vec<(&'v str, &'v Value, bool)> {
        let required = required(self.parameters.get("required"));
        let named = self.parameters.get("properties").and_then(Value::as_object);
        let mut found: Vec<_> = named
            .into_iter()
            .flatten()
            .map(|(name, schema)| (name.as_str(), schema, required.contains(&name.as_str())))
            .collect();
        for name in required {
            if !found.iter().any(|(known, ..)| *known == name) {
                found.push((name, &Value::Bool(true), true));
            }
        }
        found
    }

    /// What a reader of calls takes a parameter for.
    pub fn kind(&self, name: &str) -> Option<Parameter> {
        let schema = self.parameters.get("properties")?.get(name)?;
        Some(parameter(schema, self.parameters))
    }

    /// What the schema says of all arguments together holds only where they are JSON. Others than those that it names are
    /// never written, so what it says of such holds.
    ///
    /// # Errors
    /// It says something that cannot hold.
    pub fn check_root(&self, writer: &mut Writer) -> Result<()> {
        const HELD: [&str; 5] =
            ["type", "properties", "required", "additionalProperties", "unevaluatedProperties"];
        let Some(map) = self.parameters.as_object() else { return Ok(()) };
        check_count(map)?;
        for keyword in map.keys().filter(|keyword| constrains(keyword) && !HELD.contains(&keyword.as_str())) {
            let all = super::super::schema::SUPPORTED.iter().chain(&super::super::schema::UNSUPPORTED);
            if let Some(known) = all.copied().find(|known| known == keyword) {
                writer.unenforced(known)?;
            }
        }
        Ok(())
    }

    /// A name that stands where it is not quoted.
    ///
    /// # Errors
    /// It has other characters than such a place can take.
    pub fn plain_name(&self, others: &str) -> Result<&'v str> {
        let plain = |char: char| char.is_alphanumeric() || "_-".contains(char) || others.contains(char);
        if self.name.is_empty() || !self.name.chars().all(plain) {
            return Err(unspellable("functions with names"));
        }
        Ok(self.name)
    }
}

/// The names in the list `required` of a schema.
pub fn required(list: Option<&Value>) -> Vec<&str> {
    list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Properties of one object: rules for them refer to each other.
const MAX_PROPERTIES: usize = 200;

/// # Errors
/// An object has too many properties.
pub fn check_count(schema: &Map<String, Value>) -> Result<()> {
    let count = |keyword: &str| match schema.get(keyword) {
        Some(Value::Object(map)) => map.len(),
        Some(Value::Array(list)) => list.len(),
        _ => 0,
    };
    if count("properties") + count("required") > 2 * MAX_PROPERTIES {
        let expected = format!("functions whose objects have at most {MAX_PROPERTIES} properties");
        return Err(Error::request("tools", expected));
    }
    Ok(())
}
