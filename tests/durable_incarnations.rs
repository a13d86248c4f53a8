//! A durable subscription when its stream is another one than before: on another server, put back from a copy, begun
//! anew. All new messages are executed, none of the old ones twice, and what cannot be told stops visibly.

mod events;
mod handlers;
mod nats_cluster;
mod scene;
mod support;

use std::path::Path;
use std::time::Duration;

use async_nats::jetstream::{self, consumer, stream};
use events::*;
use futures::StreamExt;
use handlers::*;
use nats_cluster::NatsCluster;
use scene::*;
use support::*;

/// Copies a directory of a server that does not run.
fn copy(from: &Path, to: &Path) {
    if to.exists() {
        std::fs::remove_dir_all(to).expect("remove a directory");
    }
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status();
    assert!(copied.expect("cp").success(), "copy {from:?} to {to:?}");
}

/// Points the foreign server at another NATS server.
async fn turn_to(session: &Session, nats: &NatsServer) {
    let port = nats.port();
    run(
        session,
        &format!("ALTER SERVER nats OPTIONS (SET port '{port}'); SELECT litmus_pgnats_reload_conf()"),
    )
    .await;
}

async fn say_all(events: &Events, words: &[&str]) {
    for word in words {
        events.say("events.word", word).await;
    }
}

/// Waits until just these were kept, in whatever order.
async fn until_kept(session: &Session, expected: &[&str]) {
    let mut expected: Vec<String> = expected.iter().map(|word| word.to_string()).collect();
    expected.sort();
    eventually_eq(LONG, expected, async || {
        let mut kept = got(session).await;
        kept.sort();
        kept
    })
    .await;
}

const SUBSCRIBE: &str = "SELECT nats_subscribe_stream('events', 'keep', ack_wait => '1 s')";

/// Server B's stream is the older one of the two.
#[tokio::test]
async fn an_older_stream_of_the_name_is_another_one_and_the_way_back_goes_on() {
    let b = NatsServer::builder().jetstream().start().await;
    let events_b = Events(jetstream::new(b.client().await));
    events_b.create(RetentionPolicy::Limits).await;
    say_all(&events_b, &["b1", "b2", "b3", "b4", "b5", "b6"]).await;
    let (scene, session, events_a) = scene().await;
    say_all(&events_a, &["a1", "a2", "a3", "a4", "a5"]).await;
    run(&session, SUBSCRIBE).await;
    let mut kept = vec!["a1", "a2", "a3", "a4", "a5"];
    until_kept(&session, &kept).await;
    turn_to(&session, &b).await;
    kept.extend(["b1", "b2", "b3", "b4", "b5", "b6"]);
    until_kept(&session, &kept).await;
    say_all(&events_a, &["a6"]).await;
    turn_to(&session, &scene.nats).await;
    kept.push("a6");
    until_kept(&session, &kept).await;
    say_all(&events_b, &["b7"]).await;
    say_all(&events_a, &["a7"]).await;
    kept.push("a7");
    until_kept(&session, &kept).await;
    // A runtime that knows no more than the tables goes on at B too.
    turn_to(&session, &b).await;
    kept.push("b7");
    until_kept(&session, &kept).await;
    restart_runtime(&scene, &session).await;
    say_all(&events_b, &["b8"]).await;
    kept.push("b8");
    until_kept(&session, &kept).await;
    assert_eq!(got(&session).await.len(), kept.len());
    until_number(&session, 8, &format!("SELECT applied_to FROM {ALL}")).await;
}

