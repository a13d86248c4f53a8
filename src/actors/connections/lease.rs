//! Leases of connections: each user of a connection holds a lease, whose end tells the supervisor. In the actor thread.

use actix::prelude::*;

use crate::channel::target::Key;

/// Who uses a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionUser {
    /// A session. The view `litmus_pgnats.connections` counts sessions.
    Session,
    /// A handler, an outbox partition or the role notifier.
    Worker,
}

/// The lease of a user has ended: the user no longer uses the connection.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ConnectionReleased {
    pub key: Key,
    /// The number that tells the connection from earlier and later ones with the same key.
    pub connection: u64,
    pub user: ConnectionUser,
}

/// A user's lease of a connection, which counts as used until the lease is dropped.
pub struct Lease {
    supervisor: Recipient<ConnectionReleased>,
    key: Key,
    connection: u64,
    user: ConnectionUser,
}

impl Lease {
    /// A lease of the connection with this number.
    pub(super) fn new(
        supervisor: Recipient<ConnectionReleased>,
        key: Key,
        connection: u64,
        user: ConnectionUser,
    ) -> Lease {
        Lease {
            supervisor,
            key,
            connection,
            user,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.supervisor.do_send(ConnectionReleased {
            key: self.key,
            connection: self.connection,
            user: self.user,
        });
    }
}
