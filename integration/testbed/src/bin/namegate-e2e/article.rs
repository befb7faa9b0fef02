//! The article's commands in their order, read out of its text.

use anyhow::{Context, Result, bail};

/// The article, word for word below its line of provenance.
pub(crate) const ARTICLE: &str = include_str!("../../../data/seed/article.md");

/// One thing that the reader of the article does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Creates something.
    Create {
        /// The heading it stands below.
        chapter: String,
        /// For a shell.
        command: String,
    },
    /// Calls something from a pod.
    Test {
        /// For a shell.
        command: String,
        /// Whether the article shows or promises an answer; it shows `^C` where none came.
        allowed: bool,
    },
}

/// Reads every fenced block.
pub(crate) fn steps(text: &str) -> Result<Vec<Step>> {
    let (mut steps, mut chapter, mut block) = (Vec::new(), String::new(), None::<Vec<&str>>);
    for line in text.lines() {
        match (&mut block, line.starts_with("```")) {
            (None, true) => block = Some(Vec::new()),
            (Some(lines), true) => {
                read_block(lines, &chapter, &mut steps)?;
                block = None;
            }
            (Some(lines), false) => lines.push(line),
            (None, false) => chapter = line.strip_prefix("## ").map_or(chapter, str::to_owned),
        }
    }
    if block.is_some() {
        bail!("a block of the article does not end");
    }
    Ok(steps)
}

fn read_block(lines: &[&str], chapter: &str, steps: &mut Vec<Step>) -> Result<()> {
    let mut rest = lines.iter();
    while let Some(line) = rest.next() {
        let line = line.strip_prefix("$ ").unwrap_or(line);
        let chapter = chapter.to_owned();
        if line.starts_with("cat <<EOF") {
            let mut command = vec![line];
            while command.last() != Some(&"EOF") {
                command.push(rest.next().context("a here document does not end")?);
            }
            steps.push(Step::Create { chapter, command: command.join("\n") });
        } else if line.starts_with("kubectl create ") {
            steps.push(Step::Create { chapter, command: line.to_owned() });
        } else if line.starts_with("kubectl exec ") {
            steps.push(Step::Test { command: line.to_owned(), allowed: true });
        } else if *line == *"^C" {
            match steps.last_mut() {
                Some(Step::Test { allowed, .. }) => *allowed = false,
                _ => bail!("`^C` follows no command"),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_of_the_article_is_read() {
        let steps = steps(ARTICLE).unwrap();
        let tests: Vec<(&str, bool)> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Test { command, allowed } => Some((command.as_str(), *allowed)),
                Step::Create { .. } => None,
            })
            .collect();
        let want = [
            ("kubectl exec tiefighter -n empire -- curl -sL 100.96.7.169/v1", true),
            ("kubectl exec -it kube-dns-6c7dfbf97d-cm4tt -n kube-system -- wget 100.96.7.169/v1", false),
            ("kubectl exec -it tiefighter -n empire -- curl  deathstar.empire.svc.cluster.local/v1", false),
            ("kubectl exec -it tiefighter -n empire -- curl  deathstar.empire.svc.cluster.local/v1", true),
            (
                "kubectl exec -it tiefighter -n empire -- curl -sL kubernetes-dashboard.kube-system.svc.cluster.local/version",
                false,
            ),
            (
                "kubectl exec -it prometheus-core-84677d797f-wrhm7 -n monitoring -- wget -O metrics deathstar.empire.svc.cluster.local:8080/metrics",
                true,
            ),
            (
                "kubectl exec -it prometheus-core-84677d797f-wrhm7 -n monitoring -- wget -O random_get deathstar.empire.svc.cluster.local:80/v1",
                false,
            ),
            ("kubectl exec -it tiefighter -n empire -- curl -sL cilium.io", true),
            ("kubectl exec -it tiefighter -n empire -- curl -sL google.com", false),
        ];
        assert_eq!(tests, want);
        let created: Vec<&str> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Create { command, .. } => command.lines().next(),
                Step::Test { .. } => None,
            })
            .collect();
        let policy = "cat <<EOF | kubectl create -n empire -f -";
        assert_eq!(
            created,
            [
                "kubectl create ns empire",
                "kubectl create -f https://raw.githubusercontent.com/cilium/cilium/v1.2.2/examples/minikube/http-sw-app.yaml -n empire",
                policy,
                policy,
                "kubectl create -f https://raw.githubusercontent.com/cilium/cilium/v1.2/examples/kubernetes/addons/prometheus/prometheus.yaml",
                policy,
                policy,
            ]
        );
    }

    #[test]
    fn broken_texts_are_refused() {
        for text in ["```\n", "```\ncat <<EOF | x\nfoo\n```\n", "```\n^C\n```\n"] {
            assert!(steps(text).is_err(), "{text:?}");
        }
    }
}
