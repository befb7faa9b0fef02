"""A client of TLS 1.2 that asks for one name, and for another one when it negotiates anew."""

import socket
import sys

from OpenSSL import SSL

ADDRESS, PORT, FIRST, SECOND = sys.argv[1:]
context = SSL.Context(SSL.TLS_CLIENT_METHOD)
context.set_max_proto_version(SSL.TLS1_2_VERSION)
context.set_options(0x00040000)  # SSL_OP_LEGACY_SERVER_CONNECT
plain = socket.create_connection((ADDRESS, int(PORT)), 4)
plain.setblocking(True)
plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, (3).to_bytes(8, "little") + bytes(8))
connection = SSL.Connection(context, plain)
connection.set_tlsext_host_name(FIRST.encode())
connection.set_connect_state()
connection.do_handshake()
connection.set_tlsext_host_name(SECOND.encode())
connection.renegotiate()
connection.do_handshake()
mark = FIRST.split(".")[0]
connection.sendall(f"GET /public/{mark}a HTTP/1.1\r\nHost: {SECOND}\r\nConnection: close\r\n\r\n".encode())
print(connection.recv(4096).decode("latin-1"))
