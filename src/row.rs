//! A row of a result. Pure; used by sessions and the actor thread.

/// A row of a result, as text that the columns' types read.
pub type Row = Vec<Option<String>>;
