//! Functions in the catalogue that messages may call. Runs where SQL runs, on the main thread.

use std::ffi::{CStr, c_char};

use pgrx::pg_sys;

use super::encoding::utf8;
use super::own_objects;
use super::own_objects::MessageType;
use crate::error::{Error, Kind, Result};

/// The types that the payload of a message or of a reply may have.
const PAYLOAD: [pg_sys::Oid; 4] = [
    pg_sys::BYTEAOID,
    pg_sys::TEXTOID,
    pg_sys::JSONOID,
    pg_sys::JSONBOID,
];
/// The types of the further arguments that a function may take, in this order: subject, reply subject and headers.
const FURTHER: [pg_sys::Oid; 3] = [pg_sys::TEXTOID, pg_sys::TEXTOID, pg_sys::JSONBOID];

/// A function in the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    pub oid: u32,
    /// Qualified by the schema, and quoted where that is needed.
    pub name: String,
    /// Object ids of the argument types.
    pub arguments: Vec<u32>,
    /// Object id of the result type.
    pub result: u32,
    /// Whether it is neither an aggregate nor a window function nor a procedure.
    pub is_plain: bool,
    pub returns_set: bool,
    /// Whether its last argument is declared VARIADIC.
    pub is_variadic: bool,
    /// Whether it is STRICT, so that a call with a NULL does nothing.
    pub is_strict: bool,
}

impl Function {
    /// Reads a function from the catalogue; `None` if it does not exist.
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
                    name: qualified(schema, name),
                    arguments,
                    result: (*form).prorettype.to_u32(),
                    is_plain: (*form).prokind as u8 == pg_sys::PROKIND_FUNCTION,
                    returns_set: (*form).proretset,
                    is_variadic: (*form).provariadic != pg_sys::InvalidOid,
                    is_strict: (*form).proisstrict,
                }
            });
            pg_sys::ReleaseSysCache(tuple);
            function
        }
    }

    /// Whether the function can be called with one message: its payload and, where it takes them, subject, reply
    /// subject and headers.
    pub fn takes_messages(&self) -> bool {
        let Some((payload, further)) = self.arguments.split_first() else {
            return false;
        };
        self.is_plain
            && PAYLOAD.iter().any(|oid| oid.to_u32() == *payload)
            && further.len() <= FURTHER.len()
            && further
                .iter()
                .zip(FURTHER)
                .all(|(oid, wanted)| *oid == wanted.to_u32())
    }

    /// Fails if the function would not be called for each message: it is STRICT and takes a reply subject, which a
    /// message need not have.
    pub fn check_calls(&self) -> Result<()> {
        // Payload and subject are never NULL.
        const NEVER_NULL: usize = 2;
        if !self.is_strict || self.arguments.len() <= NEVER_NULL {
            return Ok(());
        }
        let message = format!("function {} is not called for each message", self.signature());
        Err(Error::new(Kind::InvalidFunction, message)
            .detail("It is STRICT, and reply_to and headers are NULL for messages that have none.")
            .hint("ALTER FUNCTION ... CALLED ON NULL INPUT has it called."))
    }

    /// Whether the function takes many messages at once, as `litmus_pgnats.message[]`.
    pub fn takes_batches(&self) -> bool {
        let Some(MessageType { array, .. }) = own_objects::message_type() else {
            return false;
        };
        self.is_plain && self.arguments == [array]
    }

    /// Whether the function's result can be a reply's payload.
    pub fn returns_replies(&self) -> bool {
        !self.returns_set && PAYLOAD.iter().any(|oid| oid.to_u32() == self.result)
    }

    /// Whether the function is a temporary one, which exists only as long as the session that has created it.
    pub fn is_temporary(&self) -> bool {
        // PostgreSQL reserves schema names that begin with `pg_`.
        self.name.starts_with("pg_temp_")
    }

    /// Name and argument types, in a form that `regprocedure` reads whatever the search path is.
    pub fn signature(&self) -> String {
        let types: Vec<String> = self.arguments.iter().map(|oid| type_name(*oid)).collect();
        format!("{}({})", self.name, types.join(","))
    }
}

/// A qualified name, with quotes only where they are needed: whatever the session's settings, a function has one name.
///
/// # Safety
/// Both are NUL-terminated.
unsafe fn qualified(schema: *const c_char, name: *const c_char) -> String {
    // SAFETY: as the caller promises; the parameter is a plain variable, and nothing between its changes raises an error
    // but a lack of memory.
    unsafe {
        let quotes_all = pg_sys::quote_all_identifiers;
        pg_sys::quote_all_identifiers = false;
        let qualified = pg_sys::quote_qualified_identifier(schema, name);
        pg_sys::quote_all_identifiers = quotes_all;
        utf8(CStr::from_ptr(qualified))
    }
}

/// A type's name. For the argument types of handlers it does not depend on the search path.
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
        None if own_objects::message_type().is_some_and(|message| oid == message.array.into()) => {
            "litmus_pgnats.message[]".into()
        }
        // SAFETY: format_type_be returns a palloc'd string; the type exists as long as the function.
        None => unsafe { utf8(CStr::from_ptr(pg_sys::format_type_be(oid))) },
    }
}
