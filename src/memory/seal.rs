//! Encryption of what rests: a conversation between two turns, and one that the application stores.
//!
//! Bytes are encrypted where they lie, so no plain copy is made on the way: XChaCha20-Poly1305 where they may leave the
//! process, ChaCha20 alone where they do not (the KV cache: nobody but this process wrote it). Keys are [`Secret`]s. What
//! the ciphers leave in dead frames and registers is overwritten before anything here returns.

use std::fmt;

use chacha20::ChaCha20;
use chacha20::cipher::{KeyIvInit, StreamCipher};
use chacha20poly1305::XChaCha20Poly1305;
use chacha20poly1305::aead::{AeadInPlace, KeyInit};

use super::{Secret, scrub, stack};

/// Bytes of a nonce. One that is drawn is never drawn again.
pub const NONCE_BYTES: usize = 24;
/// Bytes of the proof that nothing was changed.
pub const TAG_BYTES: usize = 16;

/// A key of 32 bytes: under it [`crate::Conversation::export`] seals. It is the application's, who keeps it where keys are kept.
/// `Debug` does not print it.
///
/// ```
/// use amnesic::SealingKey;
///
/// let mut bytes = [7; SealingKey::BYTES]; // from the application's store of keys
/// let key = SealingKey::new(&mut bytes);
/// assert_eq!(bytes, [0; SealingKey::BYTES]);
/// # drop(key);
/// ```
pub struct SealingKey(Secret<[u8]>);

impl SealingKey {
    /// Bytes of a key.
    pub const BYTES: usize = 32;

    /// Takes the key over: `bytes` are zeros afterwards. They must be as good as random.
    pub fn new(bytes: &mut [u8; Self::BYTES]) -> Self {
        let key = Self(Secret::copy(bytes));
        let _ = scrub(bytes);
        key
    }

    /// A new key; none if the system has no random numbers.
    pub(crate) fn random() -> Option<Self> {
        let mut bytes = Secret::<[u8]>::default();
        let key = bytes.refill(std::iter::repeat_n(0, Self::BYTES));
        getrandom::fill(key).ok()?;
        Some(Self(bytes))
    }

    /// Encrypts `content` in place. `context` stays as it is, and is proved with it.
    pub(crate) fn seal(
        &self,
        nonce: &[u8; NONCE_BYTES],
        context: &[u8],
        content: &mut [u8],
    ) -> Option<[u8; TAG_BYTES]> {
        let tag = cleaned(|| {
            let cipher = XChaCha20Poly1305::new(self.0.expose().into());
            cipher.encrypt_in_place_detached(nonce.into(), context, content)
        });
        tag.ok().map(Into::into)
    }

    /// Decrypts in place what [`SealingKey::seal`] encrypted; false, and it stays as it is, if the key is another or
    /// anything was changed.
    #[must_use]
    pub(crate) fn open(
        &self,
        nonce: &[u8; NONCE_BYTES],
        context: &[u8],
        content: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> bool {
        cleaned(|| {
            let cipher = XChaCha20Poly1305::new(self.0.expose().into());
            cipher.decrypt_in_place_detached(nonce.into(), context, content, tag.into()).is_ok()
        })
    }

    /// Encrypts or decrypts bytes in place. The pair of `count` and `place` must not come twice under one key, but to
    /// decrypt. Whoever calls cleans his stack.
    pub(crate) fn mask(&self, count: u64, place: u32, bytes: &mut [u8]) {
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&count.to_le_bytes());
        nonce[8..].copy_from_slice(&place.to_le_bytes());
        ChaCha20::new(self.0.expose().into(), &nonce.into()).apply_keystream(bytes);
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey([REDACTED])")
    }
}

/// Runs `act` in frames of its own, and overwrites them.
#[inline(never)]
fn cleaned<T>(act: impl FnOnce() -> T) -> T {
    /// Whose frames are all below the caller's.
    #[inline(never)]
    fn below<T>(act: impl FnOnce() -> T) -> T {
        act()
    }
    let result = below(act);
    let _ = stack::scrub_shallow();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: [u8; 30] = *b"The patient Zebulon Quartzwick";

    fn opens(
        key: &SealingKey,
        nonce: u8,
        context: &[u8],
        mut sealed: [u8; 30],
        tag: &[u8; TAG_BYTES],
    ) -> bool {
        key.open(&[nonce; NONCE_BYTES], context, &mut sealed, tag) && sealed == CONTENT
    }

    #[test]
    fn what_is_sealed_opens_under_its_key_and_as_it_was_only() {
        let (key, mut sealed) = (SealingKey::new(&mut [3; 32]), CONTENT);
        let tag = key.seal(&[5; NONCE_BYTES], b"v1", &mut sealed).unwrap();
        assert!(!sealed.windows(4).any(|window| CONTENT.windows(4).any(|plain| plain == window)));
        assert!(opens(&key, 5, b"v1", sealed, &tag));
        assert!(!opens(&SealingKey::new(&mut [4; 32]), 5, b"v1", sealed, &tag));
        assert!(!opens(&key, 6, b"v1", sealed, &tag));
        assert!(!opens(&key, 5, b"v2", sealed, &tag));
        for bit in 0..8 * sealed.len() {
            let mut changed = sealed;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(!opens(&key, 5, b"v1", changed, &tag), "bit {bit}");
        }
        for byte in 0..TAG_BYTES {
            let mut changed = tag;
            changed[byte] ^= 1;
            assert!(!opens(&key, 5, b"v1", sealed, &changed));
        }
    }

    #[test]
    fn masks_differ_and_undo_themselves() {
        let key = SealingKey::random().unwrap();
        let masked = |count, place| {
            let mut bytes = [0; 100];
            key.mask(count, place, &mut bytes);
            bytes
        };
        let all = [masked(1, 0), masked(2, 0), masked(1, 1), [0; 100]];
        (0..4).for_each(|i| (0..i).for_each(|j| assert_ne!(all[i], all[j])));
        let mut bytes = all[0];
        key.mask(1, 0, &mut bytes);
        assert_eq!(bytes, [0; 100]);
    }

    #[test]
    fn a_key_is_taken_over_and_not_printed() {
        let mut bytes = *b"canary canary canary canary cana";
        let key = SealingKey::new(&mut bytes);
        assert_eq!((bytes, format!("{key:?}").contains("canary")), ([0; 32], false));
    }

    #[test]
    #[expect(unsafe_code, reason = "reads a dead frame of its own stack")]
    fn what_a_cipher_leaves_is_overwritten() {
        /// Leaves a mark in a dead frame and returns its address.
        #[inline(never)]
        fn leave_mark() -> usize {
            let mut mark = [0x5ec2_e75e_c2e7_5ec2_u64; 64];
            std::hint::black_box(&mut mark).as_ptr() as usize
        }
        let at = cleaned(leave_mark);
        // SAFETY: the address is in this thread's stack, which is mapped; nothing else writes it now.
        assert_eq!(unsafe { (at as *const u64).read_volatile() }, 0);
    }
}
