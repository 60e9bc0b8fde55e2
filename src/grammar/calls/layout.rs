//! How each format lays out the calls of a reply: blocks of calls, what is around them, and the calls in them.

use super::function::Function;
use super::notation::{Notation, Values};
use super::tagged::{self, Tags};
use super::writer::{Mark, Writer, arguments, escaped, json, somewhere, write};
use crate::chat::ToolCallParser as P;
use crate::error::{Error, Result};
use crate::memory::Secret;

/// The calls of a reply.
pub struct Layout {
    /// What a block begins with, as [`Writer::fixed`] takes it. Without it blocks have no mark, and a reply is calls or
    /// text.
    pub opening: &'static str,
    /// The rule of a block behind that.
    pub block: String,
    /// What stands between two blocks; none where a reply has one block at most.
    pub between: Option<&'static str>,
    /// The block ends with a token that ends the reply.
    pub ends: bool,
    /// Terminals of what no text may match, since a reader would take it for a call.
    pub excluded: Vec<String>,
}

/// White space between marks and JSON, and between blocks.
pub const SPACE: &str = "SPACE";

/// What is written around calls.
struct Around {
    opening: &'static str,
    behind_opening: &'static str,
    /// In a block, between its calls; none where it has one.
    between_calls: Option<&'static str>,
    closing: &'static str,
    between_blocks: Option<&'static str>,
}

/// A block for each call.
const fn each(
    opening: &'static str,
    behind: &'static str,
    closing: &'static str,
    between: &'static str,
) -> Around {
    Around { opening, behind_opening: behind, between_calls: None, closing, between_blocks: Some(between) }
}

/// One block with all calls.
const fn all(
    opening: &'static str,
    behind: &'static str,
    between: &'static str,
    closing: &'static str,
) -> Around {
    Around { opening, behind_opening: behind, between_calls: Some(between), closing, between_blocks: None }
}

const LIST: &str = "SPACE \",\" SPACE";
const LINES: &str = "\"\\n\"";

