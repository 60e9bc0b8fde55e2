//! The chain: each receipt holds the hash of the one before it.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ScrubReceipt;
use super::signature::{self, Signature, Signer};

/// Ties a receipt to the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Link {
    /// Counts up from 0 within a session.
    pub index: u64,
    /// The hash of the receipt before it.
    pub previous: ReceiptHash,
    /// SHA-256 of this receipt as compact JSON with all of its fields but this one and the signature's `value`, in the order
    /// in which they stand here: what `serde_json` writes.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "super::present")]
    pub hash: Option<ReceiptHash>,
}

/// A SHA-256 hash. Written in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ReceiptHash(pub(super) [u8; 32]);

impl ReceiptHash {
    /// What the first receipt of all follows: zeros.
    pub const START: Self = Self([0; 32]);

    /// The hash of these bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The hash of what was hashed so far.
    pub(crate) fn finish(hash: Sha256) -> Self {
        Self(hash.finalize().into())
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl ScrubReceipt {
    /// Its hash, if it is chained: what [`crate::Builder::chain_receipts`] of the next session takes.
    pub fn hash(&self) -> Option<ReceiptHash> {
        self.link?.hash
    }

    /// What the hash must be.
    pub(super) fn expected_hash(&self) -> ReceiptHash {
        let mut bare = self.clone();
        bare.link.iter_mut().for_each(|link| link.hash = None);
        bare.signature.iter_mut().for_each(|signature| signature.value = None);
        ReceiptHash::of(&serde_json::to_vec(&bare).expect("numbers and names"))
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

    /// Ties a receipt to the last one, and has it signed.
    pub fn tie(&mut self, receipt: &mut ScrubReceipt, signer: Option<&dyn Signer>) {
        receipt.link = Some(Link { index: self.index, previous: self.previous, hash: None });
        receipt.signature = signer.map(|signer| Box::new(Signature::begun(signer)));
        let mut hash = receipt.expected_hash();
        if let (Some(signer), Some(signature)) = (signer, &mut receipt.signature) {
            match signature::sign(signer, &hash) {
                Ok(value) => signature.value = Some(value),
                // that it failed is a part of what is hashed
                Err(failed) => {
                    signature.failed = Some(failed);
                    hash = receipt.expected_hash();
                }
            }
        }
        receipt.link.iter_mut().for_each(|link| link.hash = Some(hash));
        (self.index, self.previous) = (self.index + 1, hash);
    }
}
