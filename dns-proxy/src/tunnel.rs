//! Names that carry data: how many different names below one parent an endpoint asks for within a minute. It knows no socket
//! and no clock.
//!
//! A name is *odd* where a label below the parent is longer than [`LABEL_OCTETS_MAX`], or the leftmost has more than
//! [`ENTROPY_BITS_MAX`] bits to the octet: names for people are shorter and repeat their letters. Of odd names so many pass
//! in a minute as the setting says, of all names [`PLAIN_FACTOR`] times as many. Beyond that no new name passes until a
//! minute went by without one; names of the last minute go on passing.
//!
//! Names are kept as keyed hashes. What is forgotten at a bound is counted.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use namegate_config::name::Fqdn;
use namegate_engine::EndpointId;

/// How long a name counts, in seconds.
const WINDOW_S: u64 = 60;
/// A longer label is odd. The hexadecimal form of a SHA-1 sum still is not.
const LABEL_OCTETS_MAX: usize = 40;
/// Shannon's entropy of the octets of a label beyond which it is odd. Hexadecimal digits have 4 bits at most, names made of
/// words seldom more than 4.2; random letters and digits have more from about 30 octets on.
const ENTROPY_BITS_MAX: f64 = 4.2;
/// Names that are not odd are allowed in this multiple.
const PLAIN_FACTOR: usize = 10;
/// Parts with a lock each; an endpoint belongs to one.
const SHARDS: usize = 16;
/// Names that one part keeps.
const SHARD_NAMES_MAX: usize = 65_536;
/// Of them, those of one endpoint.
const ENDPOINT_NAMES_MAX: usize = 16_384;
/// Parents that are kept for one endpoint.
const PARENTS_MAX: usize = 512;
/// Labels of a name (RFC 1035 §2.3.4: 255 octets, two for each label at least).
const LABELS_MAX: usize = 127;

/// What became of one question.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) found: Option<Found>,
    /// Names forgotten to make room.
    pub(crate) forgotten: usize,
}

/// The name is one too many.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) parent: String,
    /// Different names within the minute before the first that was too many, this one included.
    pub(crate) names: usize,
    /// Nobody was told of this endpoint and parent within the last minute.
    pub(crate) is_news: bool,
}

/// What endpoints asked for within the last minute.
#[derive(Debug)]
pub(crate) struct Watch {
    odd_names_max: usize,
    /// Zones that are not counted, in the form of the wire.
    except: Vec<Vec<u8>>,
    start: Instant,
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
}

