//! Who computes what in a step, and who holds which KV blocks. Decides with integers only: it knows no token, no
//! device and no time.
//!
//! **Order.** Each sequence has a [`Rank`], fixed when it arrives: the tokens that the session had computed until then
//! plus a handicap for its priority, and a full step's tokens for each sequence that its owner has here already. Ranks
//! decide who is admitted, who gets blocks, and who gives way. So one request of many choices, or one tenant of many
//! requests, does not take all memory from others that come a little later: its last ones give way. Since the clock runs
//! and ranks stay, whoever waits is overtaken only by those who arrive before the clock has passed its rank: nobody
//! starves.
//!
//! **Steps.** One token for each sequence that decodes; what the budget leaves goes to prefill, at least half of it to
//! the eldest, the rest to the shortest first, so that a long prompt neither starves nor holds short ones up.
//!
//! **Memory.** A sequence is admitted when all its known tokens fit, with a block to spare for each that runs. If blocks
//! run out later, idle caches give theirs first, then sequences whose reader is slow, then the last in rank: it loses
//! its blocks, waits, and is computed again from its tokens. As no result depends on the batch, that never changes a
//! token. The first in rank can have all the rest, so it always goes on.
//!
//! **Guesses.** How many are right is content, and whoever shares steps would see it in their number and length. So a
//! sequence guesses while all that are here, those that wait or pause included, are one owner's; and never again once it
//! met another's, or that one could come and go between its steps and see how far it has come meanwhile. From when two
//! owners meet, each gets one token in a step, whatever it says.

use std::collections::{BTreeSet, HashMap};

use crate::backend::BLOCK;
use crate::memory::Scrubbed;
use crate::memory::blocks::BlockPool;
use crate::model::decoder::{Limits, blocks_for};

/// Where the bytes of blocks are.
pub trait Store {
    /// Overwrites blocks, on the account of a sequence if one let them go. Returns when that is done.
    fn scrub(&mut self, blocks: &[u32], whose: Option<Id>) -> Option<Scrubbed>;
    /// Copies one block's bytes to another.
    fn copy(&mut self, from: u32, to: u32);
    /// Encrypts blocks that nobody reads before [`Store::open`]. Those that are sealed stay as they are.
    fn seal(&mut self, blocks: &[u32]);
    /// Makes sealed blocks what they were. Others stay as they are.
    fn open(&mut self, blocks: &[u32]);
}

/// Names a sequence; rises in order of arrival.
pub type Id = u64;

pub use crate::lease::Key;

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
    key: u64,
    id: Id,
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
    rank: Rank,
    /// Tokens known.
    pub known: usize,
    /// How many of them are in the cache.
    pub cached: usize,
    /// Position of the first token whose logits are wanted.
    pub outputs_from: usize,
    /// Its KV blocks; entry i holds positions `i * BLOCK..`.
    pub table: Vec<u32>,
    /// Tokens that it would like to guess at while it decodes.
    drafts: usize,
    /// Tokens that it found in the cache when it was first admitted.
    pub reused: Option<usize>,
    /// How often it got blocks for all its tokens.
    pub admissions: u64,
    prefix: Option<Prefix>,
    owner: Owner,
    /// Whether a sequence of another owner was here at any time since it arrived.
    met_others: bool,
    paused: bool,
    held: bool,
}

impl Entry {
    /// Tokens that it may guess at.
    fn may_guess(&self) -> usize {
        if self.met_others { 0 } else { self.drafts }
    }

    /// Whether it could compute something if it had the memory.
    fn is_ready(&self) -> bool {
        !self.paused && !self.held
    }

    /// Tokens that are not in the cache yet: 1 while it decodes.
    fn left(&self) -> usize {
        self.known - self.cached
    }

