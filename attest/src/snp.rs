//! Attestation reports of AMD SEV-SNP (AMD 56860, table 23): 1184 bytes, signed with ECDSA on P-384.

use p384::ecdsa::signature::Verifier;
use p384::ecdsa::{Signature, VerifyingKey};

use crate::bytes::{Fields, expect};
use crate::{CheckError, same_report_data};

/// Bytes of a report.
pub const REPORT_BYTES: usize = 0x4a0;

/// Bytes of it that are signed.
pub const SIGNED_BYTES: usize = 0x2a0;

/// What a report says, of what tells one machine and one image from another.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The format's version.
    pub version: u32,
    /// The guest's policy: bit 19 allows debugging, which makes a report worthless.
    pub policy: u64,
    /// The privilege level that asked: 0 is the highest.
    pub vmpl: u32,
    /// Security version numbers of the firmware.
    pub reported_tcb: u64,
    /// What the caller had signed.
    pub report_data: [u8; 64],
    /// The launch measurement: SHA-384 over the guest's first memory.
    pub measurement: [u8; 48],
    /// What the host said at launch.
    pub host_data: [u8; 32],
    /// The processor.
    pub chip_id: [u8; 64],
}

impl Report {
    /// Reads a report; checks no signature.
    ///
    /// # Errors
    /// It is of another length, version or algorithm.
    pub fn parse(document: &[u8]) -> Result<Self, CheckError> {
        if document.len() != REPORT_BYTES {
            return Err(CheckError::Length { field: "report" });
        }
        let at = |from: usize| Fields(&document[from..]);
        let u64_at = |field, from| at(from).array(field).map(u64::from_le_bytes);
        let version = at(0).u32_le("version")?;
        if !(2..=5).contains(&version) {
            return Err(CheckError::Field { field: "version", expected: "from 2 to 5" });
        }
        expect("signature_algo", at(0x34).u32_le("signature_algo")?, 1, "1: ECDSA on P-384 with SHA-384")?;
        Ok(Self {
            version,
            policy: u64_at("policy", 0x08)?,
            vmpl: at(0x30).u32_le("vmpl")?,
            reported_tcb: u64_at("reported_tcb", 0x180)?,
            report_data: at(0x50).array("report_data")?,
            measurement: at(0x90).array("measurement")?,
            host_data: at(0xc0).array("host_data")?,
            chip_id: at(0x1a0).array("chip_id")?,
        })
    }

    /// Whether the guest's policy lets the host debug it, and so read all of its memory.
    pub fn allows_debugging(&self) -> bool {
        self.policy >> 19 & 1 == 1
    }
}

/// Checks a report: that it is signed by `key` (the processor's VCEK or VLEK, an uncompressed point of P-384 as its
/// certificate has it: 97 bytes), is over this report data, and is of a guest that cannot be debugged.
///
/// # Errors
/// It does not show that.
pub fn check(document: &[u8], report_data: &[u8; 32], key: &[u8]) -> Result<Report, CheckError> {
    let report = Report::parse(document)?;
    let wrong = CheckError::Signature { of: "the report" };
    let key = VerifyingKey::from_sec1_bytes(key)
        .map_err(|_| CheckError::Field { field: "key", expected: "a point of P-384" })?;
    let (signed, signature) = document.split_at(SIGNED_BYTES);
    // r and s, 72 bytes each, least significant first: P-384 fills 48 of them
    let number = |from: usize| -> Result<[u8; 48], CheckError> {
        let (low, high) = signature[from..from + 72].split_at(48);
        let mut number: [u8; 48] = low.try_into().expect("48 bytes");
        number.reverse();
        if high.iter().all(|byte| *byte == 0) { Ok(number) } else { Err(wrong) }
    };
    let signature = Signature::from_scalars(number(0)?, number(72)?).map_err(|_| wrong)?;
    key.verify(signed, &signature).map_err(|_| wrong)?;
    same_report_data(&report.report_data, report_data)?;
    if report.allows_debugging() {
        return Err(CheckError::Field { field: "policy", expected: "one without debugging" });
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{DATA, every_byte_counts, snp_key, snp_report};

    #[test]
    fn a_report_is_what_its_key_signed() {
        let (key, public) = snp_key(1);
        let document = snp_report(&key, &DATA, 0x3_0000);
        let report = check(&document, &DATA, &public).unwrap();
        assert_eq!((report.version, report.vmpl, report.measurement), (3, 1, [0x6d; 48]));
        assert_eq!((report.chip_id, report.host_data), ([0xc1; 64], [0x40; 32]));
        assert_eq!(check(&document, &[9; 32], &public), Err(CheckError::ReportData));
        let wrong = CheckError::Signature { of: "the report" };
        assert_eq!(check(&document, &DATA, &snp_key(2).1), Err(wrong));
        assert_eq!(check(&document[1..], &DATA, &public), Err(CheckError::Length { field: "report" }));
        // behind r and s there are 368 reserved bytes, which nothing signs
        every_byte_counts(&document[..SIGNED_BYTES + 144], |changed| {
            let whole = [changed, &document[SIGNED_BYTES + 144..]].concat();
            check(&whole, &DATA, &public).is_err()
        });
        let debugged = snp_report(&key, &DATA, 0xb_0000);
        let policy = CheckError::Field { field: "policy", expected: "one without debugging" };
        assert_eq!(check(&debugged, &DATA, &public), Err(policy));
    }
}
