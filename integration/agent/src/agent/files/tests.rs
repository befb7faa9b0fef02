//! Policy files in a real folder: changed, mistaken, unreadable, moved and gone.

use namegate_config::rule::Rule;

use super::*;
use crate::agent::touched::Cause;

const POLICY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                      metadata: {name: a, namespace: default}\nspec: {podSelector: {}, policyTypes: [Egress]}\n";

/// Files, and what they come to.
struct Reader(Files, Policies);

impl Reader {
    /// The rules after a reading.
    fn read(&mut self, touched: &Touched) -> Arc<[Arc<Rule>]> {
        self.0.read(touched, &mut self.1);
        Arc::clone(&self.1.settle([], false).rules)
    }

    fn read_named(&mut self, names: &[&str]) -> Arc<[Arc<Rule>]> {
        let mut touched = Touched::default();
        for name in names {
            touched.add(Cause::Policy((*name).to_owned()));
        }
        self.read(&touched)
    }

    /// States of the policies, then codes of what is said of them.
    fn said(&mut self) -> Vec<String> {
        let said = Arc::clone(&self.1.settle_again(false).said);
        let documents = said.documents().map(|one| format!("{:?}", one.state));
        let found = said.found.iter().filter(|one| !one.file.ends_with("endpoints.yaml"));
        documents.chain(found.map(|one| one.code.clone())).collect()
    }
}

fn files(folder: &Path) -> Reader {
    let (policies, endpoints) = (folder.join("policies"), folder.join("endpoints.yaml"));
    fs::create_dir_all(&policies).unwrap();
    let (state, features) = (folder.join("state"), super::super::FEATURES);
    let files = Files::new(Some(policies), Some(endpoints), &state, features, Arc::default());
    Reader(files, Policies::default())
}

fn policy(name: &str) -> String {
    POLICY.replace("name: a", &format!("name: {name}"))
}

/// Policies of the rules.
fn names(rules: &[Arc<Rule>]) -> Vec<String> {
    rules.iter().map(|rule| rule.origin.name.clone()).collect()
}

/// A link that leads to itself: reading it fails, and the system does not say that it is not there.
fn unreadable_at(path: &Path) {
    let _ = fs::remove_file(path);
    std::os::unix::fs::symlink(path, path).unwrap();
}

#[test]
fn what_cannot_be_read_is_not_what_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policies/a.yaml");
    let endpoints = folder.path().join("endpoints.yaml");
    let mut first = files(folder.path());
    fs::write(&policy, POLICY).unwrap();
    fs::write(&endpoints, "endpoints: [{name: a, namespace: default, addresses: [192.0.2.1]}]").unwrap();
    let read = |files: &mut Reader| {
        let in_force = files.read(&Touched::everything()).len();
        (in_force, files.0.endpoints().0.endpoints.len(), files.0.is_sure())
    };
    assert_eq!(read(&mut first), (1, 1, Ok(())));
    unreadable_at(&policy);
    unreadable_at(&endpoints);
    assert_eq!(read(&mut first), (1, 1, Ok(())), "the last good forms hold");
    assert_eq!(read(&mut files(folder.path())).0, 1, "also for the next agent, from its copies");

    // Not even the copies can be read: then nobody knows what should hold.
    unreadable_at(&folder.path().join("state/accepted/a.yaml"));
    let (_, _, is_sure) = read(&mut files(folder.path()));
    assert!(is_sure.unwrap_err().contains("a.yaml"));
    fs::remove_file(&policy).unwrap();
    unreadable_at(&folder.path().join("state/accepted/endpoints"));
    let (_, _, is_sure) = read(&mut files(folder.path()));
    assert!(is_sure.unwrap_err().contains("endpoints"));
    assert_eq!(read(&mut first), (0, 1, Ok(())), "a file that is gone takes its rules along");

    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("endpoints.yaml"), "endpoints: []").unwrap();
    let mut next = files(folder.path());
    fs::remove_dir(folder.path().join("policies")).unwrap();
    unreadable_at(&folder.path().join("policies"));
    let problem = read(&mut next).2.unwrap_err();
    assert!(problem.contains("policies"), "a folder that cannot be listed is not empty: {problem}");
}
#[test]
fn a_file_that_is_named_is_read_alone_and_the_others_keep_their_rules() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join("policies").join(name);
    let mut files = files(folder.path());
    for name in ["a", "b"] {
        fs::write(path(&format!("{name}.yaml")), policy(name)).unwrap();
    }
    let before = files.read(&Touched::everything());
    assert_eq!(names(&before), ["a", "b"]);
    fs::write(path("b.yaml"), policy("c")).unwrap();
    fs::write(path("a.yaml"), "nonsense").unwrap();
    let after = files.read_named(&["b.yaml"]);
    assert_eq!(names(&after), ["a", "c"], "nobody named the other one");
    assert!(Arc::ptr_eq(&before[0], &after[0]));
    assert_eq!(names(&files.read_named(&["a.yaml"])), ["a", "c"]);
    assert_eq!(files.said(), ["KeptFormer", "Accepted", "namegate::wrong-type"]);
    fs::remove_file(path("a.yaml")).unwrap();
    assert_eq!(names(&files.read_named(&["a.yaml"])), ["c"]);
    assert_eq!(files.said(), ["Accepted"]);
}

