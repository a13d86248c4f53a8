//! The runtime's end of the control channel of a worker, an executor or an outbox relay: orders out, outcomes in. A
//! task of the actor thread.

use actix::dev::ToEnvelope;
use actix::{Actor, Addr, Handler};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::messages::{WorkerGone, WorkerJoined, WorkerOrder, WorkerSaid};
use crate::channel::message::{Reply, Request};
use crate::channel::server::{FrameReader, FrameWriter};
use crate::channel::worker_id::WorkerId;

/// Orders that may wait. A worker has one for work and one to leave at most.
const ORDERS: usize = 4;

/// Serves a worker that has greeted, until the worker ends or the runtime does. `actor` is the one that started the
/// worker.
pub async fn serve<A>(
    worker: WorkerId,
    pid: u32,
    mut reader: FrameReader,
    mut writer: FrameWriter,
    actor: Addr<A>,
    finish: CancellationToken,
) -> std::io::Result<()>
where
    A: Actor + Handler<WorkerJoined> + Handler<WorkerSaid> + Handler<WorkerGone>,
    A::Context: ToEnvelope<A, WorkerJoined> + ToEnvelope<A, WorkerSaid> + ToEnvelope<A, WorkerGone>,
{
    let (orders, mut incoming) = mpsc::channel::<WorkerOrder>(ORDERS);
    if !matches!(actor.send(WorkerJoined { worker, pid, orders }).await, Ok(true)) {
        return Ok(());
    }
    // A worker that has ended takes no orders, but what it has said before is still to be read: that it has committed,
    // say.
    let mut takes_orders = true;
    let outcome = loop {
        let mut batch = Vec::new();
        tokio::select! {
            more = reader.next(&mut batch) => match more {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            },
            Some((told, body)) = incoming.recv(), if takes_orders => {
                takes_orders = writer.send(0, 0, &Reply::Worker(told), &body).await.is_ok();
            }
            () = finish.cancelled() => break Ok(()),
        }
        for frame in batch {
            if let Request::Worker(said) = frame.message {
                actor.do_send(WorkerSaid(worker, said, Bytes::clone(&frame.body)));
            }
        }
    };
    actor.do_send(WorkerGone(worker));
    outcome
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use actix::{Context, Message};

    use super::*;
    use crate::channel::counts::ChannelCounts;
    use crate::channel::frame::encode;
    use crate::channel::server::split;
    use crate::channel::work::{FromWorker, ToWorker};

    /// Takes the place of the dispatcher: gives an order that the worker no longer takes, and counts what the worker
    /// has said.
    struct Listener {
        heard: u32,
        told: mpsc::Sender<u32>,
    }

    impl Actor for Listener {
        type Context = Context<Self>;
    }

    impl Handler<WorkerJoined> for Listener {
        type Result = bool;

        fn handle(&mut self, joined: WorkerJoined, _: &mut Self::Context) -> bool {
            let order = (ToWorker::End, Bytes::new());
            joined.orders.try_send(order).is_ok()
        }
    }

    impl Handler<WorkerSaid> for Listener {
        type Result = <WorkerSaid as Message>::Result;

        fn handle(&mut self, WorkerSaid(_, said, _): WorkerSaid, _: &mut Self::Context) {
            self.heard += u32::from(matches!(said, FromWorker::Committing { .. }));
        }
    }

    impl Handler<WorkerGone> for Listener {
        type Result = <WorkerGone as Message>::Result;

        fn handle(&mut self, _: WorkerGone, _: &mut Self::Context) {
            self.told.try_send(self.heard).expect("somebody who asks");
        }
    }

    #[test]
    fn what_an_executor_has_said_is_heard_though_it_has_ended() {
        actix::System::new().block_on(async {
            // Repeated, because chance decides whether reading or writing comes first.
            for _ in 0..50 {
                let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
                let mut frames = Vec::new();
                for messages in [1, 2] {
                    let said = Request::Worker(FromWorker::Committing { messages });
                    encode(&mut frames, 0, 0, &said, b"").expect("a frame");
                }
                theirs.write_all(&frames).expect("write");
                drop(theirs);
                ours.set_nonblocking(true).expect("nonblocking");
                let ours = tokio::net::UnixStream::from_std(ours).expect("a stream");
                let (reader, writer) = split(ours, &Arc::new(ChannelCounts::default()));
                let (told, mut wait) = mpsc::channel(1);
                let listener = Listener { heard: 0, told }.start();
                let finish = CancellationToken::new();
                let _ = serve(WorkerId::executor(1), 1, reader, writer, listener, finish).await;
                assert_eq!(wait.recv().await, Some(2));
            }
        });
    }
}
