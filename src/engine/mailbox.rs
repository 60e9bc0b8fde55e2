//! What a request has produced, between the worker and the caller who waits for it.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::message::WorkerMessage;
use crate::chat::Style;
use crate::error::{Error, Result};
use crate::memory::Secret;
use crate::outcome::{FinishReason, RequestId, Timing, Usage};
use crate::privacy::FinishReasons;
use crate::privacy::receipt::ScrubReceipt;
use crate::sample::Logprobs;

/// The caller's end.
#[derive(Debug)]
pub struct Mailbox {
    state: Mutex<State>,
    changed: Condvar,
    ending: AtomicU8,
    /// Tokens of a choice that may wait for the caller; none for one who waits for the end.
    room: Option<usize>,
    worker: Sender<WorkerMessage>,
}

/// What the caller asked for, other than the reply: [`Mailbox::ending`].
const NOTHING: u8 = 0;
/// End, and say what was produced so far.
const INTERRUPT: u8 = 1;
/// End: nobody reads the reply.
const ABANDON: u8 = 2;

#[derive(Debug, Default)]
struct State {
    choices: Vec<Output>,
    prompt_logprobs: Logprobs,
    /// How the model writes reasoning and calls of tools, if the request is a chat.
    style: Option<Style>,
    /// Keywords of the response format's schema that are not enforced.
    not_enforced: Vec<&'static str>,
    /// The choice to look at first for the next piece.
    next: usize,
    /// The caller waits for the end and reads no pieces any more.
    unbounded: bool,
    /// The caller has left: what there is at the end is overwritten.
    left: bool,
    ended: bool,
    /// Set when it ended; taken by the caller.
    end: Option<Result<End>>,
    waker: Option<Waker>,
}

impl crate::cancel::Interrupt for Mailbox {
    /// What was produced so far stays.
    fn interrupt(&self) {
        self.ask(INTERRUPT);
    }
}

/// One choice as it grows.
#[derive(Debug, Default)]
pub struct Output {
    /// UTF-8, whole characters.
    pub text: Secret<[u8]>,
    pub tokens: Secret<[u32]>,
    /// One entry for each token, if they were asked for.
    pub logprobs: Logprobs,
    pub finish: Option<FinishReason>,
    pub seed: u64,
    /// The checkpoint has no tokenizer: tokens come alone.
    pub without_text: bool,
    /// Bytes of text and tokens that the caller has.
    taken: (usize, usize),
    /// Whether the worker found no room and waits to be told of some.
    full: bool,
}

/// What a stream takes at once: of one choice, from its last taken token on.
#[derive(Debug)]
pub struct Delta {
    pub choice: usize,
    pub text: Secret<str>,
    pub tokens: Secret<[u32]>,
    pub logprobs: Logprobs,
    /// Nothing of this choice follows.
    pub last: bool,
}

/// How a request ended well.
#[derive(Debug)]
pub struct End {
    pub usage: Usage,
    pub timing: Timing,
    pub request_id: RequestId,
    pub receipt: ScrubReceipt,
}

/// All of a request that ended well.
#[derive(Debug)]
pub struct Finished {
    pub choices: Vec<Output>,
    pub prompt_logprobs: Logprobs,
    pub not_enforced: Vec<&'static str>,
    pub end: End,
}

impl Mailbox {
    /// Waits for something fresh; none when the request has ended and all is taken.
    pub fn next(&self) -> Option<Result<Delta>> {
        let mut state = self.lock();
        loop {
            match self.poll_delta(&mut state) {
                Poll::Ready(next) => return next,
                Poll::Pending => state = self.wait(state),
            }
        }
    }

    /// Polls [`Mailbox::next`], for a task that is woken.
    #[cfg_attr(not(feature = "async"), expect(dead_code, reason = "only async streams poll"))]
    pub fn poll(&self, context: &Context<'_>) -> Poll<Option<Result<Delta>>> {
        let mut state = self.lock();
        let next = self.poll_delta(&mut state);
        if next.is_pending() {
            state.waker = Some(context.waker().clone());
        }
        next
    }

