//! One question from the client's octets to the reply's: which checks it passes, whom it waits for, and what is due.
//! It knows no socket and no clock. A reply with addresses can only be written by `handle_installed`.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use namegate_config::{name::Fqdn, settings::Refusal};
use namegate_engine::{Answer, EndpointId};

use crate::{
    answer,
    backend::{Forbidden, NotInstalled},
    cache::Key,
    counters::{Counters, Outcome},
    query::{Asked, BadQuery, Transport, read_query},
    reply::{self, ExtendedError, NOERROR, NXDOMAIN, REFUSED, SERVFAIL},
    wire::{HEADER_OCTETS, Header, Name, same_question},
};

/// Who asks, and whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    /// None where the address belongs to no endpoint.
    pub(crate) endpoint: Option<EndpointId>,
    /// Answers of the resolver may open addresses.
    pub(crate) is_trusted: bool,
    /// How the client came.
    pub(crate) transport: Transport,
}

/// How long each step may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) upstream: Duration,
    pub(crate) install: Duration,
}

/// What a question turned out to be.
#[derive(Debug)]
pub(crate) enum Opening {
    /// It is to be sent over UDP with [`Transaction::ask`].
    Ask(Transaction),
    /// These octets go back at once.
    Reply(Vec<u8>),
    Drop,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing: the transaction waits on.
    Wait,
    /// The question is to be asked again over TCP with [`Transaction::ask`].
    AskOverTcp,
    /// The gate is to take this; then comes [`Transaction::handle_installed`].
    Install(Answer),
    /// [`Transaction::reply`] holds the octets for the client. The transaction is at its end.
    Reply,
}

/// Why a question can not be answered by its resolver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Unreachable,
    PendingFull,
    EndpointFull,
    ResolversFull,
    RetriesFull,
}

#[derive(Debug)]
enum State {
    AwaitUpstream { id: u16, over: Transport, deadline: Instant },
    AwaitGate { deadline: Instant },
    Done,
}

/// A question on its way.
#[derive(Debug)]
pub(crate) struct Transaction {
    endpoint: EndpointId,
    is_trusted: bool,
    asked: Asked,
    /// The client's question until an answer is accepted, then the reply.
    message: Vec<u8>,
    /// An answer is accepted.
    is_answered: bool,
    state: State,
}

impl Transaction {
    /// Reads what a client sent.
    pub(crate) fn handle_query(
        mut message: Vec<u8>,
        origin: Origin,
        now: Instant,
        patience: Patience,
        counters: &Counters,
    ) -> Opening {
        let Some(header) = Header::read(&message).ok().filter(|header| !header.is_response()) else {
            counters.count(Outcome::Dropped);
            return Opening::Drop;
        };
        let asked = match read_query(&message, header, origin.transport) {
            Ok(asked) => asked,
            Err(BadQuery { rcode, outcome, question_end }) => {
                counters.count(outcome);
                reply::make_error(&mut message, question_end, false, rcode, None);
                return Opening::Reply(message);
            }
        };
        let Some(endpoint) = origin.endpoint else {
            counters.count(Outcome::UnknownEndpoint);
            let why = ExtendedError::prohibited("no endpoint has the address that asks");
            reply::make_error(&mut message, asked.question.end, asked.has_edns, REFUSED, Some(&why));
            return Opening::Reply(message);
        };
        if !origin.is_trusted {
            counters.count(Outcome::UntrustedResolver);
        }
        let state = State::AwaitUpstream { id: 0, over: Transport::Udp, deadline: now + patience.upstream };
        Opening::Ask(Self { endpoint, is_trusted: origin.is_trusted, asked, message, is_answered: false, state })
    }

    /// The name that is asked for, where a pattern can stand for it.
    pub(crate) fn name(&self) -> Option<Fqdn> {
        self.wire_name().and_then(|name| name.fqdn())
    }

    /// The name that is asked for.
    pub(crate) fn wire_name(&self) -> Option<Name> {
        Name::read(&self.message, HEADER_OCTETS).ok().map(|(name, _)| name)
    }

