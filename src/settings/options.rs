//! The table of options and the check of one value. Pure.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::nats::{credentials, names, subject};

pub const DEFAULT_HOST: &str = "127.0.0.1";
pub const DEFAULT_PORT: u16 = 4222;
pub const DEFAULT_CAPACITY: u32 = 128;
pub const DEFAULT_RESPONDER_TIMEOUT_MS: u32 = 5000;
pub const DEFAULT_INBOX_PREFIX: &str = "_INBOX";
/// Largest value of the option `capacity`.
const MAX_CAPACITY: u32 = 1_000_000;

/// What a value must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Hosts,
    /// A whole number between the bounds.
    Integer(u32, u32),
    /// The absolute path of a file that the server process reads.
    File,
    Boolean,
    Domain,
    /// Any text, the empty one included.
    Text,
    /// A secret, which is never shown.
    Secret,
    /// An NKey seed of a user.
    Seed,
    /// The contents of a `.creds` file.
    Credentials,
    Subject,
    HttpUrl,
}

/// One option of a foreign server.
#[derive(Clone, Copy, Debug)]
pub struct OptionDef {
    pub name: &'static str,
    pub form: Form,
    /// Whether a user mapping may carry it too.
    pub credential: bool,
}

const fn server(name: &'static str, form: Form) -> OptionDef {
    OptionDef {
        name,
        form,
        credential: false,
    }
}

const fn credential(name: &'static str, form: Form) -> OptionDef {
    OptionDef {
        name,
        form,
        credential: true,
    }
}

/// Every option, in the order of the reference.
pub const OPTIONS: &[OptionDef] = &[
    server("host", Form::Hosts),
    server("port", Form::Integer(1, 65535)),
    server("capacity", Form::Integer(1, MAX_CAPACITY)),
    server("tls_ca_path", Form::File),
    server("tls_cert_path", Form::File),
    server("tls_key_path", Form::File),
    server("tls_insecure", Form::Boolean),
    server("tls_first", Form::Boolean),
    server("domain", Form::Domain),
    credential("inbox_prefix", Form::Subject),
    credential("credentials_path", Form::File),
    credential("credentials", Form::Credentials),
    credential("username", Form::Text),
    credential("password_path", Form::File),
    credential("password", Form::Secret),
    credential("nkey_seed_path", Form::File),
    credential("nkey_seed", Form::Seed),
    credential("token_path", Form::File),
    credential("token", Form::Secret),
    server("notify_subject", Form::Subject),
    server("patroni_url", Form::HttpUrl),
    server("responder_timeout_ms", Form::Integer(1, i32::MAX as u32)),
];

/// The definition of an option; `None` if there is none of this name.
pub fn find(name: &str) -> Option<&'static OptionDef> {
    OPTIONS.iter().find(|option| option.name == name)
}

/// One NATS server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, PartialOrd, Ord)]
pub struct Host {
    pub name: String,
    pub port: u16,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.contains(':') {
            write!(f, "[{}]:{}", self.name, self.port)
        } else {
            write!(f, "{}:{}", self.name, self.port)
        }
    }
}

/// What is allowed, as the end of the sentence "must be ...".
pub fn allowed(form: Form) -> String {
    match form {
        Form::Hosts => "an IP address or host name without a scheme such as nats://, or a list of them separated by commas, each with its own port if needed".into(),
        Form::Integer(low, high) => format!("a whole number from {low} to {high}"),
        Form::File => "an absolute path".into(),
        Form::Boolean => "true or false".into(),
        Form::Domain => "a name of letters, digits, \"-\" and \"_\"".into(),
        Form::Text => "text".into(),
        Form::Secret => "not empty".into(),
        Form::Seed => "the NKey seed of a user, which starts with \"SU\"".into(),
        Form::Credentials => "the contents of a .creds file: a user's JWT and the NKey seed".into(),
        Form::Subject => "a subject without wildcards, white space and empty tokens".into(),
        Form::HttpUrl => "a URL that starts with http:// or https://".into(),
    }
}

/// Whether `value` has the form. The answer does not repeat a refused value, which may be a secret.
pub fn is_valid(form: Form, value: &str) -> bool {
    match form {
        Form::Hosts => parse_hosts(value, DEFAULT_PORT).is_ok(),
        Form::Integer(low, high) => {
            value.bytes().all(|b| b.is_ascii_digit())
                && value.parse().is_ok_and(|n| (low..=high).contains(&n))
        }
        Form::File => Path::new(value).is_absolute() && !value.ends_with('/'),
        Form::Boolean => parse_bool(value).is_some(),
        Form::Domain => names::check_domain(value).is_ok(),
        Form::Text => true,
        Form::Secret => !value.is_empty(),
        Form::Seed => nkeys::KeyPair::from_seed(value)
            .is_ok_and(|pair| pair.key_pair_type() == nkeys::KeyPairType::User),
        Form::Credentials => credentials::read(value).is_ok(),
        Form::Subject => subject::check_publish(value).is_ok(),
        Form::HttpUrl => {
            url::Url::parse(value).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        }
    }
}

