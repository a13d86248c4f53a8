//! Calls of key-value buckets and object stores. Each session has keys, files and a bucket that it alone writes.

use super::caller::{Caller, Failure};
use super::ledger::{Content, Key, Write};
use super::messages::literal;

/// The bucket whose keys are checked in the end, and the object store.
pub const BUCKET: &str = "soak";
pub const STORE: &str = "files";
/// Of which a file consists.
const MOST_WORDS: u64 = 400_000;

impl Caller {
    fn key(&mut self) -> String {
        format!("s{}.{}", self.who, self.random.below(4))
    }

    fn known(&mut self, key: &str) -> &mut Key {
        self.ledger.keys.entry(key.to_owned()).or_default()
    }

    /// Writes a new value; `codes` say that it was not written.
    async fn write(&mut self, key: &str, call: &str, more: &str, codes: &[&str]) -> Result<(), Failure> {
        let (kind, word) = (self.kind(), self.word());
        let sql = format!(
            "SELECT nats_{call}_{kind}('{BUCKET}', '{key}', {}{more})",
            literal(kind, &word)
        );
        let write = Write::Value(format!("\"{word}\""));
        self.known(key).begin(&write);
        let outcome = self.value(&sql).await;
        let known = self.known(key);
        match outcome {
            Ok(revision) => {
                let revision = revision.and_then(|text| text.parse().ok()).unwrap_or_default();
                if revision <= known.revision() {
                    let known = known.known();
                    self.board
                        .finding(format!("{key}: revision {revision} after {known}"));
                    return Ok(());
                }
                known.confirm(write, revision);
                Ok(())
            }
            Err(failure) => {
                let failure = failure.unless(codes);
                if failure.expected {
                    known.refuse(&write);
                }
                Err(failure)
            }
        }
    }

    pub async fn put(&mut self) -> Result<(), Failure> {
        let key = self.key();
        self.write(&key, "put", "", &[]).await
    }

    pub async fn create(&mut self) -> Result<(), Failure> {
        let key = self.key();
        let missing = self.known(&key).is_there() == Some(false);
        self.write(&key, "create", "", if missing { &[] } else { &["23505"] })
            .await
    }

    pub async fn update(&mut self) -> Result<(), Failure> {
        let key = self.key();
        let (revision, there) = (self.known(&key).revision(), self.known(&key).is_there());
        // A delete is a revision too, which it does not return.
        let codes: &[&str] = if there == Some(true) { &[] } else { &["40001"] };
        self.write(&key, "update", &format!(", {}", revision.max(1)), codes)
            .await
    }

    pub async fn delete(&mut self) -> Result<(), Failure> {
        let key = self.key();
        let call = self.random.pick(&["delete", "purge"]);
        let known = self.known(&key);
        known.begin(&Write::Gone);
        self.ask(&format!("SELECT nats_{call}_value('{BUCKET}', '{key}')"))
            .await?;
        let known = self.known(&key);
        known.confirm(Write::Gone, 0);
        Ok(())
    }

    pub async fn get(&mut self) -> Result<(), Failure> {
        let (key, kind) = (self.key(), self.kind());
        let got = format!("nats_get_{kind}('{BUCKET}', '{key}')");
        let got = if kind == "binary" {
            format!("convert_from({got}, 'utf8')")
        } else {
            got
        };
        let value = self.value(&format!("SELECT {got}")).await?;
        let known = self.known(&key);
        if !known.allows(value.as_deref()) {
            let known = known.known();
            self.board
                .finding(format!("{key}: read {value:?}, known {known}"));
        }
        Ok(())
    }

    pub async fn entry(&mut self) -> Result<(), Failure> {
        let key = self.key();
        self.ask(&format!("SELECT * FROM nats_get_history('{BUCKET}', '{key}')"))
            .await?;
        self.check_entry(&key).await
    }

    /// Compares the latest entry of a key with what is known of it.
    pub async fn check_entry(&mut self, key: &str) -> Result<(), Failure> {
        let rows = self
            .ask(&format!(
                "SELECT revision, operation, convert_from(value, 'utf8') FROM nats_get_entry('{BUCKET}', '{key}')"
            ))
            .await?;
        let known = self.known(key);
        let allowed = match rows.first().map(Vec::as_slice) {
            None => known.allows(None),
            Some([Some(revision), Some(operation), value]) => {
                let value = value.as_deref().filter(|_| operation == "PUT");
                known.allows_entry(value, revision.parse().unwrap_or_default())
            }
            Some(_) => false,
        };
        if !allowed {
            let known = known.known();
            self.board
                .finding(format!("{key}: the entry is {rows:?}, known {known}"));
        }
        Ok(())
    }

