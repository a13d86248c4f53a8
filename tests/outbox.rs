//! The outbox: what commits is delivered to JetStream, once and in the order of the commits, whatever fails meanwhile.

mod handlers;
mod outgoing;
mod scene;
mod support;

use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use handlers::*;
use outgoing::*;
use scene::*;
use support::*;

async fn scene() -> (Scene, Session, Kept) {
    scene_with(Postgres::builder()).await
}

#[tokio::test]
async fn what_commits_is_delivered_and_what_rolls_back_is_not() {
    let (_scene, session, kept) = scene().await;
    run(&session, &put("1")).await;
    run(&session, &format!("BEGIN; {}; ROLLBACK", put("never"))).await;
    run(
        &session,
        &format!(
            "BEGIN; {}; SAVEPOINT a; {}; ROLLBACK TO a; {}; COMMIT",
            put("2"),
            put("never"),
            put("3")
        ),
    )
    .await;
    // All of it is rolled back, and the transaction commits.
    run(
        &session,
        &format!("BEGIN; SAVEPOINT a; {}; ROLLBACK TO a; COMMIT", put("never")),
    )
    .await;
    let (report, _) = refused(&session, &format!("BEGIN; {}; SELECT 1/0", put("never"))).await;
    assert_eq!(report.code, "22012");
    run(&session, &format!("ROLLBACK; {}", put("4"))).await;
    assert_eq!(kept.payloads(4).await, ["1", "2", "3", "4"]);
    until_empty(&session).await;
}

/// Each type in its own form, with headers and the number by which JetStream knows repetitions.
#[tokio::test]
async fn types_headers_and_the_number() {
    let (scene, session, kept) = scene().await;
    for call in [
        "text_outbox('kept.1', 'grün')",
        "json_outbox('kept.2', '{ \"b\":1 }')",
        "jsonb_outbox('kept.3', '{ \"b\":1 }')",
        r"binary_outbox('kept.4', '\x6162')",
        r#"text_outbox('kept.5', 'h', '{"a": "1"}')"#,
        r#"text_outbox('kept.6', 'own', '{"Nats-Msg-Id": "mine"}')"#,
    ] {
        run(&session, &format!("SELECT nats_publish_{call}")).await;
    }
    assert_eq!(
        kept.payloads(6).await,
        ["grün", "{ \"b\":1 }", "{\"b\": 1}", "ab", "h", "own"]
    );
    let context = jetstream::new(scene.nats.client().await);
    let stream = context.get_stream("kept").await.expect("the stream");
    let mut ids = Vec::new();
    for sequence in 1..=6 {
        let message = stream.get_raw_message(sequence).await.expect("a message");
        ids.push(
            message
                .headers
                .get("Nats-Msg-Id")
                .map(ToString::to_string)
                .unwrap_or_default(),
        );
        if sequence == 5 {
            assert_eq!(message.headers.get("a").map(|value| value.as_str()), Some("1"));
        }
    }
    assert_eq!(ids[5], "mine");
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), ids[0].len()), (6, 36), "{ids:?}");
}

/// Of two transactions, the one that has written first commits last.
#[tokio::test]
async fn the_order_is_that_of_the_commits() {
    let (mut scene, session, kept) = scene().await;
    let other = scene.pg.connect().await;
    run(&session, &put("0")).await;
    until_empty(&session).await;
    scene.nats.stop().await;
    for round in 0..20 {
        run(&session, &format!("BEGIN; {}", put(format!("second {round}")))).await;
        run(&other, &put(format!("first {round}"))).await;
        run(&session, "COMMIT").await;
    }
    scene.nats.restart().await;
    let expected: Vec<String> = (0..20)
        .flat_map(|round| [format!("first {round}"), format!("second {round}")])
        .collect();
    let came = kept.payloads(41).await;
    assert_eq!(came[1..], expected);
    until_empty(&session).await;
}

/// Commits that overtake each other between their number and their end.
#[tokio::test]
async fn many_sessions_at_once() {
    let (scene, session, kept) = scene_with(Postgres::builder().conf("max_connections", "60")).await;
    let writers = (0..24).map(|writer| {
        let scene = &scene;
        async move {
            let session = scene.pg.connect().await;
            for n in 0..500 {
                run(&session, &put(format!("{writer} {n}"))).await;
            }
        }
    });
    futures::future::join_all(writers).await;
    until_empty(&session).await;
    let came = kept.payloads(24 * 500).await;
    assert_eq!(came.len(), 24 * 500);
    for writer in 0..24 {
        let own = came
            .iter()
            .filter_map(|text| text.strip_prefix(&format!("{writer} ")));
        let own: Vec<usize> = own.map(|n| n.parse().expect("a number")).collect();
        assert!(own.iter().copied().eq(0..500), "writer {writer}: {own:?}");
    }
}

