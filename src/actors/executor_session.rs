//! A worker's end of the control channel, an executor's or a courier's: orders out, outcomes in. A task of the actor
//! thread.

use actix::dev::ToEnvelope;
use actix::{Actor, Addr, Handler};
use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::dispatcher::{Gone, Heard, Joined};
use super::task::Order;
use crate::channel::message::{Reply, Request};
use crate::channel::server::{FrameReader, FrameWriter};

/// Orders that may wait: one for work, one to leave.
const ORDERS: usize = 4;

/// Serves a worker that has greeted, until its end or the runtime's, for the actor that has started it.
pub async fn serve<A>(
    ticket: u32,
    pid: u32,
    mut reader: FrameReader,
    mut writer: FrameWriter,
    dispatcher: Addr<A>,
    mut finish: watch::Receiver<bool>,
) -> std::io::Result<()>
where
    A: Actor + Handler<Joined> + Handler<Heard> + Handler<Gone>,
    A::Context: ToEnvelope<A, Joined> + ToEnvelope<A, Heard> + ToEnvelope<A, Gone>,
{
    let (orders, mut incoming) = mpsc::channel::<Order>(ORDERS);
    if !matches!(dispatcher.send(Joined { ticket, pid, orders }).await, Ok(true)) {
        return Ok(());
    }
    let outcome = loop {
        let mut batch = Vec::new();
        tokio::select! {
            more = reader.next(&mut batch) => match more {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            },
            Some((told, body)) = incoming.recv() => {
                if let Err(error) = writer.send(0, 0, &Reply::Executor(told), &body).await {
                    break Err(error);
                }
            }
            _ = finish.wait_for(|finish| *finish) => break Ok(()),
        }
        for frame in batch {
            if let Request::Executor(said) = frame.message {
                dispatcher.do_send(Heard(ticket, said, Bytes::clone(&frame.body)));
            }
        }
    };
    dispatcher.do_send(Gone(ticket));
    outcome
}
