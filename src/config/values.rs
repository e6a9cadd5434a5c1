//! The typed values of settings: each is parsed from a text, whether that comes from a flag, a variable or a file.

use std::{fmt, net::IpAddr, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

use crate::{
    objects::{Kind, cluster::Notifications},
    server::registry::access::{Pattern, Subject},
};

/// A text that parses itself: `FromStr` for flags, `Deserialize` for the file, one and the same.
macro_rules! from_text {
    ($($type:ty),*) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
from_text!(
    Address,
    Advertise,
    Cidr,
    FeatureGate,
    HostPort,
    MirrorListen,
    Notifications,
    Pattern,
    ReplicaAddress,
    Subject,
    UpstreamFlag,
    WatchKind
);

/// Splits `HOST:PORT`, `[v6]:PORT`, `HOST`; the host without brackets.
fn split_host_port(text: &str) -> Result<(String, Option<u16>), String> {
    if text.contains('@') {
        // What stands before the @ is not repeated.
        return Err("a host and port here must not have a user or password before them".into());
    }
    let wrong = || format!("{text:?} is not HOST or HOST:PORT");
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(wrong)?;
        host.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
        match rest {
            "" => (host, None),
            _ => (host, Some(rest.strip_prefix(':').ok_or_else(wrong)?)),
        }
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let port = port.map(|p| p.parse::<u16>().map_err(|_| wrong())).transpose()?;
    // An IPv6 address came through its own parser above; elsewhere a colon is no part of a host.
    let good = !host.is_empty()
        && host.len() <= 253
        && (text.starts_with('[')
            || host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')));
    if good { Ok((host.to_ascii_lowercase(), port)) } else { Err(wrong()) }
}

/// Writes a host back, an IPv6 address in brackets.
fn write_host(f: &mut fmt::Formatter<'_>, host: &str) -> fmt::Result {
    if host.contains(':') { write!(f, "[{host}]") } else { f.write_str(host) }
}

/// Where a listener listens: HOST:PORT; port 0 is any free one, an empty host is every address.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub struct Address {
    /// A name or an IP address without brackets.
    pub host: String,
    /// 0 is any free one.
    pub port: u16,
}

impl Address {
    /// From its parts.
    pub fn new(host: &str, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    /// Whether a listener here leaves none for one there. Port 0 is another one each time.
    pub(super) fn takes(&self, other: &Self) -> bool {
        let all = |address: &Self| matches!(address.host.as_str(), "" | "0.0.0.0" | "::");
        self.port != 0 && self.port == other.port && (self.host == other.host || all(self) || all(other))
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |_| format!("{text:?} is not an address: write HOST:PORT, such as 127.0.0.1:5000 or [::]:0");
        let whole = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
        match split_host_port(&whole).map_err(wrong)? {
            (host, Some(port)) => Ok(Self { host, port }),
            (_, None) => Err(wrong(String::new())),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_host(f, &self.host)?;
        write!(f, ":{}", self.port)
    }
}

/// A registry as it is written in references: HOST or HOST:PORT, lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, JsonSchema)]
#[schemars(with = "String")]
pub struct HostPort {
    /// A name or an IP address without brackets.
    pub host: String,
    /// The port, if it is said.
    pub port: Option<u16>,
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, port) = split_host_port(text)?;
        Ok(Self { host, port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_host(f, &self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// Where a replica's artifacts are: HOST:PORT.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub struct ReplicaAddress(HostPort);

impl FromStr for ReplicaAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address: HostPort = text.parse()?;
        match address.port {
            Some(1..) => Ok(Self(address)),
            _ => {
                Err(format!("{text:?} is not HOST:PORT, where the other replicas reach this one, as in 10.0.0.7:9790"))
            }
        }
    }
}

impl fmt::Display for ReplicaAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A kind that is watched, by its name, plural or short name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub struct WatchKind(pub Kind);

impl FromStr for WatchKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Kind::find(text).map(Self).ok_or_else(|| format!("{text:?} is none of {}", Kind::names()))
    }
}

/// How the artifact listener is named in statuses: HOST, HOST:PORT, or a whole http(s) URL.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub enum Advertise {
    /// Becomes `http://HOST[:PORT]`.
    Host(HostPort),
    /// Taken as it is.
    Url(String),
}

impl Advertise {
    /// The base of all artifact URLs, without a slash at its end.
    pub fn base(&self) -> String {
        match self {
            Self::Host(host) => format!("http://{host}"),
            Self::Url(url) => url.trim_end_matches('/').into(),
        }
    }
}

impl FromStr for Advertise {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("http://") || text.starts_with("https://") {
            return web_url(text).map(Self::Url);
        }
        let wrong = |_| format!("{text:?} is neither HOST, HOST:PORT nor an http(s) URL");
        text.parse().map(Self::Host).map_err(wrong)
    }
}

/// An http(s) URL with a host, and without user, password, query and fragment.
fn web_url(text: &str) -> Result<String, String> {
    let uri: http::Uri = text.parse().map_err(|_| "not a URL".to_string())?;
    let authority = uri.authority().ok_or("a URL without a host")?;
    if authority.as_str().contains('@') {
        // What stands before the @ is not repeated.
        return Err("a URL here must not hold a user or password".into());
    }
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.query().is_some() || text.contains('#') {
        return Err(format!("{text:?} is not a plain http(s) URL"));
    }
    Ok(text.into())
}

/// `HOST=URL`: the upstream for what `ns=HOST` asks for.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub struct UpstreamFlag {
    /// What `ns=` carries.
    pub host: HostPort,
    /// Where to ask.
    pub url: String,
}

