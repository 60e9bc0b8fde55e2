//! The tokenizer and the chat templates through a session: ids, text, prompts; what is literal, what ends a reply, and ids
//! that the model has not. Right values are those of the `tokenizers` crate and of transformers 5.24.

mod literal;
mod vocabulary;

use std::path::Path;

use amnesic::{Error, FinishReason, Request, ResponseFormat, Session, assistant, user};
use serde_json::{Value, json};

use crate::common::Recipe;

const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n\
{% if m.role == 'tool' %}<tool_response>{{ m.content }}</tool_response>{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}\
{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
const TRIMS: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}\
{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
/// Rows of the model's embedding; the tokenizer has more tokens.
const VOCAB: usize = 808;

/// Added tokens of the checkpoint's tokenizer from 803 on, and whether they are special.
const ADDED: [(&str, bool); 7] = [
    ("<|im_start|>", true),
    ("<|im_end|>", true),
    ("<tool_response>", false),
    ("</tool_response>", false),
    ("<|pad|>", true),
    ("<image>", false),
    ("<|last|>", true),
];

fn write(folder: &Path, template: &str, change: impl FnOnce(&mut Value, &mut Value)) {
    Recipe::small(VOCAB).write(folder, Some("llama3_style"));
    let read = |name: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(folder.join(name)).unwrap()).unwrap()
    };
    let (mut tokenizer, mut config) = (read("tokenizer.json"), read("tokenizer_config.json"));
    for (at, (content, special)) in ADDED.into_iter().enumerate() {
        tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({"id": 803 + at, "content": content,
            "special": special, "normalized": false, "single_word": false, "lstrip": false, "rstrip": false}));
    }
    change(&mut tokenizer, &mut config);
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
}

/// A session on a small model with a chat template, and the crate's tokenizer of it.
fn open(template: &str) -> (Session, tokenizers::Tokenizer) {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), template, |_, _| {});
    let theirs = tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
    (Session::open(folder.path()).unwrap(), theirs)
}

fn ids(theirs: &tokenizers::Tokenizer, text: &str, specials: bool) -> Vec<u32> {
    theirs.encode_fast(text, specials).unwrap().get_ids().to_vec()
}

fn refused(error: Error) -> (&'static str, String) {
    match error {
        Error::Request { field, expected, .. } => (field, expected),
        other => panic!("{other}"),
    }
}

#[test]
fn tokenizing_gives_the_crates_ids_and_text() {
    let (session, theirs) = open(TEMPLATE);
    for text in ["Once upon a time", "", "a<|im_end|>b", "<image>", "é\u{1f600}  \n"] {
        let expected = ids(&theirs, text, true);
        assert_eq!(session.tokenize(text).unwrap().ids(), expected, "{text:?}");
        assert_eq!(session.count_tokens(text.to_owned()).unwrap(), expected.len(), "{text:?}");
        let bare = session.tokenize(Request::prompt(text).add_special_tokens(false)).unwrap();
        assert_eq!(bare.ids(), ids(&theirs, text, false), "{text:?} without special tokens");
        for skip in [true, false] {
            let back = session.detokenize(&expected, skip).unwrap();
            assert_eq!(back.text(), theirs.decode(&expected, skip).unwrap(), "{text:?}, {skip}");
        }
    }
    assert_eq!(format!("{:?}", session.tokenize("a").unwrap()), "TokenIds { len: 2, .. }");
    let reply = session.generate(Request::from(session.tokenize("Once").unwrap()).max_tokens(1)).unwrap();
    assert_eq!(reply.usage.prompt_tokens, ids(&theirs, "Once", true).len());
    assert_eq!(refused(session.detokenize(&[810], true).unwrap_err()).0, "ids");
    let long = "word ".repeat(3000); // longer than the context
    assert_eq!(session.count_tokens(long.as_str()).unwrap(), ids(&theirs, &long, true).len());
}

/// The texts are what `render_jinja_template` of transformers 5.24 gave.
#[test]
fn prompts_are_those_of_transformers() {
    let chat = || Request::chat([user("List two."), assistant(" [\"red\", ")]);
    let plain = "<|im_start|>user\nList two.<|im_end|>\n<|im_start|>assistant\n [\"red\", ";
    let trimmed = "<|im_start|>user\nList two.<|im_end|>\n<|im_start|>assistant\n[\"red\",";
    let end = "<|im_end|>\n";
    let begun = "<|im_start|>assistant\n";
    for (template, text) in [(TEMPLATE, plain), (TRIMS, trimmed)] {
        let (session, theirs) = open(template);
        for (request, expected) in [
            (chat(), format!("{text}{end}{begun}")),
            (chat().add_generation_prompt(true), format!("{text}{end}{begun}")),
            (chat().add_generation_prompt(false), format!("{text}{end}")),
            (chat().continue_final_message(true), text.to_owned()),
            (chat().continue_final_message(true).literal_text(true), text.to_owned()),
        ] {
            let rendered = session.apply_chat_template(request).unwrap();
            assert_eq!(rendered.text(), expected);
        }
        let continued = session.tokenize(chat().continue_final_message(true)).unwrap();
        assert_eq!(continued.ids(), ids(&theirs, text, false));
        let reply = session.generate(chat().continue_final_message(true).max_tokens(4)).unwrap();
        let same = session.generate(Request::tokens(ids(&theirs, text, false)).max_tokens(4)).unwrap();
        assert_eq!(reply.tokens(), same.tokens());
    }
    let (session, _) = open("{{ messages[-1].content }}|{% for m in messages %}{{ m.content }}{% endfor %}!");
    let twice = session.apply_chat_template(chat().continue_final_message(true)).unwrap();
    assert_eq!(twice.text(), " [\"red\", |List two. [\"red\", ", "each copy without what marks its end");
}

