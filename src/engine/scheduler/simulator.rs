//! The scheduler against thousands of random arrivals, with numbers in place of a model.
//!
//! A position's cache cell holds a hash of all tokens up to it, and the next token is drawn from that hash. So a block
//! that is shared wrongly, lost, given out before it is scrubbed or not computed again after a preemption shows at
//! once: as a cell that is not what the sequence's own tokens say, and as a token that differs from the one the
//! sequence gets alone.

use std::collections::HashMap;

use super::*;
use crate::memory::scrub;
use crate::sample::rng::mix;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// The cache: what stands for keys and values.
struct Cells(Vec<u64>);

impl Store for Cells {
    fn scrub(&mut self, blocks: &[u32], _: Option<Id>) -> Option<Scrubbed> {
        Scrubbed::sum(blocks.iter().map(|&block| scrub(&mut self.0[block as usize * BLOCK..][..BLOCK])))
    }

    fn copy(&mut self, from: u32, to: u32) {
        assert!(self.block(to).iter().all(|&cell| cell == 0), "a block was given out before it was scrubbed");
        self.0.copy_within(from as usize * BLOCK..(from as usize + 1) * BLOCK, to as usize * BLOCK);
    }

    /// All hashes are odd, zeros and what is sealed are even; so a block cannot be sealed or opened twice unseen.
    fn seal(&mut self, blocks: &[u32]) {
        for &block in blocks {
            let cells = &mut self.0[block as usize * BLOCK..][..BLOCK];
            cells.iter_mut().filter(|cell| **cell % 2 == 1).for_each(|cell| *cell = !*cell);
        }
    }

    fn open(&mut self, blocks: &[u32]) {
        for &block in blocks {
            let cells = &mut self.0[block as usize * BLOCK..][..BLOCK];
            cells.iter_mut().filter(|cell| **cell != 0 && **cell % 2 == 0).for_each(|cell| *cell = !*cell);
        }
    }
}

impl Cells {
    fn block(&self, block: u32) -> &[u64] {
        &self.0[block as usize * BLOCK..][..BLOCK]
    }
}

struct Sequence {
    tokens: Vec<u64>,
    prompt: usize,
    most: usize,
    key: Option<Key>,
    forks: u64,
    /// Differs between forks of one prompt.
    seed: u64,
    tenant: u128,
    /// Another tenant's sequence was here since it arrived.
    met_others: bool,
}

impl Sequence {
    /// The hash after each token.
    fn cell(before: u64, token: u64) -> u64 {
        mix(before ^ token.wrapping_mul(0x2545_f491_4f6c_dd1d)) | 1
    }

    fn next(&self, cell: u64) -> u64 {
        mix(cell ^ self.seed) % 1000
    }

    /// What it gives with nobody else around.
    fn alone(&self) -> Vec<u64> {
        let mut cell = 0;
        let mut tokens = self.tokens[..self.prompt].to_vec();
        for token in &tokens {
            cell = Self::cell(cell, *token);
        }
        while tokens.len() < self.most {
            tokens.push(self.next(cell));
            cell = Self::cell(cell, *tokens.last().unwrap());
        }
        tokens
    }
}

struct Simulation {
    scheduler: Scheduler,
    cells: Cells,
    sequences: HashMap<Id, Sequence>,
    /// What a conversation's cells were made from, or what a public prompt says.
    kept: HashMap<Key, (bool, Vec<u64>)>,
    ids: u64,
    random: Random,
    ended: usize,
    /// Turns with guesses.
    guessed: usize,
    waited: HashMap<Id, Rank>,
}

impl Simulation {
    fn new(limits: Limits, seed: u64) -> Self {
        Self {
            scheduler: Scheduler::new(limits),
            cells: Cells(vec![0; limits.blocks * BLOCK]),
            sequences: HashMap::new(),
            kept: HashMap::new(),
            ids: 0,
            random: Random(seed),
            ended: 0,
            guessed: 0,
            waited: HashMap::new(),
        }
    }

