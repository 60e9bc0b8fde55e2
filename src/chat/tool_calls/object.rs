//! A call as a JSON object, read while it arrives: its arguments are given as they come once its name is known.

use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::emit::Calls;
use super::scan::{JsonEnd, skip_blank};
use crate::memory::secret::Secret;

/// What a format asks of its objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// An object without arguments is no call; elsewhere it is one that has none.
    pub needs_arguments: bool,
    /// The id stands behind the arguments, so nothing is given before the object ends.
    pub late_id: bool,
    /// A key that calls do not have says that it is none. For formats that mark calls by nothing else.
    pub strict: bool,
    /// The first key is the name, and its value the arguments.
    pub keyed: bool,
    /// Arguments may be called `args`.
    pub args: bool,
}

/// What reading on gave.
pub enum Read {
    Wait,
    /// The object, which is a call, ends here.
    Done(usize),
    /// It is no call, which shows here.
    No(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Key,
    KeyText,
    Colon,
    Value,
    ValueText,
    Next,
}

/// What a key of the object says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Name,
    /// OpenAI's form has name and arguments in an object of its own. Llama also writes the name itself under this key.
    Function,
    Arguments,
    Id,
    Type,
    Other,
}

impl Role {
    fn of(key: &str) -> Self {
        match key {
            "name" | "tool_name" => Self::Name,
            "function" => Self::Function,
            "arguments" | "parameters" => Self::Arguments,
            "id" | "tool_call_id" => Self::Id,
            "type" => Self::Type,
            _ => Self::Other,
        }
    }
}

type Span = (usize, usize);

/// An object from its opening bracket on.
pub struct ObjectReader {
    rules: Rules,
    state: State,
    at: usize,
    start: usize,
    /// Within the object under `function`.
    inner: bool,
    role: Role,
    /// Where the key or value at hand begins, and how far it was read.
    from: usize,
    scan: JsonEnd,
    name: Option<Span>,
    id: Option<Span>,
    arguments: Option<Span>,
    /// How far arguments were given, once the call has begun.
    given: Option<usize>,
}

impl ObjectReader {
    /// For the object whose opening bracket is at `at`.
    pub fn new(rules: Rules, at: usize) -> Self {
        Self {
            rules,
            state: State::Open,
            at,
            start: at,
            inner: false,
            role: Role::Other,
            from: at,
            scan: JsonEnd::default(),
            name: None,
            id: None,
            arguments: None,
            given: None,
        }
    }

    /// Reads on.
    pub fn read(&mut self, text: &str, calls: &mut Calls<'_, '_>) -> Read {
        loop {
            if !matches!(self.state, State::KeyText | State::ValueText) {
                self.at = skip_blank(text, self.at);
            }
            let Some(&byte) = text.as_bytes().get(self.at) else {
                if self.state == State::ValueText {
                    self.give(text, self.at, calls);
                }
                return Read::Wait;
            };
            match (self.state, byte) {
                (State::Open, b'{') => self.step(State::Key),
                (State::Key, b'"') => self.begin(State::KeyText),
                (State::KeyText, _) => {
                    let Some(end) = self.scan.find(text, &mut self.at) else { continue };
                    self.role = match self.rules.keyed {
                        false if self.rules.args && text[self.from..end] == *"\"args\"" => Role::Arguments,
                        false => Role::of(&text[self.from + 1..end - 1]),
                        true if self.name.is_none() => Role::Arguments,
                        true => Role::Other,
                    };
                    if self.rules.keyed && self.name.is_none() {
                        self.name = Some((self.from, end));
                    }
                    if self.rules.strict && self.role == Role::Other {
                        return Read::No(end);
                    }
                    self.state = State::Colon;
                }
                (State::Colon, b':') => self.step(State::Value),
                (State::Value, b'{') if self.role == Role::Function && !self.inner => {
                    self.inner = true;
                    self.step(State::Key);
                }
                (State::Value, _) => self.begin(State::ValueText),
                (State::ValueText, _) => {
                    let found = self.scan.find(text, &mut self.at);
                    self.give(text, found.unwrap_or(self.at), calls);
                    let Some(end) = found else { continue };
                    self.at = end;
                    self.keep(text, end);
                    self.state = State::Next;
                }
                (State::Next, b',') => self.step(State::Key),
                (State::Next | State::Key, b'}') if self.inner => {
                    self.inner = false;
                    self.step(State::Next);
                }
                (State::Next | State::Key, b'}') => {
                    self.at += 1;
                    return self.finish(text, calls);
                }
                _ => return Read::No(self.at),
            }
        }
    }