/// While NATS is away enqueuing goes on, and delivery begins as soon as it is back.
#[tokio::test]
async fn an_outage_is_waited_for() {
    let (mut scene, session, kept) = scene().await;
    run(&session, &put("0")).await;
    until_empty(&session).await;
    scene.nats.stop().await;
    run(
        &session,
        "SELECT nats_publish_text_outbox('kept.a', n::text) FROM generate_series(1, 3000) n",
    )
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(number(&session, WAITING).await, 3000);
    scene.nats.restart().await;
    let began = Instant::now();
    let came = kept.payloads(3001).await;
    println!("delivered {:?} after the return of NATS", began.elapsed());
    assert_eq!(came, numbers(0..=3000));
    until_empty(&session).await;
    assert_eq!(number(&session, DEAD).await, 0);
}

async fn stream_with(scene: &Scene, config: stream::Config) -> jetstream::Context {
    let context = jetstream::new(scene.nats.client().await);
    context.create_stream(config).await.expect("create a stream");
    context
}

/// A stream that is full refuses: its messages wait in order, those of others go on, and all come when there is room.
#[tokio::test]
async fn a_full_stream_is_waited_for_and_holds_up_nobody_else() {
    let (scene, session, kept) = scene().await;
    let config = stream::Config {
        name: "full".into(),
        subjects: vec!["full.>".into()],
        max_messages: 2,
        discard: stream::DiscardPolicy::New,
        ..Default::default()
    };
    let context = stream_with(&scene, config.clone()).await;
    for n in 1..=5 {
        run(
            &session,
            &format!("SELECT nats_publish_text_outbox('full.a', '{n}')"),
        )
        .await;
        run(&session, &put(n)).await;
    }
    assert_eq!(kept.payloads(5).await, numbers(1..=5));
    eventually_eq(SOON, 3, async || number(&session, WAITING).await).await;
    let larger = stream::Config {
        max_messages: 100,
        ..config
    };
    context.update_stream(larger).await.expect("update a stream");
    until_empty(&session).await;
    let stream = context.get_stream("full").await.expect("the stream");
    let mut came = Vec::new();
    for sequence in 1..=5 {
        let message = stream.get_raw_message(sequence).await.expect("a message");
        came.push(String::from_utf8(message.payload.to_vec()).expect("text"));
    }
    assert_eq!(came, numbers(1..=5));
    assert_eq!(number(&session, DEAD).await, 0);
}

/// What is refused for good becomes a dead letter, which can be put back and be purged.
#[tokio::test]
async fn what_is_refused_for_good_becomes_a_dead_letter() {
    let (scene, session, kept) =
        scene_with(Postgres::builder().conf("litmus_pgnats.outbox_retry_time", "300ms")).await;
    let config = stream::Config {
        name: "small".into(),
        subjects: vec!["small".into()],
        max_message_size: 100,
        ..Default::default()
    };
    let context = stream_with(&scene, config).await;
    run(
        &session,
        "SELECT nats_publish_text_outbox('small', repeat('x', 200), '{\"a\": \"b\"}')",
    )
    .await;
    run(&session, "SELECT nats_publish_text_outbox('nowhere', 'lost')").await;
    run(&session, &put("through")).await;
    assert_eq!(kept.payloads(1).await, ["through"]);
    until_number(&session, 2, DEAD).await;
    until_empty(&session).await;
    let letters = texts(
        &session,
        "SELECT concat_ws('|', source, server, role, subject, octet_length(payload), headers, error)
         FROM litmus_pgnats.dead_letter ORDER BY subject DESC",
    )
    .await;
    assert_eq!(
        letters,
        [
            "outbox|nats|postgres|small|200|{\"a\": \"b\"}|54000: message is larger than the stream allows \
             (JetStream error 10054: message size exceeds maximum allowed.)",
            "outbox|nats|postgres|nowhere|4|HV00R: no stream takes subject \"nowhere\"",
        ]
    );
    // Put back while its stream is there.
    let nowhere = stream::Config {
        name: "nowhere".into(),
        subjects: vec!["nowhere".into()],
        ..Default::default()
    };
    context.create_stream(nowhere).await.expect("create a stream");
    run(
        &session,
        "SELECT litmus_pgnats.redrive(id) FROM litmus_pgnats.dead_letters WHERE subject = 'nowhere'",
    )
    .await;
    until_empty(&session).await;
    let stream = context.get_stream("nowhere").await.expect("the stream");
    let message = stream.get_raw_message(1).await.expect("a message");
    assert_eq!(&message.payload[..], b"lost");
    assert_eq!(number(&session, DEAD).await, 1);
    let (report, _) = refused(&session, "SELECT litmus_pgnats.purge_dead_letters('-1 hour')").await;
    assert_eq!(report.code, "22003");
    let none = number(&session, "SELECT litmus_pgnats.purge_dead_letters('1 hour')").await;
    assert_eq!(none, 0);
    assert_eq!(
        number(&session, "SELECT litmus_pgnats.purge_dead_letters()").await,
        1
    );
    let (report, _) = refused(&session, "SELECT litmus_pgnats.redrive(99)").await;
    assert_eq!(report.message, "there is no dead letter 99");
}

