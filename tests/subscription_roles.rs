//! Who may register, and whom a callback runs as: the role that registered it, and nobody else in any way.

mod handlers;
mod scene;
mod support;

use handlers::*;
use scene::*;
use support::*;

/// [`Scene::keeping`] with roles `shop` and `thief`, which have what a handler needs and no more; sessions of the
/// superuser, of shop and of thief.
async fn two_roles() -> (Scene, Session, Session, Session) {
    let (scene, session) = Scene::keeping().await;
    run(&session, SHOP).await;
    run(
        &session,
        "GRANT INSERT ON got TO shop; CREATE ROLE thief LOGIN; GRANT USAGE ON FOREIGN SERVER nats TO thief;
         GRANT CREATE ON SCHEMA public TO thief; GRANT INSERT ON got TO thief",
    )
    .await;
    let shop = scene.pg.connect_as("shop", "postgres").await;
    let thief = scene.pg.connect_as("thief", "postgres").await;
    (scene, session, shop, thief)
}

/// Registering needs USAGE on the foreign server and EXECUTE on the function.
#[tokio::test]
async fn rights_to_register() {
    let (scene, session, shop, _thief) = two_roles().await;
    run(
        &session,
        "CREATE ROLE nobody LOGIN; CREATE FUNCTION secret(msg text) RETURNS text LANGUAGE sql AS 'SELECT msg';
         REVOKE EXECUTE ON FUNCTION secret FROM PUBLIC",
    )
    .await;
    let nobody = scene.pg.connect_as("nobody", "postgres").await;
    for (session, sql, word) in [
        (&nobody, "SELECT nats_subscribe('a', 'keep')", "server"),
        (
            &nobody,
            "SELECT litmus_pgnats_register_responder('a', 'secret')",
            "",
        ),
        (&shop, "SELECT nats_subscribe('a', 'secret')", "function"),
        (
            &shop,
            "SELECT litmus_pgnats_register_responder('a', 'secret')",
            "function",
        ),
    ] {
        let (report, _) = refused(session, sql).await;
        assert_eq!(report.code, "42501", "{sql}: {report:?}");
        assert!(report.message.contains(word), "{sql}: {report:?}");
    }
    run(&session, "GRANT EXECUTE ON FUNCTION secret TO shop").await;
    run(&shop, "SELECT nats_subscribe('a', 'secret')").await;
    until_live(&session, "a").await;
}

/// The extension's table is nobody's business; its views show each role what is its own, and all to those who monitor.
#[tokio::test]
async fn rights_to_look() {
    let (scene, session, shop, thief) = two_roles().await;
    run(&session, "CREATE ROLE monitor LOGIN; GRANT pg_monitor TO monitor").await;
    let monitor = scene.pg.connect_as("monitor", "postgres").await;
    run(&shop, "SELECT nats_subscribe('a', 'keep')").await;
    for sql in [
        "TABLE litmus_pgnats.handler",
        "DELETE FROM litmus_pgnats.handler",
        "UPDATE litmus_pgnats.handler SET role = 'postgres'::regrole",
        "INSERT INTO litmus_pgnats.handler SELECT (jsonb_populate_record(NULL::litmus_pgnats.handler, '{}')).*",
        "TABLE litmus_pgnats.executors",
    ] {
        let (report, _) = refused(&shop, sql).await;
        assert_eq!(report.code, "42501", "{sql}: {report:?}");
    }
    let seen = "SELECT subject || ' ' || role FROM litmus_pgnats.subscriptions";
    assert_eq!(texts(&monitor, seen).await, ["a shop"]);
    assert_eq!(texts(&shop, seen).await, ["a shop"]);
    assert!(texts(&thief, seen).await.is_empty());
    for view in ["responders", "executors"] {
        run(&monitor, &format!("TABLE litmus_pgnats.{view}")).await;
    }
    let granted = "SELECT c.relname::text FROM pg_class c, aclexplode(c.relacl) a
                   WHERE c.relnamespace = 'litmus_pgnats'::regnamespace AND a.grantee = 0";
    let expected = [
        "dead_letters",
        "handlers",
        "outbox_waiting",
        "responders",
        "stream_subscriptions",
        "subscriptions",
    ];
    let mut found = texts(&session, granted).await;
    found.sort();
    assert_eq!(found, expected, "granted to PUBLIC");
}

