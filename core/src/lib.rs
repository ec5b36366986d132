//! The mesh's nouns and rules as plain data: no Kubernetes, no gRPC, no sockets, no clock.
