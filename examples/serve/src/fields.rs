//! A JSON object of a request, field by field. Errors tell a field's place and what it must be, never what it was:
//! serde's own messages quote the text.

use axum::http::StatusCode;
use serde_json::{Map, Value};

use crate::error::{ApiError, Result};
use crate::ignored::{changes_reply, ignore, is_plain};

/// Where a field stands: `messages[2].content`.
#[derive(Clone, Debug)]
pub struct Place(pub String);

impl From<&str> for Place {
    fn from(name: &str) -> Self {
        Self(name.to_owned())
    }
}

impl Place {
    /// The `index`-th element of the array here.
    pub fn element(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// The field `name` of the object here.
    pub fn field(&self, name: &str) -> Self {
        Self(if self.0.is_empty() { name.to_owned() } else { format!("{}.{name}", self.0) })
    }
}

/// Most values of a body, members of arrays and objects counted: each takes tens of bytes when it is parsed.
const MAX_VALUES: usize = 1 << 20;

/// At least as many values as a JSON text has: one behind each comma and each bracket that is in no string.
fn most_values(json: &[u8]) -> usize {
    let (mut values, mut quoted, mut escaped) = (0, false, false);
    for &byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b',' | b'[' | b'{' if !quoted => values += 1,
            _ => {}
        }
    }
    values
}

/// What a parser ran into, without a word of it.
fn what_is_wrong(error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    match error {
        _ if error.is_eof() => "it ends too early".to_owned(),
        // the parser has no other way to tell
        _ if error.to_string().starts_with("recursion limit exceeded") => {
            "it is nested too deeply".to_owned()
        }
        _ => format!("line {line}, column {column} is not"),
    }
}

/// An object whose fields are taken one after another. `null` is the same as nothing, as in OpenAI's interface.
pub struct Fields {
    place: Place,
    map: Map<String, Value>,
}

