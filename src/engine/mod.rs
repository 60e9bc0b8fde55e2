//! Requests into steps: [`readers`] (where they come in) and [`intake`] (how they are read), [`inspect`] (questions to the tokenizer alone), [`scheduler`] (who takes part in a step, and who holds which memory;
//! integers only), [`sequence`] and [`job`] (a choice and its request as they run), [`plan`] (what a step computes),
//! [`models`] (what computes it), [`shell`] (the thread that owns the device), [`worker`] (what that does where it generates; `step` is a
//! step of it), [`message`] (what it is told), [`status`] (what it shows), [`masks`] (grammars, beside it), [`speculate`] (guesses) and
//! [`mailbox`] (to the caller). Sessions that embed texts have workers of another kind in the same shell: [`encode`].
//!
//! **Invariant:** requests join and leave between steps only; a request's end is told to its caller after everything
//! of it is overwritten, never before.

mod ask;
pub mod encode;
pub mod inspect;
pub mod intake;
pub mod job;
pub mod mailbox;
pub mod masks;
pub mod message;
pub mod models;
pub mod plan;
pub mod readers;
pub mod receipts;
pub mod scheduler;
pub mod sequence;
pub mod shell;
pub mod speculate;
pub mod status;
mod step;
mod thinking;
pub mod worker;
