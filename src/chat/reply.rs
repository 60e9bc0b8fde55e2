//! How replies are written.

use std::sync::Arc;

use super::functions::Tool;
use super::harmony::{self, Harmony};
use super::inkling::{self, Inkling};
use super::marks::Marks;
use super::parsed::{Parsed, Parts, PieceKind};
use super::splitter::Splitter;
use super::tool_calls::{Schemas, ToolCallParser};

/// How replies are written, as far as their template shows.
///
/// Tags of citations, which Cohere's models put into texts, are taken out of them.
#[derive(Clone, Debug)]
pub struct Style {
    /// How calls are written; none where they are left in the text.
    pub(super) calls: Option<ToolCallParser>,
    /// The marks of reasoning.
    pub(super) marks: Option<&'static Marks>,
    /// How the model writes messages with channels, if it does.
    pub(super) channels: Option<Channels>,
    /// Texts may have citations in them.
    pub(super) citations: bool,
    /// The prompt ends within reasoning that it has opened.
    pub(super) inside: bool,
    /// The prompt ends within an answer that it has begun, of a model that writes messages with channels.
    pub(super) answers: bool,
    /// The prompt ends with reasoning that it has closed: thinking is switched off.
    pub(super) closed: bool,
    /// What arguments are, where a format does not say.
    pub(super) schemas: Arc<Schemas>,
}

/// How messages with channels are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channels {
    /// gpt-oss.
    Harmony,
    /// Inkling, whose channels are the kinds of what is in a message.
    Inkling,
}

impl Channels {
    fn of(parser: ToolCallParser) -> Option<Self> {
        match parser {
            ToolCallParser::OpenAi => Some(Self::Harmony),
            ToolCallParser::Inkling => Some(Self::Inkling),
            _ => None,
        }
    }

    fn parser(self) -> ToolCallParser {
        match self {
            Self::Harmony => ToolCallParser::OpenAi,
            Self::Inkling => ToolCallParser::Inkling,
        }
    }
}

/// How the end of reasoning shows in the ids of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningEnd {
    /// By one mark. Before it the reply may begin with one of these, or begins within reasoning.
    Mark { opens: &'static [&'static str], close: &'static str },
    /// By the header of a message on the channel `final`.
    Channel,
}

impl Style {
    /// The style that the source of a template teaches; without `tools`, calls are left in the text.
    pub fn of(template: &str, tools: bool) -> Self {
        let parser = ToolCallParser::of_template(template);
        let channels = parser.and_then(Channels::of);
        let marks = if channels.is_some() { None } else { Marks::of_template(template) };
        let last = |marks: &&Marks| {
            let opened = marks.opens.iter().filter_map(|open| template.rfind(open)).max();
            opened.is_some_and(|at| !template[at..].contains(marks.close))
        };
        let taught = Self {
            calls: parser,
            marks,
            channels,
            citations: parser == Some(ToolCallParser::Cohere) || template.contains("<co: "),
            inside: marks.as_ref().is_some_and(last),
            answers: false,
            closed: false,
            schemas: Arc::default(),
        };
        if tools { taught } else { taught.without_calls() }
    }

    /// The style that leaves calls in the text.
    #[must_use]
    pub fn without_calls(self) -> Self {
        Self { calls: None, ..self }
    }

    /// This style for the reply to `prompt`: the prompt's end, not the template's source, says whether the
    /// reply begins within reasoning.
    #[must_use]
    pub fn after(self, prompt: &str) -> Self {
        let message = match self.channels {
            Some(Channels::Harmony) => Harmony::inside(prompt),
            Some(Channels::Inkling) => Inkling::inside(prompt),
            None => None,
        };
        let inside = match self.channels.is_some() {
            true => message == Some(PieceKind::Reasoning),
            false => self.marks.is_some_and(|marks| marks.are_open(prompt)),
        };
        let answers = message == Some(PieceKind::Content);
        let closed = self.marks.is_some_and(|marks| prompt.trim_end().ends_with(marks.close));
        Self { inside, answers, closed: closed || answers, ..self }
    }

