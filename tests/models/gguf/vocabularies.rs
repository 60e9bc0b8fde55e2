//! What a file's metadata says of its tokenizer: end tokens, BOS, kinds of words, templates.

use std::path::Path;

use amnesic::testing::Tokenizer;
use amnesic::{FinishReason, Request, Session, Tool, user};

use super::file::{File, Value};
use super::layouts;

/// Every text that llama.cpp (`llama-vocab.cpp`) takes for the end of a reply.
const ENDS: [&str; 31] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<reponame>",
    "<|file_sep|>",
];

/// A small model of 112 tokens whose vocabulary is to be written.
fn model() -> File {
    let (name, layout) = layouts::all().into_iter().find(|(name, _)| name == "qwen3").unwrap();
    layouts::file(&name, &layout)
}

fn tokens(changes: &[(usize, &str)]) -> Vec<String> {
    let mut tokens: Vec<String> = (0..112).map(|id| format!("token{id}")).collect();
    for (id, character) in "abcdefghij0123456789'Ġ".chars().enumerate() {
        tokens[30 + id] = character.to_string();
    }
    changes.iter().for_each(|(id, text)| tokens[*id] = (*text).to_owned());
    tokens
}

/// With a vocabulary of byte-level BPE.
fn with_tokens(changes: &[(usize, &str)], merges: &[&str]) -> File {
    let mut file = model();
    file.put("tokenizer.ggml.model", "gpt2");
    file.put("tokenizer.ggml.pre", "qwen2");
    file.put("tokenizer.ggml.tokens", Value::Texts(tokens(changes)));
    file.put("tokenizer.ggml.token_type", Value::I32s(vec![1; 112]));
    file.put("tokenizer.ggml.merges", Value::Texts(merges.iter().map(|merge| (*merge).to_owned()).collect()));
    file
}

fn write(file: &File) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    file.write(&folder.path().join("model.gguf"));
    folder
}

fn finish(file: &File) -> FinishReason {
    let folder = write(file);
    let session = Session::open(folder.path().join("model.gguf")).unwrap();
    let request = Request::tokens([5, 6, 7]).max_tokens(3).temperature(0.0);
    session.generate(request).unwrap().finish_reason()
}

/// The token that the model says first.
fn first() -> usize {
    let folder = write(&model());
    let session = Session::open(folder.path().join("model.gguf")).unwrap();
    let request = Request::tokens([5, 6, 7]).max_tokens(1).temperature(0.0).ignore_eos(true);
    session.generate(request).unwrap().tokens()[0] as usize
}

#[test]
fn end_tokens_are_known_by_their_text() {
    let first = first();
    assert_eq!(finish(&with_tokens(&[], &[])), FinishReason::Length);
    for text in ENDS {
        assert_eq!(finish(&with_tokens(&[(first, text)], &[])), FinishReason::Stop, "{text}");
    }
    // by a key as well
    for key in ["eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"] {
        let mut file = with_tokens(&[], &[]);
        file.put(&format!("tokenizer.ggml.{key}_token_id"), Value::U32(first as u32));
        assert_eq!(finish(&file), FinishReason::Stop, "{key}");
    }
    // of gpt-oss and Solar it ends a channel; and a word of Gemma 4 is none
    let others = (0..112).filter(|id| *id != first).take(2).collect::<Vec<_>>();
    for (text, beside) in [
        ("<|end|>", ["<|return|>", "<|call|>"]),
        ("<|end|>", ["<|calls|>", "<|flush|>"]),
        ("</s>", ["<|tool_response>", "x"]),
    ] {
        let file = with_tokens(&[(first, text), (others[0], beside[0]), (others[1], beside[1])], &[]);
        assert_eq!(finish(&file), FinishReason::Length, "{text} with {beside:?}");
    }
}

fn open(file: &File) -> (tempfile::TempDir, Tokenizer) {
    let folder = write(file);
    let tokenizer = Tokenizer::open(&folder.path().join("model.gguf"), 112).unwrap();
    (folder, tokenizer)
}

