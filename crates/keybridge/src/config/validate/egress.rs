//! Settings of connections to providers and MCP servers.

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderValue, Uri, uri};
use keybridge_net::egress::{Egress, Proxy, Roots};
use percent_encoding::percent_decode_str;

use super::{Check, certificates::certificates};
use crate::config::raw::{RawEgress, RawText};

/// The environment variables of the proxy, and of the hosts that are reached without it.
const PROXY: &[&str] = &["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
const NO_PROXY: &[&str] = &["NO_PROXY", "no_proxy"];

impl Check<'_> {
    /// Settings common to all connections.
    pub(super) fn egress(&mut self, raw: RawEgress) -> Egress {
        let roots = self.system_roots();
        let roots = self.trusted("egress.ca_bundle", &raw.ca_bundle, roots);
        Egress { roots, proxy: self.proxy(raw), allow_private: false }
    }

    /// Settings of the connections to one destination.
    pub(super) fn egress_to(
        &mut self,
        path: &str,
        common: &Egress,
        ca_bundle: &str,
        allow_private: bool,
    ) -> Egress {
        let roots = self.trusted(&format!("{path}.ca_bundle"), ca_bundle, common.roots.clone());
        Egress { roots, proxy: common.proxy.clone(), allow_private }
    }

    /// The certificate authorities of the system; if there are none, Mozilla's.
    fn system_roots(&mut self) -> Roots {
        let mut store = rustls::RootCertStore::empty();
        let native = rustls_native_certs::load_native_certs();
        for error in &native.errors {
            self.warning("system certificates", format!("cannot read a certificate: {error}"));
        }
        store.add_parsable_certificates(native.certs);
        if store.is_empty() {
            store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        store.into()
    }

    /// Adds the certificate authorities of a file to `roots`; an empty name means no file.
    fn trusted(&mut self, path: &str, file: &str, roots: Roots) -> Roots {
        if file.is_empty() {
            return roots;
        }
        let trusted = certificates(file).and_then(|certificates| {
            roots.with(certificates).map_err(|error| format!("cannot use `{file}`: {error}"))
        });
        trusted.unwrap_or_else(|message| {
            self.problem(path, message);
            roots
        })
    }

    fn proxy(&mut self, raw: RawEgress) -> Option<Proxy> {
        let mut except = raw.no_proxy;
        for (index, host) in except.iter().enumerate() {
            if host.is_empty() || host.contains([' ', ',', '/']) && !is_network(host) {
                let message = format!("`{host}` is not a host name, IP address or network");
                self.problem(format!("egress.no_proxy[{index}]"), message);
            }
        }
        let env = self.env;
        let first = |names: &[&'static str]| {
            let mut set = names.iter().filter_map(|name| Some((*name, env.value(name)?)));
            set.find(|(_, value)| !value.is_empty())
        };
        let (path, address) = match (raw.proxy, raw.proxy_from_environment) {
            (Some(_), true) => {
                let message = "set either this or `proxy`, not both";
                self.problem("egress.proxy_from_environment", message);
                return None;
            }
            (Some(text), false) => ("egress.proxy", self.text("egress.proxy", text)?),
            (None, true) => {
                let exceptions = first(NO_PROXY).map(|(_, hosts)| hosts).unwrap_or_default();
                let exceptions = exceptions.split(',').map(str::trim);
                except.extend(exceptions.filter(|host| !host.is_empty()).map(str::to_owned));
                let (name, address) = first(PROXY)?;
                (name, address.to_owned())
            }
            (None, false) => return None,
        };
        let Some(proxy) = proxy(address.trim(), except) else {
            // The value is left out: it may contain a password.
            self.problem(
                path,
                "must be the URL of a proxy, such as `http://user:password@host:3128`",
            );
            return None;
        };
        Some(proxy)
    }

    /// A string of the configuration, or the one that it refers to.
    pub(super) fn text(&mut self, path: &str, text: RawText) -> Option<String> {
        match text {
            RawText::Text(text) => Some(text.0),
            RawText::Source(source) => self.source(path, source),
        }
    }
}

/// Whether a text is a network such as `10.0.0.0/8`.
fn is_network(text: &str) -> bool {
    text.split_once('/').is_some_and(|(address, bits)| {
        address.parse::<std::net::IpAddr>().is_ok() && bits.parse::<u8>().is_ok()
    })
}

/// Parses the URL of a proxy; the default scheme is http.
fn proxy(text: &str, except: Vec<String>) -> Option<Proxy> {
    let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let uri: Uri = text.parse().ok()?;
    if !matches!(uri.scheme_str(), Some("http" | "https"))
        || !matches!(uri.path(), "" | "/")
        || uri.query().is_some()
    {
        return None;
    }
    let authority = uri.authority()?;
    let (user, host) = match authority.as_str().rsplit_once('@') {
        Some((user, host)) => (Some(user), host.parse::<uri::Authority>().ok()?),
        None => (None, authority.clone()),
    };
    let authorization = match user {
        Some(user) => Some(basic(user)?),
        None => None,
    };
    let address = Uri::builder()
        .scheme(uri.scheme_str().unwrap_or("http"))
        .authority(host)
        .path_and_query("/")
        .build()
        .ok()?;
    Some(Proxy { address, authorization, except })
}

/// The header value for a percent-encoded `user:password`.
fn basic(user: &str) -> Option<HeaderValue> {
    let (name, password) = user.split_once(':').unwrap_or((user, ""));
    let mut pair: Vec<u8> = percent_decode_str(name).collect();
    pair.push(b':');
    pair.extend(percent_decode_str(password));
    let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(pair))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::proxy;
    use crate::{
        config::{Config, Overrides},
        env::Env,
    };

    fn parse(text: &str, env: &Env) -> Result<Config, Vec<String>> {
        Config::parse(text, env, &Overrides::default())
            .map_err(|problems| problems.0.iter().map(ToString::to_string).collect())
    }

    const PROVIDER: &str = "[[providers]]\ntype = \"anthropic\"\n";

    #[test]
    fn the_environment_has_no_effect_unless_enabled() {
        let env =
            Env::from([("HTTPS_PROXY", "http://ada:secret@proxy:3128"), ("NO_PROXY", "a, .b")]);
        let config = parse(PROVIDER, &env).unwrap();
        assert_eq!(config.providers[0].egress.proxy, None);
        let enabled =
            format!("[egress]\nproxy_from_environment = true\nno_proxy = [\"c\"]\n{PROVIDER}");
        let config = parse(&enabled, &env).unwrap();
        let proxy = config.providers[0].egress.proxy.as_ref().unwrap();
        assert_eq!(proxy.address, "http://proxy:3128/");
        assert_eq!(proxy.except, ["c", "a", ".b"]);
        assert!(!format!("{config:?}").contains("secret"));
        assert_eq!(parse(&enabled, &Env::default()).unwrap().providers[0].egress.proxy, None);
    }

    #[test]
    fn a_ca_bundle_adds_to_the_system_certificates() {
        let certificate = rcgen::generate_simple_self_signed(["company.test".to_owned()]).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(certificate.cert.pem().as_bytes()).unwrap();
        let path = file.path().display();
        let text = format!(
            "{PROVIDER}ca_bundle = \"{path}\"\nallow_private = true\n[[providers]]\ntype = \"openai\""
        );
        let config = parse(&text, &Env::default()).unwrap();
        let [with, without] = [0, 1].map(|index| &config.providers[index].egress);
        assert_ne!(with.roots, without.roots);
        assert!(with.allow_private && !without.allow_private);
    }

    #[test]
    fn problems_name_their_place_and_no_password() {
        let empty = tempfile::NamedTempFile::new().unwrap();
        let path = empty.path().display();
        let text = format!(
            "[egress]\nproxy = \"socks5://ada:secret@proxy\"\nno_proxy = [\"a b\", \"10.0.0.0/8\"]\n\
             ca_bundle = \"/nowhere.pem\"\n{PROVIDER}ca_bundle = \"{path}\""
        );
        let found = parse(&text, &Env::default()).unwrap_err();
        let starts = [
            "egress.ca_bundle: cannot read `/nowhere.pem`",
            "egress.no_proxy[0]: `a b`",
            "egress.proxy: must be the URL",
            "providers[0].ca_bundle: ",
        ];
        assert_eq!(found.len(), starts.len(), "{found:?}");
        for (found, start) in found.iter().zip(starts) {
            assert!(found.starts_with(start), "{found}");
            assert!(!found.contains("secret"));
        }
        let both = format!("[egress]\nproxy = \"p:1\"\nproxy_from_environment = true\n{PROVIDER}");
        assert_eq!(parse(&both, &Env::default()).unwrap_err().len(), 1);
    }

    #[test]
    fn a_proxy_url_is_parsed() {
        let parsed = proxy("http://ada:p%40ss@proxy.corp:3128", vec!["corp".into()]).unwrap();
        assert_eq!(parsed.address, "http://proxy.corp:3128/");
        // `printf ada:p@ss | base64`
        assert_eq!(parsed.authorization.unwrap(), "Basic YWRhOnBAc3M=");
        assert_eq!(parsed.except, ["corp"]);
        let plain = proxy("proxy.corp:3128", Vec::new()).unwrap();
        assert_eq!(plain.address, "http://proxy.corp:3128/");
        assert_eq!(plain.authorization, None);
    }

    #[test]
    fn what_is_no_proxy_is_refused() {
        for text in ["", "socks5://proxy:1080", "http://", "http://proxy/path", "a b"] {
            assert!(proxy(text, Vec::new()).is_none(), "{text}");
        }
    }
}
