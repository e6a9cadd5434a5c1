//! `larder crds --patch` where Flux's manifests are kept in Git: built by kustomize.

use std::process::Command;

use larder::apply::yaml_text;

use crate::{
    need::{all_of, kustomize},
    support::{
        flux_crds::{KNOWN, difference, facts, flux, widening},
        larder::{run, stdout_of},
    },
};

#[test]
fn flux_crds_in_git_are_widened_by_the_component() {
    // Whichever is there; with neither, kubectl is what is missed.
    let Some(program) = kustomize() else {
        all_of(&["kubectl"]);
        return;
    };
    let root = tempfile::tempdir().expect("temporary folder");
    for version in KNOWN {
        let crds = flux(version);
        let folder = root.path().join(version);
        std::fs::create_dir_all(folder.join("larder")).expect("folder");
        std::fs::write(folder.join("larder/kustomization.yaml"), run(&folder, ["crds", "--patch"]).stdout)
            .expect("write");
        std::fs::write(folder.join("flux.yaml"), yaml_text::write_all(&crds)).expect("write");
        std::fs::write(folder.join("kustomization.yaml"), "resources: [flux.yaml]\ncomponents: [larder]\n")
            .expect("write");
        let mut build = Command::new(&program);
        if program.ends_with("kubectl") {
            build.arg("kustomize");
        } else {
            build.arg("build");
        }
        build.arg(&folder);
        let built = String::from_utf8(stdout_of(build)).expect("text");
        let built = yaml_text::read_all(&built).expect("YAML");
        assert_eq!(built.len(), crds.len(), "{version}");
        for crd in &crds {
            let name = crd["metadata"]["name"].as_str().expect("a name");
            let after = built.iter().find(|built| built["metadata"]["name"] == name).expect("is there");
            assert_eq!(difference(&facts(crd), &facts(after)), widening(name), "{version}");
        }
    }
}
