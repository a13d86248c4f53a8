//! What the views of schema litmus_pgnats show, against what happened.

mod events;
mod handlers;
mod scene;
mod support;

use std::time::Instant;

use handlers::*;
use litmus_pgnats::actors::metrics::exec_times::BOUNDS_MS;
use scene::*;
use support::*;

/// Everything but the tables that the views are of.
const VIEWS: &str = "SELECT viewname::text FROM pg_views WHERE schemaname = 'litmus_pgnats'";

/// Messages, calls, errors and times of a function; and that all begins anew with a reset.
#[tokio::test]
async fn times_of_functions() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE FUNCTION nap(msg text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
           PERFORM pg_sleep(msg::float); END $$;
         CREATE FUNCTION answer(q text) RETURNS text LANGUAGE sql AS 'SELECT q'",
    )
    .await;
    subscribe(&session, "nap", "nap").await;
    respond(&session, "rpc", "answer").await;
    let client = scene.nats.client().await;
    // Naps that a busy machine does not make of another call.
    for time in ["0.3", "0", "no time", "0.3"] {
        say(&client, "nap", time).await;
    }
    reply_text(&ask(&client, "rpc", "1").await);
    let sums = "SELECT messages = 4 AND calls >= 4 AND errors = 1 AND queued = 0
                  AND last_error LIKE '22P02: %' AND last_error_at > stats_reset
                  AND total_exec_time >= 600 AND max_exec_time BETWEEN 300 AND total_exec_time
                  AND abs(mean_exec_time * calls - total_exec_time) < 0.01
                  AND lag = interval '0'
                FROM litmus_pgnats.subscriptions WHERE subject = 'nap'";
    until_holds(&session, sums).await;
    let histogram =
        "SELECT cardinality(exec_time_histogram) = cardinality(litmus_pgnats.exec_time_bounds()) + 1
                  AND calls = (SELECT sum(n) FROM unnest(exec_time_histogram) n)
                  AND 2 = (SELECT sum(n) FROM unnest(exec_time_histogram) WITH ORDINALITY h (n, bucket)
                           WHERE bucket > width_bucket(299.9, litmus_pgnats.exec_time_bounds()))
                FROM litmus_pgnats.subscriptions";
    assert!(holds(&session, histogram).await);
    let bounds = session
        .query_one("SELECT litmus_pgnats.exec_time_bounds()", &[])
        .await;
    let bounds: Vec<f64> = bounds.expect("the bounds").get(0);
    assert_eq!(bounds, BOUNDS_MS, "SQL says what the counting goes by");
    let responder = "SELECT (messages, calls, errors) = (1, 1, 0) FROM litmus_pgnats.responders";
    until_holds(&session, responder).await;

    run(&session, "SELECT litmus_pgnats.stat_reset()").await;
    let reset =
        "SELECT bool_and((messages, calls, errors, total_exec_time) = (0, 0, 0, 0) AND last_error IS NULL
                   AND stats_reset > now() - interval '10 s' AND state = 'live') FROM litmus_pgnats.handlers";
    assert!(holds(&session, reset).await);
    say(&client, "nap", "0").await;
    until_holds(
        &session,
        "SELECT (messages, calls) = (1, 1) FROM litmus_pgnats.subscriptions",
    )
    .await;
}

/// A function that takes many messages is called less often than there are messages.
#[tokio::test]
async fn calls_of_batches() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE FUNCTION many(messages litmus_pgnats.message[]) RETURNS void LANGUAGE sql AS $$
           INSERT INTO public.got (payload) SELECT convert_from(payload, 'utf8') FROM unnest(messages) $$",
    )
    .await;
    subscribe(&session, "many", "many").await;
    count_off(&scene.nats.client().await, "many", 1..=2000).await;
    until_number(&session, 2000, "SELECT count(*) FROM got").await;
    let fewer = "SELECT messages = 2000 AND calls BETWEEN 2 AND 1000 FROM litmus_pgnats.subscriptions";
    until_holds(&session, fewer).await;
}

