//! Calls that send messages: publish, publish at the commit, request, stream, outbox.

use super::caller::{Caller, Failure};

/// The payload types, and how a word is written as each.
const TYPES: &[&str] = &["text", "json", "jsonb", "binary"];

/// A word as an argument of this type: a JSON string in each, which is the same text in all four.
pub fn literal(kind: &str, word: &str) -> String {
    if kind == "binary" {
        format!("convert_to('\"{word}\"', 'utf8')")
    } else {
        format!("'\"{word}\"'")
    }
}

impl Caller {
    pub fn kind(&mut self) -> &'static str {
        self.random.pick(TYPES)
    }

    fn told(&mut self, word: &str) -> String {
        let (kind, topic) = (self.kind(), self.random.below(3));
        let more = if self.random.one_in(2) {
            ", 'core.reply', '{\"a\": \"1\", \"b\": [\"2\", \"3\"]}'"
        } else {
            ""
        };
        format!(
            "SELECT nats_publish_{kind}('core.{topic}', {}{more});",
            literal(kind, word)
        )
    }

    pub async fn publish(&mut self) -> Result<(), Failure> {
        let word = self.word();
        let sql = self.told(&word);
        self.ask(&sql).await.map(drop)
    }

    /// What is rolled back, with its savepoint or its transaction, is called `never` and must never be heard.
    pub async fn publish_on_commit(&mut self) -> Result<(), Failure> {
        let (all, commit) = (self.word(), self.random.one_in(2));
        let kept = if commit {
            all.clone()
        } else {
            format!("never-{all}")
        };
        let first = self.told(&kept);
        let inner = self.told(&format!("never-{all}"));
        let last = self.word();
        let last = if commit { last } else { format!("never-{last}") };
        let last = self.told(&last);
        let end = if commit { "COMMIT" } else { "ROLLBACK" };
        self.ask(&format!(
            "BEGIN; SET LOCAL litmus_pgnats.publish = on_commit; {first} SAVEPOINT s; {inner} ROLLBACK TO s; {last} {end}"
        ))
        .await
        .map(drop)
    }

    pub async fn request(&mut self) -> Result<(), Failure> {
        let (kind, word) = (self.kind(), self.word());
        let question = literal(kind, &word);
        let answer = self
            .value(&format!(
                "SELECT nats_request_{kind}('rpc.echo', {question}, 2000)"
            ))
            .await?;
        let expected = if kind == "binary" {
            let hex: String = format!("\"{word}\"")
                .bytes()
                .map(|b| format!("{b:02x}"))
                .collect();
            format!("\\x{hex}")
        } else {
            format!("\"{word}\"")
        };
        if answer.as_ref() != Some(&expected) {
            self.board
                .finding(format!("a request {expected} was answered with {answer:?}"));
        }
        Ok(())
    }

    pub async fn publish_stream(&mut self) -> Result<(), Failure> {
        let (kind, word) = (self.kind(), self.word());
        let headers = if self.random.one_in(2) {
            format!(", '{{\"Nats-Msg-Id\": \"{word}\"}}'")
        } else {
            String::new()
        };
        let payload = literal(kind, &word);
        let sequence = self
            .value(&format!(
                "SELECT nats_publish_{kind}_stream('facts.{}', {payload}{headers})",
                self.who
            ))
            .await?;
        let sequence = sequence.and_then(|text| text.parse().ok()).unwrap_or_default();
        self.ledger.stored.push((sequence, word));
        Ok(())
    }

    /// A row of `sent` is committed, or rolled back, with the message.
    pub async fn outbox(&mut self) -> Result<(), Failure> {
        let (kind, word) = (self.kind(), self.word());
        let payload = literal(kind, &word);
        let commit = !self.random.one_in(4);
        let end = if commit { "COMMIT" } else { "ROLLBACK" };
        let topic = self.random.below(5);
        self.ask(&format!(
            "BEGIN; INSERT INTO sent VALUES ('{word}'); \
             SELECT nats_publish_{kind}_outbox('moves.{topic}', {payload}); {end}"
        ))
        .await?;
        if commit {
            self.ledger.committed.push(word);
        }
        Ok(())
    }
}
