//! From an operator's order to the mirror that carries it out.

use serde_json::{Value, json};

use crate::{
    class::{Class, chain},
    mirror::{Mirror, OperateError, Prefetched},
    server::{Order, OrderFailure, orders::What},
};

/// Carries an order out; what came of it.
pub(super) async fn carry_out(mirror: Option<&Mirror>, order: Order) -> Result<Value, OrderFailure> {
    let Order { what, reference } = order;
    let Some(mirror) = mirror else {
        let message = format!("{} is no upstream of this daemon: it mirrors nothing", reference.registry);
        return Err(OrderFailure { class: Class::NotFound, message });
    };
    let failed = |error: OperateError| OrderFailure { class: error.class(), message: chain(&error) };
    let held = |held: Prefetched| {
        serde_json::to_value(held)
            .map_err(|error| OrderFailure { class: Class::Proto, message: format!("cannot write the answer: {error}") })
    };
    match what {
        What::Forget => Ok(json!({ "forgotten": mirror.forget(&reference).await.map_err(failed)? })),
        What::Prefetch(platforms) => held(mirror.prefetch(&reference, &platforms).await.map_err(failed)?),
        What::Pin(platforms) => held(mirror.pin(&reference, &platforms).await.map_err(failed)?),
        What::Unpin => Ok(json!({ "removed": mirror.unpin(&reference).await.map_err(failed)? })),
    }
}
