//! A name that may be told: of a model, of a tenant.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::error::{Error, Result};

/// A name that stands in logs, spans, metrics and receipts: 1 to [`Alias::MAX_BYTES`] ASCII letters, digits, or any of
/// `.` `_` `:` `/` `-`.
///
/// The application chooses it; nothing of a request ever becomes one. It has no room for a sentence, and lies in the
/// value itself, so what holds it stays `Copy`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Alias {
    /// Zero behind the name.
    bytes: [u8; Self::MAX_BYTES],
    len: u8,
}

impl Alias {
    /// Most bytes of a name.
    pub const MAX_BYTES: usize = 64;

    /// The name, if it is one.
    ///
    /// # Errors
    /// [`Error::Request`] with the field `alias`: it is empty, longer than [`Alias::MAX_BYTES`], or has another
    /// character.
    pub fn new(name: &str) -> Result<Self> {
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"._:/-".contains(byte);
        if !(1..=Self::MAX_BYTES).contains(&name.len()) || !name.as_bytes().iter().all(allowed) {
            let expected = format!("1 to {} ASCII letters, digits or any of . _ : / -", Self::MAX_BYTES);
            return Err(Error::request("alias", expected));
        }
        let mut bytes = [0; Self::MAX_BYTES];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Ok(Self { bytes, len: name.len() as u8 })
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).expect("made of ASCII")
    }
}

impl std::str::FromStr for Alias {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::new(name)
    }
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Alias({})", self.as_str())
    }
}

impl Serialize for Alias {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept_as_they_are() {
        let longest = "x".repeat(Alias::MAX_BYTES);
        for name in ["a", "Qwen/Qwen2.5-0.5B_q8:prod", "0", "._:/-", longest.as_str()] {
            let alias = Alias::new(name).unwrap();
            assert_eq!(alias.as_str(), name);
            assert_eq!(alias.to_string(), name);
            assert_eq!(format!("{alias:?}"), format!("Alias({name})"));
            assert_eq!(serde_json::to_value(alias).unwrap(), name);
            assert_eq!(name.parse::<Alias>().unwrap(), alias);
        }
    }

    #[test]
    fn what_is_no_name_is_refused_and_not_repeated() {
        let long = "x".repeat(Alias::MAX_BYTES + 1);
        for name in ["", "two words", "line\nbreak", "naïve", "a\0", "{}", "a;b", "\u{202e}", long.as_str()]
        {
            match Alias::new(name) {
                Err(error @ Error::Request { field: "alias", .. }) => {
                    assert!(name.len() < 2 || !error.to_string().contains(name), "{error}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_name_is_told_from_its_beginning() {
        assert_ne!(Alias::new("ab").unwrap(), Alias::new("a").unwrap());
        assert_eq!(format!("{:>4}", Alias::new("ab").unwrap()), "  ab");
    }
}