    fn arrive(&mut self) {
        let limits = self.scheduler.limits;
        let capacity = (limits.blocks * BLOCK).min(limits.context) as u64;
        let most = 2 + self.random.below(capacity - 1) * (1 + self.random.below(8)) / 8;
        let prompt = 1 + self.random.below(most - 1);
        let mut tokens: Vec<u64> = (0..prompt).map(|_| self.random.below(1000)).collect();
        let key = (self.random.below(3) == 0).then(|| 1 + self.random.below(6));
        if let Some(key) = key {
            let public = key % 2 == 0;
            let (_, known) = self.kept.entry(key).or_insert_with(|| {
                self.scheduler.keep(key, public);
                (public, (0..200).map(|token| token * key).collect())
            });
            let common = (self.random.below(known.len() as u64 + 1)).min(prompt) as usize;
            tokens[..common].copy_from_slice(&known[..common]);
        }
        // one request of a conversation at a time
        let busy =
            self.sequences.values().any(|other| other.key == key && key.is_some_and(|key| key % 2 == 1));
        let key = key.filter(|_| !busy);
        let prefix = key.map(|key| {
            let known = &self.kept[&key].1;
            Prefix { key, tokens: tokens.iter().zip(known).take_while(|(a, b)| a == b).count() }
        });
        self.ids += 1;
        let outputs_from = if self.random.below(5) == 0 { 0 } else { prompt as usize - 1 };
        let handicap = [0, 500, 4000][self.random.below(3) as usize];
        // one tenant for a while, or nobody would guess; then others come to him, and are alone when all before have gone
        let there = self.sequences.values().map(|other| other.tenant).max();
        let stranger = self.ids > 200 && self.random.below(8) == 0;
        let tenant = there.filter(|_| !stranger).unwrap_or(self.ids.into());
        let owner = Some(Owner::Tenant(tenant));
        // some were read for a while before they came here
        let clock = Some(self.scheduler.clock().saturating_sub(100 * self.random.below(3)));
        let arrival = Arrival { clock, handicap, known: prompt as usize, outputs_from, prefix, owner };
        self.scheduler.arrive(self.ids, arrival);
        if self.random.below(2) == 0 {
            self.scheduler.request_drafts(self.ids, 4);
        }
        let forks = if self.random.below(4) == 0 { self.random.below(4) } else { 0 };
        let (prompt, most) = (prompt as usize, most as usize);
        let sequence = Sequence { tokens, prompt, most, key, forks, seed: 0, tenant, met_others: false };
        self.waited.insert(self.ids, self.scheduler.entry(self.ids).rank);
        self.sequences.insert(self.ids, sequence);
        let mut here = self.sequences.values().map(|other| other.tenant);
        if here.any(|other| other != tenant) {
            self.sequences.values_mut().for_each(|other| other.met_others = true);
        }
    }

    fn step(&mut self) {
        let turns = self.scheduler.plan(&mut self.cells).to_vec();
        self.check(&turns);
        for turn in turns {
            self.compute(turn);
        }
        self.random_events();
        self.check_blocks();
    }

    fn check(&mut self, turns: &[ScheduledTokens]) {
        let limits = self.scheduler.limits;
        let tokens: usize = turns.iter().map(|turn| turn.tokens + turn.drafts).sum();
        assert!(tokens <= limits.step_tokens && turns.len() <= limits.sequences);
        let rows: usize = turns
            .iter()
            .map(|turn| {
                let entry = self.scheduler.entry(turn.id);
                let end = entry.cached + turn.tokens;
                end.saturating_sub(entry.outputs_from.max(entry.cached)) + turn.drafts
            })
            .sum();
        assert!(rows <= limits.outputs, "{rows} rows of logits");
        for turn in turns.iter().filter(|turn| turn.drafts > 0) {
            self.guessed += 1;
            let sequence = &self.sequences[&turn.id];
            assert!(!sequence.met_others, "it guesses, and another tenant could see how far that brings it");
            let alone = self.sequences.values().all(|other| other.tenant == sequence.tenant);
            assert!(alone, "it guesses in a step that it shares with another tenant");
        }
        // who decodes always decodes; the first in rank always goes on
        let active = |rank: &&Rank| {
            let entry = self.scheduler.entry(rank.id);
            !entry.paused && !entry.held
        };
        for rank in self.scheduler.running.iter().filter(active) {
            let entry = self.scheduler.entry(rank.id);
            assert!(entry.left() > 1 || turns.iter().any(|turn| turn.id == rank.id), "a decode was left out");
        }
        let first = self.scheduler.running.iter().find(active);
        assert!(first.is_none_or(|first| turns.iter().any(|turn| turn.id == first.id)), "nobody moves");
        assert!(turns.iter().all(|turn| !self.scheduler.entry(turn.id).held), "a held one has a turn");
        let held = self.scheduler.running.iter().any(|rank| self.scheduler.entry(rank.id).held);
        assert!(first.is_some() || held || !self.scheduler.has_work(), "someone waits though nobody runs");
        // nobody was admitted before one who waits with a better rank
        let waiting: Vec<Rank> = self.scheduler.waiting.iter().copied().collect();
        let best = waiting.iter().find(|rank| !self.scheduler.entry(rank.id).paused);
        for rank in &self.scheduler.running {
            if let Some(admitted) = self.waited.remove(&rank.id) {
                assert!(best.is_none_or(|best| *best > admitted), "overtaken");
            }
        }
    }

