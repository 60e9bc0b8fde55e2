//! Attestation: what binds a signing key to a machine.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::chain::ReceiptHash;
use super::environment::Nonce;
use super::signature::Signer;
use super::text::Hex;
pub use crate::error::AttestError;

/// Something of the machine that signs statements about it: a TPM, or the processor of a confidential virtual machine.
///
/// It is asked once, when a session opens, for a quote over [`report_data`], which binds the public key that signs the
/// session's receipts. So whoever trusts the machine's maker, and has checked the quote, knows that the key is held by
/// software that was measured there; which key signs then shows which machine a receipt is from.
///
/// Implementations are outside of this crate: it brings no format of a vendor's.
pub trait Attester: Send + Sync {
    /// A quote that has these 32 bytes in it as its report data (a TPM's qualifying data). Formats with more room have
    /// zeros behind them.
    ///
    /// # Errors
    /// Why there is none; the session does not open then.
    fn attest(&self, report_data: &[u8; 32]) -> Result<Quote, AttestError>;
}

/// A quote, as its maker's format has it.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quote {
    /// Which format: `tpm2`, `tdx`, `sev_snp`, or another that who verifies knows.
    pub format: String,
    /// The document.
    pub document: Hex,
}

impl Quote {
    /// A document in a format.
    ///
    /// ```
    /// let quote = amnesic::privacy::Quote::new("tpm2", [0xff, 0x54, 0x43, 0x47]);
    /// assert_eq!((quote.format.as_str(), quote.document.0.len()), ("tpm2", 4));
    /// ```
    pub fn new(format: impl Into<String>, document: impl Into<Vec<u8>>) -> Self {
        Self { format: format.into(), document: Hex(document.into()) }
    }
}

/// What a quote over a signing key has as its report data: SHA-256 over the text `amnesic signing key 2` and a line feed,
/// the algorithm's name and a line feed, the public key, and the session's nonce or 32 zeros.
///
/// ```
/// # #[cfg(feature = "signed-receipts")] {
/// use amnesic::privacy::{Ed25519Signer, Nonce, report_data};
///
/// let signer = Ed25519Signer::generate().unwrap();
/// assert_ne!(report_data(&signer, None), report_data(&signer, Some(Nonce::new([7; 32]))));
/// # }
/// ```
pub fn report_data(signer: &dyn Signer, nonce: Option<Nonce>) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"amnesic signing key 2\n");
    hash.update(signer.algorithm().as_bytes());
    hash.update(b"\n");
    hash.update(signer.public_key());
    hash.update(nonce.as_ref().map_or(&[0; 32], Nonce::as_bytes));
    *ReceiptHash::finish(hash).as_bytes()
}
