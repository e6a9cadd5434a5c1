//! What a Kustomization's spec asks for that is not done here, or not allowed: said, never passed over.

use super::{Blocked, held, source_key};
use crate::{
    apply::render::refuse_unsupported,
    class::chain,
    objects::{Key, KustomizationSpec, Object, Spec},
};

/// Fields that must not be passed over in silence.
pub(super) fn refuse(object: &Object, spec: &KustomizationSpec, cross_namespace: bool) -> Result<(), Blocked> {
    if let Some((reason, message)) = unsupported(object, spec).next() {
        return Err(Blocked::refused(reason, message));
    }
    let names = [&spec.source_ref.namespace].into_iter().chain(spec.depends_on.iter().map(|d| &d.namespace));
    if !cross_namespace && let Some(other) = names.flatten().find(|name| ***name != *object.key.namespace) {
        let message = format!(
            "can't access namespace '{other}' from '{}', cross-namespace references have been blocked",
            object.key.namespace
        );
        return Err(Blocked::refused("AccessDenied", message));
    }
    Ok(())
}

/// The fields of a spec that nothing is done with here: each with the reason of its refusal, and what to do.
fn unsupported(
    object: &Object,
    spec: &KustomizationSpec,
) -> impl Iterator<Item = (&'static str, &'static str)> + use<> {
    let expressions = !spec.health_check_exprs.is_empty() || spec.depends_on.iter().any(|d| d.ready_expr.is_some());
    let ignored = object.raw_spec.get("ignore").is_some_and(|rules| rules.as_array().is_none_or(|r| !r.is_empty()));
    [
        (
            expressions,
            // Not InvalidCELExpression, which says that the expression is wrong.
            "ReconciliationFailed",
            "spec.healthCheckExprs and spec.dependsOn[].readyExpr: CEL expressions are not evaluated in this version; \
             use spec.wait or spec.healthChecks, and dependsOn without readyExpr",
        ),
        (
            spec.is_remote(),
            "ReconciliationFailed",
            "spec.kubeConfig: objects are applied to the cluster of this Kustomization only; run Larder, or Flux's \
             kustomize-controller, in the other cluster",
        ),
        (
            ignored,
            "ReconciliationFailed",
            "spec.ignore: every field of an object is applied here; remove the field, or annotate the objects with \
             kustomize.toolkit.fluxcd.io/ssa: Merge and leave what others set out of them",
        ),
    ]
    .into_iter()
    .filter(|(found, ..)| *found)
    .map(|(_, reason, message)| (reason, message))
}

/// What a spec alone shows of a pass: the source, if it is of a kind that is held here.
///
/// # Errors
/// Why a pass refuses it.
pub fn examine(object: &Object) -> Result<Option<Key>, Vec<String>> {
    let Spec::Kustomization(spec) = &object.spec else { return Ok(None) };
    let mut why: Vec<String> = unsupported(object, spec).map(|(_, message)| message.to_owned()).collect();
    why.extend(refuse_unsupported(spec).err().map(|error| chain(&error)));
    why.extend(spec.post_build().err());
    why.extend(spec.health_checks().err());
    if !why.is_empty() {
        return Err(why);
    }
    Ok(held(&spec.source_ref.kind).map(|_| source_key(object, spec)))
}
