//! Text that others wrote, made safe to print: what would steer a terminal is written as an escape.
//!
//! File names, names in DNS, paths of requests, labels and policies reach terminals and logs. A control sequence in one of
//! them could hide a line, forge another or rename the window.

use std::borrow::Cow;

/// Whether a character steers a terminal or the order of what is shown: C0, DEL and C1 controls, the line and paragraph
/// separators, and the controls of bidirectional text (UAX #9).
pub const fn is_control(character: char) -> bool {
    matches!(
        character,
        '\0'..='\x1f'
            | '\x7f'..='\u{9f}'
            | '\u{61c}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
    )
}

/// The text in one line: every control character becomes an escape (`\n`, `\u{1b}`).
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

/// The same for a text of several lines: line ends and tabulators stay.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |character| matches!(character, '\n' | '\t'))
}

fn escaped(text: &str, stays: impl Fn(char) -> bool) -> Cow<'_, str> {
    let steers = |character: char| is_control(character) && !stays(character);
    if !text.chars().any(steers) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if steers(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_escaped() {
        for (text, want) in [
            ("b\u{fc}cher.example", "b\u{fc}cher.example"),
            ("\x1b[2J\x1b]0;title\x07", "\\u{1b}[2J\\u{1b}]0;title\\u{7}"),
            ("\u{9b}31m\x7f", "\\u{9b}31m\\u{7f}"),
            ("a\u{202e}b\u{2066}c\u{200f}", "a\\u{202e}b\\u{2066}c\\u{200f}"),
            ("one\ntwo\r\tthree\u{2028}", "one\\ntwo\\r\\tthree\\u{2028}"),
        ] {
            assert_eq!(printable(text), want);
        }
        assert_eq!(printable_lines("one\ntwo\r\tthree\x1b"), "one\ntwo\\r\tthree\\u{1b}");
    }
}
