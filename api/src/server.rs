//! The unix socket: made with mode 0660, replaced where it is stale, served with bounds.

use std::{
    fs::{DirBuilder, File},
    io,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::net::{UnixListener, UnixStream};

use crate::{
    accept::{self, ServeOptions},
    backend::Backend,
    limits, routes,
};

/// Mode of the socket file: its owner and the members of its group may connect.
const SOCKET_MODE: u32 = 0o660;
/// Mode of a folder that is made for it.
const FOLDER_MODE: u32 = 0o750;

/// Why the socket is not served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody listens there already.
    #[error("another agent{holder} answers on {}; stop it or set another `socket`", .path.display())]
    InUse {
        /// The path.
        path: PathBuf,
        /// Its process in brackets, where that is known.
        holder: String,
    },
    /// Something that is no socket has the path.
    #[error("{} is there and is no socket; remove it or set another `socket`", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("making the socket {}", .path.display())]
    Make {
        /// The path.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// A bound socket. The file is removed when the server goes away.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// Of the file.
    inode: Option<(u64, u64)>,
}

impl Server {
    /// Binds the socket. Its directory is made where it is missing; a socket that nobody answers on is replaced.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let make = |source| SocketError::Make { path: path.to_owned(), source };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder).map_err(make)?;
        // Of two agents that start at once, the second finds the socket of the first.
        let held = File::open(folder).map_err(make)?;
        held.lock().map_err(make)?;
        refuse_if_taken(path)?;
        // Bound beside its place and moved there once its mode is right: nobody connects before.
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        remove_if_there(&beside).map_err(make)?;
        let listener = UnixListener::bind(&beside).map_err(make)?;
        std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(SOCKET_MODE)).map_err(make)?;
        std::fs::rename(&beside, path).map_err(make)?;
        let inode = inode(path);
        Ok(Self { listener, path: path.to_owned(), inode })
    }

    /// Answers until `stop` is ready, then finishes what is under way.
    pub async fn serve(self, gate: Arc<dyn Backend>, stop: impl Future<Output = ()>) {
        let options = ServeOptions { connections_max: limits::CONNECTIONS_MAX, one_request: None };
        accept::serve(&self.listener, routes::router(gate), options, stop).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Another agent may have made its own where this one's was removed.
        if self.inode.is_some() && inode(&self.path) == self.inode {
            // Nothing can be done about a file that another program has removed.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Device and inode of a file.
fn inode(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// An error where the path is served or is no socket of an agent that has ended.
fn refuse_if_taken(path: &Path) -> Result<(), SocketError> {
    match StdUnixStream::connect(path) {
        Ok(stream) => Err(SocketError::InUse { path: path.to_owned(), holder: holder(stream) }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => {
            let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
            match error.kind() {
                _ if !is_socket => Err(SocketError::NotASocket(path.to_owned())),
                // Its process has ended.
                io::ErrorKind::ConnectionRefused => Ok(()),
                // Something else, such as a full queue or a socket of another type, speaks for one that runs.
                _ => Err(SocketError::Make { path: path.to_owned(), source: error }),
            }
        }
    }
}

/// The process that listens, in brackets, where the kernel says it.
fn holder(stream: StdUnixStream) -> String {
    let pid = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
    let pid = pid.and_then(|stream| stream.peer_cred()).ok().and_then(|peer| peer.pid());
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
