//! Under what a receipt was made: library, model, settings.

use serde::{Deserialize, Serialize};

use super::attest::Quote;
use super::chain::ReceiptHash;
pub use crate::weights::files::FileRole;
use crate::weights::files::HashedFile;

/// A number of the caller's in a receipt, which shows that the receipt is his request's, and no older one: 32 bytes, best
/// random. **It stands in logs: never derive it from content.**
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Nonce([u8; 32]);

impl Nonce {
    /// These bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Under what a receipt was made. The same in all receipts of a session, but for `lockdown`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Environment {
    /// The library's version.
    pub library: String,
    /// The build: the version, the commit if the variable `AMNESIC_COMMIT` named it when the library was compiled, and 16
    /// digits of the SHA-256 of features, target and profile.
    pub build: String,
    /// The library's features that are compiled in.
    pub features: Vec<String>,
    /// Where the model computes: [`crate::Session::device`].
    pub backend: String,
    /// The model's name: [`crate::Builder::model_name`].
    pub model: String,
    /// What overwrites freed memory of the process.
    pub allocator: Allocator,
    /// Whether the process was locked down when the receipt was made.
    pub lockdown: LockdownState,
    /// How weights are quantized as they are loaded: `none` (as in the checkpoint), `q8`, `q4`.
    pub quantize: String,
    /// Whether matrices of a quantized checkpoint were taken in as bf16.
    pub dequantize: bool,
    /// Element type of the KV cache: `f32`, `f16`, `bf16`, `int8`.
    pub kv_cache: String,
    /// SHA-256 of the list of the files with weights, each a line of `sha256sum`: 64 digits, two spaces, the name, a line
    /// feed; in the order of their names. Absent if hashing was switched off.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "super::present")]
    pub weights_sha256: Option<ReceiptHash>,
    /// SHA-256 of the list of configuration files, in the same form.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "super::present")]
    pub configuration_sha256: Option<ReceiptHash>,
    /// SHA-256 of the list of the files of the tokenizer and of chat templates, in the same form.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "super::present")]
    pub tokenizer_sha256: Option<ReceiptHash>,
    /// SHA-256 of the quote over the signing key, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "super::present")]
    pub quote_sha256: Option<ReceiptHash>,
    /// The session's nonce: [`crate::Builder::receipt_nonce`].
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "super::present")]
    pub nonce: Option<Nonce>,
}

/// What overwrites freed memory of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Allocator {
    /// [`crate::alloc::Scrubbing`] is installed.
    Scrubbing,
    /// Nothing does, and [`crate::Builder::accept_unscrubbed_heap`] accepted that.
    AcceptedUnscrubbed,
}

/// Whether the process is locked down ([`crate::privacy::Lockdown`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LockdownState {
    /// It is not.
    #[default]
    None,
    /// Some of what was asked for is enforced.
    Partial,
    /// All of it is.
    Full,
}

/// What the hashes in an [`Environment`] are of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Evidence {
    /// Every file that was read to open the session, in the order of their names; empty if hashing was switched off.
    pub files: Vec<FileHash>,
    /// The quote over the signing key.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "super::present")]
    pub quote: Option<Quote>,
}

/// A file of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct FileHash {
    /// Its path below the checkpoint's folder. Files of other folders have `draft/`, `merged/` or `adapters/NAME/` before it.
    pub name: String,
    /// What it is.
    pub role: FileRole,
    /// Its length.
    pub bytes: u64,
    /// Its hash.
    pub sha256: ReceiptHash,
}

impl From<HashedFile> for FileHash {
    fn from(file: HashedFile) -> Self {
        let HashedFile { name, role, bytes, sha256 } = file;
        Self { name, role, bytes, sha256: ReceiptHash(sha256) }
    }
}

impl Evidence {
    /// The hash over the list of the files of a role; none where there are none.
    pub fn digest(&self, role: FileRole) -> Option<ReceiptHash> {
        let of_role = self.files.iter().filter(|file| file.role == role);
        let lines: String = of_role.map(|file| format!("{}  {}\n", file.sha256, file.name)).collect();
        (!lines.is_empty()).then(|| ReceiptHash::of(lines.as_bytes()))
    }
}

impl Environment {
    /// Puts in what does not depend on a session.
    pub(crate) fn of_process() -> Self {
        let features = FEATURES.iter().filter(|(_, on)| *on).map(|(name, _)| (*name).to_owned());
        Self {
            library: env!("CARGO_PKG_VERSION").to_owned(),
            build: build_id(),
            features: features.collect(),
            backend: String::new(),
            model: String::new(),
            allocator: match crate::alloc::is_installed() {
                true => Allocator::Scrubbing,
                false => Allocator::AcceptedUnscrubbed,
            },
            lockdown: LockdownState::None,
            quantize: "none".to_owned(),
            dequantize: false,
            kv_cache: String::new(),
            weights_sha256: None,
            configuration_sha256: None,
            tokenizer_sha256: None,
            quote_sha256: None,
            nonce: None,
        }
    }
}

/// Features that are on, and `faults` for `--cfg amnesic_faults`, which is none: whoever reads a receipt is to see it.
const FEATURES: [(&str, bool); 8] = [
    ("async", cfg!(feature = "async")),
    ("debug-sampler", cfg!(feature = "debug-sampler")),
    ("faults", cfg!(amnesic_faults)),
    ("forensics", cfg!(feature = "forensics")),
    ("hub", cfg!(feature = "hub")),
    ("schema", cfg!(feature = "schema")),
    ("signed-receipts", cfg!(feature = "signed-receipts")),
    ("testing", cfg!(feature = "testing")),
];

/// No build script asks git: that would make builds from a package differ from those from a repository.
fn build_id() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let commit = option_env!("AMNESIC_COMMIT").filter(|commit| !commit.is_empty()).unwrap_or("unknown");
    let mut what = format!("{version}\n{commit}\n");
    FEATURES.iter().filter(|(_, on)| *on).for_each(|(name, _)| what += &format!("{name}\n"));
    what += &format!("{} {}\n", std::env::consts::ARCH, std::env::consts::OS);
    what += if cfg!(debug_assertions) { "debug\n" } else { "release\n" };
    let hash = ReceiptHash::of(what.as_bytes()).to_string();
    format!("{version}+{commit}.{}", &hash[..16])
}
