//! Documents as the machines make them, with keys of the tests' own.

use std::io::{Read, Write};

use p256::ecdsa::signature::Signer;
use rsa::traits::PublicKeyParts;
use sha2::{Digest, Sha256};

use crate::tpm::Key;

/// Report data.
pub const DATA: [u8; 32] = [0x5a; 32];

/// Any changed byte of `document` must be noticed.
pub fn every_byte_counts(document: &[u8], noticed: impl Fn(&[u8]) -> bool) {
    for at in 0..document.len() {
        for bit in [1, 0x80] {
            let mut changed = document.to_vec();
            changed[at] ^= bit;
            assert!(noticed(&changed), "byte {at} was changed unseen");
        }
    }
}

/// A key, and its point.
pub fn p256_key(number: u8) -> (p256::ecdsa::SigningKey, Vec<u8>) {
    let key = p256::ecdsa::SigningKey::from_slice(&[number; 32]).unwrap();
    let point = key.verifying_key().to_encoded_point(false).as_bytes().to_vec();
    (key, point)
}

/// A key, and its point.
pub fn snp_key(number: u8) -> (p384::ecdsa::SigningKey, Vec<u8>) {
    let key = p384::ecdsa::SigningKey::from_slice(&[number; 48]).unwrap();
    let point = key.verifying_key().to_encoded_point(false).as_bytes().to_vec();
    (key, point)
}

/// A report as AMD's firmware makes it.
pub fn snp_report(key: &p384::ecdsa::SigningKey, data: &[u8; 32], policy: u64) -> Vec<u8> {
    let mut report = vec![0; crate::snp::REPORT_BYTES];
    let mut put = |at: usize, bytes: &[u8]| report[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &3_u32.to_le_bytes());
    put(0x08, &policy.to_le_bytes());
    put(0x30, &1_u32.to_le_bytes());
    put(0x34, &1_u32.to_le_bytes());
    put(0x50, data);
    put(0x90, &[0x6d; 48]);
    put(0xc0, &[0x40; 32]);
    put(0x1a0, &[0xc1; 64]);
    let signature: p384::ecdsa::Signature = key.sign(&report[..crate::snp::SIGNED_BYTES]);
    let (r, s) = signature.split_bytes();
    for (at, number) in [(0, r), (72, s)] {
        let mut number = number.to_vec();
        number.reverse();
        report[crate::snp::SIGNED_BYTES + at..][..48].copy_from_slice(&number);
    }
    report
}

/// A quote as a quoting enclave of Intel's makes it; `form`: version, and type of the body.
pub fn tdx_quote(
    pck: &p256::ecdsa::SigningKey,
    data: &[u8; 32],
    form: (u16, u16),
    attributes: u64,
) -> Vec<u8> {
    let (version, body_type) = form;
    let mut report = vec![0x11; 16 + 48 + 48 + 8];
    report.extend(attributes.to_le_bytes());
    report.extend([0x22; 8]);
    report.extend([0x7d; 48]);
    report.extend([0x33; 3 * 48]);
    (0..4).for_each(|register| report.extend([0xa0 + register; 48]));
    report.extend(data);
    report.extend([0; 32]);
    if body_type == 3 {
        report.extend([0x44; 64]);
    }
    let mut quote = version.to_le_bytes().to_vec();
    quote.extend(2_u16.to_le_bytes());
    quote.extend(0x81_u32.to_le_bytes());
    quote.extend([0x55; 40]);
    if version == 5 {
        quote.extend(body_type.to_le_bytes());
        quote.extend((report.len() as u32).to_le_bytes());
    }
    quote.extend(report);

    let (attestation, point) = p256_key(3);
    let signature: p256::ecdsa::Signature = attestation.sign(&quote);
    let authentication = [0x66; 32];
    let mut qe_report = vec![0x77; 320];
    qe_report.extend(Sha256::digest([&point[1..], &authentication].concat()));
    qe_report.extend([0; 32]);
    let qe_signature: p256::ecdsa::Signature = pck.sign(&qe_report);
    let certificates = b"-----BEGIN CERTIFICATE-----";
    let mut certified = qe_report;
    certified.extend(qe_signature.to_bytes());
    certified.extend((authentication.len() as u16).to_le_bytes());
    certified.extend(authentication);
    certified.extend(5_u16.to_le_bytes());
    certified.extend((certificates.len() as u32).to_le_bytes());
    certified.extend(certificates);
    let mut signatures = signature.to_bytes().to_vec();
    signatures.extend(&point[1..]);
    signatures.extend(6_u16.to_le_bytes());
    signatures.extend((certified.len() as u32).to_le_bytes());
    signatures.extend(certified);
    quote.extend((signatures.len() as u32).to_le_bytes());
    quote.extend(signatures);
    quote
}

/// An attestation key.
pub enum TpmKey {
    P256(p256::ecdsa::SigningKey),
    Rsa(Box<rsa::RsaPrivateKey>),
}

