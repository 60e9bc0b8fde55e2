//! A reply's grammar, with the mask for its next token, and how long that takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::engine::readers::Lane;
use crate::engine::thinking::Thinking;
use crate::error::Result;
use crate::grammar::{Begun, Matcher};
use crate::memory::Secret;
use crate::memory::thread;

/// Time of a processor that a mask may take in the quick lane. JSON's slowest mask in a hundred takes a third of it.
const QUICK: Duration = Duration::from_millis(1);

/// Time of a processor that the masks of all choices of a request may take there in one step: the threads of the quick lane
/// have the priority of those that compute the step.
const QUICK_STEP: Duration = Duration::from_millis(2);

/// What taking in a token may take where the worker does it, by the clock: a hundred times what it takes as a rule. A step
/// may have to do that for all choices of a request.
const QUICK_TOKEN: Duration = Duration::from_micros(250);

/// After one that took longer, so many must be quick in a row before a request is in the quick lane again.
const PENANCE: u32 = 8;

/// A reply's grammar, with the mask for its next token.
#[derive(Debug)]
pub struct GrammarState {
    pub(super) matcher: Matcher,
    mask: Secret<[u32]>,
    /// Whether `mask` is that of the next token.
    fresh: bool,
    /// A token that was drawn, and that the grammar has not taken in.
    pending: Secret<[u32]>,
    pace: Arc<Pace>,
    /// What comes before the grammar.
    before: Option<Before>,
    #[cfg(feature = "testing")]
    tap: Option<(usize, crate::forensics::Gate)>,
}

/// Reasoning that comes before the grammar, whose first mask is there meanwhile.
#[derive(Debug)]
struct Before {
    thinking: Thinking,
    /// The mask of a first token that may begin reasoning or the value; then of the tokens of reasoning. Empty where
    /// every token may follow.
    mask: Secret<[u32]>,
    /// Whether the reply may not end within reasoning.
    holds: bool,
}

impl GrammarState {
    /// At the start of a reply.
    pub fn new(begun: Begun) -> Self {
        let Begun { matcher, mask, took, not_enforced: _ } = begun;
        let pace = Arc::new(Pace::default());
        pace.note(took);
        Self {
            matcher,
            mask,
            fresh: true,
            pending: Secret::<[u32]>::with_capacity(1),
            pace,
            before: None,
            #[cfg(feature = "testing")]
            tap: None,
        }
    }

    /// Lets the reply think before it follows the grammar. It `holds` where it may not end before it has.
    pub fn think_before(&mut self, thinking: Thinking, holds: bool) {
        let mut mask = Secret::<[u32]>::default();
        if thinking.is_inside() {
            if holds {
                mask = self.matcher.no_ends();
            }
        } else {
            mask.extend(self.mask.expose());
            let words = mask.expose_mut();
            for &id in thinking.opens() {
                words.get_mut(id as usize / 32).into_iter().for_each(|word| *word |= 1 << (id % 32));
            }
        }
        self.before = Some(Before { thinking, mask, holds });
    }

    /// Another choice's of the same request, at the same place.
    pub fn fork(&self) -> Self {
        Self {
            matcher: self.matcher.fork(),
            mask: Secret::copy(self.mask.expose()),
            fresh: self.fresh,
            pending: Secret::<[u32]>::with_capacity(1),
            pace: self.pace.clone(),
            before: self.before.as_ref().map(Before::fork),
            #[cfg(feature = "testing")]
            tap: None,
        }
    }

    /// What a test asks for: that it stands still at a mask, that it is taken for slow.
    #[cfg(feature = "testing")]
    pub fn tap(&mut self, taps: &crate::testing::taps::Taps) {
        self.tap = taps.mask.clone();
        if taps.slow_grammar {
            self.pace.penance.store(u32::MAX, Ordering::Relaxed); // more penance than there are tokens
        }
    }

    /// Takes in a token that is pending, and computes the mask for the next one; nothing where both are done. `step` counts
    /// steps: what masks of one step take is added up.
    ///
    /// # Errors
    /// Returns the errors of [`Matcher::accept`] and [`Matcher::mask`].
    pub fn compute_mask(&mut self, step: u64) -> Result<()> {
        if self.fresh {
            return Ok(());
        }
        #[cfg(feature = "testing")]
        self.pass();
        let began = thread::cpu_time();
        let finished = self.take_pending().and_then(|()| match self.is_over() {
            true => Ok(()),
            false => self.matcher.mask(&mut self.mask),
        });
        self.fresh = finished.is_ok();
        self.pace.note_mask(thread::cpu_time().saturating_sub(began), step);
        finished
    }

