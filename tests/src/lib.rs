//! What Capsa is tested with.
