//! A template, rewritten so that what its operators and calls make goes through filters of ours.
//!
//! minijinja counts instructions, not what one of them makes: a text doubled forty times, a list in a list in a list. Its
//! operators cannot be replaced, but its filters are ours ([`super::budget`]). So before a template is compiled `a ~ b`
//! becomes `a|__concat(b)`, `f(x)` becomes `(f(x)|__checked)`, and a long text between tags is announced by
//! `{{ 99|__write }}`. Nothing else changes, line breaks included, so that errors name the right lines.
//!
//! The grammar is that of minijinja's parser, function by function. What it would refuse is refused here or left to it;
//! what it would take and we do not know (`include`, unpacking with `*`) is refused. On the way everything is counted
//! that makes its compiler recurse without a limit of its own: operators, filters, attributes, `elif`.

/// Operators, filters, attributes and calls in one tag: each may be one level of the compiler's recursion.
const MAX_LINKS: usize = 1000;
/// `elif`s of one `if`.
const MAX_ELIF: usize = 200;
/// Expressions in expressions, as in minijinja.
const MAX_DEPTH: usize = 150;
/// Bytes between tags that are not worth an announcement.
const SHORT: usize = 32;

/// Filters whose results share the texts of what they are given.
const SHARING: [&str; 15] = [
    "attr",
    "default",
    "d",
    "dictsort",
    "first",
    "items",
    "last",
    "list",
    "max",
    "min",
    "reject",
    "rejectattr",
    "reverse",
    "select",
    "selectattr",
];

/// A template that may be compiled.
pub struct Metered {
    /// Its source.
    pub text: String,
    /// Bytes that one instruction writes at most without telling.
    pub untold: usize,
}

/// Why a template may not be compiled.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// From 1.
    pub line: usize,
    /// Whether it is too long a chain, not malformed.
    pub too_long: bool,
}

/// Rewrites `source`.
///
/// # Errors
/// It is not of the grammar, or an expression is too long.
pub fn rewrite(source: &str) -> Result<Metered, Refused> {
    let mut rewriter = Rewriter {
        source,
        at: 0,
        balance: 0,
        block: false,
        depth: 0,
        links: 0,
        elifs: Vec::new(),
        out: String::with_capacity(source.len() * 2),
        untold: 0,
    };
    match rewriter.template() {
        Ok(()) => Ok(Metered { text: rewriter.out, untold: rewriter.untold }),
        Err(too_long) => {
            let until = &source.as_bytes()[..rewriter.at.min(source.len())];
            Err(Refused { line: 1 + until.iter().filter(|byte| **byte == b'\n').count(), too_long })
        }
    }
}

/// `true` for what is too long, `false` for what is malformed.
type Result<T, E = bool> = std::result::Result<T, E>;

const MALFORMED: bool = false;
const TOO_LONG: bool = true;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The end of the tag.
    End,
    Name,
    Text,
    Number,
    Symbol,
}

/// A token, and the white space before it.
#[derive(Clone, Copy, Debug)]
struct Token<'a> {
    kind: Kind,
    text: &'a str,
    before: &'a str,
}

impl Token<'_> {
    fn is(&self, text: &str) -> bool {
        matches!(self.kind, Kind::Name | Kind::Symbol) && self.text == text
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
    out: String,
    untold: usize,
}

