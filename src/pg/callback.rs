//! Calls users' functions with messages. Runs in executors, on the main thread, in a transaction.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, CString};

use bytes::Bytes;
use pgrx::pg_sys;

use super::catalog::{self, MessageType, utf8};
use super::fmgr::{to_server, varlena};
use super::query::{NOT_NULL, NULL};

/// What a function is called with; text is UTF-8.
pub struct Arguments<'a> {
    pub payload: &'a [u8],
    pub subject: &'a str,
    pub reply: Option<&'a str>,
    /// A JSON object; none if the message has no headers.
    pub headers: Option<String>,
}

/// The types that a payload may have, and the expressions that make them of bytes in UTF-8.
const PAYLOAD: [(pg_sys::Oid, &str); 4] = [
    (pg_sys::BYTEAOID, "$1"),
    (pg_sys::TEXTOID, "pg_catalog.convert_from($1, 'UTF8')"),
    (
        pg_sys::JSONOID,
        "pg_catalog.convert_from($1, 'UTF8')::pg_catalog.json",
    ),
    (
        pg_sys::JSONBOID,
        "pg_catalog.convert_from($1, 'UTF8')::pg_catalog.jsonb",
    ),
];
/// The further arguments that a function may take, in this order.
const FURTHER: [(pg_sys::Oid, &str); 3] = [
    (pg_sys::TEXTOID, "pg_catalog.convert_from($2, 'UTF8')"),
    (pg_sys::TEXTOID, "pg_catalog.convert_from($3, 'UTF8')"),
    (
        pg_sys::JSONBOID,
        "pg_catalog.convert_from($4, 'UTF8')::pg_catalog.jsonb",
    ),
];

/// A function of the catalogue that may be called with messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    pub oid: u32,
    /// Quoted, with its schema.
    pub name: String,
    /// Types of the arguments, and of the result.
    pub arguments: Vec<u32>,
    pub result: u32,
    /// Neither an aggregate nor a window function nor a procedure.
    pub is_plain: bool,
    pub returns_set: bool,
}

impl Function {
    /// Looks a function up; `None` if it is gone.
    pub fn find(oid: u32) -> Option<Function> {
        let cache = pg_sys::SysCacheIdentifier::PROCOID as i32;
        // SAFETY: the cache takes one key of type oid; the tuple is released after what it holds was copied. The names
        // are palloc'd or null.
        unsafe {
            let tuple = pg_sys::SearchSysCache1(cache, pg_sys::Datum::from(oid as usize));
            if tuple.is_null() {
                return None;
            }
            let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_proc>();
            let types = &(*form).proargtypes;
            let count = usize::try_from(types.dim1).unwrap_or(0);
            let arguments = types
                .values
                .as_slice(count)
                .iter()
                .map(|oid| oid.to_u32())
                .collect();
            let schema = pg_sys::get_namespace_name((*form).pronamespace);
            let function = (!schema.is_null()).then(|| {
                let name = (&raw const (*form).proname.data).cast();
                Function {
                    oid,
                    name: utf8(CStr::from_ptr(pg_sys::quote_qualified_identifier(schema, name))),
                    arguments,
                    result: (*form).prorettype.to_u32(),
                    is_plain: (*form).prokind as u8 == pg_sys::PROKIND_FUNCTION,
                    returns_set: (*form).proretset,
                }
            });
            pg_sys::ReleaseSysCache(tuple);
            function
        }
    }

    /// Whether a message's payload and what comes with it can be given to the function.
    pub fn takes_messages(&self) -> bool {
        let Some((payload, further)) = self.arguments.split_first() else {
            return false;
        };
        self.is_plain
            && PAYLOAD.iter().any(|(oid, _)| oid.to_u32() == *payload)
            && further.len() <= FURTHER.len()
            && further
                .iter()
                .zip(FURTHER)
                .all(|(oid, (wanted, _))| *oid == wanted.to_u32())
    }

    /// Whether it takes many messages at once.
    pub fn takes_batches(&self) -> bool {
        let Some(MessageType { array, .. }) = catalog::message_type() else {
            return false;
        };
        self.is_plain && self.arguments == [array]
    }

    /// Whether its result can be a reply's payload.
    pub fn returns_replies(&self) -> bool {
        !self.returns_set && PAYLOAD.iter().any(|(oid, _)| oid.to_u32() == self.result)
    }

    /// Whether it ends with the session that has made it.
    pub fn is_temporary(&self) -> bool {
        // Nobody can make another schema whose name begins so.
        self.name.starts_with("pg_temp_")
    }

    /// Name and argument types, as `regprocedure` reads them whatever the search path is.
    pub fn signature(&self) -> String {
        let types: Vec<String> = self.arguments.iter().map(|oid| type_name(*oid)).collect();
        format!("{}({})", self.name, types.join(","))
    }

