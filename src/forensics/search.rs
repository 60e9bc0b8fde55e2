//! Where needles are looked for: bytes, files, this process, another one.
//!
//! Memory is read through /proc/PID/mem in windows, into one buffer that is itself left out and overwritten at the end; what
//! this process cannot read of itself in that way it reads in another ([`OwnMemory`]).
//! A search takes no block of the heap that somebody may have freed, but for small ones: that is where it looks.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt;
use std::path::Path;

use memmap2::MmapMut;

use super::findings::{Finding, Findings};
use super::needles::{Needle, Needles};
#[cfg(target_os = "linux")]
use super::own::OwnMemory;
#[cfg(target_os = "linux")]
use crate::memory::heap;
use crate::memory::scrub;

/// Bytes that are read at once: they stay in the processor's cache while they are searched.
const WINDOW: usize = 256 << 10;
const PAGE: u64 = 4096;

impl Needles {
    /// Searches bytes: a log, what a program printed.
    pub fn search_bytes(&self, bytes: &[u8]) -> Findings {
        let mut findings = Findings::default();
        self.matcher().search(&self.parts, bytes, 0, &mut |needle, at| {
            findings.add(self.finding(needle, "bytes", at as u64))
        });
        findings.searched(bytes.len());
        findings
    }

    /// Searches a file, a window at a time: a core dump, a log, a page file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn search_file(&self, path: impl AsRef<Path>) -> io::Result<Findings> {
        let path = path.as_ref();
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let place = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        let mut search = Search::new(self)?;
        search.read(&|buffer, at| file.read_at(buffer, at), 0..bytes, &place, 0)?;
        Ok(search.findings)
    }

    /// Searches all writable memory of this process: the heap with its free lists, arenas, the stacks of all threads
    /// and their thread-local variables. Other threads may go on meanwhile. About a gigabyte a second of memory that is
    /// not zero, several of memory that is.
    ///
    /// One search at a time: another's buffer would be searched too.
    ///
    /// # Errors
    /// /proc/self cannot be read: it is not Linux, or this process may not.
    #[cfg(target_os = "linux")]
    pub fn search_self(&self) -> io::Result<Findings> {
        let mut search = Search::new(self)?;
        let buffer = search.window.0.as_ptr_range();
        let own = buffer.start as u64..buffer.end as u64;
        let own = std::slice::from_ref(&own);
        let memory = OwnMemory::open()?;
        // what the heap for secrets keeps for later is inaccessible but through the heap
        let read = |buffer: &mut [u8], at: u64| match heap::read_kept(at as usize, buffer) {
            Some(read) => Ok(read),
            None => memory.read_at(buffer, at),
        };
        let mut behind = 0;
        while let Some(kept) = heap::kept_behind(behind) {
            let range = kept.start as u64..kept.end as u64;
            search.read_memory(&read, range.clone(), &Mapping::kept(range));
            behind = kept.end;
        }
        search.process("self", &read, own, |mapping| mapping.is_writable())?;
        Ok(search.findings)
    }

    /// Searches this process, on Linux: elsewhere this always fails.
    ///
    /// # Errors
    /// It is not Linux.
    #[cfg(not(target_os = "linux"))]
    pub fn search_self(&self) -> io::Result<Findings> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Searches another process: its writable memory, and what else of its memory is no file's. To see something while
    /// it runs, this process must be allowed to trace it; a child is allowed by default.
    ///
    /// # Errors
    /// There is no such process, or this one may not read its memory.
    pub fn search_process(&self, pid: u32) -> io::Result<Findings> {
        let mut search = Search::new(self)?;
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        let read = |buffer: &mut [u8], at| memory.read_at(buffer, at);
        let wanted = |mapping: &Mapping<'_>| mapping.is_writable() || mapping.is_anonymous();
        search.process(&pid.to_string(), &read, &[], wanted)?;
        Ok(search.findings)
    }

    fn finding(&self, needle: &Needle, place: &str, offset: u64) -> Finding {
        Finding { name: self.names[needle.name].clone(), place: place.to_owned(), offset, count: 1 }
    }
}

/// A line of /proc/PID/maps.
pub(super) struct Mapping<'a> {
    pub range: std::ops::Range<u64>,
    pub rights: &'a str,
    inode: &'a str,
    pub name: &'a str,
}

impl<'a> Mapping<'a> {
    pub fn parse(line: &'a str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).ok());
        let (rights, inode) = (words.next()?, words.nth(2)?);
        let path = words.next().unwrap_or("anonymous");
        let name = path.rsplit('/').next().unwrap_or(path);
        Some(Self { range: start?..end?, rights, inode, name })
    }

