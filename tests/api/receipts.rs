//! Receipts: every reply has one, none is missing from the chain, and they say what was overwritten.

#[cfg(feature = "debug-sampler")]
mod sampled;
#[cfg(feature = "signed-receipts")]
mod signed;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use amnesic::privacy::{Nonce, NotCovered, Outcome, ReceiptHash, ScrubReceipt, Subject, verify_receipts};
use amnesic::{
    Builder, CancelToken, EmbedRequest, Error, PoisonReason, Request, RerankRequest, ResponseFormat, Session,
};

use crate::common::Recipe;

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
    session.stream(Request::prompt("five").max_tokens(400)).unwrap().discard();
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
    assert_eq!((receipts.len(), last.requests()), (14, 12), "and the conversation's");
    let head = verify_receipts(ReceiptHash::START, &receipts).unwrap();
    assert_eq!(Some(head), last.hash());
    for reply in &replies {
        assert_eq!(receipts.iter().filter(|receipt| **receipt == reply.receipt).count(), 1);
    }
    let mut ids: Vec<String> =
        receipts[..13].iter().map(|receipt| format!("{:?}", receipt.subject)).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 13, "each request has one");
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

/// Gives each request a nonce of its own, and remembers how it is to end.
#[derive(Default)]
struct Expected {
    outcomes: Vec<Outcome>,
}

impl Expected {
    fn next(&mut self, outcome: Outcome) -> Nonce {
        self.outcomes.push(outcome);
        let mut bytes = [0xa5; 32];
        bytes[..8].copy_from_slice(&(self.outcomes.len() as u64).to_be_bytes());
        Nonce::new(bytes)
    }

    fn completes(&mut self, request: Request) -> Request {
        request.nonce(self.next(Outcome::Completed))
    }

    fn is_refused(&mut self, error: &str, request: Request) -> Request {
        request.nonce(self.refusal(error))
    }

    fn refusal(&mut self, error: &str) -> Nonce {
        self.next(Outcome::Refused { error: error.into() })
    }

    fn fails(&mut self, error: &str, request: Request) -> Request {
        request.nonce(self.next(Outcome::Failed { error: error.into() }))
    }

    /// Each nonce is in one receipt, with its outcome, and no receipt of a request is left.
    fn hold(&self, receipts: &[ScrubReceipt]) {
        let of_requests: Vec<_> = receipts
            .iter()
            .filter(|receipt| matches!(receipt.subject, Subject::Request { .. } | Subject::Publish { .. }))
            .collect();
        assert_eq!(of_requests.len(), self.outcomes.len());
        for (index, outcome) in self.outcomes.iter().enumerate() {
            let count = ((index + 1) as u64).to_be_bytes();
            let mine = of_requests.iter().filter(|receipt| receipt.nonce.unwrap().as_bytes()[..8] == count);
            let found: Vec<_> = mine.map(|receipt| receipt.outcome.clone().unwrap()).collect();
            assert_eq!(found, std::slice::from_ref(outcome), "request {index}");
        }
        let mut ids: Vec<_> = of_requests.iter().map(|receipt| format!("{:?}", receipt.subject)).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), self.outcomes.len(), "each has an id of its own");
        let Subject::Session { requests, .. } = receipts.last().unwrap().subject else { panic!("no end") };
        assert_eq!(requests as usize, self.outcomes.len());
        assert!(verify_receipts(ReceiptHash::START, receipts).is_ok());
    }
}

