//! What must be there: a span for each request with its fields, below the caller's, and the same to the callback.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amnesic::privacy::{Alias, Event, Operation, OutputType, Prices};
use amnesic::{Builder, CancelToken, Error, ErrorKind, FinishReason, Request, ResponseFormat, Session};
use tracing::subscriber::with_default;

use crate::common::{Recipe, default_model};
use crate::recorder::Recorder;

const PRICES: Prices =
    Prices::new().prompt_token_nano(100).cached_token_nano(10).completion_token_nano(1000).request_nano(7);

fn builder() -> Builder {
    Session::builder(default_model()).threads(1).prices(PRICES)
}

/// A session that tells its events to a list.
fn listening(builder: Builder) -> (Session, Arc<Mutex<Vec<Event>>>) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let list = events.clone();
    (builder.on_event(move |event| list.lock().unwrap().push(*event)).open().unwrap(), events)
}

/// The values of a field, in all lines of a span.
fn values<'a>(span: &'a [String], field: &str) -> Vec<&'a str> {
    let sign = format!(" {field}=");
    let cut = |line: &'a String| {
        let (_, rest) = line.split_once(&sign)?;
        Some(rest.split(" gen_ai.").next().unwrap().split(" otel.").next().unwrap().trim())
    };
    span.iter().filter_map(cut).collect()
}

fn value<'a>(span: &'a [String], field: &str) -> &'a str {
    values(span, field).pop().unwrap_or_else(|| panic!("{field}: {span:#?}"))
}

/// A span that is closed, once and last.
fn closed(span: &[String]) {
    let closes = span.iter().filter(|line| line.starts_with("close ")).count();
    assert!(closes == 1 && span.last().unwrap().starts_with("close "), "{span:#?}");
}

#[test]
fn a_request_is_a_span_below_its_callers() {
    let recorder = Recorder::default();
    with_default(recorder.clone(), || {
        let session = builder().model_name(Alias::new("rust:8b").unwrap()).open().unwrap();
        let outer = tracing::info_span!("outer");
        let request =
            Request::prompt("A slice is").max_tokens(6).temperature(0.7).top_k(5).top_p(0.9).seed(3);
        let request = request.frequency_penalty(0.25).presence_penalty(-0.5).stop("zzz").stop("yyy");
        let reply = outer.in_scope(|| session.generate(request)).unwrap();
        let outer_id = outer.id().unwrap().into_u64();

        let spans = recorder.spans("generate");
        assert_eq!(spans.len(), 1);
        let span = &spans[0];
        assert!(span[0].contains(&format!(" below {outer_id} amnesic generate ")), "{span:#?}");
        closed(span);
        let usage = reply.usage;
        for (field, expected) in [
            ("otel.name", "text_completion rust:8b"),
            ("gen_ai.operation.name", "text_completion"),
            ("gen_ai.provider.name", "amnesic"),
            ("gen_ai.request.model", "rust:8b"),
            ("gen_ai.response.model", "rust:8b"),
            ("gen_ai.request.stream", "false"),
            ("gen_ai.request.max_tokens", "6"),
            ("gen_ai.request.temperature", "0.7"),
            ("gen_ai.request.top_p", "0.9"),
            ("gen_ai.request.top_k", "5"),
            ("gen_ai.request.frequency_penalty", "0.25"),
            ("gen_ai.request.presence_penalty", "-0.5"),
            ("gen_ai.request.choice.count", "1"),
            ("gen_ai.request.stop_sequences", "2"),
            ("gen_ai.request.seed", "3"),
            ("gen_ai.output.type", "text"),
            ("gen_ai.response.id", &reply.request_id.to_string()),
            ("gen_ai.response.finish_reasons", &format!("[\"{}\"]", reply.finish_reason())),
            ("gen_ai.usage.input_tokens", &usage.prompt_tokens.to_string()),
            ("gen_ai.usage.output_tokens", &usage.completion_tokens.to_string()),
            ("gen_ai.usage.cache_read.input_tokens", "0"),
            ("amnesic.usage.cost_nano", &PRICES.cost(&usage).to_string()),
        ] {
            assert_eq!(value(span, field), expected, "{field}");
        }
        assert_eq!(usage.cost_nano, Some(PRICES.cost(&usage)));
        let first: f64 = value(span, "gen_ai.server.time_to_first_token").parse().unwrap();
        assert!(
            first >= reply.timing.first_token.as_secs_f64(),
            "from the call, so with the prompt's reading"
        );
        assert!(values(span, "error.type").is_empty() && values(span, "gen_ai.conversation.id").is_empty());
        // its events came to the caller's subscriber, though they are told from other threads
        let id = span[0].split(' ').nth(1).unwrap();
        let events =
            recorder.lines().into_iter().filter(|line| line.starts_with(&format!("event below {id} ")));
        let events: Vec<_> = events.collect();
        assert_eq!(events.len(), 3, "{events:#?}");
        for (event, word) in events.iter().zip(["accepted", "first token", "ended"]) {
            assert!(event.contains(&format!("message={word}")), "{events:#?}");
        }
    });
}

