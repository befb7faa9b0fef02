//! A machine inside the machine: network, mounts and processes of its own, which all end with one process.
//!
//! Folders that a node has at fixed places (`/etc/cni`, `/opt/cni`, `/run`, `/var/lib`) are laid over the machine's, so
//! nothing is written there. Programs of the machine can be called.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::shell;

/// How long the node may take to lay out its folders, and to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// What the first process of the node does, in `sh`. `$1` is the state folder.
const KEEPER: &str = r#"
set -e
mount --make-rshared /
mount -t tmpfs -o mode=755 run /run
for folder in etc opt var/lib; do
    mkdir -p "$1/node/$folder" "$1/node/work/$folder"
    mount -t overlay -o "lowerdir=/$folder,upperdir=$1/node/$folder,workdir=$1/node/work/$folder" node "/$folder"
done
for folder in containerd kubelet; do
    mkdir -p "/var/lib/$folder" "$1/$folder"
    mount --bind "$1/$folder" "/var/lib/$folder"
done
mount -t bpf bpf /sys/fs/bpf
mkdir -p /run/netns /run/lock
touch "$1/run/ready"
sleep infinity &
wait
"#;

/// A running node.
pub(crate) struct Node {
    /// Process number, outside, of its first process.
    keeper: u32,
    /// Logs, state and process numbers.
    folder: PathBuf,
}

impl Node {
    /// Makes a node whose disk lies in `folder`: an empty one, or one that a node before has left.
    pub(crate) fn start(folder: &Path) -> Result<Self> {
        make_cgroups(folder)?;
        for name in ["run", "log"] {
            fs::create_dir_all(folder.join(name)).with_context(|| format!("making {}", folder.display()))?;
        }
        forget_processes(&folder.join("run"))?;
        let log = File::create(folder.join("log/node.log"))?;
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child=KILL", "--"]);
        unshare.args(["sh", "-c", KEEPER, "keeper"]).arg(folder);
        let mut parent = detached(&mut unshare, &log)?.spawn().context("running `unshare` (util-linux)")?;
        let started = Instant::now();
        while !folder.join("run/ready").exists() {
            if started.elapsed() > PATIENCE || parent.try_wait()?.is_some() {
                bail!("the node's namespaces could not be made: {}", said(&folder.join("log/node.log")));
            }
            std::thread::sleep(PAUSE);
        }
        let (parent, keeper) = (parent.id(), child_of(parent.id())?);
        fs::write(folder.join("run/keeper"), format!("{parent} {} {keeper}", start_of(parent)?))?;
        Ok(Self { keeper, folder: folder.to_owned() })
    }

    /// The node whose state lies in `folder`, if it runs.
    pub(crate) fn find(folder: &Path) -> Option<Self> {
        let (parent, keeper) = recorded(folder)?;
        child_of(parent).ok().filter(|child| *child == keeper)?;
        Some(Self { keeper, folder: folder.to_owned() })
    }

    /// Ends the node with everything in it. Its folder stays.
    pub(crate) fn end(folder: &Path) -> Result<()> {
        if let Some((parent, _)) = recorded(folder) {
            let kill = Command::new("kill").args(["-KILL", &parent.to_string()]).status();
            ensure!(kill.context("running `kill`")?.success(), "the node's first process {parent} could not be ended");
            let started = Instant::now();
            while Path::new("/proc").join(parent.to_string()).exists() && !is_zombie(parent) {
                ensure!(started.elapsed() < PATIENCE, "process {parent} does not end");
                std::thread::sleep(PAUSE);
            }
        }
        let _ = fs::remove_file(folder.join("run/keeper")); // It may never have been there.
        remove_cgroups(folder)
    }

    /// Process number, outside, of the node's first process: `/proc/<it>/root` is the node's tree of files.
    pub(crate) fn keeper(&self) -> u32 {
        self.keeper
    }

    /// The file that names it, last of three words, also after the node was started again.
    pub(crate) fn record(&self) -> PathBuf {
        self.folder.join("run/keeper")
    }

