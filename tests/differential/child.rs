//! The process that is compared with itself. It does not know which of two requests it runs: it reads their bytes into the
//! buffers that a request then owns.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use amnesic::clock::Clock;
use amnesic::forensics::Gate;
use amnesic::{
    CancelToken, Conversation, Error, FinishReason, PoisonReason, Priority, Reply, Request, Session,
};

use super::search::canary;
use super::search::cells::{Cell, Ending, Way};
use super::shapes::{Content, GATE, REPLY_TOKENS, request};
use crate::common::Hands;

/// What a child says, each with a number: a run is over; the process of that number stands in the middle of one, and is to
/// be looked at.
pub const DONE: u8 = b'd';
pub const IN_DUMP: u8 = b'c';
pub const IN_FORK: u8 = b'f';

/// A request on its way to the child.
pub fn encode(content: &Content) -> Vec<u8> {
    let texts = [&content.prompt, &content.grammar, &content.stop].map(|text| text.as_bytes());
    let lengths = texts.map(|text| u32::try_from(text.len()).unwrap().to_le_bytes());
    [&lengths.concat()[..], &texts.concat(), &content.end.to_le_bytes()].concat()
}

/// Straight from the pipe into the buffer: no copy that somebody else would hold.
fn receive(bytes: usize) -> Option<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    let mut filled = 0;
    while filled < bytes {
        let rest = &mut buffer[filled..];
        // SAFETY: the kernel writes at most that many bytes into a buffer that is ours.
        let read = unsafe { libc::read(0, rest.as_mut_ptr().cast(), rest.len()) };
        match usize::try_from(read) {
            Ok(0) | Err(_) => return None,
            Ok(read) => filled += read,
        }
    }
    Some(buffer)
}

fn receive_content() -> Option<(Content, Vec<u8>)> {
    let lengths = receive(12)?;
    let length = |at: usize| u32::from_le_bytes(lengths[at..at + 4].try_into().unwrap()) as usize;
    let [prompt, grammar, stop] = [0, 4, 8].map(length);
    let text = |bytes: usize| Some(String::from_utf8(receive(bytes)?).unwrap());
    let content = Content { prompt: text(prompt)?, grammar: text(grammar)?, stop: text(stop)?, end: 0 };
    Some((content, receive(4)?))
}

fn say(what: u8, number: u32) {
    let [a, b, c, d] = number.to_le_bytes();
    let word = [what, a, b, c, d];
    // SAFETY: five bytes of this frame. Not through `stdout`, whose buffer would be one thing more.
    let written = unsafe { libc::write(1, word.as_ptr().cast(), word.len()) };
    assert_eq!(written, 5);
}

struct Child {
    cell: Cell,
    clock: Hands,
    folder: std::path::PathBuf,
}

pub fn run(cell: Cell, fault: &str, folder: &Path) {
    // the parent reads all of this process's memory, and could not read what lies in memfd_secret
    amnesic::testing::without_secret_memory();
    let child = Child { cell, clock: Hands::new(), folder: folder.to_owned() };
    // what panics is told nobody, with its time and thread
    std::panic::set_hook(Box::new(|info| {
        let message = info.payload().downcast_ref::<&str>().copied().unwrap_or_default();
        if !message.contains("a fault that a test asked for") {
            let _ = writeln!(std::io::stderr(), "{info}");
        }
    }));
    // a session that is poisoned serves no more: then each run has its own
    let each_its_own = matches!(cell.ending, Ending::Panic | Ending::Poisoned);
    let mut session = (!each_its_own).then(|| child.open());
    // in one place: what lies elsewhere after each run is for needles to find
    let mut kept: Vec<[u8; 4]> = Vec::with_capacity(64);
    let mut sum = vec![0_u8; 64];
    while let Some((content, end)) = receive_content() {
        match fault {
            "KeepsAByte" => {
                sum[20] =
                    content.prompt.bytes().fold(0, |sum: u8, byte| sum.wrapping_mul(31).wrapping_add(byte));
            }
            "KeepsWords" => {
                kept.clear();
                kept.extend(
                    content.prompt.split(' ').map(|word| *word.as_bytes().first_chunk::<4>().unwrap()),
                );
            }
            _ => {}
        }
        let opened = session.take().unwrap_or_else(|| child.open());
        child.run(&opened, content, end);
        clean_stack(); // of what this program itself had there
        if each_its_own {
            drop(opened);
        } else {
            session = Some(opened);
        }
        say(DONE, 0);
    }
    std::hint::black_box((&kept, &sum));
}

/// Overwrites what is below the caller's frame.
#[inline(never)]
fn clean_stack() {
    std::hint::black_box(&mut [0_u8; 256 << 10]);
}

impl Child {
    fn open(&self) -> Session {
        let builder = match self.cell.ending {
            Ending::OutOfMemory => canary::builder(&self.folder).context_length(384).kv_tokens(448),
            _ => canary::builder(&self.folder),
        };
        builder.clock(self.clock.clone()).open().unwrap()
    }

