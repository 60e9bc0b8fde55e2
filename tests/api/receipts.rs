//! Receipts: every reply has one, none is missing from the chain, and they say what was overwritten.

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

/// A session's signed receipts, of every kind; and the key.
#[cfg(feature = "signed-receipts")]
fn signed_log() -> (Vec<String>, String) {
    use amnesic::privacy::Ed25519Signer;

    let (folder, signer) = (folder(), Ed25519Signer::from_seed(&mut [7; 32]));
    let key = signer.public_key_text();
    let builder =
        Session::builder(folder.path()).threads(1).receipt_nonce(Nonce::new([3; 32])).sign_receipts(signer);
    let (session, log) = logged(builder, ReceiptHash::START);
    let one = || Request::prompt("one").max_tokens(2).nonce(Nonce::new([4; 32]));
    let public = session.publish(one()).unwrap();
    session.generate(one().shares(&public)).unwrap();
    session.generate(one().max_tokens(0)).unwrap_err();
    session.stream(Request::prompt("one").max_tokens(400).ignore_eos(true)).unwrap().discard();
    let mut conversation = session.conversation();
    conversation.generate(one()).unwrap();
    drop((conversation, public));
    session.close().unwrap();
    let log = log.lock().unwrap();
    (log.iter().map(|receipt| serde_json::to_string(receipt).unwrap()).collect(), key)
}

/// Every way to change one place of a value: its parts, and itself.
#[cfg(feature = "signed-receipts")]
fn changes(value: &serde_json::Value) -> Vec<serde_json::Value> {
    use serde_json::{Value, json};
    let mut all = match value {
        Value::Null => vec![],
        Value::Bool(flag) => vec![json!(!flag)],
        Value::Number(number) => {
            vec![json!(number.as_u64().unwrap() + 1), json!(number.as_u64().unwrap() as f64)]
        }
        Value::String(text) => {
            let first = text.chars().next();
            let other = first.map_or('x', |first| if first == '1' { '2' } else { '1' });
            let rest = text.get(1..).unwrap_or_default();
            vec![
                json!(format!("{other}{rest}")),
                json!(format!("{text}0")),
                json!(text.to_uppercase()),
                json!(rest),
            ]
        }
        Value::Array(values) => {
            let mut all = Vec::new();
            for (index, each) in values.iter().enumerate() {
                let with = |new: &[Value]| {
                    let mut values = values.clone();
                    values.splice(index..=index, new.iter().cloned());
                    Value::Array(values)
                };
                all.extend(changes(each).iter().map(|changed| with(std::slice::from_ref(changed))));
                all.extend([with(&[]), with(&[each.clone(), each.clone()])]);
            }
            all.push(Value::Array([values.clone(), vec![json!({})]].concat()));
            all
        }
        Value::Object(fields) => {
            let mut all = Vec::new();
            for (name, each) in fields {
                for changed in changes(each) {
                    let mut fields = fields.clone();
                    fields[name] = changed;
                    all.push(Value::Object(fields));
                }
                let mut without = fields.clone();
                without.shift_remove(name);
                all.push(Value::Object(without));
            }
            for name in ["more", "nonce", "evidence", "signature", "failed", "quote", "version", "hash"] {
                for value in [json!(null), json!(1), json!("x"), json!({})] {
                    if !fields.contains_key(name) {
                        let mut fields = fields.clone();
                        fields.insert(name.to_owned(), value);
                        all.push(Value::Object(fields));
                    }
                }
            }
            all
        }
    };
    all.push(Value::Null);
    all.retain(|changed| changed != value);
    all
}

