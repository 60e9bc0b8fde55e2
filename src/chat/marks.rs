//! The marks that models put around their reasoning, and around what they answer.

use super::tool_calls::ToolCallParser;

/// The marks of a family.
#[derive(Debug, PartialEq, Eq)]
pub struct Marks {
    /// What a template that knows the family has in it; one of them is enough.
    known_by: &'static [&'static str],
    /// What reasoning may begin with. A model may leave it out where the prompt ends with it.
    pub opens: &'static [&'static str],
    /// What ends it.
    pub close: &'static str,
    /// What may stand around the answer, and is no part of it.
    pub answer: &'static [&'static str],
}

/// What ends the reasoning of Kimi K3, and the tokens that its marks are made of.
const KIMI_K3: &str = "<|close|>think<|sep|>";
const KIMI_K3_TOKENS: [&str; 3] = ["<|open|>", "<|close|>", "<|sep|>"];

/// Families by what their templates have in them, the more telling first.
const FAMILIES: [Marks; 13] = [
    // Command-A and Command-R7B
    Marks {
        known_by: &["<|START_THINKING|>", "<|START_RESPONSE|>"],
        opens: &["<|START_THINKING|>"],
        close: "<|END_THINKING|>",
        answer: &["<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"],
    },
    // Kimi K3, whose marks are three tokens each
    Marks {
        known_by: &["<|open|>think<|sep|>", "<|open|>response<|sep|>", "<|open|>"],
        opens: &["<|open|>think<|sep|>"],
        close: KIMI_K3,
        answer: &["<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>"],
    },
    // MiniMax M3
    Marks { known_by: &["<mm:think>"], opens: &["<mm:think>"], close: "</mm:think>", answer: &[] },
    // Magistral and Mistral's later models
    Marks { known_by: &["[THINK]"], opens: &["[THINK]"], close: "[/THINK]", answer: &[] },
    Marks { known_by: &["<seed:think>"], opens: &["<seed:think>"], close: "</seed:think>", answer: &[] },
    // Kimi-VL
    Marks { known_by: &["◁think▷"], opens: &["◁think▷"], close: "◁/think▷", answer: &[] },
    // Gemma 4
    Marks {
        known_by: &["<|channel>"],
        opens: &["<|channel>thought", "<|channel>"],
        close: "<channel|>",
        answer: &[],
    },
    Marks {
        known_by: &["<|inner_prefix|>"],
        opens: &["<|inner_prefix|>"],
        close: "<|inner_suffix|>",
        answer: &[],
    },
    Marks {
        known_by: &["<longcat_think>"],
        opens: &["<longcat_think>"],
        close: "</longcat_think>",
        answer: &[],
    },
    // EXAONE Deep
    Marks { known_by: &["<thought>"], opens: &["<thought>"], close: "</thought>", answer: &[] },
    // Granite 3.2
    Marks {
        known_by: &["Here is my thought process:", "Here's my thought process:"],
        opens: &["Here is my thought process:", "Here's my thought process:"],
        close: "Here is my response:",
        answer: &[],
    },
    // Granite 3.3 and ERNIE
    Marks {
        known_by: &["<response>"],
        opens: &["<think>"],
        close: "</think>",
        answer: &["<response>", "</response>"],
    },
    // DeepSeek R1, Qwen 3, GLM, Kimi-K2, MiniMax, Nemotron, Olmo and most others
    Marks { known_by: &["<think>", "</think>"], opens: &["<think>"], close: "</think>", answer: &[] },
];

impl Marks {
    /// The marks that the source of a template shows.
    pub fn of_template(template: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|marks| marks.known_by.iter().any(|mark| template.contains(mark)))
    }

    /// The marks that come with a format of calls.
    pub fn of_parser(parser: ToolCallParser) -> Option<&'static Self> {
        let kimi = |marks: &&Self| marks.close == KIMI_K3;
        FAMILIES.iter().find(kimi).filter(|_| parser == ToolCallParser::KimiK3)
    }

    /// All marks, and the tokens that they are made of.
    pub fn all(&self) -> impl Iterator<Item = &'static str> {
        let tokens = if self.close == KIMI_K3 { &KIMI_K3_TOKENS[..] } else { &[] };
        self.opens.iter().chain([&self.close]).chain(self.answer).chain(tokens).copied()
    }

    /// Whether a prompt ends within reasoning that it has opened.
    pub fn are_open(&self, prompt: &str) -> bool {
        let end = prompt.trim_end();
        self.opens.iter().any(|open| end.ends_with(open))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_show_their_marks() {
        for (template, close) in [
            ("{{ '<think>\\n' }}", "</think>"),
            ("{{ content.split('</think>')[-1] }}", "</think>"),
            ("[SYSTEM_PROMPT][THINK]", "[/THINK]"),
            ("<seed:think> {{ '<think>' }}", "</seed:think>"),
            ("<|START_THINKING|><think>", "<|END_THINKING|>"),
            ("◁think▷", "◁/think▷"),
            ("Here is my thought process: x", "Here is my response:"),
        ] {
            assert_eq!(Marks::of_template(template).map(|marks| marks.close), Some(close), "{template}");
        }
        assert_eq!(Marks::of_template("{{ messages }}"), None);
        let marks = Marks::of_template("<think>").unwrap();
        assert!(
            marks.are_open("<|im_start|>assistant\n<think>\n") && !marks.are_open("<think>\n\n</think>\n\n")
        );
    }
}
