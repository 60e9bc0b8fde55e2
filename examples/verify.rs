//! Checks a log of receipts, one a line, and prints it as a table.
//!
//! ```sh
//! cargo run --example verify -- receipts.jsonl
//! cargo run --features signed-receipts --example verify -- --key PUBLIC_KEY receipts.jsonl
//! ```
//!
//! `--previous HASH`: the log goes on behind a receipt with this hash. `--key KEY`: only receipts that this Ed25519 key
//! signed are accepted; may be given more than once. `--head HASH`: the last receipt must have this hash, which shows that
//! none is missing at the end. `-` reads standard input.
//!
//! Exit status: 0 if all is well, 1 if the log is broken (the line is named), 2 if it cannot be checked.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::ExitCode;

use amnesic::privacy::{Environment, Outcome, ReceiptHash, ScrubReceipt, Subject, Verifier};

struct Options {
    file: String,
    verifier: Verifier,
    head: Option<ReceiptHash>,
    trusting: bool,
}

/// What was seen of a session.
#[derive(Default)]
struct Seen {
    requests: u64,
    receipts: u64,
    /// From its first receipt on.
    whole: bool,
    environment: Option<Environment>,
    closed: bool,
}

fn main() -> ExitCode {
    let checked = options().and_then(|options| {
        let input: Box<dyn BufRead> = match options.file.as_str() {
            "-" => Box::new(std::io::stdin().lock()),
            file => Box::new(BufReader::new(
                std::fs::File::open(file).map_err(|error| format!("{file}: {error}"))?,
            )),
        };
        check(options, input).map_err(|error| format!("cannot read the log: {error}"))
    });
    match checked {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(broken)) => {
            eprintln!("BROKEN: {broken}");
            ExitCode::from(1)
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn options() -> Result<Options, String> {
    use lexopt::prelude::*;
    const USAGE: &str = "verify [--key KEY]... [--previous HASH] [--head HASH] FILE";
    let wrong = |error: &dyn std::fmt::Display| format!("{error}\n{USAGE}");
    let (mut file, mut previous, mut head, mut keys) = (None, ReceiptHash::START, None, Vec::new());
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next().map_err(|error| wrong(&error))? {
        let text = |value: Result<std::ffi::OsString, lexopt::Error>| {
            value.and_then(|value| value.string()).map_err(|error| wrong(&error))
        };
        let hash = |text: String| text.parse::<ReceiptHash>().map_err(|error| wrong(&error));
        match argument {
            Long("key") => keys.push(key(&text(parser.value())?)?),
            Long("previous") => previous = hash(text(parser.value())?)?,
            Long("head") => head = Some(hash(text(parser.value())?)?),
            Long("help") => return Err(USAGE.to_owned()),
            Value(value) if file.is_none() => file = Some(value.string().map_err(|error| wrong(&error))?),
            other => return Err(wrong(&other.unexpected())),
        }
    }
    let trusting = !keys.is_empty();
    let verifier = keys.into_iter().fold(Verifier::after(previous), Verifier::trust);
    Ok(Options { file: file.ok_or(USAGE)?, verifier, head, trusting })
}

#[cfg(feature = "signed-receipts")]
fn key(text: &str) -> Result<amnesic::privacy::PublicKey, String> {
    amnesic::privacy::PublicKey::ed25519(text).map_err(|error| format!("--key: {error}"))
}

#[cfg(not(feature = "signed-receipts"))]
fn key(_: &str) -> Result<amnesic::privacy::PublicKey, String> {
    Err("--key: build with --features signed-receipts".to_owned())
}

/// Reads all lines. The outer error is of reading, the inner one says where the log is broken.
fn check(options: Options, input: impl BufRead) -> std::io::Result<Result<(), String>> {
    let Options { mut verifier, head, trusting, .. } = options;
    let mut out = std::io::stdout().lock();
    let mut sessions = BTreeMap::<u64, Seen>::new();
    let (mut receipts, mut unsigned, mut bytes) = (0_u64, 0_u64, 0_u64);
    header(&mut out)?;
    for (index, line) in input.lines().enumerate() {
        let (line, number) = (line?, index + 1);
        if line.trim().is_empty() {
            continue;
        }
        let receipt = match verifier.line(&line) {
            Ok(receipt) => receipt,
            Err(broken) => {
                out.flush()?;
                // what is wrong with the form; escaped, since it may quote the line
                let form = serde_json::from_str::<ScrubReceipt>(&line).err();
                let form =
                    form.map_or(String::new(), |error| format!(" ({})", error.to_string().escape_debug()));
                return Ok(Err(format!("line {number}: {broken}{form}")));
            }
        };
        row(&mut out, number, &receipt, trusting)?;
        receipts += 1;
        unsigned += u64::from(receipt.signature.as_ref().is_none_or(|signature| signature.value.is_none()));
        if let Err(broken) = note(&mut sessions, &receipt) {
            return Ok(Err(format!("line {number}: {broken}")));
        }
        if !matches!(receipt.subject, Subject::Session { .. }) {
            bytes += receipt.bytes();
        }
    }
    summary(&mut out, &sessions)?;
    let signed = match (unsigned, trusting) {
        (0, true) => "all signed by a trusted key".to_owned(),
        (0, false) => "all signed, by keys that nobody vouched for: give --key".to_owned(),
        _ => format!("{unsigned} of them not signed"),
    };
    writeln!(
        out,
        "\n{receipts} receipts, {signed}; {bytes} bytes overwritten for them before sessions closed"
    )?;
    writeln!(out, "the last hash is {}", verifier.head())?;
    Ok(match head {
        Some(head) if head != verifier.head() => Err(format!("the end is missing: no receipt {head}")),
        _ => Ok(()),
    })
}

fn header(out: &mut impl Write) -> std::io::Result<()> {
    writeln!(
        out,
        "{:>5}  {:<8} {:<30} {:<22} {:<20} {:>13} {:>4}  signature",
        "line", "index", "subject", "outcome", "overwritten (UTC)", "bytes", "gaps"
    )
}

fn row(out: &mut impl Write, number: usize, receipt: &ScrubReceipt, trusting: bool) -> std::io::Result<()> {
    let subject = match receipt.subject {
        Subject::Request { id } => format!("request {id}"),
        Subject::Publish { id } => format!("publish {id}"),
        Subject::Conversation { number, .. } => format!("conversation {number}"),
        Subject::Public { number, .. } => format!("public prompt {number}"),
        Subject::Session { id, .. } => format!("session {id:016x}"),
        _ => "?".to_owned(),
    };
    let outcome = match &receipt.outcome {
        None => "-".to_owned(), // version 1 does not say
        Some(Outcome::Completed) => "completed".to_owned(),
        Some(Outcome::Refused { error }) => format!("refused: {error}"),
        Some(Outcome::Failed { error }) => format!("failed: {error}"),
        Some(_) => "?".to_owned(),
    };
    let signature = match &receipt.signature {
        None => "none".to_owned(),
        Some(signature) => match signature.failed {
            Some(error) => format!("failed: {error}"),
            None if trusting => "trusted".to_owned(),
            None => format!("{} {:.8}...", signature.algorithm, signature.public_key.to_string()),
        },
    };
    writeln!(
        out,
        "{number:>5}  {:<8} {subject:<30} {outcome:<22} {:<20} {:>13} {:>4}  {signature}",
        receipt.link.map_or(0, |link| link.index),
        utc(receipt.scrubbed_unix_ms),
        receipt.bytes(),
        receipt.not_covered.len(),
    )
}

/// Enters a receipt in its session's account; at its end, all that it counted must be there.
fn note(sessions: &mut BTreeMap<u64, Seen>, receipt: &ScrubReceipt) -> Result<(), String> {
    let id = match receipt.subject {
        Subject::Request { id } | Subject::Publish { id } => id.session(),
        Subject::Conversation { session, .. } | Subject::Public { session, .. } => session,
        Subject::Session { id, .. } => id,
        _ => return Ok(()),
    };
    let seen = sessions.entry(id).or_default();
    seen.whole |= seen.receipts == 0 && receipt.link.is_some_and(|link| link.index == 0);
    seen.receipts += 1;
    seen.environment = receipt.environment.as_deref().cloned();
    if let Subject::Session { requests, .. } = receipt.subject {
        seen.closed = true;
        // version 1 counted, and had no receipts of, requests that were refused early
        if seen.whole && receipt.version > 1 && seen.requests != requests {
            return Err(format!(
                "session {id:016x} had {requests} requests, and the log has {}",
                seen.requests
            ));
        }
    } else {
        seen.requests += receipt.requests();
    }
    Ok(())
}

fn summary(out: &mut impl Write, sessions: &BTreeMap<u64, Seen>) -> std::io::Result<()> {
    for (id, seen) in sessions {
        let end = if seen.closed { "closed" } else { "NOT CLOSED in this log" };
        writeln!(out, "\nsession {id:016x}: {} requests, {} receipts, {end}", seen.requests, seen.receipts)?;
        let Some(environment) = &seen.environment else {
            writeln!(out, "  version 1: nothing is known of its environment")?;
            continue;
        };
        let Environment { library, build, features, backend, model, quantize, kv_cache, .. } = environment;
        writeln!(out, "  amnesic {library} ({build}), features: {}", features.join(" "))?;
        writeln!(out, "  {model} on {backend}; weights: {quantize}, KV cache: {kv_cache}")?;
        writeln!(out, "  allocator: {:?}; lockdown: {:?}", environment.allocator, environment.lockdown)?;
        let hashes = [
            ("weights", environment.weights_sha256),
            ("configuration", environment.configuration_sha256),
            ("tokenizer", environment.tokenizer_sha256),
            ("quote", environment.quote_sha256),
        ];
        for (name, hash) in hashes {
            let hash = hash.map_or("not hashed".to_owned(), |hash| hash.to_string());
            writeln!(out, "  {name:<14} {hash}")?;
        }
    }
    Ok(())
}

/// A time on the calendar, to the second (days to dates as in Howard Hinnant's `civil_from_days`).
fn utc(unix_ms: u64) -> String {
    let (days, second) = (unix_ms / 86_400_000, unix_ms / 1000 % 86_400);
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}
