//! What a source object asks for, with its Secrets looked up: the way to its registry, the reference, the layer, the schedule.

use std::{sync::Arc, time::Duration};

use super::{Shared, credentials, group::Route, helm, verification};
use crate::{
    artifact::choose::Choice,
    class::Class,
    digest::{Digest, DigestError},
    objects::{
        HelmChartSpec, Key, Kind, Object, SecretObject, Spec, Status,
        condition::kinds,
        source::{LayerSelector, Verification},
        view::{self, DEFAULT_TIMEOUT, as_source},
    },
    oci::{Reference, ReferenceError, Registry, media_type, version::exact_chart_tag},
    pull::{Target, Wanted, Way},
    registry::{Endpoint, Proxy, Transport},
    secret::Secret,
    trust::Policy,
};

/// How soon a Secret that is missing or wrong is looked at again, where nobody tells of its change.
pub const RETRY_SECRETS: Duration = Duration::from_secs(30);

/// A source as it is to be fetched.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// What it shares with others.
    pub route: Route,
    /// `spec.url`, for messages.
    pub url: String,
    /// Which layer.
    pub choice: Choice,
    /// `spec.ignore`.
    pub ignore: Option<String>,
    /// `spec.layerSelector`.
    pub selector: Option<LayerSelector>,
    /// `spec.interval`.
    pub interval: Duration,
    /// `spec.timeout`.
    pub timeout: Duration,
    /// Of a HelmChart.
    pub chart: Option<helm::WantedChart>,
    /// Whether Secrets or a ServiceAccount had a part in it.
    pub refers: bool,
    /// `spec.verify`.
    pub policy: Option<Arc<Policy>>,
}

/// Why an object cannot even be tried.
#[derive(Clone, Debug)]
pub struct Refused {
    /// The condition that says so.
    pub condition: &'static str,
    /// Its reason.
    pub reason: &'static str,
    /// What is wrong, where, and what to do.
    pub message: String,
    /// The class of failure.
    pub class: Class,
    /// When to look again; `None`: when the spec changes.
    pub retry: Option<Duration>,
}

impl Refused {
    /// Whether only another spec helps.
    pub fn is_stalled(&self) -> bool {
        self.retry.is_none()
    }

    pub(super) fn spec(reason: &'static str, class: Class, message: impl Into<String>) -> Self {
        Self { condition: kinds::FETCH_FAILED, reason, message: message.into(), class, retry: None }
    }

    fn url(error: &ReferenceError) -> Self {
        Self::spec("URLInvalid", Class::Spec, format!("spec.url: {error}"))
    }

    fn contact(registry: &Registry, why: &str) -> Self {
        let message = format!("spec.url: {registry} must not be contacted: {why}");
        Self::spec("URLInvalid", Class::Policy, message)
    }

    fn chart(message: String) -> Self {
        Self { condition: kinds::BUILD_FAILED, ..Self::spec("InvalidChartReference", Class::Spec, message) }
    }

    pub(super) fn authentication(message: impl Into<String>) -> Self {
        let retry = Some(RETRY_SECRETS);
        Self { retry, ..Self::spec("AuthenticationFailed", Class::Auth, message) }
    }
}

/// `spec.timeout`, or its default.
pub fn timeout(spec: &Spec) -> Duration {
    match spec {
        Spec::OciRepository(s) => s.timeout(),
        Spec::GitRepository(s) => s.timeout(),
        Spec::HelmRepository(s) => s.timeout.as_ref().map_or(DEFAULT_TIMEOUT, |t| t.get()),
        Spec::HelmChart(_) => DEFAULT_TIMEOUT,
        Spec::Kustomization(s) => super::kustomization::timeout(s),
    }
}

/// What is asked of a registry, whichever kind asks.
pub(super) struct Asked<'a> {
    reference: Result<Reference, ReferenceError>,
    url: String,
    wanted: Wanted,
    pub(super) secret: Option<&'a str>,
    certificates: Option<&'a str>,
    proxy: Option<&'a str>,
    pub(super) service_account: Option<&'a str>,
    pub(super) provider: &'a str,
    insecure: bool,
    verify: Option<&'a Verification>,
    interval: Duration,
    timeout: Duration,
    choice: Choice,
    selector: Option<LayerSelector>,
    ignore: Option<String>,
    /// A Secret may also hold `username` and `password`, and TLS material.
    pub(super) plain_secret: bool,
}

