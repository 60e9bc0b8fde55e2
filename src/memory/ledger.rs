//! The account: what was scrubbed, what was read back, what the platform refused.

use serde::{Deserialize, Deserializer, Serialize};

use super::{Scrubbed, heap, thread};

/// Kinds of memory that hold content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Memory {
    /// Activations, KV cache and logits of a device.
    Arena,
    /// The heap for secrets: texts and token ids.
    Secrets,
    /// Stacks of the session's threads.
    Stacks,
}

/// What the guarantee does not cover in this process, as far as the library can tell.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case", deny_unknown_fields)]
pub enum NotCovered {
    /// The kernel refused to lock memory (`RLIMIT_MEMLOCK`): when memory is short it may be swapped out.
    NotLocked {
        /// Which memory.
        memory: Memory,
        /// Bytes that are not locked.
        bytes: u64,
    },
    /// The platform cannot keep memory out of core dumps.
    InCoreDumps {
        /// Which memory.
        memory: Memory,
        /// Bytes concerned.
        bytes: u64,
    },
    /// The platform cannot hide memory from forked children.
    VisibleAfterFork {
        /// Which memory.
        memory: Memory,
        /// Bytes concerned.
        bytes: u64,
    },
    /// For want of memory on the heap for secrets, some were on the ordinary heap: overwritten, but not protected.
    OnOrdinaryHeap {
        /// Bytes, each time counted.
        bytes: u64,
    },
    /// The device failed: its memory could not be overwritten. It was given back as it was.
    DeviceFailed {
        /// Bytes that it held.
        bytes: u64,
    },
    /// Between the turns of a conversation its keys and values lie in the device's memory as they are; messages and token ids
    /// are encrypted.
    #[serde(deserialize_with = "nothing_more")]
    IdleCacheNotSealed,
    /// Heap temporaries inside third-party crates are freed, not overwritten: what chat templates render, the
    /// state of grammars. [`crate::alloc::Scrubbing`] is not this process's global allocator.
    #[serde(deserialize_with = "nothing_more")]
    HeapTemporaries,
    /// Copies of texts that the `tokenizers` crate makes on the heap are freed, not overwritten: the checkpoint's
    /// `tokenizer.json` has a component that this library leaves to that crate, and [`crate::alloc::Scrubbing`] is not this
    /// process's global allocator.
    TokenizerTemporaries {
        /// The component, in words.
        component: String,
    },
}

/// Left to itself, serde ignores what stands beside the tag of a variant without fields.
fn nothing_more<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}
    Nothing::deserialize(deserializer).map(|Nothing {}| ())
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Arena => "the arena",
            Self::Secrets => "the heap for secrets",
            Self::Stacks => "the threads' stacks",
        })
    }
}

impl std::fmt::Display for NotCovered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotLocked { memory, bytes } => {
                write!(f, "{bytes} bytes of {memory} are not locked in memory (RLIMIT_MEMLOCK)")
            }
            Self::InCoreDumps { memory, bytes } => {
                write!(f, "{bytes} bytes of {memory} may appear in a core dump")
            }
            Self::VisibleAfterFork { memory, bytes } => {
                write!(f, "{bytes} bytes of {memory} are visible to forked children")
            }
            Self::OnOrdinaryHeap { bytes } => {
                write!(f, "{bytes} bytes of secrets were on the ordinary heap, for want of memory")
            }
            Self::DeviceFailed { bytes } => {
                write!(f, "{bytes} bytes of the device's memory were not overwritten: it failed")
            }
            Self::IdleCacheNotSealed => {
                f.write_str("keys and values of idle conversations are not encrypted on this device")
            }
            Self::TokenizerTemporaries { component } => {
                write!(f, "heap temporaries of the tokenizers crate, which does {component}")
            }
            Self::HeapTemporaries => {
                f.write_str("heap temporaries of third-party crates (amnesic::install_scrubbing_allocator!)")
            }
        }
    }
}

/// What the process as a whole does not cover at the moment: its heap for secrets, its threads, its allocator.
pub fn gaps_of_process() -> Vec<NotCovered> {
    let heap = heap::status();
    let memory = Memory::Secrets;
    let (unlocked_stacks, exposed_stacks) = (thread::unlocked_bytes(), thread::exposed_bytes());
    let gaps = [
        (heap.unlocked > 0).then_some(NotCovered::NotLocked { memory, bytes: heap.unlocked }),
        (!heap.undumpable).then_some(NotCovered::InCoreDumps { memory, bytes: heap.bytes }),
        (!heap.wiped_on_fork).then_some(NotCovered::VisibleAfterFork { memory, bytes: heap.bytes }),
        (heap.elsewhere > 0).then_some(NotCovered::OnOrdinaryHeap { bytes: heap.elsewhere }),
        (unlocked_stacks > 0)
            .then_some(NotCovered::NotLocked { memory: Memory::Stacks, bytes: unlocked_stacks }),
        (exposed_stacks > 0)
            .then_some(NotCovered::InCoreDumps { memory: Memory::Stacks, bytes: exposed_stacks }),
        (exposed_stacks > 0)
            .then_some(NotCovered::VisibleAfterFork { memory: Memory::Stacks, bytes: exposed_stacks }),
        (!heap::is_allocator_installed()).then_some(NotCovered::HeapTemporaries),
    ];
    gaps.into_iter().flatten().collect()
}

/// What was overwritten, on one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Regions: KV blocks, buffers, stacks.
    pub regions: u64,
    /// Bytes, each time counted.
    pub bytes: u64,
    /// Places that were read back.
    pub samples: u64,
}

impl Account {
    /// Enters `regions` overwritten together.
    pub fn enter(&mut self, regions: u64, proof: &Scrubbed) {
        self.regions += regions;
        self.bytes += proof.bytes();
        self.samples += proof.samples();
    }
}

/// Accounts for what is on the host itself (stacks, buffers), and for the memory of up to two models.
pub type Accounts = [Account; 3];

/// The host's place in [`Accounts`]; the models' are behind it.
pub const HOST: usize = 0;

/// The running account of a session.
#[derive(Debug, Default)]
pub struct Ledger {
    /// All so far.
    pub accounts: Accounts,
    /// Requests that ended, in whatever way.
    pub requests: u64,
    dirty: bool,
}

impl Ledger {
    /// Enters `regions` overwritten together in a place of [`Accounts`]; without a proof, nothing was.
    pub fn scrubbed<'a>(&mut self, place: usize, regions: u64, proof: impl Into<Option<&'a Scrubbed>>) {
        let Some(proof) = proof.into() else { return };
        self.accounts[place].enter(regions, proof);
        self.dirty |= proof.is_dirty();
    }

    /// What was entered since the accounts stood like this.
    pub fn since(&self, then: Accounts) -> Accounts {
        std::array::from_fn(|place| {
            let (now, then) = (self.accounts[place], then[place]);
            Account {
                regions: now.regions - then.regions,
                bytes: now.bytes - then.bytes,
                samples: now.samples - then.samples,
            }
        })
    }

    /// Whether something that was read back was not zero, ever.
    pub fn is_dirty(&self) -> bool {
        self.dirty
    }
}

/// Adds accounts up.
pub fn add(sum: &mut Accounts, more: &Accounts) {
    for (sum, more) in sum.iter_mut().zip(more) {
        sum.regions += more.regions;
        sum.bytes += more.bytes;
        sum.samples += more.samples;
    }
}
