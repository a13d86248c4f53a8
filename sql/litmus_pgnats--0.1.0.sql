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
