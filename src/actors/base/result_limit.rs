//! Rows of an answer to a session, which are bounded. In the actor thread.

use futures::StreamExt;

use crate::error::{Error, Kind, Result};
use crate::row::Row;

/// Most bytes of rows in one answer.
const MAX_ROWS: usize = 48 * 1024 * 1024;

/// Rows up to a limit.
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

/// What a row with so many bytes of text takes.
pub fn row_size(text: usize) -> usize {
    text + 16
}

/// An error if rows of so many bytes are too many for one answer.
pub fn check_size(rows: usize) -> Result<()> {
    if rows > MAX_ROWS {
        let detail = format!("The limit is {MAX_ROWS} bytes.");
        return Err(Error::new(Kind::PayloadTooLarge, "the list is too long").detail(detail));
    }
    Ok(())
}
