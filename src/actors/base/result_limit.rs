//! Bounds the rows of an answer to a session. In the actor thread.

use futures::StreamExt;

use crate::error::{Error, Kind, Result};
use crate::row::Row;

/// Most bytes of rows in one answer.
const MAX_ROWS: usize = 48 * 1024 * 1024;

/// Collects rows. Fails with `PayloadTooLarge` if they are too many for one answer, and with the first error among
/// them.
pub async fn collect(rows: impl futures::Stream<Item = Result<Row>>) -> Result<Vec<Row>> {
    let mut rows = std::pin::pin!(rows);
    let (mut all, mut size) = (Vec::new(), 0);
    while let Some(row) = rows.next().await {
        let row = row?;
        size += row_size(row.iter().flatten().map(String::len).sum());
        check_size(size)?;
        all.push(row);
    }
    Ok(all)
}

/// Bytes that a row with `text` bytes of text counts for.
pub fn row_size(text: usize) -> usize {
    text + 16
}

/// Fails with `PayloadTooLarge` if rows of `rows` bytes are too many for one answer.
pub fn check_size(rows: usize) -> Result<()> {
    if rows > MAX_ROWS {
        let detail = format!("The limit is {MAX_ROWS} bytes.");
        return Err(Error::new(Kind::PayloadTooLarge, "the list is too long").detail(detail));
    }
    Ok(())
}
