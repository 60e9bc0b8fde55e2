//! With `amnesic::alloc::Scrubbing` installed, no writable byte of a process tells which of two requests was its last.

mod common;
#[path = "differential/mod.rs"]
mod compared;

#[global_allocator]
static ALLOCATOR: amnesic::alloc::Scrubbing = amnesic::alloc::Scrubbing;

fn main() {
    compared::main(true);
}
