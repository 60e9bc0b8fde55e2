//! With `amnesic::alloc::Scrubbing` installed, no writable byte of a process tells which of two requests was its last.

mod common;
#[path = "differential/mod.rs"]
mod compared;

amnesic::install_scrubbing_allocator!();

fn main() {
    compared::main(true);
}
