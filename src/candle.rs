//! Tensors of candle, the ecosystem's: what a session gives as such, and weights that come as such (feature `candle`).
//!
//! Each is a copy. What is in a tensor is its owner's: candle clones it, computes with it and puts it on devices as it is asked
//! to, and nothing here overwrites it. So tensors are outside the guarantee, on either way.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::PoisonError;

use candle_core::{DType, Device, Result as CandleResult, Tensor, WithDType};
use candle_nn::{VarBuilder, VarMap};
use safetensors::Dtype as Stored;

use crate::embed::{Embeddings, Ranking};
use crate::error::{Error, Result};
use crate::hidden_states::HiddenStates;
use crate::model::arch::Arch;
use crate::model::sentence_transformers::SentenceTransformersConfig;
use crate::model::weights::{Options, Weights};
use crate::sample::Logprobs;
use crate::weights::json::Json;
use crate::weights::quantized::Scheme;
use crate::weights::store::{Files, Held};
use crate::weights::tensors::Listing;

impl Embeddings {
    /// A copy as a tensor of f32: (texts, dimensions). It is the caller's, and outside the guarantee: nothing here overwrites it.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let session = amnesic::Session::open("all-MiniLM-L6-v2")?;
    /// let embeddings = session.embed(&["Ownership is Rust's", "A slice is a view"])?;
    /// let rows = embeddings.to_tensor(&candle_core::Device::Cpu)?;
    /// let alike = rows.matmul(&rows.t()?)?; // (texts, texts)
    /// # drop(alike);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The device has no room.
    pub fn to_tensor(&self, device: &Device) -> CandleResult<Tensor> {
        Tensor::from_slice(self.values(), (self.len(), self.dimensions()), device)
    }
}

impl Ranking {
    /// A copy of the scores as a tensor of f32: (documents). It is the caller's, and outside the guarantee: nothing here
    /// overwrites it.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let session = amnesic::Session::open("ms-marco-MiniLM-L6-v2")?;
    /// let scores = session.rerank("Who owns?", &["Rust", "A slice"])?.to_tensor(&candle_core::Device::Cpu)?;
    /// assert_eq!(scores.dims(), [2]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The device has no room.
    pub fn to_tensor(&self, device: &Device) -> CandleResult<Tensor> {
        Tensor::from_slice(self.scores(), self.scores().len(), device)
    }
}

impl HiddenStates {
    /// A copy of those of the text at `index` as a tensor of f32: (tokens, width); none if there is no such text. It is the
    /// caller's, and outside the guarantee: nothing here overwrites it.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let session = amnesic::Session::open("all-MiniLM-L6-v2")?;
    /// let states = session.hidden_states(amnesic::EmbedRequest::new(["Ownership is Rust's"]))?;
    /// let rows = states.to_tensor(0, &candle_core::Device::Cpu)?.expect("one text");
    /// let mean = rows.mean(0)?; // (width)
    /// # drop(mean);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The device has no room.
    pub fn to_tensor(&self, index: usize, device: &Device) -> CandleResult<Option<Tensor>> {
        let Some((values, tokens)) = self.get(index).zip(self.tokens(index)) else { return Ok(None) };
        Tensor::from_slice(values, (tokens, self.width()), device).map(Some)
    }
}

impl Logprobs {
    /// A copy of the tokens' own log probabilities as a tensor of f32: (records). It is the caller's, and outside the
    /// guarantee: nothing here overwrites it.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use amnesic::{Request, Session};
    ///
    /// let session = Session::open("models/default")?;
    /// let reply = session.generate(Request::prompt("Once upon a time").logprobs(5).prompt_logprobs(0))?;
    /// let of_reply = reply.choices()[0].logprobs();
    /// let mean = of_reply.to_tensor(&candle_core::Device::Cpu)?.mean(0)?;
    /// let (ids, logprobs) = of_reply.top_to_tensors(&candle_core::Device::Cpu)?; // (tokens, 5) each
    /// let of_prompt = reply.prompt_logprobs().to_tensor(&candle_core::Device::Cpu)?;
    /// # drop((mean, ids, logprobs, of_prompt));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The device has no room.
    pub fn to_tensor(&self, device: &Device) -> CandleResult<Tensor> {
        let values: Vec<f32> = self.iter().map(|record| record.logprob).collect();
        Tensor::from_vec(values, self.len(), device)
    }

    /// A copy of the most likely tokens' ids and log probabilities, the most likely first, as tensors of u32 and of f32:
    /// (records, tokens of a record) each. As [`Logprobs::to_tensor`].
    ///
    /// # Errors
    /// The device has no room.
    pub fn top_to_tensors(&self, device: &Device) -> CandleResult<(Tensor, Tensor)> {
        let shape = (self.len(), self.get(0).map_or(0, |record| record.top().len()));
        let (ids, values): (Vec<u32>, Vec<f32>) = self.iter().flat_map(|record| record.top()).unzip();
        Ok((Tensor::from_vec(ids, shape, device)?, Tensor::from_vec(values, shape, device)?))
    }
}

