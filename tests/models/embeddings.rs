//! Checkpoints that embed texts or score them, against sentence-transformers (`tools/fixture_encoders.py`).
//!
//! Errors are at most twice those of the reference's own run in bf16; and what a text gives must not depend on what is
//! computed with it. `AMNESIC_MINILM` names a folder with the published model all-MiniLM-L6-v2 to be held too.

use std::path::Path;
use std::time::{Duration, Instant};

use amnesic::{
    Builder, CancelToken, Device, EmbedRequest, Error, FinishReason, Quantize, RerankRequest, Session,
};
use serde::Deserialize;

use crate::common::{fixture, instruction_sets, read_f32s};

#[derive(Deserialize)]
struct Expected {
    scores: bool,
    inputs: Vec<Input>,
    asked: Asked,
    low_max_abs: f64,
    low_rms: f64,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Pair([String; 2]),
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Asked {
    prompt: Option<String>,
    prompt_name: Option<String>,
    dimensions: Option<usize>,
    raw: bool,
}

fn checkpoints() -> Vec<String> {
    let mut all: Vec<_> = std::fs::read_dir(fixture("encoders"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.'))
        .collect();
    all.sort();
    assert!(all.len() > 20, "{} checkpoints", all.len());
    all
}

fn expected(folder: &Path) -> (Expected, Vec<f32>) {
    let expected = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    (serde_json::from_str(&expected).unwrap(), read_f32s(&folder.join("expected.safetensors"), "values"))
}

/// What the session gives these inputs, in one request (for scores one for each query).
fn run(session: &Session, expected: &Expected, inputs: &[Input]) -> Vec<f32> {
    let Asked { prompt, prompt_name, dimensions, raw } = &expected.asked;
    if expected.scores {
        let mut scores = Vec::new();
        for group in inputs.chunk_by(|a, b| query(a) == query(b)) {
            let documents = group.iter().map(|input| match input {
                Input::Pair([_, document]) => document,
                Input::Text(_) => unreachable!("a pair"),
            });
            let mut request = RerankRequest::new(query(&group[0]), documents);
            if *raw {
                request = request.raw_scores();
            }
            scores.extend(session.rerank_with(request).unwrap().scores());
        }
        return scores;
    }
    let texts = inputs.iter().map(|input| match input {
        Input::Text(text) => text,
        Input::Pair(_) => unreachable!("a text"),
    });
    let mut request = EmbedRequest::new(texts);
    if let Some(prompt) = prompt {
        request = request.prompt(prompt);
    }
    if let Some(name) = prompt_name {
        request = request.prompt_name(name);
    }
    if let Some(count) = dimensions {
        request = request.dimensions(*count);
    }
    session.embed_with(request).unwrap().values().to_vec()
}

fn query_or_text(input: &Input) -> &str {
    match input {
        Input::Text(text) => text,
        Input::Pair([query, _]) => query,
    }
}

fn query(input: &Input) -> &str {
    match input {
        Input::Pair([query, _]) => query,
        Input::Text(_) => unreachable!("a pair"),
    }
}

/// Texts of up to 40 tokens, as the fixtures' references had them.
fn builder(folder: &Path, device: Device) -> Builder {
    Session::builder(folder).device(device).context_length(40)
}

/// The largest error, and the reference's own.
fn hold(name: &str, device: Device, step: usize) -> (f64, f64) {
    let folder = fixture(&format!("encoders/{name}"));
    let (expected, reference) = expected(&folder);
    let session = builder(&folder, device).step_tokens(step).open();
    let session = session.unwrap_or_else(|error| panic!("{name}: {error}"));
    let mine = run(&session, &expected, &expected.inputs);
    assert_eq!(mine.len(), reference.len(), "{name}");
    let off = mine.iter().zip(&reference).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs());
    let (max, squares) = off.fold((0.0_f64, 0.0), |(max, sum), d| (max.max(d), sum + d * d));
    let rms = (squares / mine.len() as f64).sqrt();
    let (low_max, low_rms) = (expected.low_max_abs, expected.low_rms);
    assert!(max <= 2.0 * low_max, "{name}, {device:?}: largest error {max}, allowed 2 * {low_max}");
    assert!(rms <= 2.0 * low_rms, "{name}, {device:?}: error {rms}, allowed 2 * {low_rms}");
    session.close().unwrap();
    (max, low_max)
}

#[test]
fn every_instruction_set_holds_every_checkpoint() {
    for device in instruction_sets() {
        for name in checkpoints() {
            hold(&name, device, 512);
        }
    }
}

/// And the table in the docs names each checkpoint. `AMNESIC_WRITE_DOCS=1` writes it.
#[test]
fn the_reference_backend_holds_every_checkpoint() {
    const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/encoders.md");
    let mut docs = "# Encoders\n\nLargest error of embeddings (or scores) of some texts against sentence-transformers in \
                    f32, on tiny checkpoints with random\nweights (`tests/models/embeddings.rs`, which writes this table). \
                    Allowed is twice what sentence-transformers is off by in bf16.\n\n\
                    | `model_type` | checkpoint | reference backend | f32 kernels | sentence-transformers in bf16 |\n\
                    |---|---|---|---|---|\n"
        .to_owned();
    let mut rows = Vec::new();
    for name in checkpoints() {
        let (dull, low) = hold(&name, Device::Reference, 64);
        let (fast, _) = hold(&name, Device::CpuWith("portable"), 64);
        let config = std::fs::read_to_string(fixture(&format!("encoders/{name}/config.json"))).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let row = format!("| `{}` | {name} |", config["model_type"].as_str().unwrap());
        docs += &format!("{row} {dull:.5} | {fast:.5} | {low:.5} |\n");
        rows.push(row);
    }
    if std::env::var_os("AMNESIC_WRITE_DOCS").is_some() {
        std::fs::write(DOCS, docs).unwrap();
    }
    let docs = std::fs::read_to_string(DOCS).unwrap();
    for row in rows {
        assert!(docs.contains(&row), "docs/encoders.md has no {row}");
    }
}

/// Alone, in steps of one text, with all others, and on any number of threads: the same bits.
#[test]
fn a_text_gets_what_it_gets_alone() {
    for name in checkpoints() {
        let folder = fixture(&format!("encoders/{name}"));
        let (expected, _) = expected(&folder);
        for quantize in [None, Some(Quantize::Q8)] {
            let open = |step: usize, threads: usize| {
                let builder = builder(&folder, Device::Cpu).step_tokens(step).threads(threads);
                let builder = if let Some(to) = quantize { builder.quantize(to) } else { builder };
                builder.open().unwrap()
            };
            let session = open(512, 2);
            let together = run(&session, &expected, &expected.inputs);
            let alone: Vec<f32> = expected
                .inputs
                .iter()
                .flat_map(|input| run(&session, &expected, std::slice::from_ref(input)))
                .collect();
            let narrow = run(&open(1, 3), &expected, &expected.inputs);
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&together), bits(&alone), "{name}, {quantize:?}");
            assert_eq!(bits(&together), bits(&narrow), "{name}, {quantize:?}");
        }
    }
}

