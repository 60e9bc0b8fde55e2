//! `logit_bias`: numbers that a request adds to the logits of single tokens.

use std::fmt;

use super::BANNED;
use crate::error::{Error, Result};
use crate::memory::Secret;

/// Tokens and what is added to their logits. Overwritten when it drops; `Debug` prints the length only.
#[derive(Default)]
pub struct LogitBias {
    /// The id above the bits of the number.
    entries: Secret<[u64]>,
}

impl LogitBias {
    /// The largest number, up or down.
    pub const MAX: f32 = 100.0;

    /// Adds `value` to the logit of `id`. -100 makes it impossible; an id given twice gets the sum.
    pub fn push(&mut self, id: u32, value: f32) {
        self.entries.push(u64::from(id) << 32 | u64::from(value.to_bits()));
    }

    /// How many were given.
    pub fn len(&self) -> usize {
        self.entries.expose().len()
    }

    /// Whether none was given.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Checks the numbers, which takes no checkpoint.
    ///
    /// # Errors
    /// One is not from -100 to 100.
    pub fn check(&self) -> Result<()> {
        match self.iter().all(|(_, value)| (-Self::MAX..=Self::MAX).contains(&value)) {
            true => Ok(()),
            false => Err(Error::request("logit_bias", format!("from -{0} to {0} for each token", Self::MAX))),
        }
    }

    /// Checks the tokens against a vocabulary.
    ///
    /// # Errors
    /// One is outside, or there are more than tokens in the vocabulary.
    pub fn check_ids(&self, vocab: usize) -> Result<()> {
        if self.iter().any(|(id, _)| id as usize >= vocab) {
            return Err(Error::request("logit_bias", format!("for token ids below {vocab}")));
        }
        if self.len() > vocab {
            return Err(Error::request("logit_bias", format!("at most {vocab} entries")));
        }
        Ok(())
    }

    /// Adds the numbers to the logits; ids outside are passed over.
    pub(super) fn apply(&self, logits: &mut [f32]) {
        for (id, value) in self.iter() {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = if value <= -Self::MAX { BANNED } else { *logit + value };
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, f32)> {
        self.entries.expose().iter().map(|&entry| ((entry >> 32) as u32, f32::from_bits(entry as u32)))
    }
}

impl fmt::Debug for LogitBias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogitBias").field("len", &self.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bias(entries: &[(u32, f32)]) -> LogitBias {
        let mut bias = LogitBias::default();
        entries.iter().for_each(|&(id, value)| bias.push(id, value));
        bias
    }

    #[test]
    fn numbers_and_ids_out_of_bounds_are_refused_and_passed_over() {
        for bad in [-100.1, 100.1, f32::NAN, f32::INFINITY] {
            assert!(matches!(bias(&[(0, bad)]).check(), Err(Error::Request { field: "logit_bias", .. })));
        }
        let edge = bias(&[(0, -100.0), (9, 100.0)]);
        assert!(edge.check().is_ok() && edge.check_ids(10).is_ok());
        assert!(matches!(edge.check_ids(9), Err(Error::Request { field: "logit_bias", .. })));
        assert!(bias(&[(0, 1.0); 2]).check_ids(1).is_err());
        let mut logits = [1.0];
        bias(&[(u32::MAX, 5.0), (1, 5.0)]).apply(&mut logits);
        assert_eq!(logits, [1.0]);
    }

    #[test]
    fn numbers_are_added_and_the_lowest_bans() {
        let mut logits = [1.0, 2.0, f32::MAX, 3.0];
        bias(&[(0, -1.5), (1, 0.25), (1, 0.25), (2, -100.0), (2, 100.0)]).apply(&mut logits);
        assert_eq!(logits, [-0.5, 2.5, BANNED, 3.0]);
    }

    #[test]
    fn debug_prints_the_length_only() {
        assert_eq!(format!("{:?}", bias(&[(77, 5.5)])), "LogitBias { len: 1 }");
    }
}
