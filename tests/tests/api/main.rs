//! The public API: the specification's types, the listing of all public items, and the names of calls.

mod listing;
mod specification;
mod symmetry;
