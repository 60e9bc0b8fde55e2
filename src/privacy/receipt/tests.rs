use super::attest::report_data;
use super::chain::Chain;
use super::environment::{FileHash, FileRole};
use super::signature::{PublicKey, SignError, Signer};
use super::text::Hex;
use super::verify::{BrokenChain, Verifier, verify_receipts};
use super::*;
use crate::memory::ledger::Memory;

fn receipt(count: u64) -> ScrubReceipt {
    let account = Account { regions: 3, bytes: 4096 + count, samples: 9 };
    ScrubReceipt {
        version: VERSION,
        subject: Subject::Request { id: RequestId { session: u64::MAX - 1, count } },
        outcome: Some(Outcome::Completed),
        nonce: Some(Nonce::new([count as u8; 32])),
        began_unix_ms: 1_700_000_000_000,
        scrubbed_unix_ms: 1_700_000_000_123,
        devices: vec![DeviceReceipt::new("host", &account)],
        not_covered: vec![
            NotCovered::NotLocked { memory: Memory::Arena, bytes: 7 },
            NotCovered::HeapTemporaries,
        ],
        captures: 0,
        environment: Some(Box::new(Environment::of_process())),
        evidence: None,
        link: None,
        signature: None,
    }
}

fn chained_by(count: u64, signer: Option<&dyn Signer>) -> Vec<ScrubReceipt> {
    let mut chain = Chain::after(ReceiptHash::START);
    let mut receipts: Vec<_> = (0..count).map(receipt).collect();
    receipts.iter_mut().for_each(|receipt| chain.tie(receipt, signer));
    receipts
}

fn chained(count: u64) -> Vec<ScrubReceipt> {
    chained_by(count, None)
}

/// Not a signature that anybody should use.
struct Sum(Vec<u8>);

fn sum(key: &[u8], message: &[u8]) -> Vec<u8> {
    ReceiptHash::of(&[key, message].concat()).as_bytes().to_vec()
}

impl Signer for Sum {
    fn algorithm(&self) -> &str {
        "sum"
    }

    fn public_key(&self) -> &[u8] {
        &self.0
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        match self.0[0] {
            0 => Err(SignError::Unavailable),
            1 => panic!("the signer's own fault"),
            _ => Ok(sum(&self.0, message)),
        }
    }
}

fn key_of(Sum(bytes): &Sum) -> PublicKey {
    let key = bytes.clone();
    PublicKey::new("sum", key.clone(), move |message, value| sum(&key, message) == value)
}

