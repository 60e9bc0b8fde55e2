//! Tokenizers with more tokens than the model: they open, and a token that the model has not is refused where a prompt or a
//! text has it.

use std::path::Path;

use amnesic::{EmbedRequest, Error, Request, ResponseFormat, Session, user};
use serde_json::{Value, json};

use super::{TEMPLATE, VOCAB, ids, open, refused, write};
use crate::common::fixture;

/// Their ids are 808 and above: the model has no rows for them.
#[test]
fn tokens_above_the_vocabulary_are_refused_in_prompts_only() {
    let (session, theirs) = open(TEMPLATE);
    let last = theirs.token_to_id("<|last|>").unwrap();
    assert!(last as usize >= VOCAB && session.vocab_size() == VOCAB);
    assert_eq!(session.tokenize("<image>").unwrap().ids(), ids(&theirs, "<image>", true));
    for request in
        [Request::prompt("a <image> b"), Request::chat([user("<|last|>")]), Request::tokens([1, last])]
    {
        let (field, expected) = refused(session.generate(request.max_tokens(2)).unwrap_err());
        assert_eq!((field, expected.contains("808")), ("prompt", true), "{expected}");
    }
    let mut conversation = session.conversation();
    conversation.generate(Request::prompt("a").max_tokens(2)).unwrap();
    assert_eq!(refused(conversation.generate(Request::prompt("<image>")).unwrap_err()).0, "prompt");
    conversation.generate(Request::prompt("b").max_tokens(2)).unwrap();
    // never drawn, whatever is asked for; and nothing else minds that it is there
    let request = Request::prompt("a")
        .max_tokens(40)
        .temperature(2.0)
        .stop("<|last|>")
        .stop_token(last)
        .ignore_eos(true);
    let reply = session.generate(request.min_tokens(5).n(4)).unwrap();
    assert!(reply.choices().iter().flat_map(|choice| choice.tokens()).all(|&id| (id as usize) < VOCAB));
    let formed = Request::prompt("a").max_tokens(8).response_format(ResponseFormat::regex("[a-z<>|]{2}"));
    assert_eq!(session.generate(formed).unwrap().text().len(), 2);
    assert_eq!(
        refused(session.generate(Request::prompt("a").logit_bias(last, 1.0)).unwrap_err()).0,
        "logit_bias"
    );
    let literal = Request::chat([user("<image><|last|>")]).literal_text(true);
    assert!(
        session.generate(literal.max_tokens(1)).is_err(),
        "`<image>` is no control token of this checkpoint"
    );
    let literal = Request::chat([user("<|last|>")]).literal_text(true);
    assert!(session.generate(literal.max_tokens(1)).is_ok());
}

/// A tokenizer whose own BOS is above the vocabulary still serves ids.
#[test]
fn a_bos_above_the_vocabulary_is_refused_in_prompts_only() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), TEMPLATE, |tokenizer, _| {
        let template = &mut tokenizer["post_processor"]["processors"][1];
        template["single"][0]["SpecialToken"]["id"] = "<|last|>".into();
        template["special_tokens"] = json!({"<|last|>": {"id": "<|last|>", "ids": [809], "tokens": ["<|last|>"]},
            "<|begin_of_text|>": {"id": "<|begin_of_text|>", "ids": [800], "tokens": ["<|begin_of_text|>"]}});
    });
    let session = Session::open(folder.path()).unwrap();
    assert_eq!(refused(session.generate(Request::prompt("a").max_tokens(1)).unwrap_err()).0, "prompt");
    session.generate(Request::tokens([5]).max_tokens(1)).unwrap();
    session.generate(Request::prompt("a").add_special_tokens(false).max_tokens(1)).unwrap();
}

#[test]
fn an_embedding_model_refuses_such_tokens_too() {
    let folder = tempfile::tempdir().unwrap();
    copy(&fixture("encoders").join("bert"), folder.path());
    let file = folder.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let config = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
    let vocab = serde_json::from_str::<Value>(&config).unwrap()["vocab_size"].as_u64().unwrap();
    let first = tokenizer["model"]["vocab"].as_object().unwrap().len() as u64;
    let fillers = (first..vocab).map(|id| (id, format!("<filler {id}>")));
    for (id, content) in fillers.chain([(vocab, "<image>".to_owned())]) {
        tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({"id": id, "content": content,
            "special": false, "normalized": false, "single_word": false, "lstrip": false, "rstrip": false}));
    }
    std::fs::write(&file, tokenizer.to_string()).unwrap();
    let theirs = tokenizers::Tokenizer::from_file(&file).unwrap();
    assert_eq!(theirs.token_to_id("<image>").map(u64::from), Some(vocab));
    let session = Session::open(folder.path()).unwrap();
    assert!(session.embed(&["plain", "<filler 80>"]).is_ok());
    let error = session.embed_with(EmbedRequest::new(["plain", "an <image>"])).unwrap_err();
    let Error::InBatch { index: 1, source } = error else { panic!("{error}") };
    assert_eq!(refused(*source).0, "text");
    assert_eq!(session.tokenize("an <image>").unwrap().ids(), ids(&theirs, "an <image>", true));
    assert!(matches!(session.detokenize(&[1], true), Err(Error::WrongTask { .. })));
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        let name = to.join(entry.file_name().unwrap());
        if entry.is_dir() {
            std::fs::create_dir(&name).unwrap();
            copy(&entry, &name);
        } else {
            std::fs::copy(&entry, name).unwrap();
        }
    }
}

