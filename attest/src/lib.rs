//! Quotes over the key that signs [`amnesic`]'s receipts, and how they are checked.
//!
//! | where | [`Attester`](amnesic::privacy::Attester) | check |
//! |---|---|---|
//! | a TPM 2.0 | [`tpm::Tpm`], commands to `/dev/tpmrm0` | [`tpm::check`] |
//! | Intel TDX | [`tsm::Tsm`], the kernel's configfs-tsm | [`tdx::check`] |
//! | AMD SEV-SNP | [`tsm::Tsm`], the kernel's configfs-tsm | [`snp::check`] |
//!
//! A check shows that a document is signed by a given key of the vendor's or the machine's, and that it was made for a given
//! signing key and nonce ([`amnesic::privacy::report_data`]). **It does not show** whose key that is: chains of
//! certificates, their revocation, and the vendors' lists of firmware that is out of date are the business of whoever
//! verifies, with the vendors' own tools. Nor does it say which measurements are right: they are returned, to be compared.
//!
//! **None of this has run on a TPM, a TDX or an SEV-SNP machine.** The formats are those of the published specifications
//! (TPM 2.0 Library parts 2 and 3; Intel TDX DCAP Quoting Library API, quotes of version 4 and 5; AMD 56860, attestation
//! reports of version 2 to 5), and tests hold them against documents that they make and sign themselves.

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod bytes;
pub mod snp;
pub mod tdx;
#[cfg(test)]
mod testing;
pub mod tpm;
pub mod tsm;

/// Why a document does not show what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// It ends before a field does, or goes on behind the last one.
    #[error("the document does not have the length of its fields, at `{field}`")]
    Length {
        /// The field.
        field: &'static str,
    },
    /// A field has a value that it must not have.
    #[error("`{field}` must be {expected}")]
    Field {
        /// The field.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// A signature is not that of the key.
    #[error("the signature of {of} is wrong")]
    Signature {
        /// What is signed.
        of: &'static str,
    },
    /// It was made for another key or nonce.
    #[error("the quote is over other report data")]
    ReportData,
}

/// Whether `found` begins with the 32 bytes of report data, and has zeros behind them.
fn same_report_data(found: &[u8], expected: &[u8; 32]) -> Result<(), CheckError> {
    match found.split_at_checked(expected.len()) {
        Some((start, rest)) if start == expected && rest.iter().all(|byte| *byte == 0) => Ok(()),
        _ => Err(CheckError::ReportData),
    }
}