impl Files {
    /// Adds a safetensors file that is written in memory from candle's tensors: `model.safetensors` as a rule, or a shard, or
    /// an adapter's `adapter_model.safetensors`. Names, shapes and types are those of the file that transformers would have;
    /// tensors may lie on any device, and in any layout.
    ///
    /// What is in the file is a copy, and is dropped when the session is open. The tensors stay their owner's, and outside the
    /// guarantee.
    ///
    /// ```standalone_crate
    /// # amnesic::install_scrubbing_allocator!();
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// let weights = candle_core::safetensors::load("models/default/model.safetensors", &candle_core::Device::Cpu)?;
    /// // ... trained, merged, decrypted ...
    /// let mut files = amnesic::Files::new();
    /// for name in ["config.json", "tokenizer.json"] {
    ///     files = files.file(name, std::fs::read(format!("models/default/{name}"))?);
    /// }
    /// let files = files.tensors("model.safetensors", &weights)?;
    /// let session = amnesic::Session::from_files(files).open()?;
    /// let reply = session.generate(amnesic::Request::prompt("A slice is").max_tokens(4))?;
    /// # assert!(!reply.text().is_empty());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Tensor`]: a tensor cannot be read, or its type is one of eight bits or fewer with a fraction. Which types a
    /// model takes (f32, f16, bf16, and f64, which is rounded to f32) is said when the session opens, as of any file.
    pub fn tensors(self, name: impl Into<String>, tensors: &HashMap<String, Tensor>) -> Result<Self> {
        self.write(name.into(), tensors.iter().map(|(name, tensor)| (name.clone(), tensor.clone())).collect())
    }

    /// Adds the variables of a model that candle trains, as [`Files::tensors`] adds tensors.
    ///
    /// ```no_run
    /// # fn trained() -> candle_nn::VarMap { candle_nn::VarMap::new() }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let variables: candle_nn::VarMap = trained();
    /// let files = amnesic::Files::new()
    ///     .file("config.json", std::fs::read("model/config.json")?)
    ///     .var_map("model.safetensors", &variables)?;
    /// let session = amnesic::Session::from_files(files).open()?;
    /// # drop(session);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Files::tensors`].
    pub fn var_map(self, name: impl Into<String>, variables: &VarMap) -> Result<Self> {
        let data = variables.data().lock().unwrap_or_else(PoisonError::into_inner);
        let tensors =
            data.iter().map(|(name, variable)| (name.clone(), variable.as_tensor().clone())).collect();
        drop(data);
        self.write(name.into(), tensors)
    }

    /// Adds what a `VarBuilder` has, as [`Files::tensors`] does. It does not list its tensors, so those are taken that a model of the
    /// `config.json` beside them reads, by their names in transformers below the builder's prefix; `config.json`, and for
    /// models of texts to be embedded `modules.json`, must be among the files before. All come in the builder's own type.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use candle_core::{DType, Device};
    /// use candle_nn::VarBuilder;
    ///
    /// let weights = candle_core::safetensors::load("vlm/model.safetensors", &Device::Cpu)?;
    /// let builder = VarBuilder::from_tensors(weights, DType::BF16, &Device::Cpu);
    /// let files = amnesic::Files::new()
    ///     .file("config.json", std::fs::read("vlm/text_config.json")?)
    ///     .file("tokenizer.json", std::fs::read("vlm/tokenizer.json")?)
    ///     .var_builder("model.safetensors", &builder.pp("language_model"))?;
    /// let session = amnesic::Session::from_files(files).open()?;
    /// # drop(session);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Files::tensors`]; a file is missing or malformed; a tensor is missing or of another shape than `config.json` says;
    /// the config is of a quantized checkpoint, whose tensors are not all of one type: [`Files::tensors`] takes them.
    pub fn var_builder(self, name: impl Into<String>, builder: &VarBuilder<'_>) -> Result<Self> {
        let name = name.into();
        let file = Path::new(&name);
        let listed = listed(&self, |tensor| builder.contains_tensor(tensor))?;
        let taken = listed.into_iter().map(|(tensor, shape)| {
            let found = builder.get(shape.as_slice(), &tensor);
            let found = found.map_err(|error| {
                Error::tensor(file, &tensor, format!("be readable, with shape {shape:?}: {}", reason(&error)))
            })?;
            Ok((tensor, found))
        });
        let taken = taken.collect::<Result<_>>()?;
        self.write(name, taken)
    }

