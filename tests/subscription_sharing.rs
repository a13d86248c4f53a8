//! Who shares a subject: databases each get every message, members of a queue group divide them, and each foreign
//! server has subscriptions of its own.

mod handlers;
mod scene;
mod support;

use handlers::*;
use scene::*;
use support::*;

const MESSAGES: usize = 2_000;

/// Subscribes `keep` as a member of queue group `workers`.
async fn join_group(session: &Session, subject: &str) {
    let sql = format!("SELECT nats_subscribe('{subject}', 'keep'::regproc, 'workers')");
    run(session, &sql).await;
    until_live(session, subject).await;
}

/// That each of the numbers was kept by one of the two, and that both did something.
async fn divided(first: &Session, second: &Session) {
    eventually_eq(LONG, MESSAGES, async || {
        got(first).await.len() + got(second).await.len()
    })
    .await;
    let (mut all, others) = (got(first).await, got(second).await);
    println!("the members of the group took {} and {}", all.len(), others.len());
    assert!(
        !all.is_empty() && !others.is_empty(),
        "one member did all the work"
    );
    all.extend(others);
    let mut all: Vec<usize> = all.iter().map(|n| n.parse().expect("a number")).collect();
    all.sort_unstable();
    assert!(all.iter().copied().eq(1..=MESSAGES), "{all:?}");
}

/// Two databases of one cluster in a queue group.
#[tokio::test]
async fn a_queue_group_of_two_databases() {
    let (scene, first) = Scene::keeping().await;
    let second = scene.database("second").await;
    join_group(&first, "work").await;
    join_group(&second, "work").await;
    let groups = "SELECT queue_group FROM litmus_pgnats.subscriptions";
    assert_eq!(texts(&first, groups).await, ["workers"]);
    count_off(&scene.nats.client().await, "work", 1..=MESSAGES).await;
    divided(&first, &second).await;
}

/// Two PostgreSQL servers in a queue group; when one stops, the other does it all.
#[tokio::test]
async fn a_queue_group_of_two_servers() {
    let (scene, first) = Scene::keeping().await;
    let mut other = Postgres::start().await;
    let second = other.connect().await;
    run(&second, &create_server(scene.nats.port(), "")).await;
    run(&second, KEEP).await;
    join_group(&first, "work").await;
    join_group(&second, "work").await;
    let client = scene.nats.client().await;
    count_off(&client, "work", 1..=MESSAGES).await;
    divided(&first, &second).await;
    run(&first, "TRUNCATE got").await;
    other.stop(Stop::Fast).await;
    eventually_eq(SOON, vec!["work".to_owned()], async || scene.subjects().await).await;
    count_off(&client, "work", 1..=MESSAGES).await;
    eventually_eq(LONG, numbers(1..=MESSAGES), async || got(&first).await).await;
}

/// Without a group, every database gets every message.
#[tokio::test]
async fn databases_without_a_group_get_everything() {
    let (scene, first) = Scene::keeping().await;
    let second = scene.database("second").await;
    subscribe(&first, "news", "keep").await;
    subscribe(&second, "news", "keep").await;
    count_off(&scene.nats.client().await, "news", 1..=100).await;
    for session in [&first, &second] {
        eventually_eq(SOON, numbers(1..=100), async || got(session).await).await;
    }
    assert_eq!(scene.executor_databases().await, ["postgres", "second"]);
}

/// Several foreign servers in a database: a subscription belongs to the one that was chosen, as every call does.
#[tokio::test]
async fn each_foreign_server_has_its_own() {
    let (scene, session) = Scene::keeping().await;
    let far = NatsServer::start().await;
    run(
        &session,
        &format!(
            "CREATE SERVER far FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (host '127.0.0.1', port '{}');
             CREATE FUNCTION keep_far(msg text) RETURNS void LANGUAGE sql AS
               $$ INSERT INTO got (payload) VALUES ('far ' || msg) $$",
            far.port()
        ),
    )
    .await;
    let (report, _) = refused(&session, "SELECT nats_subscribe('both', 'keep')").await;
    assert_eq!(report.code, "42P08", "which server? {report:?}");
    run(&session, "SET litmus_pgnats.server = 'nats'").await;
    run(&session, "SELECT nats_subscribe('both', 'keep')").await;
    run(&session, "SET litmus_pgnats.server = 'far'").await;
    run(&session, "SELECT nats_subscribe('both', 'keep_far')").await;
    until_live(&session, "both").await;
    let servers = "SELECT server || ' ' || function FROM litmus_pgnats.subscriptions ORDER BY 1";
    let servers = texts(&session, servers).await;
    assert_eq!(servers.len(), 2, "{servers:?}");
    assert!(
        servers[0].starts_with("far ") && servers[0].contains("keep_far"),
        "{servers:?}"
    );
    assert!(
        servers[1].starts_with("nats ") && servers[1].contains("keep"),
        "{servers:?}"
    );
    say(&scene.nats.client().await, "both", "1").await;
    until_got(&session, &["1"]).await;
    say(&far.client().await, "both", "2").await;
    until_got(&session, &["1", "far 2"]).await;
    // One NATS goes away: the other's subscription does not notice.
    drop(far);
    eventually(SOON, async || {
        let waiting = "SELECT state FROM litmus_pgnats.subscriptions WHERE server = 'far'";
        texts(&session, waiting).await == ["waiting"]
    })
    .await;
    say(&scene.nats.client().await, "both", "3").await;
    until_got(&session, &["1", "far 2", "3"]).await;
}
