use std::io::{self, Read};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use age::x25519::Identity;
use serde_json::Value;

use super::*;

pub(super) const CANARY: &str = "ein Kanarienvogel namens \"Zwölf\" 🐤";

/// Keeps what it is given.
#[derive(Clone, Default)]
struct Shelf(Arc<Mutex<Vec<Sealed>>>);

impl Sink for Shelf {
    fn store(&mut self, sealed: Sealed) -> io::Result<()> {
        self.0.lock().unwrap().push(sealed);
        Ok(())
    }
}

/// Does what a closure does.
struct Act<F>(F);

impl<F: FnMut() -> io::Result<()> + Send> Sink for Act<F> {
    fn store(&mut self, _: Sealed) -> io::Result<()> {
        (self.0)()
    }
}

fn recipient(identity: &Identity) -> Recipient {
    Recipient::parse(&identity.to_public().to_string()).unwrap()
}

pub(super) fn sampler(identity: &Identity, sink: impl Sink + 'static) -> DebugSampler {
    let fraction = Fraction::new(0.01).unwrap();
    let recipient = recipient(identity);
    DebugSampler::new(Purpose::FailureAnalysis, fraction, 100, recipient, sink).unwrap().rng(|| 0)
}

/// A permit, after as many requests as it takes.
pub(super) fn permit(sampler: &mut DebugSampler) -> Permit {
    let now = Instant::now();
    (0..200).find_map(|_| sampler.wants(now)).expect("a request of the second window is drawn")
}

pub(super) fn capture<'a>(prompt_ids: &'a [u32], reply_ids: &'a [u32], reply_text: &'a [u8]) -> Capture<'a> {
    Capture {
        request: RequestId { session: 0xfeed, count: 12 },
        at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000),
        model: Some(Alias::new("qwen").unwrap()),
        choice: 1,
        finish_reason: Some(FinishReason::Stop),
        prompt_ids,
        reply_ids,
        reply_text,
    }
}

pub(super) fn decrypt(file: &[u8], identity: &Identity) -> Option<Vec<u8>> {
    let decryptor = age::Decryptor::new(file).unwrap();
    let mut plain = Vec::new();
    decryptor.decrypt(std::iter::once(identity as _)).ok()?.read_to_end(&mut plain).unwrap();
    Some(plain)
}

pub(super) fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn a_capture_decrypts_to_exactly_what_was_captured() {
    let (identity, shelf) = (Identity::generate(), Shelf::default());
    let mut sampler = sampler(&identity, shelf.clone());
    let permit = permit(&mut sampler);
    let told = sampler.capture(permit, &capture(&[0, 7, u32::MAX], &[42], CANARY.as_bytes())).unwrap();
    assert_eq!(told, Captured { captures: 1, failed: 0 });
    assert_eq!(sampler.captured(), told);

    let sealed = shelf.0.lock().unwrap().pop().unwrap();
    assert_eq!(sealed.purpose(), Purpose::FailureAnalysis);
    assert_eq!(sealed.request().to_string(), "000000000000feed-12");
    assert_eq!(sealed.at(), SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000));
    let plain = decrypt(sealed.bytes(), &identity).unwrap();
    assert_eq!(
        serde_json::from_slice::<Value>(&plain).unwrap(),
        serde_json::json!({
            "format": "amnesic.capture.1",
            "request": "000000000000feed-12",
            "at": 1_790_000_000,
            "purpose": "failure_analysis",
            "model": "qwen",
            "choice": 1,
            "finish_reason": "stop",
            "prompt_ids": [0, 7, u32::MAX],
            "reply_ids": [42],
            "reply_text": CANARY,
        })
    );
    assert!(decrypt(sealed.bytes(), &Identity::generate()).is_none(), "another key opens it");
    assert_eq!(sealed.bytes().to_vec(), sealed.into_bytes());
}

