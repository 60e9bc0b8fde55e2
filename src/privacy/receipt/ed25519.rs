//! Ed25519 (RFC 8032) by ed25519-dalek.

use std::fmt;

use ed25519_dalek::{Signature as Value, Signer as _, SigningKey, VerifyingKey};

use super::signature::{PublicKey, SignError, Signer};
use super::text::{Hex, Malformed};
use crate::error::{Error, Result};

/// The algorithm's name in receipts.
pub(super) const NAME: &str = "ed25519";

/// A [`Signer`] with an Ed25519 key in this process. The key is overwritten when it drops; until then it is in ordinary
/// memory, where whoever can read this process's memory can read it.
///
/// ```
/// use amnesic::privacy::Ed25519Signer;
///
/// let signer = Ed25519Signer::generate()?;
/// println!("verify with --key {}", signer.public_key_text());
/// # Ok::<(), amnesic::Error>(())
/// ```
pub struct Ed25519Signer {
    key: SigningKey,
    public_key: [u8; 32],
}

impl Ed25519Signer {
    /// The key with this seed: RFC 8032's private key. It is overwritten.
    pub fn from_seed(seed: &mut [u8; 32]) -> Self {
        let key = SigningKey::from_bytes(seed);
        crate::memory::scrub::overwrite(seed);
        let public_key = key.verifying_key().to_bytes();
        Self { key, public_key }
    }

    /// A new key, which ends with this process.
    ///
    /// # Errors
    /// [`Error::Read`] if the system has no random numbers.
    pub fn generate() -> Result<Self> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| Error::Read {
            file: "/dev/urandom".into(),
            source: std::io::Error::other(error.to_string()),
        })?;
        Ok(Self::from_seed(&mut seed))
    }

    /// The public key, in 64 hexadecimal digits: what [`PublicKey::ed25519`] takes.
    pub fn public_key_text(&self) -> String {
        Hex(self.public_key.to_vec()).to_string()
    }
}

impl Signer for Ed25519Signer {
    fn algorithm(&self) -> &str {
        NAME
    }

    fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    fn sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, SignError> {
        self.key.try_sign(message).map(|value| value.to_bytes().to_vec()).map_err(|_| SignError::Refused)
    }
}

impl fmt::Debug for Ed25519Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ed25519Signer").field("public_key", &self.public_key_text()).finish_non_exhaustive()
    }
}

impl PublicKey {
    /// An Ed25519 key, in 64 hexadecimal digits.
    ///
    /// # Errors
    /// The text is something else, or no point of the curve.
    pub fn ed25519(text: &str) -> std::result::Result<Self, Malformed> {
        let Hex(bytes) = text.parse()?;
        Self::ed25519_of(&bytes).ok_or(Malformed("the 64 hexadecimal digits of an Ed25519 key"))
    }

    pub(super) fn ed25519_of(bytes: &[u8]) -> Option<Self> {
        let key = VerifyingKey::from_bytes(bytes.try_into().ok()?).ok()?;
        let check = move |message: &[u8], value: &[u8]| {
            Value::from_slice(value).is_ok_and(|value| key.verify_strict(message, &value).is_ok())
        };
        Some(Self::new(NAME, bytes, check))
    }
}
