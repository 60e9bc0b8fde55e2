//! What else a session does with a request: scenes beside the matrix, each in a process of its own.

use std::path::Path;

use amnesic::{
    CancelToken, Device, Dry, Error, FinishReason, PoisonReason, Request, ResponseFormat, Session,
    Speculation, forensics,
};

use super::canary::{self, Kind, Known, REPLY_TOKENS, VOCAB, canary};
use super::cells::finish;
use super::process::Told;

/// Takes the session, and gives it back where it is to be closed.
type Scene = fn(Session, &Known, &mut Told) -> Option<Session>;

/// Their names, and what happens in each while the session is open.
pub const ALL: &[(&str, Scene)] = &[
    #[cfg(amnesic_faults)]
    ("no-op scrub", no_op_scrub),
    ("one sampled token", one_sampled_token),
    ("penalties", penalties),
    ("error: context", error_context),
    ("error: in batch", error_in_batch),
    ("error: dead end", error_dead_end),
    ("error: grammar", error_grammar),
    ("cancelled before its step", cancelled_early),
    ("panic in a prompt", panic_in_a_prompt),
    ("drop", still_running),
    ("choices", choices),
    ("choices under a grammar", choices_under_a_grammar),
    ("preempted", preempted),
    ("draft", draft),
    ("public", public),
    ("chat turns", chat_turns),
    ("open conversation", open_conversation),
    ("a turn that was left", left_turn),
    ("reference", plain),
    ("reference: panic", panic_in_a_prompt),
    ("token ids", token_ids),
    ("inspected", inspected),
    ("literal chat", literal_chat),
    ("a copy of the application's", own_copy),
];

/// Whether the scene's requests hold states of grammars.
pub fn has_grammar(scene: &str) -> bool {
    scene.contains("grammar") || scene.contains("dead end")
}

/// A scene in its child process.
pub fn child(scene: &str, folder: &Path) -> Told {
    let known = Known::load(folder, Kind::Plain);
    let builder = canary::builder(folder);
    let builder = match scene {
        #[cfg(amnesic_faults)]
        "no-op scrub" => {
            amnesic::faults::disable_scrub();
            builder
        }
        "one sampled token" => builder.step_tokens(512),
        "panic in a prompt" => builder.panic_in_step(2),
        "preempted" => builder.context_length(256).kv_tokens(320),
        "draft" => builder.draft(folder),
        "reference" => builder.device(Device::Reference),
        "reference: panic" => builder.device(Device::Reference).panic_in_step(2), // unwinding goes deep
        _ => builder,
    };
    let session = builder.open().unwrap();
    let act = ALL.iter().find(|(name, _)| *name == scene).expect("a scene of this list").1;
    let mut told = Told::default();
    let Some(session) = act(session, &known, &mut told) else { return told };
    told.dirty.extend(super::stacks::dirty());
    told.after = known.needles.search_self().unwrap();
    finish(session, &known, &mut told);
    told
}

/// With overwriting turned into nothing the session may find out, and serve no more.
#[cfg(amnesic_faults)]
fn no_op_scrub(session: Session, _: &Known, _: &mut Told) -> Option<Session> {
    match session.generate(canary().max_tokens(REPLY_TOKENS)) {
        Ok(reply) => assert_eq!(reply.tokens().len(), REPLY_TOKENS),
        Err(error) => assert!(matches!(error, Error::Poisoned(PoisonReason::ScrubFailed)), "{error}"),
    }
    Some(session)
}

/// The prompt in one step and one draw: what the buffers of a step hold is still that at the end. top-k has the
/// sampler make keys, and a bias a copy of the logits.
fn one_sampled_token(session: Session, _: &Known, _: &mut Told) -> Option<Session> {
    let request = canary().max_tokens(1).temperature(1.0).seed(3).top_k(40).logit_bias(99, -1.0);
    assert_eq!(session.generate(request).unwrap().usage.completion_tokens, 1);
    Some(session)
}

/// Everything that the sampler keeps for one token.
fn penalties(session: Session, _: &Known, _: &mut Told) -> Option<Session> {
    let request = canary().max_tokens(REPLY_TOKENS).temperature(0.9).top_p(0.95).typical_p(0.9).logprobs(5);
    let request =
        request.repetition_penalty(1.01).frequency_penalty(0.01).prompt_logprobs(2).ignore_eos(true);
    let reply = session.generate(request.dry(Dry::default()).dry_breakers([canary::prompt()])).unwrap();
    assert_eq!(reply.finish_reason(), FinishReason::Length);
    Some(session)
}

fn error_context(session: Session, _: &Known, _: &mut Told) -> Option<Session> {
    let error = session.generate(canary().max_tokens(1 << 20)).unwrap_err();
    assert!(matches!(error, Error::ContextLength { .. }), "{error}");
    Some(session)
}