/// Reads an object; `None` where there is nothing to fetch for it.
pub async fn read(shared: &Arc<Shared>, object: &Object) -> Result<Option<Desired>, Refused> {
    if let Spec::HelmChart(spec) = &object.spec {
        let known = |key: &Key| shared.lock().objects.get(key).map(|e| Arc::clone(&e.object));
        let repository = match chart_repository(object, spec, known) {
            Err(missing) if !missing.is_stalled() && is_of_anothers(shared, object, spec).await => return Ok(None),
            found => found?,
        };
        let Some((asked, wanted)) = of_chart(object, spec, &repository)? else { return Ok(None) };
        return common(shared, object, asked, Some(wanted)).await.map(Some);
    }
    let Some(asked) = of_source(object)? else { return Ok(None) };
    common(shared, object, asked, None).await.map(Some)
}

/// What a spec alone shows, of [`read`]: whether there is anything to fetch for the object. `find` finds a
/// HelmRepository, `permits` knows which registries must not be contacted.
pub fn examine(
    object: &Object,
    find: impl Fn(&Key) -> Option<Arc<Object>>,
    permits: impl Fn(&Registry) -> Result<(), &'static str>,
) -> Result<bool, Refused> {
    let repository;
    let (asked, chart) = if let Spec::HelmChart(spec) = &object.spec {
        repository = chart_repository(object, spec, find)?;
        match of_chart(object, spec, &repository)? {
            Some((asked, _)) => (asked, true),
            None => return Ok(false),
        }
    } else {
        match of_source(object)? {
            Some(asked) => (asked, false),
            None => return Ok(false),
        }
    };
    let reference = asked.reference.as_ref().map_err(Refused::url)?;
    permits(&reference.registry).map_err(|why| Refused::contact(&reference.registry, why))?;
    asked.verify.map_or(Ok(()), |verify| verification::acceptable(verify, chart))?;
    credentials::acceptable(&asked)?;
    Ok(true)
}

fn of_source(object: &Object) -> Result<Option<Asked<'_>>, Refused> {
    let Some(view) = as_source(object) else { return Ok(None) };
    let media_type = view.layer_selector.and_then(|s| s.media_type.clone()).filter(|m| !m.is_empty());
    let chart = media_type.as_deref() == Some(media_type::HELM_LAYER);
    let asked = Asked {
        reference: Reference::parse_object_url(view.url),
        url: view.url.to_string(),
        wanted: wanted(view.wanted, chart)?,
        secret: view.secret,
        certificates: view.cert_secret,
        proxy: view.proxy_secret,
        service_account: view.service_account,
        provider: view.provider,
        insecure: view.insecure,
        verify: view.verify,
        interval: view.interval,
        timeout: view.timeout,
        choice: Choice {
            media_type,
            copy: view.layer_selector.and_then(|s| s.operation.as_deref()) == Some("copy"),
            all_layers_of_images: view.all_layers,
        },
        selector: view.layer_selector.cloned(),
        ignore: view.ignore.map(str::to_string),
        plain_secret: object.key.kind == Kind::GitRepository,
    };
    Ok(Some(asked))
}

/// Whether a chart's HelmRepository is there and not Larder's. A cluster tells only of those that are of type oci.
pub async fn is_of_anothers(shared: &Shared, object: &Object, spec: &HelmChartSpec) -> bool {
    let key = Key::new(Kind::HelmRepository, &object.key.namespace, &spec.source_ref.name);
    if spec.source_ref.kind != Kind::HelmRepository.name() {
        return false;
    }
    let known = shared.lock().objects.get(&key).map(|e| Arc::clone(&e.object));
    let repository = match known {
        Some(repository) => Some(repository),
        None => shared.backend.references().object(&key).await.ok().flatten().map(|(repository, _)| repository),
    };
    repository.is_some_and(|repository| !repository.is_ours())
}

