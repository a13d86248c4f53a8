//! The handlers of one kind, by database: follows what the databases define, and keeps each handler subscribed. An
//! actor with two instances, `SubscriptionRegistry` and `ResponderRegistry`; in the actor thread.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::core_subscriber;
use super::handler::{HandlerCounts, MessageHandler};
use super::interface::{Apply, HandlerRows, ResetHandlers, Sink};
use super::stream::{subscriber as stream_subscriber, watcher as stream_watcher};
use crate::actors::base::queue_limits::Limits;
use crate::actors::base::tasks::{self, Vital};
use crate::actors::connections::Supervisor;
use crate::actors::connections::interface::{ConnectionHandle, OpenConnection, stopped};
use crate::actors::connections::lease::ConnectionUser;
use crate::channel::statistics::HandlerRow;
use crate::channel::work::{Definition, HandlerIdentity, HandlerKind};

/// Longest wait for new handlers to become live; they go on trying afterwards.
const LIVE_LIMIT: Duration = Duration::from_secs(3);

/// Longest wait for the subscriptions of removed handlers to end.
const END_LIMIT: Duration = Duration::from_secs(1);

struct RunningHandler {
    handler: Arc<MessageHandler>,
    stop: CancellationToken,
    subscriber: Option<JoinHandle<Option<()>>>,
}

/// The actor that keeps the handlers of one kind.
pub struct Registry<I> {
    supervisor: Addr<Supervisor>,
    limits: Arc<Limits>,
    sink: I,
    live: HashMap<u32, Vec<RunningHandler>>,
    /// Handlers that have ended, which the views show until those that take their places have started.
    replaced: HashMap<u32, Vec<Arc<MessageHandler>>>,
    _vital: Vital,
}

impl<I: Sink> Registry<I> {
    /// `name`: the actor's name, for the log.
    pub fn new(name: &'static str, supervisor: Addr<Supervisor>, limits: Arc<Limits>, sink: I) -> Self {
        Registry {
            supervisor,
            limits,
            sink,
            live: HashMap::new(),
            replaced: HashMap::new(),
            _vital: Vital::new(name),
        }
    }

    /// The handlers of a database that the views show.
    fn shown(&self, database: u32) -> impl Iterator<Item = &Arc<MessageHandler>> {
        let live = self.live.get(&database).into_iter().flatten();
        let replaced = self.replaced.get(&database).into_iter().flatten();
        live.map(|entry| &entry.handler).chain(replaced)
    }
}

impl<I: Sink> Actor for Registry<I> {
    type Context = Context<Self>;
}

/// What a new set of definitions changes.
struct Changes {
    new: Vec<Definition>,
    gone: Vec<RunningHandler>,
}

impl<I: Sink> Registry<I> {
    /// Keeps the handlers of a database that are still defined; returns what is new and what is gone.
    fn compare(&mut self, database: u32, definitions: Vec<Definition>) -> Changes {
        let mut before: HashMap<HandlerIdentity, Vec<RunningHandler>> = HashMap::new();
        for entry in self.live.remove(&database).unwrap_or_default() {
            let identity = entry.handler.definition().identity();
            before.entry(identity).or_default().push(entry);
        }
        let (mut kept, mut new) = (Vec::new(), Vec::new());
        for definition in definitions {
            match before.get_mut(&definition.identity()).and_then(Vec::pop) {
                Some(entry) => {
                    entry.handler.lock().definition = Arc::new(definition);
                    kept.push(entry);
                }
                None => new.push(definition),
            }
        }
        self.live.insert(database, kept);
        let gone = before.into_values().flatten().collect();
        Changes { new, gone }
    }

    /// The new handlers have started, and take the place of those that they replace. The future ends when each is live
    /// or disabled, or the views show why not, or after `LIVE_LIMIT`.
    fn started(&mut self, database: u32, entries: Vec<RunningHandler>) -> impl Future<Output = ()> + use<I> {
        let settled: Vec<_> = entries
            .iter()
            .map(|entry| entry.handler.clone().settled())
            .collect();
        self.live.entry(database).or_default().extend(entries);
        self.replaced.remove(&database);
        let settled = timeout(LIVE_LIMIT, join_all(settled));
        async move { drop(settled.await) }
    }
}

impl<I: Sink> actix::Handler<Apply> for Registry<I> {
    type Result = ResponseActFuture<Self, ()>;

