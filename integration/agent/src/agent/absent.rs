//! The interfaces that are there, for a message about one that is not: most such names are spelled wrongly.

use namegate_config::nearest_first;
use nix::net::if_::if_nameindex;

/// Names of interfaces in a message.
const NAMED_MAX: usize = 8;

/// `there are veth-a, veth-b and 3 more`, the names most alike first.
pub(crate) fn interfaces_like(name: &str) -> String {
    let Ok(all) = if_nameindex() else { return "`ip link` lists the interfaces".to_owned() };
    let there: Vec<String> = all.iter().map(|interface| interface.name().to_string_lossy().into_owned()).collect();
    list(name, &there)
}

fn list(name: &str, there: &[String]) -> String {
    let near = nearest_first(name, there.iter().map(String::as_str));
    let named: Vec<&str> = near.iter().take(NAMED_MAX).copied().collect();
    let more = match near.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("there are {}{more}", named.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_alike_come_first() {
        let there: Vec<String> = ["lo", "veth-web", "eth0", "veth-db"].map(str::to_owned).into();
        assert_eq!(list("veth-wen", &there), "there are veth-web, veth-db, eth0, lo");
        let many: Vec<String> = (0..11).map(|at| format!("veth{at:02}")).collect();
        assert!(list("veth03", &many).starts_with("there are veth03, veth00, "));
        assert!(list("veth03", &many).ends_with(" and 3 more"));
    }
}
