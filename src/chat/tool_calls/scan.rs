//! Reading on in a text that grows: what stands at a place, and where a JSON value ends. Every function can be called
//! again with more text and goes on where it stopped, so that a reply is read once, however it is cut.

use crate::memory::Secret;

/// Whether something stands at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagMatch {
    /// It does; what follows begins here.
    Yes(usize),
    No,
    /// It may, once there is more text.
    Wait,
}

/// A literal that is read from a text and written as JSON.
pub trait Rewrite {
    /// The next byte that is no blank; it stays.
    fn next(&mut self) -> Option<u8>;
    /// Passes over one byte.
    fn pass(&mut self);
    /// Where the JSON goes.
    fn out(&mut self) -> &mut Secret<[u8]>;

    /// From an opening bracket to `close`: what `item` reads, with commas between and perhaps one behind, between the
    /// brackets `json`. None where it is malformed.
    fn items(
        &mut self,
        close: u8,
        json: [&[u8]; 2],
        mut item: impl FnMut(&mut Self) -> Option<()>,
    ) -> Option<()> {
        self.pass();
        self.out().extend(json[0]);
        let mut first = true;
        while self.next()? != close {
            if !first {
                self.out().extend(b", ");
            }
            first = false;
            item(self)?;
            match self.next()? {
                b',' => self.pass(),
                byte if byte == close => {}
                _ => return None,
            }
        }
        self.pass();
        self.out().extend(json[1]);
        Some(())
    }
}

/// Whether `tag` stands at `at`. At the `end` of a reply nothing is waited for.
pub fn match_tag(text: &str, at: usize, tag: &str, end: bool) -> TagMatch {
    let rest = &text.as_bytes()[at..];
    if rest.starts_with(tag.as_bytes()) {
        TagMatch::Yes(at + tag.len())
    } else if !end && tag.as_bytes().starts_with(rest) {
        TagMatch::Wait
    } else {
        TagMatch::No
    }
}

/// Which of `tags` stands at `at`: its place in the list, and where it ends. A tag that another one begins with is waited
/// for.
pub fn match_any_tag(text: &str, at: usize, tags: &[&str], end: bool) -> Option<Result<(usize, usize), ()>> {
    let mut found = None;
    for (index, tag) in tags.iter().enumerate() {
        match match_tag(text, at, tag, end) {
            TagMatch::Yes(after) => found = found.or(Some(Ok((index, after)))),
            TagMatch::Wait => return Some(Err(())),
            TagMatch::No => {}
        }
    }
    found
}

/// The first place from `at` on that is no white space.
pub fn skip_blank(text: &str, at: usize) -> usize {
    text.len() - text[at..].trim_start().len()
}

/// Looks for `tag` from `from` on, which moves to where the next search has to begin.
pub fn find_tag(text: &str, from: &mut usize, tag: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let found = bytes.get(*from..)?.windows(tag.len()).position(|window| window == tag.as_bytes());
    match found {
        Some(at) => Some(*from + at),
        None => {
            *from = (*from).max(bytes.len().saturating_sub(tag.len() - 1));
            None
        }
    }
}

/// Length of the longest end of `text` that may become `tag`.
pub fn partial(text: &str, tag: &str) -> usize {
    let most = text.len().min(tag.len() - 1);
    (1..=most).rev().find(|&len| text.as_bytes().ends_with(&tag.as_bytes()[..len])).unwrap_or(0)
}

/// Where a JSON value ends. Only brackets and quotes are looked at: whether it is one is for serde_json to say.
#[derive(Debug, Default)]
pub struct JsonEnd {
    depth: usize,
    string: bool,
    escaped: bool,
    scalar: bool,
}

impl JsonEnd {
    /// Reads on from `at`, which moves; the value's end, if it is there. Numbers and words end before what follows them.
    pub fn find(&mut self, text: &str, at: &mut usize) -> Option<usize> {
        while let Some(&byte) = text.as_bytes().get(*at) {
            if self.scalar && matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r') {
                return Some(*at);
            }
            *at += 1;
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.string => self.escaped = true,
                b'"' => {
                    self.string = !self.string;
                    if !self.string && self.depth == 0 {
                        return Some(*at);
                    }
                }
                _ if self.string => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' if self.depth > 0 => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Some(*at);
                    }
                }
                _ => self.scalar |= self.depth == 0,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_end_where_they_end() {
        for (text, end) in [
            ("{\"a\": \"}\\\"\"} x", 12),
            ("[1, [2]]]", 8),
            ("\"a\\\\\" ", 5),
            ("12, 3", 2),
            ("null}", 4),
            ("{} {}", 2),
        ] {
            assert_eq!(JsonEnd::default().find(text, &mut 0), Some(end), "{text}");
            let (mut scan, mut at, mut found) = (JsonEnd::default(), 0, None);
            for cut in 0..=text.len() {
                found = found.or_else(|| scan.find(&text[..cut], &mut at));
            }
            assert_eq!(found, Some(end), "{text}, byte by byte");
        }
        assert_eq!(JsonEnd::default().find("12", &mut 0), None);
    }

    #[test]
    fn tags_are_waited_for() {
        assert_eq!(match_tag("a</b>", 1, "</b>", false), TagMatch::Yes(5));
        assert_eq!(match_tag("a</", 1, "</b>", false), TagMatch::Wait);
        assert_eq!(match_tag("a</", 1, "</b>", true), TagMatch::No);
        assert_eq!(match_tag("a<x", 1, "</b>", false), TagMatch::No);
        let mut from = 0;
        assert_eq!((find_tag("ab<", &mut from, "<c"), from), (None, 2));
        assert_eq!(find_tag("ab<c", &mut from, "<c"), Some(2));
        assert_eq!((partial("a<", "<c>"), partial("<c", "<c>"), partial("c", "<c>")), (1, 2, 0));
    }
}
