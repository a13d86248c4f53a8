//! Durable subscriptions: each message of a stream has its effects once, whatever fails.

mod handlers;
mod scene;
mod support;

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use handlers::*;
use scene::*;
use support::*;

const ALL: &str = "litmus_pgnats.stream_subscriptions";

/// A stream `events` of `events.>`, and who publishes to it.
struct Events(jetstream::Context);

impl Events {
    async fn start(scene: &Scene) -> Events {
        let events = Events(jetstream::new(scene.nats.client().await));
        events.create().await;
        events
    }

    async fn create(&self) {
        let config = stream::Config {
            name: "events".into(),
            subjects: vec!["events.>".into()],
            ..Default::default()
        };
        self.0.create_stream(config).await.expect("create a stream");
    }

    async fn say(&self, subject: &str, payload: &str) {
        let sent = self
            .0
            .publish(subject.to_owned(), payload.to_owned().into())
            .await;
        sent.expect("publish").await.expect("an acknowledgement");
    }

    async fn count_off(&self, numbers: std::ops::RangeInclusive<usize>) {
        let mut acks = Vec::new();
        for n in numbers {
            let sent = self.0.publish("events.n", n.to_string().into()).await;
            acks.push(sent.expect("publish").into_future());
        }
        futures::future::try_join_all(acks)
            .await
            .expect("acknowledgements");
    }

    /// What the server says of the only consumer.
    async fn consumer(&self) -> jetstream::consumer::Info {
        use futures::TryStreamExt;
        let stream = self.0.get_stream("events").await.expect("the stream");
        let all: Vec<_> = stream.consumers().try_collect().await.expect("consumers");
        let [one] = all.try_into().unwrap_or_else(|all| panic!("{all:?}"));
        one
    }
}

async fn scene() -> (Scene, Session, Events) {
    let nats = NatsServer::builder().jetstream().start().await;
    let scene = Scene::with(Postgres::builder(), nats, "").await;
    let session = scene.pg.connect().await;
    run(&session, KEEP).await;
    let events = Events::start(&scene).await;
    (scene, session, events)
}

/// Waits until all durable subscriptions are in this state.
async fn until(session: &Session, state: &str) {
    let sql = format!("SELECT state || coalesce(': ' || problem, '') FROM {ALL}");
    eventually(LONG, async || {
        let states = texts(session, &sql).await;
        let there = !states.is_empty() && states.iter().all(|seen| seen.split(':').next() == Some(state));
        if there { Ok(()) } else { Err(states) }
    })
    .await;
}

