-- litmus_pgnats 0.1.0. Run by CREATE EXTENSION; functions go to the target schema.
\echo Use "CREATE EXTENSION litmus_pgnats" to load this file. \quit

CREATE SCHEMA litmus_pgnats;
COMMENT ON SCHEMA litmus_pgnats IS 'tables and views of the extension litmus_pgnats';

-- Refuses to be in one database with another extension for NATS, which has functions of the same names: calls would
-- then mean one or the other.

CREATE FUNCTION litmus_pgnats.refuse(extension text, function text) RETURNS void
  LANGUAGE c AS 'MODULE_PATHNAME', 'litmus_pgnats_refuse';
-- No operator and no type is left to the search path, because the target schema may be another role's.
SELECT litmus_pgnats.refuse(e.extname::pg_catalog.text, p.oid::pg_catalog.regprocedure::pg_catalog.text)
  FROM pg_catalog.pg_proc p
  JOIN pg_catalog.pg_depend d ON d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass::pg_catalog.oid
    AND d.objid OPERATOR(pg_catalog.=) p.oid AND d.deptype OPERATOR(pg_catalog.=) 'e'::pg_catalog."char"
  JOIN pg_catalog.pg_extension e ON e.oid OPERATOR(pg_catalog.=) d.refobjid
  WHERE p.proname::pg_catalog.text OPERATOR(pg_catalog.~) '^nats_(publish|request|subscribe|unsubscribe|put|get|delete)'::pg_catalog.text
  LIMIT 1;
DROP FUNCTION litmus_pgnats.refuse(text, text);

-- The foreign-data wrapper: a foreign server holds the settings of a NATS connection.

CREATE FUNCTION litmus_pgnats_fdw_validator(options text[], catalog oid) RETURNS void
  LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'litmus_pgnats_fdw_validator';
COMMENT ON FUNCTION litmus_pgnats_fdw_validator(text[], oid) IS 'checks options of foreign servers and user mappings';

CREATE FOREIGN DATA WRAPPER litmus_pgnats_fdw VALIDATOR litmus_pgnats_fdw_validator;
COMMENT ON FOREIGN DATA WRAPPER litmus_pgnats_fdw IS 'servers of this wrapper are NATS connections';

-- Publish.

CREATE FUNCTION nats_publish_text(subject text, payload text, reply text DEFAULT NULL, headers jsonb DEFAULT NULL) RETURNS void
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_publish_text';
COMMENT ON FUNCTION nats_publish_text(text, text, text, jsonb) IS 'publish a text message to a NATS subject, fire and forget';

CREATE FUNCTION nats_publish_json(subject text, payload json, reply text DEFAULT NULL, headers jsonb DEFAULT NULL) RETURNS void
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_publish_text';
COMMENT ON FUNCTION nats_publish_json(text, json, text, jsonb) IS 'publish a JSON message, as it was typed, to a NATS subject, fire and forget';

CREATE FUNCTION nats_publish_jsonb(subject text, payload jsonb, reply text DEFAULT NULL, headers jsonb DEFAULT NULL) RETURNS void
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_publish_jsonb';
COMMENT ON FUNCTION nats_publish_jsonb(text, jsonb, text, jsonb) IS 'publish a JSON message, in canonical form, to a NATS subject, fire and forget';

CREATE FUNCTION nats_publish_binary(subject text, payload bytea, reply text DEFAULT NULL, headers jsonb DEFAULT NULL) RETURNS void
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_publish_binary';
COMMENT ON FUNCTION nats_publish_binary(text, bytea, text, jsonb) IS 'publish a message to a NATS subject, fire and forget';

-- Request and reply.

CREATE FUNCTION nats_request_text(subject text, payload text, timeout_ms integer DEFAULT 5000) RETURNS text
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_request_text';
COMMENT ON FUNCTION nats_request_text(text, text, integer) IS 'send a request to a NATS subject and return the reply as text';

CREATE FUNCTION nats_request_json(subject text, payload json, timeout_ms integer DEFAULT 5000) RETURNS json
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_request_json';
COMMENT ON FUNCTION nats_request_json(text, json, integer) IS 'send a request to a NATS subject and return the reply as json';

CREATE FUNCTION nats_request_jsonb(subject text, payload jsonb, timeout_ms integer DEFAULT 5000) RETURNS jsonb
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_request_jsonb';
COMMENT ON FUNCTION nats_request_jsonb(text, jsonb, integer) IS 'send a request to a NATS subject and return the reply as jsonb';

CREATE FUNCTION nats_request_binary(subject text, payload bytea, timeout_ms integer DEFAULT 5000) RETURNS bytea
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_request_binary';
COMMENT ON FUNCTION nats_request_binary(text, bytea, integer) IS 'send a request to a NATS subject and return the reply';

-- JetStream.

CREATE FUNCTION nats_publish_text_stream(subject text, payload text, headers jsonb DEFAULT NULL, domain text DEFAULT NULL) RETURNS bigint
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_publish_text_stream';
COMMENT ON FUNCTION nats_publish_text_stream(text, text, jsonb, text) IS 'publish text to a JetStream stream and return its sequence there, once it is acknowledged';

CREATE FUNCTION nats_publish_json_stream(subject text, payload json, headers jsonb DEFAULT NULL, domain text DEFAULT NULL) RETURNS bigint
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_publish_text_stream';
COMMENT ON FUNCTION nats_publish_json_stream(text, json, jsonb, text) IS 'publish json to a JetStream stream and return its sequence there, once it is acknowledged';

CREATE FUNCTION nats_publish_jsonb_stream(subject text, payload jsonb, headers jsonb DEFAULT NULL, domain text DEFAULT NULL) RETURNS bigint
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_publish_jsonb_stream';
COMMENT ON FUNCTION nats_publish_jsonb_stream(text, jsonb, jsonb, text) IS 'publish jsonb to a JetStream stream and return its sequence there, once it is acknowledged';

CREATE FUNCTION nats_publish_binary_stream(subject text, payload bytea, headers jsonb DEFAULT NULL, domain text DEFAULT NULL) RETURNS bigint
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_publish_binary_stream';
COMMENT ON FUNCTION nats_publish_binary_stream(text, bytea, jsonb, text) IS 'publish bytea to a JetStream stream and return its sequence there, once it is acknowledged';

-- Key-value buckets.

CREATE FUNCTION nats_put_text(bucket text, key text, value text, domain text DEFAULT NULL) RETURNS bigint
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_put_text';
COMMENT ON FUNCTION nats_put_text(text, text, text, text) IS 'write text to a key of a key-value bucket, which is created if it is missing, and return the revision';

CREATE FUNCTION nats_put_json(bucket text, key text, value json, domain text DEFAULT NULL) RETURNS bigint
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_put_text';
COMMENT ON FUNCTION nats_put_json(text, text, json, text) IS 'write json to a key of a key-value bucket, which is created if it is missing, and return the revision';

CREATE FUNCTION nats_put_jsonb(bucket text, key text, value jsonb, domain text DEFAULT NULL) RETURNS bigint
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_put_jsonb';
COMMENT ON FUNCTION nats_put_jsonb(text, text, jsonb, text) IS 'write jsonb to a key of a key-value bucket, which is created if it is missing, and return the revision';

CREATE FUNCTION nats_put_binary(bucket text, key text, value bytea, domain text DEFAULT NULL) RETURNS bigint
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_put_binary';
COMMENT ON FUNCTION nats_put_binary(text, text, bytea, text) IS 'write bytea to a key of a key-value bucket, which is created if it is missing, and return the revision';

CREATE FUNCTION nats_create_text(bucket text, key text, value text, domain text DEFAULT NULL) RETURNS bigint
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_create_text';
COMMENT ON FUNCTION nats_create_text(text, text, text, text) IS 'write text to a key of a key-value bucket unless the key exists, and return the revision';

