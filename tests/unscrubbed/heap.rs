//! A program without the scrubbing allocator: sessions do not open unless it says that it does without.

use amnesic::privacy::NotCovered;
use amnesic::{Error, ErrorKind, Request, Session};

#[test]
fn a_session_does_not_open_and_the_error_says_which_line_to_add() {
    assert!(!amnesic::alloc::is_installed());
    for opened in [
        Session::open(crate::common::default_model()),
        Session::builder(crate::common::default_model()).open(),
        // before anything else is looked at: no file is read for a session that cannot be
        Session::open("no such folder"),
        // texts to be embedded are content, too
        Session::open(crate::common::fixture("encoders").join("bert")),
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
    let session = Session::builder(crate::common::default_model()).accept_unscrubbed_heap().open().unwrap();
    let reply = session.generate(Request::prompt("A slice is").max_tokens(2)).unwrap();
    assert!(reply.receipt.not_covered.contains(&NotCovered::HeapTemporaries));
    assert!(session.close().unwrap().not_covered.contains(&NotCovered::HeapTemporaries));
}

/// Where the `tokenizers` crate has to encode, every receipt names the component for which it does.
#[test]
fn a_tokenizer_that_is_left_to_its_crate_is_on_every_receipt() {
    let folder = tempfile::tempdir().unwrap();
    crate::common::Recipe::small(704).write(folder.path(), Some("byte_level"));
    let file = folder.path().join("tokenizer.json");
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let gaps = |folder: &std::path::Path| {
        let session = Session::builder(folder).accept_unscrubbed_heap().open().unwrap();
        let reply = session.generate(Request::prompt("A slice is").max_tokens(2)).unwrap();
        [reply.receipt.not_covered, session.close().unwrap().not_covered]
    };
    let is_named = |gap: &NotCovered| matches!(gap, NotCovered::TokenizerTemporaries { .. });
    assert!(!gaps(folder.path()).iter().flatten().any(is_named));

    tokenizer["normalizer"] =
        serde_json::json!({"type": "Replace", "pattern": {"Regex": "x(?=y)"}, "content": "z"});
    std::fs::write(&file, tokenizer.to_string()).unwrap();
    let component = String::from("Replace with a pattern that looks around, or has other extensions");
    let expected = NotCovered::TokenizerTemporaries { component };
    assert!(gaps(folder.path()).iter().all(|gaps| gaps.contains(&expected)), "{:?}", gaps(folder.path()));
    assert!(
        expected
            .to_string()
            .ends_with("which does Replace with a pattern that looks around, or has other extensions")
    );
}
