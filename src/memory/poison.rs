//! The sticky failure flag: once a guarantee is in doubt, a session serves no more requests.

use std::sync::atomic::{AtomicU8, Ordering};

/// Why a session stopped serving.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoisonReason {
    /// A step panicked. All session memory was overwritten at once.
    Panic,
    /// Memory read back after a scrub was not zero.
    ScrubFailed,
    /// The device failed: what it held could not be overwritten any more. It goes back to the driver with all else that
    /// the session had there.
    DeviceFailed,
}

impl PoisonReason {
    /// Whether something may not have been overwritten.
    pub(crate) fn is_unscrubbed(self) -> bool {
        match self {
            Self::Panic => false,
            Self::ScrubFailed | Self::DeviceFailed => true,
        }
    }
}

impl std::fmt::Display for PoisonReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Panic => "a step panicked; everything was scrubbed",
            Self::ScrubFailed => "memory was not zero after a scrub",
            Self::DeviceFailed => "the device failed; its memory could not be overwritten",
        })
    }
}

/// Set once, never cleared. A destructor cannot return an error: it poisons instead.
#[derive(Debug, Default)]
pub struct Poison(AtomicU8);

impl Poison {
    /// Marks the session; the worse reason stays.
    pub fn set(&self, reason: PoisonReason) {
        let code = match reason {
            PoisonReason::Panic => 1,
            PoisonReason::ScrubFailed => 2,
            PoisonReason::DeviceFailed => 3,
        };
        self.0.fetch_max(code, Ordering::AcqRel);
    }

    /// The reason, if the session is poisoned.
    pub fn reason(&self) -> Option<PoisonReason> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            1 => Some(PoisonReason::Panic),
            2 => Some(PoisonReason::ScrubFailed),
            _ => Some(PoisonReason::DeviceFailed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worse_reason_stays() {
        let poison = Poison::default();
        assert_eq!(poison.reason(), None);
        poison.set(PoisonReason::Panic);
        assert_eq!(poison.reason(), Some(PoisonReason::Panic));
        poison.set(PoisonReason::ScrubFailed);
        poison.set(PoisonReason::Panic);
        assert_eq!(poison.reason(), Some(PoisonReason::ScrubFailed));
    }
}
