//! `namegate fqdn cache`: what endpoints have learned.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::bail;
use namegate_api::view::{Endpoint, Forgotten, FqdnLookup, FqdnNames};

use super::{
    Outcome,
    args::{CacheArgs, CleanArgs, Output, Which},
    client::{Client, encode, path},
    output,
};

/// Path and query of the cache entries that are meant.
fn resource(which: &Which) -> String {
    let of = which.endpoint.as_ref().map(|endpoint| format!("/{}", encode(endpoint))).unwrap_or_default();
    let cidr = which.cidr.map(|cidr| cidr.to_string());
    path(&format!("/v1/fqdn/cache{of}"), &[("matchpattern", which.matchpattern.clone()), ("cidr", cidr)])
}

pub(crate) async fn list(client: &Client, args: &CacheArgs) -> anyhow::Result<Outcome> {
    let entries: Vec<FqdnLookup> = client.get(&resource(&args.which)).await?;
    match args.form.output {
        Output::Json => output::json(&entries)?,
        Output::Table => {
            let endpoints: Vec<Endpoint> = client.get("/v1/endpoint").await?;
            output::text(&table(&entries, &endpoints))?;
        }
    }
    Ok(Outcome::Good)
}

fn table(entries: &[FqdnLookup], endpoints: &[Endpoint]) -> String {
    let rows = entries.iter().map(|entry| {
        let ips: Vec<String> = entry.ips.iter().map(ToString::to_string).collect();
        [
            name(entry.endpoint_id, endpoints),
            entry.source.text().to_owned(),
            entry.fqdn.clone(),
            entry.ttl.to_string(),
            entry.expiration_time.clone(),
            ips.join(","),
        ]
    });
    output::table(&["Endpoint", "Source", "FQDN", "TTL", "ExpirationTime", "IPs"], rows)
}

/// `namespace/name` of the endpoint, or its id where it is gone.
fn name(id: u32, endpoints: &[Endpoint]) -> String {
    let found = endpoints.iter().find(|endpoint| endpoint.id == id);
    found.map_or_else(|| id.to_string(), |endpoint| format!("{}/{}", endpoint.namespace, endpoint.name))
}

pub(crate) async fn clean(client: &Client, args: &CleanArgs) -> anyhow::Result<Outcome> {
    let path = resource(&args.which);
    if !args.yes {
        let entries: Vec<FqdnLookup> = client.get(&path).await?;
        if entries.is_empty() {
            output::text("nothing to forget\n")?;
            return Ok(Outcome::Good);
        }
        if !io::stdin().is_terminal() {
            bail!("{} names would be forgotten; say so with `--yes`", entries.len());
        }
        if !asked(entries.len(), &mut io::stdin().lock())? {
            return Ok(Outcome::Bad);
        }
    }
    let gone: Forgotten = client.delete(&path).await?;
    match args.form.output {
        Output::Json => output::json(&gone)?,
        Output::Table => output::text(&format!("forgot {} names with {} addresses\n", gone.names, gone.addresses))?,
    }
    Ok(Outcome::Good)
}

fn asked(names: usize, answers: &mut impl BufRead) -> anyhow::Result<bool> {
    let mut out = io::stderr();
    write!(out, "Forget {names} names? Connections to them will need a new look-up. [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    answers.read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

pub(crate) async fn names(client: &Client, form: Output) -> anyhow::Result<Outcome> {
    let names: FqdnNames = client.get("/v1/fqdn/names").await?;
    if form == Output::Json {
        output::json(&names)?;
        return Ok(Outcome::Good);
    }
    let endpoints: Vec<Endpoint> = client.get("/v1/endpoint").await?;
    let rows = names.selectors.iter().flat_map(|selector| {
        let held = selector.names.iter().map(|held| {
            let ips: Vec<String> = held.ips.iter().map(ToString::to_string).collect();
            [selector.selector.clone(), held.fqdn.clone(), name(held.endpoint_id, &endpoints), ips.join(",")]
        });
        let held: Vec<[String; 4]> = held.collect();
        let nothing = || vec![[selector.selector.clone(), "-".to_owned(), "-".to_owned(), "-".to_owned()]];
        if held.is_empty() { nothing() } else { held }
    });
    output::text(&output::table(&["Selector", "FQDN", "Endpoint", "IPs"], rows))?;
    Ok(Outcome::Good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_become_path_and_query() {
        let which = Which {
            matchpattern: Some("*.io".into()),
            endpoint: Some("empire/tie".into()),
            cidr: Some("10.0.0.0/8".parse().unwrap()),
        };
        assert_eq!(resource(&which), "/v1/fqdn/cache/empire%2Ftie?matchpattern=%2A.io&cidr=10.0.0.0%2F8");
        assert_eq!(resource(&Which::default()), "/v1/fqdn/cache");
    }

    #[test]
    fn only_yes_is_yes() {
        for (answer, want) in [("y\n", true), ("yes\n", true), ("\n", false), ("", false), ("no\n", false)] {
            assert_eq!(asked(3, &mut answer.as_bytes()).unwrap(), want, "{answer:?}");
        }
    }
}