/// Requests of many threads share steps, and each gets its own.
#[test]
fn many_callers_at_once() {
    let folder = fixture("encoders/bert");
    let (expected, _) = expected(&folder);
    let session = builder(&folder, Device::Cpu).step_tokens(64).open().unwrap();
    let whole = run(&session, &expected, &expected.inputs);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (session, expected, whole) = (&session, &expected, &whole);
            scope.spawn(move || {
                for round in 0..10 {
                    let first = (thread + round) % expected.inputs.len();
                    let some = run(session, expected, &expected.inputs[first..]);
                    assert_eq!(some, whole[whole.len() - some.len()..]);
                }
            });
        }
    });
    assert_eq!(session.load().running, 0);
    assert_eq!(session.close().unwrap().requests(), 81);
}

fn open(name: &str) -> Session {
    builder(&fixture(&format!("encoders/{name}")), Device::Cpu).open().unwrap()
}

#[test]
fn replies_tell_what_was_done() {
    let session = open("bert");
    let long = "a ".repeat(100);
    let embeddings = session.embed(&["a", "b c", &long]).unwrap();
    assert_eq!((embeddings.len(), embeddings.dimensions(), embeddings.is_empty()), (3, 60, false));
    assert_eq!((embeddings.truncated, embeddings.usage.prompt_tokens), (1, 3 + 4 + 40));
    assert!(embeddings.receipt.bytes() > 0 && embeddings.receipt.samples() > 0);
    assert!(embeddings.timing.total > Duration::ZERO);
    assert_eq!(embeddings.iter().count(), 3);
    assert!(embeddings.get(2).is_some() && embeddings.get(3).is_none());
    for embedding in embeddings.iter() {
        let length: f32 = embedding.iter().map(|value| value * value).sum();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
    }
    let printed = format!("{embeddings:?} {:?}", EmbedRequest::new(["canary"]));
    assert!(printed.contains("len: 3") && !printed.contains("canary"), "{printed}");
    let plain = session.embed_with(EmbedRequest::new(["a"]).normalize(false)).unwrap();
    let length: f32 = plain[0].iter().map(|value| value * value).sum();
    assert!((length - 1.0).abs() > 1e-2, "{length}");
    assert!(session.embed::<&str>(&[]).unwrap().is_empty());
    assert!(session.counters().tokens >= 47);

    let session = open("bert_scores");
    let ranking = session.rerank("a b", &["c d", "a b", "e"]).unwrap();
    let best = ranking.best_first();
    assert_eq!((ranking.scores().len(), best.len()), (3, 3));
    assert!(best[0].1 >= best[1].1 && best[1].1 >= best[2].1);
    assert!(best.iter().all(|(place, score)| ranking.scores()[*place] == *score));
    assert!(ranking.scores().iter().all(|score| (0.0..1.0).contains(score)));
}

