//! Regular expressions and Lark grammars: replies are in the language, and its texts can be spelled.

use super::generation::reply;
use super::{Draws, Fixture, ResponseFormat, allowed, default_model};

#[test]
fn expressions_match_from_end_to_end() {
    let fixture = Fixture::by_hand();
    let mut draws = Draws(37);
    let start = fixture.compile(&ResponseFormat::regex(r"^(日本|[éa-c]){2,3}/\d+\.?$")).unwrap();
    for text in ["日本é/1", "aaa/10.", "abc/٣"] {
        assert!(fixture.accepts(&start, text), "{text}");
    }
    for text in ["a/1", "abca/1", "ab/", "ab/1..", "ab/1 ", " ab/1", "ab/x"] {
        assert!(!fixture.accepts(&start, text), "{text}");
    }
    for _ in 0..30 {
        let text = String::from_utf8(reply(&fixture, start.fork(), &mut draws)).unwrap();
        let (head, tail) = text.split_once('/').unwrap();
        assert!(head.chars().all(|c| "日本éabc".contains(c)));
        assert!(tail.trim_end_matches('.').chars().all(char::is_numeric));
    }
    let lines = fixture.compile(&ResponseFormat::regex("(- [a-c]+\n){2}")).unwrap();
    assert!(fixture.accepts(&lines, "- a\n- bc\n") && !fixture.accepts(&lines, "- a\n- bc"));
}

#[test]
fn lark_grammars_generate_their_language() {
    const ARITHMETIC: &str = r#"
        start: sum
        sum: sum ("+" | "-") product | product
        product: product "*" atom | atom
        atom: NUMBER | "(" sum ")"
        NUMBER: /0|[1-9][0-9]{0,3}/
        %ignore / /
    "#;
    for fixture in [Fixture::by_hand(), default_model()] {
        let mut draws = Draws(41);
        let start = fixture.compile(&ResponseFormat::lark(ARITHMETIC)).unwrap();
        for text in ["1", "1+2*(3 - 40)", "((0))"] {
            assert!(fixture.accepts(&start, text), "{text}");
        }
        for text in ["", "1+", "(1", "1)", "01", "1 2", "*1"] {
            assert!(!fixture.accepts(&start, text), "{text}");
        }
        let mut ended = 0;
        for _ in 0..20 {
            let mut matcher = start.fork();
            let mut text = String::new();
            for _ in 0..60 {
                let ids = allowed(&mut matcher);
                let short =
                    ids.iter().copied().find(|id| fixture.ends.contains(id)).filter(|_| draws.below(4) == 0);
                let id = short.unwrap_or_else(|| ids[draws.below(ids.len())]);
                matcher.accept(id).unwrap();
                if fixture.ends.contains(&id) {
                    assert_eq!(sum(text.replace(' ', "").as_bytes()), Some(&b""[..]), "{text}");
                    ended += 1;
                    break;
                }
                text.push_str(std::str::from_utf8(fixture.pieces.bytes(id)).unwrap());
            }
        }
        assert!(ended > 3, "{ended} replies came to an end");
    }
}

/// Reads a sum; returns what is left of the text.
fn sum(text: &[u8]) -> Option<&[u8]> {
    let mut left = product(text)?;
    while let [b'+' | b'-', rest @ ..] = left {
        left = product(rest)?;
    }
    Some(left)
}

fn product(text: &[u8]) -> Option<&[u8]> {
    let mut left = atom(text)?;
    while let [b'*', rest @ ..] = left {
        left = atom(rest)?;
    }
    Some(left)
}

fn atom(text: &[u8]) -> Option<&[u8]> {
    if let [b'(', rest @ ..] = text {
        return sum(rest)?.strip_prefix(b")");
    }
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    ((1..=4).contains(&digits) && (digits == 1 || text[0] != b'0')).then(|| &text[digits..])
}
