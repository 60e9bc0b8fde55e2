//! What published checkpoints write in other ways: numbers and nulls of config.json and generation_config.json, names of
//! tensors, shards, element types. Each opens, and gives what the plain spelling gives; what cannot be read says what to do.
//!
//! Who takes a value how: transformers 5.24 (`TopPLogitsWarper` keeps one token for 0, and filters nothing from 1 on;
//! temperatures are divided by; `mscale` of 0 is none), vLLM (`top_k` of -1 is all tokens, a temperature of 0 is greedy),
//! llama.cpp (negative temperatures are greedy).

use std::borrow::Cow;
use std::path::Path;

use amnesic::testing::LogitsTap;
use amnesic::{Builder, Error, Request, Session};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::common::{Recipe, fixture};

fn builder(folder: &Path) -> Builder {
    Session::builder(folder).threads(1).kv_tokens(256).max_sequences(2).step_tokens(32)
}

/// The logits of a few greedy steps, as bits; with the tokens they say all that a session computes.
fn bits(session: &Session) -> Vec<u32> {
    let tap = LogitsTap::default();
    let request = Request::tokens([1, 7, 30, 4]).max_tokens(6).temperature(0.0).ignore_eos(true);
    session.generate(request.tap_logits(&tap)).unwrap();
    tap.values().iter().map(|value| value.to_bits()).collect()
}

fn sampled(session: &Session, seed: u64) -> Vec<u32> {
    let request = Request::tokens([1, 7, 30, 4]).max_tokens(12).seed(seed).ignore_eos(true);
    session.generate(request).unwrap().tokens().to_vec()
}

/// A checkpoint with some fields of its config.json changed.
fn with(recipe: &Recipe, fields: Value) -> TempDir {
    let (folder, mut recipe) = (tempdir().unwrap(), recipe.clone());
    if let Some(tied) = fields["tie_word_embeddings"].as_bool() {
        recipe.config["tie_word_embeddings"] = tied.into(); // whether there is a head
    }
    recipe.write(folder.path(), None);
    for (field, value) in fields.as_object().unwrap() {
        recipe.config[field] = value.clone();
    }
    std::fs::write(folder.path().join("config.json"), recipe.config.to_string()).unwrap();
    folder
}

/// A checkpoint whose logits are flat enough for draws to differ.
fn generating(config: &Value) -> (TempDir, Session) {
    let folder = tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("qwen2_bf16").join(file), folder.path().join(file)).unwrap();
    }
    std::fs::write(folder.path().join("generation_config.json"), config.to_string()).unwrap();
    let session = builder(folder.path()).open().unwrap_or_else(|error| panic!("{config}: {error}"));
    (folder, session)
}

#[test]
fn generation_configs_out_of_bounds_open_and_say_so_once() {
    let draw = |config: Value| sampled(&generating(&config).1, 5);
    let plain = draw(json!({"do_sample": true, "temperature": 1.5}));
    let greedy = draw(json!({}));
    let of_nine = draw(json!({"do_sample": true, "temperature": 1.5, "top_k": 9}));
    assert_ne!(plain, greedy, "the sampler draws");
    let all = [
        // value, what it is the same as, fields that are noted
        (json!({"temperature": 1.5, "top_k": -1}), plain.clone(), vec!["top_k"]),
        (
            json!({"temperature": 1.5, "top_p": 2, "typical_p": 1.5}),
            plain.clone(),
            vec!["top_p", "typical_p"],
        ),
        (json!({"temperature": 1.5, "min_p": -1}), plain.clone(), vec!["min_p"]),
        (json!({"temperature": 1.5, "repetition_penalty": 0}), plain, vec!["repetition_penalty"]),
        (json!({"temperature": 1.5, "top_k": 9.0, "eos_token_id": -1}), of_nine, vec![]),
        (json!({"temperature": 1.5, "top_p": 0}), greedy.clone(), vec!["top_p"]),
        (json!({"temperature": 1.5, "top_k": 1.0}), greedy.clone(), vec![]),
        (json!({"temperature": 0.0}), greedy.clone(), vec![]),
        (json!({"temperature": -0.5}), greedy, vec!["temperature"]),
    ];
    for (mut config, expected, noted) in all {
        config["do_sample"] = true.into();
        let (_folder, session) = generating(&config);
        assert_eq!(sampled(&session, 5), expected, "{config}");
        let notes = session.notes();
        assert_eq!(notes.iter().map(|note| note.field.as_str()).collect::<Vec<_>>(), noted, "{config}");
        for note in notes {
            let told = note.to_string();
            assert!(told.contains("generation_config.json: `") && told.contains("out of bounds"), "{told}");
        }
    }
    // a checkpoint may ask for more than a request may
    let (_folder, hot) = generating(&json!({"do_sample": true, "temperature": 4.0}));
    assert!(hot.notes().is_empty());
    assert_ne!(sampled(&hot, 5), draw(json!({"do_sample": true, "temperature": 2.0})));
    // what the request says goes before
    let (_folder, session) = generating(&json!({"do_sample": true, "top_p": 0, "temperature": 1.5}));
    let request = Request::tokens([1, 7, 30, 4]).max_tokens(12).seed(5).top_p(1.0).ignore_eos(true);
    assert_ne!(session.generate(request).unwrap().tokens(), sampled(&session, 5));
}

