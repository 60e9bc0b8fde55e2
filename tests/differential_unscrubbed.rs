//! With the system's allocator, no writable byte of a process tells which of two requests was its last, but where the
//! `minijinja` and `llguidance` crates, which render chats and follow grammars, free memory as it is.

mod common;
#[path = "differential/mod.rs"]
mod compared;

fn main() {
    compared::main(false);
}
