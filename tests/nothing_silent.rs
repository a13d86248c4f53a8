//! What goes wrong is seen: in a view, as a warning, or in the server log; and what was given up ends.

mod handlers;
mod scene;
mod support;

use std::time::Duration;

use futures::StreamExt;
use handlers::*;
use scene::*;
use support::proc;
use support::*;

/// In debug builds: has the task of the runtime worker whose name begins so panic.
const FAULT_TASK: &str = "CREATE FUNCTION fault_task(name text) RETURNS void LANGUAGE c \
                          AS '$libdir/litmus_pgnats', 'litmus_pgnats_fault_panic_task'";

/// SQL objects of another version than the library: rows have the columns that the objects declare, and none is lost.
#[tokio::test]
async fn rows_of_another_version_are_filled_or_cut() {
    let scene = Scene::start().await;
    let session = scene.warm_session().await;
    let function = |name: &str, columns: &str, symbol: &str| {
        format!(
            "CREATE FUNCTION {name}({columns}) RETURNS SETOF record LANGUAGE c AS '$libdir/litmus_pgnats', '{symbol}'; "
        )
    };
    let symbol = "litmus_pgnats_stat_control_channel";
    run(
        &session,
        &(function("fewer", "OUT pid integer, OUT started float8", symbol)
            + &function(
                "more",
                "OUT pid integer, OUT started float8, OUT connections bigint, OUT calls bigint, OUT queued bigint, \
                 OUT frames_in bigint, OUT frames_out bigint, OUT bytes_in bigint, OUT bytes_out bigint, \
                 OUT reset float8, OUT later text, OUT latest bigint",
                symbol,
            )),
    )
    .await;
    let runtime = scene.runtime().await;
    for (function, rest) in [
        ("fewer", "true"),
        ("more", "bytes_in > 0 AND later IS NULL AND latest IS NULL"),
    ] {
        let sql = format!("SELECT count(*) || ' ' || min(pid) FROM {function}() WHERE {rest}");
        assert_eq!(text(&session, &sql).await, format!("1 {runtime}"), "{function}");
    }
    let doctor = function(
        "doctor",
        "OUT check_name text, OUT object text, OUT status text",
        "litmus_pgnats_doctor",
    );
    run(&session, &doctor).await;
    let checks = text(
        &session,
        "SELECT count(*)::text FROM doctor() WHERE status IS NOT NULL",
    )
    .await;
    assert_ne!(checks, "0");
}

/// A task that panics does not leave a handler that says `live` and hears nothing: the runtime worker begins anew.
#[tokio::test]
async fn a_subscriber_that_dies_is_replaced() {
    let (scene, session) = Scene::keeping().await;
    run(&session, FAULT_TASK).await;
    subscribe(&session, "news", "keep").await;
    let runtime = scene.runtime().await;
    let task = "subscription on subject \"news\"";
    // The runtime worker may end before it can answer.
    let _ = session
        .batch_execute(&format!("SELECT fault_task('{task}')"))
        .await;
    scene.next_runtime(runtime).await;
    let log = scene.pg.log();
    assert!(log.contains(&format!("task \"{task}\" has panicked")), "{log}");
    until_live(&session, "news").await;
    let client = scene.nats.client().await;
    client.publish("news", "again".into()).await.expect("publish");
    until_holds(&session, "SELECT count(*) = 1 FROM got").await;
}

/// The end of a session's task is the end of what the session used.
#[tokio::test]
async fn a_session_that_dies_leaves_its_connections() {
    let scene = Scene::start().await;
    let session = scene.warm_session().await;
    run(&session, FAULT_TASK).await;
    let other = scene.pg.connect().await;
    run(
        &session,
        "BEGIN; ALTER SERVER nats OPTIONS (ADD capacity '7'); SELECT nats_publish_text('a', '')",
    )
    .await;
    until_holds(
        &other,
        "SELECT count(*) = 1 FROM litmus_pgnats.connections WHERE pid IS NOT NULL",
    )
    .await;
    // The oldest session's, which is the one in the transaction.
    run(&other, "SELECT fault_task('session')").await;
    until_holds(
        &other,
        "SELECT count(*) = 0 FROM litmus_pgnats.connections WHERE pid IS NOT NULL",
    )
    .await;
    until_holds(
        &other,
        "SELECT bool_and(sessions = 0) FROM litmus_pgnats.connections",
    )
    .await;
}

