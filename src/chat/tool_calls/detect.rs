//! The formats by name, and which of them a template or a vocabulary asks for.

use std::fmt;
use std::str::FromStr;

/// The format in which a model writes calls of tools, by the name that vLLM has for it (`--tool-call-parser`).
///
/// A session finds it in the checkpoint's chat template, or else in its added tokens;
/// [`Request::tool_call_parser`](crate::Request::tool_call_parser) names another.
///
/// ```
/// use amnesic::ToolCallParser;
///
/// let parser: ToolCallParser = "qwen3_coder".parse().expect("a parser of that name");
/// assert_eq!((parser, parser.name()), (ToolCallParser::Qwen3Coder, "qwen3_coder"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ToolCallParser {
    /// `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen 2.5 and 3, Granite 4, ERNIE 4.5.
    Hermes,
    /// `[TOOL_CALLS][{...}]`, or `[TOOL_CALLS]name[ARGS]{...}`.
    Mistral,
    /// `{"name": ..., "parameters": {...}}`, perhaps behind `<|python_tag|>`: Llama 3.1 to 3.3.
    Llama3Json,
    /// `[name(key=value)]`, perhaps between `<|python_start|>` and `<|python_end|>`.
    Llama4Pythonic,
    /// `[name(key=value)]`: Llama 3.2, ToolACE.
    Pythonic,
    /// `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`; also `qwen3_xml`.
    Qwen3Coder,
    /// That format between `<seed:tool_call>` and `</seed:tool_call>`.
    SeedOss,
    /// `<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>`; also `glm47`.
    Glm45,
    /// `<｜tool▁call▁begin｜>function<｜tool▁sep｜>name`, and JSON in a code fence: DeepSeek V3 and R1.
    DeepSeekV3,
    /// `<｜tool▁call▁begin｜>name<｜tool▁sep｜>{...}`.
    DeepSeekV31,
    /// `<｜DSML｜invoke name="name">` with parameters between tags.
    DeepSeekV32,
    /// `<|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{...}`.
    KimiK2,
    /// `<|tool_call|>[{...}]`: Granite 3.
    Granite,
    /// `<function_call>{...}`.
    Granite20bFc,
    /// `functools[{...}]`, or `<|tool_call|>[{...}]<|/tool_call|>`.
    Phi4MiniJson,
    /// `<|START_ACTION|>[{"tool_name": ..., "parameters": {...}}]<|END_ACTION|>`; also `cohere_command3` and
    /// `cohere_command4`.
    Cohere,
    /// `<start_function_call>call:name{key:<escape>value<escape>}<end_function_call>`.
    FunctionGemma,
    /// `<|tool_call>call:name{key:<|"|>value<|"|>}<tool_call|>`.
    Gemma4,
    /// `name(key=value)` in a code fence for `tool_code`.
    Gemma3Pythonic,
    /// `<minimax:tool_call><invoke name="name">` with parameters between tags.
    MinimaxM2,
    /// `<function_calls>name(key=value)</function_calls>`.
    Olmo3,
    /// `<|tool_call_start|>[name(key=value)]<|tool_call_end|>`.
    Lfm2,
    /// `<tool_calls>[{...}]</tool_calls>`; also `hunyuan_a13b`.
    Jamba,
    /// `<TOOLCALL>[{...}]</TOOLCALL>`.
    NemotronJson,
    /// `<|action_start|><|plugin|>{...}<|action_end|>`.
    Internlm,
    /// `<longcat_tool_call>{...}</longcat_tool_call>`.
    Longcat,
    /// gpt-oss: messages to `functions.name` on the channel `commentary`.
    OpenAi,
    /// `<｜DSML｜tool_calls>`, and in it what DeepSeek V3.2 writes.
    DeepSeekV4,
    /// `<|open|>call tool="name"<|sep|>` with arguments that are elements.
    KimiK3,
    /// `<steptml:invoke name="name">` with parameters between tags.
    Step3,
    /// `]<]minimax[>[<invoke name="name">` with parameters that are elements, nested ones too.
    MinimaxM3,
    /// `<|tools_prefix|>[{"name": {...}}]<|tools_suffix|>`.
    Apertus,
    /// `<|content_invoke_tool_json|>{"name": ..., "args": {...}}`, a message among others.
    Inkling,
}

