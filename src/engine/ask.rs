//! What a step asks of a device that samples where the logits are. Nothing depends on what is asked: the sampler gives the
//! same for what is not.

use super::plan::ScheduledSeq;
use super::sequence::Sequence;
use super::worker::Worker;
use crate::backend::Backend;
use crate::backend::sample_batch::SampleBatch;
use crate::memory::scrub;
use crate::sample::{Context, Sampler};

/// Numbers of questions, one behind the other.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Numbers {
    first: usize,
    count: usize,
}

impl Numbers {
    /// The number of the `place`th of them, if there are so many.
    pub(super) fn get(self, place: usize) -> Option<usize> {
        (place < self.count).then_some(self.first + place)
    }

    /// Those that were asked since there were `first`.
    fn since(first: usize, queries: &SampleBatch) -> Self {
        Self { first, count: queries.len() - first }
    }
}

/// What is asked about the logits of a sequence: the questions' numbers. Where there are none, the sampler reads the logits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct QueryRanges {
    /// Log probabilities of the prompt's tokens, from the first row of logits on.
    pub prompt: Numbers,
    /// The next token, then those behind each guess.
    pub tokens: Numbers,
    /// First tokens of the request's other choices, while those do not exist.
    pub choices: Numbers,
}

/// Asks for a token of each of these from the draft model's rows of logits.
pub(super) fn guesses<'a>(
    of: impl Iterator<Item = &'a Sequence>,
    sampler: &mut Sampler,
    queries: &mut SampleBatch,
) {
    queries.clear();
    for (row, sequence) in of.enumerate() {
        let context = Context { mask: None, ..sequence.context_behind(sequence.guesses().len()) };
        sampler.ask(row, &sequence.sampling, &context, false, queries);
    }
}

impl<B: Backend> Worker<B> {
    /// Whether the draft model's device samples.
    pub(super) fn asks_draft(&self) -> bool {
        self.models.draft.as_ref().is_some_and(|draft| draft.samples_on_device()) && !self.on_host()
    }

    fn on_host(&self) -> bool {
        #[cfg(feature = "testing")]
        return self.faults.sample_on_host;
        #[cfg(not(feature = "testing"))]
        false
    }

    /// Asks about all rows of the step whose tokens depend on nothing that is not known yet.
    pub(super) fn ask(&mut self) {
        scrub::empty(&mut self.asked);
        self.queries.clear();
        let on_device = !self.on_host() && self.models.main.samples_on_device();
        for place in 0..self.models.main.plan.len() {
            let scheduled = self.models.main.plan.sequence(place);
            let asked = if on_device { self.ask_about(scheduled) } else { QueryRanges::default() };
            self.asked.push(asked);
        }
        if on_device {
            self.models.main.sample_on_device(&mut self.queries);
        }
    }

    /// What waits for a grammar is left out: guesses, and other choices' first tokens.
    fn ask_about(&mut self, scheduled: ScheduledSeq) -> QueryRanges {
        let Self { sampler, queries, .. } = self;
        let sequence = self.sequences.get_mut(&scheduled.id).expect("a scheduled sequence has not ended");
        let (known, logprobs) = (sequence.known(), sequence.common.logprobs);
        let mut asked = QueryRanges::default();
        if sequence.common.prompt_logprobs {
            let first = queries.len();
            let positions = scheduled.logits_from()..scheduled.end().min(known - 1);
            for (row, position) in (scheduled.first_logits..).zip(positions) {
                Sampler::ask_logprobs(row, sequence.ids()[position + 1], queries);
            }
            asked.prompt = Numbers::since(first, queries);
        }
        if scheduled.end() < known || sequence.away {
            return asked;
        }
        let (row, first) = (scheduled.token_row(), queries.len());
        sampler.ask(row, &sequence.sampling, &sequence.context(), logprobs, queries);
        if sequence.guide.is_none() {
            for guesses in 1..=scheduled.guesses {
                let context = sequence.context_behind(guesses);
                sampler.ask(row + guesses, &sequence.sampling, &context, logprobs, queries);
            }
        }
        asked.tokens = Numbers::since(first, queries);
        let first = queries.len();
        if sequence.guide.is_none() {
            for (choice, _) in &self.jobs[&sequence.job].unborn {
                sampler.ask(row, &sequence.sampling_of(*choice), &sequence.context(), logprobs, queries);
            }
        }
        asked.choices = Numbers::since(first, queries);
        asked
    }
}
