//! What calls of JetStream survive: a forced reload, a restart of NATS, and buckets that somebody made anew.

mod stage;
mod support;

use async_nats::jetstream::{self, object_store};
use stage::*;
use support::Session;

/// Writes to and reads from a stream, a bucket and a store, which may have been used before.
async fn use_all(session: &Session, content: &str) {
    let sql = format!(
        "DO $$ BEGIN
           PERFORM nats_publish_text_stream('s', '{content}'), nats_put_text('b', 'k', '{content}'),
             nats_put_file('o', 'n', '{content}');
           ASSERT nats_get_text('b', 'k') = '{content}', 'value';
           ASSERT nats_get_file('o', 'n') = '{content}', 'file';
         END $$"
    );
    run(session, &sql).await;
}

async fn create_stream(context: &jetstream::Context) {
    let config = jetstream::stream::Config {
        name: "S".into(),
        subjects: vec!["s".into()],
        ..Default::default()
    };
    context.create_stream(config).await.expect("a stream");
}

async fn stage_with_stream() -> (Stage, jetstream::Context) {
    let stage = Stage::jetstream().await;
    let context = jetstream::new(stage.nats.client().await);
    create_stream(&context).await;
    (stage, context)
}

/// What was written is there after the connection was dropped and made anew, for the session that did it and others.
#[tokio::test]
async fn a_forced_reload() {
    let (stage, _) = stage_with_stream().await;
    let (session, other) = (stage.pg.connect().await, stage.pg.connect().await);
    use_all(&session, "1").await;
    use_all(&other, "2").await;
    run(&session, "SELECT litmus_pgnats_reload_conf_force()").await;
    for session in [&session, &other] {
        let read = "SELECT nats_get_text('b', 'k') || convert_from(nats_get_file('o', 'n'), 'utf8')";
        assert_eq!(value::<String>(session, read).await, "22");
    }
    use_all(&other, "3").await;
    use_all(&session, "4").await;
    assert_eq!(
        value::<i64>(&session, "SELECT nats_publish_text_stream('s', '')").await,
        5
    );
}

/// File storage keeps what was written when NATS restarts, and the same session reads it.
#[tokio::test]
async fn a_restart_of_nats() {
    let (mut stage, _) = stage_with_stream().await;
    let session = stage.pg.connect().await;
    use_all(&session, "1").await;
    for stop_first in [false, true] {
        if stop_first {
            stage.nats.stop().await;
            run(&session, "SET litmus_pgnats.connect_timeout = '200ms'").await;
            // The call that was on its way may still be told that the connection broke.
            let code = async || failure(&session, "SELECT nats_get_text('b', 'k')").await.code;
            support::eventually_eq(SOON, "08001".to_owned(), code).await;
            run(&session, "RESET litmus_pgnats.connect_timeout").await;
        }
        stage.nats.restart().await;
        let read = "SELECT nats_get_text('b', 'k') || convert_from(nats_get_file('o', 'n'), 'utf8')";
        let seen = support::eventually(SOON, async || session.query_one(read, &[]).await).await;
        assert_eq!(seen.get::<_, String>(0), "11");
    }
    use_all(&session, "2").await;
    assert_eq!(
        value::<i64>(&session, "SELECT nats_publish_text_stream('s', '')").await,
        3
    );
}

/// A bucket and a store that another client deleted, and made anew in another form, are used as they are now.
#[tokio::test]
async fn buckets_deleted_and_made_anew() {
    let (stage, context) = stage_with_stream().await;
    let session = stage.pg.connect().await;
    use_all(&session, "1").await;
    // The deletion of the account's last stream takes the directory of all along, also from under the next stream.
    context.create_stream("stays").await.expect("a stream");
    for stream in ["S", "KV_b", "OBJ_o"] {
        context.delete_stream(stream).await.expect("delete");
    }
    assert_eq!(
        failure(&session, "SELECT nats_publish_text_stream('s', '')")
            .await
            .code,
        "HV00R"
    );
    assert_eq!(
        value::<Option<String>>(&session, "SELECT nats_get_text('b', 'k')").await,
        None
    );
    assert_eq!(
        failure(&session, "SELECT nats_get_file('o', 'n')").await.code,
        "HV00Q"
    );
    create_stream(&context).await;
    let storage = jetstream::stream::StorageType::Memory;
    let bucket = jetstream::kv::Config {
        bucket: "b".into(),
        history: 2,
        storage,
        ..Default::default()
    };
    context.create_key_value(bucket).await.expect("a bucket");
    let store = object_store::Config {
        bucket: "o".into(),
        storage,
        ..Default::default()
    };
    context.create_object_store(store).await.expect("a store");
    use_all(&session, "2").await;
    use_all(&session, "3").await;
    let history = "SELECT array_agg(convert_from(value, 'utf8')) FROM nats_get_history('b', 'k')";
    assert_eq!(value::<Vec<String>>(&session, history).await, ["2", "3"]);
    assert_eq!(
        value::<i64>(&session, "SELECT nats_publish_text_stream('s', '')").await,
        3,
        "of the new stream"
    );
}

/// A bucket and a store that are gone come back with the next put.
///
/// Each is deleted once: nats-server (2.15.1) may give a stream that was deleted twice within milliseconds the messages
/// of before.
#[tokio::test]
async fn a_put_makes_what_was_deleted() {
    let (stage, context) = stage_with_stream().await;
    let session = stage.pg.connect().await;
    use_all(&session, "1").await;
    for stream in ["KV_b", "OBJ_o"] {
        context.delete_stream(stream).await.expect("delete");
    }
    use_all(&session, "2").await;
    assert_eq!(
        value::<i64>(&session, "SELECT revision FROM nats_get_entry('b', 'k')").await,
        1
    );
}