/// A call whose task panics fails, and the server log names the task.
#[tokio::test]
async fn a_call_that_dies_is_an_error() {
    let nats = NatsServer::builder().jetstream().start().await;
    let scene = Scene::with(Postgres::builder(), nats, "").await;
    let (session, other) = (scene.warm_session().await, scene.pg.connect().await);
    run(&other, FAULT_TASK).await;
    run(&session, "SELECT nats_put_text('bucket', 'key', 'value')").await;
    let runtime = scene.runtime().await;
    scene.nats.pause().await;
    let dies = async {
        scene.until_waiting(session.pid()).await;
        run(&other, "SELECT fault_task('call of a bucket')").await;
    };
    let ((report, _), ()) = tokio::join!(refused(&session, "SELECT nats_get_text('bucket', 'key')"), dies);
    scene.nats.resume();
    assert_eq!(report.code, "XX000");
    let log = scene.pg.log();
    assert!(log.contains("task \"call of a bucket\" has panicked"), "{log}");
    assert_eq!(
        text(&session, "SELECT nats_get_text('bucket', 'key')").await,
        "value"
    );
    assert_eq!(scene.runtime().await, runtime);
}

/// A call that was given up does not keep a transaction's own connection, which has the former options.
#[tokio::test]
async fn a_call_that_was_given_up_keeps_no_connection() {
    let scene = Scene::start().await;
    let other = NatsServer::start().await;
    let _requests = scene.silent_responder("slow").await;
    let mut moved = other.client().await.subscribe("a").await.expect("subscribe");
    let session = scene.warm_session().await;
    run(
        &session,
        "BEGIN; ALTER SERVER nats OPTIONS (ADD capacity '7'); SELECT nats_publish_text('a', '')",
    )
    .await;
    let runtime = scene.runtime().await;
    proc::signal(runtime, libc::SIGSTOP);
    run(
        &session,
        "DO $$ BEGIN PERFORM nats_request_text('slow', 'x', 100); EXCEPTION WHEN OTHERS THEN NULL; END $$",
    )
    .await;
    let publish = format!(
        "ALTER SERVER nats OPTIONS (SET port '{}'); SELECT nats_publish_text('a', 'moved'); COMMIT",
        other.port()
    );
    let goes_on = async {
        scene.until_waiting(session.pid()).await;
        proc::signal(runtime, libc::SIGCONT);
    };
    tokio::join!(run(&session, &publish), goes_on);
    let message = tokio::time::timeout(SOON, moved.next()).await.expect("in time");
    assert_eq!(message.expect("a message").payload, "moved");
}

/// A subscription is live when the NATS server has confirmed it, and not before.
#[tokio::test]
async fn a_subscription_is_live_once_it_is_confirmed() {
    let (scene, session) = Scene::keeping().await;
    run(&session, "SELECT nats_publish_text('warm.up', '')").await;
    scene.nats.pause().await;
    run(&session, "SELECT nats_subscribe('news', 'keep'::regproc)").await;
    until_holds(
        &session,
        "SELECT state = 'waiting' AND problem = 'the NATS server has not confirmed the subscription' \
         FROM litmus_pgnats.subscriptions",
    )
    .await;
    scene.nats.resume();
    until_live(&session, "news").await;
    assert!(
        holds(
            &session,
            "SELECT problem IS NULL FROM litmus_pgnats.subscriptions"
        )
        .await
    );
    let client = scene.nats.client().await;
    client.publish("news", "heard".into()).await.expect("publish");
    until_holds(&session, "SELECT count(*) = 1 FROM got").await;
}

/// Replies that find no room, because NATS is away and the buffer is full, count as dropped.
#[tokio::test]
async fn replies_without_room_are_counted() {
    let nats = NatsServer::start().await;
    let mut scene = Scene::with(Postgres::builder(), nats, ", capacity '1'").await;
    let session = scene.pg.connect().await;
    run(
        &session,
        "CREATE FUNCTION late(q text) RETURNS text LANGUAGE plpgsql AS \
           $$ BEGIN PERFORM pg_advisory_xact_lock(7); RETURN q; END $$",
    )
    .await;
    respond(&session, "rpc", "late").await;
    run(&session, "SELECT pg_advisory_lock(7)").await;
    let client = scene.nats.client().await;
    let inbox = client.new_inbox();
    client
        .publish_with_reply("rpc", inbox, "hello".into())
        .await
        .expect("publish");
    round_trip(&client).await;
    let blocked = "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'litmus_pgnats executor' \
                   AND wait_event_type = 'Lock'";
    until_holds(&session, blocked).await;
    scene.nats.kill9();
    until_holds(
        &session,
        "SELECT state <> 'connected' FROM litmus_pgnats.connections",
    )
    .await;
    // The one message that there is room for.
    run(&session, "SELECT nats_publish_text('a', '')").await;
    run(&session, "SELECT pg_advisory_unlock(7)").await;
    until_holds(
        &session,
        "SELECT dropped = 1 AND messages = 1 FROM litmus_pgnats.responders",
    )
    .await;
    let log = scene.pg.log();
    assert!(log.contains("there was no room for replies"), "{log}");
    let last = text(&session, "SELECT last_error FROM litmus_pgnats.responders").await;
    assert_eq!(last, "there was no room for replies while NATS is away");
}

