//! Every public type of the library is among those whose `Debug` and `Display` were shown with canaries in them, or cannot
//! hold any: because its fields are numbers and the like, which the source says, or for a reason that is named.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::public_items::{self, Item, Kind};

/// Types with texts, lists or handles of their own that hold nothing of a request.
const NO_CONTENT: &[(&str, &str)] = &[
    ("testing::BlockPool", "numbers of blocks"),
    ("testing::CleanBlocks", "numbers of blocks"),
    ("testing::DeadBlocks", "numbers of blocks"),
    ("Builder", "a setting of the session; shown all the same"),
    ("Download", "names and sizes of a checkpoint's files"),
    ("Files", "names and lengths of a checkpoint's files"),
    ("Note", "a field of a checkpoint's file"),
    ("Hub", "an address, a folder and a token, which its own test looks for"),
    ("Cancelled", "a request's mailbox, which prints as `Stream` does"),
    ("FunctionName", "a secret, which prints as one"),
    ("ModelInfo", "what a checkpoint's files say"),
    ("Progress", "counts"),
    ("Returned", "requests, of which it prints the number"),
    ("SamplingParams", "numbers"),
    ("ToolChoice", "a kind is all that it prints"),
    ("clock::SystemClock", "nothing"),
    ("privacy::Alias", "a name that the application gave"),
    ("privacy::AliasReason", "names that the application gave"),
    ("privacy::AttestError", "what a device or the kernel says"),
    ("privacy::BrokenChain", "places in a log of receipts"),
    ("privacy::Diagnosis", "what is wrong with the machine"),
    ("privacy::Disclosure", "a policy and a time"),
    ("privacy::Ed25519Signer", "a key of the application's; printed as its public half"),
    ("privacy::Enforced", "what the kernel enforces"),
    ("privacy::Environment", "versions, features and settings"),
    ("privacy::Evidence", "hashes of files, a nonce, a public key, a quote"),
    ("privacy::FileHash", "a file's name and hash"),
    ("privacy::Finding", "what is wrong with the machine"),
    ("privacy::Hex", "bytes of receipts"),
    ("privacy::Link", "a place in a chain, and hashes of receipts"),
    ("privacy::Lockdown", "paths that may be read"),
    ("privacy::LockdownError", "what the kernel refused"),
    ("privacy::Malformed", "what a hash or an id must be"),
    ("privacy::Metric", "a row of the schema of telemetry"),
    ("privacy::Model", "a name that the application gave"),
    ("privacy::ModelAliases", "names that the application gave"),
    ("privacy::NotCovered", "counts of bytes, and which component of a tokenizer is a crate's"),
    ("privacy::Outcome", "the kind of an error"),
    ("privacy::Policy", "a provider's policy"),
    ("privacy::PublicKey", "a public key"),
    ("privacy::Quote", "a quote over a public key"),
    ("privacy::ReceiptHash", "a hash of a receipt, which holds no content"),
    ("privacy::SignError", "why a key cannot be reached"),
    ("privacy::Signature", "a signature of a receipt's hash"),
    ("privacy::Verifier", "hashes and public keys"),
    ("privacy::process::CoreDumps", "what the kernel does"),
    ("privacy::debug_sampler::DebugSampler", "keys of recipients and counts; what it seals is in no field"),
    ("privacy::debug_sampler::Folder", "a folder"),
    ("privacy::debug_sampler::Recipient", "a public key"),
    ("privacy::debug_sampler::CaptureError", "what a sink says of its disk"),
    (
        "privacy::debug_sampler::Sealed",
        "encrypted for a recipient: no needle could find it; its own tests look at lengths",
    ),
    ("testing::Telling", "telemetry without a session"),
    ("testing::device::Leaks", "counts of what was found"),
    ("testing::device::Rate", "how fast a device is"),
    ("forensics::differential::Separation", "places in memory"),
    ("forensics::differential::Snapshots", "counts are all that it prints; its own tests read it"),
];

/// Panics with the names of those that were neither. `shown`: what was printed by `Debug`, and what by `Display`.
pub fn all_are_shown(shown: &[BTreeSet<String>; 2]) {
    let types: BTreeMap<String, Item> =
        public_items::items().into_iter().filter(|(_, item)| item.kind == Kind::Type).collect();
    assert!(types.len() > 70, "only {} types found", types.len());
    for (name, _) in NO_CONTENT {
        let optional =
            name.contains("debug_sampler") || ["Hub", "Download", "privacy::Ed25519Signer"].contains(name);
        assert!(types.contains_key(*name) || optional, "{name} is no public type");
    }
    let plain = plain(&types);
    let displayed = displayed();
    let mut missing = Vec::new();
    for (name, item) in &types {
        let excused = NO_CONTENT.iter().any(|(excused, _)| excused == name) || plain.contains(name);
        let full = full_name(name, item);
        for (way, shown) in ["Debug", "Display"].into_iter().zip(shown) {
            let has = way == "Debug" || displayed.contains(&full);
            if has && !excused && !shown.contains(&full) {
                missing.push(format!("{way} of {name} ({full})"));
            }
        }
    }
    assert!(missing.is_empty(), "nobody looked for canaries in what these print: {missing:#?}");
}

