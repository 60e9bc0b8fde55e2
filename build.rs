//! Decides one thing: whether this build has switches with which tests leave scrubs out (`--cfg amnesic_faults`).
//!
//! They are no feature, because features unify: a dependency that turned one on would put switches into the scrubs of the
//! application that depends on both. `AMNESIC_FAULTS=1 cargo test ...` turns them on for this crate and its own tests. An
//! environment variable is as safe as `RUSTFLAGS='--cfg amnesic_faults'`, which would build every dependency again: both are
//! set by who builds, and by nobody else. A dependency can set neither: Cargo reads `.cargo/config.toml` of who builds
//! alone, and what a build script sets (`cargo::rustc-env`) reaches the compiler of its own package, not the build script of
//! another. (A dependency whose build script rewrites files of the machine that it runs on can do anything, to `RUSTFLAGS`
//! too.) An environment may be inherited by accident, though. So the build warns, receipts list `faults` among the features,
//! and `tools/check_switches` finds the switches in what was built.

fn main() {
    println!("cargo::rerun-if-env-changed=AMNESIC_FAULTS");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(amnesic_faults)");
    if std::env::var_os("AMNESIC_FAULTS").is_some_and(|value| value == "1") {
        println!("cargo::rustc-cfg=amnesic_faults");
        println!(
            "cargo::warning=AMNESIC_FAULTS=1: tests of this build can leave scrubs out; ship no such build"
        );
    }
}
