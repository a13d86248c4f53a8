//! Executes messages: each message has all its effects or none, and messages that wait together share a transaction.
//! Runs in executors, on the main thread.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::message_groups::MessageGroups;
use super::stream_work::Applied;
use super::{definitions, logging, stream_work};
use crate::channel::work::{Delivered, Failure, FromWorker, HandlerKind, Work, Worked};
use crate::error::{Error, Kind, Result};
use crate::flood::Flood;
use crate::nats::headers;
use crate::pg::batch::Element;
use crate::pg::callback::Arguments;
use crate::pg::function::Function;
use crate::pg::query::query;
use crate::pg::transaction::{
    Caught, Parameters, Timeout, UserContext, begin_statement, statement_timeout, subtransaction,
    transaction, transaction_timeout_for_statements, with_snapshot,
};
use crate::pg::{batch, callback, databases, foreign_servers, rights, worker};
use crate::sql::parameters;

/// Largest reply, in bytes: NATS's own limit for a message.
const MAX_REPLY: usize = 64 * 1024 * 1024;
/// Most bytes of replies in one frame, unless a single reply is larger.
const REPLIES: usize = MAX_REPLY / 2;
/// Most characters of an error's message that the runtime worker is told; the server log has all.
const LONGEST_ERROR: usize = 1000;
/// After this time an executor gives the rest of its work back, so that other handlers get their turn.
const SHARE: Duration = Duration::from_millis(20);

/// What an executor remembers from one order to the next.
#[derive(Default)]
pub struct Worker {
    /// The role that the executor serves, from its first message on: what functions leave behind in the process must
    /// not reach another role.
    role: Option<u32>,
    /// The role's settings, and the version of all settings when they were read.
    settings: Option<(u64, Vec<(String, String)>)>,
    /// Limits the log lines on failures, by the function's object id; with the name of the function in these lines.
    complaints: HashMap<u32, (Flood, String)>,
}

/// A message with its payload.
type WorkMessage<'a> = (&'a Delivered, Bytes);

/// The result of a message: the payload of a reply, if the function returns one, or why the function failed.
type CallResult = std::result::Result<Option<Bytes>, Caught>;

/// What calls of the function took, in microseconds. A cell, because calls that fail, which end by an unwind, are noted
/// too.
type CallTimes = RefCell<Vec<u32>>;

/// What a transaction has committed.
struct Executed {
    outcomes: Vec<CallResult>,
    /// The ack floor of a durable subscription; `None` for other handlers.
    ack_floor: Option<u64>,
}

impl Executed {
    fn of(outcomes: Vec<CallResult>) -> Executed {
        Executed {
            outcomes,
            ack_floor: None,
        }
    }
}

/// The handler cannot run as it is defined: its function or its role is gone or, for a durable subscription, a right is
/// missing or [`Applied::lock`] has refused.
struct Vanished;

impl Worker {
    /// Executes messages in their order, and says what came of each transaction. Messages that there is no time for are
    /// given back: nothing is said of them.
    pub fn run(
        &mut self,
        work: &Work,
        mut body: Bytes,
        mut say: impl FnMut(FromWorker, &[u8]) -> Result<()>,
    ) -> Result<()> {
        if *self.role.get_or_insert(work.role) != work.role {
            return Err(Error::new(Kind::Protocol, "messages for a second role"));
        }
        let (began, times) = (Instant::now(), CallTimes::default());
        let messages: Vec<WorkMessage<'_>> = work
            .messages
            .iter()
            .map(|message| (message, body.split_to((message.size as usize).min(body.len()))))
            .collect();
        let mut rest = messages.as_slice();
        let mut groups = MessageGroups::default();
        while !rest.is_empty() {
            let size = groups.next(work, rest.iter().map(|(message, _)| message.after_ms));
            let (group, others) = rest.split_at(size);
            let executed = match self.execute(work, group, &times, &mut say) {
                Ok(Ok(executed)) => executed,
                Ok(Err(error)) if size == 1 => Executed::of(vec![Err(error)]),
                Ok(Err(_)) => {
                    groups.failed(work, size);
                    // Takes the announcement back: the transaction has not committed.
                    say(FromWorker::Committing { messages: 0 }, b"")?;
                    continue;
                }
                Err(Vanished) => return say(FromWorker::Vanished, b""),
            };
            let stops = work.stops() && executed.outcomes.iter().any(|outcome| outcome.is_err());
            rest = others;
            // A group that has failed is tried to its end, or the next executor would start over with it.
            let has_time = began.elapsed() < SHARE || groups.are_splitting();
            let goes_on = !rest.is_empty() && has_time && !stops;
            self.report(work, group, executed, times.take(), goes_on, &mut say)?;
            if !goes_on {
                break;
            }
        }
        Ok(())
    }

