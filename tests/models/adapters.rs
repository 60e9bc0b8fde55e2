//! Adapters of low rank against PEFT (`tools/fixture_adapters.py`): beside the weights, chosen by each request and mixed in
//! one batch; and merged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use amnesic::testing::LogitsTap;
use amnesic::{Builder, Device, Error, Quantize, Request, Session};
use serde::Deserialize;

use crate::common::{Low, fixture, hold_logits, instruction_sets, read_f32s};
use crate::expected::ExpectedOne;

/// The names of the checkpoints that there are adapters for.
fn checkpoints() -> Vec<String> {
    let entries = std::fs::read_dir(fixture("adapters")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| !name.starts_with('.'));
    names.sort();
    assert!(names.len() >= 5, "{names:?}");
    names
}

fn adapters(name: &str) -> PathBuf {
    fixture(&format!("adapters/{name}"))
}

fn expected(folder: &Path) -> BTreeMap<String, ExpectedOne> {
    serde_json::from_str(&std::fs::read_to_string(folder.join("expected.json")).unwrap()).unwrap()
}

fn plain(name: &str) -> Builder {
    Session::builder(fixture(&format!("families/{name}"))).context_length(128).kv_tokens(1024)
}

/// With both adapters beside the weights.
fn beside(name: &str) -> Builder {
    let folder = adapters(name);
    plain(name).adapter("all", folder.join("all")).adapter("some", folder.join("some"))
}

fn greedy(expected: &ExpectedOne) -> Request {
    Request::tokens(expected.prompt.clone()).max_tokens(expected.greedy.len()).temperature(0.0)
}

/// Tokens and logits of a request are those of the reference.
fn hold(session: &Session, request: Request, expected: &ExpectedOne, reference: &[f32], what: &str) {
    let tap = LogitsTap::default();
    let reply = session.generate(request.tap_logits(&tap)).unwrap();
    assert_eq!(reply.tokens(), expected.greedy, "{what}: greedy tokens");
    let low = Low { max_abs: expected.low_max_abs, rms: expected.low_rms };
    hold_logits(&tap.values(), reference, low, 2.0, what);
}

#[test]
fn every_instruction_set_holds_adapters_beside_the_weights() {
    for device in instruction_sets() {
        for name in checkpoints() {
            let folder = adapters(&name);
            for chunk in [512, 5] {
                let session =
                    beside(&name).device(device).max_sequences(4).step_tokens(chunk).open().unwrap();
                for (adapter, expected) in expected(&folder) {
                    let reference = read_f32s(&folder.join("expected.safetensors"), &adapter);
                    let what = format!("{name}, {adapter}, {device:?}, chunks of {chunk}");
                    hold(&session, greedy(&expected).adapter(&adapter), &expected, &reference, &what);
                }
            }
        }
    }
}

#[test]
fn the_reference_backend_holds_adapters() {
    for name in checkpoints() {
        let folder = adapters(&name);
        let session = beside(&name).device(Device::Reference).open().unwrap();
        for (adapter, expected) in expected(&folder) {
            let reference = read_f32s(&folder.join("expected.safetensors"), &adapter);
            let what = format!("{name}, {adapter}");
            hold(&session, greedy(&expected).adapter(&adapter), &expected, &reference, &what);
        }
    }
}

#[test]
fn merged_adapters_are_part_of_the_weights() {
    for name in checkpoints() {
        let folder = adapters(&name);
        for (adapter, expected) in expected(&folder) {
            let session = plain(&name).merge_adapter(folder.join(&adapter)).open().unwrap();
            let reference = read_f32s(&folder.join("expected.safetensors"), &adapter);
            hold(&session, greedy(&expected), &expected, &reference, &format!("{name}, {adapter}, merged"));
        }
    }
}

fn tokens(session: &Session, request: Request) -> Vec<u32> {
    session.generate(request).unwrap().tokens().to_vec()
}

/// Requests with one adapter, with another and with none, all at once: each gets what it gets alone, bit for bit; and
/// without an adapter what a session without adapters gives.
#[test]
fn mixed_in_one_batch() {
    for name in checkpoints() {
        for quantize in [None, Some(Quantize::Q8), Some(Quantize::Q4)] {
            let with = |builder: Builder| match quantize {
                Some(to) => builder.quantize(to),
                None => builder,
            };
            let alone = with(beside(&name)).max_sequences(1).threads(1).open().unwrap();
            let bare = with(plain(&name)).open().unwrap();
            let together = with(beside(&name)).max_sequences(16).step_tokens(37).threads(3).open().unwrap();
            let request = |i: u32| {
                let prompt: Vec<u32> = (0..5 + i * 3).map(|at| 3 + (at * 7 + i * 13) % 90).collect();
                Request::tokens(prompt).max_tokens(12).temperature(0.8).seed(u64::from(i)).ignore_eos(true)
            };
            let choose = |request: Request, i: u32| match i % 3 {
                0 => request,
                1 => request.adapter("all"),
                _ => request.adapter("some"),
            };
            let taps: Vec<LogitsTap> = (0..12).map(|_| LogitsTap::default()).collect();
            let requests = (0..12).map(|i| choose(request(i), i).tap_logits(&taps[i as usize]));
            let replies = together.generate_batch(requests).unwrap();
            for i in 0..12 {
                let tap = LogitsTap::default();
                let single = tokens(&alone, choose(request(i), i).tap_logits(&tap));
                assert_eq!(replies[i as usize].tokens(), single, "{name}, {quantize:?}, request {i}");
                let bits =
                    |tap: &LogitsTap| tap.values().iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&taps[i as usize]), bits(&tap), "{name}, {quantize:?}, request {i}");
                if i % 3 == 0 {
                    let tap = LogitsTap::default();
                    assert_eq!(tokens(&bare, request(i).tap_logits(&tap)), single, "{name}, {quantize:?}");
                    assert_eq!(bits(&taps[i as usize]), bits(&tap), "{name}, {quantize:?}, without adapters");
                }
            }
            assert_eq!(together.load().kv_blocks_used, 0);
        }
    }
}

