//! How each format is read: what begins its calls, the tokens that it needs to see, and its reader.

use std::sync::Arc;

use super::CallParser;
use super::block::{self, Block};
use super::detect::ToolCallParser;
use super::elements::{self, Elements};
use super::emit::IdForm;
use super::gemma::{self, Gemma};
use super::glm::Glm;
use super::headed::{self, Headed, MISTRAL, MISTRAL_ARGUMENTS, MISTRAL_ID, Mistral};
use super::python::{self, Pythonic};
use super::types::Schemas;
use super::xml::{self, Xml};
use super::xtml::{self, Xtml};
use crate::chat::inkling;

impl ToolCallParser {
    /// What begins a call wherever it stands.
    pub(crate) fn openings(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => block::HERMES.opens,
            Self::Mistral => &[MISTRAL],
            Self::Llama3Json => &["<|python_tag|>", "{", "```"],
            Self::Llama4Pythonic => python::LLAMA4.opens,
            Self::Pythonic | Self::OpenAi | Self::Inkling => &[],
            Self::Qwen3Coder => &["<tool_call>", "<function="],
            Self::SeedOss => &["<seed:tool_call>"],
            Self::Glm45 => &["<tool_call>"],
            Self::DeepSeekV3 | Self::DeepSeekV31 => &["<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"],
            Self::DeepSeekV32 => &["<｜DSML｜function_calls>"],
            Self::DeepSeekV4 => &["<｜DSML｜tool_calls>"],
            Self::KimiK3 => &[xtml::OPEN],
            Self::Step3 => &["<｜tool_calls_begin｜>"],
            Self::MinimaxM3 => &[elements::OPEN],
            Self::Apertus => block::APERTUS.opens,
            Self::KimiK2 => &["<|tool_calls_section_begin|>", "<|tool_call_begin|>"],
            Self::Granite => block::GRANITE.opens,
            Self::Granite20bFc => block::GRANITE_20B.opens,
            Self::Phi4MiniJson => &["functools[", "<|tool_call|>"],
            Self::Cohere => block::COHERE.opens,
            Self::FunctionGemma => &["<start_function_call>"],
            Self::Gemma4 => &["<|tool_call>"],
            Self::Gemma3Pythonic => python::GEMMA3.opens,
            Self::MinimaxM2 => &["<minimax:tool_call>"],
            Self::Olmo3 => python::OLMO3.opens,
            Self::Lfm2 => python::LFM2.opens,
            Self::Jamba => block::JAMBA.opens,
            Self::NemotronJson => block::NEMOTRON.opens,
            Self::Internlm => block::INTERNLM.opens,
            Self::Longcat => block::LONGCAT.opens,
        }
    }

    /// What begins a call only where nothing but calls and reasoning is before it.
    pub(crate) fn bare(self) -> Option<char> {
        match self {
            Self::Llama3Json | Self::Llama4Pythonic | Self::Pythonic | Self::Gemma3Pythonic => Some('['),
            _ => None,
        }
    }

    /// Tokens that must stay in the text of a reply for calls to be found.
    pub(crate) fn markers(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &["<tool_call>", "</tool_call>"],
            Self::Qwen3Coder => {
                &["<tool_call>", "</tool_call>", "<function=", "</function>", "<parameter=", "</parameter>"]
            }
            Self::Mistral => &[MISTRAL, MISTRAL_ID, MISTRAL_ARGUMENTS],
            Self::Llama3Json => &["<|python_tag|>"],
            Self::Llama4Pythonic => &["<|python_start|>", "<|python_end|>"],
            Self::Pythonic | Self::Gemma3Pythonic => &[],
            Self::SeedOss => &["<seed:tool_call>", "</seed:tool_call>"],
            Self::Glm45 => {
                &["<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"]
            }
            Self::DeepSeekV3 | Self::DeepSeekV31 => &[
                "<｜tool▁calls▁begin｜>",
                "<｜tool▁calls▁end｜>",
                "<｜tool▁call▁begin｜>",
                "<｜tool▁call▁end｜>",
                "<｜tool▁sep｜>",
            ],
            Self::DeepSeekV32 | Self::DeepSeekV4 => &["<｜DSML｜", "｜DSML｜"],
            Self::KimiK3 => &["<|open|>", "<|close|>", "<|sep|>"],
            Self::Step3 => &[
                "<｜tool_calls_begin｜>",
                "<｜tool_calls_end｜>",
                "<｜tool_call_begin｜>",
                "<｜tool_call_end｜>",
                "<｜tool_sep｜>",
            ],
            Self::MinimaxM3 => &["]<]minimax[>[", "<tool_call>", "</tool_call>"],
            Self::Apertus => &["<|tools_prefix|>", "<|tools_suffix|>"],
            Self::Inkling => &inkling::MARKS,
            Self::KimiK2 => &[
                "<|tool_calls_section_begin|>",
                "<|tool_calls_section_end|>",
                "<|tool_call_begin|>",
                "<|tool_call_argument_begin|>",
                "<|tool_call_end|>",
            ],
            Self::Granite => &["<|tool_call|>", "<tool_call>", "</tool_call>"],
            Self::Granite20bFc => &["<function_call>"],
            Self::Phi4MiniJson => &["<|tool_call|>", "<|/tool_call|>"],
            Self::Cohere => &["<|START_ACTION|>", "<|END_ACTION|>"],
            Self::FunctionGemma => &["<start_function_call>", "<end_function_call>", "<escape>"],
            Self::Gemma4 => &["<|tool_call>", "<tool_call|>", "<|\"|>"],
            Self::MinimaxM2 => &["<minimax:tool_call>", "</minimax:tool_call>"],
            Self::Olmo3 => &["<function_calls>", "</function_calls>"],
            Self::Lfm2 => &["<|tool_call_start|>", "<|tool_call_end|>"],
            Self::Jamba => &["<tool_calls>", "</tool_calls>"],
            Self::NemotronJson => &["<TOOLCALL>", "</TOOLCALL>"],
            Self::Internlm => &["<|action_start|>", "<|action_end|>", "<|plugin|>"],
            Self::Longcat => &["<longcat_tool_call>", "</longcat_tool_call>"],
            Self::OpenAi => {
                &["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>"]
            }
        }
    }

    pub(crate) fn ids(self) -> IdForm {
        if self == Self::Mistral { IdForm::Nine } else { IdForm::Counted }
    }

    /// A reader for a block; none where calls are no blocks.
    pub(crate) fn reader(self, schemas: &Arc<Schemas>) -> Option<Box<dyn CallParser>> {
        let schemas = schemas.clone();
        Some(match self {
            Self::Hermes => Box::new(Block::new(&block::HERMES)),
            Self::Mistral => Box::new(Mistral::new()),
            Self::Llama3Json => Box::new(Block::new(&block::LLAMA)),
            Self::Llama4Pythonic => Box::new(Pythonic::new(&python::LLAMA4)),
            Self::Pythonic => Box::new(Pythonic::new(&python::PYTHONIC)),
            Self::Qwen3Coder => Box::new(Xml::new(&xml::QWEN3_CODER, schemas)),
            Self::SeedOss => Box::new(Xml::new(&xml::SEED_OSS, schemas)),
            Self::Glm45 => Box::new(Glm::new(schemas)),
            Self::DeepSeekV3 | Self::DeepSeekV31 => Box::new(Headed::new(&headed::DEEPSEEK)),
            Self::DeepSeekV32 => Box::new(Xml::new(&xml::DEEPSEEK_V32, schemas)),
            Self::KimiK2 => Box::new(Headed::new(&headed::KIMI)),
            Self::Granite => Box::new(Block::new(&block::GRANITE)),
            Self::Granite20bFc => Box::new(Block::new(&block::GRANITE_20B)),
            Self::Phi4MiniJson => Box::new(Block::new(&block::PHI4)),
            Self::Cohere => Box::new(Block::new(&block::COHERE)),
            Self::FunctionGemma => Box::new(Gemma::new(&gemma::FUNCTION_GEMMA, schemas)),
            Self::Gemma4 => Box::new(Gemma::new(&gemma::GEMMA4, schemas)),
            Self::Gemma3Pythonic => Box::new(Pythonic::new(&python::GEMMA3)),
            Self::MinimaxM2 => Box::new(Xml::new(&xml::MINIMAX_M2, schemas)),
            Self::Olmo3 => Box::new(Pythonic::new(&python::OLMO3)),
            Self::Lfm2 => Box::new(Pythonic::new(&python::LFM2)),
            Self::Jamba => Box::new(Block::new(&block::JAMBA)),
            Self::NemotronJson => Box::new(Block::new(&block::NEMOTRON)),
            Self::Internlm => Box::new(Block::new(&block::INTERNLM)),
            Self::Longcat => Box::new(Block::new(&block::LONGCAT)),
            Self::DeepSeekV4 => Box::new(Xml::new(&xml::DEEPSEEK_V4, schemas)),
            Self::KimiK3 => Box::new(Xtml::new()),
            Self::Step3 => Box::new(Xml::new(&xml::STEP3, schemas)),
            Self::MinimaxM3 => Box::new(Elements::new(schemas)),
            Self::Apertus => Box::new(Block::new(&block::APERTUS)),
            Self::OpenAi | Self::Inkling => return None,
        })
    }
}
