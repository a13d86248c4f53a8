//! What the dispatcher does about a database as a whole: refreshes it, passes on what it defines, drains and resumes
//! it. A part of the dispatcher actor; in the actor thread.

use std::time::Duration;

use actix::prelude::*;
use tokio::sync::oneshot;

use super::Dispatcher;
use crate::actors::base::tasks;
use crate::actors::connections::interface::DatabaseDropped;
use crate::actors::dispatcher::interface::{Promoted, ReadDatabase, Refresh, Registries, Scan, SessionSeen};
use crate::actors::ha::interface::{Fence, Follow, Notify};
use crate::actors::handlers::interface::Apply;
use crate::actors::handlers::stream::former_consumers;
use crate::actors::outbox::interface::{Enable, Wake};
use crate::actors::workers::messages::{DrainDatabase, ResumeDatabase};
use crate::channel::target::Source;
use crate::channel::work::{Definition, FormerConsumer, HandlerKind, Report};
use crate::channel::worker_id::WorkerId;
use crate::error::{Error, Kind};
use crate::server_role::ServerRole;

/// How long running functions may go on when their database is drained, or when its handlers must stop.
const GRACE: Duration = Duration::from_secs(2);
/// How long running functions may go on when their own handler was removed.
const REMOVED_GRACE: Duration = Duration::from_secs(30);
/// Pause between a refresh that has failed and the next one.
const REFRESH_AGAIN: Duration = Duration::from_secs(2);
/// Longest wait for one database when all are refreshed.
const SCAN_LIMIT: Duration = Duration::from_secs(10);

impl Dispatcher {
    /// Only the primary delivers the outbox, and not while it is fenced, because Patroni takes another server for the
    /// primary.
    pub(super) fn enable_outbox(&self) {
        if let Some(registries) = &self.registries {
            let is_enabled = self.role.borrow().is_primary && self.fence.is_none();
            registries.outbox.do_send(Enable(is_enabled));
        }
    }

    /// A refresh has failed: the handlers stay as they were, and the refresh is repeated later.
    pub(super) fn read_failed(&mut self, worker: WorkerId, why: &str, ctx: &mut Context<Self>) {
        log::warn!("could not read the subscriptions and responders of a database: {why}");
        if let Some(database) = self.pool.read_failed(worker) {
            self.grow_soon(Some(database), ctx);
            ctx.run_later(REFRESH_AGAIN, move |actor, ctx| {
                actor.pool.refresh(database, oneshot::channel().0);
                actor.wind(ctx);
            });
        }
    }

    /// Passes on what a database defines, and tells those who wait for the refresh when it has taken effect.
    pub(super) fn apply(&mut self, worker: WorkerId, report: Report, ctx: &mut Context<Self>) {
        let Report {
            database_name,
            has_extension,
            mut handlers,
            servers,
            has_outbox,
            former_consumers,
        } = report;
        let is_primary = self.role.borrow().is_primary;
        if !is_primary {
            handlers.clear();
        }
        if let Some(why) = &self.fence {
            for handler in &mut handlers {
                handler.source = Err(Error::new(Kind::Fenced, why.clone()));
            }
        }
        let live = handlers.iter().filter(|definition| definition.source.is_ok());
        let roles = live.map(|definition| definition.role).collect();
        let Some(database) = self.pool.reported(worker, database_name, &roles) else {
            return;
        };
        // What runs for a removed handler may finish, within reason.
        let may_finish = has_extension && is_primary && self.fence.is_none();
        let grace = if may_finish { REMOVED_GRACE } else { GRACE };
        ctx.run_later(grace, move |actor, _| actor.pool.evict_workers(database, grace));
        // Dropping their channels tells them.
        self.readers.remove(&database);
        let Some(registries) = &self.registries else {
            return;
        };
        if has_outbox {
            registries.outbox.do_send(Wake(database));
        }
        let applied = registries.apply(database, handlers, servers);
        // Messages that came during the refresh have waited for the executor that refreshed, and need not wait for new
        // handlers to begin.
        self.grow_soon(Some(database), ctx);
        let waiters = self.pool.take_waiters(database);
        ctx.spawn(applied.into_actor(self).map(move |(), actor, ctx| {
            actor.pool.applied(database, waiters);
            actor.remove_consumers(database, former_consumers, ctx);
            actor.grow_soon(Some(database), ctx);
            actor.wind(ctx);
        }));
    }

    /// Removes consumers that are not used any more, after the handlers that used them have ended.
    fn remove_consumers(&mut self, database: u32, former: Vec<FormerConsumer>, ctx: &mut Context<Self>) {
        if let Some(removal) = self.removals.remove(&database) {
            ctx.cancel_future(removal);
        }
        let may_remove = self.role.borrow().is_primary && self.fence.is_none() && !former.is_empty();
        let Some(registries) = self.registries.as_ref().filter(|_| may_remove) else {
            return;
        };
        let removal = former_consumers::remove(registries.supervisor.clone(), former);
        let removal = removal.into_actor(self).map(move |removed, actor, ctx| {
            actor.removals.remove(&database);
            actor.pool.consumers_removed(database, removed);
            actor.wind(ctx);
        });
        self.removals.insert(database, ctx.spawn(removal));
    }

