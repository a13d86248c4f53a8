//! `nats_get_server_info()`. Runs in backends and executors, on the main thread.

use std::time::Duration;

use serde_json::Value as Json;

use super::call;
use super::session::unexpected_reply;
use crate::channel::message::{Reply, Request};
use crate::error::Result;
use crate::nats::headers::Headers;
use crate::pg::fmgr::{Call, Value, sql_function};

sql_function!(nats_get_server_info, server_info);

/// The columns of the result, in order.
const COLUMNS: [&str; 16] = [
    "server_id",
    "server_name",
    "host",
    "port",
    "version",
    "auth_required",
    "tls_required",
    "max_payload",
    "proto",
    "client_id",
    "go",
    "nonce",
    "connect_urls",
    "client_ip",
    "headers",
    "lame_duck_mode",
];

fn server_info(_: &Call<'_>) -> Result<Value> {
    let ask = |slot, wait_ms| Request::ServerInfo { slot, wait_ms };
    let reply = call::ask(&Headers::new(), b"", Duration::ZERO, ask)?;
    let Reply::ServerInfo { json } = reply.message else {
        return Err(unexpected_reply());
    };
    let info: Json = serde_json::from_str(&json).map_err(|_| unexpected_reply())?;
    Ok(Value::Row(
        COLUMNS
            .iter()
            .map(|column| info.get(column).and_then(column_text))
            .collect(),
    ))
}

/// A JSON value as the text that the column's type reads; `None` for null.
fn column_text(value: &Json) -> Option<String> {
    match value {
        Json::Null => None,
        Json::String(text) => Some(text.clone()),
        // URLs have neither quotes nor backslashes, so quoting them is all that an array literal needs.
        Json::Array(urls) => {
            let urls: Vec<String> = urls
                .iter()
                .filter_map(Json::as_str)
                .map(|url| format!("\"{url}\""))
                .collect();
            Some(format!("{{{}}}", urls.join(",")))
        }
        other => Some(other.to_string()),
    }
}
