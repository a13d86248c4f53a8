//! Functions of the catalogue that messages may call. Runs where SQL runs, on the main thread.

use std::ffi::CStr;

use pgrx::pg_sys;

use super::encoding::utf8;
use super::own_objects;
use super::own_objects::MessageType;

/// The types that a payload, and a reply's, may have.
const PAYLOAD: [pg_sys::Oid; 4] = [
    pg_sys::BYTEAOID,
    pg_sys::TEXTOID,
    pg_sys::JSONOID,
    pg_sys::JSONBOID,
];
/// The further arguments that a function may take, in this order: subject, reply subject and headers.
const FURTHER: [pg_sys::Oid; 3] = [pg_sys::TEXTOID, pg_sys::TEXTOID, pg_sys::JSONBOID];

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
    /// Its last argument may be given as single values too.
    pub is_variadic: bool,
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
                    is_variadic: (*form).provariadic != pg_sys::InvalidOid,
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
            && PAYLOAD.iter().any(|oid| oid.to_u32() == *payload)
            && further.len() <= FURTHER.len()
            && further
                .iter()
                .zip(FURTHER)
                .all(|(oid, wanted)| *oid == wanted.to_u32())
    }

    /// Whether it takes many messages at once.
    pub fn takes_batches(&self) -> bool {
        let Some(MessageType { array, .. }) = own_objects::message_type() else {
            return false;
        };
        self.is_plain && self.arguments == [array]
    }

    /// Whether its result can be a reply's payload.
    pub fn returns_replies(&self) -> bool {
        !self.returns_set && PAYLOAD.iter().any(|oid| oid.to_u32() == self.result)
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
        None if own_objects::message_type().is_some_and(|message| oid == message.array.into()) => {
            "litmus_pgnats.message[]".into()
        }
        // SAFETY: returns a palloc'd string; the type exists as long as the function.
        None => unsafe { utf8(CStr::from_ptr(pg_sys::format_type_be(oid))) },
    }
}
