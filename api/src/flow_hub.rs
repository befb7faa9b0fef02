//! Flows on their way to the readers of streams. A reader that is slow loses the oldest flows of the endpoint with very many
//! of them, not those of others.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use namegate_config::fair_ring::FairRing;
use tokio::sync::Notify;

use crate::view::Flow;

/// Where flows are handed to all readers.
#[derive(Debug)]
pub struct FlowHub {
    readers: Mutex<Vec<Weak<Queue>>>,
    lag_max: usize,
}

#[derive(Debug)]
struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Debug)]
struct Waiting {
    flows: FairRing<Arc<Flow>>,
    /// Flows that gave way since the reader was told last.
    lost: u64,
    is_closed: bool,
}

/// What a reader gets.
#[derive(Debug)]
pub enum Read {
    /// The next flow.
    Flow(Arc<Flow>),
    /// So many flows came too fast.
    Lost(u64),
}

/// A reader of the flows from its subscription on.
#[derive(Debug)]
pub struct FlowReader(Arc<Queue>);

impl FlowHub {
    /// Each reader may lag behind by so many flows; those of one endpoint may be half of them.
    pub fn new(lag_max: usize) -> Self {
        Self { readers: Mutex::default(), lag_max }
    }

    /// A reader of the flows from now on.
    pub fn subscribe(&self) -> FlowReader {
        let waiting = Waiting { flows: FairRing::new(self.lag_max), lost: 0, is_closed: false };
        let queue = Arc::new(Queue { waiting: Mutex::new(waiting), arrived: Notify::new() });
        self.lock().push(Arc::downgrade(&queue));
        FlowReader(queue)
    }

    /// Hands a flow to all readers.
    pub fn send(&self, flow: &Arc<Flow>) {
        self.lock().retain(|reader| {
            let Some(queue) = reader.upgrade() else { return false };
            let mut waiting = queue.lock();
            if waiting.flows.push(flow.endpoint.id, Arc::clone(flow)).is_some() {
                waiting.lost += 1;
            }
            drop(waiting);
            queue.arrived.notify_one();
            true
        });
    }

    /// Readers at the moment.
    pub fn readers(&self) -> usize {
        self.lock().iter().filter(|reader| reader.strong_count() > 0).count()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Queue>>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FlowHub {
    fn drop(&mut self) {
        for queue in self.lock().iter().filter_map(Weak::upgrade) {
            queue.lock().is_closed = true;
            queue.arrived.notify_one();
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FlowReader {
    /// Waits for the next flow; `None` where no more come.
    pub async fn next(&mut self) -> Option<Read> {
        loop {
            {
                let mut waiting = self.0.lock();
                if waiting.lost > 0 {
                    return Some(Read::Lost(std::mem::take(&mut waiting.lost)));
                }
                if let Some(flow) = waiting.flows.pop() {
                    return Some(Read::Flow(flow));
                }
                if waiting.is_closed {
                    return None;
                }
            }
            self.0.arrived.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::view::{Direction, FlowEndpoint, FlowPeer, Verdict};

    fn flow(endpoint: u32, number: u16) -> Arc<Flow> {
        let address: IpAddr = Ipv4Addr::new(192, 0, 2, 1).into();
        Arc::new(Flow {
            time: String::new(),
            verdict: Verdict::Denied,
            direction: Direction::Egress,
            endpoint: FlowEndpoint { id: endpoint, namespace: String::new(), name: String::new() },
            peer: FlowPeer { address, name: None, fqdns: Vec::new(), identity: 0 },
            source: address,
            source_port: number,
            destination: address,
            destination_port: 1,
            protocol: "TCP".to_owned(),
            rule: None,
            reason: String::new(),
            reason_text: String::new(),
            tcp_flags: 0,
            length: 0,
            http: None,
            server_name: None,
        })
    }

    #[tokio::test]
    async fn a_slow_reader_loses_flows_of_the_endpoint_with_very_many() {
        let hub = FlowHub::new(64);
        let mut reader = hub.subscribe();
        hub.send(&flow(2, 7));
        (0..1_000).for_each(|number| hub.send(&flow(1, number)));
        hub.send(&flow(2, 8));
        drop(hub);
        let (mut lost, mut seen) = (0, Vec::new());
        while let Some(read) = reader.next().await {
            match read {
                Read::Lost(count) => lost += count,
                Read::Flow(flow) => seen.push((flow.endpoint.id, flow.source_port)),
            }
        }
        assert_eq!(lost, 1_002 - seen.len() as u64);
        assert_eq!((seen.first(), seen.last()), (Some(&(2, 7)), Some(&(2, 8))), "in their order");
        assert!(seen.contains(&(1, 999)));
    }

    #[test]
    fn readers_that_went_away_are_forgotten() {
        let hub = FlowHub::new(4);
        let reader = hub.subscribe();
        assert_eq!(hub.readers(), 1);
        drop(reader);
        hub.send(&flow(1, 1));
        assert_eq!((hub.readers(), hub.lock().len()), (0, 0));
    }
}
