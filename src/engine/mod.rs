//! Requests into steps: [`sequence`] (one request as it runs), [`scheduler`] (who takes part in a step; integers
//! only), [`batch`] (a step's input), [`worker`] (the thread that owns the device) and [`mailbox`] (to the caller).
//!
//! **Invariant:** requests join and leave between steps only; a request's end is told to its caller after everything
//! of it is overwritten, never before.

pub mod batch;
pub mod mailbox;
pub mod scheduler;
pub mod sequence;
#[cfg(feature = "testing")]
pub mod taps;
pub mod worker;
