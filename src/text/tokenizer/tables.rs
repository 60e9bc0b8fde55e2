//! Hash tables of a vocabulary, built when a session opens and never changed after it.
//!
//! They are our own because looking up must neither allocate nor keep anything, and because a table that never grows
//! takes a third of the time of a general one. The keys are public: no text can make a probe longer than the table's
//! own longest run.

/// No id, no node, no position: vocabularies and texts are smaller.
pub const NONE: u32 = u32::MAX;

/// A map from 64-bit keys to two numbers.
pub struct Numbers {
    entries: Vec<(u64, u32, u32)>,
    shift: u32,
}

/// No key: pairs of ids and of characters are smaller.
const FREE: u64 = u64::MAX;

impl Numbers {
    /// A table of these entries; a later value replaces an earlier one of the same key.
    pub fn new(entries: Vec<(u64, u32, u32)>) -> Self {
        let slots = (entries.len() * 2).next_power_of_two().max(2);
        let mut this = Self { entries: vec![(FREE, 0, 0); slots], shift: 64 - slots.trailing_zeros() };
        for (key, first, second) in entries {
            let at = this.slot(key);
            this.entries[at] = (key, first, second);
        }
        this
    }

    /// What the key stands for.
    #[inline]
    pub fn get(&self, key: u64) -> Option<(u32, u32)> {
        let (found, first, second) = self.entries[self.slot(key)];
        (found == key).then_some((first, second))
    }

    /// Where the key is, or would be. Half of the slots are free, so this ends.
    #[inline]
    fn slot(&self, key: u64) -> usize {
        let mask = self.entries.len() - 1;
        let mut at = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize;
        while self.entries[at].0 != key && self.entries[at].0 != FREE {
            at = (at + 1) & mask;
        }
        at
    }
}

/// A pair of ids or characters as a key of [`Numbers`].
#[inline]
pub fn pair(first: u32, second: u32) -> u64 {
    u64::from(first) << 32 | u64::from(second)
}

/// A map from pieces of text to ids.
pub struct Strings {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    /// The upper half of the hash: most misses end here.
    tag: u32,
    start: u32,
    len: u32,
    id: u32,
}

impl Strings {
    /// A table of these texts; a later id replaces an earlier one of the same text. Empty texts are left out: none is looked up.
    ///
    /// # Errors
    /// There are 4 GB of them, or more.
    pub fn new(texts: &[(&[u8], u32)]) -> Result<Self, &'static str> {
        let slots = (texts.len() * 2).next_power_of_two().max(2);
        let free = Entry { tag: 0, start: 0, len: 0, id: NONE };
        let mut this = Self { bytes: Vec::new(), entries: vec![free; slots] };
        for &(text, id) in texts.iter().filter(|(text, _)| !text.is_empty()) {
            let (at, tag) = this.slot(text);
            if this.entries[at].len == 0 {
                let start = u32::try_from(this.bytes.len()).map_err(|_| "a vocabulary of 4 GB")?;
                let len = u32::try_from(text.len()).map_err(|_| "a token of 4 GB")?;
                this.bytes.extend(text);
                this.entries[at] = Entry { tag, start, len, id };
            }
            this.entries[at].id = id;
        }
        Ok(this)
    }

    /// The id of a text that is not empty.
    #[inline]
    pub fn get(&self, text: &[u8]) -> Option<u32> {
        let entry = self.entries[self.slot(text).0];
        (entry.len != 0).then_some(entry.id)
    }

    /// All texts with their ids, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], u32)> {
        self.entries.iter().filter(|entry| entry.len != 0).map(|entry| (self.text(entry), entry.id))
    }

    fn text(&self, entry: &Entry) -> &[u8] {
        &self.bytes[entry.start as usize..][..entry.len as usize]
    }

    #[inline]
    fn slot(&self, text: &[u8]) -> (usize, u32) {
        let mask = self.entries.len() - 1;
        let hash = hash(text);
        let tag = (hash >> 32) as u32;
        let mut at = hash as usize & mask;
        loop {
            let entry = &self.entries[at];
            let same = entry.tag == tag && entry.len as usize == text.len() && self.text(entry) == text;
            if entry.len == 0 || same {
                return (at, tag);
            }
            at = (at + 1) & mask;
        }
    }
}

