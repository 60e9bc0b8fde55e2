//! Signed receipts: no change of a log stays unseen, and a quote binds the key.

use amnesic::privacy::{Nonce, ReceiptHash, ScrubReceipt};
use amnesic::{Error, Request, Session};

use super::{folder, logged};

/// A session's signed receipts, of every kind; and the key.
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

/// A quote over the signing key is in the session's receipt, and its hash in all.
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
