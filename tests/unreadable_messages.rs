//! Messages whose headers or subject are not as they should be. They are messages like others: executed, or kept as dead
//! letters, and no connection ends.

mod events;
mod handlers;
mod scene;
mod support;

use events::*;
use handlers::*;
use scene::*;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Publishes with a header block as it is, over a plain socket.
async fn publish_raw(nats: &NatsServer, subject: &[u8], header_lines: &[u8], payload: &[u8]) {
    let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", nats.port()))
        .await
        .expect("connect");
    let block = [b"NATS/1.0\r\n", header_lines, b"\r\n"].concat();
    let sizes = format!(" {} {}\r\n", block.len(), block.len() + payload.len());
    let connect = &b"CONNECT {\"headers\":true,\"verbose\":false}\r\n"[..];
    let all = [
        connect,
        b"HPUB ",
        subject,
        sizes.as_bytes(),
        &block,
        payload,
        b"\r\nPING\r\n",
    ]
    .concat();
    socket.write_all(&all).await.expect("write");
    let mut answer = Vec::new();
    while !answer.ends_with(b"PONG\r\n") {
        assert!(
            socket.read_buf(&mut answer).await.expect("read") > 0,
            "{answer:?}"
        );
    }
}

async fn no_reconnects(session: &Session) {
    let reconnects = "SELECT sum(reconnects)::bigint FROM litmus_pgnats.connections";
    assert_eq!(number(session, reconnects).await, 0);
}

const BAD: [&[u8]; 3] = [b"X-Name: Jos\xe9\r\n", b"no colon\r\n", b"X-\x01: 1\r\n"];

#[tokio::test]
async fn what_other_clients_cannot_read_is_executed() {
    for stop in [false, true] {
        let (scene, session, events) = scene().await;
        run(
            &session,
            &format!(
                "CREATE TABLE headed (payload text, headers jsonb);
                 CREATE FUNCTION heads(msg text, subject text, reply text, headers jsonb) RETURNS void LANGUAGE sql AS
                   $$ INSERT INTO public.headed VALUES (msg, headers) $$;
                 SELECT nats_subscribe_stream('events', 'heads', ack_wait => '1 s', stop_on_failure => {stop})"
            ),
        )
        .await;
        until(&session, "live").await;
        // Another session's requests go on.
        scene.echo().await;
        events.count_off(1..=3).await;
        for (n, lines) in BAD.into_iter().enumerate() {
            publish_raw(&scene.nats, b"events.bad", lines, format!("bad {n}").as_bytes()).await;
            events.count_off(n + 4..=n + 4).await;
        }
        publish_raw(&scene.nats, b"events.\xe9", b"A: 1\r\n", b"odd subject").await;
        events.count_off(7..=9).await;
        until_number(&session, 13, "SELECT count(*) FROM headed").await;
        until(&session, "live").await;
        let twice = "SELECT count(*) FROM (SELECT FROM headed GROUP BY payload HAVING count(*) > 1) d";
        assert_eq!(number(&session, twice).await, 0);
        let heads = "SELECT payload || ' ' || headers FROM headed WHERE payload LIKE 'bad%' ORDER BY 1";
        let expected = [
            "bad 0 {\"X-Name\": \"José\"}",
            "bad 1 {\"no colon\": \"\"}",
            "bad 2 {\"X-\\u0001\": \"1\"}",
        ];
        assert_eq!(texts(&session, heads).await, expected);
        until_number(&session, 13, &format!("SELECT applied_to FROM {ALL}")).await;
        no_reconnects(&session).await;
        drop(scene);
    }
}

/// Many of them among others, without order: every message is executed, and nothing goes round for ever.
#[tokio::test]
async fn many_that_cannot_be_read_among_others() {
    let (scene, session, events) = scene().await;
    for n in 0..60 {
        publish_raw(
            &scene.nats,
            b"events.bad",
            BAD[n % 3],
            format!("bad {n}").as_bytes(),
        )
        .await;
        events.count_off(n..=n).await;
    }
    run(
        &session,
        "SELECT nats_subscribe_stream('events', 'keep', ack_wait => '1 s')",
    )
    .await;
    until_number(&session, 120, "SELECT count(DISTINCT payload) FROM got").await;
    until_number(&session, 120, &format!("SELECT applied_to FROM {ALL}")).await;
    assert_eq!(number(&session, "SELECT count(*) FROM got").await, 120, "twice");
    no_reconnects(&session).await;
    // Nothing is left to be delivered again.
    eventually_eq(LONG, 0, async || events.consumer().await.num_ack_pending).await;
}

