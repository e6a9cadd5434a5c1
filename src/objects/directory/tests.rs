use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::Path,
    time::Duration,
};

use serde_json::json;
use tokio::sync::mpsc::Receiver;

use super::*;
use crate::objects::{Artifact, ConditionStatus, Conditions, Spec, Wanted, as_source};

/// A directory of objects and a data directory, with what a test does to them.
struct Bench {
    root: tempfile::TempDir,
    backend: Option<Directory>,
    changes: Option<Receiver<Change>>,
}

impl Bench {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("objects-dir")).unwrap();
        fs::create_dir(root.path().join("data")).unwrap();
        Self { root, backend: None, changes: None }
    }

    fn dir(&self) -> std::path::PathBuf {
        self.root.path().join("objects-dir")
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.dir().join(file), text).unwrap();
    }

    fn backend(&self) -> &Directory {
        self.backend.as_ref().unwrap()
    }

    /// (Re)starts and gives what is told up to `Synced`.
    async fn start(&mut self) -> Vec<String> {
        self.backend = None;
        let backend = Directory::open_with(&self.dir(), &self.root.path().join("data"), false).await.unwrap();
        let mut changes = backend.changes();
        let mut told = Vec::new();
        loop {
            match changes.recv().await.unwrap() {
                Change::Synced => break,
                change => told.push(name(&change)),
            }
        }
        (self.backend, self.changes) = (Some(backend), Some(changes));
        told
    }

    async fn reload(&mut self) -> Vec<String> {
        self.backend().reload().await.unwrap();
        let changes = self.changes.as_mut().unwrap();
        std::iter::from_fn(|| changes.try_recv().ok()).map(|c| name(&c)).collect()
    }

    async fn list(&self) -> Listing {
        self.backend().list().await
    }

    async fn errors(&self) -> Vec<String> {
        self.list().await.errors.iter().map(|e| format!("{}: {}", e.place, e.error)).collect()
    }

    /// `name: generation url` of every listed object.
    async fn urls(&self) -> Vec<String> {
        let items = self.list().await.values();
        items
            .iter()
            .map(|i| {
                format!("{}: {} {}", text(&i["metadata"]["name"]), i["metadata"]["generation"], text(&i["spec"]["url"]))
            })
            .collect()
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn name(change: &Change) -> String {
    match change {
        Change::Applied(object, status) => {
            format!("+{} {} {}", object.key, object.metadata.generation, status.observed_generation)
        }
        Change::Observed(key, _) => format!("={key}"),
        Change::Deleted(key) => format!("-{key}"),
        Change::Dependency(namespace, name) => format!("~{namespace}/{name}"),
        Change::Synced => "synced".into(),
        Change::Recalled(_) | Change::Away => panic!("a directory is never away: {change:?}"),
    }
}

fn oci(name: &str, url: &str) -> String {
    format!(
        "apiVersion: source.toolkit.fluxcd.io/v1\nkind: OCIRepository\nmetadata:\n  name: {name}\nspec:\n  interval: 1m\n  url: {url}\n---\n"
    )
}

fn key(name: &str) -> Key {
    Key::new(super::super::Kind::OCIRepository, "default", name)
}

fn status(generation: i64) -> Status {
    let digest = crate::digest::Digest::sha256(b"");
    let mut status = Status { observed_generation: generation, ..Status::default() };
    status.conditions.set("Ready", ConditionStatus::True, "Succeeded", "stored", generation, Timestamp::UNIX_EPOCH);
    status.artifact = Some(Artifact {
        digest,
        path: "p".into(),
        url: "u".into(),
        revision: "r".into(),
        last_update_time: "1970-01-01T00:00:00Z".into(),
        size: 1,
        metadata: [("a".to_string(), "b".to_string())].into(),
    });
    status
}

#[tokio::test]
async fn the_users_documents_work_as_they_stand() {
    let mut bench = Bench::new();
    bench.write("oci-source.yaml", include_str!("testdata/oci-source.yaml"));
    bench.write("kustomization.yaml", include_str!("testdata/kustomization.yaml"));
    bench.write("secret.yaml", include_str!("testdata/secret.yaml"));
    bench.backend = Some(Directory::open_with(&bench.dir(), &bench.root.path().join("data"), false).await.unwrap());
    let mut changes = bench.backend().changes();
    let Change::Applied(object, status) = changes.recv().await.unwrap() else { panic!() };
    let source = as_source(&object).unwrap();
    assert_eq!(source.url, "oci://your-dockerhub-username/my-app-config");
    assert_eq!(source.wanted, Wanted::Tag("v1.0.0".into()));
    assert_eq!((source.interval, source.secret), (Duration::from_secs(60), None));
    assert_eq!(*status, Status::default());
    let Change::Applied(object, _) = changes.recv().await.unwrap() else { panic!() };
    let Spec::Kustomization(spec) = &object.spec else { panic!() };
    assert_eq!((spec.path.as_deref(), spec.prune, spec.validation.as_deref()), (Some("./"), true, Some("client")));
    assert!(matches!(changes.recv().await.unwrap(), Change::Synced));

    let secret = bench.backend().references().secret("flux-system", "oci-registry-credentials").await.unwrap().unwrap();
    assert_eq!(secret.kind, "kubernetes.io/dockerconfigjson");
    let config: Value = serde_json::from_str(secret.data[".dockerconfigjson"].expose()).unwrap();
    assert_eq!(config["auths"]["your-registry.example.com"]["username"], "your-username");
    assert_eq!(bench.backend().references().secret("default", "oci-registry-credentials").await.unwrap(), None);

    let listing = bench.list().await;
    let items = listing.values();
    let names: Vec<_> = items.iter().map(|i| text(&i["kind"])).collect();
    assert_eq!(names, ["GitRepository", "Kustomization"]);
    assert_eq!(listing.errors, []);
    assert!(!serde_json::to_string(&listing).unwrap().contains("your-password"));
}

#[tokio::test]
async fn lists_as_an_api_server_does() {
    let mut bench = Bench::new();
    let helm = |name: &str, kind: &str| {
        format!(
            "apiVersion: source.toolkit.fluxcd.io/v1beta2\nkind: HelmRepository\nmetadata: {{name: {name}}}\nspec: {{url: 'oci://h/r'{kind}}}\n---\n"
        )
    };
    bench.write("b.yaml", &(oci("z", "oci://u:hunter2@h/r") + &helm("static", ", type: oci") + &helm("other", "")));
    bench.write(
        "a.json",
        &json!({"apiVersion": "source.toolkit.fluxcd.io/v1", "kind": "GitRepository",
            "metadata": {"name": "g", "namespace": "apps", "labels": {"a": "b"}},
            "spec": {"url": "https://h/r", "interval": "1m", "extra": 1}})
        .to_string(),
    );
    assert_eq!(bench.start().await, ["+OCIRepository/default/z 1 -1", "+HelmRepository/default/static 1 -1"]);
    let mut items = bench.list().await.values();
    for item in &mut items {
        let metadata = item["metadata"].as_object_mut().unwrap();
        assert_eq!(text(&metadata.remove("uid").unwrap()).len(), 36);
        let created = metadata.remove("creationTimestamp").unwrap();
        assert_eq!((text(&created).len(), text(&created).ends_with('Z')), (20, true));
    }
    assert_eq!(
        items,
        [
            json!({"apiVersion": "source.toolkit.fluxcd.io/v1", "kind": "OCIRepository",
                "metadata": {"name": "z", "namespace": "default", "generation": 1},
                "spec": {"url": "oci://***@h/r", "interval": "1m", "timeout": "60s", "provider": "generic"},
                "status": {"observedGeneration": -1}}),
            json!({"apiVersion": "source.toolkit.fluxcd.io/v1", "kind": "GitRepository",
                "metadata": {"name": "g", "namespace": "apps", "generation": 1, "labels": {"a": "b"}},
                "spec": {"url": "https://h/r", "interval": "1m", "timeout": "60s", "extra": 1}}),
            json!({"apiVersion": "source.toolkit.fluxcd.io/v1", "kind": "HelmRepository",
                "metadata": {"name": "other", "namespace": "default", "generation": 1},
                "spec": {"url": "oci://h/r", "provider": "generic"}}),
            json!({"apiVersion": "source.toolkit.fluxcd.io/v1", "kind": "HelmRepository",
                "metadata": {"name": "static", "namespace": "default", "generation": 1},
                "spec": {"url": "oci://h/r", "type": "oci", "provider": "generic"}}),
        ]
    );
}

#[tokio::test]
async fn generation_rises_with_the_spec_only_and_lives_on() {
    let mut bench = Bench::new();
    bench.write("a.yaml", &oci("a", "oci://h/1"));
    assert_eq!(bench.start().await, ["+OCIRepository/default/a 1 -1"]);
    assert_eq!(bench.reload().await, [] as [&str; 0]);

    bench.write("a.yaml", &oci("a", "oci://h/22"));
    assert_eq!(bench.reload().await, ["+OCIRepository/default/a 2 -1"]);
    bench.backend().patch_status(&key("a"), &status(2)).await.unwrap();

    // Only an annotation: told, and the generation stays. Comments and order change nothing.
    let asked = oci("a", "oci://h/22")
        .replace("  name: a\n", "  name: a\n  annotations: {reconcile.fluxcd.io/requestedAt: now}\n");
    bench.write("a.yaml", &asked);
    assert_eq!(bench.reload().await, ["+OCIRepository/default/a 2 2"]);
    bench.write("a.yaml", &format!("# a comment\n{asked}"));
    assert_eq!(bench.reload().await, [] as [&str; 0]);
    let before = bench.list().await;

    // Over restarts: unchanged, changed while down, suspended (nobody patches its status).
    assert_eq!(bench.start().await, ["+OCIRepository/default/a 2 2"]);
    assert_eq!(serde_json::to_value(bench.list().await).unwrap(), serde_json::to_value(&before).unwrap());
    bench.backend = None;
    bench.write("a.yaml", &oci("a", "oci://h/333"));
    assert_eq!(bench.start().await, ["+OCIRepository/default/a 3 2"]);
    assert_eq!(bench.start().await, ["+OCIRepository/default/a 3 2"]);
    assert_eq!(before.values()[0]["metadata"]["uid"], bench.list().await.values()[0]["metadata"]["uid"]);
}

#[tokio::test]
async fn a_status_is_kept_and_an_equal_one_is_not_written_again() {
    let mut bench = Bench::new();
    bench.write("a.yaml", &oci("a", "oci://h/r"));
    bench.start().await;
    bench.backend().patch_status(&key("a"), &status(1)).await.unwrap();
    let record = bench.root.path().join("data/objects/ocirepository/default/a.json");
    let inode = || fs::metadata(&record).unwrap().ino();
    let first = inode();
    bench.backend().patch_status(&key("a"), &status(1)).await.unwrap();
    assert_eq!(inode(), first);
    bench.backend().patch_status(&key("a"), &status(2)).await.unwrap();
    assert_ne!(inode(), first);
    // Nobody's.
    bench.backend().patch_status(&key("b"), &status(1)).await.unwrap();
    assert_eq!(fs::read_dir(record.parent().unwrap()).unwrap().count(), 1);
    assert_eq!(bench.list().await.values()[0]["status"], serde_json::to_value(status(2)).unwrap());
}

#[tokio::test]
async fn a_status_that_cannot_be_kept_is_an_error_and_is_not_shown() {
    let mut bench = Bench::new();
    bench.write("a.yaml", &oci("a", "oci://h/r"));
    bench.start().await;
    let folder = bench.root.path().join("data/objects/ocirepository/default");
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, "in the way").unwrap();
    let error = bench.backend().patch_status(&key("a"), &status(1)).await.unwrap_err();
    assert!(matches!(&error, BackendError::Status { key: k, .. } if *k == key("a")), "{error}");
    assert_eq!(bench.list().await.values()[0]["status"], json!({"observedGeneration": -1}));
}

