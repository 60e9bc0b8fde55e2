//! The KV block pool: which blocks are free, and how often each is held. Integers only; the bytes are the backend's.
//!
//! A block goes free -> held -> dead -> free: it is dead when its last holder lets go, and free again only once its
//! bytes are overwritten.
//!
//! The free ones are a set without an order, and the lowest number is given first. In which order requests let their blocks
//! go depends on their guesses, and a list would keep it.

use super::Scrubbed;

/// Hands out block numbers and takes them back, clean.
#[derive(Debug)]
pub struct BlockPool {
    /// One bit for each block, set where it is free.
    free: Vec<u64>,
    free_count: usize,
    /// Holders of each block.
    held: Vec<u32>,
    /// Blocks that nobody holds and that are not overwritten yet.
    dead: usize,
}

impl BlockPool {
    /// A pool of blocks `0..count`, all free.
    pub fn new(count: usize) -> Self {
        let mut pool =
            Self { free: vec![0; count.div_ceil(64)], free_count: count, held: vec![0; count], dead: 0 };
        (0..count as u32).for_each(|block| pool.set_free(block));
        pool
    }

    /// Blocks in all.
    pub fn count(&self) -> usize {
        self.held.len()
    }

    /// Blocks to be had.
    pub fn free(&self) -> usize {
        self.free_count
    }

    /// Appends `wanted` blocks to `table`, or leaves it as it is and returns false.
    #[must_use]
    pub fn take(&mut self, wanted: usize, table: &mut Vec<u32>) -> bool {
        if wanted > self.free_count {
            return false;
        }
        self.free_count -= wanted;
        let mut left = wanted;
        for (place, bits) in self.free.iter_mut().enumerate() {
            while left > 0 && *bits != 0 {
                let block = 64 * place as u32 + bits.trailing_zeros();
                *bits &= *bits - 1; // takes the lowest bit out
                self.held[block as usize] = 1;
                table.push(block);
                left -= 1;
            }
        }
        true
    }

    /// One more holder for each of `blocks`.
    ///
    /// # Panics
    /// If one of them is not held.
    pub fn share(&mut self, blocks: &[u32]) {
        for &block in blocks {
            assert!(self.held[block as usize] > 0, "a block that nobody holds cannot be shared");
            self.held[block as usize] += 1;
        }
    }

    /// Whether a block has more than one holder: then nobody may write to it.
    pub fn is_shared(&self, block: u32) -> bool {
        self.held[block as usize] > 1
    }

    /// One holder fewer for each of `blocks`; those that have none left are appended to `dead`.
    ///
    /// # Panics
    /// If one of them is not held.
    pub fn let_go(&mut self, blocks: impl IntoIterator<Item = u32>, dead: &mut Vec<u32>) {
        for block in blocks {
            let held = &mut self.held[block as usize];
            *held = held.checked_sub(1).expect("a block is let go by those who hold it");
            if *held == 0 {
                self.dead += 1;
                dead.push(block);
            }
        }
    }

    /// Frees dead blocks; the token shows that their bytes were overwritten first.
    ///
    /// # Panics
    /// If there are more than died.
    pub fn release(&mut self, dead: &mut Vec<u32>, _proof: &Scrubbed) {
        self.dead = self.dead.checked_sub(dead.len()).expect("each dead block is released once");
        self.free_count += dead.len();
        dead.iter().for_each(|&block| self.set_free(block));
        super::scrub::empty(dead); // it stays, and would keep their order
    }

    fn set_free(&mut self, block: u32) {
        self.free[block as usize / 64] |= 1 << (block % 64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_and_are_never_given_twice() {
        let mut pool = BlockPool::new(8);
        let (mut one, mut two, mut dead) = (Vec::new(), Vec::new(), Vec::new());
        assert!(pool.take(3, &mut one) && pool.take(5, &mut two));
        assert!(!pool.take(1, &mut Vec::new()));
        let mut all: Vec<u32> = one.iter().chain(&two).copied().collect();
        all.sort_unstable();
        assert_eq!(all, (0..8).collect::<Vec<_>>());
        pool.let_go(one.drain(..).chain(two.drain(..)), &mut dead);
        assert_eq!((pool.free(), dead.len()), (0, 8), "dead blocks are not free yet");
        pool.release(&mut dead, &Scrubbed::nothing());
        assert!(pool.take(8, &mut Vec::new()), "not all came back");
    }

    #[test]
    fn the_order_in_which_blocks_came_back_is_forgotten() {
        let given = |order: [u32; 3]| {
            let mut pool = BlockPool::new(70);
            let (mut table, mut dead) = (Vec::new(), Vec::new());
            assert!(pool.take(70, &mut table) && pool.free() == 0);
            pool.let_go(order, &mut dead);
            pool.release(&mut dead, &Scrubbed::nothing());
            let state = format!("{pool:?}");
            let mut again = Vec::new();
            assert!(pool.take(3, &mut again));
            (state, again)
        };
        let (state, again) = given([66, 3, 5]);
        assert_eq!(again, [3, 5, 66]);
        assert_eq!(given([5, 66, 3]), (state, again));
    }

    #[test]
    fn a_shared_block_dies_with_its_last_holder() {
        let mut pool = BlockPool::new(2);
        let (mut table, mut dead) = (Vec::new(), Vec::new());
        assert!(pool.take(1, &mut table));
        assert!(!pool.is_shared(table[0]));
        pool.share(&table);
        assert!(pool.is_shared(table[0]));
        pool.let_go(table.iter().copied(), &mut dead);
        assert!(dead.is_empty() && !pool.is_shared(table[0]));
        pool.let_go(table.iter().copied(), &mut dead);
        assert_eq!(dead, table);
    }
}