/// A number of 1024 bits is the product of two that are written here: too short for use, and quick.
const P: &str = "e72edc0a9d582cf6b75bac1cf4c6bdaf745778aaf06a4019274156a038b71dd1938848b030b6e1a80516f336c49ecee87ceba0fd48ea753d94921fa95b95f23b";
const Q: &str = "e6ba61fbf1e858738bf1a5509ef2ab741ae554e0def541428b92b1c0c71ace618f7249f833b9bc1d69dbda3da7698a132929121e7b910e451abff09d2eee3939";

impl TpmKey {
    pub fn p256(number: u8) -> Self {
        Self::P256(p256_key(number).0)
    }

    pub fn rsa() -> Self {
        let number = |digits: &str| rsa::BigUint::parse_bytes(digits.as_bytes(), 16).unwrap();
        let key = rsa::RsaPrivateKey::from_p_q(number(P), number(Q), 65_537_u32.into()).unwrap();
        Self::Rsa(Box::new(key))
    }

    pub fn public(&self) -> Key {
        match self {
            Self::P256(key) => Key::P256(key.verifying_key().to_encoded_point(false).as_bytes().to_vec()),
            Self::Rsa(key) => Key::Rsa { modulus: key.n().to_bytes_be(), exponent: key.e().to_bytes_be() },
        }
    }

    /// A `TPMT_SIGNATURE`.
    fn sign(&self, attest: &[u8]) -> Vec<u8> {
        let sized = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes(), bytes].concat();
        match self {
            Self::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign(attest);
                let (r, s) = signature.split_bytes();
                [vec![0, 0x18, 0, 0x0b], sized(&r), sized(&s)].concat()
            }
            Self::Rsa(key) => {
                let scheme = rsa::Pkcs1v15Sign::new::<Sha256>();
                let signature = key.sign(scheme, &Sha256::digest(attest)).unwrap();
                [vec![0, 0x14, 0, 0x0b], sized(&signature)].concat()
            }
        }
    }
}

/// What `TPM2_Quote` answers.
pub fn tpm_quote(key: &TpmKey, data: &[u8]) -> Vec<u8> {
    let mut attest = 0xff54_4347_u32.to_be_bytes().to_vec();
    attest.extend([0x80, 0x18]);
    attest.extend([0, 3, 1, 2, 3]);
    attest.extend((data.len() as u16).to_be_bytes());
    attest.extend(data);
    attest.extend(123_456_u64.to_be_bytes());
    attest.extend(7_u32.to_be_bytes());
    attest.extend([0, 0, 0, 2, 1]);
    attest.extend(0x2020_u64.to_be_bytes());
    attest.extend([0, 0, 0, 1, 0, 0x0b, 3, 0x81, 0, 0]);
    attest.extend([0, 32]);
    attest.extend([0xdd; 32]);
    let signature = key.sign(&attest);
    [(attest.len() as u16).to_be_bytes().to_vec(), attest, signature].concat()
}

/// A TPM that knows one command, and takes it apart byte by byte.
pub struct Simulated {
    key: TpmKey,
    handle: u32,
    response: Vec<u8>,
}

impl Simulated {
    pub fn new(key: TpmKey, handle: u32) -> Self {
        Self { key, handle, response: Vec::new() }
    }

    fn answer(&self, command: &[u8]) -> Vec<u8> {
        let number = |at: usize| u32::from_be_bytes(command[at..at + 4].try_into().unwrap());
        assert_eq!((&command[..2], number(2) as usize), ([0x80, 0x02].as_slice(), command.len()));
        assert_eq!(number(6), 0x158);
        let (tag, code, body) = match number(10) == self.handle {
            false => ([0x80, 0x01], 0x18b_u32, Vec::new()),
            true => {
                assert_eq!(command[14..18], [0, 0, 0, 9], "one session of nine bytes");
                assert_eq!(command[18..27], [0x40, 0, 0, 9, 0, 0, 0, 0, 0]);
                assert_eq!(command[27..29], [0, 32]);
                assert_eq!(command[61..], [0, 0x10, 0, 0, 0, 1, 0, 0x0b, 3, 0x81, 0, 0]);
                let quote = tpm_quote(&self.key, &command[29..61]);
                let session = [0, 0, 1, 0, 0]; // no nonce, goes on, no hash
                ([0x80, 0x02], 0, [(quote.len() as u32).to_be_bytes().as_slice(), &quote, &session].concat())
            }
        };
        let bytes = 10 + body.len() as u32;
        [tag.as_slice(), &bytes.to_be_bytes(), &code.to_be_bytes(), &body].concat()
    }
}

impl Write for Simulated {
    fn write(&mut self, command: &[u8]) -> std::io::Result<usize> {
        self.response = self.answer(command);
        Ok(command.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Read for Simulated {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.response.as_slice().read(buffer)
    }
}
