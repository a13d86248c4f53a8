//! Takes new settings for a connection: the old client serves until a client with the new settings is connected. A part
//! of the connection actor; in the actor thread.

use std::time::Duration;

use actix::prelude::*;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::{Attempt, Connection};
use crate::actors::connection::delivery::{FLUSH_LIMIT, retire};
use crate::actors::connection::interface::{CONNECT_LIMIT, ReloadConnection, ReplaceSettings, SettingsMatch};
use crate::actors::connection::status::not_connected;
use crate::error::{Kind, Result};
use crate::settings::Settings;

/// Least time from one forced reload to the next. Every role with USAGE may ask for one, and each costs core messages
/// that come while the subscriptions move.
const FORCED_INTERVAL: Duration = Duration::from_secs(2);

impl Connection {
    /// Takes over settings that need no new client.
    fn take_over(&mut self, settings: Settings) {
        self.settings = settings;
        self.lifecycle.reloaded_in_place();
        // Wakes callers that wait for room in the buffer, because its capacity may have grown.
        self.status
            .send_modify(|status| status.domain = self.settings.domain.clone());
    }

    /// A reload's attempt to connect has ended.
    fn reloaded(&mut self, attempt: Attempt, ctx: &mut Context<Self>) -> Result<()> {
        match attempt.client {
            Ok(client) => {
                if self.lifecycle.reload_connected(attempt.number) {
                    self.settings = attempt.settings;
                    self.install(client, attempt.number, ctx);
                }
                Ok(())
            }
            Err(error) => {
                // Logged here, because after a commit nobody waits for the outcome.
                log::warn!("{}: could not connect with the new options: {error}", self.name);
                if self.lifecycle.reload_failed(attempt.number)
                    && self.lifecycle.is_down()
                    && self.settings != attempt.settings
                {
                    self.lifecycle.reload_counts(attempt.number);
                    self.settings = attempt.settings;
                    self.attempt_anew(ctx);
                } else if self.lifecycle.is_down() && self.retry.is_none() {
                    self.attempt(ctx);
                }
                Err(error)
            }
        }
    }

    /// Connects with new settings. The old client serves until the new one is connected, and stays if that fails; unless
    /// the server takes no more connections, and the old one has to make room.
    fn connect_anew(
        &mut self,
        settings: Settings,
        limit: Duration,
        ctx: &Context<Self>,
    ) -> ResponseActFuture<Self, Result<()>> {
        let dial = self.dial(settings, limit, false, ctx).into_actor(self);
        Box::pin(dial.then(move |attempt, actor, ctx: &mut Context<Self>| {
            let needs_room = matches!(&attempt.client, Err(error) if error.kind == Kind::TooManyConnections)
                && actor.hosts_are_those_of(&attempt.settings);
            let former = actor.lifecycle.client().cloned().filter(|_| needs_room);
            let Some(former) = former else {
                return Box::pin(fut::ready(actor.reloaded(attempt, ctx)))
                    as ResponseActFuture<Self, Result<()>>;
            };
            log::info!(
                "{}: the NATS server takes no more connections, so the former one ends first",
                actor.name
            );
            let (senders, generation) = (actor.senders.clone(), actor.lifecycle.generation());
            let retired = async move {
                retire(&former, &senders, FLUSH_LIMIT).await;
                former.close();
            };
            let again =
                retired.into_actor(actor).then(move |(), actor, ctx| {
                    if generation != actor.lifecycle.generation() {
                        // Another connection has come meanwhile, which is not to end.
                        return Box::pin(fut::ready(actor.reloaded(attempt, ctx)))
                            as ResponseActFuture<Self, Result<()>>;
                    }
                    // The former settings must not take the room.
                    actor.settings = attempt.settings.clone();
                    if actor.lifecycle.report_lost(generation) {
                        actor.lost("it has made room for a new connection", ctx);
                    }
                    if let Some(retry) = actor.retry.take() {
                        ctx.cancel_future(retry);
                    }
                    let dial = actor.dial(attempt.settings, limit, true, ctx);
                    Box::pin(dial.into_actor(actor).map(
                        |attempt, actor: &mut Self, ctx: &mut Context<Self>| actor.reloaded(attempt, ctx),
                    ))
                });
            Box::pin(again)
        }))
    }

    /// Whether the current client is connected to one of the hosts of these settings.
    fn hosts_are_those_of(&self, settings: &Settings) -> bool {
        let current = self.current.as_ref();
        current.is_some_and(|current| {
            self.candidates(settings)
                .iter()
                .any(|other| other.host == current.host)
        })
    }

    /// A forced reload: one at a time, and no more often than [`FORCED_INTERVAL`]; those who ask meanwhile share the next
    /// one.
    fn force(&mut self, limit: Duration) -> ResponseActFuture<Self, Result<()>> {
        if let Some(waiting) = &mut self.forcing {
            let (answer, answered) = oneshot::channel();
            waiting.push(answer);
            let shared = async move { answered.await.unwrap_or_else(|_| Err(not_connected())) };
            return Box::pin(shared.into_actor(self));
        }
        self.forcing = Some(Vec::new());
        let next = self.forced_at.map(|before| before + FORCED_INTERVAL);
        let pause = async move {
            if let Some(next) = next {
                sleep_until(next).await;
            }
        };
        let reload = pause
            .into_actor(self)
            .then(move |(), actor: &mut Self, ctx: &mut Context<Self>| {
                actor.forced_at = Some(Instant::now());
                // Who asks from now on may have changed a file that is read just now, and gets a reload of his own.
                let waiting = actor.forcing.take().unwrap_or_default();
                let reload = actor.connect_anew(actor.settings.clone(), limit, ctx);
                reload.map(|outcome, _, _| {
                    for one in waiting {
                        // Whoever waited may have given up.
                        let _ = one.send(outcome.clone());
                    }
                    outcome
                })
            });
        Box::pin(reload)
    }
}

impl Handler<ReloadConnection> for Connection {
    type Result = ResponseActFuture<Self, Result<()>>;

    fn handle(&mut self, reload: ReloadConnection, ctx: &mut Self::Context) -> Self::Result {
        let ReloadConnection {
            settings,
            force,
            limit,
        } = reload;
        let limit = limit.min(CONNECT_LIMIT);
        if self.settings.needs_reconnect(&settings) {
            return self.connect_anew(settings, limit, ctx);
        }
        // A reload that is under way is overtaken by other settings alone.
        if !force || self.settings != settings {
            self.take_over(settings);
        }
        if force {
            return self.force(limit);
        }
        Box::pin(fut::ready(Ok(())))
    }
}

impl Handler<ReplaceSettings> for Connection {
    type Result = ();

    fn handle(&mut self, ReplaceSettings(settings): ReplaceSettings, ctx: &mut Self::Context) {
        if self.settings != settings && self.lifecycle.is_down() && !self.status.borrow().was_up {
            self.settings = settings;
            self.status
                .send_modify(|status| status.domain = self.settings.domain.clone());
            self.attempt_anew(ctx);
        }
    }
}

impl Handler<SettingsMatch> for Connection {
    type Result = bool;

    fn handle(&mut self, SettingsMatch(settings): SettingsMatch, _: &mut Self::Context) -> Self::Result {
        self.settings == settings
    }
}
