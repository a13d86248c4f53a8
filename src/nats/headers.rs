//! Message headers: from a JSON object to name and value pairs, and their size on the wire. Pure.

use serde_json::Value;

use crate::error::{Error, Kind, Result};

/// Names and values. From a JSON object they come in the order of their names; a name with several values is there
/// several times.
pub type Headers = Vec<(String, String)>;

/// How a service says that it failed, and with which code (ADR-32).
pub const SERVICE_ERROR: &str = "Nats-Service-Error";
pub const SERVICE_ERROR_CODE: &str = "Nats-Service-Error-Code";

/// Largest JSON of headers, and headers on the wire, in bytes. Names are repeated for each value, so a small JSON could
/// take any amount of memory.
const MAX_SIZE: usize = 1024 * 1024;

/// Reads `{"name": "value", "other": ["first", "second"]}`. Fails if the text is not such an object, if it is too
/// large, or if a name or a value cannot be sent.
pub fn parse(json: &str) -> Result<Headers> {
    let invalid = |why: String| Error::new(Kind::InvalidHeaders, "invalid message headers").detail(why);
    let too_large = || invalid(format!("They take more than {MAX_SIZE} bytes."));
    if json.len() > MAX_SIZE {
        return Err(too_large());
    }
    let mut size = 0;
    let value: Value = serde_json::from_str(json).map_err(|e| invalid(format!("Not JSON: {e}.")))?;
    let Value::Object(object) = value else {
        return Err(invalid(
            "Headers are a JSON object of strings and arrays of strings.".into(),
        ));
    };
    let mut headers = Headers::with_capacity(object.len());
    for (name, value) in object {
        check_name(&name).map_err(invalid)?;
        let values = match value {
            Value::Array(values) => values,
            single => vec![single],
        };
        for value in values {
            let Value::String(value) = value else {
                return Err(invalid(format!(
                    "The value of header \"{name}\" is not a string or an array of strings."
                )));
            };
            if value.contains(['\r', '\n']) {
                return Err(invalid(format!(
                    "A value of header \"{name}\" contains a line break."
                )));
            }
            size += name.len() + value.len();
            if size > MAX_SIZE {
                return Err(too_large());
            }
            headers.push((name.clone(), value));
        }
    }
    Ok(headers)
}

/// The reverse of [`parse`]: a header that is there once becomes a string, one that is there several times an array.
pub fn to_json(headers: &[(String, String)]) -> String {
    let mut object = serde_json::Map::new();
    for (name, value) in headers {
        let value = Value::from(value.as_str());
        match object.get_mut(name) {
            None => drop(object.insert(name.clone(), value)),
            Some(Value::Array(values)) => values.push(value),
            Some(single) => *single = Value::Array(vec![single.take(), value]),
        }
    }
    Value::Object(object).to_string()
}

/// The first value of a header; `None` if there is none of this name.
pub fn first<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|(known, _)| known == name)
        .map(|(_, value)| value.as_str())
}

/// A header name is printable ASCII without space and colon (ADR-4).
fn check_name(name: &str) -> std::result::Result<(), String> {
    match name.bytes().find(|b| !(b'!'..=b'~').contains(b) || *b == b':') {
        _ if name.is_empty() => Err("A header name is empty.".into()),
        Some(_) => Err(format!(
            "The header name {name:?} is not printable ASCII without space and colon."
        )),
        None => Ok(()),
    }
}

/// Bytes that these headers add to a message; the server counts them towards max_payload.
pub fn wire_len(headers: &[(String, String)]) -> usize {
    if headers.is_empty() {
        return 0;
    }
    let frame = "NATS/1.0\r\n\r\n".len();
    frame
        + headers
            .iter()
            .map(|(name, value)| name.len() + value.len() + ": \r\n".len())
            .sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_and_arrays_of_strings() {
        let headers = parse(r#"{"a": "1", "b": ["2", "3"]}"#).expect("valid");
        let pair = |n: &str, v: &str| (n.to_string(), v.to_string());
        assert_eq!(headers, [pair("a", "1"), pair("b", "2"), pair("b", "3")]);
        assert_eq!(
            wire_len(&headers),
            "NATS/1.0\r\na: 1\r\nb: 2\r\nb: 3\r\n\r\n".len()
        );
        assert_eq!(wire_len(&[]), 0);
        assert_eq!(to_json(&headers), r#"{"a":"1","b":["2","3"]}"#);
    }

    #[test]
    fn size_is_bounded() {
        let (name, value) = ("n".repeat(MAX_SIZE / 2), "v".repeat(MAX_SIZE));
        for large in [
            format!(r#"{{"{name}": ["", "", ""]}}"#),
            format!(r#"{{"a": "{value}"}}"#),
        ] {
            let error = parse(&large).expect_err("too large");
            assert_eq!(error.kind, Kind::InvalidHeaders);
            assert_eq!(
                error.detail.as_deref(),
                Some("They take more than 1048576 bytes.")
            );
        }
        assert!(parse(&format!(r#"{{"{name}": ["", ""]}}"#)).is_ok());
    }

    #[test]
    fn refuses_injection_and_other_types() {
        for bad in [
            r#"[]"#,
            r#""a""#,
            r#"{"a": 1}"#,
            r#"{"a": null}"#,
            r#"{"a": ["1", 2]}"#,
            r#"{"a": "x\r\nb: y"}"#,
            r#"{"a": "x\ny"}"#,
            r#"{"a\r\nb": "x"}"#,
            r#"{"a b": "x"}"#,
            r#"{"a:": "x"}"#,
            r#"{"": "x"}"#,
            r#"{"ä": "x"}"#,
        ] {
            assert_eq!(parse(bad).expect_err(bad).kind, Kind::InvalidHeaders, "{bad}");
        }
    }
}
