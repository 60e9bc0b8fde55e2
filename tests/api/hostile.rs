//! Requests that stand still, or take long, hold up themselves only. Nothing here looks at a clock: whoever must not be
//! waited for stands at a gate until the others are done.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use amnesic::forensics::Gate;
use amnesic::{CancelToken, Error, FinishReason, Reply, Request, ResponseFormat, Session, Speculation};

use crate::common::{Hands, default_model};

/// Guards against hanging: a test that reaches it has failed.
const PATIENCE: Duration = Duration::from_secs(120);

fn session() -> Session {
    Session::builder(default_model()).threads(2).open().unwrap()
}

fn plain(seed: u64) -> Request {
    Request::prompt("It is").max_tokens(40).temperature(0.8).seed(seed).ignore_eos(true)
}

fn guided(seed: u64) -> Request {
    let words = ResponseFormat::regex("([a-z]{1,9} ){6,12}end");
    Request::prompt("It is").max_tokens(90).temperature(0.8).seed(seed).response_format(words)
}

fn tokens(reply: &Reply) -> Vec<Vec<u32>> {
    reply.choices().iter().map(|choice| choice.tokens().to_vec()).collect()
}

#[test]
fn a_mask_that_is_late_holds_up_its_own_request_only() {
    let session = session();
    let slow = || guided(1).n(3);
    let alone = session.generate(slow()).unwrap();
    let (others, gate, done) = ([2, 3, 4], Gate::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let late = scope.spawn(|| {
            let reply = session.generate(slow().stop_mask(3, &gate)).unwrap();
            assert!(done.load(Ordering::SeqCst), "it ended before its mask was there");
            reply
        });
        assert!(gate.wait(PATIENCE));
        let mixed = others.iter().flat_map(|&seed| [plain(seed), guided(seed)]);
        let together = session.generate_batch(mixed).unwrap();
        done.store(true, Ordering::SeqCst);
        gate.open();
        assert_eq!(tokens(&late.join().unwrap()), tokens(&alone), "a token changed");
        for (pair, &seed) in together.chunks(2).zip(&others) {
            assert_eq!(tokens(&pair[0]), tokens(&session.generate(plain(seed)).unwrap()));
            assert_eq!(tokens(&pair[1]), tokens(&session.generate(guided(seed)).unwrap()));
        }
    });
    assert_eq!(session.load().kv_blocks_used, 0);
    session.close().unwrap();
}

/// The first mask beside the model is late: the reply has one token, and where memory is short others take its blocks.
#[test]
fn whose_mask_is_late_may_lose_its_memory_and_changes_no_token() {
    let open = || Session::builder(default_model()).context_length(256).kv_tokens(256).max_sequences(2);
    let session = open().open().unwrap();
    let alone = session.generate(guided(7)).unwrap();
    let gate = Gate::default();
    std::thread::scope(|scope| {
        let late =
            scope.spawn(|| session.generate(guided(7).priority(amnesic::Priority::Low).stop_mask(0, &gate)));
        assert!(gate.wait(PATIENCE));
        let long = Request::tokens(vec![5; 200]).max_tokens(50).ignore_eos(true);
        assert_eq!(session.generate(long).unwrap().tokens().len(), 50);
        gate.open();
        assert_eq!(tokens(&late.join().unwrap().unwrap()), tokens(&alone));
    });
    assert!(session.load().preemptions > 0, "memory was never short: a lame test");
}

#[test]
fn a_grammar_that_is_taken_for_slow_changes_no_token() {
    let session = session();
    let guess = Speculation::PromptLookup { ngram: 2, tokens: 4 };
    let object = || ResponseFormat::json_object();
    let short = |seed| guided(seed).response_format(ResponseFormat::regex("(yes|no|maybe)!"));
    for seed in 0..4 {
        let requests: [&dyn Fn() -> Request; 6] = [
            &|| guided(seed),
            &|| guided(seed).n(4),
            &|| guided(seed).max_tokens(5),
            &|| guided(seed).response_format(object()).n(2),
            &|| guided(seed).speculate(guess),
            &|| short(seed),
        ];
        for (case, request) in requests.iter().enumerate() {
            let quick = session.generate(request()).unwrap();
            let slow = session.generate(request().slow_grammar()).unwrap();
            assert_eq!(tokens(&slow), tokens(&quick), "case {case}");
            for (slow, quick) in slow.choices().iter().zip(quick.choices()) {
                assert_eq!((slow.text(), slow.finish_reason), (quick.text(), quick.finish_reason));
            }
        }
    }
    // as long as its reply may be, and complete with that very token
    let exact = session.generate(short(1)).unwrap().tokens().len();
    let cut = |length| session.generate(short(1).max_tokens(length).slow_grammar()).unwrap();
    assert_eq!(cut(exact).finish_reason(), FinishReason::Stop);
    assert_eq!(cut(exact - 1).finish_reason(), FinishReason::Length);
    // in company
    let mixed = (0..6).flat_map(|seed| [guided(seed).slow_grammar(), guided(seed), plain(seed)]);
    for (seed, trio) in session.generate_batch(mixed).unwrap().chunks(3).enumerate() {
        assert_eq!(tokens(&trio[0]), tokens(&trio[1]));
        assert_eq!(tokens(&trio[2]), tokens(&session.generate(plain(seed as u64)).unwrap()));
    }
}

