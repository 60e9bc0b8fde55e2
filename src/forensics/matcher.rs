//! Needles made ready for a search: one look into a table for each byte, and a comparison where it says "perhaps".
//!
//! Each needle has one place that is looked for, its anchor, where 16 bits can have few values: two bytes of an exact needle; the
//! lower half of an `f32` that is known well; a `bf16` within its bounds. A table of 64 Ki bits says of each two bytes
//! of memory whether some anchor can be there. (A search for the first byte, as `memchr` does, stops too often with
//! hundreds of needles; Aho-Corasick cannot look for numbers within bounds.)

use super::needles::{Element, Form, Needle};
use crate::memory::scrub::is_zero;

/// Ends a chain.
const NONE: u32 = u32::MAX;
/// An anchor has no more values than this.
const MOST_VALUES: u32 = 4096;
/// What is all zeros is skipped by pieces of this many bytes.
const PAGE: usize = 4096;

/// See the module.
#[derive(Clone)]
pub(super) struct Matcher {
    /// A bit for each two bytes.
    maybe: Box<[u64; 1024]>,
    /// For each two bytes the first link of its chain.
    first: Vec<u32>,
    links: Vec<Link>,
    /// Bytes of the longest needle.
    span: usize,
}

#[derive(Clone, Copy)]
struct Link {
    needle: u32,
    /// Where the anchor is in it.
    offset: u32,
    next: u32,
}

impl Matcher {
    pub fn new(needles: &[Needle]) -> Self {
        let mut this = Self {
            maybe: vec![0; 1024].try_into().expect("1024 words"),
            first: vec![NONE; 1 << 16],
            links: Vec::new(),
            span: needles.iter().map(Needle::span).max().unwrap_or(0),
        };
        for (index, needle) in needles.iter().enumerate() {
            let (offset, values) = anchor(&needle.form);
            for value in values {
                let first = &mut this.first[usize::from(value)];
                this.links.push(Link { needle: index as u32, offset: offset as u32, next: *first });
                *first = this.links.len() as u32 - 1;
                this.maybe[usize::from(value >> 6)] |= 1 << (value & 63);
            }
        }
        this
    }

    /// Bytes of the longest needle.
    pub fn span(&self) -> usize {
        self.span
    }

    /// Tells which of the needles, the same as before, stands where in `memory`. Those that end within its first `known`
    /// bytes were told before.
    pub fn search(
        &self,
        needles: &[Needle],
        memory: &[u8],
        known: usize,
        found: &mut impl FnMut(&Needle, usize),
    ) {
        for start in (0..memory.len()).step_by(PAGE) {
            let end = memory.len().min(start + PAGE);
            // No anchor is two zero bytes; one may begin with the last byte of a page that is zero.
            let start = if is_zero(&memory[start..end]) { end - 1 } else { start };
            let page = &memory[start..memory.len().min(end + 1)];
            for (at, pair) in page.array_windows::<2>().enumerate() {
                let value = u16::from_le_bytes(*pair);
                if self.maybe[usize::from(value >> 6)] >> (value & 63) & 1 == 1 {
                    self.compare(needles, memory, (start + at, value), known, found);
                }
            }
        }
    }

    #[inline(never)]
    fn compare(
        &self,
        needles: &[Needle],
        memory: &[u8],
        (anchor, value): (usize, u16),
        known: usize,
        found: &mut impl FnMut(&Needle, usize),
    ) {
        let mut link = self.first[usize::from(value)];
        while link != NONE {
            let Link { needle, offset, next } = self.links[link as usize];
            link = next;
            let needle = &needles[needle as usize];
            let Some(start) = anchor.checked_sub(offset as usize) else { continue };
            let end = start + needle.span();
            if end > known && end <= memory.len() && stands(&needle.form, &memory[start..end]) {
                found(needle, start);
            }
        }
    }
}

/// Whether a needle stands in `memory`, which is as long.
fn stands(form: &Form, memory: &[u8]) -> bool {
    match form {
        Form::Exact(inverted) => inverted.iter().zip(memory).all(|(wanted, found)| !wanted == *found),
        Form::Near { element, bounds, pieces } => {
            bounds.chunks(pieces.values).zip(memory.chunks(pieces.stride)).all(|(bounds, piece)| {
                bounds.iter().zip(piece.chunks_exact(element.bytes())).all(|((low, high), raw)| {
                    let rising = element.rising(number(raw));
                    (!low..=!high).contains(&rising)
                })
            })
        }
    }
}

fn number(raw: &[u8]) -> u32 {
    raw.iter().rev().fold(0, |number, &byte| number << 8 | u32::from(byte))
}

/// The place of a needle that is hardest to find by chance, and the two bytes that can be there. Never two zeros.
fn anchor(form: &Form) -> (usize, Vec<u16>) {
    match form {
        Form::Exact(inverted) => {
            let pairs = inverted.array_windows::<2>().map(|[low, high]| u16::from_le_bytes([!low, !high]));
            let (offset, pair) = pairs
                .enumerate()
                .min_by_key(|(_, pair)| commonness(*pair))
                .expect("needles have several bytes");
            (offset, vec![pair])
        }
        Form::Near { element, bounds, pieces } => (0..bounds.len())
            .filter_map(|index| {
                let place = index / pieces.values * pieces.stride + index % pieces.values * element.bytes();
                let values = values(*element, bounds, index, index % pieces.values + 1 < pieces.values)?;
                Some((place + usize::from(values.upper) * 2, values.values))
            })
            .min_by_key(|(_, values)| values.len())
            .unwrap_or((0, Vec::new())),
    }
}

struct Values {
    /// Whether they are the upper half of an `f32`.
    upper: bool,
    values: Vec<u16>,
}

/// What two bytes can be at value `index`; none if too many things, or zero.
fn values(element: Element, bounds: &[(u32, u32)], index: usize, followed: bool) -> Option<Values> {
    let range = |index: usize| bounds.get(index).map(|&(low, high)| !low..=!high);
    let this = range(index)?;
    let count = this.end() - this.start() + 1;
    let (upper, values): (bool, Vec<u16>) = match element {
        Element::F32 if count < 64 => (false, this.map(|bits| element.raw(bits) as u16).collect()),
        Element::F32 => {
            let halves = (this.start() >> 16)..=(this.end() >> 16);
            if halves.end() - halves.start() > MOST_VALUES {
                return None;
            }
            (true, halves.map(|half| (element.raw(half << 16 | 0x8000) >> 16) as u16).collect())
        }
        Element::F16 | Element::Bf16 if count > MOST_VALUES => return None,
        Element::F16 | Element::Bf16 => (false, this.map(|bits| element.raw(bits) as u16).collect()),
        Element::Int8 => {
            let next = range(index + 1).filter(|_| followed).unwrap_or(0..=255);
            let pair = |low: u32, high: u32| (element.raw(low) | element.raw(high) << 8) as u16;
            (false, this.flat_map(|low| next.clone().map(move |high| pair(low, high))).collect())
        }
    };
    (!values.contains(&0)).then_some(Values { upper, values })
}

/// How often two bytes are met in memory, roughly: more is oftener.
fn commonness(pair: u16) -> u32 {
    let bytes = pair.to_le_bytes();
    let zeros = bytes.iter().filter(|&&byte| byte == 0 || byte == 0xff).count() as u32;
    let text = bytes.iter().filter(|byte| byte.is_ascii_lowercase() || **byte == b' ').count() as u32;
    if pair == 0 { 100 } else { 8 * zeros + 2 * text }
}
