//! Key-value buckets: what goes in comes out, to and from another client; what is not there; what is refused.

mod stage;
mod support;

use async_nats::jetstream::{self, kv};
use serde_json::json;
use stage::*;
use support::{Session, eventually_eq};

/// What a query returns, each row as text.
async fn rows(session: &Session, sql: &str) -> Vec<String> {
    let found = session
        .query(&format!("SELECT x::text FROM ({sql}) x"), &[])
        .await;
    let found = found.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    found.iter().map(|row| row.get(0)).collect()
}

/// A value of each type comes back as it went in, and is what another client reads; revisions count on.
#[tokio::test]
async fn values_of_every_type_go_round() {
    let stage = Stage::jetstream().await;
    let session = stage.pg.connect().await;
    let cases = [
        ("text", "'grün 主题 🦀'", "grün 主题 🦀"),
        ("json", r#"'{ "b":1 }'"#, r#"{ "b":1 }"#),
        ("jsonb", r#"'{ "b":1 }'"#, r#"{"b": 1}"#),
        ("binary", r"'\x00ff'", r"\x00ff"),
        ("text", "''", ""),
        ("binary", "''", r"\x"),
    ];
    for ((kind, literal, expected), revision) in cases.into_iter().zip(1_i64..) {
        let put = format!("SELECT nats_put_{kind}('b', 'k.{kind}', {literal})");
        assert_eq!(value::<i64>(&session, &put).await, revision, "{put}");
        let get = format!("SELECT nats_get_{kind}('b', 'k.{kind}')::text");
        assert_eq!(value::<String>(&session, &get).await, expected, "{get}");
    }
    let read = [
        json!(["kv_get", "b", "k.json"]),
        json!(["kv_get", "b", "k.text"]),
        json!(["kv_get", "b", "k.binary"]),
    ];
    let expected = [json!(["7b202262223a31207d", 2]), json!(["", 5]), json!(["", 6])];
    assert_eq!(stage.nats.python(json!(read)).await, expected);
}

/// What another client writes, deletes and purges is read, in buckets with and without direct access; and the other
/// way round.
#[tokio::test]
async fn another_clients_bucket() {
    let stage = Stage::jetstream().await;
    let session = stage.pg.connect().await;
    for (bucket, direct) in [("direct", true), ("leader", false)] {
        let steps = json!([
            ["kv_create", bucket, 5, direct],
            ["kv_put", bucket, "a.b/c=d.E-f_9", "6772c3bc6e"],
            ["kv_put", bucket, "gone", "78"],
            ["kv_delete", bucket, "gone"],
            ["kv_put", bucket, "purged", "78"],
            ["kv_purge", bucket, "purged"],
            ["kv_put", bucket, "empty", ""],
        ]);
        stage.nats.python(steps).await;
        let get = |key: &str| format!("SELECT nats_get_text('{bucket}', '{key}')");
        assert_eq!(
            value::<String>(&session, &get("a.b/c=d.E-f_9")).await,
            "grün",
            "{bucket}"
        );
        assert_eq!(value::<String>(&session, &get("empty")).await, "", "{bucket}");
        for key in ["gone", "purged", "never"] {
            assert_eq!(
                value::<Option<String>>(&session, &get(key)).await,
                None,
                "{bucket} {key}"
            );
        }
        let created: i64 = value(
            &session,
            &format!("SELECT nats_create_text('{bucket}', 'gone', 'again')"),
        )
        .await;
        run(
            &session,
            &format!("SELECT nats_update_text('{bucket}', 'gone', 'thrice', {created})"),
        )
        .await;
        run(
            &session,
            &format!("SELECT nats_delete_value('{bucket}', 'empty'), nats_put_text('{bucket}', 'new', '')"),
        )
        .await;
        let outcomes = stage.nats.python(json!([
            ["kv_history", bucket, "gone"],
            ["kv_get", bucket, "empty"],
            ["kv_keys", bucket],
            ["kv_update", bucket, "new", "79", 10],
        ]));
        let outcomes = outcomes.await;
        let history = json!([
            ["PUT", "78", 2],
            ["DEL", "", 3],
            ["PUT", "616761696e", 7],
            ["PUT", "746872696365", 8]
        ]);
        assert_eq!(outcomes[0], history, "{bucket}");
        assert_eq!(outcomes[1], json!("KeyNotFoundError"), "{bucket}");
        assert_eq!(outcomes[2], json!(["a.b/c=d.E-f_9", "gone", "new"]), "{bucket}");
        assert_eq!(outcomes[3], json!(11), "{bucket}");
        assert_eq!(value::<String>(&session, &get("new")).await, "y", "{bucket}");
    }
}

/// The limit of a value is the server's max_payload; a 1 MiB value fits, and more is refused before it leaves.
#[tokio::test]
async fn a_value_of_a_mebibyte() {
    let stage = Stage::jetstream().await;
    let session = stage.pg.connect().await;
    let same = "SELECT nats_put_binary('b', 'k', v) = 1 AND nats_get_binary('b', 'k') = v
        AND (SELECT value = v FROM nats_get_entry('b', 'k'))
        FROM (SELECT decode(repeat('00ff0da5', 262144), 'hex') v) x";
    assert!(value::<bool>(&session, same).await);
    let error = failure(&session, "SELECT nats_put_text('b', 'k', repeat('x', 1048577))").await;
    assert_eq!(error.code, "54000", "{error:?}");
    let error = failure(
        &session,
        "SELECT nats_update_text('b', 'k', repeat('x', 1048576), 1)",
    )
    .await;
    assert_eq!(
        error.code, "54000",
        "with its header it is larger than the server allows: {error:?}"
    );
}

/// Reading and deleting where there is nothing finds nothing and makes nothing; an update needs a bucket.
#[tokio::test]
async fn what_is_not_there_stays_away() {
    let stage = Stage::jetstream().await;
    let session = stage.pg.connect().await;
    for kind in ["text", "json", "jsonb", "binary"] {
        let get = format!("SELECT nats_get_{kind}('b', 'k') IS NULL");
        assert!(value::<bool>(&session, &get).await, "{get}");
    }
    run(
        &session,
        "SELECT nats_delete_value('b', 'k'), nats_purge_value('b', 'k')",
    )
    .await;
    for list in [
        "nats_get_entry('b', 'k')",
        "nats_get_history('b', 'k')",
        "nats_list_keys('b')",
    ] {
        let count = format!("SELECT count(*) FROM {list}");
        assert_eq!(value::<i64>(&session, &count).await, 0, "{list}");
    }
    for call in ["nats_update_text('b', 'k', '', 1)", "nats_delete_bucket('b')"] {
        let error = failure(&session, &format!("SELECT {call}")).await;
        assert_eq!(
            (error.code.as_str(), error.message.as_str()),
            ("HV00Q", "key-value bucket \"b\" does not exist")
        );
    }
    assert_eq!(stage.nats.monitor("/jsz").await["streams"], 0);
    run(&session, "SELECT nats_create_text('b', 'other', '')").await;
    assert!(value::<bool>(&session, "SELECT nats_get_text('b', 'k') IS NULL").await);
    assert_eq!(stage.nats.monitor("/jsz").await["streams"], 1);
}

/// Names that are none are refused before anything leaves: NATS gets one message behind them, and no other.
#[tokio::test]
async fn invalid_names_do_not_leave() {
    let stage = Stage::jetstream().await;
    let (mut inbox, session) = (stage.subscribe("end").await, stage.pg.connect().await);
    let sent = async || stage.nats.monitor("/varz").await["in_msgs"].as_u64();
    run(&session, "SELECT nats_publish_text('end', 'first')").await;
    inbox.text().await;
    let before = sent().await;
    let long = "x".repeat(1025);
    for key in [
        "", ".", "a.", ".a", "a..b", "a b", "a*", ">", "ключ", "a\r\nb", &long,
    ] {
        for call in [
            "nats_put_text('b', $1, '')",
            "nats_get_text('b', $1)::text",
            "nats_purge_value('b', $1)::text",
        ] {
            let error = session
                .query(&format!("SELECT {call}"), &[&key])
                .await
                .expect_err(key);
            assert_eq!(support::sqlstate(&error), "42602", "{call} {key:?}: {error:?}");
        }
    }
    for bucket in ["", "a.b", "a b", "a*", "ведро", "a/b", &long] {
        for call in [
            "nats_put_text($1, 'k', '')::text",
            "nats_list_keys($1)",
            "nats_create_bucket($1)::text",
        ] {
            let error = session
                .query(&format!("SELECT {call}"), &[&bucket])
                .await
                .expect_err(bucket);
            assert_eq!(support::sqlstate(&error), "42602", "{call} {bucket:?}: {error:?}");
        }
    }
    for (call, code) in [
        ("nats_put_text(NULL, 'k', '')", "22004"),
        ("nats_put_text('b', NULL, '')", "22004"),
        ("nats_put_text('b', 'k', NULL)", "22004"),
        ("nats_put_text('b', 'k', '', '')", "42602"),
        ("nats_update_text('b', 'k', '', NULL)", "22004"),
        ("nats_update_text('b', 'k', '', 0)", "22003"),
        ("nats_create_bucket('b', history => 0)", "22003"),
        ("nats_create_bucket('b', history => 65)", "22003"),
        ("nats_create_bucket('b', ttl => '-1 s')", "22003"),
        ("nats_create_bucket('b', ttl => '600 years')", "22003"),
        ("nats_create_bucket('b', ttl => '999 us')", "22003"),
        ("nats_create_bucket('b', replicas => 6)", "22003"),
        ("nats_create_bucket('b', storage => 'tape')", "22003"),
    ] {
        assert_eq!(
            failure(&session, &format!("SELECT {call}")).await.code,
            code,
            "{call}"
        );
    }
    run(&session, "SELECT nats_publish_text('end', 'last')").await;
    inbox.text().await;
    assert_eq!(sent().await, before.map(|before| before + 1));
}

/// A value of the wrong kind is an error that names the key, and the binary getter still reads it.
#[tokio::test]
async fn values_that_are_not_what_was_asked_for() {
    let stage = Stage::jetstream().await;
    let session = stage.pg.connect().await;
    run(
        &session,
        r"SELECT nats_put_binary('b', 'bytes', '\xff00'), nats_put_binary('b', 'nul', '\x6100'),
        nats_put_text('b', 'words', 'no JSON')",
    )
    .await;
    for (getter, key, code) in [
        ("text", "bytes", "22021"),
        ("text", "nul", "22021"),
        ("json", "bytes", "22021"),
        ("json", "words", "22P02"),
        ("jsonb", "words", "22P02"),
    ] {
        let error = failure(&session, &format!("SELECT nats_get_{getter}('b', '{key}')")).await;
        assert_eq!(error.code, code, "{getter} {key}: {error:?}");
        assert!(
            error.message.contains(&format!("value of key \"{key}\"")),
            "{error:?}"
        );
        assert!(error.hint.is_some_and(|hint| hint.contains("nats_get_binary")));
    }
    assert_eq!(
        value::<Vec<u8>>(&session, "SELECT nats_get_binary('b', 'bytes')").await,
        b"\xff\0"
    );
}

/// The latest entry tells deleted from never written; history keeps what the bucket was made for; a purge drops it.
#[tokio::test]
async fn entries_history_and_keys() {
    let stage = Stage::jetstream().await;
    let session = stage.pg.connect().await;
    run(&session, "SELECT nats_create_bucket('b', history => 3)").await;
    for sql in [
        "nats_put_text('b', 'k', '1')",
        "nats_put_text('b', 'k', '2')",
        "nats_put_text('b', 'other', '')",
        "nats_delete_value('b', 'k')",
        "nats_put_text('b', 'k', '5')",
    ] {
        run(&session, &format!("SELECT {sql}")).await;
    }
    let history =
        "SELECT revision, operation, value, now() - created < '1 min' FROM nats_get_history('b', 'k')";
    assert_eq!(
        rows(&session, history).await,
        [r#"(2,PUT,"\\x32",t)"#, "(4,DEL,,t)", r#"(5,PUT,"\\x35",t)"#]
    );
    let entry = "SELECT revision, operation, value FROM nats_get_entry('b', 'k')";
    assert_eq!(rows(&session, entry).await, [r#"(5,PUT,"\\x35")"#]);
    let keys = "SELECT * FROM nats_list_keys('b') k ORDER BY k";
    assert_eq!(rows(&session, keys).await, ["(k)", "(other)"]);
    run(&session, "SELECT nats_delete_value('b', 'other')").await;
    assert_eq!(rows(&session, keys).await, ["(k)"]);
    run(&session, "SELECT nats_purge_value('b', 'k')").await;
    assert_eq!(rows(&session, history).await, ["(7,PURGE,,t)"]);
    assert_eq!(rows(&session, entry).await, ["(7,PURGE,)"]);
    assert!(value::<bool>(&session, "SELECT nats_get_text('b', 'k') IS NULL").await);
    assert!(rows(&session, keys).await.is_empty());
    run(
        &session,
        "SELECT nats_put_text('b', 'k', ''), nats_delete_bucket('b')",
    )
    .await;
    assert_eq!(stage.nats.monitor("/jsz").await["streams"], 0);
}

/// Names and values of many keys fit into an answer.
#[tokio::test]
async fn many_keys() {
    let stage = Stage::jetstream().await;
    let session = stage.pg.connect().await;
    run(&session, "SELECT nats_put_text('b', 'some.tokens.' || n || '.' || repeat('t.', 100) || 'end', n::text) FROM generate_series(1, 500) n").await;
    let right = "SELECT count(*) = 500 AND bool_and(nats_get_text('b', k) = split_part(k, '.', 3)) FROM nats_list_keys('b') k";
    assert!(value::<bool>(&session, right).await);
}

/// A list has each key that is there all the while, once, whatever is written meanwhile.
#[tokio::test]
async fn a_list_while_others_write() {
    let stage = Stage::jetstream().await;
    let session = stage.pg.connect().await;
    run(&session, "SELECT nats_create_bucket('b', history => 2)").await;
    run(
        &session,
        "SELECT nats_put_text('b', 'new' || n, 'x') FROM generate_series(1, 20) n",
    )
    .await;
    run(
        &session,
        "SELECT nats_put_text('b', 'old' || n, 'x') FROM generate_series(1, 500) n",
    )
    .await;
    let writer = stage.pg.connect().await;
    let write =
        "SELECT count(nats_put_text('b', 'new' || (1 + n % 20), 'x')) FROM generate_series(1, 1000) n";
    let writing = tokio::spawn(async move { run(&writer, write).await });
    let list = "SELECT count(*) || ' ' || count(DISTINCT k) FROM nats_list_keys('b') k";
    let mut lists = 0;
    while !writing.is_finished() {
        assert_eq!(
            value::<String>(&session, list).await,
            "520 520",
            "in list {lists}"
        );
        lists += 1;
    }
    println!("{lists} lists");
    assert!(lists > 5, "{lists} lists");
    writing.await.expect("a writer that does not panic");
}

/// NATS limits how many consumers a stream has: however often a bucket is read, it has none in the end, and few meanwhile.
#[tokio::test]
async fn reading_leaves_no_consumer() {
    let stage = Stage::jetstream().await;
    let session = stage.pg.connect().await;
    let bucket = json!({
        "name": "KV_b", "subjects": ["$KV.b.>"], "retention": "limits", "storage": "memory", "num_replicas": 1,
        "max_msgs_per_subject": 64, "discard": "new", "allow_rollup_hdrs": true, "allow_direct": true,
        "max_consumers": 10,
    });
    let client = stage.nats.client().await;
    let made = client
        .request("$JS.API.STREAM.CREATE.KV_b", bucket.to_string().into())
        .await;
    let made = String::from_utf8_lossy(&made.expect("an answer").payload).into_owned();
    assert!(!made.contains("error"), "{made}");
    let put = "SELECT count(nats_put_text('b', 'k' || n % 10, n::text)) FROM generate_series(1, 640) n";
    run(&session, put).await;
    let read = "SELECT count(*) FROM generate_series(1, 200) n
        WHERE (SELECT count(*) FROM nats_list_keys('b') k WHERE n > 0) = 10
          AND (SELECT count(*) FROM nats_get_history('b', 'k' || n % 10)) = 64";
    assert_eq!(value::<i64>(&session, read).await, 200);
    eventually_eq(SOON, Some(0), async || {
        stage.nats.monitor("/jsz").await["consumers"].as_u64()
    })
    .await;
}

/// A bucket is made as told; what the server cannot do is its error, and another bucket of the name is not mistaken
/// for what was asked for.
#[tokio::test]
async fn buckets_are_made_as_told() {
    let stage = Stage::jetstream().await;
    let session = stage.pg.connect().await;
    run(
        &session,
        "SELECT nats_create_bucket('plain'), nats_create_bucket('plain')",
    )
    .await;
    run(
        &session,
        "SELECT nats_create_bucket('full', 7, '1 h', 1, 'memory')",
    )
    .await;
    let context = jetstream::new(stage.nats.client().await);
    for (name, history, ttl, memory) in [("plain", 1, 0, false), ("full", 7, 3600, true)] {
        let bucket: kv::Store = context.get_key_value(name).await.expect("a bucket");
        let config = bucket.status().await.expect("its status").info.config;
        let storage = config.storage == jetstream::stream::StorageType::Memory;
        assert_eq!(
            (config.max_messages_per_subject, config.max_age.as_secs(), storage),
            (history, ttl, memory)
        );
    }
    let error = failure(&session, "SELECT nats_create_bucket('three', replicas => 3)").await;
    assert_eq!(error.code, "HV000", "{error:?}");
    assert!(error.detail.is_some_and(|detail| detail.contains("replicas > 1")));
    for other in ["storage => 'memory'", "history => 2", "ttl => '1 s'"] {
        let error = failure(&session, &format!("SELECT nats_create_bucket('plain', {other})")).await;
        assert_eq!(error.code, "HV000", "{other}: {error:?}");
        assert_eq!(
            error.message,
            "key-value bucket \"plain\" exists with other settings"
        );
        assert!(
            error.detail.is_some_and(|detail| detail.contains("different")),
            "{other}"
        );
    }
}

/// Values of a bucket with a ttl go by themselves.
#[tokio::test]
async fn values_expire() {
    let stage = Stage::jetstream().await;
    let session = stage.pg.connect().await;
    run(
        &session,
        "SELECT nats_create_bucket('b', ttl => '400 ms'), nats_put_text('b', 'k', 'x')",
    )
    .await;
    assert_eq!(
        value::<String>(&session, "SELECT nats_get_text('b', 'k')").await,
        "x"
    );
    support::eventually(SOON, async || {
        value::<bool>(&session, "SELECT nats_get_text('b', 'k') IS NULL").await
    })
    .await;
}
