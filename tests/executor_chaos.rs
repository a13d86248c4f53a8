//! Workers of each kind are killed again and again under load; when it is over everything is healthy.

mod handlers;
mod scene;
mod support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_nats::Client;
use handlers::*;
use scene::*;
use support::proc;
use support::*;

/// How long the killing goes on.
const STORM: Duration = Duration::from_secs(60);

/// Three subscriptions, one of which is slow, and a responder.
async fn busy_scene() -> (Scene, Session) {
    let pg = Postgres::builder().conf("litmus_pgnats.executor_idle_timeout", "1s");
    let (scene, session) = Scene::keeping_with(pg).await;
    run(
        &session,
        "CREATE FUNCTION slow(msg bytea) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(0.05)';
         CREATE FUNCTION answer(q text) RETURNS text LANGUAGE sql AS 'SELECT q'",
    )
    .await;
    subscribe(&session, "load.a", "keep").await;
    subscribe(&session, "load.b", "keep").await;
    subscribe(&session, "slow", "slow").await;
    respond(&session, "rpc", "answer").await;
    (scene, session)
}

/// Messages and requests until told to end; how many requests were answered.
async fn load(client: &Client, ended: &AtomicBool) -> usize {
    let mut answered = 0;
    for n in 0.. {
        if ended.load(Ordering::SeqCst) {
            break;
        }
        for subject in ["load.a", "load.b", "slow"] {
            count_off(client, subject, n..=n + 4).await;
        }
        let request = client.request("rpc", "q".into());
        let reply = tokio::time::timeout(Duration::from_millis(300), request).await;
        answered += usize::from(matches!(reply, Ok(Ok(reply)) if service_error(&reply).is_none()));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    answered
}

/// Every handler works, in order, each once; there is one runtime worker and no executor too many or too old.
async fn healthy(scene: &Scene, what: &str) {
    let began = Instant::now();
    let session = eventually(LONG, async || {
        scene.pg.try_connect_as("postgres", "postgres").await
    })
    .await;
    for subject in ["load.a", "load.b", "slow", "rpc"] {
        until_live(&session, subject).await;
    }
    let mut expected: Vec<String> = ["load.a", "load.b", "rpc", "slow"].map(str::to_owned).to_vec();
    expected.sort();
    eventually_eq(SOON, expected, async || scene.subjects().await).await;
    let client = scene.nats.client().await;
    // What was in the queues is done first.
    for subject in ["load.a", "load.b"] {
        eventually(LONG, async || counts(&session, subject).await.queued == 0).await;
        let probe = format!("{what} {subject}");
        say(&client, subject, &*probe).await;
        let kept = format!("SELECT count(*) FROM got WHERE payload = '{probe}'");
        until_number(&session, 1, &kept).await;
    }
    assert_eq!(reply_text(&ask(&client, "rpc", what).await), what);
    println!("{what}: healthy after {:?}", began.elapsed());
    // No orphans: each process of the extension is one that the server and the runtime know.
    eventually(SOON, async || {
        let runtimes = scene.pg.worker_pids(RUNTIME).await;
        let executors: BTreeSet<i32> = scene.executors().await.into_iter().collect();
        let known = session
            .query(
                "SELECT pid FROM litmus_pgnats.executors WHERE pid IS NOT NULL",
                &[],
            )
            .await
            .expect("the view");
        let known: BTreeSet<i32> = known.iter().map(|row| row.get(0)).collect();
        let titled: BTreeSet<i32> = proc::children(scene.pg.postmaster_pid())
            .into_iter()
            .filter(|&pid| proc::command_line(pid).contains("litmus_pgnats"))
            .collect();
        let all: BTreeSet<i32> = executors.iter().chain(&runtimes).copied().collect();
        let right = runtimes.len() == 1 && executors.len() <= 4 && executors == known && titled == all;
        if right {
            Ok(())
        } else {
            Err((runtimes, executors, known, titled))
        }
    })
    .await;
}

/// SIGTERM, as pg_terminate_backend sends it, for executors and the runtime worker in turns.
#[tokio::test]
async fn sigterm_in_a_loop() {
    let (scene, _session) = busy_scene().await;
    let client = scene.nats.client().await;
    let ended = AtomicBool::new(false);
    let killing = async {
        let watcher = scene.pg.connect().await;
        let (began, mut kills) = (Instant::now(), [0, 0]);
        while began.elapsed() < STORM {
            // Three executors and then a runtime, so that there is time for both.
            let kind = usize::from((kills[0] + kills[1]) % 4 == 3);
            let sql = format!(
                "SELECT count(pg_terminate_backend(pid)) FROM (
                   SELECT pid FROM pg_stat_activity WHERE backend_type = '{}' ORDER BY random() LIMIT 1) p",
                [EXECUTOR, RUNTIME][kind]
            );
            if number(&watcher, &sql).await == 1 {
                kills[kind] += 1;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        ended.store(true, Ordering::SeqCst);
        kills
    };
    let (kills, answered) = tokio::join!(killing, load(&client, &ended));
    println!(
        "killed {} executors and {} runtimes; {answered} requests were answered",
        kills[0], kills[1]
    );
    assert!(kills[0] >= 5 && kills[1] >= 2, "{kills:?}");
    assert!(answered > 0);
    healthy(&scene, "after SIGTERM").await;
    let log = scene.pg.log();
    assert!(
        !log.contains("PANIC") && !log.contains("terminated by signal"),
        "a crash"
    );
}

/// SIGKILL has the postmaster restart all its processes, as for any of them; the handlers come back by themselves.
#[tokio::test]
async fn sigkill_in_a_loop() {
    let (scene, _session) = busy_scene().await;
    let client = scene.nats.client().await;
    let ended = AtomicBool::new(false);
    let killing = async {
        let (began, mut kills) = (Instant::now(), [0, 0]);
        while began.elapsed() < STORM / 2 {
            let turn = (kills[0] + kills[1]) % 2;
            // The executor comes some time after the runtime, and both while sessions are let in again.
            let victim = eventually(LONG, async || {
                let session = scene.pg.try_connect_as("postgres", "postgres").await.ok()?;
                let sql = format!(
                    "SELECT pid FROM pg_stat_activity WHERE backend_type = '{}' LIMIT 1",
                    [EXECUTOR, RUNTIME][turn]
                );
                let rows = session.query(&sql, &[]).await.ok()?;
                rows.first().map(|row| row.get::<_, i32>(0))
            })
            .await;
            let mark = scene.pg.log().len();
            proc::signal(victim, libc::SIGKILL);
            kills[turn] += 1;
            let back = "database system is ready to accept connections";
            scene.pg.wait_log_after(mark, back, LONG).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        ended.store(true, Ordering::SeqCst);
        kills
    };
    let (kills, answered) = tokio::join!(killing, load(&client, &ended));
    println!(
        "killed {} executors and {} runtimes; {answered} requests were answered",
        kills[0], kills[1]
    );
    assert!(kills[0] >= 5 && kills[1] >= 5, "{kills:?}");
    healthy(&scene, "after SIGKILL").await;
}

/// Handlers come and go while the runtime worker is killed again and again: in the end NATS and the table agree.
#[tokio::test]
async fn registering_while_the_runtime_dies() {
    let (scene, session) = Scene::keeping().await;
    let ended = AtomicBool::new(false);
    let killing = async {
        let watcher = scene.pg.connect().await;
        let began = Instant::now();
        while began.elapsed() < STORM / 6 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            let sql = format!(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type = '{RUNTIME}'"
            );
            number(&watcher, &sql).await;
        }
        ended.store(true, Ordering::SeqCst);
    };
    let registering = (0..4).map(async |who| {
        let session = scene.pg.connect().await;
        let (mut changes, mut refusals) = (0, 0);
        while !ended.load(Ordering::SeqCst) {
            let n = changes % 7;
            let call = if changes / 7 % 2 == 0 {
                "nats_subscribe"
            } else {
                "nats_unsubscribe"
            };
            let sql = format!("SELECT {call}('s.{who}.{n}', 'keep')");
            match session.batch_execute(&sql).await {
                Ok(()) => changes += 1,
                Err(error) => {
                    // The runtime was lost, or is not back yet; nothing worse.
                    let code = sqlstate(&error);
                    assert!(matches!(&*code, "58000" | "57P03"), "{error:?}");
                    refusals += 1;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        (changes, refusals)
    });
    let ((), outcomes) = tokio::join!(killing, futures::future::join_all(registering));
    println!("changes and refusals of four sessions: {outcomes:?}");
    assert!(outcomes.iter().all(|(changes, _)| *changes > 20), "{outcomes:?}");
    let registered = texts(
        &session,
        "SELECT subject FROM litmus_pgnats.handler ORDER BY subject COLLATE \"C\"",
    )
    .await;
    eventually_eq(LONG, registered, async || scene.subjects().await).await;
    subscribe(&session, "probe", "keep").await;
    say(&scene.nats.client().await, "probe", "1").await;
    until_got(&session, &["1"]).await;
}

/// An executor that stands still is stuck as its callback would be: others go on, and it ends when it is told.
#[tokio::test]
async fn a_frozen_executor() {
    let (scene, session) = busy_scene().await;
    let client = scene.nats.client().await;
    say(&client, "load.a", "before").await;
    until_got(&session, &["before"]).await;
    let frozen = scene.executor().await;
    proc::signal(frozen, libc::SIGSTOP);
    eventually(SOON, async || proc::stopped(frozen)).await;
    say(&client, "load.a", "during").await;
    for n in 1..=20 {
        say(&client, "load.b", n.to_string()).await;
        assert_eq!(reply_text(&ask(&client, "rpc", "q").await), "q");
    }
    proc::signal(frozen, libc::SIGCONT);
    eventually_eq(SOON, 22, async || got(&session).await.len()).await;
    healthy(&scene, "after SIGSTOP").await;
}
