//! What somebody may give as options of a server and of a user mapping.
//!
//! An input is options with the byte 0xFF between them, which is in no text: a byte that chooses the option and its
//! object, and the value.

#![no_main]

use libfuzzer_sys::fuzz_target;
use litmus_pgnats::error::Kind;
use litmus_pgnats::settings::options::{Form, OPTIONS, find, is_valid, parse_hosts};
use litmus_pgnats::settings::validate::{OptionsOf, validate};
use litmus_pgnats::settings::{Options, Settings};

fuzz_target!(|input: &[u8]| {
    let (mut server, mut mapping) = (Options::new(), Options::new());
    for option in input.split(|byte| *byte == 0xFF) {
        let Some((choice, value)) = option.split_first() else {
            continue;
        };
        let value = String::from_utf8_lossy(value);
        let (object, choice) = match choice.checked_sub(128) {
            Some(choice) => (&mut mapping, choice),
            None => (&mut server, *choice),
        };
        match OPTIONS.get(usize::from(choice) % (OPTIONS.len() + 1)) {
            Some(option) => object.insert(option.name.into(), value.into()),
            // PostgreSQL makes no longer names.
            None if value.len() < 64 => object.insert(value.into(), String::new()),
            None => None,
        };
    }
    let (hidden_server, hidden_mapping) = (hide_secrets(&server), hide_secrets(&mapping));
    let answers = answers(&server, &mapping);
    if (&server, &mapping) != (&hidden_server, &hidden_mapping) {
        let hidden = self::answers(&hidden_server, &hidden_mapping);
        assert_eq!(answers, hidden, "a secret makes a difference");
    }
});

/// All that is said of these options, in full.
fn answers(server: &Options, mapping: &Options) -> String {
    let valid = [
        validate(OptionsOf::Server, server),
        validate(OptionsOf::UserMapping, mapping),
    ];
    let resolved = Settings::resolve(server, Some(mapping));
    if valid.iter().all(Result::is_ok) {
        match &resolved {
            Ok(settings) => {
                for host in &settings.hosts {
                    assert_eq!(parse_hosts(&host.to_string(), 1), Ok(vec![host.clone()]));
                }
            }
            Err(error) => assert_eq!(error.kind, Kind::IncompleteCredential),
        }
    }
    let others = [
        validate(OptionsOf::Server, mapping),
        validate(OptionsOf::UserMapping, server),
        validate(OptionsOf::Other, server),
    ];
    format!("{valid:?} {resolved:?} {others:?}")
}

/// With another value in place of each secret, as long and as valid, so that nothing but its content differs.
fn hide_secrets(options: &Options) -> Options {
    let hide = |name: &str, value: &str| match find(name).map(|option| option.form) {
        Some(Form::Seed) if is_valid(Form::Seed, value) => value.into(),
        Some(Form::Seed | Form::Secret) => "x".repeat(value.len()),
        _ => value.into(),
    };
    let hidden = options
        .iter()
        .map(|(name, value)| (name.clone(), hide(name, value)));
    hidden.collect()
}
