//! Receipts: every reply has one, none is missing from the chain, and they say what was overwritten.

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use amnesic::privacy::{NotCovered, ReceiptHash, ScrubReceipt, Subject, verify_receipts};
use amnesic::{Builder, CancelToken, Error, PoisonReason, Request, Session};
use common::Recipe;

amnesic::install_scrubbing_allocator!();

const VOCAB: usize = 704;

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = Recipe::small(VOCAB);
    recipe.config["tie_word_embeddings"] = false.into();
    recipe.write(folder.path(), Some("byte_level"));
    folder
}

type Log = Arc<Mutex<Vec<ScrubReceipt>>>;

/// A session whose receipts are chained behind `previous`, and the log that they are written to.
fn logged(builder: Builder, previous: ReceiptHash) -> (Session, Log) {
    let log = Log::default();
    let to = log.clone();
    let builder =
        builder.chain_receipts(previous).on_receipt(move |receipt| to.lock().unwrap().push(receipt.clone()));
    (builder.open().unwrap(), log)
}

#[test]
fn a_receipt_counts_what_its_request_left() {
    let folder = folder();
    let session = Session::builder(folder.path()).threads(2).kv_tokens(1024).step_tokens(128).open().unwrap();
    let block_bytes = session.memory().kv_bytes / (1024 / 64);
    let short = session.generate(Request::tokens([5; 20]).max_tokens(4)).unwrap();
    let long = session.generate(Request::tokens([5; 148]).max_tokens(4)).unwrap();
    let device =
        |receipt: &ScrubReceipt| receipt.devices.iter().find(|device| device.device != "host").unwrap().bytes;
    // two more blocks of the cache, and more rows of activations
    assert!(
        device(&long.receipt) > device(&short.receipt) + 2 * block_bytes,
        "{} {}",
        long.receipt,
        short.receipt
    );
    for reply in [&short, &long] {
        let receipt = &reply.receipt;
        assert!(matches!(receipt.subject, Subject::Request { id } if id == reply.request_id));
        assert!(
            receipt.began_unix_ms > 1_600_000_000_000 && receipt.scrubbed_unix_ms >= receipt.began_unix_ms
        );
        assert!(receipt.devices.iter().any(|device| device.device == "host" && device.bytes > 0));
        assert!(receipt.regions() > 5 && receipt.samples() >= receipt.regions(), "{receipt}");
        assert_eq!((receipt.captures, receipt.link), (0, None));
        assert!(!receipt.not_covered.contains(&NotCovered::HeapTemporaries), "the allocator is installed");
        assert!(reply.timing.scrub > Duration::ZERO);
    }
    let whole = session.close().unwrap();
    assert!(whole.bytes() > short.receipt.bytes() + long.receipt.bytes(), "{whole}");
    assert_eq!(whole.requests(), 2);
}

#[test]
fn choices_and_those_that_gave_way_pay_for_all_their_blocks() {
    let folder = folder();
    let session = Session::builder(folder.path())
        .threads(2)
        .context_length(256)
        .kv_tokens(320)
        .max_sequences(4)
        .step_tokens(64)
        .open()
        .unwrap();
    let block_bytes = session.memory().kv_bytes / 5;
    let requests = (0..6).map(|i| Request::tokens(vec![i + 1; 60]).max_tokens(60));
    let replies = session.generate_batch(requests).unwrap();
    let (load, device) = (session.load(), |receipt: &ScrubReceipt| receipt.devices[1].bytes);
    assert!(load.preemptions > 0, "nobody gave way: {load:?}");
    let least = replies.iter().map(|reply| device(&reply.receipt)).min().unwrap();
    let sum: u64 = replies.iter().map(|reply| device(&reply.receipt)).sum();
    assert!(least >= 2 * block_bytes);
    // each has two blocks in the end; those that gave way had some more before
    assert!(sum >= (6 * 2 + load.preemptions) * block_bytes, "{sum} bytes, blocks of {block_bytes}");
    let three = session.generate(Request::tokens([1; 60]).max_tokens(60).temperature(1.0).n(3)).unwrap();
    assert!(device(&three.receipt) >= 6 * block_bytes, "{}", three.receipt);
}

