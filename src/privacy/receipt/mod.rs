//! Receipts: what was overwritten when a request or a session ended, for people and for audit logs.
//!
//! The format is described field by field in `docs/receipts.md`: [`chain`] ties receipts together, [`environment`] says
//! under what they were made, [`signature`] who vouches for them, [`verify`] checks all of it.
//!
//! **Invariant:** a receipt holds metadata only. No field could hold content, or a hash of content.

#[cfg(doctest)]
#[doc = include_str!("../../../docs/receipts.md")]
struct Page;

pub mod attest;
pub mod chain;
#[cfg(feature = "signed-receipts")]
pub mod ed25519;
pub mod environment;
pub mod signature;
#[cfg(test)]
mod tests;
pub mod text;
pub mod verify;

use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Deserializer, Serialize};

pub use chain::{Link, ReceiptHash};
pub use environment::{Environment, Evidence, Nonce};
pub use signature::Signature;

use crate::memory::ledger::{Account, NotCovered};
use crate::outcome::RequestId;

/// What was overwritten, what was read back, and what is not covered. Holds no content: numbers, hashes of the
/// checkpoint's files, and the names of settings and devices.
///
/// Every request has one, however it ended: every [`crate::Reply`] carries its own, [`crate::Session::close`] returns the
/// session's, and [`crate::Builder::on_receipt`] sees all of them: also those of requests that failed, that were refused
/// before anything was computed, or that nobody waited for; of public prompts; and of conversations that were dropped.
///
/// A request's receipt counts what was overwritten on its account: its own KV blocks, whenever they were let go; and
/// what it shared with others and was overwritten when it ended, so that sums over requests are more than the
/// session's. Blocks that its conversation keeps are overwritten later, and are in the receipt of the conversation, or of
/// the session if other requests needed them before. Buffers of text and token ids are overwritten as they are freed and
/// not counted.
///
/// Reading one refuses fields that its version does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ScrubReceipt {
    /// The version of the format: 2. Receipts without this field are of version 1, which had neither an outcome, nor an
    /// environment, nor a signature.
    #[serde(default = "version_one", skip_serializing_if = "is_one", deserialize_with = "later_version")]
    pub version: u32,
    /// What it is about.
    pub subject: Subject,
    /// How that ended.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub outcome: Option<Outcome>,
    /// The caller's own: [`crate::Request::nonce`].
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub nonce: Option<Nonce>,
    /// When the request was accepted, or the session opened: milliseconds since 1970 in UTC.
    pub began_unix_ms: u64,
    /// When all of it was overwritten.
    pub scrubbed_unix_ms: u64,
    /// On each device that held something.
    pub devices: Vec<DeviceReceipt>,
    /// What the guarantee does not cover here, and why.
    pub not_covered: Vec<NotCovered>,
    /// Copies that the debug sampler sealed: of this request, or of all requests of the session.
    pub captures: u64,
    /// Which library, model and settings it was made under.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub environment: Option<Box<Environment>>,
    /// What the hashes in `environment` are of: in a session's receipt only.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub evidence: Option<Box<Evidence>>,
    /// Its place in a chain, if receipts are chained ([`crate::Builder::chain_receipts`]) or signed.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub link: Option<Link>,
    /// Who vouches for it, if receipts are signed ([`crate::Builder::sign_receipts`]).
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub signature: Option<Box<Signature>>,
}

/// What a receipt is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Subject {
    /// A request.
    Request {
        /// Its name in logs.
        id: RequestId,
    },
    /// A request to read a public prompt ([`crate::Session::publish`]).
    Publish {
        /// Its name in logs.
        id: RequestId,
    },
    /// What a conversation kept in the cache between its turns, overwritten when it was dropped.
    Conversation {
        /// The number that the session's request ids begin with.
        #[serde(with = "text::hexadecimal")]
        session: u64,
        /// The conversation's number in the session: `gen_ai.conversation.id` in telemetry.
        number: u64,
    },
    /// What a public prompt kept in the cache, overwritten when nobody named it any more.
    Public {
        /// The number that the session's request ids begin with.
        #[serde(with = "text::hexadecimal")]
        session: u64,
        /// Its number in the session.
        number: u64,
    },
    /// A session, from its opening to its close.
    Session {
        /// The number that its request ids begin with.
        #[serde(with = "text::hexadecimal")]
        id: u64,
        /// Requests that ended, in whatever way: those for which there is a receipt.
        requests: u64,
    },
}

