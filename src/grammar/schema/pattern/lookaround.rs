//! Takes an expression with look-around apart into expressions without it.
//!
//! What is made here matches nothing that the expression does not match. It may match less: an expression without `^`
//! that looks ahead is taken to stand at the text's start, and where an expression can divide a text in several ways, a
//! look that must fail is made to fail in all of them.

use super::has_one_length;

/// Expressions all of which have to match, and expressions none of which may.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    pub all: Vec<String>,
    pub none: Vec<String>,
}

/// The expression as alternatives; one with the expression itself where it does not look around. None where it looks
/// around in the middle of a group, or where a match could not be told from its parts.
pub fn alternatives(pattern: &str) -> Option<Vec<Conditions>> {
    if !looks_around(pattern) {
        return Some(vec![Conditions { all: vec![pattern.into()], none: Vec::new() }]);
    }
    split(pattern).into_iter().map(conditions).collect()
}

/// Whether the expression holds `(?=`, `(?!`, `(?<=` or `(?<!`.
pub fn looks_around(pattern: &str) -> bool {
    parts(pattern).iter().any(|part| {
        group(part).is_some_and(|(inner, _)| {
            LOOKS.iter().any(|look| inner.starts_with(&look.0[1..])) || looks_around(inner)
        })
    })
}

/// How a look begins, whether it looks behind, and whether it must fail.
const LOOKS: [(&str, bool, bool); 4] =
    [("(?=", false, false), ("(?!", false, true), ("(?<=", true, false), ("(?<!", true, true)];

#[derive(Clone, Copy)]
struct LookAround<'a> {
    behind: bool,
    negative: bool,
    inner: &'a str,
}

fn conditions(alternative: &str) -> Option<Conditions> {
    let parts = parts(alternative);
    let (anchored, parts) = match parts.split_first() {
        Some((&"^", rest)) => (true, rest),
        _ => (false, &parts[..]),
    };
    let ahead = parts
        .iter()
        .any(|part| look_around(part).is_some_and(|look| !look.behind) || tempered(part).is_some());
    let start = if anchored || ahead { "^" } else { "" };
    // The expression without its looks, part by part.
    let bare: Vec<String> = parts
        .iter()
        .map(|part| match (look_around(part), tempered(part)) {
            (Some(_), _) => String::new(),
            (None, Some((_, one))) => one.to_owned() + group(part).map_or("", |(_, quantifier)| quantifier),
            (None, None) => (*part).to_owned(),
        })
        .collect();
    let mut conditions = Conditions::default();
    for (place, part) in parts.iter().enumerate() {
        let (before, behind) = (bare[..place].concat(), bare[place + 1..].concat());
        if let Some((inner, one)) = tempered(part) {
            // Also where the group's last character was: that is more than the expression forbids.
            conditions.none.push(format!("^{before}{one}*(?:{inner})"));
        } else if let Some(LookAround { behind: looks_behind, negative, inner }) = look_around(part) {
            if looks_around(inner) {
                return None;
            }
            let (expression, divides, anchored) = match looks_behind {
                false => (format!("^{before}(?:{inner})"), before.as_str(), true),
                true => (format!("(?:{inner}){behind}"), behind.as_str(), behind.ends_with('$')),
            };
            match negative {
                true => conditions.none.push(expression),
                // Here both have to divide the text at the same place.
                false if anchored && has_one_length(divides.trim_end_matches('$')) => {
                    conditions.all.push(expression)
                }
                false => return None,
            }
        } else if looks_around(part) {
            return None;
        }
    }
    let bare = bare.concat();
    if !bare.is_empty() {
        conditions.all.push(format!("{start}{bare}"));
    }
    Some(conditions)
}

/// `(?!x)` and its like.
fn look_around(part: &str) -> Option<LookAround<'_>> {
    LOOKS.into_iter().find_map(|(opening, behind, negative)| {
        let inner = part.strip_prefix(opening)?.strip_suffix(')')?;
        Some(LookAround { behind, negative, inner })
    })
}

/// `((?!x).)*`: characters none of which begins an x. The x, and the expression for one character.
fn tempered(part: &str) -> Option<(&str, &str)> {
    let (inner, _) = group(part)?;
    let inner = inner.strip_prefix("?:").unwrap_or(inner);
    let [first, second] = parts(inner)[..] else { return None };
    let LookAround { behind: false, negative: true, inner } = look_around(first)? else { return None };
    let one_character = second == "." || second.starts_with('[') && second.ends_with(']') || second == "\\S";
    (one_character && !looks_around(inner)).then_some((inner, second))
}

/// A group's inside and its quantifier.
fn group(part: &str) -> Option<(&str, &str)> {
    let end = closing(part.strip_prefix('(')?)?;
    Some((&part[1..=end], &part[end + 2..]))
}

