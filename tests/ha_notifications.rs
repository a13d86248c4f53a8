//! Notifications of the server's role, without a real Patroni: what is told when, and that it is told once.

mod patroni;
mod scene;
mod support;

use patroni::*;
use scene::*;
use serde_json::Value;
use support::*;

/// Options for notifications on `ha.news`, and a Patroni that is not there.
fn options() -> String {
    let nobody = Port::take().number();
    format!(", notify_subject 'ha.news', patroni_url 'http://127.0.0.1:{nobody}'")
}

/// A server before a NATS, whose foreign server is taken up by a reload.
async fn told(options: &str, nats: NatsServer) -> Scene {
    let scene = Scene::with(Postgres::builder(), nats, options).await;
    scene.pg.sql("SELECT litmus_pgnats_reload_conf()").await;
    scene
}

/// A foreign server that comes to a running server is told of, without a reload, and so is a changed subject.
#[tokio::test]
async fn a_new_server_is_told() {
    let nats = NatsServer::start().await;
    let client = nats.client().await;
    let news = News::listen(&client, "ha.news").await;
    let changed = News::listen(&client, "ha.changed").await;
    let pg = Postgres::start().await;
    pg.sql("CREATE EXTENSION litmus_pgnats").await;
    tokio::time::sleep(PROMPT).await; // whatever looks at a new server has done so
    let sql = format!(
        "CREATE SERVER nats FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (host '127.0.0.1', port '{}'{})",
        nats.port(),
        options()
    );
    pg.sql(&sql).await;
    news.until(pg.port(), &["Master"]).await;
    pg.sql("ALTER SERVER nats OPTIONS (SET notify_subject 'ha.changed')")
        .await;
    pg.sql("SELECT litmus_pgnats_reload_conf()").await;
    changed.until(pg.port(), &["Master"]).await;
    news.until(pg.port(), &["Master"]).await;
}

/// Three databases, two of which name the same subject.
#[tokio::test]
async fn each_start_is_told_once_on_each_subject() {
    let nats = NatsServer::start().await;
    let client = nats.client().await;
    let news = News::listen(&client, "ha.news").await;
    let other = News::listen(&client, "ha.other").await;
    let mut scene = told(&options(), nats).await;
    let port = scene.pg.port();
    news.until(port, &["Master"]).await;
    for (name, options) in [
        ("second", options()),
        ("third", ", notify_subject 'ha.other'".into()),
    ] {
        scene.pg.sql(&format!("CREATE DATABASE {name}")).await;
        let session = scene.pg.connect_as("postgres", name).await;
        run(&session, &create_server(scene.nats.port(), &options)).await;
        run(&session, "SELECT litmus_pgnats_reload_conf()").await;
    }
    other.until(port, &["Master"]).await;
    news.until(port, &["Master"]).await;

    scene.pg.restart(Stop::Fast).await;
    news.until(port, &["Master"; 2]).await;
    other.until(port, &["Master"; 2]).await;
    scene.pg.restart(Stop::Immediate).await;
    news.until(port, &["Master"; 3]).await;
    other.until(port, &["Master"; 3]).await;
    let last = news.of(port).pop().expect("news");
    for field in ["name", "scope", "api_url", "conn_url"] {
        assert_eq!(last.get(field), Some(&Value::Null), "{field} of {last}");
    }
    assert_eq!(last["listen_addresses"], serde_json::json!(["127.0.0.1"]));
    assert_eq!(last["timeline"], 1);

    // The runtime worker is not the server.
    let runtime = scene.runtime().await;
    proc::signal(runtime, libc::SIGTERM);
    scene.next_runtime(runtime).await;
    works_again(&scene).await;
    // Nor is a reload that changes nothing.
    scene.pg.sql("SELECT litmus_pgnats_reload_conf()").await;
    scene.pg.sql("SELECT litmus_pgnats_reload_conf_force()").await;
    news.until(port, &["Master"; 3]).await;
    other.until(port, &["Master"; 3]).await;

    // What was told once is told no more after its subject was given up and taken up again.
    scene
        .pg
        .sql("ALTER SERVER nats OPTIONS (SET notify_subject 'ha.elsewhere')")
        .await;
    scene.pg.sql("SELECT litmus_pgnats_reload_conf()").await;
    scene
        .pg
        .sql("ALTER SERVER nats OPTIONS (SET notify_subject 'ha.news')")
        .await;
    scene.pg.sql("SELECT litmus_pgnats_reload_conf()").await;
    news.until(port, &["Master"; 3]).await;
}