impl Fields {
    /// The request's body.
    ///
    /// # Errors
    /// It is not a JSON object.
    pub fn parse(body: &[u8]) -> Result<Self> {
        if most_values(body) > MAX_VALUES {
            let message = format!("the body must have at most {MAX_VALUES} values");
            return Err(ApiError::refused(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message));
        }
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self { place: Place(String::new()), map }),
            Ok(_) => Err(ApiError::invalid("the body must be a JSON object")),
            Err(error) => Err(ApiError::invalid(format!("the body must be JSON: {}", what_is_wrong(&error)))),
        }
    }

    /// An object within the request.
    pub fn of(place: Place, value: Value) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Self { place, map }),
            _ => Err(ApiError::field(place, "an object")),
        }
    }

    /// The place of the field `name`.
    pub fn place(&self, name: &str) -> Place {
        self.place.field(name)
    }

    /// Takes a field's value.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        // the map keeps its order, which tells where an unknown field stands
        self.map.get_mut(name).map(Value::take).filter(|value| !value.is_null())
    }

    pub fn string(&mut self, name: &str) -> Result<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(name, "a string")),
        }
    }

    /// A string that must be there.
    pub fn required(&mut self, name: &str) -> Result<String> {
        self.string(name)?.ok_or_else(|| self.wrong(name, "given"))
    }

    pub fn flag(&mut self, name: &str) -> Result<Option<bool>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(self.wrong(name, "true or false")),
        }
    }

    /// A number; the engine checks its bounds.
    pub fn number(&mut self, name: &str) -> Result<Option<f32>> {
        let number = self.take(name).map(|value| value.as_f64().ok_or_else(|| self.wrong(name, "a number")));
        Ok(number.transpose()?.map(|number| number as f32))
    }

    pub fn count(&mut self, name: &str) -> Result<Option<usize>> {
        let count = |value: Value| value.as_u64().and_then(|count| usize::try_from(count).ok());
        let expected = "a whole number from 0";
        self.take(name).map(|value| count(value).ok_or_else(|| self.wrong(name, expected))).transpose()
    }

    pub fn integer(&mut self, name: &str) -> Result<Option<i64>> {
        let expected = "a whole number of 64 bits with a sign";
        self.take(name).map(|value| value.as_i64().ok_or_else(|| self.wrong(name, expected))).transpose()
    }

    pub fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(_) => Err(self.wrong(name, "an array")),
        }
    }

    /// The object in the field `name`.
    pub fn object(&mut self, name: &str) -> Result<Option<Self>> {
        self.take(name).map(|value| Self::of(self.place(name), value)).transpose()
    }

    pub fn wrong(&self, name: &str, expected: &str) -> ApiError {
        ApiError::field(self.place(name), expected)
    }

    /// All is taken but what says nothing (`null`) and what is in `harmless`; fields in `refused` are told with a
    /// reason. Others are ignored: see [`crate::ignored`].
    ///
    /// # Errors
    /// There is a field that asks for another reply than comes.
    pub fn done(self, harmless: &[&str], refused: &[(&str, &str)]) -> Result<()> {
        for (index, (name, value)) in self.map.iter().enumerate() {
            if value.is_null() || harmless.contains(&name.as_str()) {
                continue;
            }
            if let Some((name, why)) = refused.iter().find(|(refused, _)| refused == name) {
                return Err(ApiError::unsupported(self.place(name), why));
            }
            if changes_reply(name, value) {
                return Err(ApiError::unsupported(self.place(name), "the reply would be another one"));
            }
            let told = if is_plain(name) { self.place(name) } else { self.place(&format!("#{}", index + 1)) };
            ignore(told.0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ignored::ignored_by;

    fn message(error: ApiError) -> String {
        String::from_utf8(error.json()).unwrap()
    }

    #[test]
    fn fields_come_with_their_types() {
        let body = br#"{"a": "x", "b": 1.5, "c": 7, "d": -3, "e": null, "f": true, "g": [1], "h": {"i": 2}}"#;
        let mut fields = Fields::parse(body).unwrap();
        assert_eq!(fields.string("a").unwrap().as_deref(), Some("x"));
        assert_eq!(fields.number("b").unwrap(), Some(1.5));
        assert_eq!(fields.count("c").unwrap(), Some(7));
        assert_eq!(fields.integer("d").unwrap(), Some(-3));
        assert_eq!(fields.string("e").unwrap(), None);
        assert_eq!(fields.flag("f").unwrap(), Some(true));
        assert_eq!(fields.array("g").unwrap().map(|values| values.len()), Some(1));
        let mut inner = fields.object("h").unwrap().unwrap();
        assert!(message(inner.string("i").unwrap_err()).contains("`h.i` must be a string"));
        assert!(fields.done(&[], &[]).is_ok());
    }

    #[test]
    fn a_body_has_a_bound_on_values_and_none_on_commas() {
        assert_eq!(most_values(br#"{"a": [1, 2, {"b": "c,[{\",\\"}], "d": {}}"#), 7);
        let status = |body: String| Fields::parse(body.as_bytes()).err().map(|error| error.status);
        let numbers = |count: usize| format!(r#"{{"a":[{}0]}}"#, "0,".repeat(count));
        assert_eq!(status(numbers(MAX_VALUES - 2)), None);
        assert_eq!(status(numbers(MAX_VALUES - 1)), Some(StatusCode::PAYLOAD_TOO_LARGE));
        assert_eq!(status(format!(r#"{{"a":"{}"}}"#, ",".repeat(MAX_VALUES + 1))), None);
    }

    #[test]
    fn what_is_no_json_is_told_apart() {
        let told = |body: &str| message(Fields::parse(body.as_bytes()).err().unwrap());
        assert!(told("").contains("it ends too early") && told(r#"{"a": ["#).contains("it ends too early"));
        assert!(told(&"[".repeat(1000)).contains("nested too deeply"));
        assert!(told("{\n \"a\": b}").contains("line 2, column 7 is not"), "{}", told("{\n \"a\": b}"));
    }

    #[test]
    fn errors_hold_no_content() {
        let errors = [
            Fields::parse(b"{\"prompt\": canary}").err().unwrap(),
            Fields::parse(b"\"canary\"").err().unwrap(),
            Fields::parse(br#"{"top_p": "canary"}"#).unwrap().number("top_p").unwrap_err(),
            Fields::parse(br#"{"n": "canary"}"#).unwrap().count("n").unwrap_err(),
            Fields::parse(br#"{"seed": 1.5}"#).unwrap().integer("seed").unwrap_err(),
            Fields::parse(br#"{"stop": {"canary": 1}}"#).unwrap().array("stop").unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.status.as_u16(), 400);
            assert!(!message(error).contains("canary"));
        }
    }

    #[test]
    fn leftovers_are_ignored_and_named_unless_they_change_the_reply() {
        let parse = || Fields::parse(br#"{"a": 1, "b": 2, "user": "x", "c d": 1, "e": null}"#).unwrap();
        let mut fields = parse();
        fields.count("a").unwrap();
        let (done, ignored) = ignored_by(|| fields.done(&["user"], &[]));
        assert!(done.is_ok());
        assert_eq!(ignored, ["b", "#4"]);
        assert_eq!(ignored_by(|| ()).1, [""; 0]);
        let nested = Fields::of("tools[1]".into(), serde_json::json!({"x": 1})).unwrap();
        assert_eq!(ignored_by(|| nested.done(&[], &[])).1, ["tools[1].x"]);
        let changing =
            Fields::parse(br#"{"guided_json": {"canary": 1}}"#).unwrap().done(&[], &[]).unwrap_err();
        let told = message(changing);
        assert!(told.contains("`guided_json` is not supported") && !told.contains("canary"), "{told}");
        let mut fields = parse();
        fields.count("a").unwrap();
        let told = message(fields.done(&["user"], &[("b", "it is odd")]).unwrap_err());
        assert!(told.contains("`b` is not supported: it is odd"), "{told}");
    }
}
