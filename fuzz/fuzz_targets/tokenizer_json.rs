//! `tokenizer.json`, behind a zero byte a text to encode, and behind another one `tokenizer_config.json`.

use std::sync::OnceLock;

use amnesic::{Files, Request};

use crate::shared::{small, tiny, typed};

pub fn run(input: &[u8]) {
    static TINY: OnceLock<Files> = OnceLock::new();
    let mut parts = input.splitn(3, |byte| *byte == 0);
    let mut files = TINY.get_or_init(|| tiny(512)).clone();
    files = files.file("tokenizer.json", parts.next().unwrap_or_default().to_vec());
    let text = String::from_utf8_lossy(parts.next().unwrap_or(b"Ownership is Rust's \xf0\x9f\xa6\x80")).into_owned();
    if let Some(config) = parts.next() {
        files = files.file("tokenizer_config.json", config.to_vec());
    }
    let Some(session) = typed(small(files).open()) else { return };
    for literal in [false, true] {
        if let Some(ids) = typed(session.tokenize(Request::prompt(&*text).literal_text(literal))) {
            typed(session.detokenize(ids.ids(), literal));
        }
    }
    let form = amnesic::ResponseFormat::regex("[a-z]{1,3}");
    typed(session.generate(Request::prompt(text).max_tokens(2).response_format(form).seed(1)));
    typed(session.close());
}