#[test]
fn every_request_is_in_the_chain_however_it_ended() {
    let folder = folder();
    let open = || Session::builder(folder.path()).threads(2).max_requests(3);
    let (session, log) = logged(open(), ReceiptHash::START);
    let mut replies = vec![session.generate(Request::prompt("one").max_tokens(3)).unwrap()];
    replies.extend(
        session.generate_batch(["two", "three"].map(|text| Request::prompt(text).max_tokens(3))).unwrap(),
    );
    let stream = session.stream(Request::prompt("four").max_tokens(3)).unwrap();
    replies.push(stream.finish().unwrap());
    drop(session.stream(Request::prompt("five").max_tokens(400)).unwrap());
    let token = CancelToken::new();
    token.cancel();
    replies.push(session.generate(Request::prompt("six").max_tokens(400).cancel_token(&token)).unwrap());
    replies.push(session.generate(Request::prompt("seven").max_tokens(400).timeout(Duration::ZERO)).unwrap());
    session.generate(Request::prompt("eight").logit_bias(VOCAB as u32, 1.0)).unwrap_err();
    let refused = ["nine", "ten"].map(|text| Request::prompt(text).stop_token(1));
    session.generate_batch(refused.into_iter().chain([Request::tokens([VOCAB as u32])])).unwrap_err();
    let mut conversation = session.conversation();
    replies.push(conversation.generate(Request::prompt("twelve").max_tokens(2)).unwrap());
    drop(conversation);
    let last = session.close().unwrap();

    let receipts = log.lock().unwrap().clone();
    assert_eq!(receipts.last(), Some(&last), "the session's own is the last");
    assert_eq!((receipts.len(), last.requests()), (13, 12));
    let head = verify_receipts(ReceiptHash::START, &receipts).unwrap();
    assert_eq!(Some(head), last.hash());
    for reply in &replies {
        assert_eq!(receipts.iter().filter(|receipt| **receipt == reply.receipt).count(), 1);
    }
    let mut ids: Vec<String> =
        receipts[..12].iter().map(|receipt| format!("{:?}", receipt.subject)).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 12, "each request has one");
    assert!(receipts.iter().all(|receipt| receipt.bytes() > 0 && receipt.samples() > 0));
    for gone in 0..receipts.len() - 1 {
        let thinned: Vec<_> =
            receipts.iter().enumerate().filter(|(at, _)| *at != gone).map(|(_, one)| one).collect();
        assert!(verify_receipts(ReceiptHash::START, thinned).is_err(), "receipt {gone} is missing unseen");
    }

    // the next session goes on where this one ended
    let (session, next) = logged(open(), head);
    session.generate(Request::prompt("thirteen").max_tokens(1)).unwrap();
    session.close().unwrap();
    let all = [receipts, next.lock().unwrap().clone()].concat();
    assert!(verify_receipts(ReceiptHash::START, &all).is_ok());
    let json: Vec<String> = all.iter().map(|receipt| serde_json::to_string(receipt).unwrap()).collect();
    let read: Vec<ScrubReceipt> = json.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(verify_receipts(ReceiptHash::START, &read).is_ok());
}

#[test]
fn a_callback_that_panics_harms_nobody() {
    let folder = folder();
    let session =
        Session::builder(folder.path()).on_receipt(|_| panic!("the application's own fault")).open().unwrap();
    for _ in 0..2 {
        session.generate(Request::prompt("one").max_tokens(3)).unwrap();
    }
    assert_eq!(session.close().unwrap().requests(), 2);
}

#[test]
fn a_panic_in_a_step_leaves_a_receipt_too() {
    let folder = folder();
    let (session, log) = logged(Session::builder(folder.path()).panic_in_step(2), ReceiptHash::START);
    let error = session.generate(Request::prompt("one").max_tokens(9)).unwrap_err();
    assert!(matches!(error, Error::Poisoned(PoisonReason::Panic)), "{error}");
    let whole = session.memory().kv_bytes;
    let last = session.close().unwrap();
    let receipts = log.lock().unwrap().clone();
    assert_eq!(receipts.len(), 2);
    assert!(receipts[0].bytes() > whole, "all of the arena was overwritten: {}", receipts[0]);
    assert_eq!(verify_receipts(ReceiptHash::START, &receipts).ok(), last.hash());
}

