//! The server in Go, outside, and what it heard.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use namegate_testbed::World;
use tempfile::TempDir;

use crate::{BAD, GOOD, SHARED};

/// How long the server may take to start.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(10);

/// A running server. Dropping it ends it.
pub(crate) struct Server {
    child: Child,
    folder: TempDir,
}

impl Server {
    /// Starts it on the shared address.
    pub(crate) fn start(world: &World, program: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("namegate-clients-").tempdir()?;
        let path = |name: &str| folder.path().join(name);
        let own = world.certificate(&[GOOD, BAD])?;
        for (name, text) in
            [("certificate.pem", &*own.certificate), ("key.pem", &*own.key), ("authority.pem", world.authority())]
        {
            std::fs::write(path(name), text)?;
        }
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(["-address", SHARED]);
        command.arg("-certificate").arg(path("certificate.pem")).arg("-key").arg(path("key.pem"));
        command.stdin(Stdio::null()).stdout(File::create(path("heard"))?).stderr(File::create(path("complaints"))?);
        let child = world.outside().call(move || command.spawn()).context("starting the server by `setpriv`")?;
        let mut server = Self { child, folder };
        let started = Instant::now();
        while !server.heard()?.contains("\"ready\"") {
            if server.child.try_wait()?.is_some() || started.elapsed() > PATIENCE {
                bail!("the server does not start: {}", std::fs::read_to_string(server.path("complaints"))?);
            }
            std::thread::sleep(PAUSE);
        }
        Ok(server)
    }

    /// A file of its folder: `authority.pem`, `certificate.pem`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// How often a name was asked for, by TLS or by a request.
    pub(crate) fn count(&self, name: &str) -> Result<usize> {
        Ok(self.heard()?.lines().filter(|line| line.contains(name)).count())
    }

    fn heard(&self) -> Result<String> {
        std::fs::read_to_string(self.path("heard")).context("reading what the server heard")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill(); // It may have ended by itself.
        let _ = self.child.wait();
    }
}
