//! Arguments and results of SQL functions. Runs where SQL runs, on the main thread.

use std::borrow::Cow;
use std::ffi::{CStr, CString, c_char};
use std::marker::PhantomData;

use pgrx::{FromDatum, pg_sys};

use super::encoding::{c_string, from_server, to_server};
use super::report::guarded;
use crate::error::{Error, Kind, Result};
use crate::row::Row;

/// Microseconds from 1970 to 2000, when PostgreSQL's timestamps begin.
pub const EPOCH_US: i64 = 946_684_800_000_000;

/// Version-1 calling convention; every function of the library uses it.
pub static API_V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };

/// Defines the C entry point `$symbol` of an SQL function whose body is `$body: fn(&Call) -> Result<Value>`.
macro_rules! sql_function {
    ($symbol:ident, $body:expr) => {
        const _: () = {
            #[unsafe(export_name = concat!("pg_finfo_", stringify!($symbol)))]
            extern "C" fn finfo() -> &'static ::pgrx::pg_sys::Pg_finfo_record {
                &$crate::pg::fmgr::API_V1
            }

            #[unsafe(export_name = stringify!($symbol))]
            unsafe extern "C-unwind" fn entry(
                fcinfo: ::pgrx::pg_sys::FunctionCallInfo,
            ) -> ::pgrx::pg_sys::Datum {
                // SAFETY: PostgreSQL's function manager calls this with the call's valid argument block; this frame
                // has nothing to drop.
                unsafe { $crate::pg::fmgr::run(fcinfo, $body) }
            }
        };
    };
}
pub(crate) use sql_function;

/// Runs a function's body; returns its value as a datum, or raises its error as one of PostgreSQL's.
///
/// # Safety
/// `fcinfo` is the valid argument block of the running call; the caller has nothing to drop.
pub unsafe fn run(fcinfo: pg_sys::FunctionCallInfo, body: fn(&Call<'_>) -> Result<Value>) -> pg_sys::Datum {
    // SAFETY: as the caller promises.
    unsafe {
        guarded(|| {
            let call = Call::new(fcinfo);
            body(&call).map(|value| call.give(value))
        })
    }
}

/// The running call of an SQL function.
pub struct Call<'a> {
    fcinfo: pg_sys::FunctionCallInfo,
    lifetime: PhantomData<&'a ()>,
}

/// What an SQL function returns.
pub enum Value {
    Void,
    /// A value of type text or json, as UTF-8.
    Text(String),
    Bytes(bytes::Bytes),
    /// JSON text, returned as jsonb.
    Jsonb(String),
    Null,
    Int8(i64),
    /// A value of type bytea that was filled part by part.
    Built(BytesBuilder),
    /// All rows of a function that returns a set, each like that of `Value::Row`.
    Rows(Vec<Row>),
    /// One row of texts, each turned into its column's type by that type's input function.
    Row(Row),
}

impl<'a> Call<'a> {
    /// # Safety
    /// `fcinfo` is the argument block of the running call and outlives `'a`.
    pub unsafe fn new(fcinfo: pg_sys::FunctionCallInfo) -> Self {
        Call {
            fcinfo,
            lifetime: PhantomData,
        }
    }

    fn datum(&self, index: usize) -> Option<pg_sys::Datum> {
        // SAFETY: fcinfo is valid (see `new`), and only indexes below nargs are read.
        unsafe {
            let given = usize::try_from((*self.fcinfo).nargs).unwrap_or(0);
            if index >= given || pgrx::fcinfo::pg_arg_is_null(self.fcinfo, index) {
                return None;
            }
            Some(pgrx::fcinfo::pg_getarg_datum_raw(self.fcinfo, index))
        }
    }