#[tokio::test]
async fn deletions_are_told_also_those_of_the_time_down() {
    let mut bench = Bench::new();
    bench.write("a.yaml", &(oci("a", "oci://h/a") + &oci("b", "oci://h/b")));
    bench.write("c.yaml", &oci("c", "oci://h/c"));
    bench.start().await;
    let record = |name: &str| bench.root.path().join(format!("data/objects/ocirepository/default/{name}.json"));
    let (a, c) = (record("a"), record("c"));
    bench.write("a.yaml", &oci("b", "oci://h/b"));
    assert_eq!(bench.reload().await, ["-OCIRepository/default/a"]);
    assert!(a.exists(), "until the reconciler says that everything is gone");
    // Crashed before that: told again.
    assert_eq!(
        bench.start().await,
        ["-OCIRepository/default/a", "+OCIRepository/default/b 1 -1", "+OCIRepository/default/c 1 -1"]
    );
    bench.backend().forget(&key("a")).await.unwrap();
    bench.backend().forget(&key("c")).await.unwrap();
    assert!(!a.exists());
    assert!(c.exists(), "it is still there");

    bench.backend = None;
    fs::remove_file(bench.dir().join("c.yaml")).unwrap();
    assert_eq!(bench.start().await, ["-OCIRepository/default/c", "+OCIRepository/default/b 1 -1"]);
    // Declared anew, before the deletion is through: a new object, whose record stays.
    bench.write("c.yaml", &oci("c", "oci://h/c"));
    assert_eq!(bench.reload().await, ["+OCIRepository/default/c 1 -1"]);
    bench.backend().forget(&key("c")).await.unwrap();
    assert!(c.exists());
}