/// What a role registered, another one neither takes over nor takes away, unless it has that role's privileges.
#[tokio::test]
async fn handlers_of_other_roles() {
    let (_scene, session, shop, thief) = two_roles().await;
    run(
        &session,
        "CREATE FUNCTION answer(q text) RETURNS text LANGUAGE sql AS 'SELECT current_user::text';
         CREATE FUNCTION other_answer(q text) RETURNS text LANGUAGE sql AS 'SELECT q'",
    )
    .await;
    run(
        &shop,
        "SELECT nats_subscribe('a', 'keep'), litmus_pgnats_register_responder('rpc', 'answer')",
    )
    .await;
    for sql in [
        "SELECT nats_subscribe('a', 'keep')",
        "SELECT nats_subscribe('a', 'keep', 'group')",
        "SELECT nats_unsubscribe('a', 'keep')",
        "SELECT litmus_pgnats_register_responder('rpc', 'answer')",
        "SELECT litmus_pgnats_register_responder('rpc', 'other_answer')",
        "SELECT litmus_pgnats_unregister_responder('rpc')",
    ] {
        let (report, _) = refused(&thief, sql).await;
        assert_eq!(report.code, "42501", "{sql}: {report:?}");
    }
    let owners = "SELECT subject || ' ' || role FROM litmus_pgnats.handler ORDER BY 1";
    assert_eq!(texts(&session, owners).await, ["a shop", "rpc shop"]);
    // A function of its own on the same subject is its own affair.
    run(
        &thief,
        "CREATE FUNCTION mine(msg text) RETURNS void LANGUAGE sql AS ''; SELECT nats_subscribe('a', 'mine')",
    )
    .await;
    // With the other's privileges, as a member or a superuser, it may.
    run(&session, "GRANT shop TO thief").await;
    run(
        &thief,
        "SELECT nats_unsubscribe('a', 'keep'), litmus_pgnats_unregister_responder('rpc')",
    )
    .await;
    assert_eq!(texts(&session, owners).await, ["a thief"]);
    run(&session, "SELECT nats_unsubscribe('a', 'mine')").await;
    assert_eq!(texts(&session, owners).await, [""; 0]);
}

/// A callback is its role: current_user, settings of ALTER ROLE, and the limits of its rights.
#[tokio::test]
async fn a_callback_runs_as_its_role() {
    let (scene, session, shop, _thief) = two_roles().await;
    run(
        &session,
        "CREATE SCHEMA shop AUTHORIZATION shop; CREATE TABLE secrets (x int);
         ALTER ROLE shop SET search_path = shop; ALTER ROLE shop SET statement_timeout = '300ms';
         ALTER ROLE shop IN DATABASE postgres SET work_mem = '1234kB';
         CREATE FUNCTION public.look(msg text) RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
           INSERT INTO public.got (payload) VALUES (concat_ws(' ', current_user, current_setting('search_path'),
             current_setting('statement_timeout'), current_setting('work_mem')));
         END $$;
         CREATE FUNCTION public.steal(msg text) RETURNS void LANGUAGE sql AS 'INSERT INTO public.secrets VALUES (1)';
         CREATE FUNCTION public.stay(msg text) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(600)'",
    )
    .await;
    for function in ["look", "steal", "stay"] {
        let sql = format!("SELECT public.nats_subscribe('{function}', 'public.{function}')");
        run(&shop, &sql).await;
        until_live(&session, function).await;
    }
    // The superuser's own subscription of the same function is the superuser.
    run(&session, "SELECT nats_subscribe('look.postgres', 'look')").await;
    until_live(&session, "look.postgres").await;
    let client = scene.nats.client().await;
    let as_shop = "shop shop 300ms 1234kB";
    say(&client, "look", "1").await;
    until_got(&session, &[as_shop]).await;
    say(&client, "steal", "1").await;
    until_errors(&session, "steal", 1).await;
    let last = "SELECT last_error FROM litmus_pgnats.subscriptions WHERE subject = ";
    let stolen = texts(&session, &format!("{last}'steal'")).await;
    assert!(stolen[0].contains("permission denied"), "{stolen:?}");
    say(&client, "stay", "1").await;
    until_errors(&session, "stay", 1).await;
    let stayed = texts(&session, &format!("{last}'stay'")).await;
    assert!(stayed[0].contains("statement timeout"), "{stayed:?}");
    say(&client, "look.postgres", "1").await;
    let as_postgres = "postgres \"$user\", public 0 4MB";
    until_got(&session, &[as_shop, as_postgres]).await;
    say(&client, "look", "1").await;
    until_got(&session, &[as_shop, as_postgres, as_shop]).await;
    // Settings are those of now, not of the registration.
    run(
        &session,
        "ALTER ROLE shop SET search_path = other; ALTER ROLE shop RESET statement_timeout",
    )
    .await;
    eventually(SOON, async || {
        run(&session, "TRUNCATE got").await;
        say(&client, "look", "1").await;
        eventually(SOON, async || !got(&session).await.is_empty()).await;
        got(&session).await == ["shop other 0 1234kB"]
    })
    .await;
}