    fn call(&self) -> String {
        if self.takes_batches() {
            return format!("SELECT {}($1)", self.name);
        }
        let payload = PAYLOAD
            .iter()
            .find(|(oid, _)| Some(&oid.to_u32()) == self.arguments.first())
            .map_or("$1", |(_, expression)| expression);
        let further = self
            .arguments
            .iter()
            .skip(1)
            .zip(FURTHER)
            .map(|(_, (_, expression))| expression);
        let arguments: Vec<&str> = std::iter::once(payload).chain(further).collect();
        let call = format!("{}({})", self.name, arguments.join(", "));
        if self.result == pg_sys::BYTEAOID.to_u32() || !self.returns_replies() {
            format!("SELECT {call}")
        } else {
            format!("SELECT pg_catalog.convert_to({call}::pg_catalog.text, 'UTF8')")
        }
    }
}

/// A type's name: always the same for those that a handler may have.
fn type_name(oid: u32) -> String {
    let oid = pg_sys::Oid::from(oid);
    let own = [
        (pg_sys::BYTEAOID, "bytea"),
        (pg_sys::TEXTOID, "text"),
        (pg_sys::JSONOID, "json"),
        (pg_sys::JSONBOID, "jsonb"),
    ];
    match own.into_iter().find(|(known, _)| *known == oid) {
        Some((_, name)) => name.into(),
        None if catalog::message_type().is_some_and(|message| oid == message.array.into()) => {
            "litmus_pgnats.message[]".into()
        }
        // SAFETY: returns a palloc'd string; the type exists as long as the function.
        None => unsafe { utf8(CStr::from_ptr(pg_sys::format_type_be(oid))) },
    }
}

thread_local! {
    /// Saved plans, by function, of the one role that this process serves: PostgreSQL checks some rights when it plans. A
    /// function's name may change, its types cannot.
    static PLANS: RefCell<HashMap<u32, (Function, pg_sys::SPIPlanPtr)>> = RefCell::default();
}

/// Calls a function with a message and returns its result as bytes, if that is a reply's. Raises the function's errors.
pub fn call(function: &Function, arguments: &Arguments<'_>) -> Option<Bytes> {
    let bytes = |bytes: Option<&[u8]>| bytes.map_or(pg_sys::Datum::from(0), varlena);
    let null = |is_null: bool| if is_null { NULL } else { NOT_NULL };
    let headers = arguments.headers.as_ref().map(String::as_bytes);
    let reply = arguments.reply.map(str::as_bytes);
    // SAFETY: the plan takes four arguments of type bytea; both arrays have four elements. What is raised ends the
    // (sub)transaction and SPI's level with it. The result is copied before SPI frees it.
    unsafe {
        pg_sys::SPI_connect();
        let mut values = [
            varlena(arguments.payload),
            varlena(arguments.subject.as_bytes()),
            bytes(reply),
            bytes(headers),
        ];
        let nulls = [NOT_NULL, NOT_NULL, null(reply.is_none()), null(headers.is_none())];
        let plan = plan(function, &mut [pg_sys::BYTEAOID; 4]);
        pg_sys::SPI_execute_plan(plan, values.as_mut_ptr(), nulls.as_ptr(), false, 0);
        let result = if function.returns_replies() {
            result()
        } else {
            None
        };
        pg_sys::SPI_finish();
        result
    }
}

/// Forgets the plans of all functions: they may be another role's.
pub fn forget_plans() {
    for (_, (_, plan)) in PLANS.take() {
        // SAFETY: a kept plan, which is in nobody's use: calls have ended.
        unsafe { pg_sys::SPI_freeplan(plan) };
    }
}

/// # Safety
/// SPI has just executed a query with one column of type bytea.
unsafe fn result() -> Option<Bytes> {
    // SAFETY: as the caller promises.
    unsafe {
        let table = pg_sys::SPI_tuptable;
        if table.is_null() || pg_sys::SPI_processed == 0 {
            return None;
        }
        let mut is_null = true;
        let datum = pg_sys::SPI_getbinval(*(*table).vals, (*table).tupdesc, 1, &raw mut is_null);
        if is_null {
            return None;
        }
        let varlena = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
        let length = pgrx::varsize_any_exhdr(varlena);
        let bytes = std::slice::from_raw_parts(pgrx::vardata_any(varlena).cast::<u8>(), length);
        Some(Bytes::copy_from_slice(bytes))
    }
}

/// # Safety
/// SPI is connected.
pub(super) unsafe fn plan(function: &Function, types: &mut [pg_sys::Oid]) -> pg_sys::SPIPlanPtr {
    let known = PLANS.with_borrow(|plans| match plans.get(&function.oid) {
        Some((known, plan)) if known == function => Some(*plan),
        _ => None,
    });
    if let Some(plan) = known {
        return plan;
    }
    let sql = CString::new(to_server(&function.call()).into_owned()).unwrap_or_default();
    let count = i32::try_from(types.len()).unwrap_or(0);
    // SAFETY: as the caller promises; as many types are given. A kept plan lives until it is freed.
    unsafe {
        let plan = pg_sys::SPI_prepare(sql.as_ptr(), count, types.as_mut_ptr());
        pg_sys::SPI_keepplan(plan);
        let kept = (function.clone(), plan);
        if let Some((_, former)) = PLANS.with_borrow_mut(|plans| plans.insert(function.oid, kept)) {
            pg_sys::SPI_freeplan(former);
        }
        plan
    }
}
