//! Tensors of candle: weights that come as such give the bits of their folder, and what a session gives is in tensors what it
//! is in slices.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use amnesic::testing::LogitsTap;
use amnesic::{Builder, Device, EmbedRequest, Error, Files, Request, Session};
use candle_core::{DType, Device as Place, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};

use crate::common::{default_model, files_below, fixture};

/// All files of a folder and of those in it, but for its own weights.
fn files(folder: &Path) -> Files {
    let own = |name: &str| !name.contains('/') && name.contains("safetensors");
    let others = files_below(folder).into_iter().filter(|(name, _)| !own(name));
    others.fold(Files::new(), |files, (name, path)| files.file(name, std::fs::read(path).unwrap()))
}

/// The tensors of all files of weights in a folder.
fn tensors(folder: &Path) -> HashMap<String, Tensor> {
    let mut all = HashMap::new();
    for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            all.extend(candle_core::safetensors::load(&path, &Place::Cpu).unwrap());
        }
    }
    assert!(!all.is_empty(), "{}", folder.display());
    all
}

fn var_map(tensors: &HashMap<String, Tensor>) -> VarMap {
    let variables = VarMap::new();
    let all = tensors.iter().map(|(name, tensor)| (name.clone(), Var::from_tensor(tensor).unwrap()));
    variables.data().lock().unwrap().extend(all);
    variables
}

fn small(builder: Builder) -> Session {
    builder.device(Device::Cpu).kv_tokens(1024).max_sequences(4).open().unwrap()
}

/// Greedy tokens, and the bits of all logits that they were chosen from.
fn bits(session: &Session, request: Request) -> (Vec<u32>, Vec<u32>) {
    let tap = LogitsTap::default();
    let request = request.max_tokens(8).temperature(0.0).ignore_eos(true);
    let reply = session.generate(request.tap_logits(&tap)).unwrap();
    (reply.tokens().to_vec(), tap.values().iter().map(|value| value.to_bits()).collect())
}

/// The types of a checkpoint's tensors.
fn types(tensors: &HashMap<String, Tensor>) -> BTreeSet<&'static str> {
    tensors.values().map(|tensor| tensor.dtype().as_str()).collect()
}

#[test]
fn weights_as_tensors_give_the_bits_of_their_folder() {
    let mut folders = vec![default_model()];
    folders.extend(
        [
            "llama2_f32",
            "llama3_bf16",
            "smollm_f16",
            "mistral_bf16_sharded",
            "families/mixtral",
            "families/gpt_oss_other",
            "quantized/gptq",
        ]
        .map(fixture),
    );
    let mut seen = BTreeSet::new();
    for folder in folders {
        let weights = tensors(&folder);
        seen.extend(types(&weights));
        let request = || Request::tokens([1, 5, 9, 20]);
        let expected = bits(&small(Session::builder(&folder)), request());
        let given = files(&folder).tensors("model.safetensors", &weights).unwrap();
        assert_eq!(bits(&small(Session::from_files(given)), request()), expected, "{}", folder.display());
        let given = files(&folder).var_map("model.safetensors", &var_map(&weights)).unwrap();
        assert_eq!(bits(&small(Session::from_files(given)), request()), expected, "{}", folder.display());
    }
    for of in ["f32", "f16", "bf16", "i32"] {
        assert!(seen.contains(of), "no checkpoint of {of}: a lame test");
    }
}

/// A builder does not list its tensors: those that each family reads are found, and those alone.
#[test]
fn a_var_builder_of_every_family_gives_the_bits_of_its_folder() {
    let mut held = 0;
    for entry in std::fs::read_dir(fixture("families")).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.is_dir() {
            continue;
        }
        let weights = tensors(&folder);
        let of = types(&weights);
        let (1, Some(dtype)) = (of.len(), weights.values().next().map(Tensor::dtype)) else { continue };
        let request = || Request::tokens([1, 5, 9, 20]);
        let expected = bits(&small(Session::builder(&folder)), request());
        let builder = VarBuilder::from_tensors(weights, dtype, &Place::Cpu);
        let given = files(&folder).var_builder("model.safetensors", &builder);
        let given = given.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        assert_eq!(bits(&small(Session::from_files(given)), request()), expected, "{}", folder.display());
        held += 1;
    }
    assert!(held > 50, "only {held} checkpoints");
}

