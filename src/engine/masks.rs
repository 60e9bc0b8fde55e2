//! Grammar masks, computed on a thread of their own while the model runs.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use super::scheduler::Id;
use crate::error::{Error, Result};
use crate::grammar::Matcher;
use crate::memory::thread::{self, Depth};
use crate::memory::{Scrubbed, Secret, stack};

/// A reply's grammar, with the mask for its next token.
#[derive(Debug)]
pub struct Guide {
    matcher: Matcher,
    mask: Secret<[u32]>,
}

impl Guide {
    /// At the start of a reply.
    pub fn new(matcher: Matcher) -> Self {
        Self { matcher, mask: Secret::default() }
    }

    /// Computes the mask for the next token.
    ///
    /// # Errors
    /// As [`Matcher::mask`].
    pub fn look(&mut self) -> Result<()> {
        self.matcher.mask(&mut self.mask)
    }

    /// What the last look saw.
    pub fn mask(&self) -> &[u32] {
        self.mask.expose()
    }

    /// Takes the token that was drawn.
    ///
    /// # Errors
    /// As [`Matcher::accept`].
    pub fn accept(&mut self, token: u32) -> Result<()> {
        self.matcher.accept(token)
    }

    /// How many of these guesses could follow. Where the grammar cannot say, none.
    pub fn allowed(&mut self, guesses: &[u32]) -> usize {
        self.matcher.validate(guesses).unwrap_or(0)
    }

    /// Whether nothing but an end token can follow.
    pub fn is_over(&self) -> bool {
        self.matcher.is_stopped()
    }
}

enum Work {
    Look(Id, Box<Guide>),
    /// Drops guides, and cleans the stack on which they were used.
    Forget(Vec<Guide>, Sender<Scrubbed>),
}

type Looked = (Id, Box<Guide>, Result<()>);

/// The thread. Ends when this drops.
#[derive(Debug)]
pub struct Masks {
    work: Option<Sender<Work>>,
    looked: Receiver<Looked>,
    thread: Option<JoinHandle<()>>,
}

impl Masks {
    /// Starts it.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start() -> Result<Self> {
        let (work, jobs) = channel();
        let (done, looked) = channel();
        let run = move || serve(&jobs, &done);
        let thread = thread::spawn("amnesic-masks", Depth::Kernels, run).map_err(Error::Thread)?;
        Ok(Self { work: Some(work), looked, thread: Some(thread) })
    }

    /// Has a guide look; [`Masks::next`] gives it back.
    pub fn look(&self, id: Id, guide: Box<Guide>) {
        self.send(Work::Look(id, guide));
    }

    /// Waits for a guide that has looked.
    ///
    /// # Panics
    /// If the thread has; then the session is poisoned.
    pub fn next(&self) -> Looked {
        self.looked.recv().expect("the thread of masks lives as long as its session")
    }

    /// Drops guides, and waits until nothing of them is left there.
    pub fn forget(&self, guides: Vec<Guide>) -> Scrubbed {
        let (done, answer) = channel();
        self.send(Work::Forget(guides, done));
        answer.recv().expect("the thread of masks lives as long as its session")
    }

    fn send(&self, work: Work) {
        let sent = self.work.as_ref().is_some_and(|sender| sender.send(work).is_ok());
        assert!(sent, "the thread of masks lives as long as its session");
    }
}

fn serve(jobs: &Receiver<Work>, done: &Sender<Looked>) {
    while let Ok(work) = jobs.recv() {
        match work {
            Work::Look(id, mut guide) => {
                let result = guide.look();
                if done.send((id, guide, result)).is_err() {
                    return;
                }
            }
            Work::Forget(guides, answer) => {
                drop(guides);
                let _ = answer.send(stack::scrub_below()); // a worker that is gone has nothing to wait for
            }
        }
    }
}

impl Drop for Masks {
    fn drop(&mut self) {
        drop(self.work.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
