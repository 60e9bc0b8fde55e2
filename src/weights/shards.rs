//! Which files of a folder hold weights where neither `model.safetensors` nor an index is there; and what to do where none
//! does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::store;
use crate::error::{Error, Result};

/// No checkpoint has more shards.
const MAX_SHARDS: usize = 1 << 12;

/// The shards of a folder that are numbered, as `model-00001-of-00002.safetensors`: all of them, in their order; none where
/// there are none.
///
/// # Errors
/// One is missing.
pub fn numbered(folder: &Path) -> Result<Option<Vec<PathBuf>>> {
    numbered_of(folder, &store::names(folder))
}

/// Looks like [`numbered`] into a folder that has, or is to have, files of these names.
///
/// # Errors
/// One is missing.
pub fn numbered_of(folder: &Path, names: &[String]) -> Result<Option<Vec<PathBuf>>> {
    // by stem and their number
    let mut sets: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for name in names {
        if let Some((stem, number, count)) = parts(name) {
            sets.entry((stem, count)).or_default().push(number);
        }
    }
    let named = sets.keys().find(|(stem, _)| *stem == "model").copied();
    let only = sets.keys().next().copied().filter(|_| sets.len() == 1);
    let Some((stem, count)) = named.or(only) else { return Ok(None) };
    let numbers = &sets[&(stem, count)];
    let total = count.parse::<usize>().unwrap_or(usize::MAX);
    if total > MAX_SHARDS {
        let reason = format!("names {total} shards: there are {MAX_SHARDS} at most");
        return Err(wrong(folder.join(format!("{stem}-{}-of-{count}.safetensors", numbers[0])), reason));
    }
    let first = usize::from(!numbers.iter().any(|number| number.parse() == Ok(0_usize)));
    let width = numbers[0].len();
    let mut shards = Vec::with_capacity(total);
    for number in first..first + total {
        let number = format!("{number:0width$}");
        let file = folder.join(format!("{stem}-{number}-of-{count}.safetensors"));
        if !numbers.contains(&&*number) {
            return Err(wrong(
                file,
                format!("must be there: the shards beside it are numbered up to {count}"),
            ));
        }
        shards.push(file);
    }
    Ok(Some(shards).filter(|shards| !shards.is_empty()))
}

/// Stem, number and how many there are.
fn parts(name: &str) -> Option<(&str, &str, &str)> {
    let (rest, count) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(number) && digits(count)).then_some((stem, number, count))
}

const PICKLED: &str = "holds pickled tensors, and reading those can run code, so they are not read: save the model as \
                       safetensors, as transformers' `save_pretrained` does";
const OF_OTHERS: &str = "holds weights of another framework: save the model as safetensors, as transformers' `save_pretrained` does";

/// By the end of a file's name, the first that is there: why it is not read, and what to do.
const OTHERS: [(&str, &str); 12] = [
    ("adapter_model.safetensors", ADAPTER),
    ("adapter_model.bin", PICKLED),
    (
        ".safetensors",
        "is not looked at: weights are read from model.safetensors, from the shards of an index, and from numbered ones. \
         Rename it, if it has them under the names of transformers",
    ),
    (".gguf", "is a checkpoint by itself: open this file, not its folder"),
    (".bin", PICKLED),
    (".pth", PICKLED),
    (".pt", PICKLED),
    (".ckpt", PICKLED),
    (".nemo", OF_OTHERS),
    (".h5", OF_OTHERS),
    (".msgpack", OF_OTHERS),
    (".onnx", OF_OTHERS),
];

const ADAPTER: &str = "is an adapter: open the folder of its model, with `Builder::adapter` or `Builder::merge_adapter` for \
                       this one";

/// What has weights that are read, or names them.
const READ: [&str; 2] = ["model.safetensors", "model.safetensors.index.json"];

/// Files with such ends that hold no weights.
const NO_WEIGHTS: [&str; 4] = ["training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"];

/// Where a folder has no weights that are read: the error that says what to do with those that it has. None where it has
/// others, or none at all.
pub fn instead(folder: &Path) -> Option<Error> {
    let mut names = store::names(folder);
    let is_read = |name: &String| READ.contains(&name.as_str()) || parts(name).is_some();
    if names.iter().any(is_read) {
        return None;
    }
    names.retain(|name| !NO_WEIGHTS.contains(&name.as_str()));
    let found = |(end, reason): &(&str, &str)| {
        let name = names.iter().find(|name| name.ends_with(end))?;
        Some(wrong(folder.join(name), (*reason).to_owned()))
    };
    OTHERS.iter().find_map(found)
}

