//! A capture, written as JSON straight into age's encryption.
//!
//! **What is copied in plain on the way**, from age 0.12's source: its `StreamWriter` collects a chunk of 64 KiB in a
//! `Vec` that it frees without overwriting. So every file is padded: after the content come newlines to the end of its
//! last chunk, and then a whole chunk of them, which the same `Vec` holds when it is freed. The AEAD copies each chunk
//! once more and encrypts that copy in place. Keys are zeroized by age, and the cipher's state by `chacha20poly1305`.
//! Nothing else holds content on the heap: the writer of JSON has no buffer. What is left on the stack of the calling
//! thread (digits of ids, blocks of the key stream) is overwritten with it, at the request's end. After a panic inside
//! age, its chunk is freed as it was: [`crate::alloc::Scrubbing`] covers that.
//!
//! The padding also rounds what a file's size tells about its content to 64 KiB.

use std::fmt;
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use age::Encryptor;
use age::stream::StreamWriter;
use serde::{Serialize, Serializer};

use super::{Capture, CaptureError, Purpose, contained};
use crate::error::{Error, Result};
use crate::outcome::RequestId;

/// Bytes of a chunk of age's STREAM (<https://c2sp.org/age>).
const CHUNK_BYTES: usize = 64 << 10;

/// Most bytes of a capture before it is padded and sealed.
const MAX_BYTES: usize = 64 << 20;

/// Who can read captures: the public half of an age X25519 key. `Debug` does not print it.
pub struct Recipient(age::x25519::Recipient);

impl Recipient {
    /// Reads what `age-keygen` prints as the public key: `age1` and 58 more characters.
    ///
    /// # Errors
    /// [`Error::DebugSampler`] with the field `recipient`, without the text: it is no such key, or one under which
    /// anybody could read.
    pub fn parse(text: &str) -> Result<Self> {
        let expected = "the public half of an age X25519 key: `age1` and 58 more characters";
        let refused = Error::DebugSampler { field: "recipient", expected };
        let Ok(key) = text.parse() else { return Err(refused) };
        let recipient = Self(key);
        // age panics where the shared secret is zero, as it is for points of low order.
        match contained(|| recipient.encryptor()) {
            Some(Ok(_)) => Ok(recipient),
            _ => Err(refused),
        }
    }

    fn encryptor(&self) -> std::result::Result<Encryptor, CaptureError> {
        Encryptor::with_recipients(std::iter::once(&self.0 as _)).map_err(|_| CaptureError::Seal)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recipient([REDACTED])")
    }
}

/// An age file with one capture in it; only the sampler makes one. What it holds beside the ciphertext is metadata.
pub struct Sealed {
    request: RequestId,
    purpose: Purpose,
    at: SystemTime,
    bytes: Vec<u8>,
}

impl Sealed {
    /// The request that was captured.
    pub fn request(&self) -> RequestId {
        self.request
    }

    /// What for.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// When the request ended.
    pub fn at(&self) -> SystemTime {
        self.at
    }

    /// The age file (binary, version 1, one X25519 recipient).
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The age file, to keep.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed")
            .field("request", &self.request)
            .field("purpose", &self.purpose)
            .field("at", &self.at)
            .field("bytes", &self.bytes.len())
            .finish()
    }
}

/// Encrypts `capture` to `recipient`. A panic inside age ends here.
pub(super) fn seal(
    capture: &Capture<'_>,
    purpose: Purpose,
    recipient: &Recipient,
) -> std::result::Result<Sealed, CaptureError> {
    let record = Record::new(capture, purpose);
    let bytes = contained(|| encrypt(&record, recipient, MAX_BYTES)).ok_or(CaptureError::Seal)??;
    Ok(Sealed { request: capture.request, purpose, at: capture.at, bytes })
}

/// The age file of `record`, if that is `limit` bytes at most.
fn encrypt(
    record: &Record<'_>,
    recipient: &Recipient,
    limit: usize,
) -> std::result::Result<Vec<u8>, CaptureError> {
    let lost = |_| CaptureError::Seal;
    let age = recipient.encryptor()?.wrap_output(Vec::new()).map_err(lost)?;
    let mut plain = Plain { age, written: 0, limit, refused: false };
    let outcome = serde_json::to_writer(&mut plain, record);
    plain.pad().map_err(lost)?; // also where it failed: the buffer is freed all the same
    match outcome {
        Ok(()) => plain.age.finish().map_err(lost),
        Err(_) if plain.refused => Err(CaptureError::TooLarge),
        Err(_) => Err(CaptureError::Seal),
    }
}

/// Content on its way into the encryption, up to a limit.
struct Plain {
    age: StreamWriter<Vec<u8>>,
    written: usize,
    limit: usize,
    /// Whether something did not fit.
    refused: bool,
}

impl Plain {
    /// Ends the content's last chunk, and lets a whole one of newlines take its place in age's buffer.
    fn pad(&mut self) -> io::Result<()> {
        const NEWLINES: [u8; 4 << 10] = [b'\n'; 4 << 10];
        let mut left = CHUNK_BYTES - self.written % CHUNK_BYTES + CHUNK_BYTES;
        while left > 0 {
            let count = left.min(NEWLINES.len());
            self.age.write_all(&NEWLINES[..count])?;
            left -= count;
        }
        Ok(())
    }
}

impl Write for Plain {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit - self.written {
            self.refused = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.age.write_all(bytes)?;
        self.written += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is written: borrowed from the request, and seen by the encryption only. See the documentation of
/// [`super`] for the fields.
#[derive(Serialize)]
struct Record<'a> {
    format: &'static str,
    request: Shown<RequestId>,
    at: u64,
    purpose: Purpose,
    model: Option<&'a str>,
    choice: usize,
    finish_reason: Option<Shown<crate::FinishReason>>,
    prompt_ids: &'a [u32],
    reply_ids: &'a [u32],
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_bytes: Option<&'a [u8]>,
}

impl<'a> Record<'a> {
    fn new(capture: &'a Capture<'a>, purpose: Purpose) -> Self {
        let text = std::str::from_utf8(capture.reply_text).ok();
        Self {
            format: "amnesic.capture.1",
            request: Shown(capture.request),
            at: capture.at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            purpose,
            model: capture.model.as_ref().map(crate::privacy::Alias::as_str),
            choice: capture.choice,
            finish_reason: capture.finish_reason.map(Shown),
            prompt_ids: capture.prompt_ids,
            reply_ids: capture.reply_ids,
            reply_text: text,
            reply_bytes: text.is_none().then_some(capture.reply_text),
        }
    }
}

/// A value as it prints.
struct Shown<T>(T);

impl<T: fmt::Display> Serialize for Shown<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_beyond_the_limit_is_lost() {
        let identity = age::x25519::Identity::generate();
        let recipient = Recipient::parse(&identity.to_public().to_string()).unwrap();
        let capture = Capture {
            request: RequestId { session: 1, count: 2 },
            at: UNIX_EPOCH,
            model: None,
            choice: 0,
            finish_reason: None,
            prompt_ids: &[7; 100],
            reply_ids: &[],
            reply_text: &[b'a'; 1000],
        };
        let record = Record::new(&capture, Purpose::QualityReview);
        let bytes = serde_json::to_vec(&record).unwrap().len();
        assert!(encrypt(&record, &recipient, bytes).is_ok());
        for limit in [0, bytes - 1] {
            assert_eq!(encrypt(&record, &recipient, limit), Err(CaptureError::TooLarge), "{limit}");
        }
    }
}
