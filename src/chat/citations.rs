//! The citations of Cohere's models: `<co: 0>cited</co: 0>`, or `<co>cited</co: 0:[1,2]>`. Their tags are no text, as
//! Cohere's own parser has it, which vLLM uses; what they stand around is.

use super::parsed::PieceKind;
use super::splitter::{Event, Sink};
use crate::memory::secret::Secret;

/// The longest tag.
const MAX_TAG: usize = 128;

/// Whether a tag begins a text.
enum Tag {
    /// It does, and has this length.
    Yes(usize),
    No,
    /// It may, once there is more text.
    Wait,
}

/// Takes tags out of the pieces of a reply.
pub struct Citations {
    kind: PieceKind,
    /// What may become a tag; always whole characters.
    held: Secret<[u8]>,
}

impl Citations {
    pub fn new() -> Self {
        Self { kind: PieceKind::Content, held: Secret::default() }
    }

    /// Passes on what is certain.
    pub fn take(&mut self, event: Event<'_>, sink: Sink<'_>) {
        let (kind, text) = match event {
            Event::Piece(kind, text) => (kind, text),
            call => {
                self.finish(sink);
                return sink(call);
            }
        };
        if kind != self.kind {
            self.finish(sink);
            self.kind = kind;
        }
        self.held.extend(text.as_bytes());
        while !self.held.expose().is_empty() {
            let text = as_text(&self.held);
            let plain = text.find('<').unwrap_or(text.len());
            if plain > 0 {
                sink(Event::Piece(kind, &text[..plain]));
                self.held.drain_front(plain);
                continue;
            }
            match tag(text) {
                Tag::Wait => return,
                Tag::Yes(len) => self.held.drain_front(len),
                Tag::No => {
                    sink(Event::Piece(kind, "<"));
                    self.held.drain_front(1);
                }
            }
        }
    }

    /// What is held is no tag: the reply goes on with something else, or has ended.
    pub fn finish(&mut self, sink: Sink<'_>) {
        if !self.held.expose().is_empty() {
            sink(Event::Piece(self.kind, as_text(&self.held)));
            self.held.truncate(0);
        }
    }

    /// Bytes that are held back.
    pub fn held_bytes(&self) -> usize {
        self.held.expose().len()
    }
}

fn tag(text: &str) -> Tag {
    for (open, numbers) in [("<co", "0123456789, "), ("</co", "0123456789, :[]")] {
        let Some(rest) = text.strip_prefix(open) else {
            if open.starts_with(text) {
                return Tag::Wait;
            }
            continue;
        };
        if rest.is_empty() {
            return Tag::Wait;
        }
        if rest.starts_with('>') && open == "<co" {
            return Tag::Yes(open.len() + 1);
        }
        let Some(rest) = rest.strip_prefix(':') else { return Tag::No };
        let len = rest.find(|char| !numbers.contains(char)).unwrap_or(rest.len());
        return match rest.as_bytes().get(len) {
            Some(b'>') if len > 0 => Tag::Yes(open.len() + 1 + len + 1),
            None if text.len() < MAX_TAG => Tag::Wait,
            _ => Tag::No,
        };
    }
    Tag::No
}

fn as_text(bytes: &Secret<[u8]>) -> &str {
    std::str::from_utf8(bytes.expose()).expect("texts are joined, and cut before and behind ASCII only")
}