use ToolCallParser as P;

/// Each with its name and its other names.
const NAMES: [(P, &str, &[&str]); 33] = [
    (P::Hermes, "hermes", &["granite4", "ernie45"]),
    (P::Mistral, "mistral", &[]),
    (P::Llama3Json, "llama3_json", &["llama4_json"]),
    (P::Llama4Pythonic, "llama4_pythonic", &[]),
    (P::Pythonic, "pythonic", &[]),
    (P::Qwen3Coder, "qwen3_coder", &["qwen3_xml", "mimo", "step3p5"]),
    (P::SeedOss, "seed_oss", &[]),
    (P::Glm45, "glm45", &["glm47"]),
    (P::DeepSeekV3, "deepseek_v3", &["deepseek_r1"]),
    (P::DeepSeekV31, "deepseek_v31", &[]),
    (P::DeepSeekV32, "deepseek_v32", &[]),
    (P::KimiK2, "kimi_k2", &[]),
    (P::Granite, "granite", &[]),
    (P::Granite20bFc, "granite-20b-fc", &[]),
    (P::Phi4MiniJson, "phi4_mini_json", &[]),
    (P::Cohere, "cohere", &["cohere_command3", "cohere_command4"]),
    (P::FunctionGemma, "functiongemma", &[]),
    (P::Gemma4, "gemma4", &[]),
    (P::Gemma3Pythonic, "gemma3_pythonic", &[]),
    (P::MinimaxM2, "minimax_m2", &[]),
    (P::Olmo3, "olmo3", &[]),
    (P::Lfm2, "lfm2", &[]),
    (P::Jamba, "jamba", &["hunyuan_a13b"]),
    (P::NemotronJson, "nemotron_json", &[]),
    (P::Internlm, "internlm", &[]),
    (P::Longcat, "longcat", &[]),
    (P::OpenAi, "openai", &["gpt_oss"]),
    (P::DeepSeekV4, "deepseek_v4", &[]),
    (P::KimiK3, "kimi_k3", &[]),
    (P::Step3, "step3", &[]),
    (P::MinimaxM3, "minimax_m3", &[]),
    (P::Apertus, "apertus", &[]),
    (P::Inkling, "inkling", &[]),
];

/// What a template that teaches a format has in it, the more telling first. Those of a row are all needed.
const TAUGHT: [(&[&str], P); 35] = [
    (&["<|channel|>", "<|message|>"], P::OpenAi),
    (&["<|tool_calls_section_begin|>"], P::KimiK2),
    (&["<|content_invoke_tool_json|>"], P::Inkling),
    (&["<|open|>", "<|sep|>"], P::KimiK3),
    (&["<steptml:invoke"], P::Step3),
    (&["]<]minimax[>["], P::MinimaxM3),
    (&["<|tools_prefix|>"], P::Apertus),
    (&["DSML", "tool_calls>"], P::DeepSeekV4),
    (&["DSML"], P::DeepSeekV32),
    (&["<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>", "```json"], P::DeepSeekV3),
    (&["<｜tool▁calls▁begin｜>"], P::DeepSeekV31),
    (&["<seed:tool_call>"], P::SeedOss),
    (&["<minimax:tool_call>"], P::MinimaxM2),
    (&["<longcat_tool_call>"], P::Longcat),
    (&["<start_function_call>"], P::FunctionGemma),
    (&["<|tool_call>", "call:"], P::Gemma4),
    (&["<|START_ACTION|>"], P::Cohere),
    (&["Action:", "\"tool_name\""], P::Cohere),
    (&["<arg_key>"], P::Glm45),
    (&["<function=", "<parameter="], P::Qwen3Coder),
    (&["[TOOL_CALLS]"], P::Mistral),
    (&["<|tool_call_start|>"], P::Lfm2),
    (&["<TOOLCALL>"], P::NemotronJson),
    (&["<tool_calls>"], P::Jamba),
    (&["<function_calls>"], P::Olmo3),
    (&["<|action_start|>"], P::Internlm),
    (&["functools"], P::Phi4MiniJson),
    (&["<|tool|>", "<|/tool|>"], P::Phi4MiniJson),
    (&["<function_call>"], P::Granite20bFc),
    (&["<|tool_call|>"], P::Granite),
    (&["<tool_call>"], P::Hermes),
    (&["<|python_start|>"], P::Llama4Pythonic),
    (&["tool_code"], P::Gemma3Pythonic),
    (&["func_name1(params_name1=params_value1"], P::Pythonic),
    (&["<|python_tag|>"], P::Llama3Json),
];