#[test]
fn a_reply_that_is_no_text_and_a_request_that_failed_are_told_exactly() {
    let (identity, shelf) = (Identity::generate(), Shelf::default());
    let mut sampler = sampler(&identity, shelf.clone());
    let permit = permit(&mut sampler);
    let failed = Capture { finish_reason: None, model: None, ..capture(&[], &[], &[0xff, b'a', 0]) };
    sampler.capture(permit, &failed).unwrap();
    let plain = decrypt(shelf.0.lock().unwrap()[0].bytes(), &identity).unwrap();
    let told: Value = serde_json::from_slice(&plain).unwrap();
    assert_eq!(told["reply_bytes"], serde_json::json!([255, 97, 0]));
    assert!(told.get("reply_text").is_none());
    assert!(told["finish_reason"].is_null() && told["model"].is_null());
}

#[test]
fn no_sink_sees_plaintext_and_sizes_tell_little() {
    const CHUNK: usize = 64 << 10;
    let (identity, shelf) = (Identity::generate(), Shelf::default());
    let mut sampler = sampler(&identity, shelf.clone());
    let ids = [1_234_567_890, 987_654_321];
    // Contents that end before, at and after the end of a chunk: one byte more each.
    let frame = {
        let permit = permit(&mut sampler);
        sampler.capture(permit, &capture(&ids, &ids, b"")).unwrap();
        let plain = decrypt(shelf.0.lock().unwrap().pop().unwrap().bytes(), &identity).unwrap();
        plain.trim_ascii_end().len()
    };
    for len in [0, 100, CHUNK - frame - 1, CHUNK - frame, CHUNK - frame + 1, 3 * CHUNK - frame] {
        let text: Vec<u8> =
            CANARY.as_bytes().iter().filter(|byte| byte.is_ascii_alphabetic()).copied().collect();
        let text: Vec<u8> = text.iter().cycle().take(len).copied().collect();
        let permit = permit(&mut sampler);
        sampler.capture(permit, &capture(&ids, &ids, &text)).unwrap();
        let sealed = shelf.0.lock().unwrap().pop().unwrap();
        for needle in ["Kanarien", "1234567890", "987654321", "prompt_ids", "amnesic"] {
            assert!(!contains(sealed.bytes(), needle.as_bytes()), "{needle} in {len}");
        }
        assert!(!contains(sealed.bytes(), &ids[0].to_le_bytes()));
        let plain = decrypt(sealed.bytes(), &identity).unwrap();
        assert_eq!(plain.len(), ((len + frame) / CHUNK + 2) * CHUNK);
        assert!(plain[plain.len() - CHUNK..].iter().all(|&byte| byte == b'\n'), "the last chunk is padding");
        let told: Value = serde_json::from_slice(&plain).unwrap();
        assert_eq!(told["reply_text"].as_str().unwrap().as_bytes(), text);
    }
}

#[test]
fn what_is_no_recipient_is_refused_and_not_repeated() {
    let identity = Identity::generate();
    let (public, secret) = (identity.to_public().to_string(), identity.to_string());
    let secret = age::secrecy::ExposeSecret::expose_secret(&secret);
    let typo = format!("{}{}", &public[..20], public[20..].chars().rev().collect::<String>());
    let ssh = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN";
    // The key of zeros, for which every sender's shared secret is zero.
    let weak = "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq5cu47z";
    for text in ["", "age1", "canary", secret, &typo, &public[1..], &format!("{public} "), ssh, weak] {
        let error = Recipient::parse(text).unwrap_err();
        assert!(matches!(error, Error::DebugSampler { field: "recipient", .. }), "{error:?}");
        for told in [error.to_string(), format!("{error:?}")] {
            assert!(text.len() < 5 || !told.contains(text), "{told}");
        }
    }
    assert!(Recipient::parse(&public).is_ok());
}

#[test]
fn captures_per_hour_have_bounds() {
    let identity = Identity::generate();
    let open = |per_hour| {
        let fraction = Fraction::new(0.01).unwrap();
        DebugSampler::new(Purpose::QualityReview, fraction, per_hour, recipient(&identity), Shelf::default())
    };
    for per_hour in [0, DebugSampler::MAX_PER_HOUR + 1, u32::MAX] {
        assert!(matches!(open(per_hour), Err(Error::DebugSampler { field: "per_hour", .. })), "{per_hour}");
    }
    assert_eq!(open(1).unwrap().purpose(), Purpose::QualityReview);
    assert!(open(DebugSampler::MAX_PER_HOUR).is_ok());
}

