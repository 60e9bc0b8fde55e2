//! Whether and how a chat's reply calls tools, as a grammar.
//!
//! | file | |
//! |---|---|
//! | [`layout`] | what each format writes around calls, and calls that are JSON |
//! | [`tagged`] | parameters between tags; [`raw`]: texts that are not quoted |
//! | [`notation`] | arguments as Python's literals and in Gemma's notation |
//! | [`channels`] | messages of gpt-oss and Inkling |
//! | [`writer`], [`function`] | writing Lark; tools as their definitions say |
//!
//! The marks of a format are special tokens in some checkpoints and text in others. What a grammar here allows,
//! [`crate::chat`]'s reader of the format reads as a call with the arguments that the schema allows
//! (`tests/call_formats.rs`). Neither lists, objects nor texts in JSON are kept from spelling a mark that ends a call.

mod channels;
mod function;
mod layout;
mod notation;
mod raw;
mod tagged;
mod writer;

use std::fmt;

use serde_json::Value;

use self::function::Function;
pub use self::writer::Mark;
use self::writer::Writer;
use super::ResponseFormat;
use super::format::Kind;
use crate::chat::ToolCallParser;
use crate::error::{Error, Result};
use crate::memory::{Secret, json};

/// Whether a chat's reply calls a tool: [`crate::Request::tool_choice`]. `Debug` prints the kind alone.
///
/// ```
/// use amnesic::{Request, Tool, ToolChoice, user};
/// use serde_json::json;
///
/// let parameters = json!({ "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"] });
/// let request = Request::chat([user("Will it rain in Delft?")])
///     .tools([Tool::new("weather", "Tells the weather.", parameters)])
///     .tool_choice(ToolChoice::function("weather"));
/// # let _ = request;
/// ```
#[derive(Default)]
#[non_exhaustive]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// It calls one of the tools at least, and says nothing else.
    Required,
    /// It calls this one.
    #[non_exhaustive]
    Function {
        /// Its name.
        name: FunctionName,
    },
}

/// A function's name, which may be content.
pub struct FunctionName(Secret<str>);

impl ToolChoice {
    /// The reply calls the function `name`, which must be among the request's tools.
    pub fn function(name: impl Into<String>) -> Self {
        Self::Function { name: FunctionName(Secret::new(name.into())) }
    }
}

impl fmt::Debug for ToolChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "Auto",
            Self::Required => "Required",
            Self::Function { .. } => "Function",
        })
    }
}

impl fmt::Debug for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

/// What a request says of calls.
#[derive(Debug, Default)]
pub struct Calls {
    pub choice: ToolChoice,
    /// Arguments keep to the schemas of their tools, which are refused where that cannot be.
    pub strict: bool,
    /// One call at most.
    pub single: bool,
}

impl Calls {
    /// Whether the model's own way of calling will not do.
    pub fn need_grammar(&self) -> bool {
        self.strict || self.single || !matches!(self.choice, ToolChoice::Auto)
    }

