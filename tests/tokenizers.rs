//! Our reading of `tokenizer.json` against the `tokenizers` crate, and against what `transformers` wrote down.

mod common;

use std::path::{Path, PathBuf};

use amnesic::testing::Tokenizer;
use common::{Random, fixture};
use serde::Deserialize;
use serde_json::{Value, json};

const FOLDERS: [&str; 4] = ["byte_level", "llama2_style", "llama3_style", "metaspace"];
/// Above every id of the fixtures.
const VOCAB: usize = 1024;

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    ids_plain: Vec<u32>,
    decoded: String,
}

fn folder(name: &str) -> PathBuf {
    fixture("tokenizers").join(name)
}

fn open(folder: &Path) -> Tokenizer {
    Tokenizer::open(folder, VOCAB).unwrap_or_else(|error| panic!("{error}"))
}

/// Ours, and the crate's.
fn both(name: &str) -> (Tokenizer, tokenizers::Tokenizer) {
    let theirs = tokenizers::Tokenizer::from_file(folder(name).join("tokenizer.json")).unwrap();
    (open(&folder(name)), theirs)
}

impl Random {
    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }

    /// A text of up to `most` pieces: ASCII, whitespace, code, characters of several bytes, special tokens.
    fn text(&mut self, most: usize) -> String {
        const SPACES: &[&str] =
            &[" ", "  ", "     ", "\n", "\n\n", "\r\n", "\t", "\u{a0}", "\u{3000}", "\u{2003}", "\u{85}"];
        const CODE: &[&str] = &["fn ", "let mut x", " = ", "{", "}", ";\n", "0x1F", "'ll", "'S", "->", "//"];
        const WIDE: &[&str] =
            &["é", "e\u{301}", "ß", "所有", "機能", "한국", "🦀", "👩\u{200d}👧", "ﬁ", "▁", "Ġ"];
        const SPECIAL: &[&str] =
            &["<s>", "</s>", "<unk>", "<|endoftext|>", "<|eot_id|>", "<|begin_of_text|>"];
        const ODD: &[&str] =
            &["<0x0A>", "<0xF0>", "<s", "\0", "\u{7f}", "\u{feff}", "\u{fffd}", "\u{10ffff}"];
        let mut text = String::new();
        for _ in 0..=self.below(most) {
            match self.below(12) {
                0..5 => (0..=self.below(8)).for_each(|_| text.push((b' ' + self.below(95) as u8) as char)),
                5 => (0..=self.below(5)).for_each(|_| text.push((b'0' + self.below(10) as u8) as char)),
                6 => text.push_str(self.pick(SPACES)),
                7 => text.push_str(self.pick(CODE)),
                8 => text.push_str(self.pick(WIDE)),
                9 => text.push_str(self.pick(SPECIAL)),
                10 => text.push_str(self.pick(ODD)),
                _ => text.push(char::from_u32(self.below(0xd800) as u32).unwrap()),
            }
        }
        text
    }
}

#[test]
fn every_written_down_case_holds() {
    let mut held = 0;
    for name in FOLDERS {
        let ours = open(&folder(name));
        let cases = std::fs::read_to_string(folder(name).join("cases.json")).unwrap();
        for case in serde_json::from_str::<Vec<Case>>(&cases).unwrap() {
            let Case { text, ids, ids_plain, decoded } = case;
            assert_eq!(ours.encode(&text, true), ids, "{name}: {text:?} with special tokens");
            assert_eq!(ours.encode(&text, false), ids_plain, "{name}: {text:?} without");
            assert_eq!(ours.decode(&ids), decoded, "{name}: {text:?} back");
            held += 1;
        }
    }
    assert_eq!(held, 4 * 12, "cases are missing");
}

#[test]
fn random_texts_get_the_crates_ids_and_text() {
    for name in FOLDERS {
        let (ours, theirs) = both(name);
        let mut random = Random(0x70ec);
        for i in 0..2000 {
            let text = random.text(24);
            for specials in [true, false] {
                let expected = theirs.encode(text.as_str(), specials).unwrap();
                assert_eq!(
                    ours.encode(&text, specials),
                    expected.get_ids(),
                    "{name} {i}: {text:?}, {specials}"
                );
            }
            let ids = ours.encode(&text, true);
            assert_eq!(ours.decode(&ids), theirs.decode(&ids, true).unwrap(), "{name} {i}: {text:?} back");
        }
    }
}

#[test]
fn byte_level_decoding_gives_the_text_back() {
    let ours = open(&folder("byte_level"));
    let mut random = Random(0xb17e);
    for _ in 0..2000 {
        let text = random.text(24).replace("<|endoftext|>", "");
        assert_eq!(ours.decode(&ours.encode(&text, true)), text);
    }
}

