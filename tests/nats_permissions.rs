//! docs/nats-permissions.md is true: a NATS user with the subjects of one row can use that part, and a user who lacks
//! one of them is told so, with the subject.

mod handlers;
mod scene;
mod support;

use std::time::Duration;

use async_nats::jetstream::{kv, object_store, stream};
use futures::StreamExt;
use handlers::{number, until_number};
use scene::*;
use support::*;

/// A row of the page's table.
#[derive(Clone, Debug)]
struct Part {
    name: String,
    publish: Vec<String>,
    subscribe: Vec<String>,
}

/// What a part is used by.
enum Use {
    /// Calls, which succeed or fail by themselves.
    Calls(Vec<String>),
    /// A handler, and the view that shows it.
    Handler { register: String, view: &'static str },
    /// A message that goes its way after the call.
    Sent(String),
}

const STREAM: &str = "EVENTS";

fn table() -> Vec<Part> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/nats-permissions.md"));
    let page = page.expect("the page");
    let rows = page
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains('`'));
    let parts: Vec<Part> = rows
        .map(|row| {
            let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
            let name = cells[0].trim().to_string();
            let subjects = |cell: &str| {
                let code = cell.split('`').skip(1).step_by(2);
                code.map(|subject| filled(&name, subject)).collect()
            };
            Part {
                publish: subjects(cells[1]),
                subscribe: subjects(cells[2]),
                name: name.clone(),
            }
        })
        .collect();
    assert!(parts.len() > 10, "{parts:?}");
    parts
}

/// A subject of the page with the names that the test uses.
fn filled(part: &str, subject: &str) -> String {
    let is_stream = ["publish to a stream", "outbox"].contains(&part);
    let bucket = if part.starts_with("create") { "c" } else { "b" };
    subject
        .replace("SUBJECT", if is_stream { "events.new" } else { "orders.new" })
        .replace("KV_BUCKET", &format!("KV_{bucket}"))
        .replace("$KV.BUCKET", &format!("$KV.{bucket}"))
        .replace("OBJ_STORE", "OBJ_s")
        .replace("$O.STORE", "$O.s")
        .replace("INFO.STREAM", "INFO.EVENTS")
        .replace("GET.STREAM", "GET.EVENTS")
        .replace("CREATE.STREAM", "CREATE.EVENTS")
        .replace("NEXT.STREAM", "NEXT.EVENTS")
        .replace("DELETE.STREAM", "DELETE.EVENTS")
        .replace("ACK.STREAM", "ACK.EVENTS")
}

fn used_by(part: &str) -> Use {
    let calls = |calls: &[&str]| Use::Calls(calls.iter().map(ToString::to_string).collect());
    match part {
        "publish" => Use::Sent("SELECT nats_publish_text('orders.new', 'x')".into()),
        "outbox" => Use::Sent("SELECT nats_publish_text_outbox('events.new', 'x')".into()),
        "request" => calls(&["SELECT nats_request_text('orders.new', 'x')"]),
        "publish to a stream" => calls(&["SELECT nats_publish_text_stream('events.new', 'x')"]),
        "get a value" => calls(&["SELECT nats_get_text('b', 'k')"]),
        "put a value" => calls(&[
            "SELECT nats_put_text('b', 'k', 'x')",
            "SELECT nats_delete_value('b', 'x')",
        ]),
        "list keys, history" => calls(&[
            "SELECT count(*) FROM nats_list_keys('b')",
            "SELECT count(*) FROM nats_get_history('b', 'k')",
        ]),
        "create and delete a bucket" => {
            calls(&["SELECT nats_create_bucket('c')", "SELECT nats_delete_bucket('c')"])
        }
        "get a file" => calls(&["SELECT nats_get_file('s', 'f')"]),
        "put a file" => calls(&[
            "SELECT nats_put_file('s', 'g', 'x')",
            "SELECT nats_put_file('s', 'g', 'y')",
        ]),
        "subscribe" => Use::Handler {
            register: "SELECT nats_subscribe('orders.new', 'keep')".into(),
            view: "subscriptions",
        },
        "respond" => Use::Handler {
            register: "SELECT litmus_pgnats_register_responder('orders.new', 'keep')".into(),
            view: "responders",
        },
        "durable subscription" => Use::Handler {
            register: format!("SELECT nats_subscribe_stream('{STREAM}', 'keep', ack_wait => '1 s')"),
            view: "stream_subscriptions",
        },
        other => panic!("the test does not know the part {other:?}"),
    }
}

