//! Subscriptions in less common places: another schema, another encoding, names that need quotes, and very many.

mod handlers;
mod scene;
mod support;

use std::time::Instant;

use handlers::*;
use scene::*;
use support::*;

/// The extension's functions are where CREATE EXTENSION put them, in nobody's search path.
#[tokio::test]
async fn the_extension_in_another_schema() {
    let nats = NatsServer::start().await;
    let pg = Postgres::start().await;
    let session = pg.connect().await;
    run(
        &session,
        "CREATE SCHEMA \"Nats Tools\"; CREATE EXTENSION litmus_pgnats SCHEMA \"Nats Tools\"",
    )
    .await;
    run(
        &session,
        &format!(
            "CREATE SERVER nats FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (host '127.0.0.1', port '{}')",
            nats.port()
        ),
    )
    .await;
    run(&session, KEEP).await;
    run(
        &session,
        "CREATE FUNCTION answer(q text) RETURNS text LANGUAGE sql AS $$ SELECT 'to ' || q $$;
         SELECT \"Nats Tools\".nats_subscribe('a', 'keep');
         SELECT \"Nats Tools\".litmus_pgnats_register_responder('rpc', 'answer')",
    )
    .await;
    until_live(&session, "a").await;
    until_live(&session, "rpc").await;
    let client = nats.client().await;
    say(&client, "a", "1").await;
    until_got(&session, &["1"]).await;
    assert_eq!(reply_text(&ask(&client, "rpc", "q").await), "to q");
    run(
        &session,
        "ALTER FUNCTION answer RENAME TO answers; DROP FUNCTION keep",
    )
    .await;
    assert_eq!(reply_text(&ask(&client, "rpc", "q").await), "to q");
    assert_eq!(
        texts(&session, "SELECT subject FROM litmus_pgnats.handler").await,
        ["rpc"]
    );
}

/// Whoever owns the schema that CREATE EXTENSION is told has put operators there, for every pair of types that it might
/// compare: none is taken, or it would run as the superuser.
#[tokio::test]
async fn operators_in_the_way() {
    let nats = NatsServer::start().await;
    let pg = Postgres::start().await;
    let session = pg.connect().await;
    run(&session, PLANT_OPERATORS).await;
    let planted = "SELECT count(*) FROM pg_operator WHERE oprnamespace = 'evil'::regnamespace";
    let planted = number(&session, planted).await;
    println!("{planted} operators planted");
    assert!(planted > 500);
    run(&session, "CREATE EXTENSION litmus_pgnats SCHEMA evil").await;
    let used = "SELECT count(*) FROM pg_depend d JOIN pg_operator o ON o.oid = d.refobjid
                WHERE d.refclassid = 'pg_operator'::regclass AND o.oprnamespace = 'evil'::regnamespace
                AND d.classid <> 'pg_operator'::regclass";
    assert_eq!(number(&session, used).await, 0, "an object depends on one");
    run(&session, KEEP).await;
    run(
        &session,
        &format!(
            "CREATE SERVER nats FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (host '127.0.0.1', port '{}');
             CREATE FUNCTION answer(q text) RETURNS text LANGUAGE sql AS 'SELECT q';
             SET search_path = evil, public;
             SELECT nats_subscribe('a', 'keep'), litmus_pgnats_register_responder('rpc', 'answer');
             TABLE litmus_pgnats.subscriptions; TABLE litmus_pgnats.responders; TABLE litmus_pgnats.executors;
             SELECT nats_get_server_info(), litmus_pgnats_version();
             ALTER FUNCTION answer RENAME TO answers; ALTER SERVER nats RENAME TO other;
             DROP FUNCTION answers",
            nats.port()
        ),
    )
    .await;
    // Where the tests' own queries find PostgreSQL's operators first.
    run(&session, "RESET search_path").await;
    until_live(&session, "a").await;
    say(&nats.client().await, "a", "1").await;
    until_got(&session, &["1"]).await;
}

const PLANT_OPERATORS: &str = r#"
CREATE ROLE mallory; CREATE SCHEMA evil AUTHORIZATION mallory;
SET ROLE mallory;
DO $do$
DECLARE
  types text[] := '{text,name,varchar,oid,regrole,regclass,regproc,int,bigint,timestamptz,interval,"\"char\"",text[],name[],oid[],anyarray,anyelement}';
  l text; r text; o text;
