//! A template, rewritten so that what its operators, subscripts and calls do goes through filters of ours.
//!
//! minijinja's operators cannot be replaced, but its filters are ours. That is needed twice over. minijinja counts
//! instructions, not what one of them makes: a text doubled forty times, a list in a list in a list
//! ([`super::budget`]). And its values are not Python's: there is no tuple, `%` formats no text, an attribute is never a
//! method ([`super::operators`]). So before a template is compiled `a ~ b` becomes `a|__concat(b)`, `a.b` becomes
//! `(a|__attr("b"))`, `f(x)` becomes `(f(x)|__checked)`, and a long text between tags is announced by
//! `{{ 99|__write }}`. Line breaks stay, so that errors name the right lines.
//!
//! The grammar is jinja2's, as far as minijinja's parser has it. What it would refuse is refused here or left to it; what
//! it would take and templates cannot use (`include`) is refused by name. On the way everything is counted that makes its
//! compiler recurse without a limit of its own: operators, filters, attributes, `elif`.

mod expressions;
mod lexer;
mod statements;

use lexer::{Kind, Token, raw, token};

/// Operators, filters, attributes and calls in one tag: each may be one level of the compiler's recursion.
const MAX_LINKS: usize = 1000;
/// Expressions in expressions, as in minijinja.
const MAX_DEPTH: usize = 150;
/// Bytes between tags that are not worth an announcement.
const SHORT: usize = 32;

/// A template that may be compiled.
pub struct Metered {
    /// Its source.
    pub text: String,
    /// Bytes that one instruction writes at most without telling.
    pub untold: usize,
}

/// Why a template may not be compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    Malformed,
    TooLong,
    /// A construct that is not there; its name as the template writes it.
    Unknown(String),
}

/// Where and why a template may not be compiled.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// From 1.
    pub line: usize,
    pub why: Why,
}

/// Rewrites `source`.
///
/// # Errors
/// It is not of the grammar, an expression is too long, or a construct is not known.
pub fn rewrite(source: &str) -> std::result::Result<Metered, Refused> {
    let source = &with_line_feeds(source);
    let mut first = Rewriter::new(source, Vec::new());
    let result = first.template();
    // Macros may be called before they are declared: where one takes more than it names, all calls are written again.
    let (result, rewriter) = if result.is_ok() && first.macros.iter().any(Macro::takes_more) {
        let mut second = Rewriter::new(source, first.macros);
        (second.template(), second)
    } else {
        (result, first)
    };
    match result {
        Ok(()) => Ok(Metered { text: rewriter.out, untold: rewriter.untold }),
        Err(why) => {
            let until = &source.as_bytes()[..rewriter.at.min(source.len())];
            Err(Refused { line: 1 + until.iter().filter(|byte| **byte == b'\n').count(), why })
        }
    }
}

/// Lines of all systems end in one character, as jinja2 reads them.
fn with_line_feeds(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
}

type Result<T> = std::result::Result<T, Why>;

const MALFORMED: Why = Why::Malformed;

/// A macro that the template declares.
struct Macro {
    name: String,
    parameters: Vec<String>,
    /// Whether its body reads `varargs`, and `kwargs`.
    varargs: bool,
    kwargs: bool,
}

impl Macro {
    fn takes_more(&self) -> bool {
        self.varargs || self.kwargs
    }
}

/// A part of an expression, rewritten.
struct Piece {
    text: String,
    /// Whether a filter can follow without parentheses.
    closed: bool,
    /// The text without its check, where it is a call.
    call: Option<String>,
}

impl Piece {
    fn closed(text: String) -> Self {
        Self { text, closed: true, call: None }
    }

    fn open(text: String) -> Self {
        Self { text, closed: false, call: None }
    }

    /// For a filter to follow.
    fn operand(self) -> String {
        if self.closed { self.text } else { format!("({})", self.text) }
    }
}

struct Rewriter<'a> {
    source: &'a str,
    at: usize,
    /// Open brackets in this tag.
    balance: isize,
    /// Whether this tag is `{% %}`.
    block: bool,
    depth: usize,
    links: usize,
    elifs: Vec<usize>,
    /// Blocks that are open, `if` and the like left out.
    blocks: Vec<&'static str>,
    out: String,
    untold: usize,
    /// Macros that were read on this way, and those that are open.
    macros: Vec<Macro>,
    open_macros: Vec<usize>,
    /// Macros of the whole template, on the second way.
    known: Vec<Macro>,
}

impl<'a> Rewriter<'a> {
    fn new(source: &'a str, known: Vec<Macro>) -> Self {
        Self {
            source,
            at: 0,
            balance: 0,
            block: false,
            depth: 0,
            links: 0,
            elifs: Vec::new(),
            blocks: Vec::new(),
            out: String::with_capacity(source.len() * 2),
            untold: 0,
            macros: Vec::new(),
            open_macros: Vec::new(),
            known,
        }
    }