    /// The most tokens of a turn that asks for no more than `outputs` rows of logits.
    fn within(&self, outputs: usize) -> usize {
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

/// Blocks that outlive a request.
#[derive(Debug, Default)]
struct Kept {
    table: Vec<u32>,
    /// Positions in the table that hold keys and values.
    cached: usize,
    /// Whether several sequences may hold its blocks at once.
    public: bool,
    /// When it was last used.
    used: u64,
}

/// The scheduler. See the module.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    entries: HashMap<Id, Entry>,
    /// In order of rank.
    running: Vec<Rank>,
    waiting: BTreeSet<Rank>,
    kept: HashMap<Key, Kept>,
    /// How many sequences each owner has here.
    owners: HashMap<Owner, usize>,
    /// Tokens computed so far.
    clock: u64,
    turns: Vec<ScheduledTokens>,
    preemptions: u64,
}

impl Scheduler {
    /// With nothing to do yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            pool: BlockPool::new(limits.blocks),
            entries: HashMap::new(),
            running: Vec::with_capacity(limits.sequences),
            waiting: BTreeSet::new(),
            kept: HashMap::new(),
            owners: HashMap::new(),
            clock: 0,
            turns: Vec::with_capacity(limits.sequences),
            preemptions: 0,
        }
    }

    /// Takes a sequence in.
    pub fn arrive(&mut self, id: Id, arrival: Arrival) {
        let owner = arrival.owner.unwrap_or(Owner::Request(id));
        let handicap = arrival.handicap + self.handicap_of_more(owner);
        let rank = Rank { key: arrival.clock.unwrap_or(self.clock) + handicap, id };
        let met_others = self.meet(owner);
        let entry = Entry {
            rank,
            known: arrival.known,
            cached: 0,
            outputs_from: arrival.outputs_from,
            table: Vec::new(),
            drafts: 0,
            reused: None,
            admissions: 0,
            prefix: arrival.prefix,
            owner,
            met_others,
            paused: false,
            held: false,
        };
        self.entries.insert(id, entry);
        self.waiting.insert(rank);
    }

    /// Tokens by which one more sequence of `owner` lets others go first.
    fn handicap_of_more(&self, owner: Owner) -> u64 {
        let here = self.owners.get(&owner).copied().unwrap_or(0);
        here as u64 * self.limits.step_tokens as u64
    }

    /// Counts a sequence in; whether any other owner has one. If so, all that are here have met others.
    fn meet(&mut self, owner: Owner) -> bool {
        let alone = self.owners.len() <= 1;
        *self.owners.entry(owner).or_default() += 1;
        let met_others = self.owners.len() > 1;
        if alone && met_others {
            self.entries.values_mut().for_each(|entry| entry.met_others = true);
        }
        met_others
    }

    /// A sequence's numbers.
    ///
    /// # Panics
    /// If it never arrived or has ended.
    pub fn entry(&self, id: Id) -> &Entry {
        self.entries.get(&id).expect("a sequence that has not ended")
    }

    fn entry_mut(&mut self, id: Id) -> &mut Entry {
        self.entries.get_mut(&id).expect("a sequence that has not ended")
    }

    /// Whether anyone else holds one of a sequence's blocks for positions from `position` on.
    pub fn is_shared(&self, id: Id, position: usize) -> bool {
        self.entry(id).table[position / BLOCK..].iter().any(|&block| self.pool.is_shared(block))
    }

    /// Sequences that have blocks.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait for blocks.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Blocks that are not free.
    pub fn blocks_in_use(&self) -> usize {
        self.pool.count() - self.pool.free()
    }

    /// How often a sequence lost its blocks before it ended.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Whether a step might compute something: someone runs or waits for memory who is not held, and whose reader is not
    /// behind.
    pub fn has_work(&self) -> bool {
        self.running.iter().chain(&self.waiting).any(|rank| self.entry(rank.id).is_ready())
    }

    /// Tokens computed so far: what the order of those who arrive now begins with.
    pub fn clock(&self) -> u64 {
        self.clock
    }

    /// A sequence whose next token cannot be chosen yet takes no part in steps. It keeps its memory and its place.
    pub fn hold(&mut self, id: Id, held: bool) {
        self.entry_mut(id).held = held;
    }

    /// A sequence with a slow reader takes no part until the reader has caught up, and gives way to all others.
    pub fn pause(&mut self, id: Id, paused: bool) {
        self.entry_mut(id).paused = paused;
    }

    /// How many tokens a sequence would like to guess at in a step.
    pub fn wish_drafts(&mut self, id: Id, drafts: usize) {
        self.entry_mut(id).drafts = drafts;
    }

    /// Plans a step. Blocks are scrubbed and copied through `store` on the way; when this returns, every turn has its
    /// blocks, and nobody else may write to those it writes to.
    pub fn plan(&mut self, store: &mut impl Store) -> &[ScheduledTokens] {
        self.admit(store);
        self.share();
        self.grow(store);
        self.clock += self.turns.iter().map(|turn| turn.tokens as u64).sum::<u64>();
        &self.turns
    }

    /// After a step: a sequence has `cached` positions in the cache and knows `known` tokens.
    pub fn advance(&mut self, id: Id, cached: usize, known: usize, outputs_from: usize) {
        let entry = self.entries.get_mut(&id).expect("a sequence that has not ended");
        (entry.cached, entry.known, entry.outputs_from) = (cached, known, outputs_from);
        let Some(prefix) = entry.prefix else { return };
        let Some(kept) = self.kept.get_mut(&prefix.key).filter(|kept| kept.public) else { return };
        // whoever computes a block of a public prompt first gives it to all
        let whole = prefix.tokens.min(cached) / BLOCK;
        if kept.table.len() < whole {
            let fresh = &entry.table[kept.table.len()..whole];
            self.pool.share(fresh);
            kept.table.extend(fresh);
            kept.cached = whole * BLOCK;
        }
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
        self.kept.entry(key).or_insert(Kept { public, used: self.clock, ..Kept::default() });
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

    /// Lets those who wait run, in order of rank and never out of it, while there is room.
    fn admit(&mut self, store: &mut impl Store) {
        while let Some(&next) = self.waiting.iter().find(|rank| self.entry(rank.id).is_ready()) {
            let (needed, ahead) = (blocks_for(self.entry(next.id).known), self.ahead_of(next));
            if ahead >= self.limits.sequences || needed + ahead > self.obtainable(next) {
                return;
            }
            // From here on it succeeds: nobody gives way for nothing.
            self.waiting.remove(&next);
            let reused = self.adopt(next.id, store);
            let entry = self.entry_mut(next.id);
            entry.reused.get_or_insert(reused);
            entry.admissions += 1;
            let wanted = needed - entry.table.len();
            while self.running.len() >= self.limits.sequences || self.pool.free() < wanted + ahead {
                let full = self.running.len() >= self.limits.sequences;
                if (full || !self.evict(store)) && !self.preempt_for(next, store) {
                    break;
                }
            }
            let entry = self.entries.get_mut(&next.id).expect("it waited");
            assert!(self.pool.take(wanted, &mut entry.table), "counted as obtainable");
            let place = self.running.partition_point(|other| *other < next);
            self.running.insert(place, next);
        }
    }

    /// Those who run and do not give way to `rank`.
    fn ahead_of(&self, rank: Rank) -> usize {
        self.running.iter().filter(|other| **other < rank && !self.entry(other.id).paused).count()
    }

    /// Blocks that could be had for `rank`: all but those of sequences that do not give way to it, and of what they
    /// share with others.
    fn obtainable(&self, rank: Rank) -> usize {
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
    fn adopt(&mut self, id: Id, store: &mut impl Store) -> usize {
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
    fn evict(&mut self, store: &mut impl Store) -> bool {
        let idle = |kept: &&Kept| kept.table.iter().any(|&block| !self.pool.is_shared(block));
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
    fn preempt_for(&mut self, rank: Rank, store: &mut impl Store) -> bool {
        let paused = self.running.iter().rev().find(|other| **other != rank && self.entry(other.id).paused);
        let last = self.running.last().filter(|last| **last > rank);
        let Some(&victim) = paused.or(last) else { return false };
        self.preempt(victim, store);
        true
    }

    fn preempt(&mut self, victim: Rank, store: &mut impl Store) {
        self.preemptions += 1;
        self.running.retain(|rank| *rank != victim);
        self.turns.retain(|turn| turn.id != victim.id);
        self.waiting.insert(victim);
        let entry = self.entry_mut(victim.id);
        entry.cached = 0;
        let table = std::mem::take(&mut entry.table);
        self.let_go(table, Some(victim.id), store);
    }

    /// Shares the step's tokens and rows of logits out.
    fn share(&mut self) {
        self.turns.clear();
        let (mut tokens, mut prefill) = (self.limits.step_tokens, Vec::new());
        let mut guesses = 0;
        let running = self.running.iter().map(|rank| &self.entries[&rank.id]);
        let active: Vec<&Entry> = running.filter(|entry| entry.is_ready()).collect();
        // everyone is sure of one row of logits
        let mut outputs = self.limits.outputs - active.len();
        for (place, entry) in active.iter().enumerate() {
            let turn = usize::from(entry.left() == 1);
            tokens -= turn;
            if turn == 0 {
                prefill.push(place);
            }
            guesses += usize::from(turn == 1 && entry.may_guess() > 0);
            self.turns.push(ScheduledTokens { id: entry.rank.id, tokens: turn, drafts: 0 });
        }
        let mut give = |turn: &mut ScheduledTokens, entry: &Entry, most: usize, tokens: &mut usize| {
            let before = entry.cached + turn.tokens;
            let wanted = (entry.left() - turn.tokens).min(most).min(*tokens);
            let granted = wanted.min(entry.within(outputs + 1).saturating_sub(turn.tokens));
            let rows = |to: usize| to.saturating_sub(entry.outputs_from.max(entry.cached));
            // the first row is the one it is sure of
            let used = rows(before + granted).saturating_sub(1) - rows(before).saturating_sub(1);
            outputs -= used.min(outputs);
            turn.tokens += granted;
            *tokens -= granted;
        };
        if let Some(&eldest) = prefill.first() {
            let half = tokens - tokens / 2;
            give(&mut self.turns[eldest], active[eldest], half, &mut tokens);
            prefill[1..].sort_by_key(|&place| (active[place].left(), place));
            for &place in prefill[1..].iter().chain([&eldest]) {
                give(&mut self.turns[place], active[place], usize::MAX, &mut tokens);
            }
        }
        // what is left may be guessed at, in equal parts
        for (turn, entry) in self.turns.iter_mut().zip(&active).filter(|(_, entry)| entry.left() == 1) {
            if entry.may_guess() > 0 {
                turn.drafts = entry.may_guess().min(tokens.min(outputs) / guesses);
                guesses -= 1;
                tokens -= turn.drafts;
                outputs -= turn.drafts;
            }
        }
        self.turns.retain(|turn| turn.tokens > 0);
    }

    /// Gets blocks for every turn, in order of rank. Guesses are dropped rather than somebody's blocks taken for them.
    fn grow(&mut self, store: &mut impl Store) {
        let mut place = 0;
        while let Some(&ScheduledTokens { id, tokens, drafts }) = self.turns.get(place) {
            let rank = self.entry(id).rank;
            if drafts > 0 && self.wanted(id, tokens + drafts) > self.pool.free() {
                self.turns[place].drafts = 0;
                continue;
            }
            if self.wanted(id, tokens + drafts) <= self.pool.free() {
                self.give_blocks(id, tokens + drafts, store);
                place += 1;
            } else if !self.evict(store) && !self.preempt_for(rank, store) {
                self.preempt(rank, store); // the last in rank gives way itself; the next turn moves to this place
            }
            // who gave way may have stood before this one: a paused or held sequence has no turn, so none did
        }
    }

    /// Blocks that a turn of `tokens` needs: new ones, and copies of those that others hold too.
    fn wanted(&self, id: Id, tokens: usize) -> usize {
        let entry = self.entry(id);
        let end = entry.cached + tokens;
        let written = entry.cached / BLOCK..blocks_for(end).min(entry.table.len());
        let copies = entry.table[written].iter().filter(|block| self.pool.is_shared(**block)).count();
        blocks_for(end).saturating_sub(entry.table.len()) + copies
    }

    fn give_blocks(&mut self, id: Id, tokens: usize, store: &mut impl Store) {
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

#[cfg(test)]
mod simulator;
