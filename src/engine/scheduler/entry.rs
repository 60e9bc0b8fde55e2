//! Sequences, in numbers.

use super::{Id, Key};

/// Whose a sequence is. Only guessing asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A tenant that the application named.
    Tenant(u128),
    /// A conversation: the name of what is kept of it.
    Conversation(Key),
    /// A request that belongs to nothing else: the first of its sequences.
    Request(Id),
}

/// A sequence's place in the order: less is sooner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank {
    pub(super) key: u64,
    pub(super) id: Id,
}

/// Tokens that a prompt has in common with something kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    pub key: Key,
    pub tokens: usize,
}

/// What arrives.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrival {
    /// Tokens that had been computed when it came; none for now.
    pub clock: Option<u64>,
    /// Added to the clock: tokens by which the sequence lets others go first.
    pub handicap: u64,
    /// Tokens known: the prompt.
    pub known: usize,
    /// Position of the first token whose logits are wanted.
    pub outputs_from: usize,
    /// What it may continue.
    pub prefix: Option<Prefix>,
    /// Whose it is, if not its own.
    pub owner: Option<Owner>,
}

/// A sequence, in numbers.
#[derive(Debug)]
pub struct Entry {
    pub(super) rank: Rank,
    /// Tokens known.
    pub known: usize,
    /// How many of them are in the cache.
    pub cached: usize,
    /// Position of the first token whose logits are wanted.
    pub outputs_from: usize,
    /// Its KV blocks; entry i holds positions `i * BLOCK..`.
    pub table: Vec<u32>,
    /// Tokens that it would like to guess at while it decodes.
    pub(super) drafts: usize,
    /// Tokens that it found in the cache when it was first admitted.
    pub reused: Option<usize>,
    /// How often it got blocks for all its tokens.
    pub admissions: u64,
    pub(super) prefix: Option<Prefix>,
    pub(super) owner: Owner,
    /// Whether a sequence of another owner was here at any time since it arrived.
    pub(super) met_others: bool,
    pub(super) paused: bool,
    pub(super) held: bool,
}

impl Entry {
    /// Tokens that it may guess at.
    pub(super) fn may_guess(&self) -> usize {
        if self.met_others { 0 } else { self.drafts }
    }

    /// Whether it could compute something if it had the memory.
    pub(super) fn is_ready(&self) -> bool {
        !self.paused && !self.held
    }

    /// Tokens that are not in the cache yet: 1 while it decodes.
    pub(super) fn left(&self) -> usize {
        self.known - self.cached
    }

    /// The most tokens of a turn that asks for no more than `outputs` rows of logits.
    pub(super) fn within(&self, outputs: usize) -> usize {
        self.outputs_from.saturating_sub(self.cached) + outputs
    }
}

/// A sequence's part in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScheduledTokens {
    pub id: Id,
    /// Tokens from its first uncached one on.
    pub tokens: usize,
    /// Guesses that may follow them.
    pub drafts: usize,
}
