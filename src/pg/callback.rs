//! Calls users' functions with messages. Runs in executors, and in backends that redrive a dead letter; on the main
//! thread, in a transaction.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};

use bytes::Bytes;
use pgrx::{pg_guard, pg_sys};

use super::encoding::{c_string, server_to_utf8, utf8_to_server};
use super::fmgr::{json, jsonb, varlena};
use super::function::Function;

/// The arguments that a function is called with; text is UTF-8.
pub struct Arguments<'a> {
    pub payload: &'a [u8],
    pub subject: &'a str,
    pub reply: Option<&'a str>,
    /// A JSON object; `None` if the message has no headers.
    pub headers: Option<String>,
}

thread_local! {
    /// Kept plans, by the function's object id. PostgreSQL checks some rights when it plans, so all plans are of one
    /// role: the one that an executor serves or, while a dead letter is redriven, that of the letter
    /// ([`with_own_plans`]).
    static PLANS: RefCell<HashMap<u32, KeptPlan>> = RefCell::default();
}

/// A kept plan of `SELECT $1`, where the parser has put a call of the function in place of `$1`.
struct KeptPlan {
    plan: pg_sys::SPIPlanPtr,
    /// Given to the parser's hook, also when PostgreSQL analyses the query again. Freed after the plan.
    callee: *mut Callee,
}

impl Drop for KeptPlan {
    fn drop(&mut self) {
        // SAFETY: the plan is a kept one and not in use: plans are dropped only between calls, and those of the calls
        // outside of a redriven one are put aside ([`with_own_plans`]). The callee was made by `Box::into_raw` and is
        // freed once.
        unsafe {
            pg_sys::SPI_freeplan(self.plan);
            drop(Box::from_raw(self.callee));
        }
    }
}

/// The function that a plan calls, by its object id: another function may have taken the name by the time of the call.
struct Callee {
    oid: pg_sys::Oid,
    arguments: Vec<pg_sys::Oid>,
    result: pg_sys::Oid,
    returns_set: bool,
    is_variadic: bool,
}

impl Callee {
    fn of(function: &Function) -> Callee {
        Callee {
            oid: function.oid.into(),
            arguments: function.arguments.iter().map(|oid| (*oid).into()).collect(),
            result: function.result.into(),
            returns_set: function.returns_set,
            is_variadic: function.is_variadic,
        }
    }
}

/// Called by PostgreSQL before it parses a plan's query, with the plan's callee.
unsafe extern "C-unwind" fn set_up_parser(state: *mut pg_sys::ParseState, callee: *mut c_void) {
    // SAFETY: PostgreSQL passes the valid state of its parser.
    unsafe {
        (*state).p_paramref_hook = Some(call_in_place_of_parameter);
        (*state).p_ref_hook_state = callee;
    }
}

/// Called by PostgreSQL's parser for `$1`; returns the expression that calls the function with parameters of its
/// argument types.
#[pg_guard]
unsafe extern "C-unwind" fn call_in_place_of_parameter(
    state: *mut pg_sys::ParseState,
    _parameter: *mut pg_sys::ParamRef,
) -> *mut pg_sys::Node {
    // SAFETY: the hook's state is the callee of the plan that is being parsed, which outlives it. The nodes are made in
    // the parser's own memory context, with all fields set that PostgreSQL's parser would set.
    unsafe {
        let callee = &*(*state).p_ref_hook_state.cast::<Callee>();
        let mut arguments = std::ptr::null_mut();
        for (index, oid) in callee.arguments.iter().enumerate() {
            let parameter = pg_sys::palloc0(size_of::<pg_sys::Param>()).cast::<pg_sys::Param>();
            (*parameter).xpr.type_ = pg_sys::NodeTag::T_Param;
            (*parameter).paramkind = pg_sys::ParamKind::PARAM_EXTERN;
            (*parameter).paramid = i32::try_from(index + 1).unwrap_or(0);
            (*parameter).paramtype = *oid;
            (*parameter).paramtypmod = -1;
            (*parameter).paramcollid = pg_sys::get_typcollation(*oid);
            (*parameter).location = -1;
            arguments = pg_sys::lappend(arguments, parameter.cast());
        }
        // The parser assigns collations afterwards, to this expression as to every other.
        let call = pg_sys::makeFuncExpr(
            callee.oid,
            callee.result,
            arguments,
            pg_sys::InvalidOid,
            pg_sys::InvalidOid,
            pg_sys::CoercionForm::COERCE_EXPLICIT_CALL,
        );
        (*call).funcretset = callee.returns_set;
        (*call).funcvariadic = callee.is_variadic;
        (*state).p_hasTargetSRFs |= callee.returns_set;
        call.cast()
    }
}

/// Calls a function with a message. Returns the result as bytes; `None` if the result is NULL or cannot be a reply's
/// payload. Raises the function's errors.
pub fn call(function: &Function, message: &Arguments<'_>) -> Option<Bytes> {
    let values = || {
        let texts = [Some(message.subject), message.reply, message.headers.as_deref()];
        let mut types = function.arguments.iter().map(|oid| pg_sys::Oid::from(*oid));
        let payload = types.next().map(|oid| payload(oid, message.payload));
        let further = types.zip(texts);
        // A subject may have any bytes, also those that text of PostgreSQL cannot have.
        let further =
            further.map(|(oid, text)| text.and_then(|text| value(oid, &utf8_to_server(text.as_bytes()))));
        payload.into_iter().chain(further).collect()
    };
    execute(function, values, || {
        // SAFETY: SPI has just executed the call.
        function
            .returns_replies()
            .then(|| unsafe { result(function.result.into()) })
            .flatten()
    })
}

