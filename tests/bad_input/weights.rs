//! Files of weights: headers, tensors, shards and their index.

use std::ops::Range;
use std::time::Duration;

use amnesic::{Device, Error};
use serde_json::{Value, json};
use tempfile::tempdir;

use super::common::Recipe;
use super::parts::{Parts, Shards, joined, stored};
use super::{
    CONFIG, DOWN, EMBED, INDEX, Is, K, MOST_AT_ONCE, NORM, Q, SHARDS, WEIGHTS, builder, greedy, is,
    is_one_short_line, largest, refuses,
};

#[test]
fn weights_files_that_are_no_files() {
    let parts = Parts::small();
    let missing = parts.write();
    std::fs::remove_file(missing.path().join(WEIGHTS)).unwrap();
    refuses("missing", builder(missing.path()), Is::Read, &[WEIGHTS]);
    std::fs::create_dir(missing.path().join(WEIGHTS)).unwrap();
    refuses("a folder", builder(missing.path()), Is::Weights, &[WEIGHTS, "regular file"]);
    refuses("empty", builder(parts.write_with(&[]).path()), Is::Weights, &[WEIGHTS, "not empty"]);
}

/// The system's special files: opening must neither wait for a writer nor read without end.
#[test]
fn pipes_and_devices_in_a_checkpoint() {
    let files = [CONFIG, WEIGHTS, INDEX, "tokenizer.json", "tokenizer_config.json", "generation_config.json"];
    let mut wrong = Vec::new();
    for file in files {
        for kind in ["pipe", "device", "folder"] {
            let folder = tempdir().unwrap();
            Recipe::small(1024).write(folder.path(), Some("byte_level"));
            let path = folder.path().join(file);
            if file == INDEX {
                std::fs::remove_file(folder.path().join(WEIGHTS)).unwrap();
            }
            let _ = std::fs::remove_file(&path);
            match kind {
                "pipe" => {
                    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success())
                }
                "device" => std::os::unix::fs::symlink("/dev/zero", &path).unwrap(),
                _ => std::fs::create_dir(&path).unwrap(),
            }
            let (tell, told) = std::sync::mpsc::channel();
            let open = builder(folder.path());
            std::thread::spawn(move || {
                tell.send((open.open().err().map(|error| error.to_string()), largest()))
            });
            match told.recv_timeout(Duration::from_secs(2)) {
                Err(_) => wrong.push(format!("{file}, {kind}: waits for ever")),
                Ok((_, largest)) if largest >= MOST_AT_ONCE => {
                    wrong.push(format!("{file}, {kind}: allocated {largest} bytes at once"));
                }
                Ok((Some(shown), _)) if shown.contains(file) => {}
                Ok((shown, _)) => wrong.push(format!("{file}, {kind}: {shown:?}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn weights_cut_off_anywhere() {
    let parts = Parts::small();
    let whole = parts.weights();
    let header = whole.len() - parts.data.len();
    let mut places: Vec<usize> = (1..50).map(|i| whole.len() * i / 50).collect();
    places.extend((1..=10).chain((1..20).map(|i| header * i / 20)));
    places.extend([header - 1, header, header + 1, whole.len() - 2, whole.len() - 1]);
    for place in places {
        let folder = parts.write_with(&whole[..place]);
        refuses(&format!("cut off at {place}"), builder(folder.path()), Is::Weights, &[WEIGHTS]);
    }
    let longer = [&whole[..], &[0]].concat();
    refuses(
        "one byte more",
        builder(parts.write_with(&longer).path()),
        Is::Weights,
        &[WEIGHTS, "extra bytes"],
    );
}

#[test]
fn headers_of_weights_files() {
    let parts = Parts::small();
    let whole = parts.weights();
    for (length, words) in [
        (0, "JSON"),
        (7, "JSON"),
        (whole.len() as u64 - 7, "length"),
        (whole.len() as u64, "length"),
        (100_000_001, "length"),
        (1 << 40, "length"),
        (1 << 63, "length"),
        (u64::MAX - 8, "length"),
        (u64::MAX, "length"),
    ] {
        let mut bytes = whole.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        refuses(
            &format!("length {length}"),
            builder(parts.write_with(&bytes).path()),
            Is::Weights,
            &[WEIGHTS, words],
        );
    }
    let nested = [b"{\"a\":".repeat(100_000), b"1".to_vec()].concat();
    let headers: [(&str, &[u8]); 6] = [
        ("not UTF-8", b"{\"\xff\xfe\": 1}"),
        ("not JSON", b"tensors"),
        ("an array", b"[1, 2]"),
        ("a string", b"\"tensors\""),
        ("metadata that is none", b"{\"__metadata__\": 3}"),
        ("deeply nested", &nested),
    ];
    for (what, header) in headers {
        let folder = parts.write_with(&joined(header, &parts.data));
        refuses(what, builder(folder.path()), Is::Weights, &[WEIGHTS, "JSON object of tensors"]);
    }
    refuses(
        "no tensors",
        builder(parts.write_with(&joined(b"{}", &parts.data)).path()),
        Is::Weights,
        &[WEIGHTS],
    );
    refuses(
        "no tensors, no data",
        builder(parts.write_with(&joined(b"{}", &[])).path()),
        Is::Tensor(EMBED),
        &["be there"],
    );
}

#[test]
fn tensors_in_a_header() {
    type Change = fn(&mut Parts);
    let cases: [(&str, Change, Is, &[&str]); 29] = [
        ("dtype F99", |p| p.header[Q]["dtype"] = json!("F99"), Is::Tensor(Q), &["dtype"]),
        ("dtype 3", |p| p.header[Q]["dtype"] = json!(3), Is::Tensor(Q), &["dtype"]),
        (
            "no dtype",
            |p| drop(p.header[Q].as_object_mut().unwrap().remove("dtype")),
            Is::Tensor(Q),
            &["dtype"],
        ),
        ("dtype I16", |p| p.header[Q]["dtype"] = json!("I16"), Is::Tensor(Q), &["bfloat16", "I16"]),
        ("dtype I64", |p| retype(p, "I64", [128, 16]), Is::Tensor(Q), &["shape"]),
        ("dtype U8", |p| retype(p, "U8", [128, 128]), Is::Tensor(Q), &["shape"]),
        ("dtype F8_E4M3", |p| retype(p, "F8_E4M3", [256, 64]), Is::Tensor(Q), &["shape"]),
        ("dtype I64, shape kept", |p| p.header[Q]["dtype"] = json!("I64"), Is::Tensor(Q), &["65536 bytes"]),
        ("dtype F4, half bytes", |p| retype(p, "F4", [1, 3]), Is::Tensor(Q), &["bytes"]),
        (
            "shape 2^64 - 1",
            |p| p.header[Q]["shape"] = json!([u64::MAX, u64::MAX]),
            Is::Tensor(Q),
            &["overflow"],
        ),
        (
            "shape 2^32 x 2^32",
            |p| p.header[Q]["shape"] = json!([1_u64 << 32, 1_u64 << 32]),
            Is::Tensor(Q),
            &["overflow"],
        ),
        ("shape 2^61", |p| p.header[Q]["shape"] = json!([1_u64 << 61]), Is::Tensor(Q), &["overflow"]),
        ("shape too large", |p| p.header[Q]["shape"] = json!([u64::MAX]), Is::Tensor(Q), &["overflow"]),
        ("shape -1", |p| p.header[Q]["shape"] = json!([-1, 64]), Is::Tensor(Q), &["shape"]),
        ("shape 1.5", |p| p.header[Q]["shape"] = json!([1.5]), Is::Tensor(Q), &["shape"]),
        ("shape a string", |p| p.header[Q]["shape"] = json!("128x64"), Is::Tensor(Q), &["shape"]),
        (
            "transposed",
            |p| p.header[Q]["shape"] = json!([64, 128]),
            Is::Tensor(Q),
            &["[128, 64]", "[64, 128]"],
        ),
        (
            "fewer dimensions",
            |p| p.header[Q]["shape"] = json!([8192]),
            Is::Tensor(Q),
            &["[128, 64]", "[8192]"],
        ),
        ("more dimensions", |p| p.header[Q]["shape"] = json!([1, 128, 64]), Is::Tensor(Q), &["[1, 128, 64]"]),
        ("no dimensions", |p| p.header[Q]["shape"] = json!([]), Is::Tensor(Q), &["2 bytes"]),
        ("a dimension 0", |p| p.header[Q]["shape"] = json!([0, 64]), Is::Tensor(Q), &["0 bytes"]),
        ("shape too small", |p| p.header[Q]["shape"] = json!([127, 64]), Is::Tensor(Q), &["16256 bytes"]),
        ("not an object", |p| p.header[Q] = json!([1]), Is::Tensor(Q), &["dtype"]),
        (
            "three offsets",
            |p| p.header[Q]["data_offsets"] = json!([0, 1, 2]),
            Is::Tensor(Q),
            &["two data_offsets"],
        ),
        ("negative offsets", |p| move_by(p, Q, -1 << 40), Is::Tensor(Q), &["data_offsets"]),
        (
            "a sum past 2^64",
            |p| {
                let mut start = p.data.len() as u64;
                for i in 0..8 {
                    let end = if i == 7 { u64::MAX - 1 } else { start + (1 << 61) - 1 };
                    p.header.insert(
                        format!("huge.{i}"),
                        json!({"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}),
                    );
                    start = end;
                }
            },
            Is::Tensor("huge.7"),
            &["lie inside"],
        ),
        (
            "beyond the end",
            |p| {
                let name = last(p);
                let start = p.range(&name).start;
                p.header[&name] =
                    json!({"dtype": "U8", "shape": [1 << 30], "data_offsets": [start, start + (1 << 30)]});
            },
            Is::Weights,
            &["truncated"],
        ),
        ("missing", |p| *p = p.only(|name| name != K), Is::Tensor(K), &["be there", "[64, 64]"]),
        (
            "renamed",
            |p| {
                let info = p.header.remove(NORM).unwrap();
                p.header.insert("norm.weight".into(), info);
            },
            Is::Tensor(NORM),
            &["be there", "[64]"],
        ),
    ];
    for (what, change, expected, words) in cases {
        let mut parts = Parts::small();
        change(&mut parts);
        refuses(what, builder(parts.write().path()), expected, words);
    }
    // Which tensor is at fault when two claim the same bytes is a matter of taste: it must be one of them.
    let parts = Parts::small();
    let Range { start, end } = parts.range(Q);
    for (what, offsets) in [
        ("reversed", [end, start]),
        ("a gap before", [start + 2, end]),
        ("overlaps the one before", [start - 2, end]),
        ("ends early", [start, end - 2]),
        ("ends late", [start, end + 2]),
        ("moved", [start + 2, end + 2]),
        ("of another tensor", [0, end - start]),
        ("near 2^64", [usize::MAX - (end - start), usize::MAX]),
        ("past 2^64", [usize::MAX, end - start - 1]),
    ] {
        let mut parts = parts.clone();
        parts.header[Q]["data_offsets"] = json!(offsets);
        let folder = parts.write();
        let error = builder(folder.path()).open().err().unwrap_or_else(|| panic!("{what}: it opened"));
        let Is::Tensor(name) = is(&error) else { panic!("{what}: {error}") };
        assert!(parts.header.contains_key(name) && error.to_string().contains(WEIGHTS), "{what}: {error}");
        is_one_short_line(what, &error.to_string());
    }
}

#[test]
fn tensors_are_listed_by_name() {
    let layer = |part: &str| format!("model.layers.1.{part}.weight");
    let (up, down) = (layer("mlp.up_proj"), layer("mlp.down_proj"));
    let parts = Parts::small().only(|name| name != K && name != up && name != down);
    let error = builder(parts.write().path()).open().unwrap_err();
    let Error::Tensors { count, first, .. } = &error else { panic!("{error}") };
    assert_eq!(*count, 3, "{error}");
    for name in [K, &up, &down] {
        assert!(first.contains(&format!("`{name}` must be there")), "{name}: {error}");
    }
    assert!(error.to_string().contains("3 tensors"), "{error}");

    // one that nobody reads: a model of another kind, unless the application knows better
    let mut parts = Parts::small();
    let info = parts.header[NORM].clone();
    let bytes = parts.data[parts.range(NORM)].to_vec();
    let start = parts.data.len();
    parts.header.insert("model.layers.0.self_attn.q_norm.weight".into(), info);
    parts.header["model.layers.0.self_attn.q_norm.weight"]["data_offsets"] =
        json!([start, start + bytes.len()]);
    parts.data.extend(bytes);
    let folder = parts.write();
    refuses(
        "an extra tensor",
        builder(folder.path()),
        Is::Tensor("model.layers.0.self_attn.q_norm.weight"),
        &["not be there", WEIGHTS],
    );
    builder(folder.path()).allow_extra_tensors().open().unwrap();
    // what old versions of transformers stored is no surprise
    let name = "model.layers.0.self_attn.rotary_emb.inv_freq";
    let info = parts.header.remove("model.layers.0.self_attn.q_norm.weight").unwrap();
    parts.header.insert(name.into(), info);
    builder(parts.write().path()).open().unwrap();
}

fn retype(parts: &mut Parts, dtype: &str, shape: [usize; 2]) {
    parts.header[Q]["dtype"] = dtype.into();
    parts.header[Q]["shape"] = json!(shape);
}

fn move_by(parts: &mut Parts, name: &str, by: i64) {
    let Range { start, end } = parts.range(name);
    parts.header[name]["data_offsets"] = json!([start as i64 + by, end as i64 + by]);
}

/// The tensor whose data comes last.
fn last(parts: &Parts) -> String {
    parts.header.keys().max_by_key(|name| parts.range(name).end).unwrap().clone()
}

/// The format forbids it, since parsers differ in which of the two they take.
#[test]
fn a_tensor_twice_in_a_header() {
    let parts = Parts::small();
    let header = Value::Object(parts.header.clone()).to_string();
    let Range { start, end } = parts.range(Q);
    for (what, offsets) in
        [("with other offsets", [start + 2, end + 2]), ("with the same offsets", [start, end])]
    {
        let entry = json!({"dtype": "BF16", "shape": [128, 64], "data_offsets": offsets});
        let twice = format!("{{\"{Q}\":{entry},{}", &header[1..]);
        let folder = parts.write_with(&joined(twice.as_bytes(), &parts.data));
        refuses(what, builder(folder.path()), Is::Tensor(Q), &[WEIGHTS]);
    }
}

/// Nothing says that tensors are aligned: one space more in the header puts all of them at odd addresses.
#[test]
fn tensors_at_odd_addresses_compute_the_same() {
    for dtype in ["BF16", "F16", "F32"] {
        let parts = Parts::small().stored_as(dtype);
        let expected = greedy(&builder(parts.write().path()).open().unwrap());
        for spaces in 1..5 {
            let header = Value::Object(parts.header.clone()).to_string() + &" ".repeat(spaces);
            let folder = parts.write_with(&joined(header.as_bytes(), &parts.data));
            for device in [Device::Cpu, Device::CpuWith("portable"), Device::Reference] {
                let session = builder(folder.path()).device(device).open().unwrap();
                assert_eq!(greedy(&session), expected, "{dtype}, {spaces} spaces, {device:?}");
            }
        }
    }
}

#[test]
fn weights_that_are_not_finite() {
    for dtype in ["BF16", "F16", "F32"] {
        let good = Parts::small().stored_as(dtype);
        let bytes = stored(dtype, 0.0).len();
        for name in [EMBED, NORM, Q, DOWN] {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let Range { start, end } = good.range(name);
                for at in [start, end - bytes] {
                    let mut parts = good.clone();
                    parts.data[at..at + bytes].copy_from_slice(&stored(dtype, value));
                    let what = format!("{value} in {dtype} {name}, byte {at}");
                    refuses(&what, builder(parts.write().path()), Is::Tensor(name), &[WEIGHTS, "finite"]);
                }
            }
        }
    }
}

#[test]
fn shards_and_their_index() {
    type Change = fn(&mut Shards);
    let cases: [(&str, Change, Is, &[&str]); 12] = [
        ("no weight_map", |s| s.index = json!({}), Is::Config("weight_map"), &["an object"]),
        ("not an object", |s| s.index = json!([]), Is::Config("weight_map"), &["an object"]),
        (
            "weight_map a list",
            |s| s.index["weight_map"] = json!([SHARDS[0]]),
            Is::Config("weight_map"),
            &["an object"],
        ),
        ("numbers", |s| s.index["weight_map"][Q] = json!(1), Is::Config("weight_map"), &["file names"]),
        ("null", |s| s.index["weight_map"][Q] = json!(null), Is::Config("weight_map"), &["file names"]),
        ("empty", |s| s.index["weight_map"] = json!({}), Is::Tensor(EMBED), &["be there"]),
        (
            "an unknown tensor",
            |s| s.index["weight_map"]["ghost"] = json!(SHARDS[0]),
            Is::Tensor("ghost"),
            &[SHARDS[0], "index"],
        ),
        (
            "the wrong shard",
            |s| s.index["weight_map"][Q] = json!(SHARDS[1]),
            Is::Tensor(Q),
            &[SHARDS[1], "index"],
        ),
        (
            "both wrong",
            |s| {
                s.index["weight_map"][Q] = json!(SHARDS[1]);
                s.index["weight_map"][K] = json!(SHARDS[0]);
            },
            Is::Tensor(Q),
            &[SHARDS[1], "index"],
        ),
        (
            "in two shards",
            |s| {
                let (info, range) = (s.shards[0].header[NORM].clone(), s.shards[0].range(NORM));
                let data = s.shards[0].data[range].to_vec();
                let start = s.shards[1].data.len();
                s.shards[1].data.extend(data);
                s.shards[1].header.insert(NORM.into(), info);
                s.shards[1].header[NORM]["data_offsets"] = json!([start, s.shards[1].data.len()]);
            },
            Is::Tensor(NORM),
            &["one file only"],
        ),
        (
            "a shard missing",
            |s| s.index["weight_map"][Q] = json!("model-3.safetensors"),
            Is::Read,
            &["model-3"],
        ),
        ("another file", |s| s.index["weight_map"][Q] = json!(CONFIG), Is::Weights, &[CONFIG]),
    ];
    for (what, change, expected, words) in cases {
        let mut shards = Parts::small().shards();
        change(&mut shards);
        refuses(what, builder(shards.write().path()), expected, words);
    }
    for name in
        ["../x", "/etc/passwd", "a/b", "./model-1.safetensors", "model-1.safetensors/", "..", ".", "/", ""]
    {
        let mut shards = Parts::small().shards();
        shards.index["weight_map"][Q] = name.into();
        refuses(name, builder(shards.write().path()), Is::Config("weight_map"), &[INDEX, "without folders"]);
    }
    let folder = Parts::small().shards().write();
    for text in ["", "{", "{\"weight_map\": {\"a\": \"b\"", "\u{0}"] {
        std::fs::write(folder.path().join(INDEX), text).unwrap();
        refuses(text, builder(folder.path()), Is::Config("weight_map"), &[INDEX]);
    }
}