    /// Something fresh, or the end, if either is there.
    fn poll_delta(&self, state: &mut State) -> Poll<Option<Result<Delta>>> {
        match self.delta(state) {
            Some(delta) => Poll::Ready(Some(Ok(delta))),
            None if state.ended => Poll::Ready(state.error()),
            None => Poll::Pending,
        }
    }

    fn delta(&self, state: &mut State) -> Option<Delta> {
        let count = state.choices.len();
        let (from, ended) = (state.next, state.ended);
        let place = (0..count).map(|step| (from + step) % count).find(|&place| {
            let output = &state.choices[place];
            output.has_delta(ended)
        })?;
        state.next = (place + 1) % count;
        let output = &mut state.choices[place];
        let delta = output.take(place, ended);
        if std::mem::take(&mut output.full) {
            let _ = self.worker.send(WorkerMessage::Wake); // a worker that is gone has nothing to say
        }
        Some(delta)
    }

    /// Waits for the end and takes all of it.
    pub fn finished(&self) -> Result<Finished> {
        let mut state = self.lock();
        state.unbounded = true;
        if state.choices.iter_mut().any(|output| std::mem::take(&mut output.full)) {
            let _ = self.worker.send(WorkerMessage::Wake);
        }
        state = self.wait_for_end(state);
        let end = state.end.take().unwrap_or(Err(Error::Closed))?;
        let choices = std::mem::take(&mut state.choices);
        let prompt_logprobs = std::mem::take(&mut state.prompt_logprobs);
        Ok(Finished { choices, prompt_logprobs, not_enforced: state.not_enforced.clone(), end })
    }

    /// Keywords of the response format's schema that are not enforced.
    pub fn not_enforced(&self) -> Vec<&'static str> {
        self.lock().not_enforced.clone()
    }

    /// How the model writes reasoning and calls of tools, if the request is a chat that was accepted.
    pub fn style(&self) -> Option<Style> {
        self.lock().style.clone()
    }

    /// Asks the worker to end the request, and does not wait until it is scrubbed. Nothing of the reply is kept.
    pub fn leave(&self) {
        self.ask(ABANDON);
        let mut state = self.lock();
        state.left = true;
        if state.ended {
            state.forget_reply();
        }
    }

    /// Waits until the request is over and scrubbed.
    pub fn until_ended(&self) {
        drop(self.wait_for_end(self.lock()));
    }

    /// Whether the request is over and scrubbed; if not, the task is woken when it is.
    #[cfg(feature = "async")]
    pub fn poll_end(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.ended {
            return Poll::Ready(());
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }

    /// Asks the worker to end the request, and waits until it is scrubbed: at most one step.
    pub fn abandon(&self) {
        self.ask(ABANDON);
        self.until_ended();
    }

    fn wait_for_end<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        while !state.ended {
            state = self.wait(state);
        }
        state
    }

    fn ask(&self, what: u8) {
        if self.ending.fetch_max(what, Ordering::SeqCst) < what {
            let _ = self.worker.send(WorkerMessage::Wake);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget_reply(&mut self) {
        self.choices.clear();
        self.prompt_logprobs = Logprobs::default();
        self.style = None; // it has the parameters of tools
    }

    /// The error that ended the request, once.
    fn error<T>(&mut self) -> Option<Result<T>> {
        match self.end.take() {
            Some(Err(error)) => Some(Err(error)),
            end => {
                self.end = end;
                None
            }
        }
    }
}

impl Output {
    /// The text. It is the caller's from here on.
    pub fn take_text(&mut self) -> Secret<str> {
        Secret::from_utf8(std::mem::take(&mut self.text)).expect(WHOLE_CHARACTERS)
    }

    /// Whether there is text to give; or tokens, once no more text comes or the worker waits.
    fn has_delta(&self, over: bool) -> bool {
        let (text, tokens) = self.taken;
        let alone = over || self.full || self.without_text || self.finish.is_some();
        self.text.expose().len() > text || (alone && self.tokens.expose().len() > tokens)
    }

    fn take(&mut self, choice: usize, ended: bool) -> Delta {
        let (text_taken, tokens_taken) = self.taken;
        let (bytes, tokens) = (&self.text.expose()[text_taken..], &self.tokens.expose()[tokens_taken..]);
        let delta = Delta {
            choice,
            text: Secret::from_utf8(Secret::copy(bytes)).expect(WHOLE_CHARACTERS),
            tokens: Secret::copy(tokens),
            logprobs: self.logprobs.tail(tokens_taken),
            last: ended || self.finish.is_some(),
        };
        self.taken = (self.text.expose().len(), self.tokens.expose().len());
        delta
    }
}

const WHOLE_CHARACTERS: &str = "the detokenizer gives whole characters";

/// What the caller wants, as the worker sees it between steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallerState {
    /// The reply.
    Reply,
    /// An end, with what there is.
    Interrupt,
    /// An end.
    Abandon,
}

