//! Gets a URL with reqwest and rustls, and prints the body and, on a line of its own, the status.

use std::error::Error;
use std::time::Duration;

use reqwest::{Certificate, Client, Version, tls};

const WITHIN: Duration = Duration::from_secs(4);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [protocol, authority, url] = &arguments[..] else {
        return Err("arguments: PROTOCOL AUTHORITY-PEM URL".into());
    };
    let authority = Certificate::from_pem(&std::fs::read(authority)?)?;
    let mut builder = Client::builder().tls_certs_only([authority]).timeout(WITHIN);
    builder = match protocol.as_str() {
        "h2c" => builder.http2_prior_knowledge(),
        "http3" => builder.http3_prior_knowledge(),
        "http2" => builder,
        "tls12" => builder.http1_only().tls_version_max(tls::Version::TLS_1_2),
        _ => builder.http1_only(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = builder.build()?;
        let mut request = client.get(url);
        if protocol == "http3" {
            request = request.version(Version::HTTP_3);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        println!("{}\n{status}", response.text().await?);
        Ok(())
    })
}
