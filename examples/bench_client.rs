//! The benchmarks' NATS client: the yardsticks, and the other ends of what PostgreSQL sends.
//!
//! ```text
//! bench_client URL publish SUBJECT COUNT SIZE            prints START SENT
//! bench_client URL count SUBJECT COUNT                   prints "ready", and LAST when all messages are there
//! bench_client URL echo SUBJECT                          prints "ready", answers each request with its payload
//! bench_client URL setup                                 makes stream, bucket and store of the following, in memory
//! bench_client URL CALL CONCURRENCY SECONDS              prints CALLS-PER-SECOND LATENCY
//! bench_client URL each CALL CONCURRENCY SECONDS         the same, each caller with a connection of its own
//! bench_client URL object BYTES                          prints PUT GET
//! bench_client URL fill SUBJECT COUNT SIZE               acknowledged publishes, pipelined; prints START SENT
//! bench_client URL latency PGHOST SUBJECT COUNT          prints MEDIAN P99
//! ```
//!
//! CALL is `request`, `stream` (an acknowledged publish), `put` or `get` (of a key). START, SENT and LAST are times of
//! day, LATENCY is a mean, PUT and GET are durations, MEDIAN and P99 those of the time from a publish to PostgreSQL's
//! notification on channel "latency" with the same payload, all in microseconds. One thread, and but for `each` one
//! connection.

