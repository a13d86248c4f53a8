//! litmus_pgnats joins PostgreSQL and NATS.
//!
//! Three layers, from the outside in; `docs/design.md` has the reasons:
//!
//! - `sql`: the SQL surface, in backends; thin, blocking, without threads;
//! - `channel`: the control channel, a Unix socket between backends and the runtime worker;
//! - `actors`: the actor system in the runtime worker, which owns every NATS connection.
//!
//! `bgw` has the background workers, among them the runtime worker around the actors; `pg` has PostgreSQL's C API
//! behind safe functions. `error`, `findings`, `flood`, `nats`, `patroni`, `row`, `server_role` and `settings` are pure
//! and used by all. Without one of the features pg15 to pg18 only the pure layers are built.
//!
//! This file connects PostgreSQL's hooks to `sql`; `_PG_init` runs in each process that loads the library, on its main
//! thread.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::unreachable,
        clippy::todo
    )
)]
#![warn(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

pub mod actors;
// The pure part of `bgw` is tested without PostgreSQL.
#[cfg(any(feature = "pg", test))]
mod bgw;
pub mod channel;
pub mod error;
pub mod findings;
pub mod flood;
pub mod nats;
pub mod patroni;
#[cfg(feature = "pg")]
mod pg;
pub mod row;
pub mod server_role;
pub mod settings;
#[cfg(feature = "pg")]
mod sql;

#[cfg(feature = "pg")]
::pgrx::pg_module_magic!();

/// Called by PostgreSQL when it loads the library: in the postmaster if preloaded, otherwise in a backend.
#[cfg(feature = "pg")]
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    sql::parameters::define();
    pg::foreign_servers::watch_changes();
    pg::executor::install(pg::executor::Reactions {
        busy: sql::session::is_busy,
        run_ended: sql::transaction_end::flush,
        run_failed: sql::transaction_end::flush_now,
        mark: sql::on_commit::mark,
        roll_back_to: sql::on_commit::roll_back_to,
        before_commit: || {
            sql::changes::before_commit()?;
            sql::reload::before_commit()?;
            sql::outbox::before_commit()?;
            sql::on_commit::before_commit()
        },
        before_prepare: || {
            sql::on_commit::before_prepare()?;
            sql::outbox::before_prepare()?;
            sql::reload::before_prepare()?;
            sql::changes::before_prepare()
        },
        committed: || {
            sql::reload::committed();
            sql::changes::committed();
            // After `changes`, so that handlers which the transaction has registered receive the messages which it has
            // published.
            sql::on_commit::committed();
            sql::outbox::committed();
            sql::transaction_end::leave_private();
        },
        aborted: || {
            sql::transaction_end::give_up();
            sql::on_commit::aborted();
            sql::outbox::aborted();
            sql::reload::aborted();
            sql::changes::aborted();
            sql::transaction_end::leave_private();
        },
    });
    pg::utility::install(sql::exclusive_databases::about_to, sql::exclusive_databases::done);
    pg::runtime_worker::register();
}