/// As llama.cpp has it where `add_bos_token` is absent.
#[test]
fn some_kinds_have_a_bos_by_default() {
    for (pre, bos) in [
        ("llama-bpe", true),
        ("llama3", true),
        ("llama-v3", true),
        ("falcon3", true),
        ("pixtral", true),
        ("lfm2", true),
        ("tekken", true),
        ("chameleon", true),
        ("qwen2", false),
        ("gpt-2", false),
        ("gpt-4o", false),
        ("smaug-bpe", false),
        ("deepseek-v3", false),
        ("kimi-k2", false),
    ] {
        let mut file = with_tokens(&[], &[]);
        file.put("tokenizer.ggml.pre", pre);
        file.put("tokenizer.ggml.bos_token_id", Value::U32(3));
        let ids = open(&file).1.encode("a", true);
        assert_eq!(ids, if bos { vec![3, 30] } else { vec![30] }, "{pre}");
        file.put("tokenizer.ggml.add_bos_token", Value::Flag(!bos));
        let ids = open(&file).1.encode("a", true);
        assert_eq!(ids, if bos { vec![30] } else { vec![3, 30] }, "{pre}, said");
    }
    // there is nothing to add
    let mut file = with_tokens(&[], &[]);
    file.put("tokenizer.ggml.pre", "llama-bpe");
    let folder = write(&file);
    let error = Tokenizer::open(&folder.path().join("model.gguf"), 112).unwrap_err().to_string();
    assert!(error.contains("tokenizer.ggml.bos_token_id"), "{error}");
}

/// llama.cpp's own expressions, not GPT-2's: it cuts numbers after three digits.
#[test]
fn files_that_name_no_kind_are_read_as_by_llama_cpp() {
    let changes = [(60, "12"), (61, "123"), (62, "1234")];
    let merges = ["1 2", "12 3", "123 4"];
    for pre in [None, Some(""), Some("default")] {
        let mut file = with_tokens(&changes, &merges);
        file.metadata.retain(|(key, _)| key != "tokenizer.ggml.pre");
        if let Some(pre) = pre {
            file.put("tokenizer.ggml.pre", pre);
        }
        assert_eq!(open(&file).1.encode("1234", false), [61, 44], "{pre:?}");
    }
    let mut file = with_tokens(&changes, &merges);
    file.put("tokenizer.ggml.pre", "gpt-2");
    assert_eq!(open(&file).1.encode("1234", false), [62]);
    file.put("tokenizer.ggml.pre", "of tomorrow");
    let folder = write(&file);
    let error = Tokenizer::open(&folder.path().join("model.gguf"), 112).unwrap_err().to_string();
    assert!(error.contains("tokenizer.ggml.pre") && error.contains("kimi-k2"), "{error}");
}

#[test]
fn templates_with_names_are_used() {
    let mut file = with_tokens(&[], &[]);
    file.put("tokenizer.chat_template", "{{ 'a' }}");
    file.put("tokenizer.chat_template.tool_use", "{{ 'abcd' }}");
    file.put("tokenizer.chat_template.rag", "{{ 'ab' }}");
    file.put("tokenizer.chat_templates", Value::Texts(vec!["tool_use".into(), "rag".into()]));
    let folder = write(&file);
    let session = Session::open(folder.path().join("model.gguf")).unwrap();
    let chat = || Request::chat([user("hi")]).max_tokens(1);
    let count = |request| session.generate(request).unwrap().usage.prompt_tokens;
    assert_eq!(count(chat()), 1);
    let tool = Tool::new("weather", "the weather", serde_json::json!({ "type": "object", "properties": {} }));
    assert_eq!(count(chat().tools([tool])), 4);
    assert_eq!(count(chat().chat_template("rag")), 2);
}

/// The vocabularies in llama.cpp's own tests, `AMNESIC_LLAMA_CPP` being a checkout of it: what is beside them are ids that
/// the published tokenizers gave.
#[test]
fn published_vocabularies_encode_as_their_originals() {
    let Some(folder) = std::env::var_os("AMNESIC_LLAMA_CPP") else { return };
    let folder = Path::new(&folder).join("models");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let (inputs, outputs) = (path.with_added_extension("inp"), path.with_added_extension("out"));
        if path.extension().is_none_or(|end| end != "gguf") || !inputs.exists() {
            continue;
        }
        let tokenizer = match Tokenizer::open(&path, 1 << 20) {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                println!("{}: {error}", path.display());
                continue;
            }
        };
        let inputs = std::fs::read_to_string(inputs).unwrap();
        let outputs = std::fs::read_to_string(outputs).unwrap();
        let inputs: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").collect();
        let mut wrong = 0;
        for (text, ids) in inputs.iter().zip(outputs.lines()) {
            let ids: Vec<u32> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
            if tokenizer.encode(text, false) != ids {
                wrong += 1;
                println!(
                    "{}: {text:?}: {:?} instead of {ids:?}",
                    path.display(),
                    tokenizer.encode(text, false)
                );
            }
        }
        println!("{}: {wrong} of {} wrong", path.display(), inputs.len());
        assert_eq!(wrong, 0, "{}", path.display());
        seen += 1;
    }
    assert!(seen >= 10, "{seen}");
}
