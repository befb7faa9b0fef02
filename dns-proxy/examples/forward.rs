//! A plain forwarder with the proxy's checks, for measuring: `forward RESOLVER:PORT [WORKERS]` prints its port, serves until
//! standard input ends, and prints the counters. The gate takes everything at once.

use std::{future::Future, io::Read, net::IpAddr};

use namegate_dns_proxy::{Backend, Config, NotInstalled, Proxy};
use namegate_engine::{Answer, EndpointId};

#[derive(Clone)]
struct TakesAll;

impl Backend for TakesAll {
    fn endpoint(&self, _: IpAddr) -> Option<EndpointId> {
        Some(EndpointId(1))
    }

    fn is_trusted(&self, _: IpAddr) -> bool {
        true
    }

    fn install(&self, answers: Vec<Answer>) -> impl Future<Output = Vec<Result<(), NotInstalled>>> + Send {
        std::future::ready(vec![Ok(()); answers.len()])
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let resolver = arguments.next().ok_or("usage: forward RESOLVER:PORT [WORKERS]")?.parse()?;
    let workers = arguments.next().map_or(Ok(0), |text| text.parse())?;
    let config = Config { workers, fixed_resolver: Some(resolver), ..Config::default() };
    let proxy = Proxy::start(&config, TakesAll)?;
    println!("{}", proxy.port());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    for (word, count) in proxy.counters() {
        println!("{word} {count}");
    }
    Ok(())
}
