//! GGUF files: the input is a file up to its tensors, which are zeros.

use amnesic::Files;

use crate::shared::{open, small, typed};

/// Bytes of tensors behind the input: more than those of the files that the corpus describes.
const DATA_BYTES: usize = 192 << 10;

pub fn run(input: &[u8]) {
    let file = [input, &[0; DATA_BYTES]].concat();
    let builder = small(Files::new().file("model.gguf", file));
    // where the tensors do not end with the file
    let Some(session) = typed(builder.allow_extra_tensors().open()) else { return };
    for text in ["Ownership is Rust's", "<s>\u{1f980} \n\t", ""] {
        if let Some(ids) = typed(session.tokenize(text)) {
            typed(session.detokenize(ids.ids(), false));
        }
    }
    typed(session.apply_chat_template(amnesic::Request::chat([amnesic::user("a")])));
    typed(session.close());
    open(small(Files::new().file("model.gguf", input.to_vec())));
}
