//! Selectors, and the events of a watch.

use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use serde_json::{Value, json};
use tokio::sync::{broadcast::error::RecvError, mpsc};

use super::{State, failure, objects::Entry, path::Resource};

/// How a watch ends.
#[derive(Clone, Copy, Debug)]
pub enum Break {
    /// With an `ERROR` event that says 410 Gone.
    Gone,
    /// As when its time is over.
    End,
    /// In the middle of an event, by a closed connection.
    Cut,
}

/// What watches are told.
#[derive(Clone, Copy, Debug)]
pub enum News {
    Changed,
    Bookmark,
    Break(Break),
}

/// What a list or watch picks.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    labels: Vec<String>,
    fields: Vec<String>,
}

impl Selector {
    pub fn of(query: &BTreeMap<String, String>) -> Self {
        Self {
            labels: query.get("labelSelector").map_or_else(Vec::new, |text| split(text)),
            fields: query.get("fieldSelector").map_or_else(Vec::new, |text| split(text)),
        }
    }

    pub fn picks(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"][key].as_str();
        let field = |key: &str| {
            let value = key.split('.').try_fold(object, |value, key| value.get(key));
            Some(value.and_then(Value::as_str).unwrap_or_default())
        };
        self.labels.iter().all(|term| holds(term, label)) && self.fields.iter().all(|term| holds(term, field))
    }
}

/// The terms of a selector: commas within parentheses separate nothing.
fn split(text: &str) -> Vec<String> {
    let mut terms = vec![String::new()];
    let mut within = false;
    for c in text.chars() {
        match c {
            ',' if !within => terms.push(String::new()),
            _ => {
                within = (within || c == '(') && c != ')';
                terms.last_mut().expect("one at least").push(c);
            }
        }
    }
    terms.into_iter().map(|term| term.trim().to_owned()).filter(|term| !term.is_empty()).collect()
}

fn holds<'a>(term: &str, value: impl Fn(&str) -> Option<&'a str>) -> bool {
    let set = |text: &str| -> Vec<String> {
        text.trim().trim_start_matches('(').trim_end_matches(')').split(',').map(|one| one.trim().to_owned()).collect()
    };
    if let Some((key, wanted)) = term.split_once(" notin ") {
        return value(key.trim()).is_none_or(|value| !set(wanted).iter().any(|one| one == value));
    }
    if let Some((key, wanted)) = term.split_once(" in ") {
        return value(key.trim()).is_some_and(|value| set(wanted).iter().any(|one| one == value));
    }
    if let Some((key, wanted)) = term.split_once("!=") {
        return value(key.trim()) != Some(wanted.trim());
    }
    if let Some((key, wanted)) = term.split_once('=') {
        return value(key.trim()) == Some(wanted.trim_start_matches('=').trim());
    }
    match term.strip_prefix('!') {
        Some(key) => value(key.trim()).is_none(),
        None => value(term).is_some(),
    }
}

/// A body that is sent as it comes.
pub struct Stream(mpsc::UnboundedReceiver<io::Result<Bytes>>);

impl Body for Stream {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(cx).map(|next| next.map(|bytes| bytes.map(Frame::data)))
    }
}

/// How an object is shown to this client.
pub type Shown = Arc<dyn Fn(&Value) -> Value + Send + Sync>;

/// What a watch asks for.
pub struct Asked {
    pub resource: Resource,
    pub namespace: String,
    pub selector: Selector,
    /// From after this version; none: the objects of now come first.
    pub from: Option<u64>,
    pub bookmarks: bool,
    /// Whether a bookmark tells the end of the objects of now.
    pub initial: bool,
    pub end: Duration,
    pub show: Shown,
}

/// The last version that is forgotten, where the watch wants what came before it.
pub fn too_old(compacted: u64, from: Option<u64>) -> Option<Value> {
    let from = from.filter(|from| *from < compacted)?;
    Some(failure(410, "Expired", &format!("too old resource version: {from} ({compacted})")))
}

/// Starts a watch.
pub fn start(state: Arc<State>, asked: Asked) -> Stream {
    let (send, receive) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let plural = asked.resource.plural.clone();
        *state.content().watching.entry(plural.clone()).or_default() += 1;
        // An error is a client that is gone.
        let _ = tokio::time::timeout(asked.end, run(&state, &asked, &send)).await;
        *state.content().watching.entry(plural).or_default() -= 1;
    });
    Stream(receive)
}

