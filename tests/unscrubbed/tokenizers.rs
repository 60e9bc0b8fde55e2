//! Our reading of `tokenizer.json` against the `tokenizers` crate, and against what `transformers` wrote down.

mod components;
mod decoding;
mod literal;
mod texts;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use amnesic::testing::Tokenizer;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::common::{Random, fixture};

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

/// As transformers 5.24 does with each of these, whatever the class: it did not in version 4.
#[test]
fn the_post_processor_alone_says_what_stands_around_a_text() {
    for name in FOLDERS {
        let expected = open(&folder(name)).encode("a", true);
        for class in ["LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", "GemmaTokenizer"] {
            for (field, value) in [("add_bos_token", true), ("add_bos_token", false), ("add_eos_token", true)]
            {
                let folder = changed(name, |_, config| {
                    config["tokenizer_class"] = class.into();
                    config[field] = value.into();
                });
                assert_eq!(
                    open(folder.path()).encode("a", true),
                    expected,
                    "{name}, {class}, {field}: {value}"
                );
            }
        }
    }
}

/// As transformers 5.24 does with a `PreTrainedTokenizerFast`: what it decoded, without special tokens, and the highest id.
#[test]
fn the_files_beside_it_change_the_added_tokens_of_tokenizer_json() {
    const TURN: &str = "<|eot_id|>";
    let token = |special, lstrip| {
        json!({"content": TURN, "lstrip": lstrip, "rstrip": false, "normalized": false,
        "single_word": false, "special": special})
    };
    let listed = |special, lstrip| json!({"added_tokens_decoder": {"802": token(special, lstrip)}});
    let new = json!({"added_tokens_decoder": {"803": {"content": "[NEW]", "special": false}}});
    // (special and lstrip in tokenizer.json, what tokenizer_config.json says, the text, the highest id)
    for ((special, lstrip), config, text, highest) in [
        ((false, true), json!({}), "ab<|eot_id|> cd [NEW]", 802),
        ((false, true), json!({"eos_token": TURN}), "ab cd [NEW]", 802),
        ((false, true), json!({"pad_token": {"content": TURN, "special": false}}), "ab cd [NEW]", 802),
        ((false, true), json!({"extra_special_tokens": {"x_token": TURN}}), "ab cd [NEW]", 802),
        ((false, true), listed(false, false), "ab <|eot_id|> cd [NEW]", 802),
        ((false, true), listed(true, false), "ab  cd [NEW]", 802),
        ((true, true), json!({}), "ab cd [NEW]", 802),
        ((true, true), listed(false, false), "ab  cd [NEW]", 802),
        ((true, false), listed(false, true), "ab cd [NEW]", 802),
        ((true, false), json!({"pad_token": "[NEW]"}), "ab  cd ", 803),
        ((true, false), new, "ab  cd [NEW]", 803),
    ] {
        let folder = changed("llama3_style", |tokenizer, file| {
            let last = tokenizer["added_tokens"].as_array_mut().unwrap().last_mut().unwrap();
            assert_eq!(last["content"], TURN);
            (last["special"], last["lstrip"]) = (special.into(), lstrip.into());
            for name in ["added_tokens_decoder", "eos_token", "pad_token", "additional_special_tokens"] {
                file.as_object_mut().unwrap().remove(name);
            }
            file.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
        });
        let ours = open(folder.path());
        let ids = ours.encode(&format!("ab {TURN} cd [NEW]"), false);
        assert_eq!(ids.iter().max(), Some(&highest), "{special}, {lstrip}, {config}: {ids:?}");
        assert_eq!(ours.decode(&ids), text, "{special}, {lstrip}, {config}: {ids:?}");
    }
}

/// The ids of the crate, without special tokens around them; none where it panics, which it does on a few texts.
fn crates_ids(tokenizer: &tokenizers::Tokenizer, text: &str) -> Option<Option<Vec<u32>>> {
    let encode = || tokenizer.encode_fast(text, false).ok().map(|encoding| encoding.get_ids().to_vec());
    catch_unwind(AssertUnwindSafe(encode)).ok()
}

