//! Which calls a session makes, and how often.

use super::caller::{Caller, Failure};

/// A part of the extension's surface.
#[derive(Clone, Copy)]
pub enum Call {
    Publish,
    PublishOnCommit,
    Request,
    PublishStream,
    Outbox,
    Put,
    Create,
    Update,
    Delete,
    Get,
    Entry,
    ListKeys,
    Bucket,
    PutFile,
    GetFile,
    DeleteFile,
    ListFiles,
    ServerInfo,
    Reload,
    ReloadForce,
    Version,
    View,
    Subscription,
    DurableSubscription,
    Responder,
    DeadLetters,
    BadInput,
}

const MIX: &[(u64, Call)] = &[
    (60, Call::Publish),
    (30, Call::PublishOnCommit),
    (40, Call::Request),
    (40, Call::PublishStream),
    (60, Call::Outbox),
    (40, Call::Put),
    (10, Call::Create),
    (20, Call::Update),
    (10, Call::Delete),
    (30, Call::Get),
    (20, Call::Entry),
    (4, Call::ListKeys),
    (4, Call::Bucket),
    (10, Call::PutFile),
    (10, Call::GetFile),
    (3, Call::DeleteFile),
    (4, Call::ListFiles),
    (20, Call::ServerInfo),
    (4, Call::Reload),
    (1, Call::ReloadForce),
    (10, Call::Version),
    (20, Call::View),
    (3, Call::Subscription),
    (1, Call::DurableSubscription),
    (2, Call::Responder),
    (3, Call::DeadLetters),
    (30, Call::BadInput),
];

impl Call {
    pub fn name(self) -> &'static str {
        match self {
            Call::Publish => "publish",
            Call::PublishOnCommit => "publish on commit",
            Call::Request => "request",
            Call::PublishStream => "publish stream",
            Call::Outbox => "outbox",
            Call::Put => "kv put",
            Call::Create => "kv create",
            Call::Update => "kv update",
            Call::Delete => "kv delete, purge",
            Call::Get => "kv get",
            Call::Entry => "kv entry, history",
            Call::ListKeys => "kv list",
            Call::Bucket => "create, delete bucket",
            Call::PutFile => "file put",
            Call::GetFile => "file get",
            Call::DeleteFile => "file delete",
            Call::ListFiles => "file info, list",
            Call::ServerInfo => "server info",
            Call::Reload => "reload",
            Call::ReloadForce => "reload force",
            Call::Version => "version",
            Call::View => "views",
            Call::Subscription => "subscribe, unsubscribe",
            Call::DurableSubscription => "durable, undo",
            Call::Responder => "responder, undo",
            Call::DeadLetters => "dead letters",
            Call::BadInput => "bad input",
        }
    }
}

impl Caller {
    pub fn choose(&mut self) -> Call {
        self.random.weighted(MIX)
    }

    pub async fn call(&mut self, call: Call) -> Result<(), Failure> {
        match call {
            Call::Publish => self.publish().await,
            Call::PublishOnCommit => self.publish_on_commit().await,
            Call::Request => self.request().await,
            Call::PublishStream => self.publish_stream().await,
            Call::Outbox => self.outbox().await,
            Call::Put => self.put().await,
            Call::Create => self.create().await,
            Call::Update => self.update().await,
            Call::Delete => self.delete().await,
            Call::Get => self.get().await,
            Call::Entry => self.entry().await,
            Call::ListKeys => self.list_keys().await,
            Call::Bucket => self.bucket().await,
            Call::PutFile => self.put_file().await,
            Call::GetFile => self.get_file().await,
            Call::DeleteFile => self.delete_file().await,
            Call::ListFiles => self.list_files().await,
            Call::ServerInfo => self.server_info().await,
            Call::Reload => self.reload("").await,
            Call::ReloadForce => self.reload("_force").await,
            Call::Version => self.version().await,
            Call::View => self.view().await,
            Call::Subscription => self.subscription().await,
            Call::DurableSubscription => self.durable_subscription().await,
            Call::Responder => self.responder().await,
            Call::DeadLetters => self.dead_letters().await,
            Call::BadInput => self.bad_input().await,
        }
    }
}