/// The HelmRepository of a chart.
fn chart_repository(
    object: &Object,
    spec: &HelmChartSpec,
    find: impl Fn(&Key) -> Option<Arc<Object>>,
) -> Result<Arc<Object>, Refused> {
    if spec.source_ref.kind != Kind::HelmRepository.name() {
        let message = format!(
            "spec.sourceRef.kind: charts come from a HelmRepository of type oci here, not from a {}",
            spec.source_ref.kind
        );
        return Err(Refused::chart(message));
    }
    let key = Key::new(Kind::HelmRepository, &object.key.namespace, &spec.source_ref.name);
    let missing = |message: String| Refused {
        condition: kinds::FETCH_FAILED,
        reason: "SourceUnavailable",
        message,
        class: Class::NotFound,
        retry: Some(RETRY_SECRETS),
    };
    find(&key).ok_or_else(|| {
        missing(format!("failed to get source: HelmRepository '{}' of type oci not found", spec.source_ref.name))
    })
}

fn of_chart<'a>(
    object: &Object,
    spec: &'a HelmChartSpec,
    repository: &'a Object,
) -> Result<Option<(Asked<'a>, helm::WantedChart)>, Refused> {
    let Spec::HelmRepository(from) = &repository.spec else { return Ok(None) };
    if from.kind.as_deref() != Some("oci") {
        return Ok(None);
    }
    let version = spec.version.as_deref().unwrap_or("*");
    let reference = Reference::parse_chart_url(&from.url, &spec.chart);
    if let Err(error) = &reference
        && Reference::parse_chart_url(&from.url, "chart").is_ok()
    {
        return Err(Refused::chart(format!("spec.chart: {:?} is not a chart's name: {error}", spec.chart)));
    }
    let asked = Asked {
        reference,
        url: format!("{}/{}", from.url.trim_end_matches('/'), spec.chart),
        wanted: match exact_chart_tag(version) {
            Some(tag) => Wanted::Tag(tag),
            None => Wanted::Chart(version.to_string()),
        },
        secret: from.secret_ref.as_ref().map(|r| r.name.as_str()),
        certificates: from.cert_secret_ref.as_ref().map(|r| r.name.as_str()),
        proxy: None,
        service_account: None,
        provider: from.provider.as_deref().unwrap_or("generic"),
        insecure: from.insecure,
        verify: spec.verify.as_ref(),
        interval: spec.interval.get(),
        timeout: timeout(&repository.spec),
        choice: Choice { media_type: Some(media_type::HELM_LAYER.into()), copy: true, all_layers_of_images: false },
        selector: None,
        ignore: None,
        plain_secret: true,
    };
    let wanted = helm::WantedChart {
        name: spec.chart.rsplit('/').next().unwrap_or(&spec.chart).to_string(),
        values: (!spec.values_files.is_empty()).then(|| helm::Values {
            files: spec.values_files.clone(),
            ignore_missing: spec.ignore_missing_values_files,
            generation: object.metadata.generation,
        }),
    };
    Ok(Some((asked, wanted)))
}

