//! Python's format specification: fills, signs, widths and the digits of numbers.

use minijinja::Error;
use minijinja::value::Value;

use super::budget::check_bytes;
use super::json_text;
use super::values::{self, wrong};

/// How one value is to be written: Python's format specification.
#[derive(Default)]
pub struct Spec {
    pub fill: Option<char>,
    pub align: Option<char>,
    /// `+` or a space.
    pub sign: Option<char>,
    pub alternate: bool,
    pub zero: bool,
    pub width: usize,
    /// `,` or `_`.
    pub grouping: Option<char>,
    pub precision: Option<usize>,
    pub kind: Option<char>,
}

impl Spec {
    /// `[[fill]align][sign][#][0][width][grouping][.precision][type]`.
    pub fn parse(spec: &str) -> Result<Self, Error> {
        let mut chars = Cursor(spec);
        let mut parsed = Self::default();
        let is_align = |char: Option<char>| char.is_some_and(|char| "<>=^".contains(char));
        let (first, second) = (spec.chars().next(), spec.chars().nth(1));
        if is_align(second) {
            (parsed.fill, parsed.align) = (chars.next(), chars.next());
        } else if is_align(first) {
            parsed.align = chars.next();
        }
        if let Some(sign) = chars.next_if(|char| "+- ".contains(char)) {
            parsed.sign = Some(sign).filter(|sign| *sign != '-');
        }
        parsed.alternate = chars.next_if(|char| char == '#').is_some();
        parsed.zero = chars.next_if(|char| char == '0').is_some();
        parsed.width = number(&mut chars)?.unwrap_or(0);
        parsed.grouping = chars.next_if(|char| ",_".contains(char));
        if chars.next_if(|char| char == '.').is_some() {
            parsed.precision = Some(number(&mut chars)?.ok_or_else(invalid)?);
        }
        parsed.kind = chars.next();
        if chars.next().is_some() { Err(invalid()) } else { Ok(parsed) }
    }

    /// Fills a text up; `default` is the alignment of its kind.
    pub fn pad(&self, text: &str, default: char) -> String {
        let missing = self.width.saturating_sub(text.chars().count());
        let (mut fill, mut align) = (self.fill.unwrap_or(' '), self.align.unwrap_or(default));
        if self.zero && self.align.is_none() && default == '>' {
            (fill, align) = ('0', '=');
        }
        let repeat = |times: usize| fill.to_string().repeat(times);
        match align {
            '<' => format!("{text}{}", repeat(missing)),
            '^' => format!("{}{text}{}", repeat(missing / 2), repeat(missing - missing / 2)),
            '=' => {
                let sign = text.len() - text.trim_start_matches(['+', '-', ' ']).len();
                format!("{}{}{}", &text[..sign], repeat(missing), &text[sign..])
            }
            _ => format!("{}{text}", repeat(missing)),
        }
    }
}

/// What is left of a format.
pub struct Cursor<'a>(pub &'a str);

impl Cursor<'_> {
    pub fn next(&mut self) -> Option<char> {
        self.next_if(|_| true)
    }

    pub fn next_if(&mut self, is: impl Fn(char) -> bool) -> Option<char> {
        let char = self.0.chars().next().filter(|char| is(*char))?;
        self.0 = &self.0[char.len_utf8()..];
        Some(char)
    }
}

pub fn invalid() -> Error {
    wrong("not a format that Python knows")
}

/// Digits; widths are bounded like texts.
pub fn number(chars: &mut Cursor<'_>) -> Result<Option<usize>, Error> {
    let mut number = None;
    while let Some(digit) = chars.next_if(|char| char.is_ascii_digit()).and_then(|char| char.to_digit(10)) {
        let value = number.unwrap_or(0_usize).saturating_mul(10).saturating_add(digit as usize);
        check_bytes(value.saturating_mul(4))?;
        number = Some(value);
    }
    Ok(number)
}

