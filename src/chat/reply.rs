//! How replies are written, and whole replies taken apart: content, reasoning, calls of tools.

use std::fmt;
use std::sync::Arc;

use super::harmony::{self, Harmony};
use super::marks::Marks;
use super::message::{Tool, ToolCall};
use super::splitter::{Event, Splitter};
use super::tool_calls::{CallPart, Schemas, ToolCallParser};
use crate::memory::secret::Secret;

/// How replies are written, as far as their template shows.
#[derive(Clone, Debug)]
pub struct Style {
    /// How calls are written; none where they are left in the text.
    pub(super) calls: Option<ToolCallParser>,
    /// The marks of reasoning.
    pub(super) marks: Option<&'static Marks>,
    /// The model writes messages with channels.
    pub(super) harmony: bool,
    /// The prompt ends within reasoning that it has opened.
    pub(super) inside: bool,
    /// The prompt ends within an answer that it has begun, of a model that writes messages with channels.
    pub(super) answers: bool,
    /// The prompt ends with reasoning that it has closed: thinking is switched off.
    pub(super) closed: bool,
    /// What arguments are, where a format does not say.
    pub(super) schemas: Arc<Schemas>,
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
        let harmony = parser == Some(ToolCallParser::OpenAi);
        let marks = if harmony { None } else { Marks::of_template(template) };
        let last = |marks: &&Marks| {
            let opened = marks.opens.iter().filter_map(|open| template.rfind(open)).max();
            opened.is_some_and(|at| !template[at..].contains(marks.close))
        };
        let taught = Self {
            calls: parser,
            marks,
            harmony,
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

    /// The same style for the reply to `prompt`: the prompt's end, not the template's source, says whether the
    /// reply begins within reasoning.
    #[must_use]
    pub fn after(self, prompt: &str) -> Self {
        let message = self.harmony.then(|| Harmony::inside(prompt)).flatten();
        let inside = match self.harmony {
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
        }
        if parser == Some(ToolCallParser::OpenAi) {
            (self.harmony, self.marks) = (true, None);
        } else if self.harmony && self.calls != Some(ToolCallParser::OpenAi) {
            self.calls = None; // messages with channels have calls of their own
        }
        self
    }

    /// Leaves reasoning out: the reply is an answer from its first token on.
    #[must_use]
    pub fn without_reasoning(self) -> Self {
        Self { inside: false, answers: self.harmony, ..self }
    }

    /// How the end of reasoning shows; none where the template shows no marks.
    pub fn reasoning_end(&self) -> Option<ReasoningEnd> {
        if self.harmony {
            return Some(ReasoningEnd::Channel);
        }
        self.marks.map(|marks| ReasoningEnd::Mark { opens: marks.opens, close: marks.close })
    }

    /// Whether the reply begins within reasoning that the prompt has opened.
    pub fn begins_inside(&self) -> bool {
        self.inside
    }

    /// Whether the prompt has closed reasoning, so that none follows.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether the model writes messages with channels.
    pub fn has_channels(&self) -> bool {
        self.harmony
    }

    /// What must stand behind a prompt whose reply is an answer from its first token on.
    pub fn answer_header(&self) -> &'static str {
        if self.harmony && !self.answers { harmony::FINAL } else { "" }
    }

    /// Whether calls are written as Hermes and Qwen write them: JSON between `<tool_call>` and `</tool_call>`.
    pub fn calls_are_tagged_json(&self) -> bool {
        self.calls == Some(ToolCallParser::Hermes)
    }

