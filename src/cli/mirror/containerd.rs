//! What containerd's configuration says about where it looks for `hosts.toml`.
//!
//! Only tables and keys with a plain string or boolean are read, which is all that is asked about; `containerd config
//! dump` writes everything, imports and defaults included, in this form.

use std::path::{Component, Path, PathBuf};

/// One of containerd's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Setting {
    table: String,
    key: String,
    value: String,
}

/// What keeps containerd's CRI from the files in `dir`; empty if nothing is found that does.
pub fn obstacles(config: &str, dir: &Path) -> Vec<String> {
    // containerd's working directory is another, so it needs the whole path.
    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_path_buf());
    let dir = dir.as_path();
    let settings = parse(config);
    let disabled = |plugin: &str| {
        config.lines().any(|l| l.trim_start().starts_with("disabled_plugins") && l.contains(&format!("\"{plugin}\"")))
    };
    let mut found = Vec::new();
    if disabled("cri") || disabled("io.containerd.grpc.v1.cri") {
        found.push("its CRI plugin is disabled (disabled_plugins): the kubelet cannot pull through it at all".into());
    }
    // `io.containerd.grpc.v1.cri` up to 1.7, `io.containerd.cri.v1.images` from 2.0 on.
    let cri: Vec<&Setting> = settings
        .iter()
        .filter(|s| s.key == "config_path" && s.table.ends_with("registry") && s.table.contains("cri"))
        .filter(|s| !s.value.is_empty())
        .collect();
    let local_pull = settings.iter().any(|s| s.key == "use_local_image_pull" && s.value == "true");
    if cri.is_empty() {
        found.push(format!(
            "config_path is not set, so it reads no hosts.toml: set config_path = \"{}\" in \
             [plugins.\"io.containerd.grpc.v1.cri\".registry] (containerd 1.x) or \
             [plugins.\"io.containerd.cri.v1.images\".registry] (2.x), and restart containerd",
            dir.display()
        ));
    }
    for setting in cri {
        let paths: Vec<PathBuf> = setting.value.split(':').filter(|part| !part.is_empty()).map(plain).collect();
        if !paths.contains(&plain(&dir.to_string_lossy())) {
            found.push(format!(
                "config_path is {:?}, so it does not read {}: install with --dir {}, or change config_path",
                setting.value,
                dir.display(),
                paths.first().map_or(dir, PathBuf::as_path).display()
            ));
        } else if paths.len() > 1 && setting.table.contains("cri.v1.images") && !local_pull {
            found.push(format!(
                "config_path is the list {:?} (as on EKS), which containerd 2's transfer service takes for one folder: \
                 set config_path = \"{}\", or use_local_image_pull = true",
                setting.value,
                dir.display()
            ));
        }
        let old = setting.table.replace(".registry", ".registry.mirrors");
        if settings.iter().any(|s| s.table.starts_with(&old)) {
            found.push(
                "registry.mirrors is set beside config_path: containerd takes only one of them, remove registry.mirrors".into(),
            );
        }
    }
    found
}

fn plain(path: &str) -> PathBuf {
    Path::new(path).components().filter(|part| *part != Component::CurDir).collect()
}

fn parse(text: &str) -> Vec<Setting> {
    let mut table = String::new();
    let mut found = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            table = name.0.chars().filter(|c| !matches!(c, '"' | '\'' | ' ' | '[')).collect();
        } else if let Some((key, value)) = line.split_once('=') {
            let value = value.trim();
            let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
            let value = match quote {
                Some(quote) => value[1..].split(quote).next().unwrap_or_default(),
                None => value.split('#').next().unwrap_or_default().trim(),
            };
            let (table, key) = (table.clone(), key.trim().trim_matches(['"', '\'']).to_owned());
            found.push(Setting { table, key, value: value.to_owned() });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_keeps_containerd_from_the_files() {
        let dir = Path::new("/etc/containerd/certs.d");
        let v2 = |rest: &str| format!("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n{rest}");
        let v3 = |rest: &str| format!("version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\n{rest}");
        for (config, expected) in [
            (v2("config_path = \"/etc/containerd/certs.d\" # ours\n"), vec![]),
            (v2("  config_path = '/etc/containerd/certs.d/'\n"), vec![]),
            (v2("config_path = \"/etc/containerd/certs.d:/etc/docker/certs.d\"\n"), vec![]),
            (v2("config_path = \"\"\n"), vec!["config_path is not set"]),
            (v2("# config_path = \"/etc/containerd/certs.d\"\n"), vec!["config_path is not set"]),
            (String::new(), vec!["config_path is not set"]),
            (v2("config_path = \"/etc/rancher/certs.d\"\n"), vec!["does not read /etc/containerd/certs.d"]),
            (v3("config_path = '/etc/containerd/certs.d:/etc/docker/certs.d'\n"), vec!["transfer service"]),
            (
                v3(
                    "config_path = '/etc/containerd/certs.d:/etc/docker/certs.d'\n[plugins.'io.containerd.cri.v1.images']\nuse_local_image_pull = true\n",
                ),
                vec![],
            ),
            (v3("config_path = '/etc/containerd/certs.d'\n"), vec![]),
            (
                v2(
                    "config_path = \"/etc/containerd/certs.d\"\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"x\"]\n",
                ),
                vec!["remove registry.mirrors"],
            ),
            (
                format!("disabled_plugins = [\"cri\"]\n{}", v2("config_path = \"/etc/containerd/certs.d\"\n")),
                vec!["CRI plugin is disabled"],
            ),
        ] {
            let found = obstacles(&config, dir);
            assert_eq!(found.len(), expected.len(), "{config}: {found:?}");
            for (found, part) in found.iter().zip(expected) {
                assert!(found.contains(part), "{config}: {found}");
            }
        }
    }
    #[test]
    fn what_is_advised_is_absolute() {
        let here = std::env::current_dir().unwrap();
        let found = obstacles("", Path::new("certs.d"));
        assert!(found[0].contains(&format!("config_path = \"{}\"", here.join("certs.d").display())), "{found:?}");
        let table = "[plugins.'io.containerd.cri.v1.images'.registry]\n";
        let good = format!("{table}config_path = '{}'\n", here.join("certs.d").display());
        for dir in ["certs.d", "./certs.d/"] {
            assert_eq!(obstacles(&good, Path::new(dir)), Vec::<String>::new(), "{dir}");
        }
        let relative = format!("{table}config_path = 'certs.d'\n");
        assert!(obstacles(&relative, Path::new("certs.d"))[0].contains("does not read /"));
    }
}