#[tokio::test]
async fn of_duplicates_none_is_used_and_the_last_good_one_stays() {
    let mut bench = Bench::new();
    bench.write("a.yaml", &oci("a", "oci://h/1"));
    bench.start().await;
    bench.write("b.yaml", &oci("a", "oci://h/2"));
    bench.write("c.yaml", &(oci("c", "oci://h/c") + &oci("d", "oci://h/d") + &oci("d", "oci://h/d")));
    assert_eq!(bench.reload().await, ["+OCIRepository/default/c 1 -1"]);
    let errors = |rest: &str| {
        let of = |place: &str, name: &str, other: &str| {
            format!("{place}: OCIRepository/default/{name} is declared more than once, also in {other}: {rest}")
        };
        vec![
            of("a.yaml, document 1, line 1", "a", "b.yaml, document 1, line 1"),
            of("b.yaml, document 1, line 1", "a", "a.yaml, document 1, line 1"),
            of("c.yaml, document 2, line 8", "d", "c.yaml, document 3, line 16"),
            of("c.yaml, document 3, line 16", "d", "c.yaml, document 2, line 8"),
        ]
    };
    let expected = errors("none of them is used, what was there before stays; remove all but one");
    assert_eq!(bench.errors().await, expected);
    assert_eq!(bench.urls().await, ["a: 1 oci://h/1", "c: 1 oci://h/c"]);
    // The last good one, also after a restart.
    assert_eq!(bench.start().await, ["+OCIRepository/default/c 1 -1", "+OCIRepository/default/a 1 -1"]);
    assert_eq!(bench.urls().await, ["a: 1 oci://h/1", "c: 1 oci://h/c"]);
    // Settled in favour of the second.
    fs::remove_file(bench.dir().join("a.yaml")).unwrap();
    assert_eq!(bench.reload().await, ["+OCIRepository/default/a 2 -1"]);
    assert_eq!(bench.urls().await[0], "a: 2 oci://h/2");
}

