//! A daemon on a real API server: the behaviours that CI always runs on the scripted one.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{
    cluster::env::{Cluster, Setup, is_here},
    support::{
        http,
        kubernetes::{Kubernetes, shown},
    },
};

/// A cluster with Larder's CRDs.
struct Real {
    cluster: Cluster,
    _root: tempfile::TempDir,
}

fn real() -> Option<Real> {
    if !is_here() {
        return None;
    }
    let root = tempfile::tempdir().expect("temporary folder");
    let cluster = Cluster::start_with(root.path(), Setup { rbac: false, controllers: true });
    cluster.install_larders();
    Some(Real { cluster, _root: root })
}

impl Kubernetes for Real {
    fn kubeconfig(&self, _: &Path) -> PathBuf {
        self.cluster.kubeconfig("larder")
    }

    fn send(&self, method: &str, path: &str, kind: &str, body: &Value) -> http::Response {
        self.cluster.send(method, path, kind, body)
    }

    fn calls(&self) -> Vec<String> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let audited = self.cluster.audited();
        let counts = |event: &&Value| {
            let of = &event["objectRef"];
            !of.is_null() && of["resource"] != "leases" && !text(&event["requestURI"]).contains("dryRun=")
        };
        let line = |event: &Value| {
            let of = &event["objectRef"];
            shown(
                &text(&event["verb"]),
                &text(&of["resource"]),
                &text(&of["subresource"]),
                &text(&of["namespace"]),
                &text(&of["name"]),
            )
        };
        audited.iter().filter(counts).map(line).collect()
    }

    fn is_real(&self) -> bool {
        true
    }
}

crate::behaviours! {
    real();
    sources {
        a_first_pass_costs_three_writes_and_one_without_a_change_none,
        a_request_is_honoured_and_a_new_revision_told,
        a_new_generation_is_observed_and_ignore_rules_make_another_artifact,
        what_is_deleted_goes_with_its_artifact_also_suspended,
        what_is_not_larders_is_left_strictly_alone,
        a_git_repository_with_an_oci_url_is_a_source,
        secrets_are_read_by_name_and_what_they_lack_is_told,
        a_service_accounts_pull_secrets_count,
        a_failure_takes_nothing_away_and_its_end_is_told,
        a_spec_that_cannot_be_stalls_and_costs_no_request,
        a_pass_that_lasts_says_so_meanwhile,
        what_flux_stored_is_taken_over_in_one_write,
        charts_come_through_both_kinds,
        events_go_to_the_notification_controller_too,
    }
    references {
        references_lead_where_fluxs_do,
        certificates_come_from_secrets,
        a_proxy_comes_from_a_secret,
        records_are_kept_as_told_and_the_url_follows_the_host,
        what_is_lost_on_disk_comes_back,
        signatures_decide_what_is_published,
        versions_of_charts_are_chosen_as_helm_does,
    }
    kustomizations {
        the_users_documents_end_with_the_deployment,
        what_is_no_longer_there_is_pruned_and_an_empty_artifact_prunes_all,
        an_edit_is_undone_within_an_interval_and_looking_is_cheap,
        sources_and_dependencies_are_waited_for,
        variables_come_from_the_spec_config_maps_and_secrets,
        other_namespaces_can_be_forbidden,
        what_is_suspended_rests_and_its_objects_stay_when_it_is_deleted,
        what_another_owns_or_opts_out_is_kept,
    }
    replicas {
        every_replica_serves_and_the_second_leads_when_the_first_is_killed,
        a_replica_without_a_leader_to_ask_makes_the_artifact_from_the_registry,
        an_update_of_all_replicas_leaves_nobody_without_an_artifact,
        a_follower_writes_nothing,
    }
}
