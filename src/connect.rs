//! Clients of the outside world, one file per kind.
