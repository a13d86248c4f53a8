//! Handlers of people who are no superusers: their own DDL, callbacks that register, and rows that a superuser edits.

mod handlers;
mod scene;
mod support;

use handlers::*;
use scene::*;
use support::*;

const REGISTERED: &str = "SELECT subject || ' ' || signature FROM litmus_pgnats.handler ORDER BY 1";

/// A scene, the superuser's session, and that of `shop`, which owns a schema of its own.
async fn a_shop() -> (Scene, Session, Session) {
    let (scene, session) = Scene::keeping().await;
    run(&session, SHOP).await;
    run(
        &session,
        "CREATE SCHEMA shop AUTHORIZATION shop; GRANT INSERT ON got TO shop; GRANT CREATE ON DATABASE postgres TO shop",
    )
    .await;
    let shop = scene.pg.connect_as("shop", "postgres").await;
    run(
        &shop,
        "CREATE FUNCTION shop.a(msg text) RETURNS void LANGUAGE sql AS
           $$ INSERT INTO public.got (payload) VALUES (msg) $$;
         CREATE FUNCTION shop.b(msg text) RETURNS void LANGUAGE sql AS '';
         CREATE FUNCTION shop.c(msg text) RETURNS void LANGUAGE sql AS '';
         SELECT nats_subscribe('a', 'shop.a'), nats_subscribe('b', 'shop.b'), nats_subscribe('c', 'shop.c')",
    )
    .await;
    subscribe(&session, "stays", "keep").await;
    until_live(&session, "a").await;
    (scene, session, shop)
}

/// An owner without other rights renames and drops; the extension's table follows, though it is closed to them.
#[tokio::test]
async fn ddl_of_an_owner() {
    let (scene, session, shop) = a_shop().await;
    let client = scene.nats.client().await;
    let stays = "stays public.keep(bytea)";
    for (sql, left) in [
        (
            "ALTER FUNCTION shop.a RENAME TO a2",
            ["a shop.a2(text)", "b shop.b(text)", "c shop.c(text)", stays].as_slice(),
        ),
        (
            "ALTER SCHEMA shop RENAME TO store",
            &["a store.a2(text)", "b store.b(text)", "c store.c(text)", stays],
        ),
        (
            "DROP FUNCTION store.b",
            &["a store.a2(text)", "c store.c(text)", stays],
        ),
        (
            "ALTER FUNCTION store.a2 SET SCHEMA public",
            &["a public.a2(text)", "c store.c(text)", stays],
        ),
        ("DROP SCHEMA store CASCADE", &["a public.a2(text)", stays]),
    ] {
        run(&shop, sql).await;
        assert_eq!(texts(&session, REGISTERED).await, left, "{sql}");
        run(&shop, "SELECT nats_publish_text('x', '')").await;
        say(&client, "a", sql).await;
        eventually(SOON, async || got(&session).await.contains(&sql.to_owned())).await;
    }
    run(&shop, "DROP OWNED BY shop CASCADE").await;
    assert_eq!(texts(&session, REGISTERED).await, [stays]);
    eventually_eq(SOON, vec!["stays".to_owned()], async || scene.subjects().await).await;
}

/// Objects of a session's own that have the names which the extension uses in its work are not taken for those.
#[tokio::test]
async fn names_in_the_way() {
    let (scene, session, shop) = a_shop().await;
    run(
        &shop,
        "CREATE TABLE shop.handler (x int); CREATE TEMPORARY TABLE pg_proc (oid oid, proname name);
         CREATE FUNCTION shop.to_regprocedure(text) RETURNS regprocedure LANGUAGE plpgsql AS
           $$ BEGIN RAISE EXCEPTION 'caught'; END $$;
         CREATE FUNCTION shop.now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'caught'; END $$;
         CREATE FUNCTION shop.texteq(text, text) RETURNS boolean LANGUAGE plpgsql AS
           $$ BEGIN RAISE EXCEPTION 'caught'; END $$;
         CREATE OPERATOR shop.= (LEFTARG = text, RIGHTARG = text, FUNCTION = shop.texteq);
         SET search_path = pg_temp, shop, pg_catalog, public",
    )
    .await;
    for sql in [
        "SELECT public.nats_subscribe('trap', 'shop.a')",
        "SELECT public.nats_subscribe('trap', 'shop.a')",
        "SELECT public.nats_unsubscribe('trap', 'shop.a')",
        "ALTER FUNCTION shop.b RENAME TO b2",
        "DROP FUNCTION shop.c",
    ] {
        run(&shop, sql).await;
    }
    run(
        &session,
        "ALTER ROLE shop SET search_path = shop, pg_catalog, public",
    )
    .await;
    say(&scene.nats.client().await, "a", "1").await;
    until_got(&session, &["1"]).await;
    let left = ["a shop.a(text)", "b shop.b2(text)", "stays public.keep(bytea)"];
    assert_eq!(texts(&session, REGISTERED).await, left);
}