    fn template(&mut self) -> Result<()> {
        while self.at < self.source.len() {
            let rest = &self.source[self.at..];
            let start = rest.as_bytes().windows(2).position(|two| matches!(two, b"{{" | b"{%" | b"{#"));
            let Some(start) = start else {
                self.data(rest);
                break;
            };
            self.data(&rest[..start]);
            let tag = &rest[start..];
            if let Some(comment) = tag.strip_prefix("{#") {
                let end = comment.find("#}").ok_or(MALFORMED)? + 4;
                self.copy(end);
            } else if let Some(length) = raw(tag) {
                self.untold = self.untold.max(length);
                self.raw(&tag[..length]);
            } else {
                self.tag(tag.starts_with("{%"))?;
            }
        }
        Ok(())
    }

    /// jinja2 keeps the line break behind `{% raw %}`; minijinja does where the tag ends in `+`.
    fn raw(&mut self, block: &str) {
        let end = block.find("%}").unwrap_or(0);
        let (start, rest) = block.split_at(end);
        self.out.push_str(start);
        self.out.push_str(if start.ends_with(['-', '+']) { "" } else { "+" });
        self.out.push_str(rest);
        self.at += block.len();
    }

    fn copy(&mut self, bytes: usize) {
        self.out.push_str(&self.source[self.at..self.at + bytes]);
        self.at += bytes;
    }

    /// What lies between tags. An announcement stands behind the first character that no tag could trim away.
    fn data(&mut self, data: &str) {
        let place = data.char_indices().find(|(_, char)| !char.is_whitespace() && *char != '{');
        match place {
            Some((at, char)) if data.len() > SHORT => {
                let (before, behind) = data.split_at(at + char.len_utf8());
                self.out.push_str(before);
                self.out.push_str(&format!("{{{{ {}|__write }}}}", data.len()));
                self.out.push_str(behind);
            }
            _ => {
                self.untold = self.untold.max(data.len());
                self.out.push_str(data);
            }
        }
        self.at += data.len();
    }

    fn tag(&mut self, block: bool) -> Result<()> {
        let rest = &self.source.as_bytes()[self.at..];
        self.copy(if matches!(rest.get(2), Some(b'-' | b'+')) { 3 } else { 2 });
        (self.balance, self.block, self.depth, self.links) = (0, block, 0, 0);
        let text = if block { self.statement()? } else { self.expressions()?.text };
        self.out.push_str(&text);
        let end = self.expect_kind(Kind::End)?;
        self.out.push_str(end.before);
        self.out.push_str(end.text);
        Ok(())
    }

    fn link(&mut self) -> Result<()> {
        self.links += 1;
        if self.links > MAX_LINKS { Err(Why::TooLong) } else { Ok(()) }
    }

    fn deeper(&mut self) -> Result<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(Why::TooLong) } else { Ok(()) }
    }

    fn skip(&mut self, text: &str) -> Result<Option<Token<'a>>> {
        if self.peek()?.is(text) { self.next().map(Some) } else { Ok(None) }
    }

    fn expect(&mut self, text: &str) -> Result<Token<'a>> {
        self.skip(text)?.ok_or(MALFORMED)
    }

    fn expect_kind(&mut self, kind: Kind) -> Result<Token<'a>> {
        let token = self.next()?;
        if token.kind == kind { Ok(token) } else { Err(MALFORMED) }
    }

    fn peek(&mut self) -> Result<Token<'a>> {
        let (at, balance) = (self.at, self.balance);
        let token = self.next();
        (self.at, self.balance) = (at, balance);
        token
    }

    /// The next token of this tag: `tokenize_block_or_var` of minijinja's lexer.
    fn next(&mut self) -> Result<Token<'a>> {
        let rest = &self.source[self.at..];
        let blank = rest.bytes().take_while(u8::is_ascii_whitespace).count();
        let (before, rest) = rest.split_at(blank);
        let end = if self.block { "%}" } else { "}}" };
        let signed = usize::from(rest.starts_with(['-', '+']));
        let (kind, length) = if self.balance == 0 && rest[signed..].starts_with(end) {
            (Kind::End, signed + 2)
        } else {
            token(rest).ok_or(MALFORMED)?
        };
        let text = &rest[..length];
        match text {
            "(" | "[" | "{" => self.balance += 1,
            ")" | "]" | "}" => self.balance -= 1,
            _ => {}
        }
        self.at += blank + length;
        Ok(Token { kind, text, before })
    }
}

fn put(out: &mut String, token: Token<'_>) {
    out.push_str(token.before);
    out.push_str(token.text);
}
