//! From a response format to a matcher.
//!
//! A hostile format must cost an error, not the process: sizes and nesting are checked here and in [`schema`] before
//! llguidance sees the text, its own limits are set below, its panics are caught, and it runs on a thread whose stack
//! is larger than what the checked sizes can recurse into. There is no deadline: the limits are what bounds the time
//! (`tests/attacks.rs` has the table).

use std::borrow::Cow;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use llguidance::api::{GrammarInit, GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::panic_utils::catch_unwind;
use llguidance::toktrie::{InferenceCapabilities, TokEnv};
use llguidance::{Logger, ParserFactory, TokenParser};
use serde_json::{Value, json};

use super::GrammarReason;
use super::calls::Mark;
use super::format::{Kind, ResponseFormat};
use super::lark;
use super::matcher::Matcher;
use super::schema::{self, How};
use super::vocabulary::Vocabulary;
use crate::error::{Error, Result};
use crate::memory::thread::{Depth, confined, cpu_time};
use crate::memory::{Secret, heap};
use crate::text::detokenizer::Pieces;

/// White space between the parts of a JSON text: one space, or a line break and indentation. More is legal JSON, and
/// where small models lose their way: allowed forty spaces, they write forty.
const WHITESPACE: &str = r"\x20|\x0D?\x0A[\x20\x09]{0,24}";

/// What may follow a backslash in a JSON string. Not `u`: llguidance would take `"\u0061ge"` for a key other than
/// `"age"`, free of what the schema says of that.
const ESCAPES: &str = "nrbtf\\\"";

/// Tokens of this form get a mask of their own, which is taken whole wherever all of them fit, as within a string:
/// without it, the slowest mask in a hundred takes 1.1 ms instead of 0.3. llguidance's own four slices are no faster,
/// and hold 24 MB more.
const TEXT_SLICE: &str = r#"[^"\\\x00-\x1F\x7F]{1,30}"#;

/// Earley items of one byte of the reply: what a byte costs grows with their square.
pub(super) const MAX_ITEMS_IN_ROW: usize = 1000;

/// What compiling may cost: some 20 ms by llguidance's own rates, and up to ten times that in fact.
const COMPILE_FUEL: u64 = 1_000_000;
/// What one mask may cost in the lexer: some 15 ms by llguidance's own rates.
pub(super) const MASK_FUEL: u64 = 200_000;
/// Earley items of one mask.
const MASK_ITEMS: usize = 50_000;
/// Symbols of a grammar.
const MAX_SYMBOLS: usize = 100_000;

/// States of a lexer, at 1 to 2 kB, of all choices together; and what each may have in any case.
const LEXER_STATES: usize = 32_768;
const LEAST_LEXER_STATES: usize = 4096;

/// What the largest formats recurse into: up to 16 MB in a release build, and above 42 without optimisation. Only what
/// is touched becomes memory. Above the 40 MB that glibc keeps of dead threads' stacks, too, so that this one is
/// unmapped at once, content and all.
const STACK_BYTES: usize = 256 << 20;

/// Compiles response formats for one checkpoint. The trie of its vocabulary is built with it, not on first use: who asks
/// second would see from his time that somebody had asked before. It holds nothing of a request.
pub struct Grammars {
    vocab: usize,
    /// None where no trie can be built of this vocabulary.
    ready: Option<Ready>,
    /// Formats compiled so far.
    #[cfg(feature = "testing")]
    pub compiled: Arc<std::sync::atomic::AtomicU64>,
}

/// A grammar at the start of a reply.
pub struct Begun {
    pub matcher: Matcher,
    /// What may come first.
    pub mask: Secret<[u32]>,
    /// Keywords of its JSON Schema that are not enforced.
    pub not_enforced: Vec<&'static str>,
    /// Time of a processor that it took.
    pub took: Duration,
}

struct Ready {
    vocabulary: Arc<Vocabulary>,
    factory: ParserFactory,
}

impl Grammars {
    /// For a model of `vocab` tokens with these pieces, of which `end_tokens` end a reply. Takes some 0.2 s for 150,000.
    pub fn new(pieces: &Pieces, vocab: usize, end_tokens: &[u32]) -> Self {
        let build = || {
            let vocabulary = Arc::new(Vocabulary::new(pieces, vocab, end_tokens));
            let env: TokEnv = vocabulary.clone();
            let mut factory =
                ParserFactory::new(&env, InferenceCapabilities::default(), &[TEXT_SLICE.into()])?;
            // No log on stderr, none in memory.
            factory.set_stderr_log_level(0).set_buffer_log_level(0);
            Ok(Ready { vocabulary, factory })
        };
        // large, public, and there to stay: not on the heap for secrets
        let built = catch_unwind(AssertUnwindSafe(|| heap::outside(build)));
        Self {
            vocab,
            ready: built.ok(),
            #[cfg(feature = "testing")]
            compiled: Default::default(),
        }
    }

    /// A grammar at the start of a reply, to be copied for each of `choices`; none for [`ResponseFormat::text`]. The more
    /// choices, the fewer states of its lexer each may have.
    ///
    /// Blocks for as long as it takes; may be called from any thread.
    ///
    /// # Errors
    /// The format is malformed, unsupported, too large, or nothing that the vocabulary can spell has it. The error
    /// holds none of its text.
    pub fn compile(&self, format: &ResponseFormat, choices: usize) -> Result<Option<Begun>> {
        if format.is_text() {
            return Ok(None);
        }
        #[cfg(feature = "testing")]
        self.compiled.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        thread::scope(|scope| {
            let work = || confined(Depth::Kernels, || self.ready()?.begin(format, choices));
            let builder = thread::Builder::new().name("amnesic-grammar".into()).stack_size(STACK_BYTES);
            let compiled = builder.spawn_scoped(scope, work).map_err(Error::Thread)?.join();
            compiled.unwrap_or_else(|_| Err(refused(format, "that can be compiled"))).map(Some)
        })
    }

    /// What a mark of calls is in the vocabulary.
    pub fn mark(&self, text: &str) -> Mark {
        self.ready.as_ref().map_or(Mark::Text, |ready| ready.vocabulary.mark(text))
    }

    fn ready(&self) -> Result<&Ready> {
        self.ready.as_ref().ok_or_else(|| {
            Error::request("response_format", "plain text: no trie can be built of this checkpoint's tokens")
        })
    }
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").field("vocab", &self.vocab).finish_non_exhaustive()
    }
}