/// Old dead letters go when new ones come.
#[tokio::test]
async fn dead_letters_expire() {
    let pg = Postgres::builder()
        .conf("litmus_pgnats.outbox_retry_time", "0")
        .conf("litmus_pgnats.dead_letter_retention", "1h");
    let (_scene, session, _kept) = scene_with(pg).await;
    run(&session, "SELECT nats_publish_text_outbox('nowhere', 'old')").await;
    until_number(&session, 1, DEAD).await;
    run(
        &session,
        "UPDATE litmus_pgnats.dead_letter SET died = now() - interval '2 hours'",
    )
    .await;
    run(&session, "SELECT nats_publish_text_outbox('nowhere', 'new')").await;
    until_empty(&session).await;
    let left = texts(
        &session,
        "SELECT convert_from(payload, 'utf8') FROM litmus_pgnats.dead_letter",
    )
    .await;
    assert_eq!(left, ["new"]);
}

/// An outbox relay that has nothing to do asks nothing of the database, and leaves after a while.
#[tokio::test]
async fn an_idle_outbox_relay_asks_nothing_and_leaves() {
    let (scene, session, kept) =
        scene_with(Postgres::builder().conf("litmus_pgnats.executor_idle_timeout", "4s")).await;
    run(&session, &put("1")).await;
    kept.payloads(1).await;
    until_empty(&session).await;
    let relays = async || scene.pg.worker_pids(OUTBOX_RELAY).await;
    let [pid] = relays().await[..] else {
        panic!("{:?}", relays().await)
    };
    let start = "SELECT extract(epoch FROM coalesce(xact_start, query_start, backend_start))::float8::text
                 || state FROM pg_stat_activity WHERE backend_type = 'litmus_pgnats outbox relay'";
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = (text(&session, start).await, proc::cpu_time(pid));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((text(&session, start).await, proc::cpu_time(pid)), before);
    eventually_eq(SOON, Vec::<i32>::new(), relays).await;
    // And comes again.
    run(&session, &put("2")).await;
    assert_eq!(kept.payloads(2).await, ["1", "2"]);
}

/// What was delivered long ago is not looked at again, even while an old snapshot keeps vacuum from removing it.
#[tokio::test]
async fn delivered_rows_do_not_slow_later_sends() {
    let (scene, session, _kept) = scene().await;
    let old = scene.pg.connect().await;
    run(&session, &put("first")).await;
    until_empty(&session).await;
    run(
        &old,
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_current_xact_id()",
    )
    .await;
    let relay = scene.pg.worker_pid(OUTBOX_RELAY).await.expect("an outbox relay");
    let measure = async || {
        let before = proc::cpu_time(relay);
        for n in 0..200 {
            run(&session, &put(n)).await;
            until_empty(&session).await;
        }
        proc::cpu_time(relay) - before
    };
    let early = measure().await;
    run(
        &session,
        "DO $$ BEGIN FOR n IN 1..60000 LOOP PERFORM nats_publish_text_outbox('kept.a', n::text); COMMIT; END LOOP; END $$",
    )
    .await;
    until_empty(&session).await;
    let late = measure().await;
    run(&old, "COMMIT").await;
    println!("200 messages took the outbox relay {early:?}, and {late:?} behind 60,000 others");
    assert_eq!(scene.pg.worker_pid(OUTBOX_RELAY).await, Some(relay));
    assert!(
        late < early * 3 + Duration::from_millis(300),
        "{early:?}, then {late:?}"
    );
}

