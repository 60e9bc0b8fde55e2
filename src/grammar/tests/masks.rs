//! Masks against their definition: a token is allowed if, and only if, it is accepted.

use serde_json::json;

use super::super::{GrammarReason, Matcher};
use super::{Draws, Fixture, PADDING, ResponseFormat, WORDS, allowed};
use crate::error::Error;
use crate::memory::Secret;

fn formats() -> Vec<ResponseFormat> {
    vec![
        ResponseFormat::json_object(),
        ResponseFormat::json_schema(json!({
            "type": "object",
            "properties": { "name": { "type": "string", "maxLength": 6 }, "kind": { "enum": ["a", "an", "日本"] } },
            "required": ["name"],
            "additionalProperties": { "type": "number" },
        })),
        ResponseFormat::json_schema(
            json!({ "type": "array", "items": { "type": ["null", "integer"] }, "maxItems": 3 }),
        ),
        ResponseFormat::regex("^(an?|é+|[0-9]{2,4})( x)*$"),
        ResponseFormat::regex("日本*|\"[a-c]\\n?\""),
        ResponseFormat::lark(
            "start: expr\nexpr: expr \"+\" term | term\nterm: /[0-9]+/ | \"(\" expr \")\"\n%ignore / /",
        ),
        ResponseFormat::lark("start: \"a\" <|tool|> /[bc]+/"),
        ResponseFormat::lark("start: A <|tool|>\nA: ~/b.*/"),
        ResponseFormat::lark("start: a \"x\"\na[stop=/[0-9]/]: /[a-c]*/"),
        ResponseFormat::lark("start: a \"x\"\na[suffix=\"2\"]: /[a-c]*/"),
        ResponseFormat::lark("start: a\na[stop=\"\"]: /[a-c]*/"),
        ResponseFormat::lark("start: a \"x\"\na[stop=\"\"]: /[a-c]+/"),
        ResponseFormat::lark("start: a <|stop|> \"x\"\na: /[a-c]+/"),
        ResponseFormat::lark("start: %json { \"type\": \"boolean\" } \";\" | %lark {\nstart: \"y\"+\n}"),
        ResponseFormat::lark("start: name tail\nname[max_tokens=3]: /[a-c]+/\ntail: \"x\""),
    ]
}

#[test]
fn a_token_is_allowed_if_and_only_if_it_is_accepted() {
    let fixture = Fixture::by_hand();
    let mut draws = Draws(11);
    for (case, format) in formats().into_iter().enumerate() {
        for _ in 0..3 {
            let mut matcher =
                fixture.compile(&format).unwrap_or_else(|error| panic!("format {case}: {error}"));
            for step in 0..25 {
                let allowed = allowed(&mut matcher);
                for id in 0..fixture.vocab as u32 + 40 {
                    let is_allowed = allowed.contains(&id);
                    let mut fork = matcher.fork();
                    match fork.accept(id) {
                        Ok(()) => assert!(is_allowed, "format {case}, step {step}: {id} was accepted"),
                        Err(Error::Grammar(GrammarReason::Rejected)) => {
                            assert!(!is_allowed, "format {case}, step {step}: {id} was rejected");
                            assert_eq!(
                                super::allowed(&mut fork),
                                allowed,
                                "a rejected token changed something"
                            );
                        }
                        Err(other) => panic!("format {case}, step {step}: {other}"),
                    }
                    assert_eq!(
                        matcher.validate(&[id]).unwrap(),
                        usize::from(is_allowed),
                        "format {case}: {id}"
                    );
                }
                let complete = matcher.is_complete().unwrap();
                assert!(fixture.ends.iter().all(|end| allowed.contains(end) == complete));
                if matcher.is_stopped() {
                    assert_eq!(allowed, fixture.ends);
                    break;
                }
                let going_on: Vec<u32> =
                    allowed.iter().copied().filter(|id| !fixture.ends.contains(id)).collect();
                matcher.accept(going_on[draws.below(going_on.len())]).unwrap();
            }
        }
    }
}

#[test]
fn every_spelling_of_a_text_is_allowed() {
    let fixture = Fixture::by_hand();
    let mut matcher = fixture.compile(&ResponseFormat::regex("true")).unwrap();
    let spelled: Vec<&[u8]> = allowed(&mut matcher).into_iter().map(|id| fixture.pieces.bytes(id)).collect();
    assert_eq!(spelled, [&b"t"[..], b"true", b"tr"]);
    // two tokens of the same bytes: the byte and the word
    let mut matcher = fixture.compile(&ResponseFormat::regex("0")).unwrap();
    let zero = 256 + WORDS.iter().position(|&word| word == "0").unwrap() as u32;
    assert_eq!(allowed(&mut matcher), [u32::from(b'0'), zero]);
}

