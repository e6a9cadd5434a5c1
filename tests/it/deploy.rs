//! What `deploy/` holds: manifests that ask for no more than they need, settings and metrics that exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use larder::{apply::yaml_text::read_all, metrics};
use serde_json::{Value, json};

use crate::support::larder::{command, run, stdout_of};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");

/// The files below `deploy/` with this ending, but for the example, which is no part of an installation.
fn files(ending: &str) -> Vec<PathBuf> {
    fn walk(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("example") {
                walk(&path, ending, found);
            } else if path.is_file() && path.to_str().unwrap().ends_with(ending) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new(DEPLOY), ending, &mut found);
    found.sort();
    found
}

/// Every document of every manifest, with its file.
fn documents() -> Vec<(PathBuf, Value)> {
    let mut found = Vec::new();
    for file in files(".yaml") {
        let text = fs::read_to_string(&file).unwrap();
        let read = read_all(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        found.extend(read.into_iter().map(|document| (file.clone(), document)));
    }
    found
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn texts(value: &Value) -> Vec<&str> {
    array(value).iter().filter_map(Value::as_str).collect()
}

/// The whole templates of pods; patches have no selector.
fn pods() -> Vec<(String, Value)> {
    let whole = documents().into_iter().filter(|(_, document)| document["spec"]["selector"]["matchLabels"].is_object());
    let pods = whole.filter(|(_, document)| document["spec"]["template"].is_object());
    pods.map(|(file, document)| (file.display().to_string(), document["spec"]["template"]["spec"].clone())).collect()
}

#[test]
fn the_crds_are_what_larder_crds_prints() {
    let root = tempfile::tempdir().unwrap();
    let mut crds = command(root.path());
    crds.arg("crds");
    let printed = String::from_utf8(stdout_of(crds)).unwrap();
    let kept = fs::read_to_string(format!("{DEPLOY}/crds/crds.yaml")).unwrap();
    assert!(printed == kept, "larder crds > deploy/crds/crds.yaml");
}

#[test]
fn pods_are_confined() {
    let pods = pods();
    assert_eq!(pods.len(), 2, "the controller and the mirror");
    for (file, pod) in pods {
        let mirror = pod["hostNetwork"] == true;
        assert_eq!(mirror, file.ends_with("mirror/daemonset.yaml"), "{file}");
        let context = &pod["securityContext"];
        assert_eq!(context["runAsNonRoot"], true, "{file}");
        assert_eq!(context["seccompProfile"], json!({ "type": "RuntimeDefault" }), "{file}");
        assert!(context["runAsUser"].as_u64().is_some_and(|user| user > 0), "{file}");
        assert_eq!(pod["automountServiceAccountToken"], !mirror, "{file}: only the controller asks the API");
        let first = array(&pod["initContainers"]);
        for container in first.iter().chain(array(&pod["containers"])) {
            let context = &container["securityContext"];
            let name = format!("{file}: {}", container["name"]);
            assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(context["capabilities"], json!({ "drop": ["ALL"] }), "{name}");
            assert!(container["resources"]["limits"]["memory"].is_string(), "{name}");
            assert!(context["runAsUser"].is_null() || container["name"] == "install", "{name}: only this is root");
        }
        for container in array(&pod["containers"]) {
            for (probe, path) in
                [("livenessProbe", "/livez"), ("readinessProbe", "/readyz"), ("startupProbe", "/livez")]
            {
                assert_eq!(container[probe]["httpGet"]["path"], path, "{file}");
            }
        }
        let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
        assert!(grace > larder::shutdown::DRAIN.as_secs(), "{file}: {grace} s");
    }
}

#[test]
fn secrets_are_read_by_name_and_never_listed() {
    let mut reading = Vec::new();
    for (file, role) in documents() {
        if !["Role", "ClusterRole"].contains(&role["kind"].as_str().unwrap_or_default()) {
            continue;
        }
        let name = role["metadata"]["name"].as_str().unwrap().to_owned();
        for rule in array(&role["rules"]) {
            let all = [&rule["apiGroups"], &rule["resources"], &rule["verbs"]].map(texts).concat();
            assert!(!all.contains(&"*"), "{}: {name}: {rule}", file.display());
            if texts(&rule["resources"]).contains(&"secrets") {
                assert_eq!(texts(&rule["verbs"]), ["get"], "{}: {name}", file.display());
                reading.push(name.clone());
            }
        }
    }
    reading.sort();
    assert_eq!(reading, ["larder-references", "larder-tenant"], "both are bound by namespace, and not here");
    for (file, binding) in documents() {
        let role = binding["roleRef"]["name"].as_str().unwrap_or_default();
        assert!(!reading.iter().any(|name| name == role), "{}", file.display());
        assert!(role != "cluster-admin" || file.ends_with("full/rbac.yaml"), "{}", file.display());
    }
}

#[test]
fn commands_and_settings_are_larders() {
    let root = tempfile::tempdir().unwrap();
    let help = run(root.path(), ["serve", "--help"]);
    let help = String::from_utf8(help.stdout).unwrap();
    let known = |name: &str| help.contains(&format!("[env: {name}="));
    let mut seen = 0;
    for (file, document) in documents() {
        let pod = &document["spec"]["template"]["spec"];
        let containers: Vec<&Value> = array(&pod["initContainers"]).iter().chain(array(&pod["containers"])).collect();
        for container in containers {
            for variable in array(&container["env"]) {
                let name = variable["name"].as_str().unwrap();
                if name.starts_with("LARDER_") {
                    assert!(known(name), "{}: {name}", file.display());
                    seen += 1;
                }
            }
            let stop = &container["lifecycle"]["preStop"]["exec"]["command"];
            for line in [texts(&container["args"]), texts(stop).into_iter().skip(1).collect()] {
                if line.is_empty() {
                    continue;
                }
                let told = run(root.path(), line.iter().copied().chain(["--help"]));
                assert_eq!(told.status.code(), Some(0), "{}: {line:?}", file.display());
                let told = String::from_utf8(told.stdout).unwrap();
                for word in line.iter().filter(|word| word.starts_with("--")) {
                    assert!(told.contains(*word), "{}: {line:?}: {word}", file.display());
                }
            }
        }
    }
    assert!(seen > 8, "{seen}");
    for page in files(".md") {
        let text = fs::read_to_string(&page).unwrap();
        let words = text.split(|c: char| !c.is_ascii_uppercase() && c != '_');
        for name in words.filter(|word| word.starts_with("LARDER_") && word.len() > 7) {
            assert!(known(name), "{}: {name}", page.display());
        }
    }
}

#[test]
fn every_manifest_is_part_of_an_installation() {
    let mut named = BTreeSet::new();
    for file in files("kustomization.yaml") {
        let folder = file.parent().unwrap();
        let document = &read_all(&fs::read_to_string(&file).unwrap()).unwrap()[0];
        let mut names: Vec<String> = texts(&document["resources"]).into_iter().map(str::to_owned).collect();
        names.extend(array(&document["patches"]).iter().map(|patch| patch["path"].as_str().unwrap().to_owned()));
        for generated in array(&document["configMapGenerator"]) {
            let files = texts(&generated["files"]).into_iter();
            names.extend(files.map(|name| name.split_once('=').map_or(name, |(_, file)| file).to_owned()));
        }
        for name in names {
            let path = folder.join(&name).canonicalize().unwrap_or_else(|e| panic!("{}: {name}: {e}", file.display()));
            named.insert(path);
        }
        named.insert(file.canonicalize().unwrap());
    }
    for file in files(".yaml").into_iter().chain(files(".json")) {
        assert!(named.contains(&file.canonicalize().unwrap()), "{} is in no kustomization", file.display());
    }
    let page = fs::read_to_string(format!("{DEPLOY}/README.md")).unwrap();
    for file in files("kustomization.yaml") {
        let folder = file.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        assert!(folder == "crds" || page.contains(&format!("| `{folder}` |")), "README.md has no line for {folder}");
    }
}

/// Names, functions and words of a PromQL expression, without what is in quotes or braces.
fn words(expression: &str) -> Vec<String> {
    let mut bare = String::new();
    let (mut quoted, mut depth) = (false, 0);
    for c in expression.chars() {
        match c {
            '"' => quoted = !quoted,
            '{' if !quoted => depth += 1,
            '}' if !quoted => depth -= 1,
            _ if !quoted && depth == 0 => bare.push(c),
            _ => {}
        }
    }
    let names = bare.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '$');
    names.filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic())).map(str::to_owned).collect()
}