async fn common(
    shared: &Arc<Shared>,
    object: &Object,
    asked: Asked<'_>,
    chart: Option<helm::WantedChart>,
) -> Result<Desired, Refused> {
    let reference = asked.reference.clone().map_err(|e| Refused::url(&e))?;
    shared.puller.permits(&reference.registry).map_err(|why| Refused::contact(&reference.registry, why))?;
    if asked.insecure && !shared.config.insecure_allowed {
        let message = "spec.insecure: this installation forbids connections without TLS (--insecure-allow-http=false)";
        return Err(Refused::spec("InsecureConnectionsDisallowed", Class::Policy, message));
    }
    let policy = match asked.verify {
        Some(verify) => Some(verification::policy(shared, object, verify, chart.is_some()).await?),
        None => None,
    };
    let credentials = credentials::find(shared, object, &asked, &reference).await?;
    // For the kind that has no such field.
    let named_insecure =
        object.key.kind == Kind::GitRepository && shared.config.insecure_registries.contains(&reference.registry);
    let mut transport = Transport {
        insecure: asked.insecure || named_insecure,
        // The object's own url may name a loopback address: that is its permission.
        allow_loopback: reference.registry.is_loopback_literal(),
        ..Transport::default()
    };
    certificates(shared, object, &asked, &mut transport).await?;
    transport.proxy = proxy(shared, object, &asked).await?;
    let credentials = credentials.settle(shared, &reference.registry, &transport)?;
    let endpoint = Endpoint { registry: reference.registry, transport, credentials };
    Ok(Desired {
        route: Route { way: Arc::new(Way { endpoint, repository: reference.repository }), wanted: asked.wanted },
        url: asked.url,
        choice: asked.choice,
        ignore: asked.ignore,
        selector: asked.selector,
        interval: asked.interval,
        timeout: asked.timeout,
        chart,
        refers: policy.is_some()
            || [asked.secret, asked.certificates, asked.proxy, asked.service_account].iter().any(Option::is_some),
        policy,
    })
}

/// A Secret of the object's own namespace.
pub(super) async fn secret(
    shared: &Arc<Shared>,
    object: &Object,
    field: &str,
    name: &str,
) -> Result<Arc<SecretObject>, Refused> {
    if name.contains('/') {
        let message = format!("spec.{field}: {name:?} is not the name of a Secret in this object's own namespace");
        return Err(Refused::authentication(message));
    }
    match shared.backend.references().secret(&object.key.namespace, name).await {
        Ok(Some(secret)) => Ok(secret),
        Ok(None) => {
            let message = format!("spec.{field}: Secret '{}/{name}' not found", object.key.namespace);
            Err(Refused::authentication(message))
        }
        Err(error) => Err(Refused::authentication(format!("spec.{field}: cannot read the Secret: {error}"))),
    }
}

pub(super) fn has_tls(secret: &SecretObject) -> bool {
    ["ca.crt", "caFile", "tls.crt", "certFile"].iter().any(|key| secret.data.contains_key(*key))
}

/// `ca.crt`, `tls.crt`, `tls.key`, each with its older name after it.
async fn certificates(
    shared: &Arc<Shared>,
    object: &Object,
    asked: &Asked<'_>,
    transport: &mut Transport,
) -> Result<(), Refused> {
    let (field, named) = match (asked.certificates, asked.secret) {
        (Some(named), _) => ("certSecretRef", named),
        (None, Some(named)) if asked.plain_secret => ("secretRef", named),
        _ => return Ok(()),
    };
    let secret = secret(shared, object, field, named).await?;
    if field == "secretRef" && !has_tls(&secret) {
        return Ok(());
    }
    let data = |key: &str, older: &str| secret.data.get(key).or_else(|| secret.data.get(older));
    let wrong = |what: &str| {
        let place = format!("spec.{field}: Secret '{}/{}'", object.key.namespace, named);
        Refused::authentication(format!("{place} {what}"))
    };
    transport.ca = data("ca.crt", "caFile").map(|pem| pem.expose().into());
    transport.client_certificate = match (data("tls.crt", "certFile"), data("tls.key", "keyFile")) {
        (Some(chain), Some(key)) => Some((chain.expose().into(), Arc::new(key.clone()))),
        (None, None) => None,
        _ => return Err(wrong("must have both tls.crt and tls.key, or neither")),
    };
    if transport.ca.is_none() && transport.client_certificate.is_none() {
        return Err(wrong("has none of ca.crt, and tls.crt with tls.key"));
    }
    Ok(())
}

async fn proxy(shared: &Arc<Shared>, object: &Object, asked: &Asked<'_>) -> Result<Option<Proxy>, Refused> {
    let Some(named) = asked.proxy else { return Ok(None) };
    let secret = secret(shared, object, "proxySecretRef", named).await?;
    let wrong = |what: &str| {
        let place = format!("spec.proxySecretRef: Secret '{}/{}'", object.key.namespace, named);
        Refused::authentication(format!("{place} {what}"))
    };
    let address = secret.data.get("address").ok_or_else(|| wrong("has no address"))?;
    let mut proxy = Proxy { address: address.expose().to_string(), credentials: None };
    if let Some(username) = secret.data.get("username") {
        let password = secret.data.get("password").cloned().unwrap_or_else(|| Secret::new(""));
        proxy.credentials = Some((username.expose().to_string(), password));
    }
    Ok(Some(proxy))
}