    /// What a model would do: writes the turn's cells, reads all before them, draws tokens.
    fn compute(&mut self, turn: ScheduledTokens) {
        let entry = self.scheduler.entry(turn.id);
        let (table, cached) = (entry.table.clone(), entry.cached);
        let sequence = self.sequences.get_mut(&turn.id).unwrap();
        assert_eq!(entry.known, sequence.tokens.len());
        let at = |position: usize| table[position / BLOCK] as usize * BLOCK + position % BLOCK;
        let mut cell = 0;
        for position in 0..cached {
            cell = Sequence::cell(cell, sequence.tokens[position]);
            assert_eq!(self.cells.0[at(position)], cell, "position {position} of {} is not its own", turn.id);
        }
        for position in cached..cached + turn.tokens {
            assert!(!self.scheduler.pool.is_shared(table[position / BLOCK]), "written while shared");
            cell = Sequence::cell(cell, sequence.tokens[position]);
            self.cells.0[at(position)] = cell;
        }
        let mut cached = cached + turn.tokens;
        if cached < sequence.tokens.len() {
            self.scheduler.advance(turn.id, cached, sequence.tokens.len(), entry.outputs_from);
            return;
        }
        if self.random.below(20) == 0 {
            // what its next token is chosen with is late: the last one is computed once more
            let known = sequence.tokens.len();
            self.scheduler.advance(turn.id, known - 1, known, known - 1);
            self.scheduler.hold(turn.id, true);
            return;
        }
        // guesses, of which some are right; wrong ones leave their cells behind
        let forks = std::mem::take(&mut sequence.forks);
        let most = sequence.most - sequence.tokens.len() - 1;
        let guesses = if forks > 0 { 0 } else { turn.drafts.min(most) };
        let right = if guesses == 0 { 0 } else { self.random.below(guesses as u64 + 1) as usize };
        for guess in 0..guesses {
            let token = sequence.next(cell) + u64::from(guess >= right);
            cell = Sequence::cell(cell, token);
            self.cells.0[at(cached + guess)] = cell;
            if guess < right {
                sequence.tokens.push(token);
            }
        }
        cached += right;
        let cell = self.cells.0[at(cached - 1)];
        let token = sequence.next(cell);
        sequence.tokens.push(token);
        let known = sequence.tokens.len();
        self.scheduler.advance(turn.id, cached, known, known - 1);
        for seed in 1..=forks {
            let parent = &self.sequences[&turn.id];
            let mut tokens = parent.tokens[..cached].to_vec();
            let fork = Sequence { seed, tokens: Vec::new(), key: None, forks: 0, ..*parent };
            tokens.push(fork.next(cell));
            self.ids += 1;
            self.scheduler.fork(turn.id, self.ids);
            self.sequences.insert(self.ids, Sequence { tokens, ..fork });
        }
        for id in (self.ids - forks + 1..=self.ids).chain([turn.id]) {
            if self.sequences[&id].tokens.len() >= self.sequences[&id].most {
                self.end(id);
            }
        }
    }

    fn end(&mut self, id: Id) {
        let sequence = self.sequences.remove(&id).unwrap();
        let count = sequence.tokens.len();
        let alone = Sequence { tokens: sequence.tokens.clone(), ..sequence }.alone();
        assert!(
            count <= alone.len() && sequence.tokens == alone[..count],
            "{id} has other tokens than alone"
        );
        let keep = count == alone.len();
        if let Some(key) = sequence.key.filter(|key| key % 2 == 1 && keep) {
            let cached = self.scheduler.entry(id).cached;
            self.kept.insert(key, (false, sequence.tokens[..cached].to_vec()));
        }
        self.scheduler.end(id, keep, &mut self.cells);
        // a request is over when none of its choices holds what it left
        if let Some(key) = sequence.key.filter(|key| key % 2 == 1) {
            let kept = self.scheduler.kept.get(&key).map_or(&[][..], |kept| &kept.table);
            if kept.iter().all(|&block| !self.scheduler.pool.is_shared(block)) {
                self.scheduler.rest(key, &mut self.cells);
            }
        }
        self.waited.remove(&id);
        self.ended += 1;
    }

