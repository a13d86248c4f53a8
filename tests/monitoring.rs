//! What monitoring/ has works as it is: the queries in a real exporter, and each expression of the dashboard and of the
//! alerts in a real Prometheus, with numbers that are those of the views.

mod events;
mod handlers;
mod prometheus;
mod scene;
mod support;

use std::collections::BTreeSet;

use async_nats::jetstream::object_store;
use serde_json::Value;

use events::*;
use handlers::*;
use prometheus::*;
use scene::*;
use support::*;

/// More than the queue below holds.
const FLOOD: usize = 500;

const FUNCTIONS: &str = "CREATE ROLE watcher LOGIN IN ROLE pg_monitor;
     CREATE FUNCTION slow(msg text) RETURNS void LANGUAGE sql AS
       $$ SELECT pg_sleep(CASE msg WHEN 'nap' THEN 1 ELSE 0 END) $$;
     CREATE FUNCTION echo(q text) RETURNS text LANGUAGE sql AS 'SELECT q';
     CREATE FUNCTION moody(msg text) RETURNS void LANGUAGE plpgsql AS
       $$ BEGIN IF msg = 'bad' THEN RAISE 'not %', msg; END IF; END $$;";

/// A server on which something of everything has happened, seen by Prometheus from before it did.
#[tokio::test]
async fn dashboard_and_alerts_say_what_the_views_say() {
    let pg = Postgres::builder().conf("litmus_pgnats.queue_messages", "50");
    let nats = NatsServer::builder().jetstream().start().await;
    let mut scene = Scene::with(pg, nats, "").await;
    let session = scene.pg.connect().await;
    run(&session, KEEP).await;
    run(&session, SHOP).await;
    run(&session, FUNCTIONS).await;
    let (events, kept) = (
        Events::start(&scene, RetentionPolicy::Limits).await,
        Kept::start(&scene.nats).await,
    );
    let store = object_store::Config {
        bucket: "files".into(),
        ..Default::default()
    };
    let store = events.0.create_object_store(store).await;
    store.expect("create an object store");

    subscribe(&session, "orders", "keep").await;
    subscribe(&session, "slow", "slow").await;
    respond(&session, "echo", "echo").await;
    run(
        &session,
        "SELECT nats_subscribe_stream('events', 'moody', max_deliveries => 1)",
    )
    .await;
    until(&session, "live").await;
    let shop = scene.pg.connect_as("shop", "postgres").await;
    run(
        &shop,
        "CREATE FUNCTION mine(msg text) RETURNS void LANGUAGE sql AS ''",
    )
    .await;
    run(&shop, "SELECT nats_subscribe('shop', 'mine'::regproc)").await;
    until_live(&session, "shop").await;
    let other = scene.database("other").await;
    subscribe(&other, "orders", "keep").await;

    let watch = Monitoring::start(&scene.pg, "postgres,other").await;
    until_value(&watch, 6.0, "sum(litmus_pgnats_handler_live)").await;
    // A rate is of two values: these are the first.
    until_value(
        &watch,
        1.0,
        "min(count_over_time(litmus_pgnats_handler_live[1m])) >= bool 2",
    )
    .await;

    let client = scene.nats.client().await;
    count_off(&client, "orders", 1..=40).await;
    say(&client, "slow", "nap").await;
    scene.until_sleeping().await;
    count_off(&client, "slow", 1..=FLOOD).await;
    for n in 1..=20 {
        ask(&client, "echo", n.to_string()).await;
    }
    events.count_off(1..=30).await;
    events.say("events.x", "bad").await;
    run(
        &session,
        "SELECT nats_publish_text_outbox('kept.a', 'x') FROM generate_series(1, 10)",
    )
    .await;
    kept.payloads(10).await;
    run(
        &session,
        "SELECT nats_put_file('files', 'a', repeat('x', 300000)::bytea)",
    )
    .await;
    until_number(
        &session,
        0,
        "SELECT sum(queued)::bigint FROM litmus_pgnats.handlers",
    )
    .await;
    until_number(&session, 1, "SELECT count(*) FROM litmus_pgnats.dead_letters").await;

    compare(&watch, &session).await;
    promtool(&["check", "metrics"], &watch.exported());
    let rules = file("monitoring/alerts.yml");
    promtool(&["check", "rules", rules.to_str().expect("UTF-8")], "");
    every_panel_has_data(&watch).await;
    every_metric_is_documented(&watch);
    every_alert_is_of_metrics_that_there_are(&watch).await;

    until_fires(&watch, "LitmusPgnatsMessagesDropped", "slow").await;
    until_fires(&watch, "LitmusPgnatsHandlerErrors", "events").await;
    until_fires(&watch, "LitmusPgnatsDeadLetters", "stream").await;
    assert!(
        !fires(&watch, "LitmusPgnatsHandlerNotLive", ""),
        "{:?}",
        watch.firing()
    );
    run(&session, "REVOKE USAGE ON FOREIGN SERVER nats FROM shop").await;
    until_fires(&watch, "LitmusPgnatsHandlerNotLive", "shop").await;
    assert!(
        !fires(&watch, "LitmusPgnatsConnectionDown", ""),
        "{:?}",
        watch.firing()
    );
    scene.nats.stop().await;
    run(
        &session,
        "SELECT nats_publish_text_outbox('kept.a', 'x') FROM generate_series(1, 7)",
    )
    .await;
    until_fires(&watch, "LitmusPgnatsConnectionDown", "postgres").await;
    until_value(&watch, 7.0, "sum(litmus_pgnats_outbox_waiting_messages)").await;
    let log = watch.exporter_log();
    assert!(!log.contains("level=error"), "{log}");
}

