//! Files whose claims, sizes and counts are made to take memory.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use serde_json::{Value, json};

use crate::common::{Recipe, fixture};
use crate::{Case, Expected};

const MIB: u64 = 1 << 20;

fn case(name: &str, expected: Expected, most_mib: u64, write: impl Fn(&Path) + Sync + 'static) -> Case {
    Case { name: name.to_owned(), write: Box::new(write), expected, most_mib, locks: true }
}

pub fn cases() -> Vec<Case> {
    [gguf(), configs(), headers(), indexes(), tokenizers()].into_iter().flatten().collect()
}

// --- GGUF ---

/// Metadata of types that are of interest here.
const U8: u32 = 0;
const BOOL: u32 = 7;
const TEXT: u32 = 8;
const LIST: u32 = 9;
const U64: u32 = 10;
const F64: u32 = 12;

/// The fixture with a value put before its metadata. What `value` does not write, up to `bytes`, is a hole of zeros.
fn with_value(folder: &Path, key: &str, kind: u32, value: &[u8], bytes: u64) {
    let good = std::fs::read(fixture("gguf/qwen3/model.gguf")).unwrap();
    let mut head = good[..24].to_vec();
    let values = u64::from_le_bytes(good[16..24].try_into().unwrap());
    head[16..24].copy_from_slice(&(values + 1).to_le_bytes());
    // The header's length stays a multiple of the alignment: the key is as long as it takes.
    let length = 8 + 4 + value.len() as u64 + bytes;
    let padded = (length + key.len() as u64).next_multiple_of(32) - length;
    let key = format!("{key:_<width$}", width = padded as usize);
    head.extend(padded.to_le_bytes());
    head.extend(key.as_bytes());
    head.extend(kind.to_le_bytes());
    head.extend(value);
    let mut file = File::create(folder.join("model.gguf")).unwrap();
    file.write_all(&head).unwrap();
    file.seek(SeekFrom::Current(bytes as i64)).unwrap();
    file.write_all(&good[24..]).unwrap();
}

/// A header with these counts, and a hole behind it.
fn bare(folder: &Path, tensors: u64, values: u64, more: &[u8], bytes: u64) {
    let mut file = File::create(folder.join("model.gguf")).unwrap();
    file.write_all(b"GGUF\x03\0\0\0").unwrap();
    file.write_all(&tensors.to_le_bytes()).unwrap();
    file.write_all(&values.to_le_bytes()).unwrap();
    file.write_all(more).unwrap();
    file.set_len(bytes).unwrap();
}

fn list(kind: u32, count: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat()
}

