//! Real servers, asked without a proxy: what they make of forms of paths is what the table of `docs/http-paths.md` says.
//! Those that are installed are asked; `python3` must be.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const TABLE: &str = include_str!("../../../docs/http-paths.md");
/// How long a server may take to start or to answer.
const WITHIN: Duration = Duration::from_secs(20);

const PYTHON: &str = r"
import posixpath, sys, urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        # As SimpleHTTPRequestHandler.translate_path does.
        path = self.path.split('?', 1)[0].split('#', 1)[0]
        if '://' in path:
            path = urllib.parse.urlsplit(path).path
        path = posixpath.normpath(urllib.parse.unquote(path, errors='surrogateescape'))
        body = ('saw ' + path).encode('utf-8', 'surrogateescape')
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

ThreadingHTTPServer(('127.0.0.1', PORT), Handler).serve_forever()
";
const NODE: &str = "
require('http').createServer((request, response) => {
  response.end('saw ' + unescape(new URL(request.url, 'http://a.io').pathname));
}).listen(PORT, '127.0.0.1');
";
const NGINX: &str = r#"
daemon off;
master_process off;
pid FOLDER/pid;
error_log FOLDER/errors;
events {}
http {
    access_log off;
    client_body_temp_path FOLDER/body;
    proxy_temp_path FOLDER/proxy;
    fastcgi_temp_path FOLDER/fastcgi;
    uwsgi_temp_path FOLDER/uwsgi;
    scgi_temp_path FOLDER/scgi;
    server { listen 127.0.0.1:PORT; location / { return 200 "saw $uri"; } }
}
"#;
const APACHE: &str = r#"
ServerName a.io
ServerRoot FOLDER
PidFile FOLDER/pid
DefaultRuntimeDir FOLDER
ErrorLog FOLDER/errors
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule alias_module /usr/lib/apache2/modules/mod_alias.so
LoadModule headers_module /usr/lib/apache2/modules/mod_headers.so
User nobody
Group nogroup
Listen 127.0.0.1:PORT
AliasMatch "^" FOLDER/page
Header always set Saw "expr=%{REQUEST_URI}"
<Directory FOLDER>
    Require all granted
</Directory>
"#;
const CADDY: &str = "
{
	admin off
	auto_https off
}
http://:PORT {
	bind 127.0.0.1
	respond \"saw {http.request.uri.path}\"
}
";

/// A server: its column, its program, its settings, and what stands before and behind the name of their file.
struct Server {
    column: &'static str,
    program: &'static str,
    settings: &'static str,
    arguments: &'static [&'static str],
}

const SERVERS: [Server; 5] = [
    Server { column: "Python", program: "python3", settings: PYTHON, arguments: &["FILE"] },
    Server { column: "Node", program: "node", settings: NODE, arguments: &["FILE"] },
    Server { column: "nginx", program: "nginx", settings: NGINX, arguments: &["-c", "FILE"] },
    Server { column: "Apache", program: "apache2", settings: APACHE, arguments: &["-f", "FILE", "-X"] },
    Server {
        column: "Caddy",
        program: "caddy",
        settings: CADDY,
        arguments: &["run", "--adapter", "caddyfile", "--config", "FILE"],
    },
];

/// A running server. It ends with this.
struct Running(Child, SocketAddr);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    /// Starts it; `None` where it is not installed.
    fn start(&self, folder: &Path) -> Option<Running> {
        let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let port = at.port().to_string();
        let file = folder.join("settings");
        let filled = |text: &str| text.replace("FOLDER", folder.to_str().unwrap()).replace("PORT", &port);
        fs::write(&file, filled(self.settings)).unwrap();
        fs::write(folder.join("page"), "saw").unwrap();
        let arguments = self.arguments.iter().map(|one| one.replace("FILE", file.to_str().unwrap()));
        let mut command = Command::new(self.program);
        command.args(arguments).env("HOME", folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().ok()?;
        let running = Running(child, at);
        let started = Instant::now();
        while TcpStream::connect(at).is_err() {
            assert!(started.elapsed() < WITHIN, "{} does not start", self.program);
            thread::sleep(Duration::from_millis(10));
        }
        Some(running)
    }
}

/// What a server makes of a path, in the words of the table.
fn ask(server: SocketAddr, form: &str) -> &'static str {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(WITHIN)).unwrap();
    stream.write_all(format!("GET {form} HTTP/1.1\r\nHost: a.io\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
    let mut received = Vec::new();
    // A reset is an end too.
    let _ = stream.read_to_end(&mut received);
    let _ = stream.shutdown(Shutdown::Both);
    let answer = String::from_utf8_lossy(&received).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    if head.split(' ').nth(1) != Some("200") {
        return "400";
    }
    let by_head = head.lines().find_map(|line| line.strip_prefix("Saw: "));
    // A body in chunks has its size before it.
    let by_body = body.split_once("saw ").map_or("", |(_, path)| path.split("\r\n").next().unwrap_or_default());
    match by_head.unwrap_or(by_body) {
        "/admin/x.php" => "admin",
        "/public/x.php" | "/public" | "/public/" => "public",
        path if path.contains("/../") || path.contains("/./") => "raw",
        _ => "name",
    }
}

#[test]
fn servers_make_of_paths_what_the_table_says() {
    let cells = |row: &'static str| row.trim_matches('|').split(" | ").map(str::trim).collect::<Vec<&str>>();
    let heading = cells(TABLE.lines().find(|line| line.starts_with("| Form |")).unwrap());
    let rows: Vec<_> =
        TABLE.lines().filter(|line| line.starts_with("| `/") || line.starts_with("| `http")).map(cells).collect();
    assert!(rows.len() >= 40, "{} forms", rows.len());
    let mut wrong = Vec::new();
    for server in SERVERS {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let Some(running) = server.start(folder.path()) else {
            assert_ne!(server.program, "python3", "every machine of this project has it");
            println!("{} is not installed: it is not asked", server.program);
            continue;
        };
        let column = heading.iter().position(|name| *name == server.column).unwrap();
        for row in &rows {
            let form = row[0].trim_matches('`');
            let got = ask(running.1, form);
            if got != row[column] {
                wrong.push(format!("{form}: {} makes of it {got}, the table says {}", server.column, row[column]));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