/// Calls a function with `values`, which are of its argument types, and has `read` take the result from SPI. Memory
/// that is allocated for the values and the result is freed on return, because a transaction has many calls.
pub(super) fn execute<T>(
    function: &Function,
    values: impl FnOnce() -> Vec<Option<pg_sys::Datum>>,
    read: impl FnOnce() -> T,
) -> T {
    // SAFETY: there are as many values as the function has arguments, and of their types. An error ends the
    // (sub)transaction, and with it this level of SPI.
    unsafe {
        pg_sys::SPI_connect();
        let plan = plan(function);
        let values = values();
        let count = i32::try_from(values.len()).unwrap_or(0);
        let parameters = pg_sys::makeParamList(count);
        let places = (*parameters).params.as_mut_slice(values.len());
        for ((place, value), oid) in places.iter_mut().zip(values).zip(&function.arguments) {
            place.value = value.unwrap_or(pg_sys::Datum::from(0));
            place.isnull = value.is_none();
            place.pflags = pg_sys::PARAM_FLAG_CONST as u16;
            place.ptype = (*oid).into();
        }
        pg_sys::SPI_execute_plan_with_paramlist(plan, parameters, false, 0);
        let result = read();
        pg_sys::SPI_finish();
        result
    }
}

/// A payload as a value of the type `oid`, one of those that a payload may have. Raises PostgreSQL's own error if the
/// payload is not valid for that type.
fn payload(oid: pg_sys::Oid, bytes: &[u8]) -> Option<pg_sys::Datum> {
    match oid {
        pg_sys::BYTEAOID => Some(varlena(bytes)),
        _ => value(oid, &utf8_to_server(bytes)),
    }
}

/// A value of the type `oid`, which is text, json or jsonb, from text in the database's encoding.
fn value(oid: pg_sys::Oid, text: &[u8]) -> Option<pg_sys::Datum> {
    match oid {
        pg_sys::JSONOID => json(text),
        pg_sys::JSONBOID => jsonb(text),
        _ => Some(varlena(text)),
    }
}

/// Has `work` call functions with plans of its own, for a role of its own. Plans of before are put aside, because one of
/// them may be running: a handler's function may redrive a dead letter.
pub fn with_own_plans<T>(work: impl FnOnce() -> T) -> T {
    struct PutAside(HashMap<u32, KeptPlan>);
    impl Drop for PutAside {
        fn drop(&mut self) {
            // Frees the plans of `work`, whose calls have ended, also by an error.
            drop(PLANS.replace(std::mem::take(&mut self.0)));
        }
    }
    let _outer = PutAside(PLANS.take());
    work()
}

/// Frees the plan of a function that does not exist any more.
pub fn forget_plan(function: u32) {
    PLANS.with_borrow_mut(|plans| plans.remove(&function));
}

/// # Safety
/// SPI has just executed a query whose one column is of type `oid`, one of those that a payload may have.
unsafe fn result(oid: pg_sys::Oid) -> Option<Bytes> {
    // SAFETY: as the caller promises; jsonb_out returns a NUL-terminated string.
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
        if oid == pg_sys::JSONBOID {
            let text = pgrx::direct_function_call_as_datum(pg_sys::jsonb_out, &[Some(datum)])?;
            let text = CStr::from_ptr(text.cast_mut_ptr::<c_char>());
            return Some(Bytes::copy_from_slice(&server_to_utf8(text.to_bytes())));
        }
        let varlena = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
        let length = pgrx::varsize_any_exhdr(varlena);
        let bytes = std::slice::from_raw_parts(pgrx::vardata_any(varlena).cast::<u8>(), length);
        Some(match oid {
            pg_sys::BYTEAOID => Bytes::copy_from_slice(bytes),
            _ => Bytes::copy_from_slice(&server_to_utf8(bytes)),
        })
    }
}

/// The kept plan of a function's call, which is prepared if there is none yet.
///
/// # Safety
/// SPI is connected.
unsafe fn plan(function: &Function) -> pg_sys::SPIPlanPtr {
    if let Some(plan) = PLANS.with_borrow(|plans| plans.get(&function.oid).map(|known| known.plan)) {
        return plan;
    }
    // The comment shows the function's name in the server log and in pg_stat_statements.
    let name = function.name.replace("*/", "* /").replace("/*", "/ *");
    let sql = c_string(&format!("SELECT $1 /* {name} */"));
    let callee = Box::into_raw(Box::new(Callee::of(function)));
    // SAFETY: as the caller promises; the callee lives as long as the plan. A kept plan lives until it is freed.
    unsafe {
        let plan = pg_sys::SPI_prepare_params(sql.as_ptr(), Some(set_up_parser), callee.cast(), 0);
        pg_sys::SPI_keepplan(plan);
        PLANS.with_borrow_mut(|plans| plans.insert(function.oid, KeptPlan { plan, callee }));
        plan
    }
}
