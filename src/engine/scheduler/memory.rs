//! Who holds which KV blocks: what is kept behind a request, what is shared, and who gives way.

use super::{Entry, Id, Key, Rank, Scheduler, Store};
use crate::backend::BLOCK;
use crate::model::decoder::blocks_for;

/// Blocks that outlive a request.
#[derive(Debug, Default)]
pub(super) struct CachedPrefix {
    pub(super) table: Vec<u32>,
    /// Positions in the table that hold keys and values.
    pub(super) cached: usize,
    /// Whether several sequences may hold its blocks at once.
    pub(super) public: bool,
    /// When it was last used.
    used: u64,
}

impl Scheduler {
    /// Whether anyone else holds one of a sequence's blocks for positions from `position` on.
    pub fn is_shared(&self, id: Id, position: usize) -> bool {
        self.entry(id).table[position / BLOCK..].iter().any(|&block| self.pool.is_shared(block))
    }

    /// Blocks that are not free.
    pub fn blocks_in_use(&self) -> usize {
        self.pool.count() - self.pool.free()
    }

    /// A second sequence with the same tokens and, where there is room for it, the same blocks: whoever writes first
    /// takes a copy.
    pub fn fork(&mut self, id: Id, fork: Id) {
        let from = self.entry(id);
        let rank = Rank { key: from.rank.key + self.handicap_of_more(from.owner), id: fork };
        let runs = self.running.contains(&from.rank) && self.running.len() < self.limits.sequences;
        let entry = Entry {
            rank,
            known: from.known,
            cached: if runs { from.cached } else { 0 },
            outputs_from: from.outputs_from,
            table: if runs { from.table.clone() } else { Vec::new() },
            drafts: from.drafts,
            reused: from.reused,
            admissions: u64::from(runs),
            // what a conversation keeps is the first choice's; a public prompt helps again after a preemption
            prefix: from.prefix.filter(|prefix| self.kept.get(&prefix.key).is_some_and(|kept| kept.public)),
            owner: from.owner,
            met_others: from.met_others,
            paused: false,
            held: false,
        };
        *self.owners.entry(entry.owner).or_default() += 1;
        self.pool.share(&entry.table);
        if runs {
            let place = self.running.partition_point(|other| *other < rank);
            self.running.insert(place, rank);
        } else {
            self.waiting.insert(rank);
        }
        self.entries.insert(fork, entry);
    }

    /// A sequence has ended. Its blocks are scrubbed, or kept for the next request of its conversation if `keep`.
    pub fn end(&mut self, id: Id, keep: bool, store: &mut impl Store) {
        let mut entry = self.entries.remove(&id).expect("a sequence ends once");
        self.running.retain(|rank| *rank != entry.rank);
        self.waiting.remove(&entry.rank);
        if let Some(count) = self.owners.get_mut(&entry.owner) {
            *count -= 1;
            if *count == 0 {
                self.owners.remove(&entry.owner);
            }
        }
        let kept = entry.prefix.and_then(|prefix| self.kept.get_mut(&prefix.key));
        if let Some(kept) = kept.filter(|kept| keep && !kept.public) {
            std::mem::swap(&mut kept.table, &mut entry.table);
            kept.cached = entry.cached;
            kept.used = self.clock;
        }
        self.let_go(entry.table, Some(id), store);
    }

    /// From now on something is kept under `key`.
    pub fn keep(&mut self, key: Key, public: bool) {
        self.kept.entry(key).or_insert(CachedPrefix { public, used: self.clock, ..CachedPrefix::default() });
    }

    /// Nothing is kept under `key` any more: blocks that nobody else holds are scrubbed.
    pub fn forget(&mut self, key: Key, store: &mut impl Store) {
        if let Some(kept) = self.kept.remove(&key) {
            self.let_go(kept.table, None, store);
        }
    }

    /// A conversation's turn is over, with all of its choices: what is kept of it is sealed until the next one.
    pub fn rest(&mut self, key: Key, store: &mut impl Store) {
        let Some(kept) = self.kept.get(&key).filter(|kept| !kept.public) else { return };
        assert!(kept.table.iter().all(|&block| !self.pool.is_shared(block)), "nobody else holds it any more");
        store.seal(&kept.table);
    }

