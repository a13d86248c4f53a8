//! Header blocks as they are stored, which may be such that a client library cannot read them. Pure.

#![forbid(unsafe_code)]

use super::headers::{Headers, is_name};

/// Whether every client can read a header block: text in UTF-8, and lines of a name and a value.
pub fn is_readable(block: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(block) else {
        return false;
    };
    let mut lines = text.lines();
    if block.is_empty() {
        return true;
    }
    let is_known = lines
        .next()
        .is_some_and(|version| version.starts_with("NATS/1.0"));
    let mut fields = lines.filter(|line| !line.is_empty() && !line.starts_with(char::is_whitespace));
    is_known && fields.all(|line| line.split_once(':').is_some_and(|(name, _)| is_name(name)))
}

/// Reads a header block as well as that can be done: text that is not UTF-8 is taken for Latin-1, and a line without a
/// colon for a name without a value.
pub fn read(block: &[u8]) -> Headers {
    let text = String::from_utf8(block.to_vec())
        .unwrap_or_else(|error| error.as_bytes().iter().map(|byte| char::from(*byte)).collect());
    let mut headers = Headers::new();
    for line in text.lines().skip(1).filter(|line| !line.is_empty()) {
        match headers.last_mut() {
            Some((_, value)) if line.starts_with(char::is_whitespace) => value.push_str(line.trim_end()),
            _ => {
                let (name, value) = line.split_once(':').unwrap_or((line, ""));
                headers.push((name.to_string(), value.trim().to_string()));
            }
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(lines: &[u8]) -> Vec<u8> {
        [b"NATS/1.0\r\n", lines, b"\r\n"].concat()
    }

    #[test]
    fn what_no_client_reads_is_told_from_what_all_do() {
        for good in [
            &b""[..],
            &block(b"X-Name: Jos\xc3\xa9\r\nOther:\r\n"),
            &block(b"A: 1\r\n more\r\n"),
        ] {
            assert!(is_readable(good), "{good:?}");
        }
        for bad in [
            &block(b"X-Name: Jos\xe9\r\n")[..],
            &block(b"no colon\r\n"),
            &block(b"X-\x01: 1\r\n"),
            &block(b": 1\r\n"),
            b"X: 1\r\n\r\n",
        ] {
            assert!(!is_readable(bad), "{bad:?}");
        }
    }

    #[test]
    fn what_is_not_utf8_is_latin1() {
        let read = |lines: &[u8]| read(&block(lines));
        let pair = |name: &str, value: &str| (name.to_string(), value.to_string());
        assert_eq!(
            read(b"X-Name: Jos\xe9\r\nB:2\r\n"),
            [pair("X-Name", "Jos\u{e9}"), pair("B", "2")]
        );
        assert_eq!(read(b"X-Name: Jos\xc3\xa9\r\n"), [pair("X-Name", "Jos\u{e9}")]);
        assert_eq!(
            read(b"no colon\r\nX-\x01: 1\r\n"),
            [pair("no colon", ""), pair("X-\u{1}", "1")]
        );
        assert_eq!(read(b"A: 1\r\n 2\r\n"), [pair("A", "1 2")]);
    }
}