    /// Tokens that must stay visible in the text of a reply, special or not, for its parts to be found.
    pub fn markers(&self) -> Vec<&'static str> {
        let mut markers: Vec<_> = self.marks.into_iter().flat_map(Marks::all).collect();
        markers.extend(self.calls.map_or(&[][..], ToolCallParser::markers));
        if self.harmony {
            markers.extend(ToolCallParser::OpenAi.markers());
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    const HERMES: &str = "<tool_call> <think> </think>";
    const LLAMA: &str = "<|python_tag|>";
    const MISTRAL: &str = "[TOOL_CALLS]";
    const R1: &str = "{{ content.split('</think>')[-1] }}{{ '<|Assistant|><think>\\n' }}";

    /// Content, reasoning (`-` where there is none), and `id name arguments` of each call.
    fn parse(template: &str, reply: &str) -> (String, String, Vec<String>) {
        let parsed = Style::of(template, true).parse(reply);
        let call = |call: &ToolCall| format!("{} {} {}", call.id(), call.name(), call.arguments());
        let calls = parsed.tool_calls.iter().map(call).collect();
        let reasoning = parsed.reasoning.map_or_else(|| "-".to_owned(), Secret::<str>::into_exposed);
        (parsed.content.into_exposed(), reasoning, calls)
    }

    fn check(template: &str, reply: &str, content: &str, reasoning: &str, calls: &[&str]) {
        let (found, thought, called) = parse(template, reply);
        assert_eq!((found.as_str(), thought.as_str()), (content, reasoning), "{reply}");
        assert_eq!(called, calls, "{reply}");
    }

    #[test]
    fn hermes_calls() {
        let one = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1.50}}\n</tool_call>";
        check(HERMES, one, "", "-", &["call_0 f {\"a\": 1.50}"]);
        check(
            HERMES,
            &format!("Sure.\n{one}\n{one}\n"),
            "Sure.",
            "-",
            &["call_0 f {\"a\": 1.50}", "call_1 f {\"a\": 1.50}"],
        );
        check(HERMES, &format!("A\n{one}\n\nB "), "A\nB ", "-", &["call_0 f {\"a\": 1.50}"]);
        check(HERMES, &format!("<think>\nhm\n</think>\n\n{one}"), "", "hm", &["call_0 f {\"a\": 1.50}"]);
        check(HERMES, "<tool_call>{\"name\": \"f\"}", "", "-", &["call_0 f {}"]);
        let inner = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"</tool_call>\"}}</tool_call>";
        check(HERMES, inner, "", "-", &["call_0 f {\"a\": \"</tool_call>\"}"]);
        for malformed in [
            "a <tool_call>no</tool_call> b",
            "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>",
            "<tool_call>{\"name\": \"\"}</tool_call>",
            "a\n<tool_call>{\"name\": \"f\", \"arg",
            "</tool_call> <tool",
            "  ",
        ] {
            check(HERMES, malformed, malformed, "-", &[]);
        }
        check(
            HERMES,
            &format!("<tool_call>no</tool_call>\n{one}"),
            "<tool_call>no</tool_call>",
            "-",
            &["call_0 f {\"a\": 1.50}"],
        );
        assert_eq!(Style::of(HERMES, false).parse(one).content.expose(), one);
    }

    #[test]
    fn llama_calls() {
        let one = "{\"name\": \"f\", \"parameters\": {\"a\": \"x\"}}";
        check(LLAMA, one, "", "-", &["call_0 f {\"a\": \"x\"}"]);
        check(
            LLAMA,
            &format!(" <|python_tag|>{one}; {one} ;"),
            "",
            "-",
            &["call_0 f {\"a\": \"x\"}", "call_1 f {\"a\": \"x\"}"],
        );
        check(LLAMA, &format!("Sure.\n<|python_tag|>{one}"), "Sure.", "-", &["call_0 f {\"a\": \"x\"}"]);
        // vLLM's tests have calls within text
        check(LLAMA, &format!("{one} and"), "and", "-", &["call_0 f {\"a\": \"x\"}"]);
        check(LLAMA, &format!("See {one}"), "See", "-", &["call_0 f {\"a\": \"x\"}"]);
        for content in ["{\"name\": \"f\"}", "{}", "{", "See {this} or {\"that\": 1}", "<|python"] {
            check(LLAMA, content, content, "-", &[]);
        }
    }

    #[test]
    fn mistral_calls() {
        check(
            MISTRAL,
            "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {}, \"id\": \"abcdefghi\"}]",
            "",
            "-",
            &["abcdefghi f {}"],
        );
        let same = "{\"name\": \"f\", \"arguments\": {}, \"id\": \"call_0\"}";
        check(
            MISTRAL,
            &format!("[TOOL_CALLS][{same},{same},{{\"name\": \"g\"}}]"),
            "",
            "-",
            &["call_0 f {}", "call00000 f {}", "call00001 g {}"],
        );
        check(
            MISTRAL,
            "Hi [TOOL_CALLS]f[ARGS]{\"a\": 1}[TOOL_CALLS]g[CALL_ID]123456789[ARGS]{}[TOOL_CALLS]h{}",
            "Hi",
            "-",
            &["call00000 f {\"a\": 1}", "123456789 g {}", "call00001 h {}"],
        );
        for content in ["[TOOL_CALLS]", "[TOOL_CALLS][]", "[TOOL_CALLS]f", "[TOOL_CALLS]f[ARGS]1", "x [TOOL"]
        {
            check(MISTRAL, content, content, "-", &[]);
        }
    }

    #[test]
    fn reasoning() {
        check(HERMES, "<think>\n\n</think>\n\nHi", "Hi", "-", &[]);
        check(HERMES, "\n<think> a\n b </think>Hi <think>no</think>", "Hi <think>no</think>", "a\n b", &[]);
        check(HERMES, "<think>cut", "", "cut", &[]);
        check(HERMES, "Hi </think> there", "Hi </think> there", "-", &[]);
        check(R1, "hm\n</think>\n\nHi\n", "Hi\n", "hm", &[]);
        check(R1, "<think>\nhm</think>Hi", "Hi", "hm", &[]);
        check("", "<think>a</think>b", "<think>a</think>b", "-", &[]);
        assert!(Style::of(HERMES, true).after("<|im_start|>assistant\n<think>\n").inside);
        assert!(!Style::of(R1, true).after("<think>\n\n</think>\n\n").inside);
        assert!(!Style::of("", true).after("<think>").inside);
    }

    #[test]
    fn pieces_come_as_soon_as_they_are_certain() {
        let mut splitter = Style::of(HERMES, true).splitter();
        let mut push = |text: &str| {
            let mut given = String::new();
            splitter.push(text, &mut |event| match event {
                Event::Piece(_, text) => given.push_str(text),
                Event::Call(_, CallPart::Begin { id, name }) => given.push_str(&format!("[{id} {name}]")),
                Event::Call(_, CallPart::Arguments(text)) => given.push_str(text),
                Event::Call(_, CallPart::End) => given.push_str("[end]"),
                Event::Call(_, CallPart::Retracted) => given.push_str("[none]"),
            });
            given
        };
        assert_eq!(push("<thi"), "");
        assert_eq!(push("nk>a b"), "a b");
        assert_eq!(push("c</th"), "c");
        assert_eq!(push("is"), "</this");
        assert_eq!(push("</think>d"), "d");
        assert_eq!(push(" <tool_call>"), "");
        assert_eq!(push("{\"name\": \"canary\", \"arguments\": "), "");
        assert_eq!(push("{\"a\": \"x"), "[call_0 canary]{\"a\": \"x");
        assert_eq!(push("y\"}"), "y\"}");
        assert_eq!(push("}"), "[end]");
        assert_eq!(
            push("</tool_call><tool_call>{\"name\": \"f\", \"arguments\": {\"a\": "),
            "[call_1 f]{\"a\": "
        );
        assert_eq!(
            push("1 2}}</tool_call>"),
            "1 2}[none] <tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1 2}}</tool_call>"
        );
        assert!(!format!("{splitter:?}").contains("canary"));
    }

    #[test]
    fn hostile_replies_end() {
        let ends = format!("<tool_call>{{\"name\": \"{}", "</tool_call>".repeat(100_000));
        assert_eq!(Style::of(HERMES, true).parse(&ends).content.expose(), &ends);
        let deep = format!("<tool_call>{{\"name\": \"f\", \"arguments\": {}", "{\"a\":".repeat(100_000));
        assert_eq!(Style::of(HERMES, true).parse(&deep).content.expose(), &deep);
    }
}
