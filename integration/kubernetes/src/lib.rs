//! Kubernetes as a source: watches policies, pods, namespaces, nodes and services, and hands them on as one snapshot.
//!
//! It knows the API server and nothing of kernels, interfaces or engines.
//!
//! ```no_run
//! # async fn example() -> Result<(), namegate_kubernetes::StartError> {
//! use namegate_kubernetes::{Options, Watch};
//! let options = Options {
//!     node: "node1".to_owned(),
//!     kubeconfig: None,
//!     dns: namegate_config::settings::Dns::default(),
//!     state: "/run/namegate".into(),
//! };
//! let watch = Watch::start(options).await?;
//! let mut snapshots = watch.snapshots();
//! if snapshots.changed().await.is_ok()
//!     && let Some(snapshot) = snapshots.borrow_and_update().clone()
//! {
//!     println!("{} policies", snapshot.policies.len());
//! }
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod assemble;
mod backoff;
mod client;
mod event;
mod follow;
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod hub;
mod object;
mod report;
mod row;
mod saved;
mod service;
mod snapshot;
mod status;
mod tables;
mod watch;
mod wire;

pub use client::StartError;
pub use health::{Source, SourceState};
pub use report::{Notes, Report};
pub use snapshot::{LocalPod, PolicyObject, Snapshot, Who};
pub use watch::{Options, Watch};
