-- litmus_pgnats 0.1.0. Run by CREATE EXTENSION; functions go to the target schema.
\echo Use "CREATE EXTENSION litmus_pgnats" to load this file. \quit

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

-- The connection.

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
COMMENT ON FUNCTION litmus_pgnats_reload_conf_force() IS 'drop the NATS connections of the foreign server and connect anew';

CREATE FUNCTION litmus_pgnats_version(
    OUT version text, OUT commit_date date, OUT short_commit text, OUT branch text, OUT last_tag text) RETURNS record
  LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'litmus_pgnats_version';
COMMENT ON FUNCTION litmus_pgnats_version() IS 'version of the library and the commit it was built from';
