//! Reports through the kernel's configfs-tsm (Linux 6.7 and later; Documentation/ABI/testing/configfs-tsm): on Intel TDX a
//! quote, on AMD SEV-SNP an attestation report.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use amnesic::privacy::{AttestError, Attester, Quote};

/// The kernel's folder of reports.
#[derive(Debug)]
pub struct Tsm {
    root: PathBuf,
    /// What the kernel does when report data are written.
    #[cfg(test)]
    kernel: Option<fn(&Path)>,
}

impl Tsm {
    /// The machine's, below `/sys/kernel/config`.
    ///
    /// # Errors
    /// The kernel has none: it is no confidential guest, or configfs is not mounted.
    pub fn open() -> Result<Self, AttestError> {
        Self::at("/sys/kernel/config/tsm/report".into())
    }

    fn at(root: PathBuf) -> Result<Self, AttestError> {
        match root.is_dir() {
            true => Ok(Self {
                root,
                #[cfg(test)]
                kernel: None,
            }),
            false => Err(AttestError::NotAvailable("configfs-tsm (/sys/kernel/config/tsm/report)")),
        }
    }

    /// The document, and who made it.
    fn report(&self, entry: &Path, report_data: &[u8; 32]) -> Result<(String, Vec<u8>), AttestError> {
        let io = |file: &Path| {
            let file = file.to_owned();
            move |source| AttestError::Io { file, source }
        };
        let file = |name: &str| entry.join(name);
        let generation = || fs::read_to_string(file("generation")).map_err(io(&file("generation")));
        let mut whole = [0; 64];
        whole[..report_data.len()].copy_from_slice(report_data);
        fs::write(file("inblob"), whole).map_err(io(&file("inblob")))?;
        #[cfg(test)]
        if let Some(kernel) = self.kernel {
            kernel(entry);
        }
        let before = generation()?;
        let document = fs::read(file("outblob")).map_err(io(&file("outblob")))?;
        let provider = fs::read_to_string(file("provider")).map_err(io(&file("provider")))?;
        // another process may have written report data of its own in between
        if generation()? != before {
            return Err(AttestError::Malformed("be over one's own report data: another process wrote some"));
        }
        Ok((provider.trim().to_owned(), document))
    }
}

impl Attester for Tsm {
    fn attest(&self, report_data: &[u8; 32]) -> Result<Quote, AttestError> {
        static ENTRIES: AtomicU64 = AtomicU64::new(0);
        let number = ENTRIES.fetch_add(1, Ordering::Relaxed);
        let entry = self.root.join(format!("amnesic-{}-{number}", std::process::id()));
        fs::create_dir(&entry).map_err(|source| AttestError::Io { file: entry.clone(), source })?;
        let report = self.report(&entry, report_data);
        let _ = fs::remove_dir(&entry); // an entry that stays does no harm
        let (provider, document) = report?;
        let format = match provider.as_str() {
            "tdx_guest" => "tdx",
            "sev_guest" => "sev_snp",
            _ => return Err(AttestError::Malformed("be of tdx_guest or sev_guest")),
        };
        Ok(Quote::new(format, document))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{DATA, p256_key, snp_key, snp_report, tdx_quote};
    use crate::{snp, tdx};

    /// As a kernel that takes report data and answers with a document over them.
    fn answer(entry: &Path, provider: &str, make: impl Fn(&[u8; 32]) -> Vec<u8>) {
        let data = fs::read(entry.join("inblob")).unwrap();
        assert_eq!((data.len(), &data[32..]), (64, [0; 32].as_slice()));
        fs::write(entry.join("outblob"), make(data[..32].try_into().unwrap())).unwrap();
        fs::write(entry.join("provider"), format!("{provider}\n")).unwrap();
        fs::write(entry.join("generation"), "1\n").unwrap();
    }

    #[test]
    fn the_kernel_is_asked_for_a_report() {
        let root = tempfile::tempdir().unwrap();
        let ask = |kernel: fn(&Path)| {
            let tsm = Tsm { kernel: Some(kernel), ..Tsm::at(root.path().to_owned()).unwrap() };
            tsm.attest(&DATA)
        };
        let quote =
            ask(|entry| answer(entry, "tdx_guest", |data| tdx_quote(&p256_key(1).0, data, (4, 0), 0)));
        let quote = quote.unwrap();
        assert_eq!(quote.format, "tdx");
        tdx::check(&quote.document.0, &DATA, &p256_key(1).1).unwrap();
        let quote = ask(|entry| answer(entry, "sev_guest", |data| snp_report(&snp_key(1).0, data, 0x3_0000)));
        let quote = quote.unwrap();
        assert_eq!(quote.format, "sev_snp");
        snp::check(&quote.document.0, &DATA, &snp_key(1).1).unwrap();
        let other = ask(|entry| answer(entry, "arm_cca_guest", |_| Vec::new()));
        assert!(matches!(other, Err(AttestError::Malformed(_))), "{other:?}");
        let silent = ask(|_| ());
        assert!(matches!(silent, Err(AttestError::Io { .. })), "{silent:?}");
        assert!(matches!(Tsm::at(root.path().join("none")), Err(AttestError::NotAvailable(_))));
    }
}