    /// Number of the record type that is asked for.
    pub(crate) fn kind(&self) -> u16 {
        self.asked.question.kind
    }

    /// The reply to a question that must not be asked.
    pub(crate) fn refuse(
        mut self,
        why: &Forbidden,
        refusal: Refusal,
        outcome: Outcome,
        counters: &Counters,
    ) -> Vec<u8> {
        counters.count(outcome);
        let (message, end, edns) = (&mut self.message, self.asked.question.end, self.asked.has_edns);
        let reason = ExtendedError::blocked(&why.reason);
        match (refusal, why.is_name_allowed) {
            (Refusal::Refused, _) => reply::make_error(message, end, edns, REFUSED, Some(&reason)),
            (Refusal::Nxdomain, false) => reply::make_negative(message, end, edns, NXDOMAIN, Some(&reason)),
            // Other types of the name may be asked for: NXDOMAIN would hide them.
            (Refusal::Nxdomain, true) => reply::make_negative(message, end, edns, NOERROR, Some(&reason)),
        }
        self.message
    }

    /// Who asked.
    pub(crate) fn endpoint(&self) -> EndpointId {
        self.endpoint
    }

    /// What an answer to the question is kept under, where it may be kept: nobody relies on resolvers that are not trusted.
    pub(crate) fn cache_key(&self, resolver: SocketAddr) -> Option<Key> {
        if self.is_trusted { Key::of(resolver, &self.message) } else { None }
    }

    /// Whether a response was taken as the answer; the client may get less than the whole of it.
    pub(crate) fn is_answered(&self) -> bool {
        self.is_answered
    }

    /// Writes the question with an ID of the proxy's, which an answer must have from now on.
    pub(crate) fn ask(&mut self, new_id: u16, out: &mut Vec<u8>) {
        if let State::AwaitUpstream { id, .. } = &mut self.state {
            *id = new_id;
        }
        let start = out.len();
        out.extend_from_slice(&self.message);
        out[start..start + 2].copy_from_slice(&new_id.to_be_bytes());
    }

    /// Takes what the resolver sent. What does not match the question changes nothing over UDP, where anybody may send;
    /// over TCP it is the resolver's fault.
    pub(crate) fn handle_response(
        &mut self,
        response: &[u8],
        now: Instant,
        patience: Patience,
        counters: &Counters,
    ) -> Step {
        let State::AwaitUpstream { id, over, .. } = self.state else { return Step::Wait };
        let Some(header) = self.matching(response, id) else {
            counters.count(Outcome::Mismatch);
            return if over == Transport::Udp { Step::Wait } else { self.malformed(counters) };
        };
        if header.is_truncated() {
            if over == Transport::Tcp {
                return self.malformed(counters);
            }
            counters.count(Outcome::RetriedOverTcp);
            self.state = State::AwaitUpstream { id, over: Transport::Tcp, deadline: now + patience.upstream };
            return Step::AskOverTcp;
        }
        self.accept(response, header, now, patience, counters)
    }

    /// Takes an answer that its resolver gave to the same question before. It opens what it would open if it came now.
    pub(crate) fn handle_recalled(
        &mut self,
        answer: &[u8],
        now: Instant,
        patience: Patience,
        counters: &Counters,
    ) -> Step {
        match Header::read(answer) {
            Ok(header) if matches!(self.state, State::AwaitUpstream { .. }) => {
                self.accept(answer, header, now, patience, counters)
            }
            _ => Step::Wait,
        }
    }

