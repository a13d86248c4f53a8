//! Takes new settings for a connection: the old client serves until a client with the new settings is connected. A part
//! of the connection actor; in the actor thread.

use actix::prelude::*;

use super::{Attempt, Connection};
use crate::actors::connection::interface::{CONNECT_LIMIT, ReloadConnection, ReplaceSettings, SettingsMatch};
use crate::error::Result;
use crate::settings::Settings;

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
                }
                Err(error)
            }
        }
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
        if !force && !self.settings.needs_reconnect(&settings) {
            self.take_over(settings);
            return Box::pin(fut::ready(Ok(())));
        }
        // The old client serves until the new one is connected, and stays if that fails.
        let dial = self.dial(settings, limit.min(CONNECT_LIMIT), ctx);
        Box::pin(
            dial.into_actor(self)
                .map(|attempt, actor, ctx| actor.reloaded(attempt, ctx)),
        )
    }
}

impl Handler<ReplaceSettings> for Connection {
    type Result = ();

    fn handle(&mut self, ReplaceSettings(settings): ReplaceSettings, ctx: &mut Self::Context) {
        if self.settings != settings && !self.status.borrow().was_up {
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
