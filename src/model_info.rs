//! What a checkpoint says of itself: [`Session::model`](crate::Session::model).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::error::Result;
use crate::model::arch::Arch;
use crate::model::weights::{StepWeights, Weights};
use crate::source::CheckpointSource;
use crate::weights::gguf::Gguf;
use crate::weights::json::Json;
use crate::weights::store::Content;

/// Bytes of a model card in which its fields are looked for, and of a field.
const MAX_CARD_BYTES: usize = 64 << 10;
const MAX_FIELD_BYTES: usize = 512;

/// What a checkpoint says of itself. Metadata: no content.
///
/// Fields that are texts come from the checkpoint's files, and say what their author wrote; a license is told as it stands
/// there and means what its author means. The model card (`README.md`) is read for it alone, and is not among the files
/// whose hashes receipts hold.
///
/// ```no_run
/// let session = amnesic::Session::open("models/default")?;
/// let model = session.model();
/// println!("{}: {} parameters, {}", model.family, model.parameters, model.license.as_deref().unwrap_or("no license"));
/// # Ok::<(), amnesic::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelInfo {
    /// The `model_type` of `config.json`, or what that would be of a GGUF file.
    pub family: String,
    /// The first of `architectures`, or `general.architecture`.
    pub architecture: Option<String>,
    /// `general.name`, or `_name_or_path`.
    pub name: Option<String>,
    /// Numbers in its tensors, adapters aside; those that are used twice count once.
    pub parameters: u64,
    /// Tokens that the model was made for: the session's own [`context_length`](crate::Session::context_length) may be
    /// smaller.
    pub context_length: usize,
    /// Tokens in its vocabulary.
    pub vocab_size: usize,
    /// Layers.
    pub layers: usize,
    /// Values per token between layers.
    pub hidden_size: usize,
    /// The element type of most of its weights, before [`Builder::quantize`](crate::Builder::quantize): `bf16`, `q4` and
    /// the like.
    pub weights: String,
    /// How the checkpoint is quantized, where it says so: `gptq`, `awq`, `fp8` and the like.
    pub quantization: Option<String>,
    /// The license's id: `apache-2.0`, `llama3.1` or `other`, say.
    pub license: Option<String>,
    /// Its name, where the id says too little.
    pub license_name: Option<String>,
    /// Where its text is.
    pub license_link: Option<String>,
}

impl ModelInfo {
    /// What the model in `source` is; `steps` are what it has behind its layers, and not among its weights.
    ///
    /// # Errors
    /// Its configuration is malformed.
    pub(crate) fn of(
        source: &CheckpointSource,
        arch: &Arch,
        weights: &Weights,
        steps: &[StepWeights],
    ) -> Result<Self> {
        let count = |shape: &[usize]| shape.iter().map(|&size| size as u64).product::<u64>();
        let (mut all, mut types) = (0, BTreeMap::<String, u64>::new());
        for tensor in weights.iter().chain(steps.iter().flat_map(StepWeights::iter)) {
            all += count(&tensor.shape);
            *types.entry(format!("{:?}", tensor.dtype).to_lowercase()).or_default() += count(&tensor.shape);
        }
        let added: u64 = weights.additions().map(|added| count(&added.a.shape) + count(&added.b.shape)).sum();
        let mut info = Self {
            family: arch.family.model_type.to_owned(),
            parameters: all - added,
            context_length: arch.context,
            vocab_size: arch.vocab,
            layers: arch.layers,
            hidden_size: arch.hidden,
            weights: types
                .into_iter()
                .max_by_key(|(_, count)| *count)
                .map_or(String::new(), |(name, _)| name),
            ..Self::default()
        };
        match source {
            CheckpointSource::Folder(folder) => info.read_folder(folder)?,
            CheckpointSource::Gguf(gguf) => info.read_gguf(gguf),
        }
        Ok(info)
    }

    fn read_folder(&mut self, folder: &Path) -> Result<()> {
        let config = Json::open(&folder.join("config.json"))?;
        let names = config.field("architectures").and_then(serde_json::Value::as_array);
        self.architecture = names.and_then(|names| names.first()?.as_str()).map(field);
        self.name = config.text("_name_or_path")?.filter(|name| !name.is_empty()).map(field);
        let quantization = config.field("quantization_config").and_then(|config| config.get("quant_method"));
        self.quantization = quantization.and_then(serde_json::Value::as_str).map(field);
        let card = card(&folder.join("README.md")).unwrap_or_default(); // one that is not there says nothing
        self.license = card_field(&card, "license");
        self.license_name = card_field(&card, "license_name");
        self.license_link = card_field(&card, "license_link");
        Ok(())
    }

    fn read_gguf(&mut self, gguf: &Gguf) {
        let text = |key: &str| gguf.text(key).ok().flatten().map(field);
        self.architecture = text("general.architecture");
        self.name = text("general.name");
        self.license = text("general.license");
        self.license_name = text("general.license.name");
        self.license_link = text("general.license.link");
    }
}

/// The start of a model card; what is no text in it is told as U+FFFD.
fn card(file: &Path) -> io::Result<String> {
    let content = Content::open(file)?;
    let bytes = usize::try_from(content.len()?).unwrap_or(usize::MAX).min(MAX_CARD_BYTES);
    let mut start = vec![0; bytes];
    content.read_exact_at(&mut start, 0)?;
    Ok(String::from_utf8_lossy(&start).into_owned())
}

/// A text of a file, on one line and not too long.
fn field(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_FIELD_BYTES);
    text[..end].replace(char::is_control, " ")
}

/// A plain value of the YAML between two lines `---` with which a model card begins.
fn card_field(card: &str, name: &str) -> Option<String> {
    let mut lines = card.strip_prefix('\u{feff}').unwrap_or(card).lines();
    if lines.next()?.trim_end() != "---" {
        return None;
    }
    let value = lines.take_while(|line| line.trim_end() != "---").find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key == name).then_some(value)
    })?;
    let value = value.split(" #").next().unwrap_or_default().trim();
    let quoted = ['"', '\''].into_iter().find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote));
    Some(quoted.unwrap_or(value)).filter(|value| !value.is_empty()).map(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_cards_fields_are_read() {
        let card = "---\nlicense: other # ours\nlicense_name: \"llama 3\"\nlicense_link:\ntags:\n  license: no\n---\nlicense_link: x\n";
        assert_eq!(card_field(card, "license").as_deref(), Some("other"));
        assert_eq!(card_field(card, "license_name").as_deref(), Some("llama 3"));
        assert_eq!(card_field(card, "license_link"), None);
        assert_eq!(card_field("# No fields\nlicense: mit\n", "license"), None);
        assert_eq!(field(&"é".repeat(1000)).len(), 512);
    }
}