/// Bytes that are no UTF-8 give U+FFFD in ours and in theirs, but not equally many: the crate's byte fallback
/// replaces a whole run of bytes, whole characters in it too, where ours replaces the broken ones only.
#[test]
fn random_ids_decode_as_the_crates_do_where_no_bytes_are_broken() {
    for name in FOLDERS {
        let (ours, theirs) = both(name);
        let mut random = Random(0xdec0);
        let (mut whole, mut broken, mut wrong) = (0, 0, Vec::new());
        for _ in 0..4000 {
            let size = theirs.get_vocab_size(true);
            let ids: Vec<u32> = (0..random.below(6)).map(|_| random.below(size) as u32).collect();
            let (mine, expected) = (ours.decode(&ids), theirs.decode(&ids, true).unwrap());
            let falls_back = matches!(name, "llama2_style" | "metaspace");
            if falls_back && expected.contains('\u{fffd}') {
                assert!(mine.contains('\u{fffd}'), "{name}: {ids:?}");
                broken += 1;
            } else if mine == expected {
                whole += 1;
            } else {
                wrong.push((ids, mine, expected));
            }
        }
        println!("{name}: {whole} equal, {broken} with broken bytes");
        wrong.sort_unstable_by_key(|(ids, ..)| ids.len());
        wrong.truncate(10);
        assert!(whole > 1000 && wrong.is_empty(), "{name}: {wrong:#?}");
    }
}

#[test]
fn a_text_encodes_the_same_every_time() {
    for name in FOLDERS {
        let ours = open(&folder(name));
        let text = Random(7).text(200);
        let first = ours.encode(&text, true);
        assert!((0..20).all(|_| ours.encode(&text, true) == first), "{name}");
    }
}

/// A folder with a fixture's files, `tokenizer.json` and `tokenizer_config.json` changed.
fn changed(name: &str, change: impl FnOnce(&mut Value, &mut Value)) -> tempfile::TempDir {
    let temporary = tempfile::tempdir().unwrap();
    let read = |file| std::fs::read_to_string(folder(name).join(file)).unwrap();
    let mut values =
        ["tokenizer.json", "tokenizer_config.json"].map(|file| serde_json::from_str(&read(file)).unwrap());
    let [tokenizer, config] = &mut values;
    change(tokenizer, config);
    for (file, value) in ["tokenizer.json", "tokenizer_config.json"].iter().zip(&values) {
        std::fs::write(temporary.path().join(file), value.to_string()).unwrap();
    }
    temporary
}

/// They are defaults for batches of training texts; `transformers` does not apply them to a prompt either.
#[test]
fn padding_and_truncation_of_the_file_are_ignored() {
    const TEXT: &str = "of a type of arbitrary size";
    let padding = |strategy: Value| {
        json!({"strategy": strategy, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "<unk>"})
    };
    let truncation = |length: usize| json!({"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 0});
    for (what, field, value) in [
        ("padding to the longest", "padding", padding("BatchLongest".into())),
        ("padding to 16", "padding", padding(json!({"Fixed": 16}))),
        ("truncation to 8", "truncation", truncation(8)),
        ("truncation to 1", "truncation", truncation(1)),
        ("padding to 2^40", "padding", padding(json!({"Fixed": 1_u64 << 40}))),
    ] {
        for name in FOLDERS {
            let expected = open(&folder(name)).encode(TEXT, true);
            let folder = changed(name, |tokenizer, _| tokenizer[field] = value.clone());
            let ours = Tokenizer::open(folder.path(), VOCAB)
                .unwrap_or_else(|error| panic!("{name}, {what}: {error}"));
            assert_eq!(ours.encode(TEXT, true), expected, "{name}, {what}");
        }
    }
}

#[test]
fn add_bos_token_overrules_the_post_processor_as_in_transformers() {
    // (folder, tokenizer_class, add_bos_token, whether the ids begin with the BOS token)
    for (name, class, add, expected) in [
        ("llama2_style", "LlamaTokenizer", None, true),
        ("llama2_style", "LlamaTokenizer", Some(true), true),
        ("llama2_style", "LlamaTokenizerFast", Some(false), false),
        ("llama2_style", "PreTrainedTokenizerFast", Some(false), true),
        ("byte_level", "LlamaTokenizer", Some(true), true),
        ("byte_level", "PreTrainedTokenizerFast", None, false),
    ] {
        let folder = changed(name, |_, config| {
            config["tokenizer_class"] = class.into();
            config["add_bos_token"] = add.into();
        });
        let ours = open(folder.path());
        let (with, without) = (ours.encode("a", true), ours.encode("a", false));
        assert_eq!(with.len() - without.len(), usize::from(expected), "{name}, {class}, {add:?}: {with:?}");
        assert!(with.ends_with(&without), "{name}, {class}, {add:?}");
    }
}
