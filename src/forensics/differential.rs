//! Whether any byte of a process tells which of two requests was its last: a search without needles.
//!
//! 1. Two requests, A and B, of equal shape: as many bytes and tokens, the same options, replies of the same length;
//!    other content.
//! 2. A child runs them many times in an order that looks random ([`schedule`]). It must not know which is which: it is
//!    sent each request's bytes just before, and overwrites its own copies of them.
//! 3. After each run its parent takes a snapshot of all its writable memory ([`Snapshots::take`]).
//! 4. A bit that is set after all runs of A and after none of B, or the other way round, tells them apart
//!    ([`Snapshots::separations`]). By chance one of 2^(runs - 1) bits that change from run to run does: so let it be two
//!    dozen runs at least.
//!
//! Counters, clocks and random numbers do not tell A from B, since their bits have nothing to do with the order. What
//! may tell them apart and yet hold no content is a pointer ([`Kind::Pointer`]): blocks of memory come and go by sizes
//! that differ a little even between equal shapes, such as how many bytes each token of a reply has.
//!
//! [`Snapshots::changes`] answers another question, whether one request changed something for good: a cache, an
//! automaton that learned.
//!
//! Snapshots live in the process that takes them, and hold all that the other one held: nothing of it is printed, and the
//! process that takes them should be one that ends soon.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::search::Mapping;

const PAGE: usize = 4096;
/// Bytes that are read at once.
const WINDOW: usize = 1 << 20;
/// How long a process may take until all its threads wait.
const PATIENCE: Duration = Duration::from_secs(30);

type Page = [u8; PAGE];

static ZEROS: Page = [0; PAGE];

/// Which request was the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// The one.
    A,
    /// The other.
    B,
}

/// An order of `each` runs of A and as many of B that looks random, the same each time: by it a bit of a counter or of
/// something that alternates does not come to look as if it knew which was last.
pub fn schedule(each: usize) -> Vec<Last> {
    let mut order: Vec<Last> =
        (0..2 * each).map(|index| if index < each { Last::A } else { Last::B }).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for index in (1..order.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(index, (state % (index as u64 + 1)) as usize);
    }
    order
}

/// Which memory is looked at.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All that is writable.
    Writable,
    /// The part of that which the kernel would write to a core dump.
    Dumpable,
}

/// What was in a process's memory, time and again.
#[derive(Default)]
pub struct Snapshots {
    taken: Vec<Snapshot>,
}

struct Snapshot {
    last: Last,
    /// Pages that are not zero; those that did not change since the snapshot before are shared with it.
    pages: HashMap<u64, Arc<Page>>,
    /// All mappings, writable or not: what a pointer can point to.
    mapped: Vec<Range<u64>>,
    places: Vec<(Range<u64>, String)>,
    bytes: u64,
}

/// Something that tells A from B: where it is, not what.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Separation {
    /// The mapping: its name in /proc/PID/maps, or whose stack it is.
    pub place: String,
    /// The word's address.
    pub address: u64,
    /// How many of its eight bytes tell.
    pub bytes: u32,
    /// What it looks like.
    pub kind: Kind,
}

/// What a word that tells A from B looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Always zero, or the address of something that is mapped. It tells where a block was, and so at most sizes.
    Pointer,
    /// Anything else.
    Other,
}

impl fmt::Display for Separation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:#x} in {} ({:?})", self.bytes, self.address, self.place, self.kind)
    }
}

