//! Object stores: files go up and come down whole, to and from another client; what is not there, and what is damaged.

mod stage;
mod support;

use async_nats::jetstream::{self, object_store};
use serde_json::{Value, json};
use stage::*;
use support::Session;

/// An outside client's view of a store.
async fn outside(stage: &Stage, store: &str) -> object_store::ObjectStore {
    let context = jetstream::new(stage.nats.client().await);
    context.get_object_store(store).await.expect("an object store")
}

/// The messages of a store: its chunks, and one for each object.
async fn messages(stage: &Stage, store: &str) -> u64 {
    let context = jetstream::new(stage.nats.client().await);
    let stream = context
        .get_stream(format!("OBJ_{store}"))
        .await
        .expect("a stream");
    stream.get_info().await.expect("its state").state.messages
}

/// Replaces an object's metadata, as a broken or hostile client might.
async fn forge(stage: &Stage, store: &str, name: &str, change: impl FnOnce(&mut Value)) {
    use base64::{Engine, engine::general_purpose::URL_SAFE};
    let info = outside(stage, store).await.info(name).await.expect("an object");
    let mut info = serde_json::to_value(info).expect("JSON");
    change(&mut info);
    let subject = format!("$O.{store}.M.{}", URL_SAFE.encode(name));
    publish(stage, subject, "sub", info.to_string().into()).await;
}

/// An acknowledged publish of an outside client.
async fn publish(stage: &Stage, subject: String, rollup: &str, payload: bytes::Bytes) {
    let context = jetstream::new(stage.nats.client().await);
    let mut headers = async_nats::HeaderMap::new();
    if !rollup.is_empty() {
        headers.insert("Nats-Rollup", rollup);
    }
    let sent = context.publish_with_headers(subject, headers, payload).await;
    sent.expect("publish").await.expect("an acknowledgement");
}

async fn put(session: &Session, name: &str, content: &[u8]) {
    let sql = "SELECT nats_put_file('s', $1, $2)";
    session
        .execute(sql, &[&name, &content])
        .await
        .unwrap_or_else(|e| panic!("put {name}: {e:?}"));
}

async fn get(session: &Session, name: &str) -> Vec<u8> {
    let row = session.query_one("SELECT nats_get_file('s', $1)", &[&name]).await;
    row.unwrap_or_else(|e| panic!("get {name}: {e:?}")).get(0)
}

/// Bytes that do not repeat at the size of a chunk.
fn bytes(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n % 251) as u8).collect()
}

/// Sizes around the chunk's come back byte for byte, under any name; what lies in the store is no more than that.
#[tokio::test]
async fn contents_and_names_go_round() {
    const CHUNK: usize = 128 * 1024;
    let stage = Stage::jetstream().await;
    let session = stage.pg.connect().await;
    let names = [
        "file.txt",
        "žluťoučký 主题 🦀.txt",
        "/a b/../*>\r\n\t\"",
        ".",
        " ",
        &"x".repeat(1024),
    ];
    for (name, size) in names
        .into_iter()
        .zip([0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK])
    {
        put(&session, name, &bytes(size)).await;
        assert!(
            get(&session, name).await == bytes(size),
            "{name:?} of {size} bytes"
        );
        let info = "SELECT size = $2 AND chunks = $3 AND name = $1 FROM nats_get_file_info('s', $1)";
        let (size, chunks) = (size as i64, size.div_ceil(CHUNK) as i64);
        let row = session
            .query_one(info, &[&name, &size, &chunks])
            .await
            .expect("info");
        assert!(row.get::<_, bool>(0), "{name:?}");
    }
    assert_eq!(messages(&stage, "s").await, 6 + 1 + 1 + 1 + 2 + 5);
    let listed = session
        .query("SELECT name FROM nats_get_file_list('s')", &[])
        .await
        .expect("list");
    let mut listed: Vec<String> = listed.iter().map(|row| row.get(0)).collect();
    let mut names = names.map(str::to_owned);
    listed.sort();
    names.sort();
    assert_eq!(listed, names);
    for (name, code) in [("", "42602"), (&*"x".repeat(1025), "42602")] {
        let error = session
            .query("SELECT nats_get_file('s', $1)", &[&name])
            .await
            .expect_err("refused");
        assert_eq!(support::sqlstate(&error), code);
    }
    assert_eq!(
        failure(&session, "SELECT nats_put_file('a.b', 'n', '')")
            .await
            .code,
        "42602"
    );
    assert_eq!(
        failure(&session, "SELECT nats_put_file('s', 'n', NULL)")
            .await
            .code,
        "22004"
    );
}