impl Ready {
    /// Its first mask is computed at once: a grammar that is too complex to begin with is refused here.
    fn begin(&self, format: &ResponseFormat, choices: usize) -> Result<Begun> {
        let (parser, not_enforced) = self.parser(format, choices)?;
        let begun = Matcher::new(parser, self.vocabulary.clone()).and_then(|mut matcher| {
            let (mut mask, began) = (Secret::default(), cpu_time());
            matcher.mask(&mut mask)?;
            Ok(Begun { matcher, mask, not_enforced, took: cpu_time().saturating_sub(began) })
        });
        begun.map_err(|error| match error {
            Error::Grammar(GrammarReason::DeadEnd) => refused(format, "that a text of tokens can satisfy"),
            _ => refused(
                format,
                format_args!(
                    "whose first mask takes {MASK_FUEL} units of lexer fuel and {MASK_ITEMS} parser items at most"
                ),
            ),
        })
    }

    /// With the keywords of a schema that are not enforced.
    fn parser(&self, format: &ResponseFormat, choices: usize) -> Result<(TokenParser, Vec<&'static str>)> {
        let grammar = match &format.kind {
            Kind::JsonSchema(text) => return self.schema_parser(format, text.expose(), choices),
            Kind::Text | Kind::JsonObject => with_options(json!({ "type": "object" })),
            Kind::Regex(text) => GrammarWithLexer::from_regex(check_regex(text.expose())?),
            Kind::Lark(text) | Kind::Calls(text) => return self.lark_parser(format, text.expose(), choices),
        };
        self.create(grammar, choices)
            .map(|parser| (parser, Vec::new()))
            .map_err(|message| refused(format, requirement(message.expose())))
    }

    fn lark_parser(
        &self,
        format: &ResponseFormat,
        text: &str,
        choices: usize,
    ) -> Result<(TokenParser, Vec<&'static str>)> {
        let mut not_enforced = format.not_enforced.clone();
        let how = How { lenient: format.lenient, ..How::default() };
        let limits = match format.kind {
            Kind::Calls(_) => &lark::OF_CALLS,
            _ => &lark::BY_HAND,
        };
        let grammar = GrammarWithLexer::from_lark(lark::checked(text, limits, how, &mut not_enforced)?);
        let parser = self.create(grammar, choices);
        let refused = |message: Secret<str>| refused(format, requirement(message.expose()));
        parser.map(|parser| (parser, not_enforced)).map_err(refused)
    }

    /// A second and a third time where llguidance does not do what can be written in another way, or left out.
    fn schema_parser(
        &self,
        format: &ResponseFormat,
        text: &[u8],
        choices: usize,
    ) -> Result<(TokenParser, Vec<&'static str>)> {
        let mut how = How { lenient: format.lenient, ..How::default() };
        loop {
            let mut not_enforced = Vec::new();
            let schema = parse_schema(text, how, &mut not_enforced)?;
            let message = match self.create(with_options(schema), choices) {
                Ok(parser) => return Ok((parser, not_enforced)),
                Err(message) => message,
            };
            let says = |words| message.expose().contains(words);
            if says("oneOf constraints are not supported") && !how.spell_out_one_of {
                how.spell_out_one_of = true;
            } else if says("min/maxProperties only supported") && how.lenient && !how.without_property_counts
            {
                how.without_property_counts = true;
            } else {
                return Err(refused(format, requirement(message.expose())));
            }
        }
    }

