//! A server of HTTP/2 in clear text that answers each request with 200 once all of it is there: for tests of the
//! protocols, in which nothing should depend on who is faster.
//!
//! ```text
//! origin   # prints its port
//! ```

use std::{convert::Infallible, error::Error};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

const PAGE: &str = "all of it is here\n";

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let page = if request.method() == Method::HEAD { "" } else { PAGE };
    // A request that ends before its end is nobody's to answer any more.
    let _ = request.into_body().collect().await;
    Ok(Response::new(page.into()))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?.port());
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let connection = http2::Builder::new(TokioExecutor::new());
            // Clients of tests end connections as they like.
            let _ = connection.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
        });
    }
}
