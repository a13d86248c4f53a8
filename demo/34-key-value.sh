# Sourced by run.sh.
# shellcheck shell=bash

chapter "Key-value buckets"

tell "The first put makes the bucket. Each write returns the key's new revision; a key that is not there is NULL."
sql <<'SQL'
SELECT nats_put_text('settings', 'colour', 'green') AS revision;
SELECT nats_get_text('settings', 'colour') AS colour, nats_get_text('settings', 'size') IS NULL AS no_size;
SQL
expect "green  | t"

tell "It is the bucket that every NATS client knows."
run get settings colour
expect "green"
run put settings colour blue
sql <<'SQL'
SELECT nats_get_text('settings', 'colour') AS colour;
SQL
expect "blue"

tell "No update is lost: a revision says what was read, and an update on an older one fails."
sql <<'SQL'
SELECT nats_create_jsonb('settings', 'stock', '{"apples": 10}') AS revision;
SELECT nats_update_jsonb('settings', 'stock', '{"apples": 9}', 3) AS revision;
SQL
expect " 4"
sql_fails 40001 <<'SQL'
SELECT nats_update_jsonb('settings', 'stock', '{"apples": 8}', 3);
SQL
expect 'key "stock" of bucket "settings" has another revision'

tell "A bucket may keep more than the last value, and have its values expire."
sql <<'SQL'
SELECT nats_create_bucket('prices', history => 5, ttl => '1 hour', storage => 'memory');
SELECT nats_put_text('prices', 'apple', '1.10') AS first, nats_put_text('prices', 'apple', '1.20') AS second;
SELECT nats_delete_value('prices', 'apple');
SELECT revision, operation, convert_from(value, 'UTF8') AS value FROM nats_get_history('prices', 'apple');
SELECT count(*) AS keys FROM nats_list_keys('prices');
SQL
expect "2 | PUT       | 1.20"
expect "3 | DEL"