/// With several filters, what none of them wants is not executed.
#[tokio::test]
async fn what_no_filter_wants_is_left_out() {
    for stop in [false, true] {
        let (scene, session, events) = scene().await;
        run(
            &session,
            &format!(
                "SELECT nats_subscribe_stream('events', 'keep', ack_wait => '1 s', stop_on_failure => {stop},
                   filter_subjects => '{{events.bad,events.n}}')"
            ),
        )
        .await;
        until(&session, "live").await;
        publish_raw(&scene.nats, b"events.other", BAD[0], b"not wanted").await;
        publish_raw(&scene.nats, b"events.bad", BAD[0], b"bad").await;
        events.say("events.other", "not wanted either").await;
        events.count_off(1..=2).await;
        publish_raw(&scene.nats, b"events.bad", BAD[1], b"bad too").await;
        events.count_off(3..=3).await;
        until_number(&session, 5, "SELECT count(DISTINCT payload) FROM got").await;
        until_number(&session, 7, &format!("SELECT applied_to FROM {ALL}")).await;
        let mut kept = got(&session).await;
        kept.sort();
        assert_eq!(kept, ["1", "2", "3", "bad", "bad too"]);
    }
}

/// In another stream of the name, a message of the same sequence is another one.
#[tokio::test]
async fn another_stream_has_other_messages_that_cannot_be_read() {
    let (scene, session, events) = scene().await;
    run(
        &session,
        "SELECT nats_subscribe_stream('events', 'keep', ack_wait => '1 s')",
    )
    .await;
    until(&session, "live").await;
    publish_raw(&scene.nats, b"events.bad", BAD[0], b"bad").await;
    events.count_off(1..=1).await;
    until_number(&session, 2, "SELECT count(*) FROM got").await;
    events.0.delete_stream("events").await.expect("delete");
    events.create(RetentionPolicy::Limits).await;
    publish_raw(&scene.nats, b"events.bad", BAD[0], b"another").await;
    events.count_off(2..=2).await;
    until_number(&session, 4, "SELECT count(DISTINCT payload) FROM got").await;
}

/// A bucket with such an entry is read like others.
#[tokio::test]
async fn a_bucket_with_an_entry_that_cannot_be_read() {
    let (scene, session, _events) = scene().await;
    run(
        &session,
        "SELECT nats_create_bucket('b', history => 5); SELECT nats_put_text('b', 'good', n::text) FROM generate_series(1, 3) n;
         SELECT nats_put_text('b', 'gone', 'x'); SELECT nats_delete_value('b', 'gone')",
    )
    .await;
    publish_raw(&scene.nats, b"$KV.b.bad", BAD[0], b"value").await;
    publish_raw(&scene.nats, b"$KV.b.good", BAD[0], b"four").await;
    let keys = "SELECT * FROM nats_list_keys('b') ORDER BY 1";
    assert_eq!(texts(&session, keys).await, ["bad", "good"]);
    let history = "SELECT operation || ' ' || coalesce(convert_from(value, 'utf8'), '') FROM nats_get_history('b', 'good')";
    assert_eq!(
        texts(&session, history).await,
        ["PUT 1", "PUT 2", "PUT 3", "PUT four"]
    );
    assert_eq!(
        texts(&session, "SELECT operation FROM nats_get_history('b', 'gone')").await,
        ["PUT", "DEL"]
    );
    assert!(
        texts(&session, "SELECT * FROM nats_list_keys('none')")
            .await
            .is_empty()
    );
    assert_eq!(
        texts(&session, "SELECT nats_get_text('b', 'bad')").await,
        ["value"]
    );
    no_reconnects(&session).await;
}

#[tokio::test]
async fn what_cannot_be_read_and_fails_is_a_dead_letter() {
    let (scene, session, events) = scene().await;
    run(
        &session,
        "CREATE FUNCTION moody(msg text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
           IF msg LIKE 'bad%' THEN RAISE 'not %', msg; END IF;
           INSERT INTO public.got (payload) VALUES (msg); END $$;
         SELECT nats_subscribe_stream('events', 'moody', ack_wait => '1 s', max_deliveries => 1)",
    )
    .await;
    until(&session, "live").await;
    events.count_off(1..=2).await;
    publish_raw(&scene.nats, b"events.bad", BAD[0], b"bad \x00\xff").await;
    publish_raw(
        &scene.nats,
        b"events.bad",
        b"X-Nul: \x00\r\nX-Name: Jos\xe9\r\n",
        b"bad too",
    )
    .await;
    events.count_off(3..=4).await;
    let letters = "SELECT count(*) FROM litmus_pgnats.dead_letters WHERE stream_sequence IN (3, 4)";
    until_number(&session, 2, letters).await;
    until_number(&session, 4, "SELECT count(*) FROM got").await;
    let raw = "SELECT count(*) FROM litmus_pgnats.dead_letters WHERE payload = '\\x6261642000ff'
               AND headers ->> 'X-Name' = 'José'";
    until_number(&session, 1, raw).await;
    until_number(&session, 6, &format!("SELECT applied_to FROM {ALL}")).await;
}
