//! The life of a durable subscription: changed, moved, given to another function, removed with its consumer.

mod events;
mod handlers;
mod scene;
mod support;

use async_nats::jetstream::consumer;
use events::*;
use futures::TryStreamExt;
use handlers::*;
use scene::*;
use support::*;

/// A second function, which marks what it keeps.
const OTHER: &str = "CREATE FUNCTION other(msg bytea) RETURNS void LANGUAGE sql AS
    $$ INSERT INTO public.got (payload) VALUES ('other ' || convert_from(msg, 'utf8')) $$;";

/// The names of the stream's consumers.
async fn consumers(events: &Events) -> Vec<String> {
    let stream = events.0.get_stream("events").await.expect("the stream");
    stream.consumer_names().try_collect().await.expect("names")
}

async fn until_consumers(events: &Events, count: usize) {
    eventually(LONG, async || {
        let names = consumers(events).await;
        (names.len() == count).then_some(()).ok_or(names)
    })
    .await;
}

#[tokio::test]
async fn unsubscribing_removes_the_consumer() {
    let (mut scene, session, events) = scene_of(RetentionPolicy::WorkQueue).await;
    run(&session, OTHER).await;
    run(&session, "SELECT nats_subscribe_stream('events', 'keep')").await;
    events.count_off(1..=2).await;
    until_got(&session, &["1", "2"]).await;
    // A work queue has one consumer: another function can take the place.
    run(
        &session,
        "SELECT nats_unsubscribe_stream('events', 'keep'); SELECT nats_subscribe_stream('events', 'other')",
    )
    .await;
    events.count_off(3..=3).await;
    until_got(&session, &["1", "2", "other 3"]).await;
    until_consumers(&events, 1).await;
    // With NATS away, the consumer is removed later, by another runtime worker too.
    scene.nats.stop().await;
    run(&session, "SELECT nats_unsubscribe_stream('events', 'other')").await;
    let old = scene.runtime().await;
    run(&session, &format!("SELECT pg_terminate_backend({old})")).await;
    scene.next_runtime(old).await;
    scene.nats.restart().await;
    eventually(LONG, async || events.0.get_stream("events").await.is_ok()).await;
    until_consumers(&events, 0).await;
    until_number(&session, 0, "SELECT count(*) FROM litmus_pgnats.stream_consumer").await;
}

#[tokio::test]
async fn a_consumer_may_stay() {
    let (_scene, session, events) = scene().await;
    run(
        &session,
        "SELECT nats_subscribe_stream('events', 'keep', durable => 'kept')",
    )
    .await;
    until(&session, "live").await;
    run(
        &session,
        "SELECT nats_unsubscribe_stream('events', 'keep', keep_consumer => true)",
    )
    .await;
    run(
        &session,
        "SELECT nats_subscribe_stream('events', 'keep', durable => 'gone')",
    )
    .await;
    until(&session, "live").await;
    // Another name means another consumer, and the end of the former one.
    run(
        &session,
        "SELECT nats_alter_subscription_stream('events', 'keep', durable => 'third')",
    )
    .await;
    eventually_eq(LONG, vec!["kept".to_owned(), "third".to_owned()], async || {
        let mut names = consumers(&events).await;
        names.sort();
        names
    })
    .await;
    // Functions take their subscriptions along, and these their consumers.
    run(&session, "DROP FUNCTION keep").await;
    eventually_eq(LONG, vec!["kept".to_owned()], async || consumers(&events).await).await;
}

#[tokio::test]
async fn a_consumer_in_the_way_is_named() {
    let (_scene, session, events) = scene_of(RetentionPolicy::WorkQueue).await;
    let stream = events.0.get_stream("events").await.expect("the stream");
    let theirs = consumer::pull::Config {
        durable_name: Some("somebody".into()),
        description: Some("left by a migration".into()),
        ..Default::default()
    };
    stream.create_consumer(theirs).await.expect("a consumer");
    run(&session, "SELECT nats_subscribe_stream('events', 'keep')").await;
    eventually(LONG, async || {
        let problem = texts(&session, &format!("SELECT coalesce(problem, '') FROM {ALL}")).await;
        let is_named = problem[0].contains("\"somebody\" (left by a migration)");
        is_named.then_some(()).ok_or(problem)
    })
    .await;
    stream
        .delete_consumer("somebody")
        .await
        .expect("remove the consumer");
    until(&session, "live").await;
}

