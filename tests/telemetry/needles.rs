//! What must not be found, in every form in which it could be.

/// A word that stands nowhere else, for one field.
pub fn word(field: usize) -> String {
    // no digits and no syllable of ours, so that it is one thing to search for
    let letter = |value: usize| char::from(b'a' + value as u8);
    format!("Quartz{}{}wickel", letter(field / 26), letter(field % 26))
}

/// Forms of a text: as it is, escaped, as hex and as base64 wherever it may begin.
pub fn of_text(text: &str) -> Vec<String> {
    of_bytes(text.as_bytes()).into_iter().chain([text.to_owned(), text.to_lowercase()]).collect()
}

/// Forms of a token id of six digits, among others and alone.
pub fn of_id(id: u32) -> Vec<String> {
    assert!(id >= 100_000, "too short to tell from chance: {id}");
    let decimal = id.to_string();
    let grouped = format!("{}_{}", &decimal[..3], &decimal[3..]);
    [decimal, grouped, format!("{id:08x}"), format!("{id:08X}")].into()
}

/// Forms of ids behind one another, as bytes.
pub fn of_ids(ids: &[u32]) -> Vec<String> {
    of_bytes(&ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>())
}

fn of_bytes(bytes: &[u8]) -> Vec<String> {
    let hex = |upper: bool, between: &str| {
        let pairs =
            bytes.iter().map(|byte| if upper { format!("{byte:02X}") } else { format!("{byte:02x}") });
        pairs.collect::<Vec<_>>().join(between)
    };
    let decimals =
        |between: &str| bytes.iter().map(|byte| byte.to_string()).collect::<Vec<_>>().join(between);
    let mut forms =
        vec![hex(false, ""), hex(true, ""), hex(false, " "), hex(true, " "), decimals(", "), decimals(",")];
    for skipped in 0..3 {
        let whole = &bytes[skipped..];
        let whole = &whole[..whole.len() / 3 * 3];
        forms.push(base64(whole, b"+/"));
        forms.push(base64(whole, b"-_"));
    }
    forms
}

fn base64(bytes: &[u8], last: &[u8; 2]) -> String {
    let alphabet: Vec<u8> = (b'A'..=b'Z').chain(b'a'..=b'z').chain(b'0'..=b'9').chain(*last).collect();
    let (threes, rest) = bytes.as_chunks::<3>();
    assert!(rest.is_empty());
    let sextets =
        threes.iter().flat_map(|[a, b, c]| [a >> 2, a << 4 & 48 | b >> 4, b << 2 & 60 | c >> 6, c & 63]);
    sextets.map(|sextet| char::from(alphabet[usize::from(sextet)])).collect()
}

#[test]
fn forms_are_those_of_the_standards() {
    assert_eq!(base64(b"Manner", b"+/"), "TWFubmVy");
    assert_eq!(base64(&[0xff, 0xef, 0xfe], b"+/"), "/+/+");
    let forms = of_text("abc");
    for expected in ["abc", "616263", "61 62 63", "97, 98, 99", "YWJj"] {
        assert!(forms.iter().any(|form| form == expected), "{expected}");
    }
    assert!(of_id(123_456).contains(&"123456".to_owned()) && of_id(123_456).contains(&"0001e240".to_owned()));
    assert!(of_ids(&[1]).contains(&"01000000".to_owned()));
}