    /// What is kept for later by the heap for secrets: no line of its own, since its neighbours are inaccessible too.
    #[cfg(target_os = "linux")]
    fn kept(range: std::ops::Range<u64>) -> Self {
        Self { range, rights: "---p", inode: "0", name: "kept by the heap for secrets" }
    }

    pub fn is_writable(&self) -> bool {
        self.rights.starts_with("rw")
    }

    /// Readable, of no file, and not the kernel's own.
    fn is_anonymous(&self) -> bool {
        self.rights.starts_with('r') && self.inode == "0" && !self.name.starts_with("[v")
    }
}

/// Reads bytes from a place on; how many.
type Read<'a> = dyn Fn(&mut [u8], u64) -> io::Result<usize> + 'a;

/// A search under way.
struct Search<'a> {
    needles: &'a Needles,
    window: Pages,
    findings: Findings,
}

impl<'a> Search<'a> {
    fn new(needles: &'a Needles) -> io::Result<Self> {
        let window = Pages(MmapMut::map_anon(WINDOW + needles.matcher().span())?);
        Ok(Self { needles, window, findings: Findings::default() })
    }

    fn process(
        &mut self,
        pid: &str,
        read: &Read<'_>,
        without: &[std::ops::Range<u64>],
        wanted: impl Fn(&Mapping<'_>) -> bool,
    ) -> io::Result<()> {
        let (maps, len) = read_whole(Path::new(&format!("/proc/{pid}/maps")))?;
        let maps = str::from_utf8(&maps[..len]).map_err(io::Error::other)?;
        for mapping in maps.lines().filter_map(Mapping::parse).filter(|mapping| wanted(mapping)) {
            let mut start = mapping.range.start;
            for hole in without.iter().filter(|hole| mapping.range.contains(&hole.start)) {
                self.read_memory(read, start..hole.start, &mapping);
                start = hole.end;
            }
            self.read_memory(read, start..mapping.range.end, &mapping);
        }
        if self.findings.bytes() == 0 {
            return Err(io::Error::other("none of the process's memory could be read"));
        }
        Ok(())
    }

    /// Pages that cannot be read, since they are gone meanwhile or their file is too short, are left out and counted.
    fn read_memory(&mut self, memory: &Read<'_>, range: std::ops::Range<u64>, mapping: &Mapping<'_>) {
        let mut start = range.start;
        while start < range.end {
            let before = self.findings.bytes();
            if self.read(memory, start..range.end, mapping.name, mapping.range.start).is_ok() {
                return;
            }
            let read = self.findings.bytes() - before;
            let next = (start + read) / PAGE * PAGE + PAGE;
            self.findings.skipped(next.min(range.end) - (start + read));
            start = next;
        }
    }

    /// Searches `range` of what `source` reads, whose byte `origin` is the first of a place of that name.
    fn read(
        &mut self,
        source: &Read<'_>,
        range: std::ops::Range<u64>,
        place: &str,
        origin: u64,
    ) -> io::Result<()> {
        let Self { needles, window: Pages(buffer), findings } = self;
        let matcher = needles.matcher();
        let (mut at, mut kept) = (range.start, 0);
        while at < range.end {
            let most = (buffer.len() - kept).min(usize::try_from(range.end - at).unwrap_or(usize::MAX));
            let read = source(&mut buffer[kept..kept + most], at)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let window = &buffer[..kept + read];
            let first = at - kept as u64;
            matcher.search(&needles.parts, window, kept, &mut |needle, start| {
                findings.add(needles.finding(needle, place, first + start as u64 - origin));
            });
            findings.searched(read);
            at += read as u64;
            // what a needle that goes on behind the window may begin with
            let end = kept + read;
            let keep = end.min(matcher.span().saturating_sub(1));
            buffer.copy_within(end - keep..end, 0);
            kept = keep;
        }
        Ok(())
    }
}

/// A small file, and its length. Not `std::fs::read`, whose vector would be the heap's.
fn read_whole(path: &Path) -> io::Result<(MmapMut, usize)> {
    const FIRST: usize = 1 << 20;
    let mut room = FIRST;
    loop {
        let (mut file, mut pages, mut len) = (File::open(path)?, MmapMut::map_anon(room)?, 0);
        while len < room {
            match file.read(&mut pages[len..])? {
                0 => return Ok((pages, len)),
                read => len += read,
            }
        }
        room *= 2; // not one that goes on: between two reads the system may change it
    }
}

/// A copy of what is searched, in pages of its own. Not a `Secret`: the search must know where it is.
struct Pages(MmapMut);

impl Drop for Pages {
    fn drop(&mut self) {
        let _ = scrub(&mut self.0);
    }
}
