//! Chat templates: found in a checkpoint, rendered with messages and tools.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use minijinja::{Environment, ErrorKind, Value};

use super::budget::{Exceeded, MAX_BYTES, MAX_MADE, check_bytes};
use super::functions::{Tool, no_object};
use super::message::Message;
use super::metered::{self, Metered, Refused, Why};
use super::python::{self, Raised};
use super::reply::Style;
use super::strftime::strftime;
use super::values::NoObject;
use crate::error::{Error, Result};
use crate::memory::secret::Secret;
use crate::weights::json::{self, Json};
use crate::weights::store;

/// Bytes of a template's source.
const MAX_SOURCE: usize = 256 << 10;
/// Templates of a checkpoint.
const MAX_TEMPLATES: usize = 64;
/// Messages of a request.
const MAX_MESSAGES: usize = 10_000;
/// Bytes of all messages of a request.
const MAX_CONTENT: usize = 8 << 20;
/// Tools of a request.
const MAX_TOOLS: usize = 128;
/// Bytes of all tools of a request.
const MAX_TOOLS_BYTES: usize = 1 << 20;
/// Bytes of a message of `raise_exception` that an error repeats.
const MAX_RAISED: usize = 200;
/// Bytes of a name that an error repeats.
const MAX_NAME: usize = 40;
/// Special tokens that templates write.
const SPECIAL: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];

/// What a template is given.
#[derive(Clone, Copy)]
pub struct ChatInput<'a> {
    /// The conversation, oldest first; 1 to 10,000 messages, 8 MiB in all.
    pub messages: &'a [Message],
    /// What the model may call; at most 128, 1 MiB in all.
    pub tools: &'a [Tool],
    /// The name of one of the checkpoint's templates; without one, the one that transformers takes. There is no other
    /// source of templates.
    pub template: Option<&'a str>,
    /// Whether the prompt ends where the assistant begins to speak.
    pub add_generation_prompt: bool,
    /// Further variables (`enable_thinking`); those above cannot be replaced.
    pub variables: &'a serde_json::Map<String, serde_json::Value>,
}

impl fmt::Debug for ChatInput<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatInput")
            .field("messages", &self.messages.len())
            .field("tools", &self.tools.len())
            .field("template", &self.template.is_some())
            .field("add_generation_prompt", &self.add_generation_prompt)
            .field("variables", &self.variables.len())
            .finish()
    }
}

/// A template of the checkpoint.
struct TemplateSource {
    name: String,
    text: String,
    file: PathBuf,
    /// The field of `file`; empty where the file is the template.
    field: String,
    /// What the text teaches of replies. Known from the beginning, like the next: the first chat must not take longer
    /// than later ones, or whoever asks second would see that somebody had asked before.
    style: Style,
    /// The text as it is compiled, or why it is not.
    rewritten: std::result::Result<Metered, Refused>,
}

impl TemplateSource {
    fn new(name: String, text: String, file: PathBuf, field: String) -> Result<Self> {
        if text.len() > MAX_SOURCE {
            return Err(Error::config(&file, field.as_str(), format!("at most {MAX_SOURCE} bytes long")));
        }
        let (style, rewritten) = (Style::of(&text, true), metered::rewrite(&text));
        Ok(Self { name, text, file, field, style, rewritten })
    }
}

/// The chat templates of a checkpoint. A session with a template that does not compile still completes plain prompts.
pub struct Templates {
    sources: Vec<TemplateSource>,
    special: Vec<(&'static str, String)>,
    environment: Environment<'static>,
}

impl Templates {
    /// The templates in `folder`, none where it has none: `chat_template.jinja` and `additional_chat_templates/`
    /// where they exist, else `chat_template` in `tokenizer_config.json`, a text or a list of names and texts.
    ///
    /// # Errors
    /// A file cannot be read or has another form; a template is over 256 KiB.
    pub fn open(folder: &Path) -> Result<Option<Self>> {
        let config = Json::open_if_there(&folder.join("tokenizer_config.json"))?;
        let mut sources = files(folder)?;
        if sources.is_empty() {
            sources = fields(&config)?;
        }
        if sources.is_empty() {
            return Ok(None);
        }
        let special =
            special_tokens(&config, &Json::open_if_there(&folder.join("special_tokens_map.json"))?)?;
        Ok(Some(Self { sources, special, environment: python::environment() }))
    }

