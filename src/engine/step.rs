//! One step of the worker: guesses, the forward pass, grammar masks beside it, and what is made of the logits.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::ask::{self, QueryRanges};
use super::masks::{FinishedMask, Masks};
use super::plan::{Rows, ScheduledSeq};
use super::scheduler::{Id, ScheduledTokens};
use super::sequence::Sequence;
use super::shell::Work;
use super::speculate;
use super::worker::{Ended, Worker};
use crate::backend::Backend;
use crate::error::Result;
use crate::memory::scrub;
use crate::outcome::FinishReason;
use crate::request::Speculation;
use crate::sample::Context;
use crate::text::{Pieces, Text};

impl<B: Backend> Worker<B> {
    /// One step: all who can compute, those that are done end. Not inlined: the frame of [`Work::run`] stays while the worker
    /// waits, and nothing cleans it; the last token lay there.
    #[inline(never)]
    pub(super) fn step(&mut self) {
        if self.deadline.is_some_and(|deadline| deadline <= self.shell.clock.now()) {
            self.check_deadlines();
        }
        self.take_masks();
        self.schedule();
        self.guess();
        self.plan_step();
        self.send_guides();
        let began = Instant::now();
        if self.models.main.plan.len() > 0 {
            self.models.main.forward();
        }
        let mut ended = self.receive_guides(began);
        self.shell.show_counters(self.models.main.counters());
        #[cfg(feature = "testing")]
        self.faults.after_forward();
        self.ask();
        if self.models.failed() {
            return self.fail_all();
        }
        for place in 0..self.models.main.plan.len() {
            let scheduled = self.models.main.plan.sequence(place);
            self.read_logits(scheduled, self.asked[place], &mut ended);
            let sequence = self.sequences.get_mut(&scheduled.id).expect("it ends when the step is over");
            sequence.keep_guesses(0);
        }
        self.finish(ended);
    }

    /// Lets the scheduler choose who takes part.
    fn schedule(&mut self) {
        self.turns.clear();
        self.turns.extend(self.scheduler.plan(&mut self.models));
        self.shell.shared.tokens.store(self.scheduler.clock(), Ordering::SeqCst);
        self.enter_pending_accounts();
        self.idle = self.turns.is_empty() && self.sequences.values().any(|sequence| sequence.away);
    }

    /// Works out the rows of all who take part.
    fn plan_step(&mut self) {
        let mask = self.models.main.mask();
        let plan = &mut self.models.main.plan;
        plan.clear();
        for turn in &self.turns {
            let (entry, sequence) = (self.scheduler.entry(turn.id), &self.sequences[&turn.id]);
            let guesses = sequence.guesses().len();
            plan.add(Rows {
                id: turn.id,
                ids: &sequence.ids_with_guesses()[entry.cached..entry.cached + turn.tokens + guesses],
                guesses,
                position: entry.cached,
                table: &entry.table,
                logits_from: entry.outputs_from,
                adapter: sequence.common.adapter,
                mask,
            });
        }
        scrub::empty(&mut self.turns);
    }

    /// Starts the grammar masks of the sequences that are sampled in this step, but for those whose masks are there.
    fn send_guides(&mut self) {
        let Some(masks) = &self.masks else { return };
        masks.begin_step();
        let mut looking = Vec::new();
        for place in 0..self.models.main.plan.len() {
            let scheduled = self.models.main.plan.sequence(place);
            let sequence = self.sequences.get_mut(&scheduled.id).expect("a scheduled sequence has not ended");
            if scheduled.end() == sequence.known()
                && let Some(guide) = sequence.guide.take_if(|guide| !guide.is_fresh())
            {
                sequence.away = true;
                looking.push((sequence.job, scheduled.id, guide));
            }
        }
        if !looking.is_empty() {
            masks.start_masks(looking, true);
        }
    }

    /// Takes guides back. Those that are late are waited for as long as an eighth of what the model took.
    fn receive_guides(&mut self, began: Instant) -> Vec<Ended> {
        if let Some(masks) = &self.masks {
            masks.wait(began.elapsed() / 8);
        }
        self.receive_masks()
    }

    /// Takes guides back between steps.
    pub(super) fn take_masks(&mut self) {
        let ended = self.receive_masks();
        self.finish(ended);
    }

    /// Takes guides back; says which sequences end with what they saw.
    fn receive_masks(&mut self) -> Vec<Ended> {
        let mut ended = Vec::new();
        for FinishedMask { id, guide, result } in self.masks.as_ref().map_or(Vec::new(), Masks::finished) {
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
            masks.start_masks([(sequence.job, id, guide)], false);
        }
    }

