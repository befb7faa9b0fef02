//! Marks in payloads: each packet says who sent it, how, and whether policy lets it pass.

/// Begins the mark of what policy denies.
pub(crate) const DENIED: &str = "ngdeny:";
/// Begins the mark of what policy lets pass.
pub(crate) const PASSING: &str = "ngpass:";
/// Ends a mark.
const END: u8 = b';';
/// Longest text of a mark.
const MARK_MAX: usize = 48;

/// The mark of a packet that must not arrive.
pub(crate) fn denied(what: &str) -> Vec<u8> {
    format!("{DENIED}{what};").into_bytes()
}

/// The mark of a packet that may arrive.
pub(crate) fn passing(what: &str) -> Vec<u8> {
    format!("{PASSING}{what};").into_bytes()
}

/// The mark in a frame: whether it must not arrive, and its text.
pub(crate) fn find(frame: &[u8]) -> Option<(bool, String)> {
    let marks = [(true, DENIED.as_bytes()), (false, PASSING.as_bytes())];
    let at = frame.windows(DENIED.len()).position(|window| marks.iter().any(|(_, mark)| window == *mark))?;
    let is_denied = frame[at..].starts_with(DENIED.as_bytes());
    let text: Vec<u8> =
        frame[at + DENIED.len()..].iter().copied().take(MARK_MAX).take_while(|byte| *byte != END).collect();
    Some((is_denied, String::from_utf8_lossy(&text).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_wherever_it_stands() {
        let frame = [&[0; 42][..], &denied("endpoint:syn"), &[1, 2, 3]].concat();
        assert_eq!(find(&frame), Some((true, "endpoint:syn".to_owned())));
        assert_eq!(find(&passing("x")), Some((false, "x".to_owned())));
        assert_eq!(find(b"ngden"), None);
    }
}