/// Which rows a checkpoint pools, and how; none where more than a pooling stands behind the layers.
fn pooling(folder: &Path) -> Option<String> {
    let read = |name: &str| -> Option<serde_json::Value> {
        Some(serde_json::from_str(&std::fs::read_to_string(folder.join(name)).ok()?).unwrap())
    };
    let Some(modules) = read("modules.json") else { return Some("mean".to_owned()) };
    let kinds: Vec<_> =
        modules.as_array().unwrap().iter().map(|module| module["type"].as_str().unwrap()).collect();
    let config = read("1_Pooling/config.json").unwrap();
    if kinds.iter().any(|kind| kind.ends_with("Dense")) || config["include_prompt"] == false {
        return None;
    }
    let old =
        [("cls_token", "cls"), ("lasttoken", "lasttoken"), ("mean_tokens", "mean"), ("max_tokens", "max")];
    let old = old.iter().find(|(name, _)| config[format!("pooling_mode_{name}")] == true);
    let mode = config["pooling_mode"].as_str().or(old.map(|(_, mode)| *mode)).unwrap_or("another");
    Some(mode.to_owned())
}

/// The rows of tokens are those that are pooled: what the reference backend makes of them is worked out here again.
#[test]
fn hidden_states_are_what_embeddings_are_pooled_from() {
    let mut held = std::collections::BTreeMap::<String, usize>::new();
    for name in checkpoints() {
        let folder = fixture(&format!("encoders/{name}"));
        let (expected, _) = expected(&folder);
        let Some(mode) = pooling(&folder).filter(|_| !expected.scores) else { continue };
        let texts: Vec<&str> = expected.inputs.iter().map(query_or_text).collect();
        let session = builder(&folder, Device::Reference).open().unwrap();
        let embeddings = session.embed_with(EmbedRequest::new(&texts).normalize(false)).unwrap();
        let states = session.hidden_states(EmbedRequest::new(&texts)).unwrap();
        assert_eq!((states.len(), states.width()), (texts.len(), embeddings.dimensions()), "{name}");
        assert_eq!(states.usage.prompt_tokens, embeddings.usage.prompt_tokens, "{name}");
        let pool = |column: &[f64]| match mode.as_str() {
            "cls" => Some(column[0]),
            "lasttoken" => column.last().copied(),
            "mean" => Some(column.iter().sum::<f64>() / column.len() as f64),
            "max" => column.iter().copied().reduce(f64::max),
            _ => None,
        };
        for (text, embedding) in embeddings.iter().enumerate() {
            let rows: Vec<&[f32]> = states.get(text).unwrap().chunks(states.width()).collect();
            assert_eq!(Some(rows.len()), states.tokens(text));
            for (col, value) in embedding.iter().enumerate() {
                let column: Vec<f64> = rows.iter().map(|row| f64::from(row[col])).collect();
                let Some(pooled) = pool(&column) else { break };
                assert_eq!((pooled as f32).to_bits(), value.to_bits(), "{name}: text {text}, value {col}");
            }
        }
        *held.entry(mode).or_default() += 1;
    }
    assert!(["cls", "lasttoken", "mean"].iter().all(|mode| held.contains_key(*mode)), "{held:?}");
    assert!(held.values().sum::<usize>() > 8, "{held:?}");
}

