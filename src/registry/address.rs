//! Which addresses may be contacted (contract section 2, "Addresses").
//!
//! Link-local, metadata, unspecified, multicast addresses and the API server are never contacted (the one of a KUBECONFIG
//! by host and port, as a registry may be beside it); loopback only with permission; private ranges for what a spec names,
//! and for a redirect or a token service only from a private origin. A login reaches the metadata addresses that give a
//! workload its identity ([`gives_identity`]), and nobody else does. `--egress-deny` and `--egress-allow` come first, in
//! this order. An address that carries another one (IPv4-mapped, NAT64, 6to4) is judged by both.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{error::RegistryError, target::split_authority};
use crate::oci::Registry;

/// A network in CIDR notation; a bare address is itself alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.trim().parse().ok()?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => longest,
            Some(prefix) => prefix.trim().parse().ok().filter(|p| *p <= longest)?,
        };
        Some(Self { address, prefix })
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(net), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                net.to_bits() & mask == address.to_bits() & mask
            }
            (IpAddr::V6(net), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                net.to_bits() & mask == address.to_bits() & mask
            }
            _ => false,
        }
    }
}

/// The rules of an installation.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    allow: Vec<Cidr>,
    deny: Vec<Cidr>,
    /// The API servers.
    api_servers: Vec<ApiServer>,
}

/// Where an API server is.
#[derive(Clone, Debug)]
struct ApiServer {
    /// An address, or a name.
    host: String,
    /// Without one, whatever port: a Service's address is nothing else's.
    port: Option<u16>,
}

impl ApiServer {
    fn is_at(&self, port: u16) -> bool {
        self.port.is_none_or(|own| own == port)
    }

    fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

/// What a contact may do beyond the rules for everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Permission {
    /// Loopback.
    pub(super) loopback: bool,
    /// Private ranges: for what a spec names, and from a private origin.
    pub(super) private: bool,
    /// Where clouds give a workload its identity: for a login alone.
    pub(super) identity: bool,
}

impl Rules {
    pub(super) fn new(allow: &[String], deny: &[String], api_servers: &[String]) -> Result<Self, RegistryError> {
        let parse = |what: &str, list: &[String]| {
            list.iter()
                .map(|text| {
                    Cidr::parse(text).ok_or_else(|| RegistryError::Config {
                        what: format!("--egress-{what} takes a CIDR such as 10.0.0.0/8, not {text:?}"),
                    })
                })
                .collect::<Result<Vec<_>, _>>()
        };
        let server = |text: &String| {
            let (host, port) = split_authority(text, true)?;
            let says_port = text.ends_with(&format!(":{port}"));
            Some(ApiServer { host: host.trim_end_matches('.').to_owned(), port: says_port.then_some(port) })
        };
        let api_servers = api_servers.iter().filter_map(server).collect();
        Ok(Self { allow: parse("allow", allow)?, deny: parse("deny", deny)?, api_servers })
    }