/// Added tokens that say how calls are written where the template does not.
const TOKENS: [(&str, P); 21] = [
    ("<|tool_calls_section_begin|>", P::KimiK2),
    ("<｜tool▁calls▁begin｜>", P::DeepSeekV31),
    ("<｜DSML｜", P::DeepSeekV32),
    ("<|content_invoke_tool_json|>", P::Inkling),
    ("<|open|>", P::KimiK3),
    ("<｜tool_calls_begin｜>", P::Step3),
    ("]<]minimax[>[", P::MinimaxM3),
    ("<|tools_prefix|>", P::Apertus),
    ("<seed:tool_call>", P::SeedOss),
    ("<minimax:tool_call>", P::MinimaxM2),
    ("<start_function_call>", P::FunctionGemma),
    ("<|tool_call>", P::Gemma4),
    ("<|START_ACTION|>", P::Cohere),
    ("<arg_key>", P::Glm45),
    ("<|constrain|>", P::OpenAi),
    ("[TOOL_CALLS]", P::Mistral),
    ("<|tool_call_start|>", P::Lfm2),
    ("<|/tool_call|>", P::Phi4MiniJson),
    ("<|tool_call|>", P::Granite),
    ("<|python_start|>", P::Llama4Pythonic),
    ("<tool_call>", P::Hermes),
];

impl ToolCallParser {
    /// The name that vLLM has for it, where it has one.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(parser, ..)| *parser == self).map_or("", |(_, name, _)| name)
    }

    /// The format that the source of a template teaches.
    pub(crate) fn of_template(template: &str) -> Option<Self> {
        let taught = |row: &&(&[&str], P)| row.0.iter().all(|part| template.contains(part));
        if let Some((_, parser)) = TAUGHT.iter().find(taught) {
            return Some(*parser);
        }
        // Llama's templates describe the object in the words of Meta's prompts; Llama 3.2's others ask for Python.
        let described = template.contains("function name") && template.contains("parameters");
        let pythonic = template.contains("func_name") && template.contains("[func");
        if pythonic { Some(Self::Pythonic) } else { described.then_some(Self::Llama3Json) }
    }

    /// The format that a vocabulary with these added tokens is for.
    pub(crate) fn of_tokens(mut has: impl FnMut(&str) -> bool) -> Option<Self> {
        TOKENS.iter().find(|(token, _)| has(token)).map(|(_, parser)| *parser)
    }
}

impl fmt::Display for ToolCallParser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No parser has that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownParser;

impl fmt::Display for UnknownParser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("one of ")?;
        NAMES
            .iter()
            .enumerate()
            .try_for_each(|(index, (_, name, _))| write!(f, "{}{name}", if index == 0 { "" } else { ", " }))
    }
}

impl std::error::Error for UnknownParser {}

impl FromStr for ToolCallParser {
    type Err = UnknownParser;

    fn from_str(name: &str) -> Result<Self, UnknownParser> {
        let named = |row: &&(P, &str, &[&str])| row.1 == name || row.2.contains(&name);
        NAMES.iter().find(named).map(|(parser, ..)| *parser).ok_or(UnknownParser)
    }
}