#[tokio::test]
async fn a_bad_document_takes_nothing_away() {
    let mut bench = Bench::new();
    bench.write("a.yaml", &(oci("a", "oci://h/a") + &oci("b", "oci://h/b")));
    bench.write("z.yaml", &oci("z", "oci://h/z"));
    bench.start().await;
    // It is clear which one is bad; the other may go.
    bench.write("a.yaml", &oci("a", "oci://h/a").replace("interval: 1m", "interval: soon"));
    assert_eq!(bench.reload().await, ["-OCIRepository/default/b"]);
    bench.backend().forget(&key("b")).await.unwrap();
    assert_eq!(bench.urls().await, ["a: 1 oci://h/a", "z: 1 oci://h/z"]);
    let wrong = "a.yaml, document 1, line 1: OCIRepository/default/a: spec.interval: \"soon\" does not match \
                 ^([0-9]+(\\.[0-9]+)?(ms|s|m|h))+$";
    assert_eq!(bench.errors().await, [wrong]);
    // It is not clear: nothing of that file goes, and good documents in it are used.
    bench.write("a.yaml", &format!("{}kind: [\n", oci("c", "oci://h/c")));
    assert_eq!(bench.reload().await, ["+OCIRepository/default/c 1 -1"]);
    assert_eq!(bench.urls().await, ["a: 1 oci://h/a", "c: 1 oci://h/c", "z: 1 oci://h/z"]);
    assert!(bench.errors().await[0].starts_with("a.yaml, document 2, line "), "{:?}", bench.errors().await);
    // The same over a restart.
    assert_eq!(
        bench.start().await,
        ["+OCIRepository/default/c 1 -1", "+OCIRepository/default/z 1 -1", "+OCIRepository/default/a 1 -1"]
    );
    // A file that cannot be read is not a file that is gone.
    fs::remove_file(bench.dir().join("z.yaml")).unwrap();
    symlink("nowhere", bench.dir().join("z.yaml")).unwrap();
    assert_eq!(bench.reload().await, [] as [&str; 0]);
    fs::remove_file(bench.dir().join("z.yaml")).unwrap();
    bench.write("a.yaml", "");
    assert_eq!(
        bench.reload().await,
        ["-OCIRepository/default/a", "-OCIRepository/default/c", "-OCIRepository/default/z"]
    );
    assert_eq!(bench.errors().await, [] as [&str; 0]);
}

