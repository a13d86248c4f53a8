//! Messages that the client library cannot read: they end the connection, which is made again.

mod events;
mod handlers;
mod scene;
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;

use handlers::*;
use scene::*;
use support::*;

/// Publishes bytes as a subject that is no UTF-8, which no client library would.
fn publish_malformed(port: u16, subject: &[u8]) {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    let say = |socket: &mut TcpStream, bytes: &[u8]| socket.write_all(bytes).expect("write");
    say(
        &mut socket,
        b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\nPUB ",
    );
    say(&mut socket, subject);
    say(&mut socket, b" 1\r\nx\r\nPING\r\n");
    let mut seen = Vec::new();
    while !seen.ends_with(b"PONG\r\n") {
        let mut buffer = [0; 4096];
        let read = socket.read(&mut buffer).expect("read");
        assert!(read > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..read]);
    }
}

/// Whoever may publish to a subscribed subject cannot end the connection.
#[tokio::test]
async fn subjects_that_are_no_text() {
    let (scene, session) = Scene::keeping().await;
    subscribe(&session, "news.>", "keep").await;
    let port = scene.nats.port();
    let mark = scene.pg.log().len();
    let flood = tokio::task::spawn_blocking(move || {
        for _ in 0..200 {
            publish_malformed(port, b"news.\xff\xfe");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    });
    flood.await.expect("a flood");
    let client = scene.nats.client().await;
    eventually(LONG, async || {
        say(&client, "news.good", "good").await;
        !got(&session).await.is_empty()
    })
    .await;
    let log = scene.pg.log();
    assert!(
        !log[mark..].contains("connection to the NATS server lost"),
        "{log}"
    );
    run(&session, "SELECT nats_publish_text('a', 'the session goes on')").await;
}

/// A subject with a NUL, which text of PostgreSQL cannot have, is an error of that message; a dead letter has it as an escape.
#[tokio::test]
async fn a_subject_that_text_cannot_hold() {
    let (scene, session, events) = events::scene().await;
    run(
        &session,
        "CREATE FUNCTION keep_subject(msg text, subject text) RETURNS void LANGUAGE sql AS
           $$ INSERT INTO public.got (payload) VALUES (subject) $$;
         CREATE FUNCTION keep_subjects(messages litmus_pgnats.message[]) RETURNS void LANGUAGE sql AS
           $$ INSERT INTO public.got (payload) SELECT subject FROM unnest(messages) $$",
    )
    .await;
    for (subject, function) in [("news.>", "keep_subject"), ("news.*", "keep_subjects")] {
        subscribe(&session, subject, function).await;
    }
    run(
        &session,
        "SELECT nats_subscribe_stream('events', 'keep_subject', max_deliveries => 1)",
    )
    .await;
    publish_malformed(scene.nats.port(), b"news.a\0b");
    publish_malformed(scene.nats.port(), b"events.a\0b");
    for subject in ["news.>", "news.*"] {
        until_errors(&session, subject, 1).await;
    }
    until_number(&session, 1, "SELECT count(*) FROM litmus_pgnats.dead_letter").await;
    let letter = "SELECT subject || ' ' || split_part(error, ':', 1) FROM litmus_pgnats.dead_letter";
    assert_eq!(text(&session, letter).await, "events.a\\0b 22021");
    events.say("events.x", "x").await;
    until_got(&session, &["events.x"]).await;
}