/// Settings for new transactions hold in the callback's own: isolation, and read only.
#[tokio::test]
async fn transaction_settings_of_the_role() {
    let (scene, session, shop, _thief) = two_roles().await;
    run(
        &session,
        "CREATE FUNCTION level(msg text) RETURNS void LANGUAGE sql AS
           $$ INSERT INTO public.got (payload) VALUES (current_setting('transaction_isolation')) $$;
         CREATE FUNCTION level_now(q text) RETURNS text LANGUAGE sql AS
           $$ SELECT current_setting('transaction_read_only') || ' ' || current_setting('transaction_isolation') $$",
    )
    .await;
    run(
        &shop,
        "SELECT nats_subscribe('level', 'level'), litmus_pgnats_register_responder('now', 'level_now')",
    )
    .await;
    until_live(&session, "level").await;
    until_live(&session, "now").await;
    let client = scene.nats.client().await;
    say(&client, "level", "1").await;
    until_got(&session, &["read committed"]).await;
    run(
        &session,
        "ALTER ROLE shop SET default_transaction_isolation = 'serializable'",
    )
    .await;
    for _ in 0..2 {
        say(&client, "level", "1").await;
    }
    until_got(&session, &["read committed", "serializable", "serializable"]).await;
    run(&session, "ALTER ROLE shop SET default_transaction_read_only = on").await;
    assert_eq!(reply_text(&ask(&client, "now", "").await), "on serializable");
    say(&client, "level", "1").await;
    until_errors(&session, "level", 1).await;
    let last = "SELECT last_error FROM litmus_pgnats.subscriptions WHERE subject = 'level'";
    let last = texts(&session, last).await;
    assert!(last[0].contains("25006"), "{last:?}");
    // The superuser's own are not changed by it.
    run(
        &session,
        "CREATE FUNCTION level_then(q text) RETURNS text LANGUAGE sql AS $$ SELECT level_now(q) $$",
    )
    .await;
    respond(&session, "then", "level_then").await;
    assert_eq!(reply_text(&ask(&client, "then", "").await), "off read committed");
}

/// A handler whose role may no longer execute the function is disabled, and says why; it comes back with the right.
#[tokio::test]
async fn rights_that_are_revoked() {
    let (scene, session, shop, _thief) = two_roles().await;
    run(
        &session,
        "REVOKE EXECUTE ON FUNCTION keep FROM PUBLIC; GRANT EXECUTE ON FUNCTION keep TO shop",
    )
    .await;
    run(&shop, "SELECT nats_subscribe('a', 'keep')").await;
    until_live(&session, "a").await;
    let client = scene.nats.client().await;
    say(&client, "a", "1").await;
    until_got(&session, &["1"]).await;
    for (revoke, grant, word) in [
        (
            "REVOKE EXECUTE ON FUNCTION keep FROM shop",
            "GRANT EXECUTE ON FUNCTION keep TO shop",
            "EXECUTE",
        ),
        (
            "REVOKE USAGE ON FOREIGN SERVER nats FROM shop",
            "GRANT USAGE ON FOREIGN SERVER nats TO shop",
            "USAGE",
        ),
    ] {
        run(&session, "TRUNCATE got").await;
        run(&session, revoke).await;
        until_state(&session, "a", "disabled").await;
        let problem = texts(&session, "SELECT problem FROM litmus_pgnats.subscriptions").await;
        assert!(problem[0].contains(word), "{revoke}: {problem:?}");
        say(&client, "a", "2").await;
        run(&session, grant).await;
        run(&session, "SELECT nats_publish_text('x', '')").await;
        until_live(&session, "a").await;
        say(&client, "a", "3").await;
        until_got(&session, &["3"]).await;
    }
    // A right that the function itself needs is an error of the message.
    run(&session, "TRUNCATE got; REVOKE INSERT ON got FROM shop").await;
    say(&client, "a", "4").await;
    until_errors(&session, "a", 1).await;
    run(&session, "GRANT INSERT ON got TO shop").await;
    say(&client, "a", "5").await;
    until_got(&session, &["5"]).await;
}

