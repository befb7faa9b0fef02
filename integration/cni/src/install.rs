//! Puts the plugin where the container runtime looks for it, and into the network configuration it uses.
//!
//! Runtimes use the first file by name. Files are replaced in one step, so that a runtime never reads half of one.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde_json::{Map, Value, json};

use crate::agent::{Agent, Failure};
use crate::request::SOCKET;

/// The name of the program and the type of the plugin.
const NAME: &str = "namegate-cni";
/// Ending of a single configuration that was put into a list: runtimes do not read it.
const SAVED: &str = "namegate-saved";

/// Installs or removes the plugin.
#[derive(Debug, Parser)]
#[command(name = NAME, version, after_help = "Without a verb it is a CNI plugin: variables and standard input say what to do.")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Copies the program and adds the plugin to the first network configuration. Does nothing where that is done.
    #[command(after_help = "Example:\n  namegate-cni install --bin-dir /opt/cni/bin --conf-dir /etc/cni/net.d")]
    Install(Install),
    /// Takes the plugin out of every network configuration and removes the program.
    #[command(after_help = "Example:\n  namegate-cni uninstall --bin-dir /opt/cni/bin --conf-dir /etc/cni/net.d")]
    Uninstall(Folders),
    /// Sets what only a privileged container may: packets to proxies can be forwarded, and come in where they left.
    #[command(after_help = "Example:\n  namegate-cni prepare-node")]
    PrepareNode,
    /// Asks the agent whether all is well; for probes.
    #[command(
        after_help = "Example:\n  namegate-cni health\n\nExit status: 0 if it is, 1 if not, 2 if no agent answers."
    )]
    Health {
        /// The agent's unix socket.
        #[arg(long, value_name = "PATH", default_value = SOCKET)]
        socket: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Folders {
    /// Folder of CNI plugins.
    #[arg(long, value_name = "FOLDER", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,
    /// Folder of network configurations.
    #[arg(long, value_name = "FOLDER", default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,
}

#[derive(Debug, Args)]
struct Install {
    #[command(flatten)]
    folders: Folders,
    /// The agent's unix socket, as the node sees it.
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
    /// What becomes of a pod while the agent is away: it does not start (deny), or starts unguarded (allow).
    #[arg(long, default_value = "deny", value_parser = ["deny", "allow"])]
    on_agent_down: String,
}

/// Does it.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let outcome = match &arguments.verb {
        Verb::Install(install) => install.run(),
        Verb::Uninstall(folders) => folders.remove(),
        Verb::PrepareNode => prepare_node(Path::new("/proc/sys/net/ipv4")),
        Verb::Health { socket } => return health(socket),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn health(socket: &Path) -> ExitCode {
    match Agent::new(socket, Duration::ZERO).health() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(if matches!(failure, Failure::Refused { .. }) { 1 } else { 2 })
        }
    }
}

/// Writes what the agent would, in containers that may not: see `docs/kubernetes.md`.
fn prepare_node(settings: &Path) -> io::Result<()> {
    let value = |name: &str| {
        let path = settings.join(name);
        fs::read_to_string(&path).map(|text| text.trim().to_owned()).map_err(|error| said(&path, &error.to_string()))
    };
    let set = |name: &str, to: &str| {
        let path = settings.join(name);
        println!("{} = {to}", path.display());
        fs::write(&path, to).map_err(|error| said(&path, &error.to_string()))
    };
    if value("tcp_early_demux")? != "0" {
        set("tcp_early_demux", "0")?;
    }
    // Strict checking of sources would drop a packet that comes back in by the interface it was about to leave by.
    let strict = ["conf/all/rp_filter", "conf/default/rp_filter"].map(value);
    if strict.into_iter().collect::<io::Result<Vec<_>>>()?.iter().any(|value| value == "1") {
        set("conf/default/rp_filter", "2")?;
    }
    Ok(())
}

impl Install {
    fn run(&self) -> io::Result<()> {
        let program = self.folders.bin_dir.join(NAME);
        let own = fs::read(std::env::current_exe()?)?;
        if fs::read(&program).is_ok_and(|there| there == own) {
            println!("{} is up to date", program.display());
        } else {
            replace(&program, &own, 0o755)?;
            println!("wrote {}", program.display());
        }
        let found = configurations(&self.folders.conf_dir)?.into_iter().next().ok_or_else(|| {
            let folder = self.folders.conf_dir.display();
            io::Error::other(format!(
                "{folder} has no network configuration; next step: install a CNI plugin that makes interfaces"
            ))
        })?;
        let old = read(&found)?;
        let list = with_plugin(&old, &self.plugin()).map_err(|what| said(&found, &what))?;
        if list == old {
            println!("{} has the plugin", found.display());
            return Ok(());
        }
        let to = found.with_extension("conflist");
        write(&to, &list)?;
        if to != found {
            fs::rename(&found, saved(&found))?;
        }
        println!("wrote {}", to.display());
        Ok(())
    }

