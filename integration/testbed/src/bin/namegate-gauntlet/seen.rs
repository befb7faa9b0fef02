//! What servers saw, from the lines of their logs.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

/// A log and how it is written.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Format {
    /// Fields between tabs: `hello`, port, name; or `request`, port, method, path, another reading of the path or
    /// nothing, host, limit, name, the name of the part of the settings that answered or nothing.
    Fields,
    /// Caddy's log of accesses to these ports: in clear text, by TLS.
    Caddy(u16, u16),
    /// What `openssl s_server` prints on this port.
    OpenSsl(u16),
}

/// What a server took for a request or a handshake. Each character of a text is one byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) port: u16,
    /// The names that it took from TLS; empty in clear text.
    pub(crate) names: Vec<String>,
    pub(crate) request: Option<Request>,
}

/// A request as a server read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Its readings of the path: decoded, some of them normalised.
    pub(crate) paths: Vec<String>,
    pub(crate) host: String,
    /// Value of `X-Limit`, several put together by commas.
    pub(crate) limit: String,
}

impl Seen {
    /// In a few words.
    pub(crate) fn words(&self) -> String {
        let request = self.request.as_ref().map(|request| {
            let paths: Vec<String> = request.paths.iter().map(|path| path.escape_default().to_string()).collect();
            let (host, limit) = (request.host.escape_default(), request.limit.escape_default());
            format!("{} {} host `{host}` X-Limit `{limit}`", request.method.escape_default(), paths.join(" or "))
        });
        let names = (!self.names.is_empty()).then(|| format!("server name `{}`", self.names.join("` and `")));
        [request, names].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// Everything in a log so far.
pub(crate) fn read(log: &Log) -> Result<Vec<Seen>> {
    let bytes = match std::fs::read(&log.path) {
        Ok(bytes) => bytes,
        // Caddy makes its file with the first access.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", log.path.display())),
    };
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.lines().filter_map(|line| line_of(line, log.format)).collect())
}

fn line_of(line: &str, format: Format) -> Option<Seen> {
    match format {
        Format::Fields => fields(line),
        Format::Caddy(clear, tls) => caddy(&serde_json::from_str(line).ok()?, clear, tls),
        Format::OpenSsl(port) => {
            let name = line.split_once("Hostname in TLS extension: \"")?.1.split('"').next()?;
            Some(Seen { port, names: vec![name.to_owned()], request: None })
        }
    }
}

fn fields(line: &str) -> Option<Seen> {
    let mut fields = line.split('\t');
    let (kind, port) = (fields.next()?, fields.next()?.parse().ok()?);
    match kind {
        "hello" => Some(Seen { port, names: vec![plain(fields.next()?)], request: None }),
        "request" => {
            let method = plain(fields.next()?);
            let (path, other) = (plain(fields.next()?), plain(fields.next()?));
            let paths = [path].into_iter().chain((!other.is_empty()).then_some(other)).collect();
            let (host, limit) = (plain(fields.next()?), plain(fields.next()?));
            let (name, answering) = (fields.next().map(plain).unwrap_or_default(), fields.next().map(plain));
            let is_clear = matches!(port, 80 | 8081);
            let names = [Some(name), answering.filter(|name| !name.is_empty())].into_iter().flatten();
            let names = if is_clear { Vec::new() } else { names.collect() };
            Some(Seen { port, names, request: Some(Request { method, paths, host, limit }) })
        }
        _ => None,
    }
}

fn caddy(line: &Value, clear: u16, tls: u16) -> Option<Seen> {
    let (status, request) = (line["status"].as_u64()?, &line["request"]);
    if status != 200 {
        return None;
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let uri = text(&request["uri"]);
    let path = uri.split(['?', '#']).next().unwrap_or_default();
    let path = match path.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => path,
    };
    let limits = request["headers"]["X-Limit"].as_array().into_iter().flatten().map(text);
    let is_clear = request["tls"].is_null();
    let names = if is_clear { Vec::new() } else { vec![text(&request["tls"]["server_name"])] };
    Some(Seen {
        port: if is_clear { clear } else { tls },
        names,
        request: Some(Request {
            method: text(&request["method"]),
            paths: vec![decode(path)],
            host: text(&request["host"]),
            limit: limits.collect::<Vec<_>>().join(","),
        }),
    })
}

/// Percent-decoded; what is no encoding stays. Each character of the result is one byte.
pub(crate) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = String::new();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        let hex = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| *byte == b'%');
        decoded.push(char::from(hex.unwrap_or(*byte)));
        at += if hex.is_some() { 3 } else { 1 };
    }
    decoded
}

/// A field without its escapes: `\xHH` and those of C; `-` stands for nothing.
fn plain(field: &str) -> String {
    if field == "-" {
        return String::new();
    }
    let mut text = String::new();
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        text.push_str(before);
        let byte = after.get(1..3).and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| after.starts_with('x'));
        let (character, length) = match (byte, after.chars().next()) {
            (Some(byte), _) => (char::from(byte), 3),
            (None, Some('n')) => ('\n', 1),
            (None, Some('r')) => ('\r', 1),
            (None, Some('t')) => ('\t', 1),
            (None, Some('v')) => ('\x0b', 1),
            (None, Some('f')) => ('\x0c', 1),
            (None, Some('b')) => ('\x08', 1),
            (None, Some(other)) => (other, other.len_utf8()),
            (None, None) => ('\\', 0),
        };
        text.push(character);
        rest = after.get(length..).unwrap_or_default();
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_servers_are_read() {
        let seen = fields("request\t80\tGET\t/public/t00001a\\x0a b\t/x\\\\y\tgood.test\t1\t").unwrap();
        let request = seen.request.unwrap();
        assert_eq!(request.paths, ["/public/t00001a\n b", "/x\\y"]);
        assert_eq!((seen.port, &*request.host, &*request.limit, seen.names), (80, "good.test", "1", Vec::new()));
        let seen = fields("request\t443\tGET\t/\t\tx\t-\ta.good.test\t*.good.test").unwrap();
        assert_eq!(
            (seen.names, seen.request.unwrap().limit),
            (vec!["a.good.test".into(), "*.good.test".into()], String::new())
        );
        assert_eq!(fields("hello\t443\t-").unwrap().names, [""]);
        assert_eq!(fields("ready"), None);
        let line = "Hostname in TLS extension: \"a.good.test\"";
        assert_eq!(line_of(line, Format::OpenSsl(443)).unwrap().names, ["a.good.test"]);
        assert_eq!(decode("/a%2e%zz%"), "/a.%zz%");
    }
}
