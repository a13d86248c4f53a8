//! JetStream domains: PostgreSQL is with a leaf node, and reaches the streams, buckets and stores of its hub.

mod stage;
mod support;

use async_nats::jetstream;
use stage::*;
use support::{NatsServer, Port, Postgres, Session};

/// A hub, and a stage whose nats-server is a leaf node of it. Each has a JetStream and a stream of its own.
async fn hub_and_leaf() -> (NatsServer, Port, Stage) {
    let port = Port::take();
    let listen = format!(
        "server_name: hub\nleafnodes {{ listen: \"127.0.0.1:{}\" }}",
        port.number()
    );
    let hub = NatsServer::builder().domain("hub").config(&listen).start().await;
    let remote = format!(
        "server_name: leaf\nleafnodes {{ remotes: [{{ url: \"nats-leaf://127.0.0.1:{}\" }}] }}",
        port.number()
    );
    let leaf = NatsServer::builder().domain("leaf").config(&remote);
    let stage = Stage::with(leaf, Postgres::builder()).await;
    for (nats, name) in [(&hub, "hub"), (&stage.nats, "leaf")] {
        let config = jetstream::stream::Config {
            name: name.into(),
            subjects: vec![format!("{name}.s")],
            ..Default::default()
        };
        jetstream::new(nats.client().await)
            .create_stream(config)
            .await
            .expect("a stream");
    }
    // The leaf has been told of what the hub has once a message goes through.
    let context = jetstream::with_domain(stage.nats.client().await, "hub");
    support::eventually(SOON, async || context.get_stream("hub").await).await;
    (hub, port, stage)
}

