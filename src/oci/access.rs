//! Which hosts may be asked, over what, at which addresses. Pure decisions: nothing here opens a connection.
//!
//! A registry's answers name further hosts: a token realm, a redirect, an upload location. Whoever controls the
//! answer controls those names, so each is checked here before anything is sent. The lists are configured by the
//! person who runs the pool; images are named by its users.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use reqwest::Url;

use crate::oci::error::OciError;
use crate::oci::reference::{Reference, RegistryName, host_of};

/// Hosts as configured: `host`, `host:port`, or `*.domain`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostList(Vec<HostPattern>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum HostPattern {
    Host(String),
    Authority(String),
    Below(String),
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(domain) = text.strip_prefix("*.") {
            let is_plain =
                domain.contains('.') && domain.parse::<RegistryName>().is_ok() && !domain.contains(':');
            return if is_plain {
                Ok(Self::Below(format!(".{}", domain.to_ascii_lowercase())))
            } else {
                Err(format!("{text:?} is no pattern like *.example.com"))
            };
        }
        let name: RegistryName = text.parse().map_err(|reason| format!("{text:?}: {reason}"))?;
        let is_exact = name.has_port();
        Ok(if is_exact {
            Self::Authority(name.as_str().to_owned())
        } else {
            Self::Host(name.host().to_owned())
        })
    }
}

impl HostList {
    /// Reads the list as written.
    pub fn parse(written: &[String]) -> Result<Self, String> {
        written.iter().map(|text| text.parse()).collect::<Result<_, _>>().map(Self)
    }

    fn has(&self, host: &str, authority: &str) -> bool {
        self.0.iter().any(|pattern| match pattern {
            HostPattern::Host(listed) => listed == host,
            HostPattern::Authority(listed) => listed == authority,
            HostPattern::Below(domain) => host.ends_with(domain.as_str()),
        })
    }

    /// Whether the host is listed under any port. Name resolution does not know ports.
    fn has_host(&self, host: &str) -> bool {
        self.0.iter().any(|pattern| match pattern {
            HostPattern::Host(listed) => listed == host,
            HostPattern::Authority(listed) => host_of(listed) == host,
            HostPattern::Below(domain) => host.ends_with(domain.as_str()),
        })
    }
}

/// Another place that has a registry's images: host, port, and a path in front of the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    name: RegistryName,
    prefix: String,
}

impl FromStr for Mirror {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, prefix) = text.split_once('/').unwrap_or((text, ""));
        let name = name.parse().map_err(|reason| format!("mirror {text:?}: {reason}"))?;
        let is_path = |byte: u8| byte.is_ascii_alphanumeric() || b"-._/".contains(&byte);
        if !prefix.bytes().all(is_path) || prefix.split('/').any(|part| part == "..") {
            return Err(format!("mirror {text:?}: the path has characters that repositories do not have"));
        }
        let prefix = prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { name, prefix })
    }
}

/// One place to ask for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Host and port of the API.
    pub authority: String,
    /// The repository as this place knows it.
    pub repository: String,
    /// The name under which credentials are listed.
    pub login: String,
    is_insecure: bool,
}

impl Endpoint {
    /// The URL of something below `/v2/<repository>/`.
    pub fn url(&self, rest: &str) -> String {
        let scheme = if self.is_insecure { "http" } else { "https" };
        format!("{scheme}://{}/v2/{}/{rest}", self.authority, self.repository)
    }

    fn is_origin_of(&self, url: &Url) -> bool {
        let port = if self.is_insecure { 80 } else { 443 };
        let own = Url::parse(&self.url("")).ok();
        own.is_some_and(|own| {
            own.scheme() == url.scheme()
                && own.host_str() == url.host_str()
                && own.port().unwrap_or(port) == url.port_or_known_default().unwrap_or(0)
        })
    }
}

/// What a registry needs beyond its own host, for those that most people use. Hosts only: they get no
/// credentials from redirects, and tokens are asked of those that the registry's documentation names.
struct WellKnown {
    registry: &'static str,
    api: Option<&'static str>,
    token_hosts: &'static [&'static str],
    redirects: &'static [&'static str],
}

