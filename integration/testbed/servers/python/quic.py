"""aioquic on the port of the gauntlet that has names bound: a line for each ClientHello."""

import asyncio
import sys

from aioquic import tls
from aioquic.asyncio import serve
from aioquic.quic.configuration import QuicConfiguration

ADDRESS, CERTIFICATE, KEY = sys.argv[1:]
PORTS = (443, 8444)


def note(*fields):
    print("\t".join(map(str, fields)), flush=True)


pull = tls.pull_client_hello


def pull_and_note(buffer):
    hello = pull(buffer)
    note("hello", 8444, hello.server_name or "")
    return hello


tls.pull_client_hello = pull_and_note


async def main():
    configuration = QuicConfiguration(is_client=False, alpn_protocols=["h3"])
    configuration.load_cert_chain(CERTIFICATE, KEY)
    await serve(ADDRESS, 8444, configuration=configuration)
    note("ready")
    await asyncio.Future()


asyncio.run(main())
