//! The servers: which there are, how each is started outside, and where it writes what it saw.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use namegate_testbed::{World, client};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::embedded;
use crate::form::Protocol::{self, Http1, Http2, Program, Quic, Tls};
use crate::seen::{Format, Log};

/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(20);
/// The network of their addresses (RFC 5737); the last byte is the place in the list.
const NETWORK: [u8; 3] = [192, 0, 2];
const FIRST: u8 = 11;
/// Connections at a time to a server that serves one after the other, and to any other.
const ONE: usize = 1;
const MANY: usize = 48;
/// Apache's page, which says what was asked for as those of the others do.
const APACHE_PAGE: &str =
    "saw <!--#echo var=\"REQUEST_METHOD\" --> <!--#echo encoding=\"none\" var=\"DOCUMENT_URI\" -->\n";

/// Where programs lie.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Places {
    /// Folder of their sources and settings.
    #[arg(long)]
    pub(crate) sources: PathBuf,
    /// Folder with what was built: `go`, and for Java `lib` and `classes`.
    #[arg(long)]
    pub(crate) built: PathBuf,
    /// A Python with `aioquic` and `pyOpenSSL`.
    #[arg(long)]
    pub(crate) python: Option<PathBuf>,
}

/// A server of the list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) speaks: &'static [Protocol],
    at_a_time: usize,
    /// Whether the short form has it.
    pub(crate) is_quick: bool,
    /// Whether it takes part only in forms that name it.
    pub(crate) is_special: bool,
}

const fn kind(name: &'static str, speaks: &'static [Protocol], at_a_time: usize, is_quick: bool) -> Kind {
    Kind { name, speaks, at_a_time, is_quick, is_special: false }
}

/// All of them.
pub(crate) const ALL: [Kind; 15] = [
    kind("nginx", &[Http1, Tls, Program], MANY, true),
    kind("apache", &[Http1, Http2, Tls, Program], MANY, true),
    kind("node", &[Http1, Tls, Program], MANY, true),
    kind("go", &[Http1, Http2, Tls, Quic, Program], MANY, true),
    kind("python", &[Http1, Tls, Program], MANY, true),
    kind("php", &[Http1], 16, true),
    kind("caddy", &[Http1, Http2, Tls, Program], MANY, true),
    kind("openssl", &[Tls, Program], ONE, false),
    kind("rustls", &[Tls], MANY, true),
    kind("quinn", &[Quic], MANY, true),
    kind("aioquic", &[Quic], MANY, false),
    kind("tomcat", &[Http1, Http2], MANY, false),
    kind("jetty", &[Http1, Http2], MANY, false),
    kind("undertow", &[Http1, Http2], MANY, false),
    // It wants a header of the PROXY protocol before everything.
    Kind { is_special: true, ..kind("nginx-proxy", &[Http1, Tls], MANY, true) },
];

/// A running server. Dropping it ends its processes.
pub(crate) struct Server {
    pub(crate) kind: Kind,
    pub(crate) address: IpAddr,
    pub(crate) logs: Vec<Log>,
    /// A folder of its own.
    pub(crate) folder: PathBuf,
    children: Vec<Child>,
}

/// Certificate and key, as files.
pub(crate) struct Identity {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Server {
    /// Starts the server at this place of the list, and waits until it answers.
    pub(crate) fn start(world: &World, places: &Places, at: usize, folder: &Path, identity: &Identity) -> Result<Self> {
        let kind = *ALL.get(at).context("a server of the list")?;
        let [a, b, c] = NETWORK;
        let address = IpAddr::V4(Ipv4Addr::new(a, b, c, FIRST + u8::try_from(at)?));
        let folder = folder.join(kind.name);
        fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        let log = |name: &str, format| Log { path: folder.join(name), format };
        let logs = match kind.name {
            "openssl" => vec![
                log("443", Format::OpenSsl(443)),
                log("8444", Format::OpenSsl(8444)),
                log("dtls", Format::OpenSsl(8444)),
            ],
            "caddy" => vec![log("seen", Format::Caddy(80, 443)), log("seen-names", Format::Caddy(8081, 8444))],
            _ => vec![log("seen", Format::Fields)],
        };
        let mut server = Self { kind, address, logs, folder, children: Vec::new() };
        match kind.name {
            "rustls" => embedded::tls(world, address, identity, &server.path("seen"))?,
            "quinn" => embedded::quic(world, address, identity, &server.path("seen"))?,
            _ => server.spawn(world, places, identity)?,
        }
        server.wait(world)?;
        Ok(server)
    }

