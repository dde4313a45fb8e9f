//! `--restful-uri`: where the REST service is.

use super::go_url::Url;

/// No service, which is the default.
pub(super) const NONE: &str = "none://";

/// The most that fits into a socket's address on macOS.
const MAX_SOCKET_PATH: usize = 103;

/// Where the service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// Nowhere.
    None,
    /// At host and port.
    Tcp(String),
    /// At a path.
    Unix(String),
}

impl Endpoint {
    /// Reads it.
    ///
    /// # Errors
    ///
    /// Why it is none, in the real one's words.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let Url { scheme, host, path, .. } = &Url::parse(text, true)?;
        match scheme.as_str() {
            "none" => Ok(Self::None),
            "tcp" | "http" if host.is_empty() => Err("invalid TCP uri: missing host".into()),
            "tcp" | "http" if !path.is_empty() => Err("invalid TCP uri: path is forbidden".into()),
            "tcp" | "http" => match host.rsplit_once(':') {
                Some((_, port)) if !port.is_empty() => Ok(Self::Tcp(host.clone())),
                _ => Err("invalid TCP uri: missing port".into()),
            },
            "unix" if path.is_empty() => Err("invalid unix uri: missing path".into()),
            "unix" if !host.is_empty() => Err("invalid unix uri: host is forbidden".into()),
            "unix" if path.len() > MAX_SOCKET_PATH => {
                Err("invalid unix uri: socket path length exceeds macOS limits".into())
            }
            "unix" => Ok(Self::Unix(path.clone())),
            _ => Err(format!("invalid scheme {scheme}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_path_above_103_bytes_is_rejected() {
        let path = |length: usize| format!("/{}", "x".repeat(length - 1));
        let at = |length| Endpoint::parse(&format!("unix://{}", path(length)));
        assert_eq!(at(103), Ok(Endpoint::Unix(path(103))));
        assert!(at(104).unwrap_err().contains("exceeds macOS limits"));
        assert_eq!(Endpoint::parse("unix:///r/%41?x"), Ok(Endpoint::Unix("/r/A".into())));
        assert_eq!(Endpoint::parse("http://h:1"), Ok(Endpoint::Tcp("h:1".into())));
        assert_eq!(Endpoint::parse("none://"), Ok(Endpoint::None));
    }
}
