//! Leases of parts of the cache that outlive a request: a conversation's, and those of prompts that are public.

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::memory::Secret;

/// Names what is kept between requests: a conversation's or a public prompt's blocks.
pub type Key = u64;

/// The ids of what is kept between requests; only a conversation's change.
pub type Ids = Arc<Mutex<Secret<[u32]>>>;

/// A part of the cache that is kept between requests. When nobody names it any more, it is given back.
pub struct PrefixLease {
    pub key: Key,
    give_back: Option<Box<dyn FnOnce(Key) + Send + Sync>>,
}

impl PrefixLease {
    /// What is kept under `key`, until `give_back` is called with it.
    pub fn new(key: Key, give_back: impl FnOnce(Key) + Send + Sync + 'static) -> Self {
        Self { key, give_back: Some(Box::new(give_back)) }
    }
}

impl Drop for PrefixLease {
    fn drop(&mut self) {
        self.give_back.take().into_iter().for_each(|give_back| give_back(self.key));
    }
}

impl fmt::Debug for PrefixLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrefixLease").field("key", &self.key).finish_non_exhaustive()
    }
}

/// What a request continues.
#[derive(Clone, Debug)]
pub struct PrefixHandle {
    pub lease: Arc<PrefixLease>,
    pub ids: Ids,
    /// Which adapter they were computed with.
    pub adapter: Arc<Mutex<Option<String>>>,
    /// Whether it is a prompt that is public; else it is a conversation, of which the request is the next turn.
    pub public: bool,
}
