//! What a conversation's bits depend on beside its text: the checkpoint, the adapters, and how the session computes.

use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::weights::store::{self, Content};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// Files of at most this size are hashed as a whole; of larger ones so many bytes from the start, which are their header,
/// and places spread evenly over the rest.
const WHOLE_BYTES: u64 = 1 << 20;
const PLACES: u64 = 256;
const PLACE_BYTES: usize = 256;

/// Told apart when a conversation is imported. It answers mistakes, not malice: of weights it reads a sample, in which any
/// training shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Configuration, tokenizer, templates, weights, and what is merged into them.
    pub model: Hash,
    /// Types of weights and cache, and the instruction set where it rounds in a way of its own.
    pub arithmetic: Hash,
    /// The session's adapters, by name.
    pub adapters: Vec<(String, Hash)>,
    /// Tokens in the vocabulary.
    pub vocab: usize,
}

impl Identity {
    /// Reads a sample of the files of a checkpoint: a folder, or one file.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn of_files(checkpoints: &[&Path]) -> io::Result<Hash> {
        let mut hasher = Sha256::new();
        for checkpoint in checkpoints {
            let is_folder = store::is_folder(checkpoint);
            let mut files = match is_folder {
                true => files_of(checkpoint)?,
                false => vec![checkpoint.to_path_buf()],
            };
            files.sort_unstable();
            hasher.update(files.len().to_le_bytes());
            for file in files {
                // a folder may have any name: what is in it counts
                let name = file.file_name().unwrap_or_default().as_encoded_bytes();
                if is_folder {
                    hasher.update(name.len().to_le_bytes());
                    hasher.update(name);
                }
                hash_file(&mut hasher, &Content::open(&file)?)?;
            }
        }
        Ok(hasher.finalize().into())
    }

    /// The hash of settings, each with its name.
    pub fn of_settings(settings: &[(&str, String)]) -> Hash {
        let mut hasher = Sha256::new();
        for (name, value) in settings {
            for text in [*name, value.as_str()] {
                hasher.update(text.len().to_le_bytes());
                hasher.update(text);
            }
        }
        hasher.finalize().into()
    }

    /// The adapter of a name; none if the session has none of it.
    pub fn adapter(&self, name: &str) -> Option<&Hash> {
        self.adapters.iter().find(|(known, _)| known == name).map(|(_, hash)| hash)
    }
}

/// Those that change what the model computes or how text becomes tokens.
fn files_of(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let counts = |name: &str| {
        let named = ["config.json", "tokenizer.json", "tokenizer_config.json", "adapter_config.json"];
        name.ends_with(".safetensors") || name.ends_with(".jinja") || named.contains(&name)
    };
    let files = store::list(folder)?.into_iter().filter(|name| counts(name)).map(|name| folder.join(name));
    Ok(files.filter(|file| store::is_file(file)).collect())
}

fn hash_file(hasher: &mut Sha256, file: &Content) -> io::Result<()> {
    let bytes = file.len()?;
    hasher.update(bytes.to_le_bytes());
    let mut buffer = vec![0; 64 << 10];
    let mut at = 0;
    while at < bytes.min(WHOLE_BYTES) {
        let most = (bytes - at).min(buffer.len() as u64) as usize;
        file.read_exact_at(&mut buffer[..most], at)?;
        hasher.update(&buffer[..most]);
        at += most as u64;
    }
    let rest = bytes.saturating_sub(WHOLE_BYTES + PLACE_BYTES as u64);
    for place in (1..=PLACES).filter(|_| rest > 0) {
        file.read_exact_at(&mut buffer[..PLACE_BYTES], WHOLE_BYTES + rest / PLACES * place)?;
        hasher.update(&buffer[..PLACE_BYTES]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_differs_makes_another_model_and_a_folders_name_does_not() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let write = |folder: &tempfile::TempDir, name: &str, bytes: &[u8]| {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        };
        let of = |folder: &tempfile::TempDir| Identity::of_files(&[folder.path()]).unwrap();
        let weights = vec![1_u8; 5 << 20];
        for folder in &folders {
            write(folder, "config.json", b"{}");
            write(folder, "model.safetensors", &weights);
            write(folder, "README.md", folder.path().as_os_str().as_encoded_bytes());
        }
        assert_eq!(of(&folders[0]), of(&folders[1]));
        write(&folders[1], "config.json", b"{ }");
        assert_ne!(of(&folders[0]), of(&folders[1]));
        write(&folders[1], "config.json", b"{}");
        write(&folders[1], "model.safetensors", &weights[1..]);
        assert_ne!(of(&folders[0]), of(&folders[1]), "one byte fewer");
        let trained: Vec<u8> = weights.iter().enumerate().map(|(i, byte)| byte + (i % 3) as u8).collect();
        write(&folders[1], "model.safetensors", &trained);
        assert_ne!(of(&folders[0]), of(&folders[1]));
        assert!(Identity::of_files(&[&folders[0].path().join("missing")]).is_err());
    }
}
