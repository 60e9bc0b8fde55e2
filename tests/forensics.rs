//! What a request leaves in memory with the system's allocator: nothing but, possibly, the tokenizer's copies of the
//! prompt's text.

mod common;
#[path = "forensics/mod.rs"]
#[allow(dead_code, reason = "each test takes what it needs")]
mod search;

fn main() {
    search::main(false);
}