impl<'a> Rewriter<'a> {
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
                self.copy(length);
            } else {
                self.tag(tag.starts_with("{%"))?;
            }
        }
        Ok(())
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
        let text = if block { self.statement()? } else { self.expression()?.text };
        self.out.push_str(&text);
        let end = self.expect_kind(Kind::End)?;
        self.out.push_str(end.before);
        self.out.push_str(end.text);
        Ok(())
    }

    fn statement(&mut self) -> Result<String> {
        let mut out = String::new();
        let keyword = self.expect_kind(Kind::Name)?;
        put(&mut out, keyword);
        match keyword.text {
            "if" => {
                self.elifs.push(0);
                out += &self.any_of()?.text;
            }
            "elif" => {
                let count = self.elifs.last_mut().ok_or(MALFORMED)?;
                *count += 1;
                if *count > MAX_ELIF {
                    return Err(TOO_LONG);
                }
                out += &self.any_of()?.text;
            }
            "for" => {
                self.targets(&mut out, &["in"])?;
                put(&mut out, self.expect("in")?);
                out += &self.any_of()?.text;
                if let Some(token) = self.skip("if")? {
                    put(&mut out, token);
                    out += &self.expression()?.text;
                }
                if let Some(token) = self.skip("recursive")? {
                    put(&mut out, token);
                }
            }
            "set" => self.set(&mut out)?,
            "with" => {
                while self.peek()?.kind != Kind::End {
                    self.targets(&mut out, &["="])?;
                    put(&mut out, self.expect("=")?);
                    out += &self.expression()?.text;
                    match self.skip(",")? {
                        Some(comma) => put(&mut out, comma),
                        None => break,
                    }
                }
            }
            "macro" => {
                put(&mut out, self.expect_kind(Kind::Name)?);
                put(&mut out, self.expect("(")?);
                self.parameters(&mut out)?;
            }
            "call" => {
                if let Some(open) = self.skip("(")? {
                    put(&mut out, open);
                    self.parameters(&mut out)?;
                }
                out += &self.expression()?.call.ok_or(MALFORMED)?;
            }
            "do" => out += &self.expression()?.call.ok_or(MALFORMED)?,
            "filter" => self.filter_chain(&mut out)?,
            "autoescape" => out += &self.expression()?.text,
            "endif" => {
                self.elifs.pop();
            }
            "block" | "else" | "endfor" | "endset" | "endwith" | "endmacro" | "endcall" | "endfilter"
            | "endautoescape" | "endblock" | "break" | "continue" => {
                while self.peek()?.kind == Kind::Name {
                    let name = self.next()?;
                    put(&mut out, name);
                }
            }
            _ => return Err(MALFORMED),
        }
        Ok(out)
    }

    fn set(&mut self, out: &mut String) -> Result<()> {
        let dotted = self.targets(out, &["=", "|"])?;
        if let Some(pipe) = self.skip("|")? {
            put(out, pipe);
            return self.filter_chain(out);
        }
        let Some(assign) = self.skip("=")? else { return Ok(()) };
        put(out, assign);
        let mut value = self.expression()?;
        if let Some(comma) = self.skip(",")? {
            let mut items = value.text;
            put(&mut items, comma);
            while self.peek()?.kind != Kind::End {
                items += &self.expression()?.text;
                match self.skip(",")? {
                    Some(comma) => put(&mut items, comma),
                    None => break,
                }
            }
            value = Piece::closed(format!("(({items})|__shared)"));
        }
        match dotted {
            true => *out += &format!("{}|__kept", value.operand()),
            false => *out += &value.text,
        }
        Ok(())
    }

    /// Names that are assigned to, until one of `ends`. Returns whether one of them has a dot.
    fn targets(&mut self, out: &mut String, ends: &[&str]) -> Result<bool> {
        let mut dotted = false;
        loop {
            let token = self.peek()?;
            if token.kind == Kind::End || ends.iter().any(|end| token.is(end)) {
                return Ok(dotted);
            }
            if token.kind != Kind::Name && !["(", ")", ",", "."].contains(&token.text) {
                return Err(MALFORMED);
            }
            if token.is("(") {
                self.link()?;
            }
            dotted |= token.is(".");
            let token = self.next()?;
            put(out, token);
        }
    }

    /// Parameters of a macro, to the closing parenthesis.
    fn parameters(&mut self, out: &mut String) -> Result<()> {
        while self.peek()?.kind == Kind::Name {
            let name = self.next()?;
            put(out, name);
            if let Some(assign) = self.skip("=")? {
                put(out, assign);
                *out += &self.expression()?.text;
            }
            match self.skip(",")? {
                Some(comma) => put(out, comma),
                None => break,
            }
        }
        put(out, self.expect(")")?);
        Ok(())
    }

    /// Filters without a value, to the end of the tag.
    fn filter_chain(&mut self, out: &mut String) -> Result<()> {
        loop {
            self.filter(out)?;
            match self.skip("|")? {
                Some(pipe) => put(out, pipe),
                None => return Ok(()),
            }
        }
    }

    /// A filter's name and arguments, and the check behind it.
    fn filter(&mut self, out: &mut String) -> Result<()> {
        let name = self.name_of_filter(out)?;
        if self.peek()?.is("(") {
            self.arguments(out)?;
        }
        *out += if SHARING.contains(&name) { "|__shared" } else { "|__checked" };
        Ok(())
    }

    fn name_of_filter(&mut self, out: &mut String) -> Result<&'a str> {
        self.link()?;
        let name = self.expect_kind(Kind::Name)?;
        put(out, name);
        while let Some(dot) = self.skip(".")? {
            put(out, dot);
            put(out, self.expect_kind(Kind::Name)?);
        }
        Ok(name.text)
    }

    /// `parse_expr`.
    fn expression(&mut self) -> Result<Piece> {
        self.deeper()?;
        let piece = self.choice()?;
        self.depth -= 1;
        Ok(piece)
    }

    /// `parse_ifexpr`.
    fn choice(&mut self) -> Result<Piece> {
        let mut piece = self.any_of()?;
        while let Some(token) = self.skip("if")? {
            self.link()?;
            let mut text = piece.text;
            put(&mut text, token);
            text += &self.any_of()?.text;
            if let Some(token) = self.skip("else")? {
                put(&mut text, token);
                self.deeper()?;
                text += &self.choice()?.text;
                self.depth -= 1;
            }
            piece = Piece::open(text);
        }
        Ok(piece)
    }

    /// `parse_or`.
    fn any_of(&mut self) -> Result<Piece> {
        self.chain(&["or"], Self::all_of)
    }

    fn all_of(&mut self) -> Result<Piece> {
        self.chain(&["and"], Self::negation)
    }

    fn negation(&mut self) -> Result<Piece> {
        let Some(token) = self.skip("not")? else { return self.comparison() };
        self.deeper()?;
        let mut text = String::new();
        put(&mut text, token);
        text += &self.negation()?.text;
        self.depth -= 1;
        Ok(Piece::open(text))
    }

    fn comparison(&mut self) -> Result<Piece> {
        let mut piece = self.sum()?;
        loop {
            let token = self.peek()?;
            let not = token.is("not");
            if !not && !["==", "!=", "<", "<=", ">", ">=", "in"].iter().any(|name| token.is(name)) {
                return Ok(piece);
            }
            self.link()?;
            let token = self.next()?;
            put(&mut piece.text, token);
            if not {
                put(&mut piece.text, self.expect("in")?);
            }
            piece = Piece::open(piece.text + &self.sum()?.text);
        }
    }

    fn sum(&mut self) -> Result<Piece> {
        self.operators("+", "__add", &["-"], Self::concatenation)
    }

    fn concatenation(&mut self) -> Result<Piece> {
        self.operators("~", "__concat", &[], Self::product)
    }

    fn product(&mut self) -> Result<Piece> {
        self.operators("*", "__mul", &["/", "//", "%"], Self::power)
    }

    fn power(&mut self) -> Result<Piece> {
        self.chain(&["**"], Self::unary)
    }

    /// Operators of one rank that stay as they are.
    fn chain(&mut self, names: &[&str], next: fn(&mut Self) -> Result<Piece>) -> Result<Piece> {
        let mut piece = next(self)?;
        while names.iter().any(|name| self.peek().is_ok_and(|token| token.is(name))) {
            self.link()?;
            let token = self.next()?;
            put(&mut piece.text, token);
            piece = Piece::open(piece.text + &next(self)?.text);
        }
        Ok(piece)
    }

    /// Operators of one rank, of which a run of `name` becomes one call of `filter`.
    fn operators(
        &mut self,
        name: &str,
        filter: &str,
        others: &[&str],
        next: fn(&mut Self) -> Result<Piece>,
    ) -> Result<Piece> {
        let mut piece = next(self)?;
        loop {
            let token = self.peek()?;
            if token.is(name) {
                let mut text = format!("{}|{filter}(", piece.operand());
                let mut comma = "";
                while let Some(operator) = self.skip(name)? {
                    self.link()?;
                    text += comma;
                    text += operator.before;
                    text += &next(self)?.text;
                    comma = ",";
                }
                text.push(')');
                piece = Piece::closed(text);
            } else if others.iter().any(|other| token.is(other)) {
                self.link()?;
                let token = self.next()?;
                put(&mut piece.text, token);
                piece = Piece::open(piece.text + &next(self)?.text);
            } else {
                return Ok(piece);
            }
        }
    }

    /// `parse_unary`: a value, what follows it, and filters and tests.
    fn unary(&mut self) -> Result<Piece> {
        let mut piece = self.followed()?;
        loop {
            if let Some(pipe) = self.skip("|")? {
                put(&mut piece.text, pipe);
                self.filter(&mut piece.text)?;
            } else if let Some(token) = self.skip("is")? {
                put(&mut piece.text, token);
                self.test(&mut piece.text)?;
            } else {
                return Ok(piece);
            }
            piece.call = None;
        }
    }

    fn test(&mut self, out: &mut String) -> Result<()> {
        if let Some(not) = self.skip("not")? {
            put(out, not);
        }
        self.name_of_filter(out)?;
        let token = self.peek()?;
        if token.is("(") {
            return self.arguments(out);
        }
        let argument = match token.kind {
            Kind::Name => !["and", "or", "else", "is"].contains(&token.text),
            Kind::Text | Kind::Number => true,
            Kind::Symbol => ["+", "-", "[", "{"].contains(&token.text),
            Kind::End => false,
        };
        if argument {
            *out += &self.followed()?.text;
        }
        Ok(())
    }

    /// `parse_unary_only` and `parse_postfix`.
    fn followed(&mut self) -> Result<Piece> {
        let mut piece = self.signed()?;
        loop {
            let token = self.peek()?;
            if token.is(".") {
                self.link()?;
                let dot = self.next()?;
                put(&mut piece.text, dot);
                let name = self.next()?;
                if !matches!(name.kind, Kind::Name | Kind::Number) {
                    return Err(MALFORMED);
                }
                put(&mut piece.text, name);
                piece.call = None;
            } else if token.is("[") {
                self.link()?;
                let open = self.next()?;
                put(&mut piece.text, open);
                let mut is_slice = false;
                while !self.peek()?.is("]") {
                    match self.skip(":")? {
                        Some(colon) => {
                            put(&mut piece.text, colon);
                            is_slice = true;
                        }
                        None => piece.text += &self.expression()?.text,
                    }
                }
                put(&mut piece.text, self.expect("]")?);
                piece = match is_slice {
                    true => Piece::closed(format!("({}|__sliced)", piece.text)),
                    false => Piece::closed(piece.text),
                };
            } else if token.is("(") {
                self.link()?;
                self.arguments(&mut piece.text)?;
                let checked = format!("({}|__checked)", piece.text);
                piece = Piece { call: Some(piece.text), ..Piece::closed(checked) };
            } else {
                return Ok(piece);
            }
        }
    }

    fn signed(&mut self) -> Result<Piece> {
        let Some(minus) = self.skip("-")? else { return self.primary() };
        self.deeper()?;
        let mut text = String::new();
        put(&mut text, minus);
        text += &self.signed()?.text;
        self.depth -= 1;
        Ok(Piece::closed(text))
    }

    fn arguments(&mut self, out: &mut String) -> Result<()> {
        put(out, self.expect("(")?);
        while !self.peek()?.is(")") {
            *out += &self.expression()?.text;
            if let Some(assign) = self.skip("=")? {
                put(out, assign);
                *out += &self.expression()?.text;
            }
            match self.skip(",")? {
                Some(comma) => put(out, comma),
                None => break,
            }
        }
        put(out, self.expect(")")?);
        Ok(())
    }

    fn primary(&mut self) -> Result<Piece> {
        self.deeper()?;
        let token = self.next()?;
        let mut text = String::new();
        put(&mut text, token);
        match (token.kind, token.text) {
            (Kind::Name | Kind::Number, _) => {}
            (Kind::Text, _) => {
                // as in Python, texts side by side are one
                while self.peek()?.kind == Kind::Text {
                    let token = self.next()?;
                    put(&mut text, token);
                }
            }
            (Kind::Symbol, "(") => {
                let is_list = self.items(&mut text, ")", false)?;
                text = if is_list { format!("({text}|__shared)") } else { text };
            }
            (Kind::Symbol, "[") => {
                self.items(&mut text, "]", false)?;
                text = format!("({text}|__shared)");
            }
            (Kind::Symbol, "{") => {
                self.items(&mut text, "}", true)?;
                text = format!("({text}|__shared)");
            }
            _ => return Err(MALFORMED),
        }
        self.depth -= 1;
        Ok(Piece::closed(text))
    }

    /// Items to the closing bracket. Returns whether there is a comma, or no item.
    fn items(&mut self, out: &mut String, close: &str, pairs: bool) -> Result<bool> {
        let mut is_list = self.peek()?.is(close);
        while !self.peek()?.is(close) {
            *out += &self.expression()?.text;
            if pairs {
                put(out, self.expect(":")?);
                *out += &self.expression()?.text;
            }
            match self.skip(",")? {
                Some(comma) => put(out, comma),
                None => break,
            }
            is_list = true;
        }
        put(out, self.expect(close)?);
        Ok(is_list)
    }

    fn link(&mut self) -> Result<()> {
        self.links += 1;
        if self.links > MAX_LINKS { Err(TOO_LONG) } else { Ok(()) }
    }

    fn deeper(&mut self) -> Result<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(TOO_LONG) } else { Ok(()) }
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

