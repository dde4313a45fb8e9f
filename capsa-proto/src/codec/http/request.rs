//! [`Request`]: encodes an HTTP request.

use alloc::format;
use alloc::vec::Vec;
use core::fmt;

use serde_json::Value;

/// An HTTP method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Read the resource.
    Get,
    /// Set the resource.
    Put,
    /// Send a command to the resource.
    Post,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Post => "POST",
        })
    }
}

/// An HTTP request, with or without a JSON body.
///
/// The path is a constant, so input cannot inject anything into the request line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    method: Method,
    path: &'static str,
    body: Option<Vec<u8>>,
}

impl Request {
    /// A request without a body.
    ///
    /// # Panics
    ///
    /// When `path` does not start with `/` or has bytes other than visible ASCII, which is a bug in
    /// Capsa.
    pub const fn new(method: Method, path: &'static str) -> Self {
        let bytes = path.as_bytes();
        assert!(!bytes.is_empty() && bytes[0] == b'/', "a request path starts with a slash");
        let mut i = 0;
        while i < bytes.len() {
            assert!(bytes[i].is_ascii_graphic(), "a request path is visible ASCII");
            i += 1;
        }
        Self { method, path, body: None }
    }

    /// The same request with this JSON value as its body.
    #[must_use]
    pub(crate) fn with_json(self, body: &Value) -> Self {
        let body = serde_json::to_vec(body).expect("a JSON value can always be written");
        self.with_body(body)
    }

    /// The same request with this body, which must be JSON text: the content type is `application/json`.
    #[must_use]
    pub(crate) fn with_body(mut self, body: Vec<u8>) -> Self {
        self.body = Some(body);
        self
    }

    /// The path.
    pub fn path(&self) -> &'static str {
        self.path
    }

    /// The body, if any.
    pub fn body(&self) -> Option<&[u8]> {
        self.body.as_deref()
    }

    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        // `Accept: */*` is what cloud-hypervisor's own client sends; its server knows few types.
        let mut head = format!(
            "{} {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAccept: */*\r\n",
            self.method, self.path
        );
        match (&self.body, self.method) {
            (Some(body), _) => head.push_str(&format!(
                "Content-Type: application/json\r\nContent-Length: {}\r\n",
                body.len()
            )),
            (None, Method::Get) => {}
            (None, Method::Put | Method::Post) => head.push_str("Content-Length: 0\r\n"),
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(self.body().unwrap_or_default());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::String;

    use super::*;

    #[test]
    fn request_encodes_content_length() {
        let bare = Request::new(Method::Get, "/vm/state");
        let empty = Request::new(Method::Put, "/api/v1/vm.boot");
        let full = Request::new(Method::Post, "/vm/state").with_json(&serde_json::json!({"a": 1}));
        for (request, expected) in [
            (
                bare,
                "GET /vm/state HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAccept: */*\r\n\r\n",
            ),
            (
                empty,
                "PUT /api/v1/vm.boot HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                 Accept: */*\r\nContent-Length: 0\r\n\r\n",
            ),
            (
                full,
                "POST /vm/state HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAccept: */*\r\n\
                 Content-Type: application/json\r\nContent-Length: 7\r\n\r\n{\"a\":1}",
            ),
        ] {
            assert_eq!(String::from_utf8(request.encode()).unwrap(), expected);
        }
    }

    #[test]
    #[should_panic(expected = "visible ASCII")]
    fn request_path_with_line_break_panics() {
        let _ = Request::new(Method::Get, "/x HTTP/1.1\r\nEvil: 1");
    }
}
