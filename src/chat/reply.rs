//! The text of a reply, taken apart: content, reasoning, calls of tools; at once or while it arrives.

use std::fmt;

use super::message::ToolCall;
use super::tool_calls::{self, CLOSE, OPEN, PYTHON, Syntax, Tagged};
use crate::memory::secret::Secret;

const THINK: &str = "<think>";
const END_THINK: &str = "</think>";
/// Closing tags within texts of one call; more are no call, so that a reply is not read over and over.
const MAX_FALSE_ENDS: usize = 16;

/// How replies are written, as far as their template shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    calls: Syntax,
    reasoning: bool,
    /// The prompt ends with an opened `<think>`.
    inside: bool,
}

impl Style {
    /// The style that the source of a template teaches; without `tools`, calls are left in the text.
    pub fn of(template: &str, tools: bool) -> Self {
        let last_think = template.rfind(THINK);
        Self {
            calls: if tools { Syntax::of(template) } else { Syntax::None },
            reasoning: template.contains(THINK) || template.contains(END_THINK),
            inside: last_think.is_some_and(|at| !template[at..].contains(END_THINK)),
        }
    }

    /// The same style for the reply to `prompt`: the prompt's end, not the template's source, says whether the
    /// reply begins within reasoning.
    #[must_use]
    pub fn after(self, prompt: &str) -> Self {
        Self { inside: self.reasoning && prompt.trim_end().ends_with(THINK), ..self }
    }