const WELL_KNOWN: &[WellKnown] = &[
    WellKnown {
        registry: "docker.io",
        api: Some("registry-1.docker.io"),
        token_hosts: &["auth.docker.io"],
        redirects: &["production.cloudflare.docker.com", ".r2.cloudflarestorage.com"],
    },
    WellKnown {
        registry: "ghcr.io",
        api: None,
        token_hosts: &[],
        redirects: &["pkg-containers.githubusercontent.com"],
    },
    WellKnown { registry: "quay.io", api: None, token_hosts: &[], redirects: &[".quay.io"] },
    WellKnown {
        registry: "registry.gitlab.com",
        api: None,
        token_hosts: &["gitlab.com"],
        redirects: &["storage.googleapis.com", "cdn.registry.gitlab-static.net"],
    },
    WellKnown { registry: ".pkg.dev", api: None, token_hosts: &[], redirects: &["storage.googleapis.com"] },
    WellKnown {
        registry: ".azurecr.io",
        api: None,
        token_hosts: &[],
        redirects: &[".blob.core.windows.net"],
    },
    WellKnown { registry: ".amazonaws.com", api: None, token_hosts: &[], redirects: &[".amazonaws.com"] },
];

fn well_known(login: &str) -> Option<&'static WellKnown> {
    WELL_KNOWN.iter().find(|known| matches_name(known.registry, login))
}

fn matches_name(pattern: &str, host: &str) -> bool {
    if pattern.starts_with('.') { host.ends_with(pattern) } else { host == pattern }
}

/// What is allowed.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Registries that are spoken to without TLS.
    pub insecure: HostList,
    /// Hosts that may hand out tokens for any registry.
    pub token_hosts: HostList,
    /// Hosts that a registry may redirect to.
    pub redirect_hosts: HostList,
    /// Hosts that may be at private addresses.
    pub private_hosts: HostList,
    /// Mirrors by registry, in the order in which they are asked.
    pub mirrors: BTreeMap<RegistryName, Vec<Mirror>>,
}

impl Access {
    /// Where to read an image: the mirrors in order, then the registry itself.
    pub fn endpoints(&self, image: &Reference) -> Vec<Endpoint> {
        let mirrors = self.mirrors.get(image.registry()).into_iter().flatten().map(|mirror| Endpoint {
            authority: mirror.name.as_str().to_owned(),
            repository: format!("{}{}", mirror.prefix, image.repository()),
            login: mirror.name.as_str().to_owned(),
            is_insecure: self.insecure.has(mirror.name.host(), mirror.name.as_str()),
        });
        mirrors.chain([self.origin(image)]).collect()
    }

    /// The registry itself: where images are written.
    pub fn origin(&self, image: &Reference) -> Endpoint {
        let name = image.registry();
        let api = well_known(name.as_str()).and_then(|known| known.api);
        Endpoint {
            authority: api.unwrap_or(name.as_str()).to_owned(),
            repository: image.repository().to_owned(),
            login: name.as_str().to_owned(),
            is_insecure: self.insecure.has(name.host(), name.as_str()),
        }
    }

    /// May this URL, which the registry named as its token realm, be asked for a token, with credentials?
    pub fn check_realm(&self, at: &Endpoint, realm: &Url) -> Result<(), OciError> {
        let (host, authority) = host_and_authority(realm);
        let known = well_known(&at.login).is_some_and(|known| known.token_hosts.contains(&host.as_str()));
        let is_named = at.is_origin_of(realm) || known || self.token_hosts.has(&host, &authority);
        let is_safe = realm.scheme() == "https"
            || (realm.scheme() == "http" && (at.is_origin_of(realm) || self.insecure.has(&host, &authority)));
        if is_named && is_safe && realm.username().is_empty() && realm.password().is_none() {
            return self.check_literal(realm);
        }
        Err(OciError::RefuseHost {
            from: at.authority.clone(),
            target: target(realm),
            purpose: "tokens",
            remedy: "list it in `tokenHosts`",
        })
    }