/// The names of the streams that a server has, its domain's alone.
async fn streams(nats: &NatsServer) -> Vec<String> {
    let jsz = nats.monitor("/jsz?streams=1").await;
    let details = jsz["account_details"][0]["stream_detail"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let mut names: Vec<String> = details
        .iter()
        .map(|s| s["name"].as_str().unwrap_or_default().into())
        .collect();
    names.sort();
    names
}

/// Every function that takes a domain, with what follows its arguments: `, 'hub'` or nothing. Each kind of value is
/// written to a bucket of its own, so that the buckets show where it went.
async fn everything(session: &Session, domain: &str) {
    for (kind, literal) in [
        ("text", "'1'"),
        ("json", "'1'"),
        ("jsonb", "'1'"),
        ("binary", "'1'"),
    ] {
        let all = format!(
            "DO $$ DECLARE r bigint; BEGIN
               r := nats_put_{kind}('kv', '{kind}', {literal}{domain});
               r := nats_update_{kind}('kv', '{kind}', {literal}, r{domain});
               PERFORM nats_delete_value('kv', '{kind}'{domain});
               r := nats_create_{kind}('kv', '{kind}', {literal}{domain});
               ASSERT convert_from(nats_get_binary('kv', '{kind}'{domain}), 'utf8') = '1', 'written';
               ASSERT nats_get_{kind}('kv', '{kind}'{domain}) IS NOT NULL, 'read';
               ASSERT (SELECT revision FROM nats_get_entry('kv', '{kind}'{domain})) = r, 'entry';
               ASSERT (SELECT revision FROM nats_get_history('kv', '{kind}'{domain})) = r, 'history';
             END $$"
        );
        run(session, &all).await;
    }
    let rest = format!(
        "DO $$ BEGIN
           ASSERT (SELECT count(*) FROM nats_list_keys('kv'{domain})) = 4, 'keys';
           PERFORM nats_purge_value('kv', 'text'{domain});
           ASSERT nats_get_text('kv', 'text'{domain}) IS NULL, 'purged';
           PERFORM nats_put_file('o', 'n', convert_to(repeat('x', 300000), 'utf8'){domain});
           PERFORM nats_put_file('o', 'n', convert_to(repeat('y', 300000), 'utf8'){domain});
           ASSERT nats_get_file('o', 'n'{domain}) = convert_to(repeat('y', 300000), 'utf8'), 'file';
           ASSERT (SELECT size FROM nats_get_file_info('o', 'n'{domain})) = 300000, 'info';
           ASSERT (SELECT count(*) FROM nats_get_file_list('o'{domain})) = 1, 'list';
           PERFORM nats_delete_file('o', 'n'{domain});
           ASSERT (SELECT count(*) FROM nats_get_file_list('o'{domain})) = 0, 'deleted';
         END $$"
    );
    run(session, &rest).await;
    let named = if domain.is_empty() {
        String::new()
    } else {
        format!("domain => {}", &domain[2..])
    };
    let comma = if named.is_empty() { "" } else { ", " };
    run(
        session,
        &format!("SELECT nats_create_bucket('made'{comma}{named}), nats_delete_bucket('made'{domain})"),
    )
    .await;
}

/// Publishes to a stream of the domain; the sequence is the domain's.
async fn publish(session: &Session, subject: &str, domain: &str) {
    let domain = domain
        .strip_prefix(", ")
        .map_or_else(String::new, |domain| format!(", NULL, {domain}"));
    for (kind, literal) in [
        ("text", "'1'"),
        ("json", "'1'"),
        ("jsonb", "'1'"),
        ("binary", "'1'"),
    ] {
        let sql = format!("SELECT nats_publish_{kind}_stream('{subject}', {literal}{domain})");
        assert!(value::<i64>(session, &sql).await > 0, "{sql}");
    }
}

/// Changes the server's options; each statement is committed by itself, so that the reload is done when it returns.
async fn change(session: &Session, options: &str, reload: &str) {
    run(session, &format!("ALTER SERVER nats OPTIONS ({options})")).await;
    run(session, &format!("SELECT {reload}()")).await;
}

/// The argument leads every function to the hub; without it each stays with the leaf.
#[tokio::test]
async fn the_argument() {
    let (hub, _port, stage) = hub_and_leaf().await;
    let session = stage.pg.connect().await;
    everything(&session, ", 'hub'").await;
    publish(&session, "hub.s", ", 'hub'").await;
    assert_eq!(streams(&hub).await, ["KV_kv", "OBJ_o", "hub"]);
    assert_eq!(streams(&stage.nats).await, ["leaf"]);
    publish(&session, "leaf.s", ", 'leaf'").await;
    run(&session, "SELECT nats_delete_bucket('kv', 'hub')").await;
    assert_eq!(streams(&hub).await, ["OBJ_o", "hub"]);
}

/// The option does the same for a whole server, after a reload; the argument overrides it.
#[tokio::test]
async fn the_option() {
    let (hub, _port, stage) = hub_and_leaf().await;
    let session = stage.pg.connect().await;
    run(&session, "SELECT nats_put_text('first', 'k', '')").await;
    assert_eq!(streams(&stage.nats).await, ["KV_first", "leaf"]);
    change(&session, "ADD domain 'hub'", "litmus_pgnats_reload_conf").await;
    everything(&session, "").await;
    publish(&session, "hub.s", "").await;
    assert_eq!(streams(&hub).await, ["KV_kv", "OBJ_o", "hub"]);
    assert_eq!(streams(&stage.nats).await, ["KV_first", "leaf"]);
    run(&session, "SELECT nats_put_text('second', 'k', '', 'leaf')").await;
    publish(&session, "leaf.s", ", 'leaf'").await;
    assert_eq!(streams(&stage.nats).await, ["KV_first", "KV_second", "leaf"]);
    change(&session, "SET domain 'leaf'", "litmus_pgnats_reload_conf").await;
    run(&session, "SELECT nats_put_text('third', 'k', '')").await;
    change(&session, "DROP domain", "litmus_pgnats_reload_conf_force").await;
    run(&session, "SELECT nats_put_text('fourth', 'k', '')").await;
    assert_eq!(
        streams(&stage.nats).await,
        ["KV_first", "KV_fourth", "KV_second", "KV_third", "leaf"]
    );
    assert_eq!(streams(&hub).await, ["KV_kv", "OBJ_o", "hub"]);
}

/// A domain that is not there is told apart at once, and a subject of another domain is no stream of this one.
#[tokio::test]
async fn what_a_domain_lacks() {
    let (hub, _port, stage) = hub_and_leaf().await;
    let session = stage.pg.connect().await;
    for call in [
        "nats_put_text('b', 'k', '', 'moon')",
        "nats_get_text('b', 'k', 'moon')",
        "nats_put_file('s', 'n', '', 'moon')",
        "nats_get_file('s', 'n', 'moon')",
        "nats_list_keys('b', 'moon')",
        "nats_publish_text_stream('nobody', '', NULL, 'moon')",
    ] {
        let begun = std::time::Instant::now();
        let error = failure(&session, &format!("SELECT {call}")).await;
        assert_eq!(error.code, "HV00N", "{call}: {error:?}");
        assert_eq!(error.message, "JetStream domain \"moon\" is not reachable");
        assert!(begun.elapsed().as_secs() < 2, "{call}");
    }
    run(&session, "SET litmus_pgnats.jetstream_timeout = '300ms'").await;
    let error = failure(
        &session,
        "SELECT nats_publish_text_stream('leaf.s', '', NULL, 'hub')",
    )
    .await;
    assert_eq!(error.code, "HV00R", "{error:?}");
    assert!(error.detail.is_some_and(|detail| detail.contains("\"leaf\"")));
    drop(hub);
}

/// The same bucket in both domains is two buckets. The subjects of objects are no domain's: rather than writing to both
/// stores, it is an error.
#[tokio::test]
async fn one_name_in_two_domains() {
    let (_hub, _port, stage) = hub_and_leaf().await;
    let session = stage.pg.connect().await;
    run(
        &session,
        "SELECT nats_put_text('b', 'k', 'hub', 'hub'), nats_put_text('b', 'k', 'leaf')",
    )
    .await;
    let read =
        "SELECT nats_get_text('b', 'k', 'hub') || nats_get_text('b', 'k') || nats_get_text('b', 'k', 'leaf')";
    assert_eq!(value::<String>(&session, read).await, "hubleafleaf");
    run(
        &session,
        "SELECT nats_put_file('o', 'n', 'leaf'), nats_put_file('o', 'n', 'leaf', 'leaf')",
    )
    .await;
    for call in [
        "nats_put_file('o', 'n', 'hub', 'hub')",
        "nats_delete_file('o', 'n', 'hub')",
    ] {
        let error = failure(&session, &format!("SELECT {call}")).await;
        assert_eq!(
            error.message, "object store \"o\" exists in two JetStream domains",
            "{call}"
        );
    }
    assert_eq!(
        value::<Vec<u8>>(&session, "SELECT nats_get_file('o', 'n')").await,
        b"leaf"
    );
}
