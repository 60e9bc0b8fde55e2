//! Receipts: what was overwritten when a request or a session ended, for people and for audit logs.

use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::memory::ledger::{Account, NotCovered};
use crate::response::RequestId;

/// What was overwritten, what was read back, and what is not covered. Holds no content: numbers, and the names of
/// devices.
///
/// Every [`crate::Reply`] carries one, [`crate::Session::close`] returns one, and [`crate::Builder::on_receipt`] sees those
/// of all requests, also of those that failed or that nobody waited for.
///
/// A request's receipt counts what was overwritten on its account: its own KV blocks, whenever they were let go; and
/// what it shared with others and was overwritten when it ended, so that sums over requests are more than the
/// session's. Blocks that its conversation keeps are overwritten later, and are in the session's receipt. Buffers of
/// text and token ids are overwritten as they are freed and not counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ScrubReceipt {
    /// Of what.
    pub subject: Subject,
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
    /// Its place in a chain, if receipts are chained ([`crate::Builder::chain_receipts`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<Link>,
}

/// What a receipt is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Subject {
    /// A request.
    Request {
        /// Its name in logs.
        id: RequestId,
    },
    /// A session, from its opening to its close.
    Session {
        /// The number that its request ids begin with.
        #[serde(with = "hexadecimal")]
        id: u64,
        /// Requests that ended, in whatever way.
        requests: u64,
    },
}

/// What was overwritten on one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// Ties a receipt to the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Link {
    /// Counts up from 0 within a session.
    pub index: u64,
    /// The hash of the receipt before it.
    pub previous: ReceiptHash,
    /// SHA-256 of this receipt as compact JSON with all of its fields but this one, in the order in which they stand
    /// here: what `serde_json` writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<ReceiptHash>,
}

/// A SHA-256 hash. Written in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ReceiptHash([u8; 32]);

impl ReceiptHash {
    /// What the first receipt of all follows: zeros.
    pub const START: Self = Self([0; 32]);
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
            Subject::Request { .. } => 1,
            Subject::Session { requests, .. } => requests,
        }
    }

    /// Its hash, if it is chained: what [`crate::Builder::chain_receipts`] of the next session takes.
    pub fn hash(&self) -> Option<ReceiptHash> {
        self.link?.hash
    }

    /// What the hash must be.
    fn expected_hash(&self) -> ReceiptHash {
        let mut bare = self.clone();
        bare.link.iter_mut().for_each(|link| link.hash = None);
        let json = serde_json::to_vec(&bare).expect("numbers and names");
        ReceiptHash(Sha256::digest(&json).into())
    }
}

/// Makes links, one after another.
#[derive(Debug)]
pub(crate) struct Chain {
    index: u64,
    previous: ReceiptHash,
}

impl Chain {
    /// Goes on behind a receipt with this hash.
    pub fn after(previous: ReceiptHash) -> Self {
        Self { index: 0, previous }
    }

    /// Ties a receipt to the last one.
    pub fn tie(&mut self, receipt: &mut ScrubReceipt) {
        receipt.link = Some(Link { index: self.index, previous: self.previous, hash: None });
        let hash = receipt.expected_hash();
        receipt.link.iter_mut().for_each(|link| link.hash = Some(hash));
        (self.index, self.previous) = (self.index + 1, hash);
    }
}

/// Where a chain of receipts is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BrokenChain {
    /// A receipt is not what it was when it was made, or has no link.
    #[error("receipt {place} was changed")]
    Changed {
        /// Its place in what was checked, from 0.
        place: usize,
    },
    /// One or more receipts before this one are missing, or were moved.
    #[error("something is missing before receipt {place}")]
    Missing {
        /// Its place in what was checked, from 0.
        place: usize,
    },
}