    /// A database is gone, and with it all that it has defined.
    pub(super) fn forget(&self, database: u32) {
        if let Some(registries) = &self.registries {
            // Awaited in a task, because actix skips a message whose answer nobody waits for.
            let applied = registries.apply(database, Vec::new(), Vec::new());
            tasks::spawn("end of the handlers of a dropped database", applied);
            registries.supervisor.do_send(DatabaseDropped(database));
        }
    }
}

impl Registries {
    /// Tells the actors what a database defines; the future ends when its handlers have taken effect.
    fn apply(
        &self,
        database: u32,
        handlers: Vec<Definition>,
        servers: Vec<Source>,
    ) -> impl Future<Output = ()> + use<> {
        let urls = servers
            .iter()
            .filter_map(|server| server.settings.patroni_url.clone());
        self.patroni.do_send(Follow {
            database,
            urls: urls.collect(),
        });
        self.notifier.do_send(Notify {
            database,
            sources: servers,
        });
        let (responders, subscriptions) = handlers
            .into_iter()
            .partition(|definition| definition.kind == HandlerKind::Responder);
        let apply = |definitions| Apply {
            database,
            definitions,
        };
        let subscriptions = self.subscriptions.send(apply(subscriptions));
        let responders = self.responders.send(apply(responders));
        // An error means that a registry has ended, which ends the runtime worker.
        async move {
            let _ = tokio::join!(subscriptions, responders);
        }
    }
}

impl Handler<Refresh> for Dispatcher {
    type Result = ResponseFuture<bool>;

    fn handle(&mut self, Refresh(database): Refresh, ctx: &mut Self::Context) -> Self::Result {
        let (done, wait) = oneshot::channel();
        self.pool.refresh(database, done);
        self.wind(ctx);
        Box::pin(async move { wait.await.is_ok() })
    }
}

impl Handler<ReadDatabase> for Dispatcher {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, ReadDatabase(database): ReadDatabase, ctx: &mut Self::Context) -> Self::Result {
        let ((done, applied), (reader, read)) = (oneshot::channel(), oneshot::channel());
        // Those of databases that could not be read wait no longer.
        self.readers
            .retain(|_, readers| readers.iter().any(|reader| !reader.is_closed()));
        self.readers.entry(database).or_default().push(reader);
        self.pool.refresh(database, done);
        self.wind(ctx);
        // Each ends also if the database cannot be read.
        Box::pin(async move {
            tokio::select! {
                _ = applied => {}
                _ = read => {}
            }
        })
    }
}

impl Handler<SessionSeen> for Dispatcher {
    type Result = ();

    fn handle(&mut self, SessionSeen(database): SessionSeen, ctx: &mut Self::Context) {
        if !self.pool.databases().contains(&database) {
            self.pool.refresh(database, oneshot::channel().0);
            self.wind(ctx);
        }
    }
}

impl Handler<Scan> for Dispatcher {
    type Result = ();

    fn handle(&mut self, Scan(databases): Scan, ctx: &mut Self::Context) {
        let this = ctx.address();
        tasks::spawn_vital("refresh of all databases", async move {
            for database in databases {
                // A refresh that takes longer goes on beside the next one.
                let _ = tokio::time::timeout(SCAN_LIMIT, this.send(ReadDatabase(database))).await;
            }
        });
    }
}

impl Handler<Promoted> for Dispatcher {
    type Result = ();

    fn handle(&mut self, Promoted { timeline, databases }: Promoted, ctx: &mut Self::Context) {
        let promoted = self.role.send_if_modified(|role| {
            let promoted = !role.is_primary;
            *role = ServerRole {
                is_primary: true,
                timeline,
            };
            promoted
        });
        if promoted {
            log::info!("the server was promoted, its timeline is {timeline}");
            self.enable_outbox();
            ctx.notify(Scan(databases));
        }
    }
}

impl Handler<Fence> for Dispatcher {
    type Result = ();

    fn handle(&mut self, Fence(fence): Fence, ctx: &mut Self::Context) {
        self.fence = fence;
        self.enable_outbox();
        ctx.notify(Scan(self.pool.databases()));
    }
}

impl Handler<DrainDatabase> for Dispatcher {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, DrainDatabase(database): DrainDatabase, ctx: &mut Self::Context) -> Self::Result {
        let (done, wait) = oneshot::channel();
        self.pool.drain(database, done);
        ctx.run_later(GRACE, move |actor, _| actor.pool.evict(database));
        let registries = self.registries.as_ref();
        let relay = registries.map(|registries| registries.outbox.send(DrainDatabase(database)));
        Box::pin(async move {
            // An error means that the database is gone, and its executors too.
            drop(wait.await);
            if let Some(relay) = relay {
                let _ = relay.await;
            }
        })
    }
}

impl Handler<ResumeDatabase> for Dispatcher {
    type Result = ();

    fn handle(&mut self, ResumeDatabase(database): ResumeDatabase, ctx: &mut Self::Context) {
        self.pool.resume(database);
        if let Some(registries) = &self.registries {
            registries.outbox.do_send(ResumeDatabase(database));
        }
        self.pool.refresh(database, oneshot::channel().0);
        self.wind(ctx);
    }
}