fn gguf() -> Vec<Case> {
    let unread = |name: &str, kind: u32, count: u64, bytes: u64| {
        case(name, Expected::Works, 64, move |folder| {
            with_value(folder, "unread.list", LIST, &list(kind, count), bytes);
        })
    };
    let wrong_list = |name: &str, kind: u32, count: u64, words: &'static [&'static str]| {
        case(name, Expected::Error(words), 64, move |folder| {
            with_value(folder, "unread.list", LIST, &list(kind, count), 64 * MIB);
        })
    };
    vec![
        unread("64 MiB of bytes that nobody reads", U8, 64 * MIB, 64 * MIB),
        unread("64 MiB of flags that nobody reads", BOOL, 64 * MIB, 64 * MIB),
        unread("64 GiB of numbers that nobody reads", F64, 8 << 30, 64 << 30),
        unread("eight million texts that nobody reads", TEXT, 8 * MIB, 64 * MIB),
        wrong_list("more bytes than the file has", U8, 1 << 40, &["longer than the file"]),
        wrong_list("numbers whose bytes overflow", U64, 1 << 61, &["longer than the file"]),
        wrong_list("as many as can be said", F64, u64::MAX, &["longer than the file"]),
        wrong_list("a list of lists", LIST, 3, &["list of lists"]),
        wrong_list("a list of no type", 99, 3, &["unknown type 99"]),
        case("a gigabyte of texts", Expected::Error(&["more than 16777216 texts"]), 64, |folder| {
            with_value(folder, "unread.list", LIST, &list(TEXT, 128 * MIB), 1024 * MIB);
        }),
        case("a text of 1 GiB that nobody reads", Expected::Works, 64, |folder| {
            with_value(folder, "unread.text", TEXT, &(1024 * MIB).to_le_bytes(), 1024 * MIB);
        }),
        case(
            "a text of 1 GiB that is read",
            Expected::Error(&["general.architecture", "at most"]),
            64,
            |folder| {
                let key = b"general.architecture";
                let mut value = (key.len() as u64).to_le_bytes().to_vec();
                value.extend(key);
                value.extend(TEXT.to_le_bytes());
                value.extend((1024 * MIB).to_le_bytes());
                bare(folder, 0, 1, &value, 1025 * MIB);
            },
        ),
        case("a name of 1 GiB", Expected::Error(&["names of at most 65535 bytes"]), 64, |folder| {
            bare(folder, 0, 1, &(1024 * MIB).to_le_bytes(), 1025 * MIB);
        }),
        case("the same key twice", Expected::Error(&["in the metadata once"]), 64, |folder| {
            bare(folder, 0, 1 << 16, &[], 64 * MIB);
        }),
        case("names of many megabytes", Expected::Error(&["16777216 bytes in all"]), 64, |folder| {
            let mut values = Vec::new();
            for index in 0..600_u32 {
                let key = format!("{index:0>60000}");
                values.extend((key.len() as u64).to_le_bytes());
                values.extend(key.as_bytes());
                values.extend(U8.to_le_bytes());
                values.push(0);
            }
            bare(folder, 0, 600, &values, 64 * MIB);
        }),
        case("as many values as can be said", Expected::Error(&["at most 65536"]), 64, |folder| {
            bare(folder, 0, u64::MAX, &[], 64 * MIB);
        }),
        case("a million tensors", Expected::Error(&["at most 65536"]), 64, |folder| {
            bare(folder, 1 << 20, 0, &[], 64 * MIB);
        }),
        case("tensors without dimensions", Expected::Error(&["dimensions"]), 64, |folder| {
            bare(folder, 1 << 16, 0, &[], 64 * MIB);
        }),
        case("sixty thousand tensors of nothing", Expected::Error(&["model_type"]), 64, |folder| {
            let mut infos = Vec::new();
            for index in 0..60_000_u32 {
                let name = format!("{index:0>120}");
                infos.extend((name.len() as u64).to_le_bytes());
                infos.extend(name.as_bytes());
                infos.extend(1_u32.to_le_bytes());
                infos.extend(1_u64.to_le_bytes());
                infos.extend([0; 12]);
            }
            bare(folder, 60_000, 0, &infos, 64 * MIB);
        }),
    ]
}

// --- JSON ---

fn checkpoint(folder: &Path, tokenizer: Option<&str>) {
    Recipe::small(704).write(folder, tokenizer);
}

fn blanks(file: &Path, bytes: u64) {
    let mut file = File::create(file).unwrap();
    file.write_all(b"{").unwrap();
    for _ in 0..bytes / MIB {
        file.write_all(&vec![b' '; MIB as usize]).unwrap();
    }
    file.write_all(b"}").unwrap();
}