/// Reads PostgreSQL's spellings of a boolean; `None` for any other text.
pub fn parse_bool(value: &str) -> Option<bool> {
    match value.trim().to_ascii_lowercase().as_str() {
        "true" | "t" | "yes" | "y" | "on" | "1" => Some(true),
        "false" | "f" | "no" | "n" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// Reads `name`, `name:port`, `[v6]:port` or a bare IPv6 address, or several of them separated by commas. `Err` is a
/// sentence that says what is wrong.
pub fn parse_hosts(list: &str, default_port: u16) -> Result<Vec<Host>, String> {
    list.split(',')
        .map(|item| parse_host(item.trim_matches(' '), default_port))
        .collect()
}

fn parse_host(item: &str, default_port: u16) -> Result<Host, String> {
    let refused = || format!("\"{item}\" is not a host name or IP address.");
    let (name, port) = match item.strip_prefix('[') {
        Some(rest) => {
            let (name, after) = rest.split_once(']').ok_or_else(refused)?;
            (
                name,
                after
                    .strip_prefix(':')
                    .or_else(|| after.is_empty().then_some(""))
                    .ok_or_else(refused)?,
            )
        }
        None if item.matches(':').count() > 1 => (item, ""),
        None => item.split_once(':').unwrap_or((item, "")),
    };
    let is_address = name.parse::<std::net::IpAddr>().is_ok();
    let is_name = name.len() <= 253
        && !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if !is_address && !is_name {
        return Err(refused());
    }
    let port = match port {
        "" => default_port,
        digits => digits
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| format!("\"{item}\" has no valid port."))?,
    };
    Ok(Host {
        name: name.to_string(),
        port,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let host = |name: &str, port| Host {
            name: name.into(),
            port,
        };
        assert_eq!(
            parse_hosts("n1, n2:5000,10.0.0.1", 4222),
            Ok(vec![host("n1", 4222), host("n2", 5000), host("10.0.0.1", 4222)])
        );
        assert_eq!(
            parse_hosts("::1,[::1]:1,[fe80::1]", 7),
            Ok(vec![host("::1", 7), host("::1", 1), host("fe80::1", 7)])
        );
        assert_eq!(host("::1", 7).to_string(), "[::1]:7");
        for bad in [
            "", "a,,b", "a b", "nats://a", "a:0", "a:b", "a:70000", "[::1", "[::1]x", "::z", "a\r\n",
        ] {
            assert!(parse_hosts(bad, 1).is_err(), "{bad}");
        }
    }

    #[test]
    fn values() {
        let cases: [(Form, &[&str], &[&str]); 8] = [
            (
                Form::Integer(1, 65535),
                &["1", "4222", "65535"],
                &["", "0", "65536", "abc", "-1", "+1", "4.2", " 1"],
            ),
            (Form::File, &["/run/secrets/x"], &["", "x", "./x", "~/x", "/run/"]),
            (Form::Boolean, &["true", "off", "1", "YES"], &["", "maybe", "2"]),
            (Form::Domain, &["hub", "leaf-1"], &["", "a.b", "a b", "*"]),
            (Form::Secret, &["x"], &[""]),
            (Form::Subject, &["a.b"], &["", "a.*", "a b"]),
            (
                Form::HttpUrl,
                &["http://localhost:8008/patroni", "https://p"],
                &["", "localhost:8008", "ftp://x", "http://"],
            ),
            (Form::Seed, &[], &["", "SU", "hunter2", "SUABC"]),
        ];
        for (form, good, bad) in cases {
            good.iter()
                .for_each(|value| assert!(is_valid(form, value), "{form:?} {value}"));
            bad.iter()
                .for_each(|value| assert!(!is_valid(form, value), "{form:?} {value}"));
        }
        let seed = |pair: nkeys::KeyPair| pair.seed().expect("seed");
        assert!(is_valid(Form::Seed, &seed(nkeys::KeyPair::new_user())));
        assert!(!is_valid(Form::Seed, &seed(nkeys::KeyPair::new_account())));
    }
}
