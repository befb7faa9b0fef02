//! The unix socket: made with mode 0660, replaced where it is stale, served with bounds.

use std::{
    io,
    os::unix::{fs::PermissionsExt, net::UnixStream as StdUnixStream},
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::net::UnixListener;

use crate::{
    accept::{self, Manner},
    gatekeeper::Gatekeeper,
    limits, routes,
};

/// Mode of the socket file: whoever is in its group may ask.
const SOCKET_MODE: u32 = 0o660;

/// Why the socket is not served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody listens there already.
    #[error("another agent answers on {}; stop it or set another `socket`", .0.display())]
    InUse(PathBuf),
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
}

impl Server {
    /// Binds the socket. Its directory is made where it is missing; a socket that nobody answers on is replaced.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let make = |source| SocketError::Make { path: path.to_owned(), source };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(make)?;
        }
        refuse_if_taken(path)?;
        // Bound beside its place and moved there once its mode is right: nobody connects before.
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        remove_if_there(&beside).map_err(make)?;
        let listener = UnixListener::bind(&beside).map_err(make)?;
        std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(SOCKET_MODE)).map_err(make)?;
        std::fs::rename(&beside, path).map_err(make)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Answers until `stop` is ready, then finishes what is under way.
    pub async fn serve(self, gate: Arc<dyn Gatekeeper>, stop: impl Future<Output = ()>) {
        let manner = Manner { connections_max: limits::CONNECTIONS_MAX, one_request: None };
        accept::serve(&self.listener, routes::router(gate), manner, stop).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing can be done about a file that somebody else has removed.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// An error where the path is served or is no socket.
fn refuse_if_taken(path: &Path) -> Result<(), SocketError> {
    match StdUnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound) => Ok(()),
        Err(_) => {
            use std::os::unix::fs::FileTypeExt;
            let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
            if is_socket { Ok(()) } else { Err(SocketError::NotASocket(path.to_owned())) }
        }
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
