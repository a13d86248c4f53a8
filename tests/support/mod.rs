//! What the integration tests stand on: real servers, private to one test, gone when the test ends.
//!
//! A test file says `mod support;` and then usually
//!
//! ```ignore
//! let nats = NatsServer::start().await;
//! let pg = Postgres::start().await;
//! let session = pg.connect().await;
//! ```
//!
//! | file          | concept                                                                     |
//! | ------------- | --------------------------------------------------------------------------- |
//! | `place.rs`    | where programs and directories are, which user servers run as               |
//! | `ports.rs`    | free TCP ports, not handed out twice between parallel tests                 |
//! | `proc.rs`     | looking at processes through /proc, sending signals                         |
//! | `daemon.rs`   | a child process with a log, which never outlives its test                   |
//! | `wait.rs`     | `eventually`: poll until something holds                                    |
//! | `cluster.rs`  | a data directory: initdb once, then copies; base backups for standbys       |
//! | `postgres.rs` | `Postgres`: a running PostgreSQL, and its standby                           |
//! | `session.rs`  | `Session`: a client connection that keeps its notices; reading errors       |
//! | `psql.rs`     | the real psql program                                                       |
//! | `nats.rs`     | `NatsServer`: a running nats-server                                         |
//! | `nats_config.rs` | what a nats-server is started with: users, TLS, JetStream                |
//! | `natspy.rs`   | nats-py, a client that shares no code with the extension's                   |
//! | `certs.rs`    | `Certs`: a CA with a server's and a client's certificate                    |
//! | `wire.rs`     | `WireStub`: a listener that records what a NATS client says                 |
//! | `core_nats.rs` | `CoreNats`: a broker without headers and JetStream                         |
//!
//! Environment: `PG_CONFIG` (default `<state>/pg${PG:-15}/bin/pg_config`), `NATS_SERVER` (default
//! `<state>/nats/bin/nats-server`), `NATS_PY` (default `<state>/natspy`), `PROMETHEUS` (default `<state>/prometheus`),
//! `LITMUS_PGNATS_STATE` for `<state>` (default `target/state`). With `LITMUS_PGNATS_KEEP` the directories of a failing
//! test stay. When the tests run as root, the servers run as user postgres.

#![allow(
    dead_code,
    unused_imports,
    reason = "every test file compiles this module anew and uses its own part of it"
)]

mod certs;
mod cluster;
mod core_nats;
mod daemon;
mod nats;
mod nats_config;
mod natspy;
mod place;
mod ports;
mod postgres;
pub mod proc;
mod psql;
mod session;
mod wait;
mod wire;
pub mod world;

pub use certs::Certs;
pub use core_nats::CoreNats;
pub use daemon::Daemon;
pub use nats::{NatsServer, round_trip};
pub use nats_config::NatsConfig;
pub use place::{WorkDir, as_server_user, bindir, give_to_server, major, pg_config, state};
pub use ports::Port;
pub use postgres::{Postgres, PostgresBuilder, Stop};
pub use psql::PsqlOutput;
pub use session::{Report, Session, db_error, sqlstate};
pub use wait::{Seen, eventually, eventually_eq};
pub use wire::WireStub;
