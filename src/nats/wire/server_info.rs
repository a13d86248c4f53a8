//! What a NATS server says of itself in its INFO. Pure.

#![forbid(unsafe_code)]

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Most servers of a cluster that are remembered.
const MOST_URLS: usize = 64;
/// The limit of a server that names none.
const DEFAULT_MAX_PAYLOAD: u64 = 1024 * 1024;

/// A server's INFO. Fields that a server leaves out are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerInfo {
    pub server_id: String,
    pub server_name: String,
    pub host: String,
    pub port: u16,
    pub version: String,
    pub auth_required: bool,
    pub tls_required: bool,
    pub tls_available: bool,
    /// Largest message, headers included, in bytes: the server's limit, and then the account's.
    #[serde(default = "default_limit", deserialize_with = "limit")]
    pub max_payload: u64,
    pub proto: i8,
    pub client_id: u64,
    pub go: String,
    /// What a client with an NKey signs.
    pub nonce: String,
    /// Other servers of the cluster, the first [`MOST_URLS`] of them.
    #[serde(deserialize_with = "first_urls")]
    pub connect_urls: Vec<String>,
    pub client_ip: String,
    pub headers: bool,
    #[serde(rename = "ldm")]
    pub lame_duck_mode: bool,
}

fn default_limit() -> u64 {
    DEFAULT_MAX_PAYLOAD
}

fn limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    // A limit that is no limit at all is sent as 0 or -1.
    let limit = i64::deserialize(deserializer)?;
    Ok(u64::try_from(limit)
        .ok()
        .filter(|limit| *limit > 0)
        .unwrap_or(DEFAULT_MAX_PAYLOAD))
}

fn first_urls<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct First;

    impl<'de> Visitor<'de> for First {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a list of addresses")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut urls: A) -> Result<Self::Value, A::Error> {
            let mut first = Vec::new();
            while first.len() < MOST_URLS {
                match urls.next_element()? {
                    Some(url) => first.push(url),
                    None => return Ok(first),
                }
            }
            while urls.next_element::<IgnoredAny>()?.is_some() {}
            Ok(first)
        }
    }

    deserializer.deserialize_any(First)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_empty_and_what_is_too_much_is_left_out() {
        let read = |json: &str| serde_json::from_str::<ServerInfo>(json).expect(json);
        let info = read(r#"{"server_id":"A","max_payload":1024,"headers":true,"ldm":true,"unknown":[1]}"#);
        assert_eq!(
            (info.max_payload, info.headers, info.lame_duck_mode),
            (1024, true, true)
        );
        assert_eq!(read(r#"{"max_payload":-1}"#).max_payload, DEFAULT_MAX_PAYLOAD);
        assert_eq!(read("{}").max_payload, DEFAULT_MAX_PAYLOAD);
        assert!(read(r#"{"connect_urls":null}"#).connect_urls.is_empty());
        let many: Vec<String> = (0..500).map(|n| format!("10.0.0.1:{n}")).collect();
        let info = read(&serde_json::json!({ "connect_urls": many }).to_string());
        assert_eq!(info.connect_urls, many[..MOST_URLS]);
        assert!(serde_json::from_str::<ServerInfo>(r#"{"port":"x"}"#).is_err());
    }
}