/// Keys and values of one adapter are never another's.
#[test]
fn nothing_is_shared_between_adapters() {
    let session = beside("qwen3").open().unwrap();
    let prompt: Vec<u32> = (0..80).map(|i| 3 + i * 7 % 97).collect();
    let request = |adapter: Option<&str>| {
        let request = Request::tokens(prompt.clone()).max_tokens(8).temperature(0.0).ignore_eos(true);
        adapter.into_iter().fold(request, Request::adapter)
    };
    let names = [None, Some("all"), Some("some")];
    let expected = names.map(|adapter| tokens(&session, request(adapter)));
    assert!(expected[0] != expected[1] && expected[1] != expected[2]);
    let public = session.publish(request(Some("all"))).unwrap();
    for round in 0..2 {
        for i in [1, 0, 2, 1] {
            let reply = session.generate(request(names[i]).shares(&public)).unwrap();
            assert_eq!(reply.tokens(), expected[i], "{:?}, round {round}", names[i]);
            assert!(i == 1 || reply.usage.cached_tokens == 0, "{:?} uses another's keys", names[i]);
        }
    }
    assert!(session.generate(request(Some("all")).shares(&public)).unwrap().usage.cached_tokens >= 64);
    drop(public);
    // turns of one conversation
    let mut conversation = session.conversation();
    let mut said = prompt.clone();
    for i in [0, 1, 1, 2, 0] {
        let more = [11 + i as u32, 17];
        let asked = if said.len() == prompt.len() { prompt.clone() } else { more.to_vec() };
        if said.len() != prompt.len() {
            said.extend(more);
        }
        let turn = |ids: Vec<u32>| {
            let request = Request::tokens(ids).max_tokens(8).temperature(0.0).ignore_eos(true);
            names[i].into_iter().fold(request, Request::adapter)
        };
        let reply = conversation.generate(turn(asked)).unwrap();
        assert_eq!(reply.tokens(), tokens(&session, turn(said.clone())), "a turn with {:?}", names[i]);
        said.extend(reply.tokens());
    }
}

#[derive(Deserialize)]
struct Further {
    #[serde(flatten)]
    expected: ExpectedOne,
    /// Whether it can stay beside the weights.
    beside: bool,
}

/// DoRA, modules that were trained as a whole, adapters of the embedding table and the head, and alphas and ranks by
/// patterns, against PEFT (`tools/fixture_adapters_merged.py`): merged, and beside the weights; there modules that replace others
/// are an error that says what to do.
#[test]
fn adapters_of_more_than_linear_layers() {
    let folders = std::fs::read_dir(fixture("adapters_merged")).unwrap().map(|entry| entry.unwrap().path());
    let folders: Vec<_> = folders.filter(|folder| folder.join("expected.json").exists()).collect();
    assert!(folders.len() >= 14, "{folders:?}");
    for folder in folders {
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
        let config: serde_json::Value = serde_json::from_str(&read("adapter_config.json")).unwrap();
        let name = config["base_model_name_or_path"].as_str().unwrap();
        let Further { expected, beside } = serde_json::from_str(&read("expected.json")).unwrap();
        let reference = read_f32s(&folder.join("expected.safetensors"), "logits");
        let what = folder.file_name().unwrap().to_str().unwrap();
        for device in [Device::Cpu, Device::Reference] {
            let session = plain(name).device(device).merge_adapter(&folder).open();
            let session = session.unwrap_or_else(|error| panic!("{what}: {error}"));
            hold(&session, greedy(&expected), &expected, &reference, &format!("{what}, merged, {device:?}"));
            match plain(name).device(device).adapter("x", &folder).max_sequences(4).open() {
                Ok(session) => {
                    assert!(beside, "{what}");
                    let what = format!("{what}, beside, {device:?}");
                    hold(&session, greedy(&expected).adapter("x"), &expected, &reference, &what);
                }
                Err(error) => {
                    assert!(!beside && matches!(error, Error::Tensor { .. }), "{what}: {error}");
                    assert!(error.to_string().contains("merge_adapter"), "{what}: {error}");
                }
            }
        }
    }
}

