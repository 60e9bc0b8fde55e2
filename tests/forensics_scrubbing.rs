//! What a request leaves in memory with `amnesic::alloc::Scrubbing` installed: nothing.

mod common;
#[path = "forensics/mod.rs"]
#[allow(dead_code, reason = "each test takes what it needs")]
mod search;

#[global_allocator]
static ALLOCATOR: amnesic::alloc::Scrubbing = amnesic::alloc::Scrubbing;

fn main() {
    search::main(true);
}
