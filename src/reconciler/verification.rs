//! `spec.verify`: whether what a probe found is signed as the object asks, before anything of it is pulled or published.
//!
//! Flux's rules (flux.md section 2, step 7): the digest that was resolved is what must be signed, an index's where the tag
//! is one. It is looked at anew where the revision is another than the stored one's, where the spec has changed since, and
//! after a failure. The policy is each object's own; what there is of signatures is fetched once for all members that a
//! turn of their group passes over. A failure is SourceVerified=False, takes no artifact away and is tried again soon, since
//! a signature follows what it signs by a moment.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{sync::OnceCell, time::Instant};

use super::{
    Shared,
    desired::{self, Desired, RETRY_SECRETS, Refused},
    failure::Failure,
};
use crate::{
    blocking,
    class::{Class, chain},
    objects::{
        Condition, Object, Status,
        condition::{ConditionStatus, Conditions, kinds},
        source::{LocalReference, Verification},
    },
    pull::{PullError, Puller, Target, Way},
    registry::Budget,
    trust::{Evidence, Identity, Policy, TrustError},
};

/// Of an OCIRepository.
const REASON: &str = "VerificationError";
/// Of a HelmChart, for which BuildFailed says it too.
const CHART_REASON: &str = "ChartVerificationError";
/// The key of the trusted root in its Secret.
const TRUSTED_ROOT: &str = "trusted_root.json";

/// Whether a failure of this reason is a signature's.
pub fn is_verification(reason: &str) -> bool {
    matches!(reason, REASON | CHART_REASON)
}

/// What may be signatures of one manifest, fetched when the first asks and for all who ask.
#[derive(Default)]
pub struct Signatures {
    bundles: OnceCell<Result<Arc<Vec<Evidence>>, Arc<PullError>>>,
    layers: OnceCell<Result<Arc<Vec<Evidence>>, Arc<PullError>>>,
}

impl Signatures {
    async fn bundles(
        &self,
        puller: &Puller,
        way: &Arc<Way>,
        target: &Target,
        budget: Budget,
    ) -> Result<Arc<Vec<Evidence>>, Arc<PullError>> {
        let fetch = || async { puller.bundles(way, target.digest, budget).await.map(Arc::new).map_err(Arc::new) };
        self.bundles.get_or_init(fetch).await.clone()
    }

    async fn layers(
        &self,
        puller: &Puller,
        way: &Arc<Way>,
        target: &Target,
        budget: Budget,
    ) -> Result<Arc<Vec<Evidence>>, Arc<PullError>> {
        let fetch =
            || async { puller.signature_layers(way, target.digest, budget).await.map(Arc::new).map_err(Arc::new) };
        self.layers.get_or_init(fetch).await.clone()
    }
}

/// What a spec alone shows, of [`policy`].
pub fn acceptable(verify: &Verification, chart: bool) -> Result<(), Refused> {
    let refused = |message: String| refused(chart, Class::Policy, message, None);
    let provider = verify.provider.as_deref().filter(|p| !p.is_empty()).unwrap_or("cosign");
    if provider != "cosign" {
        let message = format!(
            "spec.verify.provider: signatures of {provider} are not checked by this version of Larder, so nothing is \
             pulled; use cosign, or leave this object to Flux's source-controller"
        );
        return Err(refused(message));
    }
    if named(&verify.secret_ref).is_some() || named(&verify.trusted_root_secret_ref).is_some() {
        return Ok(());
    }
    let instead = match chart {
        true => "a HelmChart cannot name a trusted root: name a secretRef with keys, or use an OCIRepository",
        false => {
            "name a trustedRootSecretRef with the trusted_root.json of your Sigstore (`cosign trusted-root create`; \
                 that of the public instance is in its TUF repository), or a secretRef with keys"
        }
    };
    let message = format!(
        "spec.verify: signatures by identity are checked against a trusted root that is given, none is fetched; {instead}"
    );
    Err(refused(message))
}

fn refused(chart: bool, class: Class, message: String, retry: Option<Duration>) -> Refused {
    Refused {
        condition: if chart { kinds::BUILD_FAILED } else { kinds::SOURCE_VERIFIED },
        reason: if chart { CHART_REASON } else { REASON },
        message,
        class,
        retry,
    }
}

fn named(field: &Option<LocalReference>) -> Option<String> {
    field.as_ref().map(|r| r.name.clone()).filter(|n| !n.is_empty())
}