#[test]
fn every_way_to_ask_and_to_end_is_told() {
    let recorder = Recorder::default();
    with_default(recorder.clone(), || {
        let (session, events) = listening(builder());
        let ask = || Request::prompt("A slice is").max_tokens(4);
        let long = || Request::prompt("A slice is").max_tokens(1000).ignore_eos(true);
        let json = || ResponseFormat::json_schema(serde_json::json!({ "enum": ["a", "b"] }));

        session.generate_batch([ask(), ask().n(3).temperature(1.0), ask().response_format(json())]).unwrap();
        session.stream(ask()).unwrap().finish().unwrap();
        session.generate_with(long(), |_| ControlFlow::Break(())).unwrap();
        session.stream(long()).unwrap().discard();
        let cancelled = CancelToken::new();
        cancelled.cancel();
        session.generate(long().cancel_token(&cancelled)).unwrap();
        session.generate(long().timeout(Duration::ZERO)).unwrap();
        let mut conversation = session.conversation();
        conversation.generate(ask()).unwrap();
        conversation.stream(ask()).unwrap().finish().unwrap();
        conversation.generate(ask().max_tokens(0)).unwrap_err();
        let other = session.conversation().generate(ask()).unwrap();
        session.generate(ask().top_p(7.0)).unwrap_err();
        session.generate(ask().response_format(ResponseFormat::regex("("))).unwrap_err();
        session.generate(Request::tokens(vec![1; 100_000])).unwrap_err();
        session.generate_batch([ask(), ask().max_tokens(0), ask()]).unwrap_err();
        assert!(other.usage.cost_nano.is_some());

        let spans = recorder.spans("generate");
        spans.iter().for_each(|span| closed(span));
        let errors = |span: &Vec<String>| values(span, "error.type").join(" ");
        let errors: Vec<_> = spans.iter().map(errors).collect();
        let none = [""; 5];
        let wrong = ["request", "request", "context_length", "in_batch", "request", "in_batch"];
        let expected = [&none[..], &["closed"], &["", "", "", "", "request", ""], &wrong].concat();
        assert_eq!(errors, expected);
        let reason = |span: &Vec<String>| values(span, "gen_ai.response.finish_reasons").join(" ");
        assert_eq!(
            [4, 6, 7].map(|index| reason(&spans[index])),
            [r#"["cancelled"]"#, r#"["cancelled"]"#, r#"["deadline"]"#]
        );
        assert_eq!(value(&spans[1], "gen_ai.request.choice.count"), "3");
        assert_eq!(value(&spans[2], "gen_ai.output.type"), "json");
        let conversations: Vec<_> =
            spans.iter().map(|span| values(span, "gen_ai.conversation.id").join("")).collect();
        assert_eq!(conversations.iter().filter(|id| !id.is_empty()).count(), 4);
        assert_eq!(conversations[8..11], [conversations[8].as_str(); 3]);
        assert_ne!(conversations[8], conversations[11]);
        let streams: Vec<_> =
            spans.iter().map(|span| value(span, "gen_ai.request.stream") == "true").collect();
        let expected = [3, 4, 5, 9];
        assert!((0..spans.len()).all(|index| streams[index] == expected.contains(&index)), "{streams:?}");

        // the callback hears the same: one end for each span
        let ends = |events: &[Event]| {
            let errors = events.iter().filter_map(|event| match event {
                Event::Ended(_) => Some(String::new()),
                Event::Refused(refused) => Some(refused.error.to_string()),
                Event::Failed(failed) => Some(failed.error.to_string()),
                _ => None,
            });
            let mut errors: Vec<_> = errors.collect();
            errors.sort();
            errors
        };
        let told = events.lock().unwrap().clone();
        let mut expected: Vec<_> = errors.iter().map(|error| error.to_string()).collect();
        expected.sort();
        assert_eq!(ends(&told), expected);
        check_events(&told);
        session.close().unwrap();
        assert!(
            matches!(events.lock().unwrap().last(), Some(Event::SessionClosed(closed)) if closed.error.is_none())
        );
    });
    for name in ["open_session", "close_session"] {
        assert_eq!(recorder.spans(name).len(), 1);
        closed(&recorder.spans(name)[0]);
    }
}

/// Of the second request of `every_way_to_ask_and_to_end_is_told`, and of all of them.
fn check_events(told: &[Event]) {
    assert!(
        matches!(told[0], Event::SessionOpened(opened) if opened.memory_bytes > 0 && opened.kv_tokens > 0)
    );
    let ended: Vec<_> = told
        .iter()
        .filter_map(|event| match event {
            Event::Ended(ended) => Some(ended),
            _ => None,
        })
        .collect();
    let several = ended.iter().find(|ended| ended.asked.choices == 3).unwrap();
    assert_eq!(
        (several.asked.operation, several.asked.output),
        (Operation::TextCompletion, Some(OutputType::Text))
    );
    assert_eq!(several.asked.model.as_str(), "llama");
    let reasons = several.finish_reasons;
    assert_eq!(reasons.stop + reasons.length, 3);
    for ended in ended {
        let reasons: Vec<_> = ended.finish_reasons.iter().collect();
        let first = ended.time_to_first_token;
        assert!(first.is_none_or(|first| first <= ended.duration), "{ended:?}");
        assert!(
            first.is_some()
                || reasons.contains(&FinishReason::Deadline)
                || reasons.contains(&FinishReason::Cancelled)
        );
        let accepted = told
            .iter()
            .filter(|event| matches!(event, Event::Accepted(accepted) if accepted.request == ended.request));
        assert_eq!(accepted.count(), 1);
        let per_token = ended.time_per_output_token;
        assert!(
            per_token.is_none_or(|time| time * (ended.output_tokens as u32 / 3) <= ended.duration),
            "{ended:?}"
        );
        let cost = 7
            + 100 * (ended.input_tokens - ended.cached_tokens)
            + 10 * ended.cached_tokens
            + 1000 * ended.output_tokens;
        assert_eq!(ended.cost_nano, Some(cost));
    }
}

#[test]
fn a_full_a_poisoned_and_a_closed_session_are_told() {
    let (session, events) = listening(builder().max_requests(1));
    let waiting = session
        .stream(Request::prompt("A slice is").max_tokens(900).ignore_eos(true).stream_buffer(1))
        .unwrap();
    assert!(matches!(session.generate(Request::prompt("x")), Err(Error::Busy { .. })));
    drop(session); // while a stream is still there
    assert!(matches!(waiting.finish(), Err(Error::Closed)));
    let kinds = |events: &[Event]| {
        let kind = |event: &Event| match event {
            Event::Refused(refused) => Some(refused.error),
            Event::Failed(failed) => Some(failed.error),
            Event::SessionClosed(closed) => closed.error,
            _ => None,
        };
        events.iter().filter_map(kind).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&events.lock().unwrap()), [ErrorKind::Busy, ErrorKind::Closed]);

    let (session, events) = listening(builder().panic_in_step(2));
    session.generate(Request::prompt("A slice is").max_tokens(9)).unwrap_err();
    session.generate(Request::prompt("A slice is")).unwrap_err();
    session.close().unwrap();
    assert_eq!(kinds(&events.lock().unwrap()), [ErrorKind::Poisoned; 3]);
}