BEGIN
  FOREACH l IN ARRAY types LOOP
    FOREACH r IN ARRAY types LOOP
      BEGIN
        EXECUTE format($f$CREATE FUNCTION evil.f(%s, %s) RETURNS boolean LANGUAGE plpgsql AS
          'BEGIN RAISE EXCEPTION $$an operator of mallory runs as %%$$, current_user; END'$f$, l, r);
        FOREACH o IN ARRAY '{=,<>,~,||,-,+}'::text[] LOOP
          EXECUTE format('CREATE OPERATOR evil.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = evil.f)', o, l, r);
        END LOOP;
      EXCEPTION WHEN OTHERS THEN
        RAISE NOTICE '% %: %', l, r, SQLERRM;
      END;
    END LOOP;
  END LOOP;
END $do$;
RESET ROLE"#;

/// A database in LATIN1: text is converted both ways, and what it cannot hold is that message's error.
#[tokio::test]
async fn another_encoding() {
    let (scene, _) = Scene::keeping().await;
    scene
        .pg
        .sql("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
        .await;
    let session = scene.pg.connect_as("postgres", "latin").await;
    run(&session, &create_server(scene.nats.port(), "")).await;
    run(
        &session,
        "CREATE TABLE got (id bigint GENERATED ALWAYS AS IDENTITY, payload text);
         CREATE FUNCTION \"wähle\"(msg text, subject text) RETURNS void LANGUAGE sql AS
           $$ INSERT INTO public.got (payload) VALUES (length(msg) || ' ' || msg || ' ' || subject) $$;
         CREATE FUNCTION \"größer\"(q json, subject text, reply_to text, headers jsonb) RETURNS json LANGUAGE plpgsql AS $$
         BEGIN
           IF q->>'w' = 'fail' THEN RAISE EXCEPTION 'schön schief'; END IF;
           RETURN json_build_object('w', q->>'w', 'h', headers->>'h', 'l', length(q->>'w'));
         END $$",
    )
    .await;
    subscribe(&session, "grüße.ä", "\"wähle\"").await;
    respond(&session, "rpc.ö", "\"größer\"").await;
    let client = scene.nats.client().await;
    for payload in ["grün", "10 €", "blau"] {
        say(&client, "grüße.ä", payload).await;
    }
    until_got(&session, &["4 grün grüße.ä", "4 blau grüße.ä"]).await;
    until_errors(&session, "grüße.ä", 1).await;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("h", "hübsch");
    let reply = client
        .request_with_headers("rpc.ö", headers, "{\"w\": \"schön\"}".into())
        .await
        .expect("a reply");
    let reply: serde_json::Value = serde_json::from_str(&reply_text(&reply)).expect("JSON");
    assert_eq!(reply, serde_json::json!({"w": "schön", "h": "hübsch", "l": 5}));
    let (code, message) = service_error(&ask(&client, "rpc.ö", "{\"w\": \"fail\"}").await).expect("an error");
    println!("{code}: {message:?}");
    assert_eq!(code, "P0001");
    assert!(message.starts_with("sch"), "{message:?}");
    let functions = texts(&session, "SELECT function FROM litmus_pgnats.subscriptions").await;
    assert!(functions[0].contains("wähle"), "{functions:?}");
    run(
        &session,
        "CREATE FUNCTION tenant(q text) RETURNS text LANGUAGE sql STABLE AS
           $$ SELECT length(current_setting('app.tenant')) || ' ' || current_setting('app.tenant') $$;
         CREATE ROLE shop; GRANT USAGE ON FOREIGN SERVER nats TO shop; ALTER ROLE shop SET app.tenant = 'Müller'; SET ROLE shop;
         SELECT litmus_pgnats_register_responder('tenant', 'tenant'); RESET ROLE",
    )
    .await;
    until_live(&session, "tenant").await;
    assert_eq!(reply_text(&ask(&client, "tenant", "").await), "6 Müller");
}

/// Names with quotes, dots, capitals and spaces: of roles, schemas, functions, databases, servers, subjects, groups.
#[tokio::test]
async fn names_that_need_quotes() {
    const ODD: &str = "o'dd \"Näme\".$1; --";
    let quoted = format!("\"{}\"", ODD.replace('"', "\"\""));
    let nats = NatsServer::start().await;
    let pg = Postgres::start().await;
    pg.connect()
        .await
        .batch_execute(&format!("CREATE DATABASE {quoted}"))
        .await
        .expect("a database");
    let session = pg.connect_as("postgres", ODD).await;
    run(
        &session,
        &format!(
            "CREATE EXTENSION litmus_pgnats;
             CREATE SERVER {quoted} FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (host '127.0.0.1', port '{}');
             CREATE ROLE {quoted} LOGIN; GRANT USAGE ON FOREIGN SERVER {quoted} TO {quoted};
             CREATE SCHEMA {quoted} AUTHORIZATION {quoted};",
            nats.port()
        ),
    )
    .await;
    let odd = pg.connect_as(ODD, ODD).await;
    let (subject, group) = ("o'dd.\"Näme\".$1;--", "gr'öup\"$1");
    run(
        &odd,
        &format!(
            "CREATE TABLE {quoted}.{quoted} (id int GENERATED ALWAYS AS IDENTITY, x text);
             CREATE FUNCTION {quoted}.{quoted}(msg text, subject text) RETURNS text LANGUAGE sql AS $odd$
               INSERT INTO {quoted}.{quoted} (x) VALUES (current_user || ' ' || subject || ' ' || msg) RETURNING x $odd$"
        ),
    )
    .await;
    for call in ["nats_subscribe", "litmus_pgnats_register_responder"] {
        let sql = format!("SELECT {call}($1, ($2::text)::regproc, $3)");
        let name = format!("{quoted}.{quoted}");
        odd.query(&sql, &[&format!("{subject}.{call}"), &name, &group])
            .await
            .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }
    let client = nats.client().await;
    let (news, rpc) = (
        format!("{subject}.nats_subscribe"),
        format!("{subject}.litmus_pgnats_register_responder"),
    );
    let states = "SELECT concat_ws(' ', server, queue_group, role::text, state) FROM litmus_pgnats.subscriptions
                  UNION ALL SELECT concat_ws(' ', server, queue_group, role::text, state) FROM litmus_pgnats.responders";
    let expected = format!("{ODD} {group} {quoted} live");
    eventually_eq(SOON, vec![expected.clone(), expected], async || {
        texts(&session, states).await
    })
    .await;
    say(&client, &news, "hello").await;
    let kept = format!("SELECT x FROM {quoted}.{quoted} ORDER BY id");
    eventually_eq(SOON, vec![format!("{ODD} {news} hello")], async || {
        texts(&session, &kept).await
    })
    .await;
    assert_eq!(
        reply_text(&ask(&client, &rpc, "q").await),
        format!("{ODD} {rpc} q")
    );
    let executors = texts(&session, "SELECT DISTINCT database FROM litmus_pgnats.executors").await;
    assert_eq!(executors, [ODD]);
    let sql = "SELECT nats_unsubscribe($1, ($2::text)::regproc)";
    odd.query(sql, &[&news, &format!("{quoted}.{quoted}")])
        .await
        .expect("unsubscribe");
    assert_eq!(
        session
            .query("TABLE litmus_pgnats.subscriptions", &[])
            .await
            .expect("the view")
            .len(),
        0
    );
}

/// Hundreds of subscriptions: registered in one transaction, and back after a restart.
#[tokio::test]
async fn hundreds_of_subscriptions() {
    const COUNT: i64 = 500;
    let (mut scene, session) = Scene::keeping().await;
    let began = Instant::now();
    run(
        &session,
        &format!("SELECT count(nats_subscribe('many.' || i, 'keep')) FROM generate_series(1, {COUNT}) i"),
    )
    .await;
    run(&session, "SELECT nats_publish_text('many.1', 'first')").await;
    println!(
        "{COUNT} subscriptions: registered, and a message published, after {:?}",
        began.elapsed()
    );
    until_got(&session, &["first"]).await;
    let live = "SELECT count(*) FROM litmus_pgnats.subscriptions WHERE state = 'live'";
    until_number(&session, COUNT, live).await;
    println!("all live after {:?}", began.elapsed());
    scene.pg.restart(Stop::Fast).await;
    let began = Instant::now();
    let session = scene.pg.connect().await;
    until_number(&session, COUNT, live).await;
    println!("after a restart all live after {:?}", began.elapsed());
    run(&session, "TRUNCATE got").await;
    let client = scene.nats.client().await;
    for n in 1..=COUNT {
        publish(&client, &format!("many.{n}"), n.to_string().into()).await;
    }
    round_trip(&client).await;
    until_number(&session, COUNT, "SELECT count(DISTINCT payload) FROM got").await;
    assert!(scene.executors().await.len() <= 4);
}
