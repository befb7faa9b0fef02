//! A stand-in for the gate, serving on a socket of its own, and a client.

mod client;
mod stand_in;

use std::{path::PathBuf, sync::Arc};

use namegate_api::Server;
use serde_json::Value;
use tokio::{sync::oneshot, task::JoinHandle};

pub(crate) use client::{Lines, Response};
pub(crate) use stand_in::{StandIn, flow};

/// A serving stand-in.
pub(crate) struct World {
    pub(crate) gate: Arc<StandIn>,
    socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

impl World {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("namegate.sock");
        let server = Server::bind(&socket).unwrap();
        let gate = Arc::new(StandIn::default());
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(server.serve(gate.clone(), async {
            let _ = stopped.await;
        }));
        Self { gate, socket, stop: Some(stop), serving: Some(serving), _folder: folder }
    }

    pub(crate) async fn stop(mut self) -> PathBuf {
        drop(self.stop.take());
        self.serving.take().unwrap().await.unwrap();
        self.socket.clone()
    }

    pub(crate) async fn request_with(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        client::request(&self.socket, method, path, headers, String::new()).await
    }

    pub(crate) async fn request(&self, method: &str, path: &str) -> Response {
        self.request_with(method, path, &[]).await
    }

    pub(crate) async fn send(&self, method: &str, path: &str) -> (u16, Value) {
        let response = self.request(method, path).await;
        (response.status, serde_json::from_str(&response.body).unwrap())
    }

    /// Sends a body; the answer is JSON or nothing.
    pub(crate) async fn send_body(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let response = client::request(&self.socket, method, path, &[], body.to_string()).await;
        (response.status, serde_json::from_str(&response.body).unwrap_or(Value::Null))
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        self.send("GET", path).await
    }

    pub(crate) async fn stream(&self, path: &str) -> Lines {
        client::stream(&self.socket, path).await
    }
}