    /// An error is llguidance's message, which may quote the format.
    fn create(
        &self,
        grammar: GrammarWithLexer,
        choices: usize,
    ) -> std::result::Result<TokenParser, Secret<str>> {
        let grammar = GrammarInit::Serialized(TopLevelGrammar::from_grammar(grammar));
        // no log on stderr, none in memory
        let (quiet, none) = (Logger::new(0, 0), InferenceCapabilities::default());
        let created = self.factory.create_parser_from_init_ext(grammar, quiet, none, limits(choices));
        created.map_err(|error| Secret::new(error.to_string()))
    }
}

/// How JSON is written, for llguidance.
pub(super) fn json_options() -> Value {
    json!({ "whitespace_pattern": WHITESPACE, "json_allowed_escapes": ESCAPES })
}

/// The grammar of a schema that was lowered, which holds no options of its own.
fn with_options(schema: Value) -> GrammarWithLexer {
    let mut grammar = GrammarWithLexer::from_json_schema(schema);
    if let Some(schema) = grammar.json_schema.as_mut().and_then(Value::as_object_mut) {
        schema.insert("x-guidance".into(), json_options());
    }
    grammar
}

fn limits(choices: usize) -> ParserLimits {
    ParserLimits {
        max_items_in_row: MAX_ITEMS_IN_ROW,
        initial_lexer_fuel: COMPILE_FUEL,
        step_lexer_fuel: MASK_FUEL,
        step_max_items: MASK_ITEMS,
        max_lexer_states: (LEXER_STATES / choices.max(1)).max(LEAST_LEXER_STATES),
        max_grammar_size: MAX_SYMBOLS,
        precompute_large_lexemes: true,
        // they would quote the grammar and the reply
        verbose_errors: false,
    }
}

fn parse_schema(text: &[u8], how: How, not_enforced: &mut Vec<&'static str>) -> Result<Value> {
    if text.is_empty() {
        return Err(schema::nested_too_deep());
    }
    if text.len() > ResponseFormat::MAX_SCHEMA_BYTES {
        let expected = format!("a JSON Schema of at most {} bytes", ResponseFormat::MAX_SCHEMA_BYTES);
        return Err(Error::request("response_format", expected));
    }
    let document: Value =
        serde_json::from_slice(text).map_err(|_| Error::request("response_format", "a JSON Schema"))?;
    let lowered = schema::lowered(&document, how, not_enforced);
    crate::memory::json::wipe(document);
    // `true` allows what `{}` allows; options fit only into an object.
    Ok(match lowered? {
        Value::Bool(true) => json!({}),
        schema => schema,
    })
}

fn check_regex(text: &str) -> Result<&str> {
    let expected = if text.is_empty() {
        "a regular expression that is not empty".into()
    } else if text.len() > ResponseFormat::MAX_REGEX_BYTES {
        format!("a regular expression of at most {} bytes", ResponseFormat::MAX_REGEX_BYTES)
    } else if text.bytes().rev().take_while(|&byte| byte == b'\\').count() % 2 == 1 {
        // llguidance's rewriting for Lark would drop it
        "a regular expression without a backslash at its end".into()
    } else {
        return Ok(text);
    };
    Err(Error::request("response_format", expected))
}

/// What llguidance's message asks for, in words of our own: its own may quote the format.
fn requirement(message: &str) -> Cow<'static, str> {
    let says = |words: &[&str]| words.iter().any(|words| message.contains(words));
    if says(&["oneOf constraints are not supported"]) {
        "whose `oneOf` alternatives exclude each other visibly; `anyOf` needs no such thing".into()
    } else if says(&["min/maxProperties only supported"]) {
        "with `minProperties` and `maxProperties` only where all its `properties` are `required`".into()
    } else if says(&["circular references"]) {
        "without a circle of `$ref`s that have keywords beside them".into()
    } else if says(&["disjoint"]) {
        "whose `patternProperties` exclude each other visibly".into()
    } else if says(&["Unsatisfiable schema"]) {
        "that a value can satisfy".into()
    } else if says(&["number of symbols"]) {
        format!("of at most {MAX_SYMBOLS} symbols").into()
    } else if says(&["fuel", "too many expressions", "(grammar) too big", "is empty:"]) {
        format!("that compiles with {COMPILE_FUEL} units of fuel: with fewer and shorter expressions").into()
    } else if says(&["too many states"]) {
        format!("whose lexer has at most {LEXER_STATES} states").into()
    } else if says(&["too big", "too large", "too many", "too deep", "level exceeded"]) {
        "that is smaller and less nested".into()
    } else {
        "that is well-formed and keeps to the supported syntax".into()
    }
}

fn refused(format: &ResponseFormat, requirement: impl fmt::Display) -> Error {
    let kind = match format.kind {
        Kind::Text | Kind::JsonObject | Kind::JsonSchema(_) => "a JSON Schema",
        Kind::Regex(_) => "a regular expression",
        Kind::Lark(_) => "a Lark grammar",
        Kind::Calls(_) => {
            return Error::request("tools", format!("functions whose calls are a grammar {requirement}"));
        }
    };
    Error::request("response_format", format!("{kind} {requirement}"))
}