CREATE FUNCTION nats_create_json(bucket text, key text, value json, domain text DEFAULT NULL) RETURNS bigint
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_create_text';
COMMENT ON FUNCTION nats_create_json(text, text, json, text) IS 'write json to a key of a key-value bucket unless the key exists, and return the revision';

CREATE FUNCTION nats_create_jsonb(bucket text, key text, value jsonb, domain text DEFAULT NULL) RETURNS bigint
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_create_jsonb';
COMMENT ON FUNCTION nats_create_jsonb(text, text, jsonb, text) IS 'write jsonb to a key of a key-value bucket unless the key exists, and return the revision';

CREATE FUNCTION nats_create_binary(bucket text, key text, value bytea, domain text DEFAULT NULL) RETURNS bigint
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_create_binary';
COMMENT ON FUNCTION nats_create_binary(text, text, bytea, text) IS 'write bytea to a key of a key-value bucket unless the key exists, and return the revision';

CREATE FUNCTION nats_update_text(bucket text, key text, value text, revision bigint, domain text DEFAULT NULL) RETURNS bigint
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_update_text';
COMMENT ON FUNCTION nats_update_text(text, text, text, bigint, text) IS 'write text to a key of a key-value bucket if its latest revision is the given one, and return the new revision';

CREATE FUNCTION nats_update_json(bucket text, key text, value json, revision bigint, domain text DEFAULT NULL) RETURNS bigint
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_update_text';
COMMENT ON FUNCTION nats_update_json(text, text, json, bigint, text) IS 'write json to a key of a key-value bucket if its latest revision is the given one, and return the new revision';

CREATE FUNCTION nats_update_jsonb(bucket text, key text, value jsonb, revision bigint, domain text DEFAULT NULL) RETURNS bigint
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_update_jsonb';
COMMENT ON FUNCTION nats_update_jsonb(text, text, jsonb, bigint, text) IS 'write jsonb to a key of a key-value bucket if its latest revision is the given one, and return the new revision';

CREATE FUNCTION nats_update_binary(bucket text, key text, value bytea, revision bigint, domain text DEFAULT NULL) RETURNS bigint
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_update_binary';
COMMENT ON FUNCTION nats_update_binary(text, text, bytea, bigint, text) IS 'write bytea to a key of a key-value bucket if its latest revision is the given one, and return the new revision';

CREATE FUNCTION nats_get_text(bucket text, key text, domain text DEFAULT NULL) RETURNS text
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_get_text';
COMMENT ON FUNCTION nats_get_text(text, text, text) IS 'value of a key of a key-value bucket as text, NULL if there is none';

CREATE FUNCTION nats_get_json(bucket text, key text, domain text DEFAULT NULL) RETURNS json
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_get_json';
COMMENT ON FUNCTION nats_get_json(text, text, text) IS 'value of a key of a key-value bucket as json, NULL if there is none';

CREATE FUNCTION nats_get_jsonb(bucket text, key text, domain text DEFAULT NULL) RETURNS jsonb
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_get_jsonb';
COMMENT ON FUNCTION nats_get_jsonb(text, text, text) IS 'value of a key of a key-value bucket as jsonb, NULL if there is none';

CREATE FUNCTION nats_get_binary(bucket text, key text, domain text DEFAULT NULL) RETURNS bytea
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_get_binary';
COMMENT ON FUNCTION nats_get_binary(text, text, text) IS 'value of a key of a key-value bucket as bytea, NULL if there is none';

CREATE FUNCTION nats_get_entry(bucket text, key text, domain text DEFAULT NULL,
    OUT revision bigint, OUT operation text, OUT value bytea, OUT created timestamptz) RETURNS SETOF record
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_get_entry';
COMMENT ON FUNCTION nats_get_entry(text, text, text) IS 'latest entry of a key of a key-value bucket: PUT with its value, or the DEL or PURGE that removed it';

CREATE FUNCTION nats_get_history(bucket text, key text, domain text DEFAULT NULL,
    OUT revision bigint, OUT operation text, OUT value bytea, OUT created timestamptz) RETURNS SETOF record
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_get_history';
COMMENT ON FUNCTION nats_get_history(text, text, text) IS 'entries of a key that a key-value bucket still holds, oldest first';

CREATE FUNCTION nats_list_keys(bucket text, domain text DEFAULT NULL) RETURNS SETOF text
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_list_keys';
COMMENT ON FUNCTION nats_list_keys(text, text) IS 'keys of a key-value bucket that have a value';

CREATE FUNCTION nats_delete_value(bucket text, key text, domain text DEFAULT NULL) RETURNS void
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_delete_value';
COMMENT ON FUNCTION nats_delete_value(text, text, text) IS 'delete a key of a key-value bucket; its history stays';

CREATE FUNCTION nats_purge_value(bucket text, key text, domain text DEFAULT NULL) RETURNS void
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_purge_value';
COMMENT ON FUNCTION nats_purge_value(text, text, text) IS 'delete a key of a key-value bucket and its history';

CREATE FUNCTION nats_create_bucket(bucket text, history integer DEFAULT 1, ttl interval DEFAULT NULL,
    replicas integer DEFAULT 1, storage text DEFAULT 'file', domain text DEFAULT NULL) RETURNS void
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_create_bucket';
COMMENT ON FUNCTION nats_create_bucket(text, integer, interval, integer, text, text) IS 'create a key-value bucket: values kept for each key, their time to live, replicas, file or memory';

CREATE FUNCTION nats_delete_bucket(bucket text, domain text DEFAULT NULL) RETURNS void
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_delete_bucket';
COMMENT ON FUNCTION nats_delete_bucket(text, text) IS 'delete a key-value bucket and all that is in it';

-- Object stores.

CREATE FUNCTION nats_put_file(store text, name text, content bytea, domain text DEFAULT NULL) RETURNS void
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_put_file';
COMMENT ON FUNCTION nats_put_file(text, text, bytea, text) IS 'put a file into an object store, which is created if it is missing';

CREATE FUNCTION nats_get_file(store text, name text, domain text DEFAULT NULL) RETURNS bytea
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_get_file';
COMMENT ON FUNCTION nats_get_file(text, text, text) IS 'content of a file in an object store, its digest verified';

CREATE FUNCTION nats_delete_file(store text, name text, domain text DEFAULT NULL) RETURNS void
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_delete_file';
COMMENT ON FUNCTION nats_delete_file(text, text, text) IS 'delete a file from an object store';

CREATE FUNCTION nats_get_file_info(store text, name text, domain text DEFAULT NULL,
    OUT name text, OUT description text, OUT metadata jsonb, OUT headers jsonb, OUT options jsonb, OUT bucket text,
    OUT nuid text, OUT size bigint, OUT chunks bigint, OUT modified timestamptz, OUT digest text, OUT deleted boolean) RETURNS record
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_get_file_info';
COMMENT ON FUNCTION nats_get_file_info(text, text, text) IS 'what an object store knows of a file';

CREATE FUNCTION nats_get_file_list(store text, domain text DEFAULT NULL,
    OUT name text, OUT description text, OUT metadata jsonb, OUT headers jsonb, OUT options jsonb, OUT bucket text,
    OUT nuid text, OUT size bigint, OUT chunks bigint, OUT modified timestamptz, OUT digest text, OUT deleted boolean) RETURNS SETOF record
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_get_file_list';
COMMENT ON FUNCTION nats_get_file_list(text, text) IS 'files in an object store';

-- Subscriptions and responders: functions that messages call.

