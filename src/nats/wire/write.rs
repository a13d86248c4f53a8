//! Appends what a client says to the bytes that go out. Pure.

#![forbid(unsafe_code)]

use std::io::Write;

use serde::Serialize;

use crate::nats::headers::wire_len;
use crate::nats::message::Outbound;

pub const PING: &[u8] = b"PING\r\n";
pub const PONG: &[u8] = b"PONG\r\n";

/// What a client says of itself, and by which it is let in. Secrets stand in it: it has no `Debug`.
#[derive(Default, Serialize)]
pub struct Connect {
    pub verbose: bool,
    pub pedantic: bool,
    pub tls_required: bool,
    pub name: String,
    pub lang: &'static str,
    pub version: &'static str,
    pub protocol: u8,
    pub echo: bool,
    pub headers: bool,
    pub no_responders: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pass: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nkey: Option<String>,
    /// Signature of the server's nonce, as base64 for URLs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sig: Option<String>,
}

pub fn connect(out: &mut Vec<u8>, connect: &Connect) {
    out.extend_from_slice(b"CONNECT ");
    // Plain text and numbers are always JSON, and a Vec takes all that is written.
    let _ = serde_json::to_writer(&mut *out, connect);
    out.extend_from_slice(b"\r\n");
}

/// Bytes of a message that the server counts towards its limit: payload and headers.
pub fn size(message: &Outbound) -> usize {
    message.payload.len() + wire_len(&message.headers)
}

/// Appends a message; returns how many bytes that were.
pub fn publish(out: &mut Vec<u8>, message: &Outbound) -> usize {
    let before = out.len();
    let headers = wire_len(&message.headers);
    out.reserve(message.payload.len() + headers + message.subject.len() + 64);
    out.extend_from_slice(if headers == 0 { b"PUB " } else { b"HPUB " });
    out.extend_from_slice(message.subject.as_bytes());
    if let Some(reply) = &message.reply {
        out.push(b' ');
        out.extend_from_slice(reply.as_bytes());
    }
    let total = headers + message.payload.len();
    if headers > 0 {
        // A Vec takes all that is written.
        let _ = write!(out, " {headers}");
    }
    let _ = write!(out, " {total}\r\n");
    if headers > 0 {
        out.extend_from_slice(b"NATS/1.0\r\n");
        for (name, value) in &message.headers {
            for part in [name.as_str(), ": ", value, "\r\n"] {
                out.extend_from_slice(part.as_bytes());
            }
        }
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(&message.payload);
    out.extend_from_slice(b"\r\n");
    out.len() - before
}

pub fn subscribe(out: &mut Vec<u8>, subject: &str, queue_group: Option<&str>, sid: u64) {
    let (space, queue_group) = queue_group.map_or(("", ""), |group| (" ", group));
    // A Vec takes all that is written.
    let _ = write!(out, "SUB {subject}{space}{queue_group} {sid}\r\n");
}

pub fn unsubscribe(out: &mut Vec<u8>, sid: u64) {
    // A Vec takes all that is written.
    let _ = write!(out, "UNSUB {sid}\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn what_a_client_says() {
        let mut message = Outbound {
            subject: "a.b".into(),
            payload: "hello".into(),
            ..Outbound::default()
        };
        let published = |message: &Outbound| {
            let mut out = Vec::new();
            assert_eq!(publish(&mut out, message), out.len());
            String::from_utf8(out).expect("UTF-8")
        };
        assert_eq!(published(&message), "PUB a.b 5\r\nhello\r\n");
        message.reply = Some("inbox".into());
        assert_eq!(published(&message), "PUB a.b inbox 5\r\nhello\r\n");
        message.headers = vec![("A".into(), "1".into()), ("A".into(), "2".into())];
        let block = "NATS/1.0\r\nA: 1\r\nA: 2\r\n\r\n";
        assert_eq!(
            published(&message),
            format!(
                "HPUB a.b inbox {} {}\r\n{block}hello\r\n",
                block.len(),
                block.len() + 5
            )
        );
        assert_eq!(size(&message), block.len() + 5);
        assert_eq!(written(|out| subscribe(out, "a.*", None, 3)), "SUB a.* 3\r\n");
        assert_eq!(
            written(|out| subscribe(out, "a.*", Some("q"), 4)),
            "SUB a.* q 4\r\n"
        );
        assert_eq!(written(|out| unsubscribe(out, 4)), "UNSUB 4\r\n");
        let line = written(|out| {
            connect(
                out,
                &Connect {
                    name: "n".into(),
                    pass: Some("p".into()),
                    ..Connect::default()
                },
            )
        });
        let json = line.strip_prefix("CONNECT ").expect("CONNECT");
        let json: serde_json::Value = serde_json::from_str(json).expect("JSON");
        assert_eq!(
            (&json["name"], &json["pass"], json.get("jwt")),
            (&"n".into(), &"p".into(), None)
        );
    }
}