#[test]
fn a_var_builder_may_stand_below_a_prefix_have_more_and_be_of_variables() {
    let folder = fixture("llama2_f32");
    let expected = bits(&small(Session::builder(&folder)), Request::tokens([1, 5]));
    let weights = tensors(&folder);
    let mut inside: HashMap<String, Tensor> =
        weights.iter().map(|(name, tensor)| (format!("language_model.{name}"), tensor.clone())).collect();
    inside.insert("vision.weight".into(), Tensor::zeros((2, 2), DType::F32, &Place::Cpu).unwrap());
    let builder = VarBuilder::from_tensors(inside, DType::F32, &Place::Cpu);
    let variables = var_map(&weights);
    let count = variables.all_vars().len();
    let of_variables = VarBuilder::from_varmap(&variables, DType::F32, &Place::Cpu);
    for builder in [builder.pp("language_model"), of_variables] {
        let given = files(&folder).var_builder("model.safetensors", &builder).unwrap();
        assert_eq!(bits(&small(Session::from_files(given)), Request::tokens([1, 5])), expected);
    }
    assert_eq!(variables.all_vars().len(), count, "what is missing is not made");
}

#[test]
fn encoders_and_adapters_come_as_tensors_too() {
    let folder = fixture("encoders/roberta");
    let texts = ["a", "b c d"];
    let values = |builder: Builder| {
        let session = builder.device(Device::Cpu).open().unwrap();
        session.embed(&texts).unwrap().values().to_vec()
    };
    let (expected, weights) = (values(Session::builder(&folder)), tensors(&folder));
    let given = files(&folder).tensors("model.safetensors", &weights).unwrap();
    assert_eq!(values(Session::from_files(given)), expected);
    let dtype = weights.values().map(Tensor::dtype).find(DType::is_float).unwrap();
    let builder = VarBuilder::from_tensors(weights, dtype, &Place::Cpu);
    let given = files(&folder).var_builder("model.safetensors", &builder).unwrap();
    assert_eq!(values(Session::from_files(given)), expected);

    let (model, adapter) = (fixture("families/qwen3"), fixture("adapters/qwen3/all"));
    let weights =
        candle_core::safetensors::load(adapter.join("adapter_model.safetensors"), &Place::Cpu).unwrap();
    let given = Files::new()
        .file("adapter_config.json", std::fs::read(adapter.join("adapter_config.json")).unwrap())
        .tensors("adapter_model.safetensors", &weights)
        .unwrap();
    let ask = || Request::tokens([5, 9, 30]).adapter("a");
    let expected = bits(&small(Session::builder(&model).adapter("a", &adapter)), ask());
    assert_eq!(bits(&small(Session::builder(&model).adapter_files("a", given)), ask()), expected);
}

/// Doubles are rounded as those of a file are; what is transposed lies in another order in its memory.
#[test]
fn doubles_and_other_layouts() {
    let folder = fixture("llama2_f32");
    let expected = bits(&small(Session::builder(&folder)), Request::tokens([1, 5]));
    let other = |tensor: &Tensor| {
        let tensor = tensor.to_dtype(DType::F64).unwrap();
        match tensor.rank() {
            2 => tensor.t().unwrap().contiguous().unwrap().t().unwrap(),
            _ => tensor,
        }
    };
    let weights: HashMap<String, Tensor> =
        tensors(&folder).iter().map(|(name, tensor)| (name.clone(), other(tensor))).collect();
    assert!(weights.values().any(|tensor| !tensor.is_contiguous()));
    let given = files(&folder).tensors("model.safetensors", &weights).unwrap();
    assert_eq!(bits(&small(Session::from_files(given)), Request::tokens([1, 5])), expected);
}