#[test]
fn configs_in_other_spellings_are_the_same_model() {
    let yarn = |more: Value| {
        let mut rope = json!({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16,
            "rope_theta": 1e4});
        more.as_object().unwrap().iter().for_each(|(field, value)| rope[field] = value.clone());
        json!({ "rope_parameters": rope })
    };
    let mistral = |window: Value| json!({"model_type": "mistral", "sliding_window": window});
    for (other, plain) in [
        (json!({"dtype": "auto"}), json!({})),
        (json!({"dtype": "torch.bfloat16"}), json!({})),
        (json!({"torch_dtype": "torch.float16"}), json!({})),
        (json!({"eos_token_id": -1}), json!({})),
        (json!({"eos_token_id": [2.0, -1]}), json!({"eos_token_id": 2})),
        (json!({"num_hidden_layers": 2.0, "vocab_size": 64.0}), json!({})),
        (mistral(json!(-1)), mistral(json!(null))),
        (json!({"tie_word_embeddings": null}), json!({"tie_word_embeddings": true})),
        // as `if mscale and mscale_all_dim` in transformers
        (yarn(json!({"mscale": 0, "mscale_all_dim": 0.5})), yarn(json!({}))),
        (yarn(json!({"mscale": 1.0, "mscale_all_dim": 0})), yarn(json!({}))),
        (yarn(json!({"beta_fast": 0, "beta_slow": null})), yarn(json!({}))),
    ] {
        let open = |fields: &Value| {
            let folder = with(&Recipe::small(64), fields.clone());
            bits(&builder(folder.path()).open().unwrap_or_else(|error| panic!("{fields}: {error}")))
        };
        assert_eq!(open(&other), open(&plain), "{other}");
    }
    // said to be the embedding table, and there with other values: transformers does not tie the two then
    let untied = Recipe { config: with_field("tie_word_embeddings", json!(false)), ..Recipe::small(64) };
    let said = with(&untied, json!({}));
    let own = bits(&builder(said.path()).open().unwrap());
    assert_ne!(own, bits(&builder(with(&Recipe::small(64), json!({})).path()).open().unwrap()));
    let config = with_field("tie_word_embeddings", json!(true));
    std::fs::write(said.path().join("config.json"), config.to_string()).unwrap();
    assert_eq!(bits(&builder(said.path()).open().unwrap()), own, "a head of its own");
    // null: there is a head, so that is the head
    let plain = with(&untied, json!({}));
    let null = with(&untied, json!({}));
    let config = with_field("tie_word_embeddings", json!(null)).to_string();
    std::fs::write(null.path().join("config.json"), config).unwrap();
    let [plain, null] = [plain, null].map(|folder| bits(&builder(folder.path()).open().unwrap()));
    assert_eq!(plain, null);
}

fn with_field(field: &str, value: Value) -> Value {
    let mut config = Recipe::small(64).config;
    config[field] = value;
    config
}

/// The tensors of a file, each under another name and in another type, as one file or several.
struct Rewritten(Vec<(String, Dtype, Vec<usize>, Vec<u8>)>);

impl Rewritten {
    fn read(file: &Path) -> Self {
        let bytes = std::fs::read(file).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let all = tensors.tensors().into_iter();
        Self(
            all.map(|(name, view)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec()))
                .collect(),
        )
    }

    fn renamed(mut self, rename: impl Fn(&str) -> String) -> Self {
        self.0.iter_mut().for_each(|(name, ..)| *name = rename(name));
        self
    }

    /// All floating point in another type that holds it without loss.
    fn widened(mut self, to: Dtype) -> Self {
        for (_, dtype, _, bytes) in &mut self.0 {
            let values: Vec<f32> = match *dtype {
                Dtype::BF16 => halves(bytes).map(|half| half::bf16::from_bits(half).to_f32()).collect(),
                Dtype::F16 => halves(bytes).map(|half| half::f16::from_bits(half).to_f32()).collect(),
                other => panic!("{other:?}"),
            };
            *bytes = match to {
                Dtype::F64 => values.iter().flat_map(|value| f64::from(*value).to_le_bytes()).collect(),
                _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            };
            *dtype = to;
        }
        self
    }

    fn write(&self, file: &Path, keep: impl Fn(usize) -> bool) {
        let kept = self.0.iter().enumerate().filter(|(index, _)| keep(*index));
        let views = kept.map(|(_, (name, dtype, shape, bytes))| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        std::fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
    }
}