CREATE TABLE litmus_pgnats.handler (
    kind text NOT NULL CHECK (kind OPERATOR(pg_catalog.=) ANY ('{subscription,stream,responder}'::pg_catalog.text[])),
    server text NOT NULL,
    subject text NOT NULL,
    queue_group text,
    signature text NOT NULL CHECK (signature OPERATOR(pg_catalog.~) '^("([^"]|"")+"|[a-z_0-9]+)\.("([^"]|"")+"|[a-z_0-9]+)\(((bytea|text|json|jsonb)(,(text|jsonb))*|litmus_pgnats\.message\[\])\)$'),
    role regrole NOT NULL,
    created timestamptz NOT NULL DEFAULT pg_catalog.now(),
    batch_size integer,
    PRIMARY KEY (kind, server, subject, signature)
);
CREATE UNIQUE INDEX handler_responder ON litmus_pgnats.handler (server, subject) WHERE kind OPERATOR(pg_catalog.=) 'responder';
SELECT pg_catalog.pg_extension_config_dump('litmus_pgnats.handler', '');
COMMENT ON TABLE litmus_pgnats.handler IS 'registered subscriptions and responders';
COMMENT ON COLUMN litmus_pgnats.handler.kind IS 'subscription, stream (a durable subscription) or responder';
COMMENT ON COLUMN litmus_pgnats.handler.server IS 'foreign server whose NATS connection the messages come from';
COMMENT ON COLUMN litmus_pgnats.handler.subject IS 'subject, with wildcards; of a durable subscription the stream';
COMMENT ON COLUMN litmus_pgnats.handler.queue_group IS 'queue group that shares the messages, if any';
COMMENT ON COLUMN litmus_pgnats.handler.signature IS 'function that is called, with its argument types';
COMMENT ON COLUMN litmus_pgnats.handler.role IS 'role that registered it, as which the function runs';
COMMENT ON COLUMN litmus_pgnats.handler.created IS 'time of the registration';
COMMENT ON COLUMN litmus_pgnats.handler.batch_size IS 'most messages for one call of a function that takes many';

-- Not dumped, because object ids have a meaning only in the database in which they were written.
CREATE TABLE litmus_pgnats.handler_binding (
    kind text NOT NULL,
    server text NOT NULL,
    subject text NOT NULL,
    signature text NOT NULL,
    function_oid oid NOT NULL,
    server_oid oid,
    system_identifier bigint NOT NULL,
    database_oid oid NOT NULL,
    PRIMARY KEY (kind, server, subject, signature),
    FOREIGN KEY (kind, server, subject, signature) REFERENCES litmus_pgnats.handler ON UPDATE CASCADE ON DELETE CASCADE
);
COMMENT ON TABLE litmus_pgnats.handler_binding IS 'which objects the names in litmus_pgnats.handler mean: a handler calls its function by object id, whatever takes the name';
COMMENT ON COLUMN litmus_pgnats.handler_binding.kind IS 'key of the handler';
COMMENT ON COLUMN litmus_pgnats.handler_binding.server IS 'key of the handler';
COMMENT ON COLUMN litmus_pgnats.handler_binding.subject IS 'key of the handler';
COMMENT ON COLUMN litmus_pgnats.handler_binding.signature IS 'key of the handler';
COMMENT ON COLUMN litmus_pgnats.handler_binding.function_oid IS 'the function; 0 while the transaction that has dropped it runs';
COMMENT ON COLUMN litmus_pgnats.handler_binding.server_oid IS 'the foreign server, if there is one of that name';
COMMENT ON COLUMN litmus_pgnats.handler_binding.system_identifier IS 'the PostgreSQL cluster in which the object ids hold';
COMMENT ON COLUMN litmus_pgnats.handler_binding.database_oid IS 'the database of that cluster in which the object ids hold; in a copy they mean other objects';

CREATE FUNCTION litmus_pgnats.handler_changed() RETURNS trigger
  LANGUAGE c AS 'MODULE_PATHNAME', 'litmus_pgnats_handler_changed';
COMMENT ON FUNCTION litmus_pgnats.handler_changed() IS 'tells the runtime worker, at commit, that handlers have changed';
CREATE TRIGGER handler_changed AFTER INSERT OR UPDATE OR DELETE ON litmus_pgnats.handler
  FOR EACH ROW EXECUTE FUNCTION litmus_pgnats.handler_changed();
CREATE TRIGGER handler_truncated AFTER TRUNCATE ON litmus_pgnats.handler
  FOR EACH STATEMENT EXECUTE FUNCTION litmus_pgnats.handler_changed();

-- What durable subscriptions have besides the columns of handler. Their progress is written in the same transaction as
-- the effects of their messages.
CREATE TABLE litmus_pgnats.handler_stream (
    kind text NOT NULL DEFAULT 'stream' CHECK (kind OPERATOR(pg_catalog.=) 'stream'),
    server text NOT NULL,
    subject text NOT NULL,
    signature text NOT NULL,
    id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid() UNIQUE,
    durable text,
    domain text,
    filter_subjects text[] NOT NULL,
    deliver text NOT NULL CHECK (deliver OPERATOR(pg_catalog.=) ANY ('{all,new,sequence,time}'::pg_catalog.text[])),
    start_sequence bigint,
    start_time timestamptz,
    batch_size integer NOT NULL,
    ack_wait interval NOT NULL,
    max_deliveries integer NOT NULL,
    backoff interval[] NOT NULL,
    stop_on_failure boolean NOT NULL,
    stopped text,
    paused boolean NOT NULL DEFAULT false,
    resumed integer NOT NULL DEFAULT 0,
    sought boolean NOT NULL DEFAULT false,
    name text,
    incarnation text,
    stream_created text,
    applied int8multirange NOT NULL DEFAULT '{}',
    marks bigint[] NOT NULL DEFAULT '{}',
    PRIMARY KEY (kind, server, subject, signature),
    FOREIGN KEY (kind, server, subject, signature) REFERENCES litmus_pgnats.handler ON UPDATE CASCADE ON DELETE CASCADE
) WITH (fillfactor = 50);
-- Subscriptions that share a consumer take messages from each other.
CREATE UNIQUE INDEX handler_stream_name ON litmus_pgnats.handler_stream (server, subject, name);
CREATE UNIQUE INDEX handler_stream_durable ON litmus_pgnats.handler_stream (server, subject, durable, (coalesce(domain, '')));
SELECT pg_catalog.pg_extension_config_dump('litmus_pgnats.handler_stream', '');
COMMENT ON TABLE litmus_pgnats.handler_stream IS 'durable subscriptions: what they ask of JetStream, and how far they are';
COMMENT ON COLUMN litmus_pgnats.handler_stream.kind IS 'key of the handler';
COMMENT ON COLUMN litmus_pgnats.handler_stream.server IS 'key of the handler';
COMMENT ON COLUMN litmus_pgnats.handler_stream.subject IS 'key of the handler: the stream';
COMMENT ON COLUMN litmus_pgnats.handler_stream.signature IS 'key of the handler';
COMMENT ON COLUMN litmus_pgnats.handler_stream.id IS 'key of its own';
COMMENT ON COLUMN litmus_pgnats.handler_stream.durable IS 'name of its consumer, if it was given one';
COMMENT ON COLUMN litmus_pgnats.handler_stream.domain IS 'JetStream domain, if not that of the server';
COMMENT ON COLUMN litmus_pgnats.handler_stream.filter_subjects IS 'subjects of the stream that it wants; none: all';
COMMENT ON COLUMN litmus_pgnats.handler_stream.deliver IS 'where it begins';
COMMENT ON COLUMN litmus_pgnats.handler_stream.start_sequence IS 'the sequence to begin with';
COMMENT ON COLUMN litmus_pgnats.handler_stream.start_time IS 'the time to begin with';
COMMENT ON COLUMN litmus_pgnats.handler_stream.batch_size IS 'most messages for one pull, and one call of a function that takes many';
COMMENT ON COLUMN litmus_pgnats.handler_stream.ack_wait IS 'time after which JetStream delivers again what it has not heard of';
COMMENT ON COLUMN litmus_pgnats.handler_stream.max_deliveries IS 'deliveries after which a message that fails is given up; 0: never';
COMMENT ON COLUMN litmus_pgnats.handler_stream.backoff IS 'times before the second, third and further deliveries of a message that fails';
COMMENT ON COLUMN litmus_pgnats.handler_stream.stop_on_failure IS 'whether messages behind one that fails wait for it';
COMMENT ON COLUMN litmus_pgnats.handler_stream.stopped IS 'why it has stopped, if it has';
COMMENT ON COLUMN litmus_pgnats.handler_stream.paused IS 'whether somebody has paused it';
COMMENT ON COLUMN litmus_pgnats.handler_stream.resumed IS 'how often it was told to go on, moved or altered: what was taken before has no effects';
COMMENT ON COLUMN litmus_pgnats.handler_stream.sought IS 'whether somebody has said where to go on, and no message was applied since';
COMMENT ON COLUMN litmus_pgnats.handler_stream.name IS 'the name by which it is known whatever function it calls, if it was given one';
COMMENT ON COLUMN litmus_pgnats.handler_stream.incarnation IS 'which of the streams that had the name "applied" and "marks" are about';
COMMENT ON COLUMN litmus_pgnats.handler_stream.stream_created IS 'creation of that stream, as JetStream says';
COMMENT ON COLUMN litmus_pgnats.handler_stream.applied IS 'sequences of that stream that are done with';
COMMENT ON COLUMN litmus_pgnats.handler_stream.marks IS 'by which that stream is recognised: sequences of messages that are done with, each followed by the time of the message in microseconds since 1970';
CREATE TRIGGER handler_stream_changed
  AFTER UPDATE OF durable, domain, filter_subjects, batch_size, ack_wait, max_deliveries, backoff, stop_on_failure, stopped, paused, resumed
  ON litmus_pgnats.handler_stream
  FOR EACH ROW EXECUTE FUNCTION litmus_pgnats.handler_changed();