/// Numbers of the dashboard beside those of the views, in database postgres.
async fn compare(watch: &Monitoring, session: &Session) {
    const HANDLERS: &str = "FROM litmus_pgnats.handlers";
    let of_handlers = [
        ("messages_total", "sum(messages)"),
        ("errors_total", "sum(errors)"),
        ("dropped_total", "sum(dropped)"),
        ("exec_seconds_count", "sum(calls)"),
        ("exec_seconds_sum", "sum(total_exec_time) / 1000"),
        ("exec_seconds_bucket{le=\"+Inf\"}", "sum(calls)"),
        (
            "exec_seconds_bucket{le=\"0.001\"}",
            "sum((SELECT sum(n) FROM unnest(exec_time_histogram[:4]) n))",
        ),
        (
            "exec_seconds_bucket{le=\"30\"}",
            "sum((SELECT sum(n) FROM unnest(exec_time_histogram[:14]) n))",
        ),
    ]
    .map(|(metric, column)| {
        (
            format!("litmus_pgnats_handler_{metric}"),
            format!("{column} {HANDLERS}"),
        )
    });
    let others = [
        (
            "litmus_pgnats_stream_subscription_applied_sequence",
            "sum(applied_to) FROM litmus_pgnats.stream_subscriptions",
        ),
        (
            "litmus_pgnats_stream_subscription_latest_sequence",
            "sum(latest) FROM litmus_pgnats.stream_subscriptions",
        ),
        (
            "litmus_pgnats_dead_letter_messages",
            "count(*) FROM litmus_pgnats.dead_letters",
        ),
        (
            "litmus_pgnats_connection_out_bytes_total",
            "sum(out_bytes) FROM litmus_pgnats.connections WHERE database = 'postgres'",
        ),
        (
            "litmus_pgnats_connection_in_messages_total",
            "sum(in_msgs) FROM litmus_pgnats.connections WHERE database = 'postgres'",
        ),
        (
            "litmus_pgnats_control_start_time_seconds",
            "extract(epoch FROM started) FROM litmus_pgnats.control_channel",
        ),
        (
            "litmus_pgnats_executor_processes{state!=\"no worker slot\"}",
            "count(*) FROM litmus_pgnats.executors WHERE database = 'postgres'",
        ),
        (
            "litmus_pgnats_table_bytes{table=\"dead_letter\"}",
            "pg_total_relation_size('litmus_pgnats.dead_letter')",
        ),
    ]
    .map(|(metric, column)| (metric.to_owned(), column.to_owned()));
    for (metric, column) in of_handlers.into_iter().chain(others) {
        let (name, labels) = metric.split_once('{').unwrap_or((&metric, "}"));
        let expression = format!("sum({name}{{database=\"postgres\",{labels})");
        let sql = format!("SELECT (SELECT {column})::float8::text");
        eventually(SOON, async || {
            let expected: f64 = text(session, &sql).await.parse().expect("a number");
            let seen = watch.value(&expression)?;
            let same = (seen - expected).abs() <= expected.abs() * 1e-9;
            same.then_some(())
                .ok_or_else(|| format!("{expression}: {seen}; {sql}: {expected}"))
        })
        .await;
    }
}

