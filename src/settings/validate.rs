//! The check of a whole list of options, as CREATE and ALTER of a server or a user mapping do it. Pure.

use super::Options;
use super::options::{Form, OPTIONS, OptionDef, allowed, find, is_valid, parse_bool};
use crate::error::{Error, Kind, Result};

/// The object that options are given for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionsOf {
    Server,
    UserMapping,
    /// The foreign-data wrapper itself and foreign tables take no options.
    Other,
}

/// Longest value of an option, in bytes: the runtime worker holds them all in memory.
const MAX_VALUE: usize = 4096;
/// Longest credentials, in bytes: a JWT names all subjects that its user may use.
const MAX_CREDENTIALS: usize = 32 * 1024;

/// Checks all options of one object: their names, their values, and that they do not contradict each other.
pub fn validate(target: OptionsOf, options: &Options) -> Result<()> {
    for (name, value) in options {
        let option = find(name)
            .filter(|option| allows(target, option))
            .ok_or_else(|| unknown(target, name))?;
        let most = if option.form == Form::Credentials {
            MAX_CREDENTIALS
        } else {
            MAX_VALUE
        };
        if value.len() > most {
            return Err(Error::new(
                Kind::MalformedOption,
                format!("value for option \"{name}\" is too long"),
            )
            .hint(format!("The longest value has {most} bytes.")));
        }
        if !is_valid(option.form, value) {
            return Err(Error::new(
                Kind::MalformedOption,
                format!("invalid value for option \"{name}\""),
            )
            .hint(format!("The value must be {}.", allowed(option.form))));
        }
    }
    contradictions(options)
}

fn unknown(target: OptionsOf, name: &str) -> Error {
    let error = Error::new(Kind::UnknownOption, format!("invalid option \"{name}\""));
    let valid: Vec<_> = OPTIONS
        .iter()
        .filter(|option| allows(target, option))
        .map(|option| option.name)
        .collect();
    if valid.is_empty() {
        return error.hint("There are no valid options in this context.");
    }
    let valid = format!("Valid options in this context are: {}.", valid.join(", "));
    match nearest(target, name) {
        Some(nearest) => error
            .detail(valid)
            .hint(format!("Perhaps you meant the option \"{nearest}\".")),
        None => error.hint(valid),
    }
}

/// Names of the given options that name a file of the server's machine.
pub fn files(options: &Options) -> impl Iterator<Item = &'static str> {
    of_form(options, |form| form == Form::File)
}

/// Names of the given options that hold a secret.
pub fn secrets(options: &Options) -> impl Iterator<Item = &'static str> {
    of_form(options, |form| {
        matches!(form, Form::Secret | Form::Seed | Form::Credentials)
    })
}

fn of_form(options: &Options, wanted: impl Fn(Form) -> bool) -> impl Iterator<Item = &'static str> {
    options
        .keys()
        .filter_map(|name| find(name))
        .filter(move |option| wanted(option.form))
        .map(|option| option.name)
}

fn allows(target: OptionsOf, option: &OptionDef) -> bool {
    match target {
        OptionsOf::Server => true,
        OptionsOf::UserMapping => option.credential,
        OptionsOf::Other => false,
    }
}

/// Names that options have in other NATS software, and their names here.
const ELSEWHERE: [(&str, &str); 11] = [
    ("url", "host"),
    ("servers", "host"),
    ("user", "username"),
    ("pass", "password"),
    ("tls", "tls_ca_path"),
    ("cafile", "tls_ca_path"),
    ("jetstream_domain", "domain"),
    ("creds", "credentials_path"),
    ("jwt", "credentials"),
    ("user_credentials", "credentials_path"),
    ("handshake_first", "tls_first"),
];

/// The allowed option that has this name in other NATS software, or else the allowed option with the most similar name;
/// `None` if no name is similar.
fn nearest(target: OptionsOf, name: &str) -> Option<&'static str> {
    const SIMILAR: f64 = 0.75;
    let name = name.to_lowercase();
    let known = ELSEWHERE.iter().find(|(elsewhere, _)| *elsewhere == name);
    if let Some(option) = known.and_then(|(_, here)| find(here))
        && allows(target, option)
    {
        return Some(option.name);
    }
    let similarity = |option: &OptionDef| strsim::jaro_winkler(&name, option.name);
    let candidates = OPTIONS.iter().filter(|option| allows(target, option));
    let scored = candidates
        .map(|option| (similarity(option), option.name))
        .filter(|(score, _)| *score >= SIMILAR);
    scored
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, name)| name)
}

fn contradictions(options: &Options) -> Result<()> {
    let has = |name: &str| options.contains_key(name);
    let refuse =
        |message: &str, detail: &str| Err(Error::new(Kind::ContradictoryOptions, message).detail(detail));
    let insecure = options.get("tls_insecure").and_then(|v| parse_bool(v)) == Some(true);
    if insecure && has("tls_ca_path") {
        return refuse(
            "option \"tls_insecure\" excludes option \"tls_ca_path\"",
            "The one turns the verification off for which the other gives the certificate.",
        );
    }
    for (one, other) in [
        ("tls_cert_path", "tls_key_path"),
        ("tls_key_path", "tls_cert_path"),
    ] {
        if has(one) && !has(other) {
            let message = format!("option \"{one}\" needs option \"{other}\"");
            return refuse(&message, "Mutual TLS takes a certificate and its key.");
        }
    }
    if has("tls_cert_path") && !insecure && !has("tls_ca_path") {
        return refuse(
            "option \"tls_cert_path\" needs option \"tls_ca_path\" or \"tls_insecure\"",
            "TLS takes the CA certificate that verifies the server's, unless verification is turned off.",
        );
    }
    Ok(())
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

    #[test]
    fn unknown_names_get_the_nearest_valid_one() {
        let hint = |target, name: &str| {
            let error = validate(target, &options(&[(name, "x")])).expect_err(name);
            assert_eq!(error.kind, Kind::UnknownOption, "{name}");
            error.hint.expect(name)
        };
        for (name, nearest) in [
            ("prot", "port"),
            ("hosts", "host"),
            ("user", "username"),
            ("tls_ca", "tls_ca_path"),
        ] {
            assert!(
                hint(OptionsOf::Server, name).contains(&format!("\"{nearest}\"")),
                "{name}"
            );
        }
        assert!(hint(OptionsOf::Server, "zzzzzzzzzzzz").starts_with("Valid options"));
        assert!(!hint(OptionsOf::UserMapping, "host").contains("\"host\""));
        assert_eq!(
            hint(OptionsOf::Other, "host"),
            "There are no valid options in this context."
        );
    }

    #[test]
    fn contradictions_are_found() {
        let ca = ("tls_ca_path", "/ca");
        let (cert, key, insecure) = (
            ("tls_cert_path", "/c"),
            ("tls_key_path", "/k"),
            ("tls_insecure", "on"),
        );
        for bad in [&[insecure, ca][..], &[cert, ca], &[key, ca], &[cert, key]] {
            let error = validate(OptionsOf::Server, &options(bad)).expect_err("contradiction");
            assert_eq!(error.kind, Kind::ContradictoryOptions, "{bad:?}");
        }
        for good in [
            &[ca][..],
            &[ca, cert, key],
            &[insecure, cert, key],
            &[("tls_insecure", "false"), ca],
        ] {
            assert_eq!(validate(OptionsOf::Server, &options(good)), Ok(()), "{good:?}");
        }
    }
}
