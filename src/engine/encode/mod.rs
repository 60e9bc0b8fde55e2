//! Sessions that embed texts or score them: [`reader`] (the intake's part), [`job`] (a request as it runs) and [`worker`]
//! (the thread that owns the device).
//!
//! A text is computed in one step, packed with others up to a budget of tokens, without padding; several requests share
//! a step, a text of each in turn. **Invariant:** a request's end is told to its caller after everything of it is
//! overwritten, never before.

pub mod job;
pub mod reader;
pub mod worker;
