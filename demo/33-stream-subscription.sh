# Sourced by run.sh.
# shellcheck shell=bash

chapter "Durable subscriptions: every message of a stream, once"

tell "The position in the stream is committed together with the effects. Messages from before the subscription are not missed."
sql <<'SQL'
CREATE TABLE inbox (subject text, payload text);
CREATE FUNCTION take(msg text, subject text) RETURNS void LANGUAGE sql AS $$
  INSERT INTO public.inbox VALUES (subject, msg) $$;
SELECT nats_subscribe_stream('EVENTS', 'take', filter_subjects => '{events.order,events.outbox}');
SELECT pg_sleep(0.5);
SELECT * FROM inbox;
SELECT stream, state, applied_to, messages, errors FROM litmus_pgnats.stream_subscriptions;
SQL
expect "committed"
expect "live"

tell "A function of many messages gets them in one call and one commit."
sql <<'SQL'
SELECT nats_unsubscribe_stream('EVENTS', 'take');
CREATE FUNCTION take_many(messages litmus_pgnats.message[]) RETURNS void LANGUAGE sql AS $$
  INSERT INTO public.inbox SELECT 'in a batch of ' || cardinality(messages), convert_from(payload, 'utf8')
  FROM unnest(messages) $$;
SELECT nats_subscribe_stream('EVENTS', 'take_many');
SELECT pg_sleep(0.5);
SELECT subject, count(*) FROM inbox GROUP BY subject;
SELECT nats_unsubscribe_stream('EVENTS', 'take_many');
SQL
expect "in a batch of"

tell "A message that keeps failing holds up no other: after the last attempt it is a dead letter. When the function is right, it is \
executed again, by hand."
sql <<'SQL'
CREATE TABLE paid (invoice int);
CREATE FUNCTION pay(msg text) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.paid VALUES (msg::int) $$;
SELECT nats_subscribe_stream('EVENTS', 'pay', filter_subjects => '{events.pay}', max_deliveries => 2, backoff => '{100 ms}');
SELECT nats_publish_text_stream('events.pay', '7') > 0 AS stored, nats_publish_text_stream('events.pay', 'No. 8') > 0 AS stored,
       nats_publish_text_stream('events.pay', '9') > 0 AS stored;
SELECT pg_sleep(1);
SELECT * FROM paid;
SELECT source, function, delivery_count, error FROM litmus_pgnats.dead_letters;
CREATE OR REPLACE FUNCTION pay(msg text) RETURNS void LANGUAGE sql AS $$
  INSERT INTO public.paid VALUES (substring(msg FROM '\d+')::int) $$;
SELECT litmus_pgnats.redrive(id) FROM litmus_pgnats.dead_letters;
SELECT array_agg(invoice ORDER BY invoice) AS paid FROM paid;
SELECT nats_unsubscribe_stream('EVENTS', 'pay');
SQL
expect "22P02"
expect "{7,8,9}"
