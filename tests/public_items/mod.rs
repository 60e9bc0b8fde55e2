//! Which items of the library are public, read from its source: so that a table of them in a test cannot be incomplete.
//!
//! Follows `pub use` and `pub mod` from `src/lib.rs`, as rustdoc would; that needs a nightly compiler to say what it
//! found. A `pub use` that leads nowhere is an error, so that nothing is passed over in silence.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where a public item is defined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub kind: Kind,
    pub file: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Type,
    Function,
    /// Traits, constants, aliases, macros.
    Other,
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// All public items by their paths below `amnesic::`; without modules.
pub fn items() -> BTreeMap<String, Item> {
    let mut found = BTreeMap::new();
    module(&src().join("lib.rs"), "", &mut found);
    assert!(found.len() > 80, "only {} items found", found.len());
    found
}

fn module(file: &Path, path: &str, found: &mut BTreeMap<String, Item>) {
    let text = read(file);
    let mut add = |name: &str, item: Item| {
        let name = if path.is_empty() { name.to_owned() } else { format!("{path}::{name}") };
        found.insert(name, item);
    };
    for (name, kind) in definitions(&text) {
        add(&name, Item { kind, file: file.to_owned() });
    }
    for statement in public_uses(&text) {
        for leaf in leaves(&statement) {
            let name = leaf.rsplit("::").next().unwrap().to_owned();
            let item = resolve(file, &leaf)
                .unwrap_or_else(|| panic!("{}: `pub use {leaf}` leads nowhere", file.display()));
            add(&name, item);
        }
    }
    for line in text.lines() {
        let Some(name) = line.strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(';')) else {
            continue;
        };
        let inner = if path.is_empty() { name.to_owned() } else { format!("{path}::{name}") };
        module(&file_of(file, name).expect("a module's file"), &inner, found);
    }
}

/// What a file defines at its outermost level, and exports.
fn definitions(text: &str) -> Vec<(String, Kind)> {
    let name = |rest: &str| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap().to_owned();
    let kinds = [
        ("pub struct ", Kind::Type),
        ("pub enum ", Kind::Type),
        ("pub union ", Kind::Type),
        ("pub fn ", Kind::Function),
        ("pub unsafe fn ", Kind::Function),
        ("pub const fn ", Kind::Function),
        ("pub trait ", Kind::Other),
        ("pub unsafe trait ", Kind::Other),
        ("pub const ", Kind::Other),
        ("pub static ", Kind::Other),
        ("pub type ", Kind::Other),
    ];
    let of = |line: &str| {
        let (prefix, kind) = kinds.iter().find(|(prefix, _)| line.starts_with(prefix))?;
        Some((name(&line[prefix.len()..]), *kind))
    };
    text.lines().filter_map(of).collect()
}

/// The `pub use` statements of a file's outermost level, without the words and the semicolon.
fn public_uses(text: &str) -> Vec<String> {
    let mut statements = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("\npub use ") {
        let statement = &rest[at + "\npub use ".len()..];
        let end = statement.find(';').expect("a statement's end");
        statements.push(statement[..end].split_whitespace().collect::<Vec<_>>().join(" "));
        rest = &statement[end..];
    }
    statements
}

/// `a::{b, c::d}` as `a::b` and `a::c::d`.
fn leaves(statement: &str) -> Vec<String> {
    let Some(open) = statement.find('{') else {
        assert!(!statement.contains('*') && !statement.contains(" as "), "`pub use {statement}`");
        return vec![statement.trim().to_owned()];
    };
    let (head, mut depth, mut part, mut leaves_found) = (&statement[..open], 0, String::new(), Vec::new());
    for char in statement[open + 1..].chars() {
        match char {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                leaves_found.push(std::mem::take(&mut part));
                continue;
            }
            _ => {}
        }
        part.push(char);
    }
    leaves_found.push(part);
    let parts = leaves_found.iter().map(|part| part.trim()).filter(|part| !part.is_empty());
    parts.flat_map(|part| leaves(&format!("{head}{part}"))).collect()
}

/// The file of the module `name` that `file` declares.
fn file_of(file: &Path, name: &str) -> Option<PathBuf> {
    let folder = file.parent().unwrap();
    let stem = file.file_stem().unwrap();
    let folder = if stem == "mod" || stem == "lib" { folder.to_owned() } else { folder.join(stem) };
    let candidates = [folder.join(format!("{name}.rs")), folder.join(name).join("mod.rs")];
    candidates.into_iter().find(|candidate| candidate.exists())
}