-- Where the stream is another one than before (made anew, put back from a copy, on another NATS server), the position in
-- the former one is kept, in case that comes back.
CREATE TABLE litmus_pgnats.stream_position (
    id uuid NOT NULL REFERENCES litmus_pgnats.handler_stream (id) ON DELETE CASCADE,
    incarnation text NOT NULL,
    stream_created text,
    applied int8multirange NOT NULL,
    marks bigint[] NOT NULL,
    left_at timestamptz NOT NULL,
    PRIMARY KEY (id, incarnation)
);
SELECT pg_catalog.pg_extension_config_dump('litmus_pgnats.stream_position', '');
COMMENT ON TABLE litmus_pgnats.stream_position IS 'how far durable subscriptions are in other streams that had the name before';
COMMENT ON COLUMN litmus_pgnats.stream_position.id IS 'the durable subscription';
COMMENT ON COLUMN litmus_pgnats.stream_position.incarnation IS 'which of the streams that had the name';
COMMENT ON COLUMN litmus_pgnats.stream_position.stream_created IS 'creation of that stream, as JetStream says';
COMMENT ON COLUMN litmus_pgnats.stream_position.applied IS 'sequences of that stream that are done with';
COMMENT ON COLUMN litmus_pgnats.stream_position.marks IS 'by which that stream is recognised, as in handler_stream';
COMMENT ON COLUMN litmus_pgnats.stream_position.left_at IS 'when another stream had taken the name';

-- Not dumped: the consumers are this database's. Rows outlast their subscriptions until the consumer is removed.
CREATE TABLE litmus_pgnats.stream_consumer (
    key bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    server text NOT NULL,
    stream text NOT NULL,
    domain text NOT NULL,
    consumer text NOT NULL,
    subscription uuid NOT NULL,
    role regrole NOT NULL,
    database_oid oid NOT NULL,
    UNIQUE (server, stream, domain, consumer, database_oid)
);
COMMENT ON TABLE litmus_pgnats.stream_consumer IS 'consumers that durable subscriptions of this database have, or have had and are to be removed';
COMMENT ON COLUMN litmus_pgnats.stream_consumer.key IS 'key';
COMMENT ON COLUMN litmus_pgnats.stream_consumer.server IS 'foreign server';
COMMENT ON COLUMN litmus_pgnats.stream_consumer.stream IS 'stream';
COMMENT ON COLUMN litmus_pgnats.stream_consumer.domain IS 'JetStream domain; empty for that of the server';
COMMENT ON COLUMN litmus_pgnats.stream_consumer.consumer IS 'name of the consumer';
COMMENT ON COLUMN litmus_pgnats.stream_consumer.subscription IS 'the durable subscription that has it, or had it last';
COMMENT ON COLUMN litmus_pgnats.stream_consumer.role IS 'role that has subscribed, whose connection removes the consumer';
COMMENT ON COLUMN litmus_pgnats.stream_consumer.database_oid IS 'the database whose consumer it is; not that of a copy';

CREATE TABLE litmus_pgnats.stopped_message (
    id uuid PRIMARY KEY REFERENCES litmus_pgnats.handler_stream (id) ON DELETE CASCADE,
    after_sequence bigint NOT NULL,
    stream_sequence bigint NOT NULL,
    delivery_count integer NOT NULL,
    subject text NOT NULL,
    payload bytea NOT NULL,
    headers jsonb,
    error text NOT NULL,
    sent timestamptz NOT NULL
);
SELECT pg_catalog.pg_extension_config_dump('litmus_pgnats.stopped_message', '');
COMMENT ON TABLE litmus_pgnats.stopped_message IS 'messages at which durable subscriptions have stopped, for resume()';
COMMENT ON COLUMN litmus_pgnats.stopped_message.id IS 'the durable subscription';
COMMENT ON COLUMN litmus_pgnats.stopped_message.after_sequence IS 'the subscription has no message between this sequence of the stream and its own';
COMMENT ON COLUMN litmus_pgnats.stopped_message.stream_sequence IS 'its sequence in the stream';
COMMENT ON COLUMN litmus_pgnats.stopped_message.delivery_count IS 'how often the stream has delivered it';
COMMENT ON COLUMN litmus_pgnats.stopped_message.subject IS 'its subject';
COMMENT ON COLUMN litmus_pgnats.stopped_message.payload IS 'what it carries';
COMMENT ON COLUMN litmus_pgnats.stopped_message.headers IS 'its headers';
COMMENT ON COLUMN litmus_pgnats.stopped_message.error IS 'why the last attempt has failed';
COMMENT ON COLUMN litmus_pgnats.stopped_message.sent IS 'when it was published to the stream';

CREATE FUNCTION litmus_pgnats.ddl() RETURNS event_trigger
  LANGUAGE c AS 'MODULE_PATHNAME', 'litmus_pgnats_ddl';
COMMENT ON FUNCTION litmus_pgnats.ddl() IS 'has handlers follow their functions and servers when these are renamed or dropped';
CREATE EVENT TRIGGER litmus_pgnats_ddl_start ON ddl_command_start
  WHEN TAG IN ('DROP EXTENSION', 'DROP SCHEMA', 'DROP OWNED')
  EXECUTE FUNCTION litmus_pgnats.ddl();
COMMENT ON EVENT TRIGGER litmus_pgnats_ddl_start IS 'notices that the extension itself may be dropped';
CREATE EVENT TRIGGER litmus_pgnats_ddl_end ON ddl_command_end
  WHEN TAG IN ('ALTER EXTENSION', 'ALTER FUNCTION', 'ALTER ROUTINE', 'ALTER SCHEMA', 'ALTER SERVER', 'CREATE SERVER', 'DROP SERVER',
               'GRANT', 'REVOKE', 'CREATE USER MAPPING', 'ALTER USER MAPPING', 'DROP USER MAPPING')
  EXECUTE FUNCTION litmus_pgnats.ddl();
COMMENT ON EVENT TRIGGER litmus_pgnats_ddl_end IS 'notices renamed functions and servers, and changed rights';
-- For all statements, because dropping any object may drop a function with it.
CREATE EVENT TRIGGER litmus_pgnats_drop ON sql_drop
  EXECUTE FUNCTION litmus_pgnats.ddl();
COMMENT ON EVENT TRIGGER litmus_pgnats_drop IS 'notices dropped functions, whose handlers end at the commit, and dropped servers';

