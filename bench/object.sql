-- Prints the microseconds that a put and a get of :bytes bytes took. In PL/pgSQL, so that the content is in memory;
-- with a generic plan, because a custom one has PL/pgSQL's content copied into it, several times over.
-- The first call of a session opens its channel; that is not measured.
SELECT server_id FROM nats_get_server_info() \g /dev/null
CREATE FUNCTION pg_temp.measure(bytes int, OUT put bigint, OUT get bigint) LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  content bytea := convert_to(repeat('0123456789abcdef', bytes / 16), 'UTF8');
  start timestamptz := clock_timestamp();
BEGIN
  PERFORM nats_put_file('bench', 'file', content);
  put := extract(epoch FROM clock_timestamp() - start) * 1000000;
  start := clock_timestamp();
  content := nats_get_file('bench', 'file');
  get := extract(epoch FROM clock_timestamp() - start) * 1000000;
  ASSERT length(content) = bytes;
END $$;
SELECT put, get FROM pg_temp.measure(:bytes);
