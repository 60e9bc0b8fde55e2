//! Scrubs that tests leave out, to show that they would notice. Only in a build with `--cfg amnesic_faults`, which `build.rs`
//! explains: no other build has a switch in any scrub, and `tools/check_switches` looks for one in what was built.
//!
//! Without locks and allocations: the allocator asks too.

use std::panic::Location;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Scrubbed;

type Call = &'static Location<'static>;

/// By this name `tools/check_switches` knows a library with faults, whatever the optimiser did with the rest of this file.
#[used]
#[unsafe(no_mangle)]
static AMNESIC_SCRUBS_HAVE_FAULTS: u8 = 1;

static NO_OPS: AtomicBool = AtomicBool::new(false);
static WATCHING: AtomicBool = AtomicBool::new(false);
static SEEN: [OnceLock<Call>; 256] = [const { OnceLock::new() }; 256];
static LEFT_OUT: OnceLock<String> = OnceLock::new();

/// Overwriting does nothing any more, and what is read back afterwards shows it.
pub fn make_no_ops() {
    NO_OPS.store(true, Ordering::Relaxed);
}

pub(super) fn are_no_ops() -> bool {
    NO_OPS.load(Ordering::Relaxed)
}

/// Whether any test has asked for a fault.
pub fn are_in_use() -> bool {
    are_no_ops() || WATCHING.load(Ordering::Relaxed)
}

/// From now on remembers which calls there are.
pub fn watch() {
    WATCHING.store(true, Ordering::Relaxed);
}

/// The calls so far; the same one several times where the compiler has copies of it.
pub fn seen() -> impl Iterator<Item = Call> {
    SEEN.iter().map_while(|seen| seen.get().copied())
}

/// The call in this place, `file:line:column`, is from now on as if it were not there: nothing is overwritten,
/// nothing read back. Once for a process.
pub fn leave_out(place: &str) {
    let _ = LEFT_OUT.set(place.to_owned()); // the first stays
    watch();
}

/// What a call that is left out returns.
pub fn proof_of_nothing() -> Scrubbed {
    Scrubbed { bytes: 0, samples: 0, dirty: false }
}

pub fn is_left_out(call: Call) -> bool {
    if !WATCHING.load(Ordering::Relaxed) {
        return false;
    }
    let _ = SEEN.iter().find(|seen| std::ptr::eq(*seen.get_or_init(|| call), call));
    LEFT_OUT.get().is_some_and(|place| {
        let mut parts = place.rsplitn(3, ':');
        let mut number = || parts.next().and_then(|part| part.parse().ok());
        let at = (number(), number());
        at == (Some(call.column()), Some(call.line())) && parts.next() == Some(call.file())
    })
}