/// What a call that goes on is counted for when its handler is registered again with other options.
#[tokio::test]
async fn registered_again_in_the_middle() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE TABLE gate (); CREATE FUNCTION wait(messages litmus_pgnats.message[]) RETURNS void LANGUAGE sql AS
           'SELECT FROM public.gate'; SELECT nats_subscribe('wait', 'wait', batch_size => 5)",
    )
    .await;
    until_live(&session, "wait").await;
    let keeper = scene.pg.connect().await;
    run(&keeper, "BEGIN; LOCK TABLE gate").await;
    say(&scene.nats.client().await, "wait", "1").await;
    until_holds(
        &session,
        "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'litmus_pgnats executor' AND wait_event_type = 'Lock'",
    )
    .await;
    run(&session, "SELECT nats_subscribe('wait', 'wait', batch_size => 6)").await;
    run(&keeper, "COMMIT").await;
    until_holds(
        &session,
        "SELECT state = 'live' AND (messages, calls, errors) = (1, 1, 0) FROM litmus_pgnats.subscriptions",
    )
    .await;
}

/// While a function hangs, the messages behind it and their lag grow; a durable subscription counts what is in its stream.
#[tokio::test]
async fn lag_and_pending() {
    let (scene, session, events) = events::scene().await;
    run(
        &session,
        "CREATE TABLE gate (); CREATE FUNCTION pass(msg text) RETURNS void LANGUAGE sql AS 'SELECT FROM public.gate';
         SELECT nats_subscribe('core', 'pass'), nats_subscribe_stream('events', 'pass', batch_size => 10)",
    )
    .await;
    until_holds(
        &session,
        "SELECT bool_and(state = 'live') FROM litmus_pgnats.handlers",
    )
    .await;
    let keeper = scene.pg.connect().await;
    run(&keeper, "BEGIN; LOCK TABLE gate").await;
    events.count_off(1..=100).await;
    count_off(&scene.nats.client().await, "core", 1..=5).await;
    let behind = "SELECT bool_and(lag > interval '1 s' AND lag < interval '1 min') AND count(*) = 2
                    AND min(messages) = 0 FROM litmus_pgnats.handlers";
    until_holds(&session, behind).await;
    let pending = "SELECT pending = 100 FROM litmus_pgnats.stream_subscriptions";
    until_holds(&session, pending).await;
    assert!(
        holds(
            &session,
            "SELECT bool_and((pending IS NULL) = (kind <> 'stream')) FROM litmus_pgnats.handlers"
        )
        .await
    );
    run(&keeper, "COMMIT").await;
    until_holds(
        &session,
        "SELECT (pending, lag) = (0, interval '0') AND latest = 100 FROM litmus_pgnats.stream_subscriptions",
    )
    .await;
    until_holds(
        &session,
        "SELECT lag = interval '0' AND messages = 5 FROM litmus_pgnats.subscriptions",
    )
    .await;
}

