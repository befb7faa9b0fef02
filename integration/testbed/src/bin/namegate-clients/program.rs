//! The client programs: what each is called, which protocols it has, how it is asked, and how its answer reads.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::protocol::{Protocol, Seen};

/// Seconds that a client waits for an answer.
const PATIENCE_S: &str = "4";

/// Where the clients lie.
#[derive(clap::Args)]
pub(crate) struct Places {
    /// The client in Go.
    #[arg(long)]
    go: PathBuf,
    /// The client in Rust.
    #[arg(long)]
    rust: PathBuf,
    /// A Python that has the packages which the clients in Python need.
    #[arg(long)]
    python: PathBuf,
    /// Their folder.
    #[arg(long)]
    scripts: PathBuf,
    /// Chromium.
    #[arg(long, default_value = "chromium")]
    chromium: PathBuf,
}

/// What the clients are told of the world.
pub(crate) struct Surroundings {
    /// File with the authority's certificate.
    pub(crate) authority: PathBuf,
    /// Hash of the server's key, for Chromium.
    pub(crate) key_hash: String,
    /// A folder for what clients leave behind.
    pub(crate) folder: PathBuf,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// By an answer, the server's or the proxy's.
    Answer { code: u16, seen: Option<Seen> },
    /// By none; what the client says about it.
    Nothing(String),
}

/// A client program.
pub(crate) struct Program {
    /// Name with version.
    pub(crate) name: String,
    /// What it can speak.
    pub(crate) protocols: Vec<Protocol>,
    kind: Kind,
}

enum Kind {
    Curl,
    OpenSsl,
    /// A program of our own: its words before protocol, authority and URL.
    Own(Vec<String>),
    Go(PathBuf),
    Chromium(PathBuf),
}

impl Program {
    /// Asks every client what it is.
    pub(crate) fn all(places: &Places) -> Result<Vec<Self>> {
        let curl = first_line(&["curl", "--version"])?;
        let features = said(&["curl", "--version"])?;
        let openssl = first_line(&["openssl", "version"])?;
        let script = |name: &str| vec![text(&places.python), text(&places.scripts.join(name))];
        let libcurl = script("libcurl.py");
        let version: Vec<&str> = libcurl.iter().map(String::as_str).chain(["version"]).collect();
        let linked = first_line(&version)?;
        let python = first_line(&[&text(&places.python), "--version"])?;
        let chromium = first_line(&[&text(&places.chromium), "--no-sandbox", "--version"])?;
        let name_and_openssl = |line: &str, name: &str| {
            let part = |what: &str| line.split([' ', '\t']).find(|word| word.starts_with(what)).unwrap_or_default();
            format!("{} ({})", part(name), part("OpenSSL/")).replace('/', " ")
        };
        let own = |name: String, lacks: &[Protocol], kind| {
            let protocols = Protocol::ALL.into_iter().filter(|protocol| !lacks.contains(protocol)).collect();
            Self { name, protocols, kind }
        };
        let mut lacking = Vec::new();
        lacking.extend((!has_hybrid(&curl)).then_some(Protocol::MlKem));
        lacking.extend((!features.contains(" HTTP3")).then_some(Protocol::Http3));
        let system =
            own(format!("curl {}", name_and_openssl(&curl, "libcurl/")).replace("libcurl ", ""), &lacking, Kind::Curl);
        let mut lacking = vec![Protocol::Upgrade, Protocol::H2c, Protocol::Http2, Protocol::Http3, Protocol::Http1];
        lacking.extend((!has_hybrid(&openssl)).then_some(Protocol::MlKem));
        let words: Vec<&str> = openssl.split(' ').take(2).collect();
        let tool = own(format!("{} s_client", words.join(" ")), &lacking, Kind::OpenSsl);
        Ok(vec![
            system,
            tool,
            own(name_and_openssl(&linked, "libcurl/"), &[], Kind::Own(libcurl)),
            own(
                first_line(&[&text(&places.go), "-protocol", "version"])?,
                &[Protocol::Upgrade],
                Kind::Go(places.go.clone()),
            ),
            own(python, &[Protocol::Upgrade, Protocol::H2c], Kind::Own(script("client.py"))),
            own("reqwest (rustls, quinn)".to_owned(), &[Protocol::Upgrade], Kind::Own(vec![text(&places.rust)])),
            own(
                chromium.split(" built").next().unwrap_or_default().to_owned(),
                &[Protocol::Upgrade, Protocol::H2c],
                Kind::Chromium(places.chromium.clone()),
            ),
        ])
    }