fn error_in_batch(session: Session, _: &Known, _: &mut Told) -> Option<Session> {
    let bad = Request::tokens(vec![VOCAB as u32]);
    let error = session.generate_batch([canary(), bad]).unwrap_err();
    assert!(matches!(error, Error::InBatch { index: 1, .. }), "{error}");
    Some(session)
}

/// The grammar asks for a word that the bias forbids, token by token.
fn error_dead_end(session: Session, _: &Known, _: &mut Told) -> Option<Session> {
    let begins_with_q = |id: &u32| session.token_bytes(*id).is_some_and(|bytes| bytes.contains(&b'Q'));
    let banned: Vec<u32> = (0..VOCAB as u32).filter(begins_with_q).collect();
    let request = canary().max_tokens(64).response_format(canary::grammar());
    let error =
        session.generate(banned.into_iter().fold(request, |request, id| request.logit_bias(id, -100.0)));
    assert!(matches!(error, Err(Error::NoToken)), "{:?}", error.is_ok());
    Some(session)
}

/// A grammar that does not compile, with words of the prompt in it.
fn error_grammar(session: Session, _: &Known, _: &mut Told) -> Option<Session> {
    let wrong = ResponseFormat::regex(format!("({}", canary::prompt()));
    assert!(session.generate(canary().response_format(wrong)).is_err());
    Some(session)
}

fn cancelled_early(session: Session, _: &Known, _: &mut Told) -> Option<Session> {
    let token = CancelToken::new();
    token.cancel();
    let reply = session.generate(canary().max_tokens(2000).cancel_token(&token)).unwrap();
    assert_eq!(reply.finish_reason(), FinishReason::Cancelled);
    Some(session)
}

fn panic_in_a_prompt(session: Session, _: &Known, _: &mut Told) -> Option<Session> {
    let error = session.generate(canary().max_tokens(REPLY_TOKENS)).unwrap_err();
    assert!(matches!(error, Error::Poisoned(PoisonReason::Panic)), "{error}");
    let again = session.generate(canary()).unwrap_err();
    assert!(matches!(again, Error::Poisoned(_)), "{again}");
    Some(session)
}

/// The session drops while a request runs.
fn still_running(session: Session, known: &Known, told: &mut Told) -> Option<Session> {
    let mut stream = session.stream(canary().max_tokens(3000)).unwrap();
    assert!(stream.next().unwrap().is_ok());
    std::mem::forget(stream); // so that the request runs when the session drops
    drop(session);
    told.dropped = known.needles.search_self().unwrap();
    None
}

fn choices(session: Session, _: &Known, _: &mut Told) -> Option<Session> {
    let reply = session.generate(canary().max_tokens(REPLY_TOKENS).temperature(0.9).n(3)).unwrap();
    assert_eq!(reply.choices().len(), 3);
    drop(reply);
    Some(session)
}

fn choices_under_a_grammar(session: Session, _: &Known, _: &mut Told) -> Option<Session> {
    let request = canary().max_tokens(64).response_format(canary::grammar());
    let reply = session.generate(request.temperature(0.9).n(3)).unwrap();
    assert!(reply.choices().iter().all(|choice| choice.finish_reason == FinishReason::Stop));
    drop(reply);
    Some(session)
}

/// By those that run beside it.
fn preempted(session: Session, _: &Known, _: &mut Told) -> Option<Session> {
    let others = (0..6).map(|i| Request::tokens(vec![i; 40]).max_tokens(60));
    let requests = std::iter::once(canary().max_tokens(REPLY_TOKENS)).chain(others);
    assert_eq!(session.generate_batch(requests).unwrap().len(), 7);
    assert!(session.load().preemptions > 0, "nobody gave way");
    Some(session)
}

/// The draft is the model itself.
fn draft(session: Session, _: &Known, _: &mut Told) -> Option<Session> {
    let speculation = Speculation::Draft { tokens: 3 };
    let reply = session.generate(canary().max_tokens(REPLY_TOKENS).speculate(speculation)).unwrap();
    assert!(reply.usage.accepted_tokens > 20);
    drop(reply);
    Some(session)
}

/// A prompt that was public, and is not any more.
fn public(session: Session, _: &Known, told: &mut Told) -> Option<Session> {
    let public = session.publish(canary()).unwrap();
    told.dirty.extend(super::stacks::dirty()); // the next request would clean up
    drop(session.generate(canary().max_tokens(REPLY_TOKENS).shares(&public)).unwrap());
    drop(public);
    drop(session.generate(Request::tokens([1]).max_tokens(1)).unwrap()); // all that was sent before it is done
    Some(session)
}

