//! Connects to one of several hosts. The hosts are dialled in their order, each a little after the one before, so that
//! one that is dead or slow does not take the time of the others. In the actor thread.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::dial::{Dialed, dial};
use super::handle::NatsClient;
use super::interface::{Candidate, Observer, SILENT, unreachable};
use super::pump;
use super::shared::Shared;
use crate::actors::base::tasks;
use crate::error::{Error, Kind, Result};
use crate::settings::Settings;
use crate::settings::options::Host;

pub use super::login::check as check_credential;

/// From one host's turn to the next one's, while none has answered; less where there are many hosts.
const STAGGER: Duration = Duration::from_millis(250);
/// Most hosts that an error names.
const NAMED: usize = 10;

/// Connects to the first host that accepts the connection, and returns the client with that host. `limit` is for all
/// hosts together. If no host accepts, the error is that of the first server which was reached, if any was.
pub async fn connect<O: Observer>(
    settings: &Settings,
    candidates: &[Candidate],
    name: &str,
    limit: Duration,
    observer: O,
) -> Result<(NatsClient, Candidate)> {
    let deadline = Instant::now() + limit;
    let count = u32::try_from(candidates.len()).unwrap_or(u32::MAX).max(1);
    let stagger = STAGGER.min(limit / 2 / count);
    let (mut dials, mut failures) = (FuturesUnordered::new(), vec![None; candidates.len()]);
    let mut waiting = candidates.iter().enumerate();
    let mut turn = Instant::now();
    loop {
        if Instant::now() >= turn || dials.is_empty() {
            match waiting.next() {
                Some((index, candidate)) => {
                    dials.push(async move { (index, dial(settings, candidate, name, limit).await) });
                    turn = Instant::now() + stagger;
                }
                None if dials.is_empty() => break,
                None => turn = deadline,
            }
        }
        tokio::select! {
            dialed = dials.next() => match dialed {
                Some((index, Ok(dialed))) => {
                    let candidate = candidates.get(index).cloned();
                    let candidate = candidate.ok_or_else(|| Error::new(Kind::Unreachable, "no NATS server is given"))?;
                    return Ok((start(settings, dialed, observer), candidate));
                }
                Some((index, Err(error))) => {
                    if let Some(failure) = failures.get_mut(index) {
                        *failure = Some(error);
                    }
                    turn = Instant::now();
                }
                None => {}
            },
            () = sleep_until(turn.min(deadline)) => if Instant::now() >= deadline { break },
        }
    }
    Err(failed(settings, candidates, failures))
}

/// The error when no host has accepted.
fn failed(settings: &Settings, candidates: &[Candidate], failures: Vec<Option<Error>>) -> Error {
    let timed_out = |host: &Host| {
        let error = unreachable(host, "timed out".into());
        if settings.tls.first {
            error
        } else {
            error.hint(SILENT)
        }
    };
    let failures = candidates
        .iter()
        .zip(failures)
        .map(|(candidate, failure)| failure.unwrap_or_else(|| timed_out(&candidate.host)));
    let failures: Vec<Error> = failures.collect();
    // The most telling failure is that of a server which was reached.
    let told = failures
        .iter()
        .position(|error| error.kind != Kind::Unreachable)
        .unwrap_or(0);
    let Some(mut error) = failures.into_iter().nth(told) else {
        return Error::new(Kind::Unreachable, "no NATS server is given");
    };
    if candidates.len() > 1 {
        let hosts: Vec<String> = candidates
            .iter()
            .take(NAMED)
            .map(|candidate| candidate.host.to_string())
            .collect();
        let more = match candidates.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let why = error.detail.take().map_or(String::new(), |why| format!("{why} "));
        error = error.detail(format!("{why}Tried: {}{more}.", hosts.join(", ")));
    }
    error
}

/// Starts the task of a client that was let in.
fn start<O: Observer>(settings: &Settings, dialed: Dialed, observer: O) -> NatsClient {
    let Dialed {
        stream,
        input,
        info,
        read,
        requests,
    } = dialed;
    let shared = Arc::new(Shared::new(info, requests, settings.inbox_prefix.clone()));
    shared.traffic.read(read);
    let abandoned = CancellationToken::new();
    let client = NatsClient::new(shared.clone(), abandoned.clone());
    tasks::spawn(
        "NATS connection",
        pump::run(stream, input, shared, abandoned, observer),
    );
    client
}
