//! The configuration parameters. Runs in every process that loads the library, on the main thread.

use std::ffi::CString;
use std::time::Duration;

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};

static SERVER: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
static CONNECT_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(5000);
static JETSTREAM_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(5000);
static BUSY_POLL: GucSetting<i32> = GucSetting::<i32>::new(200);
pub static MAX_EXECUTORS: GucSetting<i32> = GucSetting::<i32>::new(4);
pub static EXECUTOR_IDLE_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(60_000);
pub static QUEUE_MESSAGES: GucSetting<i32> = GucSetting::<i32>::new(512 * 1024);
pub static QUEUE_SIZE: GucSetting<i32> = GucSetting::<i32>::new(64 * 1024);
pub static RUNTIME_MEMORY_LIMIT: GucSetting<i32> = GucSetting::<i32>::new(2048);
pub static TOTAL_QUEUE_SIZE: GucSetting<i32> = GucSetting::<i32>::new(256 * 1024);
static MAX_HANDLERS: GucSetting<i32> = GucSetting::<i32>::new(1000);
pub static CALLBACK_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(0);
pub static OUTBOX_RETRY_TIME: GucSetting<i32> = GucSetting::<i32>::new(60_000);
static DEAD_LETTER_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(0);
pub static PATRONI_FENCING: GucSetting<bool> = GucSetting::<bool>::new(false);
static LOG_LEVEL: GucSetting<LogLevel> = GucSetting::<LogLevel>::new(LogLevel::Info);

static PUBLISH: GucSetting<PublishMode> = GucSetting::<PublishMode>::new(PublishMode::Immediate);
static ON_COMMIT_SIZE: GucSetting<i32> = GucSetting::<i32>::new(16 * 1024);

/// When `nats_publish_*` sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub enum PublishMode {
    #[name = c"immediate"]
    Immediate,
    #[name = c"on_commit"]
    OnCommit,
}

/// Which messages of the extension's workers reach the server log.
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
        c"Applies only while no other call is in flight. Polling saves the wake-up of an idle CPU; 0 turns it off.",
        &BUSY_POLL,
        0,
        10_000,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"litmus_pgnats.publish",
        c"Sets whether nats_publish_* sends at once or when the transaction commits.",
        c"What a rolled back transaction or savepoint has published on_commit is never sent.",
        &PUBLISH,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"litmus_pgnats.on_commit_size",
        c"Sets how much memory messages that wait for the commit of a transaction may take.",
        c"",
        &ON_COMMIT_SIZE,
        64,
        1024 * 1024,
        GucContext::Suset,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"litmus_pgnats.outbox_retry_time",
        c"Sets for how long a message of the outbox that JetStream refuses is tried again.",
        c"Then it goes to the dead letters. -1 tries for ever; time without a connection does not count.",
        &OUTBOX_RETRY_TIME,
        -1,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"litmus_pgnats.dead_letter_retention",
        c"Sets how long dead letters are kept; 0 keeps them until they are purged.",
        c"Older ones are removed when new ones are written.",
        &DEAD_LETTER_RETENTION,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_enum_guc(
        c"litmus_pgnats.log_level",
        c"Sets which messages of the workers are written to the server log.",
        c"",
        &LOG_LEVEL,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"litmus_pgnats.max_executors",
        c"Sets the maximum number of executors of a database, which run the functions of subscriptions and responders.",
        c"Each takes a slot of max_worker_processes.",
        &MAX_EXECUTORS,
        1,
        64,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"litmus_pgnats.executor_idle_timeout",
        c"Sets after how long an idle executor or outbox relay ends.",
        c"A database with subscriptions or responders keeps one.",
        &EXECUTOR_IDLE_TIMEOUT,
        100,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"litmus_pgnats.queue_messages",
        c"Sets how many messages may wait for each subscription or responder.",
        c"",
        &QUEUE_MESSAGES,
        1,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"litmus_pgnats.queue_size",
        c"Sets how much memory messages that wait for one subscription or responder may take.",
        c"",
        &QUEUE_SIZE,
        64,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"litmus_pgnats.total_queue_size",
        c"Sets how much memory messages that wait for all subscriptions and responders together may take.",
        c"When it is full, each may still use its equal share.",
        &TOTAL_QUEUE_SIZE,
        64,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"litmus_pgnats.runtime_memory_limit",
        c"Sets how much memory the runtime worker may take; 0 sets no limit.",
        c"A worker that would take more ends, and is started again. Memory that processes share does not count.",
        &RUNTIME_MEMORY_LIMIT,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MB,
    );
    GucRegistry::define_int_guc(
        c"litmus_pgnats.max_handlers",
        c"Sets how many subscriptions and responders a role may have in a database.",
        c"",
        &MAX_HANDLERS,
        1,
        100_000,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"litmus_pgnats.callback_timeout",
        c"Sets the longest time that the function of a subscription may take for a message.",
        c"Holds also where the role has no statement_timeout, or a longer one; 0 turns it off.",
        &CALLBACK_TIMEOUT,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_bool_guc(
        c"litmus_pgnats.patroni_fencing",
        c"Pauses subscriptions and responders of a primary that does not hold Patroni's leader lock.",
        c"Needs the option patroni_url of a foreign server.",
        &PATRONI_FENCING,
        GucContext::Sighup,
        GucFlags::default(),
    );
    crate::pg::worker::reserve_parameters(c"litmus_pgnats");
}

/// `litmus_pgnats.server`; `None` if it is not set.
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

/// Whether `litmus_pgnats.publish` is `on_commit`.
pub fn publishes_on_commit() -> bool {
    PUBLISH.get() == PublishMode::OnCommit
}

/// `litmus_pgnats.on_commit_size`, in bytes.
pub fn on_commit_size() -> usize {
    usize::try_from(ON_COMMIT_SIZE.get())
        .unwrap_or(0)
        .saturating_mul(1024)
}

/// `litmus_pgnats.dead_letter_retention`; `None` if dead letters are kept until they are purged.
pub fn dead_letter_retention() -> Option<Duration> {
    let time = u64::try_from(DEAD_LETTER_RETENTION.get()).unwrap_or(0);
    (time > 0).then(|| Duration::from_secs(time))
}

/// `litmus_pgnats.max_handlers`.
pub fn max_handlers() -> usize {
    usize::try_from(MAX_HANDLERS.get()).unwrap_or(0)
}

/// `litmus_pgnats.callback_timeout`; `None` if it is off.
pub fn callback_timeout() -> Option<Duration> {
    let limit = u64::try_from(CALLBACK_TIMEOUT.get()).unwrap_or(0);
    (limit > 0).then(|| Duration::from_millis(limit))
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
