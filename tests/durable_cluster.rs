//! A durable subscription of a stream that three nats-servers keep: leaders move, and servers end.

mod handlers;
mod nats_cluster;
mod scene;
mod support;

use async_nats::jetstream::{self, stream};
use handlers::*;
use nats_cluster::NatsCluster;
use scene::*;
use support::*;

const VIEW: &str = "litmus_pgnats.stream_subscriptions";

/// Publishes numbers, each until it is acknowledged: a leader may be on its way.
async fn count_off_to_stream(context: &jetstream::Context, numbers: std::ops::RangeInclusive<usize>) {
    for n in numbers {
        eventually(LONG, async || {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Msg-Id", n.to_string().as_str());
            let sent = context
                .publish_with_headers("events.n", headers, n.to_string().into())
                .await
                .map_err(|error| error.to_string())?;
            sent.await.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }
}

#[tokio::test]
async fn leaders_move_and_a_server_ends() {
    let mut nats = NatsCluster::start_with(NatsServer::builder().jetstream()).await;
    let pg = nats.postgres().await;
    let session = pg.connect().await;
    run(&session, KEEP).await;
    let client = nats.client().await;
    let context = jetstream::new(client.clone());
    let config = stream::Config {
        name: "events".into(),
        subjects: vec!["events.>".into()],
        num_replicas: 3,
        ..Default::default()
    };
    eventually(LONG, async || {
        let created = context.create_stream(config.clone()).await;
        created.map(drop).map_err(|error| error.to_string())
    })
    .await;
    run(
        &session,
        "SELECT nats_subscribe_stream('events', 'keep', durable => 'worker', ack_wait => '2 s')",
    )
    .await;
    count_off_to_stream(&context, 1..=50).await;
    until_number(&session, 50, "SELECT count(*) FROM got").await;
    for (round, what) in [
        "CONSUMER.LEADER.STEPDOWN.events.worker",
        "STREAM.LEADER.STEPDOWN.events",
    ]
    .into_iter()
    .enumerate()
    {
        let answer = client.request(format!("$JS.API.{what}"), "".into()).await;
        let answer = String::from_utf8(answer.expect("an answer").payload.to_vec()).expect("text");
        assert!(answer.contains("\"success\":true"), "{what}: {answer}");
        let first = 51 + round * 50;
        count_off_to_stream(&context, first..=first + 49).await;
        until_number(&session, 100 + 50 * round as i64, "SELECT count(*) FROM got").await;
    }
    // The server that leads the stream ends, and with it perhaps the consumer's leader and the connection.
    let mut stream = context.get_stream("events").await.expect("the stream");
    let info = stream.info().await.expect("its state").clone();
    let leader = info.cluster.and_then(|cluster| cluster.leader).expect("a leader");
    let number_of: usize = leader.trim_start_matches('n').parse().expect("a number");
    nats.servers[number_of].kill9();
    count_off_to_stream(&context, 151..=200).await;
    until_number(&session, 200, "SELECT count(DISTINCT payload) FROM got").await;
    assert_eq!(number(&session, "SELECT count(*) FROM got").await, 200, "twice");
    until_number(&session, 200, &format!("SELECT applied_to FROM {VIEW}")).await;
}
