//! Compare-and-set on keys: create, update, and writers that race.

mod stage;
mod support;

use futures::future::join_all;
use stage::*;

/// Create takes a key that is absent or deleted, update the revision that is given; either refuses otherwise.
#[tokio::test]
async fn create_and_update_compare_first() {
    let stage = Stage::jetstream().await;
    let session = stage.pg.connect().await;
    for kind in ["text", "json", "jsonb", "binary"] {
        let create = format!("SELECT nats_create_{kind}('{kind}', 'k', '1')");
        let update = |revision: i64| format!("SELECT nats_update_{kind}('{kind}', 'k', '2', {revision})");
        assert_eq!(
            value::<i64>(&session, &create).await,
            1,
            "creates the bucket, too"
        );
        let error = failure(&session, &create).await;
        assert_eq!(error.code, "23505", "unique_violation: {error:?}");
        assert!(error.message.contains("\"k\""), "{error:?}");
        assert_eq!(value::<i64>(&session, &update(1)).await, 2);
        let error = failure(&session, &update(1)).await;
        assert_eq!(error.code, "40001", "serialization_failure: {error:?}");
        run(&session, &format!("SELECT nats_delete_value('{kind}', 'k')")).await;
        assert_eq!(value::<i64>(&session, &create).await, 4, "after a delete");
        run(&session, &format!("SELECT nats_purge_value('{kind}', 'k')")).await;
        assert_eq!(value::<i64>(&session, &create).await, 6, "after a purge");
        let absent = format!("SELECT nats_update_{kind}('{kind}', 'absent', '2', 1)");
        assert_eq!(failure(&session, &absent).await.code, "40001");
        let read: String = value(
            &session,
            &format!("SELECT convert_from(nats_get_binary('{kind}', 'k'), 'utf8')"),
        )
        .await;
        assert_eq!(read, "1", "what was refused is not written");
    }
}

/// Of those that create one key at the same time one succeeds, the bucket's creation included.
#[tokio::test]
async fn one_of_many_creates() {
    let stage = Stage::jetstream().await;
    let sessions = join_all((0..8).map(|_| stage.pg.connect())).await;
    for key in 0..10 {
        let sql = format!("SELECT nats_create_text('b{key}', 'k', '')");
        let outcomes = join_all(sessions.iter().map(|session| session.batch_execute(&sql))).await;
        let (created, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
        let codes: Vec<String> = refused
            .into_iter()
            .map(|e| support::sqlstate(&e.expect_err("refused")))
            .collect();
        assert_eq!((created.len(), codes), (1, vec!["23505".to_owned(); 7]));
    }
}

/// 8 sessions add 1 to a key 1,000 times each, by reading and updating, and again after a refusal: none of the additions is lost.
#[tokio::test]
async fn no_update_is_lost() {
    const SESSIONS: usize = 8;
    const EACH: usize = 1000;
    let stage = Stage::jetstream().await;
    let session = stage.pg.connect().await;
    run(
        &session,
        "SELECT nats_create_bucket('b', storage => 'memory'), nats_create_text('b', 'k', '0')",
    )
    .await;
    let increment = format!(
        "DO $$ DECLARE done int := 0; BEGIN WHILE done < {EACH} LOOP BEGIN
           PERFORM nats_update_text('b', 'k', (convert_from(value, 'utf8')::int + 1)::text, revision)
             FROM nats_get_entry('b', 'k');
           done := done + 1;
         EXCEPTION WHEN serialization_failure THEN PERFORM pg_sleep(random() * 0.02); END; END LOOP; END $$"
    );
    let sessions = join_all((0..SESSIONS).map(|_| stage.pg.connect())).await;
    join_all(sessions.iter().map(|session| run(session, &increment))).await;
    let sum: String = value(&session, "SELECT nats_get_text('b', 'k')").await;
    assert_eq!(sum, (SESSIONS * EACH).to_string());
    let revision: i64 = value(&session, "SELECT revision FROM nats_get_entry('b', 'k')").await;
    assert_eq!(revision, (SESSIONS * EACH + 1) as i64, "nothing else was written");
}