#[tokio::test]
async fn the_directory_away_leaves_everything_and_is_told() {
    let mut bench = Bench::new();
    bench.write("a.yaml", &oci("a", "oci://h/a"));
    bench.start().await;
    let away = bench.root.path().join("away");
    fs::rename(bench.dir(), &away).unwrap();
    for _ in 0..2 {
        assert!(matches!(bench.backend().reload().await, Err(BackendError::Unreadable { .. })));
        assert_eq!((bench.urls().await.len(), bench.errors().await.len()), (1, 1));
    }
    fs::rename(&away, bench.dir()).unwrap();
    assert_eq!(bench.reload().await, [] as [&str; 0]);
    assert_eq!(bench.errors().await, [] as [&str; 0]);
    let data = bench.root.path().join("data");
    let missing = Directory::open(Path::new("/nonexistent/larder"), &data).await;
    assert!(matches!(missing, Err(BackendError::Unreadable { .. })));
}

#[tokio::test]
async fn follows_the_swap_of_a_mounted_config_map() {
    let mut bench = Bench::new();
    for (generation, url) in [("..1", "oci://h/1"), ("..2", "oci://h/2")] {
        fs::create_dir(bench.dir().join(generation)).unwrap();
        bench.write(&format!("{generation}/a.yaml"), &oci("a", url));
    }
    symlink("..1", bench.dir().join("..data")).unwrap();
    symlink("..data/a.yaml", bench.dir().join("a.yaml")).unwrap();
    assert_eq!(bench.start().await, ["+OCIRepository/default/a 1 -1"]);
    symlink("..2", bench.dir().join("..data_tmp")).unwrap();
    fs::rename(bench.dir().join("..data_tmp"), bench.dir().join("..data")).unwrap();
    assert_eq!(bench.reload().await, ["+OCIRepository/default/a 2 -1"]);
    assert_eq!(bench.urls().await, ["a: 2 oci://h/2"]);
}