    /// Where its logs and state lie.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A program to be run in the node.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.keeper.to_string(), "--mount", "--net", "--pid", "--"]).arg(program);
        command.current_dir("/").env("PATH", shell::search_path());
        command
    }

    /// Runs a program in the node; gives what it prints.
    pub(crate) fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        shell::output(self.command(program).args(arguments))
    }

    /// Gives text to a program in the node.
    pub(crate) fn feed(&self, program: &str, arguments: &[&str], input: &str) -> Result<()> {
        shell::feed(self.command(program).args(arguments), input)
    }

    /// Starts a program that goes on in the node; what it says goes to `log/<name>.log`.
    pub(crate) fn daemon(&self, name: &str, program: &Path, arguments: &[String]) -> Result<()> {
        let words = std::iter::once(program.to_string_lossy().into_owned()).chain(arguments.iter().cloned());
        fs::write(self.words_file(name), words.collect::<Vec<_>>().join("\n"))?;
        self.start_again(name)
    }

    /// Starts a program as it was started before.
    pub(crate) fn start_again(&self, name: &str) -> Result<()> {
        let words = fs::read_to_string(self.words_file(name)).with_context(|| format!("{name} was never started"))?;
        ensure!(!self.runs(name), "{name} runs already");
        let log =
            File::options().create(true).append(true).open(self.folder.join("log").join(format!("{name}.log")))?;
        let mut command = self.command("sh");
        command.args(["-c", r#"echo $$ > "$1"; shift; exec "$@""#, name]).arg(self.pid_file(name));
        command.args(words.lines());
        detached(&mut command, &log)?.spawn().with_context(|| format!("starting {name}"))?;
        Ok(())
    }

    /// Gives an option of a program another value, `--option=value`, for when it is started again.
    pub(crate) fn set_option(&self, name: &str, option: &str, value: &str) -> Result<()> {
        let path = self.words_file(name);
        let words = fs::read_to_string(&path).with_context(|| format!("{name} was never started"))?;
        let is_other = |word: &&str| word.split('=').next() != Some(option);
        let others = words.lines().filter(is_other).map(str::to_owned);
        let words: Vec<String> = others.chain([format!("{option}={value}")]).collect();
        fs::write(&path, words.join("\n")).with_context(|| format!("writing {}", path.display()))
    }

    /// Whether a program that was started runs.
    pub(crate) fn runs(&self, name: &str) -> bool {
        let Ok(pid) = fs::read_to_string(self.pid_file(name)) else { return false };
        self.output("sh", &["-c", "kill -0 \"$0\"", pid.trim()]).is_ok()
    }

    /// Ends a program that was started, and waits for its end.
    pub(crate) fn stop(&self, name: &str, signal: &str) -> Result<()> {
        let pid = fs::read_to_string(self.pid_file(name)).with_context(|| format!("{name} was never started"))?;
        self.output("kill", &[&format!("-{signal}"), pid.trim()])?;
        let started = Instant::now();
        while self.runs(name) {
            ensure!(started.elapsed() < PATIENCE, "{name} does not end");
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// The last lines that a program said.
    pub(crate) fn said(&self, name: &str) -> String {
        said(&self.folder.join("log").join(format!("{name}.log")))
    }

    fn words_file(&self, name: &str) -> PathBuf {
        self.folder.join("run").join(format!("{name}.words"))
    }

    fn pid_file(&self, name: &str) -> PathBuf {
        self.folder.join("run").join(format!("{name}.pid"))
    }
}

/// Removes what was noted of the processes of a node before. How its daemons are started stays.
fn forget_processes(run: &Path) -> Result<()> {
    for entry in fs::read_dir(run)?.flatten().map(|entry| entry.path()) {
        if entry.ends_with("ready") || entry.extension().is_some_and(|extension| extension == "pid") {
            fs::remove_file(&entry).with_context(|| format!("removing {}", entry.display()))?;
        }
    }
    Ok(())
}

/// Away from the terminal, so that its keys end the caller only.
fn detached<'a>(command: &'a mut Command, log: &File) -> Result<&'a mut Command> {
    use std::os::unix::process::CommandExt;
    command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
    Ok(command)
}

fn said(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

/// The node's outer and first process, if the outer one still is the process that was recorded.
fn recorded(folder: &Path) -> Option<(u32, u32)> {
    let text = fs::read_to_string(folder.join("run/keeper")).ok()?;
    let mut words = text.split_whitespace();
    let (parent, start, keeper) = (words.next()?.parse().ok()?, words.next()?, words.next()?.parse().ok()?);
    (start_of(parent).ok()? == start).then_some((parent, keeper))
}

/// When a process began, in clock ticks since the machine did: process numbers come again, this does not.
fn start_of(process: u32) -> Result<String> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).context("reading a process's state")?;
    // Field 22 of proc_pid_stat(5); the second is in parentheses and may hold anything.
    let fields = stat.rsplit_once(") ").context("a process's state")?.1;
    Ok(fields.split(' ').nth(19).context("a process's start")?.to_owned())
}

fn is_zombie(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('Z'))
}

fn child_of(process: u32) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children"))?;
    children
        .split_whitespace()
        .next()
        .and_then(|child| child.parse().ok())
        .context("the node's first process has ended")
}

/// Folders of the hierarchies of control groups: many (version 1) or one (version 2).
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// A number that goes with the place of a folder: what the machine has only one of is named after it.
pub(super) fn mark(folder: &Path) -> u32 {
    let digest = Sha256::digest(folder.as_os_str().as_encoded_bytes());
    digest.iter().take(4).fold(0, |mark, octet| mark << 8 | u32::from(*octet))
}

/// The control group of a node's pods, in each hierarchy.
pub(super) fn cgroup(folder: &Path) -> String {
    format!("namegate-cluster-{:08x}", mark(folder))
}

fn make_cgroups(folder: &Path) -> Result<()> {
    for hierarchy in hierarchies() {
        let group = hierarchy.join(cgroup(folder));
        fs::create_dir_all(&group).with_context(|| format!("making {}", group.display()))?;
    }
    Ok(())
}

/// Removes the groups from the inside out. The kernel lets go of ended processes a moment after their end.
fn remove_cgroups(folder: &Path) -> Result<()> {
    let started = Instant::now();
    for group in hierarchies().into_iter().map(|hierarchy| hierarchy.join(cgroup(folder))) {
        while group.exists() && remove_group(&group).is_err() {
            ensure!(started.elapsed() < PATIENCE, "{} still has processes", group.display());
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}

fn remove_group(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)?.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_group(&entry.path())?;
    }
    fs::remove_dir(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_of_a_program_has_one_value() {
        let folder = std::env::temp_dir().join(format!("namegate-node-{}", std::process::id()));
        let node = Node { keeper: 0, folder: folder.clone() };
        assert!(node.set_option("proxy", "--mode", "b").is_err(), "it was never started");
        fs::create_dir_all(folder.join("run")).unwrap();
        fs::write(node.words_file("proxy"), "/bin/proxy\n--mode=a\n--mode-of-others=c").unwrap();
        for (value, want) in [("b", "--mode=b"), ("a", "--mode=a")] {
            node.set_option("proxy", "--mode", value).unwrap();
            let words = fs::read_to_string(node.words_file("proxy")).unwrap();
            assert_eq!(words, format!("/bin/proxy\n--mode-of-others=c\n{want}"));
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
