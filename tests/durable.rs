//! Durable subscriptions: what their functions are given, in which order, and what becomes of messages that fail.

mod events;
mod handlers;
mod scene;
mod support;

use std::time::Duration;

use events::*;
use handlers::*;
use scene::*;
use support::*;

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
        ("start_time => '1677-01-01'", "1 2 3 4 5 6 7 8 9 10 11"),
        ("start_time => '-infinity'", "1 2 3 4 5 6 7 8 9 10 11"),
        ("start_time => now() - interval '1 us'", "10 11"),
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

/// Calling again changes what is named, and leaves the rest; where the subscription is cannot be changed so.
#[tokio::test]
async fn calling_again_changes_what_is_named() {
    let (_scene, session, events) = scene().await;
    run(
        &session,
        "SELECT nats_subscribe_stream('events', 'keep', stop_on_failure => true, max_deliveries => 0, ack_wait => '7 s',
           filter_subjects => '{events.x}')",
    )
    .await;
    session.take_notices();
    let row = "SELECT concat_ws(' ', stop_on_failure, max_deliveries, ack_wait, filter_subjects, batch_size, backoff)
               FROM litmus_pgnats.handler_stream";
    for (arguments, expected) in [
        ("", "t 0 00:00:07 {events.x} 500 {00:00:01,00:00:05,00:00:30}"),
        (
            ", batch_size => 7, backoff => '{2 s}'",
            "t 0 00:00:07 {events.x} 7 {00:00:02}",
        ),
        (
            ", stop_on_failure => false, filter_subjects => '{}', max_deliveries => 3",
            "f 3 00:00:07 {} 7 {00:00:02}",
        ),
    ] {
        run(
            &session,
            &format!("SELECT nats_subscribe_stream('events', 'keep'{arguments})"),
        )
        .await;
        assert_eq!(text(&session, row).await, expected);
    }
    assert!(session.take_notices().is_empty());
    run(
        &session,
        "SELECT nats_subscribe_stream('events', 'keep', deliver => 'new')",
    )
    .await;
    let notices = session.take_notices();
    assert_eq!(
        notices[0].message,
        "the durable subscription of stream \"events\" goes on where it is"
    );
    until(&session, "live").await;
    events.say("events.y", "wanted now").await;
    until_got(&session, &["wanted now"]).await;
}

/// A subscription is paused and resumed, and skips the message that it has stopped at, which becomes a dead letter.
#[tokio::test]
async fn a_subscription_is_paused_resumed_and_skips() {
    let (scene, session, events) = scene().await;
    run(
        &session,
        &format!(
            "{SHOP} CREATE FUNCTION fussy(msg text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
               IF msg = 'poison' THEN RAISE 'not %', msg; END IF;
               INSERT INTO public.got (payload) VALUES (msg); END $$;
             SELECT nats_subscribe_stream('events', 'fussy', stop_on_failure => true, max_deliveries => 1)"
        ),
    )
    .await;
    until(&session, "live").await;
    let (report, _) = refused(
        &session,
        "SELECT litmus_pgnats.resume('events', 'fussy', skip => true)",
    )
    .await;
    assert_eq!(report.code, "55000");
    let shop = scene.pg.connect_as("shop", "postgres").await;
    for verb in ["pause", "resume"] {
        let (report, _) = refused(&shop, &format!("SELECT litmus_pgnats.{verb}('events', 'fussy')")).await;
        assert_eq!(report.code, "42501");
        let (report, _) = refused(
            &session,
            &format!("SELECT litmus_pgnats.{verb}('other', 'fussy')"),
        )
        .await;
        assert_eq!(report.code, "42602");
    }
    run(&session, "SELECT litmus_pgnats.pause('events', 'fussy')").await;
    until(&session, "disabled").await;
    let problem = format!("SELECT problem FROM {ALL}");
    assert_eq!(text(&session, &problem).await, "paused by litmus_pgnats.pause()");
    let kept = "SELECT count(*) FROM litmus_pgnats.stopped_message";
    assert_eq!(number(&session, kept).await, 0);
    for word in ["one", "poison", "three"] {
        events.say("events.x", word).await;
    }
    run(&session, "SELECT nats_subscribe_stream('events', 'fussy')").await;
    run(&session, "SELECT nats_publish_text('x', '')").await;
    until(&session, "disabled").await;
    assert_eq!(got(&session).await, [""; 0]);
    run(&session, "SELECT litmus_pgnats.resume('events', 'fussy')").await;
    until_got(&session, &["one"]).await;
    until(&session, "disabled").await;
    let why = text(&session, &problem).await;
    assert!(why.starts_with("message 2 of the stream has failed"), "{why}");
    assert_eq!(number(&session, kept).await, 1);
    // Paused as well, the subscription still says where it has stopped.
    run(&session, "SELECT litmus_pgnats.pause('events', 'fussy')").await;
    run(&session, "SELECT nats_publish_text('x', '')").await;
    let why = text(&session, &problem).await;
    assert!(
        why.starts_with("paused by litmus_pgnats.pause(); message 2 of"),
        "{why}"
    );
    // Resumed without a change, it stops at the same message.
    run(&session, "SELECT litmus_pgnats.resume('events', 'fussy')").await;
    until_holds(
        &session,
        "SELECT stopped IS NOT NULL FROM litmus_pgnats.handler_stream",
    )
    .await;
    run(
        &session,
        "SELECT litmus_pgnats.resume('events', 'fussy', skip => true)",
    )
    .await;
    until_got(&session, &["one", "three"]).await;
    until(&session, "live").await;
    let letter = "SELECT concat_ws('|', source, server, role, stream, function, stream_sequence, delivery_count, subject,
                  convert_from(payload, 'utf8'), error) FROM litmus_pgnats.dead_letter";
    let letter = text(&session, letter).await;
    assert_eq!(
        letter,
        "stream|nats|postgres|events|public.fussy(text)|2|1|events.x|poison|P0001: not poison"
    );
    until_number(&session, 3, &format!("SELECT applied_to FROM {ALL}")).await;
    assert_eq!(number(&session, kept).await, 0);
}

