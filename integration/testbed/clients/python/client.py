"""Gets a URL as programs in Python do, and prints the body and, on a line of its own, the status.

Arguments: PROTOCOL AUTHORITY-PEM URL. The library is the usual one for each protocol: urllib, httpx for HTTP/2, aioquic
for HTTP/3, and pyOpenSSL for a group that the ssl module's own OpenSSL may lack.
"""

import asyncio
import socket
import ssl
import sys
import urllib.error
import urllib.request
from urllib.parse import urlsplit

WITHIN_S = 4


def show(status, body):
    print(f"{body}\n{status}")


def by_urllib(protocol, authority, url):
    context = ssl.create_default_context(cafile=authority)
    if protocol == "tls12":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        with urllib.request.urlopen(url, timeout=WITHIN_S, context=context) as response:
            show(response.status, response.read().decode())
    except urllib.error.HTTPError as error:
        show(error.code, error.read().decode())


def by_httpx(authority, url):
    import httpx

    context = ssl.create_default_context(cafile=authority)
    with httpx.Client(http1=False, http2=True, verify=context, timeout=WITHIN_S) as client:
        response = client.get(url)
        show(response.status_code, response.text)


def by_pyopenssl(authority, url):
    from OpenSSL import SSL

    host, port = urlsplit(url).hostname, urlsplit(url).port
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.load_verify_locations(authority)
    context.set_verify(SSL.VERIFY_PEER)
    connection = SSL.Connection(context, socket.create_connection((host, port), WITHIN_S))
    connection.setblocking(True)
    connection.set_tlsext_host_name(host.encode())
    connection.set_connect_state()
    connection.do_handshake()
    connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
    octets = b""
    try:
        while True:
            octets += connection.recv(4096)
    except (SSL.ZeroReturnError, SSL.SysCallError):
        pass
    head, _, body = octets.decode().partition("\r\n\r\n")
    show(head.split()[1], body)


async def by_aioquic(authority, url):
    from aioquic.asyncio.client import connect
    from aioquic.asyncio.protocol import QuicConnectionProtocol
    from aioquic.h3.connection import H3Connection
    from aioquic.h3.events import DataReceived, HeadersReceived
    from aioquic.quic.configuration import QuicConfiguration

    host, port = urlsplit(url).hostname, urlsplit(url).port

    class Client(QuicConnectionProtocol):
        http = None

        def quic_event_received(self, event):
            for found in self.http.handle_event(event) if self.http else ():
                if isinstance(found, HeadersReceived):
                    self.status = dict(found.headers)[b":status"].decode()
                if isinstance(found, DataReceived):
                    self.body += found.data
                if found.stream_ended:
                    self.done.set_result(None)

        async def get(self):
            self.http, self.body, self.done = H3Connection(self._quic), b"", asyncio.get_running_loop().create_future()
            stream = self._quic.get_next_available_stream_id()
            authority = f"{host}:{port}".encode()
            headers = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", authority), (b":path", b"/")]
            self.http.send_headers(stream, headers, end_stream=True)
            self.transmit()
            await self.done

    configuration = QuicConfiguration(is_client=True, alpn_protocols=["h3"], server_name=host)
    configuration.load_verify_locations(authority)
    async with asyncio.timeout(WITHIN_S):
        async with connect(host, port, configuration=configuration, create_protocol=Client) as client:
            await client.get()
            show(client.status, client.body.decode())


def main():
    protocol, authority, url = sys.argv[1:]
    match protocol:
        case "http2":
            by_httpx(authority, url)
        case "http3":
            asyncio.run(by_aioquic(authority, url))
        case "mlkem":
            by_pyopenssl(authority, url)
        case _:
            by_urllib(protocol, authority, url)


main()
