# Sourced by run.sh.
# shellcheck shell=bash

chapter "Publishing"

tell "An outside program listens, and a statement publishes. psql ends right after; the message has left all the same."
listen 'orders.*' 1
sql <<'SQL'
SELECT nats_publish_text('orders.created', 'order 1, two apples');
SQL
heard
expect "order 1, two apples"

tell "json goes as it was typed, jsonb in its canonical form. Headers are a JSON object; an array is several values."
listen 'orders.*' 2
sql <<'SQL'
SELECT nats_publish_json('orders.paid', '{"order":1,   "paid":true}');
SELECT nats_publish_jsonb('orders.sent', '{"order":1,   "by":"bike"}', 'orders.replies',
                          '{"Nats-Msg-Id": "1", "tag": ["fresh", "fragile"]}');
SQL
heard
expect '{"order":1,   "paid":true}'
expect '{"by": "bike", "order": 1}'
expect "tag: fragile"

tell "One message for each row, by an ordinary trigger."
listen 'items.>' 3
sql <<'SQL'
CREATE TABLE items (id int, name text);
CREATE FUNCTION tell_nats() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM nats_publish_jsonb('items.' || lower(TG_OP), to_jsonb(NEW));
  RETURN NEW;
END $$;
CREATE TRIGGER tell_nats AFTER INSERT OR UPDATE ON items FOR EACH ROW EXECUTE FUNCTION tell_nats();
INSERT INTO items VALUES (1, 'apple'), (2, 'pear');
UPDATE items SET name = 'plum' WHERE id = 2;
SQL
heard
expect "items.update"
expect '"plum"'

tell "A message may wait for the commit: what is rolled back, a savepoint or all, is never sent."
listen 'parts.>' 2
sql <<'SQL'
SET litmus_pgnats.publish = 'on_commit';
BEGIN;
SELECT nats_publish_text('parts.taken', 'a wheel');
SAVEPOINT perhaps;
SELECT nats_publish_text('parts.taken', 'a spare wheel');
ROLLBACK TO perhaps;
SELECT nats_publish_text('parts.taken', 'an axle');
COMMIT;
SQL
heard
expect "a wheel"
expect "an axle"