fn resolve(file: &Path, path: &str) -> Option<Item> {
    let mut segments: Vec<&str> = path.split("::").collect();
    let name = segments.pop().unwrap();
    let mut at = file.to_owned();
    for segment in segments {
        match segment {
            "crate" => at = src().join("lib.rs"),
            "self" => {}
            _ => at = file_of(&at, segment)?,
        }
    }
    let text = read(&at);
    if let Some((_, kind)) = definitions(&text).into_iter().find(|(known, _)| known == name) {
        return Some(Item { kind, file: at });
    }
    let reexported = public_uses(&text)
        .iter()
        .flat_map(|statement| leaves(statement))
        .find(|leaf| leaf.rsplit("::").next() == Some(name))?;
    resolve(&at, &reexported)
}

/// A public function or method.
#[derive(Clone, Debug)]
pub struct Signature {
    /// `prompt` of `Request` is `Request::prompt`.
    pub name: String,
    /// From its generics to its body, on one line.
    pub text: String,
}

/// All public functions, and methods of public types, in the library's source; those of traits by `impl TRAIT for TYPE`.
pub fn signatures() -> Vec<Signature> {
    let items = items();
    let last = |path: &String| path.rsplit("::").next().unwrap().to_owned();
    let of_kind = |kind: Kind| -> Vec<(String, PathBuf)> {
        let of_it = items.iter().filter(|(_, item)| item.kind == kind);
        of_it.map(|(path, item)| (last(path), item.file.clone())).collect()
    };
    let (types, functions) = (of_kind(Kind::Type), of_kind(Kind::Function));
    let mut found = Vec::new();
    for file in files(&src()) {
        let text = read(&file);
        let text = &text[..text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len())];
        let mut owner: Option<String> = None;
        for (at, line) in lines(text) {
            if line.starts_with("impl") {
                let header = &text[at..at + text[at..].find('{').unwrap_or(line.len())];
                owner = implementor(header).filter(|name| types.iter().any(|(known, _)| known == name));
                if let (Some(name), true) = (
                    &owner,
                    ["From<", "FromIterator<", "Extend<", "FromStr "].iter().any(|of| header.contains(of)),
                ) {
                    let header = header.split_whitespace().collect::<Vec<_>>().join(" ");
                    found.push(Signature { name: format!("{header} ({name})"), text: header.clone() });
                }
            } else if line.starts_with('}') {
                owner = None;
            }
            let Some(rest) = line.trim_start().strip_prefix("pub fn ") else { continue };
            let name = rest.split(['(', '<']).next().unwrap();
            let name = match (&owner, line.starts_with("    ") && !line.starts_with("     ")) {
                (Some(owner), true) => format!("{owner}::{name}"),
                (None, false) if functions.iter().any(|(known, of)| known == name && *of == file) => {
                    name.to_owned()
                }
                _ => continue,
            };
            let body = text[at..].find(" {\n").expect("a function's body");
            let text = text[at..at + body].split_whitespace().collect::<Vec<_>>().join(" ");
            found.push(Signature { name, text });
        }
    }
    found
}

/// The library's source, but for its tests.
pub fn sources() -> Vec<(PathBuf, String)> {
    files(&src()).into_iter().map(|file| (file.clone(), read(&file))).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().unwrap() != "tests" {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The lines of a text, each with its place.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.split_inclusive('\n').scan(0, |at, line| {
        let start = *at;
        *at += line.len();
        Some((start, line))
    })
}

/// The type of `impl<..> Type<..>` or `impl<..> Trait<..> for Type<..>`.
fn implementor(header: &str) -> Option<String> {
    let header = header.split(" where").next().unwrap();
    let mut rest = header.strip_prefix("impl")?;
    if rest.starts_with('<') {
        let mut depth = 0;
        let end = rest.char_indices().find(|(_, char)| {
            depth += i32::from(*char == '<') - i32::from(*char == '>');
            depth == 0
        })?;
        rest = &rest[end.0 + 1..];
    }
    let rest = rest.split(" for ").last().unwrap().trim().trim_start_matches('&');
    let path = rest.split(['<', ' ', '{']).next().unwrap();
    Some(path.rsplit("::").next().unwrap().to_owned())
}
