//! Whose a request is, as far as the session has to know.

use std::fmt;

use sha2::{Digest, Sha256};

/// Names those who may learn from each other's requests how fast they run: a user, a customer, an account. The
/// application chooses it; requests with the same one are one tenant's.
///
/// Speculation makes a reply faster where it is easily guessed, and whoever shares steps with it would see that. So a
/// request guesses only as long as it has had the session to itself and to others of its own tenant
/// ([`crate::Request::speculate`]). Nothing else depends on tenants: each request is forgotten as all others are.
///
/// It is metadata, but it may name a person: `Debug` does not print it, and no log, event or receipt holds it. A name is
/// kept as the first 128 bits of its SHA-256.
///
/// ```
/// use amnesic::Tenant;
///
/// assert_eq!(Tenant::from("customer 17"), Tenant::from(String::from("customer 17")));
/// assert_ne!(Tenant::from(17_u64), Tenant::from(18_u64));
/// assert_eq!(format!("{:?}", Tenant::from("customer 17")), "Tenant([REDACTED])");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tenant(pub(crate) u128);

/// A UUID or another number that is unique by itself.
impl From<u128> for Tenant {
    fn from(id: u128) -> Self {
        Self(id)
    }
}

/// The number of a row in a table of users, for example.
impl From<u64> for Tenant {
    fn from(id: u64) -> Self {
        Self(id.into())
    }
}

impl From<&str> for Tenant {
    fn from(name: &str) -> Self {
        let hash = Sha256::digest(name);
        Self(hash.iter().take(16).fold(0, |id, &byte| id << 8 | u128::from(byte)))
    }
}

impl From<String> for Tenant {
    fn from(name: String) -> Self {
        Self::from(crate::memory::Secret::new(name).expose())
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tenant([REDACTED])")
    }
}