/// Checks that receipts follow each other without a gap, the first of them behind one with the hash `previous`; returns
/// the hash of the last.
///
/// Shows that none was changed, left out or moved between the first and the last. That none is missing at the end shows
/// only where the last hash is known from elsewhere, and nothing at all is shown where somebody may have written the
/// whole chain anew: so keep some hash where he cannot write.
///
/// # Errors
/// The first place where the chain is broken.
pub fn verify_receipts<'a>(
    previous: ReceiptHash,
    receipts: impl IntoIterator<Item = &'a ScrubReceipt>,
) -> Result<ReceiptHash, BrokenChain> {
    receipts.into_iter().enumerate().try_fold(previous, |previous, (place, receipt)| {
        let link = receipt.link.ok_or(BrokenChain::Changed { place })?;
        let hash = receipt.expected_hash();
        if link.hash != Some(hash) {
            return Err(BrokenChain::Changed { place });
        }
        if link.previous != previous {
            return Err(BrokenChain::Missing { place });
        }
        Ok(hash)
    })
}

/// Milliseconds since 1970; 0 before.
pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl fmt::Display for ScrubReceipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.subject {
            Subject::Request { id } => write!(f, "request {id}")?,
            Subject::Session { requests, .. } => write!(f, "{requests} requests")?,
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

impl fmt::Display for ReceiptHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ReceiptHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no hash, or no request id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {0}")]
pub struct Malformed(&'static str);

impl std::str::FromStr for ReceiptHash {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        const WRONG: Malformed = Malformed("64 hexadecimal digits");
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let mut hash = [0; 32];
        if pairs.len() != hash.len() || !rest.is_empty() {
            return Err(WRONG);
        }
        for (byte, pair) in hash.iter_mut().zip(pairs) {
            let [high, low] = pair.map(|digit| char::from(digit).to_digit(16));
            *byte = (high.ok_or(WRONG)? << 4 | low.ok_or(WRONG)?) as u8;
        }
        Ok(Self(hash))
    }
}

impl std::str::FromStr for RequestId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        const WRONG: Malformed = Malformed("16 hexadecimal digits, a hyphen and a number");
        let (session, count) =
            text.split_once('-').filter(|(session, _)| session.len() == 16).ok_or(WRONG)?;
        let session = u64::from_str_radix(session, 16).map_err(|_| WRONG)?;
        Ok(Self { session, count: count.parse().map_err(|_| WRONG)? })
    }
}

/// Serializes as the text that `Display` writes and `FromStr` reads.
macro_rules! as_text {
    ($name:ty) => {
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

as_text!(ReceiptHash);
as_text!(RequestId);

/// A number of 64 bits as 16 hexadecimal digits: many readers of JSON lose those above 2^53.
mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{number:016x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::ledger::Memory;

    fn receipt(count: u64) -> ScrubReceipt {
        let account = Account { regions: 3, bytes: 4096 + count, samples: 9 };
        ScrubReceipt {
            subject: Subject::Request { id: RequestId { session: u64::MAX - 1, count } },
            began_unix_ms: 1_700_000_000_000,
            scrubbed_unix_ms: 1_700_000_000_123,
            devices: vec![DeviceReceipt::new("host", &account)],
            not_covered: vec![
                NotCovered::NotLocked { memory: Memory::Arena, bytes: 7 },
                NotCovered::HeapTemporaries,
            ],
            captures: 0,
            link: None,
        }
    }

    fn chained(count: u64) -> Vec<ScrubReceipt> {
        let mut chain = Chain::after(ReceiptHash::START);
        let mut receipts: Vec<_> = (0..count).map(receipt).collect();
        receipts.iter_mut().for_each(|receipt| chain.tie(receipt));
        receipts
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
        assert_eq!(ReceiptHash(Sha256::digest(without.as_bytes()).into()), hash);
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
        let changes: [fn(&mut ScrubReceipt); 6] = [
            |receipt| receipt.devices[0].bytes -= 1,
            |receipt| receipt.scrubbed_unix_ms += 1,
            |receipt| receipt.captures = 1,
            |receipt| receipt.not_covered.truncate(1),
            |receipt| receipt.subject = Subject::Request { id: RequestId { session: 1, count: 1 } },
            |receipt| receipt.link = None,
        ];
        for change in changes {
            let mut changed = all.clone();
            change(&mut changed[3]);
            assert_eq!(verify(&changed), Err(BrokenChain::Changed { place: 3 }));
        }
        assert_eq!(
            verify(&all[..4]).unwrap(),
            all[3].hash().unwrap(),
            "only the last hash shows a missing end"
        );
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
}