/// The layout of the calls of these functions; `single` if there is one at most.
///
/// # Errors
/// A name or a schema cannot be written in this format.
pub fn layout(writer: &mut Writer, parser: P, functions: &[Function<'_>], single: bool) -> Result<Layout> {
    let is_token = |mark: &str| matches!(writer.mark(mark), Mark::Special(_));
    let around = match parser {
        P::Hermes => each("<tool_call>", "", "</tool_call>", SPACE),
        P::Mistral if is_token("[ARGS]") => each("[TOOL_CALLS]", "", "", "\"\""),
        P::Mistral => all("[TOOL_CALLS]", "[", LIST, "]"),
        P::Llama3Json => all("", "", "SPACE \";\" SPACE", ""),
        P::Llama4Pythonic | P::Pythonic => all("", "[", LIST, "]"),
        P::Qwen3Coder => each("<tool_call>", "", "</tool_call>", SPACE),
        P::SeedOss => each("<seed:tool_call>", "", "</seed:tool_call>", SPACE),
        P::Glm45 => each("<tool_call>", "", "</tool_call>", SPACE),
        P::DeepSeekV3 => all("<｜tool▁calls▁begin｜>", "", "SPACE", "<｜tool▁calls▁end｜>"),
        P::DeepSeekV31 => all("<｜tool▁calls▁begin｜>", "", "\"\"", "<｜tool▁calls▁end｜>"),
        P::DeepSeekV32 => all("<｜DSML｜function_calls>", "", "SPACE", "</｜DSML｜function_calls>"),
        P::KimiK2 => all("<|tool_calls_section_begin|>", "", "\"\"", "<|tool_calls_section_end|>"),
        P::Granite if is_token("<tool_call>") && !is_token("<|tool_call|>") => {
            all("<tool_call>", "[", LIST, "]")
        }
        P::Granite => all("<|tool_call|>", "[", LIST, "]"),
        P::Granite20bFc => each("<function_call>", "", "", SPACE),
        P::Phi4MiniJson if is_token("<|tool_call|>") => all("<|tool_call|>", "[", LIST, "]<|/tool_call|>"),
        P::Phi4MiniJson => all("functools[", "", LIST, "]"),
        P::Cohere if is_token("<|START_ACTION|>") => all("<|START_ACTION|>", "[", LIST, "]<|END_ACTION|>"),
        P::Cohere => all("Action:", "```json\n[", LIST, "]\n```"),
        P::FunctionGemma => each("<start_function_call>", "call:", "<end_function_call>", SPACE),
        P::Gemma4 => each("<|tool_call>", "call:", "<tool_call|>", SPACE),
        P::Gemma3Pythonic => all("```tool_code", "", LINES, "\n```"),
        P::MinimaxM2 => all("<minimax:tool_call>", "", "SPACE", "</minimax:tool_call>"),
        P::Olmo3 => all("<function_calls>", "", LINES, "</function_calls>"),
        P::Lfm2 => all("<|tool_call_start|>", "[", LIST, "]<|tool_call_end|>"),
        P::Jamba => all("<tool_calls>", "[", LIST, "]</tool_calls>"),
        P::NemotronJson => all("<TOOLCALL>", "[", LIST, "]</TOOLCALL>"),
        P::Internlm => each("<|action_start|><|plugin|>", "", "<|action_end|>", SPACE),
        P::Longcat => each("<longcat_tool_call>", "", "</longcat_tool_call>", SPACE),
        P::DeepSeekV4 => all("<｜DSML｜tool_calls>", "", SPACE, "</｜DSML｜tool_calls>"),
        P::KimiK3 => all("<|open|>tools<|sep|>", "", SPACE, "<|close|>tools<|sep|>"),
        P::Step3 => all("<｜tool_calls_begin｜>", "", SPACE, "<｜tool_calls_end｜>"),
        P::MinimaxM3 => all("]<]minimax[>[<tool_call>", "", SPACE, "]<]minimax[>[</tool_call>"),
        P::Apertus => all("<|tools_prefix|>", "[", LIST, "]<|tools_suffix|>"),
        P::OpenAi | P::Inkling => {
            let expected = "left to the model: its calls are messages among others";
            return Err(Error::request("tool_choice", expected));
        }
    };
    let call = alternatives(writer, parser, functions)?;
    block(writer, parser, &around, &call, single)
}

/// The block around calls, and what text must not be taken for one.
fn block(writer: &mut Writer, parser: P, around: &Around, call: &str, single: bool) -> Result<Layout> {
    let mut body = Secret::<[u8]>::default();
    if !around.opening.is_empty() {
        body.extend(b"SPACE ");
    }
    writer.fixed(&mut body, around.behind_opening)?;
    let spaced = around.behind_opening.ends_with('[');
    body.extend(if spaced { &b"SPACE "[..] } else { b"" });
    body.extend(call.as_bytes());
    if let (Some(between), false) = (around.between_calls, single) {
        body.extend(format!(" ({between} {call})*").as_bytes());
    }
    let (before, mark) = writer.cut(around.closing);
    let ends = matches!(mark, Some((Mark::End, "")));
    let close_up = around.closing.is_empty() || around.between_calls == Some(LINES);
    body.extend(if close_up { &b" "[..] } else { b" SPACE " });
    writer.fixed(&mut body, if ends { before } else { around.closing })?;
    let block = writer.rule(&body);
    let between = if ends { None } else { around.between_blocks };
    Ok(Layout { opening: around.opening, block, between, ends, excluded: excluded(parser, around.opening) })
}

/// What in a text would be read as the beginning of a call.
fn excluded(parser: P, opening: &str) -> Vec<String> {
    let openings = |openings: &[&str]| {
        let openings: Vec<String> = openings.iter().map(|opening| escaped(opening)).collect();
        (!openings.is_empty()).then(|| somewhere(&openings.join("|")))
    };
    // Where calls have no mark, their bracket is one: the lexer takes the longest word, and a text that may begin so
    // would swallow it.
    let begins = |bracket: &str| format!("/\\s*\\{bracket}(?s:.*)/");
    match parser {
        P::Llama3Json => {
            let keys = "name|tool_name|function|arguments|parameters|id|tool_call_id|type";
            vec![somewhere(&format!("{}|\\{{\\s*\"({keys})\"", escaped("<|python_tag|>"))), begins("{")]
        }
        P::Cohere if opening == "<|START_ACTION|>" => {
            let fence = "(```[a-z_]*\\s*)?";
            vec![somewhere(&format!("{}|Action:\\s*{fence}\\[", escaped("<|START_ACTION|>")))]
        }
        P::Pythonic => vec![begins("[")],
        P::Llama4Pythonic | P::Gemma3Pythonic => {
            openings(parser.openings()).into_iter().chain([begins("[")]).collect()
        }
        _ => openings(parser.openings()).into_iter().collect(),
    }
}

/// The rule of a call of one of the functions.
fn alternatives(writer: &mut Writer, parser: P, functions: &[Function<'_>]) -> Result<String> {
    let mut calls = Vec::new();
    for function in functions {
        calls.push(match parser {
            P::Pythonic | P::Llama4Pythonic | P::Gemma3Pythonic | P::Olmo3 | P::Lfm2 => {
                Values::new(writer, Notation::Python, *function).call()?
            }
            P::FunctionGemma => {
                let notation = Notation::Gemma { mark: "<escape>", flat: true };
                Values::new(writer, notation, *function).call()?
            }
            P::Gemma4 => {
                let notation = Notation::Gemma { mark: "<|\"|>", flat: false };
                Values::new(writer, notation, *function).call()?
            }
            _ => {
                let mut body = Secret::<[u8]>::with_capacity(256);
                call(writer, &mut body, parser, function)?;
                writer.rule(&body)
            }
        });
    }
    Ok(writer.rule(&Secret::new(calls.join(" | ").into_bytes())))
}

/// Appends a call of this function.
fn call(writer: &mut Writer, out: &mut Secret<[u8]>, parser: P, function: &Function<'_>) -> Result<()> {
    let around = |begin: &str, others: &str, end: &str| {
        let name = function.plain_name(others)?;
        Ok::<_, crate::Error>(Secret::new([begin, name, end].concat()))
    };
    match parser {
        P::Mistral if matches!(writer.mark("[ARGS]"), Mark::Special(_)) => {
            writer.fixed(out, around("", ".", "[ARGS]")?.expose())?;
            body(out, function);
        }
        P::KimiK2 => {
            writer.fixed(out, around("<|tool_call_begin|>functions.", "", ":")?.expose())?;
            out.extend(b"/[0-9]{1,3}/ ");
            writer.fixed(out, "<|tool_call_argument_begin|>")?;
            body(out, function);
            writer.fixed(out, "<|tool_call_end|>")?;
        }
        P::DeepSeekV3 => {
            let head = around("<｜tool▁call▁begin｜>function<｜tool▁sep｜>", ".:/", "\n```json\n")?;
            writer.fixed(out, head.expose())?;
            body(out, function);
            writer.fixed(out, "\n```<｜tool▁call▁end｜>")?;
        }
        P::DeepSeekV31 => {
            let head = around("<｜tool▁call▁begin｜>", ".:/", "<｜tool▁sep｜>")?;
            if function.name == "function" {
                let expected = "functions with other names than `function`, which is a kind of call in DeepSeek V3's form";
                return Err(Error::request("tools", expected));
            }
            writer.fixed(out, head.expose())?;
            body(out, function);
            writer.fixed(out, "<｜tool▁call▁end｜>")?;
        }
        P::Qwen3Coder | P::SeedOss => {
            writer.fixed(out, around("<function=", ".:/", ">\n")?.expose())?;
            tagged::parameters(writer, out, function, &tagged::QWEN3_CODER)?;
            writer.fixed(out, "</function>")?;
        }
        P::MinimaxM2 => tags(writer, out, function, ["<invoke name=\"", "</invoke>"], &tagged::MINIMAX_M2)?,
        P::DeepSeekV32 | P::DeepSeekV4 => {
            let invoke = ["<｜DSML｜invoke name=\"", "</｜DSML｜invoke>"];
            tags(writer, out, function, invoke, &tagged::DEEPSEEK_V32)?;
        }
        P::Step3 => {
            let head =
                around("<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name=\"", ".:/", "\">")?;
            writer.fixed(out, head.expose())?;
            tagged::parameters(writer, out, function, &tagged::STEP3)?;
            writer.fixed(out, "</steptml:invoke><｜tool_call_end｜>")?;
        }
        P::KimiK3 => {
            writer.fixed(out, around("<|open|>call tool=\"", ".:/", "\" index=\"")?.expose())?;
            out.extend(b"/[0-9]{1,3}/ ");
            writer.fixed(out, "\"<|sep|>")?;
            tagged::parameters(writer, out, function, &tagged::KIMI_K3)?;
            writer.fixed(out, "<|close|>call<|sep|>")?;
        }
        P::MinimaxM3 => {
            writer.fixed(out, around("]<]minimax[>[<invoke name=\"", ".:/", "\">")?.expose())?;
            tagged::parameters(writer, out, function, &tagged::MINIMAX_M3)?;
            writer.fixed(out, "]<]minimax[>[</invoke>")?;
        }
        P::Apertus => json(out, |out| {
            out.extend(br#"{"type":"object","properties":{"#);
            write(out, function.name);
            out.extend(b":");
            arguments(out, function.root());
            out.extend(br#"}},"required":["#);
            write(out, function.name);
            out.extend(br#"],"additionalProperties":false"#);
        }),
        P::Glm45 => {
            writer.fixed(out, around("", ".:/", "\u{1}")?.expose())?;
            tagged::parameters(writer, out, function, &tagged::GLM)?;
        }
        _ => object(out, function, keys(parser)),
    }
    Ok(())
}

/// A call between tags, whose name is quoted.
fn tags(
    writer: &mut Writer,
    out: &mut Secret<[u8]>,
    function: &Function<'_>,
    [open, close]: [&str; 2],
    tags: &Tags,
) -> Result<()> {
    let head = Secret::new([open, function.plain_name(".:/")?, "\">\n"].concat());
    writer.fixed(out, head.expose())?;
    tagged::parameters(writer, out, function, tags)?;
    writer.fixed(out, close)
}

/// The keys of a call that is an object: an id's, the name's, the arguments'.
pub type Keys = (Option<&'static str>, &'static str, &'static str);

fn keys(parser: P) -> Keys {
    match parser {
        P::Llama3Json | P::Internlm => (None, "name", "parameters"),
        P::Cohere => (Some("tool_call_id"), "tool_name", "parameters"),
        _ => (None, "name", "arguments"),
    }
}

/// A call as an object.
pub fn object(out: &mut Secret<[u8]>, function: &Function<'_>, (id, name, of): Keys) {
    json(out, |out| {
        out.extend(br#"{"type":"object","properties":{"#);
        if let Some(id) = id {
            out.extend(format!(r#""{id}":{{"type":"string","pattern":"^[0-9]{{1,3}}$"}},"#).as_bytes());
        }
        out.extend(format!(r#""{name}":{{"const":"#).as_bytes());
        write(out, function.name);
        out.extend(format!(r#"}},"{of}":"#).as_bytes());
        arguments(out, function.root());
        out.extend(b"}},\"required\":[");
        if let Some(id) = id {
            out.extend(format!("\"{id}\",").as_bytes());
        }
        out.extend(format!(r#""{name}","{of}"],"additionalProperties":false"#).as_bytes());
    });
}

/// The arguments alone.
pub fn body(out: &mut Secret<[u8]>, function: &Function<'_>) {
    json(out, |out| arguments(out, function.root()));
}

/// Appends a text and, perhaps, marks of answers in it. The name of the rule.
pub fn free_text(writer: &mut Writer, excluded: &[String], marks: &[&'static str]) -> Result<String> {
    let mut text = Secret::<[u8]>::default();
    writer.text_until(&mut text, &[], excluded, "")?;
    let text = writer.rule(&text);
    Ok(match any_mark(writer, marks)? {
        None => text,
        Some(mark) => writer.rule(&Secret::new(format!("{text} ({mark} {text})*").into_bytes())),
    })
}

/// Text up to an opening, and that: as one terminal as far as text goes. The name of the rule.
pub fn head(writer: &mut Writer, layout: &Layout, marks: &[&'static str]) -> Result<String> {
    let mut body = Secret::<[u8]>::default();
    let before = free_text(writer, &layout.excluded, marks)?;
    let (ordinary, _) = writer.cut(layout.opening);
    if ordinary.is_empty() {
        body.extend(before.as_bytes());
        body.extend(b" ");
        writer.fixed(&mut body, layout.opening)?;
    } else {
        if let Some(mark) = any_mark(writer, marks)? {
            body.extend(format!("({before} {mark})? ").as_bytes());
        }
        writer.text_until(&mut body, &[], &layout.excluded, layout.opening)?;
    }
    Ok(writer.rule(&body))
}

/// The rule of the marks that have tokens in them, which no text spells.
fn any_mark(writer: &mut Writer, marks: &[&'static str]) -> Result<Option<String>> {
    let mut body = Secret::<[u8]>::default();
    for mark in marks {
        if let (_, Some((Mark::Special(_), _))) = writer.cut(mark) {
            body.extend(if body.expose().is_empty() { b"" } else { b"| " });
            writer.fixed(&mut body, mark)?;
        }
    }
    Ok((!body.expose().is_empty()).then(|| writer.rule(&body)))
}

/// A fixed text that may be missing, as an expression.
pub fn optional(writer: &mut Writer, text: &str) -> Result<String> {
    let mut body = Secret::<[u8]>::default();
    writer.fixed(&mut body, text)?;
    Ok(format!("{}? ", writer.rule(&body)))
}