/// All users that the test needs: each part's own, and for each of its subjects one who lacks it.
struct Case {
    part: Part,
    lacks: Option<String>,
    user: String,
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for part in table() {
        let all = part.publish.iter().chain(&part.subscribe).cloned();
        for lacks in std::iter::once(None).chain(all.map(Some)) {
            let user = format!("u{}", cases.len());
            cases.push(Case {
                part: part.clone(),
                lacks,
                user,
            });
        }
    }
    cases
}

fn user(case: &Case) -> String {
    let list = |subjects: &[String]| {
        let allowed = subjects
            .iter()
            .filter(|subject| Some(*subject) != case.lacks.as_ref());
        let allowed: Vec<String> = allowed.map(|subject| format!("{subject:?}")).collect();
        match allowed.len() {
            0 => "{ deny: [\">\"] }".to_string(),
            _ => format!("{{ allow: [{}] }}", allowed.join(", ")),
        }
    };
    format!(
        "{{ user: {}, password: p, permissions: {{ publish: {}, subscribe: {} }} }}",
        case.user,
        list(&case.part.publish),
        list(&case.part.subscribe)
    )
}

/// A NATS server with these users, and what the parts need there.
async fn nats_for(cases: &[Case]) -> NatsServer {
    let users: Vec<String> = cases.iter().map(user).collect();
    let config = format!(
        "authorization {{ users: [ {{ user: admin, password: admin }}, {} ] }}\nno_auth_user: admin",
        users.join(",\n")
    );
    let nats = NatsServer::builder().jetstream().config(&config).start().await;
    let client = nats.client().await;
    let js = async_nats::jetstream::new(client.clone());
    let events = stream::Config {
        name: STREAM.into(),
        subjects: vec!["events.>".into()],
        ..Default::default()
    };
    js.create_stream(events).await.expect("a stream");
    let bucket = kv::Config {
        bucket: "b".into(),
        history: 3,
        ..Default::default()
    };
    let bucket = js.create_key_value(bucket).await.expect("a bucket");
    bucket.put("k", "v".into()).await.expect("a value");
    let store = object_store::Config {
        bucket: "s".into(),
        ..Default::default()
    };
    let store = js.create_object_store(store).await.expect("a store");
    store.put("f", &mut &b"contents"[..]).await.expect("a file");
    nats
}

/// What a case's user is told: the connection's last error, and the handlers' problems.
async fn told(session: &Session, server: &str) -> String {
    let sql = format!(
        "SELECT coalesce(string_agg(last_error, ' '), '') FROM litmus_pgnats.connections WHERE server = '{server}'"
    );
    text(session, &sql).await
}

/// Whether a text names a subject that the pattern stands for.
fn names(told: &str, pattern: &str) -> bool {
    let stem = pattern.trim_end_matches(['>', '*']).trim_end_matches('.');
    told.contains(stem)
}

async fn check(pg: &Postgres, nats: &NatsServer, case: &Case) {
    let what = format!("{} without {:?}", case.part.name, case.lacks);
    let (server, port) = (&case.user, nats.port());
    let session = pg.connect().await;
    run(
        &session,
        &format!(
            "CREATE SERVER {server} FOREIGN DATA WRAPPER litmus_pgnats_fdw
               OPTIONS (host '127.0.0.1', port '{port}', username '{server}', password 'p');
             SET litmus_pgnats.server = '{server}'"
        ),
    )
    .await;
    let began = std::time::Instant::now();
    match used_by(&case.part.name) {
        Use::Calls(calls) => {
            let mut failure = None;
            for call in calls {
                if let Err(error) = session.batch_execute(&call).await {
                    failure = failure.or(Some(db_error(&error)));
                }
            }
            match (&case.lacks, failure) {
                (None, failure) => assert!(failure.is_none(), "{what}: {failure:?}"),
                (Some(lacks), Some(failure)) => {
                    assert_eq!(failure.code, "42501", "{what}: {failure:?}");
                    assert!(names(&failure.message, lacks), "{what}: {failure:?}");
                    assert!(
                        began.elapsed() < Duration::from_secs(4),
                        "{what}: {:?}",
                        began.elapsed()
                    );
                }
                (Some(lacks), None) => {
                    eventually(SOON, async || names(&told(&session, server).await, lacks)).await;
                }
            }
        }
        Use::Sent(call) => sent(&session, nats, case, &call).await,
        Use::Handler { register, view } => handled(&session, nats, case, &register, view).await,
    }
    run(&session, &format!("DROP SERVER {server} CASCADE")).await;
    println!("{what}: {:?}", began.elapsed());
}

