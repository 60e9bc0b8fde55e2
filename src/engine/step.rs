//! One step of the worker: guesses, the forward pass, grammar masks beside it, and what is made of the logits.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::ask;
use super::masks::{Looked, Masks};
use super::scheduler::{Id, Turn};
use super::sequence::Sequence;
use super::speculate;
use super::worker::{Ended, Worker};
use crate::backend::Backend;
use crate::error::Result;
use crate::request::Speculation;
use crate::response::FinishReason;
use crate::sample::Context;
use crate::text::{Pieces, Text};

impl<B: Backend> Worker<B> {
    /// One step: all who can compute, those that are done end. Not inlined: the frame of [`Worker::run`] stays while the worker
    /// waits, and nothing cleans it; the last token lay there.
    #[inline(never)]
    pub(super) fn step(&mut self) {
        if self.deadline.is_some_and(|deadline| deadline <= self.clock.now()) {
            self.look_around();
        }
        self.take_looked();
        self.turns.clear();
        self.turns.extend(self.scheduler.plan(&mut self.models));
        self.shared.tokens.store(self.scheduler.clock(), Ordering::SeqCst);
        self.settle_owed();
        let mut turns = std::mem::take(&mut self.turns);
        self.idle = turns.is_empty() && self.sequences.values().any(|sequence| sequence.away);
        self.guess(&mut turns);
        self.send_guides(&turns);
        self.fill_batch(&turns);
        let began = Instant::now();
        if !turns.is_empty() {
            self.models.main.forward();
        }
        let mut ended = self.receive_guides(began);
        *self.shared.counters.lock().unwrap_or_else(PoisonError::into_inner) = self.models.main.counters();
        #[cfg(feature = "testing")]
        self.faults.after_forward();
        self.ask(&turns);
        if self.models.failed() {
            return self.fail_all();
        }
        let mut row = 0;
        for turn in &turns {
            self.read_turn(*turn, &mut row, &mut ended);
        }
        self.turns = turns;
        self.finish(ended);
    }

    /// Guides of those who get a token in this step look while the model computes, but for those whose masks are there.
    fn send_guides(&mut self, turns: &[Turn]) {
        let Some(masks) = &self.masks else { return };
        masks.begin_step();
        let mut looking = Vec::new();
        for turn in turns {
            let sequence = self.sequences.get_mut(&turn.id).expect("who has a turn has not ended");
            let entry = self.scheduler.entry(turn.id);
            if entry.cached + turn.tokens == entry.known
                && let Some(guide) = sequence.guide.take_if(|guide| !guide.is_fresh())
            {
                sequence.away = true;
                looking.push((sequence.job, turn.id, guide));
            }
        }
        if !looking.is_empty() {
            masks.look(looking, true);
        }
    }

    /// Takes guides back. Those that are late are waited for as long as an eighth of what the model took.
    fn receive_guides(&mut self, began: Instant) -> Vec<Ended> {
        if let Some(masks) = &self.masks {
            masks.wait(began.elapsed() / 8);
        }
        self.receive_looked()
    }

    /// Takes guides back between steps.
    pub(super) fn take_looked(&mut self) {
        let ended = self.receive_looked();
        self.finish(ended);
    }

    /// Takes guides back; says which sequences end with what they saw.
    fn receive_looked(&mut self) -> Vec<Ended> {
        let mut ended = Vec::new();
        for Looked { id, guide, result } in self.masks.as_ref().map_or(Vec::new(), Masks::looked) {
            self.idle = false;
            let sequence =
                self.sequences.get_mut(&id).expect("what has ended is forgotten, and not given back");
            let drawn = std::mem::take(&mut sequence.settles);
            (sequence.guide, sequence.away) = (Some(guide), false);
            self.scheduler.hold(id, false);
            match result {
                Err(error) => ended.push((id, Err(error))),
                Ok(()) if drawn => {
                    let reason = sequence.ends(&self.jobs[&sequence.job].outbox);
                    ended.extend(reason.map(|reason| (id, Ok(reason))));
                }
                Ok(()) => {}
            }
        }
        ended
    }