    /// Argument `index` of type bytea or text, as bytes; `None` if it is NULL.
    pub fn bytes(&self, index: usize) -> Option<&'a [u8]> {
        let datum = self.datum(index)?;
        // SAFETY: the SQL declaration says that this argument is a varlena. The detoasted value lives in the
        // memory context of the call, which outlives 'a.
        unsafe {
            let varlena = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
            let length = pgrx::varsize_any_exhdr(varlena);
            Some(std::slice::from_raw_parts(
                pgrx::vardata_any(varlena).cast::<u8>(),
                length,
            ))
        }
    }

    /// Argument `index` of type text or json, as UTF-8; `None` if it is NULL.
    pub fn text(&self, index: usize) -> Result<Option<Cow<'a, str>>> {
        self.bytes(index).map(from_server).transpose()
    }

    /// Argument `index` of type jsonb in PostgreSQL's canonical text form; `None` if it is NULL.
    pub fn jsonb(&self, index: usize) -> Result<Option<Cow<'a, str>>> {
        let Some(datum) = self.datum(index) else {
            return Ok(None);
        };
        // SAFETY: the SQL declaration says that this argument is jsonb; jsonb_out returns a NUL-terminated string
        // in the memory context of the call.
        let text = unsafe {
            let out = pgrx::direct_function_call_as_datum(pg_sys::jsonb_out, &[Some(datum)]);
            out.map(|out| CStr::from_ptr(out.cast_mut_ptr::<c_char>()).to_bytes())
        };
        text.map(from_server).transpose()
    }

    /// Argument `index` of type integer; `None` if it is NULL.
    pub fn int4(&self, index: usize) -> Option<i32> {
        // An integer is in the low half of the datum.
        self.datum(index).map(|datum| datum.value() as i32)
    }

    /// Argument `index` of type bigint; `None` if it is NULL.
    pub fn int8(&self, index: usize) -> Option<i64> {
        self.datum(index).map(|datum| datum.value() as i64)
    }

    /// Argument `index` of type interval, in milliseconds (a month has 30 days); `None` if it is NULL.
    pub fn interval_ms(&self, index: usize) -> Option<i64> {
        self.interval_us(index).map(|us| us / 1000)
    }

    /// Argument `index` of type interval, in microseconds (a month has 30 days); `None` if it is NULL. An infinite
    /// interval is the largest or smallest number.
    pub fn interval_us(&self, index: usize) -> Option<i64> {
        const DAY_US: i64 = 24 * 60 * 60 * 1_000_000;
        // SAFETY: the SQL declaration says that this argument is an interval, which is passed by reference.
        let interval = unsafe { *self.datum(index)?.cast_mut_ptr::<pg_sys::Interval>() };
        let days = i64::from(interval.month) * 30 + i64::from(interval.day);
        Some(interval.time.saturating_add(days.saturating_mul(DAY_US)))
    }

    /// Argument `index` of type timestamptz, in microseconds since 1970; `None` if it is NULL. An infinite time is the
    /// largest or smallest number.
    pub fn timestamptz_us(&self, index: usize) -> Option<i64> {
        self.int8(index).map(|us| us.saturating_add(EPOCH_US))
    }

    /// Argument `index` of type oid; `None` if it is NULL.
    pub fn oid(&self, index: usize) -> Option<u32> {
        self.datum(index).map(|datum| datum.value() as u32)
    }

    /// Argument `index` of type boolean; `None` if it is NULL.
    pub fn boolean(&self, index: usize) -> Option<bool> {
        self.datum(index).map(|datum| datum.value() != 0)
    }

    /// Argument `index` of any type in its text form; `None` if it is NULL.
    pub fn any_as_text(&self, index: usize) -> Result<Option<String>> {
        let Some(datum) = self.datum(index) else {
            return Ok(None);
        };
        // SAFETY: fcinfo is valid (see `new`), and the datum is of the type that the call was parsed with, whose output
        // function returns a palloc'd string.
        let text = unsafe {
            let number = i32::try_from(index).unwrap_or(0);
            let oid = pg_sys::get_fn_expr_argtype((*self.fcinfo).flinfo, number);
            let (mut output, mut is_varlena) = (pg_sys::InvalidOid, false);
            pg_sys::getTypeOutputInfo(oid, &raw mut output, &raw mut is_varlena);
            CStr::from_ptr(pg_sys::OidOutputFunctionCall(output, datum)).to_bytes()
        };
        from_server(text).map(|text| Some(text.into_owned()))
    }

    /// The event that an event trigger's function is called for; `None` if the call is not by an event trigger.
    pub fn event(&self) -> Option<String> {
        // SAFETY: fcinfo is valid (see `new`); the context of a call by an event trigger is of the type its tag says.
        unsafe {
            let context = (*self.fcinfo).context;
            if context.is_null() || (*context).type_ != pg_sys::NodeTag::T_EventTriggerData {
                return None;
            }
            let data = context.cast::<pg_sys::EventTriggerData>();
            Some(CStr::from_ptr((*data).event).to_string_lossy().into_owned())
        }
    }

    /// The elements of argument `index` of type text[], as UTF-8; `None` if the argument is NULL. Fails if an element is
    /// NULL.
    pub fn text_array(&self, index: usize) -> Result<Option<Vec<String>>> {
        // SAFETY: the SQL declaration says that this argument is text[]; its elements are read as bytes, because
        // pgrx takes text for UTF-8.
        let array = self
            .datum(index)
            .and_then(|datum| unsafe { pgrx::Array::<&[u8]>::from_datum(datum, false) });
        let texts = array.map(|array| {
            let null = || Error::new(Kind::NullArgument, "array element must not be null").hint("");
            let elements = array.iter();
            elements
                .map(|bytes| from_server(bytes.ok_or_else(null)?).map(Cow::into_owned))
                .collect()
        });
        texts.transpose()
    }

    /// Turns the result into a datum.
    pub fn give(&self, value: Value) -> pg_sys::Datum {
        match value {
            Value::Void => pg_sys::Datum::from(0),
            Value::Text(text) => varlena(&to_server(&text)),
            Value::Bytes(bytes) => varlena(&bytes),
            Value::Jsonb(text) => jsonb(&to_server(&text)).unwrap_or_else(|| self.null()),
            Value::Null => self.null(),
            Value::Int8(number) => pg_sys::Datum::from(number),
            Value::Built(builder) => builder.datum,
            Value::Rows(rows) => self.rows(&rows),
            Value::Row(columns) => self.row(&columns),
        }
    }

    fn null(&self) -> pg_sys::Datum {
        // SAFETY: fcinfo is valid (see `new`).
        unsafe { pgrx::fcinfo::pg_return_null(self.fcinfo) }
    }

    fn row(&self, columns: &Row) -> pg_sys::Datum {
        // SAFETY: the function is declared to return a row, which the descriptor describes.
        unsafe {
            let mut descriptor = std::ptr::null_mut();
            pg_sys::get_call_result_type(self.fcinfo, std::ptr::null_mut(), &raw mut descriptor);
            match tuple(descriptor, columns) {
                Some(tuple) => pg_sys::HeapTupleHeaderGetDatum((*tuple).t_data),
                None => self.null(),
            }
        }
    }

    fn rows(&self, rows: &[Row]) -> pg_sys::Datum {
        // SAFETY: the function is declared to return a set; InitMaterializedSRF puts a tuple store and its row's
        // descriptor into the result info, or raises an error.
        unsafe {
            pg_sys::InitMaterializedSRF(self.fcinfo, pg_sys::MAT_SRF_USE_EXPECTED_DESC);
            let result = (*self.fcinfo).resultinfo.cast::<pg_sys::ReturnSetInfo>();
            for row in rows {
                if let Some(tuple) = tuple((*result).setDesc, row) {
                    pg_sys::tuplestore_puttuple((*result).setResult, tuple);
                    pg_sys::heap_freetuple(tuple);
                }
            }
        }
        pg_sys::Datum::from(0)
    }
}

