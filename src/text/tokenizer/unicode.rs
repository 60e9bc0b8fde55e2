//! Unicode's normalization forms over `Secret`s.
//!
//! Tables are those of `unicode-normalization-alignments`, which the `tokenizers` crate uses. Its iterators are not used:
//! they move to the ordinary heap where a character has more than a few marks, and stay there.

use unicode_normalization_alignments::char::{
    canonical_combining_class, compose, decompose_canonical, decompose_compatible,
};

use super::rewritten::Rewritten;
use crate::memory::Secret;

/// A normalization form.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Form {
    pub compatible: bool,
    pub composes: bool,
}

/// A decomposed character of a segment, in an integer that sorts as canonical ordering wants: class, then place.
/// Layout from the top: class (8 bits), place (34 bits), whether it is new (1 bit), character (21 bits).
#[derive(Clone, Copy)]
struct Decomposed(u64);

impl Decomposed {
    fn new(character: char, place: usize, new: bool) -> Self {
        let class = u64::from(canonical_combining_class(character));
        Self(class << 56 | (place as u64) << 22 | u64::from(new) << 21 | u64::from(u32::from(character)))
    }

    fn class(self) -> u8 {
        (self.0 >> 56) as u8
    }

    fn character(self) -> char {
        char::from_u32(self.0 as u32 & 0x1f_ffff).expect("it was made of a character")
    }

    fn change(self) -> isize {
        (self.0 >> 21 & 1) as isize
    }
}

impl Form {
    /// Writes `text` in this form. `pending` is working memory.
    pub fn write(self, text: &str, pending: &mut Secret<[u64]>, to: &mut Rewritten) {
        // Characters below this are as they are, and never join the one before.
        let plain = if self.composes && !self.compatible { '\u{300}' } else { '\u{80}' };
        let mut rest = text;
        while !rest.is_empty() {
            let special = rest.find(|character| character >= plain).unwrap_or(rest.len());
            // the one before may be joined by what follows
            let last = match special == rest.len() {
                true => special,
                false => rest[..special].char_indices().next_back().map_or(0, |(at, _)| at),
            };
            to.keep(&rest[..last]);
            let behind = rest[special..].find(|character| character < plain);
            let end = behind.map_or(rest.len(), |behind| special + behind);
            self.segment(&rest[last..end], pending, to);
            rest = &rest[end..];
        }
    }

    /// A part that nothing around it joins.
    fn segment(self, text: &str, pending: &mut Secret<[u64]>, to: &mut Rewritten) {
        pending.truncate(0);
        let mut starter = 0;
        let sort = |values: &mut [u64]| values.sort_unstable();
        for character in text.chars() {
            let mut new = false;
            let emit = |part| {
                let decomposed = Decomposed::new(part, pending.expose().len(), new);
                new = true;
                if decomposed.class() == 0 {
                    sort(&mut pending.expose_mut()[starter..]);
                    starter = pending.expose().len();
                }
                pending.push(decomposed.0);
            };
            match self.compatible {
                true => decompose_compatible(character, emit),
                false => decompose_canonical(character, emit),
            }
        }
        sort(&mut pending.expose_mut()[starter..]);
        match self.composes {
            true => compose_all(pending.expose_mut(), to),
            false => pending.expose().iter().map(|&value| Decomposed(value)).for_each(|decomposed| {
                to.put(decomposed.character(), decomposed.change());
            }),
        }
    }
}

/// Joins characters with the starter before them, where nothing between them blocks it.
fn compose_all(values: &mut [u64], to: &mut Rewritten) {
    let mut starter: Option<(char, isize)> = None;
    // marks that joined nothing are moved down, to `values[from..kept]`, until their starter is written
    let (mut from, mut kept) = (0, 0);
    let mut last_class: Option<u8> = None;
    for at in 0..values.len() {
        let next = Decomposed(values[at]);
        let Some((character, change)) = starter else {
            match next.class() {
                0 => starter = Some((next.character(), next.change())),
                _ => to.put(next.character(), next.change()),
            }
            (from, kept) = (at + 1, at + 1);
            continue;
        };
        let blocked = last_class.is_some_and(|last| last >= next.class());
        if !blocked && let Some(joined) = compose(character, next.character()) {
            starter = Some((joined, change + next.change() - 1));
            continue;
        }
        if next.class() == 0 {
            to.put(character, change);
            put_all(&values[from..kept], to);
            starter = Some((next.character(), next.change()));
            last_class = None;
            (from, kept) = (at + 1, at + 1);
            continue;
        }
        values[kept] = next.0;
        kept += 1;
        last_class = Some(next.class());
    }
    if let Some((character, change)) = starter {
        to.put(character, change);
    }
    put_all(&values[from..kept], to);
}

fn put_all(values: &[u64], to: &mut Rewritten) {
    values.iter().map(|&value| Decomposed(value)).for_each(|mark| to.put(mark.character(), mark.change()));
}
