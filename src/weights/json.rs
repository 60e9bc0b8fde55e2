//! Reading fields of a checkpoint's JSON files, with errors that name file and field.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};

/// No configuration, index or tokenizer is larger; what claims to be is refused before it is read.
const MAX_BYTES: u64 = 256 << 20;

/// The text of a JSON file of reasonable size.
///
/// # Errors
/// The file cannot be read, is too large, or is not UTF-8.
pub fn read(file: &Path) -> Result<String> {
    // Asked before it is opened: opening a pipe would wait for whoever writes to it.
    let metadata = std::fs::metadata(file).map_err(Error::read(file))?;
    if !metadata.is_file() {
        return Err(Error::config(file, "", "a regular file"));
    }
    if metadata.len() > MAX_BYTES {
        return Err(Error::config(
            file,
            "",
            format!("at most {MAX_BYTES} bytes long; it has {}", metadata.len()),
        ));
    }
    let text = std::fs::read_to_string(file).map_err(Error::read(file))?;
    super::files::was_read(file, text.as_bytes());
    Ok(text)
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
    /// As [`read`], or it is no JSON object.
    pub fn open(file: &Path) -> Result<Self> {
        Self::parse(file, &read(file)?)
    }

    /// As [`Json::open`]; a missing file is an empty object.
    pub fn open_if_there(file: &Path) -> Result<Self> {
        if file.exists() { Self::open(file) } else { Self::parse(file, "{}") }
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

    /// A whole number from 1 to `max`; none when absent or null.
    pub fn size(&self, name: &str, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.field(name) else { return Ok(None) };
        let size = value
            .as_u64()
            .and_then(|size| usize::try_from(size).ok())
            .filter(|size| (1..=max).contains(size));
        size.map(Some).ok_or_else(|| self.wrong(name, format!("a whole number from 1 to {max}")))
    }

    /// A whole number from 0 to `max`; none when absent or null.
    pub fn count(&self, name: &str, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.field(name) else { return Ok(None) };
        let count =
            value.as_u64().and_then(|count| usize::try_from(count).ok()).filter(|count| *count <= max);
        count.map(Some).ok_or_else(|| self.wrong(name, format!("a whole number from 0 to {max}")))
    }

    /// As [`Json::size`], and it must be there.
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

    /// A token id or a list of them; empty when absent or null.
    pub fn token_ids(&self, name: &str) -> Result<Vec<u32>> {
        let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match self.field(name) {
            None => Some(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(one).collect(),
            Some(value) => one(value).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.wrong(name, "a token id or a list of token ids"))
    }
}
