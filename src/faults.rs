//! Switches with which this crate's own tests leave scrubs out, to show that they would notice.
//!
//! This module, and every switch behind it, exists only in a build with `--cfg amnesic_faults`, which `build.rs` sets where
//! `AMNESIC_FAULTS=1` is in the environment of the build. It is no feature, so no dependency can turn it on, and a
//! [receipt](crate::privacy::Environment) names it among the features of the build. No application is to be shipped with it.
//!
//! Lives here: what tests call. Never will: what a scrub asks, which is in `memory/scrub/faults.rs`.

use std::collections::BTreeSet;

use crate::memory::scrub::faults;

/// Turns every scrub of this process into a no-op, so that a test can show that it would notice.
pub fn disable_scrub() {
    faults::make_no_ops();
}

/// From now on this process remembers which calls of its scrub there are; see [`scrubs_seen`].
pub fn watch_scrubs() {
    faults::watch();
}

/// The calls so far, each as `file:line:column`. All drops of what holds content are one call.
pub fn scrubs_seen() -> BTreeSet<String> {
    faults::seen().map(ToString::to_string).collect()
}

/// The call of the scrub in this place is from now on as if it were not there, so that a test can show that it would
/// notice: nothing is overwritten, and nothing read back. One call in a process, the first that is named.
pub fn leave_out_scrub(place: &str) {
    faults::leave_out(place);
}