    /// Ends handlers that are no longer defined and keeps the others; the future starts new ones. The dispatcher sees
    /// to it that a database has one such future at a time.
    fn handle(&mut self, apply: Apply, _: &mut Self::Context) -> Self::Result {
        let Apply {
            database,
            definitions,
        } = apply;
        let Changes { new, gone } = self.compare(database, definitions);
        // A handler keeps its counts when its options, or rights, have changed.
        let names: HashSet<_> = new.iter().map(name).collect();
        let gone_by_name = gone
            .iter()
            .map(|entry| (name(&entry.handler.definition()), entry.handler.clone()));
        let mut replaced: HashMap<_, _> = gone_by_name.filter(|(name, _)| names.contains(name)).collect();
        self.replaced
            .insert(database, replaced.values().cloned().collect());
        let ended: Vec<_> = gone.into_iter().filter_map(RunningHandler::end).collect();
        let (supervisor, limits, sink) = (self.supervisor.clone(), self.limits.clone(), self.sink.clone());
        let starts = new.into_iter().map(move |definition| {
            let former = replaced.remove(&name(&definition));
            let counts = former.map(|handler| handler.counts.clone()).unwrap_or_default();
            start(
                database,
                definition,
                counts,
                supervisor.clone(),
                limits.clone(),
                sink.clone(),
            )
        });
        let started = async move {
            // Removed handlers take no more messages when new ones begin.
            if timeout(END_LIMIT, join_all(ended)).await.is_err() {
                log::warn!("subscriptions that were taken away have not ended in time");
            }
            join_all(starts).await
        };
        Box::pin(
            started
                .into_actor(self)
                .then(move |entries, actor, _| actor.started(database, entries).into_actor(actor)),
        )
    }
}

impl<I: Sink> actix::Handler<HandlerRows> for Registry<I> {
    type Result = Vec<HandlerRow>;

    fn handle(&mut self, HandlerRows(database): HandlerRows, _: &mut Self::Context) -> Self::Result {
        self.shown(database).map(|handler| handler.row()).collect()
    }
}

impl<I: Sink> actix::Handler<ResetHandlers> for Registry<I> {
    type Result = ();

    fn handle(&mut self, ResetHandlers(database): ResetHandlers, _: &mut Self::Context) {
        for handler in self.shown(database) {
            *handler.counts() = HandlerCounts::default();
        }
    }
}

impl RunningHandler {
    /// Ends a handler. The returned task ends when the subscription has; `None` if the handler has none.
    fn end(self) -> Option<JoinHandle<Option<()>>> {
        self.handler.end();
        self.stop.cancel();
        self.subscriber
    }
}

/// What people know a handler by: kind, server, subject and function.
fn name(definition: &Definition) -> (HandlerKind, String, String, String) {
    let Definition {
        kind,
        server,
        subject,
        function,
        ..
    } = definition;
    (*kind, server.clone(), subject.clone(), function.clone())
}

async fn start(
    database: u32,
    mut definition: Definition,
    counts: Arc<Mutex<HandlerCounts>>,
    supervisor: Addr<Supervisor>,
    limits: Arc<Limits>,
    sink: impl Sink,
) -> RunningHandler {
    let mut connection = None;
    if let Ok(source) = &definition.source {
        let open = OpenConnection {
            target: source.target.clone(),
            settings: source.settings.clone(),
            user: ConnectionUser::Worker,
        };
        match supervisor.send(open).await.unwrap_or_else(|_| Err(stopped())) {
            Ok(handle) => connection = Some(handle),
            Err(error) => definition.source = Err(error),
        }
    }
    let stop = CancellationToken::new();
    let handler = MessageHandler::new(database, definition, connection.clone(), limits, counts);
    let subscriber = connection.map(|connection| subscribe(handler.clone(), connection, sink, stop.clone()));
    RunningHandler {
        handler,
        stop,
        subscriber,
    }
}

/// Starts a handler's subscriber. The task is `unconstrained`: it yields only when it has taken every message. If tokio
/// made it yield after 128 operations, the client's task could read more than that in between, and messages would pile
/// up in the client's channel, outside of the handler's bounded queue.
fn subscribe(
    handler: Arc<MessageHandler>,
    connection: ConnectionHandle,
    sink: impl Sink,
    stop: CancellationToken,
) -> JoinHandle<Option<()>> {
    let definition = handler.definition();
    let name = definition.kind.describe(&definition.subject);
    if definition.halted.is_some() {
        tasks::spawn_vital(name, stream_watcher::run(handler, connection, stop))
    } else if definition.consumer.is_some() {
        let subscriber = stream_subscriber::run(handler, connection, sink, stop);
        tasks::spawn_vital(name, tokio::task::unconstrained(subscriber))
    } else {
        let subscriber = core_subscriber::run(handler, connection, sink, stop);
        tasks::spawn_vital(name, tokio::task::unconstrained(subscriber))
    }
}
