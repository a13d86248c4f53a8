//! Configuration parameters.

use std::ffi::CString;
use std::time::Duration;

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};

static SERVER: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
static CONNECT_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(5000);
static JETSTREAM_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(5000);
static BUSY_POLL: GucSetting<i32> = GucSetting::<i32>::new(200);
static LOG_LEVEL: GucSetting<LogLevel> = GucSetting::<LogLevel>::new(LogLevel::Info);

/// Which records of the runtime worker reach the server log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub enum LogLevel {
    #[name = c"error"]
    Error,
    #[name = c"warning"]
    Warning,
    #[name = c"info"]
    Info,
    #[name = c"debug"]
    Debug,
}

/// Defines the parameters; called once, when the library is loaded.
pub fn define() {
    GucRegistry::define_string_guc(
        c"litmus_pgnats.server",
        c"Names the foreign server that the NATS functions use.",
        c"Needed where a database has several servers of litmus_pgnats_fdw.",
        &SERVER,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"litmus_pgnats.connect_timeout",
        c"Sets how long a call waits for a connection to NATS or for room in its buffer.",
        c"Includes the resolution of names and the start of the runtime worker.",
        &CONNECT_TIMEOUT,
        100,
        5000,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"litmus_pgnats.jetstream_timeout",
        c"Sets how long a call waits for an acknowledgement or an answer of JetStream.",
        c"A call that takes several answers waits so long for each.",
        &JETSTREAM_TIMEOUT,
        100,
        600_000,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"litmus_pgnats.busy_poll_us",
        c"Sets for how many microseconds a waiting session polls for a reply before it sleeps.",
        c"Applies only while few calls are in flight. Polling saves the wake-up of an idle CPU; 0 turns it off.",
        &BUSY_POLL,
        0,
        10_000,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"litmus_pgnats.log_level",
        c"Sets which messages of the runtime worker are written to the server log.",
        c"",
        &LOG_LEVEL,
        GucContext::Sighup,
        GucFlags::default(),
    );
    crate::pg::worker::reserve_parameters(c"litmus_pgnats");
}

/// `litmus_pgnats.server`, if it is set.
pub fn server() -> Option<CString> {
    SERVER.get().filter(|name| !name.is_empty())
}

/// `litmus_pgnats.connect_timeout`.
pub fn connect_timeout() -> Duration {
    Duration::from_millis(u64::try_from(CONNECT_TIMEOUT.get()).unwrap_or(0))
}

/// `litmus_pgnats.jetstream_timeout`.
pub fn jetstream_timeout() -> Duration {
    Duration::from_millis(u64::try_from(JETSTREAM_TIMEOUT.get()).unwrap_or(0))
}

/// `litmus_pgnats.busy_poll_us`.
pub fn busy_poll() -> Duration {
    Duration::from_micros(u64::try_from(BUSY_POLL.get()).unwrap_or(0))
}

/// `litmus_pgnats.log_level` in the terms of the `log` crate.
pub fn log_level() -> log::LevelFilter {
    match LOG_LEVEL.get() {
        LogLevel::Error => log::LevelFilter::Error,
        LogLevel::Warning => log::LevelFilter::Warn,
        LogLevel::Info => log::LevelFilter::Info,
        LogLevel::Debug => log::LevelFilter::Debug,
    }
}
