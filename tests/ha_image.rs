//! The Patroni pair of docker/compose.yaml: its configuration and environment, without containers.

mod patroni;
mod scene;
mod support;

use patroni::*;
use scene::*;
use serde_json::Value;
use support::*;

/// Anchors and all.
fn compose() -> Value {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docker/compose.yaml");
    let text = std::fs::read_to_string(file).expect("read compose.yaml");
    let program = "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.argv[1])))";
    let output = python().args(["-c", program, &text]).output();
    let output = output.expect("run Python");
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[tokio::test]
async fn the_pair_of_the_compose_file() {
    let compose = compose();
    let nats = NatsServer::start().await;
    let work = WorkDir::new("clusters");
    let etcd_ports = [Port::take(), Port::take()];
    let _etcd = start_etcd(&work, &etcd_ports).await;
    let mut members = ["pg1", "pg2"].map(|name| {
        let environment = compose["services"][name]["environment"].as_object();
        let environment = environment.expect("an environment");
        Member::as_in_a_container(name, work.path(), etcd_ports[0].number(), environment)
    });
    members.iter_mut().for_each(Member::start);
    let leader = eventually(LONG, async || {
        for leader in 0..2 {
            if members[leader].leads().await && members[1 - leader].follows().await {
                return Ok(leader);
            }
        }
        Err(members.iter().map(Member::tail).collect::<Vec<_>>())
    })
    .await;
    let session = members[leader].connect().await;
    let options = format!(", patroni_url 'http://127.0.0.1:{}'", members[leader].api());
    run(&session, &create_server(nats.port(), &options)).await;
    let settings = "SELECT concat_ws(' ', current_setting('shared_preload_libraries'),
                    current_setting('litmus_pgnats.patroni_fencing'))";
    assert_eq!(text(&session, settings).await, "litmus_pgnats on");
    run(
        &session,
        "CREATE TABLE got (payload text);
         CREATE FUNCTION keep(msg text) RETURNS void LANGUAGE sql AS 'INSERT INTO got VALUES (msg)';
         SELECT nats_subscribe('ha.image', 'keep')",
    )
    .await;
    until_state(&session, "ha.image", "live").await;
    let client = nats.client().await;
    client.publish("ha.image", "hello".into()).await.expect("publish");
    let standby = members[1 - leader].connect().await;
    eventually(LONG, async || {
        let rows = standby.query("SELECT payload FROM got", &[]).await;
        rows.is_ok_and(|rows| rows.iter().any(|row| row.get::<_, String>(0) == "hello"))
    })
    .await;
}