    fn accept(
        &mut self,
        response: &[u8],
        header: Header,
        now: Instant,
        patience: Patience,
        counters: &Counters,
    ) -> Step {
        let Ok(reading) = answer::read(response, header, self.asked.question) else {
            return self.malformed(counters);
        };
        counters.add(Outcome::SpecialAddress, reading.special);
        self.keep(response);
        if response.len() > self.asked.reply_octets_max {
            counters.count(Outcome::Truncated);
            reply::make_truncated(&mut self.message, self.asked.question.end, self.asked.has_edns);
            return self.release(Outcome::Forwarded, counters);
        }
        if !self.is_trusted || reading.addresses.is_empty() {
            return self.release(Outcome::Forwarded, counters);
        }
        self.state = State::AwaitGate { deadline: now + patience.install };
        Step::Install(Answer { endpoint: self.endpoint, names: reading.names, addresses: reading.addresses })
    }

    /// The gate holds every address of the answer, or says why not.
    pub(crate) fn handle_installed(&mut self, result: Result<(), NotInstalled>, counters: &Counters) -> Step {
        if !matches!(self.state, State::AwaitGate { .. }) {
            return Step::Wait;
        }
        match result {
            Ok(()) => self.release(Outcome::Installed, counters),
            Err(why) => self.fail(Outcome::InstallFailed, &ExtendedError::other(&why), counters),
        }
    }

    /// The question can not be asked, or nobody is there to answer it.
    pub(crate) fn handle_failure(&mut self, failure: Failure, counters: &Counters) -> Step {
        if !matches!(self.state, State::AwaitUpstream { .. }) {
            return Step::Wait;
        }
        let busy = ExtendedError::other(&"too many questions are pending; ask again later");
        match failure {
            Failure::Unreachable => {
                let why = ExtendedError::network_error("the resolver can not be reached");
                self.fail(Outcome::UpstreamUnreachable, &why, counters)
            }
            Failure::PendingFull => self.fail(Outcome::PendingFull, &busy, counters),
            Failure::EndpointFull => self.fail(Outcome::EndpointFull, &busy, counters),
            Failure::ResolversFull => self.fail(Outcome::ResolversFull, &busy, counters),
            Failure::RetriesFull => self.fail(Outcome::RetriesFull, &busy, counters),
        }
    }

    /// Ends what has waited long enough.
    pub(crate) fn poll_timeout(&mut self, now: Instant, counters: &Counters) -> Step {
        match self.state {
            State::AwaitUpstream { deadline, .. } if deadline <= now => {
                let why = ExtendedError::no_reachable_authority("the resolver did not answer in time");
                self.fail(Outcome::UpstreamTimeout, &why, counters)
            }
            State::AwaitGate { deadline } if deadline <= now => {
                let why = ExtendedError::other(&"the gate did not take the addresses of this answer in time");
                self.fail(Outcome::InstallTimeout, &why, counters)
            }
            _ => Step::Wait,
        }
    }

    /// When [`Self::poll_timeout`] is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::AwaitUpstream { deadline, .. } | State::AwaitGate { deadline } => Some(deadline),
            State::Done => None,
        }
    }

    /// The octets for the client, after [`Step::Reply`].
    pub(crate) fn reply(self) -> Vec<u8> {
        self.message
    }

    /// The header of a response to this question; none where it answers something else.
    fn matching(&self, response: &[u8], id: u16) -> Option<Header> {
        let header = Header::read(response).ok()?;
        let fits = header.is_response() && header.opcode() == 0 && header.questions == 1 && header.id == id;
        (fits && same_question(response, &self.message, self.asked.question.end)).then_some(header)
    }

    /// The response becomes the reply: with the client's ID, and its question letter by letter.
    fn keep(&mut self, response: &[u8]) {
        let question_end = self.asked.question.end;
        self.message.truncate(question_end);
        self.message[2..HEADER_OCTETS].copy_from_slice(&response[2..HEADER_OCTETS]);
        self.message.extend_from_slice(&response[question_end..]);
        self.is_answered = true;
    }

    fn malformed(&mut self, counters: &Counters) -> Step {
        self.fail(
            Outcome::MalformedAnswer,
            &ExtendedError::network_error("the resolver's answer is malformed"),
            counters,
        )
    }

    fn fail(&mut self, outcome: Outcome, why: &ExtendedError, counters: &Counters) -> Step {
        reply::make_error(&mut self.message, self.asked.question.end, self.asked.has_edns, SERVFAIL, Some(why));
        self.release(outcome, counters)
    }

    fn release(&mut self, outcome: Outcome, counters: &Counters) -> Step {
        counters.count(outcome);
        self.state = State::Done;
        Step::Reply
    }
}