/// The worker's end. If it drops before the request ended, the caller learns that the session closed.
#[derive(Debug)]
pub struct Outbox(Arc<Mailbox>);

impl Outbox {
    /// The two ends of a new mailbox for `choices` replies. With `room`, no more tokens than that wait to be taken.
    pub fn pair(
        choices: usize,
        room: Option<usize>,
        worker: Sender<WorkerMessage>,
    ) -> (Outbox, Arc<Mailbox>) {
        let outputs = (0..choices).map(|_| Output::default()).collect();
        let mailbox = Arc::new(Mailbox {
            state: Mutex::new(State { choices: outputs, ..State::default() }),
            changed: Condvar::new(),
            ending: AtomicU8::new(NOTHING),
            room,
            worker,
        });
        (Outbox(mailbox.clone()), mailbox)
    }

    /// What the caller wants.
    pub fn caller_state(&self) -> CallerState {
        match self.0.ending.load(Ordering::SeqCst) {
            NOTHING => CallerState::Reply,
            INTERRUPT => CallerState::Interrupt,
            _ => CallerState::Abandon,
        }
    }

    /// Whether the caller is so far behind with a choice that it must not grow. If so the worker is woken when there
    /// is room again.
    pub fn is_full(&self, choice: usize) -> bool {
        let Some(room) = self.0.room else { return false };
        let mut state = self.0.lock();
        let unbounded = state.unbounded;
        let output = &mut state.choices[choice];
        output.full = !unbounded && output.tokens.expose().len() - output.taken.1 >= room;
        if output.full {
            self.0.notify(&mut state); // there may be tokens without text
        }
        state.choices[choice].full
    }

    /// Changes a choice through `give`, and wakes the caller if there is more of it.
    pub fn output<R>(&self, choice: usize, give: impl FnOnce(&mut Output) -> R) -> R {
        let mut state = self.0.lock();
        let output = &mut state.choices[choice];
        let result = give(output);
        if output.has_delta(false) {
            self.0.notify(&mut state);
        }
        result
    }

    /// The reply is one to a chat.
    pub fn set_style(&self, style: Option<Style>) {
        self.0.lock().style = style;
    }

    /// Keywords of the response format's schema that are not enforced.
    pub fn set_not_enforced(&self, keywords: Vec<&'static str>) {
        self.0.lock().not_enforced = keywords;
    }

    /// Why its choices ended.
    pub fn finish_reasons(&self) -> FinishReasons {
        let mut reasons = FinishReasons::default();
        let state = self.0.lock();
        state.choices.iter().filter_map(|output| output.finish).for_each(|reason| reasons.add(reason));
        reasons
    }

    /// The log probabilities of the prompt's tokens.
    pub fn prompt_logprobs<R>(&self, give: impl FnOnce(&mut Logprobs) -> R) -> R {
        give(&mut self.0.lock().prompt_logprobs)
    }

    /// Ends the request. After an error nothing of the reply is kept.
    pub fn end(&self, end: Result<End>) {
        let mut state = self.0.lock();
        if state.ended {
            return;
        }
        if end.is_err() || state.left {
            state.forget_reply();
        }
        state.end = Some(end);
        state.ended = true;
        self.0.notify(&mut state);
    }
}

impl Mailbox {
    fn notify(&self, state: &mut State) {
        self.changed.notify_all();
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.end(Err(Error::Closed));
    }
}