/// Who looks at the handlers sees what has changed, also while the session that has committed it has not yet told the
/// caches of other processes, which a busy machine makes a while.
#[tokio::test]
async fn rights_that_come_and_go() {
    let (scene, session, shop, _thief) = two_roles().await;
    run(&shop, "SELECT nats_subscribe('a', 'keep')").await;
    for _ in 0..4 {
        let busy = scene.pg.connect().await;
        tokio::spawn(async move { busy.simple_query("DO 'BEGIN LOOP NULL; END LOOP; END'").await });
    }
    for _ in 0..100 {
        until_live(&session, "a").await;
        run(&session, "REVOKE USAGE ON FOREIGN SERVER nats FROM shop").await;
        until_state(&session, "a", "disabled").await;
        run(&session, "GRANT USAGE ON FOREIGN SERVER nats TO shop").await;
    }
}

/// A right that goes without anybody being told, with a membership, is missed when the message comes.
#[tokio::test]
async fn rights_are_checked_at_call() {
    let (scene, session, shop, _thief) = two_roles().await;
    run(
        &session,
        "CREATE ROLE staff; GRANT staff TO shop; REVOKE EXECUTE ON FUNCTION keep FROM PUBLIC;
         GRANT EXECUTE ON FUNCTION keep TO staff;
         CREATE FUNCTION answer(q text) RETURNS text LANGUAGE sql AS $$ SELECT 'to ' || q $$;
         REVOKE EXECUTE ON FUNCTION answer FROM PUBLIC; GRANT EXECUTE ON FUNCTION answer TO staff",
    )
    .await;
    run(
        &shop,
        "SELECT nats_subscribe('a', 'keep'), litmus_pgnats_register_responder('rpc', 'answer')",
    )
    .await;
    until_live(&session, "a").await;
    until_live(&session, "rpc").await;
    let client = scene.nats.client().await;
    say(&client, "a", "1").await;
    until_got(&session, &["1"]).await;
    for _ in 0..10 {
        assert_eq!(reply_text(&ask(&client, "rpc", "q").await), "to q");
    }
    run(&session, "REVOKE staff FROM shop").await;
    say(&client, "a", "2").await;
    until_errors(&session, "a", 1).await;
    let last = texts(&session, "SELECT last_error FROM litmus_pgnats.subscriptions").await;
    assert!(
        last[0].contains("permission denied") && last[0].contains("keep"),
        "{last:?}"
    );
    let (code, _) = service_error(&ask(&client, "rpc", "q").await).expect("an error");
    assert_eq!(code, "42501");
    run(&session, "GRANT staff TO shop").await;
    say(&client, "a", "3").await;
    until_got(&session, &["1", "3"]).await;
    assert_eq!(reply_text(&ask(&client, "rpc", "q").await), "to q");
}

/// A role that is a superuser when it registers and no longer when the message comes has no more than it has then.
#[tokio::test]
async fn a_superuser_no_longer() {
    let (scene, session, shop, _thief) = two_roles().await;
    run(
        &session,
        "CREATE TABLE secrets (x int); ALTER ROLE shop SUPERUSER",
    )
    .await;
    run(
        &shop,
        "CREATE FUNCTION steal(msg text) RETURNS void LANGUAGE sql AS 'INSERT INTO public.secrets VALUES (1)'",
    )
    .await;
    subscribe(&shop, "steal", "steal").await;
    let client = scene.nats.client().await;
    let secrets = "SELECT count(*) FROM secrets";
    say(&client, "steal", "1").await;
    until_number(&session, 1, secrets).await;
    run(&session, "ALTER ROLE shop NOSUPERUSER").await;
    say(&client, "steal", "2").await;
    until_errors(&session, "steal", 1).await;
    assert_eq!(number(&session, secrets).await, 1);
}
