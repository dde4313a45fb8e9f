//! The public API: the specification's types, and the listing of all public items.

mod listing;
mod specification;