/// Holds our own tokenizer of a folder to the crate's on `count` texts; returns on how many.
fn hold_to_the_crate(what: &str, folder: &Path, seed: u64, count: usize) -> usize {
    let mut theirs = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    theirs.with_padding(None).with_truncation(None).unwrap();
    let ours = Tokenizer::open_to_read(folder, 1 << 20).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(ours.fallback(), None, "{what}");
    let own = texts::own_strings(&theirs);
    let mut random = Random(seed);
    let mut held = 0;
    for _ in 0..count {
        let text = random.hostile_text(12, &own);
        let Some(expected) = crates_ids(&theirs, &text) else { continue };
        assert_eq!(ours.try_encode(&text).ok(), expected, "{what}: {text:?}");
        held += 1;
    }
    assert!(held >= count * 9 / 10, "{what}: the crate panicked on {} texts", count - held);
    held
}

/// All different `tokenizer.json` of the repository.
fn all_fixtures() -> Vec<PathBuf> {
    let mut folders = vec![crate::common::default_model()];
    let mut left = vec![fixture("")];
    while let Some(folder) = left.pop() {
        let inside = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        left.extend(inside.filter(|path| path.is_dir()));
        if folder.join("tokenizer.json").exists() {
            folders.push(folder);
        }
    }
    folders.sort();
    let mut seen = HashSet::new();
    folders.retain(|folder| seen.insert(std::fs::read(folder.join("tokenizer.json")).unwrap()));
    folders
}

#[test]
fn no_fixture_falls_back_and_all_give_the_crates_ids() {
    let folders = all_fixtures();
    assert!(folders.len() >= 8, "{folders:?}");
    let each = texts::count() / folders.len();
    let hold = |folder: &PathBuf| hold_to_the_crate(&folder.display().to_string(), folder, 0xf1c5, each);
    let held: usize = folders.iter().map(hold).sum();
    println!("{held} texts over {} tokenizers", folders.len());
}

/// Every normalizer and every pre-tokenizer in all of its settings, before models of all kinds.
#[test]
fn every_component_is_the_crates() {
    let mut random = Random(0xc0de);
    let model = |random: &mut Random, at: usize| match at % 8 {
        0..=2 => components::bpe(random, (at * 37 + 11) % 64),
        3 | 4 => components::unigram(random, at.is_multiple_of(2)),
        5 => components::word_piece(random),
        6 => components::word_level(random),
        _ => components::bpe(random, 0b11),
    };
    let (normalizers, pre_tokenizers) = (components::normalizers(), components::pre_tokenizers());
    let mut files = Vec::new();
    for (at, pre_tokenizer) in pre_tokenizers.iter().enumerate() {
        files.push((&normalizers[0], pre_tokenizer, model(&mut random, at)));
        let normalizer = &normalizers[random.below(normalizers.len())];
        files.push((normalizer, pre_tokenizer, model(&mut random, at + 3)));
    }
    for (at, normalizer) in normalizers.iter().enumerate() {
        // Metaspace with the scheme `first` asks where a piece comes from
        files.push((normalizer, &pre_tokenizers[4 + at % 2], model(&mut random, at)));
        let pre_tokenizer = &pre_tokenizers[random.below(pre_tokenizers.len())];
        files.push((normalizer, pre_tokenizer, model(&mut random, at + 5)));
    }
    for variant in 0..64 {
        files.push((&normalizers[0], &pre_tokenizers[variant % 3], components::bpe(&mut random, variant)));
    }
    let each = texts::count() / files.len();
    let mut held = 0;
    for (at, (normalizer, pre_tokenizer, model)) in files.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let file = components::file(normalizer, pre_tokenizer, model, at % 4 != 0);
        std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
        let what = format!("{normalizer}, {pre_tokenizer}, {} {at}", model["type"]);
        held += hold_to_the_crate(&what, folder.path(), at as u64, each);
    }
    println!("{held} texts over {} tokenizers", files.len());
}