    /// How many connections it takes at a time.
    pub(crate) fn at_a_time(&self) -> usize {
        self.kind.at_a_time
    }

    /// A file of its folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn spawn(&mut self, world: &World, places: &Places, identity: &Identity) -> Result<()> {
        let commands = match self.kind.name {
            "nginx" | "nginx-proxy" | "apache" | "caddy" => vec![(self.configured(places, identity)?, "output")],
            "openssl" => self.openssl(identity),
            "php" => self.php(places)?,
            _ => vec![(self.own(places, identity)?, "seen")],
        };
        for (command, log) in commands {
            self.children.push(spawn(world, &command, &self.path(log), &self.path("complaints"))?);
        }
        Ok(())
    }

    /// A server that reads its settings from a file.
    fn configured(&self, places: &Places, identity: &Identity) -> Result<Command> {
        let settings = |name: &str| self.settings(&places.sources.join(name), identity);
        match self.kind.name {
            "nginx" | "nginx-proxy" => {
                let mut nginx = Command::new("nginx");
                nginx.arg("-c").arg(settings("nginx/nginx.conf")?).arg("-p").arg(&self.folder);
                nginx.arg("-e").arg(self.path("complaints"));
                Ok(nginx)
            }
            "apache" => {
                fs::write(self.path("page"), APACHE_PAGE)?;
                let mut apache = Command::new("apache2");
                apache.arg("-DFOREGROUND").arg("-f").arg(settings("apache/httpd.conf")?);
                Ok(apache)
            }
            _ => {
                let mut caddy = Command::new("caddy");
                caddy.args(["run", "--adapter", "caddyfile", "--config"]).arg(settings("caddy/Caddyfile")?);
                caddy.env("HOME", &self.folder);
                Ok(caddy)
            }
        }
    }

    /// A server of our own, on a library or a language's own.
    fn own(&self, places: &Places, identity: &Identity) -> Result<Command> {
        let address = self.address.to_string();
        let script = |program: &Path, script: &str| {
            let mut command = Command::new(program);
            command.arg(places.sources.join(script)).arg(&address).args([&identity.certificate, &identity.key]);
            command
        };
        match self.kind.name {
            "node" => Ok(script(Path::new("node"), "node/server.js")),
            "python" => Ok(script(Path::new("python3"), "python/server.py")),
            "aioquic" => Ok(script(places.python.as_deref().context("aioquic needs `--python`")?, "python/quic.py")),
            "go" => {
                let mut go = Command::new(places.built.join("go"));
                go.args(["-address", &address]).arg("-certificate").arg(&identity.certificate);
                go.arg("-key").arg(&identity.key);
                Ok(go)
            }
            name => {
                let mut java = Command::new("java");
                let classes = [places.built.join("classes"), places.built.join("lib").join("*")];
                java.arg("-cp").arg(std::env::join_paths(classes)?).args(["-Xmx256m", "-XX:TieredStopAtLevel=1"]);
                java.args(["Server", name, &address]);
                Ok(java)
            }
        }
    }

    /// Two processes, one for each port.
    fn php(&self, places: &Places) -> Result<Vec<(Command, &'static str)>> {
        File::create(self.path("seen"))?;
        let php = |port: u16| {
            let mut php = Command::new("php");
            php.args(["-q", "-S", &format!("{}:{port}", self.address)]).arg(places.sources.join("php/router.php"));
            php.env("SEEN", self.path("seen")).env("PHP_CLI_SERVER_WORKERS", "4");
            (php, "output")
        };
        Ok(vec![php(80), php(8081)])
    }

