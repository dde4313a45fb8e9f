//! The manual: longer explanations whose examples are compiled as doctests.

#[cfg(feature = "async")]
#[cfg_attr(docsrs, doc(cfg(feature = "async")))]
#[doc = include_str!("manual/agent.md")]
pub mod agent {}

#[doc = include_str!("manual/architecture.md")]
pub mod architecture {}

#[doc = include_str!("manual/cli.md")]
pub mod cli {}

#[cfg(feature = "blocking")]
#[cfg_attr(docsrs, doc(cfg(feature = "blocking")))]
#[doc = include_str!("manual/console.md")]
pub mod console {}

#[doc = include_str!("manual/embedding.md")]
pub mod embedding {}

#[cfg(feature = "async")]
#[cfg_attr(docsrs, doc(cfg(feature = "async")))]
#[doc = include_str!("manual/migration.md")]
pub mod migration {}

#[cfg(feature = "blocking")]
#[cfg_attr(docsrs, doc(cfg(feature = "blocking")))]
#[doc = include_str!("manual/shares.md")]
pub mod shares {}

#[cfg(feature = "blocking")]
#[cfg_attr(docsrs, doc(cfg(feature = "blocking")))]
#[doc = include_str!("manual/network.md")]
pub mod network {}

#[doc = include_str!("manual/policy.md")]
pub mod policy {}

#[doc = include_str!("manual/performance.md")]
pub mod performance {}

#[doc = include_str!("manual/testing.md")]
pub mod testing {}

#[doc = include_str!("manual/macos.md")]
pub mod macos {}