/// The kind of the token that `rest` starts with, and its length.
fn token(rest: &str) -> Option<(Kind, usize)> {
    let bytes = rest.as_bytes();
    if matches!(bytes.get(..2), Some(b"//" | b"**" | b"==" | b"!=" | b">=" | b"<=")) {
        return Some((Kind::Symbol, 2));
    }
    match *bytes.first()? {
        quote @ (b'\'' | b'"') => {
            let mut escaped = false;
            let end = bytes[1..].iter().position(|&byte| {
                let ends = !escaped && byte == quote;
                escaped = !escaped && byte == b'\\';
                ends
            })?;
            Some((Kind::Text, end + 2))
        }
        b'0'..=b'9' => Some((Kind::Number, number(rest))),
        b'+' | b'-' | b'*' | b'/' | b'%' | b'.' | b',' | b':' | b'~' | b'|' | b'=' | b'>' | b'<' | b'('
        | b')' | b'[' | b']' | b'{' | b'}' => Some((Kind::Symbol, 1)),
        _ => Some((Kind::Name, name(bytes))).filter(|(_, length)| *length > 0),
    }
}

fn name(bytes: &[u8]) -> usize {
    let is_part = |(at, byte): &(usize, &u8)| {
        **byte == b'_' || if *at == 0 { byte.is_ascii_alphabetic() } else { byte.is_ascii_alphanumeric() }
    };
    bytes.iter().enumerate().take_while(is_part).count()
}