/// Rows of a text are those that it gets alone, on every instruction set; and they are no embeddings.
#[test]
fn hidden_states_do_not_depend_on_company() {
    let all = ["a", "b c d e f g h", "d", "a b", "c"];
    for name in ["bert", "modernbert", "qwen3_embedding"] {
        for device in instruction_sets() {
            let session =
                builder(&fixture(&format!("encoders/{name}")), device).step_tokens(48).open().unwrap();
            let together = session.hidden_states(EmbedRequest::new(all)).unwrap();
            let many = session.hidden_states(EmbedRequest::new([all, all, all].concat())).unwrap();
            for (text, alone) in all.iter().enumerate() {
                let alone = session.hidden_states(EmbedRequest::new([alone])).unwrap();
                assert_eq!(alone.get(0), together.get(text), "{name}, {device:?}: {text}");
                assert!(
                    (0..3).all(|turn| many.get(5 * turn + text) == alone.get(0)),
                    "{name}, {device:?}: {text}"
                );
            }
            let [first, second] = [together.get(0).unwrap(), together.get(1).unwrap()];
            assert!(first.iter().chain(second).any(|value| *value != 0.0) && first.len() < second.len());
        }
    }
    let session = open("bert");
    let long = "a ".repeat(100);
    let states = session.hidden_states(EmbedRequest::new(["a", &long])).unwrap();
    assert_eq!(
        (states.truncated, states.tokens(0), states.tokens(1), states.tokens(2)),
        (1, Some(3), Some(40), None)
    );
    assert!(states.get(2).is_none() && !states.is_empty() && states.receipt.bytes() > 0);
    assert!(session.hidden_states(EmbedRequest::new::<&str>([])).unwrap().is_empty());
    // 113,000 texts of 40 tokens of 60 values
    let error = session.hidden_states(EmbedRequest::new(vec![long.as_str(); 113_000])).unwrap_err();
    assert!(matches!(error, Error::Request { field: "texts", .. }), "{error}");
    for (field, request) in [
        ("dimensions", EmbedRequest::new(["a"]).dimensions(2)),
        ("normalize", EmbedRequest::new(["a"]).normalize(true)),
    ] {
        let error = session.hidden_states(request).unwrap_err();
        assert!(matches!(error, Error::Request { field: named, .. } if named == field), "{error}");
    }
    let error = open("bert_scores").hidden_states(EmbedRequest::new(["a"])).unwrap_err();
    assert!(matches!(error, Error::WrongTask { .. }), "{error}");
}