    /// The templates in what is `tokenizer_config.json` elsewhere.
    ///
    /// # Errors
    /// Returns the errors of [`Templates::open`].
    pub fn of(config: &Json) -> Result<Option<Self>> {
        let sources = fields(config)?;
        if sources.is_empty() {
            return Ok(None);
        }
        let special = special_tokens(config, config)?;
        Ok(Some(Self { sources, special, environment: python::environment() }))
    }

    /// The text of a prompt; `now` is what templates print as today's date, in UTC.
    ///
    /// # Errors
    /// A bound of [`ChatInput`] is broken, a call's arguments are no JSON object, the template refuses the messages
    /// or fails on them, the prompt would be over 64 MiB, or the checkpoint's template does not compile. Errors
    /// repeat what the template says only where it is a sentence of the checkpoint's template.
    pub fn render(&self, input: &ChatInput<'_>, now: SystemTime) -> Result<Secret<str>> {
        check(input)?;
        let source = self.source(input.template, !input.tools.is_empty())?;
        let variables = |objects: bool| self.variables(input, now, objects);
        match self.rendered(source, variables(false)?) {
            // A template may refuse the text of arguments, and take the object.
            Err(error) if input.messages.iter().any(Message::has_text_arguments) => {
                variables(true).and_then(|variables| self.rendered(source, variables)).map_err(|_| error)
            }
            rendered => rendered,
        }
    }

    fn rendered(&self, source: &TemplateSource, variables: Value) -> Result<Secret<str>> {
        let wrong = |expected: String| Error::config(&source.file, source.field.as_str(), expected);
        let malformed = |line: usize| wrong(format!("a Jinja template that compiles (line {line})"));
        let Metered { text, untold } =
            source.rewritten.as_ref().map_err(|Refused { line, why }| match why {
                Why::TooLong => {
                    wrong(format!("a Jinja template without so long an expression (line {line})"))
                }
                Why::Malformed => malformed(*line),
                Why::Unknown(name) => wrong(format!("a Jinja template without `{name}` (line {line})")),
            })?;
        let mut environment = self.environment.clone();
        // What one instruction writes without telling is bounded by the number of instructions.
        environment.set_fuel(Some(python::FUEL.min((MAX_MADE / (*untold).max(1)) as u64)));
        let template =
            environment.template_from_str(text).map_err(|error| malformed(error.line().unwrap_or(1)))?;
        let mut out = Bounded::default();
        template.render_captured_to(variables, &mut out).map_err(|error| refused(&error, &source.text))?;
        out.into_text()
    }

    /// Renders variables that no [`ChatInput`] brings, to be compared with transformers.
    #[cfg(test)]
    pub(super) fn render_variables(
        &self,
        variables: &[(&str, Value)],
        now: SystemTime,
    ) -> Result<Secret<str>> {
        let source = self.source(None, false)?;
        let mut all: Vec<(&str, Value)> =
            self.special.iter().map(|(name, token)| (*name, Value::from(token.as_str()))).collect();
        all.extend(variables.iter().cloned());
        all.push(("strftime_now", strftime_now(now)));
        self.rendered(source, Value::from_iter(all))
    }

    /// Whether one of the templates has `text` in its source.
    pub fn mention(&self, text: &str) -> bool {
        self.sources.iter().any(|source| source.text.contains(text))
    }

    /// How replies to the prompts of a template are written; without `tools`, calls are left in the text.
    pub fn style(&self, template: Option<&str>, tools: bool) -> Style {
        let Ok(source) = self.source(template, tools) else { return Style::of("", tools) };
        let style = source.style.clone();
        if tools { style } else { style.without_calls() }
    }

