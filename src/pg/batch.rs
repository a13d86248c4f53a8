//! Calls users' functions with many messages at once. Runs in executors, and in backends that redrive a dead letter; on
//! the main thread, in a transaction.

use pgrx::pg_sys;

use super::encoding::{to_server, utf8_to_server};
use super::fmgr::{EPOCH_US, jsonb, varlena};
use super::function::Function;
use super::{callback, own_objects};

/// A row of type `litmus_pgnats.message`; text is UTF-8.
pub struct Element<'a> {
    pub subject: &'a str,
    pub payload: &'a [u8],
    pub reply: Option<&'a str>,
    /// A JSON object; `None` if the message has no headers.
    pub headers: Option<String>,
    /// Sequence in the stream and count of deliveries; `None` for a message that comes from no stream.
    pub position: Option<(u64, u32)>,
    /// Microseconds since 1970.
    pub time_us: i64,
}

/// Calls a function with messages. Raises the function's errors. Does nothing if the type `litmus_pgnats.message` does
/// not exist.
pub fn call(function: &Function, messages: &[Element<'_>]) {
    let Some(message) = own_objects::message_type() else {
        return;
    };
    // SAFETY: the rows are formed with the type's own descriptor, and the array consists of these rows.
    let array = || unsafe {
        let descriptor = pg_sys::lookup_rowtype_tupdesc_copy(message.row.into(), -1);
        let mut rows: Vec<pg_sys::Datum> = messages.iter().map(|message| row(descriptor, message)).collect();
        let count = i32::try_from(rows.len()).unwrap_or(0);
        let array = pg_sys::construct_array(
            rows.as_mut_ptr(),
            count,
            message.row.into(),
            -1,
            false,
            pg_sys::TYPALIGN_DOUBLE as std::ffi::c_char,
        );
        vec![Some(pg_sys::Datum::from(array))]
    };
    callback::execute(function, array, || ());
}

/// # Safety
/// `descriptor` is the descriptor of the type `litmus_pgnats.message`.
unsafe fn row(descriptor: pg_sys::TupleDesc, message: &Element<'_>) -> pg_sys::Datum {
    // A subject may have any bytes, also those that text of PostgreSQL cannot have.
    let text = |text: &str| varlena(&utf8_to_server(text.as_bytes()));
    let headers = message.headers.as_ref();
    let mut values = [
        Some(text(message.subject)),
        Some(varlena(message.payload)),
        message.reply.map(text),
        headers.and_then(|headers| jsonb(&to_server(headers))),
        message
            .position
            .map(|(sequence, _)| pg_sys::Datum::from(sequence)),
        message
            .position
            .map(|(_, deliveries)| pg_sys::Datum::from(deliveries)),
        Some(pg_sys::Datum::from(message.time_us - EPOCH_US)),
    ];
    let mut nulls = values.map(|value| value.is_none());
    let mut values = values
        .each_mut()
        .map(|value| value.unwrap_or(pg_sys::Datum::from(0)));
    // SAFETY: as the caller promises; the type has as many columns as the arrays have elements, and of the elements'
    // types.
    unsafe {
        let tuple = pg_sys::heap_form_tuple(descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
        pg_sys::HeapTupleHeaderGetDatum((*tuple).t_data)
    }
}