    /// Where taking in the token that was drawn may take long, the guide does it in the slow lane, and the sequence takes
    /// part again when it is back.
    fn defer(&mut self, id: Id) {
        let (Some(masks), Some(sequence)) = (&self.masks, self.sequences.get_mut(&id)) else { return };
        if let Some(guide) = sequence.guide.take_if(|guide| guide.is_pending()) {
            (sequence.away, sequence.settles) = (true, true);
            self.scheduler.hold(id, true);
            masks.look([(sequence.job, id, guide)], false);
        }
    }

    /// Fills in guesses where the scheduler has room for them.
    fn guess(&mut self, turns: &mut [Turn]) {
        for turn in turns.iter_mut() {
            let sequence = self.sequences.get_mut(&turn.id).expect("who has a turn has not ended");
            sequence.reserve();
            sequence.drafts.truncate(0);
            // a guess that can only be the last token saves nothing
            turn.drafts = turn.drafts.min(sequence.common.max_tokens - sequence.generated() - 1);
            // a grammar that takes long would have to look at each guess, here
            if sequence.guide.as_ref().is_some_and(|guide| guide.is_slow()) {
                turn.drafts = 0;
            }
            // who may not guess does not search either: how long that takes depends on the text
            if let Some(Speculation::PromptLookup { ngram, .. }) =
                sequence.common.speculation.filter(|_| turn.drafts > 0)
            {
                let Sequence { ids, drafts, .. } = sequence;
                speculate::lookup(ids.expose(), ngram, turn.drafts, &mut |id| drafts.push(id));
            }
        }
        self.ask_draft(turns);
        for turn in turns.iter_mut() {
            let sequence = self.sequences.get_mut(&turn.id).expect("who has a turn has not ended");
            if let Some(guide) = sequence.guide.as_mut().filter(|_| !sequence.drafts.expose().is_empty()) {
                sequence.drafts.truncate(guide.allowed(sequence.drafts.expose()));
            }
            turn.drafts = sequence.drafts.expose().len();
        }
    }

    /// Lets the draft model go on from each sequence that asks for it, one token at a time. It draws as the main model
    /// will, with the same random numbers: so the better it is, the more often both choose the same.
    fn ask_draft(&mut self, turns: &[Turn]) {
        let by_device = self.asks_draft();
        let Some(draft) = &mut self.models.draft else { return };
        let mut asked = Vec::new();
        for turn in turns.iter().filter(|turn| turn.drafts > 0) {
            let sequence = self.sequences.get_mut(&turn.id).expect("who has a turn has not ended");
            if !matches!(sequence.common.speculation, Some(Speculation::Draft { .. })) {
                continue;
            }
            let entry = self.scheduler.entry(turn.id);
            if sequence.admissions != entry.admissions {
                (sequence.admissions, sequence.draft_cached) = (entry.admissions, 0);
            }
            // the draft's part of a block is filled late: not where others hold the block too
            if !self.scheduler.is_shared(turn.id, sequence.draft_cached) {
                asked.push((*turn, sequence.ids.expose().len()));
            }
        }
        let mut asking = asked.clone();
        while !asking.is_empty() {
            draft.batch.clear();
            let mut room = self.limits.step_tokens;
            for (turn, _) in &asking {
                let sequence = self.sequences.get_mut(&turn.id).expect("who has a turn has not ended");
                let (ids, from) = (sequence.ids.expose(), sequence.draft_cached);
                let end = ids.len().min(from + room);
                room -= end - from;
                if end > from {
                    let table = &self.scheduler.entry(turn.id).table;
                    draft.batch.add(&ids[from..end], &[], from, table, ids.len() - 1, None);
                }
                sequence.draft_cached = end;
            }
            draft.forward();
            if by_device {
                let drawn = asking.iter().map(|(turn, _)| &self.sequences[&turn.id]);
                let drawn = drawn.filter(|sequence| sequence.draft_cached == sequence.ids.expose().len());
                ask::guesses(drawn, &mut self.sampler, &mut self.questions);
                draft.choose(&mut self.questions);
            }
            let mut row = 0;
            asking.retain(|(turn, known)| {
                let sequence = self.sequences.get_mut(&turn.id).expect("who has a turn has not ended");
                if sequence.draft_cached < sequence.ids.expose().len() {
                    return false; // a long prompt is caught up with over several steps
                }
                let context = Context { mask: None, ..sequence.context() };
                let token = match by_device {
                    true => self.questions.answer(row).token(),
                    false => self.sampler.sample(draft.logits(row), &sequence.sampling, &context),
                };
                row += 1;
                let Ok(token) = token else { return false };
                sequence.ids.push(token);
                sequence.ids.expose().len() < known + turn.drafts
            });
        }
        for (turn, known) in asked {
            let Sequence { ids, drafts, .. } = self.sequences.get_mut(&turn.id).expect("it was asked");
            drafts.extend(&ids.expose()[known..]);
            ids.truncate(known);
        }
    }

