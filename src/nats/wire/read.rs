//! Takes what a server says from the bytes that have come. Pure.
//!
//! A message whose headers or subject are not as they should be is still a message: where it ends is known from the
//! sizes in its line alone. What cannot be told apart ends the connection, and so does what is larger than any server
//! sends.

#![forbid(unsafe_code)]

use bytes::{Buf, Bytes, BytesMut};

use super::ServerInfo;
use crate::nats::message::Message;
use crate::nats::raw_headers;

/// Longest line of a server but for INFO, in bytes: subject and reply subject, or the text of an error.
const MAX_LINE: usize = 64 * 1024;
/// Longest text of an error that is kept, in bytes.
const MAX_ERROR: usize = 4500;
/// Longest INFO line, in bytes.
const MAX_INFO: usize = 1024 * 1024;
/// Largest message, in bytes: nats-server advises against more than 8 MB, and allows 64 MB where nothing else is set.
const MAX_MESSAGE: usize = 65 * 1024 * 1024;

/// Least room for the rest of a message, in bytes.
const GROWTH: usize = 64 * 1024;

/// What a server has said.
#[derive(Debug, PartialEq, Eq)]
pub enum ServerOp {
    Info(Box<ServerInfo>),
    /// A message for the subscription of this number.
    Message(u64, Message),
    Ping,
    Pong,
    /// An error, without the quotes around its text.
    Error(String),
    Ok,
}

/// What a server may not say; the text goes on from "the server sent".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

fn malformed<T>(what: &str) -> Result<T, Malformed> {
    Err(Malformed(what.to_string()))
}

