//! What a step asks of a device that chooses tokens where the logits are. Nothing depends on what is asked: the sampler gives
//! the same for what is not.

use super::scheduler::Turn;
use super::sequence::Sequence;
use super::worker::Worker;
use crate::backend::Backend;
use crate::backend::questions::Questions;
use crate::sample::{Context, Sampler};

/// Asks for a token of each of these from the draft model's rows of logits.
pub(super) fn guesses<'a>(
    of: impl Iterator<Item = &'a Sequence>,
    sampler: &mut Sampler,
    questions: &mut Questions,
) {
    questions.clear();
    for (row, sequence) in of.enumerate() {
        let context = Context { mask: None, ..sequence.context() };
        sampler.ask(row, &sequence.sampling, &context, false, questions);
    }
}

impl<B: Backend> Worker<B> {
    /// Whether the draft model's device chooses.
    pub(super) fn asks_draft(&self) -> bool {
        self.models.draft.as_ref().is_some_and(|draft| draft.chooses()) && !self.on_host()
    }

    fn on_host(&self) -> bool {
        #[cfg(feature = "testing")]
        return self.faults.sample_on_host;
        #[cfg(not(feature = "testing"))]
        false
    }

    /// Asks about all rows of the step whose tokens depend on nothing that is not known yet.
    pub(super) fn ask(&mut self, turns: &[Turn]) {
        self.asked.clear();
        self.questions.clear();
        if self.on_host() || !self.models.main.chooses() {
            return;
        }
        let mut row = 0;
        for turn in turns {
            self.ask_turn(*turn, &mut row);
        }
        self.models.main.choose(&mut self.questions);
    }

    /// As `read_turn` goes through them. Left out is what waits for a grammar: guesses, and other choices' first tokens.
    fn ask_turn(&mut self, turn: Turn, row: &mut usize) {
        let Self { sampler, questions, asked, .. } = self;
        let entry = self.scheduler.entry(turn.id);
        let (outputs_from, end) = (entry.outputs_from.max(entry.cached), entry.cached + turn.tokens);
        let first_row = *row;
        *row += (end + turn.drafts).saturating_sub(outputs_from);
        let sequence = self.sequences.get_mut(&turn.id).expect("who has a turn has not ended");
        let (known, choice, logprobs) =
            (sequence.ids.expose().len(), sequence.choice, sequence.common.logprobs);
        if sequence.common.prompt_logprobs {
            for position in outputs_from..end.min(known - 1) {
                let row = first_row + position - outputs_from;
                asked.insert((row, choice), questions.len());
                Sampler::ask_logprobs(row, sequence.ids.expose()[position + 1], questions);
            }
        }
        if end < known || sequence.away {
            return;
        }
        let last = *row - turn.drafts - 1;
        asked.insert((last, choice), questions.len());
        sampler.ask(last, &sequence.sampling, &sequence.context(), logprobs, questions);
        if sequence.guide.is_some() {
            return;
        }
        for (choice, _) in &self.jobs[&sequence.job].unborn {
            asked.insert((last, *choice), questions.len());
            let sampling = sequence.sampling_of(*choice);
            sampler.ask(last, &sampling, &sequence.context(), logprobs, questions);
        }
        for guess in 0..turn.drafts {
            let token = sequence.drafts.expose()[guess];
            sequence.ids.push(token);
            asked.insert((last + guess + 1, choice), questions.len());
            sampler.ask(last + guess + 1, &sequence.sampling, &sequence.context(), logprobs, questions);
        }
        sequence.ids.truncate(known);
    }
}
