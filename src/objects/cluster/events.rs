//! What people are told: Kubernetes' events, and Flux's notification-controller where there is one.
//!
//! Nobody waits for either: they are sent one after another, and where more than [`QUEUE`] wait, the newest is dropped.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use http::{Method, Request, header};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{net::TcpStream, sync::mpsc};

use super::MANAGER;
use crate::{
    class::chain,
    objects::{
        Event, Kind, Object, Status,
        api::{Calls, Identity, segment},
        condition::rfc3339,
    },
};

/// Events that wait.
const QUEUE: usize = 4096;
/// How many are sent at once.
const AT_ONCE: usize = 8;
/// The longest message that Kubernetes' events hold, in bytes.
const MAX_MESSAGE: usize = 1024;
/// How long the notification-controller may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// What annotations of an object begin with that go with its events.
const FORWARDED: &str = "event.toolkit.fluxcd.io/";

/// Flux's notification-controller: `http://HOST[:PORT][/PATH]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notifications {
    host: String,
    port: u16,
    path: String,
}

impl Notifications {
    async fn post(&self, body: &Value) -> Result<u16, Box<dyn std::error::Error + Send + Sync>> {
        // A name in a cluster may end in a dot, and an address may stand in brackets.
        let host = self.host.trim_end_matches('.').trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((host, self.port)).await?;
        let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::post(&self.path)
            .header(header::HOST, format!("{}:{}", self.host, self.port))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(bytes::Bytes::from(body.to_string())))?;
        let answer = send.send_request(request).await;
        connection.abort();
        Ok(answer?.status().as_u16())
    }
}

impl FromStr for Notifications {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('@') {
            // What stands before the @ is not repeated.
            return Err("the notification-controller takes no user or password; write http://HOST[:PORT][/PATH]".into());
        }
        let wrong =
            || format!("{text:?} is not http://HOST[:PORT][/PATH], the address of Flux's notification-controller");
        let uri: http::Uri = text.parse().map_err(|_| wrong())?;
        let (Some("http"), Some(host)) = (uri.scheme_str(), uri.host()) else { return Err(wrong()) };
        // A port that is none is taken for a part of no host by nobody else.
        let port = match uri.authority().map_or("", |a| &a.as_str()[host.len()..]) {
            "" => 80,
            port => port[1..].parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?,
        };
        if host.is_empty() || uri.query().is_some() || text.contains('#') {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port, path: uri.path().to_owned() })
    }
}

impl fmt::Display for Notifications {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}{}", self.host, self.port, self.path)
    }
}

/// Takes events.
pub struct EventSink {
    queue: mpsc::Sender<Told>,
}

struct Told {
    namespace: String,
    event: Value,
    notifications: Vec<Value>,
}

/// Where events go, and what sends them.
pub fn sink(
    calls: Calls,
    notifications: Option<Notifications>,
    instance: &str,
) -> (EventSink, impl Future<Output = ()> + Send + 'static) {
    let (queue, mut waiting) = mpsc::channel::<Told>(QUEUE);
    let instance = instance.to_owned();
    let sending = async move {
        let places = std::sync::Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
        let mut under_way = tokio::task::JoinSet::new();
        while let Some(mut told) = waiting.recv().await {
            while under_way.try_join_next().is_some() {}
            let (calls, notifications) = (calls.clone(), notifications.clone());
            for event in std::iter::once(&mut told.event).chain(&mut told.notifications) {
                event["reportingInstance"] = instance.clone().into();
            }
            let Ok(place) = std::sync::Arc::clone(&places).acquire_owned().await else { return };
            under_way.spawn(async move {
                let _place = place;
                send(&calls, notifications.as_ref(), told).await;
            });
        }
    };
    (EventSink { queue }, sending)
}

async fn send(calls: &Calls, notifications: Option<&Notifications>, told: Told) {
    let path = format!("/api/v1/namespaces/{}/events", segment(&told.namespace));
    let headers = [(header::ACCEPT, "application/json"), (header::CONTENT_TYPE, "application/json")];
    let body = told.event.to_string();
    match calls.call(&Method::POST, &path, &Identity::default(), &headers, body.as_bytes()).await {
        // Sent twice: the first one came through.
        Err(error) if !error.is_conflict() => tracing::debug!(error = chain(&error), "an event could not be sent"),
        _ => {}
    }
    let Some(notifications) = notifications else { return };
    for notification in &told.notifications {
        match tokio::time::timeout(TIMEOUT, notifications.post(notification)).await {
            // 429: it has the same one already.
            Ok(Ok(200..300 | 429)) => {}
            Ok(Ok(status)) => tracing::warn!(status, "the notification-controller refused an event"),
            Ok(Err(error)) => tracing::warn!(error = chain(&*error), "the notification-controller cannot be reached"),
            Err(_) => tracing::warn!("the notification-controller does not answer"),
        }
    }
}

