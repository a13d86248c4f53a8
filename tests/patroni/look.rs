//! How a subscription or responder looks in the views.

use super::LONG;
use crate::support::*;

/// State and problem of the handler of this subject; an error if it cannot be read.
pub async fn state(session: &Session, subject: &str) -> Result<(String, Option<String>), String> {
    let sql = "SELECT state, problem FROM (TABLE litmus_pgnats.subscriptions UNION ALL TABLE litmus_pgnats.responders) h
               WHERE subject = $1";
    let row = session.query_one(sql, &[&subject]).await;
    let row = row.map_err(|e| format!("{e:?}"))?;
    Ok((row.get(0), row.get(1)))
}

/// Waits until the handler of this subject is in this state; its problem.
#[track_caller]
pub fn until_state<'a>(
    session: &'a Session,
    subject: &'a str,
    expected: &'a str,
) -> impl Future<Output = Option<String>> + 'a {
    eventually(LONG, async move || {
        let (state, problem) = state(session, subject).await?;
        if state == expected {
            Ok(problem)
        } else {
            Err(format!("{state}: {problem:?}"))
        }
    })
}