    /// Executes messages in one transaction. Returns what the transaction has committed, or why it could not be
    /// committed.
    fn execute(
        &mut self,
        work: &Work,
        group: &[WorkMessage<'_>],
        times: &CallTimes,
        say: &mut impl FnMut(FromWorker, &[u8]) -> Result<()>,
    ) -> std::result::Result<std::result::Result<Executed, Caught>, Vanished> {
        let settings = match self.settings(work.role) {
            Ok(settings) => settings,
            Err(error) => return Ok(Err(error)),
        };
        let executed = transaction(|| {
            let Some(function) = Function::find(work.function) else {
                callback::forget_plan(work.function);
                return None;
            };
            if !rights::role_exists(work.role) {
                return None;
            }
            worker::report_running(&format!("{} -> {}", work.subject, function.name));
            if let Some(what) = denied(work, &function) {
                let denied = || Err(Caught::denied(format!("permission denied for {what}")));
                // A durable subscription's messages wait until the right is given again.
                return (work.stream.is_none())
                    .then(|| Executed::of(group.iter().map(|_| denied()).collect()));
            }
            let _parameters = Parameters::of_known(settings);
            let _timeouts = transaction_timeout_for_statements();
            let executed = with_snapshot(|| {
                // In a security-restricted operation, PostgreSQL refuses to defer a trigger, which could run as another
                // role at the commit.
                query("SET CONSTRAINTS ALL IMMEDIATE", &[]);
                let Some(stream) = &work.stream else {
                    return Some(Executed::of(call_all(work, &function, group, times, |_| false)));
                };
                let applied = Applied::lock(stream)?;
                let outcomes = call_all(work, &function, group, times, |message| applied.has(message));
                let ack_floor = applied.add(stream, done(group, &outcomes));
                Some(Executed { outcomes, ack_floor })
            })?;
            // If the runtime worker is gone, committing is still right.
            let _ = say(
                FromWorker::Committing {
                    messages: u32::try_from(group.len()).unwrap_or(u32::MAX),
                },
                b"",
            );
            Some(executed)
        });
        match executed {
            Ok(Some(executed)) => Ok(Ok(executed)),
            Ok(None) => Err(Vanished),
            Err(error) => Ok(Err(error)),
        }
    }

    fn settings(&mut self, role: u32) -> std::result::Result<&[(String, String)], Caught> {
        let version = transaction(databases::settings_version)?;
        let known = self.settings.take().filter(|(read_at, _)| *read_at == version);
        let settings = match known {
            Some((_, settings)) => settings,
            None => read_settings(role)?,
        };
        let (_, settings) = self.settings.insert((version, settings));
        Ok(settings)
    }

    /// Tells the runtime worker what became of a transaction's messages, with the replies; writes failures to the
    /// server log.
    fn report(
        &mut self,
        work: &Work,
        group: &[WorkMessage<'_>],
        Executed { outcomes, ack_floor }: Executed,
        times_us: Vec<u32>,
        goes_on: bool,
        say: &mut impl FnMut(FromWorker, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let (mut worked, mut replies) = (Worked::default(), Vec::new());
        for ((message, payload), outcome) in group.iter().zip(outcomes) {
            let reply = outcome.and_then(|reply| {
                // NULL is an empty reply.
                let reply = reply.unwrap_or_default();
                if reply.len() > MAX_REPLY {
                    return Err(Caught::too_large(format!(
                        "reply of {} bytes exceeds the limit of {MAX_REPLY} bytes",
                        reply.len()
                    )));
                }
                Ok(reply)
            });
            if worked.messages > 0 && replies.len() + reply.as_ref().map_or(0, Bytes::len) > REPLIES {
                worked.goes_on = true;
                say(
                    FromWorker::Worked(std::mem::take(&mut worked)),
                    &std::mem::take(&mut replies),
                )?;
            }
            let reply = reply.unwrap_or_else(|error| {
                self.complain(work, message, &error);
                let error = Caught {
                    message: error.message.chars().take(LONGEST_ERROR).collect(),
                    ..error
                };
                worked.failures.push(Failure {
                    index: worked.messages,
                    is_final: is_final(work, message, payload, &error),
                    sqlstate: error.sqlstate,
                    message: error.message,
                });
                Bytes::new()
            });
            worked.messages += 1;
            if work.kind == HandlerKind::Responder {
                worked
                    .replies
                    .push(u32::try_from(reply.len()).unwrap_or(u32::MAX));
                replies.extend_from_slice(&reply);
            }
        }
        worked.goes_on = goes_on;
        worked.ack_floor = ack_floor;
        worked.times_us = times_us;
        say(FromWorker::Worked(worked), &replies)
    }

    /// Called before the executor ends: writes to the server log how many failures it does not show.
    pub fn farewell(&self) {
        for (flood, who) in self.complaints.values().filter(|(flood, _)| flood.rest() > 0) {
            let text = format!("{who} failed for {} more messages", flood.rest());
            logging::write(log::Level::Warn, &text, "", "");
        }
    }

    fn complain(&mut self, work: &Work, message: &Delivered, error: &Caught) {
        let (flood, who) = self.complaints.entry(work.function).or_default();
        let Some(suppressed) = flood.pass() else { return };
        let function = transaction(|| Function::find(work.function)).ok().flatten();
        let name = function.map_or_else(|| work.function.to_string(), |function| function.name);
        let what = match work.kind {
            HandlerKind::Subscription | HandlerKind::Stream => "callback",
            HandlerKind::Responder => "responder",
        };
        *who = format!("{what} {name}");
        let which = match message.position {
            Some(position) => format!("message {} of stream \"{}\"", position.sequence, work.subject),
            None => "a message".into(),
        };
        let text = format!(
            "{who} failed for {which} on subject \"{}\": {}{suppressed}",
            message.subject, error.message
        );
        let detail = format!("SQLSTATE {}. Context: {}", error.sqlstate, error.context);
        logging::write(log::Level::Warn, &text, &detail, "");
    }
}

/// What the role may no longer use; `None` if it may use the function and the server. Checked before each transaction,
/// because the loss of a right by membership in another role causes no refresh.
fn denied(work: &Work, function: &Function) -> Option<String> {
    // Where PostgreSQL inlines an SQL function, it checks the right only when it plans the call, and the plan is kept.
    if !rights::has_execute(work.role, function.oid) {
        return Some(format!("function {}", function.name));
    }
    (!rights::has_usage(work.role, work.server)).then(|| {
        let server = foreign_servers::server_name(work.server).unwrap_or_else(|| work.server.to_string());
        format!("foreign server {server}")
    })
}

/// Calls the function with all messages but those to be skipped: with each message alone, whose effects are its own, or
/// with all at once. If there are fewer outcomes than messages, the other messages have to wait for one that has
/// failed.
fn call_all(
    work: &Work,
    function: &Function,
    group: &[WorkMessage<'_>],
    times: &CallTimes,
    is_skipped: impl Fn(&Delivered) -> bool,
) -> Vec<CallResult> {
    let _identity = UserContext::restricted(work.role);
    if work.is_batch {
        let called: Vec<&WorkMessage<'_>> =
            group.iter().filter(|(message, _)| !is_skipped(message)).collect();
        if let [(message, _)] = called.as_slice()
            && message.is_poison
        {
            return group.iter().map(|_| Err(Caught::poison())).collect();
        }
        if !called.is_empty() {
            call_with_many(work, function, &called, times);
        }
        return group.iter().map(|_| Ok(None)).collect();
    }
    let one = |message: &WorkMessage<'_>| match message {
        (message, _) if is_skipped(message) => Ok(None),
        (message, _) if message.is_poison => Err(Caught::poison()),
        _ if group.len() == 1 => Ok(call(work, function, message, times)),
        _ => subtransaction(|| call(work, function, message, times)),
    };
    let mut outcomes = Vec::with_capacity(group.len());
    for message in group {
        outcomes.push(one(message));
        if work.stops() && outcomes.last().is_some_and(|outcome| outcome.is_err()) {
            break;
        }
    }
    outcomes
}

/// The messages that are done with.
fn done<'a>(
    group: &'a [WorkMessage<'_>],
    outcomes: &'a [CallResult],
) -> impl Iterator<Item = &'a Delivered> + Clone {
    let done = group.iter().zip(outcomes).filter(|(_, outcome)| outcome.is_ok());
    done.map(|((message, _), _)| *message)
}