/// Where `AMNESIC_TOKENIZERS` names a folder of folders (`tools/fetch_tokenizers`).
#[test]
fn published_tokenizers_give_the_crates_ids_without_a_fallback() {
    let Some(folder) = std::env::var_os("AMNESIC_TOKENIZERS") else {
        println!("SKIPPED: 1 test, since AMNESIC_TOKENIZERS names no folder of published tokenizers");
        return;
    };
    let inside = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = inside.filter(|folder| folder.join("tokenizer.json").exists()).collect();
    folders.sort();
    assert!(folders.len() >= 13, "{folders:?}");
    let each = texts::count() / folders.len();
    for folder in &folders {
        let held = hold_to_the_crate(&folder.display().to_string(), folder, 0x9ab1, each);
        println!("{}: {held} texts", folder.display());
    }
}

/// Whether a stream has, after each token, at least what `theirs` has: that one holds a token back whose end is no whole
/// character, ours only the bytes of that character.
fn is_never_behind(ours: &[String], theirs: &[String]) -> bool {
    let (mut mine, mut expected) = (0, 0);
    ours.len() == theirs.len() + 1
        && ours.iter().zip(theirs).all(|(ours, theirs)| {
            (mine, expected) = (mine + ours.len(), expected + theirs.len());
            mine >= expected
        })
}

/// What `tools/compare_texts.py` wrote down: ids, decoded texts, and what each id adds to the text.
#[test]
fn published_tokenizers_encode_decode_and_stream_as_transformers() {
    let Some((file, folder)) = std::env::var_os("AMNESIC_TEXTS").zip(std::env::var_os("AMNESIC_TOKENIZERS"))
    else {
        println!("SKIPPED: 1 test, since AMNESIC_TEXTS names no file of tools/compare_texts.py");
        return;
    };
    let all: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let strings = |value: &Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap() };
    let texts = strings(&all["texts"]);
    let tokenizers = all["tokenizers"].as_object().unwrap();
    assert!(
        texts.len() >= 300 && tokenizers.len() >= 11,
        "{} texts, {} tokenizers",
        texts.len(),
        tokenizers.len()
    );
    let mut wrong = 0;
    for (name, cases) in tokenizers {
        let ours = Tokenizer::open(&Path::new(&folder).join(name), 1 << 20).unwrap();
        let cases = cases.as_array().unwrap();
        assert_eq!(cases.len(), texts.len());
        for (text, case) in texts.iter().zip(cases) {
            let ids = |field: &str| -> Vec<u32> { serde_json::from_value(case[field].clone()).unwrap() };
            let whole = case["text"].as_str().unwrap();
            let with = ids("ids");
            let pieces = ours.decode_streamed(&with);
            let held = [
                ("ids", ours.encode(text, true) == with),
                ("ids without special tokens", ours.encode(text, false) == ids("plain")),
                ("text", ours.decode_with(&with, true) == whole),
                (
                    "text with special tokens",
                    ours.decode_with(&with, false) == case["whole"].as_str().unwrap(),
                ),
                ("stream", pieces.concat() == whole),
                ("stream, token by token", is_never_behind(&pieces, &strings(&case["pieces"]))),
            ];
            for (what, _) in held.iter().filter(|(_, holds)| !holds) {
                let start: String = text.chars().take(60).collect();
                println!("{name}: {what} of {start:?}");
                wrong += 1;
            }
        }
    }
    println!("{} texts, {} tokenizers", texts.len(), tokenizers.len());
    assert_eq!(wrong, 0);
}