/// A reference, typed. Flux finds a bad one when it pulls, and so tells it as a failed pull.
fn wanted(wanted: view::Wanted, chart: bool) -> Result<Wanted, Refused> {
    let refused = |field: &str, error: String| {
        Refused::spec("OCIArtifactPullFailed", Class::Spec, format!("spec.ref.{field}: {error}"))
    };
    match wanted {
        view::Wanted::Digest(text) => {
            text.parse().map(Wanted::Digest).map_err(|e: DigestError| refused("digest", e.to_string()))
        }
        view::Wanted::Tag(text) => {
            text.parse().map(Wanted::Tag).map_err(|e: ReferenceError| refused("tag", e.to_string()))
        }
        view::Wanted::Semver { range, filter } => Ok(Wanted::Version { range, filter, chart }),
    }
}

impl Desired {
    /// The revision of `target`: `<tag>@<digest>`, or the digest alone.
    pub fn revision(&self, target: &Target) -> String {
        match &target.tag {
            Some(tag) => format!("{tag}@{}", target.digest),
            None => target.digest.to_string(),
        }
    }

    /// Whether `status` already holds what `target` would give.
    pub fn is_current(&self, status: &Status, target: &Target) -> bool {
        let Some(artifact) = &status.artifact else { return false };
        match &self.chart {
            // A chart's revision is its version: a re-pushed tag is told by the digest that was observed.
            Some(chart) => {
                status.observed_source_artifact_revision.as_deref() == Some(&self.revision(target))
                    && status.observed_chart_name.as_deref() == Some(&chart.name)
                    && status.observed_values_files == chart.values.as_ref().map(|v| v.files.clone())
            }
            None => {
                artifact.revision == self.revision(target)
                    && status.observed_ignore == self.ignore
                    && status.observed_layer_selector == self.selector
            }
        }
    }

    /// Writes beside the artifact what it was made from.
    pub fn observe(
        &self,
        status: &mut Status,
        key: &Key,
        target: &Target,
        chart: Option<&helm::Chart>,
        advertise: &str,
    ) {
        if let Some(artifact) = &status.artifact
            && key.kind != Kind::GitRepository
            && let Some((directory, _)) = artifact.path.rsplit_once('/')
        {
            status.url = Some(format!("{advertise}/{directory}/latest.tar.gz"));
        }
        match chart {
            Some(chart) => {
                status.observed_source_artifact_revision = Some(self.revision(target));
                status.observed_chart_name = Some(chart.name.clone());
                status.observed_values_files =
                    self.chart.as_ref().and_then(|c| c.values.as_ref()).map(|v| v.files.clone());
            }
            None => {
                status.observed_ignore = self.ignore.clone();
                status.observed_layer_selector = self.selector.clone();
            }
        }
    }

    /// Where the artifact is fetched, below the listener's root.
    pub fn path(&self, key: &Key, digest: &Digest, chart: Option<&helm::Chart>) -> String {
        let directory = format!("{}/{}/{}", key.kind.lower(), key.namespace, key.name);
        match chart {
            Some(chart) => format!("{directory}/{}-{}-{}.tgz", chart.name, chart.version, &digest.hex()[..12]),
            None => format!("{directory}/{}.tar.gz", digest.hex()),
        }
    }

    /// Reason and message of a stored artifact.
    pub fn stored(&self, revision: &str) -> (&'static str, String) {
        match &self.chart {
            None => ("Succeeded", format!("stored artifact for digest '{revision}'")),
            Some(chart) if chart.values.is_some() => {
                ("ChartPackageSucceeded", format!("packaged '{}' chart with version '{revision}'", chart.name))
            }
            Some(chart) => ("ChartPullSucceeded", format!("pulled '{}' chart with version '{revision}'", chart.name)),
        }
    }
}