    /// Cancellations, slow readers, what was late, conversations that end.
    fn random_events(&mut self) {
        let mut ids: Vec<Id> = self.sequences.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            if self.random.below(3) == 0 {
                self.scheduler.hold(id, false);
            }
            match self.random.below(400) {
                0 => self.end(id),
                1..=4 => self.scheduler.pause(id, true),
                5..=24 => self.scheduler.pause(id, false),
                _ => {}
            }
        }
        if self.random.below(50) == 0 {
            let key = 1 + self.random.below(6);
            if !self.sequences.values().any(|sequence| sequence.key == Some(key))
                && self.kept.remove(&key).is_some()
            {
                self.scheduler.forget(key, &mut self.cells);
            }
        }
    }

    /// Every block is free and clean, or held as often as it stands in tables.
    fn check_blocks(&self) {
        let mut held = vec![0; self.scheduler.pool.count()];
        let tables = self.scheduler.entries.values().map(|entry| &entry.table);
        for &block in tables.chain(self.scheduler.kept.values().map(|kept| &kept.table)).flatten() {
            held[block as usize] += 1;
        }
        for (block, &held) in held.iter().enumerate() {
            assert_eq!(self.scheduler.pool.is_shared(block as u32), held > 1);
            let clean = self.cells.block(block as u32).iter().all(|&cell| cell == 0);
            assert!(held > 0 || clean, "block {block} is free and was not scrubbed");
        }
        let mut owners = HashMap::new();
        for sequence in self.sequences.values() {
            *owners.entry(Owner::Tenant(sequence.tenant)).or_insert(0) += 1;
        }
        assert_eq!(self.scheduler.owners, owners, "a sequence is not counted as its owner's");
        let in_use = held.iter().filter(|held| **held > 0).count();
        assert_eq!(self.scheduler.blocks_in_use(), in_use, "a block is lost");
        for rank in &self.scheduler.waiting {
            assert!(self.scheduler.entry(rank.id).table.is_empty(), "whoever waits holds nothing");
        }
    }

    fn run(&mut self, requests: usize) {
        let (mut arrived, mut steps) = (0, 0);
        while arrived < requests || !self.sequences.is_empty() {
            let burst = if self.random.below(10) == 0 { self.random.below(12) } else { 0 };
            for _ in 0..burst.min((requests - arrived) as u64) {
                self.arrive();
                arrived += 1;
            }
            self.step();
            if arrived == requests {
                let ids: Vec<Id> = self.sequences.keys().copied().collect();
                ids.into_iter().for_each(|id| self.scheduler.pause(id, false));
            }
            steps += 1;
            assert!(steps < 400 * requests, "someone starves: {} are left", self.sequences.len());
        }
        assert!(self.ended >= requests);
        let keys: Vec<Key> = self.kept.keys().copied().collect();
        keys.into_iter().for_each(|key| self.scheduler.forget(key, &mut self.cells));
        assert_eq!(self.scheduler.blocks_in_use(), 0);
        assert!(self.cells.0.iter().all(|&cell| cell == 0));
    }
}

fn limits(blocks: usize, sequences: usize, step_tokens: usize) -> Limits {
    let context = (blocks * BLOCK).min(800);
    Limits { step_tokens, sequences, outputs: sequences + step_tokens.min(8), blocks, context }
}

#[test]
fn random_requests_all_end_with_the_tokens_they_get_alone() {
    let mut guessed = 0;
    for (seed, (blocks, sequences, step_tokens)) in
        [(4, 4, 16), (7, 3, 8), (12, 8, 64), (20, 2, 32), (40, 16, 128), (6, 12, 512), (1, 2, 4)]
            .into_iter()
            .enumerate()
    {
        for round in 0..3 {
            let mut simulation =
                Simulation::new(limits(blocks, sequences, step_tokens), 31 * seed as u64 + round);
            simulation.run(500);
            let scheduler = &simulation.scheduler;
            assert!(scheduler.preemptions() > 0 || blocks == 1, "memory was never short: a lame test");
            guessed += simulation.guessed;
        }
    }
    assert!(guessed > 1000, "{guessed} turns with guesses: a lame test");
}