/// A row from texts, each read by its column's input function; `None` without a descriptor. The SQL objects may be of
/// another version than the library: columns that the library does not know are NULL, and columns that the SQL function
/// does not declare are left out.
///
/// # Safety
/// `descriptor` is null or valid.
unsafe fn tuple(descriptor: pg_sys::TupleDesc, columns: &Row) -> Option<pg_sys::HeapTuple> {
    let texts: Vec<Option<CString>> = columns
        .iter()
        .map(|column| column.as_deref().map(c_string))
        .collect();
    let mut pointers: Vec<*mut c_char> = texts
        .iter()
        .map(|text| {
            text.as_ref()
                .map_or(std::ptr::null_mut(), |text| text.as_ptr().cast_mut())
        })
        .collect();
    // SAFETY: as the caller promises. BuildTupleFromCStrings reads as many pointers as the descriptor has columns,
    // which is the number that `pointers` is resized to; the strings live until it returns.
    unsafe {
        if descriptor.is_null() {
            return None;
        }
        pointers.resize(
            usize::try_from((*descriptor).natts).unwrap_or(0),
            std::ptr::null_mut(),
        );
        let metadata = pg_sys::TupleDescGetAttInMetadata(descriptor);
        Some(pg_sys::BuildTupleFromCStrings(metadata, pointers.as_mut_ptr()))
    }
}

