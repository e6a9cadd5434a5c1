//! Calls to the API server: who calls, what comes back, which failures are tried again.

use std::{fmt, sync::Arc, time::Duration};

use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::sync::{Semaphore, watch};

use super::Leadership;
use crate::class::Class;

/// How many calls are under way at once.
const CONCURRENCY: usize = 32;
/// How long a call may take, once it is its turn: as long as an API server itself gives a request.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How often a call is made that fails for a while.
const ATTEMPTS: u32 = 4;
/// How long to wait at least where the server says that it is too much at the moment: what priority and fairness asks for.
const TOO_MANY: Duration = Duration::from_secs(1);
/// The largest answer that is read: a page of metadata is about 2 MB.
const MAX_ANSWER: usize = 64 << 20;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The server says no.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        code: u16,
        /// Kubernetes' word for it; may be empty.
        reason: String,
        /// Its sentence.
        message: String,
    },
    /// No answer.
    #[error("the API server cannot be reached")]
    Away(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It was a write, and another replica leads.
    #[error("another replica leads now")]
    NotLeading,
    /// An answer that is none.
    #[error("the API server's answer cannot be read")]
    Unreadable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl CallError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        match self {
            Self::Refused { code: 401 | 403, .. } => Class::Auth,
            Self::Refused { code: 404 | 410, .. } => Class::NotFound,
            Self::Refused { code: 429, .. } => Class::Rate,
            Self::Refused { .. } if self.is_misfit() => Class::Layer,
            Self::Refused { code: 500.., .. } | Self::Away(_) | Self::NotLeading => Class::Net,
            Self::Refused { .. } => Class::Layer,
            Self::Unreadable(_) => Class::Proto,
        }
    }

    /// Whether there is no such object, or nothing like it.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code: 404, .. })
    }

    /// Whether the server has no such path, in contrast to no such object at it: the kind is not served, or not in that version
    /// or scope. It says so without a word of its own, or in the words of a kind that it never knew.
    pub fn is_unserved(&self) -> bool {
        matches!(self, Self::Refused { code: 404, reason, message }
            if reason.is_empty() || message.contains("the server could not find the requested resource"))
    }

    /// Whether the object changed meanwhile.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { code: 409, .. })
    }

    /// Whether the caller may not do this.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Refused { code: 403, .. })
    }

    /// Whether a field cannot be changed, as kubectl and Flux judge it: by the code, or by the words of a webhook.
    pub fn is_immutable(&self) -> bool {
        match self {
            Self::Refused { code, message, .. } => {
                matches!(code, 409 | 422) || message.contains("is immutable") || message.contains("immutable field")
            }
            _ => false,
        }
    }

    /// Whether the same call may come through a moment later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Refused { code: 429 | 500 | 502 | 503 | 504, .. } | Self::Away(_)) && !self.is_misfit()
    }

    /// Whether an object does not fit the schema of its kind: server-side apply says so with a 500 (apimachinery,
    /// `managedfields`).
    fn is_misfit(&self) -> bool {
        matches!(self, Self::Refused { message, .. } if message.contains("failed to create typed patch object"))
    }

    /// The same without the values that it quotes, for an object whose values nobody may see.
    pub fn without_values(self) -> Self {
        match self {
            Self::Refused { code, reason, message } => {
                let kept = message.split("got &value").next().unwrap_or_default().trim_end_matches([' ', ',']);
                let message = if kept.len() < message.len() { kept.to_owned() } else { message };
                Self::Refused { code, reason, message }
            }
            other => other,
        }
    }

    /// Its kind alone: a message may quote what a Secret holds.
    fn brief(&self) -> String {
        match self {
            Self::Refused { code, reason, .. } => format!("{code} {reason}"),
            other => crate::class::chain(other),
        }
    }
}

/// As whom a call is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Identity(Option<Arc<str>>);

impl Identity {
    /// A ServiceAccount, or, without one, Larder itself.
    pub fn of(namespace: &str, account: Option<&str>) -> Self {
        Self(account.map(|name| format!("system:serviceaccount:{namespace}:{name}").into()))
    }

