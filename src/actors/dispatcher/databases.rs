//! What the dispatcher does about a database as a whole: has it looked at, hands on what it defines, leaves it when
//! somebody wants it alone. A part of the dispatcher actor; in the actor thread.

use std::time::Duration;

use actix::prelude::*;
use tokio::sync::oneshot;

use super::actor::Dispatcher;
use super::interface::{Promoted, Refresh, Scan, SessionSeen};
use crate::actors::connections::interface::DatabaseDropped;
use crate::actors::ha::interface::{Fence, Follow, Notify};
use crate::actors::handlers::interface::Apply;
use crate::actors::outbox::interface::{Enable, Wake};
use crate::actors::workers::messages::{DrainDatabase, ResumeDatabase};
use crate::channel::work::{HandlerKind, Report};
use crate::channel::worker_id::WorkerId;
use crate::error::{Error, Kind};
use crate::server_role::ServerRole;

/// Callbacks that run may go on for so long when their database is dropped, or its handlers must stop.
const GRACE: Duration = Duration::from_secs(2);
/// The same when their own handler was taken away.
const REMOVED_GRACE: Duration = Duration::from_secs(30);
/// After a look that has failed.
const REFRESH_AGAIN: Duration = Duration::from_secs(2);
/// Longest wait for one database when all are looked at.
const SCAN_LIMIT: Duration = Duration::from_secs(10);

impl Dispatcher {
    /// The outbox is the primary's to deliver, unless Patroni takes another for it.
    pub(super) fn enable_outbox(&self) {
        if let Some(registries) = &self.registries {
            let is_enabled = self.role.borrow().is_primary && self.fence.is_none();
            registries.outbox.do_send(Enable(is_enabled));
        }
    }

    /// A database could not be looked at: all stays as it was, and it is tried again.
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

    /// Hands on what a database defines, and tells those who wait when it has taken effect.
    pub(super) fn apply(&mut self, worker: WorkerId, report: Report, ctx: &mut Context<Self>) {
        let Report {
            database_name,
            has_extension,
            mut handlers,
            servers,
            has_outbox,
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
        // What runs for a handler that is taken away may finish, within reason.
        let grace = if has_extension && is_primary && self.fence.is_none() {
            REMOVED_GRACE
        } else {
            GRACE
        };
        ctx.run_later(grace, move |actor, _| actor.pool.evict_workers(database, grace));
        let Some(registries) = &self.registries else {
            return;
        };
        if has_outbox {
            registries.outbox.do_send(Wake(database));
        }
        registries.patroni.do_send(Follow {
            database,
            urls: servers
                .iter()
                .filter_map(|server| server.settings.patroni_url.clone())
                .collect(),
        });
        registries.notifier.do_send(Notify {
            database,
            sources: servers,
        });
        let (subscriptions, responders) = handlers
            .into_iter()
            .partition(|definition| definition.kind != HandlerKind::Responder);
        let subscriptions = registries.subscriptions.send(Apply {
            database,
            definitions: subscriptions,
        });
        let responders = registries.responders.send(Apply {
            database,
            definitions: responders,
        });
        // What came during the look has waited for the executor that looked; it need not wait for what is new to begin.
        self.grow_soon(Some(database), ctx);
        let waiters = self.pool.take_waiters(database);
        let applied = async move { tokio::join!(subscriptions, responders) };
        ctx.spawn(applied.into_actor(self).map(move |_, actor, ctx| {
            actor.pool.applied(database, waiters);
            actor.grow_soon(Some(database), ctx);
            actor.wind(ctx);
        }));
    }

    /// A database is gone, and all that it has defined.
    pub(super) fn forget(&self, database: u32) {
        let Some(registries) = &self.registries else {
            return;
        };
        let nothing = || Apply {
            database,
            definitions: Vec::new(),
        };
        registries.subscriptions.do_send(nothing());
        registries.responders.do_send(nothing());
        registries.patroni.do_send(Follow {
            database,
            urls: Default::default(),
        });
        registries.notifier.do_send(Notify {
            database,
            sources: Vec::new(),
        });
        registries.supervisor.do_send(DatabaseDropped(database));
    }
}

impl Handler<Refresh> for Dispatcher {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, Refresh(database): Refresh, ctx: &mut Self::Context) -> Self::Result {
        let (done, wait) = oneshot::channel();
        self.pool.refresh(database, done);
        self.wind(ctx);
        Box::pin(async move { drop(wait.await) })
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
        actix::spawn(async move {
            for database in databases {
                let _ = tokio::time::timeout(SCAN_LIMIT, this.send(Refresh(database))).await;
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