    /// See [`super::Templates::markers`].
    pub fn markers(&self) -> Vec<&'static str> {
        let thoughts: &[&str] = if self.reasoning { &[THINK, END_THINK] } else { &[] };
        [self.calls.markers(), thoughts].concat()
    }

    /// Takes a whole reply apart.
    pub fn parse(&self, text: &str) -> Parsed {
        let (mut content, mut reasoning) = (Secret::<Vec<u8>>::default(), Secret::<Vec<u8>>::default());
        let mut tool_calls = Vec::new();
        let mut splitter = self.splitter();
        splitter.held.extend(text.as_bytes());
        splitter.read(true, &mut |event| match event {
            Event::Piece(PieceKind::Content, text) => content.extend(text.as_bytes()),
            Event::Piece(PieceKind::Reasoning, text) => reasoning.extend(text.as_bytes()),
            Event::Call(call) => tool_calls.push(call),
        });
        let reasoning = into_text(reasoning);
        Parsed {
            content: into_text(content),
            reasoning: (!reasoning.expose().is_empty()).then_some(reasoning),
            tool_calls: tool_calls::number(tool_calls),
        }
    }

    /// Takes a reply apart while it arrives.
    pub fn splitter(&self) -> Splitter {
        Splitter {
            style: *self,
            state: if self.inside { State::Opened } else { State::Start },
            held: Secret::default(),
            gap: Secret::default(),
            searched: 0,
            false_ends: 0,
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
    pub content: Secret<String>,
    /// What it thought before; none where that is empty.
    pub reasoning: Option<Secret<String>>,
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
}

/// Something that a splitter found.
enum Event<'a> {
    Piece(PieceKind, &'a str),
    Call(ToolCall),
}

type Sink<'a> = &'a mut dyn FnMut(Event<'_>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but white space so far.
    Start,
    /// In reasoning that the prompt opened or the reply just has; white space is dropped.
    Opened,
    Reasoning,
    /// Behind reasoning or a call; white space is dropped.
    Behind,
    Text,
    /// What is held begins with a call.
    Call,
}

/// A reply while it arrives: gives content and reasoning as soon as no tag can begin in them, holds calls back.
///
/// The pieces of a kind, joined, are what [`Style::parse`] gives for the whole text, wherever it was cut.
pub struct Splitter {
    style: Style,
    state: State,
    /// Text not given yet; always whole characters.
    held: Secret<Vec<u8>>,
    /// White space before a call: content if content follows the call.
    gap: Secret<Vec<u8>>,
    /// How far `held` has been searched for the call's end.
    searched: usize,
    false_ends: usize,
}

impl Splitter {
    /// Takes the reply's next `text`, and gives what is certain by now.
    pub fn push(&mut self, text: &str, give: &mut dyn FnMut(PieceKind, &str)) {
        self.held.extend(text.as_bytes());
        self.read(false, &mut pieces(give));
    }

    /// The reply has ended: gives what was held back, but for calls.
    pub fn finish(&mut self, give: &mut dyn FnMut(PieceKind, &str)) {
        self.read(true, &mut pieces(give));
    }

    fn read(&mut self, end: bool, sink: Sink<'_>) {
        while !self.held.expose().is_empty() {
            let goes_on = match self.state {
                State::Start => self.start(end),
                State::Opened => self.opened(end),
                State::Reasoning => self.reasoning(end, sink),
                State::Behind => self.behind(end),
                State::Text => self.text(end, sink),
                State::Call => self.call(end, sink),
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Whether reasoning, a call or text comes first; white space before text is text.
    fn start(&mut self, end: bool) -> bool {
        let text = as_text(&self.held);
        let begun = text.trim_start();
        let blank = text.len() - begun.len();
        if self.style.reasoning && begun.starts_with(THINK) {
            self.held.drain_front(blank + THINK.len());
            return self.enter(State::Opened);
        }
        if !end && self.style.reasoning && THINK.starts_with(begun) {
            return false;
        }
        self.text_or_bare_call(end)
    }

    /// Drops white space, and a `<think>` that the model writes once more.
    fn opened(&mut self, end: bool) -> bool {
        self.skip_blank();
        let text = as_text(&self.held);
        if text.starts_with(THINK) {
            self.held.drain_front(THINK.len());
            return true;
        }
        if !end && THINK.starts_with(text) {
            return false;
        }
        self.enter(State::Reasoning)
    }

    fn reasoning(&mut self, end: bool, sink: Sink<'_>) -> bool {
        let text = as_text(&self.held);
        if let Some(at) = text.find(END_THINK) {
            let given = text[..at].trim_end().len();
            self.give(given, PieceKind::Reasoning, sink);
            self.held.drain_front(at - given + END_THINK.len());
            return self.enter(State::Behind);
        }
        let certain = text.len() - if end { 0 } else { partial(text, END_THINK) };
        let given = text[..certain].trim_end().len();
        self.give(given, PieceKind::Reasoning, sink);
        if end {
            self.held.truncate(0);
        }
        false
    }

    fn behind(&mut self, end: bool) -> bool {
        self.skip_blank();
        if self.held.expose().is_empty() {
            return false;
        }
        self.text_or_bare_call(end)
    }

    /// Llama's calls have no tag: a reply that begins with an object may be one.
    fn text_or_bare_call(&mut self, end: bool) -> bool {
        let begun = as_text(&self.held).trim_start();
        if self.style.calls == Syntax::Bare {
            if begun.starts_with('{') || begun.starts_with(PYTHON) {
                return self.enter(State::Call);
            }
            if !end && PYTHON.starts_with(begun) {
                return false;
            }
        }
        self.enter(State::Text)
    }

    fn text(&mut self, end: bool, sink: Sink<'_>) -> bool {
        let text = as_text(&self.held);
        let opening = self.style.calls.opening();
        if let Some(at) = opening.and_then(|opening| text.find(opening)) {
            let given = text[..at].trim_end().len();
            self.give_content(given, sink);
            self.gap.extend(&self.held.expose()[..at - given]);
            self.held.drain_front(at - given);
            return self.enter(State::Call);
        }
        let given = match opening {
            Some(opening) if !end => text[..text.len() - partial(text, opening)].trim_end().len(),
            _ => text.len(),
        };
        self.give_content(given, sink);
        false
    }

    fn call(&mut self, end: bool, sink: Sink<'_>) -> bool {
        if self.style.calls == Syntax::Tagged {
            let from = self.searched.max(OPEN.len());
            if let Some(at) = find(self.held.expose(), CLOSE.as_bytes(), from) {
                return self.tagged_call(at, sink);
            }
            self.searched = self.held.expose().len().saturating_sub(CLOSE.len() - 1);
        }
        if end {
            let whole = self.held.expose().len();
            match self.style.calls.read_all(as_text(&self.held)) {
                Some(calls) => {
                    calls.into_iter().for_each(|call| sink(Event::Call(call)));
                    self.held.truncate(0);
                }
                None => self.give_content(whole, sink),
            }
        }
        false
    }

    /// The call whose closing tag is at `at`, or seems to be.
    fn tagged_call(&mut self, at: usize, sink: Sink<'_>) -> bool {
        let body = &as_text(&self.held)[OPEN.len()..at];
        let behind = at + CLOSE.len();
        match tool_calls::read_tagged(body) {
            Tagged::Call(call) => {
                sink(Event::Call(call));
                self.held.drain_front(behind);
                self.enter(State::Behind)
            }
            Tagged::Incomplete if self.false_ends < MAX_FALSE_ENDS => {
                self.false_ends += 1;
                self.searched = behind;
                true
            }
            Tagged::Incomplete | Tagged::Malformed => {
                self.give_content(behind, sink);
                self.enter(State::Text)
            }
        }
    }

    fn enter(&mut self, state: State) -> bool {
        (self.state, self.searched, self.false_ends) = (state, 0, 0);
        true
    }

    fn skip_blank(&mut self) {
        let text = as_text(&self.held);
        let blank = text.len() - text.trim_start().len();
        self.held.drain_front(blank);
    }

    /// Gives the first `len` bytes held as content, behind the white space that turns out to be content with them.
    fn give_content(&mut self, len: usize, sink: Sink<'_>) {
        if len > 0 {
            if !self.gap.expose().is_empty() {
                sink(Event::Piece(PieceKind::Content, as_text(&self.gap)));
                self.gap.truncate(0);
            }
            self.give(len, PieceKind::Content, sink);
        }
    }

    fn give(&mut self, len: usize, kind: PieceKind, sink: Sink<'_>) {
        if len > 0 {
            sink(Event::Piece(kind, &as_text(&self.held)[..len]));
            self.held.drain_front(len);
        }
    }
}

impl fmt::Debug for Splitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Splitter")
            .field("style", &self.style)
            .field("held_bytes", &self.held.expose().len())
            .finish_non_exhaustive()
    }
}

fn pieces(give: &mut dyn FnMut(PieceKind, &str)) -> impl FnMut(Event<'_>) {
    move |event| {
        if let Event::Piece(kind, text) = event {
            give(kind, text);
        }
    }
}

fn as_text(bytes: &Secret<Vec<u8>>) -> &str {
    std::str::from_utf8(bytes.expose()).expect("texts are joined, and cut at tags and white space only")
}

fn into_text(bytes: Secret<Vec<u8>>) -> Secret<String> {
    Secret::new(String::from_utf8(bytes.into_exposed()).expect("pieces are whole characters"))
}

/// Length of the longest end of `text` that may become `tag`.
fn partial(text: &str, tag: &str) -> usize {
    (1..tag.len()).rev().find(|&len| text.as_bytes().ends_with(&tag.as_bytes()[..len])).unwrap_or(0)
}

fn find(bytes: &[u8], tag: &[u8], from: usize) -> Option<usize> {
    let at = bytes.get(from..)?.windows(tag.len()).position(|window| window == tag)?;
    Some(from + at)
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
        let reasoning = parsed.reasoning.map_or_else(|| "-".to_owned(), Secret::into_exposed);
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
        for content in
            ["{\"name\": \"f\"}", "{}", "{", &format!("{one} and"), &format!("See {one}"), "<|python"]
        {
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
            &["call_0 f {}", "call_1 f {}", "call_2 g {}"],
        );
        check(
            MISTRAL,
            "Hi [TOOL_CALLS]f[ARGS]{\"a\": 1}[TOOL_CALLS]g[CALL_ID]123456789[ARGS]{}",
            "Hi",
            "-",
            &["call_0 f {\"a\": 1}", "123456789 g {}"],
        );
        for content in
            ["[TOOL_CALLS]", "[TOOL_CALLS][]", "[TOOL_CALLS]f{}", "[TOOL_CALLS]f[ARGS]1", "x [TOOL"]
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
    fn pieces_are_the_same_wherever_a_reply_is_cut() {
        let parts = [
            "<think>",
            "</think>",
            "<tool_call>",
            "</tool_call>",
            "{\"name\": \"f\", \"arguments\": {}}",
            "[TOOL_CALLS]",
            "[ARGS]",
            "{}",
            "[",
            "]",
            "<|python_tag|>",
            ";",
            "\n",
            " ",
            "é",
            "text",
            "<",
            "\"",
        ];
        // xorshift64: the same replies on every run.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        for round in 0..20_000 {
            let reply: String = (0..random(9)).map(|_| parts[random(parts.len())]).collect();
            let template = [HERMES, LLAMA, MISTRAL, R1, ""][round % 5];
            let style = Style::of(&format!("{template}{}", ["", "</think>"][random(2)]), true);
            let parsed = style.parse(&reply);
            let (mut content, mut reasoning) = (String::new(), String::new());
            let mut splitter = style.splitter();
            let mut give = |kind, text: &str| {
                assert!(!text.is_empty());
                if kind == PieceKind::Content { content.push_str(text) } else { reasoning.push_str(text) }
            };
            let mut rest = reply.as_str();
            while !rest.is_empty() {
                let at = (1 + random(6)..).find(|&at| at >= rest.len() || rest.is_char_boundary(at)).unwrap();
                let (piece, after) = rest.split_at(at.min(rest.len()));
                splitter.push(piece, &mut give);
                rest = after;
            }
            splitter.finish(&mut give);
            assert_eq!(content, *parsed.content.expose(), "{reply:?}");
            let expected = parsed.reasoning.map(Secret::into_exposed).unwrap_or_default();
            assert_eq!(reasoning, expected, "{reply:?}");
        }
    }

    #[test]
    fn pieces_come_as_soon_as_they_are_certain() {
        let mut splitter = Style::of(HERMES, true).splitter();
        let mut push = |text: &str| {
            let mut given = String::new();
            splitter.push(text, &mut |_, text| given.push_str(text));
            given
        };
        assert_eq!(push("<thi"), "");
        assert_eq!(push("nk>a b"), "a b");
        assert_eq!(push("c</th"), "c");
        assert_eq!(push("is"), "</this");
        assert_eq!(push("</think>d"), "d");
        assert_eq!(push(" <tool_call>"), "");
        assert_eq!(push("{\"name\": \"canary\""), "");
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