type Sender = mpsc::UnboundedSender<io::Result<Bytes>>;

async fn run(state: &State, asked: &Asked, send: &Sender) -> Option<()> {
    let mut news = state.news.subscribe();
    let event = |kind: &str, object: Value| {
        let line = format!("{}\n", json!({ "type": kind, "object": object }));
        send.send(Ok(line.into())).ok()
    };
    let bookmark = |version: u64, initial: bool| {
        let mut metadata = json!({ "resourceVersion": version.to_string() });
        if initial {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let r = &asked.resource;
        event("BOOKMARK", (asked.show)(&json!({ "apiVersion": r.api_version(), "kind": r.kind, "metadata": metadata })))
    };
    let mut seen = match asked.from {
        Some(version) => version,
        None => {
            let (now, version) = {
                let content = state.content();
                let all = content.objects.all(&asked.resource, &asked.namespace);
                let now: Vec<Value> =
                    all.filter(|object| asked.selector.picks(object)).map(|o| (asked.show)(o)).collect();
                (now, content.objects.version)
            };
            for object in now {
                event("ADDED", object)?;
            }
            if asked.initial {
                bookmark(version, true)?;
            }
            version
        }
    };
    loop {
        let (events, version) = {
            let content = state.content();
            let new = content.objects.log.iter().filter(|entry| entry.version > seen);
            let events: Vec<_> = new.filter_map(|entry| told(asked, entry)).collect();
            (events, content.objects.version)
        };
        for (kind, object) in events {
            event(kind, object)?;
        }
        seen = version;
        tokio::select! {
            () = send.closed() => return None,
            heard = news.recv() => match heard {
                Ok(News::Changed) | Err(RecvError::Lagged(_)) => {}
                Ok(News::Bookmark) if asked.bookmarks => bookmark(seen, false)?,
                Ok(News::Bookmark) => {}
                Ok(News::Break(Break::Gone)) => {
                    event("ERROR", failure(410, "Expired", "too old resource version"))?;
                    return None;
                }
                Ok(News::Break(Break::End)) | Err(RecvError::Closed) => return None,
                Ok(News::Break(Break::Cut)) => {
                    let _ = send.send(Ok(Bytes::from_static(b"{\"type\":\"MOD")));
                    let _ = send.send(Err(io::Error::other("the test cut it")));
                    return None;
                }
            },
        }
    }
}

/// The event that a change is to this watch: what it did not pick before is new to it.
fn told(asked: &Asked, entry: &Entry) -> Option<(&'static str, Value)> {
    let (group, plural, namespace, _) = &entry.id;
    if *group != asked.resource.group
        || *plural != asked.resource.plural
        || !(asked.namespace.is_empty() || asked.namespace == *namespace)
    {
        return None;
    }
    let picked = |object: &Option<Value>| object.as_ref().is_some_and(|object| asked.selector.picks(object));
    match (picked(&entry.before), picked(&entry.after)) {
        (false, false) => None,
        (false, true) => Some(("ADDED", (asked.show)(entry.after.as_ref()?))),
        (true, true) => Some(("MODIFIED", (asked.show)(entry.after.as_ref()?))),
        (true, false) => {
            let mut last = entry.before.clone()?;
            last["metadata"]["resourceVersion"] = json!(entry.version.to_string());
            Some(("DELETED", (asked.show)(&last)))
        }
    }
}

#[test]
fn selectors_pick_as_kubernetes_says() {
    let object = json!({ "metadata": { "name": "a", "labels": { "x": "1", "y/z": "2" } }, "type": "Opaque" });
    let rows = [
        ("x=1", "", true),
        ("x==1,y/z=2", "", true),
        ("x=2", "", false),
        ("x!=2,w!=1", "", true),
        ("x in (1, 2),w notin (1,2)", "", true),
        ("x notin (1)", "", false),
        ("x,!w", "", true),
        ("w", "", false),
        ("", "metadata.name=a", true),
        ("", "metadata.name!=a", false),
        ("", "type=Opaque,metadata.namespace=", true),
    ];
    for (labels, fields, picked) in rows {
        let query = [("labelSelector", labels), ("fieldSelector", fields)];
        let query = query.into_iter().map(|(key, text)| (key.to_owned(), text.to_owned())).collect();
        assert_eq!(Selector::of(&query).picks(&object), picked, "{labels} {fields}");
    }
}
