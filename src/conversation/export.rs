//! A conversation outside of its session: sealed bytes under the application's key.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `AMNESICC` |
//! | 2 | version, little-endian: 1 |
//! | 32 | SHA-256 that tells the model apart ([`Identity::model`]) |
//! | 32 | SHA-256 of how it was computed ([`Identity::arithmetic`]) |
//! | 24 | nonce, drawn for this export |
//! | n | the record (`record.rs`), encrypted by XChaCha20-Poly1305; a multiple of 4096 |
//! | 16 | its tag, over all that stands before, too |

use super::record::{self, Record};
use crate::error::{Error, Result, SealedReason};
use crate::identity::{Hash, Identity};
use crate::memory::Secret;
use crate::memory::seal::{NONCE_BYTES, SealingKey, TAG_BYTES};

const MAGIC: [u8; 8] = *b"AMNESICC";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = MAGIC.len() + 2 + 2 * 32 + NONCE_BYTES;

/// Seals a record; what it was in is ciphertext afterwards.
pub fn seal(mut content: Secret<[u8]>, identity: &Identity, key: &SealingKey) -> Result<Vec<u8>> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|_| Error::Sealed(SealedReason::NoRandomNumbers))?;
    let mut sealed = Vec::with_capacity(HEAD_BYTES + content.expose().len() + TAG_BYTES);
    sealed.extend(MAGIC);
    sealed.extend(VERSION.to_le_bytes());
    sealed.extend(identity.model);
    sealed.extend(identity.arithmetic);
    sealed.extend(nonce);
    let tag = key.seal(&nonce, &sealed, content.expose_mut()).ok_or(Error::Sealed(SealedReason::TooLong))?;
    sealed.extend(content.expose());
    sealed.extend(tag);
    Ok(sealed)
}

/// Opens what [`seal`] made, for a session of this identity.
pub fn open(sealed: &[u8], identity: &Identity, key: &SealingKey) -> Result<Record> {
    let refuse = |reason| Err(Error::Sealed(reason));
    let Some((head, rest)) = sealed.split_at_checked(HEAD_BYTES).filter(|(head, _)| head.starts_with(&MAGIC))
    else {
        return refuse(SealedReason::NotOne);
    };
    let mut fields = Fields(&head[MAGIC.len()..]);
    let version = u16::from_le_bytes(fields.take());
    if version != VERSION {
        return refuse(SealedReason::Version { found: version, known: VERSION });
    }
    let [model, arithmetic]: [Hash; 2] = [fields.take(), fields.take()];
    let nonce: [u8; NONCE_BYTES] = fields.take();
    let Some((content, tag)) = rest.split_last_chunk::<TAG_BYTES>() else {
        return refuse(SealedReason::NotOne);
    };
    let mut content = Secret::<[u8]>::copy(content);
    if !key.open(&nonce, head, content.expose_mut(), tag) {
        return refuse(SealedReason::KeyOrContent);
    }
    if model != identity.model {
        return refuse(SealedReason::OtherModel);
    }
    if arithmetic != identity.arithmetic {
        return refuse(SealedReason::OtherArithmetic);
    }
    let Some(record) = record::decode(content.expose()) else { return refuse(SealedReason::Malformed) };
    if record.ids.expose().iter().any(|&id| id as usize >= identity.vocab) {
        return refuse(SealedReason::Malformed);
    }
    if let Some((name, hash)) = &record.adapter
        && identity.adapter(name) != Some(hash)
    {
        return refuse(SealedReason::OtherAdapter);
    }
    Ok(record)
}

/// The fields of a head, one after another.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk::<N>().expect("a head has all its fields");
        self.0 = rest;
        *field
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::user;

    fn identity() -> Identity {
        Identity {
            model: [1; 32],
            arithmetic: [2; 32],
            adapters: vec![("legal".into(), [3; 32])],
            vocab: 100,
        }
    }

    fn sealed(ids: &[u32], adapter: Option<(&str, &Hash)>) -> Vec<u8> {
        let content = record::encode(&[user("Zebulon Quartzwick")], ids, adapter);
        seal(content, &identity(), &key()).unwrap()
    }

    fn key() -> SealingKey {
        SealingKey::new(&mut [7; 32])
    }

    fn reason(sealed: &[u8], identity: &Identity, key: &SealingKey) -> SealedReason {
        match open(sealed, identity, key).unwrap_err() {
            Error::Sealed(reason) => reason,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn it_opens_for_its_key_and_its_session() {
        let sealed = sealed(&[4, 5, 99], Some(("legal", &[3; 32])));
        assert!(!sealed.windows(7).any(|window| window == b"Zebulon" || window == b"legal\0\0"));
        let record = open(&sealed, &identity(), &key()).unwrap();
        assert_eq!(record.ids.expose(), [4, 5, 99]);
        assert_eq!(record.messages[0].content(), "Zebulon Quartzwick");
    }

    #[test]
    fn two_exports_of_the_same_have_nothing_in_common() {
        let [one, two] = [sealed(&[4], None), sealed(&[4], None)];
        assert_ne!(one[HEAD_BYTES..HEAD_BYTES + 64], two[HEAD_BYTES..HEAD_BYTES + 64]);
    }

    #[test]
    fn each_refusal_has_its_reason() {
        let (good, other) = (sealed(&[4, 5, 6], Some(("legal", &[3; 32]))), SealingKey::new(&mut [8; 32]));
        assert_eq!(reason(&good, &identity(), &other), SealedReason::KeyOrContent);
        for at in [10, 50, 80, HEAD_BYTES, good.len() - 17, good.len() - 1] {
            let mut changed = good.clone();
            changed[at] ^= 1;
            assert_eq!(reason(&changed, &identity(), &key()), SealedReason::KeyOrContent, "byte {at}");
        }
        for cut in [0, 7, 9, HEAD_BYTES, HEAD_BYTES + TAG_BYTES - 1] {
            assert_eq!(reason(&good[..cut], &identity(), &key()), SealedReason::NotOne, "{cut} bytes");
        }
        assert_eq!(reason(&good[..good.len() - 1], &identity(), &key()), SealedReason::KeyOrContent);
        let mut newer = good.clone();
        newer[8] = 9;
        let version = SealedReason::Version { found: 9, known: VERSION };
        assert_eq!(reason(&newer, &identity(), &key()), version);
        let model = Identity { model: [9; 32], ..identity() };
        assert_eq!(reason(&good, &model, &key()), SealedReason::OtherModel);
        let arithmetic = Identity { arithmetic: [9; 32], ..identity() };
        assert_eq!(reason(&good, &arithmetic, &key()), SealedReason::OtherArithmetic);
        for adapters in [vec![], vec![("legal".into(), [4; 32])]] {
            let adapters = Identity { adapters, ..identity() };
            assert_eq!(reason(&good, &adapters, &key()), SealedReason::OtherAdapter);
        }
        assert_eq!(reason(&sealed(&[100], None), &identity(), &key()), SealedReason::Malformed);
    }
}