/// A message that is sent after the call has arrived, or the refusal is told.
async fn sent(session: &Session, nats: &NatsServer, case: &Case, call: &str) {
    let client = nats.client().await;
    let subject = if call.contains("outbox") {
        "events.new"
    } else {
        "orders.new"
    };
    let mut inbox = client.subscribe(subject).await.expect("subscribe");
    round_trip(&client).await;
    run(session, call).await;
    let Some(lacks) = &case.lacks else {
        let message = tokio::time::timeout(SOON, inbox.next()).await;
        assert_eq!(message.expect("in time").expect("a message").payload, "x");
        if call.contains("outbox") {
            until_number(session, 0, "SELECT count(*) FROM litmus_pgnats.outbox").await;
        }
        return;
    };
    eventually(SOON, async || names(&told(session, &case.user).await, lacks)).await;
    run(session, "DELETE FROM litmus_pgnats.outbox").await;
}

/// A handler gets messages, or its problem or the connection tells what is refused.
async fn handled(session: &Session, nats: &NatsServer, case: &Case, register: &str, view: &str) {
    run(session, "TRUNCATE got").await;
    run(session, register).await;
    let client = nats.client().await;
    let is_stream = view == "stream_subscriptions";
    let problem = format!("SELECT coalesce(string_agg(problem, ' '), '') FROM litmus_pgnats.{view}");
    let unsubscribe = format!("SELECT nats_unsubscribe_stream('{STREAM}', 'keep')");
    let act = async || {
        if is_stream {
            client.publish("events.new", "x".into()).await.expect("publish");
        } else {
            let _ = tokio::time::timeout(
                Duration::from_millis(300),
                client.request("orders.new", "x".into()),
            )
            .await;
        }
    };
    match &case.lacks {
        None => {
            eventually(SOON, async || {
                act().await;
                number(session, "SELECT count(*) FROM got").await > 0
            })
            .await;
            if view == "responders" {
                let answer = client.request("orders.new", "x".into()).await.expect("an answer");
                assert_eq!(answer.payload, "kept");
            }
            if is_stream {
                // Once messages are known, the stream is recognised by them.
                run(session, "SELECT litmus_pgnats_reload_conf_force()").await;
                let before = number(session, "SELECT count(*) FROM got").await;
                eventually(SOON, async || {
                    act().await;
                    number(session, "SELECT count(*) FROM got").await > before + 1
                })
                .await;
                run(session, &unsubscribe).await;
                let none = "SELECT count(*) FROM litmus_pgnats.stream_consumer";
                until_number(session, 0, none).await;
            }
            let told = told(session, &case.user).await;
            assert!(!told.contains("Permissions"), "{told}");
        }
        Some(lacks) => {
            let mut step = 0;
            eventually(SOON, async || {
                act().await;
                step += 1;
                if is_stream && step == 5 {
                    run(session, "SELECT litmus_pgnats_reload_conf_force()").await;
                }
                if is_stream && step == 15 {
                    run(session, &unsubscribe).await;
                }
                let said = format!(
                    "{} {}",
                    told(session, &case.user).await,
                    text(session, &problem).await
                );
                let shows = names(&said, lacks) || said.contains("subscribe to the subject");
                if shows { Ok(()) } else { Err(said) }
            })
            .await;
        }
    }
}

async fn prepared() -> (Postgres, Vec<Case>, NatsServer) {
    let cases = cases();
    let nats = nats_for(&cases).await;
    let client = nats.client().await;
    let mut requests = client.subscribe("orders.new").await.expect("subscribe");
    round_trip(&client).await;
    // Answers the requests of SQL; a responder that is tested answers faster, or not at all.
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            if let Some(reply) = request.reply.filter(|_| request.payload == "x") {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let _ = client.publish(reply, "answer".into()).await;
            }
        }
    });
    let pg = Postgres::builder().start().await;
    pg.sql(
        "CREATE EXTENSION litmus_pgnats; CREATE TABLE got (payload text);
         CREATE FUNCTION keep(msg text) RETURNS text LANGUAGE sql AS
           $$ INSERT INTO public.got VALUES (msg); SELECT 'kept' $$",
    )
    .await;
    (pg, cases, nats)
}

/// Parts that calls use.
#[tokio::test]
async fn calls_need_what_the_page_says_and_no_more() {
    let (pg, cases, nats) = prepared().await;
    for case in cases
        .iter()
        .filter(|case| matches!(used_by(&case.part.name), Use::Calls(_)))
    {
        check(&pg, &nats, case).await;
    }
}

/// Handlers and what is sent later.
#[tokio::test]
async fn handlers_need_what_the_page_says_and_no_more() {
    let (pg, cases, nats) = prepared().await;
    for case in cases
        .iter()
        .filter(|case| !matches!(used_by(&case.part.name), Use::Calls(_)))
    {
        check(&pg, &nats, case).await;
    }
}
