//! Added tokens decode as the crate decodes them: every kind of decoder, every kind of added token, whole and streamed.

use serde_json::{Value, json};

use amnesic::testing::Tokenizer;

use crate::common::Random;

/// Contents that decoders change, or that look like what they change.
const CONTENTS: [&str; 16] = [
    "▁▁▁",
    "▁▁",
    "foo bar",
    " x",
    "x ",
    "  ",
    "Ġy",
    "é",
    "<0x41>",
    "</s>",
    "A▁b",
    "\n\n",
    "日本",
    "<0x20>",
    "▁",
    "<tag>",
];

/// Tokens of the model besides: words, a space as a byte, a character in bytes, nothing that could break one.
fn vocabulary() -> Vec<String> {
    let mut tokens: Vec<String> =
        ["<unk>", "▁", "Ġ", "▁a", "Ġb", "a b", "é", "▁▁a", "word", "\u{1f600}", "<0x0A>"]
            .map(str::to_owned)
            .to_vec();
    tokens.extend((b'a'..=b'z').map(|byte| char::from(byte).to_string()));
    tokens
}

fn decoders() -> Vec<(&'static str, Value)> {
    let metaspace = |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true});
    let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let (bytes, fuse) = (json!({"type": "ByteFallback"}), json!({"type": "Fuse"}));
    let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    let sequence = |steps: &[&Value]| json!({"type": "Sequence", "decoders": steps});
    vec![
        (
            "byte-level",
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        ),
        ("metaspace, always", metaspace("always")),
        ("metaspace, first", metaspace("first")),
        ("metaspace, never", metaspace("never")),
        ("bytes, then metaspace", sequence(&[&bytes, &metaspace("first")])),
        ("Llama 2's", sequence(&[&replace, &bytes, &fuse, &strip])),
        ("Gemma's", sequence(&[&replace, &bytes, &fuse])),
    ]
}

fn normalizers() -> Vec<Value> {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    vec![
        Value::Null,
        replace.clone(),
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}),
        json!({"type": "Lowercase"}),
        json!({"type": "NFKD"}),
    ]
}

/// A tokenizer whose added tokens are special and looked for in normalized text as the bits of `flags` say, in turn.
fn file(decoder: &Value, normalizer: &Value, flags: usize) -> Value {
    let vocab = vocabulary();
    let ids: serde_json::Map<String, Value> =
        vocab.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let mut next = vocab.len();
    let added = CONTENTS.iter().enumerate().map(|(at, content)| {
        let id = vocab.iter().position(|token| token == content).unwrap_or_else(|| {
            next += 1;
            next - 1
        });
        let kind = at + flags;
        json!({"id": id, "content": content, "special": kind % 2 == 1, "normalized": kind / 2 % 2 == 1,
            "single_word": false, "lstrip": false, "rstrip": false})
    });
    let added: Vec<Value> = added.collect();
    json!({
        "version": "1.0", "added_tokens": added, "normalizer": normalizer, "decoder": decoder,
        "pre_tokenizer": null, "post_processor": null,
        "model": {"type": "BPE", "vocab": ids, "merges": [], "unk_token": "<unk>", "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": false},
    })
}

/// Holds ours to the crate's on random ids; returns on how many texts.
fn hold(what: &str, file: &Value, random: &mut Random) -> usize {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    let theirs = tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
    let size = theirs.get_vocab_size(true);
    // a few of the ids are above the model's vocabulary, and some are none at all
    let ours = Tokenizer::open(folder.path(), size - 3).unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut held = 0;
    for _ in 0..200 {
        let ids: Vec<u32> = (0..random.below(7)).map(|_| random.below(size) as u32).collect();
        for skip in [true, false] {
            let expected = theirs.decode(&ids, skip).unwrap();
            if expected.contains('\u{fffd}') {
                continue;
            }
            assert_eq!(ours.decode_with(&ids, skip), expected, "{what}: {ids:?}, skipping {skip}");
            held += 1;
        }
        let pieces = ours.decode_streamed(&ids);
        for count in 0..=ids.len() {
            let expected = theirs.decode(&ids[..count], true).unwrap();
            if !expected.contains('\u{fffd}') {
                assert_eq!(pieces[..count].concat(), expected, "{what}: {ids:?}, streamed up to {count}");
            }
        }
        assert_eq!(pieces.concat(), ours.decode(&ids), "{what}: {ids:?}, streamed");
    }
    held
}

#[test]
fn added_tokens_decode_as_the_crate_decodes_them() {
    let mut random = Random(0xadde);
    let mut held = 0;
    for (name, decoder) in decoders() {
        for (at, normalizer) in normalizers().iter().enumerate() {
            for flags in 0..4 {
                let file = file(&decoder, normalizer, flags);
                held += hold(&format!("{name}, normalizer {at}, flags {flags}"), &file, &mut random);
            }
        }
    }
    println!("{held} texts");
    assert!(held > 7 * 5 * 4 * 200, "{held}");
}

/// The value is transformers': `Tokenizer.decode` of tokenizers 0.23.3.
#[test]
fn gemmas_runs_of_spaces_are_spaces() {
    let (_, decoder) = decoders().pop().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = file(&decoder, &normalizers()[1], 0);
    std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    let ours = Tokenizer::open(folder.path(), 64).unwrap();
    let id = vocabulary().len() as u32; // the first added token
    assert_eq!(ours.decode(&[id]), "   ");
    assert_eq!(ours.decode_streamed(&[11, id, 12]), ["a", "   ", "b", ""]);
}