#[test]
fn what_cannot_be_is_refused_and_named() {
    let session = open("bert");
    let long = "a ".repeat(100);
    let field = |error: Error| match error {
        Error::Request { field, .. } => field,
        Error::InBatch { index, source } => match *source {
            Error::Request { field, .. } if index == 1 => field,
            other => panic!("{index}: {other}"),
        },
        other => panic!("{other}"),
    };
    let embed = |request| session.embed_with(request).unwrap_err();
    assert_eq!(field(embed(EmbedRequest::new(["a"]).dimensions(0))), "dimensions");
    assert_eq!(field(embed(EmbedRequest::new(["a"]).dimensions(61))), "dimensions");
    assert_eq!(field(embed(EmbedRequest::new(["a"]).prompt_name("nothing"))), "prompt_name");
    assert_eq!(field(embed(EmbedRequest::new(["a", &long]).refuse_long_texts())), "text");
    let wrong = |error: Error| matches!(error, Error::WrongTask { .. });
    assert!(wrong(session.rerank("a", &["b"]).unwrap_err()));
    assert!(wrong(session.generate(amnesic::Request::prompt("a")).unwrap_err()));
    assert!(wrong(session.publish(amnesic::Request::prompt("a")).unwrap_err()));
    assert!(wrong(open("bert_scores").embed(&["a"]).unwrap_err()));
    let generator = Session::open(fixture("qwen2_bf16")).unwrap();
    assert!(wrong(generator.embed(&["a"]).unwrap_err()));
    assert!(wrong(generator.rerank("a", &["a"]).unwrap_err()));
    // and the session goes on
    assert_eq!(session.embed(&["a"]).unwrap().len(), 1);
}

#[test]
fn requests_end_early() {
    let session = open("modernbert");
    let ended = |request| match session.embed_with(request) {
        Err(Error::Interrupted { finish_reason }) => finish_reason,
        other => panic!("{other:?}"),
    };
    let token = CancelToken::new();
    token.cancel();
    assert_eq!(ended(EmbedRequest::new(["a"]).cancel_token(&token)), FinishReason::Cancelled);
    assert_eq!(ended(EmbedRequest::new(["a"]).deadline(Instant::now())), FinishReason::Deadline);
    assert_eq!(ended(EmbedRequest::new(["a"]).timeout(Duration::ZERO)), FinishReason::Deadline);
    // in the middle of many
    let texts = vec!["a b c d e f g h i j k l m n"; 20_000];
    let token = CancelToken::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            token.cancel();
        });
        assert_eq!(ended(EmbedRequest::new(&texts).cancel_token(&token)), FinishReason::Cancelled);
    });
    assert_eq!(session.embed(&["a"]).unwrap().len(), 1);
}

/// The published model against what sentence-transformers makes of 200 sentences (`tools/make_embeddings.py`).
#[test]
fn the_published_model_gives_the_same_embeddings() {
    let Some(folder) = std::env::var_os("AMNESIC_MINILM") else { return };
    let fixture = fixture("minilm");
    let sentences = std::fs::read_to_string(fixture.join("sentences.txt")).unwrap();
    let sentences: Vec<&str> = sentences.lines().collect();
    assert_eq!(sentences.len(), 200);
    let bytes = std::fs::read(fixture.join("expected.safetensors")).unwrap();
    let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let reference = reference.tensor("embeddings").unwrap().data().to_vec();
    let halves = reference.as_chunks::<2>().0.iter();
    let reference: Vec<f32> = halves.map(|half| half::f16::from_le_bytes(*half).to_f32()).collect();
    let embeddings = Session::open(folder).unwrap().embed(&sentences).unwrap();
    let width = embeddings.dimensions();
    assert_eq!(reference.len(), 200 * width);
    let mut worst = 1.0_f64;
    for (index, (mine, reference)) in embeddings.iter().zip(reference.chunks(width)).enumerate() {
        let dot =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let cosine = dot(mine, reference) / (dot(mine, mine) * dot(reference, reference)).sqrt();
        assert!(cosine >= 0.9999, "sentence {index}: {cosine}");
        worst = worst.min(cosine);
    }
    println!("cosine to sentence-transformers: {worst:.8} at least");
}