    /// Whether it is Larder itself.
    pub fn is_own(&self) -> bool {
        self.0.is_none()
    }
}

/// A name in a path: RBAC names hold colons and more.
pub fn segment(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The way to the API server; clones share it.
#[derive(Clone)]
pub struct Calls {
    client: kube::Client,
    permits: Arc<Semaphore>,
    /// Who leads, where only the one who does may write.
    leadership: Option<watch::Receiver<Leadership>>,
}

impl fmt::Debug for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Calls")
    }
}

impl Calls {
    /// Calls with this client. It should have no rate limit of its own: the server's priority and fairness decides.
    pub fn new(client: kube::Client) -> Self {
        Self { client, permits: Arc::new(Semaphore::new(CONCURRENCY)), leadership: None }
    }

    /// The same way for who writes only as long as it leads: what is on its way when that ends is given up, and nothing is
    /// sent after it. A write that comes late would undo what the one who leads by then has written.
    pub fn while_leading(&self, leadership: watch::Receiver<Leadership>) -> Self {
        Self { leadership: Some(leadership), ..self.clone() }
    }

    /// One call, made again while it fails for a while. Everything that is called through here may be made twice.
    pub async fn call(
        &self,
        method: &Method,
        path: &str,
        who: &Identity,
        headers: &[(header::HeaderName, &str)],
        body: &[u8],
    ) -> Result<(StatusCode, Vec<u8>), CallError> {
        let mut delay = Duration::from_millis(200);
        let mut attempt = 1;
        loop {
            let result = self.once(method, path, who, headers, body).await;
            match result {
                Err(error) if error.is_transient() && attempt < ATTEMPTS => {
                    if matches!(error, CallError::Refused { code: 429, .. }) {
                        delay = delay.max(TOO_MANY);
                    }
                    tracing::debug!(%method, path, error = error.brief(), "a call to the API server is made again");
                }
                other => return other,
            }
            tokio::time::sleep(delay).await;
            delay *= 3;
            attempt += 1;
        }
    }

    /// Returns once this process may not write any more, if it is a write.
    async fn lost(&self, method: &Method) {
        if let Some(leadership) = self.leadership.as_ref().filter(|_| *method != Method::GET) {
            let mut leadership = leadership.clone();
            if leadership.wait_for(|l| *l != Leadership::Leading).await.is_ok() {
                return;
            }
        }
        std::future::pending().await
    }

    async fn once(
        &self,
        method: &Method,
        path: &str,
        who: &Identity,
        headers: &[(header::HeaderName, &str)],
        body: &[u8],
    ) -> Result<(StatusCode, Vec<u8>), CallError> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        if let Some(user) = &who.0 {
            request = request.header("Impersonate-User", &**user);
        }
        let request = request.body(Body::from(body.to_vec())).map_err(|e| CallError::Unreadable(e.into()))?;
        // Who waits in a long line has not failed.
        let Ok(_permit) = self.permits.acquire().await else { unreachable!("the semaphore is never closed") };
        let exchange = async {
            let response = self.client.send(request).await.map_err(|e| CallError::Away(e.into()))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(CallError::Away)?;
            Ok((status, body.to_bytes().to_vec()))
        };
        let exchange = tokio::time::timeout(TIMEOUT, exchange);
        let (status, body) = tokio::select! {
            biased;
            () = self.lost(method) => return Err(CallError::NotLeading),
            done = exchange => done.map_err(|e| CallError::Away(e.into()))??,
        };
        if status.is_success() { Ok((status, body)) } else { Err(refusal(status, &body)) }
    }
}

/// An answer's body.
pub fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, CallError> {
    serde_json::from_slice(body).map_err(|e| CallError::Unreadable(e.into()))
}

