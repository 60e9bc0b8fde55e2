//! How hashes, ids and bytes are written: in small hexadecimal digits, and in no other way.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::chain::ReceiptHash;
use super::environment::Nonce;
use crate::outcome::RequestId;

/// Bytes, written in hexadecimal: a public key, a signature, a quote.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Hex(pub Vec<u8>);

/// Why a text is no hash, no id, or no bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {0}")]
pub struct Malformed(pub(super) &'static str);

fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// The bytes that pairs of digits stand for; none if there is anything else.
fn read_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| {
        let [high, low] = pair.map(|digit| char::from(digit).to_digit(16));
        Some((high? << 4 | low?) as u8)
    };
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}

fn read_32(text: &str) -> Result<[u8; 32], Malformed> {
    const WRONG: Malformed = Malformed("64 hexadecimal digits");
    read_hex(text).and_then(|bytes| bytes.try_into().ok()).ok_or(WRONG)
}

impl fmt::Display for ReceiptHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(self.as_bytes(), f)
    }
}

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl std::str::FromStr for ReceiptHash {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        read_32(text).map(Self)
    }
}

impl std::str::FromStr for Nonce {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        read_32(text).map(Self::new)
    }
}

impl std::str::FromStr for Hex {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        read_hex(text).map(Self).ok_or(Malformed("pairs of hexadecimal digits"))
    }
}

impl std::str::FromStr for RequestId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        const WRONG: Malformed = Malformed("16 hexadecimal digits, a hyphen and a number");
        let (session, count) =
            text.split_once('-').filter(|(session, _)| session.len() == 16).ok_or(WRONG)?;
        let session = u64::from_str_radix(session, 16).map_err(|_| WRONG)?;
        Ok(Self { session, count: count.parse().map_err(|_| WRONG)? })
    }
}

/// Serializes as the text that `Display` writes. Of the texts that `FromStr` reads no other is taken: a change to large
/// digits would be one that no hash sees.
macro_rules! as_text {
    ($($name:ty),*) => {$(
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                let value: Self = text.parse().map_err(serde::de::Error::custom)?;
                if value.to_string() == text { Ok(value) } else { Err(serde::de::Error::custom(SMALL)) }
            }
        }
    )*};
}

const SMALL: Malformed = Malformed("small hexadecimal digits, and no sign or zero before a number");

as_text!(ReceiptHash, Nonce, Hex, RequestId);

macro_rules! debug_as_text {
    ($($name:ty),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )*};
}

debug_as_text!(ReceiptHash, Nonce, Hex);

/// A number of 64 bits as 16 hexadecimal digits: many readers of JSON lose those above 2^53.
pub(super) mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{number:016x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number = u64::from_str_radix(&text, 16).map_err(serde::de::Error::custom)?;
        let same = format!("{number:016x}") == text;
        same.then_some(number).ok_or_else(|| serde::de::Error::custom(super::SMALL))
    }
}