#[test]
fn a_receipt_survives_json_with_its_hash() {
    let receipts = chained(3);
    let json = serde_json::to_string(&receipts).unwrap();
    let read: Vec<ScrubReceipt> = serde_json::from_str(&json).unwrap();
    assert_eq!(read, receipts);
    assert_eq!(verify_receipts(ReceiptHash::START, &read), Ok(receipts[2].hash().unwrap()));
    assert!(json.contains(r#""id":"fffffffffffffffe-2""#), "{json}");
    let plain = serde_json::to_string(&receipt(1)).unwrap();
    assert!(!plain.contains("link"), "{plain}");
}

#[test]
fn the_hash_is_that_of_the_json_without_it() {
    let receipt = &chained(1)[0];
    let json = serde_json::to_string(receipt).unwrap();
    let hash = receipt.hash().unwrap();
    let without = json.replace(&format!(r#","hash":"{hash}""#), "");
    assert!(without.len() < json.len());
    assert_eq!(ReceiptHash::of(without.as_bytes()), hash);
}

#[test]
fn what_is_left_out_moved_or_changed_is_noticed() {
    let all = chained(5);
    let verify = |receipts: &[ScrubReceipt]| verify_receipts(ReceiptHash::START, receipts);
    let last = verify(&all).unwrap();
    assert_eq!(verify_receipts(all[1].hash().unwrap(), &all[2..]), Ok(last), "a part from the middle");
    for gone in 0..4 {
        let mut thinned = all.clone();
        thinned.remove(gone);
        assert_eq!(verify(&thinned), Err(BrokenChain::Missing { place: gone }));
    }
    let mut moved = all.clone();
    moved.swap(1, 2);
    assert_eq!(verify(&moved), Err(BrokenChain::Missing { place: 1 }));
    let changes: [fn(&mut ScrubReceipt); 9] = [
        |receipt| receipt.devices[0].bytes -= 1,
        |receipt| receipt.scrubbed_unix_ms += 1,
        |receipt| receipt.captures = 1,
        |receipt| receipt.not_covered.truncate(1),
        |receipt| receipt.subject = Subject::Request { id: RequestId { session: 1, count: 1 } },
        |receipt| receipt.link = None,
        |receipt| receipt.outcome = Some(Outcome::Refused { error: "busy".into() }),
        |receipt| receipt.nonce = None,
        |receipt| receipt.environment.as_mut().unwrap().quantize = "q4".into(),
    ];
    for change in changes {
        let mut changed = all.clone();
        change(&mut changed[3]);
        assert_eq!(verify(&changed), Err(BrokenChain::Changed { place: 3 }));
    }
    assert_eq!(verify(&all[..4]).unwrap(), all[3].hash().unwrap(), "only the last hash shows a missing end");
}

#[test]
fn texts_that_are_no_hash_or_id_are_refused() {
    for text in ["", "00", &"0".repeat(63), &"g".repeat(64), &"0".repeat(66)] {
        assert!(text.parse::<ReceiptHash>().is_err(), "{text}");
    }
    for text in ["", "0-1", "0000000000000000", "0000000000000000-x", "000000000000000g-1"] {
        assert!(text.parse::<RequestId>().is_err(), "{text}");
    }
    let hash = chained(1)[0].hash().unwrap();
    assert_eq!(hash.to_string().parse(), Ok(hash));
}

/// What the library wrote before there was a version; hashes worked out by another program.
const OLD_LOG: [&str; 2] = [
    r#"{"subject":{"request":{"id":"fffffffffffffffe-1"}},"began_unix_ms":1700000000000,"scrubbed_unix_ms":1700000000123,"devices":[{"device":"host","regions":3,"bytes":4096,"samples":9,"verified_bytes":0,"locked_bytes":0}],"not_covered":[{"what":"not_locked","memory":"arena","bytes":7},{"what":"heap_temporaries"}],"captures":0,"link":{"index":0,"previous":"0000000000000000000000000000000000000000000000000000000000000000","hash":"6bbe6bd17559067408171b86640d8bd04ba9732cf08b217b329db2df06224ef6"}}"#,
    r#"{"subject":{"request":{"id":"fffffffffffffffe-2"}},"began_unix_ms":1700000000000,"scrubbed_unix_ms":1700000000123,"devices":[{"device":"host","regions":3,"bytes":4097,"samples":9,"verified_bytes":0,"locked_bytes":0}],"not_covered":[{"what":"not_locked","memory":"arena","bytes":7},{"what":"heap_temporaries"}],"captures":0,"link":{"index":1,"previous":"6bbe6bd17559067408171b86640d8bd04ba9732cf08b217b329db2df06224ef6","hash":"53d4048d43af382a0e04312a91bc58085b9fe2884948bf52e3f831f3f002c7f1"}}"#,
];

#[test]
fn logs_of_version_1_still_verify() {
    let mut verifier = Verifier::after(ReceiptHash::START);
    for line in OLD_LOG {
        let receipt = verifier.line(line).unwrap();
        assert_eq!((receipt.version, &receipt.outcome), (1, &None));
    }
    let signed = Verifier::after(ReceiptHash::START).trust(key_of(&Sum(vec![9]))).line(OLD_LOG[0]);
    assert_eq!(signed.unwrap_err(), BrokenChain::Unsigned { place: 0 });
    for (from, to) in [
        (r#"{"subject""#, r#"{"version":1,"subject""#),
        (r#"{"subject""#, r#"{"version":2,"subject""#),
        (r#"{"subject""#, r#"{"version":3,"subject""#),
        (r#","link""#, r#","nonce":null,"link""#),
        (r#","link""#, r#","signature":null,"link""#),
        (r#""what":"heap_temporaries""#, r#""what":"heap_temporaries","more":1"#),
        (r#""captures":0"#, r#""captures":0,"captures":0"#),
        (r#""captures":0"#, r#""captures": 0"#),
        (r#""captures":0"#, r#""captures":0,"more":0"#),
        (r#""bytes":7"#, r#""bytes":7,"more":0"#),
        (r#""regions":3"#, r#""regions":3,"more":0"#),
        (r#""index":0"#, r#""index":0,"more":0"#),
        ("fffffffffffffffe-1", "FFFFFFFFFFFFFFFE-1"),
        ("fffffffffffffffe-1", "fffffffffffffffe-01"),
        ("fffffffffffffffe-1", "fffffffffffffffe-+1"),
    ] {
        let changed = OLD_LOG[0].replacen(from, to, 1);
        assert_ne!(changed, OLD_LOG[0], "{from}");
        assert!(Verifier::after(ReceiptHash::START).line(&changed).is_err(), "{to}");
    }
}

#[test]
fn only_trusted_keys_are_taken() {
    let (ours, other) = (Sum(vec![7; 4]), Sum(vec![8; 4]));
    let signed = chained_by(3, Some(&ours));
    let verify = |receipts: &[ScrubReceipt], key: &Sum| {
        let mut verifier = Verifier::after(ReceiptHash::START).trust(key_of(key));
        receipts.iter().try_for_each(|receipt| verifier.receipt(receipt))
    };
    assert_eq!(verify(&signed, &ours), Ok(()));
    assert_eq!(verify(&signed, &other), Err(BrokenChain::UnknownKey { place: 0 }));
    assert_eq!(verify(&chained(2), &ours), Err(BrokenChain::Unsigned { place: 0 }));
    let change = |change: fn(&mut Signature)| {
        let mut changed = signed.clone();
        change(changed[1].signature.as_mut().unwrap());
        verify(&changed, &ours).unwrap_err()
    };
    let wrong = BrokenChain::WrongSignature { place: 1 };
    assert_eq!(change(|signature| signature.value.as_mut().unwrap().0[0] ^= 1), wrong);
    assert_eq!(change(|signature| signature.value = Some(Hex::default())), wrong);
    let changed = BrokenChain::Changed { place: 1 };
    assert_eq!(change(|signature| signature.value = None), changed);
    assert_eq!(change(|signature| signature.algorithm.clear()), changed);
    assert_eq!(change(|signature| signature.public_key = Hex(vec![8; 4])), changed);
    assert_eq!(change(|signature| signature.failed = Some(SignError::Refused)), changed);
    // one who has the chain, and not the key, can write it anew; but not sign it
    let forged = chained_by(3, Some(&other));
    assert_eq!(verify_receipts(ReceiptHash::START, &forged), Ok(forged[2].hash().unwrap()));
    assert!(verify(&forged, &ours).is_err());
}

#[test]
fn a_receipt_says_that_signing_failed() {
    for (key, why) in [(0, SignError::Unavailable), (1, SignError::Panicked)] {
        let signer = Sum(vec![key; 4]);
        let receipts = chained_by(2, Some(&signer));
        let signature = receipts[1].signature.as_ref().unwrap();
        assert_eq!((signature.failed, &signature.value), (Some(why), &None));
        assert!(verify_receipts(ReceiptHash::START, &receipts).is_ok());
        let trusting = Verifier::after(ReceiptHash::START).trust(key_of(&signer)).receipt(&receipts[0]);
        assert_eq!(trusting, Err(BrokenChain::Unsigned { place: 0 }));
        let mut hushed = receipts;
        hushed[1].signature.as_mut().unwrap().failed = None;
        let noticed = verify_receipts(ReceiptHash::START, &hushed);
        assert_eq!(noticed, Err(BrokenChain::Changed { place: 1 }));
    }
}

#[test]
fn the_list_of_files_is_that_of_sha256sum() {
    let file = |name: &str, role, text: &[u8]| FileHash {
        name: name.into(),
        role,
        bytes: text.len() as u64,
        sha256: ReceiptHash::of(text),
    };
    let files = vec![
        file("a.json", FileRole::Configuration, b"a"),
        file("model-1.safetensors", FileRole::Weights, b"one"),
        file("model-2.safetensors", FileRole::Weights, b"two"),
    ];
    let evidence = Evidence { files, quote: None };
    // printf one > model-1.safetensors; printf two > model-2.safetensors; sha256sum model-*.safetensors | sha256sum
    let expected = "eaae57e68cbc49c7897d0501adf335898774c4cb9527232154852dbb243c899c";
    assert_eq!(evidence.digest(FileRole::Weights).unwrap().to_string(), expected);
    assert_eq!(evidence.digest(FileRole::Tokenizer), None);
}

#[test]
fn a_quote_is_over_algorithm_key_and_nonce() {
    let (signer, nonce) = (Sum(vec![7; 4]), Nonce::new([1; 32]));
    let expected = ReceiptHash::of(&[b"amnesic signing key 2\nsum\n".as_slice(), &[7; 4], &[1; 32]].concat());
    assert_eq!(report_data(&signer, Some(nonce)), *expected.as_bytes());
    assert_ne!(report_data(&signer, None), report_data(&signer, Some(nonce)));
    assert_ne!(report_data(&Sum(vec![8; 4]), None), report_data(&signer, None));
}