/// A `Status`, or whatever a proxy says.
fn refusal(status: StatusCode, body: &[u8]) -> CallError {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Said {
        reason: String,
        message: String,
    }
    let said: Said = serde_json::from_slice(body).unwrap_or_default();
    let message = if said.message.is_empty() { status.to_string() } else { said.message };
    CallError::Refused { code: status.as_u16(), reason: said.reason, message }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use serde_json::json;

    use super::*;

    #[test]
    fn refusals_are_judged_by_code_and_words() {
        let refused = |code: u16, message: &str| {
            let body = json!({"reason": "R", "message": message}).to_string();
            refusal(StatusCode::from_u16(code).unwrap(), body.as_bytes())
        };
        for (code, message, immutable, class) in [
            (422, "spec.selector: Invalid value: field is immutable", true, Class::Layer),
            (409, "the object has been modified", true, Class::Layer),
            (400, "admission webhook denied: immutable field", true, Class::Layer),
            (400, "unknown field", false, Class::Layer),
            (403, "forbidden", false, Class::Auth),
            (404, "not found", false, Class::NotFound),
            (429, "too many", false, Class::Rate),
            (503, "not ready", false, Class::Net),
            (500, "etcdserver: leader changed", false, Class::Net),
            (
                500,
                "failed to create typed patch object (n/a; v1, Kind=ConfigMap): .x: field not declared",
                false,
                Class::Layer,
            ),
        ] {
            let error = refused(code, message);
            assert_eq!((error.is_immutable(), error.class()), (immutable, class), "{error}");
            assert_eq!(error.to_string(), message);
            assert_eq!(error.is_transient(), matches!(class, Class::Net | Class::Rate), "{error}");
        }
        assert_eq!(refusal(StatusCode::BAD_GATEWAY, b"<html>").to_string(), "502 Bad Gateway");
        for (code, body, unserved) in [
            (404, "404 page not found\n", true),
            (404, r#"{"reason": "NotFound", "message": "the server could not find the requested resource"}"#, true),
            (404, r#"{"reason": "NotFound", "message": "things.example.com \"a\" not found"}"#, false),
            (503, "404 page not found\n", false),
        ] {
            let error = refusal(StatusCode::from_u16(code).unwrap(), body.as_bytes());
            assert_eq!(error.is_unserved(), unserved, "{body}");
        }
    }

    #[test]
    fn values_go_from_a_message_that_quotes_them() {
        let refused =
            |message: &str| CallError::Refused { code: 500, reason: String::new(), message: message.to_owned() };
        let quoted = refused(".stringData.p: expected string, got &value.valueUnstructured{Value:12345}");
        assert_eq!(quoted.without_values().to_string(), ".stringData.p: expected string");
        assert_eq!(refused("is immutable").without_values().to_string(), "is immutable");
    }

    #[tokio::test]
    async fn who_does_not_lead_any_more_sends_no_write() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let sent = Arc::new(AtomicUsize::new(0));
        let (leading, leadership) = watch::channel(Leadership::Leading);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        // The first call is never answered, each other at once.
        let counted = Arc::clone(&sent);
        tokio::spawn(async move {
            let mut unanswered = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
                if counted.fetch_add(1, SeqCst) == 0 {
                    unanswered.push(stream);
                    continue;
                }
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
                stream.write_all(answer).await.unwrap();
            }
        });
        let client = kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
        let calls = Calls::new(client).while_leading(leadership);
        let call = |method: Method| {
            let calls = calls.clone();
            async move { calls.call(&method, "/x", &Identity::default(), &[], b"{}").await }
        };
        let (under_way, ()) = tokio::join!(call(Method::PATCH), async {
            while sent.load(SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
            leading.send_replace(Leadership::Leaderless);
        });
        assert!(matches!(under_way, Err(CallError::NotLeading)), "{under_way:?}");
        assert!(matches!(call(Method::DELETE).await, Err(CallError::NotLeading)));
        assert!(call(Method::GET).await.is_ok());
        leading.send_replace(Leadership::Leading);
        assert!(call(Method::DELETE).await.is_ok());
        assert_eq!(sent.load(SeqCst), 3);
    }

    #[test]
    fn an_account_is_a_user_of_its_namespace() {
        assert!(Identity::of("n", None).is_own());
        assert_eq!(Identity::of("n", Some("a")).0.as_deref(), Some("system:serviceaccount:n:a"));
    }
}
