//! Guesses without a model: what followed the same tokens before.

use std::ops::Range;

/// Where up to `most` tokens lie that followed the latest earlier occurrence of the last `ngram` tokens of `ids`; of fewer,
/// down to one, where so many do not occur (prompt lookup decoding, Saxena 2023).
pub fn lookup(ids: &[u32], ngram: usize, most: usize) -> Range<usize> {
    for len in (1..=ngram.min(ids.len().saturating_sub(1))).rev() {
        let (before, last) = (&ids[..ids.len() - 1], &ids[ids.len() - len..]);
        if let Some(at) = before.windows(len).rposition(|window| window == last) {
            return at + len..ids.len().min(at + len + most);
        }
    }
    0..0
}

#[cfg(test)]
mod tests {
    fn lookup(ids: &[u32], ngram: usize, most: usize) -> Vec<u32> {
        ids[super::lookup(ids, ngram, most)].to_vec()
    }

    #[test]
    fn what_followed_the_longest_latest_match_is_guessed() {
        assert_eq!(lookup(&[1, 2, 3, 4, 9, 2, 3], 2, 8), [4, 9, 2, 3]);
        assert_eq!(lookup(&[1, 2, 3, 4, 9, 2, 3], 2, 1), [4]);
        assert_eq!(lookup(&[5, 3, 6, 3, 7, 3], 1, 2), [7, 3], "the latest");
        assert_eq!(lookup(&[2, 3, 6, 8, 3, 7, 2, 3], 2, 2), [6, 8], "the longest");
        assert_eq!(lookup(&[8, 3, 7, 2, 3], 2, 2), [7, 2], "a shorter one where there is no longer one");
        assert_eq!(lookup(&[4, 4, 4], 3, 5), [4], "a match may overlap the end");
        assert!(
            lookup(&[1, 2, 3], 3, 5).is_empty()
                && lookup(&[1], 3, 5).is_empty()
                && lookup(&[], 3, 5).is_empty()
        );
    }
}