/// Messages that the former NATS server does not confirm in time may be lost, or come late: that is said.
#[tokio::test]
async fn an_unconfirmed_handover_is_reported() {
    let scene = Scene::start().await;
    let other = NatsServer::start().await;
    let session = scene.warm_session().await;
    scene.nats.pause().await;
    run(&session, "SELECT nats_publish_text('a', 'late')").await;
    let reload = format!(
        "ALTER SERVER nats OPTIONS (SET port '{}'); SELECT litmus_pgnats_reload_conf()",
        other.port()
    );
    run(&session, &reload).await;
    until_holds(
        &session,
        "SELECT last_error LIKE '%former NATS server has not confirmed%' FROM litmus_pgnats.connections",
    )
    .await;
    let log = scene.pg.log();
    assert!(
        log.contains("the former NATS server has not confirmed in time"),
        "{log}"
    );
    scene.nats.resume();
}

/// A user that may not publish to its inbox, or subscribe to it, cannot have anything confirmed by a message there, but
/// the refusals confirm too: handlers are live at once, and a handover is no report.
#[tokio::test]
async fn without_an_inbox_all_is_confirmed() {
    for permissions in ["publish: [\"a\"]", "subscribe: [\"a\", \"news\"]"] {
        let users = format!(
            "authorization: {{ users: [{{ user: a, password: b, permissions: {{ {permissions} }} }}, \
                                      {{ user: all, password: b }}] }}"
        );
        let start = async || NatsServer::builder().config(&users).start().await;
        let (first, second) = (start().await, start().await);
        let scene = Scene::with(Postgres::builder(), first, ", username 'a', password 'b'").await;
        let session = scene.pg.connect().await;
        run(&session, KEEP).await;
        subscribe(&session, "news", "keep").await;
        let problems = "SELECT count(*) FROM litmus_pgnats.subscriptions WHERE problem IS NOT NULL";
        assert_eq!(number(&session, problems).await, 0, "{permissions}");
        run(&session, "SELECT nats_publish_text('a', '')").await;
        let reload = format!(
            "ALTER SERVER nats OPTIONS (SET port '{}'); SELECT litmus_pgnats_reload_conf()",
            second.port()
        );
        run(&session, &reload).await;
        let moved = format!(
            "SELECT host LIKE '%:{}' FROM litmus_pgnats.connections",
            second.port()
        );
        until_holds(&session, &moved).await;
        // The former client has ended when a message of the next one has come.
        let everything = async_nats::ConnectOptions::with_user_and_password("all".into(), "b".into());
        let client = second.connect(everything).await.expect("a client");
        let mut inbox = client.subscribe("a").await.expect("subscribe");
        round_trip(&client).await;
        run(&session, "SELECT nats_publish_text('a', 'behind')").await;
        let message = tokio::time::timeout(SOON, inbox.next()).await.expect("in time");
        assert_eq!(message.expect("a message").payload, "behind");
        until_live(&session, "news").await;
        say(&client, "news", "heard").await;
        until_got(&session, &["heard"]).await;
        let log = scene.pg.log();
        assert!(!log.contains("has not confirmed"), "{permissions}: {log}");
    }
}

/// async-nats drops refusals that come in large numbers: each handler is confirmed all the same.
#[tokio::test]
async fn many_refusals_at_once_confirm_every_handler() {
    let users = "authorization: { users: [{ user: a, password: b, permissions: { publish: [\"a\"] } }] }";
    let nats = NatsServer::builder().config(users).start().await;
    let mut scene = Scene::with(Postgres::builder(), nats, ", username 'a', password 'b'").await;
    let session = scene.pg.connect().await;
    run(&session, KEEP).await;
    let many = "SELECT nats_subscribe('many.' || n, 'keep'::regproc) FROM generate_series(1, 300) n";
    run(&session, many).await;
    let live = "SELECT count(*) FROM litmus_pgnats.subscriptions WHERE state = 'live'";
    until_number(&session, 300, live).await;
    scene.nats.restart().await;
    let reconnected = "SELECT reconnects = 1 FROM litmus_pgnats.connections";
    until_holds(&session, reconnected).await;
    until_number(&session, 300, live).await;
}

