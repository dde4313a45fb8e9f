//! [`NetworkPolicy`] as text: what it allows, as it is understood.

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;

use super::target::{PolicyProtocol, PolicyTarget, TargetHost, TargetPort};
use super::{AllowRule, NetworkPolicy, PolicyLimits, PolicyMode, ResolveMode, StreamCheck};

impl fmt::Display for NetworkPolicy {
    /// A line for the mode, for each rule, and for the limits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.mode {
            PolicyMode::Enforce => "refuses what no rule allows",
            PolicyMode::Record => {
                "refuses only the host and special addresses, and records the rest"
            }
        })?;
        for rule in &self.allow {
            write!(f, "\nallow {rule}")?;
        }
        for text in &self.deny {
            write!(f, "\ndeny {}", canonical(text))?;
        }
        write!(f, "\n{}", self.limits)
    }
}

impl fmt::Display for AllowRule {
    /// The target, what is checked, and the reason.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&canonical(&self.to))?;
        if self.resolve == ResolveMode::Real {
            f.write_str(", real addresses")?;
        }
        match self.effective_check() {
            Some(StreamCheck::Tls) => f.write_str(", TLS server name checked")?,
            Some(StreamCheck::Http) => f.write_str(", HTTP host checked")?,
            Some(StreamCheck::None) => f.write_str(", not checked")?,
            None => {}
        }
        let Some(because) = &self.because else { return Ok(()) };
        // A line feed would begin what looks like another rule.
        let is_control = |char: char| char.is_control();
        write!(f, " ({})", because.replace(is_control, " "))
    }
}

impl AllowRule {
    /// What is checked; `None` for what has no name.
    fn effective_check(&self) -> Option<StreamCheck> {
        let target: PolicyTarget = self.to.parse().ok()?;
        let has_name =
            matches!(target.host, TargetHost::Name(_) | TargetHost::Internet | TargetHost::Private);
        match self.check {
            _ if !has_name || target.protocol != PolicyProtocol::Tcp => None,
            Some(check) => Some(check),
            None => match target.port {
                TargetPort::One(port) => {
                    Some(StreamCheck::of_port(port)).filter(|check| *check != StreamCheck::None)
                }
                TargetPort::Any => None,
            },
        }
    }
}

impl fmt::Display for PolicyLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { flows, flows_per_second, connecting, .. } = self;
        write!(
            f,
            "at most {flows} flows, {flows_per_second} new flows in a second, {connecting} that are \
                   connecting, "
        )?;
        if let Some(bytes) = self.bytes_per_second {
            write!(f, "{bytes} bytes in a second in each direction, ")?;
        }
        if let Some(bytes) = self.total_bytes {
            write!(f, "{bytes} bytes in all, ")?;
        }
        let Self { queries_per_second, name_bytes_per_minute, .. } = self;
        write!(
            f,
            "{queries_per_second} DNS queries in a second, {name_bytes_per_minute} bytes of new names \
                   in a minute"
        )
    }
}

/// A target as it is understood; one with a mistake as it is written.
fn canonical(text: &str) -> String {
    text.parse::<PolicyTarget>().map_or_else(|_| format!("{text:?}"), |target| target.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_text_has_a_line_for_each_rule() {
        let mut policy = NetworkPolicy::new()
            .allow_rule(AllowRule::new("pypi.org").because("packages"))
            .allow_rule(AllowRule::new("*.x.org:22").resolve(ResolveMode::Real))
            .allow("host:80")
            .deny("10.0.0.0/8:*");
        policy.limits.total_bytes = Some(2_000_000_000);
        let text = policy.to_string();
        let lines: alloc::vec::Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "refuses what no rule allows");
        assert_eq!(lines[1], "allow \"pypi.org\" (packages)");
        assert_eq!(lines[2], "allow *.x.org:22, real addresses");
        assert_eq!(lines[3], "allow host:80");
        assert_eq!(lines[4], "deny 10.0.0.0/8:*");
        let rule = AllowRule::new("a.b:1").because("x\nallow internet:*\u{1b}[2J").to_string();
        assert!(!rule.contains(char::is_control), "{rule:?}");
        assert!(lines[5].contains("2000000000 bytes in all"), "{text}");
        let rule = AllowRule::new("tcp://pypi.org.:443").to_string();
        assert_eq!(rule, "pypi.org:443, TLS server name checked");
    }
}
