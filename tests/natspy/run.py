"""A client of NATS that shares no code with async-nats: does what it is told, for tests/support/natspy.rs.

Usage: run.py URL <STEPS, with STEPS as JSON: [[operation, argument...]...]. Prints the outcome of each step as JSON.
Bytes go in and out as hexadecimal digits.
"""

import asyncio
import json
import sys

import nats
from nats.js.api import KeyValueConfig, ObjectMeta, ObjectMetaOptions, StorageType, StreamConfig
from nats.js.errors import NotFoundError


async def stream_create(js, name, subject):
    await js.add_stream(StreamConfig(name=name, subjects=[subject], storage=StorageType.MEMORY))


async def stream_publish(js, subject, data, headers):
    return (await js.publish(subject, bytes.fromhex(data), headers=headers)).seq


async def stream_get(js, name, sequence):
    message = await js.get_msg(name, sequence)
    return [message.subject, (message.data or b"").hex(), message.headers]


async def kv_create(js, bucket, history, direct):
    await js.create_key_value(KeyValueConfig(bucket=bucket, history=history, direct=direct))


async def kv_put(js, bucket, key, value):
    return await (await js.key_value(bucket)).put(key, bytes.fromhex(value))


async def kv_get(js, bucket, key):
    entry = await (await js.key_value(bucket)).get(key)
    return [(entry.value or b"").hex(), entry.revision]


async def kv_update(js, bucket, key, value, revision):
    return await (await js.key_value(bucket)).update(key, bytes.fromhex(value), revision)


async def kv_delete(js, bucket, key):
    await (await js.key_value(bucket)).delete(key)


async def kv_purge(js, bucket, key):
    await (await js.key_value(bucket)).purge(key)


async def kv_keys(js, bucket):
    return sorted(await (await js.key_value(bucket)).keys())


async def kv_history(js, bucket, key):
    entries = await (await js.key_value(bucket)).history(key)
    return [[entry.operation or "PUT", (entry.value or b"").hex(), entry.revision] for entry in entries]


async def object_create(js, store):
    await js.create_object_store(store)


async def object_put(js, store, name, data, chunk_size):
    meta = ObjectMeta(
        name=name,
        description="of nats-py",
        headers={"Kind": ["test"]},
        options=ObjectMetaOptions(max_chunk_size=chunk_size),
    )
    await (await js.object_store(store)).put(name, bytes.fromhex(data), meta=meta)


async def object_get(js, store, name):
    found = await (await js.object_store(store)).get(name)
    return (found.data or b"").hex()


async def object_info(js, store, name):
    info = await (await js.object_store(store)).get_info(name)
    return [info.name, info.size, info.chunks, info.digest, info.deleted or False]


async def object_delete(js, store, name):
    await (await js.object_store(store)).delete(name)


async def object_names(js, store):
    return sorted(entry.name for entry in await (await js.object_store(store)).list() if not entry.deleted)


async def main():
    client = await nats.connect(sys.argv[1])
    outcomes = []
    for operation, *arguments in json.load(sys.stdin):
        try:
            outcomes.append(await globals()[operation](client.jetstream(), *arguments))
        except NotFoundError as error:
            outcomes.append(type(error).__name__)
    await client.close()
    print(json.dumps(outcomes))


asyncio.run(main())