#[test]
fn a_session_that_does_not_open_says_why() {
    let recorder = Recorder::default();
    let folder = tempfile::tempdir().unwrap();
    with_default(recorder.clone(), || Session::open(folder.path()).unwrap_err());
    let spans = recorder.spans("open_session");
    assert_eq!((value(&spans[0], "error.type"), value(&spans[0], "otel.status_code")), ("read", "ERROR"));
    closed(&spans[0]);
}

#[test]
fn a_listener_that_panics_harms_nobody() {
    struct Broken;
    impl tracing::Subscriber for Broken {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {
            panic!("a subscriber that is broken");
        }
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, _: &tracing::Event<'_>) {
            panic!("a subscriber that is broken");
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = Recipe::small(64);
    recipe.config["tie_word_embeddings"] = false.into();
    recipe.write(folder.path(), None);
    let ask = || Request::tokens([1, 2, 3]).max_tokens(5).temperature(1.0).seed(1);
    let expected = Session::open(folder.path()).unwrap().generate(ask()).unwrap();
    let session =
        Session::builder(folder.path()).on_event(|_| panic!("a callback that is broken")).open().unwrap();
    with_default(Broken, || {
        for _ in 0..3 {
            assert_eq!(session.generate(ask()).unwrap().tokens(), expected.tokens());
            assert!(session.generate(ask().max_tokens(0)).is_err());
            session.stream(ask().max_tokens(400).ignore_eos(true)).unwrap().discard();
        }
    });
    assert_eq!(session.load().kv_blocks_used, 0);
    assert_eq!(session.close().unwrap().requests(), 9, "three were refused, and have receipts too");
}