#[tokio::test]
async fn what_objects_refer_to_is_kept_in_memory_only() {
    let mut bench = Bench::new();
    let documents = |password: &str| {
        format!(
            "{}apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Secret\n  metadata: {{name: s}}\n  stringData: {{password: {password}}}\n- apiVersion: v1\n  kind: ServiceAccount\n  metadata: {{name: sa, annotations: {{role: r}}}}\n  imagePullSecrets: [{{name: s}}]\n- apiVersion: v1\n  kind: ConfigMap\n  metadata: {{name: c}}\n  data: {{a: b}}\n- apiVersion: v1\n  kind: Namespace\n  metadata: {{name: n}}\n",
            oci("a", "oci://h/a")
        )
    };
    bench.write("a.yaml", &documents("hunter2"));
    assert_eq!(bench.start().await, ["+OCIRepository/default/a 1 -1"]);
    let account = bench.backend().references().service_account("default", "sa").await.unwrap().unwrap();
    assert_eq!(account.image_pull_secrets, ["s"]);
    assert_eq!(account.annotations["role"], "r");
    let token = bench.backend().references().service_account_token("default", "sa", &[]).await;
    assert!(token.unwrap_err().to_string().contains("there is no cluster here"));
    assert_eq!(bench.backend().references().config_map("default", "c").await.unwrap().unwrap().data["a"], "b");
    bench.write("a.yaml", &documents("hunter22"));
    assert_eq!(bench.reload().await, ["~default/s"]);
    let secret = bench.backend().references().secret("default", "s").await.unwrap().unwrap();
    assert_eq!(secret.data["password"].expose(), "hunter22");
    assert!(!format!("{secret:?}").contains("hunter2"));
    // Broken: the last good one stays, and the message tells nothing.
    bench.write("a.yaml", &documents("[hunter3]"));
    assert_eq!(bench.reload().await, [] as [&str; 0]);
    assert_eq!(
        bench.errors().await,
        [
            "a.yaml, document 2, item 1, line 8: Secret/default/s: stringData.password: must be a string; put it in quotes"
        ]
    );
    bench.write("a.yaml", &oci("a", "oci://h/a"));
    assert_eq!(bench.reload().await, ["~default/s", "~default/sa", "~default/c"]);
    let kept = fs::read_to_string(bench.root.path().join("data/objects/ocirepository/default/a.json")).unwrap();
    assert!(!kept.contains("hunter2"));
}

#[tokio::test]
async fn an_object_that_is_no_longer_ours_is_deleted_for_us() {
    let mut bench = Bench::new();
    let git = |url: &str| oci("a", url).replace("OCIRepository", "GitRepository");
    bench.write("a.yaml", &git("oci://h/a"));
    bench.start().await;
    bench.write("a.yaml", &git("https://h/a"));
    assert_eq!(bench.reload().await, ["-GitRepository/default/a"]);
    assert_eq!(bench.urls().await, ["a: 2 https://h/a"]);
    assert_eq!(bench.list().await.values()[0].get("status"), None);
    bench.write("a.yaml", &git("oci://h/b"));
    assert_eq!(bench.reload().await, ["+GitRepository/default/a 3 -1"]);
}

#[tokio::test]
async fn the_changes_are_given_once() {
    let mut bench = Bench::new();
    bench.start().await;
    assert!(bench.backend().changes().recv().await.is_none());
}

#[tokio::test]
async fn the_users_files_are_never_written() {
    let mut bench = Bench::new();
    bench.write("a.yaml", &oci("a", "oci://h/a"));
    let before = fs::read_dir(bench.dir()).unwrap().count();
    let stamp =
        |b: &Bench| fs::metadata(b.dir().join("a.yaml")).map(|m| (m.ctime_nsec(), m.mtime_nsec(), m.ino())).unwrap();
    let first = stamp(&bench);
    bench.start().await;
    bench.backend().patch_status(&key("a"), &status(1)).await.unwrap();
    bench.reload().await;
    assert_eq!((stamp(&bench), fs::read_dir(bench.dir()).unwrap().count()), (first, before));
}

/// The one test of the watching itself: it waits for changes, and for nothing else.
#[tokio::test]
async fn sees_writes_renames_and_deletions() {
    let bench = Bench::new();
    bench.write("a.yaml", &oci("a", "oci://h/1"));
    let backend = Directory::open(&bench.dir(), &bench.root.path().join("data")).await.unwrap();
    let mut changes = backend.changes();
    let mut next = async || name(&changes.recv().await.unwrap());
    assert_eq!(next().await, "+OCIRepository/default/a 1 -1");
    assert_eq!(next().await, "synced");
    bench.write("a.yaml", &oci("a", "oci://h/22"));
    assert_eq!(next().await, "+OCIRepository/default/a 2 -1");
    // As editors do: a dotfile beside it, renamed over it.
    bench.write(".a.yaml.swp", &oci("a", "oci://h/333"));
    fs::rename(bench.dir().join(".a.yaml.swp"), bench.dir().join("a.yaml")).unwrap();
    assert_eq!(next().await, "+OCIRepository/default/a 3 -1");
    fs::remove_file(bench.dir().join("a.yaml")).unwrap();
    assert_eq!(next().await, "-OCIRepository/default/a");
}
