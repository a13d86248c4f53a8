//! A row of a result. Pure; used by sessions and the actor thread.

#![forbid(unsafe_code)]

/// A row of a result: for each column the text that its type's input function reads, or `None` for NULL.
pub type Row = Vec<Option<String>>;