impl Watch {
    pub(crate) fn new(odd_names_max: u32, except: &[Fqdn], start: Instant) -> Self {
        Self {
            odd_names_max: odd_names_max as usize,
            except: except.iter().map(wire).collect(),
            start,
            hasher: RandomState::new(),
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }

    /// Takes note of a question for a name: lower case, without the root's octet.
    pub(crate) fn asked(&self, endpoint: EndpointId, name: &[u8], now: Instant) -> Seen {
        let labels = Labels::of(name);
        let starts = labels.starts();
        let Some(parent_at) = starts.len().checked_sub(registered(name, starts)).filter(|count| *count > 0) else {
            return Seen::default();
        };
        let (below, parent) = name.split_at(starts[parent_at]);
        if self.except.iter().any(|zone| starts.iter().any(|start| name[*start..] == zone[..])) {
            return Seen::default();
        }
        let sighting = Sighting { second: now.saturating_duration_since(self.start).as_secs(), is_odd: is_odd(below) };
        let (key, hash) = (self.hasher.hash_one(parent), self.hasher.hash_one(below));
        let shard = &self.shards[endpoint.0 as usize % SHARDS];
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        let (excess, forgotten) = shard.see(endpoint, key, hash, sighting, self.odd_names_max);
        let found = excess.map(|(names, is_news)| Found { parent: text(parent), names, is_news });
        Seen { found, forgotten }
    }
}

/// A name when it was last asked for.
#[derive(Clone, Copy, Debug)]
struct Sighting {
    second: u64,
    is_odd: bool,
}

#[derive(Debug, Default)]
struct Shard {
    endpoints: HashMap<EndpointId, Parents>,
    names: usize,
    swept: u64,
}

/// What one endpoint asked for, by the hash of the parent.
#[derive(Debug, Default)]
struct Parents {
    by_hash: HashMap<u64, Parent>,
    names: usize,
}

#[derive(Debug, Default)]
struct Parent {
    names: HashMap<u64, Sighting>,
    odd: usize,
    /// When it was last asked for.
    last: u64,
    /// When old names were last taken out.
    purged: u64,
    /// Names when there were too many, and when the last one beyond was asked for.
    excess: Option<(usize, u64)>,
    told: Option<u64>,
}

impl Shard {
    /// The count and whether it is news where the name is one too many; and how many names were forgotten.
    fn see(
        &mut self,
        endpoint: EndpointId,
        key: u64,
        hash: u64,
        sighting: Sighting,
        odd_names_max: usize,
    ) -> (Option<(usize, bool)>, usize) {
        self.sweep(sighting.second);
        let mut forgotten = 0;
        let parents = self.endpoints.entry(endpoint).or_default();
        let known = parents.by_hash.get(&key).is_some_and(|parent| parent.names.contains_key(&hash));
        while !known && !parents.has_room(key, self.names) {
            let Some(oldest) = parents.oldest_beside(key) else {
                // Others have filled the part: the name passes unseen.
                return (None, forgotten + 1);
            };
            let names = parents.by_hash.remove(&oldest).map_or(0, |parent| parent.names.len());
            forgotten += names.max(1);
            parents.names -= names;
            self.names -= names;
        }
        let parent = parents.by_hash.entry(key).or_default();
        let before = parent.names.len();
        let excess = parent.see(hash, sighting, odd_names_max);
        parents.names = parents.names + parent.names.len() - before;
        self.names = self.names + parent.names.len() - before;
        (excess, forgotten)
    }

    /// Once in a while, what is old goes.
    fn sweep(&mut self, now: u64) {
        if now < self.swept + WINDOW_S {
            return;
        }
        self.swept = now;
        let mut names = 0;
        self.endpoints.retain(|_, parents| {
            parents.by_hash.retain(|_, parent| now < parent.last + WINDOW_S);
            parents.names = parents.by_hash.values().map(|parent| parent.names.len()).sum();
            names += parents.names;
            !parents.by_hash.is_empty()
        });
        self.names = names;
    }
}

impl Parents {
    /// Whether one more name below this parent may be kept.
    fn has_room(&self, key: u64, names_of_part: usize) -> bool {
        let fits = self.by_hash.contains_key(&key) || self.by_hash.len() < PARENTS_MAX;
        fits && self.names < ENDPOINT_NAMES_MAX && names_of_part < SHARD_NAMES_MAX
    }

    /// The parent that was not asked for longest; one with too many names stays as long as there is another.
    fn oldest_beside(&self, key: u64) -> Option<u64> {
        let others = self.by_hash.iter().filter(|(other, _)| **other != key);
        others.min_by_key(|(_, parent)| (parent.excess.is_some(), parent.last)).map(|(other, _)| *other)
    }
}

impl Parent {
    fn see(&mut self, hash: u64, sighting: Sighting, odd_names_max: usize) -> Option<(usize, bool)> {
        let now = sighting.second;
        self.last = now;
        self.purge(now);
        if let Some(known) = self.names.get_mut(&hash) {
            known.second = now;
            return None;
        }
        let count = match self.excess {
            Some((count, last)) if now < last + WINDOW_S => Some(count),
            _ if sighting.is_odd && self.odd >= odd_names_max => Some(self.odd + 1),
            _ if self.names.len() >= odd_names_max * PLAIN_FACTOR => Some(self.names.len() + 1),
            _ => None,
        };
        self.excess = count.map(|count| (count, now));
        if let Some(count) = count {
            let is_news = self.told.is_none_or(|told| told + WINDOW_S <= now);
            self.told = if is_news { Some(now) } else { self.told };
            return Some((count, is_news));
        }
        self.odd += usize::from(sighting.is_odd);
        self.names.insert(hash, sighting);
        None
    }

