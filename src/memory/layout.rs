//! The plan of a device's memory, made before any of it is reserved: which bytes of which buffer hold what.
//!
//! A device may bind only so much memory at once and may want offsets of an alignment of its own ([`BufferLimits`]). So a
//! [`Region`] names the buffer that it lies in, and what is larger than a buffer, as a KV cache can be, is planned as
//! [`Blocks`] that lie in several. All of it is plain numbers: it borrows nothing, and who holds the memory checks each use.

use std::ops::Range;

/// What a device wants of its buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferLimits {
    /// Every region starts at a multiple of this: a power of two.
    pub alignment: usize,
    /// Bytes of one buffer, at most.
    pub largest_bytes: usize,
}

impl Default for BufferLimits {
    /// One buffer, in which every region starts on a cache line, so that no two share one.
    fn default() -> Self {
        Self { alignment: 64, largest_bytes: usize::MAX }
    }
}

/// A planned part of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    buffer: usize,
    offset: usize,
    bytes: usize,
}

impl Region {
    /// Number of the buffer that it lies in.
    pub fn buffer(&self) -> usize {
        self.buffer
    }

    /// Byte of that buffer at which it starts.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// `bytes` of this region, from `start` on.
    ///
    /// # Panics
    /// If they are not inside it.
    pub fn part(&self, start: usize, bytes: usize) -> Region {
        assert!(
            start.checked_add(bytes).is_some_and(|end| end <= self.bytes),
            "a part lies outside its region"
        );
        Region { offset: self.offset + start, bytes, ..*self }
    }

    /// Whether the two share a byte.
    pub fn overlaps(&self, other: &Region) -> bool {
        self.buffer == other.buffer
            && self.offset < other.offset + other.bytes
            && other.offset < self.offset + self.bytes
    }
}

/// Blocks of one size: as many as fit lie in the buffer of the first one, the others in the buffers behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// The first block.
    first: Region,
    count: usize,
    /// Bytes from one block to the next in a buffer.
    stride: usize,
    /// Blocks in the first buffer, and in each one behind it.
    in_first: usize,
    in_each: usize,
}

impl Blocks {
    /// Bytes of all blocks.
    pub fn bytes(&self) -> usize {
        self.count * self.stride
    }

    /// Bytes from one block to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The region of one block.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn block(&self, block: u32) -> Region {
        let block = block as usize;
        assert!(block < self.count, "block {block} of {}", self.count);
        let Region { buffer, offset, bytes } = self.first;
        match block.checked_sub(self.in_first) {
            None => Region { buffer, offset: offset + block * self.stride, bytes },
            Some(rest) => Region {
                buffer: buffer + 1 + rest / self.in_each,
                offset: rest % self.in_each * self.stride,
                bytes,
            },
        }
    }

    /// All blocks as one region, for devices without a limit on buffers.
    ///
    /// # Panics
    /// If they lie in several buffers.
    pub fn whole(&self) -> Region {
        assert!(self.count <= self.in_first, "the blocks lie in several buffers");
        Region { bytes: self.bytes(), ..self.first }
    }
}

/// The plan of a device's buffers.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    limits: BufferLimits,
    /// Bytes of each buffer.
    buffers: Vec<usize>,
    regions: usize,
}