/// nats-py reads what SQL wrote and SQL what nats-py wrote, whatever the size of its chunks; so for deletes and lists.
#[tokio::test]
async fn another_client() {
    let stage = Stage::jetstream().await;
    let session = stage.pg.connect().await;
    let content = bytes(300_000);
    let hex: String = content.iter().map(|byte| format!("{byte:02x}")).collect();
    put(&session, "sql", &content).await;
    put(&session, "prázdný", b"").await;
    put(&session, "gone", b"x").await;
    run(&session, "SELECT nats_delete_file('s', 'gone')").await;
    let python = stage.nats.python(json!([
        ["object_get", "s", "sql"],
        ["object_get", "s", "prázdný"],
        ["object_get", "s", "gone"],
        ["object_info", "s", "sql"],
        ["object_put", "s", "python", "67c3bc", 1000],
        ["object_put", "s", "small", hex[..60_000], 999],
        ["object_put", "s", "large", hex, 500_000],
        ["object_put", "s", "nothing", "", 1000],
        ["object_put", "s", "deleted", "78", 1000],
        ["object_delete", "s", "deleted"],
        ["object_names", "s"],
    ]));
    let python = python.await;
    assert!(python[0] == hex, "the content of sql");
    assert_eq!(
        (&python[1], &python[2]),
        (&json!(""), &json!("ObjectNotFoundError"))
    );
    let digest: String = value(&session, "SELECT digest FROM nats_get_file_info('s', 'sql')").await;
    assert_eq!(python[3], json!(["sql", 300_000, 3, digest, false]));
    assert_eq!(get(&session, "python").await, "gü".as_bytes());
    assert!(get(&session, "small").await == content[..30_000]);
    assert!(get(&session, "large").await == content);
    assert_eq!(get(&session, "nothing").await, b"");
    assert_eq!(
        failure(&session, "SELECT nats_get_file('s', 'deleted')")
            .await
            .code,
        "58P01"
    );
    put(&session, "deleted", b"again").await;
    assert_eq!(get(&session, "deleted").await, b"again");
    run(&session, "SELECT nats_delete_file('s', 'deleted')").await;
    let names: Vec<String> = value(
        &session,
        "SELECT array_agg(name ORDER BY name COLLATE \"C\") FROM nats_get_file_list('s')",
    )
    .await;
    assert_eq!(python[10], json!(names));
    let info =
        "SELECT concat_ws('|', name, description, metadata, headers, options, bucket, size, chunks, deleted,
        now() - modified < '1 min', length(nuid) > 0) FROM nats_get_file_info('s', 'python')";
    let expected =
        "python|of nats-py|{}|{\"Kind\": [\"test\"]}|{\"link\": null, \"max_chunk_size\": 1000}|s|3|1|f|t|t";
    assert_eq!(value::<String>(&session, info).await, expected);
}