/// A session is told when handlers that it has changed do not take effect in the time that its next call waits.
#[tokio::test]
async fn a_late_refresh_is_a_warning() {
    let (scene, session) = Scene::keeping().await;
    subscribe(&session, "first", "keep").await;
    let executor = scene.executor().await;
    proc::signal(executor, libc::SIGSTOP);
    session.take_notices();
    run(&session, "SELECT nats_subscribe('second', 'keep'::regproc)").await;
    run(&session, "SELECT count(*) FROM litmus_pgnats.executors").await;
    let notices = session.take_notices();
    let late = notices
        .iter()
        .find(|notice| notice.message.contains("have not taken effect yet"));
    let late = late.unwrap_or_else(|| panic!("{notices:?}"));
    assert_eq!(late.severity, "WARNING");
    assert!(
        late.hint
            .as_ref()
            .is_some_and(|hint| hint.contains("litmus_pgnats.handlers"))
    );
    proc::signal(executor, libc::SIGCONT);
    until_live(&session, "second").await;
    run(&session, "SELECT count(*) FROM litmus_pgnats.executors").await;
    assert!(session.take_notices().is_empty());
}

/// The statement that would get the warning is cancelled while it waits: the session goes on.
#[tokio::test]
async fn a_cancel_beside_a_warning_leaves_the_session_in_order() {
    let (scene, session) = Scene::keeping().await;
    let _requests = scene.silent_responder("slow").await;
    subscribe(&session, "first", "keep").await;
    let executor = scene.executor().await;
    proc::signal(executor, libc::SIGSTOP);
    session.take_notices();
    run(&session, "SELECT nats_subscribe('second', 'keep'::regproc)").await;
    // Longer than the session's call waits for the change, so that the warning is due when the cancel comes.
    run(&session, "SET statement_timeout = '9s'").await;
    let (report, _) = refused(&session, "SELECT nats_request_text('slow', 'x', 60000)").await;
    assert_eq!(report.code, "57014");
    let notices = session.take_notices();
    assert!(
        notices
            .iter()
            .any(|notice| notice.message.contains("have not taken effect yet")),
        "{notices:?}"
    );
    proc::signal(executor, libc::SIGCONT);
    run(
        &session,
        "RESET statement_timeout; SELECT nats_publish_text('a', '')",
    )
    .await;
    until_live(&session, "second").await;
}

/// What an administrator cancels is cancelled, though the cancel comes when a message is done already: the next message of
/// the transaction fails.
#[tokio::test]
async fn a_cancel_of_an_administrator_is_not_lost() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE FUNCTION cancel_at_end() RETURNS void LANGUAGE c AS '$libdir/litmus_pgnats', 'litmus_pgnats_fault_cancel_at_end';
         CREATE FUNCTION keep_or_cancel(msg bytea) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
           INSERT INTO public.got (payload) VALUES (convert_from(msg, 'utf8'));
           IF msg = 'cancel' THEN PERFORM public.cancel_at_end(); END IF; END $$;
         CREATE FUNCTION block(msg bytea) RETURNS void LANGUAGE sql AS 'SELECT pg_advisory_xact_lock(7)'",
    )
    .await;
    // A call with a timeout is where a cancel could be lost. One executor, so that messages wait and go together.
    for parameter in ["callback_timeout = '1min'", "max_executors = 1"] {
        run(&session, &format!("ALTER SYSTEM SET litmus_pgnats.{parameter}")).await;
    }
    run(&session, "SELECT pg_reload_conf()").await;
    subscribe(&session, "news", "keep_or_cancel").await;
    subscribe(&session, "block", "block").await;
    let client = scene.nats.client().await;
    let publish = async |subject: &'static str, payload: &'static str| {
        client.publish(subject, payload.into()).await.expect("publish");
        round_trip(&client).await;
    };
    // So that the function is known to be fast.
    for n in 1..=20 {
        publish("news", "warm").await;
        until_holds(&session, &format!("SELECT count(*) = {n} FROM got")).await;
    }
    run(&session, "SELECT pg_advisory_lock(7)").await;
    publish("block", "").await;
    let blocked = "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'litmus_pgnats executor' \
                   AND wait_event_type = 'Lock'";
    until_holds(&session, blocked).await;
    for payload in ["cancel", "next", "last"] {
        client.publish("news", payload.into()).await.expect("publish");
    }
    round_trip(&client).await;
    until_holds(
        &session,
        "SELECT queued = 3 FROM litmus_pgnats.subscriptions WHERE subject = 'news'",
    )
    .await;
    run(&session, "SELECT pg_advisory_unlock(7)").await;
    until_holds(
        &session,
        "SELECT messages = 23 FROM litmus_pgnats.subscriptions WHERE subject = 'news'",
    )
    .await;
    let got = "SELECT coalesce(string_agg(payload, ' ' ORDER BY id), '') FROM got WHERE payload <> 'warm'";
    let error = "SELECT coalesce(last_error, 'none') FROM litmus_pgnats.subscriptions WHERE subject = 'news'";
    let seen = (text(&session, got).await, text(&session, error).await);
    let cancelled = "57014: canceling statement due to user request";
    assert_eq!(seen, ("cancel last".into(), cancelled.into()));
}