/// A number of one of the types `b c d e E f F g G o x X n %`.
pub fn formatted_number(value: &Value, spec: &Spec) -> Result<String, Error> {
    let is_float = values::whole(value).is_none();
    let kind = spec.kind.unwrap_or(if is_float { 'r' } else { 'd' });
    let negative;
    let digits = match kind {
        'd' | 'b' | 'o' | 'x' | 'X' | 'n' if !is_float => {
            let whole = values::whole(value).ok_or_else(invalid)?;
            negative = whole < 0;
            let size = whole.unsigned_abs();
            let (prefix, digits) = match kind {
                'b' => ("0b", format!("{size:b}")),
                'o' => ("0o", format!("{size:o}")),
                'x' => ("0x", format!("{size:x}")),
                'X' => ("0X", format!("{size:X}")),
                _ => ("", size.to_string()),
            };
            let digits = grouped(&digits, spec.grouping, if prefix.is_empty() { 3 } else { 4 });
            format!("{}{digits}", if spec.alternate { prefix } else { "" })
        }
        'c' if !is_float => {
            negative = false;
            let code = values::whole(value).and_then(|code| u32::try_from(code).ok());
            code.and_then(char::from_u32).ok_or_else(invalid)?.to_string()
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' | 'r' | 'n' | '%' => {
            let number = values::float(value)?;
            negative = number.is_sign_negative() && !number.is_nan();
            let text = float_digits(number.abs(), kind, spec);
            let end = text.find(['.', 'e', 'E', '%']).unwrap_or(text.len());
            format!("{}{}", grouped(&text[..end], spec.grouping, 3), &text[end..])
        }
        _ => return Err(invalid()),
    };
    let sign = if negative { "-".to_owned() } else { spec.sign.map(String::from).unwrap_or_default() };
    Ok(sign + &digits)
}

fn grouped(digits: &str, separator: Option<char>, size: usize) -> String {
    let Some(separator) = separator else { return digits.to_owned() };
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(size) {
            out.push(separator);
        }
        out.push(digit);
    }
    out
}

/// The digits of a number that is not negative.
fn float_digits(number: f64, kind: char, spec: &Spec) -> String {
    if !number.is_finite() {
        let name = if number.is_nan() { "nan" } else { "inf" };
        return if kind.is_uppercase() { name.to_uppercase() } else { name.to_owned() };
    }
    let precision = spec.precision.unwrap_or(6).min(1000);
    match kind {
        'f' | 'F' => format!("{number:.precision$}"),
        '%' => format!("{:.precision$}%", number * 100.0),
        'e' | 'E' => scientific(number, precision, kind),
        'r' if spec.precision.is_none() => json_text::float_text(number),
        _ => {
            let precision = precision.max(1);
            let exponent = exponent_of(number, precision - 1);
            // A type that is left out always shows a fraction, and switches a digit earlier.
            let most = if kind == 'r' { precision as i32 - 1 } else { precision as i32 };
            let text = if (-4..most).contains(&exponent) {
                format!("{number:.*}", (precision as i32 - 1 - exponent).max(0) as usize)
            } else {
                scientific(number, precision - 1, if kind == 'G' { 'E' } else { 'e' })
            };
            if spec.alternate { text } else { without_zeros(&text, kind == 'r') }
        }
    }
}

fn exponent_of(number: f64, precision: usize) -> i32 {
    let text = format!("{number:.precision$e}");
    text.split_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or(0)
}

fn scientific(number: f64, precision: usize, letter: char) -> String {
    let text = format!("{number:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}{letter}{sign}{:02}", exponent.abs())
}

/// Zeros at the end of a fraction are left out, but for one if `keep_one`.
fn without_zeros(text: &str, keep_one: bool) -> String {
    let end = text.find(['e', 'E']).unwrap_or(text.len());
    let (digits, exponent) = text.split_at(end);
    if !digits.contains('.') {
        return if keep_one && exponent.is_empty() { format!("{digits}.0") } else { text.to_owned() };
    }
    let trimmed = digits.trim_end_matches('0').trim_end_matches('.');
    let zero = if keep_one && exponent.is_empty() && !trimmed.contains('.') { ".0" } else { "" };
    format!("{trimmed}{zero}{exponent}")
}
