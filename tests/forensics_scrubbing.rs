//! What a request leaves in memory with `amnesic::alloc::Scrubbing` installed: nothing.

mod common;
#[path = "forensics/mod.rs"]
mod search;

#[global_allocator]
static ALLOCATOR: amnesic::alloc::Scrubbing = amnesic::alloc::Scrubbing;

fn main() {
    search::main(true);
}