#[test]
fn what_cannot_be_is_refused_and_named() {
    let folder = fixture("llama2_f32");
    let name = "model.norm.weight";
    let with = |tensor: Option<Tensor>| {
        let mut weights = tensors(&folder);
        match tensor {
            Some(tensor) => weights.insert(name.to_owned(), tensor),
            None => weights.remove(name),
        };
        weights
    };
    let file = "model.safetensors";
    let told = |error: Error, words: &[&str]| {
        assert!(matches!(error, Error::Tensor { .. }), "{error:?}");
        let error = error.to_string();
        assert!(words.iter().chain(&[name]).all(|word| error.contains(word)), "{error}");
    };
    let norm = tensors(&folder)[name].clone();
    // a type that a model does not read is named when the session opens, as of a file; what has no bytes here at once
    let whole = with(Some(norm.to_dtype(DType::I64).unwrap()));
    let given = files(&folder).tensors(file, &whole).unwrap();
    told(Session::from_files(given).open().unwrap_err(), &[file, "bfloat16", "I64"]);
    let small_floats = with(Some(norm.to_dtype(DType::F8E4M3).unwrap()));
    told(files(&folder).tensors(file, &small_floats).unwrap_err(), &[file, "bf16", "f8e4m3"]);
    told(files(&folder).var_map(file, &var_map(&small_floats)).unwrap_err(), &[file, "bf16", "f8e4m3"]);
    let given = files(&folder).tensors(file, &with(None)).unwrap();
    told(Session::from_files(given).open().unwrap_err(), &["be there, with shape"]);
    let infinite = with(Some((norm.ones_like().unwrap() / 0.0).unwrap()));
    let given = files(&folder).tensors(file, &infinite).unwrap();
    told(Session::from_files(given).open().unwrap_err(), &["finite"]);

    // of a builder: what is missing, of another shape, in no type that is read
    let builder = |weights, dtype| VarBuilder::from_tensors(weights, dtype, &Place::Cpu);
    let given = |weights, dtype| files(&folder).var_builder(file, &builder(weights, dtype)).unwrap_err();
    told(given(with(None), DType::F32), &["be there, with shape"]);
    told(given(with(Some(Tensor::zeros(3, DType::F32, &Place::Cpu).unwrap())), DType::F32), &[file, "shape"]);
    let error = given(with(Some(norm)), DType::F8E4M3).to_string();
    assert!(error.contains("f8e4m3"), "{error}");
    let empty = builder(HashMap::new(), DType::F32);
    let error = Files::new().var_builder(file, &empty).unwrap_err();
    assert!(matches!(error, Error::Read { .. }) && error.to_string().contains("config.json"), "{error}");
    let error = files(&folder).var_builder(file, &empty).unwrap_err();
    assert!(matches!(error, Error::Tensors { .. }), "{error}");
    let gptq = fixture("quantized/gptq");
    let error = files(&gptq).var_builder(file, &builder(tensors(&gptq), DType::F32)).unwrap_err();
    assert!(matches!(&error, Error::Config { field, .. } if field == "quantization_config"), "{error}");
}

#[test]
fn what_a_session_gives_as_tensors() {
    let session = small(Session::builder(default_model()));
    let request = Request::prompt("A slice is").max_tokens(6).logprobs(3).prompt_logprobs(2);
    let reply = session.generate(request).unwrap();
    for (logprobs, top) in [(reply.choices()[0].logprobs(), 3), (reply.prompt_logprobs(), 2)] {
        let own = logprobs.to_tensor(&Place::Cpu).unwrap();
        assert!(logprobs.len() > 1 && own.dims() == [logprobs.len()] && own.dtype() == DType::F32);
        let expected: Vec<f32> = logprobs.iter().map(|record| record.logprob).collect();
        assert_eq!(own.to_vec1::<f32>().unwrap(), expected);
        let (ids, values) = logprobs.top_to_tensors(&Place::Cpu).unwrap();
        assert_eq!((ids.dims(), ids.dtype()), (&[logprobs.len(), top][..], DType::U32));
        assert_eq!((values.dims(), values.dtype()), (&[logprobs.len(), top][..], DType::F32));
        let (ids, values) = (ids.to_vec2::<u32>().unwrap(), values.to_vec2::<f32>().unwrap());
        for ((ids, values), record) in ids.iter().zip(&values).zip(logprobs.iter()) {
            let pairs: Vec<_> = ids.iter().copied().zip(values.iter().copied()).collect();
            assert_eq!(pairs, record.top().collect::<Vec<_>>());
        }
    }
    let none = session.generate(Request::prompt("A").max_tokens(1)).unwrap();
    let none = none.choices()[0].logprobs();
    assert_eq!(none.to_tensor(&Place::Cpu).unwrap().dims(), [0]);
    assert_eq!(none.top_to_tensors(&Place::Cpu).unwrap().0.dims(), [0, 0]);

    let session = Session::builder(fixture("encoders/roberta")).device(Device::Cpu).open().unwrap();
    let texts = ["a", "b c d"];
    let embeddings = session.embed(&texts).unwrap();
    let tensor = embeddings.to_tensor(&Place::Cpu).unwrap();
    assert_eq!((tensor.dims(), tensor.dtype()), (&[2, embeddings.dimensions()][..], DType::F32));
    assert_eq!(tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap(), embeddings.values());
    let states = session.hidden_states(EmbedRequest::new(texts)).unwrap();
    for text in 0..texts.len() {
        let tensor = states.to_tensor(text, &Place::Cpu).unwrap().unwrap();
        let dims = [states.tokens(text).unwrap(), states.width()];
        assert_eq!((tensor.dims(), tensor.dtype()), (&dims[..], DType::F32));
        assert_eq!(tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap(), states.get(text).unwrap());
    }
    assert!(states.to_tensor(2, &Place::Cpu).unwrap().is_none());

    let session = Session::builder(fixture("encoders/bert_scores")).device(Device::Cpu).open().unwrap();
    let ranking = session.rerank("a", &["b", "c d"]).unwrap();
    let tensor = ranking.to_tensor(&Place::Cpu).unwrap();
    assert_eq!((tensor.dims(), tensor.to_vec1::<f32>().unwrap()), (&[2][..], ranking.scores().to_vec()));
}
