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

use super::handler::{Counts, Handler, State};
use super::pump::{Inlet, pump};
use super::queue::Limits;
use super::stream_pump::stream_pump;
use super::supervisor::{Left, Open, Supervisor};
use super::system::Vital;
use crate::channel::message::Row;
use crate::channel::work::{Definition, HandlerKind, Identity};

/// Longest wait for new handlers to be subscribed; they go on trying afterwards.
const LIVE_LIMIT: Duration = Duration::from_secs(3);

/// Longest wait for a subscription to end.
const END_LIMIT: Duration = Duration::from_secs(1);

/// What a database defines now; answered when it has taken effect.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Apply {
    pub database: u32,
    pub definitions: Vec<Definition>,
}

/// A row for each handler of a database: what the views show.
#[derive(Message)]
#[rtype(result = "Vec<Row>")]
pub struct Rows(pub u32);

/// Has the handlers of a database count anew.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Reset(pub u32);

struct Entry {
    handler: Arc<Handler>,
    stop: watch::Sender<bool>,
    pump: Option<JoinHandle<()>>,
}

/// The handlers of one kind.
pub struct Registry<I> {
    supervisor: Addr<Supervisor>,
    limits: Arc<Limits>,
    inlet: I,
    live: HashMap<u32, Vec<Entry>>,
    /// Handlers that have ended, and stand for those that are about to take their places.
    replaced: HashMap<u32, Vec<Arc<Handler>>>,
    _vital: Vital,
}

impl<I: Inlet> Registry<I> {
    pub fn new(supervisor: Addr<Supervisor>, limits: Arc<Limits>, inlet: I, vital: Vital) -> Self {
        Registry {
            supervisor,
            limits,
            inlet,
            live: HashMap::new(),
            replaced: HashMap::new(),
            _vital: vital,
        }
    }

    /// The handlers of a database, as the views have them.
    fn shown(&self, database: u32) -> impl Iterator<Item = &Arc<Handler>> {
        let live = self.live.get(&database).into_iter().flatten();
        let replaced = self.replaced.get(&database).into_iter().flatten();
        live.map(|entry| &entry.handler).chain(replaced)
    }
}

impl<I: Inlet> Actor for Registry<I> {
    type Context = Context<Self>;
}

impl<I: Inlet> actix::Handler<Apply> for Registry<I> {
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
        let mut before: HashMap<Identity, Vec<Entry>> = HashMap::new();
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
        let ended: Vec<_> = before.into_values().flatten().filter_map(Entry::end).collect();
        self.live.insert(database, kept);
        let (supervisor, limits, inlet) = (self.supervisor.clone(), self.limits.clone(), self.inlet.clone());
        let starts = new.into_iter().map(move |definition| {
            let former = replaced.remove(&name(&definition));
            let counts = former.map(|handler| handler.counts.clone()).unwrap_or_default();
            start(
                database,
                definition,
                counts,
                supervisor.clone(),
                limits.clone(),
                inlet.clone(),
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
                let _ = state.wait_for(|state| *state != State::Waiting).await;
            });
            let settled = timeout(LIVE_LIMIT, join_all(settled));
            async move { drop(settled.await) }.into_actor(actor)
        }))
    }
}

impl<I: Inlet> actix::Handler<Rows> for Registry<I> {
    type Result = Vec<Row>;

    fn handle(&mut self, Rows(database): Rows, _: &mut Self::Context) -> Self::Result {
        self.shown(database).map(|handler| handler.row()).collect()
    }
}

impl<I: Inlet> actix::Handler<Reset> for Registry<I> {
    type Result = ();

    fn handle(&mut self, Reset(database): Reset, _: &mut Self::Context) {
        for handler in self.shown(database) {
            *handler.counts() = Counts::default();
        }
    }
}

impl Entry {
    /// Ends a handler; what is given ends when its subscription has.
    fn end(self) -> Option<JoinHandle<()>> {
        self.handler.end();
        self.stop.send_replace(true);
        self.pump
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
    counts: Arc<Mutex<Counts>>,
    supervisor: Addr<Supervisor>,
    limits: Arc<Limits>,
    inlet: impl Inlet,
) -> Entry {
    let mut connection = None;
    if let Ok(source) = &definition.source {
        let open = Open {
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
    let handler = Handler::new(database, definition, handle, limits, counts);
    let pump = connection.map(|(key, handle)| {
        let (handler, stopped) = (handler.clone(), stop.subscribe());
        actix::spawn(async move {
            // Its turns end when nothing is left to take, not after tokio's 128 messages: in the turns of the client's own
            // task, so much more may come that all would wait there, where nothing bounds it.
            if handler.definition().consumer.is_some() {
                tokio::task::unconstrained(stream_pump(handler, handle, inlet, stopped)).await;
            } else {
                tokio::task::unconstrained(pump(handler, handle, inlet, stopped)).await;
            }
            supervisor.do_send(Left(key));
        })
    });
    Entry { handler, stop, pump }
}