#[test]
fn a_sink_that_fails_loses_the_capture_only() {
    let mut calls = 0;
    let sink = Act(move || {
        calls += 1;
        if calls == 1 { Err(io::Error::other(CANARY)) } else { Ok(()) }
    });
    let mut sampler = sampler(&Identity::generate(), sink);
    let first = permit(&mut sampler);
    let error = sampler.capture(first, &capture(&[1], &[2], b"three")).unwrap_err();
    assert_eq!(error, CaptureError::Sink(io::ErrorKind::Other));
    assert!(!format!("{error} {error:?}").contains("Kanarien"));
    assert_eq!(sampler.captured(), Captured { captures: 0, failed: 1 });
    let second = permit(&mut sampler);
    let told = sampler.capture(second, &capture(&[1], &[2], b"three")).unwrap();
    assert_eq!(told, Captured { captures: 1, failed: 1 });
}

/// Panics whenever it is touched.
struct Bomb;

impl Sink for Bomb {
    fn store(&mut self, _: Sealed) -> io::Result<()> {
        std::panic::panic_any(Bomb)
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("a sink's or a payload's drop");
    }
}

#[test]
fn a_sink_that_panics_turns_the_sampler_off_and_nothing_else() {
    let mut sampler = sampler(&Identity::generate(), Bomb);
    let first = permit(&mut sampler);
    assert_eq!(sampler.capture(first, &capture(&[1], &[2], b"three")), Err(CaptureError::SinkPanicked));
    assert_eq!(sampler.captured(), Captured { captures: 0, failed: 1 });
    let now = Instant::now();
    assert!((0..1000).all(|_| sampler.wants(now).is_none()), "it is off");
    assert!(format!("{sampler:?}").contains("on: false"));
    drop(sampler);
    drop(self::sampler(&Identity::generate(), Bomb)); // one that has never been called
}

#[test]
fn a_generator_that_panics_means_no_captures() {
    let mut sampler = sampler(&Identity::generate(), Shelf::default()).rng(|| panic!("no numbers"));
    let now = Instant::now();
    assert!((0..1000).all(|_| sampler.wants(now).is_none()));
}

#[test]
fn by_default_draws_are_the_systems() {
    let draws = || {
        let fraction = Fraction::new(0.01).unwrap();
        let recipient = recipient(&Identity::generate());
        let mut sampler =
            DebugSampler::new(Purpose::SecurityIncident, fraction, 3600, recipient, Shelf::default())
                .unwrap();
        let now = Instant::now();
        let drawn: Vec<u32> = (0..2100).filter(|_| sampler.wants(now).is_some()).collect();
        assert_eq!(drawn.len(), 20, "one of each window but the first");
        drawn
    };
    assert_ne!(draws(), draws(), "equal once in 100^20 times");
}

#[test]
fn debug_prints_neither_content_nor_the_recipient() {
    let (identity, shelf) = (Identity::generate(), Shelf::default());
    let mut sampler = sampler(&identity, shelf.clone());
    let permit = permit(&mut sampler);
    let capture = capture(&[1_234_567_890], &[987_654_321], CANARY.as_bytes());
    sampler.capture(permit, &capture).unwrap();
    let sealed = shelf.0.lock().unwrap().pop().unwrap();
    let printed = format!("{sampler:?} {capture:?} {sealed:?} {:?} {:?}", recipient(&identity), Permit(()));
    let key = identity.to_public().to_string();
    for needle in [key.as_str(), "age1", "Kanarien", "1234567890", "987654321"] {
        assert!(!printed.contains(needle), "{needle}: {printed}");
    }
    assert!(printed.contains("FailureAnalysis") && printed.contains("0.01"), "{printed}");
}