    /// Whether `address` may be contacted at `port`; else why not. `api`: where the names of API servers led just now.
    pub(super) fn check(
        &self,
        address: IpAddr,
        port: u16,
        permission: Permission,
        api: &[IpAddr],
    ) -> Result<(), &'static str> {
        let mapped = carried(address);
        let listed = |list: &[Cidr]| list.iter().any(|c| c.contains(address) || mapped.is_some_and(|m| c.contains(m)));
        if listed(&self.deny) {
            return Err("--egress-deny forbids this address");
        }
        if listed(&self.allow) || (permission.identity && gives_identity(address)) {
            return Ok(());
        }
        for address in [Some(address), mapped].into_iter().flatten() {
            // Who listens on one loopback address mostly does on all.
            let is_it = |api: IpAddr| api == address || (api.is_loopback() && address.is_loopback());
            let mut literal = self.api_servers.iter().filter(|s| s.is_at(port)).filter_map(ApiServer::address);
            if literal.any(is_it) || api.iter().copied().any(is_it) {
                return Err(
                    "the address of the Kubernetes API server is never contacted (--egress-allow may permit it)",
                );
            }
            Self::check_kind(address, permission)?;
        }
        Ok(())
    }

    fn check_kind(address: IpAddr, permission: Permission) -> Result<(), &'static str> {
        match kind(address) {
            Kind::Public => Ok(()),
            Kind::Forbidden(why) => Err(why),
            Kind::Loopback if permission.loopback => Ok(()),
            Kind::Loopback => Err(
                "loopback is contacted only where the spec names a loopback address literally (--egress-allow may permit it)",
            ),
            Kind::Private if permission.private => Ok(()),
            Kind::Private => Err("a public registry must not lead to a private address (--egress-allow may permit it)"),
        }
    }

    /// The names of API servers that are asked at `port`: where they lead is to be known before anything else is asked there.
    pub(super) fn api_names(&self, port: u16) -> impl Iterator<Item = &str> {
        self.api_servers.iter().filter(move |s| s.is_at(port) && s.address().is_none()).map(|s| s.host.as_str())
    }

    /// Whether a name is an API server's, however it resolves here.
    pub(super) fn names_api_server(&self, host: &str, port: u16) -> bool {
        let host = host.trim_end_matches('.');
        self.api_servers.iter().any(|server| server.host == host && server.is_at(port))
            || host == "kubernetes"
            || host == "kubernetes.default"
            || host == "kubernetes.default.svc"
            || host.starts_with("kubernetes.default.svc.")
    }

    /// Whether a registry may be named at all; else why not. Loopback is fine as an address, and only as one.
    pub(super) fn check_name(&self, registry: &Registry) -> Result<(), &'static str> {
        let port = registry.port().unwrap_or(443);
        if let Some(address) = registry.ip_literal() {
            return self.check(address, port, Permission { loopback: true, private: true, identity: false }, &[]);
        }
        let host = registry.host().trim_end_matches('.');
        if self.names_api_server(host, port) {
            return Err("the Kubernetes API server is never contacted");
        }
        if host == "localhost" || host.ends_with(".localhost") {
            return self.check(
                IpAddr::V4(Ipv4Addr::LOCALHOST),
                port,
                Permission { loopback: false, private: true, identity: false },
                &[],
            );
        }
        if host == "metadata.google.internal" {
            return Err(METADATA);
        }
        Ok(())
    }

    /// Whether `--egress-allow` names this address (and `--egress-deny` does not).
    pub(super) fn allows_explicitly(&self, address: IpAddr) -> bool {
        let mapped = carried(address);
        let listed = |list: &[Cidr]| list.iter().any(|c| c.contains(address) || mapped.is_some_and(|m| c.contains(m)));
        listed(&self.allow) && !listed(&self.deny)
    }
}

/// What [`super::Client::permits`] says under these `--egress-allow`, `--egress-deny` and API servers (hosts with ports),
/// which may not be known. What is no CIDR is for others to refuse.
///
/// # Errors
/// Why not.
pub fn permits(
    allow: &[String],
    deny: &[String],
    api_servers: &[String],
    registry: &Registry,
) -> Result<(), &'static str> {
    Rules::new(allow, deny, api_servers).map_or(Ok(()), |rules| rules.check_name(registry))
}

/// Whether a redirect from `address` may lead to private addresses.
pub(super) fn is_private(address: IpAddr) -> bool {
    matches!(kind(carried(address).unwrap_or(address)), Kind::Private | Kind::Loopback)
}

/// The addresses from which workloads get their identity: Google's metadata server, EKS Pod Identity, ECS. No redirect and
/// no other spelling leads to them.
pub(super) fn gives_identity(address: IpAddr) -> bool {
    const GOOGLE: Ipv6Addr = Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254);
    const EKS: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x23);
    match address {
        IpAddr::V4(address) => matches!(address.octets(), [169, 254, 169, 254] | [169, 254, 170, 2 | 23]),
        IpAddr::V6(address) => address == GOOGLE || address == EKS,
    }
}

enum Kind {
    Public,
    Private,
    Loopback,
    Forbidden(&'static str),
}

const METADATA: &str = "the address of a cloud's metadata service is never contacted";
const LINK_LOCAL: &str = "link-local addresses are never contacted";
const NOT_A_HOST: &str = "unspecified, multicast and reserved addresses are never contacted";

fn kind(address: IpAddr) -> Kind {
    match address {
        IpAddr::V4(address) => kind4(address),
        IpAddr::V6(address) => kind6(address),
    }
}

fn kind4(address: Ipv4Addr) -> Kind {
    match address.octets() {
        // Alibaba Cloud; Azure; Oracle Cloud. The others' is link-local.
        [100, 100, 100, 200] | [168, 63, 129, 16] | [192, 0, 0, 192] | [169, 254, 169, 254] => {
            Kind::Forbidden(METADATA)
        }
        [169, 254, ..] => Kind::Forbidden(LINK_LOCAL),
        [0, ..] | [224..=255, ..] => Kind::Forbidden(NOT_A_HOST),
        [127, ..] => Kind::Loopback,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] | [198, 18..=19, ..] => Kind::Private,
        _ => Kind::Public,
    }
}

