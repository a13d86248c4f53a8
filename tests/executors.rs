//! Executors as guests in PostgreSQL: what is seen of them, what they cost when idle, and how quick they are.

mod handlers;
mod scene;
mod support;

use std::time::{Duration, Instant};

use futures::StreamExt;
use handlers::*;
use scene::*;
use support::proc;
use support::*;
use tokio_postgres::{AsyncMessage, NoTls};

/// pg_stat_activity shows who they are, what they do, and that they hold nothing while they wait.
#[tokio::test]
async fn they_are_seen_in_pg_stat_activity() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE FUNCTION nap(msg text) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(600)'",
    )
    .await;
    subscribe(&session, "news", "keep").await;
    subscribe(&session, "nap", "nap").await;
    let client = scene.nats.client().await;
    say(&client, "news", "1").await;
    until_got(&session, &["1"]).await;
    let executor = scene.executor().await;
    let idle = format!(
        "SELECT application_name, datname::text, state, wait_event_type, xact_start IS NULL, backend_xmin IS NULL,
                backend_xid IS NULL, query FROM pg_stat_activity WHERE pid = {executor}"
    );
    let row = eventually(SOON, async || {
        let row = session.query_one(&idle, &[]).await.expect("pg_stat_activity");
        let state: Option<String> = row.get(2);
        if state.as_deref() == Some("idle") {
            Ok(row)
        } else {
            Err(state)
        }
    })
    .await;
    assert_eq!(row.get::<_, String>(0), EXECUTOR);
    assert_eq!(row.get::<_, String>(1), "postgres");
    assert!(row.get::<_, Option<String>>(3).is_some(), "no wait event");
    for column in 4..=6 {
        assert!(row.get::<_, bool>(column), "column {column}");
    }
    println!("the query of an idle executor: {:?}", row.get::<_, String>(7));
    assert!(
        proc::command_line(executor).contains("litmus_pgnats"),
        "{}",
        proc::command_line(executor)
    );

    say(&client, "nap", "1").await;
    let busy = scene.until_sleeping().await;
    let sql = format!("SELECT state || ': ' || query FROM pg_stat_activity WHERE pid = {busy}");
    let activity = text(&session, &sql).await;
    assert!(
        activity.starts_with("active: ") && activity.contains("nap"),
        "{activity}"
    );
    let view = format!(
        "SELECT concat_ws(' ', database, state, handler) FROM litmus_pgnats.executors
         WHERE pid = {busy} AND since <= clock_timestamp()"
    );
    let seen = texts(&session, &view).await;
    assert!(
        seen.len() == 1 && seen[0].starts_with("postgres running ") && seen[0].contains("nap"),
        "{seen:?}"
    );
    let apart = format!(
        "SELECT count(*) FROM litmus_pgnats.executors e
         FULL JOIN (SELECT pid FROM pg_stat_activity WHERE backend_type = '{EXECUTOR}') a USING (pid)
         WHERE e.state IS NULL OR a.pid IS NULL"
    );
    until_number(&session, 0, &apart).await;
}

