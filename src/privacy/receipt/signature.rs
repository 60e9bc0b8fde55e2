//! Signatures: who vouches for receipts.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::chain::ReceiptHash;
use super::text::Hex;

/// What stands before a receipt's hash in what is signed, so that no signature for another purpose is one of a receipt.
const DOMAIN: &[u8] = b"amnesic receipt 2\n";

/// A signing key, here or elsewhere: in a security module, in another process, in a service.
///
/// It is asked once for every receipt, on the thread that computes, and all requests wait for it meanwhile: a key that is
/// far away belongs behind a queue of the application's own, which signs the last hash of many receipts. A panic in it is
/// caught.
///
/// **If it fails, requests do not:** their content is overwritten, and their replies are due. The receipt then says so
/// ([`Signature::failed`]), and is refused by every [`super::verify::Verifier`] that trusts a key.
///
/// ```
/// use amnesic::privacy::{SignError, Signer};
///
/// /// A key in a security module.
/// struct Module {
///     public_key: Vec<u8>,
/// }
///
/// impl Signer for Module {
///     fn algorithm(&self) -> &str {
///         "ecdsa-p256-sha256"
///     }
///     fn public_key(&self) -> &[u8] {
///         &self.public_key
///     }
///     fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
///         # let _ = message;
///         Err(SignError::Unavailable) // here the module is asked
///     }
/// }
/// ```
pub trait Signer: Send + Sync {
    /// The algorithm's name in receipts: `ed25519`, or another that who verifies knows.
    fn algorithm(&self) -> &str;

    /// The public key, in the algorithm's usual form: 32 bytes for Ed25519.
    fn public_key(&self) -> &[u8];

    /// Signs.
    ///
    /// # Errors
    /// Why it could not.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError>;
}

/// Why a receipt has no signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SignError {
    /// The key cannot be reached.
    #[error("the signing key cannot be reached")]
    Unavailable,
    /// Whoever holds the key refused.
    #[error("whoever holds the signing key refused")]
    Refused,
    /// The [`Signer`] panicked.
    #[error("the signer panicked")]
    Panicked,
}

/// Who vouches for a receipt. `value` signs the receipt's hash, which covers all else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Signature {
    /// The algorithm's name: `ed25519`.
    pub algorithm: String,
    /// Whose signature it is.
    pub public_key: Hex,
    /// The signature of the 18 bytes `amnesic receipt 2` with a line feed, and the 32 bytes of the receipt's hash.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "super::present")]
    pub value: Option<Hex>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "super::present")]
    pub failed: Option<SignError>,
}

impl Signature {
    /// By this signer, not there yet.
    pub(super) fn begun(signer: &dyn Signer) -> Self {
        let named = catch_unwind(AssertUnwindSafe(|| {
            (signer.algorithm().to_owned(), Hex(signer.public_key().to_owned()))
        }));
        let (algorithm, public_key) = named.unwrap_or_default();
        Self { algorithm, public_key, value: None, failed: None }
    }
}

/// What is signed.
pub(super) fn message(hash: &ReceiptHash) -> Vec<u8> {
    [DOMAIN, hash.as_bytes()].concat()
}

pub(super) fn sign(signer: &dyn Signer, hash: &ReceiptHash) -> Result<Hex, SignError> {
    let signed = catch_unwind(AssertUnwindSafe(|| signer.sign(&message(hash))));
    signed.unwrap_or(Err(SignError::Panicked)).map(Hex)
}

type Check = Arc<dyn Fn(&[u8], &[u8]) -> bool + Send + Sync>;

/// A key whose signatures are trusted: see [`super::verify::Verifier::trust`].
#[derive(Clone)]
pub struct PublicKey {
    algorithm: String,
    bytes: Vec<u8>,
    check: Check,
}

impl PublicKey {
    /// A key of any algorithm: `check` is given a message and a signature, and says whether the signature is right.
    pub fn new(
        algorithm: impl Into<String>,
        bytes: impl Into<Vec<u8>>,
        check: impl Fn(&[u8], &[u8]) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { algorithm: algorithm.into(), bytes: bytes.into(), check: Arc::new(check) }
    }

    /// Whether it is the one that a signature names.
    pub(super) fn is_of(&self, signature: &Signature) -> bool {
        self.algorithm == signature.algorithm && self.bytes == signature.public_key.0
    }

    /// Whether `value` is its signature of a receipt with this hash.
    pub(super) fn accepts(&self, hash: &ReceiptHash, value: &Hex) -> bool {
        (self.check)(&message(hash), &value.0)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm, Hex(self.bytes.clone()))
    }
}