/// The length of a number: `eat_number`.
fn number(rest: &str) -> usize {
    #[derive(Clone, Copy)]
    enum State {
        Radix,
        Integer,
        Fraction,
        Exponent,
        Signed,
    }
    let bytes = rest.as_bytes();
    let radix = matches!(bytes.get(..2), Some(b"0b" | b"0B" | b"0o" | b"0O" | b"0x" | b"0X"));
    let hexadecimal = matches!(bytes.get(1), Some(b'x' | b'X'));
    let (start, mut state) = if radix { (2, State::Radix) } else { (0, State::Integer) };
    let bytes = &bytes[start..];
    let mut length = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    for &byte in &bytes[length..] {
        state = match (byte, state) {
            (b'.', State::Integer) => {
                let exponent = matches!(bytes.get(length + 1), Some(b'e' | b'E'))
                    && matches!(bytes.get(length + 2), Some(b'+' | b'-' | b'0'..=b'9'));
                if !exponent && name(&bytes[length + 1..]) > 0 {
                    break;
                }
                State::Fraction
            }
            (b'E' | b'e', State::Integer | State::Fraction) => State::Exponent,
            (b'+' | b'-' | b'0'..=b'9', State::Exponent) => State::Signed,
            (b'0'..=b'9' | b'_', state) => state,
            (b'a'..=b'f' | b'A'..=b'F', State::Radix) if hexadecimal => state,
            _ => break,
        };
        length += 1;
    }
    start + length
}

/// The length of a raw block from its first tag to its last, if `tag` starts one.
fn raw(tag: &str) -> Option<usize> {
    let inner = tag.strip_prefix("{%")?;
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner);
    let mut at = tag.len() - inner.len() + basic_tag(inner, "raw")?;
    loop {
        at += tag[at..].find("{%")? + 2;
        let rest = &tag[at..];
        let sign = usize::from(rest.starts_with(['-', '+']));
        if let Some(length) = basic_tag(&rest[sign..], "endraw") {
            return Some(at + sign + length);
        }
    }
}

/// The length of the rest of a tag that has nothing but a name: `skip_basic_tag`.
fn basic_tag(rest: &str, name: &str) -> Option<usize> {
    let blank = |char: char| char.is_ascii_whitespace();
    let end = rest.trim_start_matches(blank).strip_prefix(name)?.trim_start_matches(blank);
    let end = end.strip_prefix(['-', '+']).unwrap_or(end).strip_prefix("%}")?;
    Some(rest.len() - end.len())
}