    pub async fn list_keys(&mut self) -> Result<(), Failure> {
        self.ask(&format!("SELECT count(*) FROM nats_list_keys('{BUCKET}')"))
            .await
            .map(drop)
    }

    /// A bucket of its own comes and goes. One that was deleted, and whose deletion nobody knows, may be missing.
    pub async fn bucket(&mut self) -> Result<(), Failure> {
        let (own, word) = (format!("own{}", self.who), self.word());
        for sql in [
            format!("SELECT nats_create_bucket('{own}', history => 3, storage => 'memory')"),
            format!("SELECT nats_put_text('{own}', 'k', '{word}')"),
            format!("SELECT count(*) FROM nats_get_history('{own}', 'k')"),
            format!("SELECT nats_delete_bucket('{own}')"),
        ] {
            // A bucket that a put has made again has other properties: HV000.
            self.ask(&sql)
                .await
                .map_err(|failure| failure.unless(&["HV00Q", "HV000"]))?;
        }
        Ok(())
    }

    fn file(&mut self) -> String {
        format!("s{}.{}", self.who, self.random.below(2))
    }

    pub async fn put_file(&mut self) -> Result<(), Failure> {
        let times = match self.random.below(10) {
            0 => 0,
            1..=5 => self.random.below(100),
            6..=8 => self.random.below(20_000),
            _ => self.random.below(MOST_WORDS),
        };
        let name = self.file();
        self.put_words(name, times).await
    }

    /// What needs more memory than any other call, of which the C library keeps some.
    pub async fn largest_file(&mut self) -> Result<(), Failure> {
        let name = self.file();
        self.put_words(name.clone(), MOST_WORDS).await?;
        self.check_file(&name).await
    }

    async fn put_words(&mut self, name: String, times: u64) -> Result<(), Failure> {
        let word = self.word() + " ";
        let content = Content {
            word,
            times: times as usize,
        };
        let sql = format!(
            "SELECT nats_put_file('{STORE}', '{name}', convert_to(repeat('{}', {}), 'utf8'))",
            content.word, content.times
        );
        let known = self.ledger.files.entry(name.clone()).or_default();
        known.unsure.push(Some(content.clone()));
        self.ask(&sql).await?;
        let known = self.ledger.files.entry(name).or_default();
        known.unsure.retain(|other| other.as_ref() != Some(&content));
        known.last = Some(content);
        Ok(())
    }

    pub async fn get_file(&mut self) -> Result<(), Failure> {
        let name = self.file();
        self.check_file(&name).await
    }

    /// Compares a file with what is known of it.
    pub async fn check_file(&mut self, name: &str) -> Result<(), Failure> {
        let sql = format!("SELECT encode(sha256(nats_get_file('{STORE}', '{name}')), 'hex')");
        let digest = match self.value(&sql).await {
            // No file, or no store yet.
            Err(failure) if ["58P01", "HV00Q"].contains(&failure.code.as_str()) => None,
            other => other?,
        };
        let known = self.ledger.files.entry(name.to_owned()).or_default();
        if !known.allows(digest.as_deref()) {
            let (last, unsure) = (format!("{:?}", known.last), known.unsure.len());
            self.board.finding(format!(
                "file {name} has digest {digest:?}; confirmed is {last}, and {unsure} are unsure"
            ));
        }
        Ok(())
    }

    pub async fn delete_file(&mut self) -> Result<(), Failure> {
        let name = self.file();
        let known = self.ledger.files.entry(name.clone()).or_default();
        if !known.unsure.contains(&None) {
            known.unsure.push(None);
        }
        let outcome = self
            .ask(&format!("SELECT nats_delete_file('{STORE}', '{name}')"))
            .await;
        let missing = ["58P01", "HV00Q"];
        match outcome {
            Ok(_) => {}
            // There was none, if all is known.
            Err(failure) if missing.contains(&failure.code.as_str()) => {
                let known = self.ledger.files.entry(name.clone()).or_default();
                if !known.allows(None) {
                    self.board
                        .finding(format!("file {name} is not there for its deletion"));
                }
                return Err(failure.unless(&missing));
            }
            Err(failure) => return Err(failure),
        }
        self.ledger.files.entry(name).or_default().last = None;
        Ok(())
    }

    pub async fn list_files(&mut self) -> Result<(), Failure> {
        let name = self.file();
        self.ask(&format!(
            "SELECT count(*), sum(size) FROM nats_get_file_list('{STORE}')"
        ))
        .await?;
        self.ask(&format!(
            "SELECT size FROM nats_get_file_info('{STORE}', '{name}')"
        ))
        .await
        .map_err(|failure| failure.unless(&["58P01", "HV00Q"]))
        .map(drop)
    }
}
