//! `/v1/flows`: new and denied flows, one JSON object a line.

use std::{collections::VecDeque, convert::Infallible, sync::Arc};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{Uri, header},
    response::{IntoResponse, Response},
};
use tokio::sync::OwnedSemaphorePermit;

use super::Api;
use crate::{
    flow_hub::{FlowReader, Read},
    limits::STREAMS_MAX,
    problem::Problem,
    query::FlowFilter,
    view::{Flow, Lost},
};

/// Media type of JSON lines.
const JSON_LINES: &str = "application/x-ndjson";

/// Streams new and denied flows as JSON lines; a line `{"lost": n}` stands for flows that came too fast.
#[utoipa::path(
    get,
    path = "/v1/flows",
    operation_id = "streamFlows",
    params(
        ("denied" = Option<bool>, Query, description = "Only flows that were, or in audit mode would have been, denied"),
        ("endpoint" = Option<String>, Query, description = "Id, `namespace/name` or name of the endpoint"),
        ("last" = Option<usize>, Query, description = "How many past flows come first (default 0)"),
        ("follow" = Option<bool>, Query, description = "Whether flows to come follow (default true)"),
    ),
    responses(
        (status = 200, description = "Flows as they happen", body = Flow, content_type = "application/x-ndjson"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn stream(State(api): State<Api>, uri: Uri) -> Result<Response, Problem> {
    let filter = FlowFilter::read(&uri)?;
    let permit = Arc::clone(&api.streams).try_acquire_owned().map_err(|_| Problem::busy("streams", STREAMS_MAX))?;
    let feed = api.gate.flows(filter.last > 0).await?;
    let mut past: VecDeque<_> = feed.recent.into_iter().filter(|flow| filter.passes(flow)).collect();
    past.drain(..past.len().saturating_sub(filter.last));
    let lines = Lines { past, live: filter.follow.then_some(feed.live), filter, _permit: permit };
    let body = Body::from_stream(futures_util::stream::unfold(lines, |mut lines| async {
        let line = lines.next().await?;
        Some((Ok::<_, Infallible>(line), lines))
    }));
    Ok(([(header::CONTENT_TYPE, JSON_LINES)], body).into_response())
}

struct Lines {
    past: VecDeque<Arc<Flow>>,
    /// Absent where the stream ends with the past.
    live: Option<FlowReader>,
    filter: FlowFilter,
    /// Given back when the reader goes away.
    _permit: OwnedSemaphorePermit,
}

impl Lines {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(flow) = self.past.pop_front() {
            return line(&*flow);
        }
        let live = self.live.as_mut()?;
        loop {
            match live.next().await? {
                Read::Flow(flow) if self.filter.passes(&flow) => return line(&*flow),
                Read::Flow(_) => {}
                Read::Lost(lost) => return line(&Lost { lost }),
            }
        }
    }
}

fn line(value: &impl serde::Serialize) -> Option<Bytes> {
    let mut text = serde_json::to_vec(value).ok()?;
    text.push(b'\n');
    Some(text.into())
}