    /// The words that ask for a name.
    pub(crate) fn command(&self, protocol: Protocol, name: &str, around: &Surroundings) -> Vec<String> {
        let (url, authority) = (protocol.url(name), text(&around.authority));
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        match &self.kind {
            Kind::Own(before) => [before.clone(), words(&[protocol.word(), &authority, &url])].concat(),
            Kind::Go(path) => words(&[&text(path), "-protocol", protocol.word(), "-authority", &authority, &url]),
            Kind::Curl => {
                let form = match protocol {
                    Protocol::Upgrade | Protocol::Http2 => "--http2",
                    Protocol::H2c => "--http2-prior-knowledge",
                    Protocol::Http3 => "--http3-only",
                    _ => "--http1.1",
                };
                let most = if protocol == Protocol::Tls12 { "1.2" } else { "1.3" };
                let patience = ["--max-time", PATIENCE_S, "--write-out", "\n%{http_code}\n"];
                let fixed = ["curl", "-q", "--silent", "--show-error", "--noproxy", "*", "--cacert", &authority];
                words(&[&fixed[..], &patience, &["--tls-max", most, form, &url]].concat())
            }
            Kind::OpenSsl => {
                let at = format!("{name}:{}", protocol.port());
                let request = format!("GET / HTTP/1.1\\r\\nHost: {at}\\r\\nConnection: close\\r\\n\\r\\n");
                let version = if protocol == Protocol::Tls12 { "-tls1_2" } else { "-tls1_3" };
                let script = format!(
                    "printf '{request}' | openssl s_client -quiet -verify_return_error -CAfile {authority} {version} \
                     -connect {at} -servername {name}"
                );
                words(&["sh", "-c", &script])
            }
            Kind::Chromium(path) => chromium(path, protocol, name, &url, around),
        }
    }

    /// What the program's output says.
    pub(crate) fn read(&self, output: &str, complaint: &str) -> Outcome {
        let seen = output.find('{').zip(output.rfind('}'));
        let seen = seen.and_then(|(from, to)| serde_json::from_str(output.get(from..=to)?).ok());
        let code = match &self.kind {
            Kind::OpenSsl => output.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok()),
            Kind::Chromium(_) if seen.is_some() => Some(200),
            Kind::Chromium(_) => output.contains("Access denied\n").then_some(403),
            _ => output.trim_end().lines().last().and_then(|line| line.parse().ok()),
        };
        // curl writes 0 where there was no answer.
        match code.filter(|code| *code != 0) {
            Some(code) => Outcome::Answer { code, seen },
            None => Outcome::Nothing(reason(&format!("{complaint}\n{output}"))),
        }
    }
}

fn chromium(path: &Path, protocol: Protocol, name: &str, url: &str, around: &Surroundings) -> Vec<String> {
    let mut words = vec![
        text(path),
        "--headless=new".to_owned(),
        "--no-sandbox".to_owned(),
        "--disable-gpu".to_owned(),
        "--disable-dev-shm-usage".to_owned(),
        "--no-first-run".to_owned(),
        "--no-proxy-server".to_owned(),
        "--disable-background-networking".to_owned(),
        "--disable-component-update".to_owned(),
        // Its own resolver would do as well; the system's is that of the other clients.
        "--disable-features=AsyncDns,HttpsUpgrades,HttpsFirstBalancedModeAutoEnable".to_owned(),
        format!("--user-data-dir={}", around.folder.display()),
        format!("--ignore-certificate-errors-spki-list={}", around.key_hash),
    ];
    if protocol == Protocol::Http3 {
        words.push(format!("--origin-to-force-quic-on={name}:{}", protocol.port()));
    } else {
        words.push("--disable-quic".to_owned());
    }
    words.extend(["--dump-dom".to_owned(), url.to_owned()]);
    words
}

