//! A request as the worker gets it.

use std::sync::Arc;
#[cfg(feature = "debug-sampler")]
use std::sync::PoisonError;
use std::time::{Instant, SystemTime};

use super::Intake;
use super::prompt::Encoded;
#[cfg(feature = "debug-sampler")]
use crate::chat;
use crate::engine::job::Job;
use crate::engine::mailbox::Outbox;
use crate::engine::message::Prepared;
use crate::engine::scheduler::{Arrival, Id, Owner, Prefix};
use crate::engine::sequence::{Common, Sequence};
use crate::error::{Error, Result};
use crate::lease::PrefixHandle;
use crate::memory::Secret;
use crate::memory::ledger::Accounts;
use crate::outcome::{RequestId, Timing, Usage};
use crate::privacy::trace::Trace;
#[cfg(feature = "debug-sampler")]
use crate::request::Prompt;
use crate::request::{Request, Speculation};
use crate::sample::{Logprobs, Sampling};
use crate::text::Text;

/// The place of one request among all, and when its time is over.
pub(super) struct Place {
    pub(super) request: RequestId,
    pub(super) id: Id,
    pub(super) clock: u64,
    pub(super) accepted: Instant,
    pub(super) began: SystemTime,
    pub(super) deadline: Option<Instant>,
}

impl Intake {
    /// Encodes a request, and fills in what it left open.
    pub(super) fn prepare(
        &self,
        mut request: Request,
        outbox: Outbox,
        trace: Trace,
        place: &Place,
    ) -> Result<Prepared> {
        #[cfg(feature = "testing")]
        request.taps.read();
        let Encoded { ids, prefix, style, thinking } = self.encode(&request)?;
        let visible = style.as_ref().map_or_else(Arc::default, |style| self.visible(style));
        let calls = self.calls(&request, style.as_ref())?;
        outbox.set_style(style);
        let format = calls.as_ref().unwrap_or(&request.format);
        let (prompt_tokens, context) = (ids.expose().len(), self.defaults.limits.context);
        let asked = request.max_tokens.unwrap_or(1);
        if prompt_tokens.checked_add(asked).is_none_or(|tokens| tokens > context) {
            return Err(Error::ContextLength { prompt_tokens, max_tokens: asked, context });
        }
        let max_tokens = request.most_tokens(context - prompt_tokens);
        request.logit_bias.check_ids(self.defaults.vocab)?;
        if matches!(request.speculation, Some(Speculation::Draft { .. })) && !self.defaults.draft {
            return Err(Error::request(
                "speculate",
                "without a draft checkpoint, prompt lookup: see Builder::draft",
            ));
        }
        let choices = request.choices();
        let adapter = self.adapter(&request)?;
        let mut guides = self
            .guides((&request, format), &outbox, choices, place.deadline, thinking)?
            .into_iter()
            .map(Box::new);
        let sampling = request.sampling.over(&self.defaults.sampling, getrandom::u64().unwrap_or(0));
        self.prepare_outputs(&request, &outbox, sampling.seed);
        #[cfg(feature = "debug-sampler")]
        let begins = begins(&request);
        let mut sequence = self.sequence(&mut request, ids, sampling, (max_tokens, adapter, visible))?;
        sequence.guide = guides.next();
        let unborn = (1..choices).map(|choice| (choice, guides.next())).collect();
        let guided = sequence.guide.is_some();
        let usage = Usage { prompt_tokens, ..Usage::default() };
        let job = Job {
            id: place.request,
            trace,
            outbox,
            usage,
            accepted: place.accepted,
            began: place.began,
            nonce: request.nonce,
            captures: 0,
            #[cfg(feature = "debug-sampler")]
            begins,
            accounts: Accounts::default(),
            deadline: place.deadline,
            timing: Timing::default(),
            members: Vec::with_capacity(choices),
            unborn,
            guided,
            reuse: request.prefix.take(),
            adapter: request.adapter.take(),
            failed: None,
        };
        let arrival = arrival(&request, place, job.reuse.as_ref(), prompt_tokens, prefix);
        Ok(Prepared { id: place.id, job: Box::new(job), sequence, arrival })
    }

    /// Says of each output of a request what its reply will have.
    fn prepare_outputs(&self, request: &Request, outbox: &Outbox, seed: u64) {
        (0..request.choices()).for_each(|choice| {
            outbox.output(choice, |output| {
                output.seed = seed.wrapping_add(choice as u64);
                output.without_text = self.text.is_none();
                output.logprobs = Logprobs::new(request.logprobs.unwrap_or(0));
            });
        });
        outbox.prompt_logprobs(|out| *out = Logprobs::new(request.prompt_logprobs.unwrap_or(0)));
    }

