//! The handlers of one kind, by database: follows what the databases define, and keeps each handler subscribed. The
//! actor that `SubscriptionRegistry` and `ResponderRegistry` are two of. In the actor thread.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::prelude::*;
use futures::future::join_all;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::handler::{HandlerCounts, HandlerState, MessageHandler};
use super::interface::{Apply, HandlerRows, ResetHandlers, Sink};
use super::{core_subscriber, stream_subscriber};
use crate::actors::base::liveness::Vital;
use crate::actors::base::queue_limits::Limits;
use crate::actors::connections::Supervisor;
use crate::actors::connections::interface::{ConnectionLeft, OpenConnection};
use crate::channel::work::{Definition, HandlerIdentity, HandlerKind};
use crate::row::Row;

/// Longest wait for new handlers to be subscribed; they go on trying afterwards.
const LIVE_LIMIT: Duration = Duration::from_secs(3);

/// Longest wait for a subscription to end.
const END_LIMIT: Duration = Duration::from_secs(1);

struct RunningHandler {
    handler: Arc<MessageHandler>,
    stop: watch::Sender<bool>,
    subscriber: Option<JoinHandle<()>>,
}

/// The handlers of one kind.
pub struct Registry<I> {
    supervisor: Addr<Supervisor>,
    limits: Arc<Limits>,
    sink: I,
    live: HashMap<u32, Vec<RunningHandler>>,
    /// Handlers that have ended, and stand for those that are about to take their places.
    replaced: HashMap<u32, Vec<Arc<MessageHandler>>>,
    _vital: Vital,
}

impl<I: Sink> Registry<I> {
    pub fn new(supervisor: Addr<Supervisor>, limits: Arc<Limits>, sink: I, vital: Vital) -> Self {
        Registry {
            supervisor,
            limits,
            sink,
            live: HashMap::new(),
            replaced: HashMap::new(),
            _vital: vital,
        }
    }

    /// The handlers of a database, as the views have them.
    fn shown(&self, database: u32) -> impl Iterator<Item = &Arc<MessageHandler>> {
        let live = self.live.get(&database).into_iter().flatten();
        let replaced = self.replaced.get(&database).into_iter().flatten();
        live.map(|entry| &entry.handler).chain(replaced)
    }
}

impl<I: Sink> Actor for Registry<I> {
    type Context = Context<Self>;
}

impl<I: Sink> actix::Handler<Apply> for Registry<I> {
    type Result = ResponseActFuture<Self, ()>;

    /// Ends what is no longer defined and keeps what is; the future starts what is new. The dispatcher sees to it that
    /// there is one such future for a database at a time.
    fn handle(
        &mut self,
        Apply {
            database,
            definitions,
        }: Apply,
        _: &mut Self::Context,
    ) -> Self::Result {
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
        // What was counted of a handler stays when its options, or rights, have changed.
        let gone = before.values().flatten().map(|entry| &entry.handler);
        let mut replaced: HashMap<_, _> = gone
            .map(|handler| (name(&handler.definition()), handler.clone()))
            .collect();
        let names: HashSet<_> = new.iter().map(name).collect();
        replaced.retain(|known_as, _| names.contains(known_as));
        self.replaced
            .insert(database, replaced.values().cloned().collect());
        let ended: Vec<_> = before
            .into_values()
            .flatten()
            .filter_map(RunningHandler::end)
            .collect();
        self.live.insert(database, kept);
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
            // What is over takes no more messages when what is new begins.
            let _ = timeout(END_LIMIT, join_all(ended)).await;
            join_all(starts).await
        };
        Box::pin(started.into_actor(self).then(move |entries, actor, _| {
            let states: Vec<_> = entries
                .iter()
                .map(|entry| entry.handler.state.subscribe())
                .collect();
            actor.live.entry(database).or_default().extend(entries);
            actor.replaced.remove(&database);
            let settled = states.into_iter().map(|mut state| async move {
                let _ = state.wait_for(|state| *state != HandlerState::Waiting).await;
            });
            let settled = timeout(LIVE_LIMIT, join_all(settled));
            async move { drop(settled.await) }.into_actor(actor)
        }))
    }
}

impl<I: Sink> actix::Handler<HandlerRows> for Registry<I> {
    type Result = Vec<Row>;

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
    /// Ends a handler; what is given ends when its subscription has.
    fn end(self) -> Option<JoinHandle<()>> {
        self.handler.end();
        self.stop.send_replace(true);
        self.subscriber
    }
}

/// What people know a handler by.
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
        };
        match supervisor.send(open).await {
            Ok(Ok(handle)) => connection = Some((source.target.key, handle)),
            Ok(Err(error)) => definition.source = Err(error),
            Err(_) => {}
        }
    }
    let stop = watch::Sender::new(false);
    let handle = connection.as_ref().map(|(_, handle)| handle.clone());
    let handler = MessageHandler::new(database, definition, handle, limits, counts);
    let subscriber = connection.map(|(key, handle)| {
        let (handler, stopped) = (handler.clone(), stop.subscribe());
        actix::spawn(async move {
            // Its turns end when nothing is left to take, not after tokio's 128 messages: in the turns of the client's own
            // task, so much more may come that all would wait there, where nothing bounds it.
            if handler.definition().consumer.is_some() {
                tokio::task::unconstrained(stream_subscriber::run(handler, handle, sink, stopped)).await;
            } else {
                tokio::task::unconstrained(core_subscriber::run(handler, handle, sink, stopped)).await;
            }
            supervisor.do_send(ConnectionLeft(key));
        })
    });
    RunningHandler {
        handler,
        stop,
        subscriber,
    }
}