/// The error for a file that was to be opened as a checkpoint, and is none.
pub fn no_checkpoint(file: &Path) -> Error {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let known =
        OTHERS.iter().find(|(end, reason)| name.ends_with(end) && [PICKLED, OF_OTHERS].contains(reason));
    let reason = known
        .map_or("is no checkpoint: name the folder with its config.json, or a .gguf file", |(_, reason)| {
            reason
        });
    wrong(file.to_owned(), reason.to_owned())
}

fn wrong(file: PathBuf, reason: String) -> Error {
    Error::WeightsFile { file, reason }
}

/// Tokenizers of other kinds, by the names of their files.
const OTHER_TOKENIZERS: [&str; 9] = [
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "tiktoken.model",
    "qwen.tiktoken",
    "tokenizer.model.v3",
    "vocab.json",
    "vocab.txt",
];

/// The tokenizer of a folder: `tokenizer.json`, or, where that is not there, what has one in another form.
pub fn tokenizer(folder: &Path) -> PathBuf {
    let file = folder.join("tokenizer.json");
    if store::exists(&file) {
        return file;
    }
    let mut others = OTHER_TOKENIZERS.iter().map(|name| folder.join(name));
    others.find(|other| store::exists(other)).unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        names.iter().for_each(|name| std::fs::write(folder.path().join(name), "x").unwrap());
        folder
    }

    fn found(names: &[&str]) -> Result<Option<Vec<String>>> {
        let folder = folder(names);
        let name = |file: &PathBuf| file.file_name().unwrap().to_str().unwrap().to_owned();
        Ok(numbered(folder.path())?.map(|files| files.iter().map(name).collect()))
    }

    #[test]
    fn numbered_shards_are_found_or_missed() {
        let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
        assert_eq!(found(&[two, one, "config.json"]).unwrap().unwrap(), [one, two]);
        assert_eq!(found(&["w-1-of-1.safetensors"]).unwrap().unwrap(), ["w-1-of-1.safetensors"]);
        let from_zero = ["model-00000-of-00002.safetensors", "model-00001-of-00002.safetensors"];
        assert_eq!(found(&from_zero).unwrap().unwrap(), from_zero);
        assert!(found(&["config.json", "model-x-of-y.safetensors"]).unwrap().is_none());
        let error = found(&[one]).unwrap_err().to_string();
        assert!(error.contains(two) && error.contains("must be there"), "{error}");
        assert!(found(&["model-1-of-99999999999.safetensors"]).is_err());
        assert!(found(&["a-1-of-1.safetensors", "b-1-of-1.safetensors"]).unwrap().is_none());
    }

    #[test]
    fn what_is_there_instead_is_named() {
        for (names, words) in [
            (&["pytorch_model.bin", "training_args.bin"][..], "pytorch_model.bin: holds pickled"),
            (&["consolidated.00.pth", "tokenizer.model"], "consolidated.00.pth: holds pickled"),
            (&["tf_model.h5"], "tf_model.h5: holds weights of another framework"),
            (&["model-q4.gguf", "README.md"], "model-q4.gguf: is a checkpoint by itself"),
            (&["consolidated.safetensors"], "consolidated.safetensors: is not looked at"),
            (&["adapter_model.safetensors"], "adapter_model.safetensors: is an adapter"),
        ] {
            let folder = folder(names);
            let error = instead(folder.path()).unwrap().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(instead(folder(&["config.json", "training_args.bin"]).path()).is_none());
        assert!(instead(folder(&["model.safetensors", "pytorch_model.bin"]).path()).is_none());
        assert!(no_checkpoint(Path::new("a/b.pth")).to_string().contains("save_pretrained"));
        assert!(no_checkpoint(Path::new("a/model.safetensors")).to_string().contains("config.json"));
    }

    #[test]
    fn tokenizers_of_other_kinds_are_named() {
        let file = |names: &[&str]| {
            let folder = folder(names);
            tokenizer(folder.path()).file_name().unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(file(&["tokenizer.model"]), "tokenizer.model");
        assert_eq!(file(&["tokenizer.model", "tokenizer.json"]), "tokenizer.json");
        assert_eq!(file(&["vocab.txt"]), "vocab.txt");
        assert_eq!(file(&[]), "tokenizer.json");
    }
}
