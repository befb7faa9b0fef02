//! Circles of files: each imports the next, and the last one the first.
//!
//! A file may use what the module that it stands below defines (`a/part.rs` what `a.rs` does): that is how modules nest,
//! and no circle. Every other way back to a file is one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::imports::Import;

/// The files of each circle: sets in which every file reaches every other one.
pub(crate) fn find(imports: &BTreeSet<Import>) -> Vec<BTreeSet<PathBuf>> {
    let ends = imports.iter().flat_map(|import| [import.from.as_path(), import.to.as_path()]);
    let files: Vec<&Path> = ends.collect::<BTreeSet<_>>().into_iter().collect();
    let numbers: BTreeMap<&Path, usize> = files.iter().enumerate().map(|(number, file)| (*file, number)).collect();
    let mut next = vec![BTreeSet::new(); files.len()];
    for import in imports.iter().filter(|import| !import.is_nesting) {
        next[numbers[import.from.as_path()]].insert(numbers[import.to.as_path()]);
    }
    let reached: Vec<BTreeSet<usize>> = (0..files.len()).map(|from| reach(&next, from)).collect();
    let mut circles: BTreeSet<Vec<usize>> = BTreeSet::new();
    for from in (0..files.len()).filter(|from| reached[*from].contains(from)) {
        circles.insert(reached[from].iter().copied().filter(|other| reached[*other].contains(&from)).collect());
    }
    circles.iter().map(|circle| circle.iter().map(|number| files[*number].to_path_buf()).collect()).collect()
}

fn reach(next: &[BTreeSet<usize>], from: usize) -> BTreeSet<usize> {
    let mut reached = BTreeSet::new();
    let mut waiting = vec![from];
    while let Some(file) = waiting.pop() {
        waiting.extend(next[file].iter().filter(|other| reached.insert(**other)));
    }
    reached
}

/// The imports that make a circle: the first of each file from each other one, a line each.
pub(crate) fn show(circle: &BTreeSet<PathBuf>, imports: &BTreeSet<Import>) -> String {
    let mut pairs = BTreeSet::new();
    let inside = imports.iter().filter(|import| circle.contains(&import.from) && circle.contains(&import.to));
    let first = inside.filter(|import| !import.is_nesting && pairs.insert((&import.from, &import.to)));
    let lines = first.map(|import| {
        format!("  {}:{} imports `{}` from {}\n", import.from.display(), import.line, import.path, import.to.display())
    });
    lines.collect()
}
