"""http.server on the ports of the gauntlet: a line for each ClientHello and each request."""

import posixpath
import ssl
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ADDRESS, CERTIFICATE, KEY = sys.argv[1:]
LOCK = threading.Lock()


def escape(text):
    """What is not visible ASCII as \\xHH, so that fields stay apart. Each character is one byte."""
    encoded = text.encode("latin-1", "replace")
    return "".join(chr(b) if 0x20 < b < 0x7F and b != 0x5C else f"\\x{b:02x}" for b in encoded)


def note(*fields):
    with LOCK:
        print("\t".join(map(str, fields)), flush=True)


def read_path(target):
    """The decoded path, and what SimpleHTTPRequestHandler.translate_path makes of it."""
    path = target.split("?", 1)[0].split("#", 1)[0]
    if "://" in path:
        path = urllib.parse.urlsplit(path).path
    path = urllib.parse.unquote(path, encoding="latin-1")
    folder = "/" if path.endswith("/") else ""
    return path, posixpath.normpath(path).rstrip("/") + folder or "/"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 20

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def log_message(self, *_):
        pass

    def answer(self):
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True
        try:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
        except ValueError:
            self.close_connection = True
        path, cleaned = read_path(self.path)
        name = getattr(self.connection, "asked", "")
        limit = ",".join(self.headers.get_all("X-Limit", []))
        host = self.headers.get("Host", "")
        if "://" in self.path:
            host = urllib.parse.urlsplit(self.path).netloc
        fields = [escape(text) for text in (self.command, path, cleaned, host, limit, name)]
        note("request", self.server.server_address[1], *fields)
        body = f"saw {self.command} {path}\n".encode("latin-1", "replace")
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    context = None

    def get_request(self):
        connection, peer = super().get_request()
        if self.context:
            connection.settimeout(20)
            connection = self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, peer

    def handle_error(self, *_):
        pass


def hear(port):
    def on_name(connection, name, _):
        connection.asked = name or ""
        note("hello", port, escape(name or ""))

    return on_name


for port in (80, 8081, 443, 8444):
    server = Server((ADDRESS, port), Handler)
    if port in (443, 8444):
        server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.context.load_cert_chain(CERTIFICATE, KEY)
        server.context.sni_callback = hear(port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
note("ready")
threading.Event().wait()