#[test]
fn a_file_with_the_same_content_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policies/a.yaml");
    let mut files = files(folder.path());
    fs::write(&path, POLICY).unwrap();
    files.read(&Touched::everything());
    let before = files.1.settle_again(false).clone();
    fs::write(&path, POLICY).unwrap();
    files.read_named(&["a.yaml"]);
    files.read(&Touched::everything());
    let after = files.1.settle_again(false);
    assert_eq!((after.rules_revision, after.said_revision), (before.rules_revision, before.said_revision));
}

#[test]
fn a_change_that_nobody_named_is_found_by_listing() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join("policies").join(name);
    let mut files = files(folder.path());
    fs::write(path("a.yaml"), policy("a")).unwrap();
    assert_eq!(names(&files.read(&Touched::everything())), ["a"]);
    // Of the same length, in the same inode, at nearly the same time.
    fs::write(path("a.yaml"), policy("b")).unwrap();
    assert_eq!(names(&files.read(&Touched::everything())), ["b"]);
    fs::rename(path("a.yaml"), path("renamed.yaml")).unwrap();
    assert_eq!(names(&files.read(&Touched::everything())), ["b"]);
    fs::rename(path("renamed.yaml"), path("hidden")).unwrap();
    assert!(files.read(&Touched::everything()).is_empty());
}

/// As the kubelet mounts a `ConfigMap`: files are links into a folder that is replaced by moving a link.
#[test]
fn a_mounted_configuration_is_swapped_as_a_whole() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join("policies").join(name);
    let mut files = files(folder.path());
    for (version, name) in [("..one", "a"), ("..two", "b")] {
        fs::create_dir(path(version)).unwrap();
        fs::write(path(version).join("x.yaml"), policy(name)).unwrap();
    }
    symlink("..one", path("..data")).unwrap();
    symlink("..data/x.yaml", path("x.yaml")).unwrap();
    let mut touched = Touched::default();
    touched.add(Cause::Folder);
    assert_eq!(names(&files.read(&touched)), ["a"]);
    symlink("..two", path("..new")).unwrap();
    fs::rename(path("..new"), path("..data")).unwrap();
    assert_eq!(names(&files.read(&touched)), ["b"]);
    fs::remove_file(path("..data")).unwrap();
    assert!(files.read(&touched).is_empty(), "a link that leads nowhere is no file");
}

#[test]
fn files_of_a_folder_that_is_gone_stay_in_force() {
    let folder = tempfile::tempdir().unwrap();
    let policies = folder.path().join("policies");
    let mut files = files(folder.path());
    fs::write(policies.join("a.yaml"), POLICY).unwrap();
    assert_eq!(files.read(&Touched::everything()).len(), 1);
    fs::remove_dir_all(&policies).unwrap();
    assert_eq!(files.read_named(&["a.yaml"]).len(), 1);
    assert_eq!(files.said(), ["KeptFormer", "namegate::unreadable"]);
    assert_eq!(files.read(&Touched::everything()).len(), 1);
    fs::create_dir(&policies).unwrap();
    fs::write(policies.join("a.yaml"), POLICY).unwrap();
    assert_eq!(files.read_named(&[]).len(), 1);
    assert_eq!(files.said(), ["Accepted"], "all of it is read again");
}

#[test]
fn nothing_is_sure_until_a_copy_can_be_read_whatever_else_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join("policies").join(name);
    let copy = folder.path().join("state/accepted/a.yaml");
    fs::create_dir_all(copy.parent().unwrap()).unwrap();
    let mut files = files(folder.path());
    fs::write(path("a.yaml"), "nonsense").unwrap();
    unreadable_at(&copy);
    files.read(&Touched::everything());
    assert!(files.0.is_sure().is_err());
    fs::write(path("b.yaml"), policy("b")).unwrap();
    files.read_named(&["b.yaml"]);
    assert!(files.0.is_sure().is_err(), "another file changes nothing about it");
    fs::remove_file(&copy).unwrap();
    fs::write(&copy, POLICY).unwrap();
    assert_eq!(files.read(&Touched::everything()).len(), 2);
    assert!(files.0.is_sure().is_ok());
}

#[test]
fn endpoints_have_a_revision() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("endpoints.yaml");
    let mut files = files(folder.path());
    let mut touched = Touched::default();
    touched.add(Cause::Endpoints);
    let mut revision = |text: &str| {
        fs::write(&path, text).unwrap();
        files.read(&touched);
        (files.0.endpoints().1, files.0.endpoints().0.endpoints.len())
    };
    let (first, _) = revision("endpoints: []");
    let (second, count) = revision("endpoints: [{name: a, namespace: default, addresses: [192.0.2.1]}]");
    assert!(second > first && count == 1);
    assert_eq!(
        revision("# The same.\nendpoints: [{name: a, namespace: default, addresses: [192.0.2.1]}]"),
        (second, 1)
    );
    assert_eq!(revision("endpoints: 3"), (second, 1), "the last good form");
}