    fn sequence(
        &self,
        request: &mut Request,
        ids: Secret<[u32]>,
        sampling: Sampling,
        (max_tokens, adapter, visible): (usize, Option<u32>, Arc<Vec<u32>>),
    ) -> Result<Sequence> {
        let pieces = self.text.as_deref().map(Text::pieces);
        let starts = pieces.is_some_and(|pieces| ids.expose().iter().all(|&id| pieces.is_special(id)));
        let mut end_tokens = std::mem::take(&mut request.stop_tokens);
        if !request.ignore_eos {
            end_tokens.extend(&self.defaults.eos);
        }
        // a special token gives no text in which a stop string could be found
        let named = |stop: &Secret<str>| self.text.as_deref()?.special(stop.expose().trim());
        request.stop.iter().filter_map(named).for_each(|id| end_tokens.push(id));
        let breakers = match &sampling.dry {
            None => Arc::default(),
            Some(_) => self.breakers(request.breakers.as_deref()),
        };
        let common = Common {
            prompt_tokens: ids.expose().len(),
            max_tokens,
            end_tokens,
            bias: std::mem::take(&mut request.logit_bias),
            breakers,
            stops: Arc::new(std::mem::take(&mut request.stop)),
            visible,
            logprobs: request.logprobs.is_some(),
            prompt_logprobs: request.prompt_logprobs.is_some(),
            speculation: request.speculation,
            adapter,
            starts,
        };
        let pieces = self.text.as_deref().map(Text::pieces);
        #[cfg_attr(
            not(feature = "forensics"),
            expect(unused_mut, reason = "only who searches memory asks for gates")
        )]
        let mut sequence = Sequence::new(ids, sampling, Arc::new(common), pieces);
        #[cfg(feature = "forensics")]
        {
            sequence.gates = std::mem::take(&mut request.gates);
        }
        #[cfg(feature = "testing")]
        {
            sequence.taps = std::mem::take(&mut request.taps);
        }
        Ok(sequence)
    }

    /// The number of the adapter that it names.
    fn adapter(&self, request: &Request) -> Result<Option<u32>> {
        let Some(name) = &request.adapter else { return Ok(None) };
        let found = self.defaults.adapters.iter().position(|known| known == name);
        found.map(|index| Some(index as u32)).ok_or_else(|| {
            // which others there are is nothing to tell: their names may be those of other tenants
            Error::request("adapter", "the name of one of the session's adapters: see Builder::adapter")
        })
    }
}

fn arrival(
    request: &Request,
    place: &Place,
    reuse: Option<&PrefixHandle>,
    prompt_tokens: usize,
    prefix: Option<Prefix>,
) -> Arrival {
    let conversation = reuse.filter(|reuse| !reuse.public);
    let conversation = conversation.map(|reuse| Owner::Conversation(reuse.lease.key));
    Arrival {
        clock: Some(place.clock),
        handicap: request.priority.handicap(),
        known: prompt_tokens,
        outputs_from: if request.prompt_logprobs.is_some() { 0 } else { prompt_tokens - 1 },
        prefix,
        owner: request.tenant.as_ref().map(|tenant| Owner::Tenant(tenant.0)).or(conversation),
    }
}

/// Whether no turn was before it: neither of its conversation nor, in a chat that is sent whole, in its messages.
#[cfg(feature = "debug-sampler")]
fn begins(request: &Request) -> bool {
    let turns = request.prefix.as_ref().filter(|reuse| !reuse.public);
    let first = turns
        .is_none_or(|reuse| reuse.ids.lock().unwrap_or_else(PoisonError::into_inner).expose().is_empty());
    let answered = match &request.prompt {
        Prompt::Chat(messages) => messages.iter().any(|message| message.role() == chat::Role::Assistant),
        Prompt::Text(_) | Prompt::Tokens(_) => false,
    };
    first && !answered
}

#[cfg(all(test, feature = "debug-sampler"))]
mod tests {
    use super::begins;
    use crate::chat::{assistant, system, user};
    use crate::request::Request;

    #[test]
    fn a_chat_that_was_answered_is_no_first_turn() {
        assert!(begins(&Request::prompt("a text")) && begins(&Request::tokens([1])));
        assert!(begins(&Request::chat([system("be kind"), user("hello")])));
        assert!(!begins(&Request::chat([user("hello"), assistant("hello"), user("and?")])));
    }
}