    /// One request, in this cell's way to this cell's end.
    fn run(&self, session: &Session, content: Content, end: Vec<u8>) {
        let (gate, token) = (Gate::default(), CancelToken::new());
        let mut conversation = (self.cell.way == Way::Conversation).then(|| session.conversation());
        if let Some(conversation) = &mut conversation {
            let turn = Content {
                prompt: content.prompt.clone(),
                grammar: String::new(),
                stop: String::new(),
                end: 0,
            };
            drop(conversation.generate(request(self.cell, turn)).unwrap());
        }
        let request = self.request(content, end, &token);
        let has_gate = matches!(
            self.cell.ending,
            Ending::Cancel
                | Ending::Deadline
                | Ending::OutOfMemory
                | Ending::Poisoned
                | Ending::Fork
                | Ending::Core
        );
        std::thread::scope(|scope| {
            let middle = has_gate.then(|| scope.spawn(|| self.middle(session, &gate, &token)));
            let request = if has_gate { request.stop_at(GATE, &gate) } else { request };
            let outcome = self.ask(session, conversation.as_mut(), request);
            self.check(&outcome);
            drop(outcome);
            if let Some(middle) = middle {
                middle.join().unwrap();
            }
        });
        drop(conversation);
        while session.load().running + session.load().waiting > 0 {
            std::thread::yield_now(); // the others of a batch go on when one has failed
        }
    }

    fn request(&self, mut content: Content, mut end: Vec<u8>, token: &CancelToken) -> Request {
        let stop = std::mem::take(&mut content.stop); // moved on, since nobody overwrites what is dropped here
        let id = u32::from_le_bytes(end[..].try_into().unwrap());
        std::hint::black_box(&mut end).fill(0);
        std::hint::black_box(&end);
        let request = request(self.cell, content);
        match self.cell.ending {
            Ending::Success if self.cell.way != Way::Structured => request.stop_token(id),
            Ending::StopString => request.stop(stop),
            Ending::Length if self.cell.way == Way::Structured => request.max_tokens(GATE + 4),
            Ending::Error => request.fail_at(GATE + 2),
            Ending::Panic => request.panic_at(GATE + 2),
            Ending::Cancel => request.cancel_token(token),
            Ending::Deadline => request.deadline(self.clock.now() + Duration::from_secs(10)),
            _ => request,
        }
    }

    fn ask(
        &self,
        session: &Session,
        conversation: Option<&mut Conversation>,
        request: Request,
    ) -> Result<Reply, Error> {
        match (self.cell.way, conversation) {
            (_, Some(conversation)) => conversation.generate(request),
            (Way::Stream, _) => {
                let mut stream = session.stream(request)?;
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

    /// The thread that brings the end about, while the request stands still.
    fn middle(&self, session: &Session, gate: &Gate, token: &CancelToken) {
        assert!(gate.wait(Duration::from_secs(60)), "the request did not come to its middle");
        match self.cell.ending {
            Ending::Cancel => token.cancel(),
            Ending::Deadline => self.clock.turn(Duration::from_secs(60)),
            Ending::Core => {
                say(IN_DUMP, std::process::id());
                receive(1).unwrap();
            }
            Ending::Fork => in_a_fork(|pid| {
                say(IN_FORK, pid);
                receive(1).unwrap();
            }),
            Ending::OutOfMemory => {
                let other = |id| Request::tokens(vec![id; 40]).max_tokens(60).priority(Priority::High);
                let others: Vec<_> = (0..6).map(|id| session.stream(other(id)).unwrap()).collect();
                gate.open();
                others.into_iter().for_each(|other| drop(other.finish().unwrap()));
            }
            Ending::Poisoned => {
                let other = Request::tokens([5, 6, 7]).panic_at(0).priority(Priority::High);
                let other = session.stream(other).unwrap();
                gate.open();
                assert!(matches!(other.finish(), Err(Error::Poisoned(PoisonReason::Panic))));
            }
            _ => {}
        }
        gate.open();
    }

    /// What must come of it.
    fn check(&self, outcome: &Result<Reply, Error>) {
        let by_itself = match self.cell.way {
            Way::Structured => FinishReason::Stop,
            _ => FinishReason::Length,
        };
        let wanted = match self.cell.ending {
            Ending::Error => return assert!(matches!(outcome, Err(Error::NotFinite))),
            Ending::Panic | Ending::Poisoned => {
                return assert!(matches!(outcome, Err(Error::Poisoned(PoisonReason::Panic))));
            }
            Ending::Success | Ending::StopString => FinishReason::Stop,
            Ending::Length => FinishReason::Length,
            Ending::Cancel => FinishReason::Cancelled,
            Ending::Deadline => FinishReason::Deadline,
            Ending::OutOfMemory | Ending::Fork | Ending::Core => by_itself,
        };
        let reply = outcome.as_ref().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(reply.finish_reason(), wanted);
        assert!(reply.tokens().len() <= REPLY_TOKENS.max(100));
    }
}

/// Has `look` look at a fork of this process, which does nothing.
fn in_a_fork(look: impl FnOnce(u32)) {
    // SAFETY: the child calls nothing but what signal handlers may call; it never returns.
    let pid = unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL); // also if this process fails meanwhile
            loop {
                libc::pause();
            }
        }
        pid
    };
    assert!(pid > 0, "fork: {}", std::io::Error::last_os_error());
    look(pid.cast_unsigned());
    // SAFETY: ends and collects the child made above, which nobody else knows.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        assert_eq!(libc::waitpid(pid, &mut 0, 0), pid);
    }
}
