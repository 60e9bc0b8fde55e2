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
//!
//! [`entry`] has sequences in numbers, [`memory`] who holds which blocks. Steps are planned here.

mod entry;
mod memory;
#[cfg(test)]
mod simulator;

use std::collections::{BTreeSet, HashMap};

use self::memory::CachedPrefix;
use crate::backend::BLOCK;
use crate::memory::Scrubbed;
use crate::memory::blocks::BlockPool;
use crate::model::decoder::{Limits, blocks_for};

pub use self::entry::{Arrival, Entry, Owner, Prefix, Rank, ScheduledTokens};
pub use crate::lease::Key;

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

/// The scheduler. See the module.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    entries: HashMap<Id, Entry>,
    /// In order of rank.
    running: Vec<Rank>,
    waiting: BTreeSet<Rank>,
    kept: HashMap<Key, CachedPrefix>,
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

    /// Sequences that have blocks.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait for blocks.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
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
    pub fn request_drafts(&mut self, id: Id, drafts: usize) {
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
}