/// The oldest supported nats-server gives a stream another time of creation when it restarts after an update.
#[tokio::test]
async fn an_old_server_that_changes_the_time_of_creation_has_the_same_stream() {
    let nats = NatsServer::builder().jetstream().old().start().await;
    let mut scene = Scene::with(Postgres::builder(), nats, "").await;
    let session = scene.pg.connect().await;
    run(&session, KEEP).await;
    let events = Events::start(&scene, RetentionPolicy::Limits).await;
    run(&session, SUBSCRIBE).await;
    let ten = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"];
    say_all(&events, &ten).await;
    until_kept(&session, &ten).await;
    let created = async || {
        events
            .0
            .get_stream("events")
            .await
            .expect("the stream")
            .cached_info()
            .created
    };
    let before = created().await;
    for _ in 0..2 {
        scene.nats.stop().await;
        scene.nats.restart().await;
        eventually(LONG, async || events.0.get_stream("events").await.is_ok()).await;
        let mut config = events
            .0
            .get_stream("events")
            .await
            .expect("the stream")
            .cached_info()
            .config
            .clone();
        config.description = Some(format!("{:?}", std::time::Instant::now()));
        events.0.update_stream(config).await.expect("an update");
    }
    println!("created {before} and then {}", created().await);
    until(&session, "live").await;
    restart_runtime(&scene, &session).await;
    say_all(&events, &["11"]).await;
    let mut kept = ten.to_vec();
    kept.push("11");
    until_kept(&session, &kept).await;
    until_number(&session, 11, &format!("SELECT applied_to FROM {ALL}")).await;
}

/// The store is copied, goes on, and is put back: once with new messages at once, once before there are any.
#[tokio::test]
async fn a_store_that_is_put_back_loses_nothing_and_doubles_nothing() {
    for has_news in [true, false] {
        for durable in ["", ", durable => 'named'"] {
            let (mut scene, session, events) = scene().await;
            run(
                &session,
                &format!("SELECT nats_subscribe_stream('events', 'keep', ack_wait => '1 s' {durable})"),
            )
            .await;
            say_all(&events, &["1", "2", "3", "4", "5"]).await;
            until_kept(&session, &["1", "2", "3", "4", "5"]).await;
            let (store, copied) = (
                scene.nats.jetstream_dir(),
                scene.nats.jetstream_dir().with_extension("copy"),
            );
            scene.nats.stop().await;
            copy(&store, &copied);
            scene.nats.restart().await;
            eventually(LONG, async || events.0.get_stream("events").await.is_ok()).await;
            say_all(&events, &["6", "7", "8", "9", "10"]).await;
            let mut kept = vec!["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"];
            until_kept(&session, &kept).await;
            if has_news {
                // The runtime meets the stream when it has new messages already.
                run(&session, "SELECT litmus_pgnats.pause('events', 'keep')").await;
            }
            scene.nats.stop().await;
            copy(&copied, &store);
            scene.nats.restart().await;
            eventually(LONG, async || events.0.get_stream("events").await.is_ok()).await;
            if !has_news {
                until(&session, "live").await;
            }
            say_all(&events, &["new 6", "new 7", "new 8", "new 9", "new 10", "new 11"]).await;
            if has_news {
                run(&session, "SELECT litmus_pgnats.resume('events', 'keep')").await;
            }
            kept.extend(["new 6", "new 7", "new 8", "new 9", "new 10", "new 11"]);
            until_kept(&session, &kept).await;
            restart_runtime(&scene, &session).await;
            say_all(&events, &["new 12"]).await;
            kept.push("new 12");
            until_kept(&session, &kept).await;
        }
    }
}

/// A copy of the store goes on at another server: what both have in common is executed once.
#[tokio::test]
async fn a_copy_that_went_on_elsewhere_gives_what_is_its_own() {
    let (mut scene, session, events) = scene().await;
    run(&session, SUBSCRIBE).await;
    say_all(&events, &["1", "2", "3"]).await;
    until_kept(&session, &["1", "2", "3"]).await;
    let mut b = NatsServer::builder().jetstream().start().await;
    scene.nats.stop().await;
    b.stop().await;
    copy(&scene.nats.jetstream_dir(), &b.jetstream_dir());
    scene.nats.restart().await;
    b.restart().await;
    let events_b = Events(jetstream::new(b.client().await));
    eventually(LONG, async || events_b.0.get_stream("events").await.is_ok()).await;
    eventually(LONG, async || events.0.get_stream("events").await.is_ok()).await;
    // In turns, so that no time tells them apart.
    for (a, b) in [("a4", "b4"), ("a5", "b5"), ("a6", "b6")] {
        say_all(&events, &[a]).await;
        say_all(&events_b, &[b]).await;
    }
    let mut kept = vec!["1", "2", "3", "a4", "a5", "a6"];
    until_kept(&session, &kept).await;
    turn_to(&session, &b).await;
    kept.extend(["b4", "b5", "b6"]);
    until_kept(&session, &kept).await;
    say_all(&events, &["a7"]).await;
    turn_to(&session, &scene.nats).await;
    kept.push("a7");
    until_kept(&session, &kept).await;
    assert_eq!(got(&session).await.len(), kept.len());
}