    fn purge(&mut self, now: u64) {
        if self.purged != now {
            self.purged = now;
            self.names.retain(|_, sighting| now < sighting.second + WINDOW_S);
            self.odd = self.names.values().filter(|sighting| sighting.is_odd).count();
        }
    }
}

/// Where the labels of a name start.
struct Labels {
    starts: [usize; LABELS_MAX],
    count: usize,
}

impl Labels {
    fn of(name: &[u8]) -> Self {
        let (mut labels, mut at) = (Self { starts: [0; LABELS_MAX], count: 0 }, 0);
        while let Some(len) = name.get(at).filter(|_| labels.count < LABELS_MAX) {
            labels.starts[labels.count] = at;
            labels.count += 1;
            at += 1 + usize::from(*len);
        }
        labels
    }

    fn starts(&self) -> &[usize] {
        &self.starts[..self.count]
    }
}

/// The label that starts at an octet.
fn label(name: &[u8], start: usize) -> &[u8] {
    let len = name.get(start).copied().map_or(0, usize::from);
    name.get(start + 1..start + 1 + len).unwrap_or_default()
}

/// How many labels on the right somebody owns as one name: two, three where the second stands for a kind of owners below a
/// country (`co.uk`), a network of addresses below `arpa` (RFC 1035 §3.5, RFC 3596 §2.5).
fn registered(name: &[u8], starts: &[usize]) -> usize {
    const KINDS: [&[u8]; 13] =
        [b"ac", b"co", b"com", b"edu", b"go", b"gob", b"gov", b"mil", b"ne", b"net", b"or", b"org", b"gouv"];
    let [.., second, top] = starts else { return 2 };
    match (label(name, *second), label(name, *top)) {
        // A network of 16 bits.
        (b"in-addr", b"arpa") => 4,
        // A network of 32 bits.
        (b"ip6", b"arpa") => 10,
        (kind, country) if country.len() == 2 && KINDS.contains(&kind) => 3,
        _ => 2,
    }
}

fn is_odd(below: &[u8]) -> bool {
    let labels = Labels::of(below);
    let is_long = labels.starts().iter().any(|start| label(below, *start).len() > LABEL_OCTETS_MAX);
    is_long || entropy(label(below, 0)) > ENTROPY_BITS_MAX
}

/// Shannon's entropy of the octets, in bits to the octet.
fn entropy(label: &[u8]) -> f64 {
    let mut counts = [0_u8; 256];
    for octet in label {
        counts[usize::from(*octet)] += 1;
    }
    let total = f64::from(u32::try_from(label.len()).unwrap_or(u32::MAX));
    let part = |count: u8| f64::from(count) / total;
    -counts.into_iter().filter(|count| *count > 0).map(part).map(|part| part * part.log2()).sum::<f64>()
}

fn wire(name: &Fqdn) -> Vec<u8> {
    let labels = name.as_str().split('.').filter(|label| !label.is_empty());
    labels.flat_map(|label| [&[u8::try_from(label.len()).unwrap_or(u8::MAX)], label.as_bytes()].concat()).collect()
}

/// For people: octets that are no letters stand as numbers (RFC 1035 §5.1).
fn text(name: &[u8]) -> String {
    let labels = Labels::of(name);
    let label_text = |start: &usize| label(name, *start).escape_ascii().to_string();
    labels.starts().iter().map(label_text).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, time::Duration};

    use proptest::prelude::*;

    use super::*;

    const POD: EndpointId = EndpointId(7);

    fn watch(odd_names_max: u32) -> Watch {
        Watch::new(odd_names_max, &["cluster.local".parse().unwrap()], Instant::now())
    }

    impl Watch {
        /// Asks at a moment, in milliseconds.
        fn at(&self, endpoint: EndpointId, name: &str, ms: u64) -> Seen {
            self.asked(endpoint, &octets(name), self.start + Duration::from_millis(ms))
        }
    }

    fn octets(name: &str) -> Vec<u8> {
        wire(&name.parse().unwrap())
    }

