//! Minutes of everything at once: 32 sessions call all functions at random while servers, workers, connections, secrets
//! and the catalogue are broken under them. `make soak MINUTES=10`; SOAK_SEED repeats the choices of a run.

mod handlers;
mod outgoing;
mod scene;
mod soaking;
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use handlers::texts;
use soaking::board::Board;
use soaking::caller::{Caller, Weather};
use soaking::census::{self, Census};
use soaking::faults::{self, AROUND_THE_RUNTIME, EVERYWHERE, Fault};
use soaking::random::Random;
use soaking::settle::{exam, settle};
use soaking::world::World;
use soaking::{counts, server_log};

const SESSIONS: usize = 32;
/// How long everything is used without faults, before each look at memory.
const CALM: Duration = Duration::from_secs(30);

/// A number in the environment.
fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is {text:?}, not a number")),
    )
}

#[tokio::test]
async fn soak() {
    let minutes = setting("SOAK_MINUTES").unwrap_or(10);
    let seed = setting("SOAK_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |now| now.as_secs())
    });
    println!("{minutes} minutes of faults, SOAK_SEED={seed}");
    let half = Duration::from_secs(minutes * 30);
    let calm = CALM.min(half);
    let board = Arc::new(Board::default());
    let mut world = World::start().await;
    let mut callers = callers(&world, seed, &board).await;
    let mut random = Random::new(seed, 0);

    settle(&world, &board).await;
    callers = use_all(callers, &board, calm).await;
    let first = Census::take(&world, "warm-up", &callers).await;
    settle(&world, &board).await;
    exam(&world, &board, 0).await;

    // First the runtime worker is spared, so that what it leaks adds up; then nothing is.
    for (round, faults) in [(1, AROUND_THE_RUNTIME), (2, EVERYWHERE)] {
        callers = storm(&mut world, callers, &mut random, &board, faults, half).await;
        census::sessions_grew(&callers, &board);
        faults::calm(&world).await;
        settle(&world, &board).await;
        callers = use_all(callers, &board, calm).await;
        census::sessions_grew(&callers, &board);
        let name = if round == 1 {
            "calm after the first storm"
        } else {
            "calm after the second storm"
        };
        let census = Census::take(&world, name, &callers).await;
        census.compare(&first, &board);
        if round == 1 && census.runtime_pid != first.runtime_pid {
            board.finding("the runtime worker ended, and nothing had ended it".into());
        }
        settle(&world, &board).await;
        exam(&world, &board, round).await;
    }

    counts::check(&world, &board, &mut callers).await;
    for caller in &mut callers {
        caller.disconnect().await;
    }
    census::orphans(&world, &board).await;
    server_log::check(&world, &board);
    board.table();
    let findings = board.findings();
    assert!(
        findings.is_empty(),
        "SOAK_SEED={seed}: {} findings:\n{}",
        findings.len(),
        findings.join("\n")
    );
    println!("SOAK_SEED={seed}: nothing was found");
}

async fn callers(world: &World, seed: u64, board: &Arc<Board>) -> Vec<Caller> {
    let admin = world.admin("postgres").await;
    let views = "SELECT format('TABLE %I.%I', schemaname, viewname) FROM pg_views \
                 WHERE schemaname = 'litmus_pgnats' ORDER BY viewname";
    let views = Arc::new(texts(&admin, views).await);
    (0..SESSIONS)
        .map(|who| {
            Caller::new(
                who,
                seed,
                world.pg.config(),
                Arc::clone(board),
                Arc::clone(&views),
            )
        })
        .collect()
}

/// Without faults; every error is a finding.
async fn use_all(callers: Vec<Caller>, board: &Arc<Board>, time: Duration) -> Vec<Caller> {
    with_sessions(callers, Weather::Calm, board, tokio::time::sleep(time)).await
}

async fn storm(
    world: &mut World,
    callers: Vec<Caller>,
    random: &mut Random,
    board: &Arc<Board>,
    faults: &[(u64, Fault)],
    time: Duration,
) -> Vec<Caller> {
    let breaking = faults::storm(world, random, board, faults, Instant::now() + time);
    with_sessions(callers, Weather::Storm, board, breaking).await
}

/// Has all sessions make their calls until `work` is done.
async fn with_sessions(
    callers: Vec<Caller>,
    weather: Weather,
    board: &Arc<Board>,
    work: impl Future<Output = ()>,
) -> Vec<Caller> {
    let ended = Arc::<AtomicBool>::default();
    let tasks: Vec<_> = callers
        .into_iter()
        .map(|caller| tokio::spawn(caller.run(weather, Arc::clone(&ended))))
        .collect();
    let name = match weather {
        Weather::Calm => "calm",
        Weather::Storm => "storm",
    };
    let working = async {
        work.await;
        ended.store(true, Ordering::SeqCst);
        let mut callers = Vec::new();
        for task in tasks {
            callers.push(task.await.expect("a session that does not panic"));
        }
        callers
    };
    tokio::select! {
        callers = working => callers,
        () = board.progress(name) => unreachable!("it never ends"),
    }
}