    /// The template of that name; without one `tool_use` for tools, where there is one, else `default`.
    fn source(&self, template: Option<&str>, tools: bool) -> Result<&TemplateSource> {
        let named = |name: &str| self.sources.iter().find(|source| source.name == name);
        if let Some(name) = template {
            let names: Vec<_> =
                self.sources.iter().map(|source| source.name.escape_debug().to_string()).collect();
            let expected = || format!("one of the checkpoint's: {}", names.join(", "));
            return named(name).ok_or_else(|| Error::request("chat_template", expected()));
        }
        let first = &self.sources[0];
        named("tool_use").filter(|_| tools).or_else(|| named("default")).ok_or_else(|| {
            Error::config(
                &first.file,
                first.field.as_str(),
                "a template named `default`, or one without a name",
            )
        })
    }

    fn variables(&self, input: &ChatInput<'_>, now: SystemTime, objects: bool) -> Result<Value> {
        let mut variables: Vec<(&str, Value)> =
            self.special.iter().map(|(name, token)| (*name, Value::from(token.as_str()))).collect();
        variables.push(("documents", Value::from(())));
        for (name, value) in input.variables {
            variables.push((name, Value::from_serialize(value)));
        }
        let messages = input.messages.iter().map(|message| message.to_value(objects));
        let messages = messages.collect::<Result<Vec<_>>>()?;
        variables.push(("messages", Value::from(messages)));
        let tools = input.tools.iter().map(Tool::to_value).collect::<Result<Vec<_>>>()?;
        variables.push(("tools", if tools.is_empty() { Value::from(()) } else { Value::from(tools) }));
        variables.push(("add_generation_prompt", Value::from(input.add_generation_prompt)));
        variables.push(("strftime_now", strftime_now(now)));
        Ok(Value::from_iter(variables))
    }
}

impl fmt::Debug for Templates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.sources.iter().map(|source| source.name.as_str()).collect();
        f.debug_struct("Templates").field("names", &names).finish_non_exhaustive()
    }
}

/// The function that prints `now`.
fn strftime_now(now: SystemTime) -> Value {
    Value::from_function(move |format: String| -> std::result::Result<String, minijinja::Error> {
        // A code prints at most 24 bytes for the two that it takes.
        check_bytes(format.len().saturating_mul(12))?;
        Ok(strftime(now, &format))
    })
}

/// `chat_template.jinja` and the further templates beside it.
fn files(folder: &Path) -> Result<Vec<TemplateSource>> {
    let mut files = Vec::new();
    let further = folder.join("additional_chat_templates");
    if store::is_folder(&further) {
        let names = store::list(&further).map_err(Error::read(&further))?.into_iter().take(MAX_TEMPLATES);
        files.extend(names.filter(|name| name.ends_with(".jinja")).map(|name| further.join(name)));
    }
    let main = folder.join("chat_template.jinja");
    if store::exists(&main) {
        files.insert(0, main);
    }
    let read = |file: PathBuf| {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        let name = if stem == "chat_template" { "default".to_owned() } else { stem.into_owned() };
        TemplateSource::new(name, json::read_text(&file)?, file, String::new())
    };
    files.into_iter().map(read).collect()
}

/// `chat_template` of `tokenizer_config.json`.
fn fields(config: &Json) -> Result<Vec<TemplateSource>> {
    let source = |name: &str, text: &str, field: String| {
        TemplateSource::new(name.to_owned(), text.to_owned(), config.file.clone(), field)
    };
    let sources = match config.field("chat_template") {
        None => Some(Vec::new()),
        Some(serde_json::Value::String(text)) => {
            Some(vec![source("default", text, "chat_template".to_owned())])
        }
        Some(serde_json::Value::Array(named)) if named.len() <= MAX_TEMPLATES => {
            let one = |(index, entry): (usize, &serde_json::Value)| {
                let (name, text) = (entry.get("name")?.as_str()?, entry.get("template")?.as_str()?);
                Some(source(name, text, format!("chat_template[{index}].template")))
            };
            named.iter().enumerate().map(one).collect::<Option<Vec<_>>>()
        }
        Some(_) => None,
    };
    let expected = || format!("a text, or a list of at most {MAX_TEMPLATES} {{name, template}}");
    sources.ok_or_else(|| config.wrong("chat_template", expected()))?.into_iter().collect()
}

