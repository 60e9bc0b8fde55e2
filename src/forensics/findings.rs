//! What a search found: names and places, no content.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One needle that was found.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The needle's name, with its form.
    pub name: String,
    /// Where it was found first: a mapping's name in /proc/PID/maps, or a file's.
    pub place: String,
    /// Byte in that mapping or file.
    pub offset: u64,
    /// How often it was found; each of its parts counts.
    pub count: u64,
}

/// All that a search found. `Display` and `Debug` hold no content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    found: Vec<Finding>,
    bytes: u64,
    #[serde(default)]
    unread: u64,
}

impl Findings {
    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// What was found, each name once.
    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.found.iter()
    }

    /// The names of what was found.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.found.iter().map(|finding| finding.name.as_str())
    }

    /// Whether something was found whose name starts with `name`.
    pub fn has(&self, name: &str) -> bool {
        self.names().any(|found| found.starts_with(name))
    }

    /// Bytes that were searched.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of memory that was to be searched and could not be read: it was gone meanwhile, or it is another process's
    /// `memfd_secret`.
    pub fn unread(&self) -> u64 {
        self.unread
    }

    /// What was found and `keep` wants.
    pub fn filter(mut self, keep: impl Fn(&Finding) -> bool) -> Self {
        self.found.retain(keep);
        self
    }

    /// Both.
    pub fn and(mut self, other: Self) -> Self {
        self.bytes += other.bytes;
        self.unread += other.unread;
        other.found.into_iter().for_each(|finding| self.add(finding));
        self
    }

    pub(super) fn searched(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    pub(super) fn skipped(&mut self, bytes: u64) {
        self.unread += bytes;
    }

    pub(super) fn add(&mut self, finding: Finding) {
        match self.found.iter_mut().find(|known| known.name == finding.name) {
            Some(known) => known.count += finding.count,
            None => self.found.push(finding),
        }
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return write!(f, "nothing in {} bytes", self.bytes);
        }
        for (index, Finding { name, place, offset, count }) in self.found.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{name} in {place} at {offset:#x}")?;
            if *count > 1 {
                write!(f, " ({count} times)")?;
            }
        }
        Ok(())
    }
}
