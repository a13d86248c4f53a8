//! Turns the runtime worker's replies into results of SQL functions. Runs in backends and executors, on the main
//! thread.

use super::session::unexpected_reply;
use crate::channel::frame::Frame;
use crate::channel::message::Reply;
use crate::error::Result;
use crate::pg::fmgr::Value;

/// A stream sequence or a revision, as bigint.
pub fn number(reply: Frame<Reply>) -> Result<Value> {
    match reply.message {
        Reply::Number(number) => Ok(Value::Int8(i64::try_from(number).unwrap_or(i64::MAX))),
        _ => Err(unexpected_reply()),
    }
}

/// The reply to a call that has no result.
pub fn done(reply: Frame<Reply>) -> Result<Value> {
    match reply.message {
        Reply::Done => Ok(Value::Void),
        _ => Err(unexpected_reply()),
    }
}

/// The rows of a function that returns a set.
pub fn rows(reply: Frame<Reply>) -> Result<Value> {
    match reply.message {
        Reply::Rows(rows) => Ok(Value::Rows(rows)),
        _ => Err(unexpected_reply()),
    }
}
