//! SQLSTATE and hint of each kind of error: the one table that the reference documents. Constants; used wherever
//! PostgreSQL's code runs, on the main thread.

use pgrx::pg_sys::errcodes::PgSqlErrorCode::{self, *};

use crate::error::Kind;

/// SQLSTATE and hint of a kind. The condition's name is that of the constant, in lower case and without `ERRCODE_`. An
/// empty hint is none.
pub const fn describe(kind: Kind) -> (PgSqlErrorCode, &'static str) {
    match kind {
        Kind::NullArgument => (
            ERRCODE_NULL_VALUE_NOT_ALLOWED,
            "Publish an empty payload ('') for a message without one.",
        ),
        Kind::InvalidSubject => (
            ERRCODE_INVALID_NAME,
            "A subject is a list of tokens separated by dots, without white space and wildcards.",
        ),
        Kind::InvalidHeaders => (
            ERRCODE_INVALID_PARAMETER_VALUE,
            "Headers look like '{\"name\": \"value\", \"other\": [\"first\", \"second\"]}'.",
        ),
        Kind::InvalidArgument => (ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE, ""),
        Kind::InvalidFunction => (
            ERRCODE_INVALID_FUNCTION_DEFINITION,
            "Choose an overload with 'name(types)'::regprocedure, or define a function that takes a message.",
        ),
        Kind::InvalidEncoding => (
            ERRCODE_CHARACTER_NOT_IN_REPERTOIRE,
            "Use the binary form of the function for bytes that are not text.",
        ),
        Kind::PayloadTooLarge => (
            ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            "Raise max_payload of the NATS server, or use the object store.",
        ),
        Kind::NoServer => (
            ERRCODE_UNDEFINED_OBJECT,
            "CREATE SERVER name FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (host 'localhost') defines one.",
        ),
        Kind::SeveralServers => (
            ERRCODE_AMBIGUOUS_PARAMETER,
            "SET litmus_pgnats.server = 'name' chooses one, ALTER DATABASE ... SET one for all sessions.",
        ),
        Kind::PermissionDenied => (
            ERRCODE_INSUFFICIENT_PRIVILEGE,
            "GRANT USAGE ON FOREIGN SERVER name TO role gives the right.",
        ),
        Kind::FileOptionDenied => (
            ERRCODE_INSUFFICIENT_PRIVILEGE,
            "Only superusers and members of pg_read_server_files may set options that name files.",
        ),
        Kind::IncompleteCredential => (
            ERRCODE_INVALID_PASSWORD,
            "Give username with password or password_path, in the server or in the user mapping.",
        ),
        Kind::Unreachable => (
            ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
            "Check that the NATS server runs and that the options host and port of the foreign server are right.",
        ),
        Kind::AuthenticationRefused => (
            ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
            "Check the credential in the options of the foreign server and of the user mapping.",
        ),
        Kind::TooManyConnections => (
            ERRCODE_TOO_MANY_CONNECTIONS,
            "Each user mapping has a connection of its own; share one, FOR PUBLIC or in the server.",
        ),
        Kind::TooManySubscriptions => (
            ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            "The limit is one of the NATS server, the account or the user (max_subscriptions).",
        ),
        Kind::Standby => (
            ERRCODE_READ_ONLY_SQL_TRANSACTION,
            "Do it on the primary; the standby gets it from there.",
        ),
        Kind::TooManyHandlers => (ERRCODE_CONFIGURATION_LIMIT_EXCEEDED, ""),
        Kind::TransactionTooLarge => (
            ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            "litmus_pgnats.on_commit_size sets how much may wait.",
        ),
        Kind::TlsFailed => (
            ERRCODE_SQLSERVER_REJECTED_ESTABLISHMENT_OF_SQLCONNECTION,
            "Check the options tls_ca_path, tls_cert_path and tls_key_path of the foreign server.",
        ),
        Kind::FileUnreadable => (
            ERRCODE_IO_ERROR,
            "The file is read by the server process, as the operating system user that runs PostgreSQL.",
        ),
        Kind::BufferFull => (
            ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            "The option capacity of the foreign server sets how many messages are buffered while NATS is away.",
        ),
        Kind::ConnectionLost => (
            ERRCODE_CONNECTION_FAILURE,
            "The request may or may not have been processed.",
        ),
        Kind::Unsupported => (ERRCODE_FEATURE_NOT_SUPPORTED, ""),
        Kind::NoResponders => (
            ERRCODE_FDW_UNABLE_TO_CREATE_REPLY,
            "Nobody is subscribed to the subject; check its spelling.",
        ),
        Kind::Timeout => (
            ERRCODE_FDW_REPLY_HANDLE,
            "Give a larger timeout_ms if the responder is slow.",
        ),
        Kind::ServiceError => (ERRCODE_EXTERNAL_ROUTINE_EXCEPTION, ""),
        Kind::InvalidReply => (
            ERRCODE_INVALID_TEXT_REPRESENTATION,
            "nats_request_binary returns any reply as it is.",
        ),
        Kind::JetStreamUnavailable => (
            ERRCODE_FDW_UNABLE_TO_ESTABLISH_CONNECTION,
            "Enable JetStream in the NATS server and for the account, and check the option domain.",
        ),
        Kind::JetStreamRefused => (ERRCODE_FDW_ERROR, ""),
        Kind::NoStream => (
            ERRCODE_FDW_TABLE_NOT_FOUND,
            "Create a stream that includes the subject.",
        ),
        Kind::ExpectationFailed => (
            ERRCODE_T_R_SERIALIZATION_FAILURE,
            "Somebody else wrote first; read the present state and try again.",
        ),
        Kind::StreamFull => (
            ERRCODE_DISK_FULL,
            "Raise the limits of the stream or remove messages.",
        ),
        Kind::JetStreamLimit => (
            ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            "The limit is one of the NATS server, the account or the stream.",
        ),
        Kind::JetStreamBusy => (
            ERRCODE_CANNOT_CONNECT_NOW,
            "Try again; if that does not help, look into the NATS cluster.",
        ),
        Kind::NeverStored => (
            ERRCODE_INVALID_PARAMETER_VALUE,
            "Correct the headers of the message, or the settings of the stream.",
        ),
        Kind::AckTimeout => (
            ERRCODE_TRANSACTION_RESOLUTION_UNKNOWN,
            "The write may or may not have been stored. litmus_pgnats.jetstream_timeout sets the time.",
        ),
        Kind::InvalidName => (ERRCODE_INVALID_NAME, ""),
        Kind::BucketNotFound => (
            ERRCODE_FDW_SCHEMA_NOT_FOUND,
            "Putting a value or a file creates it.",
        ),
        Kind::KeyExists => (
            ERRCODE_UNIQUE_VIOLATION,
            "nats_update_* changes a key, nats_put_* writes it in any case.",
        ),
        Kind::ObjectNotFound => (
            ERRCODE_UNDEFINED_FILE,
            "nats_get_file_list lists the objects of a store.",
        ),
        Kind::ObjectTooLarge => (
            ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            "PostgreSQL's limit for a value is 1 GB.",
        ),
        Kind::DigestMismatch => (ERRCODE_DATA_CORRUPTED, "Put the object again."),
        Kind::RuntimeUnavailable => (
            ERRCODE_CANNOT_CONNECT_NOW,
            "The server log tells why the litmus_pgnats runtime worker does not run.",
        ),
        Kind::RuntimeLost => (
            ERRCODE_SYSTEM_ERROR,
            "The worker is started again; repeat the call.",
        ),
        Kind::WorkerSlots => (
            ERRCODE_INSUFFICIENT_RESOURCES,
            "You might need to increase max_worker_processes.",
        ),
        Kind::UnknownOption => (ERRCODE_FDW_INVALID_OPTION_NAME, ""),
        Kind::MalformedOption => (ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE, ""),
        Kind::ContradictoryOptions => (
            ERRCODE_FDW_INCONSISTENT_DESCRIPTOR_INFORMATION,
            "Drop the one option or add the other.",
        ),
        Kind::Stopped => (
            ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "litmus_pgnats.resume() has it go on.",
        ),
        Kind::Fenced => (ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, ""),
        Kind::Rival => (
            ERRCODE_DUPLICATE_FUNCTION,
            "Create it in another database of the cluster, or drop the other extension first.",
        ),
        Kind::Interrupted => (ERRCODE_QUERY_CANCELED, ""),
        Kind::Internal => (ERRCODE_INTERNAL_ERROR, "The server log says more."),
        Kind::Protocol => (
            ERRCODE_PROTOCOL_VIOLATION,
            "Reconnect; restart the server if the library was just replaced.",
        ),
    }
}