/// A connection's traffic is what NATS has counted of it; its sessions, its losses and what waits for it are counted too.
#[tokio::test]
async fn connections() {
    let mut scene = Scene::start().await;
    let session = scene.pg.connect().await;
    run(
        &session,
        "SELECT nats_publish_text('a', repeat('x', 100)) FROM generate_series(1, 50)",
    )
    .await;
    let other = scene.warm_session().await;
    let standing = "SELECT state = 'connected' AND server = 'nats' AND database = 'postgres' AND host LIKE '%:' || '{port}'
                      AND since BETWEEN now() - interval '1 min' AND clock_timestamp() AND reconnects = 0
                      AND last_error IS NULL AND rtt BETWEEN 0.001 AND 2000 AND sessions = 2 AND queued = 0
                      AND user_mapping IS NULL AND pid IS NULL AND out_msgs >= 51 AND out_bytes BETWEEN 5000 + 50 * 13 AND 8000
                    FROM litmus_pgnats.connections"
        .replace("{port}", &scene.nats.port().to_string());
    until_holds(&session, &standing).await;
    let numbers = "SELECT in_msgs || ' ' || out_msgs FROM litmus_pgnats.connections";
    eventually(SOON, async || {
        let ours = text(&session, numbers).await;
        let connz = scene.nats.monitor("/connz").await;
        let theirs = connz["connections"].as_array().expect("connections").iter();
        let theirs: Vec<_> = theirs
            .filter(|c| {
                c["name"]
                    .as_str()
                    .is_some_and(|n| n.starts_with("litmus_pgnats/"))
            })
            .collect();
        let number = |name: &str| theirs[0][name].as_u64().expect("a number");
        // What comes in there goes out here.
        let theirs = format!("{} {}", number("out_msgs"), number("in_msgs"));
        if ours == theirs {
            Ok(())
        } else {
            Err((ours, theirs))
        }
    })
    .await;
    drop(other);
    until_holds(&session, "SELECT sessions = 1 FROM litmus_pgnats.connections").await;

    let before = number(&session, "SELECT out_msgs FROM litmus_pgnats.connections").await;
    scene.nats.kill9();
    let away =
        "SELECT state = 'connecting' AND last_error IS NOT NULL AND last_error_at > now() - interval '1 min'
                  AND rtt IS NULL FROM litmus_pgnats.connections";
    until_holds(&session, away).await;
    run(
        &session,
        "SELECT nats_publish_text('a', 'four') FROM generate_series(1, 3)",
    )
    .await;
    assert!(
        holds(
            &session,
            "SELECT (queued, queued_bytes) = (3, 12) FROM litmus_pgnats.connections"
        )
        .await
    );
    scene.nats.restart().await;
    let back = format!(
        "SELECT state = 'connected' AND reconnects = 1 AND queued = 0 AND out_msgs >= {before} + 3 AND rtt IS NOT NULL
         FROM litmus_pgnats.connections"
    );
    until_holds(&session, &back).await;
    run(&session, "SELECT litmus_pgnats.stat_reset()").await;
    let reset =
        "SELECT (reconnects, in_msgs, out_msgs) = (0, 0, 0) AND last_error IS NULL AND state = 'connected'
                 FROM litmus_pgnats.connections";
    assert!(holds(&session, reset).await);
}

/// Whose user mapping a connection is of, and which session's whose options are not committed.
#[tokio::test]
async fn connections_of_mappings_and_transactions() {
    let scene = Scene::start().await;
    let session = scene.warm_session().await;
    run(
        &session,
        "CREATE ROLE shop; GRANT USAGE ON FOREIGN SERVER nats TO shop;
         CREATE USER MAPPING FOR shop SERVER nats OPTIONS (username 'a', password 'b')",
    )
    .await;
    run(
        &session,
        "SET ROLE shop; SELECT nats_publish_text('a', ''); RESET ROLE",
    )
    .await;
    let mappings = texts(
        &session,
        "SELECT coalesce(user_mapping, 'none') FROM litmus_pgnats.connections ORDER BY 1",
    )
    .await;
    assert_eq!(mappings, ["none", "shop"]);
    run(
        &session,
        "BEGIN; ALTER SERVER nats OPTIONS (ADD capacity '7'); SELECT nats_publish_text('a', '')",
    )
    .await;
    let private = "SELECT count(*) FROM litmus_pgnats.connections WHERE pid = pg_backend_pid()";
    assert_eq!(number(&session, private).await, 1);
    run(&session, "COMMIT").await;
    until_holds(&session, &format!("SELECT ({private}) = 0")).await;
}

