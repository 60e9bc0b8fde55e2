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
use super::format::{Kind, ResponseFormat};
use super::matcher::Matcher;
use super::schema;
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

/// Lines of a Lark grammar: rules refer to rules, and llguidance follows them by recursion.
const MAX_LARK_LINES: usize = 512;
/// Brackets open at once on a line of a Lark grammar, those in its strings included.
const MAX_LARK_BRACKETS: usize = 128;

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
        let parser = self.parser(format, choices)?;
        let begun = Matcher::new(parser, self.vocabulary.clone()).and_then(|mut matcher| {
            let (mut mask, began) = (Secret::default(), cpu_time());
            matcher.mask(&mut mask)?;
            Ok(Begun { matcher, mask, took: cpu_time().saturating_sub(began) })
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

    fn parser(&self, format: &ResponseFormat, choices: usize) -> Result<TokenParser> {
        let mut grammar = match &format.0 {
            Kind::Text | Kind::JsonObject => GrammarWithLexer::from_json_schema(json!({ "type": "object" })),
            Kind::JsonSchema(text) => GrammarWithLexer::from_json_schema(parse_schema(text.expose())?),
            Kind::Regex(text) => GrammarWithLexer::from_regex(check_regex(text.expose())?),
            Kind::Lark(text) => GrammarWithLexer::from_lark(check_lark(text.expose())?.to_owned()),
        };
        if let Some(schema) = grammar.json_schema.as_mut().and_then(Value::as_object_mut) {
            // Whatever the caller's says: it could ask for unsupported keywords to be ignored.
            let options = json!({ "whitespace_pattern": WHITESPACE, "json_allowed_escapes": ESCAPES });
            schema.insert("x-guidance".into(), options);
        }
        let grammar = GrammarInit::Serialized(TopLevelGrammar::from_grammar(grammar));
        // no log on stderr, none in memory
        let (quiet, none) = (Logger::new(0, 0), InferenceCapabilities::default());
        self.factory.create_parser_from_init_ext(grammar, quiet, none, limits(choices)).map_err(|error| {
            let message = Secret::new(error.to_string());
            refused(format, requirement(message.expose()))
        })
    }
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

fn parse_schema(text: &[u8]) -> Result<Value> {
    if text.is_empty() {
        return Err(schema::nested_too_deep());
    }
    if text.len() > ResponseFormat::MAX_SCHEMA_BYTES {
        let expected = format!("a JSON Schema of at most {} bytes", ResponseFormat::MAX_SCHEMA_BYTES);
        return Err(Error::request("response_format", expected));
    }
    let schema: Value =
        serde_json::from_slice(text).map_err(|_| Error::request("response_format", "a JSON Schema"))?;
    if let Err(error) = schema::check(&schema) {
        crate::memory::json::wipe(schema);
        return Err(error);
    }
    // `true` allows what `{}` allows; options fit only into an object.
    Ok(if schema == true { json!({}) } else { schema })
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

fn check_lark(text: &str) -> Result<&str> {
    let expected = if text.len() > ResponseFormat::MAX_LARK_BYTES {
        format!("a Lark grammar of at most {} bytes", ResponseFormat::MAX_LARK_BYTES)
    } else if text.lines().count() > MAX_LARK_LINES {
        format!("a Lark grammar of at most {MAX_LARK_LINES} lines")
    } else if text.lines().any(|line| most_open(line) > MAX_LARK_BRACKETS) {
        format!("a Lark grammar with at most {MAX_LARK_BRACKETS} brackets open at once on a line")
    } else {
        for (at, keyword) in text.match_indices("%json") {
            // Where no JSON follows, the keyword stands in a string or a comment, or llguidance will refuse it.
            let behind = &text[at + keyword.len()..];
            if let Some(Ok(nested)) = serde_json::Deserializer::from_str(behind).into_iter::<Value>().next() {
                let checked = schema::check(&nested);
                crate::memory::json::wipe(nested);
                checked?;
            }
        }
        return Ok(text);
    };
    Err(Error::request("response_format", expected))
}

/// The largest number of brackets that are open at once, as if there were no strings.
fn most_open(line: &str) -> usize {
    let (mut open, mut most) = (0_usize, 0);
    for byte in line.bytes() {
        match byte {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        most = most.max(open);
    }
    most
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
    let kind = match format.0 {
        Kind::Text | Kind::JsonObject | Kind::JsonSchema(_) => "a JSON Schema",
        Kind::Regex(_) => "a regular expression",
        Kind::Lark(_) => "a Lark grammar",
    };
    Error::request("response_format", format!("{kind} {requirement}"))
}