#[test]
fn what_cannot_be_continued_is_refused_by_name() {
    let (session, _) = open("{% for m in messages %}{{ m.role }}{% endfor %}");
    let wrong = |request: Request| refused(session.apply_chat_template(request).unwrap_err()).0;
    assert_eq!(wrong(Request::chat([user("a")]).continue_final_message(true)), "continue_final_message");
    let left_out = Request::chat([user("a"), assistant("b")]).continue_final_message(true);
    assert_eq!(wrong(left_out), "continue_final_message");
    let both = Request::chat([assistant("b")]).continue_final_message(true).add_generation_prompt(true);
    assert_eq!(wrong(both), "add_generation_prompt");
    assert_eq!(wrong(Request::prompt("a")), "messages");
}

/// Makes the model draw `token` next.
fn drawing(request: Request, token: u32) -> Request {
    request.logit_bias(token, 100.0).max_tokens(3)
}

#[test]
fn a_stop_string_that_names_a_special_token_is_that_token() {
    let (session, theirs) = open(TEMPLATE);
    let id = |token: &str| theirs.token_to_id(token).unwrap();
    for (stop, token) in
        [("<|im_end|>", "<|im_end|>"), ("<|pad|>", "<|pad|>"), ("<|im_end|>\n", "<|im_end|>")]
    {
        for request in [Request::prompt("a"), Request::chat([user("a")])] {
            let reply = session.generate(drawing(request, id(token)).stop(stop)).unwrap();
            assert_eq!((reply.finish_reason(), reply.tokens().len()), (FinishReason::Stop, 0), "{stop:?}");
        }
    }
    let other = session.generate(drawing(Request::prompt("a"), id("<|pad|>")).stop("<|im_end|>")).unwrap();
    assert_eq!((other.finish_reason(), other.tokens().len()), (FinishReason::Length, 3));
    // one that is not special is text, in which it is found
    let shown = session
        .generate(drawing(Request::prompt("a"), id("<tool_response>")).stop("<tool_response>"))
        .unwrap();
    assert_eq!((shown.finish_reason(), shown.text()), (FinishReason::Stop, ""));
}

/// transformers writes it as a text or as an object; older files have it in special_tokens_map.json alone.
#[test]
fn an_end_token_of_the_tokenizers_config_ends_replies() {
    let object = json!({"content": "<|im_end|>", "lstrip": false, "normalized": false, "special": true});
    for value in [json!("<|im_end|>"), object, Value::Null] {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), TEMPLATE, |_, config| config["eos_token"] = value.clone());
        if value.is_null() {
            let map = json!({"eos_token": {"content": "<|im_end|>"}});
            std::fs::write(folder.path().join("special_tokens_map.json"), map.to_string()).unwrap();
        }
        let session = Session::open(folder.path()).unwrap();
        let ends =
            |token: u32| session.generate(drawing(Request::prompt("a"), token)).unwrap().finish_reason();
        assert_eq!((ends(804), ends(802)), (FinishReason::Stop, FinishReason::Length), "{value}");
        let on = session.generate(drawing(Request::prompt("a"), 804).ignore_eos(true)).unwrap();
        assert_eq!(on.finish_reason(), FinishReason::Length);
    }
}

/// The grammar's three spaces are the added token's.
#[test]
fn grammars_see_what_added_tokens_decode_to() {
    let folder = tempfile::tempdir().unwrap();
    Recipe::small(768).write(folder.path(), Some("llama2_style"));
    let file = folder.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    tokenizer["added_tokens"]
        .as_array_mut()
        .unwrap()
        .push(json!({"id": 759, "content": "▁▁▁", "special": false,
        "normalized": false, "single_word": false, "lstrip": false, "rstrip": false}));
    std::fs::write(&file, tokenizer.to_string()).unwrap();
    let theirs = tokenizers::Tokenizer::from_file(&file).unwrap();
    let run = theirs.token_to_id("▁▁▁").unwrap();
    let session = Session::open(folder.path()).unwrap();
    assert_eq!(session.token_bytes(run), Some(&b"   "[..]));
    let request = Request::prompt("a").response_format(ResponseFormat::regex("   b")).logit_bias(run, 100.0);
    let reply = session.generate(request.max_tokens(8)).unwrap();
    assert_eq!((reply.text(), reply.tokens()[0]), ("   b", run));
    let mut streamed = String::new();
    let request = Request::prompt("a").logit_bias(run, 100.0).max_tokens(2);
    session.stream(request).unwrap().for_each(|piece| streamed.push_str(piece.unwrap().text()));
    assert_eq!(streamed, " ".repeat(6));
}
