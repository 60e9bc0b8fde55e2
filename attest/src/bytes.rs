//! Fields one after another.

use crate::CheckError;

/// Reads fields; every one has a name for errors.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn take(&mut self, field: &'static str, bytes: usize) -> Result<&'a [u8], CheckError> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(CheckError::Length { field })?;
        self.0 = rest;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], CheckError> {
        Ok(self.take(field, N)?.try_into().expect("as many as were asked for"))
    }

    pub fn u16_be(&mut self, field: &'static str) -> Result<u16, CheckError> {
        self.array(field).map(u16::from_be_bytes)
    }

    pub fn u32_be(&mut self, field: &'static str) -> Result<u32, CheckError> {
        self.array(field).map(u32::from_be_bytes)
    }

    pub fn u16_le(&mut self, field: &'static str) -> Result<u16, CheckError> {
        self.array(field).map(u16::from_le_bytes)
    }

    pub fn u32_le(&mut self, field: &'static str) -> Result<u32, CheckError> {
        self.array(field).map(u32::from_le_bytes)
    }

    /// A TPM2B: its length in two bytes before it.
    pub fn sized(&mut self, field: &'static str) -> Result<&'a [u8], CheckError> {
        let bytes = self.u16_be(field)?;
        self.take(field, bytes.into())
    }

    /// Nothing may follow.
    pub fn end(self, field: &'static str) -> Result<(), CheckError> {
        if self.0.is_empty() { Ok(()) } else { Err(CheckError::Length { field }) }
    }
}

/// Whether a field is what it must be.
pub fn expect<T: PartialEq>(
    field: &'static str,
    found: T,
    wanted: T,
    expected: &'static str,
) -> Result<(), CheckError> {
    if found == wanted { Ok(()) } else { Err(CheckError::Field { field, expected }) }
}
