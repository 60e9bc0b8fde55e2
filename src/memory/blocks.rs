//! The KV block pool: which blocks are free, and how often each is held. Integers only; the bytes are the backend's.
//!
//! A block goes free -> held -> dead -> free: it is dead when its last holder lets go ([`DeadBlocks`]), and free again only once
//! its bytes are overwritten ([`CleanBlocks`]). Neither can be made from numbers.
//!
//! The free ones are a set without an order, and the lowest number is given first. In which order requests let their blocks
//! go depends on their guesses, and a list would keep it.

use super::Scrubbed;

/// Hands out block numbers and takes them back, clean.
///
/// What a request held comes back by way of a proof that its own bytes were overwritten:
/// ```
/// use amnesic::testing::{BlockPool, DeadBlocks, scrub_proof};
///
/// let mut pool = BlockPool::new(8);
/// let mut table = Vec::new();
/// assert!(pool.take(2, &mut table));
/// let dead: DeadBlocks = pool.let_go(table);
/// let mut bytes = [7_u8; 128];
/// let clean = dead.overwrite(|blocks| Some(scrub_proof(&mut bytes[..64 * blocks.len()])));
/// pool.release(clean);
/// assert_eq!(pool.free(), 8);
/// ```
/// Blocks whose bytes are still there cannot be released:
/// ```compile_fail,E0308
/// # use amnesic::testing::{BlockPool, DeadBlocks};
/// # let mut pool = BlockPool::new(8);
/// let dead: DeadBlocks = pool.let_go([]);
/// pool.release(dead);
/// ```
/// nor twice, by one proof:
/// ```compile_fail,E0382
/// # use amnesic::testing::{BlockPool, scrub_proof};
/// # let mut pool = BlockPool::new(8);
/// let clean = pool.let_go([]).overwrite(|_| None);
/// pool.release(clean);
/// pool.release(clean);
/// ```
#[derive(Debug)]
pub struct BlockPool {
    /// One bit for each block, set where it is free.
    free: Vec<u64>,
    free_count: usize,
    /// Holders of each block.
    held: Vec<u32>,
    /// Blocks that nobody holds and that are not overwritten yet.
    dead: usize,
    /// The memory of the last list of dead blocks, which is empty.
    list: Vec<u32>,
}

/// Blocks that nobody holds any more, and whose bytes are still there.
#[must_use = "they are lost to the pool until they are overwritten and released"]
#[derive(Debug)]
pub struct DeadBlocks(Vec<u32>);

impl DeadBlocks {
    /// Their numbers.
    #[cfg(test)]
    pub fn numbers(&self) -> &[u32] {
        &self.0
    }

    /// Whether all blocks still have holders.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Has them overwritten by `scrub`, which is given their numbers, in every cache that has bytes of them.
    ///
    /// # Panics
    /// If fewer bytes were overwritten than there are blocks.
    pub fn overwrite(self, scrub: impl FnOnce(&[u32]) -> Option<Scrubbed>) -> CleanBlocks {
        let proof = scrub(&self.0);
        let enough = |proof: &Scrubbed| proof.is_dirty() || proof.bytes() >= self.0.len() as u64;
        assert!(self.0.is_empty() || proof.as_ref().is_some_and(enough), "dead blocks were not overwritten");
        CleanBlocks(self.0)
    }
}

/// Blocks that nobody holds and whose bytes were overwritten: the proof that [`BlockPool::release`] asks for, of these blocks
/// and of no others.
#[must_use = "they are lost to the pool until they are released"]
#[derive(Debug)]
pub struct CleanBlocks(Vec<u32>);

impl BlockPool {
    /// A pool of blocks `0..count`, all free.
    pub fn new(count: usize) -> Self {
        let mut pool = Self {
            free: vec![0; count.div_ceil(64)],
            free_count: count,
            held: vec![0; count],
            dead: 0,
            list: Vec::new(),
        };
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

    /// One holder fewer for each of `blocks`; returns those that have none left.
    ///
    /// # Panics
    /// If one of them is not held.
    pub fn let_go(&mut self, blocks: impl IntoIterator<Item = u32>) -> DeadBlocks {
        let mut dead = std::mem::take(&mut self.list);
        for block in blocks {
            let held = &mut self.held[block as usize];
            *held = held.checked_sub(1).expect("a block is let go by those who hold it");
            if *held == 0 {
                self.dead += 1;
                dead.push(block);
            }
        }
        DeadBlocks(dead)
    }

    /// Frees blocks that died here and were overwritten.
    ///
    /// # Panics
    /// If there are more than died.
    pub fn release(&mut self, CleanBlocks(mut clean): CleanBlocks) {
        self.dead = self.dead.checked_sub(clean.len()).expect("each dead block is released once");
        self.free_count += clean.len();
        clean.iter().for_each(|&block| self.set_free(block));
        super::scrub::empty(&mut clean); // it stays, and would keep their order
        self.list = clean;
    }

    fn set_free(&mut self, block: u32) {
        self.free[block as usize / 64] |= 1 << (block % 64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets blocks go and frees those that die, as if each had a byte.
    fn give_back(pool: &mut BlockPool, blocks: impl IntoIterator<Item = u32>) {
        let dead = pool.let_go(blocks);
        let clean = dead.overwrite(|blocks| Some(super::super::scrub(&mut vec![1_u8; blocks.len()])));
        pool.release(clean);
    }

    #[test]
    fn blocks_come_back_and_are_never_given_twice() {
        let mut pool = BlockPool::new(8);
        let (mut one, mut two) = (Vec::new(), Vec::new());
        assert!(pool.take(3, &mut one) && pool.take(5, &mut two));
        assert!(!pool.take(1, &mut Vec::new()));
        let mut all: Vec<u32> = one.iter().chain(&two).copied().collect();
        all.sort_unstable();
        assert_eq!(all, (0..8).collect::<Vec<_>>());
        let dead = pool.let_go(all);
        assert_eq!((pool.free(), dead.numbers().len()), (0, 8), "dead blocks are not free yet");
        pool.release(dead.overwrite(|_| Some(super::super::scrub(&mut [1_u8; 8]))));
        assert!(pool.take(8, &mut Vec::new()), "not all came back");
    }

    #[test]
    #[should_panic(expected = "dead blocks were not overwritten")]
    fn blocks_that_nobody_overwrote_do_not_come_back() {
        let mut pool = BlockPool::new(2);
        let mut table = Vec::new();
        assert!(pool.take(2, &mut table));
        let _ = pool.let_go(table).overwrite(|_| Some(super::super::scrub(&mut [1_u8])));
    }

    #[test]
    fn the_order_in_which_blocks_came_back_is_forgotten() {
        let given = |order: [u32; 3]| {
            let mut pool = BlockPool::new(70);
            let mut table = Vec::new();
            assert!(pool.take(70, &mut table) && pool.free() == 0);
            give_back(&mut pool, order);
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
        let mut table = Vec::new();
        assert!(pool.take(1, &mut table));
        assert!(!pool.is_shared(table[0]));
        pool.share(&table);
        assert!(pool.is_shared(table[0]));
        assert!(pool.let_go(table.iter().copied()).is_empty() && !pool.is_shared(table[0]));
        assert_eq!(pool.let_go(table.iter().copied()).numbers(), table);
    }
}
