//! Reading fields of a checkpoint's JSON files, with errors that name file and field.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::store;
use crate::error::{Error, Result};

/// No configuration is larger; what claims to be is refused before it is read.
pub const MAX_BYTES: u64 = 16 << 20;
/// No `tokenizer.json` is larger: Gemma 3's has 33 MB.
const MAX_TOKENIZER_BYTES: u64 = 64 << 20;
/// No index of shards is larger: one of 207,360 tensors, as Kimi K2's experts in four bits are, has 21 MB.
const MAX_INDEX_BYTES: u64 = 64 << 20;
/// Values in a file, lists and objects among them. Read, each takes tens of bytes, however short it is written.
const MAX_VALUES: usize = 1 << 19;
/// Values in a `tokenizer.json`: the largest have a million merges and tokens, of one to three values each.
const MAX_TOKENIZER_VALUES: usize = 1 << 22;

/// The text of a JSON file that configures something.
///
/// # Errors
/// The file cannot be read, is too large, has too many values, or is not UTF-8.
pub fn read(file: &Path) -> Result<String> {
    of_values(file, read_text(file)?, MAX_VALUES)
}

/// Reads an index of shards like [`read`].
///
/// # Errors
/// Returns the errors of [`read`].
pub fn read_index(file: &Path) -> Result<String> {
    of_values(file, read_up_to(file, MAX_INDEX_BYTES)?, MAX_VALUES)
}

/// Reads a `tokenizer.json` like [`read`].
///
/// # Errors
/// Returns the errors of [`read`].
pub fn read_tokenizer(file: &Path) -> Result<String> {
    of_values(file, read_up_to(file, MAX_TOKENIZER_BYTES)?, MAX_TOKENIZER_VALUES)
}

/// The text of a file of the size that a configuration may have.
///
/// # Errors
/// The file cannot be read, is too large, or is not UTF-8.
pub fn read_text(file: &Path) -> Result<String> {
    read_up_to(file, MAX_BYTES)
}

fn read_up_to(file: &Path, most: u64) -> Result<String> {
    let too_large =
        |bytes| Err(Error::config(file, "", format!("at most {most} bytes long; it has {bytes}")));
    if let Some(bytes) = store::bytes(file).map_err(Error::read(file))? {
        let bytes = bytes.get();
        if bytes.len() as u64 > most {
            return too_large(bytes.len() as u64);
        }
        let text = std::str::from_utf8(bytes).map_err(std::io::Error::other).map_err(Error::read(file))?;
        super::files::was_read(file, bytes);
        return Ok(text.to_owned());
    }
    // Asked before it is opened: opening a pipe would wait for whoever writes to it.
    let metadata = std::fs::metadata(file).map_err(Error::read(file))?;
    if !metadata.is_file() {
        return Err(Error::config(file, "", "a regular file"));
    }
    if metadata.len() > most {
        return too_large(metadata.len());
    }
    let mut text = String::with_capacity(metadata.len() as usize);
    // The file may grow meanwhile.
    let opened = std::fs::File::open(file).map_err(Error::read(file))?;
    let bytes = opened.take(most + 1).read_to_string(&mut text).map_err(Error::read(file))? as u64;
    if bytes > most {
        return too_large(bytes);
    }
    super::files::was_read(file, text.as_bytes());
    Ok(text)
}

fn of_values(file: &Path, text: String, most: usize) -> Result<String> {
    match values_at_most(text.as_bytes(), most) {
        true => Ok(text),
        false => Err(Error::config(file, "", format!("JSON of at most {most} values, lists and objects"))),
    }
}

/// Whether a JSON text has at most so many values, lists and objects. Counts what separates and opens them outside of
/// strings; a text that is no JSON is left to its parser.
pub fn values_at_most(text: &[u8], most: usize) -> bool {
    let (mut values, mut in_string, mut escaped) = (1_usize, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b',' | b'[' | b'{' if !in_string => {
                values += 1;
                if values > most {
                    return false;
                }
            }
            _ => {}
        }
    }
    true
}

/// A JSON object with the file's name for errors.
#[derive(Debug)]
pub struct Json {
    /// The file.
    pub file: PathBuf,
    /// Where in the file this object is, with a dot behind; empty for the whole.
    prefix: String,
    value: Value,
}

impl Json {
    /// Parses `file`, which must hold an object.
    ///
    /// # Errors
    /// Returns the errors of [`read`], or it is no JSON object.
    pub fn open(file: &Path) -> Result<Self> {
        Self::parse(file, &read(file)?)
    }