/// An overwrite replaces, and leaves none of the old chunks; a delete leaves none at all.
#[tokio::test]
async fn overwritten_and_deleted_chunks_go() {
    let stage = Stage::jetstream().await;
    let session = stage.pg.connect().await;
    for _ in 0..20 {
        put(&session, "n", &bytes(1_000_000)).await;
        assert_eq!(messages(&stage, "s").await, 9);
    }
    put(&session, "n", b"short").await;
    assert_eq!(
        (get(&session, "n").await, messages(&stage, "s").await),
        (b"short".into(), 2)
    );
    run(&session, "SELECT nats_delete_file('s', 'n')").await;
    assert_eq!(messages(&stage, "s").await, 1, "the mark of the deletion");
    for call in [
        "nats_get_file('s', 'n')",
        "nats_delete_file('s', 'n')",
        "nats_get_file_info('s', 'n')",
    ] {
        let error = failure(&session, &format!("SELECT {call}")).await;
        assert_eq!(error.code, "58P01", "{call}: {error:?}");
        assert!(error.message.contains("\"n\""), "{error:?}");
    }
    assert_eq!(
        value::<i64>(&session, "SELECT count(*) FROM nats_get_file_list('s')").await,
        0
    );
    put(&session, "n", b"again").await;
    assert_eq!(get(&session, "n").await, b"again");
}

/// Reading makes nothing where there is no store.
#[tokio::test]
async fn a_missing_store() {
    let stage = Stage::jetstream().await;
    let session = stage.pg.connect().await;
    for call in [
        "nats_get_file('s', 'n')",
        "nats_delete_file('s', 'n')",
        "nats_get_file_info('s', 'n')",
    ] {
        let error = failure(&session, &format!("SELECT {call}")).await;
        assert_eq!(
            (error.code.as_str(), error.message.as_str()),
            ("HV00Q", "object store \"s\" does not exist")
        );
    }
    assert_eq!(
        value::<i64>(&session, "SELECT count(*) FROM nats_get_file_list('s')").await,
        0
    );
    assert_eq!(stage.nats.monitor("/jsz").await["streams"], 0);
}

/// Damage is found before a byte is handed out: a digest of something else, chunks changed, missing or too many.
#[tokio::test]
async fn damage_is_found() {
    let stage = Stage::jetstream().await;
    let session = stage.pg.connect().await;
    run(&session, "SET litmus_pgnats.jetstream_timeout = '500ms'").await;
    for name in ["digest", "size", "changed", "longer", "foreign", "empty"] {
        put(&session, name, &bytes(300_000)).await;
    }
    let sha = "SHA-256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU=";
    forge(&stage, "s", "digest", |info| info["digest"] = json!(sha)).await;
    forge(&stage, "s", "size", |info| info["size"] = json!(300_001)).await;
    let context = jetstream::new(stage.nats.client().await);
    let stream = context.get_stream("OBJ_s").await.expect("a stream");
    let chunks = async |name| {
        format!(
            "$O.s.C.{}",
            outside(&stage, "s")
                .await
                .info(name)
                .await
                .expect("an object")
                .nuid
        )
    };
    // One chunk of the same size in place of the three.
    publish(&stage, chunks("changed").await, "sub", vec![0; 300_000].into()).await;
    publish(&stage, chunks("longer").await, "", "x".into()).await;
    // The right size with contents that are not, and one more: the digest alone tells.
    publish(&stage, chunks("foreign").await, "sub", vec![0; 300_000].into()).await;
    publish(&stage, chunks("foreign").await, "", "".into()).await;
    stream.purge().filter(chunks("empty").await).await.expect("purge");
    for (name, code) in [
        ("digest", "XX001"),
        ("size", "XX001"),
        ("changed", "XX001"),
        ("longer", "XX001"),
        ("foreign", "XX001"),
        ("empty", "XX001"),
    ] {
        let error = failure(&session, &format!("SELECT nats_get_file('s', '{name}')")).await;
        assert_eq!(error.code, code, "{name}: {error:?}");
        assert!(error.message.contains(&format!("object \"{name}\"")), "{error:?}");
    }
    put(&session, "digest", b"repaired").await;
    assert_eq!(get(&session, "digest").await, b"repaired");
}

