//! Names of key-value buckets and keys, object stores and objects, streams, durable consumers and JetStream domains
//! (ADR-8, ADR-20). Pure.

use crate::error::{Error, Kind, Result};

/// Prefix of the names that litmus_pgnats gives to consumers.
pub const OWN_CONSUMER: &str = "litmus_";

/// Longest name of a bucket, object store, stream, durable consumer or domain, in bytes; names are parts of subjects.
const MAX_NAME: usize = 255;
/// Longest key or object name, in bytes.
const MAX_KEY: usize = 1024;

/// Checks the name of a key-value bucket.
pub fn check_bucket(name: &str) -> Result<()> {
    check_name("bucket name", name)
}

/// Checks the name of an object store.
pub fn check_store(name: &str) -> Result<()> {
    check_name("object store name", name)
}

/// Checks a JetStream domain.
pub fn check_domain(name: &str) -> Result<()> {
    check_name("domain", name)
}

/// Checks the name of a stream.
pub fn check_stream(name: &str) -> Result<()> {
    check_token("stream name", name)
}

/// Checks the name of a durable consumer that a user gives.
pub fn check_durable(name: &str) -> Result<()> {
    check_token("durable name", name)?;
    if name.starts_with(OWN_CONSUMER) {
        let message = format!("invalid durable name \"{name}\"");
        return Err(Error::new(Kind::InvalidName, message).detail(format!(
            "Names that begin with \"{OWN_CONSUMER}\" are those of subscriptions without a name of their own."
        )));
    }
    Ok(())
}

/// Checks the name of a stream or a consumer, in which JetStream allows more characters than in that of a bucket.
fn check_token(what: &str, name: &str) -> Result<()> {
    let is_bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '.' | '*' | '>' | '/' | '\\');
    if !name.is_empty() && name.len() <= MAX_NAME && !name.contains(is_bad) {
        return Ok(());
    }
    let message = format!("invalid {what} \"{name}\"");
    Err(Error::new(Kind::InvalidName, message).detail(format!(
        "It has 1 to {MAX_NAME} bytes, without white space, \".\", \"*\", \">\", \"/\" and \"\\\"."
    )))
}

fn check_name(what: &str, name: &str) -> Result<()> {
    if is_name(name) {
        Ok(())
    } else {
        Err(invalid(what, name, "letters, digits, \"-\" and \"_\""))
    }
}

/// Checks a key.
pub fn check_key(key: &str) -> Result<()> {
    let bytes = key
        .bytes()
        .all(|b| is_name_byte(b) || matches!(b, b'/' | b'=' | b'.'));
    let ok = bytes && key.len() <= MAX_KEY && key.split('.').all(|token| !token.is_empty());
    if ok {
        Ok(())
    } else {
        Err(invalid(
            "key",
            key,
            "letters, digits and \"-\", \"_\", \"/\", \"=\", with dots between them",
        ))
    }
}

/// Checks the name of an object, which may be any text because it is sent encoded.
pub fn check_object(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > MAX_KEY {
        let detail = format!("It has {} bytes; from 1 to {MAX_KEY} are allowed.", name.len());
        return Err(Error::new(Kind::InvalidName, "invalid object name").detail(detail));
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(is_name_byte)
}

fn is_name_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'-' || b == b'_'
}

fn invalid(what: &str, name: &str, allowed: &str) -> Error {
    let shown: String = name.chars().take(64).collect();
    Error::new(Kind::InvalidName, format!("invalid {what} {shown:?}"))
        .detail(format!("A {what} consists of {allowed}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_and_keys() {
        for good in ["a", "A-b_9"] {
            assert_eq!(
                (check_bucket(good), check_key(good), check_domain(good)),
                (Ok(()), Ok(()), Ok(())),
                "{good}"
            );
        }
        for good in ["a.b.c", "a/b=c", "-"] {
            assert_eq!(check_key(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "a b",
            "a*",
            ">",
            "ключ",
            "a\r\nb",
            &"x".repeat(MAX_KEY + 1),
        ] {
            assert_eq!(check_key(bad).expect_err(bad).kind, Kind::InvalidName);
            assert!(check_bucket(bad).is_err() && check_domain(bad).is_err(), "{bad}");
        }
        assert!(check_bucket("a.b").is_err());
        assert!(check_object("ключ и файл.txt").is_ok() && check_object("").is_err());
    }
}
