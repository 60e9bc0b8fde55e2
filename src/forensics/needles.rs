//! Things to look for, kept inverted.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::OnceLock;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use super::matcher::Matcher;
use crate::backend::KvType;
use crate::backend::packed::int8_scale;

/// Characters of a part of a text.
const TEXT_PART: usize = 12;
/// The least characters.
const LEAST_CHARS: usize = 8;
/// Ids of a part.
const IDS_PART: usize = 6;
/// Values of a part of a row, bytes of a part of bytes.
const PART: usize = 64;
/// Parts of one content, evenly spread.
const MOST_PARTS: usize = 64;
/// A row must be this unlikely to stand somewhere by chance, as a power of two.
const LEAST_BITS: f32 = 48.0;

/// How far values may be from those that are looked for: computed again, in another order of additions or with other
/// roundings, a row differs.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// Not at all.
    Exact,
    /// This many units in the last place of the form that is looked for.
    Ulps(u32),
    /// This share of the row's largest magnitude, for every value of it; 0.03 for rows computed with bf16 somewhere.
    Share(f32),
}

/// The element type of a KV cache, and with it how a head's row of one position lies among others in a plane.
///
/// The layouts are those of this library's caches. Keys are rows of a packed matrix: each line of 64 bytes (32 for
/// `F16`) holds for 16 positions the next values of each, so a row is in pieces, one in each line. Values are columns:
/// the row's values for 16 neighbouring dimensions are in one line, the next 16 in another plane's block.
///
/// | | bytes of a piece of keys, and from piece to piece | of values, the first 16 dimensions |
/// |---|---|---|
/// | `F32` | 4, 64 | 4, 4 |
/// | `F16` | 2, 32 | 2, 2 |
/// | `Bf16` | 4, 64 | 2, 4 |
/// | `Int8` | 4, 64 | 1, 4 |
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// The upper half of a single.
    Bf16,
    /// Whole numbers times the row's largest magnitude over 127.
    Int8,
}

impl Cache {
    pub(super) fn of(cache: KvType) -> Self {
        match cache {
            KvType::F32 => Self::F32,
            KvType::F16 => Self::F16,
            KvType::Bf16 => Self::Bf16,
            KvType::Int8 => Self::Int8,
        }
    }

    fn element(self) -> Element {
        match self {
            Self::F32 => Element::F32,
            Self::F16 => Element::F16,
            Self::Bf16 => Element::Bf16,
            Self::Int8 => Element::Int8,
        }
    }

    /// Values that one position has in a line, and bytes from one line's to the next's.
    fn keys(self) -> Pieces {
        match self {
            Self::F32 => Pieces { values: 1, stride: 64 },
            Self::F16 => Pieces { values: 1, stride: 32 },
            Self::Bf16 => Pieces { values: 2, stride: 64 },
            Self::Int8 => Pieces { values: 4, stride: 64 },
        }
    }

    fn values(self) -> Pieces {
        match self {
            Self::F32 | Self::Bf16 | Self::Int8 => Pieces { values: 1, stride: 4 },
            Self::F16 => Pieces { values: 1, stride: 2 },
        }
    }
}

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Element {
    F32,
    F16,
    Bf16,
    Int8,
}

impl Element {
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Int8 => 1,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    /// How many bits of a value are hard to guess for one who knows what rows look like.
    fn bits(self) -> f32 {
        match self {
            Self::F32 => 27.0,
            Self::F16 => 12.0,
            Self::Bf16 => 11.0,
            Self::Int8 => 6.0,
        }
    }

    fn sign(self) -> u32 {
        1 << (8 * self.bytes() - 1)
    }

    /// The bits of a value, so that larger values have larger bits.
    pub fn rising(self, raw: u32) -> u32 {
        let sign = self.sign();
        match self {
            Self::Int8 => raw ^ sign,
            _ if raw & sign != 0 => !raw & (2 * (sign - 1) + 1),
            _ => raw | sign,
        }
    }

    /// Back from [`Element::rising`].
    pub fn raw(self, rising: u32) -> u32 {
        let sign = self.sign();
        match self {
            Self::Int8 => rising ^ sign,
            _ if rising & sign != 0 => rising ^ sign,
            _ => !rising & (2 * (sign - 1) + 1),
        }
    }