fn kind6(address: Ipv6Addr) -> Kind {
    // AWS; Google Cloud.
    const AWS: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x254);
    const GOOGLE: Ipv6Addr = Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254);
    match address.segments() {
        _ if address == AWS || address == GOOGLE => Kind::Forbidden(METADATA),
        _ if address.is_loopback() => Kind::Loopback,
        _ if address.is_unspecified() || address.is_multicast() => Kind::Forbidden(NOT_A_HOST),
        [0xfe80..=0xfebf, ..] => Kind::Forbidden(LINK_LOCAL),
        [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => Kind::Private,
        _ => Kind::Public,
    }
}

/// The IPv4 address inside an IPv6 one: mapped, compatible, NAT64, 6to4.
fn carried(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(address) = address else { return None };
    let [a, b, c, d, e, f, g, h] = address.segments();
    let of = |high: u16, low: u16| Some(IpAddr::V4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low))));
    match (a, b, c, d, e, f) {
        (0, 0, 0, 0, 0, 0xffff) | (0x64, 0xff9b, 0, 0, 0, 0) => of(g, h),
        // ::1 and :: are IPv6 addresses of their own.
        (0, 0, 0, 0, 0, 0) if g != 0 || h > 1 => of(g, h),
        (0x2002, ..) => of(b, c),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMED: Permission = Permission { loopback: false, private: true, identity: false };
    const REDIRECT: Permission = Permission { loopback: false, private: false, identity: false };
    const LOOPBACK: Permission = Permission { loopback: true, private: true, identity: false };
    const LOGIN: Permission = Permission { identity: true, ..NAMED };

    #[test]
    fn addresses_are_judged_by_kind_and_permission() {
        let rules = Rules::new(&[], &[], &["10.96.0.1".to_owned()]).unwrap();
        // address, named by a spec, redirect from a public origin, with loopback permission
        for (address, named, redirect, loopback) in [
            ("93.184.216.34", true, true, true),
            ("2606:2800:220:1::1", true, true, true),
            ("10.1.2.3", true, false, true),
            ("172.31.255.255", true, false, true),
            ("192.168.0.1", true, false, true),
            ("100.64.0.1", true, false, true),
            ("fd12::1", true, false, true),
            ("127.0.0.1", false, false, true),
            ("127.8.8.8", false, false, true),
            ("::1", false, false, true),
            ("::ffff:127.0.0.1", false, false, true),
            ("::ffff:10.0.0.1", true, false, true),
            ("169.254.169.254", false, false, false),
            ("169.254.0.1", false, false, false),
            ("::ffff:169.254.169.254", false, false, false),
            ("64:ff9b::169.254.169.254", false, false, false),
            ("2002:a9fe:a9fe::1", false, false, false),
            ("fd00:ec2::254", false, false, false),
            ("100.100.100.200", false, false, false),
            ("fe80::1", false, false, false),
            ("0.0.0.0", false, false, false),
            ("::", false, false, false),
            ("224.0.0.1", false, false, false),
            ("255.255.255.255", false, false, false),
            ("ff02::1", false, false, false),
            ("10.96.0.1", false, false, false),
        ] {
            let ip: IpAddr = address.parse().unwrap();
            assert_eq!(rules.check(ip, 443, NAMED, &[]).is_ok(), named, "{address} named");
            assert_eq!(rules.check(ip, 443, REDIRECT, &[]).is_ok(), redirect, "{address} redirect");
            assert_eq!(rules.check(ip, 443, LOOPBACK, &[]).is_ok(), loopback, "{address} loopback");
        }
    }

    #[test]
    fn the_api_server_is_a_host_at_a_port() {
        let servers = ["127.0.0.1:6443", "[fd12::1]:6443", "api.example:8443", "10.96.0.1"].map(str::to_owned);
        let rules = Rules::new(&[], &[], &servers).unwrap();
        let resolved: IpAddr = "203.0.113.7".parse().unwrap();
        for (address, port, ok) in [
            ("127.0.0.1", 6443, false),
            ("127.0.0.2", 6443, false),
            ("::1", 6443, false),
            ("::ffff:127.0.0.1", 6443, false),
            ("127.0.0.1", 5000, true),
            ("fd12::1", 6443, false),
            ("fd12::1", 443, true),
            ("10.96.0.1", 443, false),
            ("10.96.0.1", 5000, false),
            ("203.0.113.7", 8443, false),
            ("203.0.113.8", 8443, true),
        ] {
            let api: Vec<IpAddr> = rules.api_names(port).map(|_| resolved).collect();
            assert_eq!(rules.check(address.parse().unwrap(), port, LOOPBACK, &api).is_ok(), ok, "{address} {port}");
        }
        assert_eq!(rules.api_names(8443).collect::<Vec<_>>(), ["api.example"]);
        let allowing = Rules::new(&["127.0.0.0/8".to_owned()], &[], &servers).unwrap();
        assert!(allowing.check("127.0.0.1".parse().unwrap(), 6443, NAMED, &[]).is_ok());
        for (registry, ok) in [
            ("127.0.0.1:6443", false),
            ("127.0.0.1:5000", true),
            ("api.example:8443", false),
            ("api.example", true),
            ("10.96.0.1", false),
            ("kubernetes.default.svc:5000", false),
        ] {
            assert_eq!(rules.check_name(&registry.parse().unwrap()).is_ok(), ok, "{registry}");
        }
    }

    #[test]
    fn a_login_reaches_where_clouds_give_identities_and_no_other_forbidden_address() {
        let rules = Rules::new(&[], &["169.254.170.0/28".to_owned()], &[]).unwrap();
        for (address, ok) in [
            ("169.254.169.254", true),
            ("169.254.170.23", true),
            ("fd00:ec2::23", true),
            ("fd20:ce::254", true),
            ("169.254.170.2", false),
            ("169.254.169.253", false),
            ("::ffff:169.254.169.254", false),
            ("fd00:ec2::254", false),
            ("100.100.100.200", false),
            ("127.0.0.1", false),
        ] {
            assert_eq!(rules.check(address.parse().unwrap(), 80, LOGIN, &[]).is_ok(), ok, "{address}");
        }
    }

    #[test]
    fn deny_wins_over_allow_and_allow_over_the_rules() {
        let list = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        let rules =
            Rules::new(&list(&["169.254.0.0/16", "127.0.0.0/8"]), &list(&["169.254.7.0/24", "8.8.8.8"]), &[]).unwrap();
        for (address, ok) in [
            ("169.254.169.254", true),
            ("::ffff:169.254.169.254", true),
            ("169.254.7.1", false),
            ("127.0.0.1", true),
            ("8.8.8.8", false),
            ("8.8.4.4", true),
        ] {
            assert_eq!(rules.check(address.parse().unwrap(), 443, REDIRECT, &[]).is_ok(), ok, "{address}");
        }
        assert!(Rules::new(&list(&["10.0.0.0/33"]), &[], &[]).is_err());
        assert!(Rules::new(&[], &list(&["example.com"]), &[]).is_err());
    }

    #[test]
    fn a_prefix_of_zero_is_everything_of_its_family() {
        let all = Cidr::parse("0.0.0.0/0").unwrap();
        assert!(all.contains("1.2.3.4".parse().unwrap()));
        assert!(!all.contains("::1".parse().unwrap()));
        assert!(Cidr::parse("::/0").unwrap().contains("ff::".parse().unwrap()));
    }

    #[test]
    fn the_api_server_is_known_by_its_names() {
        let rules = Rules::new(&[], &[], &["API.internal:6443".to_owned()]).unwrap();
        for (host, is) in [
            ("kubernetes.default.svc", true),
            ("kubernetes.default.svc.cluster.local.", true),
            ("kubernetes.default", true),
            ("api.internal", true),
            ("kubernetes.example.com", false),
        ] {
            assert_eq!(rules.names_api_server(host, 6443), is, "{host}");
        }
    }
}