#[cfg(test)]
#[path = "../tests/proxy/cases.rs"]
pub(crate) mod cases;

#[cfg(test)]
mod tests {
    use super::{
        cases::{answer, cases, query, truncated, with_edns},
        *,
    };
    use crate::{
        query::UDP_OCTETS,
        reply::{FORMERR, NOTIMP},
        wire::kind,
    };

    const PATIENCE: Patience = Patience { upstream: Duration::from_secs(5), install: Duration::from_secs(1) };
    const A: u16 = 1;
    const NAME: &str = "api.allowed.test.";
    /// The proxy's ID.
    const ID: u16 = 0x1234;

    /// A transaction with its clock and counters.
    struct World {
        now: Instant,
        counters: Counters,
        transaction: Transaction,
    }

    fn origin(transport: Transport) -> Origin {
        Origin { endpoint: Some(EndpointId(7)), is_trusted: true, transport }
    }

    impl World {
        fn asking(query: &[u8], origin: Origin) -> Self {
            let (now, counters) = (Instant::now(), Counters::default());
            let opening = Transaction::handle_query(query.to_vec(), origin, now, PATIENCE, &counters);
            let Opening::Ask(mut transaction) = opening else { panic!("{opening:?}") };
            let mut sent = Vec::new();
            transaction.ask(ID, &mut sent);
            assert_eq!((&sent[..2], &sent[2..]), (&ID.to_be_bytes()[..], &query[2..]));
            Self { now, counters, transaction }
        }

        fn hear(&mut self, mut response: Vec<u8>) -> Step {
            if response.len() >= 2 {
                response[..2].copy_from_slice(&ID.to_be_bytes());
            }
            self.transaction.handle_response(&response, self.now, PATIENCE, &self.counters)
        }

        fn wait(&mut self, time: Duration) -> Step {
            self.now += time;
            self.transaction.poll_timeout(self.now, &self.counters)
        }

        fn install(&mut self, result: Result<(), NotInstalled>) -> Step {
            self.transaction.handle_installed(result, &self.counters)
        }
    }

    #[test]
    fn a_forbidden_question_is_refused_with_the_rule() {
        let question = with_edns(query(0x4e47, NAME, A), 1232);
        let world = World::asking(&question, origin(Transport::Udp));
        assert_eq!(world.transaction.name().unwrap().as_str(), NAME.trim_end_matches('.'));
        let why = Forbidden { reason: "shop/names egress[0]".into(), is_name_allowed: false };
        let reply = world.transaction.refuse(&why, Refusal::Refused, Outcome::Forbidden, &world.counters);
        assert_eq!((reply[3] & 0xf, world.counters.of(Outcome::Forbidden)), (REFUSED, 1));
        // Option 15, its length, and error 15: blocked (RFC 8914 §4.16).
        let option = [&[0, 15, 0, 22, 0, 15][..], b"shop/names egress[0]"].concat();
        assert!(reply.ends_with(&option), "{reply:02x?}");
    }