CREATE FUNCTION nats_subscribe(subject text, fn regproc, queue_group text DEFAULT NULL, batch_size integer DEFAULT NULL) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'nats_subscribe';
COMMENT ON FUNCTION nats_subscribe(text, regproc, text, integer) IS 'have a function called for each message on a subject, from the commit on';

CREATE FUNCTION nats_unsubscribe(subject text, fn regproc) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'nats_unsubscribe';
COMMENT ON FUNCTION nats_unsubscribe(text, regproc) IS 'no longer have a function called for messages on a subject';

-- NULL is the usual value for a new subscription, and what was before for one that is there.
CREATE FUNCTION nats_subscribe_stream(stream text, fn regproc, filter_subjects text[] DEFAULT NULL, deliver text DEFAULT NULL,
    start_sequence bigint DEFAULT NULL, start_time timestamptz DEFAULT NULL, batch_size integer DEFAULT NULL,
    ack_wait interval DEFAULT NULL, max_deliveries integer DEFAULT NULL, backoff interval[] DEFAULT NULL,
    stop_on_failure boolean DEFAULT NULL, durable text DEFAULT NULL, domain text DEFAULT NULL, name text DEFAULT NULL) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'nats_subscribe_stream';
COMMENT ON FUNCTION nats_subscribe_stream(text, regproc, text[], text, bigint, timestamptz, integer, interval, integer, interval[], boolean, text, text, text)
  IS 'have a function called for each message of a JetStream stream, from the commit on, with effects exactly once';

CREATE FUNCTION nats_alter_subscription_stream(stream text, fn regproc, new_fn regproc DEFAULT NULL, filter_subjects text[] DEFAULT NULL,
    batch_size integer DEFAULT NULL, ack_wait interval DEFAULT NULL, max_deliveries integer DEFAULT NULL,
    backoff interval[] DEFAULT NULL, stop_on_failure boolean DEFAULT NULL, durable text DEFAULT NULL, domain text DEFAULT NULL,
    name text DEFAULT NULL) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'nats_alter_subscription_stream';
COMMENT ON FUNCTION nats_alter_subscription_stream(text, regproc, regproc, text[], integer, interval, integer, interval[], boolean, text, text, text)
  IS 'change what is named of a durable subscription, its function too, and leave the rest and its place in the stream';

CREATE FUNCTION nats_unsubscribe_stream(stream text, fn regproc, keep_consumer boolean DEFAULT false) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'nats_unsubscribe_stream';
COMMENT ON FUNCTION nats_unsubscribe_stream(text, regproc, boolean) IS 'no longer have a function called for messages of a JetStream stream; its consumer is removed after the commit';

CREATE FUNCTION litmus_pgnats.pause(stream text, fn regproc) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'litmus_pgnats_pause';
COMMENT ON FUNCTION litmus_pgnats.pause(text, regproc) IS 'have a durable subscription wait, from the commit on, until it is resumed';

CREATE FUNCTION litmus_pgnats.resume(stream text, fn regproc, skip boolean DEFAULT false) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'litmus_pgnats_resume';
COMMENT ON FUNCTION litmus_pgnats.resume(text, regproc, boolean) IS 'have a durable subscription that was paused or has stopped go on, with the message that it has stopped at or behind it';

CREATE FUNCTION litmus_pgnats.seek(stream text, fn regproc, sequence bigint DEFAULT NULL, "time" timestamptz DEFAULT NULL) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'litmus_pgnats_seek';
COMMENT ON FUNCTION litmus_pgnats.seek(text, regproc, bigint, timestamptz) IS 'have a durable subscription go on with the message of this sequence, or the first one from this time on, whatever it has applied';

CREATE FUNCTION litmus_pgnats_register_responder(subject text, fn regproc, queue_group text DEFAULT NULL) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'litmus_pgnats_register_responder';
COMMENT ON FUNCTION litmus_pgnats_register_responder(text, regproc, text) IS 'answer requests on a subject with what a function returns, from the commit on';

CREATE FUNCTION litmus_pgnats_unregister_responder(subject text) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'litmus_pgnats_unregister_responder';
COMMENT ON FUNCTION litmus_pgnats_unregister_responder(text) IS 'no longer answer requests on a subject';

-- A message with all that is known of it, for functions that take many messages at once.

CREATE TYPE litmus_pgnats.message AS (
    subject text,
    payload bytea,
    reply_to text,
    headers jsonb,
    stream_sequence bigint,
    delivery_count integer,
    "time" timestamptz
);
COMMENT ON TYPE litmus_pgnats.message IS 'a message: elements of the array that a batch callback takes';
COMMENT ON COLUMN litmus_pgnats.message.subject IS 'subject that it was published to';
COMMENT ON COLUMN litmus_pgnats.message.payload IS 'what it carries';
COMMENT ON COLUMN litmus_pgnats.message.reply_to IS 'where its sender expects replies, if anywhere';
COMMENT ON COLUMN litmus_pgnats.message.headers IS 'its headers as JSON, NULL if it has none';
COMMENT ON COLUMN litmus_pgnats.message.stream_sequence IS 'its sequence in the stream, NULL if it comes from no stream';
COMMENT ON COLUMN litmus_pgnats.message.delivery_count IS 'how often the stream has delivered it, this time included; NULL if it comes from no stream';
COMMENT ON COLUMN litmus_pgnats.message."time" IS 'when the stream took it, or when it arrived here';

-- Messages that could not be delivered or executed after all attempts.

CREATE TABLE litmus_pgnats.dead_letter (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source text NOT NULL CHECK (source OPERATOR(pg_catalog.=) ANY ('{outbox,stream}'::pg_catalog.text[])),
    server text NOT NULL,
    role regrole NOT NULL,
    stream text,
    function text,
    stream_sequence bigint,
    delivery_count integer,
    subject text NOT NULL,
    payload bytea NOT NULL,
    headers jsonb,
    domain text,
    message_id uuid,
    error text NOT NULL,
    sent timestamptz NOT NULL,
    died timestamptz NOT NULL DEFAULT pg_catalog.now()
);
SELECT pg_catalog.pg_extension_config_dump('litmus_pgnats.dead_letter', '');
SELECT pg_catalog.pg_extension_config_dump('litmus_pgnats.dead_letter_id_seq', '');
COMMENT ON TABLE litmus_pgnats.dead_letter IS 'messages that could not be delivered, or not be executed, after all attempts';
COMMENT ON COLUMN litmus_pgnats.dead_letter.id IS 'number, for redrive()';
COMMENT ON COLUMN litmus_pgnats.dead_letter.source IS 'outbox: it was to be published; stream: a durable subscription has received it';
COMMENT ON COLUMN litmus_pgnats.dead_letter.server IS 'foreign server';
COMMENT ON COLUMN litmus_pgnats.dead_letter.role IS 'role that has published it, or as which the function runs';
COMMENT ON COLUMN litmus_pgnats.dead_letter.stream IS 'stream that it comes from';
COMMENT ON COLUMN litmus_pgnats.dead_letter.function IS 'function that has failed';
COMMENT ON COLUMN litmus_pgnats.dead_letter.stream_sequence IS 'its sequence in the stream';
COMMENT ON COLUMN litmus_pgnats.dead_letter.delivery_count IS 'how often the stream has delivered it';
COMMENT ON COLUMN litmus_pgnats.dead_letter.subject IS 'its subject';
COMMENT ON COLUMN litmus_pgnats.dead_letter.payload IS 'what it carries';
COMMENT ON COLUMN litmus_pgnats.dead_letter.headers IS 'its headers';
COMMENT ON COLUMN litmus_pgnats.dead_letter.domain IS 'JetStream domain that it was to be published to';
COMMENT ON COLUMN litmus_pgnats.dead_letter.message_id IS 'its Nats-Msg-Id, of a message from the outbox';
COMMENT ON COLUMN litmus_pgnats.dead_letter.error IS 'why the last attempt has failed';
COMMENT ON COLUMN litmus_pgnats.dead_letter.sent IS 'when it was written to the outbox, or published to the stream';
COMMENT ON COLUMN litmus_pgnats.dead_letter.died IS 'when it was given up';

