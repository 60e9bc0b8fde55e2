//! The child: it sends canaries wherever one can go, and shows every public type that may hold something of a request.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use amnesic::clock::Clock;
use amnesic::forensics::{Gate, Needles};
use amnesic::privacy::{Alias, Anthropic, Disclosure, Prices, ThirdPartyRequest};
use amnesic::testing::{LogitsTap, Scorer, Tokenizer};
use amnesic::{
    Builder, CancelToken, ConstrainFrom, EmbedRequest, Error, Message, Reply, Request, RerankRequest,
    ResponseFormat, Role, SealingKey, Session, Tool, ToolCall, ToolCallParser, user,
};

use super::asked::{right, wrong};
use super::heard::{ALL, PRINTED, RECORDER, SHOWN, listen, print, show, show_both, show_error, show_event};
use super::{BIAS_IDS, CONTROL, FOLDER, PROMPT_IDS, VOCAB, ids, write_checkpoint};
use crate::common::{Recipe, fixture};
use crate::needles::word;

/// Goes on by a millisecond whenever it is asked, so that no time has digits by chance.
#[derive(Debug)]
struct Steps(Instant, AtomicU64);

impl Clock for Steps {
    fn now(&self) -> Instant {
        self.0 + Duration::from_millis(self.1.fetch_add(1, Ordering::SeqCst))
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }
}

fn builder(folder: &Path) -> Builder {
    let prices =
        Prices::new().prompt_token_nano(2).cached_token_nano(1).completion_token_nano(3).request_nano(5);
    Session::builder(folder)
        .threads(2)
        .kv_tokens(4096)
        .prices(prices)
        .model_name(Alias::new("canary-model").unwrap())
        .clock(Steps(Instant::now(), AtomicU64::new(0)))
        .on_event(|event| {
            show_event(event);
            print(&serde_json::to_string(event).unwrap());
        })
}

/// Every public type that may hold something of a request.
fn show_reply(reply: &Reply) {
    show(reply);
    show_both(&reply.request_id);
    show_both(&reply.receipt);
    reply.receipt.devices.iter().for_each(show);
    show(reply.prompt_logprobs());
    for choice in reply.choices() {
        show(choice);
        show_both(&choice.finish_reason);
        show(choice.logprobs());
        choice.logprobs().iter().for_each(|one| show(&one));
        choice.tool_calls().iter().for_each(show);
        show(&choice.message());
    }
}

