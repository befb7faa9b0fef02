//! Every case of `conformance/cases` on the reference evaluator: policies as written, both sides of every flow.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use namegate_config::{
    cases::{Answer, Case, Judge, NotJudged, Question, Reference, Report, World, run},
    reference::{Reason, Verdict},
    rule::Rule,
};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../conformance")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn worlds() -> BTreeMap<String, World> {
    let is_world = |path: &&PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("world-"));
    let read = |path: &PathBuf| World::parse(&path.to_string_lossy(), &fs::read_to_string(path).unwrap()).unwrap();
    files(&folder()).iter().filter(is_world).map(read).map(|world| (world.name.clone(), world)).collect()
}

fn cases() -> Vec<Case> {
    let files = files(&folder().join("cases")).into_iter().flat_map(|suite| files(&suite));
    let read = |path: PathBuf| {
        let case = Case::parse(&path.to_string_lossy(), &fs::read_to_string(&path).unwrap());
        case.unwrap_or_else(|found| panic!("{}: {found:?}", path.display()))
    };
    files.map(read).collect()
}

/// Uses fields that Cilium itself has given up: the policy is refused.
const REFUSED: &str = "cilium/doc-requires";

#[test]
fn the_reference_decides_as_the_cases_say() {
    let worlds = worlds();
    let (mut count, mut checked, mut wrong) = (0, 0, Vec::new());
    for case in cases() {
        count += 1;
        let errors = case.steps.iter().flat_map(|step| &step.diagnostics).filter(|found| found.is_error());
        let errors: Vec<String> = errors.map(|found| format!("{}:{} {found}", found.line, found.column)).collect();
        if case.name == REFUSED {
            assert!(case.doubtful.is_some() && errors.len() == 1 && errors[0].contains("fromRequires"), "{errors:?}");
            continue;
        }
        assert!(errors.is_empty(), "{}: {errors:#?}", case.name);
        let Report { checked: asked, failures, .. } = run(&case, &worlds[&case.world], &mut Reference::default());
        assert_eq!(asked, case.checks().count(), "{}", case.name);
        checked += asked;
        for failure in failures {
            let doubtful = if case.doubtful.is_some() { " (doubtful)" } else { "" };
            wrong.push(format!("{}{doubtful} step {}: {}: {:?}", case.name, failure.step, failure.check, failure.got));
        }
    }
    println!("{count} cases, {checked} flows");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(count, 325);
    assert_eq!(checked, 95_424);
}

/// Answers every question alike.
struct Always(bool);

impl Judge for Always {
    fn load(&mut self, _: &World, _: &[Rule]) -> Result<(), NotJudged> {
        Ok(())
    }

    fn hear(&mut self, _: &Answer, _: u64) -> Result<(), NotJudged> {
        Ok(())
    }

    fn verdict(&mut self, _: &Question<'_>) -> Result<Verdict, NotJudged> {
        let reason = if self.0 { Reason::NoPolicy } else { Reason::DefaultDeny };
        Ok(Verdict { allowed: self.0, by: None, reason })
    }
}

#[test]
fn a_wrong_judge_is_found_out() {
    let worlds = worlds();
    for case in cases().iter().filter(|case| case.name.starts_with("seed/") || case.name.starts_with("cilium/")) {
        let (allows, denials) = case.checks().partition::<Vec<_>, _>(|(_, check)| check.allowed);
        let answered = denials.iter().filter(|(_, check)| check.how.as_ref().is_some_and(|how| how != "drop")).count();
        let failures = |judge: &mut Always| run(case, &worlds[&case.world], judge).failures.len();
        assert_eq!(failures(&mut Always(true)), denials.len(), "{}", case.name);
        assert_eq!(failures(&mut Always(false)), allows.len() + answered, "{}", case.name);
    }
}
