//! A small NATS client: what stands outside of PostgreSQL in the demo.
//!
//! ```text
//! nats [--server URL] sub SUBJECT [--count N]   print messages, and end after N of them
//! nats [--server URL] echo SUBJECT              answer every request with "echo: " and its payload
//! nats [--server URL] pub SUBJECT PAYLOAD       publish one message
//! nats [--server URL] request SUBJECT PAYLOAD   print the answer
//! ```

use std::error::Error;
use std::process::ExitCode;

use async_nats::{Client, HeaderMap, Message, RequestErrorKind};
use bytes::Bytes;
use futures::StreamExt;

const USAGE: &str = "usage: nats [--server URL] sub SUBJECT [--count N] | echo SUBJECT | pub SUBJECT PAYLOAD | request SUBJECT PAYLOAD";

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
    let server = option(&mut arguments, "--server")?.unwrap_or_else(|| "nats://127.0.0.1:4222".into());
    let count = option(&mut arguments, "--count")?
        .map(|n| n.parse())
        .transpose()?;
    let client = async_nats::connect(server).await?;
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