    fn fill_batch(&mut self, turns: &[Turn]) {
        let batch = &mut self.models.main.batch;
        batch.clear();
        for turn in turns {
            let (entry, sequence) = (self.scheduler.entry(turn.id), &self.sequences[&turn.id]);
            let ids = &sequence.ids.expose()[entry.cached..entry.cached + turn.tokens];
            let (drafts, adapter) = (sequence.drafts.expose(), sequence.common.adapter);
            batch.add(ids, drafts, entry.cached, &entry.table, entry.outputs_from, adapter);
        }
    }

    /// Reads what a turn computed: log probabilities of the prompt, the next token, guesses that were right.
    fn read_turn(&mut self, turn: Turn, row: &mut usize, ended: &mut Vec<Ended>) {
        let entry = self.scheduler.entry(turn.id);
        let (cached, outputs_from) = (entry.cached, entry.outputs_from.max(entry.cached));
        let end = cached + turn.tokens;
        let first_row = *row;
        *row += (end + turn.drafts).saturating_sub(outputs_from);
        let sequence = &self.sequences[&turn.id];
        let known = sequence.ids.expose().len();
        if sequence.common.prompt_logprobs {
            let job = &self.jobs[&sequence.job];
            for position in outputs_from..end.min(known - 1) {
                let (row, token) = (first_row + position - outputs_from, sequence.ids.expose()[position + 1]);
                let told = job.outbox.prompt_logprobs(|out| match self.asked.get(&(row, sequence.choice)) {
                    Some(&asked) => out.take(self.questions.answer(asked)),
                    None => self.sampler.logprobs(self.models.main.logits(row), token, out),
                });
                if let Err(error) = told {
                    return ended.push((turn.id, Err(error)));
                }
            }
        }
        if end < known || sequence.away {
            // whose mask is late computes its last token again, to the same bits, when it is there
            let end = end.min(known - 1);
            self.scheduler.advance(turn.id, end, known, outputs_from.max(end).min(known - 1));
            self.scheduler.hold(turn.id, sequence.away);
            let sequence = self.sequences.get_mut(&turn.id).expect("who has a turn has not ended");
            sequence.draft_cached = sequence.draft_cached.min(end);
            return;
        }
        if ended.iter().all(|(id, _)| *id != turn.id) {
            self.read_tokens(turn, *row - turn.drafts - 1, ended);
        }
    }

