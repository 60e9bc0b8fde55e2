//! Stop strings: found across token borders, never given out in part.

use std::sync::Arc;

use crate::memory::Secret;

/// The stop strings of a request, and the text that is held back because a stop string may begin in it.
#[derive(Debug)]
pub struct Stops {
    strings: Arc<Vec<Secret<str>>>,
    held: Secret<[u8]>,
}

impl Stops {
    /// For these strings, none of them empty.
    pub fn new(strings: Arc<Vec<Secret<str>>>) -> Self {
        Self { strings, held: Secret::<[u8]>::with_capacity(256) }
    }

    /// The buffer to which new text is appended, before [`Stops::release`].
    pub fn held(&mut self) -> &mut Secret<[u8]> {
        &mut self.held
    }

    /// Moves to `out` what can no longer be part of a stop string; true once one is found. The text before it is
    /// given, it and what follows are not. With `last` nothing is held back.
    pub fn release(&mut self, last: bool, out: &mut Secret<[u8]>) -> bool {
        let held = self.held.expose();
        let found = self.strings.iter().filter_map(|stop| find(held, stop.expose().as_bytes())).min();
        let safe = match found {
            Some(at) => at,
            None if last => held.len(),
            None => held.len() - self.begun(),
        };
        out.extend(&held[..safe]);
        self.held.drain_front(safe);
        found.is_some()
    }

    /// The longest end of the held text that begins a stop string.
    fn begun(&self) -> usize {
        let held = self.held.expose();
        let begins = |stop: &[u8]| {
            let longest = held.len().min(stop.len() - 1);
            (1..=longest).rev().find(|&len| held.ends_with(&stop[..len])).unwrap_or(0)
        };
        self.strings.iter().map(|stop| begins(stop.expose().as_bytes())).max().unwrap_or(0)
    }
}

/// Where `wanted`, which is not empty, first stands in `text`.
pub fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds the pieces; returns what came out after each, and the rest, or what came out before the stop.
    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut stops =
            Stops::new(Arc::new(stops.iter().map(|&stop| Secret::new(stop.to_owned())).collect()));
        let mut states = Vec::new();
        let mut out = Secret::<[u8]>::default();
        for piece in pieces {
            stops.held().extend(piece.as_bytes());
            let found = stops.release(false, &mut out);
            states.push(String::from_utf8(out.expose().to_vec()).unwrap());
            if found {
                return (states, true);
            }
        }
        let found = stops.release(true, &mut out);
        states.push(String::from_utf8(out.expose().to_vec()).unwrap());
        (states, found)
    }

    #[test]
    fn a_stop_across_pieces_is_never_given_in_part() {
        let (states, found) = run(&["END"], &["one E", "N", "D two"]);
        assert!(found);
        assert_eq!(states, ["one ", "one ", "one "]);
    }

    #[test]
    fn what_only_looked_like_a_stop_comes_out() {
        let (states, found) = run(&["END"], &["aE", "EN", "x"]);
        assert!(!found);
        assert_eq!(states, ["a", "aE", "aEENx", "aEENx"]);
    }

    #[test]
    fn the_earliest_of_several_wins() {
        let (states, found) = run(&["yz", "x"], &["wxyz"]);
        assert!(found);
        assert_eq!(states, ["w"]);
    }

    #[test]
    fn without_stops_everything_passes() {
        assert_eq!(run(&[], &["a", "b"]), (vec!["a".into(), "ab".into(), "ab".into()], false));
    }
}
