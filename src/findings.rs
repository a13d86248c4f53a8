//! What an examination has found, as the rows of `litmus_pgnats.doctor()`. Pure; used by sessions and the actor thread.

#![forbid(unsafe_code)]

use crate::error::Error;
use crate::row::Row;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckStatus {
    Ok,
    Warning,
    Error,
}

/// Longest text of what was found, in characters: it may be a stranger's.
const LONGEST: usize = 1000;

/// A text in one line, and not too long.
pub fn line(text: &str) -> String {
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    printable.take(LONGEST).collect()
}

/// Rows of the check, what it is about, the status, what was found and what to do.
#[derive(Debug, Default)]
pub struct Findings(Vec<Row>);

impl Findings {
    pub fn ok(&mut self, check: &str, object: &str, found: impl Into<String>) {
        self.add(check, object, CheckStatus::Ok, found, "");
    }

    pub fn warn(&mut self, check: &str, object: &str, found: impl Into<String>, advice: &str) {
        self.add(check, object, CheckStatus::Warning, found, advice);
    }

    pub fn wrong(&mut self, check: &str, object: &str, found: impl Into<String>, advice: &str) {
        self.add(check, object, CheckStatus::Error, found, advice);
    }

    /// The error's own hint goes before the advice.
    pub fn failed(&mut self, check: &str, object: &str, error: &Error, advice: &str) {
        let hint = error.hint.as_deref().filter(|hint| !hint.is_empty());
        self.wrong(check, object, error.to_string(), hint.unwrap_or(advice));
    }

    pub fn add(
        &mut self,
        check: &str,
        object: &str,
        status: CheckStatus,
        found: impl Into<String>,
        advice: &str,
    ) {
        let status = match status {
            CheckStatus::Ok => "ok",
            CheckStatus::Warning => "warning",
            CheckStatus::Error => "error",
        };
        let text = |text: &str| (!text.is_empty()).then(|| text.to_string());
        self.0.push(vec![
            text(check),
            text(object),
            Some(status.to_string()),
            Some(line(&found.into())),
            text(advice),
        ]);
    }

    /// Takes over what was found of a part, with what that part is of before each object.
    pub fn include(&mut self, of: &str, rows: Vec<Row>) {
        for mut row in rows {
            if let Some(object) = row.get_mut(1) {
                let part = object.take().map_or(String::new(), |part| format!(": {part}"));
                *object = Some(format!("{of}{part}"));
            }
            self.0.push(row);
        }
    }

    /// Takes over what was found elsewhere.
    pub fn extend(&mut self, rows: Vec<Row>) {
        self.0.extend(rows);
    }

    pub fn into_rows(self) -> Vec<Row> {
        self.0
    }
}
