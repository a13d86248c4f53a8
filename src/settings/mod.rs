//! Connection settings: the options of a foreign server and of a user mapping. This file turns checked options into
//! [`Settings`], which a connection is made from. Pure.
//!
//! - `options.rs`: every option, and the check of one value;
//! - `validate.rs`: the check of a whole list of options, as CREATE SERVER does it;
//! - `secret.rs`: a string that is never printed.

#![forbid(unsafe_code)]

pub mod options;
mod secret;
pub mod validate;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use secret::Secret;

use crate::error::{Error, Kind, Result};
use options::{Host, parse_bool, parse_hosts};

/// Options by name, as the catalogue holds them.
pub type Options = BTreeMap<String, String>;

/// Everything a NATS connection is made from. Settings go over the control channel, so a change of the fields is a
/// change of its protocol (`PROTOCOL` in `channel/message.rs`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    pub hosts: Vec<Host>,
    /// Most messages that are held while NATS is away.
    pub capacity: usize,
    pub tls: Tls,
    pub credential: Credential,
    /// Beginning of the subjects that replies go to.
    pub inbox_prefix: String,
    pub domain: Option<String>,
    pub notify_subject: Option<String>,
    pub patroni_url: Option<String>,
    /// The statement timeout of responders, and the longest time that a request waits for one; in milliseconds.
    pub responder_timeout_ms: u32,
}

/// How the connection is encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tls {
    pub verify: Verify,
    /// TLS begins before the NATS server's INFO.
    pub first: bool,
    /// Paths of the client's certificate and key.
    pub client: Option<(String, String)>,
}

/// How the server's certificate is verified.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verify {
    /// TLS is not asked for. If the NATS server demands it, the platform's CA certificates verify the server.
    #[default]
    Platform,
    /// By the CA certificate in this file.
    Ca(String),
    /// Not at all.
    Insecure,
}

/// How the connection authenticates with NATS; the files are read at every connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Credential {
    /// A `.creds` file.
    File(String),
    /// The contents of a `.creds` file.
    Inline(Secret),
    NkeyFile(String),
    Nkey(Secret),
    TokenFile(String),
    Token(Secret),
    PasswordFile(String, String),
    Password(String, Secret),
    None,
}

/// The ways to authenticate; the options of one way belong together.
const CREDENTIAL_WAYS: [&[&str]; 4] = [
    &["credentials_path", "credentials"],
    &["nkey_seed_path", "nkey_seed"],
    &["token_path", "token"],
    &["username", "password_path", "password"],
];

impl Settings {
    /// Makes settings from the options of a server and, if there is one, of a user mapping. Fails if `host` is not
    /// valid, or if only a part of a credential is given.
    ///
    /// A mapping decides how to authenticate: if it has an option of one way (say, a token), the server's options
    /// of the other ways do not count, and its inline secret replaces the server's file or the reverse.
    pub fn resolve(server: &Options, mapping: Option<&Options>) -> Result<Settings> {
        let mut all = server.clone();
        if let Some(mapping) = mapping {
            overlay(&mut all, mapping);
        }
        let get = |name: &str| all.get(name).map(String::as_str);
        let number = |name: &str, default: u32| get(name).and_then(|v| v.parse().ok()).unwrap_or(default);
        let port = get("port")
            .and_then(|p| p.parse().ok())
            .unwrap_or(options::DEFAULT_PORT);
        let hosts = parse_hosts(get("host").unwrap_or(options::DEFAULT_HOST), port)
            .map_err(|why| Error::new(Kind::InvalidArgument, "invalid option \"host\"").detail(why))?;
        let verify = match (get("tls_ca_path"), get("tls_insecure").and_then(parse_bool)) {
            (_, Some(true)) => Verify::Insecure,
            (Some(ca), _) => Verify::Ca(ca.to_string()),
            (None, _) => Verify::Platform,
        };
        Ok(Settings {
            hosts,
            capacity: number("capacity", options::DEFAULT_CAPACITY) as usize,
            tls: Tls {
                verify,
                first: get("tls_first").and_then(parse_bool).unwrap_or(false),
                client: get("tls_cert_path")
                    .map(String::from)
                    .zip(get("tls_key_path").map(String::from)),
            },
            credential: credential(&all)?,
            inbox_prefix: get("inbox_prefix")
                .unwrap_or(options::DEFAULT_INBOX_PREFIX)
                .to_string(),
            domain: get("domain").map(String::from),
            notify_subject: get("notify_subject").map(String::from),
            patroni_url: get("patroni_url").map(String::from),
            responder_timeout_ms: number("responder_timeout_ms", options::DEFAULT_RESPONDER_TIMEOUT_MS),
        })
    }

    /// Whether the options ask for TLS. Without that, the NATS server may still demand TLS.
    pub fn wants_tls(&self) -> bool {
        self.tls.first || self.tls.verify != Verify::Platform
    }

    /// Whether a change from these settings to `new` takes another connection.
    pub fn needs_reconnect(&self, new: &Settings) -> bool {
        // All fields are named, so that the compiler asks for a decision on a new field.
        let Settings {
            hosts,
            tls,
            credential,
            inbox_prefix,
            capacity: _,
            domain: _,
            notify_subject: _,
            patroni_url: _,
            responder_timeout_ms: _,
        } = self;
        (hosts, tls, credential, inbox_prefix) != (&new.hosts, &new.tls, &new.credential, &new.inbox_prefix)
    }
}