    /// Letters and digits by chance, the same for the same seed.
    fn random(seed: u64, len: usize, alphabet: &[u8]) -> String {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let letters = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            char::from(alphabet[usize::try_from(state >> 33).unwrap() % alphabet.len()])
        });
        letters.skip(8).take(len).collect()
    }

    const BASE32: &[u8] = b"abcdefghijklmnopqrstuvwxyz234567";
    const HEX: &[u8] = b"0123456789abcdef";

    #[test]
    fn names_are_odd_by_length_and_letters() {
        let base32 = random(1, 40, BASE32);
        let hex = random(2, 40, HEX);
        let long_hex = random(3, 41, HEX);
        for (below, want) in [
            ("www", false),
            ("prod-frontend-user-profile-v2-backend", false),
            ("r4---sn-4g5ednsl", false),
            ("d111111abcdef8", false),
            ("7f4c1d2e-9b3a-4c5d-8e6f-0a1b2c3d4e5f", false),
            (hex.as_str(), false),
            (base32.as_str(), true),
            (long_hex.as_str(), true),
            (&format!("www.{long_hex}.t"), true),
        ] {
            assert_eq!(is_odd(&octets(below)), want, "{below}: {} bits", entropy(label(&octets(below), 0)));
        }
    }

    #[test]
    fn parents_are_what_somebody_registered() {
        for (name, want) in [
            ("a.example.com", Some("example.com")),
            ("a.b.c.example.com", Some("example.com")),
            ("example.com", None),
            ("com", None),
            ("a.shop.co.uk", Some("shop.co.uk")),
            ("shop.co.uk", None),
            ("a.co.com", Some("co.com")),
            ("1.2.0.192.in-addr.arpa", Some("0.192.in-addr.arpa")),
            ("0.192.in-addr.arpa", None),
            ("1.0.8.b.d.0.1.0.0.2.ip6.arpa", Some("8.b.d.0.1.0.0.2.ip6.arpa")),
            ("api.example.com.shop.svc.cluster.local", None),
        ] {
            let watch = watch(0);
            let found = watch.at(POD, name, 0).found;
            assert_eq!(found.map(|found| found.parent).as_deref(), want, "{name}");
        }
        assert_eq!(watch(0).asked(POD, b"", Instant::now()), Seen::default());
    }

    #[test]
    fn usual_workloads_are_none() {
        let words = ["api", "cdn", "static", "img", "auth", "login", "metrics", "logs", "events", "assets"];
        let watch = watch(200);
        let mut asked = 0;
        for round in 0..300_u64 {
            let at = round * 200;
            let word = words[usize::try_from(round).unwrap() % words.len()];
            let external = format!("{word}{round}.site{round}.example");
            let names = [
                // A resolver's search list.
                format!("{external}.shop.svc.cluster.local"),
                format!("{external}.svc.cluster.local"),
                format!("{external}.cluster.local"),
                external,
                // Edges of a distribution network, buckets, partitions, reverse look-ups of one network.
                format!("{}.cloudfront.net", random(round, 14, b"0123456789abcdefghijklmnopqrstuvwxyz")),
                format!("{word}-archive-{round}.s3.eu-central-1.amazonaws.com"),
                format!("broker-{round}.kafka.internal.example"),
                format!("{}.7.0.192.in-addr.arpa", round % 256),
            ];
            for name in names {
                asked += 1;
                assert_eq!(watch.at(POD, &name, at), Seen::default(), "{name} after {asked}");
            }
        }
    }

    #[test]
    fn tunnels_are_found_and_stay_found_until_they_rest() {
        let watch = watch(200);
        let name = |number: u64| format!("{}.t.evil.example", random(number, 50, BASE32));
        for number in 0..200 {
            assert_eq!(watch.at(POD, &name(number), number * 10).found, None, "{number}");
        }
        let want = |is_news| Some(Found { parent: "evil.example".into(), names: 201, is_news });
        assert_eq!(watch.at(POD, &name(200), 3_000).found, want(true));
        // Whatever is new below the parent is refused, what was asked before is not.
        assert_eq!(watch.at(POD, "www.evil.example", 3_100).found, want(false));
        assert_eq!(watch.at(POD, &name(7), 3_200).found, None);
        assert_eq!(watch.at(EndpointId(8), &name(200), 3_300).found, None, "another endpoint");
        assert_eq!(watch.at(POD, "www.other.example", 3_400).found, None, "another parent");
        // Again and again: told of once in a minute.
        let told = (1..6).filter(|round| watch.at(POD, &name(200 + round), 3_000 + round * 30_000).found == want(true));
        assert_eq!(told.count(), 2);
        assert_eq!(watch.at(POD, &name(900), 153_000 + 59_000).found, want(true));
        assert_eq!(watch.at(POD, &name(901), 153_000 + 59_000 + 60_000).found, None, "a minute without any");
    }

    #[test]
    fn short_names_are_found_by_their_number() {
        let watch = watch(20);
        let found = (0..201).find_map(|number| watch.at(POD, &format!("n{number}.evil.example"), number * 10).found);
        assert_eq!(found, Some(Found { parent: "evil.example".into(), names: 201, is_news: true }));
    }

    #[test]
    fn memory_is_bounded_and_what_is_forgotten_is_counted() {
        // Many parents of one endpoint, and many names of some that share a part.
        let many_parents = (0..2_000).map(|number| (0, format!("n{number}.p{}.example", number % 600)));
        let many_names = (0..72_000).map(|number| (16 * (1 + number % 9), format!("n{number}.example.com")));
        for asked in [many_parents.collect::<Vec<_>>(), many_names.collect()] {
            let watch = watch(1_000);
            let forgotten: usize =
                asked.iter().map(|(endpoint, name)| watch.at(EndpointId(*endpoint), name, 1).forgotten).sum();
            let shard = watch.shards[0].lock().unwrap();
            let kept = |parents: &Parents| parents.by_hash.values().map(|parent| parent.names.len()).sum::<usize>();
            assert!(shard.endpoints.values().all(|parents| kept(parents) == parents.names));
            assert_eq!(shard.endpoints.values().map(kept).sum::<usize>(), shard.names);
            assert!(shard.names <= SHARD_NAMES_MAX && forgotten > 0, "{forgotten} of {}", asked.len());
            assert!(shard.endpoints.values().all(|parents| parents.by_hash.len() <= PARENTS_MAX));
            drop(shard);
            assert_eq!(watch.at(EndpointId(16), "a.b.example", 600_000), Seen::default());
            assert_eq!(watch.shards[0].lock().unwrap().names, 1, "old names go though nobody asks for them");
        }
    }

    #[test]
    fn a_full_endpoint_keeps_what_is_too_much() {
        let watch = watch(5);
        let name = |number: u64| format!("{}.evil.example", random(number, 50, BASE32));
        assert!((0..6).any(|number| watch.at(POD, &name(number), 0).found.is_some()));
        for number in 0..600 {
            watch.at(POD, &format!("www.p{number}.example"), 1);
        }
        assert!(watch.at(POD, &name(99), 2).found.is_some());
    }

    proptest! {
        /// The first name too many is the one that a plain count over the last minute finds.
        #[test]
        fn counts_as_a_plain_list_does(steps in prop::collection::vec((0_u64..40, 0_u64..9), 1..80), max in 1_u32..6) {
            let watch = watch(max);
            let (mut second, mut list) = (0, Vec::<(u64, u64)>::new());
            for (gap, number) in steps {
                second += gap;
                let live: HashSet<u64> =
                    list.iter().filter(|(at, _)| second < at + WINDOW_S).map(|(_, number)| *number).collect();
                let is_too_much = !live.contains(&number) && live.len() >= max as usize;
                let found = watch.at(POD, &format!("{}.evil.example", random(number, 50, BASE32)), second * 1_000).found;
                prop_assert_eq!(found.is_some(), is_too_much);
                if is_too_much {
                    break;
                }
                list.push((second, number));
            }
        }

        #[test]
        fn takes_any_octets(name in prop::collection::vec(any::<u8>(), 0..255)) {
            let _ = watch(0).asked(POD, &name, Instant::now());
        }
    }
}
