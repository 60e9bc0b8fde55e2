//! Quotes of Intel TDX, versions 4 and 5, signed with ECDSA on P-256 by a quoting enclave (Intel TDX DCAP Quoting Library
//! API, appendix A).
//!
//! A quote is a header, a report of the trust domain, and signatures: an attestation key signs header and report, the
//! quoting enclave's own report holds the hash of that key, and a provisioning certification key (PCK), for which Intel has
//! made a certificate, signs the enclave's report.

use p256::ecdsa::signature::Verifier;
use p256::ecdsa::{Signature, VerifyingKey};
use sha2::{Digest, Sha256};

use crate::bytes::{Fields, expect};
use crate::{CheckError, same_report_data};

const HEADER_BYTES: usize = 48;
const REPORT_BYTES: usize = 584;
/// TDX 1.5 has two fields more.
const REPORT_15_BYTES: usize = 648;
const QE_REPORT_BYTES: usize = 384;
/// Where the enclave's own report data are in its report.
const QE_REPORT_DATA: usize = 320;
const TDX: u32 = 0x81;

/// What a quote says, of what tells one machine and one image from another.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The format's version: 4 or 5.
    pub version: u16,
    /// Attributes of the trust domain: bit 0 allows debugging, which makes a quote worthless.
    pub attributes: u64,
    /// The measurement of the domain's first memory: SHA-384.
    pub mr_td: [u8; 48],
    /// Registers that the domain extends while it runs.
    pub rtmr: [[u8; 48]; 4],
    /// Security version numbers of the TDX module.
    pub tee_tcb_svn: [u8; 16],
    /// What the caller had signed.
    pub report_data: [u8; 64],
}

/// A quote, taken apart.
#[derive(Debug)]
struct Parts<'a> {
    report: Report,
    /// Header and report.
    signed: &'a [u8],
    signature: &'a [u8],
    attestation_key: &'a [u8],
    qe_report: &'a [u8],
    qe_signature: &'a [u8],
    qe_authentication: &'a [u8],
    certificates: &'a [u8],
}

fn report(version: u16, body: &[u8]) -> Result<Report, CheckError> {
    let mut fields = Fields(body);
    let tee_tcb_svn = fields.array("tee_tcb_svn")?;
    fields.take("mr_seam", 48 + 48 + 8)?;
    let attributes = u64::from_le_bytes(fields.array("td_attributes")?);
    fields.take("xfam", 8)?;
    let mr_td = fields.array("mr_td")?;
    fields.take("mr_config_id", 3 * 48)?;
    let mut rtmr = [[0; 48]; 4];
    for register in &mut rtmr {
        *register = fields.array("rtmr")?;
    }
    let report_data = fields.array("report_data")?;
    Ok(Report { version, attributes, mr_td, rtmr, tee_tcb_svn, report_data })
}

fn parts(document: &[u8]) -> Result<Parts<'_>, CheckError> {
    let mut fields = Fields(document);
    let version = fields.u16_le("version")?;
    expect("att_key_type", fields.u16_le("att_key_type")?, 2, "2: ECDSA on P-256")?;
    expect("tee_type", fields.u32_le("tee_type")?, TDX, "0x81: TDX")?;
    fields.take("header", HEADER_BYTES - 8)?;
    let body = match version {
        4 => fields.take("report", REPORT_BYTES)?,
        5 => {
            let bytes = match fields.u16_le("body_type")? {
                2 => REPORT_BYTES,
                3 => REPORT_15_BYTES,
                _ => return Err(CheckError::Field { field: "body_type", expected: "2 or 3: TDX" }),
            };
            expect("body_size", fields.u32_le("body_size")? as usize, bytes, "that of its type")?;
            fields.take("report", bytes)?
        }
        _ => return Err(CheckError::Field { field: "version", expected: "4 or 5" }),
    };
    let signed = &document[..document.len() - fields.0.len()];
    let bytes = fields.u32_le("signature_size")? as usize;
    let mut own = Fields(fields.take("signature", bytes)?);
    if fields.0.iter().any(|byte| *byte != 0) {
        return Err(CheckError::Length { field: "padding" }); // the kernel's buffer may be longer than the quote
    }
    let (signature, attestation_key) = (own.take("signature", 64)?, own.take("attestation_key", 64)?);
    let mut certified = certification(&mut own, 6, "6: a report of the quoting enclave")?;
    own.end("signature")?;
    let (qe_report, qe_signature) =
        (certified.take("qe_report", QE_REPORT_BYTES)?, certified.take("qe_signature", 64)?);
    let bytes = certified.u16_le("qe_authentication")?;
    let qe_authentication = certified.take("qe_authentication", bytes.into())?;
    let certificates = certification(&mut certified, 5, "5: a chain of certificates")?.0;
    certified.end("certification_data")?;
    let report = report(version, body)?;
    Ok(Parts {
        report,
        signed,
        signature,
        attestation_key,
        qe_report,
        qe_signature,
        qe_authentication,
        certificates,
    })
}