CREATE FUNCTION litmus_pgnats.redrive(id bigint) RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'litmus_pgnats_redrive';
COMMENT ON FUNCTION litmus_pgnats.redrive(bigint) IS 'put a dead letter into the outbox again, or execute it, in this transaction';

CREATE FUNCTION litmus_pgnats.redrive_all(source text DEFAULT NULL, stream text DEFAULT NULL, function text DEFAULT NULL,
    server text DEFAULT NULL, OUT id bigint, OUT error text) RETURNS SETOF record
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'litmus_pgnats_redrive_all';
COMMENT ON FUNCTION litmus_pgnats.redrive_all(text, text, text, text) IS 'redrive all dead letters, or some; return each one''s id and, if it stays a dead letter, why';

CREATE FUNCTION litmus_pgnats.purge_dead_letters(older_than interval DEFAULT NULL) RETURNS bigint
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'litmus_pgnats_purge_dead_letters';
COMMENT ON FUNCTION litmus_pgnats.purge_dead_letters(interval) IS 'remove dead letters, and return their number';

-- The outbox: messages that are delivered to JetStream after the commit of the transaction that has written them.

CREATE SEQUENCE litmus_pgnats.outbox_id;
COMMENT ON SEQUENCE litmus_pgnats.outbox_id IS 'numbers messages in the outbox';
CREATE SEQUENCE litmus_pgnats.outbox_number;
COMMENT ON SEQUENCE litmus_pgnats.outbox_number IS 'numbers commits that have written to the outbox';

CREATE TABLE litmus_pgnats.outbox (
    batch bigint NOT NULL,
    id bigint NOT NULL DEFAULT pg_catalog.nextval('litmus_pgnats.outbox_id'),
    subject text NOT NULL,
    payload bytea NOT NULL,
    headers jsonb,
    domain text,
    message_id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    created timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (batch, id)
);
COMMENT ON TABLE litmus_pgnats.outbox IS 'messages that wait for their delivery to JetStream';
COMMENT ON COLUMN litmus_pgnats.outbox.batch IS 'the same for all messages that one transaction has written for one foreign server as one role';
COMMENT ON COLUMN litmus_pgnats.outbox.id IS 'number of the message';
COMMENT ON COLUMN litmus_pgnats.outbox.subject IS 'its subject';
COMMENT ON COLUMN litmus_pgnats.outbox.payload IS 'what it carries';
COMMENT ON COLUMN litmus_pgnats.outbox.headers IS 'its headers';
COMMENT ON COLUMN litmus_pgnats.outbox.domain IS 'JetStream domain, if not that of the server';
COMMENT ON COLUMN litmus_pgnats.outbox.message_id IS 'its Nats-Msg-Id, by which JetStream knows repetitions';
COMMENT ON COLUMN litmus_pgnats.outbox.created IS 'beginning of the transaction that has written it';

CREATE TABLE litmus_pgnats.outbox_batch (
    number bigint PRIMARY KEY DEFAULT pg_catalog.nextval('litmus_pgnats.outbox_number'),
    batch bigint NOT NULL,
    server text NOT NULL,
    role regrole NOT NULL
);
COMMENT ON TABLE litmus_pgnats.outbox_batch IS 'commits that have written to the outbox, in their order';
COMMENT ON COLUMN litmus_pgnats.outbox_batch.number IS 'taken just before the commit';
COMMENT ON COLUMN litmus_pgnats.outbox_batch.batch IS 'its messages in litmus_pgnats.outbox';
COMMENT ON COLUMN litmus_pgnats.outbox_batch.server IS 'foreign server';
COMMENT ON COLUMN litmus_pgnats.outbox_batch.role IS 'role that has written them, as which they are published';
SELECT pg_catalog.pg_extension_config_dump('litmus_pgnats.outbox', '');
SELECT pg_catalog.pg_extension_config_dump('litmus_pgnats.outbox_batch', '');
SELECT pg_catalog.pg_extension_config_dump('litmus_pgnats.outbox_id', '');
SELECT pg_catalog.pg_extension_config_dump('litmus_pgnats.outbox_number', '');

CREATE FUNCTION nats_publish_text_outbox(subject text, payload text, headers jsonb DEFAULT NULL, domain text DEFAULT NULL) RETURNS bigint
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'nats_publish_text_outbox';
COMMENT ON FUNCTION nats_publish_text_outbox(text, text, jsonb, text) IS 'write a message to the outbox, from which it is delivered to JetStream after the commit, and return its number there';

CREATE FUNCTION nats_publish_json_outbox(subject text, payload json, headers jsonb DEFAULT NULL, domain text DEFAULT NULL) RETURNS bigint
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'nats_publish_text_outbox';
COMMENT ON FUNCTION nats_publish_json_outbox(text, json, jsonb, text) IS 'write a message to the outbox, from which it is delivered to JetStream after the commit, and return its number there';

CREATE FUNCTION nats_publish_jsonb_outbox(subject text, payload jsonb, headers jsonb DEFAULT NULL, domain text DEFAULT NULL) RETURNS bigint
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'nats_publish_jsonb_outbox';
COMMENT ON FUNCTION nats_publish_jsonb_outbox(text, jsonb, jsonb, text) IS 'write a message to the outbox, from which it is delivered to JetStream after the commit, and return its number there';

CREATE FUNCTION nats_publish_binary_outbox(subject text, payload bytea, headers jsonb DEFAULT NULL, domain text DEFAULT NULL) RETURNS bigint
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'nats_publish_binary_outbox';
COMMENT ON FUNCTION nats_publish_binary_outbox(text, bytea, jsonb, text) IS 'write a message to the outbox, from which it is delivered to JetStream after the commit, and return its number there';

CREATE FUNCTION litmus_pgnats.publish_change() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    subject text := '';
    rest text := TG_ARGV[0];
    image jsonb := CASE TG_OP WHEN 'DELETE' THEN to_jsonb(OLD) ELSE to_jsonb(NEW) END;
    parts text[];
    value text;
BEGIN
    IF TG_NARGS <> 1 OR TG_LEVEL <> 'ROW' OR TG_WHEN <> 'AFTER' THEN
        RAISE EXCEPTION 'trigger "%" on table "%" cannot publish changes', TG_NAME, TG_TABLE_NAME
          USING ERRCODE = 'trigger_protocol_violated',
          HINT = 'litmus_pgnats.publish_change(''subject'') is for AFTER INSERT OR UPDATE OR DELETE ... FOR EACH ROW.';
    END IF;
    LOOP
        parts := regexp_match(rest, '^([^{]*)\{([^{}]+)\}(.*)$');
        EXIT WHEN parts IS NULL;
        value := CASE parts[2] WHEN 'op' THEN lower(TG_OP) WHEN 'table' THEN TG_TABLE_NAME WHEN 'schema' THEN TG_TABLE_SCHEMA
                 ELSE image ->> parts[2] END;
        IF value IS NULL AND NOT image ? parts[2] THEN
            RAISE EXCEPTION 'column "%" in the subject of trigger "%" does not exist', parts[2], TG_NAME
              USING ERRCODE = 'undefined_column';
        END IF;
        -- What a token of a subject cannot have.
        value := regexp_replace(left(coalesce(nullif(value, ''), '_'), 255), '[[:space:][:cntrl:].*>]', '_', 'g');
        subject := subject || parts[1] || value;
        rest := parts[3];
    END LOOP;
    subject := subject || rest;
    PERFORM @extschema@.nats_publish_jsonb_outbox(subject, jsonb_build_object(
        'operation', lower(TG_OP), 'schema', TG_TABLE_SCHEMA, 'table', TG_TABLE_NAME,
        'before', CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END,
        'after', CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END,
        'transaction', pg_current_xact_id()::text, 'lsn', pg_current_wal_insert_lsn()::text, 'time', clock_timestamp()));
    RETURN NULL;
