//! The headers of safetensors files: what is refused of them, and why.

use std::collections::HashSet;
use std::marker::PhantomData;
use std::path::Path;

use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::error::{Error, Result};
use crate::weights::json::values_at_most;

/// Tensors of a checkpoint, and of one file. Kimi K2's experts in four bits are 207,360, in 62 files.
pub(super) const MAX_TENSORS: usize = 1 << 19;
const MAX_TENSORS_OF_FILE: usize = 1 << 18;
/// Bytes of a header, and its values: a tensor has eight, the numbers of its shape and its ends among them.
const MAX_HEADER: usize = 64 << 20;
const MAX_HEADER_VALUES: usize = 8 * MAX_TENSORS_OF_FILE;

/// Refuses a header that would take much memory, before anything of it is parsed.
pub(super) fn check_header(file: &Path, bytes: &[u8]) -> Result<()> {
    let Some(header) = header(bytes) else { return Ok(()) };
    let reason = if header.len() > MAX_HEADER {
        format!("the header must have at most {MAX_HEADER} bytes; it has {}", header.len())
    } else if !values_at_most(header, MAX_HEADER_VALUES) {
        format!("the header must be JSON of at most {MAX_HEADER_VALUES} values, lists and objects")
    } else {
        return Ok(());
    };
    Err(Error::WeightsFile { file: file.to_owned(), reason })
}

/// What the `safetensors` crate takes as it comes: more than `most` tensors, a name that stands twice, and offsets so
/// large that adding to them overflows. A header that does not parse here is left to the crate to refuse.
pub(super) fn check_entries(file: &Path, bytes: &[u8], most: usize) -> Result<()> {
    let parsed = header(bytes).and_then(|header| serde_json::from_slice::<Entries<End>>(header).ok());
    let Some(Entries(entries)) = parsed else { return Ok(()) };
    let most = most.min(MAX_TENSORS_OF_FILE);
    if entries.len() > most + usize::from(entries.iter().any(|(name, _)| name == METADATA)) {
        let reason = format!("the header must name at most {most} tensors; it names {}", entries.len());
        return Err(Error::WeightsFile { file: file.to_owned(), reason });
    }
    let mut names = HashSet::with_capacity(entries.len());
    for (name, End { data_offsets: (_, end) }) in &entries {
        if !names.insert(name) {
            return Err(Error::tensor(file, name, "be in the header once"));
        }
        if end.checked_add(bytes.len() as u64).is_none() {
            return Err(Error::tensor(file, name, format!("lie inside the file's {} bytes", bytes.len())));
        }
    }
    Ok(())
}

/// The JSON header, if the file is long enough for it.
fn header(bytes: &[u8]) -> Option<&[u8]> {
    let length = usize::try_from(u64::from_le_bytes(*bytes.first_chunk()?)).ok()?;
    bytes.get(8..length.checked_add(8)?)
}

/// The one name of a header that is no tensor's.
const METADATA: &str = "__metadata__";

/// Every name of a header with what is read of its value, duplicates kept. One value is read at a time.
struct Entries<T>(Vec<(String, T)>);

/// The ends of a tensor's data.
#[derive(Deserialize)]
struct End {
    #[serde(default)]
    data_offsets: (u64, u64),
}

/// A tensor's entry, as far as it is one.
struct Judged {
    begin: Option<u64>,
    info: Option<TensorInfo>,
}

impl<'de> Deserialize<'de> for Judged {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let begin = value["data_offsets"][0].as_u64();
        Ok(Self { begin, info: serde_json::from_value(value).ok() })
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct All<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for All<T> {
            type Value = Entries<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Entries<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry::<String, T>()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(All(PhantomData))
    }
}

/// The parser's refusal in our terms, with the tensor's name where one tensor is at fault.
pub(super) fn explain(file: &Path, bytes: &[u8], error: &safetensors::SafeTensorError) -> Error {
    use safetensors::SafeTensorError as E;
    let whole = |reason: &str| Error::WeightsFile { file: file.to_owned(), reason: reason.to_owned() };
    match error {
        E::HeaderTooSmall => whole("must start with the 8-byte length of a safetensors header"),
        E::HeaderTooLarge | E::InvalidHeaderLength => {
            whole("the header's length must fit the file (at most 100 MB): truncated, or no safetensors file")
        }
        E::InvalidHeader(_) | E::InvalidHeaderDeserialization(_) | E::JsonError(_) => {
            match first_bad(bytes) {
                Some((name, expected)) => Error::tensor(file, &name, expected),
                None => whole(
                    "the header must be a JSON object of tensors, each with dtype, shape and data_offsets",
                ),
            }
        }
        E::MetadataIncompleteBuffer => {
            whole("the data must end where the last tensor ends: the file is truncated or has extra bytes")
        }
        _ => match first_bad(bytes) {
            Some((name, expected)) => Error::tensor(file, &name, expected),
            None => whole("the header does not describe the data"),
        },
    }
}

/// The first tensor, by offset, whose header entry cannot be right, and what it should be.
fn first_bad(bytes: &[u8]) -> Option<(String, String)> {
    let Entries(mut entries) = serde_json::from_slice::<Entries<Judged>>(header(bytes)?).ok()?;
    entries.retain(|(name, _)| name != METADATA);
    entries.sort_by_key(|(_, entry)| entry.begin);
    let mut expected_start = 0_u64;
    for (name, Judged { info, .. }) in entries {
        let Some(info) = info else {
            return Some((name, "have a known dtype, a shape and two data_offsets".into()));
        };
        let (begin, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |bits, &size| bits.checked_mul(size));
        let Some(bits) = bits else {
            return Some((name, "have a shape whose size does not overflow".into()));
        };
        if begin != expected_start || begin > end {
            return Some((name, format!("start where the tensor before it ends, at {expected_start}")));
        }
        if end - begin != (bits / 8) as u64 || !bits.is_multiple_of(8) {
            return Some((name, format!("have {} bytes, as its dtype and shape say", bits / 8)));
        }
        expected_start = end;
    }
    None
}