/// Whatever is changed in a log, added to it or taken away is noticed: with the key, and without it too.
#[cfg(feature = "signed-receipts")]
#[test]
fn no_field_of_a_receipt_can_be_changed_added_or_removed_unseen() {
    use amnesic::privacy::{PublicKey, Verifier};

    let (log, key) = signed_log();
    let key = PublicKey::ed25519(&key).unwrap();
    let kinds = ["publish", "request", "conversation", "public", "session"];
    assert!(
        kinds.iter().all(|kind| log.iter().any(|line| line.contains(&format!("\"subject\":{{\"{kind}\""))))
    );
    let verifiers =
        [Verifier::after(ReceiptHash::START), Verifier::after(ReceiptHash::START).trust(key.clone())];
    let mut tried = 0;
    for mut verifier in verifiers {
        for line in &log {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(&value.to_string(), line, "the walk goes over what is written");
            let mut texts: Vec<String> = changes(&value).iter().map(|changed| changed.to_string()).collect();
            // what no value can say: other spaces, a name twice, another order
            texts.push(line.replacen(':', ": ", 1));
            texts.push(line.replacen("{\"version\":2,", "{\"version\":2,\"version\":2,", 1));
            texts.push(line.replacen("\"captures\":0,", "\"captures\":0,\"captures\":0,", 1));
            texts.push(line.replacen("{\"version\":2,", "{", 1).replacen(
                "\"captures\":0,",
                "\"captures\":0,\"version\":2,",
                1,
            ));
            texts.push(format!("{line}x"));
            texts.push(line[..line.len() - 1].to_owned());
            for text in texts {
                assert_ne!(&text, line);
                assert!(verifier.line(&text).is_err(), "unseen: {text}\nof {line}");
                tried += 1;
            }
            verifier.line(line).unwrap();
        }
    }
    assert!(tried > 5000, "{tried}");
    let other =
        PublicKey::ed25519(&amnesic::privacy::Ed25519Signer::from_seed(&mut [8; 32]).public_key_text())
            .unwrap();
    let refused = Verifier::after(ReceiptHash::START).trust(other).line(&log[0]).unwrap_err();
    assert_eq!(refused, amnesic::privacy::BrokenChain::UnknownKey { place: 0 });
}

