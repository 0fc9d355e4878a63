//! Running it.
