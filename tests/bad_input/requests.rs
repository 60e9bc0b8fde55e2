//! Requests that no session takes: the error names the field, and the session goes on working.

use amnesic::{Error, Request};

use super::parts::{Parts, with_tokenizer};
use super::{builder, greedy, is_one_short_line};

const CANARY: &str = "CANARY-7f3a";

/// What a wrong request gives.
#[derive(Clone, Copy, Debug)]
enum Gives {
    Field(&'static str),
    TooLong,
    NoTokenizer,
}

fn gives(expected: Gives, error: &Error) -> bool {
    match (expected, error) {
        (Gives::Field(name), Error::Request { field, .. }) => *field == name,
        (Gives::TooLong, Error::ContextLength { context: 64, .. }) => true,
        (Gives::NoTokenizer, Error::NoTokenizer { file }) => file.ends_with("tokenizer.json"),
        _ => false,
    }
}

fn wrong_requests(text: bool, vocab: u32) -> Vec<(Request, Gives)> {
    let good = || Request::tokens([1, 2]);
    let with = |request: Request| request.stop(CANARY);
    let mut wrong = vec![
        (Request::prompt(""), Gives::Field("prompt")),
        (Request::tokens([]), Gives::Field("prompt")),
        (Request::tokens([vocab]), Gives::Field("prompt")),
        (Request::tokens([1, u32::MAX]), Gives::Field("prompt")),
        (Request::tokens([1; 64]), Gives::TooLong),
        (Request::tokens([1; 65]), Gives::TooLong),
        (Request::tokens(vec![1; 100_000]), Gives::TooLong),
        (good().max_tokens(63), Gives::TooLong),
        (good().max_tokens(usize::MAX), Gives::TooLong),
        (good().max_tokens(usize::MAX - 1), Gives::TooLong),
        (with(good().max_tokens(0)), Gives::Field("max_tokens")),
        ((0..17).fold(good(), |request, i| request.stop(format!("{CANARY}{i}"))), Gives::Field("stop")),
        (with(good()).stop(""), Gives::Field("stop")),
    ];
    for value in [-0.1, 2.1, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        wrong.push((with(good().temperature(value)), Gives::Field("temperature")));
    }
    for value in [0.0, -0.0, -1.0, 1.1, f32::NAN, f32::INFINITY] {
        wrong.push((with(good().top_p(value)), Gives::Field("top_p")));
    }
    for value in [-0.1, 1.1, f32::NAN, f32::INFINITY] {
        wrong.push((with(good().min_p(value)), Gives::Field("min_p")));
    }
    if text {
        wrong.push((Request::prompt(CANARY.repeat(100)), Gives::TooLong));
        wrong.push((Request::prompt(CANARY).max_tokens(64), Gives::TooLong));
        wrong.push((Request::prompt(CANARY).temperature(3.0), Gives::Field("temperature")));
    } else {
        wrong.push((Request::prompt(CANARY).stop(CANARY), Gives::NoTokenizer));
    }
    wrong
}

fn tells_nothing(error: &Error) {
    let printed = format!("{error} {error:?} {error:#?}");
    assert!(!printed.contains(CANARY), "{printed}");
    is_one_short_line("a request", &error.to_string());
}

#[test]
fn wrong_requests_are_named_and_leave_the_session_working() {
    let (plain, text) = (Parts::small().write(), with_tokenizer());
    for (folder, has_text, vocab) in [(&plain, false, 64), (&text, true, 704)] {
        let session = builder(folder.path()).open().unwrap();
        let expected = greedy(&session);
        for (i, (request, gives_what)) in wrong_requests(has_text, vocab).into_iter().enumerate() {
            let what = format!("{i}: {request:?}");
            assert!(!what.contains(CANARY), "{what}");
            let before = session.counters();
            match session.generate(request) {
                Ok(reply) => panic!("{what}: it ran: {reply:?}"),
                Err(error) => {
                    assert!(gives(gives_what, &error), "{what}: {error}");
                    tells_nothing(&error);
                }
            }
            let after = session.counters();
            assert_eq!((after.steps, after.tokens), (before.steps, before.tokens), "{what}: something ran");
            assert_eq!(greedy(&session), expected, "{what}: the session no longer works");
        }
        for (request, gives_what) in wrong_requests(has_text, vocab) {
            let error = session.stream(request).map(|_| ()).unwrap_err();
            assert!(gives(gives_what, &error), "{error}");
        }
        session.close().unwrap();
    }
}

#[test]
fn one_wrong_request_stops_its_batch_before_anything_runs() {
    let folder = with_tokenizer();
    let session = builder(folder.path()).open().unwrap();
    let expected = greedy(&session);
    assert!(session.generate_batch([]).unwrap().is_empty());
    for index in 0..3 {
        for (wrong, gives_what) in wrong_requests(true, 704) {
            let before = session.counters();
            let mut batch: Vec<Request> = (0..2).map(|_| Request::prompt(CANARY).stop(CANARY)).collect();
            batch.insert(index, wrong);
            let error = session.generate_batch(batch).unwrap_err();
            tells_nothing(&error);
            match error {
                Error::InBatch { index: found, source } => {
                    assert_eq!(found, index, "{source}");
                    assert!(gives(gives_what, &source), "{source}");
                }
                other => panic!("{other}"),
            }
            let after = session.counters();
            assert_eq!((after.steps, after.tokens), (before.steps, before.tokens), "something ran");
        }
        assert_eq!(greedy(&session), expected);
    }
}
