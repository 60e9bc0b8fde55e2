//! Number ranges, exactly: every number of a range against the definition.

use serde_json::{Value, json};

use super::{Draws, Fixture, ResponseFormat};

#[test]
fn integer_ranges_are_exact() {
    let fixture = Fixture::by_hand();
    let mut draws = Draws(3);
    for round in 0..40 {
        let (a, b) = (draws.below(2400) as i64 - 1200, draws.below(2400) as i64 - 1200);
        let (low, high) = (a.min(b), a.max(b));
        let multiple = [1, 1, 2, 7, 10][draws.below(5)];
        let mut schema = json!({ "type": "integer", "multipleOf": multiple });
        let exclusive = round % 3 == 0;
        if round % 5 != 0 {
            schema[if exclusive { "exclusiveMinimum" } else { "minimum" }] = low.into();
        }
        if round % 7 != 0 {
            schema[if exclusive { "exclusiveMaximum" } else { "maximum" }] = high.into();
        }
        let above = |n: i64| round % 5 == 0 || n > low || n == low && !exclusive;
        let below = |n: i64| round % 7 == 0 || n < high || n == high && !exclusive;
        let inside = |n: &i64| above(*n) && below(*n) && n % multiple == 0;
        if !(-1300..1300).any(|n| inside(&n)) {
            continue;
        }
        let start = fixture.schema(schema.clone());
        for n in -1300..1300_i64 {
            assert_eq!(fixture.accepts(&start, &n.to_string()), inside(&n), "{n} under {schema}");
        }
    }
}

/// llguidance leaves out some numbers near a bound with decimals (2.2 below a maximum of 2.21), but lets none in.
#[test]
fn decimal_ranges_hold() {
    let fixture = Fixture::by_hand();
    let mut draws = Draws(5);
    for round in 0..25 {
        // in hundredths
        let (a, b) = (draws.below(600) as i64 - 300, draws.below(600) as i64 - 300);
        let (low, high) = (a.min(b), a.max(b) + 30);
        let exclusive = round % 2 == 0;
        let (min, max) =
            if exclusive { ("exclusiveMinimum", "exclusiveMaximum") } else { ("minimum", "maximum") };
        let schema = json!({ "type": "number", min: low as f64 / 100.0, max: high as f64 / 100.0 });
        let start = fixture.schema(schema.clone());
        let (mut accepted, mut inside) = (0, 0);
        for n in -320..350_i64 {
            let is_inside = if exclusive { n > low && n < high } else { n >= low && n <= high };
            for text in [
                format!("{}{}.{:02}", if n < 0 { "-" } else { "" }, n.abs() / 100, n.abs() % 100),
                (n as f64 / 100.0).to_string(),
            ] {
                let is_accepted = fixture.accepts(&start, &text);
                assert!(is_inside || !is_accepted, "{text} under {schema}");
                accepted += usize::from(is_accepted);
                inside += usize::from(is_inside);
            }
        }
        assert!(accepted * 10 > inside * 8, "{accepted} of {inside} numbers under {schema}");
    }
}

#[test]
fn bounds_at_the_edge_of_what_integers_hold() {
    let fixture = Fixture::by_hand();
    let bounds: [(i64, i64); 6] = [
        (0, u32::MAX.into()),
        (i32::MIN.into(), i32::MAX.into()),
        (0, 1 << 53),
        (-(1 << 53), 1 << 53),
        (0, i64::MAX),
        (-9_000_000_000_000_000_000, i64::MAX),
    ];
    for (low, high) in bounds {
        let start = fixture.schema(json!({ "type": "integer", "minimum": low, "maximum": high }));
        for (n, inside) in [
            (i128::from(low), true),
            (i128::from(high), true),
            (i128::from(low) - 1, false),
            (i128::from(high) + 1, false),
            (i128::from(high) / 3, true),
        ] {
            assert_eq!(fixture.accepts(&start, &n.to_string()), inside, "{n} in {low}..={high}");
        }
    }
}

/// A value is the number that the schema says, or the keyword is refused by its name.
#[test]
fn whole_numbers_that_f64_does_not_hold_are_refused_as_values() {
    let fixture = Fixture::by_hand();
    let text = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    for exact in ["9007199254740992", "-9007199254740994", "1152921504606846976", "0", "1e3", "0.5"] {
        let start = fixture.schema(json!({ "const": text(exact) }));
        assert!(exact.contains('e') || fixture.accepts(&start, exact), "{exact}");
        assert!(!fixture.accepts(&start, "1"), "{exact}");
    }
    for inexact in ["9007199254740993", "-9007199254740993", "18446744073709551615"] {
        for (schema, keyword) in [
            (json!({ "const": text(inexact) }), "const"),
            (json!({ "enum": [1, "a", text(inexact)] }), "enum"),
            (json!({ "properties": { "a": { "enum": [{ "b": [text(inexact)] }] } } }), "enum"),
        ] {
            let error = fixture.compile(&ResponseFormat::json_schema(schema.clone())).unwrap_err();
            assert!(error.to_string().contains(&format!("`{keyword}`")), "{schema}: {error}");
            let lenient = ResponseFormat::json_schema(schema.clone()).lenient();
            let begun = fixture.grammars.compile(&lenient, 1).unwrap().unwrap();
            assert_eq!(begun.not_enforced, [keyword], "{schema}");
        }
    }
}