/// What one adapter changes is nobody else's: requests with a changed head, with other embeddings, with DoRA, and without
/// share steps, and each gets the bits that it gets alone.
#[test]
fn changed_tables_and_lengths_change_their_own_requests_only() {
    for (name, adapters) in [
        ("qwen3", &["head", "embedding", "dora", "dora_embedding", "dora_head"][..]),
        ("gemma", &["embedding_tied", "head_tied"]),
        ("starcoder2", &["dora_biases"]),
        ("deepseek_v3", &["dora_latent"]),
    ] {
        let beside = || {
            let folder = |adapter: &str| fixture(&format!("adapters_merged/{adapter}"));
            adapters.iter().fold(plain(name), |builder, adapter| builder.adapter(*adapter, folder(adapter)))
        };
        let alone = beside().max_sequences(1).threads(1).open().unwrap();
        let bare = plain(name).open().unwrap();
        let together = beside().max_sequences(12).step_tokens(19).threads(2).open().unwrap();
        let adapter = |i: usize| match i % 4 {
            0 => None,
            _ => Some(adapters[(i - 1 - i / 4) % adapters.len()]),
        };
        let request = |i: usize| {
            let prompt: Vec<u32> = (0..4 + i).map(|at| 3 + (at * 7 + i * 13) as u32 % 90).collect();
            let request = Request::tokens(prompt).max_tokens(6).temperature(0.0).ignore_eos(true);
            adapter(i).into_iter().fold(request, Request::adapter)
        };
        let bits = |tap: &LogitsTap| tap.values().iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        let run = |session: &Session, i: usize| {
            let tap = LogitsTap::default();
            session.generate(request(i).tap_logits(&tap)).unwrap();
            bits(&tap)
        };
        let taps: Vec<LogitsTap> = (0..12).map(|_| LogitsTap::default()).collect();
        together.generate_batch((0..12).map(|i| request(i).tap_logits(&taps[i]))).unwrap();
        for (i, tap) in taps.iter().enumerate() {
            let mixed = bits(tap);
            assert_eq!(mixed, run(&alone, i), "{name}, request {i} with {:?}", adapter(i));
            if adapter(i).is_none() {
                assert_eq!(mixed, run(&bare, i), "{name}, request {i}, without adapters");
            }
        }
    }
}

#[test]
fn what_is_wrong_with_an_adapter_is_named() {
    let folder = adapters("qwen3");
    let copy = |change: &dyn Fn(&mut serde_json::Value)| {
        let copy = tempfile::tempdir().unwrap();
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(folder.join("all").join(name), copy.path().join(name)).unwrap();
        }
        let file = copy.path().join("adapter_config.json");
        let mut config = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        change(&mut config);
        std::fs::write(file, config.to_string()).unwrap();
        copy
    };
    let field = |change: &dyn Fn(&mut serde_json::Value)| {
        let copy = copy(change);
        let errors = [
            plain("qwen3").adapter("x", copy.path()).open(),
            plain("qwen3").merge_adapter(copy.path()).open(),
        ];
        let fields = errors.map(|error| match error.unwrap_err() {
            Error::Config { field, .. } => field,
            other => panic!("{other}"),
        });
        assert_eq!(fields[0], fields[1]);
        fields[0].clone()
    };
    assert_eq!(field(&|config| config["peft_type"] = "IA3".into()), "peft_type");
    assert_eq!(field(&|config| config["lora_bias"] = true.into()), "lora_bias");
    assert_eq!(field(&|config| config["alpha_pattern"] = serde_json::json!({"(": 3})), "alpha_pattern");
    assert_eq!(field(&|config| config["bias"] = "all".into()), "bias");
    assert_eq!(field(&|config| config["r"] = 0.into()), "r");
    assert_eq!(
        field(&|config| config["modules_to_save"] = serde_json::json!(["lm_head"])),
        "modules_to_save"
    );
    // DoRA's lengths are not there
    let dora = copy(&|config| config["use_dora"] = true.into());
    for error in [
        plain("qwen3").adapter("x", dora.path()).open().unwrap_err(),
        plain("qwen3").merge_adapter(dora.path()).open().unwrap_err(),
    ] {
        assert!(error.to_string().contains("lora_magnitude_vector"), "{error}");
    }
    // of another model
    let error = plain("qwen3").adapter("x", adapters("gpt_neox").join("all")).open().unwrap_err();
    assert!(matches!(error, Error::Tensors { .. }), "{error}");
    assert!(error.to_string().contains("gpt_neox"), "{error}");
    assert!(matches!(
        plain("phi3").merge_adapter(folder.join("all")).open().unwrap_err(),
        Error::Tensors { .. }
    ));
    assert!(matches!(plain("qwen3").adapter("x", "/nowhere").open().unwrap_err(), Error::Read { .. }));
    // a request names what is not there
    let session = beside("qwen3").open().unwrap();
    match session.generate(Request::tokens([3]).adapter("none")).unwrap_err() {
        Error::Request { field: "adapter", expected } => {
            let told = ["all", "some"].iter().any(|name| expected.contains(name));
            assert!(!told, "it names the adapters of others: {expected}")
        }
        other => panic!("{other}"),
    }
}