#[tokio::test]
async fn messages_come_in_order_with_all_that_is_known_of_them_and_are_acknowledged() {
    let (scene, session, events) = scene().await;
    run(
        &session,
        "CREATE FUNCTION look_at(messages litmus_pgnats.message[]) RETURNS void LANGUAGE sql AS $$
           INSERT INTO public.got (payload)
           SELECT concat_ws('|', subject, convert_from(payload, 'utf8'), coalesce(reply_to, '-'),
             stream_sequence, delivery_count, \"time\" BETWEEN now() - interval '1 min' AND now()) FROM unnest(messages) $$;",
    )
    .await;
    events.say("events.a", "before").await;
    run(&session, "SELECT nats_subscribe_stream('events', 'look_at')").await;
    events.say("events.b", "after").await;
    until_got(&session, &["events.a|before|-|1|1|t", "events.b|after|-|2|1|t"]).await;
    eventually_eq(SOON, 2, async || {
        events.consumer().await.ack_floor.stream_sequence
    })
    .await;
    until_number(&session, 2, &format!("SELECT applied_to FROM {ALL}")).await;
    run(&session, "SELECT nats_unsubscribe_stream('events', 'look_at')").await;
    events.say("events.c", "later").await;
    until_number(&session, 0, &format!("SELECT count(*) FROM {ALL}")).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(got(&session).await.len(), 2);
    drop(scene);
}

#[tokio::test]
async fn filters_and_where_it_begins() {
    let (scene, session, events) = scene().await;
    for n in 1..=9 {
        events.say(&format!("events.{}", n % 3), &n.to_string()).await;
    }
    for (arguments, expected) in [
        ("start_sequence => 7", "7 8 9 10 11"),
        ("filter_subjects => '{events.1}'", "1 4 7 10"),
        (
            "filter_subjects => '{events.1,events.2}', start_sequence => 3",
            "4 5 7 8 10 11",
        ),
        ("deliver => 'new'", "10 11"),
        (
            "start_time => now() - interval '1 hour'",
            "1 2 3 4 5 6 7 8 9 10 11",
        ),
    ] {
        run(&session, "TRUNCATE got").await;
        run(
            &session,
            &format!("SELECT nats_subscribe_stream('events', 'keep', {arguments})"),
        )
        .await;
        until(&session, "live").await;
        for n in 10..=11 {
            events.say(&format!("events.{}", n % 3), &n.to_string()).await;
        }
        let came = async || got(&session).await.join(" ");
        eventually_eq(SOON, expected.to_owned(), came).await;
        run(&session, "SELECT nats_unsubscribe_stream('events', 'keep')").await;
        let stream = events.0.get_stream("events").await.expect("the stream");
        for sequence in [
            stream.cached_info().state.last_sequence,
            stream.cached_info().state.last_sequence - 1,
        ] {
            stream.delete_message(sequence).await.expect("delete a message");
        }
        let name = events.consumer().await.name;
        stream.delete_consumer(&name).await.expect("delete a consumer");
    }
    drop(scene);
}

/// Failures are tried again after the backoff, and what fails for good goes to the dead letters; nobody waits for it.
#[tokio::test]
async fn what_fails_is_tried_again_and_then_given_up() {
    let (scene, session, events) = scene().await;
    run(
        &session,
        "CREATE SEQUENCE tries; CREATE FUNCTION moody(msg text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
           IF msg = 'never' OR (msg = 'third' AND nextval('public.tries') < 3) THEN RAISE 'not %', msg; END IF;
           INSERT INTO public.got (payload) VALUES (msg); END $$;
         SELECT nats_subscribe_stream('events', 'moody', max_deliveries => 4, backoff => '{100 ms}')",
    )
    .await;
    for word in ["one", "never", "third", "four"] {
        events.say("events.x", word).await;
    }
    until_got(&session, &["one", "four", "third"]).await;
    until_number(&session, 1, "SELECT count(*) FROM litmus_pgnats.dead_letter").await;
    let letter = text(
        &session,
        "SELECT concat_ws('|', source, server, role, stream, function, stream_sequence, delivery_count, subject,
           convert_from(payload, 'utf8'), error) FROM litmus_pgnats.dead_letter",
    )
    .await;
    assert_eq!(
        letter,
        "stream|nats|postgres|events|public.moody(text)|2|4|events.x|never|P0001: not never"
    );
    until_number(&session, 4, &format!("SELECT applied_to FROM {ALL}")).await;
    eventually_eq(SOON, (4, 0), async || {
        let info = events.consumer().await;
        (info.ack_floor.stream_sequence, info.num_ack_pending)
    })
    .await;
    drop(scene);
}

