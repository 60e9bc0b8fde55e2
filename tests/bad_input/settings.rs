//! Settings that are out of bounds, or ask for memory that is not there.

use amnesic::{Builder, Device};
use serde_json::json;

use super::common::Recipe;
use super::parts::Parts;
use super::{Is, builder, is, refuses};

#[test]
fn settings_out_of_bounds() {
    let folder = Parts::small().write();
    type Change = fn(Builder) -> Builder;
    let cases: [(&str, Change, &str); 16] = [
        ("threads", |b| b.threads(0), "1 to 1024"),
        ("threads", |b| b.threads(1025), "1 to 1024"),
        ("threads", |b| b.threads(usize::MAX), "1 to 1024"),
        ("kv_tokens", |b| b.kv_tokens(0), "from 1"),
        ("kv_tokens", |b| b.kv_tokens(usize::MAX), "from 1"),
        ("kv_tokens", |b| b.kv_tokens((1 << 31) + 1), "2147483648"),
        ("context_length", |b| b.context_length(0), "1 to 512"),
        ("context_length", |b| b.context_length(513), "1 to 512"),
        ("context_length", |b| b.context_length(usize::MAX), "1 to 512"),
        ("context_length", |b| b.context_length(65).kv_tokens(64), "kv_tokens, 64"),
        ("max_sequences", |b| b.max_sequences(0), "1 to 65536"),
        ("max_sequences", |b| b.max_sequences(65537), "1 to 65536"),
        ("step_tokens", |b| b.step_tokens(0), "1 to 65536"),
        ("step_tokens", |b| b.step_tokens(usize::MAX), "1 to 65536"),
        ("device", |b| b.device(Device::CpuWith("sse9")), "portable"),
        ("device", |b| b.device(Device::CpuWith("")), "portable"),
    ];
    for (field, change, words) in cases {
        refuses(field, change(builder(folder.path())), Is::Setting(field), &[field, words]);
    }
    for (budget, number) in [(0, "is 0"), (1000, "is 1000")] {
        let words = [number, "weights, KV cache, workspace", "needs "];
        refuses("budget", builder(folder.path()).memory_budget(budget), Is::Memory, &words);
    }
    let needed = builder(folder.path()).open().unwrap().memory().total_bytes();
    let words = [&*format!("{needed} bytes"), &*format!("is {}", needed - 1)];
    refuses("a byte less", builder(folder.path()).memory_budget(needed - 1), Is::Memory, &words);
    assert!(builder(folder.path()).memory_budget(needed).open().is_ok());
}

/// 256 TiB of cache: more than a process can address, whatever the machine promises.
#[test]
fn a_cache_that_cannot_be_mapped() {
    let mut recipe = Recipe::small(8);
    for (field, value) in [
        ("hidden_size", 2),
        ("intermediate_size", 2),
        ("num_hidden_layers", 64),
        ("num_attention_heads", 1),
        ("num_key_value_heads", 1),
        ("head_dim", 512),
    ] {
        recipe.config[field] = value.into();
    }
    let folder = Parts::new(&recipe).write();
    let words = ["KV cache", "the system "];
    refuses("256 TiB", builder(folder.path()).kv_tokens(1 << 31), Is::Memory, &words);
}

/// Runs in a process of its own, since what it looks for is an abort.
#[test]
fn a_context_that_does_not_fit_the_machine() {
    const CHILD: &str = "AMNESIC_TEST_CHILD";
    let mut parts = Parts::small();
    parts.config["max_position_embeddings"] = json!(1_u64 << 31);
    if std::env::var_os(CHILD).is_some() {
        let folder = parts.write();
        let error = builder(folder.path()).kv_tokens(1 << 31).open().unwrap_err();
        assert_eq!(is(&error), Is::Memory, "{error}");
        return;
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["settings::a_context_that_does_not_fit_the_machine", "--exact"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{}: {}{shown}", child.status, String::from_utf8_lossy(&child.stdout));
}