/// What is not ours is the crate's, and is named.
#[test]
fn what_is_rarer_falls_back_by_name() {
    let split = |pattern: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]})
    };
    let replace = json!({"type": "Replace", "pattern": {"Regex": "a$"}, "content": "x"});
    for (field, value, component) in [
        (
            "pre_tokenizer",
            split(r"\p{L}+(?=\s)|\s+|[^\s]+"),
            "a split by a pattern that looks around, or has other extensions",
        ),
        ("pre_tokenizer", split(r"\p{L}++|\P{L}"), "a split by a pattern with possessive quantifiers"),
        ("pre_tokenizer", split(r"\p{L}*"), "a split by a pattern that matches the empty text"),
        ("pre_tokenizer", split(r"a+b"), "a split by a pattern that is searched in more than linear time"),
        ("pre_tokenizer", json!({"type": "UnicodeScripts"}), "the pre-tokenizer UnicodeScripts"),
        ("normalizer", replace, "Replace with a pattern that looks around"),
    ] {
        let folder = changed("byte_level", |tokenizer, _| tokenizer[field] = value.clone());
        let ours = open(folder.path());
        assert_eq!(ours.fallback(), Some(component));
        let theirs = tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
        let mut random = Random(0xfa11);
        for _ in 0..200 {
            let text = random.text(12);
            let expected = theirs.encode_fast(text.as_str(), false).unwrap();
            assert_eq!(ours.encode(&text, false), expected.get_ids(), "{component}: {text:?}");
        }
    }
}

/// A megabyte of what is worst takes seconds even where nothing is optimized; in quadratic time it would take hours.
#[test]
fn no_text_takes_more_than_linear_time() {
    const PARTS: [&str; 14] =
        ["a", " ", "ab", "\n ", "\u{301}", "Aa'", "1", "字", "😀", "<", "e\u{301}\u{323}", "##", "▁", "the "];
    for folder in all_fixtures() {
        let ours = Tokenizer::open_to_read(&folder, 1 << 20).unwrap();
        for part in PARTS {
            let text = part.repeat((1 << 20) / part.len());
            let start = Instant::now();
            ours.encode(&text, false);
            let took = start.elapsed();
            assert!(took < Duration::from_secs(20), "{}: {part:?} took {took:?}", folder.display());
        }
    }
}

/// Classes of characters and their cases, compositions and decompositions are those of the crate's tables: for every
/// code point of the first two planes, and of the variation selectors.
#[test]
fn every_code_point_is_read_as_the_crate_reads_it() {
    let model = components::bpe(&mut Random(1), 1); // bytes for what it does not know: ids tell all of a text
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let mut files: Vec<Value> = components::normalizers()[1..8]
        .iter()
        .chain(&components::normalizers()[18..19])
        .map(|normalizer| components::file(normalizer, &Value::Null, &model, false))
        .collect();
    let kinds = ["Whitespace", "WhitespaceSplit", "BertPreTokenizer"].map(|kind| json!({"type": kind}));
    let digits = json!({"type": "Digits", "individual_digits": false});
    let patterns = components::PUBLISHED.iter().map(|(_, pattern)| split(pattern));
    for pre_tokenizer in kinds.into_iter().chain([digits]).chain(patterns) {
        // a mark before each piece tells where it begins
        let mark =
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false});
        let both = json!({"type": "Sequence", "pretokenizers": [pre_tokenizer, mark]});
        files.push(components::file(&Value::Null, &both, &model, false));
    }
    let codes = (0..0x2_0000).chain(0xe_0000..0xe_0200);
    let characters: Vec<char> = codes.filter_map(char::from_u32).collect();
    for (at, file) in files.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
        let ours = Tokenizer::open_to_read(folder.path(), VOCAB * 8).unwrap();
        let theirs = tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
        assert_eq!(ours.fallback(), None);
        for some in characters.chunks(64) {
            // alone between letters, behind its neighbours, and behind a space
            let apart: String =
                some.iter().flat_map(|&character| ['a', character, 'b', ' ', character]).collect();
            let together: String = some.iter().collect();
            for text in [apart, together] {
                let Some(expected) = crates_ids(&theirs, &text) else { continue };
                assert_eq!(ours.try_encode(&text).ok(), expected, "{at}: {text:?}");
            }
        }
    }
}