/// A dead letter is executed again in the caller's transaction, as the subscription's role: its error is the caller's.
#[tokio::test]
async fn a_dead_letter_is_redriven() {
    let (scene, session, events) = scene().await;
    run(
        &session,
        &format!(
            "{SHOP} CREATE TABLE log (who text, what text); GRANT INSERT ON log TO shop;
             CREATE TABLE broken (); GRANT SELECT ON broken TO shop;
             CREATE FUNCTION fussy(msg text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
               IF to_regclass('public.broken') IS NOT NULL THEN RAISE 'still broken'; END IF;
               PERFORM set_config('application_name', 'mine', false);
               INSERT INTO public.log VALUES (current_user, msg); END $$;
             CREATE FUNCTION fussy_many(messages litmus_pgnats.message[]) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
               PERFORM public.fussy(convert_from(payload, 'utf8') || ' ' || stream_sequence) FROM unnest(messages); END $$;"
        ),
    )
    .await;
    let shop = scene.pg.connect_as("shop", "postgres").await;
    for function in ["fussy", "fussy_many"] {
        run(
            &shop,
            &format!("SELECT nats_subscribe_stream('events', '{function}', max_deliveries => 1)"),
        )
        .await;
    }
    events.say("events.x", "again").await;
    until_number(&session, 2, "SELECT count(*) FROM litmus_pgnats.dead_letter").await;
    let (report, _) = refused(&shop, "SELECT litmus_pgnats.redrive(1)").await;
    assert_eq!(
        (report.code.as_str(), report.message.as_str()),
        ("P0001", "still broken")
    );
    run(&session, "CREATE ROLE stranger LOGIN; DROP TABLE broken").await;
    let stranger = scene.pg.connect_as("stranger", "postgres").await;
    let (report, _) = refused(&stranger, "SELECT litmus_pgnats.redrive(1)").await;
    assert_eq!(report.message, "permission denied for dead letter 1");
    // As its role also when a superuser asks; and it stays if the transaction does not commit.
    run(&session, "BEGIN; SELECT litmus_pgnats.redrive(1); ROLLBACK").await;
    assert_eq!(
        number(&session, "SELECT count(*) FROM litmus_pgnats.dead_letter").await,
        2
    );
    run(&session, "SELECT litmus_pgnats.redrive(1)").await;
    run(&shop, "SELECT litmus_pgnats.redrive(2)").await;
    assert_eq!(
        number(&session, "SELECT count(*) FROM litmus_pgnats.dead_letter").await,
        0
    );
    let mut log = texts(&session, "SELECT who || ': ' || what FROM log").await;
    log.sort();
    assert_eq!(log, ["shop: again", "shop: again 1"]);
    assert_eq!(text(&session, "SELECT current_user::text").await, "postgres");
    assert_ne!(text(&session, "SHOW application_name").await, "mine");
    drop(scene);
}

#[tokio::test]
async fn a_subscription_that_stops_keeps_the_order_and_goes_on_when_told() {
    let (scene, session, events) = scene().await;
    run(
        &session,
        "CREATE TABLE bad (word text); INSERT INTO bad VALUES ('2'), ('4');
         CREATE FUNCTION strict(msg text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
           IF msg IN (SELECT word FROM public.bad) THEN RAISE 'not %', msg; END IF;
           INSERT INTO public.got (payload) VALUES (msg); END $$;
         SELECT nats_subscribe_stream('events', 'strict', max_deliveries => 3, backoff => '{200 ms}', stop_on_failure => true)",
    )
    .await;
    for n in 1..=6 {
        events.say("events.x", &n.to_string()).await;
    }
    until_got(&session, &["1"]).await;
    run(&session, "DELETE FROM bad WHERE word = '2'").await;
    until_got(&session, &["1", "2", "3"]).await;
    until(&session, "disabled").await;
    let problem = text(&session, &format!("SELECT problem FROM {ALL}")).await;
    assert_eq!(
        problem,
        "message 4 of the stream has failed 3 times: P0001: not 4"
    );
    events.say("events.x", "7").await;
    run(
        &session,
        "TRUNCATE bad; SELECT nats_subscribe_stream('events', 'strict', stop_on_failure => true)",
    )
    .await;
    until_got(&session, &["1", "2", "3", "4", "5", "6", "7"]).await;
    assert_eq!(
        number(&session, "SELECT count(*) FROM litmus_pgnats.dead_letter").await,
        0
    );
    drop(scene);
}

/// Ends the runtime worker; its successor knows what the database knows.
async fn restart_runtime(scene: &Scene, session: &Session) {
    let old = scene.runtime().await;
    run(session, &format!("SELECT pg_terminate_backend({old})")).await;
    scene.next_runtime(old).await;
    until(session, "live").await;
}

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
    events.create().await;
    events.count_off(6..=7).await;
    eventually_eq(LONG, numbers(1..=7), async || got(&session).await).await;
    until_number(&session, 2, &format!("SELECT applied_to FROM {ALL}")).await;
}

/// A callback takes longer than the ack wait: JetStream is told that it is worked on.
#[tokio::test]
async fn a_long_callback_is_not_delivered_again_meanwhile() {
    let (scene, session, events) = scene().await;
    run(
        &session,
        "CREATE FUNCTION slow(msg text) RETURNS void LANGUAGE sql AS $$
           INSERT INTO public.got (payload) VALUES (msg); SELECT pg_sleep(4) $$;
         SELECT nats_subscribe_stream('events', 'slow', ack_wait => '1 s')",
    )
    .await;
    events.count_off(1..=1).await;
    until_got(&session, &["1"]).await;
    eventually_eq(SOON, 1, async || {
        events.consumer().await.ack_floor.stream_sequence
    })
    .await;
    assert_eq!(
        events.consumer().await.delivered.consumer_sequence,
        1,
        "delivered again"
    );
    drop(scene);
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

#[tokio::test]
async fn what_is_refused() {
    let (scene, session, _) = scene().await;
    for (arguments, message) in [
        ("'a.b', 'keep'", "invalid stream name \"a.b\""),
        (
            "'events', 'keep', deliver => 'last'",
            "invalid value for deliver: \"last\"",
        ),
        (
            "'events', 'keep', deliver => 'new', start_sequence => 1",
            "deliver => 'new', start_sequence and start_time exclude each other",
        ),
        (
            "'events', 'keep', start_sequence => 0",
            "start_sequence is out of range",
        ),
        ("'events', 'keep', batch_size => 0", "batch_size is out of range"),
        (
            "'events', 'keep', ack_wait => '10 ms'",
            "ack_wait is out of range",
        ),
        (
            "'events', 'keep', max_deliveries => -1",
            "max_deliveries is negative",
        ),
        ("'events', 'keep', backoff => '{NULL}'", "backoff is out of range"),
        (
            "'events', 'keep', durable => 'a b'",
            "invalid durable name \"a b\"",
        ),
        ("'events', 'keep', filter_subjects => '{a..b}'", "invalid subject"),
        ("'events', 'now'", "function pg_catalog.now() cannot be a stream"),
    ] {
        let sql = format!("SELECT nats_subscribe_stream({arguments})");
        let (report, _) = refused(&session, &sql).await;
        assert_eq!(report.message, message, "{sql}");
    }
    drop(scene);
}