    /// Three processes: two of TLS, one of DTLS.
    fn openssl(&self, identity: &Identity) -> Vec<(Command, &'static str)> {
        let listen = |log, port: u16, more: &[&str]| {
            let mut openssl = Command::new("stdbuf");
            let accept = format!("{}:{port}", self.address);
            openssl.args(["-oL", "openssl", "s_server", "-accept", &accept, "-servername", "x.bad.test"]);
            for (option, second, path) in [("-cert", "-cert2", &identity.certificate), ("-key", "-key2", &identity.key)]
            {
                openssl.arg(option).arg(path).arg(second).arg(path);
            }
            openssl.args(more);
            (openssl, log)
        };
        let over_tcp = ["-client_renegotiation", "-www"];
        vec![listen("443", 443, &over_tcp), listen("8444", 8444, &over_tcp), listen("dtls", 8444, &["-dtls"])]
    }

    /// The settings of a program with what is in capitals replaced.
    fn settings(&self, source: &Path, identity: &Identity) -> Result<PathBuf> {
        let text = fs::read_to_string(source).with_context(|| format!("reading {}", source.display()))?;
        let to = self.path("settings");
        let text = text
            .replace("ADDRESS", &self.address.to_string())
            .replace("MORE", if self.kind.name == "nginx-proxy" { " proxy_protocol" } else { "" })
            .replace("FOLDER", &self.folder.to_string_lossy())
            .replace("CERTIFICATE", &identity.certificate.to_string_lossy())
            .replace("MODULES", "/usr/lib/apache2/modules")
            .replace("KEY", &identity.key.to_string_lossy());
        fs::write(&to, text)?;
        Ok(to)
    }

    fn ports(&self) -> &'static [u16] {
        let speaks = |protocol| self.kind.speaks.contains(&protocol);
        match (speaks(Http1), speaks(Tls)) {
            (true, true) => &[80, 8081, 443, 8444],
            (true, false) => &[80, 8081],
            (false, true) => &[443, 8444],
            (false, false) => &[],
        }
    }

    fn wait(&mut self, world: &World) -> Result<()> {
        let started = Instant::now();
        for &port in self.ports() {
            let to = SocketAddr::new(self.address, port);
            while world.outside().run(async move { client::connect(to, PAUSE).await }).is_err() {
                self.check(started)?;
            }
        }
        // Those without TCP say when they are ready.
        while self.ports().is_empty() && fs::metadata(self.path("seen")).map_or(0, |found| found.len()) == 0 {
            self.check(started)?;
        }
        Ok(())
    }

    /// Waits a moment; an error where the server has ended or is late.
    fn check(&mut self, started: Instant) -> Result<()> {
        for child in &mut self.children {
            if child.try_wait()?.is_some() || started.elapsed() > PATIENCE {
                let complaints = fs::read_to_string(self.folder.join("complaints")).unwrap_or_default();
                bail!("{} does not start: {complaints}", self.kind.name);
            }
        }
        std::thread::sleep(PAUSE);
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in &mut self.children {
            // With the workers that it has started. It may have ended by itself.
            let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
            let _ = child.wait();
        }
    }
}

fn spawn(world: &World, command: &Command, log: &Path, complaints: &Path) -> Result<Child> {
    let mut started = Command::new("setpriv");
    started.process_group(0).args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        started.env(name, value.unwrap_or_default());
    }
    let open = |path: &Path| File::options().create(true).append(true).open(path);
    // `openssl s_server` ends with its input.
    started.stdin(Stdio::piped()).stdout(open(log)?).stderr(open(complaints)?);
    let name = command.get_program().to_string_lossy().into_owned();
    world.outside().call(move || started.spawn()).with_context(|| format!("starting `{name}` by `setpriv`"))
}