    fn plugin(&self) -> Value {
        json!({"type": NAME, "socket": self.socket, "onAgentDown": self.on_agent_down})
    }
}

impl Folders {
    fn remove(&self) -> io::Result<()> {
        for path in configurations(&self.conf_dir)? {
            let mut list = read(&path)?;
            let Some(plugins) = list.get_mut("plugins").and_then(Value::as_array_mut) else { continue };
            let before = plugins.len();
            plugins.retain(|plugin| plugin["type"] != NAME);
            if plugins.len() == before {
                continue;
            }
            let single = ["conf", "json"].map(|ending| path.with_extension(ending));
            if let Some(single) = single.iter().find(|single| saved(single).exists()) {
                fs::rename(saved(single), single)?;
                fs::remove_file(&path)?;
                println!("restored {}", single.display());
            } else {
                write(&path, &list)?;
                println!("wrote {}", path.display());
            }
        }
        match fs::remove_file(self.bin_dir.join(NAME)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Network configurations in the order of runtimes.
fn configurations(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|error| said(folder, &error.to_string()))?;
    let endings = ["conf", "conflist", "json"];
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().and_then(OsStr::to_str).is_some_and(|ending| endings.contains(&ending)))
        .collect();
    found.sort();
    Ok(found)
}

/// A list with the plugin at its end. A single configuration becomes the first of a list.
fn with_plugin(old: &Value, plugin: &Value) -> Result<Value, String> {
    let mut list = old.clone();
    if list.get("plugins").is_none() {
        let mut single: Map<String, Value> = old.as_object().cloned().ok_or("it is no JSON object")?;
        if !single.get("type").is_some_and(Value::is_string) {
            return Err("it has neither `plugins` nor `type`".to_owned());
        }
        let name = single.shift_remove("name").ok_or("it has no `name`")?;
        let version = single.shift_remove("cniVersion").unwrap_or_else(|| "0.3.1".into());
        list = json!({"cniVersion": version, "name": name, "plugins": [single]});
    }
    let plugins = list["plugins"].as_array_mut().ok_or("its `plugins` is no list")?;
    if plugins.iter().all(|found| found["type"] == NAME) {
        return Err("no plugin of it makes an interface".to_owned());
    }
    match plugins.iter_mut().find(|found| found["type"] == NAME) {
        Some(found) => *found = plugin.clone(),
        None => plugins.push(plugin.clone()),
    }
    Ok(list)
}

fn read(path: &Path) -> io::Result<Value> {
    let text = fs::read(path).map_err(|error| said(path, &error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| said(path, &error.to_string()))
}

fn write(path: &Path, list: &Value) -> io::Result<()> {
    let mode = fs::metadata(path).map_or(0o644, |known| known.permissions().mode() & 0o777);
    replace(path, format!("{list:#}\n").as_bytes(), mode)
}

/// Writes beside and renames: who opens the path sees the old file or the new one.
fn replace(path: &Path, octets: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or(NAME);
    let beside = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let put = || {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        file.write_all(octets)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    put().map_err(|error| {
        let _ = fs::remove_file(&beside); // It may not have come that far.
        said(path, &error.to_string())
    })
}

fn saved(single: &Path) -> PathBuf {
    let mut name = single.as_os_str().to_owned();
    name.push(format!(".{SAVED}"));
    name.into()
}

fn said(path: &Path, what: &str) -> io::Error {
    io::Error::other(format!("{}: {what}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_prepared_as_far_as_needed() {
        for (before, after) in [
            (["1", "0", "0"], ["0", "0", "0"]),
            (["0", "1", "0"], ["0", "1", "2"]),
            (["0", "0", "1"], ["0", "0", "2"]),
            (["1", "2", "2"], ["0", "2", "2"]),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let names = ["tcp_early_demux", "conf/all/rp_filter", "conf/default/rp_filter"];
            for (name, value) in names.iter().zip(before) {
                let path = folder.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, format!("{value}\n")).unwrap();
            }
            prepare_node(folder.path()).unwrap();
            let got = names.map(|name| fs::read_to_string(folder.path().join(name)).unwrap().trim().to_owned());
            assert_eq!(got, after, "{before:?}");
        }
        assert!(prepare_node(Path::new("/nowhere")).is_err());
    }
}
