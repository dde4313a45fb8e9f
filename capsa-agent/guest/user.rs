//! Users of the guest, from `/etc/passwd` and `/etc/group`.

use alloc::vec::Vec;

use crate::sys::{self, Errno, Outcome};

/// At most this much of a file is read.
const MAX_FILE: usize = 1024 * 1024;

/// A user with its groups.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) name: Vec<u8>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: Vec<u8>,
    pub(crate) shell: Vec<u8>,
}

impl Account {
    /// The user with a name, or with `UID` or `UID:GID`. Default: the user of this process.
    ///
    /// # Errors
    ///
    /// `EINVAL` when no user has the name.
    pub(crate) fn find(user: Option<&[u8]>) -> Outcome<Self> {
        let passwd = sys::read_file(None, b"/etc/passwd", MAX_FILE).unwrap_or_default();
        let lines = || passwd.split(|&byte| byte == b'\n').filter_map(Self::parse);
        let Some(user) = user else {
            let uid = sys::effective_uid();
            let found = lines().find(|account| account.uid == uid);
            return Ok(found.unwrap_or_else(|| Self::unnamed(uid)).with_groups());
        };
        let (uid, gid) = match user.iter().position(|&byte| byte == b':') {
            Some(colon) => {
                let gid = decimal(&user[colon + 1..]).ok_or(Errno::EINVAL)?;
                (decimal(&user[..colon]), Some(gid))
            }
            None => (decimal(user), None),
        };
        let named = lines().find(|account| account.name == user && gid.is_none());
        let numbered = |uid| {
            let found = lines().find(|account| account.uid == uid);
            found.unwrap_or_else(|| Self::unnamed(uid))
        };
        let account = named.or_else(|| uid.map(numbered)).ok_or(Errno::EINVAL)?;
        let gid = gid.unwrap_or(account.gid);
        Ok(Self { gid, ..account }.with_groups())
    }

    /// A line of `/etc/passwd`: `name:password:UID:GID:comment:home:shell`.
    fn parse(line: &[u8]) -> Option<Self> {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b':').collect();
        let [name, _, uid, gid, _, home, shell] = fields[..] else { return None };
        Some(Self {
            name: name.to_vec(),
            uid: decimal(uid)?,
            gid: decimal(gid)?,
            groups: Vec::new(),
            home: if home.is_empty() { b"/".to_vec() } else { home.to_vec() },
            shell: if shell.is_empty() { b"/bin/sh".to_vec() } else { shell.to_vec() },
        })
    }

    /// A user without a line in `/etc/passwd`.
    fn unnamed(uid: u32) -> Self {
        let (name, home) = match uid {
            0 => (&b"root"[..], &b"/root"[..]),
            _ => (&b""[..], &b"/"[..]),
        };
        let (name, home) = (name.to_vec(), home.to_vec());
        Self { name, uid, gid: uid, groups: Vec::new(), home, shell: b"/bin/sh".to_vec() }
    }

    /// Adds the groups of `/etc/group` that have the user as a member: `name:password:GID:members`.
    fn with_groups(mut self) -> Self {
        self.groups.push(self.gid);
        if self.name.is_empty() {
            return self;
        }
        let groups = sys::read_file(None, b"/etc/group", MAX_FILE).unwrap_or_default();
        for line in groups.split(|&byte| byte == b'\n') {
            let fields: Vec<&[u8]> = line.split(|&byte| byte == b':').collect();
            let [_, _, gid, members] = fields[..] else { continue };
            let is_member = members.split(|&byte| byte == b',').any(|name| name == self.name);
            if let Some(gid) = decimal(gid).filter(|gid| is_member && !self.groups.contains(gid)) {
                self.groups.push(gid);
            }
        }
        self
    }

    /// Becomes this user.
    pub(crate) fn enter(&self) -> Outcome<()> {
        let uid = sys::effective_uid();
        if uid != 0 && uid == self.uid {
            return Ok(());
        }
        sys::set_user(self.uid, self.gid, &self.groups)
    }
}

/// A number without sign.
pub(crate) fn decimal(text: &[u8]) -> Option<u32> {
    core::str::from_utf8(text).ok()?.parse().ok()
}