/// A mirror has its origin's sequences and times, and another time of creation.
#[tokio::test]
async fn a_mirror_that_is_promoted_is_the_same_stream() {
    let a = "server_name: a\nleafnodes { listen: \"127.0.0.1:%\" }";
    let leaf = Port::take();
    let nats = NatsServer::builder()
        .jetstream()
        .domain("hub")
        .config(&a.replace('%', &leaf.number().to_string()))
        .start()
        .await;
    let spoke = format!(
        "server_name: b\nleafnodes {{ remotes: [{{ url: \"nats-leaf://127.0.0.1:{}\" }}] }}",
        leaf.number()
    );
    let b = NatsServer::builder()
        .jetstream()
        .domain("spoke")
        .config(&spoke)
        .start()
        .await;
    let scene = Scene::with(Postgres::builder(), nats, "").await;
    let session = scene.pg.connect().await;
    run(&session, KEEP).await;
    let events = Events::start(&scene, RetentionPolicy::Limits).await;
    run(&session, SUBSCRIBE).await;
    say_all(&events, &["1", "2", "3"]).await;
    until_kept(&session, &["1", "2", "3"]).await;
    let context_b = jetstream::new(b.client().await);
    let mirror = stream::Config {
        name: "events".into(),
        mirror: Some(stream::Source {
            name: "events".into(),
            external: Some(stream::External {
                api_prefix: "$JS.hub.API".into(),
                delivery_prefix: None,
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    eventually(LONG, async || {
        let created = context_b.create_stream(mirror.clone()).await;
        created.map(drop).map_err(|error| error.to_string())
    })
    .await;
    eventually_eq(LONG, 3, async || {
        let mut stream = context_b.get_stream("events").await.expect("the mirror");
        stream.info().await.expect("its state").state.messages
    })
    .await;
    turn_to(&session, &b).await;
    say_all(&events, &["4"]).await;
    until_kept(&session, &["1", "2", "3", "4"]).await;
    until_number(&session, 4, &format!("SELECT applied_to FROM {ALL}")).await;
}

/// A memory stream of one replica whose node restarts: the stream keeps its name and its time of creation, and is empty.
#[tokio::test]
async fn a_memory_stream_whose_node_restarts_begins_anew() {
    let mut nats = NatsCluster::start_with(NatsServer::builder().jetstream()).await;
    let pg = nats.postgres().await;
    let session = pg.connect().await;
    run(&session, KEEP).await;
    let events = Events(jetstream::new(nats.client().await));
    let config = stream::Config {
        name: "events".into(),
        subjects: vec!["events.>".into()],
        storage: stream::StorageType::Memory,
        ..Default::default()
    };
    eventually(LONG, async || {
        let created = events.0.create_stream(config.clone()).await;
        created.map(drop).map_err(|error| error.to_string())
    })
    .await;
    run(&session, SUBSCRIBE).await;
    say_all(&events, &["1", "2", "3"]).await;
    until_kept(&session, &["1", "2", "3"]).await;
    let mut stream = events.0.get_stream("events").await.expect("the stream");
    let info = stream.info().await.expect("its state").clone();
    let leader = info.cluster.and_then(|cluster| cluster.leader).expect("a leader");
    let place: usize = leader.trim_start_matches('n').parse().expect("a number");
    nats.servers[place].restart().await;
    nats.until_whole(3).await;
    let events = Events(jetstream::new(nats.client().await));
    eventually(LONG, async || {
        let sent = events.0.publish("events.word", "new 1".into()).await;
        let sent = sent.map_err(|error| error.to_string())?;
        sent.await.map(drop).map_err(|error| error.to_string())
    })
    .await;
    say_all(&events, &["new 2", "new 3", "new 4", "new 5"]).await;
    let all = ["1", "2", "3", "new 1", "new 2", "new 3", "new 4", "new 5"];
    until_kept(&session, &all).await;
}

/// The stream of a work queue holds nothing that was done with. Where it was made anew, nothing can be compared; where
/// its store was put back, what was done with since the copy is not done again.
#[tokio::test]
async fn a_work_queue_that_is_put_back_does_nothing_twice() {
    let (mut scene, session, events) = scene_of(RetentionPolicy::WorkQueue).await;
    say_all(&events, &["1", "2", "3"]).await;
    let (store, copied) = (
        scene.nats.jetstream_dir(),
        scene.nats.jetstream_dir().with_extension("copy"),
    );
    scene.nats.stop().await;
    copy(&store, &copied);
    scene.nats.restart().await;
    eventually(LONG, async || events.0.get_stream("events").await.is_ok()).await;
    run(&session, SUBSCRIBE).await;
    say_all(&events, &["4"]).await;
    until_kept(&session, &["1", "2", "3", "4"]).await;
    scene.nats.stop().await;
    copy(&copied, &store);
    scene.nats.restart().await;
    eventually(LONG, async || events.0.get_stream("events").await.is_ok()).await;
    say_all(&events, &["new 4", "new 5"]).await;
    until_kept(&session, &["1", "2", "3", "4", "new 4", "new 5"]).await;
}

/// Without the right to read messages, the time of creation and the last sequence have to do, and where they do not,
/// the subscription says so.
#[tokio::test]
async fn what_cannot_be_told_stops_visibly() {
    let (scene, session, events) = scene().await;
    run(&session, SUBSCRIBE).await;
    say_all(&events, &["1", "2", "3"]).await;
    until_kept(&session, &["1", "2", "3"]).await;
    // Another stream, none of whose first messages is left.
    run(&session, "SELECT litmus_pgnats.pause('events', 'keep')").await;
    events.0.delete_stream("events").await.expect("delete");
    events.create(RetentionPolicy::Limits).await;
    say_all(&events, &["new 1", "new 2", "new 3", "new 4"]).await;
    let stream = events.0.get_stream("events").await.expect("the stream");
    stream.purge().sequence(4).await.expect("purge");
    run(&session, "SELECT litmus_pgnats.resume('events', 'keep')").await;
    let problem = format!("SELECT coalesce(problem, '') FROM {ALL}");
    eventually(LONG, async || {
        let said = texts(&session, &problem).await;
        said[0].contains("it cannot be told").then_some(()).ok_or(said)
    })
    .await;
    until(&session, "waiting").await;
    assert_eq!(got(&session).await, ["1", "2", "3"]);
    drop(scene);
}

/// A new stream in which the subscription has its consumer already, and nothing executed yet, is not taken for the former
/// one.
#[tokio::test]
async fn a_consumer_in_a_new_stream_makes_it_no_former_one() {
    let (scene, session, events) = scene().await;
    run(
        &session,
        "SELECT nats_subscribe_stream('events', 'keep', filter_subjects => '{events.word}', ack_wait => '1 s')",
    )
    .await;
    say_all(&events, &["1", "2", "3"]).await;
    until_kept(&session, &["1", "2", "3"]).await;
    events.0.delete_stream("events").await.expect("delete");
    events.create(RetentionPolicy::Limits).await;
    eventually(LONG, async || {
        let stream = events
            .0
            .get_stream("events")
            .await
            .map_err(|error| error.to_string())?;
        let names: Vec<_> = stream.consumer_names().collect().await;
        (names.len() == 1).then_some(()).ok_or("no consumer".to_owned())
    })
    .await;
    run(&session, "SELECT litmus_pgnats.pause('events', 'keep')").await;
    for _ in 0..3 {
        events.say("events.other", "x").await;
    }
    say_all(&events, &["new"]).await;
    let stream = events.0.get_stream("events").await.expect("the stream");
    stream.purge().filter("events.other").await.expect("purge");
    run(&session, "SELECT litmus_pgnats.resume('events', 'keep')").await;
    eventually(LONG, async || {
        let problem = texts(&session, &format!("SELECT coalesce(problem, '') FROM {ALL}")).await;
        let is_done = got(&session).await.len() == 4 || problem[0].contains("it cannot be told");
        is_done.then_some(()).ok_or(problem)
    })
    .await;
    run(&session, "SELECT litmus_pgnats.seek('events', 'keep', 1)").await;
    until_number(&session, 1, "SELECT count(*) FROM got WHERE payload = 'new'").await;
    drop(scene);
}

/// Another client pulls from the consumer, and acknowledges what it gets: that is fetched again, and said.
#[tokio::test]
async fn what_another_client_takes_is_fetched_again() {
    for stop in [false, true] {
        let (scene, session, events) = scene().await;
        run(
            &session,
            &format!("SELECT nats_subscribe_stream('events', 'keep', stop_on_failure => {stop})"),
        )
        .await;
        events.count_off(1..=3).await;
        until_got(&session, &["1", "2", "3"]).await;
        let name = events.consumer().await.name;
        let stream = events.0.get_stream("events").await.expect("the stream");
        let theirs: consumer::PullConsumer = stream.get_consumer(&name).await.expect("the consumer");
        // Those who wait for messages are served in turn.
        let pull = theirs.clone();
        let taking = tokio::spawn(async move {
            let messages = pull.fetch().max_messages(3).expires(LONG).messages().await;
            let mut messages = messages.expect("a pull");
            while let Some(Ok(message)) = messages.next().await {
                message.ack().await.expect("an acknowledgement");
            }
        });
        eventually_eq(SOON, 2, async || events.consumer().await.num_waiting).await;
        events.count_off(4..=60).await;
        taking.await.expect("three messages");
        let all = numbers(1..=60);
        eventually_eq(LONG, all.len() as i64, async || {
            number(&session, "SELECT count(DISTINCT payload) FROM got").await
        })
        .await;
        assert_eq!(number(&session, "SELECT count(*) FROM got").await, 60, "twice");
        if stop {
            assert_eq!(got(&session).await, all, "in order");
        }
        until_number(&session, 60, &format!("SELECT applied_to FROM {ALL}")).await;
        let said = format!("SELECT count(*) FROM {ALL} WHERE problem LIKE '%another client has taken%'");
        if !stop {
            until_number(&session, 1, &said).await;
        }
        // A last message too, behind which none comes to tell of it.
        let pull = theirs.fetch().max_messages(1).expires(LONG).messages().await;
        let mut messages = pull.expect("a pull");
        eventually_eq(SOON, 2, async || events.consumer().await.num_waiting).await;
        let mut taken = false;
        for n in 61..=64 {
            events.count_off(n..=n).await;
            if let Ok(Some(Ok(message))) = tokio::time::timeout(Duration::from_secs(1), messages.next()).await
            {
                message.ack().await.expect("an acknowledgement");
                taken = true;
            }
            until_number(&session, n as i64, "SELECT count(*) FROM got").await;
            if taken {
                break;
            }
        }
        assert!(taken, "the other client had its turn");
        drop(scene);
    }
}

/// A server that was started from a base backup takes the consumer, and the original says so instead of sharing it.
#[tokio::test]
async fn a_running_copy_does_not_share_the_consumer() {
    let (scene, session, events) = scene().await;
    run(&session, SUBSCRIBE).await;
    events.count_off(1..=20).await;
    until_number(&session, 20, "SELECT count(*) FROM got").await;
    let twin = scene.pg.standby().await;
    twin.promote().await;
    let theirs = twin.connect().await;
    until(&theirs, "live").await;
    let problem = format!("SELECT coalesce(problem, '') FROM {ALL}");
    eventually(LONG, async || {
        let said = texts(&session, &problem).await;
        said[0]
            .contains("another server has taken")
            .then_some(())
            .ok_or(said)
    })
    .await;
    events.count_off(21..=220).await;
    until_number(&theirs, 220, "SELECT count(*) FROM got").await;
    assert_eq!(number(&session, "SELECT count(*) FROM got").await, 20);
    // The administrator decides for the original.
    run(&session, "SELECT litmus_pgnats.resume('events', 'keep')").await;
    until_number(&session, 220, "SELECT count(*) FROM got").await;
    eventually(LONG, async || {
        let said = texts(&theirs, &problem).await;
        said[0]
            .contains("another server has taken")
            .then_some(())
            .ok_or(said)
    })
    .await;
}
