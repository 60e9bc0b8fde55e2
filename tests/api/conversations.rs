//! Conversations that leave their session sealed and go on elsewhere, to the bit; and what refuses them.

use amnesic::testing::LogitsTap;
use amnesic::{
    Builder, Conversation, Error, KvCache, Quantize, Reply, Request, Role, SealedReason, SealingKey, Session,
    assistant, system, user,
};

use crate::common::{default_model, fixture};

fn builder() -> Builder {
    Session::builder(default_model()).threads(2).context_length(1024).kv_tokens(2048)
}

fn key(byte: u8) -> SealingKey {
    SealingKey::new(&mut [byte; SealingKey::BYTES])
}

/// A turn, with the logits that it saw.
fn turn(conversation: &mut Conversation, request: Request) -> (Reply, Vec<f32>) {
    let tap = LogitsTap::default();
    let reply = conversation.generate(request.max_tokens(24).tap_logits(&tap)).unwrap();
    (reply, tap.values())
}

fn reason(result: Result<Conversation, Error>) -> SealedReason {
    match result.unwrap_err() {
        Error::Sealed(reason) => reason,
        other => panic!("{other}"),
    }
}

#[test]
fn it_goes_on_with_the_same_bits_elsewhere() {
    let (here, there) = (builder().open().unwrap(), builder().threads(1).step_tokens(64).open().unwrap());
    let sampled = |request: Request| request.temperature(0.9).seed(11);
    let turns: [fn() -> Request; 3] = [
        || Request::prompt("Ownership is Rust's most unique feature, and"),
        || Request::prompt(" A slice is"),
        || Request::tokens([5, 6, 7]),
    ];
    for moves_after in [1, 2] {
        let mut stays = here.conversation();
        let mut sealed = Vec::new();
        for turn_of in &turns[..moves_after] {
            turn(&mut stays, sampled(turn_of()));
            sealed = stays.export(&key(1)).unwrap();
        }
        let mut moved = Conversation::import(&there, &sealed, &key(1)).unwrap();
        for (place, turn_of) in turns[moves_after..].iter().enumerate() {
            let ((one, logits_here), (two, logits_there)) =
                (turn(&mut stays, sampled(turn_of())), turn(&mut moved, sampled(turn_of())));
            assert_eq!((one.tokens(), one.text()), (two.tokens(), two.text()));
            assert!(logits_here.len() > 1000 && logits_here == logits_there, "turn {place}");
            assert_eq!(one.usage.prompt_tokens, two.usage.prompt_tokens);
            // the one has it in the cache; the other computes it once
            assert_eq!(two.usage.cached_tokens > 0, place > 0);
            assert!(one.usage.cached_tokens > 0);
        }
    }
}

#[test]
fn a_chat_takes_its_messages_along() {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(default_model()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}";
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let open = || Session::builder(folder.path()).threads(1).open().unwrap();
    let (here, there) = (open(), open());
    let mut stays = here.conversation();
    let first = || Request::chat([system("Be brief."), user("What is a slice?")]).temperature(0.0);
    let (reply, _) = turn(&mut stays, first());
    let sealed = stays.export(&key(1)).unwrap();
    let mut moved = Conversation::import(&there, &sealed, &key(1)).unwrap();
    let messages = moved.messages();
    assert_eq!(messages.len(), 3);
    assert_eq!((messages[2].role(), messages[2].content()), (Role::Assistant, reply.text()));
    let next = || Request::chat([user("And a string?")]).temperature(0.0);
    let ((one, logits_here), (two, logits_there)) = (turn(&mut stays, next()), turn(&mut moved, next()));
    assert_eq!((one.tokens(), logits_here), (two.tokens(), logits_there));
    assert_eq!((stays.messages().len(), moved.messages().len()), (5, 5));
    // it is what a session without any conversation makes of the same messages
    let all = [system("Be brief."), user("What is a slice?"), assistant(reply.text()), user("And a string?")];
    let alone = here.generate(Request::chat(all).temperature(0.0).max_tokens(24)).unwrap();
    assert_eq!(alone.tokens(), two.tokens());
    // another template is another model
    std::fs::write(folder.path().join("chat_template.jinja"), format!("{template}!")).unwrap();
    assert_eq!(reason(Conversation::import(&open(), &sealed, &key(1))), SealedReason::OtherModel);
}

