-- The first call of a session opens its channel; that is not measured.
SELECT nats_publish_text('warm', 'up') \g /dev/null
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS start \gset
SELECT count(nats_publish_text('b', repeat('x', 100))) FROM generate_series(1, :messages) \g /dev/null
SELECT :start, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS sent;