/// All dead letters of a subscription are redriven with one call, which goes on past those that fail again.
#[tokio::test]
async fn dead_letters_are_redriven_together() {
    let (_scene, session, events) = scene().await;
    run(
        &session,
        "CREATE TABLE bad (word text); INSERT INTO bad VALUES ('one'), ('two'), ('three');
         CREATE FUNCTION moody(msg text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
           IF msg IN (SELECT word FROM public.bad) THEN RAISE 'not %', msg USING ERRCODE = '57XYZ'; END IF;
           INSERT INTO public.got (payload) VALUES (msg); END $$;
         SELECT nats_subscribe_stream('events', 'moody', max_deliveries => 1)",
    )
    .await;
    for word in ["one", "two", "three"] {
        events.say("events.x", word).await;
    }
    until_number(&session, 3, "SELECT count(*) FROM litmus_pgnats.dead_letter").await;
    run(&session, "DELETE FROM bad WHERE word <> 'two'").await;
    let none = "SELECT count(*) FROM litmus_pgnats.redrive_all('outbox')";
    assert_eq!(number(&session, none).await, 0);
    let none = "SELECT count(*) FROM litmus_pgnats.redrive_all(stream => 'others')";
    assert_eq!(number(&session, none).await, 0);
    let redriven = texts(
        &session,
        "SELECT concat_ws(' ', id, coalesce(error, 'done')) FROM litmus_pgnats.redrive_all(
           stream => 'events', function => 'public.moody(text)') ORDER BY id",
    )
    .await;
    assert_eq!(redriven, ["1 done", "2 57XYZ: not two", "3 done"]);
    assert_eq!(got(&session).await, ["one", "three"]);
    let left = "SELECT convert_from(payload, 'utf8') FROM litmus_pgnats.dead_letter";
    assert_eq!(texts(&session, left).await, ["two"]);
}