/// Values of the label `outcome` that an expression asks for.
fn outcomes(expression: &str) -> Vec<String> {
    let mut found = Vec::new();
    for part in expression.split("outcome").skip(1) {
        if let Some(text) = part.trim_start_matches(['=', '~', '!']).strip_prefix('"') {
            found.extend(text.split('"').next().unwrap().split('|').map(str::to_owned));
        }
    }
    found
}

#[test]
fn dashboard_and_alerts_ask_for_metrics_that_there_are() {
    let shown = metrics::encode(metrics::Format::Prometheus);
    let families: BTreeMap<&str, &str> =
        shown.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let known = |name: &str| {
        families.get(name).is_some_and(|kind| *kind != "histogram")
            || ["_bucket", "_sum", "_count"]
                .iter()
                .any(|end| name.strip_suffix(end).is_some_and(|name| families.get(name) == Some(&"histogram")))
    };
    let language: BTreeSet<&str> = [
        "sum",
        "max",
        "by",
        "rate",
        "increase",
        "histogram_quantile",
        "topk",
        "unless",
        "on",
        "or",
        "up",
        "kind",
        "outcome",
        "upstream",
        "namespace",
        "exported_namespace",
        "name",
        "pod",
        "le",
        "listener",
        "reason",
        "m",
        "h",
    ]
    .into();
    let dashboard: Value =
        serde_json::from_str(&fs::read_to_string(format!("{DEPLOY}/monitoring/dashboard.json")).unwrap()).unwrap();
    let mut expressions: Vec<String> = Vec::new();
    for panel in array(&dashboard["panels"]) {
        expressions.extend(array(&panel["targets"]).iter().map(|target| target["expr"].as_str().unwrap().to_owned()));
    }
    for variable in array(&dashboard["templating"]["list"]) {
        let query = variable["definition"].as_str().unwrap_or_default();
        expressions.extend(query.strip_prefix("label_values(").map(|rest| rest.trim_end_matches(')').to_owned()));
    }
    let panels = expressions.len();
    let rules = documents().into_iter().find(|(_, document)| document["kind"] == "PrometheusRule").unwrap().1;
    for rule in array(&rules["spec"]["groups"][0]["rules"]) {
        expressions.push(rule["expr"].as_str().unwrap().to_owned());
        for part in ["summary", "description"] {
            assert!(rule["annotations"][part].is_string(), "{rule}");
        }
    }
    assert!(panels > 14 && expressions.len() > panels + 7, "{panels} of {}", expressions.len());
    let mut asked = BTreeSet::new();
    for expression in &expressions {
        for word in words(expression) {
            if language.contains(word.as_str()) {
                continue;
            }
            assert!(known(&word), "{word} in {expression}");
            asked.insert(word);
        }
        for outcome in outcomes(expression) {
            let there = shown.contains(&format!("outcome=\"{outcome}\"")) || outcome == "ok";
            assert!(there, "outcome {outcome} in {expression}");
        }
    }
    for name in families.keys() {
        let there = asked.iter().any(|word| word.starts_with(*name));
        assert!(there || *name == "larder_store_headroom_bytes" || name.contains("scrubbed"), "no panel shows {name}");
    }
}
