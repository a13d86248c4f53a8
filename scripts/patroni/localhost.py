"""Stands for http://localhost:8008 where several members of a Patroni cluster share one machine.

localhost.py PORT DATA_DIRECTORY=API_PORT...

In a real cluster each PostgreSQL asks the Patroni of its own machine, at the same URL. Here both would ask the same
one. So this program looks which server's process a connection comes from, and passes it on to that server's Patroni.
"""

import asyncio
import os
import sys


def parent(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return int(stat.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def socket_of(peer, port):
    """The inode of the socket that is bound to `peer` and connected to `port`."""
    wanted = f":{peer:04X}", f":{port:04X}"
    with open("/proc/net/tcp", encoding="ascii") as table:
        for line in table:
            fields = line.split()
            if (fields[1][-5:], fields[2][-5:]) == wanted:
                return f"socket:[{fields[9]}]"
    return None


def holds(pid, link):
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            return any(os.readlink(entry.path) == link for entry in entries)
    except OSError:
        return False


def api_of(peer, port, members):
    """The API of the member that the connection comes from."""
    link = socket_of(peer, port)
    for directory, api in members.items():
        try:
            with open(f"{directory}/postmaster.pid", encoding="utf-8") as file:
                postmaster = int(file.readline())
        except (OSError, ValueError):
            continue
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        if any(parent(pid) == postmaster and holds(pid, link) for pid in pids):
            return api
    return None


async def copy(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def main(port, members):
    async def serve(reader, writer):
        api = api_of(writer.get_extra_info("peername")[1], port, members)
        try:
            there = await asyncio.open_connection("127.0.0.1", api) if api else None
        except OSError:
            there = None
        if there is None:
            writer.transport.abort()
            return
        await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    pairs = [argument.rpartition("=") for argument in sys.argv[2:]]
    asyncio.run(main(int(sys.argv[1]), {directory: int(api) for directory, _, api in pairs}))