impl EventSink {
    /// Sends an event about an object whose status is this.
    pub fn send(&self, object: &Object, status: Option<&Status>, event: Event) {
        let (key, now) = (&object.key, Timestamp::now());
        if event.normal {
            tracing::info!(%key, reason = event.reason, "{}", event.message);
        } else {
            let class = event.class.map(tracing::field::display);
            tracing::warn!(%key, reason = event.reason, class, "{}", event.message);
        }
        let annotations = annotations(object, status, event.origin);
        let involved = json!({
            "apiVersion": format!("{}/v1", key.kind.group()), "kind": key.kind.name(),
            "namespace": &*key.namespace, "name": &*key.name, "uid": object.metadata.uid,
        });
        let mut name = key.name.to_string();
        name.truncate(230);
        let time = rfc3339(now);
        let kind = if event.normal { "Normal" } else { "Warning" };
        let core = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {
                "name": format!("{name}.{:016x}", now.as_nanosecond() as u64 ^ u64::from(fastrand::u16(..))),
                "namespace": &*key.namespace, "annotations": annotations,
            },
            "involvedObject": involved, "type": kind, "reason": event.reason, "message": short(&event.message),
            "firstTimestamp": time, "lastTimestamp": time, "count": 1,
            "source": {"component": MANAGER}, "reportingComponent": MANAGER,
        });
        let notification = json!({
            "involvedObject": involved, "severity": if event.normal { "info" } else { "error" }, "timestamp": time,
            "message": event.message, "reason": event.reason, "metadata": annotations, "reportingController": MANAGER,
        });
        let mut notifications = vec![notification];
        let group = key.kind.group();
        if event.normal && annotations.contains_key(&format!("{group}/originRevision")) {
            // Of what went well a commit's status is set only by an event that is for commits alone, and who tells people
            // passes over such a one.
            let mut of_commit = notifications[0].clone();
            of_commit["message"] = format!("Reconciliation finished: {}", event.message).into();
            of_commit["metadata"][format!("{group}/commit_status")] = "update".into();
            notifications.push(of_commit);
        }
        let told = Told { namespace: key.namespace.to_string(), event: core, notifications };
        if self.queue.try_send(told).is_err() {
            tracing::warn!(%key, "too many events wait; this one is not sent");
        }
    }
}

/// What Flux's events carry, by which the notification-controller knows, among others, the commit that it sets a status of.
fn annotations(object: &Object, status: Option<&Status>, origin: Option<String>) -> BTreeMap<String, String> {
    let group = object.key.kind.group();
    let forwarded = object.metadata.annotations.iter().filter(|(name, _)| name.starts_with(FORWARDED));
    let mut all: BTreeMap<String, String> = forwarded.map(|(name, value)| (name.clone(), value.clone())).collect();
    let Some(status) = status else { return all };
    if object.key.kind == Kind::Kustomization {
        let revision = status.last_attempted_revision.as_ref();
        let is_applied = status.last_applied_revision.as_ref() == revision;
        let applied = || status.last_applied_origin_revision.clone().filter(|_| is_applied);
        all.extend(revision.map(|revision| (format!("{group}/revision"), revision.clone())));
        all.extend(origin.or_else(applied).map(|origin| (format!("{group}/originRevision"), origin)));
    } else if let Some(artifact) = &status.artifact {
        all.insert(format!("{group}/revision"), artifact.revision.clone());
        all.insert(format!("{group}/digest"), artifact.digest.to_string());
    }
    all
}

fn short(message: &str) -> &str {
    let mut end = message.len().min(MAX_MESSAGE);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_of_plain_http() {
        let read = |text: &str| text.parse::<Notifications>();
        let good = read("http://notification-controller.flux-system.svc.cluster.local./").unwrap();
        assert_eq!((good.port, good.path.as_str()), (80, "/"));
        assert_eq!(read("http://[::1]:9292/x").unwrap().to_string(), "http://[::1]:9292/x");
        for bad in [
            "",
            "notification-controller",
            "https://n/",
            "http://",
            "/x",
            "garbage",
            "http://n:x",
            "http://n:0",
            "http://n/?a",
            "http://n/#a",
            "http://n:99999",
            "http://:80/",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let refused = read("http://user:canary@n/").unwrap_err();
        assert!(refused.contains("no user or password") && !refused.contains("canary"), "{refused}");
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        assert_eq!(short("a"), "a");
        assert_eq!(short(&"€".repeat(500)).len(), MAX_MESSAGE - MAX_MESSAGE % 3);
    }
}