#[test]
fn whatever_is_refused_has_a_receipt() {
    let (folder, mut expected) = (folder(), Expected::default());
    let (session, log) =
        logged(Session::builder(folder.path()).threads(1).max_requests(3), ReceiptHash::START);
    let one = || Request::prompt("one").max_tokens(2);
    session.generate(expected.completes(one())).unwrap();
    session
        .stream(expected.fails("closed", Request::prompt("one").max_tokens(400).ignore_eos(true)))
        .unwrap()
        .discard();

    // fields, which are checked on the caller's thread
    session.generate(expected.is_refused("request", one().max_tokens(0))).unwrap_err();
    session.stream(expected.is_refused("request", one().stop(""))).unwrap_err();
    let batch = vec![
        expected.is_refused("in_batch", one()),
        expected.is_refused("request", one().top_p(7.0)),
        expected.is_refused("in_batch", one()),
    ];
    session.generate_batch(batch).unwrap_err();
    // what takes checkpoint and session to tell
    session.generate(expected.is_refused("request", one().adapter("nobody"))).unwrap_err();
    session.generate(expected.is_refused("context_length", one().max_tokens(1 << 20))).unwrap_err();
    session
        .generate(expected.is_refused("no_chat_template", Request::chat([amnesic::user("one")])))
        .unwrap_err();
    let pattern = ResponseFormat::regex("(");
    session.generate(expected.is_refused("request", one().response_format(pattern))).unwrap_err();
    let batch = vec![
        expected.is_refused("in_batch", one()),
        expected.is_refused("request", Request::tokens([VOCAB as u32])),
    ];
    session.generate_batch(batch).unwrap_err();
    let full = (0..4).map(|_| expected.is_refused("busy", one())).collect::<Vec<_>>();
    assert!(matches!(session.generate_batch(full), Err(Error::Busy { .. })));
    // another task
    let texts = EmbedRequest::new(["one"]).nonce(expected.refusal("wrong_task"));
    session.embed_with(texts).unwrap_err();
    let scores = RerankRequest::new("one", ["two"]).nonce(expected.refusal("wrong_task"));
    session.rerank_with(scores).unwrap_err();

    // public prompts
    let public = session.publish(expected.completes(one())).unwrap();
    session.generate(expected.completes(one().shares(&public))).unwrap();
    session.publish(expected.is_refused("request", one().max_tokens(0))).unwrap_err();
    session.publish(expected.is_refused("request", Request::tokens([VOCAB as u32]))).unwrap_err();

    // conversations
    let mut conversation = session.conversation();
    conversation.generate(expected.completes(one())).unwrap();
    conversation.stream(expected.is_refused("request", one().max_tokens(0))).unwrap_err();
    conversation.generate(expected.is_refused("request", one().shares(&public))).unwrap_err();
    conversation.generate(expected.is_refused("context_length", one().max_tokens(1 << 20))).unwrap_err();
    drop(
        conversation
            .stream(expected.fails("closed", Request::prompt("one").max_tokens(400).ignore_eos(true)))
            .unwrap(),
    );
    // what is kept of it at its drop is this turn's: one that was cancelled may have taken what there was along
    conversation.generate(expected.completes(one())).unwrap();
    drop(conversation);
    drop(public);
    let mut outlives = session.conversation();
    let last = session.close().unwrap();
    assert!(matches!(outlives.generate(one()), Err(Error::Closed)));
    drop(outlives);

    let receipts = log.lock().unwrap().clone();
    expected.hold(&receipts);
    assert_eq!(receipts.last(), Some(&last), "nothing comes behind the session's own");
    let kept = |public: bool| {
        let all = receipts.iter().filter(|receipt| match receipt.subject {
            Subject::Conversation { .. } => !public,
            Subject::Public { .. } => public,
            _ => false,
        });
        all.map(ScrubReceipt::bytes).collect::<Vec<_>>()
    };
    assert!(matches!(kept(false)[..], [bytes] if bytes > 0), "{:?}", kept(false));
    assert_eq!(kept(true).len(), 1);
    // told of by nobody else: what is refused held nothing on a device that computes
    let refused = receipts.iter().filter(|receipt| matches!(receipt.outcome, Some(Outcome::Refused { .. })));
    assert!(refused.flat_map(|receipt| &receipt.devices).all(|device| device.device == "host"));
}