/// Why there was no answer, in a word where there is one for it.
fn reason(said: &str) -> String {
    let lower = said.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    if has(&["connection reset", "err_connection_reset", "errno=104", "econnreset"]) {
        "reset".to_owned()
    } else if has(&["timed out", "timeout", "timed_out", "timedout", "deadline", "no recent network activity"]) {
        "no answer".to_owned()
    } else if let Some(at) = said.find("ERR_") {
        // Chromium's words.
        said[at..].chars().take_while(|sign| sign.is_ascii_uppercase() || *sign == '_').collect()
    } else {
        let line = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing said");
        line.trim().chars().take(40).collect()
    }
}

/// Whether an OpenSSL of this version has X25519MLKEM768: 3.5 and later.
fn has_hybrid(line: &str) -> bool {
    let version = line.split("OpenSSL").nth(1).unwrap_or_default().trim_start_matches(['/', ' ']);
    let mut numbers = version.split(|sign: char| !sign.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (3_u32, 5_u32)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn said(words: &[&str]) -> Result<String> {
    let output = Command::new(words[0]).args(&words[1..]).output().with_context(|| format!("running {}", words[0]))?;
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "`{}` failed: {}", words.join(" "), complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn first_line(words: &[&str]) -> Result<String> {
    Ok(said(words)?.lines().next().unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_openssl_are_told_apart() {
        for (line, want) in [
            ("OpenSSL 3.0.19 27 Jan 2026 (Library: OpenSSL 3.0.19 27 Jan 2026)", false),
            ("curl 8.14.1 (x86_64-pc-linux-gnu) libcurl/8.14.1 OpenSSL/3.5.4 zlib/1.3.1", true),
            ("PycURL/7.49.0 libcurl/8.23.0 OpenSSL/4.0.1", true),
            ("OpenSSL 1.1.1w", false),
            ("GnuTLS/3.8.9", false),
        ] {
            assert_eq!(has_hybrid(line), want, "{line}");
        }
    }

    #[test]
    fn ends_are_read() {
        let of = |kind| Program { name: String::new(), protocols: Vec::new(), kind };
        let (curl, tool, browser) = (of(Kind::Curl), of(Kind::OpenSsl), of(Kind::Chromium("chromium".into())));
        let json = r#"{"proto":"HTTP/1.1","host":"a","tls":"","group":"","upgrade":"","settings":""}"#;
        let code = |outcome: &Outcome| match outcome {
            Outcome::Answer { code, seen } => Some((*code, seen.is_some())),
            Outcome::Nothing(_) => None,
        };
        assert_eq!(code(&curl.read(&format!("{json}\n\n200\n"), "")), Some((200, true)));
        assert_eq!(code(&curl.read("Access denied\n\n403\n", "")), Some((403, false)));
        assert_eq!(curl.read("\n000\n", "curl: (35) Connection reset by peer"), Outcome::Nothing("reset".to_owned()));
        assert_eq!(code(&tool.read(&format!("HTTP/1.1 200 OK\r\n\r\n{json}\n"), "")), Some((200, true)));
        assert_eq!(code(&browser.read(&format!("<pre>{json}\n</pre>"), "")), Some((200, true)));
        assert_eq!(code(&browser.read("<pre>Access denied\n</pre>", "")), Some((403, false)));
        assert_eq!(browser.read("<body>ERR_CONNECTION_RESET</body>", ""), Outcome::Nothing("reset".to_owned()));
    }
}