/// An object on its way has a row that grows, in both directions; nothing of it is left afterwards.
#[tokio::test]
async fn objects_on_their_way() {
    const SIZE: usize = 48 << 20;
    let (scene, session, _events) = events::scene().await;
    run(
        &session,
        &format!(
            "CREATE TABLE f AS SELECT decode(repeat('00ff', {SIZE} / 2), 'hex') AS content;
                  SELECT nats_put_file('s', 'small', 'x')"
        ),
    )
    .await;
    let worker = scene.pg.connect().await;
    for (command, sql) in [
        ("put", "SELECT nats_put_file('s', 'large', content) FROM f"),
        ("get", "SELECT length(nats_get_file('s', 'large'))"),
    ] {
        let row = format!(
            "SELECT database = 'postgres' AND server = 'nats' AND store = 's' AND name = 'large' AND command = '{command}'
               AND pid = {} AND bytes_total = {SIZE} AND bytes_processed BETWEEN 0 AND bytes_total
               AND since <= clock_timestamp() FROM litmus_pgnats.object_transfers",
            worker.pid()
        );
        let watch = async {
            until_holds(&session, &row).await;
            // While it stands still, it is seen to.
            scene.nats.pause().await;
            let began = Instant::now();
            let first = number(
                &session,
                "SELECT bytes_processed FROM litmus_pgnats.object_transfers",
            )
            .await;
            assert!(began.elapsed() < PROMPT, "a view asked NATS");
            scene.nats.resume();
            first
        };
        let (first, ()) = tokio::join!(watch, run(&worker, sql));
        println!("{command}: {first} bytes when it was looked at");
        until_number(&session, 0, "SELECT count(*) FROM litmus_pgnats.object_transfers").await;
    }
    // What fails, or is given up, leaves no row either.
    let (error, _) = refused(&worker, "SELECT nats_get_file('s', 'nothing')").await;
    assert_eq!(error.code, "58P01", "{error:?}");
    scene.nats.pause().await;
    let hanging = async { refused(&worker, "SELECT nats_put_file('s', 'other', content) FROM f").await };
    let cancel = async {
        until_number(&session, 1, "SELECT count(*) FROM litmus_pgnats.object_transfers").await;
        run(&session, &format!("SELECT pg_cancel_backend({})", worker.pid())).await;
    };
    let ((error, _), ()) = tokio::join!(hanging, cancel);
    assert_eq!(error.code, "57014", "{error:?}");
    until_number(&session, 0, "SELECT count(*) FROM litmus_pgnats.object_transfers").await;
    scene.nats.resume();
}

/// The control channel knows its worker, its connections, and the calls that are under way.
#[tokio::test]
async fn the_control_channel() {
    let scene = Scene::start().await;
    let session = scene.warm_session().await;
    let runtime = scene.runtime().await;
    let idle = format!(
        "SELECT pid = {runtime} AND started BETWEEN now() - interval '1 min' AND now() AND connections >= 1
           AND frames_in > 0 AND frames_out > 0 AND bytes_in > 0 AND bytes_out > 0 FROM litmus_pgnats.control_channel"
    );
    assert!(holds(&session, &idle).await);
    let mut requests = scene.silent_responder("slow").await;
    let other = scene.warm_session().await;
    let asking = tokio::spawn(async move {
        let _ = other
            .query_one("SELECT nats_request_text('slow', '', 10000)", &[])
            .await;
        other
    });
    futures::StreamExt::next(&mut requests)
        .await
        .expect("the request");
    // Its own look is a call too.
    assert_eq!(
        number(&session, "SELECT calls FROM litmus_pgnats.control_channel").await,
        2
    );
    asking.abort();
    let before = "SELECT frames_in FROM litmus_pgnats.control_channel";
    let frames = number(&session, before).await;
    run(
        &session,
        "SELECT nats_publish_text('a', '') FROM generate_series(1, 100)",
    )
    .await;
    until_holds(
        &session,
        &format!("SELECT frames_in > {frames} + 100 FROM litmus_pgnats.control_channel"),
    )
    .await;
    run(&session, "SELECT litmus_pgnats.stat_reset()").await;
    assert!(number(&session, before).await < 10);
}

/// Every view is for members of pg_monitor. Others see what is their own; the reset is for neither, unless it is granted.
#[tokio::test]
async fn who_may_look() {
    let scene = Scene::start().await;
    let session = scene.warm_session().await;
    run(
        &session,
        "CREATE ROLE monitor LOGIN; GRANT pg_monitor TO monitor; CREATE ROLE nobody LOGIN",
    )
    .await;
    let monitor = scene.pg.connect_as("monitor", "postgres").await;
    let nobody = scene.pg.connect_as("nobody", "postgres").await;
    let views = texts(&session, VIEWS).await;
    assert!(views.len() >= 10, "{views:?}");
    for view in views {
        run(&monitor, &format!("TABLE litmus_pgnats.{view}")).await;
        if OF_ROLES.contains(&view.as_str()) {
            run(&nobody, &format!("TABLE litmus_pgnats.{view}")).await;
            continue;
        }
        let (error, _) = refused(&nobody, &format!("TABLE litmus_pgnats.{view}")).await;
        assert_eq!(error.code, "42501", "{view}: {error:?}");
    }
    for function in ["stat_reset", "doctor"] {
        let sql = format!("SELECT litmus_pgnats.{function}()");
        let (error, _) = refused(&nobody, &sql).await;
        assert_eq!(error.code, "42501", "{function}: {error:?}");
    }
    let (error, _) = refused(&monitor, "SELECT litmus_pgnats.stat_reset()").await;
    assert_eq!(error.code, "42501", "{error:?}");
    run(
        &session,
        "GRANT EXECUTE ON FUNCTION litmus_pgnats.stat_reset() TO monitor",
    )
    .await;
    run(&monitor, "SELECT litmus_pgnats.stat_reset()").await;
}