/// Rows of the outbox are written past triggers, so a table with one for inserts is refused.
#[tokio::test]
async fn a_trigger_on_the_outbox_is_no_silent_one() {
    let scene = Scene::start().await;
    let session = scene.warm_session().await;
    let publish = "SELECT nats_publish_text_outbox('kept.a', '1')";
    run(
        &session,
        "CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
         CREATE TRIGGER audit AFTER INSERT ON litmus_pgnats.outbox FOR EACH ROW EXECUTE FUNCTION audit()",
    )
    .await;
    let (report, _) = refused(&session, publish).await;
    assert_eq!(report.code, "0A000", "{report:?}");
    assert!(report.message.contains("litmus_pgnats.outbox"), "{report:?}");
    run(&session, "DROP TRIGGER audit ON litmus_pgnats.outbox").await;
    run(&session, publish).await;
}

/// A message in the outbox that no library has written goes to the dead letters, and holds nothing up.
#[tokio::test]
async fn an_unreadable_message_of_the_outbox_is_kept() {
    let nats = NatsServer::builder().jetstream().start().await;
    let scene = Scene::with(Postgres::builder(), nats, "").await;
    let session = scene.pg.connect().await;
    let kept = Kept::start(&scene.nats).await;
    run(
        &session,
        "BEGIN; SELECT nats_publish_text_outbox('kept.a', 'strange', '{\"a\": \"b\"}'); \
         SELECT nats_publish_text_outbox('kept.a', 'good'); \
         UPDATE litmus_pgnats.outbox SET headers = '[1]' WHERE headers IS NOT NULL; COMMIT",
    )
    .await;
    assert_eq!(kept.payloads(1).await, ["good"]);
    until_holds(
        &session,
        "SELECT count(*) = 1 AND bool_and(error LIKE '%cannot be read%') FROM litmus_pgnats.dead_letters",
    )
    .await;
    until_holds(&session, "SELECT count(*) = 0 FROM litmus_pgnats.outbox").await;
    until_holds(&session, "SELECT count(*) = 0 FROM litmus_pgnats.outbox_batch").await;
}

/// A stream that is not there is told as that, and not as a bucket that putting a value creates.
#[tokio::test]
async fn a_missing_stream_is_no_bucket() {
    let nats = NatsServer::builder().jetstream().start().await;
    let scene = Scene::with(Postgres::builder(), nats, "").await;
    let session = scene.pg.connect().await;
    run(&session, KEEP).await;
    run(
        &session,
        "SELECT nats_subscribe_stream('nowhere', 'keep'::regproc)",
    )
    .await;
    let problem = "SELECT coalesce(problem, '') FROM litmus_pgnats.stream_subscriptions";
    eventually(SOON, async || {
        text(&session, problem)
            .await
            .contains("stream \"nowhere\" does not exist")
    })
    .await;
    for sql in [
        "SELECT nats_update_text('nowhere', 'key', 'value', 1)",
        "SELECT nats_delete_bucket('nowhere')",
    ] {
        let (report, _) = refused(&session, sql).await;
        assert!(
            report.message.contains("key-value bucket \"nowhere\""),
            "{sql}: {report:?}"
        );
    }
}

/// A dropped database's connections end with their last user, and not after a guess.
#[tokio::test]
async fn connections_of_a_dropped_database_end() {
    let scene = Scene::start().await;
    let session = scene.pg.connect().await;
    let inside = scene.database("shop").await;
    subscribe(&inside, "news", "keep").await;
    inside.close().await;
    run(&session, "DROP DATABASE shop").await;
    until_holds(&session, "SELECT count(*) = 0 FROM litmus_pgnats.connections").await;
    let names = async || {
        let connz = scene.nats.monitor("/connz").await;
        connz["num_connections"].as_u64()
    };
    eventually_eq(Duration::from_secs(15), Some(0), names).await;
}
