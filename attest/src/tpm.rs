//! Quotes of a TPM 2.0 (Trusted Platform Module Library, parts 2 and 3).
//!
//! The document is what `TPM2_Quote` answers: a `TPM2B_ATTEST`, and behind it a `TPMT_SIGNATURE` of an attestation key,
//! RSASSA or ECDSA on P-256 with SHA-256.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use amnesic::privacy::{AttestError, Attester, Quote};
use p256::ecdsa::signature::Verifier;
use sha2::{Digest, Sha256};

use crate::CheckError;
use crate::bytes::{Fields, expect};

/// The name of the format in receipts.
pub const FORMAT: &str = "tpm2";

const GENERATED: u32 = 0xff54_4347;
const ATTEST_QUOTE: u16 = 0x8018;
const ALG_RSASSA: u16 = 0x0014;
const ALG_ECDSA: u16 = 0x0018;
const ALG_SHA256: u16 = 0x000b;
const ALG_NULL: u16 = 0x0010;
const ST_SESSIONS: u16 = 0x8002;
const CC_QUOTE: u32 = 0x0158;
const RS_PASSWORD: u32 = 0x4000_0009;
/// No TPM answers with more.
const MAX_RESPONSE: usize = 4096;

/// What a quote says (`TPMS_ATTEST` with `TPMS_QUOTE_INFO`).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attest {
    /// The qualified name of the key that signed.
    pub signer: Vec<u8>,
    /// What the caller had signed.
    pub extra_data: Vec<u8>,
    /// Milliseconds of the TPM's clock.
    pub clock_ms: u64,
    /// How often it was reset.
    pub resets: u32,
    /// Its firmware's version.
    pub firmware: u64,
    /// Which platform configuration registers are quoted: of each bank its hash algorithm and a bit map.
    pub selection: Vec<(u16, Vec<u8>)>,
    /// The hash over those registers.
    pub pcr_digest: Vec<u8>,
}

/// A public key that quotes are checked with: that of an attestation key, once its certificate was checked.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub enum Key {
    /// Of RSA: modulus and exponent, most significant byte first.
    Rsa {
        /// The modulus.
        modulus: Vec<u8>,
        /// The exponent.
        exponent: Vec<u8>,
    },
    /// An uncompressed point of P-256: 65 bytes.
    P256(Vec<u8>),
}

/// Reads a `TPMS_ATTEST`; checks no signature.
///
/// # Errors
/// It is something else than a quote.
pub fn parse(attest: &[u8]) -> Result<Attest, CheckError> {
    let mut fields = Fields(attest);
    expect("magic", fields.u32_be("magic")?, GENERATED, "0xff544347: made by a TPM")?;
    expect("type", fields.u16_be("type")?, ATTEST_QUOTE, "0x8018: a quote")?;
    let signer = fields.sized("qualified_signer")?.to_vec();
    let extra_data = fields.sized("extra_data")?.to_vec();
    let clock_ms = u64::from_be_bytes(fields.array("clock")?);
    let resets = fields.u32_be("reset_count")?;
    fields.take("restart_count", 4 + 1)?; // and whether the clock is safe
    let firmware = u64::from_be_bytes(fields.array("firmware_version")?);
    let banks = fields.u32_be("pcr_select")?;
    let mut selection = Vec::new();
    for _ in 0..banks {
        let algorithm = fields.u16_be("pcr_select")?;
        let [bytes] = fields.array("pcr_select")?;
        selection.push((algorithm, fields.take("pcr_select", bytes.into())?.to_vec()));
    }
    let pcr_digest = fields.sized("pcr_digest")?.to_vec();
    fields.end("pcr_digest")?;
    Ok(Attest { signer, extra_data, clock_ms, resets, firmware, selection, pcr_digest })
}

