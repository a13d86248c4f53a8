//! The positions of a durable subscription in incarnations of its stream that are not the present one: kept, so that the
//! subscription goes on where it was when a former stream is back. Runs in executors, on the main thread, in the
//! transaction that applies the first message of another incarnation.

use crate::channel::marks::Marks;
use crate::channel::progress::Incarnation;
use crate::pg::query::Argument::{Int8, OptionalText, Text};
use crate::pg::query::query;

/// So many former incarnations are remembered for a subscription.
const KEPT: i64 = 16;

/// Has the locked row of the subscription `id` be about another incarnation. `former` is the token of the one that the
/// row was about; `None` if no message was applied yet.
pub fn switch(id: &str, former: Option<&str>, incarnation: &Incarnation) {
    if former.is_none() {
        // What was said when the subscription was made holds for the first stream.
        query(
            "UPDATE litmus_pgnats.handler_stream SET incarnation = $2, sought = false WHERE id = $1::uuid",
            &[Text(id), Text(&incarnation.token)],
        );
        return;
    }
    keep(id);
    let [applied, marks] = position(id, incarnation).unwrap_or_else(|| ["{}".into(), "{}".into()]);
    query(
        "UPDATE litmus_pgnats.handler_stream SET incarnation = $2, applied = $3::int8multirange, marks = $4::bigint[] \
         WHERE id = $1::uuid",
        &[Text(id), Text(&incarnation.token), Text(&applied), Text(&marks)],
    );
    query(
        "DELETE FROM litmus_pgnats.stream_position p WHERE p.id = $1::uuid AND (p.incarnation = $2 OR p.incarnation IN ( \
         SELECT o.incarnation FROM litmus_pgnats.stream_position o WHERE o.id = $1::uuid ORDER BY o.left_at DESC OFFSET $3))",
        &[Text(id), Text(&incarnation.token), Int8(KEPT)],
    );
}

/// Copies the row's position to the others.
fn keep(id: &str) {
    query(
        "INSERT INTO litmus_pgnats.stream_position (id, incarnation, stream_created, applied, marks, left_at) \
         SELECT id, incarnation, stream_created, applied, marks, clock_timestamp() FROM litmus_pgnats.handler_stream \
         WHERE id = $1::uuid \
         ON CONFLICT (id, incarnation) DO UPDATE SET stream_created = excluded.stream_created, \
         applied = excluded.applied, marks = excluded.marks, left_at = excluded.left_at",
        &[Text(id)],
    );
}

/// What is applied in an incarnation, and its marks; `None` if it is new and branches off from none that is known.
fn position(id: &str, incarnation: &Incarnation) -> Option<[String; 2]> {
    let branch = incarnation.branch.as_ref();
    let up_to = branch.map(|branch| i64::try_from(branch.up_to).unwrap_or(i64::MAX));
    let rows = query(
        "SELECT incarnation = $2, applied::text, (applied * int8multirange(int8range(0, $4, '[]')))::text, marks::text \
         FROM litmus_pgnats.stream_position WHERE id = $1::uuid AND incarnation IN ($2, $3) \
         ORDER BY incarnation = $2 DESC LIMIT 1",
        &[
            Text(id),
            Text(&incarnation.token),
            OptionalText(branch.map(|branch| branch.of.as_str())),
            Int8(up_to.unwrap_or(i64::MAX - 1)),
        ],
    );
    let row = <[Option<String>; 4]>::try_from(rows.into_iter().next()?).ok()?;
    let [is_known, applied, common, marks] = row;
    if is_known.as_deref() == Some("t") {
        return Some([applied?, marks?]);
    }
    let marks = Marks::parse(&marks?).up_to(branch?.up_to);
    Some([common?, marks.array()])
}
