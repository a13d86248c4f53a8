//! Header blocks as they come, which may not be as they should be. Pure.

#![forbid(unsafe_code)]

use super::headers::Headers;

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

/// The status in the first line of a header block, by which the NATS server itself speaks; `None` if there is none.
pub fn status(block: &[u8]) -> Option<u16> {
    let line = block.strip_prefix(b"NATS/1.0 ")?;
    let digits = line.get(..3)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// What stands behind the status in the first line of a header block.
pub fn description(block: &[u8]) -> String {
    let line = block
        .split(|byte| matches!(byte, b'\r' | b'\n'))
        .next()
        .unwrap_or_default();
    let text = String::from_utf8_lossy(line);
    let mut words = text.splitn(3, ' ').skip(2);
    words.next().unwrap_or_default().trim().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(lines: &[u8]) -> Vec<u8> {
        [b"NATS/1.0\r\n", lines, b"\r\n"].concat()
    }

    #[test]
    fn the_server_speaks_by_a_status() {
        let heartbeat = b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 7\r\n\r\n";
        assert_eq!(
            (status(heartbeat), description(heartbeat).as_str()),
            (Some(100), "Idle Heartbeat")
        );
        let bare = b"NATS/1.0 503\r\n\r\n";
        assert_eq!((status(bare), description(bare).as_str()), (Some(503), ""));
        for none in [
            &b"NATS/1.0\r\nA: 1\r\n\r\n"[..],
            b"",
            b"NATS/1.0 x\r\n",
            b"NATS/1.0 1",
        ] {
            assert_eq!(status(none), None, "{none:?}");
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