#[tokio::test]
async fn a_consumer_says_whose_it_is() {
    let (_scene, session, events) = scene().await;
    run(
        &session,
        "SELECT nats_subscribe_stream('events', 'keep', batch_size => 7)",
    )
    .await;
    until(&session, "live").await;
    let info = events.consumer().await;
    let shown = texts(&session, &format!("SELECT consumer FROM {ALL}")).await;
    assert_eq!(shown, std::slice::from_ref(&info.name));
    let description = "litmus_pgnats: calls public.keep(bytea) in database postgres";
    assert_eq!(info.config.description.as_deref(), Some(description));
    let metadata = |name: &str| info.config.metadata.get(name).cloned().unwrap_or_default();
    assert_eq!(metadata("litmus_pgnats_database"), "postgres");
    assert_eq!(metadata("litmus_pgnats_function"), "public.keep(bytea)");
    let cluster = texts(
        &session,
        "SELECT system_identifier::text FROM pg_control_system()",
    )
    .await;
    assert_eq!(vec![metadata("litmus_pgnats_cluster")], cluster);
    let asked =
        format!("SELECT count(*) FROM {ALL} WHERE batch_size = 7 AND deliver = 'all' AND ack_wait = '30 s'");
    until_number(&session, 1, &asked).await;
}

#[tokio::test]
async fn another_function_takes_the_place() {
    let (_scene, session, events) = scene().await;
    run(&session, OTHER).await;
    run(
        &session,
        "SELECT nats_subscribe_stream('events', 'keep', stop_on_failure => true, max_deliveries => 9)",
    )
    .await;
    events.count_off(1..=3).await;
    until_got(&session, &["1", "2", "3"]).await;
    run(
        &session,
        "SELECT nats_alter_subscription_stream('events', 'keep', new_fn => 'other', batch_size => 3)",
    )
    .await;
    events.count_off(4..=5).await;
    until_got(&session, &["1", "2", "3", "other 4", "other 5"]).await;
    let kept =
        format!("SELECT count(*) FROM {ALL} WHERE stop_on_failure AND max_deliveries = 9 AND batch_size = 3");
    until_number(&session, 1, &kept).await;
    // The former function may have a subscription of its own, and then the place is taken.
    run(
        &session,
        "SELECT nats_subscribe_stream('events', 'keep', deliver => 'new')",
    )
    .await;
    let error = session
        .batch_execute("SELECT nats_alter_subscription_stream('events', 'keep', new_fn => 'other')")
        .await
        .expect_err("there is one already");
    assert_eq!(error.code().map(|code| code.code()), Some("42602"), "{error:?}");
    let error = session
        .batch_execute("SELECT nats_alter_subscription_stream('events', 'now'::regproc, batch_size => 3)")
        .await
        .expect_err("there is none");
    assert_eq!(error.code().map(|code| code.code()), Some("42602"), "{error:?}");
}

/// With a name, the function may be dropped and made again, in whatever transactions, and under another name.
#[tokio::test]
async fn a_name_keeps_the_place_whatever_function_is_called() {
    let (scene, session, events) = scene().await;
    run(
        &session,
        "SELECT nats_subscribe_stream('events', 'keep', name => 'intake')",
    )
    .await;
    events.count_off(1..=3).await;
    until_got(&session, &["1", "2", "3"]).await;
    run(&session, "DROP FUNCTION keep").await;
    until(&session, "disabled").await;
    events.count_off(4..=4).await;
    restart_runtime_until(&scene, &session, "disabled").await;
    run(&session, OTHER).await;
    run(
        &session,
        "SELECT nats_subscribe_stream('events', 'other', name => 'intake')",
    )
    .await;
    until_got(&session, &["1", "2", "3", "other 4"]).await;
    // A function of the same signature that is made later is taken by its name, but not another role's.
    run(&session, "DROP FUNCTION other").await;
    until(&session, "disabled").await;
    run(&session, SHOP).await;
    let shop = scene.pg.connect_as("shop", "postgres").await;
    run(&shop, OTHER).await;
    until(&session, "disabled").await;
    run(&shop, "DROP FUNCTION other").await;
    run(&session, OTHER).await;
    until(&session, "live").await;
    events.count_off(5..=5).await;
    until_got(&session, &["1", "2", "3", "other 4", "other 5"]).await;
    assert_eq!(number(&session, &format!("SELECT count(*) FROM {ALL}")).await, 1);
}