/// Turns of sequences that arrive with these prompts, all at once, in a cache that is large enough.
fn first_turns(prompts: &[usize], step_tokens: usize) -> Vec<usize> {
    let mut scheduler = Scheduler::new(Limits { context: 10_000, ..limits(400, 8, step_tokens) });
    let mut cells = Cells(vec![0; 400 * BLOCK]);
    for (id, &known) in prompts.iter().enumerate() {
        let arrival = Arrival { known, outputs_from: known - 1, ..Arrival::default() };
        scheduler.arrive(id as Id, arrival);
    }
    let turns = scheduler.plan(&mut cells);
    let tokens = |id| turns.iter().find(|turn| turn.id == id as Id).map_or(0, |turn| turn.tokens);
    (0..prompts.len()).map(tokens).collect()
}

#[test]
fn decode_goes_first_then_half_to_the_eldest_then_the_shortest() {
    assert_eq!(first_turns(&[100, 1, 50, 1], 64), [62 - 31, 1, 31, 1]);
    assert_eq!(first_turns(&[10, 1, 50], 64), [10, 1, 50]);
    assert_eq!(first_turns(&[500, 300, 20, 30], 128), [64, 14, 20, 30]);
    assert_eq!(first_turns(&[500], 128), [128]);
}

#[test]
fn a_better_rank_takes_the_place_of_a_worse_one_and_an_old_one_is_not_overtaken() {
    let mut scheduler = Scheduler::new(limits(2, 4, 64));
    let mut cells = Cells(vec![0; 2 * BLOCK]);
    let long = |handicap| Arrival { handicap, known: 65, outputs_from: 64, ..Arrival::default() };
    scheduler.arrive(1, long(1000));
    assert_eq!(scheduler.plan(&mut cells)[0].id, 1);
    scheduler.arrive(2, long(0));
    let turns = scheduler.plan(&mut cells);
    assert_eq!((turns[0].id, turns.len(), scheduler.preemptions()), (2, 1, 1));
    scheduler.end(2, false, &mut cells);
    // once the clock has passed its rank, nobody who arrives goes before it
    scheduler.clock = 1001;
    scheduler.arrive(3, long(0));
    assert_eq!(scheduler.plan(&mut cells)[0].id, 1);
}

#[test]
fn who_has_many_sequences_gives_way_with_the_last_ones() {
    let mut scheduler = Scheduler::new(limits(5, 8, 256));
    let mut cells = Cells(vec![0; 5 * BLOCK]);
    let arrival = |owner| Arrival { known: 65, outputs_from: 64, owner, ..Arrival::default() };
    let ids = |turns: &[ScheduledTokens]| turns.iter().map(|turn| turn.id).collect::<Vec<_>>();
    // one request with two choices, and one tenant with two requests: two blocks each
    for tenant in [None, Some(Owner::Tenant(7))] {
        scheduler.arrive(1, arrival(tenant));
        assert_eq!(ids(scheduler.plan(&mut cells)), [1]);
        scheduler.advance(1, 65, 66, 65);
        match tenant {
            None => scheduler.fork(1, 2),
            Some(_) => scheduler.arrive(2, arrival(tenant)),
        }
        assert_eq!(ids(scheduler.plan(&mut cells))[0], 1);
        scheduler.arrive(3, arrival(None));
        let turns = ids(scheduler.plan(&mut cells));
        assert!(turns.contains(&1) && turns.contains(&3) && !turns.contains(&2), "{turns:?}");
        // and it has its place again before those that come once the clock has passed its rank
        scheduler.end(3, false, &mut cells);
        scheduler.clock += 256;
        scheduler.arrive(4, arrival(None));
        let turns = ids(scheduler.plan(&mut cells));
        assert!(turns.contains(&2) && !turns.contains(&4), "{turns:?}");
        for id in [1, 2, 4] {
            scheduler.end(id, false, &mut cells);
        }
    }
}