#[test]
fn padding_and_special_tokens_are_never_text() {
    let fixture = Fixture::by_hand();
    let mut matcher = fixture.compile(&ResponseFormat::regex("(?s).*")).unwrap();
    let tool = fixture.vocab as u32 - PADDING as u32 - 1;
    assert!(fixture.pieces.is_special(tool));
    let ids = allowed(&mut matcher);
    assert!(ids.iter().all(|&id| id < tool), "special tokens other than the ends, and padding, are not text");
    assert!(fixture.ends.iter().all(|end| ids.contains(end)), "any text may end at once");
    // A complement matches bytes that are no text.
    let mut matcher = fixture.compile(&ResponseFormat::lark("start: A\nA: ~/a/")).unwrap();
    assert!(allowed(&mut matcher).iter().all(|&id| id < tool || fixture.ends.contains(&id)));
    // Even where a grammar asks for any token at all.
    let mut matcher = fixture.compile(&ResponseFormat::lark("start: <[*]> \"x\"")).unwrap();
    let ids = allowed(&mut matcher);
    assert!(ids.contains(&tool) && ids.iter().all(|&id| id <= tool));
    assert!(!fixture.ends.iter().any(|end| ids.contains(end)), "nothing is complete yet");
}

#[test]
fn without_end_tokens_a_complete_reply_has_an_empty_mask() {
    let fixture = Fixture::with(|_| vec![]);
    let mut matcher = fixture.compile(&ResponseFormat::regex("ab?")).unwrap();
    assert!(!matcher.is_stopped() && !matcher.is_complete().unwrap());
    matcher.accept(u32::from(b'a')).unwrap();
    assert!(!matcher.is_stopped() && matcher.is_complete().unwrap());
    matcher.accept(u32::from(b'b')).unwrap();
    assert!(matcher.is_stopped() && matcher.is_complete().unwrap());
    assert!(allowed(&mut matcher).is_empty());
}

#[test]
fn a_format_that_is_complete_at_once_allows_the_end_only() {
    let fixture = Fixture::by_hand();
    let mut matcher = fixture.compile(&ResponseFormat::lark("start: \"\"")).unwrap();
    assert!(matcher.is_stopped());
    assert_eq!(allowed(&mut matcher), fixture.ends);
    matcher.accept(fixture.ends[1]).unwrap();
    assert!(matches!(matcher.accept(fixture.ends[0]), Err(Error::Grammar(GrammarReason::Rejected))));
}

#[test]
fn white_space_in_json_has_an_end() {
    let fixture = Fixture::by_hand();
    for format in [ResponseFormat::json_object(), ResponseFormat::json_schema(json!({ "type": "object" }))] {
        let mut matcher = fixture.compile(&format).unwrap();
        assert!(matcher.accept(u32::from(b' ')).is_err(), "none before the text");
        matcher.accept(u32::from(b'{')).unwrap();
        let spaces = (0..).take_while(|_| matcher.accept(u32::from(b' ')).is_ok()).count();
        assert_eq!(spaces, 1);
        matcher.accept(u32::from(b'\n')).unwrap_err();
        matcher.accept(u32::from(b'}')).unwrap();
        assert!(matcher.is_stopped(), "none behind it");
    }
}

#[test]
fn drafts_are_counted() {
    let fixture = Fixture::by_hand();
    let mut matcher =
        fixture.schema(json!({ "properties": { "name": { "type": "boolean" } }, "type": "object" }));
    let mut draft = fixture.spell("{\"name\": true}");
    let whole = draft.len();
    draft.push(fixture.ends[0]);
    draft.push(u32::from(b'x'));
    assert_eq!(matcher.validate(&draft).unwrap(), whole + 1, "the end token is the last");
    assert_eq!(matcher.validate(&[]).unwrap(), 0);
    assert_eq!(matcher.validate(&[fixture.vocab as u32, u32::from(b'{')]).unwrap(), 0);
    let broken = [draft[0], u32::from(b'\x07'), draft[1]];
    assert_eq!(matcher.validate(&broken).unwrap(), 1);
}

#[test]
fn a_matcher_moves_to_another_thread() {
    let fixture = Fixture::by_hand();
    let mut matcher = fixture.compile(&ResponseFormat::json_object()).unwrap();
    let ids = std::thread::scope(|scope| scope.spawn(|| allowed(&mut matcher)).join().unwrap());
    assert_eq!(ids, allowed(&mut matcher));
}

/// Choices of a request begin with copies of one grammar: what happens to the one must not show in the other.
#[test]
fn copies_of_a_grammar_share_nothing_that_changes() {
    let fixture = Fixture::by_hand();
    let format = ResponseFormat::regex("(a|b)*a(a|b){6}c");
    let run = |mut matcher: Matcher| {
        let masks: Vec<_> = b"abbabaababbabbac"
            .iter()
            .map(|byte| {
                let mask = allowed(&mut matcher);
                matcher.accept(fixture.byte(*byte)).unwrap();
                mask
            })
            .collect();
        (masks, matcher.fuel())
    };
    let start = fixture.compile(&format).unwrap();
    let (first, second, mut third) = (start.fork(), start.fork(), start.fork());
    let first = run(first);
    third.canceller().unwrap().cancel();
    assert!(third.mask(&mut Secret::default()).is_err(), "it was cancelled");
    let second = run(second);
    assert_eq!(second.0, first.0);
    assert_eq!(second.1, first.1, "the one spared the other some fuel");
    assert_eq!(first, run(fixture.compile(&format).unwrap()));
}