    /// The bits of `value`, rising. `scale` is that of its row, for int8.
    fn write(self, value: f32, scale: f32) -> u32 {
        self.rising(match self {
            Self::F32 => value.to_bits(),
            Self::F16 => u32::from(f16::from_f32(value).to_bits()),
            Self::Bf16 => u32::from(bf16::from_f32(value).to_bits()),
            Self::Int8 => u32::from((value * scale).round_ties_even().clamp(-127.0, 127.0) as i8 as u8),
        })
    }

    /// Largest bits, rising.
    fn most(self) -> u32 {
        2 * (self.sign() - 1) + 1
    }
}

/// How a row's values lie: so many behind one another, then the next so many bytes after where those began.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Pieces {
    pub values: usize,
    pub stride: usize,
}

/// What one needle is.
#[derive(Clone, Serialize, Deserialize)]
pub(super) enum Form {
    /// Bytes, inverted.
    Exact(Vec<u8>),
    /// For each value its smallest and largest bits, rising and then inverted.
    Near { element: Element, bounds: Vec<(u32, u32)>, pieces: Pieces },
}

/// A part of something to look for.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Needle {
    /// Index of its name.
    pub name: usize,
    pub form: Form,
}

impl Needle {
    /// Bytes from its first to its last.
    pub fn span(&self) -> usize {
        match &self.form {
            Form::Exact(inverted) => inverted.len(),
            Form::Near { element, bounds, pieces } => {
                let last = bounds.len() - 1;
                last / pieces.values * pieces.stride + (last % pieces.values + 1) * element.bytes()
            }
        }
    }
}

/// Things to look for. See the [module](super).
///
/// Held inverted (bitwise not), also when serialized, so that a process that searches itself does not find them.
/// `Debug` prints names and how many parts and bytes there are.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Needles {
    pub(super) names: Vec<String>,
    pub(super) parts: Vec<Needle>,
    /// Made when it is first asked for, and again when there are more needles.
    #[serde(skip)]
    matcher: OnceLock<Box<Matcher>>,
}

impl Needles {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Text, as UTF-8, and as UTF-16 and UTF-32 in both orders of bytes.
    ///
    /// # Panics
    /// If it is shorter than eight characters, or no twelve of them in a row have five different ones.
    pub fn text(mut self, name: &str, text: &str) -> Self {
        let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        let forms = ["UTF-8", "UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE"];
        let [utf8, utf16le, utf16be, utf32le, utf32be] = forms.map(|form| self.name(name, form));
        let mut any = false;
        for part in parts_of(starts.len() - 1, TEXT_PART) {
            let part = &text[starts[part.start]..starts[part.end]];
            let chars: Vec<char> = part.chars().collect();
            if chars.len() < LEAST_CHARS || chars.iter().collect::<BTreeSet<_>>().len() < 5 {
                continue;
            }
            any = true;
            self.exact(utf8, part.bytes());
            self.exact(utf16le, part.encode_utf16().flat_map(u16::to_le_bytes));
            self.exact(utf16be, part.encode_utf16().flat_map(u16::to_be_bytes));
            self.exact(utf32le, part.chars().flat_map(|char| u32::from(char).to_le_bytes()));
            self.exact(utf32be, part.chars().flat_map(|char| u32::from(char).to_be_bytes()));
        }
        assert!(
            any,
            "the text of the needle {name} could be found by chance: at least {LEAST_CHARS}, five different"
        );
        self
    }

    /// Token ids, as `u16` where they fit, `u32`, and `u64` (which is `i64` too).
    ///
    /// # Panics
    /// If no six of them in a row have four different ones and are not just numbers in a row.
    pub fn ids(mut self, name: &str, ids: &[u32]) -> Self {
        assert!(
            self.add_ids(name, ids),
            "the ids of the needle {name} could be found by chance: six, four different"
        );
        self
    }