/// An object over PostgreSQL's limit is refused before any of it is streamed.
#[tokio::test]
async fn an_object_over_the_limit() {
    let stage = Stage::jetstream().await;
    let session = stage.pg.connect().await;
    put(&session, "n", &bytes(1000)).await;
    for size in [0x3fff_fffc_u64, 5_000_000_000] {
        forge(&stage, "s", "n", |info| info["size"] = json!(size)).await;
        let before = stage.nats.monitor("/varz").await["out_bytes"].as_u64();
        let error = failure(&session, "SELECT nats_get_file('s', 'n')").await;
        assert_eq!(error.code, "54000", "{error:?}");
        assert!(
            error
                .detail
                .is_some_and(|detail| detail.contains(&size.to_string()))
        );
        let streamed = stage.nats.monitor("/varz").await["out_bytes"]
            .as_u64()
            .zip(before);
        assert!(
            streamed.is_some_and(|(after, before)| after - before < 5000),
            "{streamed:?}"
        );
        let listed: i64 = value(&session, "SELECT size FROM nats_get_file_list('s')").await;
        assert_eq!(listed as u64, size);
    }
}

/// A link to an object reads as the object, in another store too; a link to a store, or round in circles, is an error.
#[tokio::test]
async fn links() {
    let stage = Stage::jetstream().await;
    let session = stage.pg.connect().await;
    put(&session, "target", b"content").await;
    run(&session, "SELECT nats_put_file('t', 'other', '')").await;
    let (store, other) = (outside(&stage, "s").await, outside(&stage, "t").await);
    let target = store.info("target").await.expect("the target");
    store.add_link("link", &target).await.expect("a link");
    other.add_link("far", &target).await.expect("a link");
    store.add_bucket_link("store", "t").await.expect("a link");
    put(&session, "loop", b"").await;
    forge(&stage, "s", "loop", |info| {
        info["options"] = json!({"link": {"bucket": "s", "name": "loop"}})
    })
    .await;
    put(&session, "odd", b"").await;
    forge(&stage, "s", "odd", |info| {
        info["options"] = json!({"link": {"bucket": "a b.>", "name": "x"}})
    })
    .await;
    assert_eq!(get(&session, "link").await, b"content");
    assert_eq!(
        value::<Vec<u8>>(&session, "SELECT nats_get_file('t', 'far')").await,
        b"content"
    );
    for (name, code, said) in [
        ("store", "0A000", "link to object store \"t\""),
        ("loop", "0A000", "link to another link"),
        ("odd", "42602", "invalid object store name"),
    ] {
        let error = failure(&session, &format!("SELECT nats_get_file('s', '{name}')")).await;
        assert_eq!(error.code, code, "{name}: {error:?}");
        assert!(error.message.contains(said), "{error:?}");
    }
    let link: String = value(
        &session,
        "SELECT options->'link'->>'name' FROM nats_get_file_info('s', 'link')",
    )
    .await;
    assert_eq!(link, "target");
    run(&session, "SELECT nats_delete_file('s', 'link')").await;
    assert_eq!(
        get(&session, "target").await,
        b"content",
        "a link goes without its target"
    );
}

/// A store that is full ends a put early, with nothing left of it.
#[tokio::test]
async fn a_full_store() {
    let stage = Stage::jetstream().await;
    let session = stage.pg.connect().await;
    let context = jetstream::new(stage.nats.client().await);
    let config = object_store::Config {
        bucket: "s".into(),
        max_bytes: 3_000_000,
        ..Default::default()
    };
    context.create_object_store(config).await.expect("a store");
    put(&session, "kept", b"old").await;
    let error = failure(
        &session,
        "SELECT nats_put_file('s', 'kept', decode(repeat('00', 20000000), 'hex'))",
    )
    .await;
    assert_eq!(error.code, "53100", "{error:?}");
    support::eventually_eq(SOON, 2, async || messages(&stage, "s").await).await;
    assert_eq!(get(&session, "kept").await, b"old");
}