fn configs() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, words) in [
        ("config.json", &["config.json: must be at most 16777216 bytes long; it has 17825794"]),
        ("generation_config.json", &["generation_config.json: must be at most 16777216 bytes"]),
        ("tokenizer_config.json", &["tokenizer_config.json: must be at most 16777216 bytes"]),
        ("special_tokens_map.json", &["special_tokens_map.json: must be at most 16777216 bytes"]),
        ("chat_template.jinja", &["chat_template.jinja: must be at most 16777216 bytes"]),
    ] {
        cases.push(case(&format!("{name} of 17 MiB"), Expected::Error(words), 64, move |folder| {
            checkpoint(folder, Some("byte_level"));
            std::fs::write(folder.join("chat_template.jinja"), "x").unwrap();
            blanks(&folder.join(name), 17 * MIB);
        }));
        if name.ends_with(".json") {
            let hole = Expected::Error(&[": must be at most 16777216 bytes"]);
            cases.push(case(&format!("{name}, a hole of 1 TiB"), hole, 64, move |folder| {
                checkpoint(folder, Some("byte_level"));
                std::fs::write(folder.join("chat_template.jinja"), "x").unwrap();
                File::create(folder.join(name)).unwrap().set_len(1 << 40).unwrap();
            }));
        }
    }
    let config = |name: &str, expected, most, text: fn() -> String| {
        case(name, expected, most, move |folder| {
            checkpoint(folder, None);
            std::fs::write(folder.join("config.json"), text()).unwrap();
        })
    };
    let depth = Expected::Error(&["config.json", "JSON object"]);
    let values = || Expected::Error(&["config.json: must be JSON of at most 524288 values"]);
    cases.extend([
        config("lists in lists, a million deep", depth, 64, || format!("{{\"a\":{}", "[".repeat(500_000))),
        config("objects in objects", Expected::Error(&["config.json"]), 64, || "{\"a\":".repeat(400_000)),
        config("eight million values", values(), 64, || {
            format!("{{\"a\":[{}0]}}", "0,".repeat(8 << 20 >> 1))
        }),
        config("eight million lists", values(), 64, || format!("{{\"a\":[{}[]]}}", "[],".repeat(5 << 20))),
        config("half a million fields", Expected::Error(&["hidden_size"]), 200, || {
            let fields: Vec<String> = (0..500_000).map(|index| format!("\"{index}\":0")).collect();
            format!("{{\"model_type\":\"llama\",{}}}", fields.join(","))
        }),
        config("half a million objects", Expected::Error(&["hidden_size"]), 200, || {
            format!("{{\"model_type\":\"llama\",\"a\":[{}0]}}", "{\"\":0},".repeat(250_000))
        }),
        config("one long text", Expected::Error(&["model_type"]), 64, || {
            format!("{{\"model_type\":\"{}\"}}", "x".repeat(15 << 20))
        }),
        config("one field many times", Expected::Error(&["hidden_size"]), 64, || {
            format!("{{{}\"model_type\":\"llama\"}}", "\"model_type\":\"llama\",".repeat(400_000))
        }),
    ]);
    cases
}

/// A weights file with this header.
fn with_header(folder: &Path, header: &[u8]) {
    checkpoint(folder, None);
    let mut file = File::create(folder.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header).unwrap();
}

fn tensors(count: usize) -> String {
    let entry =
        |index: usize| format!("\"t{index}\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}");
    format!("{{{}}}", (0..count).map(entry).collect::<Vec<_>>().join(","))
}

fn headers() -> Vec<Case> {
    let header = |name: &str, expected, most, text: fn() -> String| {
        case(name, expected, most, move |folder| with_header(folder, text().as_bytes()))
    };
    vec![
        header("a header of a million tensors", Expected::Error(&["the header must"]), 128, || {
            tensors(1_000_000)
        }),
        header("a header of half a million tensors", Expected::Error(&["the header must"]), 128, || {
            tensors(500_000)
        }),
        header("a header of 250,000 tensors", Expected::Error(&["model.embed_tokens.weight"]), 320, || {
            tensors(250_000)
        }),
        header("a shape of many millions", Expected::Error(&["the header must"]), 64, || {
            format!(
                "{{\"a\":{{\"dtype\":\"F32\",\"shape\":[{}1],\"data_offsets\":[0,4]}}}}",
                "1,".repeat(20 << 20)
            )
        }),
        header("a shape of two millions", Expected::Error(&["model.safetensors"]), 200, || {
            format!(
                "{{\"a\":{{\"dtype\":\"F32\",\"shape\":[{}1],\"data_offsets\":[0,4]}}}}",
                "1,".repeat(2_000_000)
            )
        }),
        header("a header nested without end", Expected::Error(&["JSON object of tensors"]), 64, || {
            "{\"a\":".repeat(1_000_000)
        }),
        header("a header of lists", Expected::Error(&["JSON object of tensors"]), 64, || {
            format!("{{\"a\":{}", "[".repeat(1_000_000))
        }),
        header("the same tensor many times", Expected::Error(&["be in the header once"]), 128, || {
            let entry = "\"t\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},";
            format!("{{{}\"u\":{{}}}}", entry.repeat(200_000))
        }),
        header("half a million notes", Expected::Error(&["model.embed_tokens.weight"]), 128, || {
            let notes: Vec<String> = (0..500_000).map(|index| format!("\"{index}\":\"\"")).collect();
            format!("{{\"__metadata__\":{{{}}}}}", notes.join(","))
        }),
        case("a header that is a hole of 90 MB", Expected::Error(&["the header must"]), 64, |folder| {
            checkpoint(folder, None);
            let mut file = File::create(folder.join("model.safetensors")).unwrap();
            file.write_all(&(90_000_000_u64).to_le_bytes()).unwrap();
            file.set_len(100_000_000).unwrap();
        }),
        case(
            "a header that is a hole of 60 MB",
            Expected::Error(&["JSON object of tensors"]),
            96,
            |folder| {
                checkpoint(folder, None);
                let mut file = File::create(folder.join("model.safetensors")).unwrap();
                file.write_all(&(60_000_000_u64).to_le_bytes()).unwrap();
                file.set_len(100_000_000).unwrap();
            },
        ),
    ]
}