/// The views that show each role what is its own.
const OF_ROLES: [&str; 6] = [
    "dead_letters",
    "handlers",
    "outbox_waiting",
    "responders",
    "stream_subscriptions",
    "subscriptions",
];

/// Each role sees its own handlers, dead letters and outbox, content included; a monitor sees all, without content.
#[tokio::test]
async fn each_role_sees_what_is_its_own() {
    let nats = NatsServer::builder().jetstream().start().await;
    let scene = Scene::with(Postgres::builder(), nats, "").await;
    let session = scene.pg.connect().await;
    run(&session, KEEP).await;
    let events = events::Events::start(&scene, async_nats::jetstream::stream::RetentionPolicy::Limits).await;
    run(&session, SHOP).await;
    run(
        &session,
        "CREATE ROLE monitor LOGIN; GRANT pg_monitor TO monitor; CREATE ROLE nobody LOGIN;
         SELECT nats_subscribe_stream('events', 'keep')",
    )
    .await;
    let shop = scene.pg.connect_as("shop", "postgres").await;
    run(
        &shop,
        "CREATE FUNCTION fails(msg text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'not %', msg; END $$;
         SELECT nats_subscribe_stream('events', 'fails', max_deliveries => 1);
         SELECT nats_publish_text_outbox('nowhere', 'waits')",
    )
    .await;
    events.say("events.x", "secret").await;
    let letters = "SELECT count(*) FROM litmus_pgnats.dead_letters";
    until_number(&session, 1, letters).await;
    let monitor = scene.pg.connect_as("monitor", "postgres").await;
    let nobody = scene.pg.connect_as("nobody", "postgres").await;
    let content = "SELECT coalesce(convert_from(payload, 'utf8'), 'hidden') FROM litmus_pgnats.dead_letters";
    assert_eq!(texts(&shop, content).await, ["secret"]);
    assert_eq!(texts(&monitor, content).await, ["hidden"]);
    assert!(texts(&nobody, content).await.is_empty());
    let functions = "SELECT function || ' ' || state FROM litmus_pgnats.handlers ORDER BY 1";
    assert_eq!(texts(&shop, functions).await, ["public.fails(text) live"]);
    assert_eq!(texts(&monitor, functions).await.len(), 2);
    assert!(texts(&nobody, functions).await.is_empty());
    for (who, sees) in [(&shop, 1), (&monitor, 2), (&nobody, 0)] {
        assert_eq!(
            number(who, "SELECT count(*) FROM litmus_pgnats.stat_handlers()").await,
            sees
        );
    }
    let outbox = "SELECT count(*) FROM litmus_pgnats.outbox_waiting";
    for (who, sees) in [(&shop, 1), (&monitor, 1), (&nobody, 0)] {
        assert_eq!(number(who, outbox).await, sees);
    }
    // A function in a condition sees no row of others either.
    run(
        &nobody,
        "CREATE FUNCTION pg_temp.peep(text) RETURNS boolean COST 0.0001 LANGUAGE plpgsql AS
           $$ BEGIN RAISE 'seen %', $1; END $$",
    )
    .await;
    run(
        &nobody,
        "SELECT count(*) FROM litmus_pgnats.dead_letters WHERE pg_temp.peep(error)",
    )
    .await;
}

/// No view asks NATS, and none starts the runtime worker.
#[tokio::test]
async fn looking_is_cheap() {
    let scene = Scene::with(Postgres::builder().preload(false), NatsServer::start().await, "").await;
    let session = scene.pg.connect().await;
    let views = texts(&session, VIEWS).await;
    for view in &views {
        run(&session, &format!("TABLE litmus_pgnats.{view}")).await;
    }
    run(&session, "SELECT litmus_pgnats.stat_reset()").await;
    assert_eq!(scene.pg.worker_pid(RUNTIME).await, None);
    run(&session, KEEP).await;
    subscribe(&session, "a", "keep").await;
    scene.nats.pause().await;
    let began = Instant::now();
    for view in &views {
        run(&session, &format!("TABLE litmus_pgnats.{view}")).await;
    }
    let took = began.elapsed();
    println!("{} views in {took:?}", views.len());
    assert!(took < PROMPT, "{took:?}");
    scene.nats.resume();
}