    /// Opens a file like [`Json::open`]; a missing one is an empty object.
    pub fn open_if_there(file: &Path) -> Result<Self> {
        if store::exists(file) { Self::open(file) } else { Self::parse(file, "{}") }
    }

    /// An object from elsewhere than a JSON file; `file` is named in errors.
    pub fn of(file: &Path, value: Value) -> Self {
        Self { file: file.to_owned(), prefix: String::new(), value }
    }

    fn parse(file: &Path, text: &str) -> Result<Self> {
        match serde_json::from_str(text) {
            Ok(value @ Value::Object(_)) => Ok(Self { file: file.to_owned(), prefix: String::new(), value }),
            Ok(_) => Err(Error::config(file, "", "a JSON object")),
            Err(error) => Err(Error::config(
                file,
                "",
                format!("a JSON object (line {}, column {})", error.line(), error.column()),
            )),
        }
    }

    /// The field; none when absent or null.
    pub fn field(&self, name: &str) -> Option<&Value> {
        self.value.get(name).filter(|value| !value.is_null())
    }

    /// Where `name` is absent, it is what `other` says.
    pub fn read_as(&mut self, name: &str, other: &str) {
        if self.field(name).is_none()
            && let Some(value) = self.field(other).cloned()
            && let Value::Object(fields) = &mut self.value
        {
            fields.insert(name.to_owned(), value);
        }
    }

    /// The names of its fields.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.value.as_object().into_iter().flat_map(|object| object.keys().map(String::as_str))
    }

    /// The error that `name` must be `expected`.
    pub fn wrong(&self, name: &str, expected: impl Into<String>) -> Error {
        Error::config(&self.file, format!("{}{name}", self.prefix), expected)
    }

    /// A nested object; none when absent or null.
    pub fn object(&self, name: &str) -> Result<Option<Json>> {
        match self.field(name) {
            None => Ok(None),
            Some(value @ Value::Object(_)) => Ok(Some(Json {
                file: self.file.clone(),
                prefix: format!("{}{name}.", self.prefix),
                value: value.clone(),
            })),
            Some(_) => Err(self.wrong(name, "an object")),
        }
    }

    /// Whether the field is there and null.
    pub fn is_null(&self, name: &str) -> bool {
        self.value.get(name).is_some_and(Value::is_null)
    }

    /// A whole number from 1 to `max`; none when absent or null.
    pub fn size(&self, name: &str, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.field(name) else { return Ok(None) };
        let size =
            whole(value).and_then(|size| usize::try_from(size).ok()).filter(|size| (1..=max).contains(size));
        size.map(Some).ok_or_else(|| self.wrong(name, format!("a whole number from 1 to {max}")))
    }

    /// A whole number from 0 to `max`; none when absent or null.
    pub fn count(&self, name: &str, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.field(name) else { return Ok(None) };
        let count = whole(value).and_then(|count| usize::try_from(count).ok()).filter(|count| *count <= max);
        count.map(Some).ok_or_else(|| self.wrong(name, format!("a whole number from 0 to {max}")))
    }

    /// Reads a number like [`Json::count`]; none for a negative number too, which some files write for "no limit".
    pub fn count_unless_negative(&self, name: &str, max: usize) -> Result<Option<usize>> {
        match self.field(name).and_then(whole) {
            Some(number) if number < 0 => Ok(None),
            _ => self.count(name, max),
        }
    }

    /// A finite number; none when absent or null.
    pub fn number(&self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.field(name) else { return Ok(None) };
        let number = value.as_f64().filter(|number| number.is_finite());
        number.map(Some).ok_or_else(|| self.wrong(name, "a number"))
    }

    /// Reads a number like [`Json::positive`]; none for 0 too, where the reference asks whether the number is true.
    pub fn positive_unless_zero(&self, name: &str) -> Result<Option<f64>> {
        match self.field(name).and_then(Value::as_f64) {
            Some(0.0) => Ok(None),
            _ => self.positive(name),
        }
    }

    /// Reads a number like [`Json::size`], which must be there.
    pub fn required_size(&self, name: &str, max: usize) -> Result<usize> {
        self.size(name, max)?
            .ok_or_else(|| self.wrong(name, format!("a whole number from 1 to {max}; it is missing")))
    }

    /// A positive, finite number; none when absent or null.
    pub fn positive(&self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.field(name) else { return Ok(None) };
        let number = value.as_f64().filter(|number| number.is_finite() && *number > 0.0);
        number.map(Some).ok_or_else(|| self.wrong(name, "a number above 0"))
    }

    /// True or false; `default` when absent or null.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.field(name) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(name, "true or false")),
        }
    }

    /// A string; none when absent or null.
    pub fn text(&self, name: &str) -> Result<Option<&str>> {
        match self.field(name) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.wrong(name, "a string")),
        }
    }

    /// A token id or a list of them; empty when absent or null. A negative id is no token's: it is left out.
    pub fn token_ids(&self, name: &str) -> Result<Vec<u32>> {
        let one = |value: &Value| match whole(value)? {
            id if id < 0 => Some(None),
            id => u32::try_from(id).ok().map(Some),
        };
        let ids: Option<Vec<Option<u32>>> = match self.field(name) {
            None => Some(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(one).collect(),
            Some(value) => one(value).map(|id| vec![id]),
        };
        let ids = ids.ok_or_else(|| self.wrong(name, "a token id or a list of token ids"))?;
        Ok(ids.into_iter().flatten().collect())
    }
}