#[tokio::test]
async fn changes_of_rows() {
    let (scene, session, kept) = scene().await;
    run(
        &session,
        "CREATE TABLE orders (id int PRIMARY KEY, place text, amount numeric);
         CREATE TRIGGER publish AFTER INSERT OR UPDATE OR DELETE ON orders
           FOR EACH ROW EXECUTE FUNCTION litmus_pgnats.publish_change('kept.{table}.{op}.{place}.{id}');
         INSERT INTO orders VALUES (1, 'a.b c', 5); UPDATE orders SET amount = 6; DELETE FROM orders",
    )
    .await;
    let came = kept.payloads(3).await;
    let changes: Vec<serde_json::Value> = came
        .iter()
        .map(|text| serde_json::from_str(text).expect("JSON"))
        .collect();
    let row = |amount: i32| serde_json::json!({"id": 1, "place": "a.b c", "amount": amount});
    let null = serde_json::Value::Null;
    for (change, (operation, before, after)) in changes.iter().zip([
        ("insert", null.clone(), row(5)),
        ("update", row(5), row(6)),
        ("delete", row(6), null),
    ]) {
        assert_eq!(change["operation"], operation);
        assert_eq!(
            (&change["before"], &change["after"]),
            (&before, &after),
            "{operation}"
        );
        assert_eq!(
            (&change["schema"], &change["table"]),
            (&"public".into(), &"orders".into())
        );
        for name in ["transaction", "lsn", "time"] {
            assert!(
                change[name].as_str().is_some_and(|text| text.len() > 2),
                "{name}: {change}"
            );
        }
    }
    // What is put in is not looked at for braces.
    run(&session, "INSERT INTO orders VALUES (3, E'{id}\\x07', 5)").await;
    kept.payloads(4).await;
    let context = jetstream::new(scene.nats.client().await);
    let stream = context.get_stream("kept").await.expect("the stream");
    let message = stream.get_raw_message(4).await.expect("a message");
    assert_eq!(message.subject.as_str(), "kept.orders.insert.{id}_.3");
    for (trigger, message) in [
        (
            "AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION litmus_pgnats.publish_change('kept.{nothing}')",
            "column \"nothing\" in the subject of trigger \"wrong\" does not exist",
        ),
        (
            "BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION litmus_pgnats.publish_change('kept')",
            "trigger \"wrong\" on table \"orders\" cannot publish changes",
        ),
    ] {
        run(&session, &format!("CREATE TRIGGER wrong {trigger}")).await;
        let (report, _) = refused(&session, "INSERT INTO orders VALUES (2)").await;
        assert_eq!(report.message, message);
        run(&session, "DROP TRIGGER wrong ON orders").await;
    }
}

#[tokio::test]
async fn who_may() {
    let (scene, session, kept) = scene().await;
    run(&session, &format!("{SHOP} CREATE ROLE stranger LOGIN;")).await;
    let stranger = scene.pg.connect_as("stranger", "postgres").await;
    let (report, _) = refused(&stranger, &put("no")).await;
    assert_eq!(report.message, "permission denied for foreign server nats");
    let shop = scene.pg.connect_as("shop", "postgres").await;
    run(&shop, &put("yes")).await;
    assert_eq!(kept.payloads(1).await, ["yes"]);
    // The right goes while a message waits.
    run(&session, "ALTER SYSTEM SET litmus_pgnats.outbox_retry_time = 0").await;
    run(&session, "SELECT pg_reload_conf()").await;
    eventually(SOON, async || {
        text(&session, "SHOW litmus_pgnats.outbox_retry_time").await == "0"
    })
    .await;
    run(&shop, &format!("BEGIN; {}", put("late"))).await;
    run(&session, "REVOKE USAGE ON FOREIGN SERVER nats FROM shop").await;
    run(&shop, "COMMIT").await;
    until_number(&session, 1, DEAD).await;
    let error = text(&session, "SELECT error FROM litmus_pgnats.dead_letter").await;
    assert_eq!(
        error,
        "42501: role \"shop\" has no USAGE privilege on foreign server \"nats\""
    );
    let (report, _) = refused(&stranger, "SELECT litmus_pgnats.redrive(1)").await;
    assert_eq!(report.message, "permission denied for dead letter 1");
    assert_eq!(
        number(&stranger, "SELECT litmus_pgnats.purge_dead_letters()").await,
        0
    );
    assert!(
        texts(&stranger, "SELECT error FROM litmus_pgnats.dead_letters")
            .await
            .is_empty()
    );
    for table in ["outbox", "outbox_batch", "dead_letter"] {
        let (report, _) = refused(&stranger, &format!("TABLE litmus_pgnats.{table}")).await;
        assert_eq!(report.code, "42501", "{table}");
    }
    run(&session, "GRANT USAGE ON FOREIGN SERVER nats TO shop").await;
    run(&shop, "SELECT litmus_pgnats.redrive(1)").await;
    assert_eq!(kept.payloads(2).await, ["yes", "late"]);
    let (report, _) = refused(
        &session,
        &format!("BEGIN; {}; PREPARE TRANSACTION 'x'", put("no")),
    )
    .await;
    assert_eq!(
        report.message,
        "cannot PREPARE a transaction that has written to the outbox"
    );
}