    /// Adds a file of these tensors.
    fn write(self, name: String, tensors: BTreeMap<String, Tensor>) -> Result<Self> {
        let file = Path::new(&name);
        for (tensor, found) in &tensors {
            if stored(found.dtype()).is_none() {
                let expected = "be of a type that is read here (f32, f16, bf16, f64, or whole numbers)";
                return Err(Error::tensor(
                    file,
                    tensor,
                    format!("{expected}; it is {}", found.dtype().as_str()),
                ));
            }
        }
        let failed = RefCell::new(None);
        let views = tensors.iter().map(|(name, tensor)| (name, View { name, tensor, failed: &failed }));
        let bytes = safetensors::serialize(views, None);
        if let Some((tensor, error)) = failed.into_inner() {
            return Err(Error::tensor(file, &tensor, format!("be readable: {}", reason(&error))));
        }
        let bytes =
            bytes.map_err(|error| Error::WeightsFile { file: file.to_owned(), reason: error.to_string() })?;
        Ok(self.file(name, bytes))
    }
}

/// A tensor on its way into a file. One at a time is copied.
struct View<'a> {
    name: &'a str,
    tensor: &'a Tensor,
    /// The first that could not be read, and why.
    failed: &'a RefCell<Option<(String, candle_core::Error)>>,
}

impl safetensors::View for View<'_> {
    fn dtype(&self) -> Stored {
        stored(self.tensor.dtype()).expect("checked for all")
    }

    fn shape(&self) -> &[usize] {
        self.tensor.dims()
    }

    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        let bytes = bytes(self.tensor).unwrap_or_else(|error| {
            self.failed.borrow_mut().get_or_insert((self.name.to_owned(), error));
            vec![0; self.data_len()] // of a file that is not used
        });
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.tensor.elem_count() * self.tensor.dtype().size_in_bytes()
    }
}

/// What candle says of an error, without the trace that it may have.
fn reason(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// The name that files have for a type; none for those that are not written.
fn stored(dtype: DType) -> Option<Stored> {
    Some(match dtype {
        DType::F32 => Stored::F32,
        DType::F16 => Stored::F16,
        DType::BF16 => Stored::BF16,
        DType::F64 => Stored::F64,
        DType::U8 => Stored::U8,
        DType::U32 => Stored::U32,
        DType::I16 => Stored::I16,
        DType::I32 => Stored::I32,
        DType::I64 => Stored::I64,
        _ => return None,
    })
}

/// The values, row-major and little-endian.
fn bytes(tensor: &Tensor) -> CandleResult<Vec<u8>> {
    fn all<T: WithDType, const N: usize>(
        flat: &Tensor,
        bytes: impl Fn(T) -> [u8; N],
    ) -> CandleResult<Vec<u8>> {
        let values = flat.to_vec1::<T>()?;
        let mut all = Vec::with_capacity(N * values.len());
        values.into_iter().for_each(|value| all.extend_from_slice(&bytes(value)));
        Ok(all)
    }
    let flat = tensor.flatten_all()?;
    match flat.dtype() {
        DType::F32 => all(&flat, f32::to_le_bytes),
        DType::F16 => all(&flat, half::f16::to_le_bytes),
        DType::BF16 => all(&flat, half::bf16::to_le_bytes),
        DType::F64 => all(&flat, f64::to_le_bytes),
        DType::U8 => flat.to_vec1(),
        DType::U32 => all(&flat, u32::to_le_bytes),
        DType::I16 => all(&flat, i16::to_le_bytes),
        DType::I32 => all(&flat, i32::to_le_bytes),
        DType::I64 => all(&flat, i64::to_le_bytes),
        other => Err(candle_core::Error::UnsupportedDTypeForOp(other, "amnesic").bt()),
    }
}

/// The tensors that a model of these files reads, and their shapes, of those that are there.
fn listed(files: &Files, has: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Vec<usize>>> {
    let root = Path::new("memory:");
    let _held = Held::new(vec![(root.to_owned(), files.clone())]);
    let sentence = SentenceTransformersConfig::open(root)?;
    let file = sentence.folder.join("config.json");
    let arch = Arch::open(&file)?;
    if Scheme::of(&Json::open(&file)?)?.is_some() {
        let expected =
            "left out: tensors of a quantized checkpoint are of several types, so hand them over by name";
        return Err(Error::config(&file, "quantization_config", expected));
    }
    let encodes = arch.family.encodes || sentence.found || arch.classifier.is_some();
    let listing = Listing::new(&has, &sentence.folder);
    Weights::find(&arch, &listing, Options { encodes, extra: true, ..Options::default() })?;
    Ok(listing.found())
}