    #[test]
    fn a_forbidden_name_can_be_denied_to_exist() {
        use hickory_proto::{
            op::{Message, ResponseCode},
            rr::RData,
        };
        for (name, parent, is_name_allowed, edns, want) in [
            (NAME, "allowed.test.", false, true, ResponseCode::NXDomain),
            (NAME, "allowed.test.", false, false, ResponseCode::NXDomain),
            (NAME, "allowed.test.", true, true, ResponseCode::NoError),
            ("test.", ".", false, true, ResponseCode::NXDomain),
        ] {
            let bare = query(0x4e47, name, A);
            let world = World::asking(&if edns { with_edns(bare, 1232) } else { bare }, origin(Transport::Udp));
            let why = Forbidden { reason: "shop/names egress[0] ".repeat(20), is_name_allowed };
            let reply = world.transaction.refuse(&why, Refusal::Nxdomain, Outcome::Forbidden, &world.counters);
            assert!(reply.len() <= UDP_OCTETS);
            let reply = Message::from_vec(&reply).unwrap();
            assert_eq!((reply.metadata.response_code, reply.answers.len()), (want, 0), "{name}");
            assert_eq!((reply.authorities.len(), reply.edns.is_some()), (1, edns), "{name}");
            let RData::SOA(soa) = &reply.authorities[0].data else { panic!("{reply:?}") };
            assert_eq!(reply.authorities[0].name.to_string(), parent);
            assert_eq!((soa.minimum, reply.authorities[0].ttl), (5, 5));
        }
    }

    #[test]
    fn the_cases_of_the_wire() {
        for case in cases() {
            let query = case.query(0x4e47);
            let mut world = World::asking(&query, origin(Transport::Udp));
            let (mut opened, mut step) = (Vec::new(), world.hear(case.response()));
            for _ in 0..3 {
                step = match step {
                    Step::Wait => world.wait(PATIENCE.upstream),
                    Step::AskOverTcp => world.hear(case.response()),
                    Step::Install(answer) => {
                        opened = answer.addresses;
                        world.install(Ok(()))
                    }
                    Step::Reply => break,
                };
            }
            assert_eq!(step, Step::Reply, "{}", case.id);
            assert!(case.may_open(&opened), "{}: opened {opened:?}", case.id);
            let reply = world.transaction.reply();
            assert!(case.may_see(&reply, &query), "{}: the client sees {reply:02x?}", case.id);
        }
    }

    #[test]
    fn a_reply_with_addresses_waits_for_the_gate() {
        let question = query(1, NAME, A);
        let mut world = World::asking(&question, origin(Transport::Udp));
        assert_eq!(world.install(Ok(())), Step::Wait);
        let Step::Install(learned) = world.hear(answer(&question, 2)) else { panic!() };
        assert_eq!((learned.endpoint, learned.names.len(), learned.addresses.len()), (EndpointId(7), 1, 2));
        // A second answer, a failure or a late deadline of the question change nothing.
        assert_eq!(world.hear(answer(&question, 3)), Step::Wait);
        assert_eq!(world.transaction.handle_failure(Failure::Unreachable, &world.counters), Step::Wait);
        assert_eq!(world.wait(PATIENCE.install / 2), Step::Wait);
        assert_eq!(world.install(Ok(())), Step::Reply);
        assert_eq!(world.transaction.deadline(), None);
        assert_eq!(world.transaction.reply(), answer(&question, 2));
    }

    #[test]
    fn the_client_gets_its_own_letters_back() {
        let question = query(0xabcd, "aPi.Allowed.TEST.", A);
        let mut world = World::asking(&question, origin(Transport::Udp));
        let lower = query(0, NAME, A);
        assert!(matches!(world.hear(answer(&lower, 2)), Step::Install(_)));
        assert_eq!(world.install(Ok(())), Step::Reply);
        assert_eq!(world.transaction.reply(), answer(&question, 2));
    }

    #[test]
    fn only_a_matching_answer_ends_the_wait() {
        let question = query(1, NAME, A);
        let mut world = World::asking(&question, origin(Transport::Udp));
        let good = answer(&question, 1);
        let changed = |at: usize, octet: u8| {
            let mut response = good.clone();
            response[at] = octet;
            response
        };
        // QR, opcode, number of questions, name, type, class.
        for response in
            [changed(2, 1), changed(2, 0xa9), changed(5, 2), changed(13, b'x'), changed(31, 28), changed(33, 3)]
        {
            assert_eq!(world.hear(response), Step::Wait);
        }
        // The ID, which `hear` puts in.
        let step = world.transaction.handle_response(&good, world.now, PATIENCE, &world.counters);
        assert_eq!((step, world.counters.of(Outcome::Mismatch)), (Step::Wait, 7));
        assert!(matches!(world.hear(good), Step::Install(_)));
    }

