//! The benchmarks' NATS client: the yardsticks, and the other ends of what PostgreSQL sends.
//!
//! ```text
//! bench_client URL publish SUBJECT COUNT SIZE            prints START SENT
//! bench_client URL count SUBJECT COUNT                   prints "ready", and LAST when all messages are there
//! bench_client URL echo SUBJECT                          prints "ready", answers each request with its payload
//! bench_client URL request SUBJECT CONCURRENCY SECONDS   prints REQUESTS-PER-SECOND LATENCY
//! bench_client URL requests SUBJECT CONCURRENCY SECONDS  the same, each asker with a connection of its own
//! ```
//!
//! START, SENT and LAST are times of day, LATENCY is a mean, all in microseconds. One thread, and but for
//! `requests` one connection.

use std::error::Error;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_nats::{Client, ConnectOptions, RequestError, RequestErrorKind, Subject, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::try_join_all;
use tokio::time::timeout;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Most time between two messages that are counted.
const SILENCE: Duration = Duration::from_secs(10);
/// What the requests of a measurement are preceded by.
const WARM_UP: Duration = Duration::from_millis(200);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (url, command) = arguments.split_first().ok_or("no URL")?;
    // A full subscription would drop messages.
    let options = ConnectOptions::new().subscription_capacity(4 << 20);
    let client = options.connect(*url).await?;
    match *command {
        ["publish", subject, count, size] => {
            publish(&client, subject.into(), count.parse()?, size.parse()?).await
        }
        ["count", subject, expected] => count(&client, subject.into(), expected.parse()?).await,
        ["echo", subject] => echo(&client, subject.into()).await,
        ["request", subject, concurrency, seconds] => {
            let time = Duration::from_secs_f64(seconds.parse()?);
            request(&vec![client; concurrency.parse()?], subject.into(), time).await
        }
        ["requests", subject, concurrency, seconds] => {
            let time = Duration::from_secs_f64(seconds.parse()?);
            let connect = (0..concurrency.parse()?).map(|_| async_nats::connect(*url));
            request(&try_join_all(connect).await?, subject.into(), time).await
        }
        _ => Err("no such command".into()),
    }
}

async fn publish(client: &Client, subject: Subject, count: usize, size: usize) -> Outcome {
    let payload = Bytes::from(vec![b'x'; size]);
    let start = now();
    for _ in 0..count {
        client.publish(subject.clone(), payload.clone()).await?;
    }
    client.flush().await?;
    println!("{start} {}", now());
    Ok(())
}

async fn count(client: &Client, subject: Subject, expected: usize) -> Outcome {
    let mut messages = subscribe(client, subject).await?;
    for received in 0..expected {
        match timeout(SILENCE, messages.next()).await {
            Ok(Some(_)) => {}
            _ => return Err(format!("{received} of {expected} messages received").into()),
        }
    }
    println!("{}", now());
    Ok(())
}

async fn echo(client: &Client, subject: Subject) -> Outcome {
    let mut requests = subscribe(client, subject).await?;
    while let Some(request) = requests.next().await {
        if let Some(reply) = request.reply {
            client.publish(reply, request.payload).await?;
        }
    }
    Ok(())
}

/// Subscribes, waits until the server knows of it, and says so.
async fn subscribe(client: &Client, subject: Subject) -> Outcome<Subscriber> {
    let subscriber = client.subscribe(subject).await?;
    match client.request(client.new_inbox(), Bytes::new()).await {
        Err(error) if error.kind() != RequestErrorKind::NoResponders => return Err(error.into()),
        _ => println!("ready"),
    }
    Ok(subscriber)
}

async fn request(clients: &[Client], subject: Subject, time: Duration) -> Outcome {
    ask(clients, &subject, WARM_UP).await?;
    let start = Instant::now();
    let requests = ask(clients, &subject, time).await?;
    let per_second = requests as f64 / start.elapsed().as_secs_f64();
    println!("{per_second} {}", clients.len() as f64 / per_second * 1e6);
    Ok(())
}

/// Each client asks without pause for so long; returns the number of answers.
async fn ask(clients: &[Client], subject: &Subject, time: Duration) -> Outcome<u64> {
    let end = Instant::now() + time;
    let askers: Vec<_> = clients
        .iter()
        .map(|client| tokio::spawn(ask_until(end, client.clone(), subject.clone())))
        .collect();
    let mut answers = 0;
    for asker in askers {
        answers += asker.await??;
    }
    Ok(answers)
}

async fn ask_until(end: Instant, client: Client, subject: Subject) -> Result<u64, RequestError> {
    let mut answers = 0;
    while Instant::now() < end {
        client
            .request(subject.clone(), Bytes::from_static(b"hello"))
            .await?;
        answers += 1;
    }
    Ok(answers)
}

/// The time of day in microseconds.
fn now() -> u128 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    time.map_or(0, |time| time.as_micros())
}
