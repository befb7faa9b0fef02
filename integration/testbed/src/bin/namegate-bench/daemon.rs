//! A program that runs in a namespace until it is stopped by its process number.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use namegate_testbed::Netns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a program may take to end when asked to.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks whether it has ended.
const PAUSE: Duration = Duration::from_millis(5);

/// A running program. Dropping it ends it.
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts a program that stays in the foreground; what it says goes to `<folder>/<its name>.log`.
    pub(crate) fn start(netns: &Netns, program: &Path, arguments: Vec<OsString>, folder: &Path) -> Result<Self> {
        let name = program.file_name().context("a program's name")?.to_string_lossy().into_owned();
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("writing {}", log.display()))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments).current_dir(folder);
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = netns.call(move || command.spawn());
        let child = child.with_context(|| format!("starting {name} by `setpriv` (util-linux)"))?;
        Ok(Self { child, log })
    }

    /// An error with what the program said, if it has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("it ended with {status}: {}", self.said());
        }
        Ok(())
    }

    /// The number of its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the program said so far.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default().trim().to_owned()
    }

    fn ended_within(&mut self, patience: Duration) -> bool {
        let started = Instant::now();
        while started.elapsed() < patience {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return true;
            }
            std::thread::sleep(PAUSE);
        }
        false
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id())
            && matches!(self.child.try_wait(), Ok(None))
        {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM); // It may just have ended.
            if !self.ended_within(PATIENCE) {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
    }
}

/// Finds a program on the path, or where Debian keeps those of administrators.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&folders).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}
