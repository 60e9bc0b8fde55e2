//! What a request leaves in memory with `amnesic::alloc::Scrubbing` installed: nothing.

mod common;
#[path = "forensics/mod.rs"]
#[allow(dead_code, reason = "each test takes what it needs")]
mod search;

amnesic::install_scrubbing_allocator!();

fn main() {
    search::main(true);
}
