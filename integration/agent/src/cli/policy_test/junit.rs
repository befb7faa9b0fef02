//! `JUnit` XML, as build servers read it: one suite for each folder of names, one test for each case.

use std::{
    collections::BTreeMap,
    fmt::{Error, Write},
};

use super::report::{Report, Tested, write_line};

/// The whole report.
pub(super) fn xml(report: &Report) -> Result<String, Error> {
    let mut suites: BTreeMap<&str, Vec<&Tested>> = BTreeMap::new();
    for case in &report.cases {
        suites.entry(case.name.rsplit_once('/').map_or("", |(suite, _)| suite)).or_default().push(case);
    }
    let all: Vec<&Tested> = report.cases.iter().collect();
    let mut xml = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned();
    writeln!(xml, "<testsuites {}>", counts(&all))?;
    for (suite, cases) in suites {
        writeln!(xml, "  <testsuite name=\"{}\" {}>", escaped(suite), counts(&cases))?;
        cases.iter().try_for_each(|case| write_case(&mut xml, suite, case))?;
        writeln!(xml, "  </testsuite>")?;
    }
    writeln!(xml, "</testsuites>")?;
    Ok(xml)
}

fn counts(cases: &[&Tested]) -> String {
    let failed = cases.iter().filter(|case| case.failed() != 0).count();
    let seconds: f64 = cases.iter().map(|case| case.seconds).sum();
    format!("tests=\"{}\" failures=\"{failed}\" time=\"{seconds:.3}\"", cases.len())
}

fn write_case(xml: &mut String, suite: &str, case: &Tested) -> Result<(), Error> {
    let [suite, name, file] = [suite, &case.name, &case.file].map(escaped);
    let (seconds, flows) = (case.seconds, case.flows);
    write!(
        xml,
        "    <testcase classname=\"{suite}\" name=\"{name}\" file=\"{file}\" time=\"{seconds:.3}\" \
         assertions=\"{flows}\""
    )?;
    if case.failed() == 0 {
        return writeln!(xml, "/>");
    }
    let mut told = String::new();
    for found in &case.refused {
        writeln!(told, "{}:{}: {found}", found.line, found.column)?;
    }
    case.failures.iter().try_for_each(|line| write_line(&mut told, line))?;
    let told = escaped(&anstream::adapter::strip_str(&told).to_string());
    writeln!(xml, ">\n      <failure message=\"{} failed\">{told}</failure>\n    </testcase>", case.failed())
}

/// Text inside XML 1.0: characters that it does not have (section 2.2) become U+FFFD.
fn escaped(text: &str) -> String {
    let mut xml = String::new();
    for letter in text.chars() {
        match letter {
            '<' => xml.push_str("&lt;"),
            '>' => xml.push_str("&gt;"),
            '&' => xml.push_str("&amp;"),
            '"' => xml.push_str("&quot;"),
            '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'.. => xml.push(letter),
            _ => xml.push('\u{fffd}'),
        }
    }
    xml
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn no_text_breaks_out_of_its_place() {
        for (text, want) in [
            ("a/b-c", "a/b-c"),
            ("<a b=\"c\">&amp;", "&lt;a b=&quot;c&quot;&gt;&amp;amp;"),
            ("\u{1b}[1m\0\u{fffe}", "\u{fffd}[1m\u{fffd}\u{fffd}"),
            ("caf\u{e9} \u{1f980}\n", "caf\u{e9} \u{1f980}\n"),
        ] {
            assert_eq!(escaped(text), want);
        }
    }
}
