//! Streams: their readers may be slow, end early, poll, or stay away.

use std::ops::ControlFlow;
use std::time::Duration;

use amnesic::forensics::Gate;
use amnesic::{Error, FinishReason, Request};

use super::{builder, content, folder};
use crate::common::default_model;

/// An executor of one thread, made by hand: what blocks it shows.
#[cfg(feature = "async")]
mod executor {
    use std::sync::Arc;
    use std::task::{Wake, Waker};

    struct Unpark(std::thread::Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    /// Wakes the thread that made it.
    pub fn waker() -> Waker {
        Waker::from(Arc::new(Unpark(std::thread::current())))
    }
}

#[test]
fn a_slow_reader_holds_up_itself_only() {
    let folder = folder();
    let session =
        builder(folder.path()).kv_tokens(1024).context_length(1024).max_sequences(1).open().unwrap();
    let request = || Request::tokens([1, 2, 3]).max_tokens(600).temperature(1.0).seed(2);
    let whole = session.generate(request()).unwrap();
    let mut stream = session.stream(request().stream_buffer(10)).unwrap();
    // it stands still with ten tokens waiting, and others run past it: the one place, and then its memory
    for _ in 0..3 {
        let other = session.generate(Request::tokens([7; 700]).max_tokens(200)).unwrap();
        assert_eq!(other.tokens().len(), 200);
    }
    let steps = session.counters().steps;
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(session.counters().steps, steps, "a request that stands still takes no steps");
    assert_eq!(session.load().preemptions, 1);
    let mut tokens: Vec<u32> = Vec::new();
    for piece in stream.by_ref().take(5) {
        let piece = piece.unwrap();
        assert!(piece.tokens().len() <= 10);
        tokens.extend(piece.tokens());
    }
    assert_eq!(tokens, whole.tokens()[..tokens.len()]);
    // from here on nobody reads pieces: the buffer is no limit any more
    assert_eq!(stream.finish().unwrap().tokens(), whole.tokens());
}

#[test]
fn a_callback_may_end_the_reply() {
    let session = builder(&default_model()).open().unwrap();
    let request = || Request::prompt("Ownership is").max_tokens(60);
    let whole = session.generate(request()).unwrap();
    let mut text = String::new();
    let reply = session
        .generate_with(request(), |piece| {
            text.push_str(piece.text());
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((text.as_str(), reply.text()), (whole.text(), whole.text()));
    let mut pieces = 0;
    let broken = session
        .generate_with(Request::prompt("Ownership is").max_tokens(1000).stream_buffer(4), |_| {
            pieces += 1;
            if pieces == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!((pieces, broken.finish_reason()), (3, FinishReason::Cancelled));
    assert!(!broken.text().is_empty());
}

#[test]
fn streams_carry_tokens_and_choices() {
    let session = builder(&default_model()).open().unwrap();
    let request = || Request::prompt("Ownership is").max_tokens(30).temperature(0.8).seed(4).n(3).logprobs(1);
    let whole = session.generate(request()).unwrap();
    let mut stream = session.stream(request()).unwrap();
    let mut parts = vec![(String::new(), Vec::<u32>::new(), 0); 3];
    for piece in stream.by_ref() {
        let piece = piece.unwrap();
        let part = &mut parts[piece.choice];
        part.0.push_str(piece.text());
        part.1.extend(piece.tokens());
        part.2 += piece.logprobs().len();
        assert_eq!(piece.tokens().len(), piece.logprobs().len());
    }
    for (part, choice) in parts.iter().zip(whole.choices()) {
        assert_eq!((part.0.as_str(), part.1.as_slice(), part.2), (choice.text(), choice.tokens(), 30));
    }
    assert_eq!(content(&stream.finish().unwrap()), content(&whole));
}

#[test]
fn a_stream_outlives_its_session_and_says_so() {
    let folder = folder();
    let session = builder(folder.path()).kv_tokens(8192).open().unwrap();
    let mut stream =
        session.stream(Request::tokens([1]).max_tokens(5000).ignore_eos(true).stream_buffer(5)).unwrap();
    assert!(stream.next().unwrap().is_ok());
    let conversation = session.conversation();
    let public = session.publish(Request::tokens([1, 2])).unwrap();
    let report = session.close().unwrap();
    assert_eq!(report.requests(), 2, "the stream's, and the one that was published");
    let error = stream.find_map(Result::err).unwrap();
    assert!(matches!(error, Error::Closed), "{error}");
    drop((conversation, public));
}

/// The session stands still in the middle of a step, with the gate closed: a call that waited for the step would never
/// return.
#[cfg(feature = "async")]
#[test]
fn neither_dropping_nor_cancelling_a_polled_stream_waits_for_the_session() {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    const PATIENCE: Duration = Duration::from_secs(60);
    let session = builder(&default_model()).open().unwrap();
    let waker = executor::waker();
    let mut context = Context::from_waker(&waker);
    let held = |gate: &Gate| {
        session.stream(Request::prompt("Ownership is").max_tokens(200).stop_at(8, gate)).unwrap()
    };
    let poll = |stream: &mut amnesic::Stream, context: &mut Context<'_>| {
        let _ = futures_core::Stream::poll_next(Pin::new(stream), context);
    };

    for read in [true, false] {
        let gate = Gate::default();
        let mut dropped = held(&gate);
        if read {
            poll(&mut dropped, &mut context);
        }
        assert!(gate.wait(PATIENCE));
        drop(dropped);
        gate.open();
    }

    let gate = Gate::default();
    let mut cancelled = held(&gate);
    poll(&mut cancelled, &mut context);
    assert!(gate.wait(PATIENCE));
    let mut end = cancelled.cancel();
    assert!(Pin::new(&mut end).poll(&mut context).is_pending(), "it is not scrubbed while the step runs");
    gate.open();
    while Pin::new(&mut end).poll(&mut context) == Poll::Pending {
        std::thread::park();
    }
    assert_eq!(session.load().kv_blocks_used, 0, "it is scrubbed once the future is ready");

    // The future of a request that is cancelled may be dropped as well.
    let gate = Gate::default();
    let mut forgotten = held(&gate);
    poll(&mut forgotten, &mut context);
    assert!(gate.wait(PATIENCE));
    drop(forgotten.cancel());
    gate.open();
    assert!(session.generate(Request::prompt("A slice is").max_tokens(4)).is_ok());
    assert!(session.close().unwrap().requests() >= 5);
}

/// Dropping the stream of a conversation's turn waits for nothing either, however much of it was read: the session stands still
/// until the gate opens.
#[test]
fn dropping_the_stream_of_a_turn_waits_for_nothing_and_the_turn_has_not_been() {
    const PATIENCE: Duration = Duration::from_secs(60);
    let session = builder(&default_model()).open().unwrap();
    let ask = |text: &str| Request::prompt(text).temperature(0.0).max_tokens(4);
    let mut whole = session.conversation();
    let expected: Vec<_> = ["Ownership is", " and", " so"]
        .map(|text| whole.generate(ask(text)).unwrap().tokens().to_vec())
        .into();
    drop(whole);

    let mut conversation = session.conversation();
    assert_eq!(conversation.generate(ask("Ownership is")).unwrap().tokens(), expected[0]);
    for (turn, pieces) in [(1, 0), (2, 1)] {
        let gate = Gate::default();
        let gone = Request::prompt(" gone").max_tokens(200).ignore_eos(true).stop_at(20, &gate);
        let mut stream = conversation.stream(gone).unwrap();
        stream.by_ref().take(pieces).for_each(|piece| drop(piece.unwrap()));
        assert!(gate.wait(PATIENCE));
        drop(stream);
        assert_eq!(session.load().running, 1, "the turn is not over: a lame test");
        gate.open();
        let reply = conversation.generate(ask([" and", " so"][turn - 1])).unwrap();
        assert_eq!(reply.tokens(), expected[turn], "after {pieces} pieces");
    }
    // one that was over before its stream was dropped, and one that its owner forgot
    let mut stream = conversation.stream(ask(" gone")).unwrap();
    stream.by_ref().for_each(|piece| drop(piece.unwrap()));
    drop(stream);
    std::mem::forget(conversation.stream(ask(" gone")).unwrap());
    let mut all = session.conversation();
    for text in ["Ownership is", " and", " so"] {
        all.generate(ask(text)).unwrap();
    }
    let (last, alone) = (conversation.generate(ask(" it")).unwrap(), all.generate(ask(" it")).unwrap());
    assert_eq!(last.tokens(), alone.tokens());
    drop((conversation, all));
    assert_eq!(session.load().kv_blocks_used, 0);
}

#[cfg(feature = "async")]
#[test]
fn neither_cancelling_nor_polling_a_turn_waits_for_the_session() {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    let session = builder(&default_model()).open().unwrap();
    let waker = executor::waker();
    let mut context = Context::from_waker(&waker);
    let mut conversation = session.conversation();
    let gate = Gate::default();
    let gone = Request::prompt("Ownership is").max_tokens(200).ignore_eos(true).stop_at(8, &gate);
    let mut stream = conversation.stream(gone).unwrap();
    let _ = futures_core::Stream::poll_next(Pin::new(&mut stream), &mut context);
    assert!(gate.wait(Duration::from_secs(60)));
    let mut end = stream.cancel();
    assert!(Pin::new(&mut end).poll(&mut context).is_pending(), "it is not scrubbed while the step runs");
    gate.open();
    while Pin::new(&mut end).poll(&mut context) == Poll::Pending {
        std::thread::park();
    }
    drop(end);

    let mut stream = conversation.stream(Request::prompt("A slice is").max_tokens(20)).unwrap();
    let mut text = String::new();
    loop {
        match futures_core::Stream::poll_next(Pin::new(&mut stream), &mut context) {
            Poll::Ready(Some(piece)) => text.push_str(piece.unwrap().text()),
            Poll::Ready(None) => break,
            Poll::Pending => std::thread::park(),
        }
    }
    let reply = stream.finish().unwrap(); // it is over: nothing is waited for
    assert_eq!((text.as_str(), reply.usage.cached_tokens), (reply.text(), 0));
}

#[cfg(feature = "async")]
#[test]
fn a_stream_can_be_polled() {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    let session = builder(&default_model()).open().unwrap();
    let request = || Request::prompt("Ownership is").max_tokens(50).stream_buffer(3);
    let whole = session.generate(request()).unwrap();
    let waker = executor::waker();
    let mut context = Context::from_waker(&waker);
    let mut stream = session.stream(request()).unwrap();
    let (mut text, mut waits) = (String::new(), 0);
    loop {
        match futures_core::Stream::poll_next(Pin::new(&mut stream), &mut context) {
            Poll::Ready(Some(piece)) => text.push_str(piece.unwrap().text()),
            Poll::Ready(None) => break,
            Poll::Pending => {
                waits += 1;
                std::thread::park();
            }
        }
    }
    assert_eq!(text, whole.text());
    assert!(waits > 0, "it never had to wait: a lame test");
}