#[test]
fn exporting_changes_nothing_and_may_be_repeated() {
    let session = builder().open().unwrap();
    let mut conversation = session.conversation();
    let empty = conversation.export(&key(1)).unwrap();
    assert!(Conversation::import(&session, &empty, &key(1)).unwrap().messages().is_empty());
    let (first, _) = turn(&mut conversation, Request::prompt("Ownership is"));
    let [one, two] = [conversation.export(&key(1)).unwrap(), conversation.export(&key(2)).unwrap()];
    assert_eq!(one.len(), two.len());
    let (second, _) = turn(&mut conversation, Request::prompt(" and"));
    assert_eq!(second.usage.cached_tokens, first.usage.total_tokens() - 1, "its cache is still there");
    // each import is a conversation of its own
    let mut copies = [(&one, key(1)), (&two, key(2)), (&one, key(1))]
        .map(|(sealed, key)| Conversation::import(&session, sealed, &key).unwrap());
    for copy in &mut copies {
        let (reply, _) = turn(copy, Request::prompt(" and"));
        assert_eq!((reply.tokens(), reply.usage.cached_tokens), (second.tokens(), 0));
    }
    drop((conversation, copies));
    assert_eq!(session.load().kv_blocks_used, 0);
}

#[test]
fn a_turn_that_has_not_been_leaves_what_was() {
    let session = builder().open().unwrap();
    let mut conversation = session.conversation();
    let (first, _) = turn(&mut conversation, Request::prompt("Ownership is"));
    let before = conversation.export(&key(1)).unwrap();
    let wrong = conversation.generate(Request::prompt("x").max_tokens(100_000)).unwrap_err();
    assert!(matches!(wrong, Error::ContextLength { .. }), "{wrong}");
    assert!(conversation.generate(Request::tokens([u32::MAX])).is_err());
    let mut stream = conversation.stream(Request::prompt(" gone").max_tokens(200).ignore_eos(true)).unwrap();
    assert!(stream.next().unwrap().is_ok());
    drop(stream);
    let (second, _) = turn(&mut conversation, Request::prompt(" and"));
    let mut moved = Conversation::import(&session, &before, &key(1)).unwrap();
    let (moved, _) = turn(&mut moved, Request::prompt(" and"));
    assert_eq!(second.tokens(), moved.tokens());
    assert_eq!(second.usage.prompt_tokens, moved.usage.prompt_tokens);
    assert!(second.usage.prompt_tokens > first.usage.total_tokens());
}

#[test]
fn what_computes_otherwise_refuses_it() {
    let session = builder().open().unwrap();
    let mut conversation = session.conversation();
    turn(&mut conversation, Request::prompt("Ownership is"));
    let sealed = conversation.export(&key(1)).unwrap();
    assert_eq!(reason(Conversation::import(&session, &sealed, &key(2))), SealedReason::KeyOrContent);
    for at in (0..sealed.len()).step_by(97) {
        let mut changed = sealed.clone();
        changed[at] ^= 0x10;
        assert!(Conversation::import(&session, &changed, &key(1)).is_err(), "byte {at}");
    }
    for builder in [
        builder().kv_cache(KvCache::Int8),
        builder().quantize(Quantize::Q8),
        builder().device(amnesic::Device::Reference),
    ] {
        let other = builder.open().unwrap();
        assert_eq!(reason(Conversation::import(&other, &sealed, &key(1))), SealedReason::OtherArithmetic);
    }
    let other = Session::open(fixture("llama2_f32")).unwrap();
    assert_eq!(reason(Conversation::import(&other, &sealed, &key(1))), SealedReason::OtherModel);
    let encoder = Session::open(fixture("encoders/bert")).map_or_else(
        |error| panic!("{error}"),
        |session| Conversation::import(&session, &sealed, &key(1)).unwrap_err(),
    );
    assert!(matches!(encoder, Error::WrongTask { .. }), "{encoder}");
}

#[test]
fn an_adapter_goes_with_it_by_name_and_content() {
    let open = |adapters: &[(&str, &str)]| {
        let plain = Session::builder(fixture("families/qwen3")).context_length(128).kv_tokens(1024);
        let folder = |name: &str| fixture("adapters/qwen3").join(name);
        adapters.iter().fold(plain, |builder, (name, of)| builder.adapter(*name, folder(of))).open().unwrap()
    };
    let session = open(&[("legal", "all"), ("other", "some")]);
    let ask = |ids: &[u32]| Request::tokens(ids.to_vec()).adapter("legal").temperature(0.0);
    let mut stays = session.conversation();
    turn(&mut stays, ask(&[3, 4, 5]));
    let sealed = stays.export(&key(1)).unwrap();
    let (more, none) = (open(&[("more", "some"), ("legal", "all")]), open(&[]));
    let mut moved = Conversation::import(&more, &sealed, &key(1)).unwrap();
    let ((one, here), (two, there)) = (turn(&mut stays, ask(&[9])), turn(&mut moved, ask(&[9])));
    assert_eq!((one.tokens(), here), (two.tokens(), there));
    for other in [none, open(&[("legal", "some")])] {
        assert_eq!(reason(Conversation::import(&other, &sealed, &key(1))), SealedReason::OtherAdapter);
    }
}