/// The alternatives at the top.
fn split(pattern: &str) -> Vec<&str> {
    let (mut from, mut at, mut alternatives) = (0, 0, Vec::new());
    for part in parts(pattern) {
        if part == "|" {
            alternatives.push(&pattern[from..at]);
            from = at + 1;
        }
        at += part.len();
    }
    alternatives.push(&pattern[from..]);
    alternatives
}

/// The parts at the top, each with its quantifier. Joined, they are the expression.
fn parts(pattern: &str) -> Vec<&str> {
    let (mut rest, mut parts) = (pattern, Vec::new());
    while let Some(first) = rest.chars().next() {
        let atom = match first {
            '\\' => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            '[' => 1 + class_len(&rest[1..]),
            '(' => closing(&rest[1..]).map_or(rest.len(), |end| end + 2),
            other => other.len_utf8(),
        };
        let is_atom = !matches!(first, '^' | '|');
        let quantifier = if is_atom { quantifier_len(&rest[atom..]) } else { 0 };
        let (part, behind) = rest.split_at(atom + quantifier);
        parts.push(part);
        rest = behind;
    }
    parts
}

/// Bytes up to and with the bracket that closes a class.
fn class_len(rest: &str) -> usize {
    let skip = usize::from(rest.starts_with('^'));
    let skip = skip + usize::from(rest[skip..].starts_with(']'));
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip_while(|&(at, _)| at < skip) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ']' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The place of the parenthesis that closes one which is open before `rest`.
fn closing(rest: &str) -> Option<usize> {
    let (mut at, mut open) = (0, 1);
    while let Some(c) = rest[at..].chars().next() {
        at += match c {
            '\\' => 1 + rest[at + 1..].chars().next().map_or(0, char::len_utf8),
            '[' => 1 + class_len(&rest[at + 1..]),
            '(' => {
                open += 1;
                1
            }
            ')' => {
                open -= 1;
                if open == 0 {
                    return Some(at);
                }
                1
            }
            other => other.len_utf8(),
        };
    }
    None
}

/// Bytes of `*`, `+?`, `{2,3}` and the like.
fn quantifier_len(rest: &str) -> usize {
    let len = match rest.bytes().next() {
        Some(b'*' | b'+' | b'?') => 1,
        Some(b'{') => match rest.find('}') {
            Some(end) if rest[1..end].bytes().all(|byte| byte.is_ascii_digit() || byte == b',') => end + 1,
            _ => return 0,
        },
        _ => return 0,
    };
    len + usize::from(rest[len..].starts_with('?'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(pattern: &str) -> (Vec<String>, Vec<String>) {
        let mut alternatives = alternatives(pattern).unwrap_or_else(|| panic!("{pattern}"));
        assert_eq!(alternatives.len(), 1, "{pattern}");
        let Conditions { all, none } = alternatives.remove(0);
        (all, none)
    }

    #[test]
    fn looks_become_conditions() {
        let cases: [(&str, &[&str], &[&str]); 9] = [
            ("^a+$", &["^a+$"], &[]),
            (r"^(?=.*[A-Z])(?=.*\d).{8,}$", &["^(?:.*[A-Z])", r"^(?:.*\d)", "^.{8,}$"], &[]),
            ("^(?!admin$)[a-z]+$", &["^[a-z]+$"], &["^(?:admin$)"]),
            (r"(?=.*\d).{4,}", &[r"^(?:.*\d)", "^.{4,}"], &[]),
            ("^(?!-)[a-z-]+(?<!-)$", &["^[a-z-]+$"], &["^(?:-)", "(?:-)$"]),
            ("^((?!foo).)*$", &["^.*$"], &["^.*(?:foo)"]),
            ("^(?:(?!--)[a-z-])+$", &["^[a-z-]+$"], &["^[a-z-]*(?:--)"]),
            ("^ab(?=c)[a-z]+$", &["^ab(?:c)", "^ab[a-z]+$"], &[]),
            (r"^(?!\))[(\]]$", &[r"^[(\]]$"], &[r"^(?:\))"]),
        ];
        for (pattern, all, none) in cases {
            let (found_all, found_none) = one(pattern);
            assert_eq!((found_all, found_none), (strings(all), strings(none)), "{pattern}");
        }
        assert_eq!(alternatives("^(?!a)b|c").unwrap().len(), 2);
    }

    #[test]
    fn what_cannot_be_taken_apart_is_not() {
        for pattern in ["^a*(?=b)[ab]+$", "^(?:a(?!b))+$", "^(?=(?!a)b)", "^(?:x|(?=y)z)$", "(?<=a)b"] {
            assert_eq!(alternatives(pattern), None, "{pattern}");
        }
        assert!(!looks_around(r"\(?=a") && !looks_around("[(?=]") && looks_around("((?=a))"));
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }
}
