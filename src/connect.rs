//! Clients of the outside world, one file per kind. They see `core` and `ports`, never each other.

pub mod schema_registry;