/// Gives up a message that has failed, if this was its last delivery or if it is a poison message. Whether that was
/// done.
fn is_final(work: &Work, message: &Delivered, payload: &Bytes, error: &Caught) -> bool {
    let (Some(stream), Some(position)) = (&work.stream, message.position) else {
        return false;
    };
    let is_last = stream.max_deliveries > 0 && position.deliveries >= stream.max_deliveries;
    (is_last || message.is_poison) && stream_work::give_up(work, stream, message, payload, error)
}

fn call(
    work: &Work,
    function: &Function,
    (message, payload): &WorkMessage<'_>,
    times: &CallTimes,
) -> Option<Bytes> {
    let _statement = Statement::begin(work, times);
    let arguments = Arguments {
        payload,
        subject: &message.subject,
        reply: message.reply.as_deref(),
        headers: headers_of(message),
    };
    callback::call(function, &arguments)
}

fn call_with_many(work: &Work, function: &Function, messages: &[&WorkMessage<'_>], times: &CallTimes) {
    let _statement = Statement::begin(work, times);
    let elements: Vec<Element<'_>> = messages
        .iter()
        .map(|(message, payload)| Element {
            subject: &message.subject,
            payload,
            reply: message.reply.as_deref(),
            headers: headers_of(message),
            position: message
                .position
                .map(|position| (position.sequence, position.deliveries)),
            time_us: message.time_us,
        })
        .collect();
    batch::call(function, &elements);
}

/// The headers as JSON; `None` if there are none.
fn headers_of(message: &Delivered) -> Option<String> {
    (!message.headers.is_empty()).then(|| headers::to_json(&message.headers))
}

/// A call as a statement of its own. When it is dropped, in the order of the fields, its time is taken, its timeout
/// ends, and what the function has set is taken back.
struct Statement<'a> {
    _watch: Stopwatch<'a>,
    _timeout: Option<Timeout>,
    _parameters: Parameters,
}

