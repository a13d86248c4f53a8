//! What there is of processes, memory, files and connections, compared with what there was in the beginning.

use std::collections::BTreeSet;
use std::time::Duration;

use super::board::Board;
use super::caller::Caller;
use super::settle::holds;
use super::world::World;
use crate::handlers::{EXECUTOR, texts};
use crate::outgoing::OUTBOX_RELAY;
use crate::scene::*;
use crate::support::*;

/// What a process may grow by.
const GROWTH: i64 = 10 << 20;
/// By then the runtime worker has given back what it has freed.
const GIVEN_BACK: Duration = Duration::from_secs(12);
/// Open files of the runtime worker that come and go.
const FILES: usize = 4;

/// Memory that is a process's own; the largest, where there are several.
pub struct Census {
    pub name: &'static str,
    pub runtime_pid: i32,
    bytes: Vec<(&'static str, u64)>,
    /// Open files of the runtime worker.
    files: usize,
}

impl Census {
    /// Looks while the sessions are there and do nothing.
    pub async fn take(world: &World, name: &'static str, callers: &[Caller]) -> Self {
        let runtime_pid = eventually(SOON, async || world.pg.worker_pid(RUNTIME).await).await;
        let executors = largest(&world.pg.worker_pids(EXECUTOR).await);
        let relays = largest(&world.pg.worker_pids(OUTBOX_RELAY).await);
        let sessions = callers.iter().filter_map(Caller::bytes).max().unwrap_or_default();
        tokio::time::sleep(GIVEN_BACK).await;
        Self {
            name,
            runtime_pid,
            bytes: vec![
                ("postmaster", proc::private_bytes(world.pg.postmaster_pid())),
                ("runtime worker", proc::private_bytes(runtime_pid)),
                ("executors", executors),
                ("outbox relays", relays),
                ("sessions", sessions),
            ],
            files: proc::open_files(runtime_pid),
        }
    }

    /// Finds what has grown since an earlier one.
    pub fn compare(&self, before: &Self, board: &Board) {
        let same = if self.runtime_pid == before.runtime_pid {
            "the same"
        } else {
            "another"
        };
        println!(
            "--- {} against {} ({same} runtime worker)",
            self.name, before.name
        );
        for ((kind, bytes), (_, first)) in self.bytes.iter().zip(&before.bytes) {
            let growth = bytes.cast_signed() - first.cast_signed();
            println!("{kind:<16} {:>9} KB, was {:>9} KB", bytes / 1024, first / 1024);
            // An outbox relay leaves when it has nothing to do.
            if growth > GROWTH && *first > 0 {
                board.finding(format!("{kind}: {growth} bytes more than in the {}", before.name));
            }
        }
        println!("{:<16} {:>9}, were {:>9}", "open files", self.files, before.files);
        if self.files > before.files + FILES {
            board.finding(format!(
                "the runtime worker has {} open files, {} before",
                self.files, before.files
            ));
        }
    }
}

fn largest(pids: &[i32]) -> u64 {
    let bytes = pids.iter().filter_map(|&pid| proc::try_private_bytes(pid));
    bytes.max().unwrap_or_default()
}

/// Sessions that have lived through a phase have not grown.
pub fn sessions_grew(callers: &[Caller], board: &Board) {
    let growths: Vec<(usize, i64)> = callers
        .iter()
        .filter_map(|caller| Some((caller.who, caller.growth()?)))
        .collect();
    let most = growths
        .iter()
        .map(|(_, growth)| *growth)
        .max()
        .unwrap_or_default();
    println!(
        "{} sessions lived long enough to be compared; the most that one has grown by is {} KB",
        growths.len(),
        most / 1024
    );
    for (who, growth) in growths.iter().filter(|(_, growth)| *growth > GROWTH) {
        board.finding(format!("session {who} has grown by {growth} bytes"));
    }
}

/// Without sessions: the processes of the extension are those that the server and the views know, NATS has the expected
/// connections, and the data directory the expected files.
pub async fn orphans(world: &World, board: &Board) {
    let admin = world.admin("postgres").await;
    holds(board, "no process too many", async || {
        let runtimes = world.pg.worker_pids(RUNTIME).await;
        let executors = world.pg.worker_pids(EXECUTOR).await;
        let relays = world.pg.worker_pids(OUTBOX_RELAY).await;
        let places =
            "SELECT datname FROM pg_stat_activity WHERE backend_type = 'litmus_pgnats executor' ORDER BY 1";
        let places = texts(&admin, places).await;
        let viewed = "SELECT pid::text FROM litmus_pgnats.executors WHERE pid IS NOT NULL";
        let viewed: BTreeSet<String> = texts(&admin, viewed).await.into_iter().collect();
        let known: BTreeSet<i32> = runtimes
            .iter()
            .chain(&executors)
            .chain(&relays)
            .copied()
            .collect();
        let titled: BTreeSet<i32> = proc::children(world.pg.postmaster_pid())
            .into_iter()
            .filter(|&pid| proc::command_line(pid).contains("litmus_pgnats"))
            .collect();
        let right = runtimes.len() == 1
            && places == ["postgres", "sink"]
            && relays.is_empty()
            && viewed == executors.iter().map(i32::to_string).collect()
            && titled == known;
        if right {
            Ok(())
        } else {
            Err((runtimes, places, relays, viewed, titled))
        }
    })
    .await;
    holds(board, "no connection too many", async || {
        let found = connections(world).await;
        if found == ["soak postgres/nats", "soak sink/nats"] {
            Ok(())
        } else {
            Err(found)
        }
    })
    .await;
    holds(board, "no file too many", async || {
        let entries = std::fs::read_dir(world.pg.data_dir().join("pg_stat_tmp")).expect("list pg_stat_tmp");
        let names = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned());
        let names: BTreeSet<String> = names.collect();
        let known = [
            "litmus_pgnats.sock",
            "litmus_pgnats.lock",
            "litmus_pgnats.notified",
        ];
        if names.iter().all(|name| known.contains(&name.as_str())) {
            Ok(())
        } else {
            Err(names)
        }
    })
    .await;
    let files = proc::open_files(world.pg.worker_pid(RUNTIME).await.unwrap_or_default());
    println!("open files of the runtime worker at rest: {files}");
}

/// User, database and foreign server of each connection that NATS has of the extension.
async fn connections(world: &World) -> Vec<String> {
    let connz = world.nats.monitor("/connz?auth=1&limit=1000").await;
    let all = connz["connections"].as_array().cloned().unwrap_or_default();
    let mut found: Vec<String> = all
        .iter()
        .filter_map(|connection| {
            let name = connection["name"].as_str()?.strip_prefix("litmus_pgnats/")?;
            let (_, place) = name.split_once('/')?;
            Some(format!("{} {place}", connection["authorized_user"].as_str()?))
        })
        .collect();
    found.sort();
    found
}
