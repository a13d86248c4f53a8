//! The findings of an examination: the rows of `litmus_pgnats.doctor()`. Pure; used by sessions and the actor thread.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::row::Row;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CheckStatus {
    Ok,
    Warning,
    Error,
}

/// One finding: a row of `litmus_pgnats.doctor()`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub check: String,
    /// What was checked; empty if the check has only one object.
    pub object: String,
    pub status: CheckStatus,
    pub found: String,
    /// What the user should do; empty if there is nothing to do.
    pub advice: String,
}

impl Finding {
    /// The columns, in the order of the SQL function; an empty text becomes NULL, but for `found`.
    pub fn columns(self) -> Row {
        let text = |text: String| Some(text).filter(|text| !text.is_empty());
        let status = match self.status {
            CheckStatus::Ok => "ok",
            CheckStatus::Warning => "warning",
            CheckStatus::Error => "error",
        };
        vec![
            text(self.check),
            text(self.object),
            Some(status.to_string()),
            Some(self.found),
            text(self.advice),
        ]
    }
}

/// Longest line, in characters: the text may come from outside, from a NATS server for example.
const LONGEST: usize = 1000;

/// The text as one line of at most `LONGEST` characters; control characters become spaces.
pub fn line(text: &str) -> String {
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    printable.take(LONGEST).collect()
}

/// All findings of an examination.
#[derive(Debug, Default)]
pub struct Findings(Vec<Finding>);

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

    /// Adds an error as a finding; the error's own hint, if it has one, replaces `advice`.
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
        self.0.push(Finding {
            check: check.to_string(),
            object: object.to_string(),
            status,
            found: line(&found.into()),
            advice: advice.to_string(),
        });
    }

    /// Adds the findings about a part; the name of the part, `of`, is put in front of each object.
    pub fn include(&mut self, of: &str, findings: Vec<Finding>) {
        for finding in findings {
            let object = match finding.object.as_str() {
                "" => of.to_string(),
                object => format!("{of}: {object}"),
            };
            self.0.push(Finding { object, ..finding });
        }
    }

    /// Adds findings as they are.
    pub fn extend(&mut self, findings: Vec<Finding>) {
        self.0.extend(findings);
    }

    pub fn into_vec(self) -> Vec<Finding> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_part_has_found_says_what_it_is_of() {
        let mut part = Findings::default();
        part.ok("tls", "", "one\nline");
        part.warn("tls", "certificate", "ends soon", "Renew the certificate.");
        let mut all = Findings::default();
        all.include("nats", part.into_vec());
        let rows: Vec<Row> = all.into_vec().into_iter().map(Finding::columns).collect();
        let shown = |row: &Row| {
            row.iter()
                .map(|c| c.as_deref().unwrap_or("-").to_string())
                .collect::<Vec<_>>()
                .join("|")
        };
        assert_eq!(shown(&rows[0]), "tls|nats|ok|one line|-");
        assert_eq!(
            shown(&rows[1]),
            "tls|nats: certificate|warning|ends soon|Renew the certificate."
        );
    }
}