/// A bytea that is filled part by part, without a second copy of it.
pub struct BytesBuilder {
    datum: pg_sys::Datum,
    next: *mut u8,
    room: usize,
}

impl BytesBuilder {
    /// Allocates `size` bytes in the memory context of the call.
    pub fn new(size: usize) -> Self {
        // SAFETY: palloc gives the room or raises an error; the bytes are set to zero, so none is uninitialized.
        unsafe {
            let whole = size + pg_sys::VARHDRSZ;
            let varlena = pg_sys::palloc0(whole).cast::<pg_sys::varlena>();
            pgrx::set_varsize_4b(varlena, i32::try_from(whole).unwrap_or(i32::MAX));
            let next = pgrx::vardata_4b(varlena).cast::<u8>().cast_mut();
            BytesBuilder {
                datum: pg_sys::Datum::from(varlena),
                next,
                room: size,
            }
        }
    }

    /// Appends bytes; does nothing and returns `false` if they do not fit.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() > self.room {
            return false;
        }
        // SAFETY: `next` points to `room` bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.next, bytes.len());
            self.next = self.next.add(bytes.len());
        }
        self.room -= bytes.len();
        true
    }

    /// Whether all bytes have been filled.
    pub fn is_full(&self) -> bool {
        self.room == 0
    }
}

/// A value of type bytea or text.
pub fn varlena(bytes: &[u8]) -> pg_sys::Datum {
    let mut builder = BytesBuilder::new(bytes.len());
    builder.push(bytes);
    builder.datum
}

/// A value of type json; raises PostgreSQL's own error if the text is not JSON.
pub fn json(text: &[u8]) -> Option<pg_sys::Datum> {
    let text = CString::new(text).ok()?;
    // SAFETY: json_in takes a cstring and raises an error if it is not JSON.
    unsafe {
        pgrx::direct_function_call_as_datum(pg_sys::json_in, &[Some(pg_sys::Datum::from(text.as_ptr()))])
    }
}

/// A value of type jsonb; raises PostgreSQL's own error if the text is not JSON.
pub fn jsonb(text: &[u8]) -> Option<pg_sys::Datum> {
    let text = CString::new(text).ok()?;
    // SAFETY: jsonb_in takes a cstring and raises an error if it is not JSON.
    unsafe {
        pgrx::direct_function_call_as_datum(pg_sys::jsonb_in, &[Some(pg_sys::Datum::from(text.as_ptr()))])
    }
}