/// The special tokens that templates write, from `tokenizer_config.json` or else `special_tokens_map.json`.
fn special_tokens(config: &Json, map: &Json) -> Result<Vec<(&'static str, String)>> {
    let mut special = Vec::new();
    for name in SPECIAL {
        for json in [config, map] {
            let Some(value) = json.field(name) else { continue };
            let content = value.get("content").unwrap_or(value);
            let token =
                content.as_str().ok_or_else(|| json.wrong(name, "a text, or an object with `content`"))?;
            special.push((name, token.to_owned()));
            break;
        }
    }
    Ok(special)
}

fn check(input: &ChatInput<'_>) -> Result<()> {
    if !(1..=MAX_MESSAGES).contains(&input.messages.len()) {
        return Err(Error::request("messages", format!("1 to {MAX_MESSAGES} messages")));
    }
    if input.messages.iter().map(Message::bytes).sum::<usize>() > MAX_CONTENT {
        return Err(Error::request("messages", format!("at most {MAX_CONTENT} bytes long in all")));
    }
    if input.tools.len() > MAX_TOOLS {
        return Err(Error::request("tools", format!("at most {MAX_TOOLS} tools")));
    }
    if input.tools.iter().map(Tool::bytes).sum::<usize>() > MAX_TOOLS_BYTES {
        return Err(Error::request("tools", format!("at most {MAX_TOOLS_BYTES} bytes long in all")));
    }
    Ok(())
}

/// The error for a template that ran but failed; `source` is the template.
fn refused(error: &minijinja::Error, source: &str) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref::<Raised>() {
            let message = message.expose().trim();
            let known = source.contains(message);
            let expected = "what the chat template accepts";
            return match known && !message.is_empty() && message.len() <= MAX_RAISED {
                true => Error::request("messages", format!("{expected}; it says: {message}")),
                false => Error::request("messages", expected),
            };
        }
        if let Some(exceeded) = current.downcast_ref::<Exceeded>() {
            let expected = match exceeded {
                Exceeded::Made => format!("rendered with at most {MAX_MADE} bytes of texts and lists"),
                Exceeded::Depth => "rendered without lists that are nested without end".to_owned(),
            };
            return Error::request("messages", expected);
        }
        if let Some(NoObject) = current.downcast_ref::<NoObject>() {
            return no_object();
        }
        if let Some(TooLong) =
            current.downcast_ref::<io::Error>().and_then(|error| error.get_ref()?.downcast_ref())
        {
            return Error::request("messages", format!("rendered to at most {MAX_BYTES} bytes"));
        }
        cause = current.source();
    }
    let line = error.line().unwrap_or(1);
    match error.kind() {
        ErrorKind::OutOfFuel => {
            Error::request("messages", "rendered by the chat template in a bounded number of steps")
        }
        kind => {
            let name = unknown_name(error, source).map(|name| format!(" `{name}`")).unwrap_or_default();
            Error::request(
                "messages",
                format!("what the chat template can render (line {line}: {kind}{name})"),
            )
        }
    }
}

/// The name of a filter, test, function or method that is not there, if the template writes it.
fn unknown_name<'a>(error: &'a minijinja::Error, source: &str) -> Option<&'a str> {
    let mut words = error.detail()?.split_whitespace();
    let name = match error.kind() {
        ErrorKind::UnknownFilter | ErrorKind::UnknownTest => words.nth(1),
        ErrorKind::UnknownFunction => words.next(),
        ErrorKind::UnknownMethod => words.next_back(),
        _ => None,
    }?;
    let is_name = name.chars().all(|char| char.is_ascii_alphanumeric() || char == '_');
    (is_name && name.len() <= MAX_NAME && source.contains(name)).then_some(name)
}

/// A prompt while it is written.
#[derive(Default)]
struct Bounded(Secret<[u8]>);

#[derive(Debug, thiserror::Error)]
#[error("the prompt is too long")]
struct TooLong;

impl Bounded {
    fn into_text(self) -> Result<Secret<str>> {
        Secret::from_utf8(self.0).ok_or_else(|| Error::request("messages", "rendered to UTF-8"))
    }
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.expose().len() + bytes.len() > MAX_BYTES {
            return Err(io::Error::other(TooLong));
        }
        self.0.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
