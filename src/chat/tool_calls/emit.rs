//! Calls on their way out: numbered, with ids that are unique within a reply, as deltas.

use crate::chat::splitter::{Event, Sink};
use crate::memory::secret::Secret;

/// A part of a call, as soon as it is certain.
pub enum CallPart<'a> {
    /// A call begins. Its arguments follow.
    Begin { id: &'a str, name: &'a str },
    /// More of its arguments: parts of the text of a JSON object.
    Arguments(&'a str),
    /// It is complete.
    End,
    /// It was none: what was read as a call follows as content.
    Retracted,
}

/// How an id that the model did not give is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdForm {
    /// `call_0`.
    Counted,
    /// Nine letters and digits, which is all that the templates of Mistral accept.
    Nine,
}

/// What is known of a reply's calls so far.
#[derive(Default)]
pub struct Numbering {
    /// Calls begun.
    begun: usize,
    next_id: usize,
    /// Ids given so far. A model writes them, so they are secrets.
    ids: Vec<Secret<str>>,
    open: bool,
}

/// Where readers put what they read.
pub struct Calls<'a, 'b> {
    pub numbering: &'a mut Numbering,
    pub ids: IdForm,
    pub sink: Sink<'b>,
}

impl Calls<'_, '_> {
    /// A call begins; `id` is empty where the model gave none. One that repeats another's gets a new one.
    pub fn begin(&mut self, id: &str, name: &str) {
        let taken = |id: &str, ids: &[Secret<str>]| ids.iter().any(|known| known.expose() == id);
        let mut id = Secret::<str>::copy(id);
        while id.expose().is_empty() || taken(id.expose(), &self.numbering.ids) {
            let next = self.numbering.next_id;
            self.numbering.next_id += 1;
            id = Secret::new(match self.ids {
                IdForm::Counted => format!("call_{next}"),
                IdForm::Nine => format!("call{next:05}"),
            });
        }
        let index = self.numbering.begun;
        self.numbering.begun += 1;
        self.numbering.open = true;
        (self.sink)(Event::Call(index, CallPart::Begin { id: id.expose(), name }));
        self.numbering.ids.push(id);
    }

    /// More of the arguments of the call that has begun.
    pub fn arguments(&mut self, text: &str) {
        if !text.is_empty() {
            self.give(CallPart::Arguments(text));
        }
    }

    /// The call that has begun is complete.
    pub fn end(&mut self) {
        self.give(CallPart::End);
        self.numbering.open = false;
    }

    /// All of a call at once.
    pub fn whole(&mut self, id: &str, name: &str, arguments: &str) {
        self.begin(id, name);
        self.arguments(arguments);
        self.end();
    }

    /// A call that has begun and not ended was none.
    pub fn retract(&mut self) {
        if self.numbering.open {
            self.give(CallPart::Retracted);
            self.numbering.open = false;
        }
    }

    fn give(&mut self, part: CallPart<'_>) {
        (self.sink)(Event::Call(self.numbering.begun - 1, part));
    }
}
