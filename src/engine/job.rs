//! A request as the worker knows it: its choices, its account, its end.

use std::sync::PoisonError;
use std::time::{Instant, SystemTime};

use super::mailbox::{End, Outbox};
use super::masks::GrammarState;
use super::receipts::About;
use super::scheduler::Id;
use crate::error::{Error, Result};
use crate::lease::PrefixHandle;
use crate::memory::ledger::Accounts;
use crate::outcome::{FinishReason, RequestId, Timing, Usage};
use crate::privacy::Nonce;
use crate::privacy::receipt::{ScrubReceipt, Subject};
use crate::privacy::trace::Trace;

/// A request from acceptance to its end.
#[derive(Debug)]
pub struct Job {
    pub id: RequestId,
    /// Before `outbox`: whoever learns of an end finds it told.
    pub trace: Trace,
    pub outbox: Outbox,
    pub usage: Usage,
    pub accepted: Instant,
    /// When it came, on the calendar.
    pub began: SystemTime,
    /// The caller's.
    pub nonce: Option<Nonce>,
    /// Copies that the debug sampler sealed.
    pub captures: u64,
    /// Whether it begins a conversation, as far as the session can tell: the debug sampler draws no other.
    #[cfg(feature = "debug-sampler")]
    pub begins: bool,
    /// What was overwritten on its account.
    pub accounts: Accounts,
    pub deadline: Option<Instant>,
    pub timing: Timing,
    /// Choices that run or wait.
    pub members: Vec<Id>,
    /// Choices that begin with the first one's first token, with their grammars.
    pub unborn: Vec<(usize, Option<Box<GrammarState>>)>,
    /// Whether threads of grammar masks have something of it: they are to forget it before its caller is told.
    pub guided: bool,
    pub reuse: Option<PrefixHandle>,
    /// The name of its adapter.
    pub adapter: Option<String>,
    pub failed: Option<Error>,
}

impl Job {
    /// Whether no choice runs any more or will.
    pub fn is_over(&self) -> bool {
        self.members.is_empty() && self.unborn.is_empty()
    }

    /// A choice has ended well.
    pub fn ended(&mut self, choice: usize, generated: usize, reason: FinishReason) {
        self.usage.completion_tokens += generated;
        self.outbox.output(choice, |output| output.finish = Some(reason));
    }

    /// Remembers what the next turn of its conversation continues.
    pub fn remember(&self, ids: &[u32]) {
        if let Some(reuse) = self.reuse.as_ref().filter(|reuse| !reuse.public) {
            reuse.ids.lock().unwrap_or_else(PoisonError::into_inner).refill(ids.iter().copied());
            *reuse.adapter.lock().unwrap_or_else(PoisonError::into_inner) = self.adapter.clone();
        }
    }

    /// What its receipt says beside what was overwritten.
    pub fn about(&self) -> About {
        let Self { id, nonce, began, captures, .. } = *self;
        let about = About { captures, ..About::completed(Subject::Request { id }, nonce, began) };
        about.failing(self.failed.as_ref().map(Error::kind))
    }

    /// Tells the caller. Only once nothing of the request is left anywhere.
    pub fn notify(mut self: Box<Self>, receipt: ScrubReceipt) {
        match &self.failed {
            Some(error) => self.trace.failed(error.kind()),
            None => {
                self.usage.cost_nano = self.trace.cost_nano(&self.usage);
                self.trace.ended(self.id, &self.usage, &self.timing, self.outbox.finish_reasons());
            }
        }
        let (usage, timing, request_id) = (self.usage, self.timing, self.id);
        let end = self.failed.take().map_or(Ok(End { usage, timing, request_id, receipt }), Result::Err);
        self.outbox.end(end);
    }
}