/// Eight bytes at a time, by multiplication to 128 bits.
#[inline]
fn hash(text: &[u8]) -> u64 {
    let fold = |a: u64, b: u64| {
        let wide = u128::from(a) * u128::from(b);
        (wide >> 64) as u64 ^ wide as u64
    };
    let (words, rest) = text.as_chunks::<8>();
    let mut hash = text.len() as u64 ^ 0x9e37_79b9_7f4a_7c15;
    for word in words {
        hash = fold(hash ^ u64::from_le_bytes(*word), 0xa076_1d64_78bd_642f);
    }
    let mut last = 0;
    for &byte in rest {
        last = last << 8 | u64::from(byte);
    }
    fold(hash ^ last, 0xe703_7ed1_a0b4_28db)
}

/// A trie over bytes, as one table of its edges.
pub struct Trie {
    edges: Numbers,
    /// The token that ends at each node; node 0 is the root.
    tokens: Vec<u32>,
}

impl Trie {
    /// A trie of these texts; a later id replaces an earlier one of the same text.
    pub fn new<'a>(texts: impl Iterator<Item = (&'a [u8], u32)>) -> Self {
        let mut edges = std::collections::HashMap::new();
        let mut tokens = vec![NONE];
        for (text, id) in texts {
            let mut node = 0;
            for &byte in text {
                node = *edges.entry(Self::edge(node, byte)).or_insert_with(|| {
                    tokens.push(NONE);
                    tokens.len() as u32 - 1
                });
            }
            tokens[node as usize] = id;
        }
        Self { edges: Numbers::new(edges.into_iter().map(|(edge, node)| (edge, node, 0)).collect()), tokens }
    }

    /// The tokens that `text` begins with, shortest first: their ends and ids. None is empty.
    #[inline]
    pub fn prefixes(&self, text: &[u8]) -> impl Iterator<Item = (usize, u32)> {
        let mut node = Some(0);
        text.iter()
            .enumerate()
            .map_while(move |(at, &byte)| {
                node = self.edges.get(Self::edge(node?, byte)).map(|(node, _)| node);
                Some((at + 1, self.tokens[node? as usize]))
            })
            .filter(|&(_, id)| id != NONE)
    }

    fn edge(node: u32, byte: u8) -> u64 {
        u64::from(node) << 8 | u64::from(byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_and_others_are_not() {
        let map = Numbers::new((0..1000_u32).map(|i| (pair(i, i * 7), i, i + 1)).collect());
        assert!((0..1000).all(|i| map.get(pair(i, i * 7)) == Some((i, i + 1))));
        assert_eq!((map.get(pair(1, 8)), map.get(pair(0, 1))), (None, None));
        let map = Numbers::new(vec![(5, 1, 1), (5, 2, 2)]);
        assert_eq!(map.get(5), Some((2, 2)), "the last one counts");
    }

    #[test]
    fn strings_of_all_lengths_are_found() {
        let texts: Vec<Vec<u8>> =
            (1..60_usize).flat_map(|len| (0..20).map(move |i| vec![i as u8; len])).collect();
        let map = Strings::new(&texts.iter().map(Vec::as_slice).zip(0..).collect::<Vec<_>>()).unwrap();
        for (id, text) in texts.iter().enumerate() {
            assert_eq!(map.get(text), Some(id as u32));
        }
        assert_eq!((map.get(b"absent"), map.iter().count()), (None, texts.len()));
    }

    #[test]
    fn a_trie_gives_prefixes_from_the_shortest() {
        let trie = Trie::new([(&b"a"[..], 1), (b"abc", 2), (b"b", 3), (b"abcd", 4)].into_iter());
        assert_eq!(trie.prefixes(b"abce").collect::<Vec<_>>(), [(1, 1), (3, 2)]);
        assert_eq!(trie.prefixes(b"x").count(), 0);
    }
}