use std::collections::VecDeque;
use std::error::Error;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_nats::jetstream::{self, kv, object_store, stream};
use async_nats::{Client, ConnectOptions, RequestErrorKind, Subject, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::try_join_all;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// Most time between two messages that are counted.
const SILENCE: Duration = Duration::from_secs(10);
/// Between two messages whose latency is measured, all comes to rest.
const IDLE: Duration = Duration::from_millis(20);
/// Publishes of `fill` that wait for their acknowledgement.
const WINDOW: usize = 1024;
/// What the calls of a measurement are preceded by.
const WARM_UP: Duration = Duration::from_millis(200);
/// Of bench/*.sql: the subjects of the echo and of the stream, and the bucket, key, store and file.
const ECHO: &str = "c";
const STREAM: &str = "stream";
const QUEUE: &str = "queue";
const BENCH: &str = "bench";
const KEY: &str = "key";
const FILE: &str = "file";
/// The oldest messages of the stream go, so that a run of any length has room.
const STREAM_MESSAGES: i64 = 100_000;

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
        ["setup"] => setup(jetstream::new(client)).await,
        ["latency", host, subject, count] => latency(&client, host, subject.into(), count.parse()?).await,
        ["fill", subject, count, size] => {
            fill(
                jetstream::new(client),
                subject.into(),
                count.parse()?,
                size.parse()?,
            )
            .await
        }
        ["object", bytes] => object(jetstream::new(client), bytes.parse()?).await,
        ["each", call, concurrency, seconds] => {
            let connect = (0..concurrency.parse()?).map(|_| async_nats::connect(*url));
            measure(call, try_join_all(connect).await?, seconds.parse()?).await
        }
        [call, concurrency, seconds] => {
            measure(call, vec![client; concurrency.parse()?], seconds.parse()?).await
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

async fn fill(context: jetstream::Context, subject: Subject, count: usize, size: usize) -> Outcome {
    let payload = Bytes::from(vec![b'x'; size]);
    let start = now();
    let mut acks = VecDeque::new();
    for n in 0..count {
        // As a publisher that wants to be able to repeat does it.
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", format!("{start}-{n}").as_str());
        let sent = context
            .publish_with_headers(subject.clone(), headers, payload.clone())
            .await?;
        acks.push_back(sent.into_future());
        if acks.len() >= WINDOW
            && let Some(oldest) = acks.pop_front()
        {
            oldest.await?;
        }
    }
    for ack in acks {
        ack.await?;
    }
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

async fn setup(context: jetstream::Context) -> Outcome {
    let storage = stream::StorageType::Memory;
    let config = stream::Config {
        name: STREAM.into(),
        subjects: vec![STREAM.into()],
        max_messages: STREAM_MESSAGES,
        storage,
        ..Default::default()
    };
    context.create_stream(config).await?;
    let config = stream::Config {
        name: QUEUE.into(),
        subjects: vec![QUEUE.into()],
        storage,
        ..Default::default()
    };
    context.create_stream(config).await?;
    let config = kv::Config {
        bucket: BENCH.into(),
        storage,
        ..Default::default()
    };
    context
        .create_key_value(config)
        .await?
        .put(KEY, "hello".into())
        .await?;
    let config = object_store::Config {
        bucket: BENCH.into(),
        storage,
        ..Default::default()
    };
    context.create_object_store(config).await?;
    Ok(())
}

async fn object(context: jetstream::Context, bytes: usize) -> Outcome {
    let store = context.get_object_store(BENCH).await?;
    let content = vec![b'x'; bytes];
    let start = Instant::now();
    store.put(FILE, &mut content.as_slice()).await?;
    let put = start.elapsed();
    let mut received = Vec::with_capacity(bytes);
    let start = Instant::now();
    store.get(FILE).await?.read_to_end(&mut received).await?;
    let get = start.elapsed();
    if received != content {
        return Err("the file is another".into());
    }
    println!("{} {}", put.as_micros(), get.as_micros());
    Ok(())
}

async fn latency(client: &Client, host: &str, subject: Subject, count: usize) -> Outcome {
    let mut config = tokio_postgres::Config::new();
    config.host_path(host).user("postgres").dbname("postgres");
    let (session, mut connection) = config.connect(tokio_postgres::NoTls).await?;
    let (notify, mut notifications) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let messages = futures::stream::poll_fn(move |context| connection.poll_message(context));
        futures::pin_mut!(messages);
        while let Some(Ok(message)) = messages.next().await {
            if let tokio_postgres::AsyncMessage::Notification(notification) = message {
                let _ = notify.send(notification.payload().to_string());
            }
        }
    });
    session.batch_execute("LISTEN latency").await?;
    let mut times = Vec::with_capacity(count);
    for number in 0..count {
        tokio::time::sleep(IDLE).await;
        let start = Instant::now();
        client.publish(subject.clone(), number.to_string().into()).await?;
        let notified = timeout(SILENCE, notifications.recv()).await?;
        if notified.as_deref() != Some(&number.to_string()) {
            return Err("another notification".into());
        }
        times.push(start.elapsed().as_micros());
    }
    times.sort_unstable();
    println!("{} {}", times[count / 2], times[count * 99 / 100]);
    Ok(())
}

/// One caller's kind of call, on its connection.
#[derive(Clone)]
enum Call {
    Request(Client),
    Stream(jetstream::Context),
    Put(kv::Store),
    Get(kv::Store),
}

impl Call {
    async fn new(name: &str, client: Client) -> Outcome<Call> {
        let context = jetstream::new(client.clone());
        Ok(match name {
            "request" => Call::Request(client),
            "stream" => Call::Stream(context),
            "put" => Call::Put(context.get_key_value(BENCH).await?),
            "get" => Call::Get(context.get_key_value(BENCH).await?),
            _ => return Err("no such call".into()),
        })
    }

    async fn once(&self) -> Outcome {
        let payload = Bytes::from_static(b"hello");
        match self {
            Call::Request(client) => client.request(ECHO, payload).await.map(drop)?,
            Call::Stream(context) => context.publish(STREAM, payload).await?.await.map(drop)?,
            Call::Put(bucket) => bucket.put(KEY, payload).await.map(drop)?,
            Call::Get(bucket) => bucket.get(KEY).await?.map(drop).ok_or("no value")?,
        }
        Ok(())
    }

    async fn until(self, end: Instant) -> Outcome<u64> {
        let mut calls = 0;
        while Instant::now() < end {
            self.once().await?;
            calls += 1;
        }
        Ok(calls)
    }
}

async fn measure(call: &str, clients: Vec<Client>, seconds: f64) -> Outcome {
    let callers = try_join_all(clients.into_iter().map(|client| Call::new(call, client))).await?;
    all(&callers, WARM_UP).await?;
    let start = Instant::now();
    let calls = all(&callers, Duration::from_secs_f64(seconds)).await?;
    let per_second = calls as f64 / start.elapsed().as_secs_f64();
    println!("{per_second} {}", callers.len() as f64 / per_second * 1e6);
    Ok(())
}

/// Each caller calls without pause for so long; returns the number of calls.
async fn all(callers: &[Call], time: Duration) -> Outcome<u64> {
    let end = Instant::now() + time;
    let callers: Vec<_> = callers
        .iter()
        .map(|caller| tokio::spawn(caller.clone().until(end)))
        .collect();
    let mut calls = 0;
    for caller in callers {
        calls += caller.await??;
    }
    Ok(calls)
}

/// The time of day in microseconds.
fn now() -> u128 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    time.map_or(0, |time| time.as_micros())
}
