//! A program without the scrubbing allocator: sessions do not open unless it says that it does without.

mod common;

use amnesic::privacy::NotCovered;
use amnesic::{Error, ErrorKind, Request, Session};

#[test]
fn a_session_does_not_open_and_the_error_says_which_line_to_add() {
    assert!(!amnesic::alloc::is_installed());
    for opened in [
        Session::open(common::default_model()),
        Session::builder(common::default_model()).open(),
        // before anything else is looked at: no file is read for a session that cannot be
        Session::open("no such folder"),
        // texts to be embedded are content, too
        Session::open(common::fixture("encoders").join("bert")),
    ] {
        let error = opened.unwrap_err();
        assert!(matches!(error, Error::UnscrubbedHeap) && error.kind() == ErrorKind::UnscrubbedHeap);
        let message = error.to_string();
        for line in ["`amnesic::install_scrubbing_allocator!();`", "`Builder::accept_unscrubbed_heap()`"] {
            assert!(message.contains(line), "{message}");
        }
    }
}

#[test]
fn one_that_is_accepted_so_says_it_on_every_receipt() {
    let session = Session::builder(common::default_model()).accept_unscrubbed_heap().open().unwrap();
    let reply = session.generate(Request::prompt("A slice is").max_tokens(2)).unwrap();
    assert!(reply.receipt.not_covered.contains(&NotCovered::HeapTemporaries));
    assert!(session.close().unwrap().not_covered.contains(&NotCovered::HeapTemporaries));
}