/// A whole number, also where it is written with a fraction of zero, as `50.0`.
pub fn whole(value: &Value) -> Option<i64> {
    /// Up to this, every whole number is a double of its own.
    const MAX_EXACT: f64 = (1_u64 << 53) as f64;
    let float = |number: f64| (number.fract() == 0.0 && number.abs() < MAX_EXACT).then_some(number as i64);
    value.as_i64().or_else(|| value.as_f64().and_then(float))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_up_to_their_limit() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("adapter_config.json");
        let of = |bytes: u64| {
            std::fs::write(&file, format!("{{{}}}", " ".repeat(bytes as usize - 2))).unwrap();
            [read(&file), read_index(&file), read_tokenizer(&file)]
                .map(|text| text.map(|text| text.len() as u64))
        };
        let [config, ..] = of(MAX_BYTES);
        assert_eq!(config.unwrap(), MAX_BYTES);
        let [config, index, tokenizer] = of(MAX_BYTES + 1);
        let error = config.unwrap_err().to_string();
        assert!(
            error.ends_with("adapter_config.json: must be at most 16777216 bytes long; it has 16777217"),
            "{error}"
        );
        assert_eq!((index.unwrap(), tokenizer.unwrap()), (MAX_BYTES + 1, MAX_BYTES + 1));
        let [_, index, tokenizer] = of(MAX_INDEX_BYTES + 1);
        for error in [index, tokenizer] {
            let error = error.unwrap_err().to_string();
            assert!(error.ends_with("must be at most 67108864 bytes long; it has 67108865"), "{error}");
        }
    }

    #[test]
    fn spellings_of_numbers() {
        let value = serde_json::json!({"k": 50.0, "half": 1.5, "minus": -1, "zero": 0, "null": null, "large": 1e300,
            "ids": [2, -1, 3.0], "text": "1"});
        let json = Json::of(Path::new("config.json"), value);
        assert_eq!(json.count("k", 64).unwrap(), Some(50));
        assert_eq!(json.count_unless_negative("minus", 64).unwrap(), None);
        assert_eq!(json.count_unless_negative("zero", 64).unwrap(), Some(0));
        assert_eq!(json.positive_unless_zero("zero").unwrap(), None);
        assert_eq!(json.number("minus").unwrap(), Some(-1.0));
        assert_eq!(json.token_ids("ids").unwrap(), [2, 3]);
        assert!(json.token_ids("minus").unwrap().is_empty());
        assert!(json.is_null("null") && !json.is_null("zero") && !json.is_null("absent"));
        for wrong in ["half", "minus", "large", "text"] {
            assert!(json.count(wrong, usize::MAX).is_err(), "{wrong}");
        }
        assert!(json.number("text").is_err() && json.positive_unless_zero("minus").is_err());
    }

    #[test]
    fn values_are_counted_outside_of_strings() {
        for (text, values) in [
            ("0", 1),
            ("[]", 2),
            ("[1,2,3]", 4),
            (r#"{"a":{"b":[1,"x,[{y"]}}"#, 5),
            (r#"{"a\\":1,"b\",[":2}"#, 3),
            ("\"[,{", 1),
        ] {
            assert!(values_at_most(text.as_bytes(), values), "{text}");
            assert!(values == 1 || !values_at_most(text.as_bytes(), values - 1), "{text}");
        }
    }
}
