//! What is wrong with what a server saw, with what the agent recorded, and with what the client was answered.

use crate::form::GOOD;
use crate::records::Record;
use crate::seen::{Request, Seen};

/// What names end in that the policies allow.
const GOOD_END: &str = ".good.test";
/// A mark is this letter and so many digits.
const MARK: char = 't';
const MARK_DIGITS: usize = 5;

/// The mark with a number.
pub(crate) fn mark(number: usize) -> String {
    format!("{MARK}{number:0MARK_DIGITS$}")
}

/// Every mark in a text, with the letter of the request after it.
pub(crate) fn marks(text: &str) -> impl Iterator<Item = (&str, Option<char>)> {
    text.match_indices(MARK).filter_map(move |(at, _)| {
        let end = at + 1 + MARK_DIGITS;
        let mark = text.get(at..end)?;
        let is_mark = mark.chars().skip(1).all(|digit| digit.is_ascii_digit());
        is_mark.then(|| (mark, text.get(end..).and_then(|rest| rest.chars().next())))
    })
}

/// The marks of what a server saw.
pub(crate) fn marks_of(seen: &Seen) -> Vec<String> {
    let paths = seen.request.iter().flat_map(|request| &request.paths);
    let texts = paths.chain(&seen.names);
    let mut found: Vec<String> = texts.flat_map(|text| marks(text)).map(|(mark, _)| mark.to_owned()).collect();
    found.sort();
    found.dedup();
    found
}

/// Why the policy of the port forbids what the server saw.
pub(crate) fn forbidden(seen: &Seen) -> Option<String> {
    let names = seen.names.iter().find(|name| !plain_host(name).ends_with(GOOD_END));
    let request = seen.request.as_ref();
    let why = match (seen.port, request) {
        (80, Some(request)) => limits(request),
        (8081, Some(request)) => host(request),
        (80 | 8081, None) => None,
        _ => names.map(|name| format!("the name `{name}` is denied")),
    };
    why.map(|why| format!("the server served what is denied ({why}): {}", seen.words()))
}

fn limits(request: &Request) -> Option<String> {
    let is_inside = |path: &String| path.starts_with("/public/") && path.split('/').all(|segment| segment != "..");
    if request.method != "GET" {
        return Some("another method".to_owned());
    }
    if !request.paths.iter().all(is_inside) {
        return Some("a path outside of /public/".to_owned());
    }
    if request.limit != "1" {
        return Some("the field that the rule demands".to_owned());
    }
    host(request)
}

fn host(request: &Request) -> Option<String> {
    (plain_host(&request.host) != GOOD).then(|| "another host".to_owned())
}

/// In lower case, without a port and a final dot.
fn plain_host(text: &str) -> String {
    let host = match text.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => host,
        _ => text,
    };
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Why no record of the agent says what the server saw.
pub(crate) fn unrecorded(seen: &Seen, address: &str, records: &[Record]) -> Option<String> {
    let here = || records.iter().filter(|record| record.port == seen.port && record.destination == address);
    let is_recorded = match &seen.request {
        Some(request) if seen.names.is_empty() => here().any(|record| {
            record.http.as_ref().is_some_and(|(method, path, host)| {
                let host_is_same = plain_host(host) == plain_host(&request.host);
                *method == request.method && host_is_same && request.paths.contains(path)
            })
        }),
        _ => seen.names.iter().filter(|name| marks(name).next().is_some()).all(|name| {
            here().any(|record| record.server_name.as_deref().is_some_and(|said| plain_host(said) == plain_host(name)))
        }),
    };
    (!is_recorded).then(|| {
        let said: Vec<String> = here().map(|record| format!("{:?} {:?}", record.http, record.server_name)).collect();
        format!("no record says it: {}; records: {}", seen.words(), said.join("; "))
    })
}

/// What is wrong with the answers that a client got: those of others, or its own out of order.
pub(crate) fn mixed(said: &str, own: &str) -> Option<String> {
    let mut last = None;
    for (at, _) in said.match_indices("saw ") {
        let answer = said.get(at..).and_then(|rest| rest.lines().next()).unwrap_or_default();
        for (mark, letter) in marks(answer) {
            if mark != own {
                return Some(format!("the answer of another client: {answer}"));
            }
            if letter.is_some() && letter < last {
                return Some(format!("an answer after that of a later request: {answer}"));
            }
            last = letter;
        }
    }
    None
}

/// Letters of the requests that were answered, in order.
pub(crate) fn answered(said: &str) -> Vec<char> {
    let answers = said.match_indices("saw ").filter_map(|(at, _)| said.get(at..)?.lines().next());
    answers.filter_map(|answer| marks(answer).next()?.1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(port: u16, path: &str, host: &str, limit: &str) -> Seen {
        let request = Request {
            method: "GET".to_owned(),
            paths: vec![path.to_owned()],
            host: host.to_owned(),
            limit: limit.to_owned(),
        };
        Seen { port, names: Vec::new(), request: Some(request) }
    }

    #[test]
    fn what_a_server_saw_is_held_against_the_policy() {
        for (seen, is_forbidden) in [
            (request(80, "/public/t00001a", "good.test", "1"), false),
            (request(80, "/public/t00001a", "GOOD.test.:80", "1"), false),
            (request(80, "/public/../admin", "good.test", "1"), true),
            (request(80, "/publicx", "good.test", "1"), true),
            (request(80, "/public/x", "good.test", "1,2"), true),
            (request(80, "/public/x", "bad.test", "1"), true),
            (request(8081, "/admin", "good.test", ""), false),
            (request(8081, "/public/x", "", ""), true),
        ] {
            assert_eq!(forbidden(&seen).is_some(), is_forbidden, "{seen:?}");
        }
        let hello = |name: &str| Seen { port: 443, names: vec![name.to_owned()], request: None };
        assert_eq!(forbidden(&hello("t00001.good.test")), None);
        assert!(forbidden(&hello("t00001.bad.test")).is_some() && forbidden(&hello("")).is_some());
    }

    #[test]
    fn answers_belong_to_their_client_and_keep_their_order() {
        let said = "saw GET /public/t00001a\nsaw GET /public/t00001z\n";
        assert_eq!(mixed(said, "t00001"), None);
        assert_eq!(answered(said), ['a', 'z']);
        assert!(mixed(said, "t00002").is_some());
        assert!(mixed("saw GET /t00001b\nsaw GET /t00001a\n", "t00001").is_some());
    }

    #[test]
    fn marks_are_found() {
        assert_eq!(mark(42), "t00042");
        assert_eq!(marks("/test/t00042ax t0004").collect::<Vec<_>>(), [("t00042", Some('a'))]);
    }
}
