//! The first message of TLS over TCP: in any segments, in any records, and as another reader has it.

use namegate_l7_proxy::{
    fuzzing,
    hello::{self, Hello, Malformed},
};
use rustls::server::Acceptor;

/// Longest input: each of its beginnings is read.
const BYTES_MAX: usize = 1_500;
/// The longest fragment of a record that the message is cut into.
const FRAGMENTS: [usize; 4] = [1, 7, 64, 16_384];

/// What a client sends; and the same bytes as a message that is cut into records here.
///
/// # Panics
/// What is known of a beginning changes with what comes after it; records of other lengths give another answer; rustls
/// reads another name; or after a `HelloRetryRequest` bytes pass in which rustls reads another name than in the first message.
pub fn tls_hello(data: &[u8]) {
    let data = &data[..data.len().min(BYTES_MAX)];
    let whole = check_segments(data);
    check_other_reader(data, whole.as_ref().ok());

    let alone = hello::read_message(data, true);
    for length in FRAGMENTS {
        let stream = records(data, length);
        let got = hello::read(&stream);
        // What follows the message in its last record would be read later.
        let is_cut = message_end(data).is_none_or(|end| end == data.len() || end % length == 0);
        let want = if is_cut || alone.is_err() { alone.clone() } else { Err(Malformed) };
        assert_eq!(got, want, "records of {length}");
        check_other_reader(&stream, got.as_ref().ok());
    }
    check_second(data);
}

/// Where the message ends, if all of it is there.
fn message_end(data: &[u8]) -> Option<usize> {
    let length = data.get(1..4)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    (data.len() >= 4 + length).then_some(4 + length)
}

/// What a client sends after a `HelloRetryRequest`, once as it is and once as a changed second message.
fn check_second(data: &[u8]) {
    let changed = |message: &[u8]| {
        let mut message = message.to_vec();
        for change in data.chunks_exact(3).take(8) {
            let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % message.len();
            message[at] = change[2];
        }
        records(&message, FRAGMENTS[usize::from(data.len().is_multiple_of(2)) + 2])
    };
    for sent in [data.to_vec(), changed(FIRST)] {
        for pieces in [1, 7, sent.len().max(1)] {
            let passed = fuzzing::after_retry(FIRST, sent.chunks(pieces));
            check_passed(&passed);
        }
    }
}

/// Every message in what passed asks for the name of the first one, as rustls reads it. Servers may leave out what is no
/// handshake record.
fn check_passed(passed: &[u8]) {
    let mut messages = Vec::new();
    let mut rest = passed;
    while let Some((&[kind, _, _, high, low], after)) = rest.split_first_chunk::<5>() {
        let length = usize::from(u16::from_be_bytes([high, low]));
        assert!(after.len() >= length, "a part of a record passed");
        if kind == 22 {
            messages.extend_from_slice(&after[..length]);
        }
        rest = &after[length..];
    }
    assert!(rest.is_empty(), "a part of a header passed");
    if messages.is_empty() {
        return;
    }
    let end = message_end(&messages).expect("a whole message");
    assert_eq!(end, messages.len(), "one message passed");
    let stream = records(&messages, FRAGMENTS[3]);
    assert_eq!(rustls_name(&stream).ok().flatten().unwrap_or_else(|| NAME.to_owned()), NAME);
    assert_eq!(hello::read(&stream), Ok(Hello::Whole(NAME.parse().ok())));
}

/// What rustls reads in a stream of records: the name, if any, once it takes the message. An error is that it does not.
fn rustls_name(stream: &[u8]) -> Result<Option<String>, Malformed> {
    let mut acceptor = Acceptor::default();
    let mut rest = stream;
    while !rest.is_empty() {
        acceptor.read_tls(&mut rest).map_err(|_| Malformed)?;
        if let Some(accepted) = acceptor.accept().map_err(|_| Malformed)? {
            return Ok(accepted.client_hello().server_name().map(str::to_owned));
        }
    }
    Err(Malformed)
}

/// The name in [`FIRST`].
const NAME: &str = "a.io";
/// A first message: one suite, and extensions for the name, a group and TLS 1.3.
const FIRST: &[u8] = b"\x01\0\0\x55\x03\x03abcdefghijklmnopqrstuvwxyz012345\0\0\x02\x13\x01\x01\0\0\x2a\
    \0\0\0\x09\0\x07\0\0\x04a.io\0\x0a\0\x04\0\x02\0\x1d\0\x0d\0\x04\0\x02\x04\x03\0\x2b\0\x03\x02\x03\x04\
    \0\x33\0\x02\0\0";

/// The answer to all of it, where every beginning agrees.
fn check_segments(data: &[u8]) -> Result<Hello, Malformed> {
    let answers = (0..=data.len()).map(|length| hello::read(&data[..length]));
    let mut decided: Option<Result<Hello, Malformed>> = None;
    for (length, answer) in answers.enumerate() {
        match &decided {
            Some(before) => assert_eq!(&answer, before, "decided before {length}"),
            None if answer == Ok(Hello::Partial) => {}
            None => decided = Some(answer),
        }
    }
    decided.unwrap_or(Ok(Hello::Partial))
}

fn records(message: &[u8], length: usize) -> Vec<u8> {
    let header = |part: &[u8]| {
        let length = u16::try_from(part.len()).unwrap_or(0).to_be_bytes();
        [22, 3, 1, length[0], length[1]]
    };
    message.chunks(length).flat_map(|part| [&header(part)[..], part].concat()).collect()
}

/// rustls refuses more than this reader does, but a name that it finds is the one.
fn check_other_reader(stream: &[u8], ours: Option<&Hello>) {
    if let Ok(theirs) = rustls_name(stream) {
        check_name(theirs.as_deref(), ours);
    }
}

fn check_name(theirs: Option<&str>, ours: Option<&Hello>) {
    match (theirs, ours) {
        // What is refused opens nothing, and where rustls has no name (an address, say) there is one here or none.
        (_, None) | (None, Some(Hello::Whole(_))) => {}
        (_, Some(Hello::Partial)) => panic!("rustls has a whole message, this reader waits"),
        (Some(theirs), Some(Hello::Whole(Some(ours)))) => {
            let theirs = theirs.strip_suffix('.').unwrap_or(theirs).to_ascii_lowercase();
            assert_eq!(ours.as_str(), theirs);
        }
        (Some(theirs), Some(Hello::Whole(None))) => {
            let name = theirs.parse::<namegate_config::name::Fqdn>();
            assert!(name.is_err(), "rustls reads {theirs:?}, this reader none");
        }
    }
}
