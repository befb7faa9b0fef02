//! QUIC connections that were begun lately. Each begins once: what is known of it may be forgotten, and a server may still
//! have a part of its handshake, which another beginning under the same identifier would complete otherwise.

use std::collections::HashMap;

use namegate_abi::FlowKey;
use namegate_config::shares::{Full, Shares};
use namegate_l7_proxy::quic::Connection;

/// Connections remembered at a time; an endpoint gets no more than it leaves free.
const CONNECTIONS_MAX: usize = 131_072;
/// How long a connection is remembered after it was forgotten: servers give up an unfinished handshake before.
const REMEMBERED_NS: u64 = 120_000_000_000;

/// Connections by version and identifier, of all flows: a server may know them by these alone.
pub(super) struct Begun {
    connections: HashMap<Connection, Beginning>,
    shares: Shares<u32>,
}

struct Beginning {
    flow: FlowKey,
    /// When it was known last.
    last_ns: u64,
}

impl Begun {
    pub(super) fn new() -> Self {
        Self { connections: HashMap::new(), shares: Shares::new(CONNECTIONS_MAX, CONNECTIONS_MAX) }
    }

    /// Whether a connection may begin: it was not begun before, and its endpoint has room.
    pub(super) fn claim(&mut self, flow: &FlowKey, connection: Connection, now_ns: u64) -> Result<bool, Full> {
        if self.connections.contains_key(&connection) {
            return Ok(false);
        }
        self.shares.take(flow.endpoint, 1)?;
        self.connections.insert(connection, Beginning { flow: *flow, last_ns: now_ns });
        Ok(true)
    }

    /// Forgets the connections that were not known for long enough; `is_known` says which are.
    pub(super) fn expire(&mut self, now_ns: u64, is_known: impl Fn(&FlowKey, Connection) -> bool) {
        self.connections.retain(|connection, beginning| {
            if is_known(&beginning.flow, *connection) {
                beginning.last_ns = now_ns;
            }
            let stays = now_ns.saturating_sub(beginning.last_ns) < REMEMBERED_NS;
            if !stays {
                self.shares.give(beginning.flow.endpoint, 1);
            }
            stays
        });
    }
}
