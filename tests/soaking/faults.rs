//! What is broken, at random and one after another: processes, the way to NATS, NATS itself, secrets.

use std::time::{Duration, Instant};

use super::board::Board;
use super::ddl;
use super::random::Random;
use super::world::{PATIENCE, World};
use crate::handlers::EXECUTOR;
use crate::outgoing::OUTBOX_RELAY;
use crate::scene::*;
use crate::support::*;

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    KillNats,
    CutConnections,
    Stall,
    TerminateExecutor,
    TerminateOutboxRelay,
    TerminateSession,
    CancelSession,
    CancelExecutor,
    RotateSecret,
    ServerOptions,
    Parameters,
    Ddl,
    /// From here on the runtime worker ends too.
    TerminateRuntime,
    KillChild,
    RestartPostgres,
}

/// The faults that the runtime worker survives: what it leaks adds up.
pub const AROUND_THE_RUNTIME: &[(u64, Fault)] = &[
    (6, Fault::KillNats),
    (8, Fault::CutConnections),
    (5, Fault::Stall),
    (6, Fault::TerminateExecutor),
    (5, Fault::TerminateOutboxRelay),
    (6, Fault::TerminateSession),
    (6, Fault::CancelSession),
    (4, Fault::CancelExecutor),
    (5, Fault::RotateSecret),
    (6, Fault::ServerOptions),
    (5, Fault::Parameters),
    (12, Fault::Ddl),
];

/// All of them.
pub const EVERYWHERE: &[(u64, Fault)] = &[
    (6, Fault::KillNats),
    (6, Fault::CutConnections),
    (4, Fault::Stall),
    (5, Fault::TerminateExecutor),
    (4, Fault::TerminateOutboxRelay),
    (5, Fault::TerminateSession),
    (5, Fault::CancelSession),
    (3, Fault::CancelExecutor),
    (4, Fault::RotateSecret),
    (4, Fault::ServerOptions),
    (4, Fault::Parameters),
    (10, Fault::Ddl),
    (7, Fault::TerminateRuntime),
    (2, Fault::KillChild),
    (2, Fault::RestartPostgres),
];

/// Breaks something every one or two seconds until then.
pub async fn storm(
    world: &mut World,
    random: &mut Random,
    board: &Board,
    faults: &[(u64, Fault)],
    until: Instant,
) {
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(1000 + random.below(1000))).await;
        let fault = random.weighted(faults);
        apply(world, random, board, fault).await;
    }
}

async fn apply(world: &mut World, random: &mut Random, board: &Board, fault: Fault) {
    let name = match fault {
        Fault::KillNats => {
            world.nats.kill9();
            tokio::time::sleep(Duration::from_millis(random.below(1500))).await;
            world.nats.restart().await;
            "nats-server killed"
        }
        Fault::CutConnections => {
            world.proxy.cut();
            "connections cut"
        }
        Fault::Stall => {
            world.proxy.stall(Duration::from_secs(1)).await;
            "connections stalled"
        }
        Fault::TerminateExecutor => end(world, "pg_terminate_backend", EXECUTOR).await,
        Fault::TerminateOutboxRelay => end(world, "pg_terminate_backend", OUTBOX_RELAY).await,
        Fault::TerminateSession => end(world, "pg_terminate_backend", SESSION).await,
        Fault::TerminateRuntime => end(world, "pg_terminate_backend", RUNTIME).await,
        Fault::CancelSession => end(world, "pg_cancel_backend", SESSION).await,
        Fault::CancelExecutor => end(world, "pg_cancel_backend", EXECUTOR).await,
        Fault::RotateSecret => rotate(world, random).await,
        Fault::ServerOptions => server_options(world, random).await,
        Fault::Parameters => parameters(world, random).await,
        Fault::Ddl => ddl::apply(world, random, board).await,
        Fault::KillChild => {
            kill_child(world, random).await;
            KILLED
        }
        Fault::RestartPostgres => {
            world.pg.restart(Stop::Fast).await;
            "PostgreSQL restarted"
        }
    };
    board.fault(name);
}

/// What the fault is called after which PostgreSQL ends all its processes.
pub const KILLED: &str = "process of PostgreSQL killed";
const SESSION: &str = "client backend";

/// Ends, or cancels, one of these processes.
async fn end(world: &World, how: &str, kind: &str) -> &'static str {
    let admin = world.admin("postgres").await;
    let sql = format!(
        "SELECT {how}(pid) FROM (SELECT pid FROM pg_stat_activity WHERE backend_type = '{kind}'
           AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1) p"
    );
    let ended = admin.query(&sql, &[]).await;
    let ended = ended.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    match (ended.is_empty(), how, kind) {
        (true, ..) => "nothing to end",
        (_, "pg_cancel_backend", SESSION) => "session cancelled",
        (_, "pg_cancel_backend", _) => "executor cancelled",
        (_, _, SESSION) => "session terminated",
        (_, _, EXECUTOR) => "executor terminated",
        (_, _, OUTBOX_RELAY) => "outbox relay terminated",
        _ => "runtime worker terminated",
    }
}