/// A callback may register and take back, itself too.
#[tokio::test]
async fn callbacks_register() {
    let (scene, session, shop) = a_shop().await;
    run(
        &shop,
        "CREATE FUNCTION shop.once(msg text, subject text) RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
           INSERT INTO public.got (payload) VALUES ('once ' || msg);
           PERFORM public.nats_unsubscribe(subject, 'shop.once');
           PERFORM public.nats_subscribe('next.' || msg, 'shop.a');
           IF msg = 'fail' THEN PERFORM 1 / 0; END IF;
         END $$;
         SELECT nats_subscribe('once', 'shop.once')",
    )
    .await;
    until_live(&session, "once").await;
    let client = scene.nats.client().await;
    say(&client, "once", "fail").await;
    until_errors(&session, "once", 1).await;
    say(&client, "once", "1").await;
    until_live(&session, "next.1").await;
    let expected = ["a", "b", "c", "next.1", "stays"].map(str::to_owned).to_vec();
    eventually_eq(SOON, expected, async || scene.subjects().await).await;
    say(&client, "next.1", "2").await;
    until_got(&session, &["once 1", "2"]).await;
}

/// What a superuser does to the table by hand counts as well.
#[tokio::test]
async fn rows_edited_by_hand() {
    let (scene, session, _shop) = a_shop().await;
    let client = scene.nats.client().await;
    run(
        &session,
        "DELETE FROM litmus_pgnats.handler WHERE subject IN ('b', 'c')",
    )
    .await;
    let expected = ["a", "stays"].map(str::to_owned).to_vec();
    eventually_eq(SOON, expected, async || scene.subjects().await).await;
    run(
        &session,
        "UPDATE litmus_pgnats.handler SET subject = 'a.new' WHERE subject = 'a'",
    )
    .await;
    let expected = ["a.new", "stays"].map(str::to_owned).to_vec();
    eventually_eq(SOON, expected, async || scene.subjects().await).await;
    say(&client, "a.new", "1").await;
    until_got(&session, &["1"]).await;
    // Rows that mean nothing are refused or harm nobody.
    for row in [
        "'subscription', 'no_such_server', 'x', 'public.keep(bytea)', 'postgres'",
        "'subscription', 'nats', 'not a subject', 'public.keep(bytea)', 'postgres'",
        "'subscription', 'nats', 'x', 'pg_catalog.now()', 'postgres'",
        "'subscription', 'nats', 'z', 'public.keep(bytea)', '4000000000'",
        "'responder', 'nats', 'z', 'public.keep(bytea)', 'postgres'",
        "'subscription', 'nats', 'y', 'no such function', 'postgres'",
        "'subscription', 'nats', 'y', 'no.such(bytea)', 'postgres'",
        "'subscription', 'nats', 'y', 'public.keep(no_such_type)', 'postgres'",
        "'subscription', 'nats', 'y', 'public.keep(bytea, )', 'postgres'",
        "'subscription', 'nats', 'y', 'public.\"keep(bytea)', 'postgres'",
        "'subscription', 'nats', 'y', 'a.b.c.d.e(bytea)', 'postgres'",
        "'subscription', 'nats', 'y', '(bytea)', 'postgres'",
        "'subscription', 'nats', 'y', '', 'postgres'",
    ] {
        let sql = format!(
            "INSERT INTO litmus_pgnats.handler (kind, server, subject, signature, role) VALUES ({row})"
        );
        let outcome = session.batch_execute(&sql).await;
        println!("{row}: {:?}", outcome.err().map(|error| sqlstate(&error)));
    }
    run(&session, "SELECT nats_publish_text('x', '')").await;
    say(&client, "stays", "2").await;
    until_got(&session, &["1", "2"]).await;
    eventually_eq(SOON, vec!["a.new".to_owned(), "stays".into()], async || {
        scene.subjects().await
    })
    .await;
    run(&session, "TRUNCATE litmus_pgnats.handler CASCADE").await;
    scene.until_silent().await;
}

/// With every executor stuck a session still registers and publishes without waiting for them.
#[tokio::test]
async fn registering_while_all_executors_are_stuck() {
    let pg = Postgres::builder().conf("litmus_pgnats.max_executors", "1");
    let (scene, session) = Scene::keeping_with(pg).await;
    run(
        &session,
        "CREATE FUNCTION stuck(msg text) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(600)'",
    )
    .await;
    subscribe(&session, "stuck", "stuck").await;
    say(&scene.nats.client().await, "stuck", "x").await;
    scene.until_sleeping().await;
    let began = std::time::Instant::now();
    run(&session, "SELECT nats_subscribe('more', 'keep')").await;
    run(&session, "SELECT nats_publish_text('more', '1')").await;
    println!("registered and published after {:?}", began.elapsed());
    assert!(began.elapsed() < 10 * PROMPT, "{:?}", began.elapsed());
    until_live(&session, "more").await;
    run(&session, "SELECT nats_unsubscribe('stuck', 'stuck')").await;
    eventually_eq(SOON, vec!["more".to_owned()], async || scene.subjects().await).await;
}

/// DROP EXTENSION, while a callback would go on for ten minutes.
#[tokio::test]
async fn dropping_the_extension_while_stuck() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE FUNCTION stuck(msg text) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(600)'",
    )
    .await;
    subscribe(&session, "stuck", "stuck").await;
    say(&scene.nats.client().await, "stuck", "x").await;
    scene.until_sleeping().await;
    let began = std::time::Instant::now();
    run(&session, "DROP EXTENSION litmus_pgnats CASCADE").await;
    println!("DROP EXTENSION took {:?}", began.elapsed());
    assert!(began.elapsed() < 10 * PROMPT, "{:?}", began.elapsed());
    scene.until_silent().await;
    eventually_eq(SOON, [0; 0].to_vec(), async || scene.executors().await).await;
}
