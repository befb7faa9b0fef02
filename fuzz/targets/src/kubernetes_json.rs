//! The objects that an agent saves for a start without the API server.

use std::collections::BTreeSet;

use namegate_kubernetes::fuzzing::{FORM, saved};
use serde_json::Value;

/// Where written files are torn.
const TEARS: usize = 16;

/// A file.
///
/// # Panics
/// A file is read that is torn or of another form; it holds other objects than stand in it; or what is written of them
/// reads otherwise.
pub fn kubernetes_json(data: &[u8]) {
    let file: Option<Value> = serde_json::from_slice(data).ok();
    let Some(read) = saved(data) else { return };
    // Serde reads the file from a list as well, in the order of its fields.
    let file = file.unwrap_or_default();
    let field =
        |name: &str, at: usize| if let Some(list) = file.as_array() { list[at].clone() } else { file[name].clone() };
    assert_eq!(field("form", 0), FORM, "another form");
    let rows = field("rows", 1);
    let keys: BTreeSet<String> =
        rows.as_array().into_iter().flatten().map(|row| format!("{} {}", row[0], row[1])).collect();
    assert_eq!(read.objects, keys.len(), "{rows}");
    assert!(read.policies <= read.objects);

    let again = saved(&read.written);
    assert_eq!(again.as_ref(), Some(&read), "written and read again");
    for part in 1..=TEARS {
        let length = (read.written.len() - 1) * part / TEARS;
        assert_eq!(saved(&read.written[..length]), None, "torn at {length}");
    }
}