/// SIGKILL, upon which the postmaster ends all others and recovers.
async fn kill_child(world: &World, random: &mut Random) {
    let kind = random.pick(&[RUNTIME, EXECUTOR, SESSION, OUTBOX_RELAY]);
    let Some(pid) = world.pg.worker_pid(kind).await else {
        return;
    };
    let Some(process) = proc::Process::find(pid) else {
        return;
    };
    process.signal(libc::SIGKILL);
    // Sessions are let in until the postmaster has noticed.
    eventually(PATIENCE, async || !process.alive()).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    world.admin("postgres").await;
}

/// The secret changes in the file and in NATS, in either order; NATS takes it up with a reload or a restart.
async fn rotate(world: &mut World, random: &mut Random) -> &'static str {
    world.rotations += 1;
    let file_first = random.one_in(2);
    if file_first {
        world.write_secret();
    }
    let config = world.config();
    if random.one_in(2) {
        world.nats.reload(config).await;
    } else {
        world.nats.restart_with(config).await;
    }
    if !file_first {
        tokio::time::sleep(Duration::from_millis(random.below(500))).await;
        world.write_secret();
    }
    "secret changed"
}

/// Options of the foreign server change, and a reload takes them up, or fails because of the fault before.
async fn server_options(world: &World, random: &mut Random) -> &'static str {
    let change = random.pick(&[
        "SET capacity '1500'",
        "SET capacity '1000'",
        "ADD responder_timeout_ms '3000'",
        "DROP responder_timeout_ms",
        "SET host '127.0.0.1,localhost'",
        "SET host '127.0.0.1'",
        "ADD domain 'soak'",
        "DROP domain",
        "ADD notify_subject 'role.news'",
        "DROP notify_subject",
    ]);
    let admin = world.admin(random.pick(&["postgres", "sink"])).await;
    // Some are refused, as when what they add is there.
    let alter = format!("ALTER SERVER nats OPTIONS ({change})");
    if random.one_in(2) {
        // Calls of the transaction use the options already, on a connection of its own.
        let end = random.pick(&["COMMIT", "ROLLBACK"]);
        let sql = format!("BEGIN; {alter}; SELECT nats_publish_text('private', '1'); {end}");
        if admin.batch_execute(&sql).await.is_err() {
            let _ = admin.batch_execute("ROLLBACK").await;
        }
    } else {
        let _ = admin.batch_execute(&alter).await;
    }
    let _ = admin.batch_execute("SELECT litmus_pgnats_reload_conf()").await;
    "options changed"
}

/// Parameters change, with a reload.
async fn parameters(world: &World, random: &mut Random) -> &'static str {
    let (name, value) = random.pick(&[
        ("queue_messages", "100000"),
        ("queue_messages", "524288"),
        ("queue_size", "'16MB'"),
        ("queue_size", "'64MB'"),
        ("max_executors", "2"),
        ("max_executors", "6"),
        ("log_level", "debug"),
        ("log_level", "info"),
        ("executor_idle_timeout", "'1s'"),
        ("executor_idle_timeout", "'5s'"),
        ("outbox_retry_time", "'5min'"),
    ]);
    let admin = world.admin("postgres").await;
    run(
        &admin,
        &format!("ALTER SYSTEM SET litmus_pgnats.{name} = {value}"),
    )
    .await;
    run(&admin, "SELECT pg_reload_conf()").await;
    "parameters changed"
}

/// Everything is as it was in the beginning.
pub async fn calm(world: &World) {
    let admin = world.admin("postgres").await;
    run(&admin, "ALTER SYSTEM RESET ALL").await;
    run(&admin, "SELECT pg_reload_conf()").await;
    run(&admin, "DROP USER MAPPING IF EXISTS FOR guest SERVER nats").await;
    for database in ["postgres", "sink"] {
        let admin = world.admin(database).await;
        for change in [
            "SET capacity '1000'",
            "SET host '127.0.0.1'",
            "DROP responder_timeout_ms",
            "DROP notify_subject",
            "DROP domain",
        ] {
            let _ = admin
                .batch_execute(&format!("ALTER SERVER nats OPTIONS ({change})"))
                .await;
        }
        eventually(PATIENCE, async || {
            admin.batch_execute("SELECT litmus_pgnats_reload_conf()").await
        })
        .await;
    }
}
