//! What one session knows of what it has written: what NATS and PostgreSQL have confirmed, and what may have happened
//! because no confirmation came.

use std::collections::{BTreeMap, BTreeSet};

/// All of one session.
#[derive(Default)]
pub struct Ledger {
    /// Numbers the messages, so that each is another one.
    pub count: u64,
    /// Committed to the outbox for certain.
    pub committed: Vec<String>,
    /// Stored in the stream for certain, with the sequence that was returned.
    pub stored: Vec<(u64, String)>,
    pub keys: BTreeMap<String, Key>,
    pub files: BTreeMap<String, File>,
}

/// A key that this session alone writes.
#[derive(Default)]
pub struct Key {
    /// The latest confirmed write, and its revision; `None` after a delete.
    last: Option<String>,
    revision: i64,
    /// Writes that may have happened, or may still happen.
    unsure: BTreeSet<String>,
    /// How many deletes are so.
    unsure_deletes: usize,
}

/// What is written to a key.
#[derive(Clone, PartialEq, Eq)]
pub enum Write {
    Value(String),
    Gone,
}

impl Key {
    /// Before the call.
    pub fn begin(&mut self, write: &Write) {
        match write {
            Write::Value(value) => _ = self.unsure.insert(value.clone()),
            Write::Gone => self.unsure_deletes += 1,
        }
    }

    /// The call has returned; a delete without a revision.
    pub fn confirm(&mut self, write: Write, revision: i64) {
        match write {
            Write::Value(value) => {
                self.unsure.remove(&value);
                self.last = Some(value);
                self.revision = revision;
            }
            Write::Gone => {
                self.unsure_deletes -= 1;
                self.last = None;
            }
        }
    }

    /// Nothing was written for certain.
    pub fn refuse(&mut self, write: &Write) {
        if let Write::Value(value) = write {
            self.unsure.remove(value);
        }
    }

    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Whether there is this key, or is none, for certain.
    pub fn is_there(&self) -> Option<bool> {
        let sure = self.unsure.is_empty() && self.unsure_deletes == 0;
        sure.then_some(self.last.is_some())
    }

    /// Whether this may be read.
    pub fn allows(&self, value: Option<&str>) -> bool {
        match value {
            Some(value) => self.last.as_deref() == Some(value) || self.unsure.contains(value),
            None => self.last.is_none() || self.unsure_deletes > 0,
        }
    }

    /// Whether the latest entry may be this value with this revision.
    pub fn allows_entry(&self, value: Option<&str>, revision: i64) -> bool {
        match value {
            Some(value) if self.last.as_deref() == Some(value) => revision == self.revision,
            value => self.allows(value) && revision > self.revision,
        }
    }

    /// What is known, for a finding.
    pub fn known(&self) -> String {
        format!(
            "{:?} of revision {}, unsure {:?} and {} deletes",
            self.last, self.revision, self.unsure, self.unsure_deletes
        )
    }
}

/// A file that this session alone writes; `None` is none.
#[derive(Default)]
pub struct File {
    pub last: Option<Content>,
    /// Also what may be there.
    pub unsure: Vec<Option<Content>>,
}

/// A word that is repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub word: String,
    pub times: usize,
}

impl Content {
    /// What the server's `encode(sha256(...), 'hex')` gives for it.
    pub fn digest(&self) -> String {
        let text = self.word.repeat(self.times);
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl File {
    /// Whether a file with this digest, or none, may be there.
    pub fn allows(&self, digest: Option<&str>) -> bool {
        let mut candidates = self.unsure.iter().chain([&self.last]);
        candidates.any(|content| content.as_ref().map(Content::digest).as_deref() == digest)
    }
}