/// Notes the time since `began` when it is dropped.
struct Stopwatch<'a> {
    began: Instant,
    times: &'a CallTimes,
}

impl Drop for Stopwatch<'_> {
    fn drop(&mut self) {
        let us = u32::try_from(self.began.elapsed().as_micros()).unwrap_or(u32::MAX);
        self.times.borrow_mut().push(us);
    }
}

impl<'a> Statement<'a> {
    fn begin(work: &Work, times: &'a CallTimes) -> Statement<'a> {
        begin_statement();
        let parameters = Parameters::of(&[]);
        let limit = match work.timeout_ms {
            0 => statement_timeout()
                .into_iter()
                .chain(parameters::callback_timeout())
                .min(),
            limit => Some(Duration::from_millis(limit.into())),
        };
        Statement {
            _watch: Stopwatch {
                began: Instant::now(),
                times,
            },
            _timeout: limit.map(Timeout::after),
            _parameters: parameters,
        }
    }
}

/// The settings with which a session of the role would begin. Warns of those that cannot be set, as a login does.
fn read_settings(role: u32) -> std::result::Result<Vec<(String, String)>, Caught> {
    let settings = transaction(|| with_snapshot(|| definitions::role_settings(role)))?;
    // In a transaction of its own: some can be set only before the first query.
    transaction(|| drop(Parameters::of(&settings)))?;
    Ok(settings)
}