/// A GGUF file of a llama with four rows fewer than its tokenizer has tokens.
fn write_gguf(file: &Path) {
    const ROWS: u64 = 8;
    let tokens = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "▁b", "<image>", "<|x|>", "c", "d"];
    let kinds = [2, 3, 3, 1, 1, 1, 1, 1, 4, 3, 1, 1];
    let (mut keys, mut count) = (Vec::new(), 0_u64);
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    };
    let mut key = |name: &str, kind: u32, value: &[u8]| {
        text(&mut keys, name);
        keys.extend(kind.to_le_bytes());
        keys.extend(value);
        count += 1;
    };
    let written = |value: &str| [&(value.len() as u64).to_le_bytes(), value.as_bytes()].concat();
    let list = |kind: u32, values: Vec<u8>| {
        [&kind.to_le_bytes()[..], &(tokens.len() as u64).to_le_bytes(), &values].concat()
    };
    key("general.architecture", 8, &written("llama"));
    for (name, value) in [
        ("context_length", 64_u32),
        ("embedding_length", 32),
        ("block_count", 1),
        ("feed_forward_length", 32),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 2),
        ("rope.dimension_count", 16),
    ] {
        key(&format!("llama.{name}"), 4, &value.to_le_bytes());
    }
    key("llama.attention.layer_norm_rms_epsilon", 6, &1e-5_f32.to_le_bytes());
    key("tokenizer.ggml.model", 8, &written("llama"));
    key("tokenizer.ggml.tokens", 9, &list(8, tokens.iter().flat_map(|token| written(token)).collect()));
    let scores = (0..tokens.len()).flat_map(|at| (-(at as f32)).to_le_bytes()).collect();
    key("tokenizer.ggml.scores", 9, &list(6, scores));
    key(
        "tokenizer.ggml.token_type",
        9,
        &list(5, kinds.iter().flat_map(|kind: &i32| kind.to_le_bytes()).collect()),
    );
    key("tokenizer.ggml.bos_token_id", 4, &1_u32.to_le_bytes());
    key("tokenizer.ggml.eos_token_id", 4, &2_u32.to_le_bytes());

    let mut tensors =
        vec![("token_embd.weight".to_owned(), vec![32, ROWS]), ("output_norm.weight".to_owned(), vec![32])];
    for name in ["attn_norm", "ffn_norm"] {
        tensors.push((format!("blk.0.{name}.weight"), vec![32]));
    }
    for name in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
        tensors.push((format!("blk.0.{name}.weight"), vec![32, 32]));
    }
    let (mut infos, mut data) = (Vec::new(), Vec::<u8>::new());
    for (name, shape) in &tensors {
        text(&mut infos, name);
        infos.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|size| infos.extend(size.to_le_bytes()));
        infos.extend(0_u32.to_le_bytes()); // f32
        infos.extend((data.len() as u64).to_le_bytes());
        let values = shape.iter().product::<u64>();
        (0..values).for_each(|at| data.extend((((at * 37 % 101) as f32 - 50.0) / 100.0).to_le_bytes()));
    }
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend(count.to_le_bytes());
    bytes.extend(keys);
    bytes.extend(infos);
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend(data);
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn a_gguf_file_may_have_more_tokens_than_rows() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    write_gguf(&file);
    let session = Session::open(&file).unwrap();
    assert_eq!(session.vocab_size(), 8);
    assert_eq!(session.tokenize("a<image>").unwrap().ids(), [1, 6, 8]);
    assert_eq!(refused(session.generate(Request::prompt("a<image>").max_tokens(1)).unwrap_err()).0, "prompt");
    let reply =
        session.generate(Request::prompt("a b").max_tokens(20).temperature(2.0).ignore_eos(true)).unwrap();
    assert!(reply.tokens().iter().all(|&id| id < 8));
}
