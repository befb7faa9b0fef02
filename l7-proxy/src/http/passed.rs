//! The record of a request that was let pass.

use std::{sync::Arc, time::Instant};

use hyper::StatusCode;
use namegate_config::l7::head::HttpFacts;

use super::Session;
use crate::{
    backend::{AccessVerdict, Backend},
    guard::Judgement,
};

/// The code in the record of a request whose client did not wait for the answer.
const UNANSWERED: u16 = 0;

/// A request that is on its way to the server. It is recorded once it is answered, and also where its client does not wait
/// for that: the server may have got it.
pub(super) struct Passed<'s, D: Backend> {
    session: &'s Session<D>,
    said: Option<(Arc<HttpFacts>, Judgement, AccessVerdict)>,
    code: u16,
    began: Instant,
}

impl<'s, D: Backend> Passed<'s, D> {
    pub(super) fn new(
        session: &'s Session<D>,
        said: (Arc<HttpFacts>, Judgement, AccessVerdict),
        began: Instant,
    ) -> Self {
        Self { session, said: Some(said), code: UNANSWERED, began }
    }

    pub(super) fn answered(mut self, status: StatusCode) {
        self.code = status.as_u16();
    }
}

impl<D: Backend> Drop for Passed<'_, D> {
    fn drop(&mut self) {
        if let Some((facts, judged, verdict)) = self.said.take() {
            self.session.record(&facts, judged, verdict, self.code, self.began);
        }
    }
}
