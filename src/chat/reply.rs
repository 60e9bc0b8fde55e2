//! How replies are written, and whole replies taken apart: content, reasoning, calls of tools.

use std::fmt;

use super::message::ToolCall;
use super::splitter::{Event, Splitter};
use super::tool_calls::{self, Syntax};
use crate::memory::secret::Secret;

pub const THINK: &str = "<think>";
pub const END_THINK: &str = "</think>";

/// How replies are written, as far as their template shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    pub(super) calls: Syntax,
    pub(super) reasoning: bool,
    /// The prompt ends with an opened `<think>`.
    pub(super) inside: bool,
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

    /// Whether calls are written as Hermes and Qwen write them: JSON between `<tool_call>` and `</tool_call>`.
    pub fn calls_are_tagged_json(&self) -> bool {
        self.calls == Syntax::Tagged
    }

    /// See [`super::Templates::markers`].
    pub fn markers(&self) -> Vec<&'static str> {
        let thoughts: &[&str] = if self.reasoning { &[THINK, END_THINK] } else { &[] };
        [self.calls.markers(), thoughts].concat()
    }

    /// Takes a whole reply apart.
    pub fn parse(&self, text: &str) -> Parsed {
        let (mut content, mut reasoning) = (Secret::<[u8]>::default(), Secret::<[u8]>::default());
        let mut tool_calls = Vec::new();
        self.splitter().read_whole(text, &mut |event| match event {
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
        Splitter::new(*self)
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
            let expected = parsed.reasoning.map(Secret::<str>::into_exposed).unwrap_or_default();
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