fn halves(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.as_chunks::<2>().0.iter().map(|half| u16::from_le_bytes(*half))
}

#[test]
fn tensors_below_the_names_of_wrappers() {
    let folder = with(&Recipe::small(64), json!({"tie_word_embeddings": false}));
    let file = folder.path().join("model.safetensors");
    let open = || builder(folder.path()).open();
    let expected = bits(&open().unwrap());
    let inner = |name: &str| name.strip_prefix("model.").unwrap_or(name).to_owned();
    type Rename<'a> = (&'a str, Box<dyn Fn(&str) -> String + 'a>);
    let renames: Vec<Rename> = vec![
        ("compiled", Box::new(|name| format!("_orig_mod.{name}"))),
        ("compiled layers", Box::new(|name| name.replace(".mlp.", "._orig_mod.mlp."))),
        ("parallel, compiled", Box::new(|name| format!("module._orig_mod.{name}"))),
        ("a part of a model of images", Box::new(|name| format!("language_model.{name}"))),
        ("the same, compiled", Box::new(|name| format!("_orig_mod.language_model.{name}"))),
        (
            "its later form, whose head is outside",
            Box::new(|name| match name {
                "lm_head.weight" => name.to_owned(),
                _ => format!("model.language_model.{}", inner(name)),
            }),
        ),
        (
            "the same, compiled",
            Box::new(|name| match name {
                "lm_head.weight" => name.to_owned(),
                _ => format!("model._orig_mod.language_model.{}", inner(name)),
            }),
        ),
        ("without the model's own", Box::new(inner)),
    ];
    let original = std::fs::read(&file).unwrap();
    for (what, rename) in renames {
        std::fs::write(&file, &original).unwrap();
        Rewritten::read(&file).renamed(rename).write(&file, |_| true);
        let session = open().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(bits(&session), expected, "{what}");
    }
    // what is wrong is told by the names in the file
    std::fs::write(&file, &original).unwrap();
    let mut twice = Rewritten::read(&file);
    let (name, dtype, shape, bytes) = twice.0[0].clone();
    twice.0.push((format!("_orig_mod.{name}"), dtype, shape, bytes));
    twice.write(&file, |_| true);
    let error = open().unwrap_err().to_string();
    assert!(error.contains(&name) && error.contains("once"), "{error}");
    std::fs::write(&file, &original).unwrap();
    let mut more = Rewritten::read(&file).renamed(|name| format!("language_model.{name}"));
    more.0.push(("language_model.ghost".into(), Dtype::F32, vec![1], vec![0; 4]));
    more.write(&file, |_| true);
    let error = open().unwrap_err().to_string();
    assert!(error.contains("`language_model.ghost`"), "{error}");
}

