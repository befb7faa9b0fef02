//! The first message of TLS over TCP: in any segments, in any records, and as another reader has it.

use namegate_l7_proxy::hello::{self, Hello, Malformed};
use rustls::server::Acceptor;

/// Longest input: each of its beginnings is read.
const BYTES_MAX: usize = 1_500;
/// The longest fragment of a record that the message is cut into.
const FRAGMENTS: [usize; 4] = [1, 7, 64, 16_384];

/// What a client sends; and the same bytes as a message that is cut into records here.
///
/// # Panics
/// What is known of a beginning changes with what comes after it; records of other lengths give another answer; or rustls
/// reads another name.
pub fn tls_hello(data: &[u8]) {
    let data = &data[..data.len().min(BYTES_MAX)];
    let whole = check_segments(data);
    check_other_reader(data, whole.as_ref().ok());

    let alone = hello::read_message(data, true);
    for length in FRAGMENTS {
        let stream = records(data, length);
        let got = hello::read(&stream);
        // Without records around it, what follows the message is not looked at; with records neither.
        assert_eq!(got, alone, "records of {length}");
    }
    let stream = records(data, FRAGMENTS[3]);
    check_other_reader(&stream, alone.as_ref().ok());
}

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
    let mut acceptor = Acceptor::default();
    let mut rest = stream;
    while !rest.is_empty() {
        if acceptor.read_tls(&mut rest).is_err() {
            return;
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let theirs = accepted.client_hello().server_name().map(str::to_owned);
                check_name(theirs.as_deref(), ours);
                return;
            }
            Err(_) => return,
        }
    }
}

fn check_name(theirs: Option<&str>, ours: Option<&Hello>) {
    match (theirs, ours) {
        // What is refused opens nothing.
        (_, None) => {}
        (_, Some(Hello::Partial)) => panic!("rustls has a whole message, this reader waits"),
        (Some(theirs), Some(Hello::Whole(Some(ours)))) => {
            let theirs = theirs.strip_suffix('.').unwrap_or(theirs).to_ascii_lowercase();
            assert_eq!(ours.as_str(), theirs);
        }
        (Some(theirs), Some(Hello::Whole(None))) => {
            let name = theirs.parse::<namegate_config::name::Fqdn>();
            assert!(name.is_err(), "rustls reads {theirs:?}, this reader none");
        }
        // A list with a name that rustls leaves out (RFC 6066 §3: an address, say) has one here or none.
        (None, Some(Hello::Whole(_))) => {}
    }
}