/// Redrives all dead letters; yields how many.
const REDRIVE_ALL: &str = "SELECT count(*) FROM litmus_pgnats.redrive_all() WHERE error IS NULL";

/// Locks on dead letters hold up neither the outbox nor those who redrive others, and who may not redrive locks none.
#[tokio::test]
async fn locked_dead_letters_hold_nobody_up() {
    let pg = Postgres::builder()
        .conf("litmus_pgnats.outbox_retry_time", "0")
        .conf("litmus_pgnats.dead_letter_retention", "1h");
    let (scene, session, _kept) = scene_with(pg).await;
    for word in ["first", "second"] {
        run(
            &session,
            &format!("SELECT nats_publish_text_outbox('nowhere', '{word}')"),
        )
        .await;
    }
    until_number(&session, 2, DEAD).await;
    run(
        &session,
        "UPDATE litmus_pgnats.dead_letter SET died = '2020-01-01' WHERE id = 1",
    )
    .await;
    let other = scene.pg.connect().await;
    run(
        &other,
        "BEGIN; SELECT FROM litmus_pgnats.dead_letter WHERE id = 1 FOR UPDATE",
    )
    .await;
    // The first one has expired, and stays as long as it is locked.
    run(&session, "SELECT nats_publish_text_outbox('nowhere', 'third')").await;
    until_number(&session, 3, DEAD).await;
    run(&session, "SET lock_timeout = '10 s'").await;
    assert_eq!(number(&session, REDRIVE_ALL).await, 2);
    until_number(&session, 3, DEAD).await;
    run(&other, "ROLLBACK").await;
    run(&session, "CREATE ROLE stranger LOGIN").await;
    let stranger = scene.pg.connect_as("stranger", "postgres").await;
    run(&stranger, "BEGIN").await;
    assert_eq!(number(&stranger, REDRIVE_ALL).await, 0);
    assert_eq!(number(&session, REDRIVE_ALL).await, 3);
    until_number(&session, 3, DEAD).await;
    let refusal = "SELECT litmus_pgnats.redrive(max(id)) FROM litmus_pgnats.dead_letter";
    let id = number(&session, "SELECT max(id) FROM litmus_pgnats.dead_letter").await;
    run(&stranger, "ROLLBACK; BEGIN").await;
    let (report, _) = refused(&stranger, &format!("SELECT litmus_pgnats.redrive({id})")).await;
    assert_eq!(report.code, "42501");
    run(&session, refusal).await;
}

/// An outbox relay is no trouble to those who want the database for themselves.
#[tokio::test]
async fn databases_and_the_extension_can_be_dropped() {
    let (scene, session, kept) = scene().await;
    let other = scene.database("other").await;
    run(&other, &put("1")).await;
    kept.payloads(1).await;
    drop(other);
    eventually(SOON, async || {
        let outcome = session.batch_execute("DROP DATABASE other").await;
        outcome.map_err(|error| db_error(&error).message)
    })
    .await;
    run(&session, &put("2")).await;
    kept.payloads(2).await;
    until_empty(&session).await;
    run(
        &session,
        &format!(
            "BEGIN; {}; DROP EXTENSION litmus_pgnats CASCADE; COMMIT",
            put("never")
        ),
    )
    .await;
    run(&session, &create_server(scene.nats.port(), "")).await;
    run(&session, &put("3")).await;
    assert_eq!(kept.payloads(3).await, ["1", "2", "3"]);
}
