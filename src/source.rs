//! Where a checkpoint is: a folder of Hugging Face's, or one GGUF file, which holds all that such a folder would.

use std::path::{Path, PathBuf};

use crate::chat::Templates;
use crate::error::Result;
use crate::model::arch::Arch;
use crate::text::Text;
use crate::weights::gguf::Gguf;
use crate::weights::json::Json;
use crate::weights::{Checkpoint, shards, store};

/// See the module.
#[derive(Debug)]
pub enum CheckpointSource {
    Folder(PathBuf),
    Gguf(Box<Gguf>),
}

impl CheckpointSource {
    /// A file that ends with `.gguf`, or a folder.
    ///
    /// # Errors
    /// The file is malformed, or is another.
    pub fn open(path: &Path) -> Result<Self> {
        let is_file = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"));
        match is_file {
            true => Ok(Self::Gguf(Box::new(Gguf::open(path)?))),
            false if store::is_file(path) => Err(shards::no_checkpoint(path)),
            false => Ok(Self::Folder(path.to_owned())),
        }
    }

    /// The shape of the model.
    ///
    /// # Errors
    /// Returns the errors of [`Arch::open`].
    pub fn arch(&self) -> Result<Arch> {
        match self {
            Self::Folder(folder) => Arch::open(&folder.join("config.json")),
            Self::Gguf(gguf) => Arch::of(Json::of(&gguf.file, gguf.config()?), |family| gguf.adjust(family)),
        }
    }

    /// Its tensors.
    ///
    /// # Errors
    /// Returns the errors of [`Checkpoint::open`].
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        match self {
            Self::Folder(folder) => Checkpoint::open(folder),
            Self::Gguf(gguf) => Ok(Checkpoint::of_gguf(&gguf.file, gguf.stored()?)),
        }
    }

    /// The tokenizer for a model of `vocab` tokens; none where there is none.
    ///
    /// # Errors
    /// Returns the errors of [`Text::open`].
    pub fn text(&self, vocab: usize) -> Result<Option<Text>> {
        match self {
            Self::Folder(folder) => match store::exists(&folder.join("tokenizer.json")) {
                true => Text::open(folder, vocab).map(Some),
                false => Ok(None),
            },
            Self::Gguf(gguf) => match gguf.tokenizer()? {
                Some(json) => Text::of(&gguf.file, &json.to_string(), vocab).map(Some),
                None => Ok(None),
            },
        }
    }

    /// The tokenizer of a model that only reads texts: no token becomes text again.
    ///
    /// # Errors
    /// Returns the errors of [`Text::open`].
    pub fn text_to_read(&self, vocab: usize) -> Result<Option<Text>> {
        match self {
            Self::Folder(folder) => match store::exists(&folder.join("tokenizer.json")) {
                true => Text::open_to_read(folder, vocab).map(Some),
                false => Ok(None),
            },
            Self::Gguf(gguf) => match gguf.tokenizer()? {
                Some(json) => Text::of_to_read(&gguf.file, &json.to_string(), vocab).map(Some),
                None => Ok(None),
            },
        }
    }

    /// The chat templates; none where there are none.
    ///
    /// # Errors
    /// Returns the errors of [`Templates::open`].
    pub fn templates(&self) -> Result<Option<Templates>> {
        match self {
            Self::Folder(folder) => Templates::open(folder),
            Self::Gguf(gguf) => Templates::of(&Json::of(&gguf.file, gguf.tokenizer_config()?)),
        }
    }

    /// `generation_config.json`; empty where there is none.
    ///
    /// # Errors
    /// It is malformed.
    pub fn generation_config(&self) -> Result<Json> {
        match self {
            Self::Folder(folder) => Json::open_if_there(&folder.join("generation_config.json")),
            Self::Gguf(gguf) => Ok(Json::of(&gguf.file, serde_json::Value::Object(serde_json::Map::new()))),
        }
    }

    /// The file that says what the model is.
    pub fn config_file(&self) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.join("config.json"),
            Self::Gguf(gguf) => gguf.file.clone(),
        }
    }

    /// Where a tokenizer is looked for; where there is one in another form only, that.
    pub fn tokenizer_file(&self) -> PathBuf {
        match self {
            Self::Folder(folder) => shards::tokenizer(folder),
            Self::Gguf(gguf) => gguf.file.clone(),
        }
    }
}