/// Takes the next operation from the front of `input`; `None` if it has not come whole yet.
pub fn read(input: &mut BytesMut) -> Result<Option<ServerOp>, Malformed> {
    let Some(end) = memchr::memchr(b'\n', input) else {
        return waits(input).map(|()| None);
    };
    let line = input.get(..end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let (verb, rest) =
        line.iter()
            .position(|byte| matches!(byte, b' ' | b'\t'))
            .map_or((line, &[][..]), |at| {
                (
                    line.get(..at).unwrap_or_default(),
                    line.get(at..).unwrap_or_default(),
                )
            });
    let is_verb = |name: &str| verb.eq_ignore_ascii_case(name.as_bytes());
    let op = if is_verb("MSG") {
        return message(input, end, false);
    } else if is_verb("HMSG") {
        return message(input, end, true);
    } else if is_verb("PING") {
        ServerOp::Ping
    } else if is_verb("PONG") {
        ServerOp::Pong
    } else if is_verb("+OK") {
        ServerOp::Ok
    } else if is_verb("-ERR") {
        let text = rest.get(..rest.len().min(MAX_ERROR)).unwrap_or_default();
        let text = String::from_utf8_lossy(text);
        ServerOp::Error(text.trim().trim_matches('\'').to_string())
    } else if is_verb("INFO") {
        if rest.len() > MAX_INFO {
            return malformed("an INFO that is too long");
        }
        match serde_json::from_slice(rest) {
            Ok(info) => ServerOp::Info(Box::new(info)),
            Err(_) => return malformed("an INFO that is no JSON of an INFO"),
        }
    } else {
        return malformed("a line that is not of NATS's protocol");
    };
    input.advance(end + 1);
    Ok(Some(op))
}

/// The line at the front has not come whole. Fails if it is too long already, or cannot become a line of the protocol.
fn waits(input: &BytesMut) -> Result<(), Malformed> {
    let is_info = input
        .get(..4)
        .is_some_and(|verb| verb.eq_ignore_ascii_case(b"INFO"));
    if input.len() > if is_info { MAX_INFO } else { MAX_LINE } {
        return malformed("a line that is too long");
    }
    Ok(())
}

/// Takes a message, whose line ends at `end`.
fn message(input: &mut BytesMut, end: usize, has_headers: bool) -> Result<Option<ServerOp>, Malformed> {
    const MOST_WORDS: usize = 6;
    if end > MAX_LINE {
        return malformed("a line that is too long");
    }
    let line = input.get(..end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    // Other white space may be a part of a subject.
    let words = line
        .split(|byte| matches!(byte, b' ' | b'\t'))
        .filter(|word| !word.is_empty())
        .skip(1);
    let words: Vec<&[u8]> = words.take(MOST_WORDS).collect();
    let (subject, sid, reply, headers, total) = match (words.as_slice(), has_headers) {
        ([subject, sid, total], false) => (subject, sid, None, None, total),
        ([subject, sid, reply, total], false) => (subject, sid, Some(reply), None, total),
        ([subject, sid, headers, total], true) => (subject, sid, None, Some(headers), total),
        ([subject, sid, reply, headers, total], true) => (subject, sid, Some(reply), Some(headers), total),
        _ => return malformed("a message with other arguments than a message has"),
    };
    let Some(sid) = number(sid) else {
        return malformed("a message whose subscription is no number");
    };
    let sizes = headers
        .map_or(Some(0), |headers| number(headers))
        .zip(number(total));
    let sizes = sizes
        .and_then(|(headers, total)| Some((usize::try_from(headers).ok()?, usize::try_from(total).ok()?)));
    let (headers, total) = match sizes {
        Some((headers, total)) if headers <= total && total <= MAX_MESSAGE => (headers, total),
        _ => return malformed("a message with a size that no message has"),
    };
    let whole = end + 1 + total + 2;
    if input.len() < whole {
        // An announced size alone costs nothing: there is room for as much again as has come.
        input.reserve((whole - input.len()).min(input.len().max(GROWTH)));
        return Ok(None);
    }
    let (subject, reply) = (text(subject), reply.map(|reply| text(reply)));
    input.advance(end + 1);
    let header_block = input.split_to(headers).freeze();
    let payload = input.split_to(total - headers).freeze();
    if input.get(..2) != Some(b"\r\n") {
        return malformed("a message that does not end where it should");
    }
    input.advance(2);
    Ok(Some(ServerOp::Message(
        sid,
        Message {
            subject,
            reply,
            status: raw_headers::status(&header_block),
            header_block: if headers == 0 { Bytes::new() } else { header_block },
            payload,
        },
    )))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A number of at most 19 digits.
fn number(word: &[u8]) -> Option<u64> {
    let is_number = (1..=19).contains(&word.len()) && word.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(word).ok().filter(|_| is_number)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(input: &[u8]) -> Result<Vec<ServerOp>, Malformed> {
        let mut input = BytesMut::from(input);
        let mut ops = Vec::new();
        while let Some(op) = read(&mut input)? {
            ops.push(op);
        }
        assert!(input.is_empty(), "{input:?}");
        Ok(ops)
    }

    fn plain(subject: &str, payload: &'static str) -> Message {
        Message {
            subject: subject.into(),
            payload: payload.into(),
            ..Message::default()
        }
    }

    #[test]
    fn all_that_a_server_says() {
        let ops = all(
            b"INFO {\"server_id\":\"A\"}\r\nPING\r\nPONG\r\n+OK\r\n-ERR 'Stale Connection'\r\n-ERR\r\n\
              MSG a.b 7 5\r\nhello\r\nMSG a 8 _INBOX.1 0\r\n\r\nHMSG a 9 r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
        );
        let ops = ops.expect("all of it");
        assert!(matches!(&ops[0], ServerOp::Info(info) if info.server_id == "A"));
        let error = |text: &str| ServerOp::Error(text.into());
        assert_eq!(
            ops[1..6],
            [
                ServerOp::Ping,
                ServerOp::Pong,
                ServerOp::Ok,
                error("Stale Connection"),
                error("")
            ]
        );
        assert_eq!(ops[6], ServerOp::Message(7, plain("a.b", "hello")));
        let with_reply = Message {
            reply: Some("_INBOX.1".into()),
            ..plain("a", "")
        };
        assert_eq!(ops[7], ServerOp::Message(8, with_reply));
        let with_headers = Message {
            reply: Some("r".into()),
            header_block: "NATS/1.0\r\n\r\n".into(),
            ..plain("a", "hi")
        };
        assert_eq!(ops[8], ServerOp::Message(9, with_headers));
    }

    #[test]
    fn whatever_has_come_so_far_is_waited_for() {
        let whole = b"HMSG a 9 12 14\r\nNATS/1.0\r\n\r\nhi\r\n";
        for end in 0..whole.len() {
            let mut input = BytesMut::from(&whole[..end]);
            assert_eq!(read(&mut input), Ok(None), "{end}");
            input.extend_from_slice(&whole[end..]);
            assert!(
                matches!(read(&mut input), Ok(Some(ServerOp::Message(9, _)))),
                "{end}"
            );
        }
    }

    #[test]
    fn a_message_that_cannot_be_read_is_a_message() {
        let bytes = b"HMSG a\xff 1 21 21\r\nNATS/1.0\r\nA: Jos\xe9\r\n\r\n\r\nPING\r\n";
        let ops = all(bytes).expect("two operations");
        let ServerOp::Message(1, message) = &ops[0] else {
            panic!("{ops:?}")
        };
        assert_eq!(message.header("A").as_deref(), Some("Jos\u{e9}"));
        assert_eq!(
            (message.subject.as_str(), &ops[1]),
            ("a\u{fffd}", &ServerOp::Ping)
        );
    }

    #[test]
    fn white_space_in_a_subject_is_a_part_of_it() {
        let ops = all(b"MSG foo.\x0cx\ry 1 0\r\n\r\n").expect("a message");
        let ServerOp::Message(1, message) = &ops[0] else {
            panic!("{ops:?}")
        };
        assert_eq!(message.subject, "foo.\x0cx\ry");
    }

    #[test]
    fn what_no_server_says_ends_the_reading() {
        let long = "x".repeat(MAX_LINE + 1);
        for bad in [
            "HTTP/1.1 200 OK\r\n",
            "\r\n",
            "INFO\r\n",
            "INFO {\r\n",
            "MSG a 1\r\n",
            "MSG a x 1\r\n",
            "MSG a 1 99999999999999999999\r\n",
            "MSG a 1 100000000\r\n",
            "MSG a 1 r 2 3 4 5\r\n",
            "HMSG a 1 12 18446744073709551613\r\n",
            "HMSG a 1 12 11\r\n",
            "MSG a 1 1\r\nxyz",
            &long,
            &format!("MSG {long} 1 0\r\n\r\n"),
        ] {
            let mut input = BytesMut::from(bad);
            assert!(read(&mut input).is_err(), "{:.40}", bad);
        }
    }
}