/// A reply that can only be a call, as it is streamed.
fn show_parts_of_a_call(session: &Session, keep: &mut dyn FnMut(&Reply)) {
    let call = format!(r#"<tool_call>\{{"name": "{}", "arguments": \{{\}}\}}</tool_call>"#, word(9));
    let request = Request::chat([user(word(18))])
        .tools([Tool::new(word(9), word(7), serde_json::json!({}))])
        .tool_call_parser(ToolCallParser::Hermes)
        .constrain_from(ConstrainFrom::WholeReply)
        .response_format(ResponseFormat::regex(call));
    let mut stream = session.stream(request.max_tokens(200).seed(7)).unwrap();
    let mut parts = 0;
    for piece in stream.by_ref() {
        let piece = piece.unwrap();
        piece.tool_call().into_iter().for_each(|part| {
            show(part);
            parts += 1;
        });
    }
    assert!(parts > 0, "the reply is a call");
    keep(&stream.finish().unwrap());
}

/// Serves all of it, and returns the ids and texts of replies.
fn serve(folder: &Path) -> (Vec<u32>, Vec<String>) {
    let session = builder(folder).open().unwrap();
    show(&builder(folder));
    show(&session);
    show(&session.memory());
    let (mut ids, mut texts) = (Vec::new(), Vec::new());
    let mut keep = |reply: &Reply| {
        show_reply(reply);
        ids.extend_from_slice(reply.tokens());
        texts.push(reply.text().to_owned());
    };
    show_what_goes_in();
    for ask in right() {
        show(&ask());
        keep(&session.generate(ask()).unwrap());
        let mut stream = session.stream(ask()).unwrap();
        show(&stream);
        for piece in stream.by_ref() {
            show(&piece.unwrap());
            // the mailbox is half read here
        }
        show(&stream);
        keep(&stream.finish().unwrap());
    }
    show_parts_of_a_call(&session, &mut keep);
    session.generate_batch(right().iter().map(|ask| ask())).unwrap().iter().for_each(&mut keep);
    for (kind, ask) in wrong() {
        show(&ask());
        let error = session.generate(ask()).unwrap_err();
        show_error(&error);
        assert_eq!(error.kind().as_str(), kind, "{error}");
        let batch = session.generate_batch([right()[0](), ask()]);
        show_error(&batch.unwrap_err());
    }
    ALL.store(true, Ordering::SeqCst);
    // our own tokenizer says nothing to anybody
    keep(&session.generate(Request::prompt(word(35)).max_tokens(1).seed(7)).unwrap());
    keep(&session.generate(Request::chat([user(word(35))]).max_tokens(1).seed(7)).unwrap());
    keep(&session.generate(right()[1]()).unwrap());
    ALL.store(false, Ordering::SeqCst);
    let tokens = session.tokenize(word(35)).unwrap();
    show(&tokens);
    show(&session.detokenize(tokens.ids(), true).unwrap());
    converse(&session, &mut keep);
    ends(&session, &mut keep);
    show(&session.load());
    show(&session.counters());
    show_both(&session.close().unwrap());
    (ids, texts)
}

/// What a request is made of, each with a canary wherever one can be.
fn show_what_goes_in() {
    show(&Tool::new(word(6), word(7), serde_json::json!({ word(3): word(4) })));
    show(&ToolCall::new(word(8), word(9), word(10)));
    show(&Message::new(Role::User, word(13)).with_name(word(14)).with_reasoning(word(16)));
    for format in [ResponseFormat::regex(word(22)), ResponseFormat::lark(word(25))] {
        show(&format);
    }
    show(&ResponseFormat::json_schema(serde_json::json!({ "enum": [word(23)] })));
    show(&EmbedRequest::new([word(0), word(1)]).prompt(word(2)));
    show(&EmbedRequest::new([word(0)]).prompt_name(word(2)));
    show(&RerankRequest::new(word(0), [word(1)]));
    let model =
        amnesic::privacy::Model::<amnesic::privacy::ThirdParty<Anthropic>>::new(Alias::new("a").unwrap());
    let disclosure = Disclosure::acknowledged(&model.policy(), SystemTime::UNIX_EPOCH).unwrap();
    show(&ThirdPartyRequest::new(&model, Request::prompt(word(0)).stop(word(1)), &disclosure));
    // what a test searches for is content, too
    let needles = Needles::new().text("canary", &word(0)).ids("ids", &[701_003, 9, 440_017, 23, 855_001, 77]);
    show(&needles);
    show_both(&needles.search_bytes(word(0).as_bytes()));
    show(needles.search_bytes(word(0).as_bytes()).iter().next().expect("it is there"));
}

/// Texts that are embedded and scored, and what comes of them.
fn encode() {
    let open = |name: &str| {
        let builder = Session::builder(fixture("encoders").join(name)).threads(2);
        builder.clock(Steps(Instant::now(), AtomicU64::new(0))).open().unwrap()
    };
    let embeddings =
        open("roberta").embed_with(EmbedRequest::new([word(0), word(1)]).prompt(word(2))).unwrap();
    show(&embeddings);
    show(&open("roberta").hidden_states(EmbedRequest::new([word(0), word(1)]).prompt(word(2))).unwrap());
    let error = open("roberta").embed_with(EmbedRequest::new([word(0)]).prompt_name(word(2))).unwrap_err();
    show_error(&error);
    show(&open("roberta_scores").rerank_with(RerankRequest::new(word(0), [word(1), word(2)])).unwrap());
}

fn converse(session: &Session, keep: &mut dyn FnMut(&Reply)) {
    let mut conversation = session.conversation();
    for ask in right().iter().skip(2).take(2) {
        keep(&conversation.generate(ask()).unwrap());
        show(&conversation);
        show(&conversation.messages());
        conversation.messages().iter().for_each(show);
        let mut key: [u8; 32] = std::array::from_fn(|i| word(18).as_bytes()[i % 8]);
        show(&SealingKey::new(&mut key));
        show(&amnesic::testing::SecretBytes::new(64));
    }
    show_error(&conversation.generate(Request::chat([Message::new(Role::Developer, word(27))])).unwrap_err());
    let mut stream = conversation.stream(right()[2]()).unwrap();
    show(&stream.next().unwrap().unwrap());
    show(&stream);
    drop(stream);
    show(&conversation);
    let public = session.publish(Request::prompt(format!("{} {}", word(34), word(34).repeat(9)))).unwrap();
    show(&public);
    show_error(&session.publish(Request::prompt("").stop(word(1))).unwrap_err());
    keep(&session.generate(Request::prompt(word(34)).shares(&public).max_tokens(1).seed(7)).unwrap());
    let named = conversation.generate(Request::prompt(word(34)).shares(&public).seed(7));
    show_error(&named.unwrap_err());
}

/// Ends that are neither replies nor errors of the request.
fn ends(session: &Session, keep: &mut dyn FnMut(&Reply)) {
    // most of its tokens have no text: with so little room they come as they are
    let long = || {
        let long = Request::tokens(ids(PROMPT_IDS)).max_tokens(500).ignore_eos(true).seed(7);
        long.temperature(1.0).stream_buffer(2)
    };
    let token = CancelToken::new();
    show(&token);
    keep(
        &session
            .generate_with(long().cancel_token(&token), |piece| {
                show(piece);
                token.cancel();
                ControlFlow::Continue(())
            })
            .unwrap(),
    );
    show(&token);
    keep(&session.generate_with(long(), |_| ControlFlow::Break(())).unwrap());
    keep(&session.generate(long().timeout(Duration::from_millis(9))).unwrap());
    let mut stream = session.stream(long()).unwrap();
    show(&stream.next().unwrap().unwrap());
    drop(stream);
    let tap = LogitsTap::default();
    show(&Gate::default());
    keep(&session.generate(long().max_tokens(1).tap_logits(&tap)).unwrap());
    show(&tap);
}

/// Errors for which a session of their own is needed.
fn fail(folder: &Path) {
    let long = || Request::prompt(word(0)).max_tokens(500).ignore_eos(true).seed(7);
    let session = builder(folder).max_requests(1).open().unwrap();
    let stream = session.stream(long().stream_buffer(1)).unwrap();
    show_error(&session.generate(right()[1]()).unwrap_err());
    drop(session);
    show_error(&stream.finish().unwrap_err());

    for step in [1, 2] {
        let session = builder(folder).panic_in_step(step).open().unwrap();
        show_error(&session.generate(long()).unwrap_err());
        show_error(&session.generate(long()).unwrap_err());
        show_error(&session.generate_batch([long(), long()]).unwrap_err());
        show(&session);
        show_both(&session.close().unwrap());
    }
    let plain = tempfile::tempdir().unwrap();
    let mut recipe = Recipe::small(VOCAB);
    recipe.config["num_hidden_layers"] = 1.into();
    recipe.write(plain.path(), None);
    let session = builder(plain.path()).open().unwrap();
    show_error(&session.generate(long()).unwrap_err()); // no tokenizer
    show_error(&session.generate(Request::chat([user(word(18))])).unwrap_err()); // no template
    show_error(&builder(&plain.path().join("nowhere")).open().unwrap_err());
    unheard();
    show(&Tokenizer::open(folder, VOCAB).unwrap());
    show(&Scorer::open(Session::builder(folder), 8).unwrap());
}

/// A tokenizer that is left to its crate reads no text while a logger hears what that crate says of it.
fn unheard() {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path());
    let file = folder.path().join("tokenizer.json");
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let split = serde_json::json!({"type": "Split", "pattern": {"Regex": r"\p{L}+(?=\s)|\P{L}+|\p{L}+"},
        "behavior": "Isolated", "invert": false});
    tokenizer["pre_tokenizer"] = serde_json::json!({"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel",
        "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]});
    std::fs::write(&file, tokenizer.to_string()).unwrap();
    assert!(Tokenizer::open(folder.path(), VOCAB).unwrap().fallback().is_some());
    let session = builder(folder.path()).open().unwrap();
    ALL.store(true, Ordering::SeqCst);
    let public = session.publish(Request::prompt(word(35))).unwrap_err();
    let chat = session.generate(Request::chat([user(word(35))]).seed(7)).unwrap_err();
    let prompt = session.generate(Request::prompt(word(35)).seed(7)).unwrap_err();
    for error in [public, chat, prompt] {
        show_error(&error);
        assert!(matches!(error, Error::Logged { .. }), "{error}");
    }
    show(&session.generate(Request::tokens(ids(PROMPT_IDS)).max_tokens(1).seed(7)).unwrap()); // ids are not read by it
    ALL.store(false, Ordering::SeqCst);
    show(&session.generate(Request::prompt(word(35)).max_tokens(1).seed(7)).unwrap());
}

/// Says a canary on purpose, one in each way.
fn control() {
    tracing::info!(value = word(0), "content");
    tracing::info_span!("content", value = ?ids(PROMPT_IDS)).in_scope(|| ());
    log::info!("{}", word(1));
    println!("{}", word(2));
    eprintln!("{}", ids(BIAS_IDS)[5]);
    let hex: String = word(3).bytes().map(|byte| format!("{byte:02x}")).collect();
    tracing::debug!(hex);
    let _ = std::panic::catch_unwind(|| panic!("{}", word(4)));
    show(&user(word(5)).content());
}

/// The child, in the same program; does nothing where it is no child.
#[test]
fn child() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let folder = Path::new(&folder);
    listen();
    if std::env::var(CONTROL).is_ok() {
        control();
    }
    let (ids, texts) = serve(folder);
    encode();
    fail(folder);
    std::fs::write(folder.join("shown"), serde_json::to_vec(&*SHOWN.lock().unwrap()).unwrap()).unwrap();
    let told = RECORDER.get().unwrap().lines().join("\n");
    std::fs::write(folder.join("told"), told + "\n" + &PRINTED.lock().unwrap()).unwrap();
    std::fs::write(folder.join("replies"), serde_json::to_vec(&(ids, texts)).unwrap()).unwrap();
}