impl Layout {
    /// An empty plan for such a device.
    pub fn new(limits: BufferLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Plans a region; `None` when the sum overflows, or the region is larger than a buffer can be.
    pub fn region(&mut self, bytes: usize) -> Option<Region> {
        let room = bytes.checked_next_multiple_of(self.limits.alignment)?;
        if room > self.limits.largest_bytes {
            return None;
        }
        let spare = self.buffers.last().map(|&used| self.limits.largest_bytes - used);
        if spare.is_none_or(|spare| spare < room) {
            self.buffers.push(0);
        }
        self.regions += 1;
        let buffer = self.buffers.len() - 1;
        let offset = self.buffers[buffer];
        self.buffers[buffer] += room;
        self.total()?;
        Some(Region { buffer, offset, bytes })
    }

    /// Plans `count` blocks of `bytes` each, over as many buffers as that takes; `None` where [`Layout::region`] gives none.
    pub fn blocks(&mut self, count: usize, bytes: usize) -> Option<Blocks> {
        let stride = bytes.checked_next_multiple_of(self.limits.alignment)?.max(1);
        let in_each = self.limits.largest_bytes / stride;
        let spare = self.buffers.last().map_or(0, |&used| self.limits.largest_bytes - used);
        let in_first = if spare < stride { in_each } else { spare / stride }.min(count);
        let all = self.region(in_first.checked_mul(stride)?)?;
        let mut rest = count - in_first;
        while rest > 0 && in_each > 0 {
            let here = rest.min(in_each);
            self.buffers.push(here * stride);
            rest -= here;
        }
        self.total()?;
        (rest == 0).then_some(Blocks { first: Region { bytes, ..all }, count, stride, in_first, in_each })
    }

    /// Regions planned so far.
    pub fn regions(&self) -> usize {
        self.regions
    }

    /// Where each buffer lies, if one follows the other in one piece of memory.
    pub fn ranges(&self) -> Vec<Range<usize>> {
        let ranges = self.buffers.iter().scan(0, |end, &bytes| {
            *end += bytes;
            Some(*end - bytes..*end)
        });
        ranges.collect()
    }

    /// Bytes planned so far.
    pub fn bytes(&self) -> usize {
        self.buffers.iter().sum()
    }

    fn total(&self) -> Option<usize> {
        self.buffers.iter().try_fold(0_usize, |sum, &bytes| sum.checked_add(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: BufferLimits = BufferLimits { alignment: 256, largest_bytes: 4096 };

    #[test]
    fn regions_keep_the_alignment_and_fit_their_buffers() {
        let mut layout = Layout::new(SMALL);
        let regions: Vec<_> =
            [100, 3000, 1000, 4096, 1].map(|bytes| layout.region(bytes).unwrap()).into_iter().collect();
        let places: Vec<_> = regions.iter().map(|region| (region.buffer(), region.offset())).collect();
        assert_eq!(places, [(0, 0), (0, 256), (1, 0), (2, 0), (3, 0)]);
        assert_eq!((&layout.buffers[..], layout.regions()), (&[3328, 1024, 4096, 256][..], 5));
        for (i, region) in regions.iter().enumerate() {
            assert!(region.offset().is_multiple_of(SMALL.alignment));
            assert!(region.offset() + region.bytes() <= layout.buffers[region.buffer()]);
            assert!(regions[i + 1..].iter().all(|other| !region.overlaps(other)));
        }
        assert!(layout.region(4097).is_none(), "more than a buffer");
    }

    #[test]
    fn blocks_lie_in_as_many_buffers_as_it_takes() {
        let mut layout = Layout::new(SMALL);
        layout.region(1000).unwrap();
        let blocks = layout.blocks(7, 1500).unwrap(); // 1536 from one to the next, two in a buffer
        let all: Vec<_> = (0..7).map(|block| blocks.block(block)).collect();
        let places: Vec<_> = all.iter().map(|region| (region.buffer(), region.offset())).collect();
        assert_eq!(places, [(0, 1024), (0, 2560), (1, 0), (1, 1536), (2, 0), (2, 1536), (3, 0)]);
        assert!(all.iter().all(|region| region.bytes() == 1500));
        assert_eq!((&layout.buffers[..], blocks.bytes()), (&[4096, 3072, 3072, 1536][..], 7 * 1536));
        let behind = layout.region(2560).unwrap();
        assert_eq!((behind.buffer(), behind.offset()), (3, 1536));
        assert!(Layout::new(SMALL).blocks(2, 5000).is_none(), "a block that no buffer holds");
    }

    #[test]
    fn blocks_in_one_buffer_are_one_region() {
        let mut layout = Layout::default();
        layout.region(10).unwrap();
        let blocks = layout.blocks(5, 128).unwrap();
        assert_eq!((blocks.whole().offset(), blocks.whole().bytes()), (64, 640));
        assert_eq!(blocks.block(3), blocks.whole().part(3 * 128, 128));
    }

    #[test]
    #[should_panic(expected = "several buffers")]
    fn blocks_in_several_buffers_are_no_region() {
        Layout::new(SMALL).blocks(9, 1024).unwrap().whole();
    }

    #[test]
    fn an_overflowing_plan_is_refused() {
        let mut layout = Layout::default();
        layout.region(64).unwrap();
        assert!(layout.region(usize::MAX - 64).is_none());
        assert!(Layout::default().blocks(usize::MAX, 64).is_none());
    }
}
