//! What receipts say of a session, and what continues a conversation elsewhere is held against.

use std::path::{Path, PathBuf};

use super::Builder;
use crate::backend::{KvType, Quantize};
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::privacy::{Alias, Environment, Evidence};
use crate::weights::files::Recording;

impl Builder {
    /// What receipts say of the session.
    pub(super) fn environment(&self, device: &str, model: Alias, kv_cache: KvType) -> Environment {
        let quantize = match self.quantize {
            None => "none",
            Some(Quantize::Q8) => "q8",
            Some(Quantize::Q4) => "q4",
        };
        let kv_cache = match kv_cache {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::Bf16 => "bf16",
            KvType::Int8 => "int8",
        };
        Environment {
            backend: device.to_owned(),
            model: model.to_string(),
            quantize: quantize.to_owned(),
            dequantize: self.dequantize,
            kv_cache: kv_cache.to_owned(),
            ..Environment::of_process()
        }
    }

    /// The hashes of what was read.
    pub(super) fn evidence(&self, recording: Recording) -> Result<Evidence> {
        let below = |folder: &Path, file: &Path| {
            let rest = file.strip_prefix(folder).ok()?;
            let name = if rest.as_os_str().is_empty() { Path::new(file.file_name()?) } else { rest };
            Some(name.to_string_lossy().replace(char::is_control, "\u{fffd}"))
        };
        let files = recording.finish(|file| {
            let draft = self.draft.iter().map(|folder| ("draft/".to_owned(), folder));
            let merged = self.merged.iter().map(|folder| ("merged/".to_owned(), folder));
            let beside = self.adapters.iter().map(|(name, folder)| (format!("adapters/{name}/"), folder));
            let others = draft.chain(merged).chain(beside);
            let own = (String::new(), &self.folder);
            // the longest folder: one may lie in another
            let names = others.chain([own]).filter_map(|(start, folder)| {
                Some((folder.as_os_str().len(), start + &below(folder, file)?))
            });
            names.max().map_or_else(|| file.to_string_lossy().into_owned(), |(_, name)| name)
        })?;
        Ok(Evidence { files: files.into_iter().map(Into::into).collect(), quote: None })
    }

    /// What the bits of a conversation depend on. Read now: files may be out of reach later.
    pub(super) fn identity(&self, arithmetic: &str, vocab: usize) -> Result<Identity> {
        let hash = |folders: &[&Path]| Identity::of_files(folders).map_err(Error::read(folders[0]));
        let main: Vec<&Path> = [&self.folder].into_iter().chain(&self.merged).map(PathBuf::as_path).collect();
        let adapter = |(name, folder): &(String, PathBuf)| Ok((name.clone(), hash(&[folder])?));
        let settings = [
            ("arithmetic", arithmetic.to_owned()),
            ("kv cache", format!("{:?}", self.kv_cache)),
            ("quantize", format!("{:?}, {}", self.quantize, self.dequantize)),
        ];
        Ok(Identity {
            model: hash(&main)?,
            arithmetic: Identity::of_settings(&settings),
            adapters: self.adapters.iter().map(adapter).collect::<Result<_>>()?,
            vocab,
        })
    }
}