impl Snapshots {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits until no thread of the process runs, and remembers its memory.
    ///
    /// # Errors
    /// There is no such process, this one may not read its memory, or it does not come to rest within half a minute.
    pub fn take(&mut self, pid: u32, last: Last, scope: Scope) -> io::Result<()> {
        let stacks = come_to_rest(pid)?;
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let hidden = match scope {
            Scope::Writable => BTreeSet::new(),
            Scope::Dumpable => hidden_from_dumps(pid)?,
        };
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        let before = self.taken.last().map(|snapshot| &snapshot.pages);
        let mut snapshot = Snapshot {
            last,
            pages: HashMap::with_capacity(before.map_or(0, HashMap::len)),
            mapped: Vec::new(),
            places: Vec::new(),
            bytes: 0,
        };
        let mut window = vec![0; WINDOW];
        for mapping in maps.lines().filter_map(Mapping::parse) {
            snapshot.mapped.push(mapping.range.clone());
            if !mapping.is_writable() || hidden.contains(&mapping.range.start) {
                continue;
            }
            if mapping.name.contains("secretmem") {
                return Err(io::Error::other(
                    "memfd_secret cannot be read from outside: the process is to call testing::without_secret_memory first",
                ));
            }
            let owner = stacks.iter().find(|(pointer, _)| mapping.range.contains(pointer));
            let place = owner.map_or(mapping.name.to_owned(), |(_, thread)| format!("stack of {thread}"));
            snapshot.places.push((mapping.range.clone(), place));
            snapshot.read(&memory, mapping.range.clone(), &mut window, before);
        }
        if snapshot.bytes == 0 {
            return Err(io::Error::other("none of the process's memory could be read"));
        }
        self.taken.push(snapshot);
        Ok(())
    }

    /// How many were taken.
    pub fn len(&self) -> usize {
        self.taken.len()
    }

    /// Whether none was taken.
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }

    /// Bytes that were looked at, in all snapshots together.
    pub fn bytes(&self) -> u64 {
        self.taken.iter().map(|snapshot| snapshot.bytes).sum()
    }

    /// All words of which a bit tells whether A or B was last.
    ///
    /// # Panics
    /// If there are not at least two snapshots after each.
    pub fn separations(&self) -> Vec<Separation> {
        for last in [Last::A, Last::B] {
            let count = self.taken.iter().filter(|snapshot| snapshot.last == last).count();
            assert!(count > 1, "{count} snapshots after {last:?}");
        }
        self.words(|series| {
            let (mut all, mut any) = ([u64::MAX; 2], [0; 2]);
            for (snapshot, word) in self.taken.iter().zip(series) {
                all[snapshot.last as usize] &= word;
                any[snapshot.last as usize] |= word;
            }
            (all[0] & !any[1]) | (all[1] & !any[0])
        })
    }

    /// All words with bytes that did not change in the snapshots `before`, nor in those `after`, but between them: what
    /// happened in the middle changed them for good. Words that rise from each of these snapshots to the next are left out:
    /// they count, and their upper bytes change at some time.
    ///
    /// # Panics
    /// If there are not at least two snapshots on each side.
    pub fn changes(&self, before: Range<usize>, after: Range<usize>) -> Vec<Separation> {
        assert!(before.len() > 1 && after.len() > 1, "{} and {} snapshots", before.len(), after.len());
        self.words(|series| {
            let moved = |series: &[u64]| series.iter().fold(0, |moved, word| moved | (word ^ series[0]));
            let (first, then) = (&series[before.clone()], &series[after.clone()]);
            let (changed, moving) = (first[0] ^ then[0], moved(first) | moved(then));
            let byte = |word: u64, at: usize| word >> (8 * at) & 0xff;
            let tells = (0..8).filter(|&at| byte(changed, at) != 0 && byte(moving, at) == 0);
            let tells = tells.fold(0, |mask, at| mask | 0xff << (8 * at));
            let both: Vec<u64> = first.iter().chain(then).copied().collect();
            let rises = |part: fn(u64) -> u64| both.windows(2).all(|pair| part(pair[1]) > part(pair[0]));
            let counts = rises(|word| word) || rises(|word| word & 0xffff_ffff) || rises(|word| word >> 32);
            if counts { 0 } else { tells }
        })
    }

    /// Words of which `telling`, given their values in all snapshots, says that some bits tell something.
    fn words(&self, telling: impl Fn(&[u64]) -> u64) -> Vec<Separation> {
        let addresses: BTreeSet<u64> =
            self.taken.iter().flat_map(|snapshot| snapshot.pages.keys().copied()).collect();
        let mut found = Vec::new();
        for address in addresses {
            let pages: Vec<&Page> = self
                .taken
                .iter()
                .map(|snapshot| snapshot.pages.get(&address).map_or(&ZEROS, |page| page.as_ref()))
                .collect();
            if pages.windows(2).all(|pair| std::ptr::eq(pair[0], pair[1])) {
                continue;
            }
            let mut series = vec![0; pages.len()];
            for word in 0..PAGE / 8 {
                let of = |page: &Page| u64::from_le_bytes(page.as_chunks::<8>().0[word]);
                series.iter_mut().zip(&pages).for_each(|(value, page)| *value = of(page));
                let bits = telling(&series);
                if bits != 0 {
                    let address = address + 8 * word as u64;
                    let bytes = bits.to_le_bytes().iter().filter(|byte| **byte != 0).count() as u32;
                    let (place, kind) = (self.place(address), self.kind(&series));
                    found.push(Separation { place, address, bytes, kind });
                }
            }
        }
        found
    }

    fn place(&self, address: u64) -> String {
        let places = self.taken.iter().rev().flat_map(|snapshot| &snapshot.places);
        let place = places.into_iter().find(|(range, _)| range.contains(&address));
        place.map_or_else(|| "unmapped".to_owned(), |(_, name)| name.clone())
    }

    fn kind(&self, series: &[u64]) -> Kind {
        let points = |(snapshot, value): (&Snapshot, &u64)| {
            *value == 0 || snapshot.mapped.iter().any(|range| range.contains(value))
        };
        match self.taken.iter().zip(series).all(points) {
            true => Kind::Pointer,
            false => Kind::Other,
        }
    }
}

