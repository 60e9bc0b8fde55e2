//! The merges of byte pair encoding, in the crate's order: the lowest rank first, and of equal ones the leftmost.

use std::collections::HashMap;

use super::tables::{NONE, Numbers, pair};
use crate::memory::Secret;

/// Up to so many symbols are searched through for the lowest rank; more have a queue.
const FEW: usize = 32;

/// A pair of ids, and the id of what they become. Its place in the list is its rank.
pub type Merge = (u32, u32, u32);

/// The merges.
pub struct Merges {
    /// Rank and result of each pair.
    table: Numbers,
    /// The result of each rank.
    results: Vec<u32>,
    /// The order is the queue's also for few symbols. It differs where tokens behind others carry a prefix: then a
    /// pair that is gone can be taken for another with the same result, as it is in the crate.
    always_queue: bool,
}

/// The merges of a file as ids.
///
/// # Errors
/// A token is not in the vocabulary.
pub fn read(
    vocab: &HashMap<String, u32>,
    pairs: &[(String, String)],
    prefix: usize,
) -> Result<Vec<Merge>, &'static str> {
    let id = |text: &str| vocab.get(text).copied().ok_or("merges of what is no token");
    let mut merged = String::new();
    let merge = |(left, right): &(String, String)| {
        merged.clear();
        merged.push_str(left);
        merged.push_str(right.get(prefix..).ok_or("merges without the prefix")?);
        Ok((id(left)?, id(right)?, id(&merged)?))
    };
    pairs.iter().map(merge).collect()
}

impl Merges {
    /// The table of a list of merges in the order of their ranks.
    pub fn new(list: &[Merge], always_queue: bool) -> Self {
        let ranked =
            list.iter().zip(0..).map(|(&(left, right, result), rank)| (pair(left, right), rank, result));
        let results = list.iter().map(|&(_, _, result)| result).collect();
        Self { table: Numbers::new(ranked.collect()), results, always_queue }
    }

    /// Merges in place; what is left is at the front, and its length is returned. `links` and `queue` are working memory.
    #[inline]
    pub fn run(&self, symbols: &mut [u32], links: &mut Secret<[u32]>, queue: &mut Secret<[u64]>) -> usize {
        match symbols.len() {
            len @ (0 | 1) => len,
            len if len <= FEW && !self.always_queue => self.run_few(symbols),
            _ => self.run_queue(symbols, links, queue),
        }
    }

    #[inline]
    fn rank(&self, left: u32, right: u32) -> (u32, u32) {
        self.table.get(pair(left, right)).unwrap_or((NONE, NONE))
    }

    fn run_few(&self, symbols: &mut [u32]) -> usize {
        // rank and result of each symbol with the one behind it
        let mut ranks = [(NONE, NONE); FEW];
        let mut len = symbols.len();
        for at in 0..len - 1 {
            ranks[at] = self.rank(symbols[at], symbols[at + 1]);
        }
        loop {
            let (mut best, mut lowest) = (0, NONE);
            for (at, &(rank, _)) in ranks[..len - 1].iter().enumerate() {
                if rank < lowest {
                    (best, lowest) = (at, rank);
                }
            }
            if lowest == NONE {
                return len;
            }
            symbols[best] = ranks[best].1;
            symbols.copy_within(best + 2..len, best + 1);
            ranks.copy_within(best + 1..len, best);
            len -= 1;
            if len == 1 {
                return 1;
            }
            if best > 0 {
                ranks[best - 1] = self.rank(symbols[best - 1], symbols[best]);
            }
            if best + 1 < len {
                ranks[best] = self.rank(symbols[best], symbols[best + 1]);
            }
        }
    }

    fn run_queue(&self, symbols: &mut [u32], links: &mut Secret<[u32]>, queue: &mut Secret<[u64]>) -> usize {
        let len = symbols.len();
        let before = (0..len as u32).map(|at| at.wrapping_sub(1));
        let behind = (1..=len as u32).map(|at| if at == len as u32 { NONE } else { at });
        links.truncate(0);
        links.reserve(2 * len);
        before.chain(behind).for_each(|link| links.push(link));
        let (before, behind) = links.expose_mut().split_at_mut(len);
        // each merge takes one entry and adds two at most
        let mut queue = Queue { entries: queue.refill((0..2 * len).map(|_| 0)), len: 0 };
        for at in 0..len - 1 {
            queue.add(self.rank(symbols[at], symbols[at + 1]).0, at as u32);
        }
        while let Some((rank, at)) = queue.take() {
            let (here, result) = (at as usize, self.results[rank as usize]);
            let next = behind[here];
            // gone, or the last
            if symbols[here] == NONE || next == NONE {
                continue;
            }
            let right = next as usize;
            // the pair is no longer what it was
            if self.rank(symbols[here], symbols[right]).1 != result {
                continue;
            }
            symbols[here] = result;
            symbols[right] = NONE;
            behind[here] = behind[right];
            if let Some(before) = before.get_mut(behind[right] as usize) {
                *before = at;
            }
            if before[here] != NONE {
                let left = before[here];
                queue.add(self.rank(symbols[left as usize], result).0, left);
            }
            if behind[here] != NONE {
                queue.add(self.rank(result, symbols[behind[here] as usize]).0, at);
            }
        }
        let (mut at, mut count) = (0, 0);
        while at != NONE {
            symbols[count] = symbols[at as usize];
            count += 1;
            at = behind[at as usize];
        }
        count
    }
}

/// A binary heap over working memory: the lowest rank on top, then the lowest place.
struct Queue<'a> {
    entries: &'a mut [u64],
    len: usize,
}

impl Queue<'_> {
    #[inline]
    fn add(&mut self, rank: u32, place: u32) {
        if rank == NONE {
            return;
        }
        let entry = pair(rank, place);
        let mut at = self.len;
        self.len += 1;
        while at > 0 && self.entries[(at - 1) / 2] > entry {
            self.entries[at] = self.entries[(at - 1) / 2];
            at = (at - 1) / 2;
        }
        self.entries[at] = entry;
    }

    #[inline]
    fn take(&mut self) -> Option<(u32, u32)> {
        self.len = self.len.checked_sub(1)?;
        let entries = &mut self.entries[..=self.len];
        let (top, last) = (entries[0], entries[self.len]);
        let mut at = 0;
        loop {
            let mut child = 2 * at + 1;
            if child >= self.len {
                break;
            }
            if child + 1 < self.len && entries[child + 1] < entries[child] {
                child += 1;
            }
            if entries[child] >= last {
                break;
            }
            entries[at] = entries[child];
            at = child;
        }
        entries[at] = last;
        Some(((top >> 32) as u32, top as u32))
    }
}