    #[test]
    fn time_runs_out_for_the_resolver_and_for_the_gate() {
        let question = query(1, NAME, A);
        let mut world = World::asking(&question, origin(Transport::Udp));
        assert_eq!(world.wait(Duration::from_millis(4999)), Step::Wait);
        assert_eq!(world.wait(Duration::from_millis(1)), Step::Reply);
        assert_eq!(world.hear(answer(&question, 1)), Step::Wait);
        assert_eq!(world.counters.of(Outcome::UpstreamTimeout), 1);

        let mut world = World::asking(&question, origin(Transport::Udp));
        assert!(matches!(world.hear(answer(&question, 1)), Step::Install(_)));
        assert_eq!(world.wait(PATIENCE.install), Step::Reply);
        assert_eq!(world.install(Ok(())), Step::Wait);
        assert_eq!(world.counters.of(Outcome::InstallTimeout), 1);
        assert_eq!(world.transaction.reply()[3] & 0xf, SERVFAIL);
    }

    #[test]
    fn a_truncated_answer_counts_only_over_tcp_and_cut_to_fit() {
        let question = with_edns(query(1, NAME, A), 1232);
        for (transport, addresses, fits) in
            [(Transport::Udp, 70, true), (Transport::Udp, 80, false), (Transport::Tcp, 600, true)]
        {
            let mut world = World::asking(&question, origin(transport));
            assert_eq!(world.hear(truncated(&question)), Step::AskOverTcp);
            assert_eq!(world.wait(PATIENCE.upstream / 2), Step::Wait);
            let step = world.hear(answer(&question, addresses));
            assert_eq!(matches!(step, Step::Install(_)), fits, "{addresses}");
            if !fits {
                assert_eq!(step, Step::Reply);
                let reply = world.transaction.reply();
                assert_eq!((reply[2] & 2, &reply[4..12]), (2, &[0, 1, 0, 0, 0, 0, 0, 1][..]));
            }
        }
        let mut world = World::asking(&question, origin(Transport::Udp));
        assert_eq!(world.hear(truncated(&question)), Step::AskOverTcp);
        assert_eq!(world.hear(truncated(&question)), Step::Reply);
        assert_eq!(world.counters.of(Outcome::MalformedAnswer), 1);
    }

    #[test]
    fn questions_that_are_none_are_answered_or_dropped() {
        let good = query(1, NAME, A);
        let changed = |at: usize, octet: u8| {
            let mut message = good.clone();
            message[at] = octet;
            message
        };
        for (message, want, outcome) in [
            (Vec::new(), None, Outcome::Dropped),
            (good[..11].to_vec(), None, Outcome::Dropped),
            (changed(2, 0x81), None, Outcome::Dropped),
            (changed(2, 0x29), Some(NOTIMP), Outcome::NotImplemented),
            (query(1, NAME, kind::AXFR), Some(NOTIMP), Outcome::NotImplemented),
            (changed(5, 0), Some(FORMERR), Outcome::BadQuery),
            (changed(5, 2), Some(FORMERR), Outcome::BadQuery),
            (changed(11, 1), Some(FORMERR), Outcome::BadQuery),
            (good[..20].to_vec(), Some(FORMERR), Outcome::BadQuery),
            (changed(12, 0xc0), Some(FORMERR), Outcome::BadQuery),
        ] {
            let counters = Counters::default();
            let opening =
                Transaction::handle_query(message.clone(), origin(Transport::Udp), Instant::now(), PATIENCE, &counters);
            let rcode = match opening {
                Opening::Reply(reply) => Some(reply[3] & 0xf),
                Opening::Drop => None,
                Opening::Ask(_) => panic!("{message:02x?}"),
            };
            assert_eq!((rcode, counters.of(outcome)), (want, 1), "{message:02x?}");
        }
    }
}
