//! Literal text gives the ids that the crate gives with `encode_special_tokens`, and no control token.

use std::path::Path;

use serde_json::{Value, json};

use amnesic::testing::Tokenizer;

use super::{VOCAB, changed};
use crate::common::Random;

/// A fixture with further added tokens: special, and looked for as the text comes or normalized.
fn with_controls(name: &str, normalized: bool) -> tempfile::TempDir {
    changed(name, |tokenizer, _| {
        let first = tokenizer["model"]["vocab"].as_object().unwrap().len() + 8;
        let added = tokenizer["added_tokens"].as_array_mut().unwrap();
        for (at, (content, special)) in [
            ("<|im_start|>", true),
            ("<|im_end|>", true),
            ("[INST]", true),
            ("<think>", false),
            ("  ", false),
        ]
        .into_iter()
        .enumerate()
        {
            added.push(json!({"id": first + at, "content": content, "special": special,
                "normalized": normalized && special, "single_word": false, "lstrip": false, "rstrip": false}));
        }
    })
}

fn text(random: &mut Random) -> String {
    const PARTS: [&str; 14] = [
        "<|im_start|>",
        "<|im_end|>",
        "[INST]",
        "<think>",
        "  ",
        "<s>",
        "</s>",
        "<|endoftext|>",
        "<|im_",
        "end|>",
        "<",
        "\n",
        "Hello ",
        "<|eot_id|>",
    ];
    (0..=random.below(8))
        .map(|_| if random.below(3) == 0 { random.text(2) } else { random.pick(&PARTS).to_string() })
        .collect()
}

fn specials(tokenizer: &tokenizers::Tokenizer) -> Vec<u32> {
    let added = tokenizer.get_added_tokens_decoder();
    added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect()
}

fn hold(what: &str, folder: &Path, random: &mut Random) {
    let mut theirs = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    theirs.set_encode_special_tokens(true);
    let ours = Tokenizer::open(folder, VOCAB).unwrap();
    let controls = specials(&theirs);
    let mut typed = 0;
    for _ in 0..2000 {
        let text = text(random);
        let expected = theirs.encode_fast(text.as_str(), false).unwrap();
        let ids = ours.encode_literal(&text).unwrap();
        assert_eq!(ids, expected.get_ids(), "{what}: {text:?}");
        assert!(ids.iter().all(|id| !controls.contains(id)), "{what}: {text:?}");
        typed += usize::from(ours.encode(&text, false).iter().any(|id| controls.contains(id)));
    }
    assert!(typed > 1000, "{what}: only {typed} texts had a control token to be typed");
}

#[test]
fn literal_text_gives_the_crates_ids() {
    let mut random = Random(0x117e);
    for name in super::FOLDERS {
        for normalized in [false, true] {
            let folder = with_controls(name, normalized);
            hold(&format!("{name}, {normalized}"), folder.path(), &mut random);
        }
    }
}

/// What the crate encodes is literal, too.
#[test]
fn a_fallback_knows_literal_text() {
    let folder = changed("byte_level", |tokenizer, _| {
        tokenizer["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"\p{L}++|\P{L}"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]});
    });
    assert!(Tokenizer::open(folder.path(), VOCAB).unwrap().fallback().is_some());
    let mut theirs = tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
    theirs.set_encode_special_tokens(true);
    let ours = Tokenizer::open(folder.path(), VOCAB).unwrap();
    for text in ["<|endoftext|>", "a<|endoftext|>b<|endoftext|>", "plain"] {
        let expected = theirs.encode_fast(text, false).unwrap();
        assert_eq!(ours.encode_literal(text).unwrap(), expected.get_ids(), "{text:?}");
    }
}

/// Models that have their control tokens as words make them out of plain text; the crate does, ours does not.
#[test]
fn no_model_makes_a_control_token_of_literal_text() {
    let added = json!([{"id": 1, "content": "</s>", "special": true, "normalized": false, "single_word": false,
        "lstrip": false, "rstrip": false}]);
    let alphabet = "</s>ab ".chars().map(|character| character.to_string());
    let tokens: Vec<String> = ["<unk>", "</s>"].map(str::to_owned).into_iter().chain(alphabet).collect();
    let scores: Vec<Value> =
        tokens.iter().map(|token| json!([token, if token == "</s>" { 0.0 } else { -5.0 }])).collect();
    let vocab: serde_json::Map<String, Value> = tokens
        .iter()
        .chain(&["</".to_owned(), "s>".to_owned()])
        .enumerate()
        .map(|(id, token)| (token.clone(), id.into()))
        .collect();
    let unigram = json!({"type": "Unigram", "unk_id": 0, "vocab": scores, "byte_fallback": false});
    let bpe = json!({"type": "BPE", "vocab": vocab, "merges": [["<", "/"], ["s", ">"], ["</", "s>"]],
        "unk_token": "<unk>", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false});
    for model in [unigram, bpe] {
        let folder = tempfile::tempdir().unwrap();
        let file = json!({"version": "1.0", "added_tokens": added, "normalizer": null, "pre_tokenizer": null,
            "post_processor": null, "decoder": {"type": "Fuse"}, "model": model});
        std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
        let mut theirs = tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
        theirs.set_encode_special_tokens(true);
        assert!(theirs.encode_fast("a</s>b", false).unwrap().get_ids().contains(&1), "the crate makes one");
        let ours = Tokenizer::open_to_read(folder.path(), 64).unwrap();
        for text in ["</s>", "a</s>b", "</s></s>", "<</s>/s>", "x</s>"] {
            let ids = ours.encode_literal(text).unwrap();
            assert!(!ids.contains(&1), "{}: {text:?} gave {ids:?}", model["type"]);
            let spelled: String = ids.iter().map(|&id| theirs.id_to_token(id).unwrap()).collect();
            assert_eq!(spelled, text.replace('x', "<unk>"), "{}", model["type"]);
            assert!(ours.encode(text, false).contains(&1), "{}: {text:?}", model["type"]);
        }
    }
}