fn indexes() -> Vec<Case> {
    let index = |name: &str, expected, most, text: fn() -> String| {
        case(name, expected, most, move |folder| {
            checkpoint(folder, None);
            std::fs::rename(folder.join("model.safetensors"), folder.join("a")).unwrap();
            std::fs::write(folder.join("model.safetensors.index.json"), text()).unwrap();
        })
    };
    fn entries(count: usize, shard: fn(usize) -> String) -> String {
        let entry = |index: usize| format!("\"t{index}\":\"{}\"", shard(index));
        format!("{{\"weight_map\":{{{}}}}}", (0..count).map(entry).collect::<Vec<_>>().join(","))
    }
    let many = || Expected::Error(&["index.json: must be JSON of at most 524288 values"]);
    vec![
        index("an index of a million entries", many(), 64, || entries(1_000_000, |_| "a".into())),
        index("an index of half a million entries", Expected::Error(&["the index says so"]), 256, || {
            entries(500_000, |_| "a".into())
        }),
        index("an index of half a million shards", Expected::Error(&["shard-"]), 256, || {
            entries(500_000, |index| format!("shard-{index}"))
        }),
        case(
            "an index of 65 MiB",
            Expected::Error(&["index.json: must be at most 67108864 bytes"]),
            64,
            |folder| {
                checkpoint(folder, None);
                std::fs::remove_file(folder.join("model.safetensors")).unwrap();
                blanks(&folder.join("model.safetensors.index.json"), 65 * MIB);
            },
        ),
    ]
}

fn tokenizers() -> Vec<Case> {
    let tokenizer = |name: &str, expected, most, change: fn(&mut Value)| {
        case(name, expected, most, move |folder| {
            checkpoint(folder, Some("byte_level"));
            let file = folder.join("tokenizer.json");
            let mut json: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
            change(&mut json);
            std::fs::write(file, json.to_string()).unwrap();
        })
    };
    let refused = || Expected::Error(&["tokenizer.json"]);
    let too_many = || Expected::Error(&["tokenizer.json", "must have at most"]);
    vec![
        case("tokenizer.json of 65 MiB", Expected::Error(&["at most 67108864 bytes"]), 64, |folder| {
            checkpoint(folder, Some("byte_level"));
            blanks(&folder.join("tokenizer.json"), 65 * MIB);
        }),
        tokenizer("half a million added tokens", too_many(), 128, |json| {
            let token = |id: usize| {
                json!({"id": 1000 + id, "content": format!("<{id}>"), "special": true, "normalized": false,
                    "single_word": false, "lstrip": false, "rstrip": false})
            };
            json["added_tokens"] = (0..500_000).map(token).collect();
        }),
        tokenizer("a million tokens", too_many(), 128, |json| {
            let vocab = (0..1_000_000).map(|id| (format!("t{id}"), id.into()));
            json["model"]["vocab"] = Value::Object(vocab.collect());
        }),
        tokenizer("a million merges", too_many(), 128, |json| {
            json["model"]["merges"] = (0..1_000_000).map(|id| json!([format!("a{id}"), "b"])).collect();
        }),
        case("tokenizer.json nested without end", refused(), 64, |folder| {
            checkpoint(folder, Some("byte_level"));
            std::fs::write(folder.join("tokenizer.json"), "{\"a\":".repeat(1_000_000)).unwrap();
        }),
    ]
}