fn certification<'a>(
    fields: &mut Fields<'a>,
    kind: u16,
    expected: &'static str,
) -> Result<Fields<'a>, CheckError> {
    expect("certification_type", fields.u16_le("certification_type")?, kind, expected)?;
    let bytes = fields.u32_le("certification_size")? as usize;
    fields.take("certification_data", bytes).map(Fields)
}

/// The chain of certificates that a quote brings, in PEM: that of the PCK first. Nothing of it is checked here.
///
/// # Errors
/// The document is no quote.
pub fn certificates(document: &[u8]) -> Result<&[u8], CheckError> {
    parts(document).map(|parts| parts.certificates)
}

/// Checks a quote: that it is signed by an attestation key, that key certified by a quoting enclave, and its report by
/// `pck` (the key of the first of [`certificates`], once that chain was checked; an uncompressed point of P-256, 65
/// bytes); that it is over this report data, and of a domain that cannot be debugged. Which enclave that is (its
/// measurements, in Intel's lists) is not checked.
///
/// # Errors
/// It does not show that.
pub fn check(document: &[u8], report_data: &[u8; 32], pck: &[u8]) -> Result<Report, CheckError> {
    let parts = parts(document)?;
    let pck = VerifyingKey::from_sec1_bytes(pck)
        .map_err(|_| CheckError::Field { field: "pck", expected: "a point of P-256" })?;
    verify(&pck, parts.qe_report, parts.qe_signature, "the quoting enclave's report")?;
    let mut hash = Sha256::new();
    hash.update(parts.attestation_key);
    hash.update(parts.qe_authentication);
    let qe_report_data = &parts.qe_report[QE_REPORT_DATA..];
    same_report_data(qe_report_data, &hash.finalize().into()).map_err(|_| CheckError::Field {
        field: "attestation_key",
        expected: "the one that the quoting enclave certified",
    })?;
    let key = [&[4], parts.attestation_key].concat();
    let key = VerifyingKey::from_sec1_bytes(&key)
        .map_err(|_| CheckError::Field { field: "attestation_key", expected: "a point of P-256" })?;
    verify(&key, parts.signed, parts.signature, "the quote")?;
    same_report_data(&parts.report.report_data, report_data)?;
    match parts.report.attributes & 1 {
        0 => Ok(parts.report),
        _ => Err(CheckError::Field { field: "td_attributes", expected: "without debugging" }),
    }
}

fn verify(key: &VerifyingKey, signed: &[u8], signature: &[u8], of: &'static str) -> Result<(), CheckError> {
    let wrong = CheckError::Signature { of };
    let signature = Signature::from_slice(signature).map_err(|_| wrong)?;
    key.verify(signed, &signature).map_err(|_| wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{DATA, every_byte_counts, p256_key, tdx_quote};

    #[test]
    fn a_quote_is_what_its_keys_signed() {
        let (pck, public) = p256_key(1);
        for (version, body_type) in [(4, 0), (5, 2), (5, 3)] {
            let document = tdx_quote(&pck, &DATA, (version, body_type), 0);
            let report = check(&document, &DATA, &public).unwrap();
            assert_eq!((report.version, report.mr_td), (version, [0x7d; 48]));
            assert_eq!(report.rtmr, [[0xa0; 48], [0xa1; 48], [0xa2; 48], [0xa3; 48]]);
            assert_eq!(certificates(&document).unwrap(), b"-----BEGIN CERTIFICATE-----");
            assert_eq!(check(&document, &[9; 32], &public), Err(CheckError::ReportData));
            let wrong = CheckError::Signature { of: "the quoting enclave's report" };
            assert_eq!(check(&document, &DATA, &p256_key(2).1), Err(wrong));
            for end in 0..document.len() {
                assert!(check(&document[..end], &DATA, &public).is_err(), "cut at {end}");
            }
            // certificates are checked elsewhere
            let until = document.len() - certificates(&document).unwrap().len();
            every_byte_counts(&document[..until], |changed| {
                let whole = [changed, &document[until..]].concat();
                check(&whole, &DATA, &public).is_err()
            });
        }
        let debugged = tdx_quote(&pck, &DATA, (4, 0), 1);
        let expected = CheckError::Field { field: "td_attributes", expected: "without debugging" };
        assert_eq!(check(&debugged, &DATA, &public), Err(expected));
    }
}