    /// May this URL, which the registry redirected to, be followed? Whether credentials go along says the answer.
    pub fn check_redirect(&self, at: &Endpoint, url: &Url) -> Result<bool, OciError> {
        if at.is_origin_of(url) {
            return Ok(true);
        }
        let (host, authority) = host_and_authority(url);
        let known = well_known(&at.login)
            .is_some_and(|known| known.redirects.iter().any(|pattern| matches_name(pattern, &host)));
        let is_named = known || self.redirect_hosts.has(&host, &authority);
        let is_safe =
            url.scheme() == "https" || (url.scheme() == "http" && self.insecure.has(&host, &authority));
        if is_named && is_safe {
            return self.check_literal(url).map(|()| false);
        }
        Err(OciError::RefuseHost {
            from: at.authority.clone(),
            target: target(url),
            purpose: "content",
            remedy: "list it in `redirectHosts`",
        })
    }

    /// May this URL, which the registry named for an upload, be written to? Only its own host may.
    pub fn check_upload(at: &Endpoint, url: &Url) -> Result<(), OciError> {
        if at.is_origin_of(url) {
            return Ok(());
        }
        Err(OciError::RefuseHost {
            from: at.authority.clone(),
            target: target(url),
            purpose: "uploads",
            remedy: "push to that registry by its own name",
        })
    }

    /// A host that is an address does not pass by name resolution, so it is checked before the request.
    pub fn check_literal(&self, url: &Url) -> Result<(), OciError> {
        let (host, _) = host_and_authority(url);
        match host.parse::<IpAddr>() {
            Ok(address) if !self.may_connect(&host, address) => {
                Err(OciError::RefuseAddress { host, address: address.to_string() })
            }
            _ => Ok(()),
        }
    }

    /// Whether this address may be connected to for this host.
    pub fn may_connect(&self, host: &str, address: IpAddr) -> bool {
        is_public(address) || self.is_trusted(host)
    }

    /// Whoever lists a host says that it may be on the own network.
    fn is_trusted(&self, host: &str) -> bool {
        let mut lists =
            [&self.private_hosts, &self.insecure, &self.token_hosts, &self.redirect_hosts].into_iter();
        lists.any(|list| list.has_host(host))
            || self.mirrors.values().flatten().any(|mirror| mirror.name.host() == host)
    }
}

fn host_and_authority(url: &Url) -> (String, String) {
    let written = url.host_str().unwrap_or("").to_ascii_lowercase();
    let authority = match url.port() {
        Some(port) => format!("{written}:{port}"),
        None => written.clone(),
    };
    (written.trim_start_matches('[').trim_end_matches(']').to_owned(), authority)
}

/// Scheme and authority only: paths and queries of a redirect are often secrets.
fn target(url: &Url) -> String {
    format!("{}://{}", url.scheme(), host_and_authority(url).1)
}

/// Whether an address is one that registries on the Internet have. After the registries of special-purpose
/// addresses (RFC 6890 and its updates); cloud metadata services are among the link-local and unique-local ones.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => match embedded_v4(address) {
            Some(inner) => is_public_v4(inner),
            None => address.segments()[0] & 0xe000 == 0x2000 && address.segments()[..2] != [0x2001, 0x0db8],
        },
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || matches!(a, 0 | 224..)
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && matches!(b, 18 | 19))
        || address == Ipv4Addr::new(168, 63, 129, 16))
}