    /// Adds ids, and says whether there was a part that says enough.
    pub(super) fn add_ids(&mut self, name: &str, ids: &[u32]) -> bool {
        let parts: Vec<&[u32]> = parts_of(ids.len(), IDS_PART)
            .map(|part| &ids[part])
            .filter(|part| part.len() == IDS_PART && part.iter().collect::<BTreeSet<_>>().len() >= 4)
            .filter(|part| {
                !part.windows(3).all(|ids| ids[2].wrapping_sub(ids[1]) == ids[1].wrapping_sub(ids[0]))
            })
            .collect();
        if parts.is_empty() {
            return false;
        }
        let (u32s, u64s) = (self.name(name, "u32"), self.name(name, "u64"));
        for part in &parts {
            self.exact(u32s, part.iter().flat_map(|id| id.to_le_bytes()));
            self.exact(u64s, part.iter().flat_map(|&id| u64::from(id).to_le_bytes()));
        }
        if ids.iter().all(|&id| id <= u32::from(u16::MAX)) {
            let u16s = self.name(name, "u16");
            parts
                .iter()
                .for_each(|part| self.exact(u16s, part.iter().flat_map(|&id| (id as u16).to_le_bytes())));
        }
        true
    }

    /// Bytes, as they are.
    ///
    /// # Panics
    /// If no eight of them in a row have four different ones.
    pub fn bytes(mut self, name: &str, bytes: &[u8]) -> Self {
        let index = self.name(name, "bytes");
        let before = self.parts.len();
        for part in parts_of(bytes.len(), PART).map(|part| &bytes[part]) {
            if part.len() >= 8 && part.iter().collect::<BTreeSet<_>>().len() >= 4 {
                self.exact(index, part.iter().copied());
            }
        }
        assert!(
            self.parts.len() > before,
            "the bytes of the needle {name} could be found by chance: eight, four different"
        );
        self
    }

    /// Values behind one another, as `f32`, `f16` and `bf16`.
    ///
    /// # Panics
    /// If they say so little that they could be found by chance: few, or zeros, or with a wide tolerance.
    pub fn row(mut self, name: &str, values: &[f32], tolerance: Tolerance) -> Self {
        assert!(
            self.add_row(name, values, tolerance),
            "the row of the needle {name} could be found by chance"
        );
        self
    }

    pub(super) fn add_row(&mut self, name: &str, values: &[f32], tolerance: Tolerance) -> bool {
        let mut any = false;
        for element in [Element::F32, Element::F16, Element::Bf16] {
            any |= self.add_element(name, values, tolerance, element);
        }
        any
    }

    /// Adds a row like [`Needles::add_row`], in one form.
    pub(super) fn add_element(
        &mut self,
        name: &str,
        values: &[f32],
        tolerance: Tolerance,
        element: Element,
    ) -> bool {
        let most = largest(values);
        let index = self.name(name, element.name());
        let parts = parts_of(values.len(), PART).take(MOST_PARTS);
        let pieces = Pieces { values: PART, stride: PART * element.bytes() };
        parts.fold(false, |any, part| any | self.near(index, &values[part], most, tolerance, element, pieces))
    }

    /// One head's keys of one position, behind one another and packed as in a cache of that type. Turned, where the
    /// model turns them.
    ///
    /// # Panics
    /// Panics where [`Needles::row`] does.
    pub fn keys(mut self, name: &str, head: &[f32], cache: Cache, tolerance: Tolerance) -> Self {
        assert!(
            self.add_keys(name, head, cache, tolerance),
            "the keys of the needle {name} could be found by chance"
        );
        self
    }

    pub(super) fn add_keys(&mut self, name: &str, head: &[f32], cache: Cache, tolerance: Tolerance) -> bool {
        let index = self.name(name, "cached");
        let most = largest(head);
        self.add_row(name, head, tolerance)
            & self.near(index, head, most, tolerance, cache.element(), cache.keys())
    }

    /// One head's values of one position, behind one another and packed as in a cache of that type.
    ///
    /// # Panics
    /// Panics where [`Needles::row`] does.
    pub fn values(mut self, name: &str, head: &[f32], cache: Cache, tolerance: Tolerance) -> Self {
        assert!(
            self.add_values(name, head, cache, tolerance),
            "the values of the needle {name} could be found by chance"
        );
        self
    }

    pub(super) fn add_values(
        &mut self,
        name: &str,
        head: &[f32],
        cache: Cache,
        tolerance: Tolerance,
    ) -> bool {
        let index = self.name(name, "cached");
        let (most, line) = (largest(head), &head[..head.len().min(16)]);
        self.add_row(name, head, tolerance)
            & self.near(index, line, most, tolerance, cache.element(), cache.values())
    }

