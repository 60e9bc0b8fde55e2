//! The KV block pool: which blocks are free. Integers only; the bytes are the backend's.

use super::Scrubbed;

/// Hands out block numbers and takes them back, clean.
#[derive(Debug)]
pub struct BlockPool {
    free: Vec<u32>,
    count: usize,
}

impl BlockPool {
    /// A pool of blocks `0..count`, all free.
    pub fn new(count: usize) -> Self {
        Self { free: (0..count as u32).rev().collect(), count }
    }

    /// Appends `wanted` blocks to `table`, or leaves it as it is and returns false.
    pub fn take(&mut self, wanted: usize, table: &mut Vec<u32>) -> bool {
        if wanted > self.free.len() {
            return false;
        }
        table.extend(self.free.drain(self.free.len() - wanted..).rev());
        true
    }

    /// Takes blocks back; the token shows that their bytes were overwritten first.
    pub fn release(&mut self, table: &mut Vec<u32>, _proof: &Scrubbed) {
        self.free.extend(table.drain(..).rev());
        debug_assert!(self.free.len() <= self.count, "a block was released twice");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_and_are_never_shared() {
        let mut pool = BlockPool::new(8);
        let (mut one, mut two) = (Vec::new(), Vec::new());
        assert!(pool.take(3, &mut one) && pool.take(5, &mut two));
        assert!(!pool.take(1, &mut Vec::new()));
        let mut all: Vec<u32> = one.iter().chain(&two).copied().collect();
        all.sort_unstable();
        assert_eq!(all, (0..8).collect::<Vec<_>>());
        pool.release(&mut one, &Scrubbed::nothing());
        pool.release(&mut two, &Scrubbed::nothing());
        assert!(pool.take(8, &mut Vec::new()), "not all came back");
    }
}