    fn let_go(&mut self, table: Vec<u32>, whose: Option<Id>, store: &mut impl Store) {
        let dead = self.pool.let_go(table);
        if !dead.is_empty() {
            let clean = dead.overwrite(|blocks| store.scrub(blocks, whose));
            self.pool.release(clean);
        }
    }

    /// Blocks that could be had for `rank`: all but those of sequences that do not give way to it, and of what they
    /// share with others.
    pub(super) fn obtainable(&self, rank: Rank) -> usize {
        let mut firm: Vec<u32> = self
            .running
            .iter()
            .filter(|other| **other < rank && !self.entry(other.id).paused)
            .flat_map(|other| self.entry(other.id).table.iter().copied())
            .collect();
        firm.sort_unstable();
        firm.dedup();
        self.pool.count() - firm.len()
    }

    /// Gives a sequence what is kept of its beginning; returns how many tokens that spares it.
    pub(super) fn adopt(&mut self, id: Id, store: &mut impl Store) -> usize {
        let entry = self.entries.get_mut(&id).expect("a sequence that has not ended");
        let Some(prefix) = entry.prefix else { return 0 };
        let Some(kept) = self.kept.get_mut(&prefix.key) else { return 0 };
        kept.used = self.clock;
        // the last token is computed in any case, for its logits; so is every one whose logits are wanted
        let common = prefix.tokens.min(kept.cached).min(entry.outputs_from.min(entry.known - 1));
        let mut spare = Vec::new();
        if kept.public {
            let blocks = &kept.table[..common / BLOCK];
            self.pool.share(blocks);
            entry.table.extend(blocks);
            entry.cached = blocks.len() * BLOCK;
        } else {
            entry.table = std::mem::take(&mut kept.table);
            spare = entry.table.split_off(blocks_for(common).min(entry.table.len()));
            entry.cached = common;
            kept.cached = 0;
        }
        let reused = entry.cached;
        if !kept.public {
            store.open(&entry.table);
        }
        self.let_go(spare, Some(id), store);
        reused
    }

    /// Takes the blocks of what was not used for longest; false if that frees none.
    pub(super) fn evict(&mut self, store: &mut impl Store) -> bool {
        let idle = |kept: &&CachedPrefix| kept.table.iter().any(|&block| !self.pool.is_shared(block));
        let oldest =
            self.kept.iter().filter(|(_, kept)| idle(kept)).min_by_key(|(key, kept)| (kept.used, **key));
        let Some((&key, _)) = oldest else { return false };
        let kept = self.kept.get_mut(&key).expect("found just now");
        kept.cached = 0;
        let table = std::mem::take(&mut kept.table);
        self.let_go(table, None, store);
        true
    }

    /// Takes the blocks of the one who gives way first to `rank`; false if nobody does.
    pub(super) fn preempt_for(&mut self, rank: Rank, store: &mut impl Store) -> bool {
        let paused = self.running.iter().rev().find(|other| **other != rank && self.entry(other.id).paused);
        let last = self.running.last().filter(|last| **last > rank);
        let Some(&victim) = paused.or(last) else { return false };
        self.preempt(victim, store);
        true
    }

    pub(super) fn preempt(&mut self, victim: Rank, store: &mut impl Store) {
        self.preemptions += 1;
        self.running.retain(|rank| *rank != victim);
        self.turns.retain(|turn| turn.id != victim.id);
        self.waiting.insert(victim);
        let entry = self.entry_mut(victim.id);
        entry.cached = 0;
        let table = std::mem::take(&mut entry.table);
        self.let_go(table, Some(victim.id), store);
    }

    pub(super) fn give_blocks(&mut self, id: Id, tokens: usize, store: &mut impl Store) {
        let entry = self.entries.get_mut(&id).expect("it has a turn");
        let end = entry.cached + tokens;
        let mut fresh = Vec::new();
        for place in entry.cached / BLOCK..blocks_for(end).min(entry.table.len()) {
            let shared = entry.table[place];
            if self.pool.is_shared(shared) {
                assert!(self.pool.take(1, &mut fresh), "counted before");
                let own = fresh.pop().expect("taken just now");
                store.copy(shared, own);
                entry.table[place] = own;
                assert!(self.pool.let_go([shared]).is_empty(), "others still hold it");
            }
        }
        let new = blocks_for(end).saturating_sub(entry.table.len());
        assert!(self.pool.take(new, &mut entry.table), "counted before");
    }
}