/// As `std::any::type_name` has it: by the module in which it is defined.
fn full_name(name: &str, item: &Item) -> String {
    let last = name.rsplit("::").next().unwrap();
    format!("{}::{last}", module(&item.file))
}

fn module(file: &Path) -> String {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let path = file.strip_prefix(src).unwrap().with_extension("");
    let parts =
        path.iter().map(|part| part.to_str().unwrap()).filter(|part| *part != "mod" && *part != "lib");
    ["amnesic"].into_iter().chain(parts).collect::<Vec<_>>().join("::")
}

/// Types that implement `Display`, by themselves or through `thiserror`.
fn displayed() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (file, text) in public_items::sources() {
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let mut add = |name: &str| {
                let name = name.split(['<', ' ', '{', ';', '(']).next().unwrap();
                found.insert(format!("{}::{name}", module(&file)));
            };
            if line.starts_with("impl") && line.contains("Display for ") {
                add(line.split("Display for ").nth(1).unwrap());
            } else if line.starts_with("#[derive(") && line.contains("Error") {
                let next = lines[at..].iter().find(|line| line.contains("enum ") || line.contains("struct "));
                let next = next.expect("what the derive stands before");
                next.strip_prefix("pub enum ").or(next.strip_prefix("pub struct ")).into_iter().for_each(add);
            }
        }
    }
    assert!(
        found.contains("amnesic::error::Error") && found.contains("amnesic::privacy::receipt::ScrubReceipt")
    );
    found
}

/// Types that are made of numbers, truth values, times, texts that stand in the source, and each other.
fn plain(types: &BTreeMap<String, Item>) -> BTreeSet<String> {
    const KNOWN: [&str; 26] = [
        "u8",
        "u16",
        "u32",
        "u64",
        "u128",
        "usize",
        "i8",
        "i16",
        "i32",
        "i64",
        "isize",
        "f32",
        "f64",
        "bool",
        "Option",
        "Duration",
        "Instant",
        "SystemTime",
        "PhantomData",
        "fn",
        "P",
        "NonZeroUsize",
        "NonZeroU64",
        "Self",
        "std",
        "time",
    ];
    let parts: BTreeMap<&String, Vec<String>> =
        types.iter().map(|(name, item)| (name, parts(name, item))).collect();
    let mut plain: BTreeSet<String> = BTreeSet::new();
    loop {
        let known = |part: &String| {
            let public = |name: &&String| name.rsplit("::").next() == Some(part);
            KNOWN.contains(&part.as_str()) || plain.iter().any(|name| public(&name))
        };
        let more: Vec<String> = parts
            .iter()
            .filter(|(name, parts)| !plain.contains(**name) && parts.iter().all(known))
            .map(|(name, _)| (*name).clone())
            .collect();
        if more.is_empty() {
            assert!(plain.len() > 20 && !plain.contains("Request") && !plain.contains("Reply"), "{plain:?}");
            return plain;
        }
        plain.extend(more);
    }
}

/// The words in the types of a type's fields.
fn parts(name: &str, item: &Item) -> Vec<String> {
    let last = name.rsplit("::").next().unwrap();
    let text = std::fs::read_to_string(&item.file).unwrap();
    let (at, is_enum) = ["struct", "enum"]
        .into_iter()
        .find_map(|word| {
            let definition = format!("\npub {word} {last}");
            let starts = text.match_indices(&definition).map(|(at, found)| at + found.len());
            let mut starts = starts.filter(|at| !text[*at..].starts_with(|c: char| c.is_alphanumeric()));
            starts.next().map(|at| (at, word == "enum"))
        })
        .unwrap_or_else(|| panic!("the definition of {name}"));
    let code: String = text[at..]
        .lines()
        .take_while(|line| *line != "}")
        .map(|line| line.split("//").next().unwrap())
        .filter(|line| !line.trim_start().starts_with("#["))
        .collect::<Vec<_>>()
        .join("\n");
    let end = code.find(['{', '(', ';']).map_or(code.len(), |open| match code.as_bytes()[open] {
        b'{' => code.len(),
        _ => code.find(';').map_or(code.len(), |end| end),
    });
    let body = &code[code.find(['{', '(']).unwrap_or(end).min(end)..end];
    let (mut depth, mut words, mut word) = (0, Vec::new(), String::new());
    // of an enum the variants' names stand at depth 1, which is depth 0 of a struct's fields
    let outermost = if is_enum { 2 } else { 1 };
    for char in
        body.replace("&'static str", "").replace("pub(crate)", "").replace("pub ", "").chars().chain([' '])
    {
        if char.is_alphanumeric() || char == '_' {
            word.push(char);
            continue;
        }
        // a word before a single colon is a field's name
        if !word.is_empty() && depth >= outermost && char != ':' {
            words.push(std::mem::take(&mut word));
        }
        word.clear();
        match char {
            '{' | '(' => depth += 1,
            '}' | ')' => depth -= 1,
            _ => {}
        }
    }
    words
}