impl Snapshot {
    /// Pages that cannot be read, since they are gone meanwhile or their file is too short, are left out.
    fn read(
        &mut self,
        memory: &File,
        range: Range<u64>,
        window: &mut [u8],
        before: Option<&HashMap<u64, Arc<Page>>>,
    ) {
        let mut start = range.start;
        while start < range.end {
            let most = (WINDOW as u64).min(range.end - start) as usize;
            let read = match memory.read_at(&mut window[..most], start) {
                Ok(read) if read >= PAGE => read / PAGE,
                _ => {
                    start += PAGE as u64;
                    continue;
                }
            };
            for (page, at) in window.as_chunks::<PAGE>().0[..read].iter().zip((start..).step_by(PAGE)) {
                if *page != ZEROS {
                    let known = before.and_then(|before| before.get(&at)).filter(|known| ***known == *page);
                    self.pages.insert(at, known.cloned().unwrap_or_else(|| Arc::new(*page)));
                }
            }
            self.bytes += (read * PAGE) as u64;
            start += (read * PAGE) as u64;
        }
    }
}

impl fmt::Debug for Snapshots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshots").field("len", &self.len()).field("bytes", &self.bytes()).finish()
    }
}

/// Waits until all threads of a process wait in the kernel. Returns their stack pointers and names.
fn come_to_rest(pid: u32) -> io::Result<Vec<(u64, String)>> {
    let (until, mut before) = (Instant::now() + PATIENCE, None);
    loop {
        let now = threads(pid)?;
        // twice the same: no thread woke another one between two looks
        if now == before
            && let Some(threads) = now
        {
            return Ok(threads);
        }
        if Instant::now() > until {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the process does not come to rest"));
        }
        before = now;
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The stack pointers and names of a process's threads; none while one of them runs.
fn threads(pid: u32) -> io::Result<Option<Vec<(u64, String)>>> {
    let mut found = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        let read = |file: &str| std::fs::read_to_string(task.join(file));
        let (Ok(call), Ok(name)) = (read("syscall"), read("comm")) else { return Ok(None) }; // it has ended
        let words: Vec<&str> = call.split_whitespace().collect();
        let [.., pointer, _] = words[..] else { return Ok(None) }; // "running"
        let pointer = u64::from_str_radix(pointer.trim_start_matches("0x"), 16).map_err(io::Error::other)?;
        found.push((pointer, name.trim().to_owned()));
    }
    found.sort();
    Ok(Some(found))
}

/// Where mappings begin that the kernel leaves out of core dumps.
fn hidden_from_dumps(pid: u32) -> io::Result<BTreeSet<u64>> {
    let (mut hidden, mut start) = (BTreeSet::new(), 0);
    for line in std::fs::read_to_string(format!("/proc/{pid}/smaps"))?.lines() {
        if let Some(mapping) = Mapping::parse(line).filter(|mapping| mapping.rights.len() == 4) {
            start = mapping.range.start;
        } else if line
            .strip_prefix("VmFlags:")
            .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "dd"))
        {
            hidden.insert(start);
        }
    }
    Ok(hidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Snapshots after `order` of a page whose first words are what `words` says of each.
    fn taken(order: &[Last], words: impl Fn(usize, Last) -> Vec<u64>) -> Snapshots {
        let snapshot = |(index, last): (usize, &Last)| {
            let mut page = ZEROS;
            for (at, word) in words(index, *last).into_iter().enumerate() {
                page[8 * at..8 * at + 8].copy_from_slice(&word.to_le_bytes());
            }
            let pages = HashMap::from([(0x10_0000, Arc::new(page))]);
            let (range, places) = (0x10_0000..0x10_1000, vec![(0x10_0000..0x10_1000, "[heap]".to_owned())]);
            Snapshot { last: *last, pages, mapped: vec![range], places, bytes: 4096 }
        };
        Snapshots { taken: order.iter().enumerate().map(snapshot).collect() }
    }

    fn random(index: u64) -> u64 {
        index
            .wrapping_add(7)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
            .wrapping_mul(0xbf58_476d_1ce4_e5b9)
    }

    #[test]
    fn what_tells_which_was_last_is_found_and_nothing_else() {
        let order = schedule(12);
        assert_eq!(order.iter().filter(|last| **last == Last::A).count(), 12);
        let snapshots = taken(&order, |index, last| {
            let b = u64::from(last == Last::B);
            vec![
                7,                                        // the same always
                index as u64,                             // a counter
                random(index as u64),                     // random numbers
                index as u64 % 2,                         // something that alternates
                0x7a65_6275 + b,                          // a byte of content
                random(index as u64) & !0x1000 | b << 12, // one bit of it among others
                0x10_0000 + 0x40 * b,                     // a pointer
                if index == 3 { 1 } else { b },           // not always
                b << 63,
            ]
        });
        let found: Vec<(u64, u32, Kind)> =
            snapshots.separations().iter().map(|of| (of.address - 0x10_0000, of.bytes, of.kind)).collect();
        let other = Kind::Other;
        assert_eq!(found, [(32, 1, other), (40, 1, other), (48, 1, Kind::Pointer), (64, 1, other)]);
        assert_eq!(snapshots.separations()[0].place, "[heap]");
    }

    #[test]
    fn what_one_run_changes_for_good_is_found() {
        let snapshots = taken(&[Last::A; 12], |index, _| {
            let after = u64::from(index >= 6);
            vec![
                after * 5,
                index as u64 + 250,
                random(index as u64),
                (index as u64) << 32,
                (after << 40) | (index as u64 % 3),
            ]
        });
        let found: Vec<(u64, u32)> =
            snapshots.changes(0..6, 6..12).iter().map(|of| (of.address - 0x10_0000, of.bytes)).collect();
        assert_eq!(found, [(0, 1), (32, 1)]);
    }

    #[test]
    fn pages_that_come_and_go_count_as_zeros() {
        let order = [Last::A, Last::B, Last::B, Last::A];
        let mut snapshots = taken(&order, |_, last| vec![u64::from(last == Last::B) * 3]);
        for snapshot in snapshots.taken.iter_mut().filter(|snapshot| snapshot.last == Last::A) {
            snapshot.pages.clear();
        }
        assert_eq!(snapshots.separations().len(), 1);
    }

    #[test]
    fn another_process_is_read_once_it_rests() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut snapshots = Snapshots::new();
        for last in [Last::A, Last::B, Last::B, Last::A] {
            snapshots.take(child.id(), last, Scope::Writable).unwrap();
        }
        assert_eq!((snapshots.separations(), snapshots.len()), (Vec::new(), 4));
        assert!(snapshots.bytes() > 100 << 10);
        let mut dumped = Snapshots::new();
        dumped.take(child.id(), Last::A, Scope::Dumpable).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(snapshots.take(child.id(), Last::A, Scope::Writable).is_err());
    }
}
