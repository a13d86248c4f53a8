//! A small NATS client: what stands outside of PostgreSQL in the demo.
//!
//! ```text
//! nats [--server URL] sub SUBJECT [--count N]   print messages, and end after N of them
//! nats [--server URL] echo SUBJECT              answer every request with "echo: " and its payload
//! nats [--server URL] pub SUBJECT PAYLOAD       publish one message
//! nats [--server URL] request SUBJECT PAYLOAD   print the answer
//! nats [--server URL] stream NAME SUBJECT       make a JetStream stream in memory
//! nats [--server URL] messages STREAM           print what a stream holds
//! nats [--server URL] put BUCKET KEY VALUE      write a key of a key-value bucket
//! nats [--server URL] get BUCKET KEY            print its value
//! nats [--server URL] put-file STORE NAME TEXT  put a file into an object store
//! ```

use std::error::Error;
use std::process::ExitCode;

use async_nats::jetstream::{self, stream};
use async_nats::{Client, HeaderMap, Message, RequestErrorKind};
use bytes::Bytes;
use futures::StreamExt;

const USAGE: &str = "usage: nats [--server URL] sub SUBJECT [--count N] | echo SUBJECT | pub SUBJECT PAYLOAD | request SUBJECT PAYLOAD \
     | stream NAME SUBJECT | messages STREAM | put BUCKET KEY VALUE | get BUCKET KEY | put-file STORE NAME TEXT";

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nats: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(mut arguments: Vec<String>) -> Outcome {
    if arguments.iter().any(|argument| argument == "--help") {
        println!("{USAGE}");
        return Ok(());
    }
    let server = option(&mut arguments, "--server")?.unwrap_or_else(|| "nats://127.0.0.1:4222".into());
    let count = option(&mut arguments, "--count")?
        .map(|n| n.parse())
        .transpose()?;
    let client = async_nats::connect(server).await?;
    let context = jetstream::new(client.clone());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match *arguments {
        ["sub", subject] => subscribe(&client, subject, count.unwrap_or(usize::MAX)).await,
        ["echo", subject] => echo(&client, subject).await,
        ["pub", subject, payload] => {
            client.publish(subject.to_string(), owned(payload)).await?;
            Ok(client.flush().await?)
        }
        ["request", subject, payload] => {
            let answer = client.request(subject.to_string(), owned(payload)).await?;
            println!("{}", String::from_utf8_lossy(&answer.payload));
            Ok(())
        }
        ["stream", name, subject] => {
            let config = stream::Config {
                name: name.to_string(),
                subjects: vec![subject.to_string()],
                storage: stream::StorageType::Memory,
                ..Default::default()
            };
            context.create_stream(config).await?;
            println!("stream {name} takes {subject}");
            Ok(())
        }
        ["messages", stream] => messages(&context, stream).await,
        ["put", bucket, key, value] => {
            let bucket = context.get_key_value(bucket).await?;
            println!("revision {}", bucket.put(key, owned(value)).await?);
            Ok(())
        }
        ["get", bucket, key] => {
            let value = context.get_key_value(bucket).await?.get(key).await?;
            println!("{}", String::from_utf8_lossy(&value.ok_or("no value")?));
            Ok(())
        }
        ["put-file", store, name, text] => {
            let store = context.get_object_store(store).await?;
            let info = store.put(name, &mut text.as_bytes()).await?;
            println!("{} bytes", info.size);
            Ok(())
        }
        _ => Err(USAGE.into()),
    }
}

/// Takes `name` and the value behind it out of the arguments.
fn option(arguments: &mut Vec<String>, name: &str) -> Outcome<Option<String>> {
    let Some(at) = arguments.iter().position(|argument| argument == name) else {
        return Ok(None);
    };
    if at + 1 >= arguments.len() {
        return Err(format!("{name} needs a value").into());
    }
    Ok(arguments.drain(at..at + 2).nth(1))
}

async fn subscribe(client: &Client, subject: &str, count: usize) -> Outcome {
    let messages = client.subscribe(subject.to_string()).await?;
    settle(client).await?;
    println!("listening on {subject}");
    let mut messages = messages.take(count);
    while let Some(message) = messages.next().await {
        print(&message);
    }
    Ok(())
}

fn print(message: &Message) {
    let reply = message
        .reply
        .as_ref()
        .map_or_else(String::new, |reply| format!(" (reply to {reply})"));
    println!("received on {}{reply}", message.subject);
    for (name, values) in message.headers.as_ref().into_iter().flat_map(HeaderMap::iter) {
        for value in values {
            println!("  {name}: {value}");
        }
    }
    println!("  {}", String::from_utf8_lossy(&message.payload));
}

async fn messages(context: &jetstream::Context, name: &str) -> Outcome {
    let stream = context.get_stream(name).await?;
    let state = &stream.cached_info().state;
    for sequence in state.first_sequence.max(1)..=state.last_sequence {
        let message = stream.get_raw_message(sequence).await?;
        println!("{sequence} {}", message.subject);
        println!("  {}", String::from_utf8_lossy(&message.payload));
    }
    Ok(())
}

async fn echo(client: &Client, subject: &str) -> Outcome {
    let mut requests = client.subscribe(subject.to_string()).await?;
    settle(client).await?;
    println!("answering on {subject}");
    while let Some(request) = requests.next().await {
        if let Some(reply) = request.reply {
            let answer = [b"echo: ", &*request.payload].concat();
            client.publish(reply, answer.into()).await?;
        }
    }
    Ok(())
}

/// Returns when the server knows the subscriptions: `flush` alone tells only that they have left.
async fn settle(client: &Client) -> Outcome {
    match client.request(client.new_inbox(), Bytes::new()).await {
        Err(error) if error.kind() != RequestErrorKind::NoResponders => Err(error.into()),
        _ => Ok(()),
    }
}

fn owned(payload: &str) -> Bytes {
    payload.to_string().into()
}