/// A copy of a checkpoint, to be changed.
fn copy(name: &str) -> tempfile::TempDir {
    fn copy_into(from: &Path, to: &Path) {
        for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
            let to = to.join(entry.file_name().unwrap());
            match entry.is_dir() {
                true => {
                    std::fs::create_dir(&to).unwrap();
                    copy_into(&entry, &to);
                }
                false => drop(std::fs::copy(&entry, &to).unwrap()),
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    copy_into(&fixture(&format!("encoders/{name}")), folder.path());
    folder
}

fn change(file: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let mut value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(file, value.to_string()).unwrap();
}

/// Within what sentence-transformers is off by in bf16.
fn holds(session: &Session, name: &str) -> bool {
    let (expected, reference) = expected(&fixture(&format!("encoders/{name}")));
    let mine = run(session, &expected, &expected.inputs);
    assert_eq!(mine.len(), reference.len());
    let off = mine.iter().zip(&reference).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs());
    off.fold(0.0, f64::max) <= 2.0 * expected.low_max_abs
}

/// How many tokens a text may have, where nobody asks for another number: as `SentenceTransformer.max_seq_length` of
/// sentence-transformers 6.2 on the same folders. The last text of each fixture is longer, and was cut to 40 tokens.
#[test]
fn texts_are_cut_where_the_checkpoint_says() {
    type Change<'a> = (&'a str, Box<dyn Fn(&Path)>, usize);
    let bert = "sentence_bert_config.json";
    let without = |folder: &Path| std::fs::remove_file(folder.join("sentence_bert_config.json")).unwrap();
    let limit = |folder: &Path, value: serde_json::Value| {
        change(&folder.join("tokenizer_config.json"), |config| config["model_max_length"] = value);
    };
    let mut changes: Vec<Change> = vec![
        ("as it is", Box::new(|_| ()), 40),
        ("the tokenizer's", Box::new(without), 40),
        (
            "no limit of the tokenizer's",
            Box::new(move |folder| {
                without(folder);
                limit(folder, serde_json::json!(1e30));
            }),
            64,
        ),
        (
            "a limit above the model's",
            Box::new(move |folder| {
                without(folder);
                limit(folder, serde_json::json!(512));
            }),
            64,
        ),
        (
            "in the tokenizer's arguments",
            Box::new(move |folder| {
                let text = r#"{"tokenizer_args": {"model_max_length": 40}}"#;
                std::fs::write(folder.join(bert), text).unwrap();
                limit(folder, serde_json::json!(512));
            }),
            40,
        ),
    ];
    for kind in ["roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"] {
        let rename = move |folder: &Path| {
            let name = format!("sentence_{kind}_config.json");
            std::fs::rename(folder.join(bert), folder.join(name)).unwrap();
            limit(folder, serde_json::json!(512));
        };
        changes.push((kind, Box::new(rename), 40));
    }
    for name in ["roberta", "qwen3_embedding"] {
        for (what, change, tokens) in &changes {
            let folder = copy(name);
            change(folder.path());
            let session = Session::builder(folder.path()).device(Device::Cpu).open().unwrap();
            assert_eq!(session.context_length(), *tokens, "{name}, {what}");
            assert_eq!(holds(&session, name), *tokens == 40, "{name}, {what}");
        }
    }
}

/// `add_eos_token` puts the end behind each text, as a post-processor does that does so itself: the same values. Two ends it
/// does not put there.
#[test]
fn the_end_is_added_where_the_tokenizer_s_config_asks_for_it() {
    for name in ["qwen3_embedding", "llama_weighted"] {
        let folder = copy(name);
        let open = || Session::builder(folder.path()).device(Device::Cpu).open().unwrap();
        let adds = |value: bool| {
            change(&folder.path().join("tokenizer_config.json"), |config| {
                config["add_eos_token"] = value.into()
            });
        };
        adds(true);
        assert!(holds(&open(), name), "{name}: by both");
        change(&folder.path().join("tokenizer.json"), |json| {
            json["post_processor"] = serde_json::Value::Null
        });
        assert!(holds(&open(), name), "{name}: by the config");
        adds(false);
        assert!(!holds(&open(), name), "{name}: by none");
    }
}
