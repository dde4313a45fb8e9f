//! `getaddrinfo`, which blocks: the name service of the host, as its own programs use it.

use std::ffi::CStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ptr::null_mut;

use nix::libc;

/// There is the name, but it has no address. glibc and musl agree; Apple's has another number.
#[cfg(target_os = "linux")]
const EAI_NODATA: libc::c_int = -5;
#[cfg(not(target_os = "linux"))]
const EAI_NODATA: libc::c_int = 7;

/// Addresses of one name, at most; further ones are left out.
const ADDRESSES: usize = 64;

/// Why `getaddrinfo` returned no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameError {
    /// There is no such name.
    NoName,
    /// The resolver did not answer, or failed in another way.
    Failed,
}

/// The addresses of a name, of both families, in the order of the host's resolver; none when it exists
/// without an address. Whether the host itself has an address of a family makes no difference.
pub(crate) fn addresses_of(name: &CStr) -> Result<Vec<IpAddr>, NameError> {
    // SAFETY: zero is a valid value of each field, and the meaning of "any" and "none".
    let mut hints: libc::addrinfo = unsafe { std::mem::zeroed() };
    // One entry for each address, instead of one for each kind of socket.
    hints.ai_socktype = libc::SOCK_STREAM;
    let mut list = null_mut();
    // SAFETY: the name ends with a NUL, and `hints` and `list` live during the call.
    let code = unsafe { libc::getaddrinfo(name.as_ptr(), std::ptr::null(), &hints, &mut list) };
    match code {
        0 => {}
        EAI_NODATA => return Ok(Vec::new()),
        libc::EAI_NONAME => return Err(NameError::NoName),
        _ => return Err(NameError::Failed),
    }
    let mut addresses = Vec::new();
    let mut next = list;
    // SAFETY: the call succeeded, so the list is valid until it is freed; its last entry has no next one.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ai_next;
        let address = match entry.ai_family {
            libc::AF_INET => {
                // SAFETY: an entry of this family has an address of this type.
                let v4 = unsafe { *entry.ai_addr.cast::<libc::sockaddr_in>() };
                IpAddr::from(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)))
            }
            libc::AF_INET6 => {
                // SAFETY: an entry of this family has an address of this type.
                let v6 = unsafe { *entry.ai_addr.cast::<libc::sockaddr_in6>() };
                IpAddr::from(Ipv6Addr::from(v6.sin6_addr.s6_addr))
            }
            _ => continue,
        };
        if addresses.len() < ADDRESSES && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    // SAFETY: the list is from `getaddrinfo`, and no reference to it is left.
    unsafe { libc::freeaddrinfo(list) };
    Ok(addresses)
}