/// Ends the runtime worker, and waits for this state under its successor.
async fn restart_runtime_until(scene: &Scene, session: &Session, state: &str) {
    let old = scene.runtime().await;
    run(session, &format!("SELECT pg_terminate_backend({old})")).await;
    scene.next_runtime(old).await;
    until(session, state).await;
}

#[tokio::test]
async fn a_subscription_is_moved_to_a_sequence_or_a_time() {
    for durable in ["", ", durable => 'named'"] {
        let (scene, session, events) = scene().await;
        run(
            &session,
            &format!("SELECT nats_subscribe_stream('events', 'keep' {durable})"),
        )
        .await;
        events.count_off(1..=5).await;
        until_got(&session, &["1", "2", "3", "4", "5"]).await;
        let begin = texts(&session, "SELECT clock_timestamp()::text").await.remove(0);
        events.count_off(6..=7).await;
        let seek = async |place: &str, expected: &[&str]| {
            run(&session, "TRUNCATE got").await;
            run(
                &session,
                &format!("SELECT litmus_pgnats.seek('events', 'keep', {place})"),
            )
            .await;
            until_got(&session, expected).await;
        };
        until_number(&session, 7, "SELECT count(*) FROM got").await;
        seek("4", &["4", "5", "6", "7"]).await;
        seek("1", &["1", "2", "3", "4", "5", "6", "7"]).await;
        seek(&format!("\"time\" => '{begin}'"), &["6", "7"]).await;
        // Ahead, with messages that are left out, and back.
        run(&session, "SELECT litmus_pgnats.pause('events', 'keep')").await;
        events.count_off(8..=10).await;
        run(
            &session,
            "TRUNCATE got; SELECT litmus_pgnats.seek('events', 'keep', 10)",
        )
        .await;
        run(&session, "SELECT litmus_pgnats.resume('events', 'keep')").await;
        until_got(&session, &["10"]).await;
        restart_runtime(&scene, &session).await;
        events.count_off(11..=11).await;
        until_got(&session, &["10", "11"]).await;
        for wrong in ["NULL", "0", "3, now()", "NULL, '9999-12-31'"] {
            let sql = format!("SELECT litmus_pgnats.seek('events', 'keep', {wrong})");
            session.batch_execute(&sql).await.expect_err(wrong);
        }
    }
}

/// One that is made anew with the consumer's name of a former one begins where it is told to.
#[tokio::test]
async fn a_former_consumer_of_the_name_decides_nothing() {
    let (_scene, session, events) = scene().await;
    let subscribe = "SELECT nats_subscribe_stream('events', 'keep', durable => 'named'";
    run(&session, &format!("{subscribe})")).await;
    events.count_off(1..=5).await;
    until_number(&session, 5, "SELECT count(*) FROM got").await;
    for (unsubscribe, start, expected) in [
        ("SELECT nats_unsubscribe_stream('events', 'keep')", "", 5),
        (
            "SELECT nats_unsubscribe_stream('events', 'keep')",
            ", deliver => 'all'",
            5,
        ),
        (
            "SELECT nats_unsubscribe_stream('events', 'keep', keep_consumer => true)",
            ", start_sequence => 3",
            3,
        ),
        (
            "SELECT nats_unsubscribe_stream('events', 'keep')",
            ", start_time => '2020-01-01'",
            5,
        ),
    ] {
        for together in [true, false] {
            run(&session, "TRUNCATE got").await;
            if together {
                run(
                    &session,
                    &format!("BEGIN; {unsubscribe}; {subscribe} {start}); COMMIT"),
                )
                .await;
            } else {
                run(&session, unsubscribe).await;
                run(&session, &format!("{subscribe} {start})")).await;
            }
            until_number(&session, expected, "SELECT count(*) FROM got").await;
        }
    }
}

