//! The matrix: every way in which a request can end, with every way of asking.
//!
//! In each cell the request stands still in the middle, when some of its reply is there and the logits of the next
//! token are: there the search must find what is looked for. Then what [`Ending`] says happens to it.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use amnesic::clock::Clock;
use amnesic::forensics::Gate;
use amnesic::{
    CancelToken, Conversation, Error, FinishReason, PoisonReason, Priority, Reply, Request, Session,
    Speculation, user,
};

use super::canary::{self, Kind, Known, REPLY_TOKENS, canary};
use super::process::{Told, ask_for_core, search_fork};
use crate::common::Hands;

/// How a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With an end token; under a grammar, where that ends.
    Success,
    /// With a stop string, which is content too.
    StopString,
    /// With as many tokens as it may have.
    Length,
    /// Its logits are not finite.
    Error,
    /// Its caller cancels it: drops the stream, or through a token.
    Cancel,
    /// Its time is up.
    Deadline,
    /// Its step panics.
    Panic,
    /// KV memory runs short: others that go first take its blocks, and it is computed again. Then a session is refused
    /// for its budget.
    OutOfMemory,
    /// Another request's panic poisons the session.
    Poisoned,
    /// The process forks in the middle: nothing is in the child.
    Fork,
    /// A core dump is made in the middle, and one after the end: nothing is in either.
    Core,
}

/// How it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Generate,
    Stream,
    /// Among five others.
    Batch,
    /// Through the checkpoint's template.
    Chat,
    /// Under a grammar that is content too.
    Structured,
    /// As the second turn.
    Conversation,
    /// With guesses.
    Speculative,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    pub ending: Ending,
    pub way: Way,
}

impl Cell {
    /// All 77.
    pub fn all() -> impl Iterator<Item = Cell> {
        use Ending::{
            Cancel, Core, Deadline, Error, Fork, Length, OutOfMemory, Panic, Poisoned, StopString, Success,
        };
        use Way::{Batch, Chat, Conversation, Generate, Speculative, Stream, Structured};
        let endings =
            [Success, StopString, Length, Error, Cancel, Deadline, Panic, OutOfMemory, Poisoned, Fork, Core];
        let ways = [Generate, Stream, Batch, Chat, Structured, Conversation, Speculative];
        endings.into_iter().flat_map(move |ending| ways.map(|way| Cell { ending, way }))
    }

    pub fn name(self) -> String {
        format!("{:?} x {:?}", self.ending, self.way)
    }

    fn kind(self) -> Kind {
        match self.way {
            Way::Structured => Kind::Structured,
            Way::Conversation => Kind::SecondTurn,
            _ => Kind::Plain,
        }
    }

    /// Whether a request of it holds a state of a grammar.
    pub fn has_grammar(self) -> bool {
        self.way == Way::Structured
    }

    fn request(self, known: &Known, gate: &Gate, token: &CancelToken, clock: &Hands) -> Request {
        let request = match self.way {
            Way::Chat => Request::chat([user(canary::prompt())]).temperature(0.0),
            Way::Structured => canary().response_format(canary::grammar()),
            Way::Speculative => canary().speculate(Speculation::PromptLookup { ngram: 2, tokens: 4 }),
            Way::Generate | Way::Stream | Way::Batch | Way::Conversation => canary(),
        };
        let request = request.stop_at(known.gate, gate).max_tokens(64);
        match self.ending {
            Ending::Success if self.has_grammar() => request,
            Ending::Success => request.stop_token(known.end),
            Ending::StopString => request.stop(known.stop()),
            Ending::Length if self.has_grammar() => request.max_tokens(known.gate + 4),
            Ending::Length | Ending::OutOfMemory | Ending::Fork | Ending::Core if !self.has_grammar() => {
                request.max_tokens(REPLY_TOKENS)
            }
            Ending::Error => request.fail_at(known.gate + 2),
            Ending::Panic => request.panic_at(known.gate + 2),
            Ending::Cancel if !self.has_grammar() => request.max_tokens(2000).cancel_token(token),
            Ending::Cancel => request.cancel_token(token),
            Ending::Deadline => request.deadline(clock.now() + Duration::from_secs(10)),
            _ => request,
        }
    }

    /// What must come of it.
    fn check(self, known: &Known, outcome: &Result<Reply, Error>) {
        let by_itself = if self.has_grammar() { FinishReason::Stop } else { FinishReason::Length };
        let wanted = match self.ending {
            Ending::Success | Ending::StopString => FinishReason::Stop,
            Ending::Length => FinishReason::Length,
            Ending::Cancel => FinishReason::Cancelled,
            Ending::Deadline => FinishReason::Deadline,
            Ending::OutOfMemory | Ending::Fork | Ending::Core => by_itself,
            Ending::Error => {
                return assert!(matches!(outcome, Err(Error::NotFinite)), "{:?}", outcome.is_ok());
            }
            Ending::Panic | Ending::Poisoned => {
                let poisoned = matches!(outcome, Err(Error::Poisoned(PoisonReason::Panic)));
                return assert!(poisoned, "{:?}", outcome.is_ok());
            }
        };
        let reply = outcome.as_ref().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(reply.finish_reason(), wanted);
        assert!(reply.tokens().len() >= known.gate, "it ended before the gate");
        assert!(known.begins_with(reply.tokens()), "the child's reply differs from its parent's");
    }
}

