//! The replies that the proxy makes itself, where the server gives none or must not be asked.

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::{
    Response, StatusCode, Version,
    body::Body,
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue},
};
use namegate_config::l7::head::Refused;

use crate::upstream::UpstreamError;

/// The body of a denial, as Cilium's proxy has it.
const DENIED: &str = "Access denied\n";
/// Why a request did not pass.
const REASON: HeaderName = HeaderName::from_static("x-namegate-reason");

/// A reply to a client: its body is the server's, or one that the proxy made.
pub(crate) type Reply<B> = Response<Either<B, Full<Bytes>>>;

/// The request does not pass.
pub(crate) fn denied<B>(why: &str) -> Reply<B> {
    plain(StatusCode::FORBIDDEN, DENIED, why)
}

/// The request can not be judged now.
pub(crate) fn unavailable<B>(why: &str) -> Reply<B> {
    plain(StatusCode::SERVICE_UNAVAILABLE, "Unavailable\n", why)
}

/// The request can not be read in one way alone. Over HTTP/1 it is the last of its connection.
pub(crate) fn malformed<B>(refused: Refused, version: Version) -> Reply<B> {
    let mut reply = plain(refused.status, "Bad request\n", refused.why);
    if version < Version::HTTP_2 {
        close(&mut reply);
    }
    reply
}

/// The server's response is none that the client may get.
pub(crate) fn bad_gateway<B>(why: &str) -> Reply<B> {
    plain(StatusCode::BAD_GATEWAY, "Bad gateway\n", why)
}

/// The server gave no response.
pub(crate) fn unanswered<B>(error: &UpstreamError) -> Reply<B> {
    match error {
        UpstreamError::Connect(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            plain(StatusCode::GATEWAY_TIMEOUT, "Gateway timeout\n", "the server does not accept the connection")
        }
        UpstreamError::Connect(_) => bad_gateway("the server refuses the connection"),
        UpstreamError::Talk(_) => bad_gateway("the server broke off"),
    }
}

/// The connection ends after this reply.
pub(crate) fn close<B>(reply: &mut Reply<B>) {
    reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
}

/// A reply to `HEAD`: the bytes that another method would get are counted, not sent (RFC 9110 §9.3.2). Servers send
/// none; clients of HTTP/2 take any for an error.
pub(crate) fn without_body<B>(mut reply: Reply<B>) -> Reply<B> {
    if let Either::Right(own) = reply.body_mut() {
        let bytes = own.size_hint().lower();
        *own = Full::default();
        reply.headers_mut().insert(CONTENT_LENGTH, bytes.into());
    }
    reply
}

fn plain<B>(status: StatusCode, body: &'static str, why: &str) -> Reply<B> {
    let mut reply = Response::new(Either::Right(Full::from(body)));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    if let Ok(why) = HeaderValue::from_str(why) {
        reply.headers_mut().insert(REASON, why);
    }
    reply
}