/// Checks a quote: that it is signed by `key` and is over this report data.
///
/// # Errors
/// It does not show that.
pub fn check(document: &[u8], report_data: &[u8; 32], key: &Key) -> Result<Attest, CheckError> {
    let mut fields = Fields(document);
    let attest = fields.sized("attest")?;
    let wrong = CheckError::Signature { of: "the quote" };
    match (fields.u16_be("signature_algorithm")?, key) {
        (ALG_RSASSA, Key::Rsa { modulus, exponent }) => {
            expect("signature_hash", fields.u16_be("signature_hash")?, ALG_SHA256, "0x000b: SHA-256")?;
            let signature = fields.sized("signature")?;
            let number = rsa::BigUint::from_bytes_be;
            let key = rsa::RsaPublicKey::new(number(modulus), number(exponent))
                .map_err(|_| CheckError::Field { field: "key", expected: "an RSA key" })?;
            let scheme = rsa::Pkcs1v15Sign::new::<Sha256>();
            key.verify(scheme, &Sha256::digest(attest), signature).map_err(|_| wrong)?;
        }
        (ALG_ECDSA, Key::P256(point)) => {
            expect("signature_hash", fields.u16_be("signature_hash")?, ALG_SHA256, "0x000b: SHA-256")?;
            let (r, s) = (scalar(fields.sized("r")?)?, scalar(fields.sized("s")?)?);
            let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(point)
                .map_err(|_| CheckError::Field { field: "key", expected: "a point of P-256" })?;
            let signature = p256::ecdsa::Signature::from_scalars(r, s).map_err(|_| wrong)?;
            key.verify(attest, &signature).map_err(|_| wrong)?;
        }
        _ => {
            let expected = "RSASSA (0x0014) or ECDSA (0x0018), as the key is";
            return Err(CheckError::Field { field: "signature_algorithm", expected });
        }
    }
    fields.end("signature")?;
    let attest = parse(attest)?;
    if attest.extra_data == report_data { Ok(attest) } else { Err(CheckError::ReportData) }
}

/// TPMs leave zeros at the front out.
fn scalar(bytes: &[u8]) -> Result<[u8; 32], CheckError> {
    let mut whole = [0; 32];
    let start = whole.len().checked_sub(bytes.len()).ok_or(CheckError::Length { field: "signature" })?;
    whole[start..].copy_from_slice(bytes);
    Ok(whole)
}

/// A TPM that quotes with an attestation key which was made before and is persistent, without a password: as
/// `tpm2_createak` and `tpm2_evictcontrol` of tpm2-tools leave one.
pub struct Tpm<T> {
    transport: Mutex<T>,
    device: PathBuf,
    key_handle: u32,
    /// Registers of the SHA-256 bank, a bit each.
    registers: [u8; 3],
}

impl Tpm<std::fs::File> {
    /// The machine's, through the kernel's resource manager; `registers` are numbers of platform configuration registers,
    /// below 24.
    ///
    /// # Errors
    /// The device cannot be opened.
    pub fn open(key_handle: u32, registers: &[u8]) -> Result<Self, AttestError> {
        let device = PathBuf::from("/dev/tpmrm0");
        let opened = std::fs::OpenOptions::new().read(true).write(true).open(&device);
        let transport = opened.map_err(|source| AttestError::Io { file: device.clone(), source })?;
        Self::over(transport, device, key_handle, registers)
    }
}

impl<T: Read + Write> Tpm<T> {
    /// Behind anything that takes a command in one write and gives its response in one read.
    ///
    /// # Errors
    /// A register is none.
    pub fn over(
        transport: T,
        device: PathBuf,
        key_handle: u32,
        registers: &[u8],
    ) -> Result<Self, AttestError> {
        let mut selected = [0; 3];
        for register in registers {
            let byte = selected.get_mut(usize::from(register / 8));
            *byte.ok_or(AttestError::Malformed("be of registers below 24"))? |= 1 << (register % 8);
        }
        Ok(Self { transport: Mutex::new(transport), device, key_handle, registers: selected })
    }

    fn command(&self, qualifying_data: &[u8; 32]) -> Vec<u8> {
        let mut body = self.key_handle.to_be_bytes().to_vec();
        // a session by an empty password: handle, no nonce, no attributes, no password
        body.extend(9_u32.to_be_bytes());
        body.extend(RS_PASSWORD.to_be_bytes());
        body.extend([0; 5]);
        body.extend((qualifying_data.len() as u16).to_be_bytes());
        body.extend(qualifying_data);
        body.extend(ALG_NULL.to_be_bytes()); // the key's own scheme
        body.extend(1_u32.to_be_bytes());
        body.extend(ALG_SHA256.to_be_bytes());
        body.push(self.registers.len() as u8);
        body.extend(self.registers);
        let mut command = ST_SESSIONS.to_be_bytes().to_vec();
        command.extend((10 + body.len() as u32).to_be_bytes());
        command.extend(CC_QUOTE.to_be_bytes());
        command.extend(body);
        command
    }

