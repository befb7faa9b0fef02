//! Images of containers, made from this machine's files: no registry is asked.
//!
//! An image is one layer in the form of `docker save`, which `ctr images import` reads.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::shell;

/// Folders of every image.
const FOLDERS: [&str; 10] = ["bin", "etc", "tmp", "usr", "usr/bin", "proc", "sys", "dev", "var", "run"];
/// Verbs of busybox that have names of their own. `wget` and `nslookup` are those that resolve names by libc's rules.
const BUSYBOX_VERBS: [&str; 18] = [
    "sh", "sleep", "nc", "httpd", "cat", "ls", "ip", "ping", "ps", "kill", "mkdir", "cp", "echo", "env", "true",
    "test", "printf", "seq",
];

/// What an image holds.
pub(crate) struct Image {
    name: String,
    entrypoint: Vec<String>,
    files: Vec<(PathBuf, String)>,
    links: Vec<(String, String)>,
}

impl Image {
    /// An empty image.
    pub(crate) fn new(name: &str, entrypoint: &[&str]) -> Self {
        let entrypoint = entrypoint.iter().map(|&word| word.to_owned()).collect();
        Self { name: name.to_owned(), entrypoint, files: Vec::new(), links: Vec::new() }
    }

    /// Puts in a program with the shared libraries it asks for.
    pub(crate) fn program(mut self, path: &Path, at: &str) -> Result<Self> {
        for library in libraries(path)? {
            let at = library.to_string_lossy().trim_start_matches('/').to_owned();
            self.files.push((fs::canonicalize(&library)?, at));
        }
        self.files.push((path.to_owned(), at.to_owned()));
        Ok(self)
    }

    /// Puts in busybox with its verbs.
    pub(crate) fn busybox(mut self) -> Result<Self> {
        let busybox = shell::find("busybox").context("busybox is not installed")?;
        self.links.extend(BUSYBOX_VERBS.map(|verb| (format!("bin/{verb}"), "busybox".to_owned())));
        self.program(&busybox, "bin/busybox")
    }

    /// Writes the archive.
    pub(crate) fn write(&self, to: &Path) -> Result<()> {
        let layer = self.layer()?;
        let digest = digest(&layer);
        let config = serde_json::json!({
            "architecture": architecture(), "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Env": ["PATH=/bin:/usr/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
        });
        let config = serde_json::to_vec(&config)?;
        let config_name = format!("{}.json", self::digest(&config));
        let layer_name = format!("{digest}/layer.tar");
        let manifest = serde_json::json!([{"Config": config_name, "RepoTags": [self.name], "Layers": [layer_name]}]);
        let mut archive = Builder::new(File::create(to).with_context(|| format!("writing {}", to.display()))?);
        append(&mut archive, &config_name, &config, 0o644)?;
        append(&mut archive, &layer_name, &layer, 0o644)?;
        append(&mut archive, "manifest.json", &serde_json::to_vec(&manifest)?, 0o644)?;
        archive.into_inner()?.flush()?;
        Ok(())
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut layer = Builder::new(Vec::new());
        let mut folders: BTreeSet<PathBuf> = FOLDERS.iter().map(PathBuf::from).collect();
        for (_, place) in &self.files {
            folders.extend(Path::new(place).ancestors().skip(1).map(Path::to_owned));
        }
        for folder in folders.iter().filter(|folder| !folder.as_os_str().is_empty()) {
            let mut header = header(EntryType::Directory, 0, if folder.ends_with("tmp") { 0o1777 } else { 0o755 });
            layer.append_data(&mut header, folder, Cursor::new([]))?;
        }
        let mut done = BTreeSet::new();
        for (path, at) in self.files.iter().filter(|(_, at)| done.insert(at)) {
            let octets = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
            append(&mut layer, at, &octets, 0o755)?;
        }
        for (at, target) in &self.links {
            layer.append_link(&mut header(EntryType::Symlink, 0, 0o777), at, target)?;
        }
        Ok(layer.into_inner()?)
    }
}

/// Shared libraries of a program, its loader among them; none for a static one.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let ldd = Command::new("ldd").arg(program).output().context("running `ldd`")?;
    // Says "not a dynamic executable" and fails for a static program.
    let text = String::from_utf8_lossy(&ldd.stdout).into_owned();
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

/// This machine's architecture in the words of OCI images.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn append(archive: &mut Builder<impl Write>, name: &str, octets: &[u8], mode: u32) -> Result<()> {
    let mut header = header(EntryType::Regular, octets.len() as u64, mode);
    archive.append_data(&mut header, name, octets).with_context(|| format!("writing {name} into an image"))
}

/// No owner but root and no time: the same files give the same image.
fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header
}

fn digest(octets: &[u8]) -> String {
    Sha256::digest(octets).iter().fold(String::new(), |mut text, octet| {
        let _ = write!(text, "{octet:02x}"); // Writing to a string does not fail.
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_give_the_same_image() {
        let folder = std::env::temp_dir().join(format!("namegate-image-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("words");
        fs::write(&file, "words").unwrap();
        let image = || Image::new("localhost/x:1", &["/x"]).program(&file, "etc/deep/x").unwrap();
        let archive = folder.join("x.tar");
        image().write(&archive).unwrap();
        let first = fs::read(&archive).unwrap();
        image().write(&archive).unwrap();
        assert_eq!(first, fs::read(&archive).unwrap());
        let mut read = tar::Archive::new(first.as_slice());
        let names: Vec<_> = read.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
        let layer = format!("{}/layer.tar", digest(&image().layer().unwrap()));
        assert!(names.iter().any(|name| *name == Path::new(&layer)), "{names:?}");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn digests_are_those_of_sha_256() {
        assert_eq!(digest(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