END $$;
COMMENT ON FUNCTION litmus_pgnats.publish_change() IS 'row-level trigger that writes changes of a table to the outbox';

-- Each role sees what is its own, and members of pg_monitor see that there is more, without the content.
CREATE VIEW litmus_pgnats.dead_letters WITH (security_barrier) AS
  SELECT id, source, server, role, stream, function, stream_sequence, delivery_count, subject,
         pg_catalog.octet_length(payload) AS size, error, sent, died,
         CASE WHEN pg_catalog.pg_has_role(role, 'USAGE') THEN payload END AS payload,
         CASE WHEN pg_catalog.pg_has_role(role, 'USAGE') THEN headers END AS headers
  FROM litmus_pgnats.dead_letter
  WHERE pg_catalog.pg_has_role(role, 'USAGE') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE');
COMMENT ON VIEW litmus_pgnats.dead_letters IS 'messages that could not be delivered, or not be executed, each with its content for the role whose it is';

CREATE VIEW litmus_pgnats.outbox_waiting WITH (security_barrier) AS
  SELECT b.server, b.role, pg_catalog.count(*) AS messages, pg_catalog.min(o.created) AS oldest
  FROM litmus_pgnats.outbox_batch b JOIN litmus_pgnats.outbox o ON o.batch OPERATOR(pg_catalog.=) b.batch
  WHERE pg_catalog.pg_has_role(b.role, 'USAGE') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE')
  GROUP BY b.server, b.role;
COMMENT ON VIEW litmus_pgnats.outbox_waiting IS 'messages in the outbox that wait for their delivery, by server and role';

GRANT SELECT ON litmus_pgnats.dead_letters, litmus_pgnats.outbox_waiting TO PUBLIC;
-- Users name objects of this schema in their own tables and statements.
GRANT USAGE ON SCHEMA litmus_pgnats TO PUBLIC;

-- What the workers do. None of these functions and views asks NATS.

CREATE FUNCTION litmus_pgnats.stat_handlers(
    OUT kind text, OUT server text, OUT subject text, OUT function text, OUT state text, OUT problem text,
    OUT messages bigint, OUT calls bigint, OUT errors bigint, OUT last_error text, OUT last_error_seconds double precision,
    OUT dropped bigint, OUT queued bigint, OUT queued_bytes bigint, OUT pending bigint, OUT lag_seconds double precision,
    OUT total_exec_time double precision, OUT max_exec_time double precision, OUT exec_time_histogram bigint[],
    OUT reset_seconds double precision, OUT consumer text, OUT retrying bigint) RETURNS SETOF record
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'litmus_pgnats_stat_handlers';
COMMENT ON FUNCTION litmus_pgnats.stat_handlers() IS 'what the runtime worker counts of the subscriptions and responders that the caller may see';

CREATE FUNCTION litmus_pgnats.stat_executors(
    OUT database oid, OUT pid integer, OUT state text, OUT handler text, OUT seconds double precision) RETURNS SETOF record
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'litmus_pgnats_stat_executors';
COMMENT ON FUNCTION litmus_pgnats.stat_executors() IS 'executors of all databases';

CREATE FUNCTION litmus_pgnats.stat_connections(
    OUT database oid, OUT server oid, OUT server_name text, OUT user_mapping oid, OUT pid integer, OUT sessions bigint,
    OUT state text, OUT host text, OUT since_seconds double precision, OUT reconnects bigint,
    OUT last_error text, OUT last_error_seconds double precision, OUT rtt double precision,
    OUT in_msgs bigint, OUT out_msgs bigint, OUT in_bytes bigint, OUT out_bytes bigint,
    OUT queued bigint, OUT queued_bytes bigint, OUT reset_seconds double precision) RETURNS SETOF record
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'litmus_pgnats_stat_connections';
COMMENT ON FUNCTION litmus_pgnats.stat_connections() IS 'NATS connections of all databases';

CREATE FUNCTION litmus_pgnats.stat_transfers(
    OUT pid integer, OUT database oid, OUT server oid, OUT server_name text, OUT command text, OUT store text, OUT name text,
    OUT bytes_processed bigint, OUT bytes_total bigint, OUT since_seconds double precision) RETURNS SETOF record
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'litmus_pgnats_stat_transfers';
COMMENT ON FUNCTION litmus_pgnats.stat_transfers() IS 'objects that are being put and got, in all databases';

CREATE FUNCTION litmus_pgnats.stat_control_channel(
    OUT pid integer, OUT started_seconds double precision, OUT connections bigint, OUT calls bigint, OUT queued_bytes bigint,
    OUT frames_in bigint, OUT frames_out bigint, OUT bytes_in bigint, OUT bytes_out bigint,
    OUT reset_seconds double precision) RETURNS SETOF record
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'litmus_pgnats_stat_control_channel';
COMMENT ON FUNCTION litmus_pgnats.stat_control_channel() IS 'what passes between the runtime worker and all other processes';

CREATE FUNCTION litmus_pgnats.stat_reset() RETURNS void
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'litmus_pgnats_stat_reset';
COMMENT ON FUNCTION litmus_pgnats.stat_reset() IS 'count anew: the handlers and connections of this database, and the control channel';

CREATE FUNCTION litmus_pgnats.exec_time_bounds() RETURNS double precision[]
  LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
  AS $$ SELECT '{0.1,0.25,0.5,1,2.5,5,10,25,50,100,250,1000,5000,30000}'::double precision[] $$;
COMMENT ON FUNCTION litmus_pgnats.exec_time_bounds() IS 'upper bounds in milliseconds of the buckets of exec_time_histogram, whose last one has none';

CREATE VIEW litmus_pgnats.handlers WITH (security_barrier) AS
  SELECT h.kind, h.server, h.subject, h.queue_group, h.signature AS function, h.role,
         coalesce(s.state, 'off') AS state,
         CASE WHEN s.state IS NOT NULL THEN s.problem
              WHEN pg_catalog.pg_is_in_recovery() THEN 'this server is a standby'
              ELSE 'the runtime worker does not run, or found no worker slot to refresh this database (see litmus_pgnats.executors)'
         END AS problem, coalesce(s.messages, 0) AS messages,
         coalesce(s.errors, 0) AS errors, coalesce(s.dropped, 0) AS dropped, coalesce(s.queued, 0) AS queued,
         coalesce(s.queued_bytes, 0) AS queued_bytes, s.last_error,
         pg_catalog.to_timestamp(s.last_error_seconds) AS last_error_at,
         s.pending, pg_catalog.make_interval(secs => s.lag_seconds) AS lag, coalesce(s.calls, 0) AS calls,
         coalesce(s.total_exec_time, 0) AS total_exec_time,
         s.total_exec_time OPERATOR(pg_catalog./) nullif(s.calls, 0) AS mean_exec_time,
         s.max_exec_time, s.exec_time_histogram, pg_catalog.to_timestamp(s.reset_seconds) AS stats_reset,
         s.consumer, s.retrying
  FROM litmus_pgnats.handler h LEFT JOIN litmus_pgnats.stat_handlers() s
    ON s.kind OPERATOR(pg_catalog.=) h.kind AND s.server OPERATOR(pg_catalog.=) h.server
    AND s.subject OPERATOR(pg_catalog.=) h.subject AND s.function OPERATOR(pg_catalog.=) h.signature
  WHERE pg_catalog.pg_has_role(h.role, 'USAGE') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE');
COMMENT ON VIEW litmus_pgnats.handlers IS 'subscriptions and responders of this database, what is wrong with each, and what became of its messages';

CREATE VIEW litmus_pgnats.subscriptions AS
  SELECT server, subject, queue_group, function, role, state, problem, messages, errors, dropped, queued, queued_bytes,
         last_error, last_error_at, lag, calls, total_exec_time, mean_exec_time, max_exec_time, exec_time_histogram, stats_reset
  FROM litmus_pgnats.handlers WHERE kind OPERATOR(pg_catalog.=) 'subscription';