/// Wherever a device fails, the session says that something was left there: to whoever waits, in its receipts, and at its
/// close.
#[test]
fn receipts_say_when_a_device_failed() {
    use amnesic::Device;
    use amnesic::privacy::NotCovered;

    let folder = folder();
    let open = |calls| {
        Session::builder(folder.path()).device(Device::CudaEmulated).kv_tokens(256).device_fails_in(calls)
    };
    let mut served = 0;
    for (calls, requests) in [(1500, 60), (1900, 60), (1 << 40, 3)] {
        let Ok(session) = open(calls).open() else { panic!("weights take fewer than {calls} calls") };
        drop(session);
        let (session, log) = logged(open(calls), ReceiptHash::START);
        let error = (0..requests).find_map(|_| session.generate(Request::prompt("one").max_tokens(8)).err());
        let Some(error) = error else {
            session.close().unwrap();
            served += 1;
            continue;
        };
        assert!(matches!(error, Error::Poisoned(PoisonReason::DeviceFailed)), "{error}");
        let later = session.generate(Request::prompt("one").max_tokens(1)).unwrap_err();
        assert!(matches!(later, Error::Poisoned(PoisonReason::DeviceFailed)), "{later}");
        let at_close = session.close().unwrap_err();
        assert!(matches!(at_close, Error::Poisoned(PoisonReason::DeviceFailed)), "{at_close}");
        let receipts = log.lock().unwrap().clone();
        let told = |receipt: &ScrubReceipt| {
            receipt
                .not_covered
                .iter()
                .any(|gap| matches!(gap, NotCovered::DeviceFailed { bytes } if *bytes > 0))
        };
        assert!(told(receipts.last().unwrap()), "{}", receipts.last().unwrap());
        assert_eq!(receipts.last().unwrap().devices[1].verified_bytes, 0);
        assert!(receipts.iter().filter(|receipt| told(receipt)).count() >= 2, "the request's, too");
    }
    assert_eq!(served, 1);
}

#[cfg(feature = "debug-sampler")]
#[test]
fn captures_are_few_announced_counted_and_for_one_key_only() {
    use std::io::Read;

    use amnesic::privacy::Event;
    use amnesic::privacy::debug_sampler::{DebugSampler, Fraction, Purpose, Recipient, Sealed, Sink};

    struct Kept(Arc<Mutex<Vec<Sealed>>>);
    impl Sink for Kept {
        fn store(&mut self, sealed: Sealed) -> std::io::Result<()> {
            self.0.lock().unwrap().push(sealed);
            Ok(())
        }
    }

    let (identity, kept) = (age::x25519::Identity::generate(), Arc::new(Mutex::new(Vec::new())));
    let recipient = Recipient::parse(&identity.to_public().to_string()).unwrap();
    let fraction = Fraction::new(0.01).unwrap();
    let sampler =
        DebugSampler::new(Purpose::QualityReview, fraction, 2, recipient, Kept(kept.clone())).unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = told.clone();
    let folder = folder();
    let builder = Session::builder(folder.path()).threads(1).debug_sampler(sampler).on_event(move |event| {
        if let Event::Captured(captured) = event {
            tell.lock().unwrap().push((captured.request, captured.purpose));
        }
    });
    let (session, log) = logged(builder, ReceiptHash::START);
    for _ in 0..500 {
        session.generate(Request::prompt("kanarienvogel").max_tokens(2)).unwrap();
    }
    let last = session.close().unwrap();
    let (kept, told, log) = (kept.lock().unwrap(), told.lock().unwrap(), log.lock().unwrap());
    assert_eq!(kept.len(), 2, "one in a hundred of 500, but two in an hour");
    let named: Vec<_> = kept.iter().map(|sealed| (sealed.request(), Purpose::QualityReview)).collect();
    assert_eq!(*told, named);
    let counted = log.iter().filter(|receipt| matches!(receipt.subject, Subject::Request { .. }));
    assert_eq!((counted.map(|receipt| receipt.captures).sum::<u64>(), last.captures), (2, 2));
    for sealed in kept.iter() {
        assert!(!sealed.bytes().windows(13).any(|window| window == b"kanarienvogel"));
        let mut plain = String::new();
        let opened = age::Decryptor::new(sealed.bytes()).unwrap();
        opened
            .decrypt(std::iter::once(&identity as &dyn age::Identity))
            .unwrap()
            .read_to_string(&mut plain)
            .unwrap();
        assert!(plain.contains("prompt_ids") && plain.contains("reply_ids"), "{} bytes", plain.len());
    }
}
