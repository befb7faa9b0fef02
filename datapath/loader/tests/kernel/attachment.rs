//! Programs that other tools take away, push back or keep from their place, and interfaces without an endpoint.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use namegate_abi::{Direction, Reason};
use namegate_engine::Key;
use namegate_loader::{Datapath, Directions, Fault};

use crate::bench::{ANSWERED, Bench, DROPPED, ENFORCED, eventually, run};

fn faults(bench: &Bench) -> Vec<Fault> {
    bench.datapath.borrow().inspector().interface(bench.interface, Directions::Both).unwrap()
}

/// Attaches once more, as the agent does for a fault; nothing is wrong then.
fn heal(bench: &Bench) {
    // The kernel lets go of a link without a pin a moment later, and takes the program once.
    let attach = || bench.datapath.borrow_mut().attach(bench.interface, Directions::Both);
    eventually("the program is attached again", || attach().is_ok());
    assert_eq!(faults(bench), []);
    assert!(!bench.echoes("198.51.100.8:7", 10, DROPPED));
}

#[test]
fn an_interface_without_an_endpoint_is_closed() {
    run(|bench| {
        // Nothing was written yet: the programs came first.
        let node = "[fe80::1%eth0]:7".parse().unwrap_or_else(|_| "192.168.20.11:7".parse().unwrap());
        assert!(!bench.echoes("198.51.100.7:7", 10, DROPPED));
        assert!(bench.pod().echo(node, 10, DROPPED).is_err());
        assert!(bench.packets(Direction::Egress, Reason::NoEndpoint) > 0, "address resolution is counted too");
        bench.enforce(0, 1);
        assert!(bench.echoes("198.51.100.7:7", 10, ANSWERED));
        bench.delete(Key::Endpoint(bench.interface));
        assert!(!bench.echoes("198.51.100.7:7", 10, DROPPED));
        // Detaching holds at once, so who is let go is not cut.
        bench.enforce(ENFORCED, 1);
        bench.datapath.borrow_mut().detach(bench.interface).unwrap();
        bench.delete(Key::Endpoint(bench.interface));
        let before = bench.packets(Direction::Egress, Reason::NoEndpoint);
        assert!(bench.echoes("198.51.100.7:7", 10, ANSWERED));
        assert_eq!(bench.packets(Direction::Egress, Reason::NoEndpoint), before);
    });
}

#[test]
fn links_that_are_unpinned_or_detached_are_noticed_and_come_back() {
    run(|bench| {
        bench.enforce(ENFORCED, 1);
        assert_eq!(faults(&bench), []);
        let path = |program: &str| bench.options.pins.join(format!("links/{}-{program}", bench.interface));
        fs::remove_file(path("from_endpoint")).unwrap();
        assert_eq!(faults(&bench), [Fault::Unpinned("from_endpoint")]);
        heal(&bench);

        // As `bpftool link detach` does: the pin stays, and nothing hangs on it.
        detach(&path("from_endpoint"));
        detach(&path("to_endpoint"));
        assert_eq!(faults(&bench), [Fault::Detached("from_endpoint"), Fault::Detached("to_endpoint")]);
        heal(&bench);
    });
}

/// Takes the program of a pinned link off.
fn detach(pinned: &Path) {
    const OBJ_GET: libc::c_int = 7;
    const LINK_DETACH: libc::c_int = 34;
    let path = CString::new(pinned.as_os_str().as_bytes()).unwrap();
    let mut name = [path.as_ptr() as u64, 0];
    // SAFETY: The kernel reads sixteen bytes, and the path that the first eight lead to.
    let link = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET, name.as_mut_ptr(), size_of_val(&name)) };
    let mut link = u32::try_from(link).unwrap();
    // SAFETY: The kernel reads four bytes.
    let status = unsafe { libc::syscall(libc::SYS_bpf, LINK_DETACH, &raw mut link, size_of_val(&link)) };
    assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: The descriptor is this function's own.
    unsafe { libc::close(link.cast_signed()) };
}

#[test]
fn a_program_that_was_put_before_is_noticed_and_comes_second() {
    run(|bench| {
        bench.enforce(ENFORCED, 1);
        let mut other = SchedClassifier::from_pin(another_program(&bench)).unwrap();
        let name = bench.pod().interface.clone();
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        let link = other.attach_with_options(&name, TcAttachType::Ingress, order).unwrap();
        let _held = other.take_link(link).unwrap();
        assert_eq!(faults(&bench), [Fault::NotFirst("from_endpoint")]);
        heal(&bench);
        let (_, programs) = SchedClassifier::query_tcx(&name, TcAttachType::Ingress).unwrap();
        assert_eq!(programs.len(), 2, "the other one stays: {programs:?}");
    });
}

/// Where a program of another object is pinned.
fn another_program(bench: &Bench) -> std::path::PathBuf {
    let folders = fs::read_dir(bench.options.pins.join("programs")).unwrap();
    folders.map(|folder| folder.unwrap().path().join("to_endpoint")).find(|path| path.exists()).unwrap()
}

#[test]
fn maps_that_are_unpinned_or_replaced_are_pinned_again() {
    run(|bench| {
        bench.enforce(ENFORCED, 1);
        let inspector = bench.datapath.borrow().inspector();
        assert_eq!(inspector.maps().unwrap(), [""; 0]);
        let pins = &bench.options.pins;
        fs::remove_file(pins.join("ENDPOINTS")).unwrap();
        fs::remove_file(pins.join("FLOWS")).unwrap();
        fs::rename(pins.join("RESOLVERS"), pins.join("FLOWS")).unwrap();
        let mut gone = inspector.maps().unwrap();
        gone.sort_unstable();
        assert_eq!(gone, ["ENDPOINTS", "FLOWS", "RESOLVERS"]);
        assert_eq!(bench.datapath.borrow_mut().pin_maps_again().unwrap().len(), 3);
        assert_eq!(inspector.maps().unwrap(), [""; 0]);
        // What a later start finds is what the programs read.
        let before = bench.datapath.borrow().attached().unwrap();
        let again = Datapath::open(&bench.options).unwrap();
        assert_eq!(again.attached().unwrap(), before);
        bench.datapath.replace(again);
        assert!(!bench.echoes("198.51.100.8:7", 10, DROPPED));
    });
}