    /// Chooses tokens from the logits of `row`, and, as long as guesses were right, of those behind it.
    fn read_tokens(&mut self, turn: Turn, row: usize, ended: &mut Vec<Ended>) {
        let forks = self.fork(turn.id);
        let mut accepted = 0;
        let outcome = loop {
            let outcome = self.choose(turn.id, row + accepted);
            let sequence = &self.sequences[&turn.id];
            let right = sequence.drafts.expose().get(accepted) == sequence.ids.expose().last();
            let pending = sequence.guide.as_ref().is_some_and(|guide| guide.is_pending());
            if !matches!(outcome, Ok(None)) || accepted == turn.drafts || !right || pending {
                break outcome;
            }
            accepted += 1;
        };
        let sequence = self.sequences.get_mut(&turn.id).expect("who has a turn has not ended");
        let cached = self.scheduler.entry(turn.id).cached + turn.tokens + accepted;
        sequence.draft_cached = sequence.draft_cached.min(cached);
        let (known, drafts) =
            (sequence.ids.expose().len(), sequence.common.speculation.map_or(0, Speculation::tokens));
        let job = self.jobs.get_mut(&sequence.job).expect("a member's job");
        job.usage.drafted_tokens += turn.drafts;
        job.usage.accepted_tokens += accepted;
        if job.timing.first_token.is_zero() {
            job.timing.first_token = self.clock.now() - job.accepted;
            job.usage.cached_tokens = self.scheduler.entry(turn.id).reused.unwrap_or(0);
            job.trace.first_token(job.id, job.usage.cached_tokens);
        }
        let full = job.outbox.is_full(sequence.choice);
        match outcome {
            Ok(None) => {
                self.scheduler.advance(turn.id, cached, known, known - 1);
                self.scheduler.wish_drafts(turn.id, drafts);
                self.pause_if(turn.id, full);
                self.defer(turn.id);
            }
            Ok(Some(reason)) => {
                self.scheduler.advance(turn.id, cached.min(known), known, known - 1);
                ended.push((turn.id, Ok(reason)));
            }
            Err(error) => ended.push((turn.id, Err(error))),
        }
        for fork in forks {
            self.begin_fork(turn.id, fork, row, ended);
        }
    }

    fn pause_if(&mut self, id: Id, full: bool) {
        if full {
            self.scheduler.pause(id, true);
            self.paused.push(id);
        }
    }

    /// The other choices of a request whose first token is about to be chosen.
    fn fork(&mut self, id: Id) -> Vec<Sequence> {
        let sequence = &self.sequences[&id];
        let job = self.jobs.get_mut(&sequence.job).expect("a member's job");
        let pieces = self.text.as_deref().map(Text::pieces);
        job.unborn.drain(..).map(|(choice, guide)| sequence.fork(choice, guide, pieces)).collect()
    }

    fn begin_fork(&mut self, first: Id, fork: Sequence, row: usize, ended: &mut Vec<Ended>) {
        let id = self.new_id();
        let (job, choice) = (fork.job, fork.choice);
        self.scheduler.fork(first, id);
        self.jobs.get_mut(&job).expect("a member's job").members.push(id);
        self.sequences.insert(id, fork);
        match self.choose(id, row) {
            Ok(None) => {
                let known = self.sequences[&id].ids.expose().len();
                let cached = self.scheduler.entry(id).cached;
                self.scheduler.advance(id, cached, known, known - 1);
                let full = self.jobs[&job].outbox.is_full(choice);
                self.pause_if(id, full);
                self.defer(id);
            }
            Ok(Some(reason)) => ended.push((id, Ok(reason))),
            Err(error) => ended.push((id, Err(error))),
        }
    }

    /// Chooses a sequence's next token from a row of logits; says whether it ends with it.
    fn choose(&mut self, id: Id, row: usize) -> Result<Option<FinishReason>> {
        let sequence = self.sequences.get_mut(&id).expect("who has a turn has not ended");
        #[cfg(feature = "testing")]
        sequence.taps.at(sequence.generated(), || self.models.main.logits(row))?;
        let asked = self.asked.get(&(row, sequence.choice)).map(|&asked| self.questions.answer(asked));
        if let Some(guide) = sequence.guide.as_mut().filter(|guide| !guide.is_fresh()) {
            guide.look(self.masks.as_ref().map_or(0, Masks::step))?; // behind a guess: else it was computed beside the model
        }
        let token = match asked {
            Some(answer) => answer.token()?,
            None => {
                let logits = self.models.main.logits(row);
                self.sampler.sample(logits, &sequence.sampling, &sequence.context())?
            }
        };
        if let Some(guide) = &mut sequence.guide {
            guide.accept(token)?;
        }
        let outbox = &self.jobs[&sequence.job].outbox;
        let wanted = sequence.common.logprobs;
        let pieces: Option<&Pieces> = self.text.as_deref().map(Text::pieces);
        let mut told = Ok(());
        let ended = sequence.take(token, pieces, outbox, |out| match asked {
            _ if !wanted => {}
            Some(answer) => told = out.take(answer),
            None => told = self.sampler.logprobs(self.models.main.logits(row), token, out),
        });
        told.map(|()| ended)
    }
}
