//! Hooks into statements that need a database for themselves, such as DROP DATABASE. Runs in backends, on the main
//! thread.

use std::cell::Cell;
use std::ffi::{CStr, c_char};

use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag::{T_AlterDatabaseStmt, T_CreatedbStmt, T_DropdbStmt, T_RenameStmt};

use super::report::guarded;
use crate::error::Result;

thread_local! {
    static PREVIOUS: Cell<pg_sys::ProcessUtility_hook_type> = const { Cell::new(None) };
    static REACTIONS: Cell<Option<(Before, After)>> = const { Cell::new(None) };
}

/// Called before a statement that needs a database for itself runs; an error prevents the statement.
pub type Before = fn(Exclusive<'_>) -> Result<()>;
/// Called after a statement that needs a database for itself has run without an error.
pub type After = fn(Exclusive<'_>);

/// What a statement does with a database that it needs for itself; databases are given by name. `Copy` creates the
/// database `copy` from `template`, which is the one that is needed.
#[derive(Clone, Copy, Debug)]
pub enum Exclusive<'a> {
    /// The statement changes or drops this database.
    Change(&'a CStr),
    Copy {
        template: &'a CStr,
        copy: &'a CStr,
    },
}

// pgrx's binding would turn an error into a panic, and the panic into an error with fewer fields.
unsafe extern "C-unwind" {
    fn standard_ProcessUtility(
        statement: *mut pg_sys::PlannedStmt,
        text: *const c_char,
        read_only: bool,
        context: pg_sys::ProcessUtilityContext::Type,
        parameters: pg_sys::ParamListInfo,
        environment: *mut pg_sys::QueryEnvironment,
        destination: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
}

/// Installs the hook; called once, when the library is loaded.
pub fn install(before: Before, after: After) {
    REACTIONS.set(Some((before, after)));
    // SAFETY: the hook is a function of this library, which is never unloaded; the earlier one is kept and called.
    unsafe {
        PREVIOUS.set(pg_sys::ProcessUtility_hook);
        pg_sys::ProcessUtility_hook = Some(process_utility);
    }
}

#[allow(clippy::too_many_arguments)]
unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    text: *const c_char,
    read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: passes on the arguments that PostgreSQL gave. Nothing in this frame needs dropping when an error jumps
    // over it; what `before` has begun ends with the transaction then.
    unsafe {
        let exclusive = exclusive((*statement).utilityStmt).zip(REACTIONS.get());
        if let Some((what, (before, _))) = exclusive {
            guarded(|| before(what));
        }
        let next = PREVIOUS.get().unwrap_or(standard_ProcessUtility);
        next(
            statement,
            text,
            read_only,
            context,
            parameters,
            environment,
            destination,
            completion,
        );
        if let Some((what, (_, after))) = exclusive {
            guarded(|| {
                after(what);
                Ok(())
            });
        }
    }
}

/// The database that a statement needs for itself; `None` for all other statements.
///
/// # Safety
/// `statement` is a valid node that outlives the result.
unsafe fn exclusive<'a>(statement: *mut pg_sys::Node) -> Option<Exclusive<'a>> {
    // SAFETY: as the caller promises; a node is of the type that its tag says, and its names are NUL-terminated.
    unsafe {
        let name = |name: *mut c_char| (!name.is_null()).then(|| CStr::from_ptr(name));
        match (*statement).type_ {
            T_DropdbStmt => name((*statement.cast::<pg_sys::DropdbStmt>()).dbname).map(Exclusive::Change),
            T_RenameStmt => {
                let rename = statement.cast::<pg_sys::RenameStmt>();
                let is_database = (*rename).renameType == pg_sys::ObjectType::OBJECT_DATABASE;
                name((*rename).subname)
                    .filter(|_| is_database)
                    .map(Exclusive::Change)
            }
            T_AlterDatabaseStmt => {
                let alter = statement.cast::<pg_sys::AlterDatabaseStmt>();
                option((*alter).options, c"tablespace")?;
                name((*alter).dbname).map(Exclusive::Change)
            }
            T_CreatedbStmt => {
                let create = statement.cast::<pg_sys::CreatedbStmt>();
                let template = option((*create).options, c"template")?;
                let copy = name((*create).dbname)?;
                Some(Exclusive::Copy { template, copy })
            }
            _ => None,
        }
    }
}

/// # Safety
/// `options` is a valid list of DefElem, or null.
unsafe fn option<'a>(options: *mut pg_sys::List, wanted: &CStr) -> Option<&'a CStr> {
    if options.is_null() {
        return None;
    }
    // SAFETY: as the caller promises; a list is an array of `length` cells.
    unsafe {
        let length = usize::try_from((*options).length).unwrap_or(0);
        for cell in std::slice::from_raw_parts((*options).elements, length) {
            let element = cell.ptr_value.cast::<pg_sys::DefElem>();
            if CStr::from_ptr((*element).defname) == wanted && !(*element).arg.is_null() {
                return Some(CStr::from_ptr(pg_sys::defGetString(element)));
            }
        }
    }
    None
}
