//! Checkpoints in several GGUF files, `name-00001-of-0000N.gguf`: the first has the metadata, each its tensors.

use std::path::PathBuf;

use super::{Gguf, Value};
use crate::error::{Error, Result};

/// Files of a checkpoint at most: names have room for as many.
const MAX_FILES: i128 = 99_999;

/// Adds the tensors of the other files to those of the first; nothing where there is only one.
///
/// # Errors
/// This is not the first file; another is missing or malformed, is one of another split, or has a tensor again; not all
/// tensors are there.
pub fn join(first: &mut Gguf) -> Result<()> {
    let Some(count) = whole(first, "split.count")?.filter(|count| *count > 1) else { return Ok(()) };
    if count > MAX_FILES {
        return Err(first.wrong("split.count", &format!("at most {MAX_FILES}")));
    }
    let name = first.file.file_name().and_then(|name| name.to_str()).unwrap_or("").to_owned();
    let number = whole(first, "split.no")?.unwrap_or(0);
    let end = |number: i128| format!("-{:05}-of-{count:05}.gguf", number + 1);
    if number != 0 {
        let stem = name.strip_suffix(&end(number)).unwrap_or("name");
        return Err(Error::WeightsFile {
            file: first.file.clone(),
            reason: format!("must be the first file of its checkpoint: open `{stem}{}`", end(0)),
        });
    }
    let Some(stem) = name.strip_suffix(&end(0)) else {
        return Err(Error::WeightsFile {
            file: first.file.clone(),
            reason: format!(
                "must have a name that ends with `{}`: `split.count` says that it is one of {count} files",
                end(0)
            ),
        });
    };
    for number in 1..count {
        let file: PathBuf = first.file.with_file_name(format!("{stem}{}", end(number)));
        let next = Gguf::open_one(&file)?;
        if whole(&next, "split.no")? != Some(number) || whole(&next, "split.count")? != Some(count) {
            return Err(next.wrong("split.no", &format!("{number}, and split.count {count}")));
        }
        for (name, info) in next.tensors {
            if first.tensors.insert(name.clone(), info).is_some() {
                return Err(Error::tensor(&file, &name, "be in one file only"));
            }
        }
        if first.tensors.len() > super::MAX_COUNT as usize {
            return Err(Error::WeightsFile {
                file,
                reason: format!("must have at most {} tensors, with the files before it", super::MAX_COUNT),
            });
        }
    }
    if let Some(tensors) = whole(first, "split.tensors.count")?
        && tensors != first.tensors.len() as i128
    {
        let expected = format!("{}, as many tensors as all files have", first.tensors.len());
        return Err(first.wrong("split.tensors.count", &expected));
    }
    Ok(())
}

/// A whole number of the metadata.
fn whole(gguf: &Gguf, key: &str) -> Result<Option<i128>> {
    match gguf.metadata.get(key) {
        None => Ok(None),
        Some(&Value::Whole(number)) => Ok(Some(number)),
        Some(_) => Err(gguf.wrong(key, "a whole number")),
    }
}
