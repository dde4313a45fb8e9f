//! `--restful-uri`: the address of the REST service.

use super::go_url::Url;

/// The default: no service.
pub(super) const NONE: &str = "none://";

/// The maximal length of a socket's path on macOS.
const MAX_SOCKET_PATH: usize = 103;

/// The address of the REST service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// No service.
    None,
    /// Host and port.
    Tcp(String),
    /// The path of a Unix socket.
    Unix(String),
}

impl Endpoint {
    /// Parses the value of the flag.
    ///
    /// # Errors
    ///
    /// When the value is invalid: the error text of the real one.
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