impl FromStr for UpstreamFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, url) =
            text.split_once('=').ok_or("write HOST=URL, such as docker.io=https://registry-1.docker.io")?;
        Ok(Self { host: host.parse()?, url: web_url(url)? })
    }
}

/// `ADDR=HOST`: a listener for one upstream.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub struct MirrorListen {
    /// Where.
    pub address: Address,
    /// For which upstream.
    pub host: HostPort,
}

impl FromStr for MirrorListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, host) = text.split_once('=').ok_or("write ADDR=HOST, such as 127.0.0.1:5001=docker.io")?;
        Ok(Self { address: address.parse()?, host: host.parse()? })
    }
}

/// A feature that is off unless it is switched on. The names are Flux's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Objects may log in at a cloud as a ServiceAccount of their namespace.
    ObjectLevelWorkloadIdentity,
}

impl Feature {
    const ALL: [Self; 1] = [Self::ObjectLevelWorkloadIdentity];

    const fn name(self) -> &'static str {
        match self {
            Self::ObjectLevelWorkloadIdentity => "ObjectLevelWorkloadIdentity",
        }
    }
}

/// `NAME=BOOL`: switches a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub struct FeatureGate {
    /// Which.
    pub feature: Feature,
    /// On or off.
    pub on: bool,
}

impl FromStr for FeatureGate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, on) = text.split_once('=').ok_or("write NAME=true or NAME=false")?;
        let feature = Feature::ALL.into_iter().find(|feature| feature.name() == name.trim());
        let known = || Feature::ALL.map(Feature::name).join(", ");
        let feature = feature.ok_or_else(|| format!("{name:?} is no feature gate here; there is {}", known()))?;
        let on = on.trim().to_ascii_lowercase().parse().map_err(|_| format!("{name} is true or false, not {on:?}"))?;
        Ok(Self { feature, on })
    }
}

/// A range of addresses: `10.0.0.0/8`, `fd00::/8`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// Whether an address is in it. An IPv4 address written as IPv6 (`::ffff:10.0.0.1`) counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(a)) => {
                let drop = 32 - u32::from(self.prefix);
                u32::from(net).checked_shr(drop) == u32::from(a).checked_shr(drop)
            }
            (IpAddr::V6(net), IpAddr::V6(a)) => {
                let drop = 128 - u32::from(self.prefix);
                u128::from(net).checked_shr(drop) == u128::from(a).checked_shr(drop)
            }
            _ => false,
        }
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a range of addresses: write ADDRESS/BITS, such as 10.0.0.0/8");
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(bits), |p| p.parse().map_err(|_| wrong()))?;
        if prefix > bits { Err(wrong()) } else { Ok(Self { address, prefix }) }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// A size: bytes, or with a unit of 1000 (`kB`, `MB`, `GB`, `TB`) or 1024 (`Ki`, `Mi`, `Gi`, `Ti`, a `B` may follow).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a size: write bytes or a unit, such as 10GiB, 10Gi or 500MB");
        let trimmed = text.trim();
        let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let unit: u64 = match trimmed[end..].trim_start() {
            "" | "B" => 1,
            "k" | "kB" | "K" | "KB" => 1_000,
            "M" | "MB" => 1_000_000,
            "G" | "GB" => 1_000_000_000,
            "T" | "TB" => 1_000_000_000_000,
            "Ki" | "KiB" => 1 << 10,
            "Mi" | "MiB" => 1 << 20,
            "Gi" | "GiB" => 1 << 30,
            "Ti" | "TiB" => 1 << 40,
            _ => return Err(wrong()),
        };
        let number = &trimmed[..end];
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(unit).map(Self).ok_or_else(wrong);
        }
        let part: f64 = number.parse().map_err(|_| wrong())?;
        let bytes = part * unit as f64;
        if bytes.is_finite() && bytes < u64::MAX as f64 { Ok(Self(bytes as u64)) } else { Err(wrong()) }
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as 10GiB, or bytes")
            }

            fn visit_u64<E>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "Bytes, or a number with a unit: 10GiB, 10Gi, 500MB.",
            "type": ["integer", "string"],
            "minimum": 0,
        })
    }
}