async fn works_again(scene: &Scene) {
    let session = scene.pg.connect().await;
    run(&session, "SELECT nats_publish_text('ha.hello', 'again')").await;
}

/// NATS is away when there is something to tell. A stream hears what comes at once when it is back.
#[tokio::test]
async fn a_notification_waits_for_nats() {
    let nats = NatsServer::builder().jetstream().start().await;
    let kept = Kept::start(&nats).await;
    let mut scene = told(", notify_subject 'kept.news'", nats).await;
    assert_eq!(kept.payloads(1).await.len(), 1);
    scene.nats.stop().await;
    scene.pg.restart(Stop::Fast).await;
    scene.runtime().await;
    tokio::time::sleep(PROMPT).await;
    scene.nats.restart().await;
    kept.payloads(2).await;
    tokio::time::sleep(PROMPT).await;
    let told = kept.payloads(2).await;
    assert!(
        told.len() == 2 && told[1].starts_with(r#"{"status":"Master""#),
        "{told:?}"
    );
}

/// A standby says what it is, and takes up what was changed while it followed.
#[tokio::test]
async fn a_standby_tells_its_start_and_its_promotion() {
    let nats = NatsServer::start().await;
    let client = nats.client().await;
    let news = News::listen(&client, "ha.news").await;
    let changed = News::listen(&client, "ha.changed").await;
    let scene = told(&options(), nats).await;
    news.until(scene.pg.port(), &["Master"]).await;
    let standby = scene.pg.standby().await;
    news.until(standby.port(), &["Replica"]).await;

    // Reloaded on the primary alone, as somebody would who does not know of the standby.
    scene
        .pg
        .sql("ALTER SERVER nats OPTIONS (SET notify_subject 'ha.changed')")
        .await;
    scene.pg.sql("SELECT litmus_pgnats_reload_conf()").await;
    changed.until(scene.pg.port(), &["Master"]).await;
    let replayed = "SELECT count(*) FROM pg_foreign_server WHERE srvoptions::text LIKE '%ha.changed%'";
    eventually_eq(SOON, "1".to_owned(), async || standby.sql(replayed).await).await;
    standby.promote().await;
    changed.until(standby.port(), &["Master"]).await;
    assert_eq!(changed.of(standby.port())[0]["timeline"], 2);
    news.until(standby.port(), &["Replica"]).await;
    news.until(scene.pg.port(), &["Master"]).await;
}

/// A reload on a standby takes up a changed subject there.
#[tokio::test]
async fn a_reload_on_a_standby_takes_up_the_subject() {
    let nats = NatsServer::start().await;
    let client = nats.client().await;
    let news = News::listen(&client, "ha.news").await;
    let changed = News::listen(&client, "ha.changed").await;
    let scene = told(&options(), nats).await;
    let standby = scene.pg.standby().await;
    news.until(standby.port(), &["Replica"]).await;
    scene
        .pg
        .sql("ALTER SERVER nats OPTIONS (SET notify_subject 'ha.changed')")
        .await;
    let replayed = "SELECT count(*) FROM pg_foreign_server WHERE srvoptions::text LIKE '%ha.changed%'";
    eventually_eq(SOON, "1".to_owned(), async || standby.sql(replayed).await).await;
    standby.sql("SELECT litmus_pgnats_reload_conf()").await;
    changed.until(standby.port(), &["Replica"]).await;
}

/// A Patroni that answers gives name and addresses, whichever form of its URL is given.
#[tokio::test]
async fn patroni_names_the_node() {
    let stub = Stub::start(Answer::role("primary")).await;
    for path in ["", "/", "/patroni"] {
        let nats = NatsServer::start().await;
        let news = News::listen(&nats.client().await, "ha.news").await;
        let options = format!(", notify_subject 'ha.news', patroni_url '{}{path}'", stub.url());
        let scene = told(&options, nats).await;
        news.until(scene.pg.port(), &["Master"]).await;
        let told = news.of(scene.pg.port()).pop().expect("news");
        assert_eq!(told["name"], "stub1");
        assert_eq!(told["scope"], "stubs");
        assert_eq!(told["api_url"], "http://192.0.2.1:8008/patroni");
        assert!(
            told["conn_url"]
                .as_str()
                .is_some_and(|url| url.contains("192.0.2.1:5432")),
            "{told}"
        );
    }
}
