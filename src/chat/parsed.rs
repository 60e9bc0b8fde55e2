//! The parts of a reply: content, reasoning, calls of tools.

use std::fmt;

use super::functions::ToolCall;
use super::splitter::Event;
use super::tool_calls::CallPart;
use crate::memory::secret::Secret;

/// A call that has begun: id, name, arguments.
type Open = (Secret<str>, Secret<str>, Secret<[u8]>);

/// The parts of a reply as they come.
#[derive(Default)]
pub(super) struct Parts {
    content: Secret<[u8]>,
    reasoning: Secret<[u8]>,
    calls: Vec<ToolCall>,
    open: Option<Open>,
}

impl Parts {
    pub(super) fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Piece(PieceKind::Reasoning, text) => self.reasoning.extend(text.as_bytes()),
            Event::Piece(_, text) => self.content.extend(text.as_bytes()),
            Event::Call(_, CallPart::Begin { id, name }) => {
                self.open = Some((Secret::<str>::copy(id), Secret::<str>::copy(name), Secret::default()));
            }
            Event::Call(_, CallPart::Arguments(text)) => {
                self.open.iter_mut().for_each(|(.., arguments)| arguments.extend(text.as_bytes()));
            }
            Event::Call(_, CallPart::End) => {
                let call = self.open.take();
                self.calls
                    .extend(call.map(|(id, name, arguments)| ToolCall::of([id, name, into_text(arguments)])));
            }
            Event::Call(_, CallPart::Retracted) => self.open = None,
        }
    }

    pub(super) fn into_parsed(self) -> Parsed {
        let reasoning = into_text(self.reasoning);
        Parsed {
            content: into_text(self.content),
            reasoning: (!reasoning.expose().is_empty()).then_some(reasoning),
            tool_calls: self.calls,
        }
    }
}

/// A reply's parts.
///
/// White space is dropped around reasoning, and around calls where nothing but calls follows. What looks like a call
/// but cannot be read is content.
#[non_exhaustive]
pub struct Parsed {
    /// What the model says.
    pub content: Secret<str>,
    /// What it thought before; none where that is empty.
    pub reasoning: Option<Secret<str>>,
    /// What it asks for, in order; ids are unique among them.
    pub tool_calls: Vec<ToolCall>,
}

impl fmt::Debug for Parsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parsed")
            .field("content_bytes", &self.content.expose().len())
            .field("reasoning_bytes", &self.reasoning.as_ref().map(|text| text.expose().len()))
            .field("tool_calls", &self.tool_calls)
            .finish()
    }
}

/// What a piece of a reply is.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PieceKind {
    /// What the model says.
    Content,
    /// What it thinks before it says it.
    Reasoning,
    /// A part of a call that it asks for: [`crate::Piece::tool_call`]. Such a piece has no text.
    ToolCall,
}

fn into_text(bytes: Secret<[u8]>) -> Secret<str> {
    Secret::from_utf8(bytes).expect("pieces are whole characters")
}