    /// The form of replies that call as it says, of tools with these definitions, in a format of calls.
    ///
    /// # Errors
    /// None of the tools has the name that is asked for, one is nested too deep, or the format cannot spell one or hold it
    /// to its schema.
    pub fn format<'a>(
        &self,
        definitions: impl IntoIterator<Item = &'a str>,
        reply: &ReplyForm<'_>,
    ) -> Result<ResponseFormat> {
        let mut values = Definitions::default();
        for definition in definitions {
            values.read(definition)?;
        }
        let wanted = |function: &Function<'_>| match &self.choice {
            ToolChoice::Function { name } => name.0.expose() == function.name,
            _ => true,
        };
        let functions: Vec<Function<'_>> = values.0.iter().map(Function::of).filter(wanted).collect();
        if functions.is_empty() {
            return Err(Error::request("tool_choice", "the name of one of the request's tools"));
        }
        let marks = reply.parser.markers().iter().chain(reply.answer).copied();
        let mut writer = Writer::new(marks, reply.mark, self.strict);
        let start = match reply.parser {
            ToolCallParser::OpenAi => channels::harmony(&mut writer, self, &functions, reply)?,
            ToolCallParser::Inkling => channels::inkling(&mut writer, self, &functions, reply)?,
            _ => self.start(&mut writer, &functions, reply)?,
        };
        let not_enforced = std::mem::take(&mut writer.not_enforced);
        let mut format = ResponseFormat::from(Kind::Calls(writer.finish(&start)));
        format.lenient = !self.strict;
        format.not_enforced = not_enforced;
        Ok(format)
    }

    /// The body of the first rule.
    fn start(
        &self,
        writer: &mut Writer,
        functions: &[Function<'_>],
        reply: &ReplyForm<'_>,
    ) -> Result<String> {
        writer.line("SPACE: /[ \\n]{0,2}/");
        let layout = layout::layout(writer, reply.parser, functions, self.single)?;
        let between = layout.between.filter(|_| !self.single);
        let mut one = Secret::<[u8]>::default();
        writer.fixed(&mut one, layout.opening)?;
        one.extend(layout.block.as_bytes());
        let one = writer.rule(&one);
        let must = !matches!(self.choice, ToolChoice::Auto);
        let thought = thought(writer, reply)?;
        if must {
            let before = match reply.parser {
                // the prompt may have begun an answer
                ToolCallParser::KimiK3 => layout::optional(writer, "<|close|>response<|sep|>")?,
                _ => String::new(),
            };
            return Ok(match between {
                Some(between) => format!("{thought}{before}{one} ({between} {one})*"),
                None => format!("{thought}{before}{one}"),
            });
        }
        let text = layout::free_text(writer, &layout.excluded, reply.answer)?;
        if layout.opening.is_empty() {
            return Ok(format!("{thought}({one} SPACE | {text})"));
        }
        let (head, block) = (layout::head(writer, &layout, reply.answer)?, &layout.block);
        Ok(match between {
            Some(_) => format!("{thought}({head} {block})* {text}"),
            None if layout.ends => format!("{thought}({head} {block} | {text})"),
            None => format!("{thought}({head} {block} SPACE | {text})"),
        })
    }
}

/// How replies are written that calls are a part of.
pub struct ReplyForm<'a> {
    pub parser: ToolCallParser,
    /// What a mark is in the vocabulary.
    pub mark: &'a dyn Fn(&str) -> Mark,
    /// Marks around answers, which may stand in their text.
    pub answer: &'static [&'static str],
    /// What may begin reasoning, and what ends it, where the grammar has that in it.
    pub reasoning: Option<(&'static [&'static str], &'static str)>,
    /// Whether the reply may think first, where the model writes messages with channels.
    pub thinks: bool,
    /// Whether the prompt ends within reasoning.
    pub inside: bool,
    /// The prompt ends within an answer.
    pub answers: bool,
}

/// Reasoning before the rest of the reply, as an expression.
fn thought(writer: &mut Writer, reply: &ReplyForm<'_>) -> Result<String> {
    let Some((opens, close)) = reply.reasoning else { return Ok(String::new()) };
    let mut inner = Secret::<[u8]>::default();
    let excluded = writer::somewhere(&writer::escaped(close));
    writer.text_until(&mut inner, &[], &[excluded], close)?;
    let inner = writer.rule(&inner);
    if reply.inside {
        return Ok(format!("{inner} SPACE "));
    }
    let mut body = Secret::<[u8]>::default();
    for open in opens {
        body.extend(if body.expose().is_empty() { &b"("[..] } else { b"| " });
        writer.fixed(&mut body, open)?;
    }
    if opens.is_empty() {
        return Ok(String::new());
    }
    body.extend(format!(") {inner} SPACE").as_bytes());
    Ok(format!("{}? ", writer.rule(&body)))
}

/// Definitions of tools, which are overwritten when they drop.
#[derive(Default)]
struct Definitions(Vec<Value>);

impl Definitions {
    fn read(&mut self, definition: &str) -> Result<()> {
        let nested = || Error::request("tools", "functions whose parameters are nested less deep");
        self.0.push(serde_json::from_str(definition).map_err(|_| nested())?);
        Ok(())
    }
}

impl Drop for Definitions {
    fn drop(&mut self) {
        self.0.drain(..).for_each(json::wipe);
    }
}