COMMENT ON VIEW litmus_pgnats.subscriptions IS 'the subscriptions among litmus_pgnats.handlers';

CREATE VIEW litmus_pgnats.stream_subscriptions AS
  SELECT h.server, h.subject AS stream, d.filter_subjects, h.function, h.role, h.state, h.problem,
         coalesce((SELECT CASE WHEN pg_catalog.lower(a) OPERATOR(pg_catalog.=) 0 THEN pg_catalog.upper(a) OPERATOR(pg_catalog.-) 1 END
                   FROM pg_catalog.unnest(d.applied) a LIMIT 1), 0) AS applied_to,
         (SELECT pg_catalog.max(pg_catalog.upper(a)) OPERATOR(pg_catalog.-) 1 FROM pg_catalog.unnest(d.applied) a) AS latest,
         h.messages, h.errors, h.queued, h.queued_bytes, h.last_error, h.last_error_at,
         h.pending, h.lag, h.calls, h.total_exec_time, h.mean_exec_time, h.max_exec_time, h.exec_time_histogram, h.stats_reset,
         h.retrying, h.consumer, d.domain, d.deliver, d.start_sequence, d.start_time, d.batch_size, d.ack_wait, d.max_deliveries,
         d.backoff, d.stop_on_failure, d.name
  FROM litmus_pgnats.handlers h JOIN litmus_pgnats.handler_stream d
    ON d.kind OPERATOR(pg_catalog.=) h.kind AND d.server OPERATOR(pg_catalog.=) h.server
    AND d.subject OPERATOR(pg_catalog.=) h.subject AND d.signature OPERATOR(pg_catalog.=) h.function;
COMMENT ON VIEW litmus_pgnats.stream_subscriptions IS 'the durable subscriptions among litmus_pgnats.handlers, and how far they are';

CREATE VIEW litmus_pgnats.responders AS
  SELECT server, subject, queue_group, function, role, state, problem, messages, errors, dropped, queued, queued_bytes,
         last_error, last_error_at, lag, calls, total_exec_time, mean_exec_time, max_exec_time, exec_time_histogram, stats_reset
  FROM litmus_pgnats.handlers WHERE kind OPERATOR(pg_catalog.=) 'responder';
COMMENT ON VIEW litmus_pgnats.responders IS 'the responders among litmus_pgnats.handlers';

CREATE VIEW litmus_pgnats.executors AS
  SELECT coalesce(d.datname::text, s.database::text) AS database, s.pid, s.state, s.handler,
         pg_catalog.now() OPERATOR(pg_catalog.-) pg_catalog.make_interval(secs => s.seconds) AS since
  FROM litmus_pgnats.stat_executors() s LEFT JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) s.database;
COMMENT ON VIEW litmus_pgnats.executors IS 'executors of all databases, and those that lack a worker slot';

CREATE VIEW litmus_pgnats.connections AS
  SELECT coalesce(d.datname::text, s.database::text) AS database, coalesce(f.srvname::text, s.server_name) AS server,
         coalesce(u.usename::text, s.user_mapping::text) AS user_mapping, s.pid, s.state, s.host,
         pg_catalog.to_timestamp(s.since_seconds) AS since, s.reconnects, s.last_error,
         pg_catalog.to_timestamp(s.last_error_seconds) AS last_error_at, s.rtt,
         s.in_msgs, s.out_msgs, s.in_bytes, s.out_bytes, s.sessions, s.queued, s.queued_bytes,
         pg_catalog.to_timestamp(s.reset_seconds) AS stats_reset
  FROM litmus_pgnats.stat_connections() s LEFT JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) s.database
    LEFT JOIN pg_catalog.pg_foreign_server f
      ON f.oid OPERATOR(pg_catalog.=) s.server AND d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
    LEFT JOIN pg_catalog.pg_user_mappings u
      ON u.umid OPERATOR(pg_catalog.=) s.user_mapping AND d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database();
COMMENT ON VIEW litmus_pgnats.connections IS 'NATS connections of all databases';

CREATE VIEW litmus_pgnats.object_transfers AS
  SELECT s.pid, coalesce(d.datname::text, s.database::text) AS database, s.server_name AS server, s.command, s.store, s.name,
         s.bytes_processed, s.bytes_total, pg_catalog.to_timestamp(s.since_seconds) AS since
  FROM litmus_pgnats.stat_transfers() s LEFT JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) s.database;
COMMENT ON VIEW litmus_pgnats.object_transfers IS 'objects that are being put and got, in all databases, and how far each is';

CREATE VIEW litmus_pgnats.control_channel AS
  SELECT s.pid, pg_catalog.to_timestamp(s.started_seconds) AS started, s.connections, s.calls, s.queued_bytes,
         s.frames_in, s.frames_out, s.bytes_in, s.bytes_out, pg_catalog.to_timestamp(s.reset_seconds) AS stats_reset
  FROM litmus_pgnats.stat_control_channel() s;
COMMENT ON VIEW litmus_pgnats.control_channel IS 'the runtime worker, and what passes between it and all other processes';

CREATE FUNCTION litmus_pgnats.doctor(
    OUT check_name text, OUT object text, OUT status text, OUT found text, OUT advice text) RETURNS SETOF record
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'litmus_pgnats_doctor';
COMMENT ON FUNCTION litmus_pgnats.doctor() IS 'examine installation, foreign servers, NATS and handlers: what is well, what is wrong, and what to do';

REVOKE ALL ON FUNCTION litmus_pgnats.stat_executors(), litmus_pgnats.stat_connections(),
  litmus_pgnats.stat_transfers(), litmus_pgnats.stat_control_channel(), litmus_pgnats.stat_reset(), litmus_pgnats.doctor()
  FROM PUBLIC;
GRANT USAGE ON SCHEMA litmus_pgnats TO pg_monitor;
GRANT SELECT ON litmus_pgnats.handlers, litmus_pgnats.subscriptions, litmus_pgnats.stream_subscriptions,
  litmus_pgnats.responders TO PUBLIC;
GRANT SELECT ON litmus_pgnats.executors, litmus_pgnats.connections, litmus_pgnats.object_transfers,
  litmus_pgnats.control_channel
  TO pg_monitor;
GRANT EXECUTE ON FUNCTION litmus_pgnats.stat_executors(), litmus_pgnats.stat_connections(),
  litmus_pgnats.stat_transfers(), litmus_pgnats.stat_control_channel(), litmus_pgnats.doctor()
  TO pg_monitor;

-- The connection to NATS, and the library's version.

CREATE FUNCTION nats_get_server_info(
    OUT server_id text, OUT server_name text, OUT host text, OUT port integer, OUT version text,
    OUT auth_required boolean, OUT tls_required boolean, OUT max_payload bigint, OUT proto integer,
    OUT client_id bigint, OUT go text, OUT nonce text, OUT connect_urls text[], OUT client_ip text,
    OUT headers boolean, OUT lame_duck_mode boolean) RETURNS record
  LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'nats_get_server_info';
COMMENT ON FUNCTION nats_get_server_info() IS 'what the NATS server says of itself and of the connection';

CREATE FUNCTION litmus_pgnats_reload_conf() RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'litmus_pgnats_reload_conf';
COMMENT ON FUNCTION litmus_pgnats_reload_conf() IS 'apply changed options of the foreign server to the running NATS connections';

CREATE FUNCTION litmus_pgnats_reload_conf_force() RETURNS void
  LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'litmus_pgnats_reload_conf_force';
COMMENT ON FUNCTION litmus_pgnats_reload_conf_force() IS 'make new NATS connections for the foreign server in place of the present ones, whether or not options have changed';

CREATE FUNCTION litmus_pgnats_version(
    OUT version text, OUT commit_date date, OUT short_commit text, OUT branch text, OUT last_tag text) RETURNS record
  LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'litmus_pgnats_version';
COMMENT ON FUNCTION litmus_pgnats_version() IS 'version of the library and the commit it was built from';