/// How what a receipt is of ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Outcome {
    /// With what was asked for, or as much of it as there was when its deadline passed or its caller ended it.
    Completed,
    /// It was refused before anything was computed for it.
    Refused {
        /// The [`crate::ErrorKind`] that its caller got.
        error: String,
    },
    /// It was accepted, and ended with an error.
    Failed {
        /// The [`crate::ErrorKind`] that its caller got.
        error: String,
    },
}

/// What was overwritten on one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct DeviceReceipt {
    /// `host`: stacks of the session's threads, buffers of steps, the sampler. Else where a model computes.
    pub device: String,
    /// Regions overwritten: KV blocks, buffers, stacks, and at the close the arena itself.
    pub regions: u64,
    /// Bytes overwritten, each time counted.
    pub bytes: u64,
    /// Places of 64 bytes that were read back right after they were overwritten, and were zero: the first, the last and
    /// one that nobody can foresee of each region. Had one not been zero, the request would have failed and the session
    /// be poisoned.
    pub samples: u64,
    /// Bytes read back at the close and found zero: the whole arena. 0 in a request's receipt.
    pub verified_bytes: u64,
    /// Bytes of the arena that are locked in memory.
    pub locked_bytes: u64,
}

impl DeviceReceipt {
    pub(crate) fn new(device: &str, account: &Account) -> Self {
        let Account { regions, bytes, samples } = *account;
        Self { device: device.to_owned(), regions, bytes, samples, verified_bytes: 0, locked_bytes: 0 }
    }
}

impl ScrubReceipt {
    /// Regions overwritten, on all devices.
    pub fn regions(&self) -> u64 {
        self.devices.iter().map(|device| device.regions).sum()
    }

    /// Bytes overwritten, on all devices.
    pub fn bytes(&self) -> u64 {
        self.devices.iter().map(|device| device.bytes).sum()
    }

    /// Places read back, on all devices.
    pub fn samples(&self) -> u64 {
        self.devices.iter().map(|device| device.samples).sum()
    }

    /// Bytes read back at the close, on all devices.
    pub fn verified_bytes(&self) -> u64 {
        self.devices.iter().map(|device| device.verified_bytes).sum()
    }

    /// Bytes of arenas that are locked, on all devices.
    pub fn locked_bytes(&self) -> u64 {
        self.devices.iter().map(|device| device.locked_bytes).sum()
    }

    /// Requests that it is about.
    pub fn requests(&self) -> u64 {
        match self.subject {
            Subject::Request { .. } | Subject::Publish { .. } => 1,
            Subject::Conversation { .. } | Subject::Public { .. } => 0,
            Subject::Session { requests, .. } => requests,
        }
    }
}

/// The version that is written.
pub(crate) const VERSION: u32 = 2;

fn version_one() -> u32 {
    1
}

fn is_one(version: &u32) -> bool {
    *version == 1
}

/// Version 1 had no such field, and those to come may mean anything.
fn later_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let version = u32::deserialize(deserializer)?;
    let unknown =
        || serde::de::Error::custom("`version` is not 2: the receipt is of a later version, or was changed");
    (version == VERSION).then_some(version).ok_or_else(unknown)
}

/// A field that is there has a value: `null` would be one that no hash sees.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Milliseconds since 1970; 0 before.
pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl fmt::Display for ScrubReceipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.subject {
            Subject::Request { id } => write!(f, "request {id}")?,
            Subject::Publish { id } => write!(f, "request {id} (a public prompt)")?,
            Subject::Conversation { number, .. } => write!(f, "conversation {number}")?,
            Subject::Public { number, .. } => write!(f, "public prompt {number}")?,
            Subject::Session { requests, .. } => write!(f, "{requests} requests")?,
        }
        match &self.outcome {
            None | Some(Outcome::Completed) => {}
            Some(Outcome::Refused { error }) => write!(f, ", refused ({error})")?,
            Some(Outcome::Failed { error }) => write!(f, ", failed ({error})")?,
        }
        write!(
            f,
            "; scrubbed {} regions, {} bytes; {} samples",
            self.regions(),
            self.bytes(),
            self.samples()
        )?;
        if self.verified_bytes() > 0 {
            write!(f, " and {} whole bytes", self.verified_bytes())?;
        }
        write!(f, " read back as zero; {} bytes locked in memory", self.locked_bytes())?;
        for gap in &self.not_covered {
            write!(f, "\nnot covered: {gap}")?;
        }
        Ok(())
    }
}