/// A user that may not publish to inboxes has no round-trip time, and no complaint about that.
#[tokio::test]
async fn a_user_without_an_inbox() {
    let nats = NatsServer::builder()
        .config("authorization: { users: [{ user: a, password: b, permissions: { publish: [\"a\"] } }] }")
        .start()
        .await;
    let scene = Scene::with(Postgres::builder(), nats, ", username 'a', password 'b'").await;
    let session = scene.pg.connect().await;
    run(&session, "SELECT nats_publish_text('a', '')").await;
    let row = "SELECT state = 'connected' AND rtt IS NOT NULL AND last_error IS NULL FROM litmus_pgnats.connections";
    until_holds(&session, row).await;
    assert!(!scene.pg.log().contains("reports"), "{}", scene.pg.log());
}

/// A durable subscription whose messages wait to be tried again is behind; one that has stopped keeps its counts.
#[tokio::test]
async fn what_is_tried_again_is_not_done() {
    let (scene, session, events) = events::scene().await;
    run(
        &session,
        "CREATE FUNCTION fail(msg text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'it is broken'; END $$;
         CREATE FUNCTION fail_too(msg text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'it is broken'; END $$;
         SELECT nats_subscribe_stream('events', 'fail', backoff => '{1 h}'),
                nats_subscribe_stream('events', 'fail_too', backoff => '{10 ms}', max_deliveries => 2, stop_on_failure => true)",
    )
    .await;
    events.count_off(1..=3).await;
    let retried = "SELECT state = 'live' AND errors = 3 AND pending = 3 AND lag > interval '1 s'
                   FROM litmus_pgnats.stream_subscriptions WHERE function LIKE '%.fail(%'";
    until_holds(&session, retried).await;
    // What is no longer in the stream does not come again.
    let stream = events.0.get_stream("events").await.expect("the stream");
    stream.purge().await.expect("purge");
    let gone = "SELECT state = 'live' AND errors = 3 AND pending = 0 AND lag = interval '0'
                FROM litmus_pgnats.stream_subscriptions WHERE function LIKE '%.fail(%'";
    until_holds(&session, gone).await;
    let stopped =
        "SELECT state = 'disabled' AND pending = 0 AND lag = '0' AND errors = 2 AND last_error IS NOT NULL
                   FROM litmus_pgnats.stream_subscriptions WHERE function LIKE '%.fail_too(%'";
    until_holds(&session, stopped).await;
    assert!(
        scene
            .pg
            .log()
            .contains("stops at message 1, which has failed 2 times"),
        "{}",
        scene.pg.log()
    );
}

/// Where NATS does not let the user subscribe, the handler is not live, and says why.
#[tokio::test]
async fn a_subscription_that_nats_refuses() {
    let nats = NatsServer::builder()
        .jetstream()
        .config("authorization: { users: [{ user: a, password: b, permissions: { subscribe: [\"_INBOX.>\", \"open\"] } }] }")
        .start()
        .await;
    let scene = Scene::with(Postgres::builder(), nats, ", username 'a', password 'b'").await;
    let session = scene.pg.connect().await;
    run(&session, KEEP).await;
    run(
        &session,
        "SELECT nats_create_bucket('b'); SELECT nats_subscribe('open', 'keep'), nats_subscribe('KV_b', 'keep'),
           nats_subscribe_stream('KV_b', 'keep')",
    )
    .await;
    let refused = "SELECT state = 'disabled' AND problem LIKE '%does not let this user subscribe%'
                   FROM litmus_pgnats.subscriptions WHERE subject = 'KV_b'";
    until_holds(&session, refused).await;
    // That a stream has the name of the subject is nothing to it.
    until_holds(
        &session,
        "SELECT state = 'live' FROM litmus_pgnats.stream_subscriptions",
    )
    .await;
    until_live(&session, "open").await;
}
