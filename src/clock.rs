//! Time, injected wherever it matters: deadlines, timings, dates in chat templates.

use std::fmt::Debug;
use std::time::{Instant, SystemTime};

/// Tells a session the time; [`crate::Builder::clock`] takes one.
pub trait Clock: Debug + Send + Sync {
    /// For deadlines and timings: never goes back.
    fn now(&self) -> Instant;
    /// For the dates that chat templates write.
    fn wall(&self) -> SystemTime;
}

/// The system's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}
