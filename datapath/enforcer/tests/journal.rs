//! The journal on a device that is full in the middle of an entry. It mounts a file system, and so needs root.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{fs, path::Path};

use namegate_enforcer::Journal;
use namegate_engine::LedgerEntry;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

/// A file system with room for this many pages, seen by this thread alone.
fn mounted(pages: usize, folder: &Path) {
    unshare(CloneFlags::CLONE_NEWNS).expect("run this test as root: it mounts a file system");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let options = format!("size={}", pages * 4_096);
    mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), Some(&*options)).unwrap();
}

fn entry(at: usize) -> LedgerEntry {
    // Longer than a page with its neighbours, so that a device ends in the middle of one.
    LedgerEntry::Left { key: format!("shop/web-{at}-{}", "x".repeat(1_000)).into() }
}

/// What an agent would read that starts now.
fn held(folder: &Path) -> Vec<LedgerEntry> {
    let copy = tempfile::tempdir().unwrap();
    fs::copy(folder.join("journal"), copy.path().join("journal")).unwrap();
    Journal::open(copy.path()).1.entries
}

#[test]
fn an_entry_that_a_full_device_cut_short_costs_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let test = std::thread::spawn(move || {
        mounted(16, &path);
        let ballast = path.join("ballast");
        let (mut journal, opened) = Journal::open(&path);
        assert!(opened.refused.is_none());
        fs::write(&ballast, vec![0; 10 * 4_096]).unwrap();
        let written = (0..1_000).find(|at| journal.append(&[entry(*at)]).is_err()).expect("the device is small");
        assert!(written > 4 && !journal.is_whole(), "{written}");
        assert_eq!(held(&path), (0..written).map(entry).collect::<Vec<_>>(), "an agent that dies now");
        assert!(journal.append(&[entry(written)]).is_err(), "it would stand behind a torn one");
        assert!(journal.replace(&(0..=written).map(entry).collect::<Vec<_>>()).is_err(), "the device is still full");
        assert_eq!(held(&path).len(), written, "what is there stays");

        fs::remove_file(&ballast).unwrap();
        journal.replace(&(0..=written).map(entry).collect::<Vec<_>>()).unwrap();
        journal.append(&[entry(written + 1)]).unwrap();
        assert_eq!(held(&path), (0..written + 2).map(entry).collect::<Vec<_>>());
        umount2(&path, MntFlags::MNT_DETACH).unwrap();
    });
    test.join().unwrap();
}