/// A handler's own function may redrive, while the plans of the executor are in use.
#[tokio::test]
async fn a_handler_redrives_dead_letters() {
    let (scene, session, events) = scene().await;
    run(
        &session,
        "CREATE TABLE broken ();
         CREATE FUNCTION fussy(msg text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
           IF to_regclass('public.broken') IS NOT NULL THEN RAISE 'still broken'; END IF;
           INSERT INTO public.got (payload) VALUES (msg); END $$;
         CREATE FUNCTION redrive_one(id text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
           PERFORM litmus_pgnats.redrive(id::bigint);
           PERFORM count(*) FROM public.got;
           RETURN 'redrove ' || id; END $$;
         SELECT nats_subscribe_stream('events', 'fussy', max_deliveries => 1)",
    )
    .await;
    respond(&session, "redrive", "redrive_one").await;
    for word in ["one", "two", "three"] {
        events.say("events.x", word).await;
    }
    until_number(&session, 3, "SELECT count(*) FROM litmus_pgnats.dead_letter").await;
    let client = scene.nats.client().await;
    let (code, message) = service_error(&ask(&client, "redrive", "1").await).expect("an error");
    assert_eq!((code.as_str(), message.as_str()), ("P0001", "still broken"));
    run(&session, "DROP TABLE broken").await;
    for id in ["1", "2", "3"] {
        assert_eq!(
            reply_text(&ask(&client, "redrive", id).await),
            format!("redrove {id}")
        );
    }
    until_got(&session, &["one", "two", "three"]).await;
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

/// A message is tried again though another role has the only executor by then, and nothing else happens.
#[tokio::test]
async fn a_retry_gets_an_executor_of_its_role() {
    let nats = NatsServer::builder().jetstream().start().await;
    let pg = Postgres::builder().conf("litmus_pgnats.max_executors", "1");
    let scene = Scene::with(pg, nats, "").await;
    let session = scene.pg.connect().await;
    let events = Events::start(&scene, RetentionPolicy::Limits).await;
    for sql in [KEEP, SHOP] {
        run(&session, sql).await;
    }
    run(
        &session,
        "GRANT INSERT ON got TO shop; SET ROLE shop; SELECT nats_subscribe('news', 'keep'); RESET ROLE;
         CREATE TABLE bad AS SELECT;
         CREATE FUNCTION strict(msg text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
           IF EXISTS (SELECT FROM public.bad) THEN RAISE 'not now'; END IF;
           INSERT INTO public.got (payload) VALUES (msg); END $$;
         SELECT nats_subscribe_stream('events', 'strict', backoff => '{2 s}', stop_on_failure => true)",
    )
    .await;
    until_live(&session, "news").await;
    events.say("events.x", "1").await;
    until_number(&session, 1, &format!("SELECT errors FROM {ALL}")).await;
    run(&session, "TRUNCATE bad").await;
    say(&scene.nats.client().await, "news", "2").await;
    until_number(&session, 2, "SELECT count(*) FROM got").await;
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

/// The time to begin at is the one that was given, whatever the session's settings make of times as text.
#[tokio::test]
async fn a_time_is_no_text() {
    let (_scene, session, _) = scene().await;
    run(
        &session,
        "SET DateStyle = 'SQL, DMY'; SET TimeZone = 'Asia/Kolkata'; SET IntervalStyle = sql_standard;
         SELECT nats_subscribe_stream('events', 'keep', start_time => '2026-03-04 05:06:07.000009+00',
           ack_wait => '1 min 1.5 s', backoff => '{1 s,1 day,90 min}')",
    )
    .await;
    let stored = "SELECT start_time = '2026-03-04 05:06:07.000009+00' AND ack_wait = '1 min 1.5 s' \
                  AND backoff = '{1 s,1 day,90 min}' FROM litmus_pgnats.handler_stream";
    assert!(holds(&session, stored).await);
    until(&session, "live").await;
}

/// A function that becomes STRICT would miss messages: its handlers are disabled, and say why, until it is not.
#[tokio::test]
async fn a_function_that_becomes_strict() {
    let (scene, session, events) = scene().await;
    run(
        &session,
        "CREATE FUNCTION keep_all(msg text, subject text, reply_to text) RETURNS void LANGUAGE sql AS
           $$ INSERT INTO public.got (payload) VALUES (msg) $$;
         SELECT nats_subscribe_stream('events', 'keep_all')",
    )
    .await;
    until(&session, "live").await;
    run(&session, "ALTER FUNCTION keep_all STRICT").await;
    until(&session, "disabled").await;
    let problem = text(&session, &format!("SELECT problem FROM {ALL}")).await;
    assert!(problem.contains("is not called for each message"), "{problem}");
    events.say("events.x", "kept").await;
    run(&session, "ALTER FUNCTION keep_all CALLED ON NULL INPUT").await;
    until_got(&session, &["kept"]).await;
    // Nor is a dead letter taken for executed.
    run(&session, "ALTER FUNCTION keep_all STRICT").await;
    let letter = "INSERT INTO litmus_pgnats.dead_letter (source, server, role, stream, function, stream_sequence, delivery_count,
                    subject, payload, error, sent)
                  VALUES ('stream', 'nats', 'postgres', 'events', 'public.keep_all(text,text,text)', 9, 1, 'events.x', 'x', 'y', now())";
    run(&session, letter).await;
    let (report, _) = refused(
        &session,
        "SELECT litmus_pgnats.redrive(max(id)) FROM litmus_pgnats.dead_letter",
    )
    .await;
    assert_eq!(report.code, "42P13");
    assert_eq!(
        number(&session, "SELECT count(*) FROM litmus_pgnats.dead_letter").await,
        1
    );
    drop(scene);
}

#[tokio::test]
async fn what_is_refused() {
    let (scene, session, _) = scene().await;
    run(
        &session,
        "CREATE FUNCTION strict_reply(msg text, subject text, reply_to text) RETURNS void LANGUAGE sql STRICT AS '';
         CREATE FUNCTION keep_other(msg text) RETURNS void LANGUAGE sql AS '';
         SELECT nats_subscribe_stream('events', 'keep', durable => 'taken')",
    )
    .await;
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
        (
            "'events', 'keep', filter_subjects => '{events.x,NULL}'",
            "array element must not be null",
        ),
        (
            "'events', 'keep', start_time => 'infinity'",
            "start_time is out of range",
        ),
        (
            "'events', 'keep', start_time => '2262-04-12'",
            "start_time is out of range",
        ),
        (
            "'events', 'keep', start_time => '10000-01-01'",
            "start_time is out of range",
        ),
        (
            "'events', 'strict_reply'",
            "function public.strict_reply(text,text,text) is not called for each message",
        ),
        (
            "'events', 'keep_other', durable => 'taken'",
            "consumer \"taken\" is that of another durable subscription of stream \"events\"",
        ),
        (
            "'events', 'keep', durable => 'litmus_0123'",
            "invalid durable name \"litmus_0123\"",
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
        (
            "'events', 'now'",
            "function pg_catalog.now() cannot be a durable subscription",
        ),
    ] {
        let sql = format!("SELECT nats_subscribe_stream({arguments})");
        let (report, _) = refused(&session, &sql).await;
        assert_eq!(report.message, message, "{sql}");
    }
    drop(scene);
}