    #[cfg(feature = "testing")]
    fn pass(&mut self) {
        match &mut self.tap {
            Some((0, gate)) => {
                gate.pass();
                self.tap = None;
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
    }

    fn take_pending(&mut self) -> Result<()> {
        let taken = self.pending.expose().first().map_or(Ok(()), |&token| self.matcher.accept(token));
        self.pending.truncate(0);
        taken
    }

    /// What the last look saw; none where every token may follow.
    pub fn mask(&self) -> Option<&[u32]> {
        match &self.before {
            None => Some(self.mask.expose()),
            Some(before) => Some(before.mask.expose()).filter(|mask| !mask.is_empty()),
        }
    }

    /// Whether the mask for the next token is there.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Takes the token that was drawn: now, or, where that may take long, with the next look.
    ///
    /// # Errors
    /// Returns the errors of [`Matcher::accept`].
    pub fn accept(&mut self, token: u32) -> Result<()> {
        if self.is_thought(token) {
            return Ok(()); // the mask for what follows is there
        }
        self.fresh = false;
        if self.is_slow() {
            self.pending.push(token);
            return Ok(());
        }
        let began = Instant::now();
        let accepted = self.matcher.accept(token);
        if began.elapsed() > QUICK_TOKEN {
            self.pace.note(Duration::MAX);
        }
        accepted
    }

    /// Whether a token that was drawn is of what comes before the grammar. It is taken in.
    fn is_thought(&mut self, token: u32) -> bool {
        let Some(before) = &mut self.before else { return false };
        let was_inside = before.thinking.is_inside();
        let thought = before.thinking.take(token);
        if before.thinking.is_over() {
            self.before = None;
        } else if !was_inside {
            before.mask = if before.holds { self.matcher.no_ends() } else { Secret::default() };
        }
        thought
    }

    /// Whether a token was drawn and not taken in: until then nobody knows whether the reply is over.
    pub fn is_pending(&self) -> bool {
        !self.pending.expose().is_empty()
    }

    /// Whether it takes long: then the worker leaves it to the slow lane.
    pub fn is_slow(&self) -> bool {
        self.pace.is_slow()
    }

    /// How many of these guesses could follow. Where the grammar cannot say, none.
    pub fn allowed(&mut self, guesses: &[u32]) -> usize {
        let mut thinking = self.before.as_ref().map(|before| before.thinking.clone());
        let thought = |token: &&u32| thinking.as_mut().is_some_and(|thinking| thinking.take(**token));
        let before = guesses.iter().take_while(thought).count();
        if before == guesses.len() {
            return before; // to validate nothing would be a look at the grammar, too
        }
        before + self.matcher.validate(&guesses[before..]).unwrap_or(0)
    }

    /// Whether nothing but an end token can follow.
    pub fn is_over(&self) -> bool {
        self.before.is_none() && self.matcher.is_stopped()
    }

    pub(super) fn lane(&self) -> Lane {
        if self.is_slow() { Lane::Slow } else { Lane::Quick }
    }
}

impl Before {
    fn fork(&self) -> Self {
        let Self { thinking, mask, holds } = self;
        Self { thinking: thinking.clone(), mask: Secret::copy(mask.expose()), holds: *holds }
    }
}

/// How long grammars of a request take; all its choices have one.
#[derive(Debug, Default)]
struct Pace {
    /// Masks that must be quick in a row before it is quick again.
    penance: AtomicU32,
    /// Nanoseconds that its masks took in a step.
    spent: AtomicU64,
    /// Which step that is.
    step: AtomicU64,
}

impl Pace {
    fn note(&self, took: Duration) {
        if took > QUICK {
            self.penance.store(PENANCE, Ordering::Relaxed);
        } else {
            let less = |left: u32| left.checked_sub(1);
            let _ = self.penance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less); // it was quick before
        }
    }

    /// Notes a mask of `step`. Two threads that begin a step at once may lose what one of them adds: it is counted again with
    /// the next mask.
    fn note_mask(&self, took: Duration, step: u64) {
        if self.step.swap(step, Ordering::Relaxed) != step {
            self.spent.store(0, Ordering::Relaxed);
        }
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let before = self.spent.fetch_add(took_ns, Ordering::Relaxed);
        let too_much = u128::from(before) + u128::from(took_ns) > QUICK_STEP.as_nanos();
        self.note(if too_much { Duration::MAX } else { took });
    }

    fn is_slow(&self) -> bool {
        self.penance.load(Ordering::Relaxed) > 0
    }
}