    /// All of both.
    pub fn and(mut self, other: Self) -> Self {
        let Self { names, parts, .. } = other;
        self.matcher.take();
        let map: Vec<usize> = names.into_iter().map(|name| self.full_name(name)).collect();
        self.parts.extend(parts.into_iter().map(|part| Needle { name: map[part.name], ..part }));
        self
    }

    /// The names, each with the form in which it is looked for.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Makes the tables of a search now. Else the first search makes them, in heap memory that was perhaps freed a moment
    /// ago, and overwrites what it should find there.
    pub fn prepare(self) -> Self {
        self.matcher();
        self
    }

    pub(super) fn matcher(&self) -> &Matcher {
        self.matcher.get_or_init(|| Box::new(Matcher::new(&self.parts)))
    }

    /// How many parts are looked for.
    pub fn len(&self) -> usize {
        self.parts.len()
    }

    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    fn name(&mut self, name: &str, form: &str) -> usize {
        self.full_name(format!("{name} ({form})"))
    }

    fn full_name(&mut self, name: String) -> usize {
        self.names.iter().position(|known| *known == name).unwrap_or_else(|| {
            self.names.push(name);
            self.names.len() - 1
        })
    }

    fn exact(&mut self, name: usize, bytes: impl Iterator<Item = u8>) {
        self.matcher.take();
        self.parts.push(Needle { name, form: Form::Exact(bytes.map(|byte| !byte).collect()) });
    }

    /// Adds values of a row whose largest magnitude is `most`, unless they say too little.
    fn near(
        &mut self,
        name: usize,
        values: &[f32],
        most: f32,
        tolerance: Tolerance,
        element: Element,
        pieces: Pieces,
    ) -> bool {
        if !most.is_finite() || (element == Element::F16 && most > f16::MAX.to_f32()) {
            return false; // such a row is never written
        }
        let scale = int8_scale(&[most]).1;
        let bounds = values.iter().map(|&value| bounds(value, most, tolerance, element, scale));
        let bounds: Vec<(u32, u32)> = bounds.map(|(low, high)| (!low, !high)).collect();
        let zero = !element.rising(0);
        let bits = |&(low, high): &(u32, u32)| match (high..=low).contains(&zero) {
            true => 0.0, // memory is full of zeros
            false => (element.bits() - ((low - high) as f32 + 1.0).log2()).max(0.0),
        };
        let distinct: BTreeSet<_> = bounds.iter().collect();
        let enough = distinct.into_iter().map(bits).sum::<f32>() >= LEAST_BITS;
        if enough {
            self.matcher.take();
            self.parts.push(Needle { name, form: Form::Near { element, bounds, pieces } });
        }
        enough
    }
}

/// The smallest and the largest bits, rising, that a value may have.
fn bounds(value: f32, most: f32, tolerance: Tolerance, element: Element, scale: f32) -> (u32, u32) {
    let at = |value: f32| element.write(value, scale);
    let (low, high, more) = match tolerance {
        Tolerance::Exact => (at(value), at(value), 0),
        Tolerance::Ulps(units) => (at(value), at(value), units),
        // a unit more, since both ends are rounded
        Tolerance::Share(share) => (at(value - share * most), at(value + share * most), 1),
    };
    (low.saturating_sub(more), high.saturating_add(more).min(element.most()))
}

fn largest(values: &[f32]) -> f32 {
    values
        .iter()
        .fold(0.0, |most, value| if value.is_finite() { most.max(value.abs()) } else { f32::INFINITY })
}

/// Cuts `total` into parts of `part`, the last one from the end; of many, some that are evenly spread.
fn parts_of(total: usize, part: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let count = total.div_ceil(part);
    let taken = count.min(MOST_PARTS);
    (0..taken).map(move |index| {
        let start = (index * count.saturating_sub(1) / taken.saturating_sub(1).max(1) * part)
            .min(total - part.min(total));
        start..(start + part).min(total)
    })
}

impl fmt::Debug for Needles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (index, name) in self.names.iter().enumerate() {
            let of_it: Vec<usize> =
                self.parts.iter().filter(|part| part.name == index).map(Needle::span).collect();
            map.entry(name, &format_args!("{} parts, {} bytes", of_it.len(), of_it.iter().sum::<usize>()));
        }
        map.finish()
    }
}
