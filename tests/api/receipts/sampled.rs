//! Receipts of sessions that capture requests for people to look at.

use std::io::Read;
use std::sync::{Arc, Mutex};

use amnesic::privacy::debug_sampler::{Sealed, Sink};
use amnesic::privacy::{ReceiptHash, Subject};
use amnesic::{Request, Session};

use super::{folder, logged};

/// Keeps what it is given.
struct Kept(Arc<Mutex<Vec<Sealed>>>);

impl Sink for Kept {
    fn store(&mut self, sealed: Sealed) -> std::io::Result<()> {
        self.0.lock().unwrap().push(sealed);
        Ok(())
    }
}

fn opened(sealed: &Sealed, identity: &age::x25519::Identity) -> String {
    let mut plain = String::new();
    let opened = age::Decryptor::new(sealed.bytes()).unwrap();
    let mut reader = opened.decrypt(std::iter::once(identity as &dyn age::Identity)).unwrap();
    reader.read_to_string(&mut plain).unwrap();
    plain
}
#[test]
fn captures_are_few_announced_counted_and_for_one_key_only() {
    use amnesic::privacy::Event;
    use amnesic::privacy::debug_sampler::{DebugSampler, Fraction, Purpose, Recipient};

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
#[test]
fn captures_are_few_among_conversations_and_hold_no_turn_but_one() {
    use amnesic::privacy::debug_sampler::{DebugSampler, Fraction, Purpose, Recipient};

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