    /// Goes on behind one byte.
    fn step(&mut self, state: State) {
        self.at += 1;
        self.state = state;
    }

    /// A key or a value begins.
    fn begin(&mut self, state: State) {
        (self.from, self.scan, self.state) = (self.at, JsonEnd::default(), state);
    }

    fn keep(&mut self, text: &str, end: usize) {
        let span = Some((self.from, end));
        match self.role {
            Role::Name => self.name = span,
            Role::Function if text.as_bytes()[self.from] == b'"' => self.name = self.name.or(span),
            Role::Arguments => self.arguments = self.arguments.or(span),
            Role::Id => self.id = span,
            _ => {}
        }
    }

    /// Gives arguments up to `end` where they are an object and it is known whose they are.
    fn give(&mut self, text: &str, end: usize, calls: &mut Calls<'_, '_>) {
        let streams = self.role == Role::Arguments
            && self.arguments.is_none()
            && !self.rules.late_id
            && text.as_bytes()[self.from] == b'{';
        if !streams {
            return;
        }
        if self.given.is_none() {
            let Some(name) = self.name.and_then(|span| string(text, span)) else { return };
            if name.expose().is_empty() {
                return;
            }
            calls.begin(self.id(text).expose(), name.expose());
            self.given = Some(self.from);
        }
        let given = self.given.unwrap_or(end);
        calls.arguments(&text[given..end]);
        self.given = Some(end);
    }

    fn id(&self, text: &str) -> Secret<str> {
        let Some((from, to)) = self.id else { return Secret::default() };
        match text.as_bytes()[from] {
            b'"' => string(text, (from, to)).unwrap_or_default(),
            b'0'..=b'9' => Secret::<str>::copy(&text[from..to]),
            _ => Secret::default(),
        }
    }

    fn finish(&self, text: &str, calls: &mut Calls<'_, '_>) -> Read {
        let (at, none) = (self.at, Read::No(self.at));
        if serde_json::from_str::<IgnoredAny>(&text[self.start..at]).is_err() {
            return none;
        }
        if self.given.is_some() {
            calls.end();
            return Read::Done(at);
        }
        let Some(name) = self.name.and_then(|span| string(text, span)) else { return none };
        let arguments = match self.arguments {
            None if self.rules.needs_arguments => None,
            None => Some(Secret::<str>::copy("{}")),
            Some((from, to)) => object(&text[from..to]),
        };
        match arguments {
            Some(arguments) if !name.expose().is_empty() => {
                calls.whole(self.id(text).expose(), name.expose(), arguments.expose());
                Read::Done(at)
            }
            _ => none,
        }
    }
}

/// The text of a JSON string.
fn string(text: &str, (from, to): Span) -> Option<Secret<str>> {
    let value: std::borrow::Cow<'_, str> = serde_json::from_str::<Text<'_>>(&text[from..to]).ok()?.0;
    Some(Secret::take(value))
}

/// A string that is borrowed where it has no escapes.
#[derive(serde::Deserialize)]
struct Text<'a>(#[serde(borrow)] std::borrow::Cow<'a, str>);

/// Arguments as the text of a JSON object: as they are, out of a JSON text, or none at all.
pub fn object(value: &str) -> Option<Secret<str>> {
    let value = value.trim();
    match value.as_bytes().first() {
        None => Some(Secret::<str>::copy("{}")),
        Some(b'{') => serde_json::from_str::<&RawValue>(value).is_ok().then(|| Secret::<str>::copy(value)),
        Some(b'"') => {
            let inner = string(value, (0, value.len()))?;
            let trimmed = inner.expose().trim();
            // one text within a text, not more: there is no end to what a model could nest
            if trimmed.starts_with('"') { None } else { object(trimmed) }
        }
        Some(_) => (value == "null").then(|| Secret::<str>::copy("{}")),
    }
}