/// Lays a mapping's credential options over the server's.
fn overlay(all: &mut Options, mapping: &Options) {
    let has_any = |way: &[&str]| way.iter().any(|name| mapping.contains_key(*name));
    if CREDENTIAL_WAYS.iter().any(|way| has_any(way)) {
        for way in CREDENTIAL_WAYS.iter().filter(|way| !has_any(way)) {
            all.retain(|name, _| !way.contains(&name.as_str()));
        }
    }
    for (inline, path) in [
        ("credentials", "credentials_path"),
        ("nkey_seed", "nkey_seed_path"),
        ("token", "token_path"),
        ("password", "password_path"),
    ] {
        if mapping.contains_key(inline) || mapping.contains_key(path) {
            all.remove(inline);
            all.remove(path);
        }
    }
    all.extend(mapping.iter().map(|(name, value)| (name.clone(), value.clone())));
}

/// The credential that is first in the documented order of priority; fails if only a part of it is given.
fn credential(all: &Options) -> Result<Credential> {
    let get = |name: &str| all.get(name).cloned();
    let incomplete = |message: &str| Err(Error::new(Kind::IncompleteCredential, message));
    Ok(if let Some(path) = get("credentials_path") {
        Credential::File(path)
    } else if let Some(credentials) = get("credentials") {
        Credential::Inline(Secret::new(credentials))
    } else if let Some(path) = get("nkey_seed_path") {
        Credential::NkeyFile(path)
    } else if let Some(seed) = get("nkey_seed") {
        Credential::Nkey(Secret::new(seed))
    } else if let Some(path) = get("token_path") {
        Credential::TokenFile(path)
    } else if let Some(token) = get("token") {
        Credential::Token(Secret::new(token))
    } else {
        match (get("username"), get("password_path"), get("password")) {
            (Some(user), Some(path), _) => Credential::PasswordFile(user, path),
            (Some(user), None, Some(password)) => Credential::Password(user, Secret::new(password)),
            (Some(_), None, None) => return incomplete("option \"username\" has no password"),
            (None, None, None) => Credential::None,
            (None, _, _) => return incomplete("a password is given without option \"username\""),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> Options {
        pairs
            .iter()
            .map(|(n, v)| (n.to_string(), v.to_string()))
            .collect()
    }

    fn resolved(server: &[(&str, &str)], mapping: &[(&str, &str)]) -> Settings {
        Settings::resolve(&options(server), Some(&options(mapping))).expect("settings")
    }

    #[test]
    fn defaults() {
        let settings = Settings::resolve(&Options::new(), None).expect("settings");
        assert_eq!(
            settings.hosts,
            [Host {
                name: "127.0.0.1".into(),
                port: 4222
            }]
        );
        assert_eq!((settings.capacity, settings.responder_timeout_ms), (128, 5000));
        assert_eq!(
            (settings.tls, settings.credential),
            (Tls::default(), Credential::None)
        );
    }

    #[test]
    fn the_first_credential_in_the_documented_order_wins() {
        let mut all = vec![
            ("credentials_path", "/creds"),
            ("credentials", "jwt and seed"),
            ("nkey_seed_path", "/nkey"),
            ("nkey_seed", "SU"),
            ("token_path", "/token"),
            ("token", "t"),
            ("username", "u"),
            ("password_path", "/password"),
            ("password", "p"),
        ];
        let expected = [
            Credential::File("/creds".into()),
            Credential::Inline(Secret::new("jwt and seed".into())),
            Credential::NkeyFile("/nkey".into()),
            Credential::Nkey(Secret::new("SU".into())),
            Credential::TokenFile("/token".into()),
            Credential::Token(Secret::new("t".into())),
            Credential::PasswordFile("u".into(), "/password".into()),
        ];
        for credential in expected {
            assert_eq!(resolved(&all, &[]).credential, credential);
            all.remove(0);
        }
        all = vec![("username", ""), ("password", "token of Litmus Edge")];
        assert_eq!(
            resolved(&all, &[]).credential,
            Credential::Password(String::new(), Secret::new("token of Litmus Edge".into()))
        );
    }

    #[test]
    fn a_mapping_overrides_the_way_and_the_value() {
        let by_token = resolved(&[("nkey_seed", "SU")], &[("token", "mine")]);
        assert_eq!(by_token.credential, Credential::Token(Secret::new("mine".into())));
        let by_password = resolved(
            &[("username", "u"), ("password_path", "/p")],
            &[("password", "mine")],
        );
        assert_eq!(
            by_password.credential,
            Credential::Password("u".into(), Secret::new("mine".into()))
        );
        let untouched = resolved(&[("token", "server's")], &[]);
        assert_eq!(
            untouched.credential,
            Credential::Token(Secret::new("server's".into()))
        );
    }

    #[test]
    fn half_a_credential_is_an_error_not_an_anonymous_connection() {
        for half in [
            [("username", "u")],
            [("password", "p")],
            [("password_path", "/p")],
        ] {
            let refused = Settings::resolve(&options(&half), None).expect_err("half a credential");
            assert_eq!(refused.kind, Kind::IncompleteCredential);
        }
    }

    #[test]
    fn a_secret_is_not_printed() {
        let settings = resolved(&[("username", "u"), ("password", "hunter2")], &[]);
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
