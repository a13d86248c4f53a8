//! How far a durable subscription has got, in each incarnation of its stream. Pure; executors read and write it, and the
//! actor thread finds out which incarnation a stream is.
//!
//! A name may mean one stream after another: the stream was made anew, its store was put back, or another NATS server
//! answers. Each history of messages that was met under the name is an incarnation, with a token of the extension's own
//! and a position of its own.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::marks::Marks;

/// An incarnation of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incarnation {
    /// Identifies the incarnation; empty as long as none is known.
    pub token: String,
    /// When the stream was created, in JetStream's own text. Not an identity: a store that is put back keeps the time,
    /// and old NATS servers change it.
    pub created: String,
    /// The incarnation that this one branches off from; `None` for a stream that has nothing of a former one.
    pub branch: Option<Branch>,
}

/// Where an incarnation branches off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Branch {
    /// Token of the other incarnation.
    pub of: String,
    /// The last sequence that both have in common.
    pub up_to: u64,
}

/// How far a subscription has got in one incarnation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub token: String,
    /// When the stream was created, as [`Incarnation::created`].
    pub created: String,
    /// All messages up to this sequence are done with or do not concern the subscription; `None` if that is not known.
    pub ack_floor: Option<u64>,
    pub marks: Marks,
    /// Where the incarnation branches off, as long as the database has no position for it; `None` once it has.
    pub branch: Option<Branch>,
}

/// How far a subscription has got.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamProgress {
    /// The ack floor as long as no message was applied; `None` if a new consumer decides where to begin.
    pub first_floor: Option<u64>,
    /// Somebody has said where to go on, and no message was applied since: a consumer that exists is elsewhere.
    pub is_sought: bool,
    /// A position for each incarnation, the one that was in use last first.
    pub positions: Vec<Position>,
}

impl StreamProgress {
    /// The position in an incarnation; `None` if nothing was applied there.
    pub fn position(&self, token: &str) -> Option<&Position> {
        self.positions.iter().find(|position| position.token == token)
    }

    /// Like [`StreamProgress::position`], to be changed.
    pub fn position_mut(&mut self, token: &str) -> Option<&mut Position> {
        self.positions.iter_mut().find(|position| position.token == token)
    }

    /// Changes the position in an incarnation, which is made if there is none: a branch has the marks of what it branches
    /// off from.
    pub fn change(&mut self, incarnation: &Incarnation, change: impl FnOnce(&mut Position)) {
        if let Some(position) = self.position_mut(&incarnation.token) {
            return change(position);
        }
        let branch = incarnation.branch.as_ref();
        let marks = branch.and_then(|branch| Some(self.position(&branch.of)?.marks.up_to(branch.up_to)));
        let mut position = Position {
            token: incarnation.token.clone(),
            created: incarnation.created.clone(),
            ack_floor: self.ack_floor(incarnation),
            marks: marks.unwrap_or_default(),
            branch: incarnation.branch.clone(),
        };
        change(&mut position);
        self.positions.push(position);
    }

    /// An incarnation that branches off from another one. Where the database has no position for that one yet, this is
    /// what that one branches off from in turn.
    pub fn branch(&self, branch: Branch) -> Branch {
        let unwritten = self
            .position(&branch.of)
            .and_then(|position| position.branch.clone());
        match unwritten {
            Some(before) => Branch {
                up_to: before.up_to.min(branch.up_to),
                ..before
            },
            None => branch,
        }
    }

    /// The incarnation with this token is in use now.
    pub fn use_now(&mut self, token: &str) {
        self.positions.sort_by_key(|position| position.token != token);
    }

    /// The ack floor in an incarnation, which may be new.
    pub fn ack_floor(&self, incarnation: &Incarnation) -> Option<u64> {
        if let Some(position) = self.position(&incarnation.token) {
            return position.ack_floor;
        }
        match &incarnation.branch {
            Some(branch) => {
                let before = self.position(&branch.of).and_then(|position| position.ack_floor);
                Some(before.unwrap_or(0).min(branch.up_to))
            }
            None if self.positions.is_empty() => self.first_floor,
            // Another stream has taken the name, and all its messages are new.
            None => Some(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incarnation(token: &str, branch: Option<(&str, u64)>) -> Incarnation {
        Incarnation {
            token: token.into(),
            created: "now".into(),
            branch: branch.map(|(of, up_to)| Branch { of: of.into(), up_to }),
        }
    }

    #[test]
    fn the_ack_floor_is_that_of_the_incarnation() {
        let mut progress = StreamProgress {
            first_floor: Some(6),
            ..StreamProgress::default()
        };
        assert_eq!(progress.ack_floor(&incarnation("a", None)), Some(6));
        progress.positions.push(Position {
            token: "a".into(),
            ack_floor: Some(40),
            ..Position::default()
        });
        assert_eq!(progress.ack_floor(&incarnation("a", None)), Some(40));
        assert_eq!(progress.ack_floor(&incarnation("b", None)), Some(0), "all is new");
        let branch = |up_to| progress.ack_floor(&incarnation("b", Some(("a", up_to))));
        assert_eq!([branch(30), branch(90)], [Some(30), Some(40)]);
    }

    #[test]
    fn a_branch_that_nothing_was_applied_in_is_looked_through() {
        let mut progress = StreamProgress::default();
        progress.change(&incarnation("a", None), |position| position.ack_floor = Some(40));
        progress.change(&incarnation("b", Some(("a", 30))), |_| {});
        let of = |of: &str, up_to| Branch { of: of.into(), up_to };
        assert_eq!(progress.branch(of("b", 20)), of("a", 20));
        assert_eq!(progress.branch(of("b", 35)), of("a", 30));
        progress.change(&incarnation("b", None), |position| position.branch = None);
        assert_eq!(
            progress.branch(of("b", 35)),
            of("b", 35),
            "it has a position of its own"
        );
    }
}