#[test]
fn a_request_that_takes_long_to_read_holds_up_nobody() {
    let session = session();
    let (quick, slow, batch) = (Gate::default(), Gate::default(), Gate::default());
    let expected = tokens(&session.generate(guided(1)).unwrap());
    std::thread::scope(|scope| {
        let stuck = [
            scope.spawn(|| session.generate_batch([plain(1).stop_reading(&quick)])),
            scope.spawn(|| session.generate_batch([guided(1).stop_reading(&slow)])),
            // the second cannot be read, so none is taken in
            scope.spawn(|| {
                session.generate_batch([guided(3).stop_reading(&batch), guided(4).logit_bias(1 << 20, 1.0)])
            }),
        ];
        assert!([&quick, &slow, &batch].iter().all(|gate| gate.wait(PATIENCE)));
        let mixed = (0..4).flat_map(|seed| [plain(seed), guided(seed)]);
        assert_eq!(session.generate_batch(mixed).unwrap().len(), 8);
        session.publish(Request::prompt("A public prompt")).unwrap();
        let mut chat = session.conversation();
        chat.generate(plain(5)).unwrap();
        drop(chat);
        assert!(stuck.iter().all(|stuck| !stuck.is_finished()));
        [&quick, &slow, &batch].iter().for_each(|gate| gate.open());
        let [quick, slow, batch] = stuck.map(|stuck| stuck.join().unwrap());
        assert_eq!(tokens(&quick.unwrap()[0]), tokens(&session.generate(plain(1)).unwrap()));
        assert_eq!(tokens(&slow.unwrap()[0]), expected);
        assert!(matches!(batch, Err(Error::InBatch { index: 1, .. })));
    });
}

/// Those who share a public prompt share its ids, too, and not the time that reading takes.
#[test]
fn a_public_prompt_is_not_held_by_whoever_reads_behind_it() {
    let session = session();
    let public = session.publish(Request::prompt("It is")).unwrap();
    let gate = Gate::default();
    std::thread::scope(|scope| {
        let stuck = scope.spawn(|| session.generate(plain(1).shares(&public).stop_reading(&gate)));
        assert!(gate.wait(PATIENCE));
        session.generate(plain(2).shares(&public)).unwrap();
        gate.open();
        stuck.join().unwrap().unwrap();
    });
}

/// A place in the order is taken when a request comes, not when it has been read.
#[test]
fn who_came_first_goes_first_however_long_it_took_to_read() {
    let session = Session::builder(default_model()).threads(2).max_sequences(1).open().unwrap();
    let (reading, running, read) = (Gate::default(), Gate::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            let stream = session.stream(plain(1).stop_reading(&reading)).unwrap();
            read.store(true, Ordering::SeqCst);
            stream.finish()
        });
        assert!(reading.wait(PATIENCE));
        let second = scope.spawn(|| session.generate(plain(2).stop_at(4, &running)));
        assert!(running.wait(PATIENCE));
        reading.open();
        // the session stands still; once it goes on, the message that the first was read is there
        while !read.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        running.open();
        first.join().unwrap().unwrap();
        second.join().unwrap().unwrap();
    });
    assert_eq!(session.load().preemptions, 1, "the second was not overtaken by the first");
}

#[test]
fn a_grammar_is_compiled_once_for_all_choices() {
    let session = session();
    let before = session.grammars_compiled();
    let reply = session.generate(guided(1).max_tokens(4).n(Request::MAX_N)).unwrap();
    assert_eq!((reply.choices().len(), session.grammars_compiled() - before), (Request::MAX_N, 1));
    for choice in [0, 1, Request::MAX_N - 1] {
        let alone = session.generate(guided(1 + choice as u64).max_tokens(4)).unwrap();
        assert_eq!(reply.choices()[choice].tokens(), alone.tokens(), "choice {choice}");
    }
    session.generate_batch((0..3).map(guided)).unwrap();
    assert_eq!(session.grammars_compiled() - before, 1 + 3 + 3);
}

#[test]
fn time_runs_while_a_request_is_read_and_while_its_mask_is_late() {
    let hands = Hands::new();
    let session = Session::builder(default_model()).threads(2).clock(hands.clone()).open().unwrap();
    let minute = Duration::from_secs(60);
    let (reading, mask) = (Gate::default(), Gate::default());
    std::thread::scope(|scope| {
        let read = scope.spawn(|| session.generate(guided(1).timeout(minute).stop_reading(&reading)));
        let compiled = session.grammars_compiled();
        assert!(reading.wait(PATIENCE));
        hands.turn(2 * minute);
        reading.open();
        let reply = read.join().unwrap().unwrap();
        assert_eq!((reply.finish_reason(), reply.tokens().len()), (FinishReason::Deadline, 0));
        assert_eq!(session.grammars_compiled(), compiled, "a grammar that nobody waits for any more");

        let late = scope.spawn(|| session.generate(guided(1).timeout(minute).n(3).stop_mask(2, &mask)));
        assert!(mask.wait(PATIENCE));
        hands.turn(2 * minute);
        session.generate(plain(2)).unwrap(); // the steps of which look at the time
        assert!(!late.is_finished(), "its caller was told while a thread still had its grammar");
        mask.open();
        let reply = late.join().unwrap().unwrap();
        assert_eq!(reply.finish_reason(), FinishReason::Deadline);
        assert!(reply.tokens().len() < 10);
    });
    session.close().unwrap();
}

#[test]
fn a_request_that_is_cancelled_while_its_mask_is_late_is_told_when_it_is_forgotten() {
    let session = session();
    let (gate, token) = (Gate::default(), CancelToken::new());
    std::thread::scope(|scope| {
        let late = scope.spawn(|| session.generate(guided(1).stop_mask(1, &gate).cancel_token(&token)));
        assert!(gate.wait(PATIENCE));
        token.cancel();
        session.generate(plain(2)).unwrap();
        assert!(!late.is_finished());
        gate.open();
        assert_eq!(late.join().unwrap().unwrap().finish_reason(), FinishReason::Cancelled);
    });
    assert_eq!(session.load().kv_blocks_used, 0);
}
