//! Checking receipts: one by one, or a log's lines.

use super::chain::ReceiptHash;
use super::signature::{PublicKey, Signature};
use super::text::Hex;
use super::{ScrubReceipt, VERSION};

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
    /// A line of a log is no receipt of a version that this library knows, or was written anew: it has fields that its
    /// version does not have, lacks some, has one twice, or has them in another order.
    #[error("line {place} is not what the library wrote")]
    Unreadable {
        /// Its place in what was checked, from 0.
        place: usize,
    },
    /// A receipt has no signature, and only signed ones are accepted.
    #[error("receipt {place} is not signed")]
    Unsigned {
        /// Its place in what was checked, from 0.
        place: usize,
    },
    /// A receipt is signed by a key that is not among those that are trusted.
    #[error("receipt {place} is signed by a key that is not trusted")]
    UnknownKey {
        /// Its place in what was checked, from 0.
        place: usize,
    },
    /// A receipt's signature is not that of the key which it names.
    #[error("the signature of receipt {place} is wrong")]
    WrongSignature {
        /// Its place in what was checked, from 0.
        place: usize,
    },
}

/// Checks receipts one after another: that each is as it was made, that none is missing between two, and that those whose
/// keys are trusted signed them.
///
/// Shows that none was changed, left out or moved between the first and the last. That none is missing at the end shows
/// only where the last hash is known from elsewhere. Without a trusted key nothing at all is shown where somebody may have
/// written the whole chain anew: so keep some hash where he cannot write, or have receipts signed.
///
/// ```
/// use amnesic::privacy::{ReceiptHash, Verifier};
///
/// let mut verifier = Verifier::after(ReceiptHash::START);
/// for line in std::fs::read_to_string("receipts.jsonl").unwrap_or_default().lines() {
///     println!("{}", verifier.line(line)?);
/// }
/// println!("the last hash is {}", verifier.head());
/// # Ok::<(), amnesic::privacy::BrokenChain>(())
/// ```
#[derive(Debug)]
pub struct Verifier {
    previous: ReceiptHash,
    place: usize,
    keys: Vec<PublicKey>,
}

impl Verifier {
    /// For receipts of which the first follows one with this hash.
    pub fn after(previous: ReceiptHash) -> Self {
        Self { previous, place: 0, keys: Vec::new() }
    }

    /// Takes only receipts that this key signed, or another that was named so. Those of version 1 are not signed.
    pub fn trust(mut self, key: PublicKey) -> Self {
        self.keys.push(key);
        self
    }

    /// The hash of the last receipt that was taken.
    pub fn head(&self) -> ReceiptHash {
        self.previous
    }

    /// Checks the next line of a log, which must be byte for byte what `serde_json` writes of a receipt, but for white
    /// space around it.
    ///
    /// # Errors
    /// It is something else, or as [`Verifier::receipt`].
    pub fn line(&mut self, line: &str) -> Result<ScrubReceipt, BrokenChain> {
        let unreadable = BrokenChain::Unreadable { place: self.place };
        let receipt: ScrubReceipt = serde_json::from_str(line).map_err(|_| unreadable)?;
        let written = serde_json::to_string(&receipt).map_err(|_| unreadable)?;
        if written != line.trim() {
            return Err(unreadable);
        }
        self.receipt(&receipt).map(|()| receipt)
    }

    /// Checks the next receipt.
    ///
    /// # Errors
    /// It was changed, does not follow the last one, or is not signed as it must be. Then the verifier stays where it was.
    pub fn receipt(&mut self, receipt: &ScrubReceipt) -> Result<(), BrokenChain> {
        let place = self.place;
        let changed = BrokenChain::Changed { place };
        let link = receipt.link.ok_or(changed)?;
        let hash = receipt.expected_hash();
        if link.hash != Some(hash) || !receipt.is_of_its_version() {
            return Err(changed);
        }
        if link.previous != self.previous {
            return Err(BrokenChain::Missing { place });
        }
        match &receipt.signature {
            Some(signature) => self.signature(signature, &hash)?,
            None if self.keys.is_empty() => {}
            None => return Err(BrokenChain::Unsigned { place }),
        }
        (self.previous, self.place) = (hash, place + 1);
        Ok(())
    }

    fn signature(&self, signature: &Signature, hash: &ReceiptHash) -> Result<(), BrokenChain> {
        let place = self.place;
        let value = match (&signature.value, signature.failed) {
            (Some(value), None) => value,
            (None, Some(_)) if self.keys.is_empty() => return Ok(()),
            (None, Some(_)) => return Err(BrokenChain::Unsigned { place }),
            _ => return Err(BrokenChain::Changed { place }),
        };
        let right = match self.keys.iter().find(|key| key.is_of(signature)) {
            Some(key) => key.accepts(hash, value),
            None if !self.keys.is_empty() => return Err(BrokenChain::UnknownKey { place }),
            None => is_right_by_itself(signature, hash, value),
        };
        if right { Ok(()) } else { Err(BrokenChain::WrongSignature { place }) }
    }
}

/// Whether a signature is that of the key which it names, where this build can tell; whose key that is, is not asked.
fn is_right_by_itself(signature: &Signature, hash: &ReceiptHash, value: &Hex) -> bool {
    #[cfg(feature = "signed-receipts")]
    if signature.algorithm == super::ed25519::NAME {
        let key = PublicKey::ed25519_of(&signature.public_key.0);
        return key.is_some_and(|key| key.accepts(hash, value));
    }
    let _ = (signature, hash, value);
    true
}

impl ScrubReceipt {
    /// Whether it has what its version has, and nothing else.
    fn is_of_its_version(&self) -> bool {
        let Self { version, outcome, nonce, environment, evidence, signature, .. } = self;
        match *version {
            1 => {
                outcome.is_none()
                    && nonce.is_none()
                    && environment.is_none()
                    && evidence.is_none()
                    && signature.is_none()
            }
            VERSION => outcome.is_some() && environment.is_some(),
            _ => false,
        }
    }
}

/// Checks that receipts follow each other without a gap, the first of them behind one with the hash `previous`; returns
/// the hash of the last. For logs, and for signatures of certain keys: [`Verifier`].
///
/// # Errors
/// The first place where the chain is broken.
pub fn verify_receipts<'a>(
    previous: ReceiptHash,
    receipts: impl IntoIterator<Item = &'a ScrubReceipt>,
) -> Result<ReceiptHash, BrokenChain> {
    let mut verifier = Verifier::after(previous);
    receipts.into_iter().try_for_each(|receipt| verifier.receipt(receipt))?;
    Ok(verifier.head())
}
