//! Our tokenizer against the `tokenizers` crate, on texts that libFuzzer makes towards branches of either that were not
//! taken yet.
//!
//! The first byte of an input chooses the tokenizer, the rest is the text. The tokenizers are those in the folder
//! `AMNESIC_TOKENIZERS` (`tools/fetch_tokenizers`), else the repository's. The ids must be equal.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use amnesic::testing::Tokenizer;

struct Pair {
    name: String,
    ours: Tokenizer,
    theirs: tokenizers::Tokenizer,
}

fn pairs() -> &'static [Pair] {
    static PAIRS: OnceLock<Vec<Pair>> = OnceLock::new();
    PAIRS.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tokenizers");
        let root = std::env::var_os("AMNESIC_TOKENIZERS").map_or(root, PathBuf::from);
        let mut folders: Vec<_> =
            std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
        folders.retain(|folder| folder.join("tokenizer.json").exists());
        folders.sort();
        folders.iter().map(|folder| pair(folder)).collect()
    })
}

fn pair(folder: &Path) -> Pair {
    let mut theirs = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    theirs.with_padding(None).with_truncation(None).unwrap();
    let ours = Tokenizer::open_to_read(folder, 1 << 20).unwrap();
    assert_eq!(ours.fallback(), None, "{}", folder.display());
    Pair { name: folder.display().to_string(), ours, theirs }
}

pub fn run(input: &[u8]) {
    let Some((&which, text)) = input.split_first() else { return };
    let pairs = pairs();
    let Pair { name, ours, theirs } = &pairs[which as usize % pairs.len()];
    let text = String::from_utf8_lossy(text);
    let encode = || theirs.encode_fast(&*text, false).ok().map(|encoding| encoding.get_ids().to_vec());
    let Ok(expected) = catch_unwind(AssertUnwindSafe(encode)) else { return };
    let ids = catch_unwind(AssertUnwindSafe(|| ours.try_encode(&text).ok())).ok();
    if ids.as_ref() != Some(&expected) {
        eprintln!("{name}: {text:?}: {ids:?} instead of {expected:?}");
        std::process::abort();
    }
}