/// The IPv4 address that a mapped, NAT64 or 6to4 address leads to.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let parts = address.segments();
    let join = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match parts {
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => Some(join(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(hosts: &[&str]) -> HostList {
        HostList::parse(&hosts.iter().map(|&host| host.to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn access() -> Access {
        Access {
            insecure: list(&["127.0.0.1:5000"]),
            token_hosts: list(&["tokens.example"]),
            redirect_hosts: list(&["*.cdn.example", "blobs.example:8443"]),
            private_hosts: list(&["registry.svc"]),
            mirrors: BTreeMap::from([(
                "docker.io".parse().unwrap(),
                vec!["mirror.example/hub".parse().unwrap(), "127.0.0.1:5000".parse().unwrap()],
            )]),
        }
    }

    fn at(image: &str) -> Endpoint {
        access().origin(&image.parse().unwrap())
    }

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn mirrors_come_first_and_https_is_the_rule() {
        let urls: Vec<_> =
            access().endpoints(&"docker.io/redact:1".parse().unwrap()).iter().map(|at| at.url("x")).collect();
        assert_eq!(
            urls,
            [
                "https://mirror.example/v2/hub/library/redact/x",
                "http://127.0.0.1:5000/v2/library/redact/x",
                "https://registry-1.docker.io/v2/library/redact/x",
            ]
        );
    }

    #[test]
    fn tokens_are_asked_of_the_registry_or_a_listed_host_only() {
        let check = |image: &str, realm: &str| access().check_realm(&at(image), &url(realm)).is_ok();
        for (image, realm) in [
            ("r.example/a", "https://r.example/token"),
            ("r.example/a", "https://r.example:443/token"),
            ("r.example/a", "https://tokens.example/token"),
            ("docker.io/a", "https://auth.docker.io/token"),
            ("127.0.0.1:5000/a", "http://127.0.0.1:5000/token"),
        ] {
            assert!(check(image, realm), "{image} {realm}");
        }
        for (image, realm) in [
            ("r.example/a", "https://evil.example/token"),
            ("r.example/a", "http://r.example/token"),
            ("r.example/a", "https://r.example:8443/token"),
            ("r.example/a", "https://r.example@evil.example/token"),
            ("r.example/a", "https://user@r.example/token"),
            ("r.example/a", "https://tokens.example.evil.example/token"),
            ("r.example/a", "https://auth.docker.io/token"),
            ("r.example/a", "https://169.254.169.254/token"),
            ("r.example/a", "file:///etc/passwd"),
            ("127.0.0.1:5000/a", "http://127.0.0.1:5001/token"),
        ] {
            assert!(!check(image, realm), "{image} {realm}");
        }
    }

    #[test]
    fn redirects_go_to_listed_hosts_without_credentials() {
        let check = |target: &str| access().check_redirect(&at("r.example/a"), &url(target)).ok();
        assert_eq!(check("https://r.example/elsewhere"), Some(true));
        assert_eq!(check("https://eu.cdn.example/x?sig=1"), Some(false));
        assert_eq!(check("https://blobs.example:8443/x"), Some(false));
        for refused in [
            "http://r.example/x",
            "http://eu.cdn.example/x",
            "https://cdn.example/x",
            "https://blobs.example/x",
            "https://evil.example/x",
            "http://169.254.169.254/latest/meta-data",
        ] {
            assert_eq!(check(refused), None, "{refused}");
        }
    }

    #[test]
    fn private_addresses_need_a_listed_host() {
        let access = access();
        for private in [
            "127.0.0.1",
            "10.0.0.1",
            "172.16.3.4",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
            "::1",
            "::",
            "fe80::1",
            "fd00:ec2::254",
            "::ffff:10.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "ff02::1",
            "2001:db8::1",
        ] {
            let address: IpAddr = private.parse().unwrap();
            assert!(!access.may_connect("r.example", address), "{private}");
            assert!(access.may_connect("registry.svc", address), "{private}");
        }
        for public in ["140.82.121.34", "2606:50c0:8000::153", "::ffff:140.82.121.34"] {
            assert!(access.may_connect("r.example", public.parse().unwrap()), "{public}");
        }
        assert!(access.check_literal(&url("https://[fd00::1]/v2/")).is_err());
        assert!(access.check_literal(&url("http://2130706433/v2/")).is_ok(), "127.0.0.1 is listed");
        assert!(access.check_literal(&url("http://0xa9fea9fe/v2/")).is_err());
    }
}
