//! The part of Go's `net/url` that determines the path of a vfkit socket: vfkit parses a path as a URL, so
//! `%41` becomes `A`, and a question mark ends the path.

/// The parts of a URL that the stand-in uses.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) scheme: String,
    /// The host with its port.
    pub(super) host: String,
    /// The decoded path.
    pub(super) path: String,
    /// The path before decoding.
    raw_path: String,
}

impl Url {
    /// Go's `url.Parse`, or with `is_request` Go's `url.ParseRequestURI`, which does not split off a
    /// fragment and requires an absolute URL.
    ///
    /// # Errors
    ///
    /// When the text is not a URL: Go's error text.
    pub(super) fn parse(text: &str, is_request: bool) -> Result<Self, String> {
        let parsed = match text.split_once('#') {
            Some((before, _)) if !is_request => Self::without_fragment(before, is_request),
            _ => Self::without_fragment(text, is_request),
        };
        parsed.map_err(|why| format!("parse {text:?}: {why}"))
    }

    /// The port, without the colon.
    pub(super) fn port(&self) -> &str {
        self.host.rsplit_once(':').map_or("", |(_, port)| port)
    }

    /// Go's `EscapedPath`: the path before decoding if it is validly escaped; otherwise the decoded path,
    /// escaped again.
    pub(super) fn escaped_path(&self) -> String {
        let is_valid = |b: u8| b.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:@[]/%".contains(&b);
        if self.raw_path.bytes().all(is_valid) {
            return self.raw_path.clone();
        }
        let mut escaped = String::new();
        for byte in self.path.bytes() {
            match byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte) {
                true => escaped.push(char::from(byte)),
                false => escaped += &format!("%{byte:02X}"),
            }
        }
        escaped
    }

    fn without_fragment(text: &str, is_request: bool) -> Result<Self, String> {
        if text.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
            return Err("net/url: invalid control character in URL".into());
        }
        if text.is_empty() && is_request {
            return Err("empty url".into());
        }
        let (scheme, rest) = scheme(text)?;
        let (rest, _query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut url = Self { scheme: scheme.to_ascii_lowercase(), ..Self::default() };
        if !rest.starts_with('/') {
            return match (scheme, is_request) {
                // An opaque URL has no path.
                (scheme, _) if !scheme.is_empty() => Ok(url),
                (_, true) => Err("invalid URI for request".into()),
                (_, false) => Self::relative(rest),
            };
        }
        let mut path = rest;
        if let Some(authority) = rest.strip_prefix("//")
            && (!scheme.is_empty() || (!is_request && !authority.starts_with('/')))
        {
            let end = authority.find('/').unwrap_or(authority.len());
            url.host = authority[..end].rsplit('@').next().unwrap_or_default().to_owned();
            path = &authority[end..];
            if !url.port().bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(format!("invalid port \":{}\" after host", url.port()));
            }
        }
        url.raw_path = path.to_owned();
        url.path = unescape(path)?;
        Ok(url)
    }

    fn relative(path: &str) -> Result<Self, String> {
        if path.split('/').next().is_some_and(|first| first.contains(':')) {
            return Err("first path segment in URL cannot contain colon".into());
        }
        Ok(Self { path: unescape(path)?, raw_path: path.to_owned(), ..Self::default() })
    }
}

/// Splits a text into the scheme, which may be empty, and the rest after the colon.
fn scheme(text: &str) -> Result<(&str, &str), String> {
    for (at, c) in text.char_indices() {
        match c {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' if at > 0 => {}
            ':' if at == 0 => return Err("missing protocol scheme".into()),
            ':' => return Ok((&text[..at], &text[at + 1..])),
            _ => break,
        }
    }
    Ok(("", text))
}

fn unescape(text: &str) -> Result<String, String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let hex = behind.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        let Some(byte) = byte else {
            let wrong = String::from_utf8_lossy(&behind[..behind.len().min(2)]);
            return Err(format!("invalid URL escape \"%{wrong}\""));
        };
        bytes.push(byte);
        rest = &behind[2..];
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_with_url_characters_changes() {
        for (text, path, escaped) in [
            ("unix:///run/a.sock", "/run/a.sock", "/run/a.sock"),
            ("unix:///run/a b.sock", "/run/a b.sock", "/run/a%20b.sock"),
            ("unix:///run/%41", "/run/A", "/run/%41"),
            ("unix:///run/a?b", "/run/a", "/run/a"),
            ("unix:///run/a#b", "/run/a", "/run/a"),
            ("unix://:/run/ä", "/run/ä", "/run/%C3%A4"),
            ("unix:relative", "", ""),
        ] {
            let url = Url::parse(text, false).unwrap();
            assert_eq!((&*url.path, &*url.escaped_path()), (path, escaped), "{text}");
        }
        assert_eq!(Url::parse("unix:///run/a#b", true).unwrap().path, "/run/a#b");
        for (text, why) in [
            ("unix://:run/x", "invalid port"),
            ("unix:///a%4", "invalid URL escape \"%4\""),
            (":x", "missing protocol scheme"),
            ("unix:///a\nb", "control character"),
        ] {
            let error = Url::parse(text, false).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(Url::parse("none", true).unwrap_err().ends_with("invalid URI for request"));
    }
}