/// A cell in its child process.
pub fn child(cell: Cell, folder: &Path) -> Told {
    let known = Known::load(folder, cell.kind());
    let clock = Hands::new();
    let builder = match cell.ending {
        Ending::OutOfMemory => canary::builder(folder).context_length(384).kv_tokens(448),
        _ => canary::builder(folder),
    };
    let session = builder.clock(clock.clone()).open().unwrap();
    let (gate, token) = (Gate::default(), CancelToken::new());
    let mut told = Told::default();
    let mut conversation = (cell.way == Way::Conversation).then(|| session.conversation());
    if let Some(conversation) = &mut conversation {
        drop(conversation.generate(canary().max_tokens(REPLY_TOKENS)).unwrap());
    }
    std::thread::scope(|scope| {
        let (opened, after_gate) = channel();
        let middle =
            Middle { cell, session: &session, known: &known, gate: &gate, token: &token, clock: &clock };
        let told = &mut told;
        scope.spawn(move || middle.run(told, opened));
        let request = cell.request(&known, &gate, &token, &clock);
        clean_stack(); // of what this program itself had there while it made the texts
        let outcome = ask(cell, &session, conversation.as_mut(), request, &after_gate);
        if !(cell.ending == Ending::Cancel && cell.way == Way::Stream) {
            cell.check(&known, &outcome);
        }
    });
    drop(conversation);
    while session.load().running + session.load().waiting > 0 {
        std::thread::yield_now(); // the others of a batch go on when one has failed
    }
    told.dirty.extend(super::stacks::dirty());
    told.after = known.needles.search_self().unwrap();
    match cell.ending {
        Ending::Core => ask_for_core(),
        Ending::OutOfMemory => {
            assert!(session.load().preemptions > 0, "nobody gave way");
            let refused = canary::builder(folder).memory_budget(1000).open();
            assert!(matches!(refused, Err(Error::Memory { .. })));
        }
        _ => {}
    }
    finish(session, &known, &mut told);
    told
}

/// Overwrites what is below the caller's frame.
#[inline(never)]
fn clean_stack() {
    std::hint::black_box(&mut [0_u8; 64 << 10]);
}

/// Closes the session, and searches once more.
pub fn finish(session: Session, known: &Known, told: &mut Told) {
    match session.close() {
        Ok(report) if report.verified_bytes() > 0 && report.requests() > 0 => {}
        Ok(report) => told.trouble = Some(format!("the report: {report}")),
        Err(error) => told.trouble = Some(error.to_string()),
    }
    told.dropped = known.needles.search_self().unwrap();
}

/// Asks in the cell's way, and waits for the end. Keeps nothing.
fn ask(
    cell: Cell,
    session: &Session,
    conversation: Option<&mut Conversation>,
    request: Request,
    after_gate: &Receiver<()>,
) -> Result<Reply, Error> {
    match (cell.way, conversation) {
        (Way::Conversation, Some(conversation)) => conversation.generate(request),
        (Way::Stream, _) => {
            let mut stream = session.stream(request)?;
            // no piece of it is in this program's hands while the request stands still
            after_gate.recv().unwrap();
            if cell.ending == Ending::Cancel {
                stream.discard();
                return Err(Error::Closed);
            }
            for piece in stream.by_ref() {
                drop(piece?);
            }
            stream.finish()
        }
        (Way::Batch, _) => {
            let others = (0..5).map(|i| Request::tokens(vec![i, 3, 9]).max_tokens(10 + i as usize));
            Ok(session.generate_batch(std::iter::once(request).chain(others))?.remove(0))
        }
        _ => session.generate(request),
    }
}

/// The thread that looks while the request stands still, and brings its end about.
struct Middle<'a> {
    cell: Cell,
    session: &'a Session,
    known: &'a Known,
    gate: &'a Gate,
    token: &'a CancelToken,
    clock: &'a Hands,
}

impl Middle<'_> {
    fn run(self, told: &mut Told, opened: Sender<()>) {
        const PATIENCE: Duration = Duration::from_secs(60);
        assert!(self.gate.wait(PATIENCE), "the request did not come to its middle");
        let open = Opens { gate: self.gate, opened };
        told.alive = self.known.needles.search_self().unwrap();
        match self.cell.ending {
            Ending::Cancel if self.cell.way != Way::Stream => self.token.cancel(),
            Ending::Deadline => self.clock.turn(Duration::from_secs(60)),
            Ending::Fork => told.forked = search_fork(&self.known.needles),
            Ending::Core => ask_for_core(),
            Ending::OutOfMemory => {
                let other = |id| Request::tokens(vec![id; 40]).max_tokens(60).priority(Priority::High);
                let others: Vec<_> = (0..6).map(|id| self.session.stream(other(id)).unwrap()).collect();
                drop(open);
                others.into_iter().for_each(|other| drop(other.finish().unwrap()));
            }
            Ending::Poisoned => {
                let other = Request::tokens([5, 6, 7]).panic_at(0).priority(Priority::High);
                let other = self.session.stream(other).unwrap();
                drop(open);
                assert!(matches!(other.finish(), Err(Error::Poisoned(PoisonReason::Panic))));
            }
            _ => {}
        }
    }
}

/// Opens the gate, also after a panic: else its request would wait for ever.
struct Opens<'a> {
    gate: &'a Gate,
    opened: Sender<()>,
}

impl Drop for Opens<'_> {
    fn drop(&mut self) {
        self.gate.open();
        let _ = self.opened.send(()); // only those who read a stream wait for it
    }
}