/// What `spec.verify` asks for, its Secrets looked up.
pub async fn policy(
    shared: &Arc<Shared>,
    object: &Object,
    verify: &Verification,
    chart: bool,
) -> Result<Arc<Policy>, Refused> {
    acceptable(verify, chart)?;
    let refused = |class: Class, message: String, retry: Option<Duration>| refused(chart, class, message, retry);
    let secret = async |field: &str, name: &str| {
        let found = desired::secret(shared, object, field, name).await;
        found.map_err(|missing| refused(missing.class, missing.message, missing.retry))
    };
    // What is in a Secret may change without the spec; what is in the spec does not.
    let unusable = |error: &TrustError, place: &str| {
        let retry = matches!(error.class(), Class::Auth).then_some(RETRY_SECRETS);
        refused(error.class(), format!("{place}{error}"), retry)
    };
    if let Some(name) = named(&verify.secret_ref) {
        let secret = secret("verify.secretRef", &name).await?;
        let files = secret.data.iter().map(|(name, content)| (name.as_str(), content.expose()));
        let place = format!("spec.verify.secretRef: Secret '{}/{name}' ", object.key.namespace);
        return Policy::keys(files).map(Arc::new).map_err(|e| unusable(&e, &place));
    }
    // Without both it was refused above.
    let name = named(&verify.trusted_root_secret_ref).unwrap_or_default();
    let secret = secret("verify.trustedRootSecretRef", &name).await?;
    let place = format!("spec.verify.trustedRootSecretRef: Secret '{}/{name}'", object.key.namespace);
    let Some(root) = secret.data.get(TRUSTED_ROOT) else {
        return Err(refused(Class::Auth, format!("{place} has no {TRUSTED_ROOT}"), Some(RETRY_SECRETS)));
    };
    let identities: Vec<Identity<'_>> = verify
        .match_oidc_identity
        .iter()
        .map(|identity| Identity { issuer: &identity.issuer, subject: &identity.subject })
        .collect();
    Policy::keyless(&identities, root.expose()).map(Arc::new).map_err(|e| match &e {
        TrustError::Root(_) => unusable(&e, &format!("{place}: ")),
        _ => unusable(&e, "spec.verify: "),
    })
}

/// Sees that `target` is signed as the object asks, and notes it in `status`; the budget for what follows, which has all
/// the time that it had before.
pub async fn verify(
    shared: &Arc<Shared>,
    object: &Object,
    desired: &Desired,
    target: &Target,
    status: &mut Status,
    signatures: &Signatures,
    budget: Budget,
) -> Result<Budget, Failure> {
    let Some(policy) = &desired.policy else { return Ok(budget) };
    if is_verified(status, object, desired, target) {
        return Ok(budget);
    }
    let started = Instant::now();
    let own = Budget::within(desired.timeout).requested(budget.requested);
    judge(shared, policy, desired, target, signatures, own).await?;
    let message = match (&desired.chart, &target.tag) {
        (Some(_), Some(tag)) => format!("verified signature of version {}", tag.as_str().replace('_', "+")),
        _ => format!("verified signature of revision {}", desired.revision(target)),
    };
    let generation = object.metadata.generation;
    let (kind, now) = (kinds::SOURCE_VERIFIED, Timestamp::now());
    status.conditions.set(kind, ConditionStatus::True, "Succeeded", &message, generation, now);
    Ok(Budget { deadline: budget.deadline + started.elapsed(), ..budget })
}

/// Whether it is known already: for what is stored, under this spec.
fn is_verified(status: &Status, object: &Object, desired: &Desired, target: &Target) -> bool {
    let holds =
        |c: &Condition| c.status == ConditionStatus::True && c.observed_generation == object.metadata.generation;
    let stored = match &desired.chart {
        // A chart's own revision is its version.
        Some(_) => status.observed_source_artifact_revision.as_deref(),
        None => status.artifact.as_ref().map(|artifact| artifact.revision.as_str()),
    };
    status.artifact.is_some()
        && stored == Some(&desired.revision(target))
        && status.conditions.find(kinds::SOURCE_VERIFIED).is_some_and(holds)
}

/// Bundles first, since current clients write them, then layers; any success passes.
async fn judge(
    shared: &Arc<Shared>,
    policy: &Arc<Policy>,
    desired: &Desired,
    target: &Target,
    signatures: &Signatures,
    budget: Budget,
) -> Result<(), Failure> {
    let (puller, way) = (&shared.puller, &desired.route.way);
    let decide = async |found: Vec<Evidence>| {
        let (policy, digest) = (Arc::clone(policy), target.digest);
        blocking::cpu(move || policy.judge(&digest, &found)).await
    };
    let bundles = signatures.bundles(puller, way, target, budget).await;
    if let Ok(bundles) = &bundles
        && !bundles.is_empty()
        && decide(bundles.to_vec()).await.is_ok()
    {
        return Ok(());
    }
    let layers = signatures.layers(puller, way, target, budget).await;
    let found: Vec<Evidence> =
        [&bundles, &layers].into_iter().flatten().flat_map(|found| found.iter().cloned()).collect();
    let Err(refusal) = decide(found).await else { return Ok(()) };
    let chart = desired.chart.is_some();
    // What was not seen might have been the right one.
    match [bundles, layers].into_iter().find_map(Result::err) {
        Some(error) => {
            let message = format!("failed to look for signatures of {}: {}", target.digest, chain(&*error));
            Err(failed(chart, error.class(), message).after(&error))
        }
        None => Err(failed(chart, refusal.class(), format!("failed to verify the signature: {refusal}"))),
    }
}

fn failed(chart: bool, class: Class, message: String) -> Failure {
    if chart {
        Failure::new(kinds::BUILD_FAILED, CHART_REASON, class, message)
    } else {
        Failure::new(kinds::SOURCE_VERIFIED, REASON, class, message)
    }
}

/// Writes a failure's condition. A signature's is SourceVerified=False, and of a chart BuildFailed=True too; all others are
/// True.
pub fn set_failed(
    conditions: &mut Vec<Condition>,
    condition: &'static str,
    reason: &str,
    message: &str,
    generation: i64,
    now: Timestamp,
) {
    if is_verification(reason) {
        conditions.set(kinds::SOURCE_VERIFIED, ConditionStatus::False, reason, message, generation, now);
    }
    if condition != kinds::SOURCE_VERIFIED {
        conditions.set(condition, ConditionStatus::True, reason, message, generation, now);
    }
}
