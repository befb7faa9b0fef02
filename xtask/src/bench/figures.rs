//! Figures for people, and the parts of pages that measurements write.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// Replaces the part of a page that stands below the line of its writer, a command.
pub(super) fn write_part(page: &Path, writer: &str, part: &str) -> Result<()> {
    const END: &str = "<!-- End of what is written. -->";
    let start = format!("<!-- Written by `{writer}`. -->\n");
    let text = std::fs::read_to_string(page).with_context(|| format!("reading {}", page.display()))?;
    let (before, rest) =
        text.split_once(&start).with_context(|| format!("{} has no place for `{writer}`", page.display()))?;
    let (_, after) = rest.split_once(END).context("the place for the table has no end")?;
    let text = format!("{before}{start}\n{}\n\n{END}{after}", part.trim_end());
    std::fs::write(page, text).with_context(|| format!("writing {}", page.display()))
}

/// A number, and not a number where there is none.
pub(super) fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

/// Whole numbers with separators.
pub(super) fn count(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(super) fn time(seconds: f64) -> String {
    match seconds {
        1.0.. => format!("{seconds:.1} s"),
        0.001.. => format!("{:.1} ms", seconds * 1e3),
        _ => format!("{:.1} µs", seconds * 1e6),
    }
}

pub(super) fn memory(octets: f64) -> String {
    const MEBI: f64 = 1_048_576.0;
    format!("{:.0} MiB", octets / MEBI)
}

/// Processor, cores, and how busy others keep it.
pub(super) fn machine() -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("unknown").to_owned();
    format!("{}, {cores} cores, load {load}", model.trim_start_matches([' ', '\t', ':']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_for_people() {
        for (text, want) in [
            (count(1_234_567.0), "1,234,567"),
            (count(10.0), "10"),
            (time(0.000_003_1), "3.1 µs"),
            (time(0.012_34), "12.3 ms"),
            (time(4.0), "4.0 s"),
            (memory(3_145_728.0), "3 MiB"),
        ] {
            assert_eq!(text, want);
        }
    }

    #[test]
    fn a_part_of_a_page_is_written_and_the_rest_stays() {
        let folder = std::env::temp_dir().join(format!("namegate-xtask-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let page = folder.join("page.md");
        let text =
            |part: &str| format!("a\n<!-- Written by `x`. -->\n\n{part}\n\n<!-- End of what is written. -->\nb\n");
        std::fs::write(&page, text("old")).unwrap();
        write_part(&page, "x", "new\n").unwrap();
        assert_eq!(std::fs::read_to_string(&page).unwrap(), text("new"));
        assert!(write_part(&page, "y", "").is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
