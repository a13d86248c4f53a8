//! Durable subscriptions when something ends or vanishes: executors, the runtime worker, NATS, the consumer, the stream.

mod events;
mod handlers;
mod scene;
mod support;

use async_nats::jetstream;
use events::*;
use handlers::*;
use scene::*;
use support::*;

/// Messages that wait to be tried again are not taken for done when the runtime begins anew, and leave no gap.
#[tokio::test]
async fn what_waits_to_be_tried_again_survives_a_restart() {
    let (scene, session, events) = scene().await;
    run(
        &session,
        "CREATE TABLE bad (word text); INSERT INTO bad VALUES ('1'), ('4');
         CREATE FUNCTION moody(msg text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
           IF msg IN (SELECT word FROM public.bad) THEN RAISE 'not %', msg; END IF;
           INSERT INTO public.got (payload) VALUES (msg); END $$;
         SELECT nats_subscribe_stream('events', 'moody', filter_subjects => '{events.n}', backoff => '{2 s}', max_deliveries => 0)",
    )
    .await;
    events.say("events.other", "skipped").await;
    for n in 1..=2 {
        events.count_off(n..=n).await;
        events.say("events.other", "skipped").await;
    }
    until_got(&session, &["2"]).await;
    restart_runtime(&scene, &session).await;
    run(&session, "DELETE FROM bad WHERE word = '1'").await;
    until_got(&session, &["2", "1"]).await;
    // What is tried again by the same runtime closes its gap too, whatever lies between that the filter leaves out.
    events.count_off(3..=3).await;
    events.say("events.other", "skipped").await;
    events.count_off(4..=4).await;
    events.count_off(5..=5).await;
    until_got(&session, &["2", "1", "3", "5"]).await;
    run(&session, "TRUNCATE bad").await;
    until_got(&session, &["2", "1", "3", "5", "4"]).await;
    until_number(&session, 9, &format!("SELECT applied_to FROM {ALL}")).await;
    drop(scene);
}

/// One that begins with what is new begins there once, not again whenever its consumer is made anew.
#[tokio::test]
async fn what_is_new_is_so_from_the_registration_on() {
    for stop in [false, true] {
        let (mut scene, session, events) = scene().await;
        events.count_off(1..=3).await;
        run(
            &session,
            &format!(
                "CREATE TABLE broken (); CREATE FUNCTION fussy(msg text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
                   IF to_regclass('public.broken') IS NOT NULL THEN RAISE 'broken'; END IF;
                   INSERT INTO public.got (payload) VALUES (msg); END $$;
                 SELECT nats_subscribe_stream('events', 'fussy', deliver => 'new', stop_on_failure => {stop},
                   max_deliveries => 0, backoff => '{{500 ms}}', ack_wait => '1 s')"
            ),
        )
        .await;
        until(&session, "live").await;
        // Nothing is applied before the runtime ends.
        events.count_off(4..=6).await;
        restart_runtime(&scene, &session).await;
        events.count_off(7..=8).await;
        run(&session, "DROP TABLE broken").await;
        let all =
            async |count: i64| until_number(&session, count, "SELECT count(DISTINCT payload) FROM got").await;
        all(5).await;
        // NATS restarts, and messages come before the subscription is there again.
        scene.nats.stop().await;
        scene.nats.restart().await;
        eventually(LONG, async || events.0.get_stream("events").await.is_ok()).await;
        events.count_off(9..=14).await;
        all(11).await;
        let came = got(&session).await;
        let mut sorted: Vec<u32> = came.iter().map(|n| n.parse().expect("a number")).collect();
        sorted.sort_unstable();
        assert_eq!(
            sorted,
            (4..=14).collect::<Vec<u32>>(),
            "stop_on_failure {stop}: {came:?}"
        );
    }
}

/// A nats-server that is killed while it removes a consumer forgets the consumer, but leaves its state for the next one of
/// the same name: what that one had in hand comes again.
#[tokio::test]
async fn a_consumer_that_was_half_removed_takes_nothing_with_it() {
    use RetentionPolicy::{Interest, Limits};
    for (retention, durable) in [
        (Limits, ""),
        (Limits, ", durable => 'named'"),
        (Interest, ""),
        (Interest, ", durable => 'named'"),
    ] {
        let (mut scene, session, events) = scene_of(retention).await;
        run(
            &session,
            &format!("SELECT nats_subscribe_stream('events', 'keep', ack_wait => '1 s' {durable})"),
        )
        .await;
        until(&session, "live").await;
        events.count_off(1..=3).await;
        until_number(&session, 3, "SELECT count(*) FROM got").await;
        eventually_eq(SOON, 3, async || {
            events.consumer().await.ack_floor.stream_sequence
        })
        .await;
        // What is delivered now waits for a lock, and is forgotten with the runtime.
        run(&session, "BEGIN; LOCK TABLE got").await;
        events.count_off(4..=10).await;
        eventually_eq(SOON, 10, async || {
            events.consumer().await.delivered.stream_sequence
        })
        .await;
        scene.nats.stop().await;
        let consumers = scene.nats.jetstream_dir().join("jetstream/$G/streams/events/obs");
        for consumer in std::fs::read_dir(consumers).expect("the consumers") {
            let checksum = consumer.expect("a consumer").path().join("meta.sum");
            std::fs::remove_file(checksum).expect("a checksum");
        }
        scene.pg.restart(Stop::Immediate).await;
        scene.nats.restart().await;
        let session = scene.pg.connect().await;
        until_number(&session, 10, "SELECT count(DISTINCT payload) FROM got").await;
        assert_eq!(number(&session, "SELECT count(*) FROM got").await, 10);
        until_number(&session, 10, &format!("SELECT applied_to FROM {ALL}")).await;
    }
}

/// The commit stands and its acknowledgement is lost: the redelivery is skipped.
#[tokio::test]
async fn what_was_applied_is_skipped_when_it_comes_again() {
    let (scene, session, events) = scene().await;
    run(
        &session,
        "SELECT nats_subscribe_stream('events', 'keep', durable => 'worker')",
    )
    .await;
    events.count_off(1..=50).await;
    until_number(&session, 50, "SELECT count(*) FROM got").await;
    eventually_eq(SOON, 50, async || {
        events.consumer().await.ack_floor.stream_sequence
    })
    .await;
    // As if no acknowledgement had arrived, and the commits of some had been lost.
    let stream = events.0.get_stream("events").await.expect("the stream");
    run(
        &session,
        "UPDATE litmus_pgnats.handler_stream SET applied = '{[0,20],[25,51)}'",
    )
    .await;
    stream.delete_consumer("worker").await.expect("delete a consumer");
    restart_runtime(&scene, &session).await;
    events.count_off(51..=60).await;
    // Only what is missing in the table: 21 to 24.
    until_number(&session, 64, "SELECT count(*) FROM got").await;
    let twice = texts(
        &session,
        "SELECT payload FROM got GROUP BY payload HAVING count(*) > 1 ORDER BY payload",
    )
    .await;
    assert_eq!(twice, ["21", "22", "23", "24"]);
    until_number(&session, 60, &format!("SELECT applied_to FROM {ALL}")).await;
    drop(scene);
}

#[tokio::test]
async fn a_consumer_or_a_stream_that_vanishes_is_made_again_or_reported() {
    let (mut scene, session, events) = scene().await;
    run(&session, "SELECT nats_subscribe_stream('events', 'keep')").await;
    events.count_off(1..=3).await;
    until_got(&session, &["1", "2", "3"]).await;
    let stream = events.0.get_stream("events").await.expect("the stream");
    let name = events.consumer().await.name;
    stream.delete_consumer(&name).await.expect("delete a consumer");
    events.count_off(4..=4).await;
    until_got(&session, &["1", "2", "3", "4"]).await;
    // NATS restarts.
    scene.nats.restart().await;
    eventually(LONG, async || events.0.get_stream("events").await.is_ok()).await;
    events.count_off(5..=5).await;
    eventually_eq(LONG, 5, async || {
        number(&session, "SELECT count(*) FROM got").await
    })
    .await;
    // The stream goes, which is said, and another one of its name counts anew.
    events.0.delete_stream("events").await.expect("delete a stream");
    until(&session, "waiting").await;
    let problem = format!("SELECT problem FROM {ALL} WHERE problem IS NOT NULL");
    let missing = vec!["stream \"events\" does not exist".to_owned()];
    eventually_eq(SOON, missing, async || texts(&session, &problem).await).await;
    events.create(RetentionPolicy::Limits).await;
    events.count_off(6..=7).await;
    eventually_eq(LONG, numbers(1..=7), async || got(&session).await).await;
    until_number(&session, 2, &format!("SELECT applied_to FROM {ALL}")).await;
}

/// A message that ends its executor is given up like one that fails.
#[tokio::test]
async fn a_deadly_message_goes_to_the_dead_letters() {
    let (scene, session, events) = scene().await;
    run(
        &session,
        "CREATE FUNCTION deadly(msg text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
           IF msg = 'die' THEN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(1); END IF;
           INSERT INTO public.got (payload) VALUES (msg); END $$;
         SELECT nats_subscribe_stream('events', 'deadly')",
    )
    .await;
    for word in ["1", "die", "2"] {
        events.say("events.x", word).await;
    }
    until_number(&session, 1, "SELECT count(*) FROM litmus_pgnats.dead_letter").await;
    until_got(&session, &["1", "2"]).await;
    let error = text(&session, "SELECT error FROM litmus_pgnats.dead_letter").await;
    assert_eq!(error, "57P02: executors have died with this message");
    drop(scene);
}

/// The connection breaks while subscriptions are busy: one that sees its client end before the connection does has to let
/// the connection, which runs in the same thread, hear of it.
#[tokio::test]
async fn a_connection_that_breaks_under_load_leaves_the_runtime_alive() {
    const SUBSCRIPTIONS: usize = 8;
    let (mut scene, session, events) = scene().await;
    events.count_off(1..=5_000).await;
    for n in 1..=SUBSCRIPTIONS {
        run(
            &session,
            &format!(
                "CREATE FUNCTION take{n}(msg text) RETURNS void LANGUAGE sql AS 'SELECT 1';
                 SELECT nats_subscribe_stream('events', 'take{n}', batch_size => 20)"
            ),
        )
        .await;
    }
    for _ in 0..8 {
        until_number(
            &session,
            SUBSCRIPTIONS as i64,
            "SELECT count(*) FROM litmus_pgnats.handlers WHERE state = 'live'",
        )
        .await;
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        scene.nats.kill9();
        scene.nats.restart().await;
        // The runtime worker is asked.
        run(&session, "TABLE litmus_pgnats.handlers").await;
    }
}

/// Where the stream or the NATS account allows fewer ack pending messages than the subscription would like, it does with those.
#[tokio::test]
async fn few_ack_pending_messages() {
    let account = NatsServer::builder().config(
        "accounts: { A: { jetstream: { max_ack_pending: 7 }, users: [{ user: a, password: b }] } }\nno_auth_user: a",
    );
    for (nats, limit) in [(NatsServer::builder(), 3), (account, 0)] {
        let nats = nats.jetstream().start().await;
        let scene = Scene::with(Postgres::builder(), nats, "").await;
        let session = scene.pg.connect().await;
        run(&session, KEEP).await;
        let events = Events(jetstream::new(scene.nats.client().await));
        let config = jetstream::stream::Config {
            name: "events".into(),
            subjects: vec!["events.>".into()],
            consumer_limits: (limit > 0).then(|| jetstream::stream::ConsumerLimits {
                max_ack_pending: limit,
                ..Default::default()
            }),
            ..Default::default()
        };
        events.0.create_stream(config).await.expect("create a stream");
        events.count_off(1..=50).await;
        run(&session, "SELECT nats_subscribe_stream('events', 'keep')").await;
        until(&session, "live").await;
        until_number(&session, 50, "SELECT count(*) FROM got").await;
        let expected = if limit > 0 { limit } else { 7 };
        assert_eq!(events.consumer().await.config.max_ack_pending, expected);
    }
}

/// What the NATS user may not do is said by its name, within a round trip.
#[tokio::test]
async fn permissions_that_are_missing() {
    for (denied, expected) in [
        ("$JS.ACK.>", "does not let this user publish to $JS.ACK.>"),
        (
            "$JS.API.CONSUMER.MSG.NEXT.>",
            "does not let this user publish to $JS.API.CONSUMER.MSG.NEXT.>",
        ),
        (
            "$JS.API.CONSUMER.CREATE.>",
            "does not let this user publish to subject \"$JS.API.CONSUMER.CREATE.events.",
        ),
    ] {
        let users = format!(
            "authorization: {{ users: [ \
               {{ user: a, password: b, permissions: {{ publish: {{ deny: [\"{denied}\"] }} }} }}, \
               {{ user: all, password: b }}] }}"
        );
        let nats = NatsServer::builder().config(&users).jetstream().start().await;
        let everything = async_nats::ConnectOptions::with_user_and_password("all".into(), "b".into());
        let client = nats.connect(everything).await.expect("a client");
        let scene = Scene::with(Postgres::builder(), nats, ", username 'a', password 'b'").await;
        let session = scene.pg.connect().await;
        run(&session, KEEP).await;
        let events = Events(jetstream::new(client));
        events.create(RetentionPolicy::Limits).await;
        events.say("events.x", "x").await;
        run(&session, "SELECT nats_subscribe_stream('events', 'keep')").await;
        let problem = format!("SELECT coalesce(problem, '') FROM {ALL}");
        eventually(SOON, async || {
            let problem = text(&session, &problem).await;
            if problem.contains(expected) {
                Ok(())
            } else {
                Err(problem)
            }
        })
        .await;
    }
}

/// A pause that an administrator has set outlasts the runtime worker and another call of nats_subscribe_stream.
#[tokio::test]
async fn a_pause_is_kept() {
    let (scene, session, events) = scene().await;
    run(&session, "SELECT nats_subscribe_stream('events', 'keep')").await;
    until(&session, "live").await;
    let durable = events.consumer().await.name;
    let stream = events.0.get_stream("events").await.expect("the stream");
    let until_time = async_nats::datetime::from_nanos(4_000_000_000_000_000_000).expect("a time");
    stream.pause_consumer(&durable, until_time).await.expect("pause");
    events.say("events.x", "later").await;
    let paused = format!("SELECT state = 'waiting' AND problem LIKE '%is paused until 2096-%' FROM {ALL}");
    until_holds(&session, &paused).await;
    let old = scene.runtime().await;
    run(&session, &format!("SELECT pg_terminate_backend({old})")).await;
    scene.next_runtime(old).await;
    until_holds(&session, &paused).await;
    run(
        &session,
        "SELECT nats_subscribe_stream('events', 'keep', batch_size => 7)",
    )
    .await;
    until_holds(&session, &paused).await;
    assert!(events.consumer().await.paused);
    assert_eq!(got(&session).await, [""; 0]);
    stream.resume_consumer(&durable).await.expect("resume");
    until_got(&session, &["later"]).await;
    until(&session, "live").await;
}