/// A consumer that another subscription has by now is not removed with a former one.
#[tokio::test]
async fn a_consumer_that_is_in_use_stays() {
    let (scene, session, events) = scene().await;
    run(
        &session,
        "SELECT nats_subscribe_stream('events', 'keep', durable => 'shared')",
    )
    .await;
    until(&session, "live").await;
    let other = scene.database("other").await;
    run(
        &other,
        "SELECT nats_subscribe_stream('events', 'keep', durable => 'shared')",
    )
    .await;
    until(&other, "live").await;
    run(&other, "SELECT litmus_pgnats.pause('events', 'keep')").await;
    run(&session, "SELECT nats_unsubscribe_stream('events', 'keep')").await;
    until_number(&session, 0, "SELECT count(*) FROM litmus_pgnats.stream_consumer").await;
    assert_eq!(events.consumer().await.name, "shared");
    let logged = scene
        .pg
        .wait_log("stays, because somebody else uses it", SOON)
        .await;
    assert!(logged.contains("shared"), "{logged}");
}

/// A NATS user who may not remove consumers uses the one that there is.
#[tokio::test]
async fn without_the_right_to_remove_consumers() {
    let users = r#"authorization { users = [
        { user: "limited", password: "p", permissions: { publish: { deny: ["$JS.API.CONSUMER.DELETE.>"] } } }
        { user: "all", password: "p" }
    ] }
    no_auth_user: "all""#;
    let nats = NatsServer::builder().jetstream().config(users).start().await;
    let scene = Scene::with(Postgres::builder(), nats, ", username 'limited', password 'p'").await;
    let session = scene.pg.connect().await;
    run(&session, KEEP).await;
    let events = Events::start(&scene, RetentionPolicy::Limits).await;
    run(
        &session,
        "SELECT nats_subscribe_stream('events', 'keep', ack_wait => '1 s')",
    )
    .await;
    events.count_off(1..=3).await;
    until_number(&session, 3, "SELECT count(*) FROM got").await;
    restart_runtime(&scene, &session).await;
    run(
        &session,
        "SELECT nats_alter_subscription_stream('events', 'keep', batch_size => 7)",
    )
    .await;
    events.count_off(4..=6).await;
    until_number(&session, 6, "SELECT count(*) FROM got").await;
    assert_eq!(
        number(&session, "SELECT count(DISTINCT payload) FROM got").await,
        6
    );
}

/// What waits for a subscription that takes nothing is shown: one that was paused here or at JetStream, and one that has
/// stopped; and which message has failed.
#[tokio::test]
async fn what_waits_for_a_halted_subscription_is_shown() {
    let (scene, session, events) = scene().await;
    run(
        &session,
        "SELECT nats_subscribe_stream('events', 'keep', filter_subjects => '{events.n}')",
    )
    .await;
    events.count_off(1..=2).await;
    until_got(&session, &["1", "2"]).await;
    let waits = format!("SELECT count(*) FROM {ALL} WHERE pending = 3 AND lag > '0.1 s' AND lag < '1 hour'");
    run(&session, "SELECT litmus_pgnats.pause('events', 'keep')").await;
    events.say("events.other", "not wanted").await;
    events.count_off(3..=5).await;
    until_number(&session, 1, &waits).await;
    run(&session, "SELECT litmus_pgnats.resume('events', 'keep')").await;
    until_got(&session, &["1", "2", "3", "4", "5"]).await;
    let nothing = format!("SELECT count(*) FROM {ALL} WHERE state = 'live' AND pending = 0 AND lag = '0'");
    until_number(&session, 1, &nothing).await;
    // An administrator's pause.
    let name = events.consumer().await.name;
    let stream = events.0.get_stream("events").await.expect("the stream");
    let until_then = async_nats::datetime::from_nanos(4_000_000_000_000_000_000).expect("a time");
    stream.pause_consumer(&name, until_then).await.expect("a pause");
    until(&session, "waiting").await;
    events.count_off(6..=8).await;
    until_number(&session, 1, &waits).await;
    stream.resume_consumer(&name).await.expect("the end of the pause");
    until_number(&session, 8, "SELECT count(*) FROM got").await;
    // One that has stopped.
    run(
        &session,
        "CREATE OR REPLACE FUNCTION keep(msg bytea) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
         SELECT nats_alter_subscription_stream('events', 'keep', stop_on_failure => true, max_deliveries => 1)",
    )
    .await;
    events.count_off(9..=11).await;
    until(&session, "disabled").await;
    until_number(&session, 1, &waits).await;
    let last_error = texts(&session, &format!("SELECT last_error FROM {ALL}")).await;
    assert_eq!(last_error, ["P0001: message 10: no"], "{last_error:?}");
    let logged = scene
        .pg
        .wait_log("failed for message 10 of stream \"events\"", SOON)
        .await;
    assert!(logged.contains("keep"), "{logged}");
}