    /// Guesses where the scheduler has room for it.
    fn guess(&mut self) {
        for turn in &mut self.turns {
            let sequence = self.sequences.get_mut(&turn.id).expect("a scheduled sequence has not ended");
            sequence.reserve();
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
                for place in speculate::lookup(sequence.ids(), ngram, turn.drafts) {
                    sequence.guess(sequence.ids()[place]);
                }
            }
        }
        self.ask_draft();
        for turn in &self.turns {
            let sequence = self.sequences.get_mut(&turn.id).expect("a scheduled sequence has not ended");
            let guesses = sequence.guesses().len();
            let Some(mut guide) = sequence.guide.take_if(|_| guesses > 0) else { continue };
            let allowed = guide.allowed(sequence.guesses());
            sequence.guide = Some(guide);
            sequence.keep_guesses(allowed);
        }
    }

    /// Lets the draft model go on from each sequence that asks for it, one token at a time. It draws as the main model
    /// will, with the same random numbers: so the better it is, the more often both choose the same.
    fn ask_draft(&mut self) {
        let by_device = self.asks_draft();
        let Some(draft) = &mut self.models.draft else { return };
        let mut asking = Vec::new();
        for turn in self.turns.iter().filter(|turn| turn.drafts > 0) {
            let sequence = self.sequences.get_mut(&turn.id).expect("a scheduled sequence has not ended");
            if !matches!(sequence.common.speculation, Some(Speculation::Draft { .. })) {
                continue;
            }
            let entry = self.scheduler.entry(turn.id);
            if sequence.admissions != entry.admissions {
                (sequence.admissions, sequence.draft_cached) = (entry.admissions, 0);
            }
            // the draft's part of a block is filled late: not where others hold the block too
            if !self.scheduler.is_shared(turn.id, sequence.draft_cached) {
                asking.push(*turn);
            }
        }
        let mask = draft.mask();
        while !asking.is_empty() {
            draft.plan.clear();
            let mut room = self.limits.step_tokens;
            for ScheduledTokens { id, .. } in &asking {
                let sequence = self.sequences.get_mut(id).expect("a scheduled sequence has not ended");
                let (ids, from) = (sequence.ids_with_guesses(), sequence.draft_cached);
                let end = ids.len().min(from + room);
                room -= end - from;
                if end > from {
                    draft.plan.add(Rows {
                        id: *id,
                        ids: &ids[from..end],
                        guesses: 0,
                        position: from,
                        table: &self.scheduler.entry(*id).table,
                        logits_from: ids.len() - 1,
                        adapter: None,
                        mask,
                    });
                }
                sequence.draft_cached = end;
            }
            draft.forward();
            if by_device {
                let drawn = asking.iter().map(|turn| &self.sequences[&turn.id]);
                let drawn =
                    drawn.filter(|sequence| sequence.draft_cached == sequence.ids_with_guesses().len());
                ask::guesses(drawn, &mut self.sampler, &mut self.queries);
                draft.sample_on_device(&mut self.queries);
            }
            let mut row = 0;
            asking.retain(|turn| {
                let sequence = self.sequences.get_mut(&turn.id).expect("a scheduled sequence has not ended");
                if sequence.draft_cached < sequence.ids_with_guesses().len() {
                    return false; // a long prompt is caught up with over several steps
                }
                let context = Context { mask: None, ..sequence.context_behind(sequence.guesses().len()) };
                let token = match by_device {
                    true => self.queries.answer(row).token(),
                    false => self.sampler.sample(draft.logits(row), &sequence.sampling, &context),
                };
                row += 1;
                let Ok(token) = token else { return false };
                sequence.guess(token);
                sequence.guesses().len() < turn.drafts
            });
        }
    }

    /// Reads what was computed for a sequence: log probabilities of the prompt, the next token, guesses that were right.
    fn read_logits(&mut self, scheduled: ScheduledSeq, asked: QueryRanges, ended: &mut Vec<Ended>) {
        let (id, end) = (scheduled.id, scheduled.end());
        let sequence = &self.sequences[&id];
        let known = sequence.known();
        if sequence.common.prompt_logprobs {
            let job = &self.jobs[&sequence.job];
            let positions = scheduled.logits_from()..end.min(known - 1);
            for (place, position) in positions.enumerate() {
                let (row, token) = (scheduled.first_logits + place, sequence.ids()[position + 1]);
                let told = job.outbox.prompt_logprobs(|out| match asked.prompt.get(place) {
                    Some(asked) => out.take(self.queries.answer(asked)),
                    None => self.sampler.logprobs(self.models.main.logits(row), token, out),
                });
                if let Err(error) = told {
                    return ended.push((id, Err(error)));
                }
            }
        }
        if end < known || sequence.away {
            // whose mask is late computes its last token again, to the same bits, when it is there
            let end = end.min(known - 1);
            let outputs_from = self.scheduler.entry(id).outputs_from;
            self.scheduler.advance(id, end, known, outputs_from.max(end).min(known - 1));
            self.scheduler.hold(id, sequence.away);
            let sequence = self.sequences.get_mut(&id).expect("a scheduled sequence has not ended");
            sequence.draft_cached = sequence.draft_cached.min(end);
            return;
        }
        if ended.iter().all(|(ended, _)| *ended != id) {
            self.read_tokens(scheduled, asked, ended);
        }
    }

    /// Chooses a sequence's next token, and, as long as guesses are right, those behind them.
    fn read_tokens(&mut self, scheduled: ScheduledSeq, asked: QueryRanges, ended: &mut Vec<Ended>) {
        let (id, row) = (scheduled.id, scheduled.token_row());
        let forks = self.fork(id);
        let mut accepted = 0;
        let outcome = loop {
            let guess = self.sequences[&id].guesses().first().copied();
            let outcome = self.sample_token(id, row + accepted, asked.tokens.get(accepted));
            let sequence = &self.sequences[&id];
            let right = guess.is_some_and(|guess| sequence.ids().last() == Some(&guess));
            let pending = sequence.guide.as_ref().is_some_and(|guide| guide.is_pending());
            if !matches!(outcome, Ok(None)) || !right || pending {
                break outcome;
            }
            accepted += 1;
        };
        let sequence = self.sequences.get_mut(&id).expect("a scheduled sequence has not ended");
        let cached = scheduled.end() + accepted;
        sequence.draft_cached = sequence.draft_cached.min(cached);
        let (known, drafts) = (sequence.known(), sequence.common.speculation.map_or(0, Speculation::tokens));
        let job = self.jobs.get_mut(&sequence.job).expect("a member's job");
        job.usage.drafted_tokens += scheduled.guesses;
        job.usage.accepted_tokens += accepted;
        if job.timing.first_token.is_zero() {
            job.timing.first_token = self.shell.clock.now() - job.accepted;
            job.usage.cached_tokens = self.scheduler.entry(id).reused.unwrap_or(0);
            job.trace.first_token(job.id, job.usage.cached_tokens);
        }
        let full = job.outbox.is_full(sequence.choice);
        match outcome {
            Ok(None) => {
                self.scheduler.advance(id, cached, known, known - 1);
                self.scheduler.request_drafts(id, drafts);
                self.pause_if(id, full);
                self.defer(id);
            }
            Ok(Some(reason)) => {
                self.scheduler.advance(id, cached.min(known), known, known - 1);
                ended.push((id, Ok(reason)));
            }
            Err(error) => ended.push((id, Err(error))),
        }
        for (place, fork) in forks.into_iter().enumerate() {
            self.begin_fork(id, fork, (row, asked.choices.get(place)), ended);
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

    fn begin_fork(
        &mut self,
        first: Id,
        fork: Sequence,
        (row, asked): (usize, Option<usize>),
        ended: &mut Vec<Ended>,
    ) {
        let id = self.new_id();
        let (job, choice) = (fork.job, fork.choice);
        self.scheduler.fork(first, id);
        self.jobs.get_mut(&job).expect("a member's job").members.push(id);
        self.sequences.insert(id, fork);
        match self.sample_token(id, row, asked) {
            Ok(None) => {
                let known = self.sequences[&id].known();
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

    /// Chooses a sequence's next token from a row of logits, or takes what was `asked` of the device; says whether the sequence
    /// ends with it.
    fn sample_token(&mut self, id: Id, row: usize, asked: Option<usize>) -> Result<Option<FinishReason>> {
        let sequence = self.sequences.get_mut(&id).expect("a scheduled sequence has not ended");
        #[cfg(feature = "forensics")]
        sequence.gates.pass(sequence.generated());
        #[cfg(feature = "testing")]
        sequence.taps.at(sequence.generated(), || self.models.main.logits(row))?;
        let asked = asked.map(|asked| self.queries.answer(asked));
        if let Some(guide) = sequence.guide.as_mut().filter(|guide| !guide.is_fresh()) {
            guide.compute_mask(self.masks.as_ref().map_or(0, Masks::step))?; // behind a guess: else it was computed beside the model
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
