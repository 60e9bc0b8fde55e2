//! Tokens of templates, as minijinja's lexer takes them apart, and the text of Python's string literals.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The end of the tag.
    End,
    Name,
    Text,
    Number,
    Symbol,
}

/// A token, and the white space before it.
#[derive(Clone, Copy, Debug)]
pub struct Token<'a> {
    pub kind: Kind,
    pub text: &'a str,
    pub before: &'a str,
}

impl Token<'_> {
    pub fn is(&self, text: &str) -> bool {
        matches!(self.kind, Kind::Name | Kind::Symbol) && self.text == text
    }
}

/// The kind of the token that `rest` starts with, and its length.
pub fn token(rest: &str) -> Option<(Kind, usize)> {
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
pub fn raw(tag: &str) -> Option<usize> {
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

/// Why a string literal is none that can be compiled.
pub enum Literal {
    Malformed,
    /// An escape that needs Unicode's table of names.
    Named,
}

/// A string literal of Python as one of minijinja's, which knows fewer escapes. Line breaks stay where they are.
pub fn literal(token: &str) -> Result<String, Literal> {
    if !token.contains('\\') {
        return Ok(token.to_owned());
    }
    let mut out = String::with_capacity(token.len() + 8);
    let mut chars = token.chars();
    while let Some(char) = chars.next() {
        if char != '\\' {
            out.push(char);
            continue;
        }
        let code = chars.next().ok_or(Literal::Malformed)?;
        let char = match code {
            '\n' => continue,
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            '\\' | '\'' | '"' => code,
            '0'..='7' => octal(code, &mut chars),
            'x' => char_of(hexadecimal(2, &mut chars)?)?,
            'u' => utf16(hexadecimal(4, &mut chars)?, &mut chars)?,
            'U' => char_of(hexadecimal(8, &mut chars)?)?,
            'N' => return Err(Literal::Named),
            // Python leaves what it does not know as it is.
            _ => {
                out.push_str("\\\\");
                code
            }
        };
        match char {
            '\\' => out.push_str("\\\\"),
            '\'' => out.push_str("\\'"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            char => out.push(char),
        }
    }
    Ok(out)
}

fn octal(first: char, chars: &mut std::str::Chars<'_>) -> char {
    let mut code = first.to_digit(8).unwrap_or(0);
    for _ in 0..2 {
        let Some(digit) = chars.clone().next().and_then(|char| char.to_digit(8)) else { break };
        code = code * 8 + digit;
        chars.next();
    }
    char::from_u32(code).unwrap_or('\0')
}

fn hexadecimal(digits: usize, chars: &mut std::str::Chars<'_>) -> Result<u32, Literal> {
    let mut code = 0;
    for _ in 0..digits {
        let digit = chars.next().and_then(|char| char.to_digit(16)).ok_or(Literal::Malformed)?;
        code = code << 4 | digit;
    }
    Ok(code)
}

fn char_of(code: u32) -> Result<char, Literal> {
    char::from_u32(code).ok_or(Literal::Malformed)
}

/// A code unit of UTF-16, or the first of two.
fn utf16(first: u32, chars: &mut std::str::Chars<'_>) -> Result<char, Literal> {
    if !(0xd800..0xdc00).contains(&first) {
        return char_of(first);
    }
    if chars.next() != Some('\\') || chars.next() != Some('u') {
        return Err(Literal::Malformed);
    }
    let second = hexadecimal(4, chars)?;
    let units = [first as u16, second as u16];
    char::decode_utf16(units).next().and_then(Result::ok).ok_or(Literal::Malformed)
}