/// Each expression of a panel or a variable, with values and not NaN alone.
async fn every_panel_has_data(watch: &Monitoring) {
    let dashboard: Value = serde_json::from_str(&read("monitoring/grafana-dashboard.json")).expect("JSON");
    let variables = list(&dashboard["templating"]["list"]).filter(|variable| variable["type"] == "query");
    let names: Vec<&str> = variables
        .clone()
        .map(|variable| word(&variable["name"]))
        .collect();
    let of_variables = variables.map(|variable| {
        let query = word(&variable["definition"]);
        let (metric, _) = query
            .strip_prefix("label_values(")
            .and_then(|rest| rest.rsplit_once(','))
            .unwrap_or_else(|| panic!("not label_values: {query}"));
        ("a variable", metric)
    });
    let panels = list(&dashboard["panels"]).filter(|panel| panel["type"] != "row");
    let of_panels = panels.flat_map(|panel| {
        assert!(!word(&panel["description"]).is_empty(), "no description: {panel}");
        list(&panel["targets"]).map(|target| (word(&panel["title"]), word(&target["expr"])))
    });
    let mut checked = 0;
    for (title, expression) in of_variables.chain(of_panels) {
        let expression = substituted(expression, &names);
        eventually(SOON, async || {
            let samples = watch.query(&expression)?;
            let there = samples.iter().any(|sample| !sample.value.is_nan());
            there
                .then_some(())
                .ok_or_else(|| format!("{title}: {expression}: {samples:?}"))
        })
        .await;
        checked += 1;
    }
    println!("{checked} expressions of the dashboard have data");
}

/// An expression as Grafana sends it when everything is chosen.
fn substituted(expression: &str, variables: &[&str]) -> String {
    let mut text = expression.to_owned();
    for name in variables {
        text = text.replace(&format!("${name}"), ".*");
    }
    let text = text
        .replace("$__rate_interval", "1m")
        .replace("$__interval", "5s");
    assert!(!text.contains('$'), "a variable that there is not: {text}");
    text
}

/// docs/monitoring.md has a row for each metric, and for no other.
fn every_metric_is_documented(watch: &Monitoring) {
    let exported = watch.exported();
    let types = exported.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let exported: BTreeSet<&str> = types.filter_map(|line| line.split(' ').next()).collect();
    let text = read("docs/monitoring.md");
    let rows = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `litmus_pgnats_"));
    let documented: BTreeSet<String> = rows
        .filter_map(|row| Some(format!("litmus_pgnats_{}", row.split('`').next()?)))
        .collect();
    let exported: BTreeSet<String> = exported.into_iter().map(str::to_owned).collect();
    assert_eq!(documented, exported);
}

/// An alert whose metric is misspelt would be silent for ever.
async fn every_alert_is_of_metrics_that_there_are(watch: &Monitoring) {
    let rules = eventually(SOON, async || {
        let data = watch.api("rules")?;
        let rules: Vec<Value> = list(&data["groups"])
            .flat_map(|group| list(&group["rules"]))
            .cloned()
            .collect();
        let evaluated = !rules.is_empty() && rules.iter().all(|rule| rule["health"] == "ok");
        if evaluated {
            Ok(rules)
        } else {
            Err(data.to_string())
        }
    })
    .await;
    for rule in &rules {
        let expression = word(&rule["query"]);
        let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        for metric in words.filter(|word| word.starts_with("litmus_pgnats_") || word.starts_with("pg_")) {
            let count = watch.value(&format!("count({metric})"));
            assert!(count.is_ok(), "{}: {metric}: {count:?}", rule["name"]);
        }
    }
}

async fn until_fires(watch: &Monitoring, alert: &str, of: &str) {
    eventually(SOON, async || {
        let there = fires(watch, alert, of);
        there
            .then_some(())
            .ok_or_else(|| format!("{alert} of {of}: {:?}", watch.firing()))
    })
    .await;
}

/// Whether an alert fires one of whose labels has this value, or any; its texts must be complete.
fn fires(watch: &Monitoring, name: &str, of: &str) -> bool {
    let mut firing = watch
        .firing()
        .into_iter()
        .filter(|alert| alert["labels"]["alertname"] == name);
    firing.any(|alert| {
        let texts = alert["annotations"].to_string();
        assert!(
            !texts.contains("error expanding") && !texts.contains("no value"),
            "{alert}"
        );
        let labels = alert["labels"].as_object().expect("labels");
        of.is_empty() || labels.values().any(|value| value == of)
    })
}

async fn until_value(watch: &Monitoring, expected: f64, expression: &str) {
    eventually(SOON, async || {
        let seen = watch.value(expression)?;
        (seen == expected)
            .then_some(())
            .ok_or_else(|| format!("{expression}: {seen}"))
    })
    .await;
}

fn list(value: &Value) -> impl Iterator<Item = &Value> + Clone {
    value.as_array().into_iter().flatten()
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