fn chat_turns(session: Session, _: &Known, _: &mut Told) -> Option<Session> {
    let mut chat = session.conversation();
    let turn = || Request::chat([amnesic::user(canary::prompt())]).temperature(0.0).max_tokens(REPLY_TOKENS);
    drop(chat.generate(turn()).unwrap());
    let mut stream = chat.stream(turn()).unwrap();
    assert!(stream.next().unwrap().is_ok());
    drop(stream); // this turn has not been
    drop(chat.generate(turn()).unwrap());
    assert_eq!(chat.messages().len(), 4);
    drop(chat);
    Some(session)
}

/// Between two turns a conversation is sealed, text, ids and cache; and the session closes while it is still there.
fn open_conversation(session: Session, known: &Known, told: &mut Told) -> Option<Session> {
    let mut conversation = session.conversation();
    drop(conversation.generate(canary().max_tokens(REPLY_TOKENS)).unwrap());
    assert!(session.load().kv_blocks_used > 0, "its part of the cache stays");
    told.idle = known.needles.search_self().unwrap();
    told.trouble = session.close().err().map(|error| error.to_string());
    drop(conversation);
    told.dropped = known.needles.search_self().unwrap();
    None
}

/// A turn whose stream was dropped while it stood still, and after that nothing of its conversation was used: what it went on
/// from and what it was are gone with its end. So are those of a turn that was over, and not finished.
fn left_turn(session: Session, known: &Known, told: &mut Told) -> Option<Session> {
    let mut conversation = session.conversation();
    drop(conversation.generate(canary().max_tokens(REPLY_TOKENS)).unwrap());
    let gate = forensics::Gate::default();
    let stream = conversation.stream(canary().max_tokens(REPLY_TOKENS).stop_at(8, &gate)).unwrap();
    assert!(gate.wait(std::time::Duration::from_secs(60)));
    drop(stream);
    gate.open();
    let all_is_done = || drop(session.generate(Request::tokens([1]).max_tokens(1)).unwrap());
    all_is_done();
    told.idle = known.needles.search_self().unwrap();
    // the first of its conversation: its reply is the one that is known
    let mut unfinished = session.conversation();
    let mut stream = unfinished.stream(canary().max_tokens(REPLY_TOKENS)).unwrap();
    stream.by_ref().for_each(|piece| drop(piece.unwrap()));
    drop(stream);
    all_is_done();
    told.idle = std::mem::take(&mut told.idle).and(known.needles.search_self().unwrap());
    drop((conversation, unfinished));
    Some(session)
}

/// The prompt as ids in a vector of the caller's, large so that nobody soon takes all of its memory again. Of two requests
/// one is never sent.
fn token_ids(session: Session, known: &Known, _: &mut Told) -> Option<Session> {
    let ids = known.late_prompt(25_000);
    let behind = vec![1_u8; 1 << 10]; // so that the allocator does not give the block back to the system
    drop(Request::tokens(ids));
    let request = Request::tokens(known.late_prompt(1)).temperature(0.0).max_tokens(REPLY_TOKENS);
    drop(session.generate(request).unwrap());
    drop(std::hint::black_box(behind));
    Some(session)
}

/// What the tokenizer alone is asked, of which no request follows.
fn inspected(session: Session, _: &Known, told: &mut Told) -> Option<Session> {
    let literal = || Request::prompt(canary::prompt()).literal_text(true);
    let tokens = session.count_tokens(literal()).unwrap();
    let ids = session.tokenize(literal()).unwrap();
    assert_eq!(ids.len(), tokens);
    drop(session.detokenize(ids.ids(), false).unwrap());
    drop(ids);
    told.dirty.extend(super::stacks::dirty());
    drop(session.generate(Request::tokens([1]).max_tokens(1)).unwrap()); // all that was sent before it is done
    Some(session)
}

/// A chat whose messages are exchanged for others before they are rendered, and that goes on with the last one.
fn literal_chat(session: Session, _: &Known, _: &mut Told) -> Option<Session> {
    let chat = || {
        let messages = [amnesic::user(canary::prompt()), amnesic::assistant("It is")];
        Request::chat(messages).literal_text(true).continue_final_message(true)
    };
    drop(session.apply_chat_template(chat()).unwrap());
    drop(session.generate(chat().temperature(0.0).max_tokens(REPLY_TOKENS)).unwrap());
    Some(session)
}

/// Which the library never saw: `alloc::Scrubbing` covers it, like all that is freed.
fn own_copy(session: Session, _: &Known, _: &mut Told) -> Option<Session> {
    let (copy, behind) = (canary::prompt().repeat(20), vec![1_u8; 1 << 10]);
    drop(session.generate(canary().max_tokens(REPLY_TOKENS)).unwrap());
    drop((std::hint::black_box(copy), std::hint::black_box(behind)));
    Some(session)
}

/// A request, and nothing else.
fn plain(session: Session, _: &Known, _: &mut Told) -> Option<Session> {
    drop(session.generate(canary().max_tokens(REPLY_TOKENS)).unwrap());
    Some(session)
}