#[test]
fn a_conversation_continues_its_blocks_and_others_do_not() {
    let mut scheduler = Scheduler::new(limits(8, 4, 512));
    let mut cells = Cells(vec![0; 8 * BLOCK]);
    let arrival = |known, prefix| Arrival { known, outputs_from: known - 1, prefix, ..Arrival::default() };
    scheduler.keep(9, false);
    scheduler.arrive(1, arrival(100, Some(Prefix { key: 9, tokens: 0 })));
    scheduler.plan(&mut cells);
    let table = scheduler.entry(1).table.clone();
    scheduler.advance(1, 100, 101, 100);
    cells.0[table[0] as usize * BLOCK] = 7;
    scheduler.end(1, true, &mut cells);
    assert_eq!(scheduler.blocks_in_use(), 2);
    scheduler.rest(9, &mut cells);
    assert_ne!(cells.block(table[0])[0], 7, "nobody reads it between two turns");
    scheduler.arrive(2, arrival(150, None));
    scheduler.arrive(3, arrival(150, Some(Prefix { key: 9, tokens: 90 })));
    scheduler.plan(&mut cells);
    assert_eq!((scheduler.entry(2).reused, scheduler.entry(3).reused), (Some(0), Some(90)));
    assert_eq!(scheduler.entry(3).table[..2], table);
    assert_eq!(cells.block(table[0])[0], 7, "the next turn reads what was there");
    assert!(scheduler.entry(2).table.iter().all(|block| !table.contains(block)));
}

/// All turns of a session in which sequence 1 guesses and `right` of four guesses are right each time, until it has 60
/// tokens from when sequence 2 comes; that is in the third step, and `other` says whose it is. It stays for ten tokens; then
/// others come and go, 3, 4 and so on, each for one.
fn turns_beside(right: usize, other: Owner) -> Vec<Vec<ScheduledTokens>> {
    let mut scheduler = Scheduler::new(Limits { context: 10_000, ..limits(40, 8, 64) });
    let mut cells = Cells(vec![0; 40 * BLOCK]);
    let arrival = |owner| Arrival { known: 8, outputs_from: 7, owner: Some(owner), ..Arrival::default() };
    scheduler.arrive(1, arrival(Owner::Tenant(7)));
    let (mut all, mut next, mut left, mut most) = (Vec::new(), 2, 0, usize::MAX);
    for step in 0..100 {
        if step == 2 {
            most = scheduler.entry(1).known + 60;
        }
        if step >= 2 && left == 0 && step % 3 == 2 {
            scheduler.arrive(next, arrival(other));
            left = if next == 2 { 10 } else { 1 };
        }
        let turns = scheduler.plan(&mut cells).to_vec();
        for turn in &turns {
            let (cached, known) = (scheduler.entry(turn.id).cached, scheduler.entry(turn.id).known);
            let accepted = right.min(turn.drafts);
            scheduler.advance(
                turn.id,
                cached + turn.tokens + accepted,
                known + 1 + accepted,
                known + accepted,
            );
            scheduler.request_drafts(turn.id, if turn.id == 1 { 4 } else { 0 });
            if turn.id == next {
                left -= 1;
            }
        }
        if left == 0 && turns.iter().any(|turn| turn.id == next) {
            scheduler.end(next, false, &mut cells);
            next += 1;
        }
        if turns.iter().any(|turn| turn.id == 1) && scheduler.entry(1).known >= most {
            scheduler.end(1, false, &mut cells);
        }
        all.push(turns);
    }
    all
}

#[test]
fn from_when_two_tenants_meet_the_steps_do_not_tell_what_is_guessed_right() {
    let other = Owner::Request(2);
    let shared = turns_beside(4, other);
    assert_eq!(shared, turns_beside(0, other), "right guesses show");
    assert!(shared[1][0].drafts == 4, "it guesses while it is alone");
    assert!(shared[2..].iter().flatten().all(|turn| turn.drafts == 0 && (turn.id > 1 || turn.tokens == 1)));
    assert_eq!(shared.iter().filter(|turns| turns.iter().any(|turn| turn.id == 1)).count(), 62);
    assert!(shared.iter().flatten().filter(|turn| turn.id > 3).count() > 5, "others come and go");
    let same = turns_beside(4, Owner::Tenant(7));
    let guessing = same.iter().flatten().filter(|turn| turn.id == 1).skip(1);
    assert!(guessing.clone().all(|turn| turn.drafts == 4), "one tenant goes on guessing");
    assert_eq!(guessing.count(), 13, "a fifth of the steps");
}
