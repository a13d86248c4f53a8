//! The validator of the foreign-data wrapper, called by CREATE and ALTER of servers and user mappings. Runs in
//! backends, on the main thread.

use crate::error::{Error, Kind, Result};
use crate::pg::fmgr::{Call, Value, sql_function};
use crate::pg::foreign_servers::Catalogue;
use crate::pg::report::Level;
use crate::pg::{foreign_servers, report, rights};
use crate::settings::Options;
use crate::settings::validate::{OptionsOf, files, secrets, validate};

sql_function!(litmus_pgnats_fdw_validator, check);

fn check(call: &Call<'_>) -> Result<Value> {
    let target = match foreign_servers::catalogue(call.oid(1).unwrap_or(0)) {
        Catalogue::Server => OptionsOf::Server,
        Catalogue::UserMapping => OptionsOf::UserMapping,
        Catalogue::Other => OptionsOf::Other,
    };
    // PostgreSQL passes each option as name=value.
    let split = |option: String| {
        option
            .split_once('=')
            .map(|(name, value)| (name.to_string(), value.to_string()))
    };
    let given = call.text_array(0)?.unwrap_or_default();
    let options: Options = given.into_iter().filter_map(split).collect();
    validate(target, &options)?;
    check_files(&options)?;
    if target == OptionsOf::Server {
        warn_of_secrets(&options);
    }
    Ok(Value::Void)
}

/// Refuses options that name files, unless the role may read the server's files: whoever has the server process read a
/// file may learn what is in it.
fn check_files(options: &Options) -> Result<()> {
    match files(options).next() {
        Some(option) if !rights::may_read_server_files() => Err(Error::new(
            Kind::FileOptionDenied,
            format!("permission denied to set option \"{option}\""),
        )
        .detail("The option names a file that the server process reads.")),
        _ => Ok(()),
    }
}

fn warn_of_secrets(options: &Options) {
    let given: Vec<String> = secrets(options).map(|name| format!("\"{name}\"")).collect();
    if !given.is_empty() {
        report::message(
            Level::Warning,
            &format!(
                "option {} of a foreign server can be read by every user of the database",
                given.join(" and ")
            ),
            "The options of foreign servers are in the catalogue pg_foreign_server, which everybody may read.",
            "Give the secret in a user mapping, or name a file that holds it.",
        );
    }
}