    fn ask(&self, command: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut transport = self.transport.lock().unwrap_or_else(PoisonError::into_inner);
        transport.write_all(command)?;
        let mut response = vec![0; MAX_RESPONSE];
        let bytes = transport.read(&mut response)?;
        response.truncate(bytes);
        Ok(response)
    }
}

/// The quote in a response.
fn quote(response: &[u8]) -> Result<&[u8], AttestError> {
    let malformed = |_| AttestError::Malformed("be in a response to TPM2_Quote");
    let mut fields = Fields(response);
    fields.u16_be("tag").map_err(malformed)?;
    let bytes = fields.u32_be("response_size").map_err(malformed)?;
    let code = fields.u32_be("response_code").map_err(malformed)?;
    if code != 0 {
        return Err(AttestError::Refused { what: "TPM2_Quote", code });
    }
    if bytes as usize != response.len() {
        return Err(AttestError::Malformed("be in a whole response"));
    }
    let bytes = fields.u32_be("parameter_size").map_err(malformed)?;
    fields.take("parameters", bytes as usize).map_err(malformed)
}

impl<T: Read + Write + Send> Attester for Tpm<T> {
    fn attest(&self, report_data: &[u8; 32]) -> Result<Quote, AttestError> {
        let io = |source| AttestError::Io { file: self.device.clone(), source };
        let response = self.ask(&self.command(report_data)).map_err(io)?;
        Ok(Quote::new(FORMAT, quote(&response)?))
    }
}

impl<T> std::fmt::Debug for Tpm<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tpm").field("device", &self.device).field("key_handle", &self.key_handle).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{DATA, Simulated, TpmKey, every_byte_counts, p256_key, tpm_quote};

    #[test]
    fn a_quote_is_what_its_key_signed() {
        for key in [TpmKey::p256(1), TpmKey::rsa()] {
            let document = tpm_quote(&key, &DATA);
            let attest = check(&document, &DATA, &key.public()).unwrap();
            assert_eq!((attest.clock_ms, attest.resets, attest.firmware), (123_456, 7, 0x2020));
            assert_eq!(attest.selection, [(ALG_SHA256, vec![0x81, 0, 0])]);
            assert_eq!(attest.pcr_digest, [0xdd; 32]);
            assert_eq!(check(&document, &[9; 32], &key.public()), Err(CheckError::ReportData));
            let other = check(&document, &DATA, &Key::P256(p256_key(2).1));
            assert!(other.is_err(), "{other:?}");
            for end in 0..document.len() {
                assert!(check(&document[..end], &DATA, &key.public()).is_err(), "cut at {end}");
            }
            every_byte_counts(&document, |changed| check(changed, &DATA, &key.public()).is_err());
        }
    }

    #[test]
    fn a_tpm_is_asked_for_a_quote_over_the_report_data() {
        let key = TpmKey::p256(1);
        let public = key.public();
        let simulated = Simulated::new(key, 0x8101_0002);
        let tpm = Tpm::over(simulated, "/dev/tpmrm0".into(), 0x8101_0002, &[0, 7]).unwrap();
        let quote = tpm.attest(&DATA).unwrap();
        assert_eq!(quote.format, "tpm2");
        let attest = check(&quote.document.0, &DATA, &public).unwrap();
        assert_eq!(attest.selection, [(ALG_SHA256, vec![0x81, 0, 0])]);
        // TPM_RC_HANDLE: no such key
        let simulated = Simulated::new(TpmKey::p256(1), 0x8101_0002);
        let tpm = Tpm::over(simulated, "/dev/tpmrm0".into(), 0x8101_0003, &[0, 7]).unwrap();
        let refused = tpm.attest(&DATA).unwrap_err();
        assert!(matches!(refused, AttestError::Refused { code: 0x18b, .. }), "{refused}");
        assert!(Tpm::over(std::io::empty(), "none".into(), 1, &[24]).is_err());
        let silent = Tpm::over(std::io::Cursor::new(Vec::new()), "none".into(), 1, &[0]).unwrap();
        let malformed = silent.attest(&DATA).unwrap_err();
        assert!(matches!(malformed, AttestError::Malformed(_)), "{malformed}");
    }
}