#[test]
fn whatever_a_session_of_texts_refuses_has_a_receipt() {
    let (folder, mut expected) = (crate::common::fixture("encoders/bert"), Expected::default());
    let (session, log) = logged(Session::builder(folder).threads(1).max_requests(1), ReceiptHash::START);
    let texts = |nonce| EmbedRequest::new(["one"]).nonce(nonce);
    session.embed_with(texts(expected.next(Outcome::Completed))).unwrap();
    session.embed_with(texts(expected.refusal("request")).dimensions(1 << 20)).unwrap_err();
    session.embed_with(texts(expected.refusal("request")).prompt_name("none such")).unwrap_err();
    session
        .rerank_with(RerankRequest::new("one", ["two"]).nonce(expected.refusal("wrong_task")))
        .unwrap_err();
    let late = texts(expected.refusal("interrupted")).timeout(Duration::ZERO);
    session.embed_with(late).unwrap_err();
    session.generate(expected.is_refused("wrong_task", Request::prompt("one"))).unwrap_err();
    session.generate(expected.is_refused("request", Request::prompt("one").max_tokens(0))).unwrap_err();
    let batch = vec![
        expected.is_refused("wrong_task", Request::prompt("one")),
        expected.is_refused("in_batch", Request::prompt("two")),
    ];
    session.generate_batch(batch).unwrap_err();
    session.publish(expected.is_refused("wrong_task", Request::prompt("one"))).unwrap_err();
    drop(session.conversation());
    session.close().unwrap();
    let receipts = log.lock().unwrap().clone();
    expected.hold(&receipts);
    assert_eq!(receipts.iter().filter(|receipt| receipt.requests() == 0).count(), 1, "the conversation's");
}

/// What receipts say of the files that were read is what `sha256sum` says of them.
#[test]
fn receipts_bind_the_files_and_the_settings() {
    use amnesic::privacy::{Allocator, Environment, FileRole, LockdownState};
    use sha2::{Digest, Sha256};

    let folder = folder();
    let open = || Session::builder(folder.path()).threads(1);
    let environment = |session: &Session| -> Environment {
        let reply = session.generate(Request::prompt("one").max_tokens(1)).unwrap();
        assert!(reply.receipt.evidence.is_none(), "the whole list is in the session's receipt");
        *reply.receipt.environment.unwrap()
    };
    let session = open().receipt_nonce(Nonce::new([5; 32])).open().unwrap();
    let found = environment(&session);
    let evidence = session.evidence().clone();
    let mut expected: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| {
            let file = entry.unwrap();
            let bytes = std::fs::read(file.path()).unwrap();
            let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            (file.file_name().into_string().unwrap(), bytes.len() as u64, hash)
        })
        .collect();
    expected.sort();
    let told: Vec<_> =
        evidence.files.iter().map(|file| (file.name.clone(), file.bytes, file.sha256.to_string())).collect();
    assert_eq!(told, expected);
    assert_eq!(found.weights_sha256, evidence.digest(FileRole::Weights));
    assert_eq!(found.configuration_sha256, evidence.digest(FileRole::Configuration));
    assert_eq!(found.tokenizer_sha256, evidence.digest(FileRole::Tokenizer));
    assert!(
        found.weights_sha256.is_some()
            && found.configuration_sha256.is_some()
            && found.tokenizer_sha256.is_some()
    );
    assert_eq!(found.library, env!("CARGO_PKG_VERSION"));
    let has = |feature: &str| found.features.iter().any(|found| found == feature);
    assert!(has("testing") && has("forensics") && found.build.starts_with(&found.library));
    assert_eq!(has("faults"), cfg!(amnesic_faults), "switches in scrubs are told");
    assert_eq!((found.allocator, found.lockdown), (Allocator::Scrubbing, LockdownState::None));
    assert_eq!(
        (found.quantize.as_str(), found.kv_cache.as_str(), found.backend.as_str()),
        ("none", "bf16", session.device())
    );
    assert_eq!(found.nonce, Some(Nonce::new([5; 32])));
    let last = session.close().unwrap();
    assert_eq!(last.evidence.as_deref(), Some(&evidence));

    // another model, other settings
    let weights = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1; // of a bf16 or f32: a little more or less
    std::fs::write(&weights, bytes).unwrap();
    let session = open().quantize(amnesic::Quantize::Q8).kv_cache(amnesic::KvCache::Int8).open().unwrap();
    let other = environment(&session);
    assert_ne!(other.weights_sha256, found.weights_sha256);
    assert_eq!(other.configuration_sha256, found.configuration_sha256);
    assert_eq!((other.quantize.as_str(), other.kv_cache.as_str(), other.nonce), ("q8", "int8", None));

    let session = open().without_file_hashes().open().unwrap();
    let none = environment(&session);
    assert_eq!((none.weights_sha256, none.configuration_sha256, none.tokenizer_sha256), (None, None, None));
    assert!(session.close().unwrap().evidence.unwrap().files.is_empty());
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
