//! Messages that a connection holds while NATS is away, or while a new client takes the place of an old one. A plain
//! struct of the connection actor; in the actor thread.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::nats::message::Outbound;

/// The held messages, in order.
#[derive(Default)]
pub struct HeldMessages {
    messages: VecDeque<Outbound>,
    /// Bytes of the payloads.
    bytes: usize,
}

impl HeldMessages {
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Bytes of the payloads.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Holds messages, up to `capacity` in all; returns those for which there is no room.
    pub fn hold(&mut self, mut batch: Vec<Outbound>, capacity: usize) -> Vec<Outbound> {
        let room = capacity.saturating_sub(self.messages.len());
        let rest = batch.split_off(room.min(batch.len()));
        for message in batch {
            self.bytes += message.payload.len();
            // The payload is copied, because it is a slice of all that was read from the socket with it.
            let payload = Bytes::copy_from_slice(&message.payload);
            self.messages.push_back(Outbound { payload, ..message });
        }
        rest
    }

    /// Takes all messages.
    pub fn take(&mut self) -> Vec<Outbound> {
        self.bytes = 0;
        std::mem::take(&mut self.messages).into()
    }

    /// Puts messages that a client has not taken back at the front, even beyond the capacity, so that no held message
    /// is lost.
    pub fn give_back(&mut self, rest: Vec<Outbound>) {
        for message in rest.into_iter().rev() {
            self.bytes += message.payload.len();
            self.messages.push_front(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(payloads: &[&'static str]) -> Vec<Outbound> {
        let message = |payload: &&'static str| Outbound {
            subject: "a".into(),
            payload: (*payload).into(),
            ..Outbound::default()
        };
        payloads.iter().map(message).collect()
    }

    fn payloads(messages: &[Outbound]) -> Vec<&[u8]> {
        messages.iter().map(|message| &message.payload[..]).collect()
    }

    #[test]
    fn order_is_kept_and_what_has_no_room_comes_back() {
        let mut held = HeldMessages::default();
        let rest = held.hold(messages(&["one", "two", "three"]), 2);
        assert_eq!(payloads(&rest), [b"three"]);
        assert_eq!((held.len(), held.bytes(), held.is_empty()), (2, 6, false));
        let taken = held.take();
        assert!(held.is_empty() && held.bytes() == 0);
        held.hold(messages(&["later"]), 2);
        held.give_back(taken);
        assert_eq!((held.len(), held.bytes()), (3, 11), "beyond the capacity");
        assert_eq!(payloads(&held.take()), [&b"one"[..], b"two", b"later"]);
        assert_eq!(payloads(&held.hold(messages(&["x"]), 0)), [b"x"]);
    }
}