/// The program in docs/receipts.md, which shares nothing with the library, finds the same.
#[cfg(feature = "signed-receipts")]
#[test]
fn a_log_can_be_verified_in_another_language() {
    use std::process::Command;

    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/receipts.md")).unwrap();
    let program = page.split_once("```python\n").unwrap().1.split_once("```").unwrap().0;
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("skipped: there is no python3");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("receipts.jsonl");
    let verify = |lines: &[String]| {
        std::fs::write(&file, lines.join("\n") + "\n").unwrap();
        let output = Command::new("python3").args(["-c", program]).arg(&file).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    };
    let (log, _) = signed_log();
    let last: ScrubReceipt = serde_json::from_str(log.last().unwrap()).unwrap();
    assert_eq!(verify(&log), (true, format!("{}\n", last.hash().unwrap())));
    let change = |index: usize, from: &str, to: &str| {
        let mut log = log.clone();
        assert!(log[index].contains(from), "{from}");
        log[index] = log[index].replacen(from, to, 1);
        verify(&log)
    };
    for (index, from, to, expected) in [
        (1, "\"completed\"", "\"refused\"", "line 2 was changed"),
        (1, "{\"version\":2,", "{\"version\":2,\"more\":0,", "line 2 was changed"),
        (1, "{\"version\":2,", "{\"version\":2,\"version\":2,", "a field twice"),
        (0, ":", ": ", "line 1 was written anew"),
    ] {
        let (fine, said) = change(index, from, to);
        assert!(!fine && said.contains(expected), "{said}");
    }
    let (fine, said) = verify(&[&log[..1], &log[2..]].concat());
    assert!(!fine && said.contains("something is missing before line 2"), "{said}");
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

/// A quote over the signing key is in the session's receipt, and its hash in all.
#[cfg(feature = "signed-receipts")]
#[test]
fn a_quote_binds_the_signing_key() {
    use amnesic::privacy::{AttestError, Attester, Ed25519Signer, Quote, report_data};

    struct Parrot(bool);
    impl Attester for Parrot {
        fn attest(&self, report_data: &[u8; 32]) -> Result<Quote, AttestError> {
            match self.0 {
                true => Ok(Quote::new("parrot", *report_data)),
                false => Err(AttestError::NotAvailable("a parrot")),
            }
        }
    }
    let (folder, nonce) = (folder(), Nonce::new([6; 32]));
    let signer = || Ed25519Signer::from_seed(&mut [9; 32]);
    let open = || Session::builder(folder.path()).threads(1).receipt_nonce(nonce);
    let session = open().sign_receipts(signer()).attest(Parrot(true)).open().unwrap();
    let reply = session.generate(Request::prompt("one").max_tokens(1)).unwrap();
    let last = session.close().unwrap();
    let quote = last.evidence.unwrap().quote.unwrap();
    assert_eq!(quote.document.0, report_data(&signer(), Some(nonce)));
    let hash: String = {
        use sha2::{Digest, Sha256};
        Sha256::digest(&quote.document.0).iter().map(|byte| format!("{byte:02x}")).collect()
    };
    assert_eq!(reply.receipt.environment.unwrap().quote_sha256.unwrap().to_string(), hash);
    let error = open().sign_receipts(signer()).attest(Parrot(false)).open().unwrap_err();
    assert!(matches!(error, Error::Attestation(AttestError::NotAvailable(_))), "{error}");
    let error = open().attest(Parrot(true)).open().unwrap_err();
    assert!(matches!(error, Error::Request { field: "attest", .. }), "{error}");
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
mod sampled {
    use std::io::Read;
    use std::sync::{Arc, Mutex};

    use amnesic::privacy::debug_sampler::{Sealed, Sink};

    /// Keeps what it is given.
    pub struct Kept(pub Arc<Mutex<Vec<Sealed>>>);

    impl Sink for Kept {
        fn store(&mut self, sealed: Sealed) -> std::io::Result<()> {
            self.0.lock().unwrap().push(sealed);
            Ok(())
        }
    }

    pub fn opened(sealed: &Sealed, identity: &age::x25519::Identity) -> String {
        let mut plain = String::new();
        let opened = age::Decryptor::new(sealed.bytes()).unwrap();
        let mut reader = opened.decrypt(std::iter::once(identity as &dyn age::Identity)).unwrap();
        reader.read_to_string(&mut plain).unwrap();
        plain
    }
}

#[cfg(feature = "debug-sampler")]
#[test]
fn captures_are_few_announced_counted_and_for_one_key_only() {
    use amnesic::privacy::Event;
    use amnesic::privacy::debug_sampler::{DebugSampler, Fraction, Purpose, Recipient};
    use sampled::{Kept, opened};

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
        let plain = opened(sealed, &identity);
        assert!(plain.contains("prompt_ids") && plain.contains("reply_ids"), "{} bytes", plain.len());
    }
}

/// A later turn holds all that were before it. So if each turn were drawn by itself, long conversations would be captured
/// far more often than the published fraction says.
#[cfg(feature = "debug-sampler")]
#[test]
fn captures_are_few_among_conversations_and_hold_no_turn_but_one() {
    use amnesic::privacy::debug_sampler::{DebugSampler, Fraction, Purpose, Recipient};
    use sampled::{Kept, opened};

    const CONVERSATIONS: usize = 250;
    const TURNS: u32 = 4;
    let (identity, kept) = (age::x25519::Identity::generate(), Arc::new(Mutex::new(Vec::new())));
    let recipient = Recipient::parse(&identity.to_public().to_string()).unwrap();
    let fraction = Fraction::new(0.01).unwrap();
    let sampler =
        DebugSampler::new(Purpose::QualityReview, fraction, 3600, recipient, Kept(kept.clone())).unwrap();
    let folder = folder();
    let session = Session::builder(folder.path()).threads(1).debug_sampler(sampler).open().unwrap();
    for _ in 0..CONVERSATIONS {
        let mut conversation = session.conversation();
        for turn in 0..TURNS {
            conversation.generate(Request::tokens([600 + turn, 7]).max_tokens(1)).unwrap();
        }
    }
    drop(session);
    let kept = kept.lock().unwrap();
    // no capture among the first hundred, one among the next, and perhaps one among the fifty behind them
    let captured = kept.len();
    assert!(
        (1..=CONVERSATIONS / 100).contains(&captured),
        "{captured}: one in a hundred conversations, not turns"
    );
    for sealed in kept.iter() {
        let plain: serde_json::Value = serde_json::from_str(opened(sealed, &identity).trim_end()).unwrap();
        assert_eq!(plain["prompt_ids"], serde_json::json!([600, 7]), "a capture of several turns");
    }
}