    /// Adds what tools say of their arguments. Calls are written as `parser` says, where one is given; else
    /// as the template teaches, or else as the added tokens tell that `has` finds. Without tools calls stay text.
    #[must_use]
    pub fn with_tools(
        mut self,
        tools: &[Tool],
        parser: Option<ToolCallParser>,
        has: impl FnMut(&str) -> bool,
    ) -> Self {
        if !tools.is_empty() {
            self.calls = parser.or(self.calls).or_else(|| ToolCallParser::of_tokens(has));
            self.schemas = Arc::new(Schemas::of(tools));
            self.citations |= self.calls == Some(ToolCallParser::Cohere);
            self.marks = self.marks.or_else(|| self.calls.and_then(Marks::of_parser));
        }
        if let Some(channels) = parser.and_then(Channels::of) {
            (self.channels, self.marks) = (Some(channels), None);
        } else if self.channels.is_some_and(|channels| self.calls != Some(channels.parser())) {
            self.calls = None; // messages with channels have calls of their own
        }
        self
    }

    /// Leaves reasoning out: the reply is an answer from its first token on.
    #[must_use]
    pub fn without_reasoning(self) -> Self {
        Self { inside: false, answers: self.channels.is_some(), ..self }
    }

    /// How the end of reasoning shows; none where the template shows no marks.
    pub fn reasoning_end(&self) -> Option<ReasoningEnd> {
        match self.channels {
            Some(Channels::Harmony) => return Some(ReasoningEnd::Channel),
            Some(Channels::Inkling) => return Some(ReasoningEnd::Mark { opens: &[], close: inkling::TEXT }),
            None => {}
        }
        self.marks.map(|marks| ReasoningEnd::Mark { opens: marks.opens, close: marks.close })
    }

    /// Whether the reply begins within reasoning that the prompt has opened.
    pub fn begins_inside(&self) -> bool {
        self.inside
    }

    /// Whether a mark of the reply's own must come before its answer.
    pub fn waits_for_answer(&self) -> bool {
        self.inside || self.channels == Some(Channels::Inkling)
    }

    /// Whether the prompt has closed reasoning, so that none follows.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether the model writes the messages of gpt-oss, whose chats take what is said before a call for a thought.
    pub fn is_harmony(&self) -> bool {
        self.channels == Some(Channels::Harmony)
    }

    /// Whether the model writes messages with channels.
    pub fn has_channels(&self) -> bool {
        self.channels.is_some()
    }

    /// What must stand behind a prompt whose reply is an answer from its first token on.
    pub fn answer_header(&self) -> &'static str {
        match self.channels.filter(|_| !self.answers) {
            Some(Channels::Harmony) => harmony::FINAL,
            Some(Channels::Inkling) => inkling::TEXT,
            None => "",
        }
    }

    /// Whether the reply begins within an answer that the prompt has begun, of a model that writes messages with channels.
    pub fn begins_answer(&self) -> bool {
        self.answers
    }

    /// How calls are written; none where they are left in the text.
    pub fn parser(&self) -> Option<ToolCallParser> {
        self.calls
    }

    /// Marks around answers.
    pub fn answer_marks(&self) -> &'static [&'static str] {
        self.marks.map_or(&[], |marks| marks.answer)
    }

    /// Tokens that must stay visible in the text of a reply, special or not, for its parts to be found.
    pub fn markers(&self) -> Vec<&'static str> {
        let mut markers: Vec<_> = self.marks.into_iter().flat_map(Marks::all).collect();
        markers.extend(self.calls.map_or(&[][..], ToolCallParser::markers));
        markers.extend(self.channels.map_or(&[][..], |channels| channels.parser().markers()));
        markers
    }

    /// Takes a whole reply apart.
    pub fn parse(&self, text: &str) -> Parsed {
        let mut parts = Parts::default();
        self.splitter().take(text, true, &mut |event| parts.take(event));
        parts.into_parsed()
    }

    /// Takes a reply apart while it arrives.
    pub fn splitter(&self) -> Splitter {
        Splitter::new(self.clone())
    }
}

#[cfg(test)]
mod tests;