/// While messages come, none of them is ever idle in a transaction, and between messages no transaction is open.
#[tokio::test]
async fn they_are_never_idle_in_transaction() {
    let (scene, session) = Scene::keeping().await;
    subscribe(&session, "load", "keep").await;
    let client = scene.nats.client().await;
    let sql = format!(
        "SELECT state || coalesce(' since ' || (clock_timestamp() - xact_start), '') FROM pg_stat_activity
         WHERE backend_type = '{EXECUTOR}' AND (state LIKE 'idle in transaction%'
           OR state = 'idle' AND xact_start < clock_timestamp() - interval '300 ms')"
    );
    let publishing = async {
        for n in 1..=300_usize {
            count_off(&client, "load", n * 10 + 1..=n * 10 + 10).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let watching = async {
        let watcher = scene.pg.connect().await;
        for _ in 0..600 {
            assert_eq!(texts(&watcher, &sql).await, [""; 0]);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::join!(publishing, watching);
    eventually_eq(LONG, 3000, async || got(&session).await.len()).await;
    assert_eq!(texts(&session, &sql).await, [""; 0]);
}

/// What callbacks read and write is in the statistics, soon after and not when the executor ends.
#[tokio::test]
async fn statistics_are_reported() {
    let (scene, session) = Scene::keeping().await;
    subscribe(&session, "news", "keep").await;
    count_off(&scene.nats.client().await, "news", 1..=100).await;
    eventually_eq(SOON, 100, async || got(&session).await.len()).await;
    let inserted = "SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 'got'";
    let began = Instant::now();
    until_number(&session, 100, inserted).await;
    println!("in the statistics {:?} later", began.elapsed());
}

/// Idle workers use no processor time, run nothing, and have one thread; NATS hears nothing either.
#[tokio::test]
async fn idle_they_use_no_time() {
    let (scene, session) = Scene::keeping().await;
    subscribe(&session, "news", "keep").await;
    let client = scene.nats.client().await;
    say(&client, "news", "1").await;
    until_got(&session, &["1"]).await;
    let (executor, runtime) = (scene.executor().await, scene.runtime().await);
    // What was to be reported after the message has been.
    until_number(
        &session,
        1,
        "SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 'got'",
    )
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let activity = format!(
        "SELECT concat_ws(' ', state, state_change, query_start) FROM pg_stat_activity WHERE pid = {executor}"
    );
    let before = [executor, runtime].map(proc::cpu_time);
    let at_rest = text(&session, &activity).await;
    let heard = async || scene.nats.monitor("/varz").await["in_msgs"].as_u64();
    let messages = heard().await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let after = [executor, runtime].map(proc::cpu_time);
    for (who, (before, after)) in ["executor", "runtime"]
        .into_iter()
        .zip(before.into_iter().zip(after))
    {
        println!("idle for 10 s, the {who} used {:?}", after - before);
        assert!(
            after - before <= Duration::from_millis(20),
            "{who}: {:?}",
            after - before
        );
    }
    assert_eq!(text(&session, &activity).await, at_rest);
    assert_eq!(heard().await, messages);
    assert_eq!(scene.executors().await, [executor]);
    assert_eq!(proc::threads(executor), 1);
}

/// Where nothing is registered there is no executor: without the extension, with it, and after the last handler.
#[tokio::test]
async fn there_are_none_without_handlers() {
    let (scene, session) = Scene::keeping().await;
    scene.pg.sql("CREATE DATABASE bare").await;
    let other = scene.database("other").await;
    run(&other, "SELECT nats_publish_text('a', 'x')").await;
    run(&session, "SELECT nats_publish_text('a', 'x')").await;
    // One that has looked may still be about to leave.
    eventually_eq(SOON, Vec::<String>::new(), async || {
        scene.executor_databases().await
    })
    .await;
    subscribe(&session, "news", "keep").await;
    eventually_eq(SOON, vec!["postgres".to_owned()], async || {
        scene.executor_databases().await
    })
    .await;
    subscribe(&other, "news", "keep").await;
    let both = vec!["other".to_owned(), "postgres".into()];
    eventually_eq(SOON, both, async || scene.executor_databases().await).await;
    run(&session, "SELECT nats_unsubscribe('news', 'keep')").await;
    eventually_eq(SOON, vec!["other".to_owned()], async || {
        scene.executor_databases().await
    })
    .await;
    run(&other, "SELECT nats_unsubscribe('news', 'keep')").await;
    eventually_eq(SOON, Vec::<String>::new(), async || {
        scene.executor_databases().await
    })
    .await;
    scene.until_silent().await;
    let view = texts(&session, "SELECT state FROM litmus_pgnats.executors").await;
    assert_eq!(view, [""; 0]);
}

/// From the publish to the commit on an idle system; the target is 3 ms, the ceiling is for machines that are not idle.
#[tokio::test]
async fn latency() {
    const CEILING: Duration = Duration::from_millis(100);
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE FUNCTION keep_and_tell(msg bytea) RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
           INSERT INTO got (payload) VALUES (convert_from(msg, 'utf8'));
           NOTIFY kept;
         END $$",
    )
    .await;
    subscribe(&session, "quick", "keep_and_tell").await;
    let (listener, mut connection) = scene.pg.config().connect(NoTls).await.expect("a session");
    let (kept, mut heard) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut messages = futures::stream::poll_fn(move |cx| connection.poll_message(cx));
        while let Some(Ok(message)) = messages.next().await {
            // A notification is sent when the transaction has been committed.
            if matches!(message, AsyncMessage::Notification(_)) {
                let _ = kept.send(Instant::now());
            }
        }
    });
    listener.batch_execute("LISTEN kept").await.expect("LISTEN");
    let client = scene.nats.client().await;
    let mut taken = Vec::new();
    for n in 0..55 {
        tokio::time::sleep(Duration::from_millis(60)).await;
        let began = Instant::now();
        publish(&client, "quick", n.to_string().into()).await;
        client.flush().await.expect("flush");
        let committed = tokio::time::timeout(SOON, heard.recv())
            .await
            .expect("a notification");
        if n >= 5 {
            taken.push(committed.expect("an open session").duration_since(began));
        }
    }
    taken.sort_unstable();
    let (median, worst) = (taken[taken.len() / 2], taken[taken.len() - 1]);
    println!(
        "publish to commit: median {median:?}, best {:?}, worst {worst:?}",
        taken[0]
    );
    assert!(median < CEILING, "median {median:?}");
}