/// The matrices of compressed-tensors as torchao's classes, in two shards: the same bits.
#[test]
fn torchaos_classes_are_the_same_weights() {
    for (name, class) in
        [("int_8", "Int8Tensor"), ("float_8", "Float8Tensor"), ("float_8_all", "Float8Tensor")]
    {
        let original = fixture(&format!("quantized/{name}"));
        let expected = bits(&builder(&original).open().unwrap());
        let folder = tempdir().unwrap();
        let config = std::fs::read_to_string(original.join("config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&config).unwrap();
        let kind = json!({"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}});
        config["quantization_config"] = json!({"quant_method": "torchao", "quant_type": {"default": kind}});
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let stored = Rewritten::read(&original.join("model.safetensors"));
        let scaled = |name: &str| stored.0.iter().any(|(other, ..)| *other == format!("{name}_scale"));
        let said = stored.0.iter().filter(|(name, ..)| name.ends_with(".weight")).map(|(name, ..)| {
            let class = if scaled(name) { class } else { "Tensor" };
            (name.clone(), json!({"_type": class, "_data": {}}).to_string())
        });
        let mut said: std::collections::HashMap<String, String> = said.collect();
        said.insert("tensor_names".to_owned(), json!(said.keys().collect::<Vec<_>>()).to_string());
        let renamed = stored.0.iter().map(|(name, dtype, shape, bytes)| {
            let new = match name.strip_suffix(".weight_scale") {
                Some(module) => format!("{module}._weight_scale"),
                None if scaled(name) => name.replace(".weight", "._weight_qdata"),
                None => name.clone(),
            };
            (new, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let mut parts = [Vec::new(), Vec::new()];
        renamed.enumerate().for_each(|(index, tensor)| parts[index % 2].push(tensor));
        for (index, part) in parts.into_iter().enumerate() {
            let file = folder.path().join(format!("model-0000{}-of-00002.safetensors", index + 1));
            std::fs::write(file, safetensors::serialize(part, Some(said.clone())).unwrap()).unwrap();
        }
        let session = builder(folder.path()).open().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(bits(&session), expected, "{name}");
    }
}

#[test]
fn numbered_shards_without_an_index() {
    let folder = with(&Recipe::small(64), json!({}));
    let single = folder.path().join("model.safetensors");
    let expected = bits(&builder(folder.path()).open().unwrap());
    let whole = Rewritten::read(&single);
    std::fs::remove_file(&single).unwrap();
    let shard = |index: usize| folder.path().join(format!("model-0000{index}-of-00003.safetensors"));
    (1..=3).for_each(|index| whole.write(&shard(index), |tensor| tensor % 3 == index - 1));
    assert_eq!(bits(&builder(folder.path()).open().unwrap()), expected);
    std::fs::remove_file(shard(2)).unwrap();
    let error = builder(folder.path()).open().unwrap_err();
    assert!(matches!(error, Error::WeightsFile { .. }), "{error}");
    let told = error.to_string();
    assert!(told.contains("model-00002-of-00003.safetensors: must be there"), "{told}");
}

/// Double precision gives what single gives, where that holds the values: in matrices, vectors, and experts in one tensor.
#[test]
fn tensors_in_double_precision() {
    let names = ["families/granitemoe", "families/gpt_oss_other", "families/phi3", "qwen2_bf16"];
    for name in names.into_iter().filter(|name| fixture(name).join("model.safetensors").exists()) {
        let folder = tempdir().unwrap();
        std::fs::copy(fixture(name).join("config.json"), folder.path().join("config.json")).unwrap();
        let [single, double] = [Dtype::F32, Dtype::F64].map(|dtype| {
            let file = folder.path().join("model.safetensors");
            Rewritten::read(&fixture(name).join("model.safetensors")).widened(dtype).write(&file, |_| true);
            bits(&builder(folder.path()).open().unwrap_or_else(|error| panic!("{name}, {dtype:?}: {error}")))
        });
        assert_eq!(single, double, "{name}");
    }
}

#[test]
fn what_is_not_read_says_what_to_do() {
    let pickled = "save the model as safetensors";
    for (file, words) in [
        ("pytorch_model.bin", pickled),
        ("pytorch_model-00001-of-00002.bin", pickled),
        ("consolidated.00.pth", pickled),
        ("tf_model.h5", pickled),
        ("model-q4.gguf", "open this file"),
        ("consolidated.safetensors", "Rename it"),
    ] {
        for config in [true, false] {
            let folder = with(&Recipe::small(64), json!({}));
            std::fs::rename(folder.path().join("model.safetensors"), folder.path().join(file)).unwrap();
            if !config {
                std::fs::remove_file(folder.path().join("config.json")).unwrap();
            }
            let error = builder(folder.path()).open().unwrap_err();
            assert!(matches!(error, Error::WeightsFile { .. }), "{file}: {error}");
            let told = error.to_string();
            assert!(told.contains(file) && told.contains(words), "{told}");
        }
    }
    let folder = with(&Recipe::small(64), json!({}));
    let told = builder(&folder.path().join("model.safetensors")).open().unwrap_err().to_string();
    assert!(told.contains("name the folder"), "{told}");
    // token ids need no tokenizer; a text's error names the file that is there, and what makes another of it
    for (file, words) in [
        ("tokenizer.model", Cow::from("tokenizer.model: has the tokenizer in a form that is not read")),
        ("tekken.json", "tekken.json: has the tokenizer".into()),
        ("vocab.json", "save_pretrained".into()),
        ("notes.txt", "tokenizer.json: not found".into()),
    ] {
        let folder = with(&Recipe::small(64), json!({}));
        std::fs::write(folder.path().join(file), "x").unwrap();
        let session = builder(folder.path()).open().unwrap();
        assert_eq!(sampled(&session, 1).len(), 12);
        let error = session.generate(Request::prompt("a text")).unwrap_err();
        assert!(matches!(error, Error::NoTokenizer { .. }), "{error}");
        assert!(error.to_string().contains(&*words), "{error}");
    }
}
