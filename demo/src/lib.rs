//! The demo shop: five small services in one binary.
