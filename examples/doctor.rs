//! Prints what on this machine weakens the guarantee; exits with 1 if content could reach a disk or any process.
//!
//! `cargo run --example doctor -- [BYTES TO LOCK] [--json]`

use std::error::Error;
use std::process::ExitCode;

use amnesic::privacy::{Severity, doctor_for};
use lexopt::ValueExt;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let (mut bytes, mut json) = (0, false);
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            lexopt::Arg::Long("json") => json = true,
            lexopt::Arg::Value(value) => bytes = value.parse_with(str::parse)?,
            other => return Err(other.unexpected().into()),
        }
    }
    let diagnosis = doctor_for(bytes);
    if json {
        println!("{}", serde_json::to_string_pretty(&diagnosis)?);
    } else {
        println!("{diagnosis}");
    }
    Ok(ExitCode::from(u8::from(diagnosis.worst() == Some(Severity::Critical))))
}
